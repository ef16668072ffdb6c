//! Identifiers: of runtimes, nodes, process slots and objects.

use core::fmt;

use serde::{Deserialize, Serialize};

/// A runtime: derived from the job key, so that every node of it computes the same number without being told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuntimeId(pub u64);

impl fmt::Debug for RuntimeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for RuntimeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A node of a runtime, counted from 0. 24 bits; an index is never used again within a runtime.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeIndex(u32);

impl NodeIndex {
    /// The largest index that fits 24 bits.
    pub const MAX: u32 = (1 << 24) - 1;

    /// The index, or `None` when it needs more than 24 bits.
    #[must_use]
    pub const fn new(index: u32) -> Option<Self> {
        if index <= Self::MAX {
            Some(Self(index))
        } else {
            None
        }
    }

    /// The node with index 0: the first of the job, where the head program runs.
    pub const FIRST: Self = Self(0);

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for NodeIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

impl fmt::Display for NodeIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A process's place in its node's control region. The number is used again, under a new generation, only when the
/// recovery of its last owner has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotId {
    /// Index into the slot table; fits [`SlotId::BITS`] bits. 0 is the node's own daemon.
    pub index: u32,
    /// How often the slot has been given out.
    pub generation: u32,
}

impl SlotId {
    /// Width of a slot number in lock words and cells.
    pub const BITS: u32 = 20;
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum ObjectKind {
    /// A FIFO channel.
    Channel = 1,
    /// An owner-aware lock.
    Lock = 2,
    /// A flag that processes wait for.
    Event = 3,
    /// A managed process.
    Process = 4,
    /// A counting semaphore.
    Semaphore = 5,
    /// A pool of blocks.
    Pool = 6,
    /// A meeting point for a fixed number of parties.
    Barrier = 7,
    /// A payload that wakes one, some or all who wait for it.
    Broadcast = 8,
    /// A condition variable, used with a lock.
    Condition = 9,
    /// A queue with levels of priority.
    PriorityQueue = 10,
    /// A block with a name and a count of those who read it.
    Memory = 11,
    /// An endpoint of streams.
    Stream = 12,
    /// A set of objects that one waits for together.
    Set = 13,
}

impl ObjectKind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        Some(match n {
            1 => Self::Channel,
            2 => Self::Lock,
            3 => Self::Event,
            4 => Self::Process,
            5 => Self::Semaphore,
            6 => Self::Pool,
            7 => Self::Barrier,
            8 => Self::Broadcast,
            9 => Self::Condition,
            10 => Self::PriorityQueue,
            11 => Self::Memory,
            12 => Self::Stream,
            13 => Self::Set,
            _ => return None,
        })
    }

    /// One letter for the printable form of a descriptor.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Channel => 'c',
            Self::Lock => 'l',
            Self::Event => 'e',
            Self::Process => 'p',
            Self::Semaphore => 's',
            Self::Pool => 'm',
            Self::Barrier => 'b',
            Self::Broadcast => 'r',
            Self::Condition => 'd',
            Self::PriorityQueue => 'q',
            Self::Memory => 'y',
            Self::Stream => 't',
            Self::Set => 'w',
        }
    }

    /// The inverse of [`ObjectKind::letter`].
    #[must_use]
    pub const fn from_letter(letter: char) -> Option<Self> {
        Some(match letter {
            'c' => Self::Channel,
            'l' => Self::Lock,
            'e' => Self::Event,
            'p' => Self::Process,
            's' => Self::Semaphore,
            'm' => Self::Pool,
            'b' => Self::Barrier,
            'r' => Self::Broadcast,
            'd' => Self::Condition,
            'q' => Self::PriorityQueue,
            'y' => Self::Memory,
            't' => Self::Stream,
            'w' => Self::Set,
            _ => return None,
        })
    }
}

/// An object within a runtime: it leads straight to the node that owns it and to the entry in that node's object table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    /// The owning node.
    pub node: NodeIndex,
    /// What it is.
    pub kind: ObjectKind,
    /// Index into the node's object table.
    pub index: u32,
    /// How often that entry has been used.
    pub generation: u32,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            node,
            kind,
            index,
            generation,
        } = self;
        write!(f, "{}:{node}.{index}.{generation}", kind.letter())
    }
}
