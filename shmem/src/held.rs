//! The held table of a slot: the objects to which its process has a reference, on this node and on others, and the blocks
//! of messages that it reads at the moment.
//!
//! An entry is written before the reference is taken and cleared after it was given back. Between the two steps its state
//! says which way it goes; recovery then keeps the reference rather than take one too many away: what is lost is at most
//! one object's memory until the end of the runtime, never an object that somebody still uses.

use dragon_protocol::{NodeIndex, ObjectId, ObjectKind};

use crate::region::Shared;
use crate::sync::{AtomicU64, Ordering, high, low};

/// One entry. 16 bytes.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Entry {
    /// state 8 bits | kind 8 | node 24, from the low end.
    what: AtomicU64,
    /// generation << 32 | index.
    which: AtomicU64,
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Entry {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Entry>() == 16);

/// How far an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The reference is about to be taken, or the object about to be created.
    Taking = 1,
    /// The process has the reference.
    Held = 2,
    /// The reference is about to be given back.
    Giving = 3,
}

/// The state of an entry that records a block.
const BLOCK: u64 = 4;

impl Entry {
    /// Records an object.
    pub fn set(&self, id: ObjectId, state: State) {
        self.which.store(
            u64::from(id.generation) << 32 | u64::from(id.index),
            Ordering::Relaxed,
        );
        let what = state as u64 | (id.kind as u64) << 8 | u64::from(id.node.get()) << 16;
        // Release: who reads the state reads which object it is about.
        self.what.store(what, Ordering::Release);
    }

    /// Records a block of the default pool that the process reads and will free: a received message.
    pub fn set_block(&self, offset: u64) {
        self.which.store(offset, Ordering::Relaxed);
        self.what.store(BLOCK, Ordering::Release);
    }

    /// The block that the entry records, if it records one.
    #[must_use]
    pub fn block(&self) -> Option<u64> {
        let what = self.what.load(Ordering::Acquire);
        (what == BLOCK).then(|| self.which.load(Ordering::Relaxed))
    }

    /// Clears the entry.
    pub fn clear(&self) {
        self.what.store(0, Ordering::Release);
    }

    /// What the entry says; `None` when it is empty, or was scribbled over.
    #[must_use]
    pub fn get(&self) -> Option<(ObjectId, State)> {
        let what = self.what.load(Ordering::Acquire);
        let which = self.which.load(Ordering::Relaxed);
        let state = match what & 0xff {
            1 => State::Taking,
            2 => State::Held,
            3 => State::Giving,
            _ => return None,
        };
        let id = ObjectId {
            node: NodeIndex::new(u32::try_from(what >> 16).ok()?)?,
            kind: ObjectKind::from_u8(what.to_le_bytes()[1])?,
            index: low(which),
            generation: high(which),
        };
        Some((id, state))
    }
}
