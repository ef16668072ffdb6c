//! The daemon of a node (`dragond`) and the command that people type (`dragon`).
//!
//! `dragond` has one control thread: [`services`] owns all state and handles one event after the other. Beside it run a
//! thread that forks ([`forker`]), one that writes the output of the job ([`output`]) and the transport agent's own
//! (crate `dragon-transport`). How a job comes up and goes down is told in `docs/bring-up.md`.

pub mod adapter;
pub mod ask;
pub mod attach;
pub mod bringup;
pub mod cli;
pub mod config;
mod exec;
pub mod exit;
pub mod forker;
pub mod groups;
mod heard;
pub mod inherited;
pub mod journal;
pub mod link;
pub mod listener;
pub mod membership;
pub mod memory;
pub mod metrics;
pub mod names;
pub mod network;
pub mod node;
pub mod output;
pub mod parent_death;
pub mod passed;
pub mod program;
pub mod readable;
pub mod reservations;
pub mod resources;
pub mod services;
pub mod sibling;
pub mod signal_mask;
pub mod state;
pub mod store;
pub mod strangers;
pub mod supervisor;
pub mod survey;
pub mod sweep;
pub mod task;
pub mod tree;
pub mod zygote;
