//! System tests: real nodes, a real Slurm, real kills
