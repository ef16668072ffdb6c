//! Error numbers: the same on the wire, in replies and in the C interface. A number is never used again for another
//! meaning.

use core::fmt;

use serde::{Deserialize, Serialize};

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(i32)]
#[non_exhaustive]
pub enum Code {
    /// It succeeded.
    Ok = 0,
    /// The deadline passed first.
    Timeout = 1,
    /// Try form: nothing to receive.
    Empty = 2,
    /// Try form: no room to send.
    Full = 3,
    /// The object was destroyed.
    Destroyed = 4,
    /// The descriptor names no object: never created, or gone.
    NoSuchObject = 5,
    /// The object is of another kind than the operation needs.
    WrongKind = 6,
    /// The pool is used up.
    OutOfMemory = 7,
    /// The memory control group of the job has no room for another chunk.
    OutOfCgroupMemory = 8,
    /// A table of fixed size is full (slots, objects, held entries).
    TableFull = 9,
    /// A value is out of its range.
    InvalidArgument = 10,
    /// The lock was obtained; its last owner died while it held it.
    OwnerDied = 11,
    /// The caller does not hold the lock.
    NotOwner = 12,
    /// The node that owns the object is down.
    NodeDown = 13,
    /// The node exists but cannot be reached.
    Unreachable = 14,
    /// The runtime has ended or is ending.
    RuntimeGone = 15,
    /// There is no runtime to attach to.
    NoRuntime = 16,
    /// Daemon and client are of different versions.
    VersionMismatch = 17,
    /// Refused: another user, or no proof of the key.
    Refused = 18,
    /// A program could not be started; the text says why.
    SpawnFailed = 19,
    /// Shared memory holds what no correct process writes.
    Corrupt = 20,
    /// The message is larger than the receiver's buffer or than the limit.
    TooLarge = 21,
    /// The operating system refused a call; the text says which.
    System = 22,
    /// The operation was cancelled, for example because its process died.
    Cancelled = 23,
    /// This release does not do that yet.
    Unsupported = 24,
    /// A signal interrupted the wait; nothing happened.
    Interrupted = 25,
    /// The barrier is broken: a party gave up, died, or broke it.
    Broken = 26,
    /// The stream has ended: its sender closed it.
    EndOfStream = 27,
    /// The process at the other end died.
    PeerDied = 28,
    /// The library met a state that it does not expect of itself.
    Internal = 29,
    /// The other end of the stream was closed.
    PeerClosed = 30,
    /// The name stands for something already.
    NameTaken = 31,
    /// The name stands for nothing.
    NoSuchName = 32,
    /// The value is not the one that was expected.
    Changed = 33,
}

impl Code {
    /// The code with this number; unknown numbers come from a newer peer and read as [`Code::Corrupt`].
    #[must_use]
    pub const fn from_i32(n: i32) -> Self {
        match n {
            0 => Self::Ok,
            1 => Self::Timeout,
            2 => Self::Empty,
            3 => Self::Full,
            4 => Self::Destroyed,
            5 => Self::NoSuchObject,
            6 => Self::WrongKind,
            7 => Self::OutOfMemory,
            8 => Self::OutOfCgroupMemory,
            9 => Self::TableFull,
            10 => Self::InvalidArgument,
            11 => Self::OwnerDied,
            12 => Self::NotOwner,
            13 => Self::NodeDown,
            14 => Self::Unreachable,
            15 => Self::RuntimeGone,
            16 => Self::NoRuntime,
            17 => Self::VersionMismatch,
            18 => Self::Refused,
            19 => Self::SpawnFailed,
            21 => Self::TooLarge,
            22 => Self::System,
            23 => Self::Cancelled,
            24 => Self::Unsupported,
            25 => Self::Interrupted,
            26 => Self::Broken,
            27 => Self::EndOfStream,
            28 => Self::PeerDied,
            29 => Self::Internal,
            30 => Self::PeerClosed,
            31 => Self::NameTaken,
            32 => Self::NoSuchName,
            33 => Self::Changed,
            _ => Self::Corrupt,
        }
    }

    /// The number itself.
    #[must_use]
    pub const fn to_i32(self) -> i32 {
        self as i32
    }

    /// A short text in lower case.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Timeout => "the deadline passed",
            Self::Empty => "the channel is empty",
            Self::Full => "the channel is full",
            Self::Destroyed => "the object was destroyed",
            Self::NoSuchObject => "there is no such object (any more)",
            Self::WrongKind => "the object is of another kind",
            Self::OutOfMemory => "the pool is used up",
            Self::OutOfCgroupMemory => "the job's memory limit leaves no room",
            Self::TableFull => "a table of the runtime is full",
            Self::InvalidArgument => "a value is out of its range",
            Self::OwnerDied => "the last owner of the lock died while it held it",
            Self::NotOwner => "the lock is not held by the caller",
            Self::NodeDown => "the node that owns the object is down",
            Self::Unreachable => "the node that owns the object cannot be reached",
            Self::RuntimeGone => "the runtime has ended",
            Self::NoRuntime => "there is no runtime to attach to",
            Self::VersionMismatch => "daemon and client are of different versions",
            Self::Refused => "refused",
            Self::SpawnFailed => "the program could not be started",
            Self::Corrupt => "shared memory holds what no correct process writes",
            Self::TooLarge => "the message is too large",
            Self::System => "the operating system refused a call",
            Self::Cancelled => "the operation was cancelled",
            Self::Unsupported => "this release does not do that yet",
            Self::Interrupted => "a signal interrupted the wait",
            Self::Broken => "the barrier is broken",
            Self::EndOfStream => "the stream has ended",
            Self::PeerDied => "the process at the other end died",
            Self::PeerClosed => "the other end of the stream was closed",
            Self::NameTaken => "the name is taken",
            Self::NoSuchName => "there is no such name",
            Self::Changed => "the value is not the expected one",
            Self::Internal => "internal error: please report it",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
