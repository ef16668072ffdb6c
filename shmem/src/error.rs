//! Errors of shared memory.

use dragon_protocol::pool::PoolOptionError;
use dragon_protocol::{Code, ObjectId, RuntimeId};

use crate::pool::label::Label;
use crate::pool::tag::PoolTag;

/// What can go wrong with shared memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a call.
    #[error("{call}: {errno}{}", way_out(*errno))]
    System {
        /// The call.
        call: &'static str,
        /// The kernel's error.
        errno: rustix::io::Errno,
    },
    /// A file for a region cannot be made.
    #[error("{path}: {errno}; name a path in a folder of yours at which nothing is yet", path = path.display())]
    File {
        /// The path.
        path: Box<std::path::Path>,
        /// The kernel's error.
        errno: rustix::io::Errno,
    },
    /// Memory of one process alone cannot be passed to another.
    #[error("this region is private to its process, so it has no descriptor to pass on")]
    PrivateRegion,
    /// There is no such NUMA node.
    #[error("there is no NUMA node {node} on this machine; there are {online}")]
    NoSuchNumaNode {
        /// The node that was asked for.
        node: u32,
        /// Those that there are.
        online: Box<str>,
    },
    /// A region is not what it should be.
    #[error(
        "region '{what}': expected {expected:#x}, found {found:#x}; daemon and client must be of one release"
    )]
    Region {
        /// Which field differs.
        what: &'static str,
        /// What this release expects.
        expected: u64,
        /// What the region says.
        found: u64,
    },
    /// A region belongs to another runtime.
    #[error("region of runtime {found}, expected {expected}")]
    OtherRuntime {
        /// The runtime of this process.
        expected: RuntimeId,
        /// The runtime that the region names.
        found: RuntimeId,
    },
    /// Shared memory holds what no correct process writes.
    #[error(
        "shared memory is corrupt: {what} is {value:#x}; a process of the job has overwritten it"
    )]
    Corrupt {
        /// What was read.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A pool is used up.
    #[error(
        "pool {pool}: {asked} bytes do not fit: {free} of {limit} bytes are free{note}; free blocks, or take a pool with a larger limit (the default one's: start the runtime with --pool)"
    )]
    OutOfMemory {
        /// The pool.
        pool: Label,
        /// Bytes asked for.
        asked: u64,
        /// Bytes free in it.
        free: u64,
        /// Its limit.
        limit: u64,
        /// Why the limit is what it is, with the punctuation that leads up to it.
        note: Box<str>,
    },
    /// An option of a pool is out of its range.
    #[error(transparent)]
    PoolOption(#[from] PoolOptionError),
    /// A process that does not own a pool cannot commit or release its memory.
    #[error("pool {0} belongs to the node's daemon, which alone releases its memory")]
    NotTheOwner(Label),
    /// A block's address names a pool that the node does not have (any more).
    #[error(
        "there is no pool {0} on this node (any more); a pool goes when it was destroyed and nobody refers to it"
    )]
    NoSuchPool(PoolTag),
    /// A block cannot have the length that was asked for where it lies.
    #[error(
        "pool {pool}: the block at {offset:#x} cannot have {asked} bytes where it lies, but {room}; allocate a new one and copy"
    )]
    CannotGrow {
        /// The pool.
        pool: u32,
        /// The block.
        offset: u64,
        /// Bytes asked for.
        asked: u64,
        /// Bytes that it can have.
        room: u64,
    },
    /// The user's number is taken.
    #[error(
        "pool {pool} has memory with the number {id} already; attach to it, or choose another number"
    )]
    AlreadyExists {
        /// The pool.
        pool: u32,
        /// The number.
        id: u64,
    },
    /// There is no memory with the user's number.
    #[error("pool {pool} has no memory with the number {id} (any more)")]
    NoSuchMemory {
        /// The pool.
        pool: u32,
        /// The number.
        id: u64,
    },
    /// A signal handler ran during a wait.
    #[error("a signal interrupted the wait for memory")]
    Interrupted,
    /// The job's memory limit leaves no room.
    #[error("{0}")]
    OutOfCgroupMemory(String),
    /// A table of fixed size is full.
    #[error("all {size} {table} of the node are in use")]
    TableFull {
        /// Which table.
        table: &'static str,
        /// Its size.
        size: u32,
    },
    /// A count of an object's references is at its limit.
    #[error(
        "object {object} has {limit} references {kind}, and can have no more; give some back first"
    )]
    TooManyReferences {
        /// The object.
        object: ObjectId,
        /// Which: `of processes`, or `in transit` (exported descriptors that nobody has attached yet).
        kind: &'static str,
        /// The limit.
        limit: u32,
    },
    /// There is no such object (any more).
    #[error("object {0} does not exist (any more)")]
    NoSuchObject(ObjectId),
    /// The object was destroyed.
    #[error("object {0} was destroyed")]
    Destroyed(ObjectId),
    /// The object is of another kind.
    #[error("object {0} is of another kind")]
    WrongKind(ObjectId),
    /// A block was freed twice, or was never allocated.
    #[error("pool {pool}: offset {offset:#x} is not an allocated block")]
    NotAllocated {
        /// The pool.
        pool: u32,
        /// The offset.
        offset: u64,
    },
    /// The daemon answered a request with an error.
    #[error("{1}")]
    Daemon(Code, String),
}

/// The result of an operation on shared memory.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The number of this error in the protocol and in the C interface.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::System { .. } | Self::File { .. } => Code::System,
            Self::PrivateRegion => Code::Unsupported,
            Self::NoSuchNumaNode { .. } | Self::PoolOption(_) => Code::InvalidArgument,
            Self::NotTheOwner(_) => Code::Refused,
            Self::Region { .. } => Code::VersionMismatch,
            Self::OtherRuntime { .. } => Code::Refused,
            Self::Corrupt { .. } => Code::Corrupt,
            Self::OutOfMemory { .. } => Code::OutOfMemory,
            Self::CannotGrow { .. } => Code::OutOfMemory,
            Self::AlreadyExists { .. } => Code::InvalidArgument,
            Self::NoSuchMemory { .. } => Code::NoSuchObject,
            Self::Interrupted => Code::Interrupted,
            Self::OutOfCgroupMemory(_) => Code::OutOfCgroupMemory,
            Self::TableFull { .. } | Self::TooManyReferences { .. } => Code::TableFull,
            Self::NoSuchObject(_) | Self::NoSuchPool(_) => Code::NoSuchObject,
            Self::Destroyed(_) => Code::Destroyed,
            Self::WrongKind(_) => Code::WrongKind,
            Self::NotAllocated { .. } => Code::InvalidArgument,
            Self::Daemon(code, _) => *code,
        }
    }
}

/// What can be done about an error of the kernel whose name does not say it.
fn way_out(errno: rustix::io::Errno) -> &'static str {
    match errno {
        rustix::io::Errno::FBIG => "; no file may be so large here: raise the limit (ulimit -f)",
        _ => "",
    }
}

/// Names a system call in the error that it gives.
pub(crate) fn system(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |errno| Error::System { call, errno }
}

/// Names a call of the standard library in the error that it gives.
pub(crate) fn io(call: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::System {
        call,
        errno: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
    }
}
