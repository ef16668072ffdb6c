//! The part of Slurm's SPANK interface that the plugin uses
