//! Errors of operations on objects.

use crate::barrier::Breakage;
use dragon_protocol::{Code, NodeIndex, ObjectId, RuntimeId};

use crate::set::SetMember;

/// Why an operation on an object failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The deadline passed first.
    #[error("the deadline passed")]
    Timeout,
    /// Try form: nothing to receive, or the lock, event, process or semaphore is not ready.
    #[error("nothing is there yet")]
    Empty,
    /// Try form: no room to send.
    #[error("the channel is full")]
    Full,
    /// Try form: an unbounded channel has as many messages as its limit allows.
    #[error(
        "channel {channel} is at its limit: {messages} of {limit} messages; receive some, wait with a deadline, or create it with a higher limit"
    )]
    AtLimit {
        /// Which one.
        channel: ObjectId,
        /// Most messages that it may hold.
        limit: u64,
        /// How many it holds.
        messages: u64,
    },
    /// The message is longer than the room that the receiver has for it. It stays in the channel.
    #[error(
        "the next message of channel {channel} has {length} bytes, and there is room for {room}; it stays in the channel"
    )]
    TooLong {
        /// Which one.
        channel: ObjectId,
        /// Length of the message.
        length: u64,
        /// Room of the receiver.
        room: u64,
    },
    /// A signal handler ran during the wait; nothing happened.
    #[error("a signal interrupted the wait")]
    Interrupted,
    /// The object was destroyed.
    #[error("object {0} was destroyed")]
    Destroyed(ObjectId),
    /// The lock is not held by the caller, or by nobody.
    #[error("lock {0} is not held by this process")]
    NotOwner(ObjectId),
    /// A semaphore would have more units than it can.
    #[error(
        "semaphore {semaphore} has {value} of at most {most} units: {units} more cannot be given"
    )]
    TooManyUnits {
        /// Which semaphore.
        semaphore: ObjectId,
        /// The units that it has.
        value: u32,
        /// The most that it can have.
        most: u32,
        /// The units that were to be given.
        units: u32,
    },
    /// The barrier is broken.
    #[error("barrier {barrier} is broken: {why}")]
    Broken {
        /// Which barrier.
        barrier: ObjectId,
        /// Why.
        why: Breakage,
    },
    /// The descriptor is of another runtime.
    #[error(
        "the descriptor is of runtime {found}, this process is attached to {expected}; objects cannot be used across runtimes"
    )]
    OtherRuntime {
        /// The runtime of this process.
        expected: RuntimeId,
        /// The runtime of the descriptor.
        found: RuntimeId,
    },
    /// A value is out of its range.
    #[error("{what} is {value}: it must be from {least} to {most}")]
    InvalidArgument {
        /// Which value.
        what: &'static str,
        /// What was given.
        value: u64,
        /// The least that is allowed.
        least: u64,
        /// The most that is allowed.
        most: u64,
    },
    /// A message for another node is longer than a frame can carry.
    #[error(
        "a message of {length} bytes exceeds the limit of {limit} bytes between nodes; send it in parts"
    )]
    TooLarge {
        /// Its length.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// The node that owns the object is down.
    #[error("{node} is down; object {object} is lost", node = .0.node, object = .0)]
    NodeDown(ObjectId),
    /// The node has no agent yet, or none any more.
    #[error("{0} has no agent that could reach object {1} on another node")]
    NoGateway(NodeIndex, ObjectId),
    /// The process forked, and the child used a handle of its parent.
    #[error("this process was forked from one that is attached; it must attach by itself")]
    Forked,
    /// The sender has closed the stream, and everything was received.
    #[error("stream {0} has ended")]
    EndOfStream(ObjectId),
    /// The process at the other end of a stream died, or broke off.
    #[error(
        "the process at the other end of stream {0} died, or broke off; what it sent before was received"
    )]
    PeerDied(ObjectId),
    /// The receiver of a stream has closed its end.
    #[error("the receiver of stream {0} has closed its end; nothing more can be sent")]
    PeerClosed(ObjectId),
    /// This release does not do that with the object.
    #[error("{what} (object {object})")]
    Unsupported {
        /// What is not done, and the way out.
        what: &'static str,
        /// The object.
        object: ObjectId,
    },
    /// A set has as many members as it can have.
    #[error(
        "set {set} has {capacity} members, as many as it can have; remove some, or create it with a larger capacity"
    )]
    SetFull {
        /// The set.
        set: ObjectId,
        /// Its capacity.
        capacity: u32,
    },
    /// What was to be removed from a set is not in it.
    #[error("{membership:?} is not in set {set} (any more)")]
    NoSuchMember {
        /// The set.
        set: ObjectId,
        /// The place.
        membership: SetMember,
    },
    /// A pool of another node: its blocks lie in that node's memory.
    #[error(
        "pool {0} lies on node {node}: its memory can be used there only; `alloc_block` gives blocks that are copied to and from",
        node = .0.node
    )]
    NotHere(ObjectId),
    /// An operation on a block of another node failed.
    #[error(
        "{what} {length} bytes in pool {pool} of node {node}: {text}, after {done} bytes; {way_out}",
        node = .pool.node, text = .code.text(), way_out = way_out(*.code)
    )]
    Elsewhere {
        /// What was done.
        what: &'static str,
        /// The pool.
        pool: ObjectId,
        /// How many bytes were asked for.
        length: u64,
        /// How many of them were done.
        done: u64,
        /// Why it failed.
        code: Code,
    },
    /// The operation on an object of another node failed.
    #[error("object {1}: {0}")]
    Remote(Code, ObjectId),
    /// Shared memory.
    #[error(transparent)]
    Memory(#[from] dragon_shmem::Error),
}

/// What can be done when an operation on a block of another node fails.
const fn way_out(code: Code) -> &'static str {
    match code {
        Code::OutOfMemory | Code::OutOfCgroupMemory => {
            "free blocks there, or make a pool with a higher limit"
        }
        Code::TableFull => "free some of what this process holds on that node",
        Code::NodeDown | Code::Destroyed | Code::NoSuchObject => {
            "its blocks are lost; use a pool of another node, or make a new one"
        }
        Code::Unreachable | Code::RuntimeGone => {
            "the node may come back: try again, or use a pool of another node"
        }
        Code::Interrupted => "call again to go on from there",
        Code::InvalidArgument => "the block was freed, or the range lies outside of it",
        _ => "the log of that node's daemon tells more",
    }
}

/// Fails unless a value is in its range.
pub(crate) fn within(what: &'static str, value: u32, least: u32, most: u32) -> Result<()> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(Error::InvalidArgument {
            what,
            value: value.into(),
            least: least.into(),
            most: most.into(),
        })
    }
}

/// The result of an operation on an object.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The number of this error in the protocol and in the C interface.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Timeout => Code::Timeout,
            Self::Empty => Code::Empty,
            Self::Full | Self::AtLimit { .. } => Code::Full,
            Self::Interrupted => Code::Interrupted,
            Self::Destroyed(_) => Code::Destroyed,
            Self::NotOwner(_) => Code::NotOwner,
            Self::OtherRuntime { .. } => Code::Refused,
            Self::InvalidArgument { .. } | Self::TooManyUnits { .. } => Code::InvalidArgument,
            Self::TooLarge { .. } | Self::TooLong { .. } => Code::TooLarge,
            Self::NodeDown(_) => Code::NodeDown,
            Self::NoGateway(..) => Code::Unreachable,
            Self::Broken { .. } => Code::Broken,
            Self::Forked => Code::RuntimeGone,
            Self::EndOfStream(_) => Code::EndOfStream,
            Self::PeerDied(_) => Code::PeerDied,
            Self::PeerClosed(_) => Code::PeerClosed,
            Self::Unsupported { .. } => Code::Unsupported,
            Self::SetFull { .. } => Code::TableFull,
            Self::NoSuchMember { .. } => Code::InvalidArgument,
            Self::Remote(code, _) | Self::Elsewhere { code, .. } => *code,
            Self::NotHere(_) => Code::Unsupported,
            Self::Memory(error) => error.code(),
        }
    }

    /// The same of an operation on a block of another node.
    pub(crate) fn elsewhere(
        self,
        what: &'static str,
        pool: ObjectId,
        length: u64,
        done: u64,
    ) -> Self {
        match self {
            // That one knows more.
            Self::Elsewhere { .. } => self,
            error => Self::Elsewhere {
                what,
                pool,
                length,
                done,
                code: error.code(),
            },
        }
    }

    /// The error that a reply from another node announces; `None` for success.
    #[must_use]
    pub const fn of_reply(code: Code, object: ObjectId) -> Option<Self> {
        Some(match code {
            Code::Ok => return None,
            Code::Timeout => Self::Timeout,
            Code::Empty => Self::Empty,
            Code::Full => Self::Full,
            Code::Interrupted => Self::Interrupted,
            Code::Destroyed => Self::Destroyed(object),
            Code::NotOwner => Self::NotOwner(object),
            Code::EndOfStream => Self::EndOfStream(object),
            Code::PeerDied => Self::PeerDied(object),
            Code::PeerClosed => Self::PeerClosed(object),
            Code::Broken => Self::Broken {
                barrier: object,
                why: Breakage::Unknown,
            },
            Code::NodeDown => Self::NodeDown(object),
            Code::NoSuchObject => Self::Memory(dragon_shmem::Error::NoSuchObject(object)),
            Code::WrongKind => Self::Memory(dragon_shmem::Error::WrongKind(object)),
            code => Self::Remote(code, object),
        })
    }
}
