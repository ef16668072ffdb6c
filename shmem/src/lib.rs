//! Shared memory of a node: regions, pools, slots, and what happens when a process dies.
//!
//! # Rules of shared memory
//! 1. No `&T` or `&mut T` to bytes that another process may write, unless `T` consists of atomics ([`region::Shared`]).
//!    Payload is copied through raw pointers.
//! 2. Offsets and indices, never addresses: every process maps a region where it likes.
//! 3. What is read from shared memory (offset, length, index, state) is checked before it is used. A user program may have
//!    scribbled over it; the answer is [`Error::Corrupt`], never a panic and never an access outside the region.
//! 4. Metadata lies in regions of its own, never inside blocks.
//! 5. Who acquires something records it where recovery finds it: in the thread's intent record, in the slot's held table,
//!    or in the thing itself (owner of a lock word, a cell, a page). Recovery reads only these.
//! 6. All atomics come from [`sync`].
//! 7. Each `unsafe` block states the invariant that it relies on.
//!
//! The layout is described in `docs/memory-layout.md`.

pub mod clock;
pub mod control;
pub mod copy;
pub mod error;
pub mod futex;
pub mod held;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod local;
pub mod member;
pub mod named;
pub mod object;
pub mod pool;
pub mod recover;
pub mod reference;
pub mod region;
pub mod slot;
pub mod subscription;
pub mod sync;
pub mod thread;

pub use control::Control;
pub use error::{Error, Result};
pub use futex::{Deadline, WaitResult};
pub use member::{ForkMark, Hooks, Member, Pin, SpareGuard, ThreadGuard};
pub use pool::table::PoolTable;
pub use pool::tag::PoolTag;
pub use pool::{Block, Pool};
pub use region::Region;

#[cfg(test)]
#[cfg(not(loom))]
mod layer_tests;
