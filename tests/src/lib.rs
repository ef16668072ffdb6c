//! System tests: real daemons, real nodes in namespaces, a real Slurm, real kills.
//!
//! `tests/local_*.rs` need nothing but this machine; `tests/nodes_*.rs` need root for namespaces; `tests/slurm_*.rs` need a
//! Slurm besides. The last two share one cluster per file and therefore bring their own list of cases ([`suite`]).

pub mod chaos;
pub mod child;
pub mod cluster;
pub mod cpus;
pub mod faults;
pub mod hosts;
pub mod job;
pub mod local;
pub mod netns;
pub mod nodes;
pub mod site;
pub mod step;
pub mod suite;
