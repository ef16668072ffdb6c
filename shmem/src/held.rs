//! The held table of a slot: the objects to which its process has a reference, on this node and on others, and the blocks
//! of messages that it reads at the moment.
//!
//! An entry is written before the reference is taken and cleared after it was given back. What happens in between is
//! decided by the object's [`crate::reference::Counts`], and written here by whoever brings the change to its end: at every
//! moment the entry, after a pending change was helped, says exactly what the process has.

use dragon_protocol::{NodeIndex, ObjectId, ObjectKind};

use crate::reference::{Change, Outcome};
use crate::region::Shared;
use crate::sync::{AtomicU64, Ordering, high, low};

/// One entry. 16 bytes.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Entry {
    /// state 8 bits | kind 8 | then, from the low end: index 24 | number of the change 22, for an object of this node, and
    /// node 24 for one of another.
    what: AtomicU64,
    /// generation << 32 | index, or a block's address.
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
    /// A reference is about to be taken.
    Taking = 1,
    /// The process has the reference.
    Held = 2,
    /// The reference is about to be given back.
    Giving = 3,
    /// The process has the entry of an object that it is about to create.
    Creating = 5,
    /// One more reference is about to be in transit.
    Exporting = 6,
    /// It is, and nobody has been told yet.
    Exported = 7,
    /// A reference in transit is about to be dropped.
    Dropping = 8,
    /// Nobody refers to the object any more: the process disposes of it.
    Last = 9,
    /// The change is over, and nothing is left of it here.
    Over = 10,
    /// The change was refused.
    Refused = 11,
    /// A reference to an object of another node: held, being taken or being given back.
    Remote = 12,
    /// The process is about to claim an entry of the object table: another may be quicker, also a thread of its own.
    Claiming = 13,
}

/// The state of an entry that records a block.
const BLOCK: u64 = 4;

impl State {
    const fn from_u64(n: u64) -> Option<Self> {
        Some(match n {
            1 => Self::Taking,
            2 => Self::Held,
            3 => Self::Giving,
            5 => Self::Creating,
            6 => Self::Exporting,
            7 => Self::Exported,
            8 => Self::Dropping,
            9 => Self::Last,
            10 => Self::Over,
            11 => Self::Refused,
            12 => Self::Remote,
            13 => Self::Claiming,
            _ => return None,
        })
    }

    /// The state of an entry while a change is made.
    #[must_use]
    pub const fn before(change: Change) -> Self {
        match change {
            Change::Create => Self::Creating,
            Change::Take | Change::Adopt => Self::Taking,
            Change::Give => Self::Giving,
            Change::Export => Self::Exporting,
            Change::Drop => Self::Dropping,
        }
    }

    /// Its state when the change has ended.
    #[must_use]
    pub const fn after(change: Change, outcome: Outcome) -> Self {
        match (outcome, change) {
            // Until it is published, the object goes with its creator.
            (_, Change::Create) => Self::Creating,
            (Outcome::Refused, _) => Self::Refused,
            (Outcome::Last, _) => Self::Last,
            (Outcome::Done, Change::Take | Change::Adopt) => Self::Held,
            (Outcome::Done, Change::Export) => Self::Exported,
            (Outcome::Done, Change::Give | Change::Drop) => Self::Over,
        }
    }
}

/// The first word for an object of this node.
fn local(kind: u8, index: u32, number: u32, state: State) -> u64 {
    state as u64
        | u64::from(kind) << 8
        | (u64::from(index) & 0xff_ffff) << 16
        | (u64::from(number) & 0x3f_ffff) << 40
}

impl Entry {
    #[cfg(all(test, loom))]
    pub(crate) fn empty() -> Self {
        Self {
            what: AtomicU64::new(0),
            which: AtomicU64::new(0),
        }
    }

    /// Records an object of this node; `number` is that of the change about to be made.
    pub fn set(&self, id: ObjectId, number: u32, state: State) {
        self.which.store(which(id), Ordering::Relaxed);
        // Release: who reads the state reads which object it is about.
        self.what.store(
            local(id.kind as u8, id.index, number, state),
            Ordering::Release,
        );
    }

    /// Records an object of another node.
    pub fn set_remote(&self, id: ObjectId) {
        self.which.store(which(id), Ordering::Relaxed);
        let what = State::Remote as u64 | (id.kind as u64) << 8 | u64::from(id.node.get()) << 16;
        self.what.store(what, Ordering::Release);
    }

    /// Writes the end of a change; nothing when that was done before.
    pub fn mark(&self, index: u32, number: u32, change: Change, outcome: Outcome) {
        const KIND: u64 = 0xff00;
        let now = self.what.load(Ordering::Acquire);
        if now & !KIND == local(0, index, number, State::before(change)) {
            let to = now & KIND | local(0, index, number, State::after(change, outcome));
            let _ = self
                .what
                .compare_exchange(now, to, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Records a block that the process reads and will free: a received message.
    pub fn set_block(&self, address: u64) {
        self.which.store(address, Ordering::Relaxed);
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

    /// Whether nothing is recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.what.load(Ordering::Acquire) == 0
    }

    /// What the entry says of an object, of this node `here` unless it names another; `None` when it is empty, or was
    /// scribbled over.
    #[must_use]
    pub fn get(&self, here: NodeIndex) -> Option<(ObjectId, State)> {
        let what = self.what.load(Ordering::Acquire);
        let which = self.which.load(Ordering::Relaxed);
        let state = State::from_u64(what & 0xff)?;
        let node = match state {
            State::Remote => NodeIndex::new(u32::try_from(what >> 16).ok()?)?,
            _ => here,
        };
        let id = ObjectId {
            node,
            kind: ObjectKind::from_u8(what.to_le_bytes()[1])?,
            index: low(which),
            generation: high(which),
        };
        Some((id, state))
    }
}

fn which(id: ObjectId) -> u64 {
    u64::from(id.generation) << 32 | u64::from(id.index)
}
