//! `dragon._native`: the objects of `libdragon.so.1` as Python classes.
//!
//! The package `dragon` is Python over this module; nothing here is public interface. Three rules hold in all of it:
//!
//! 1. An operation on an object of this node is first tried while the interpreter lock is held, which is a few atomic
//!    instructions; only one that has to wait, or to ask another node, gives the lock up.
//! 2. A signal interrupts a wait: Python's handlers run, and unless one raises, the wait goes on for the time that is left.
//!    Where it would miss something meanwhile, they run in the middle of it.
//! 3. A thread that comes back from a wait while the interpreter ends never returns into it.

mod api;
mod barrier;
mod channel;
mod condition;
mod error;
mod fork;
mod handle;
mod memory;
mod names;
mod process;
mod runtime;
mod set;
mod sync;
mod synchronized;
mod wait;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::barrier::Barrier;
    #[pymodule_export]
    use crate::channel::{Channel, Message};
    #[pymodule_export]
    use crate::condition::Condition;
    #[pymodule_export]
    use crate::fork::fork_sibling;
    #[pymodule_export]
    use crate::memory::Memory;
    #[pymodule_export]
    use crate::names::{lookup, publish, unpublish};
    #[pymodule_export]
    use crate::process::{Process, spawn_python, spawn_python_many};
    #[pymodule_export]
    use crate::runtime::{
        attach, info, is_attached, nodes, set_parent_death_signal, stats, version, warm_up,
    };
    #[pymodule_export]
    use crate::set::Set;
    #[pymodule_export]
    use crate::sync::{Event, Lock, Semaphore};
    #[pymodule_export]
    use crate::synchronized::Synchronized;
}
