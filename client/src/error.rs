//! What can go wrong in a client, and which number of the protocol stands for it.

use std::io;

use dragon_protocol::frame::FrameError;
use dragon_protocol::{Code, RELEASE};

/// The result of the operations of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The environment names no runtime.
    #[error(
        "there is no runtime to attach to: DRAGON_RUNTIME is not set; start the program with `dragon prog` or `srun --dragon prog`, or enter a running job with `dragon attach`"
    )]
    NoRuntime,
    /// There is no runtime, and no daemon that could start one.
    #[error(
        "there is no runtime here, and none can be started: {0}; set DRAGON_DAEMON to its path, or start the program with `dragon prog` or `srun --dragon prog`"
    )]
    NoDaemon(String),
    /// The daemon that was to start a runtime did not.
    #[error("there is no runtime here, and {daemon} could not start one: {why}")]
    NotStarted {
        /// Path of the daemon.
        daemon: String,
        /// What it said.
        why: String,
    },
    /// The environment names a runtime that does not answer.
    #[error(
        "nobody listens on the attach socket @{name} that DRAGON_RUNTIME names: the runtime has ended, or this process is in another network namespace; start the program again with `dragon prog` ({source})"
    )]
    NobodyListens {
        /// Name of the attach socket.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The runtime ended during the operation.
    #[error("the runtime has ended: its daemon closed the connection of this process ({0})")]
    RuntimeGone(String),
    /// Another user listens on the attach socket.
    #[error(
        "the attach socket @{name} that DRAGON_RUNTIME names belongs to user {theirs}, this process runs as user {ours}: not attaching to a stranger's runtime; unset DRAGON_RUNTIME or start the program with `dragon prog`"
    )]
    Stranger {
        /// Name of the attach socket.
        name: String,
        /// User who listens.
        theirs: u32,
        /// User of this process.
        ours: u32,
    },
    /// Something else than a daemon answered.
    #[error(
        "what listens on the attach socket @{name} that DRAGON_RUNTIME names is not a dragon runtime (its first bytes are {first:02x?}); unset DRAGON_RUNTIME or start the program with `dragon prog`"
    )]
    NotARuntime {
        /// Name of the attach socket.
        name: String,
        /// The bytes where the magic number belongs.
        first: [u8; 8],
    },
    /// Daemon and client are of different releases.
    #[error("{0}")]
    VersionMismatch(String),
    /// The daemon refused, and why.
    #[error("{text}")]
    Daemon {
        /// The number of the reason.
        code: Code,
        /// The daemon's sentence.
        text: String,
    },
    /// The daemon's answer makes no sense.
    #[error("the daemon answered what this release ({RELEASE}) does not understand: {0}")]
    BadReply(String),
    /// A control message that cannot be sent or read.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A value is out of its range; the text names value and limit.
    #[error("{0}")]
    InvalidArgument(String),
    /// A signal handler ran during the wait.
    #[error("a signal interrupted the wait; call again to go on")]
    Interrupted,
    /// The operating system refused a call.
    #[error("{call} failed: {source}")]
    System {
        /// Which call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Handles are open that a detach would leave without a runtime.
    #[error(
        "{0} handles or messages of this process are open: close them before detaching, or just end the process, which detaches too"
    )]
    HandlesOpen(usize),
    /// A defect of this library.
    #[error("a defect of libdragon {RELEASE}, please report it: {0}")]
    Defect(String),
    /// An operation on a channel, a lock or another object failed.
    #[error(transparent)]
    Channels(#[from] dragon_channels::Error),
    /// Shared memory was refused.
    #[error(transparent)]
    Memory(#[from] dragon_shmem::Error),
}

impl Error {
    /// The number of this error in the protocol and in the C interface.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NoRuntime | Self::NoDaemon(_) | Self::NotStarted { .. } => Code::NoRuntime,
            Self::NobodyListens { .. } | Self::RuntimeGone(_) => Code::RuntimeGone,
            Self::Stranger { .. } | Self::NotARuntime { .. } => Code::Refused,
            Self::VersionMismatch(_) => Code::VersionMismatch,
            Self::Daemon { code, .. } => *code,
            Self::Defect(_) => Code::Internal,
            Self::BadReply(_) => Code::Corrupt,
            Self::Frame(FrameError::TooLong { .. }) => Code::TooLarge,
            Self::Frame(_) => Code::Corrupt,
            Self::InvalidArgument(_) | Self::HandlesOpen(_) => Code::InvalidArgument,
            Self::Interrupted => Code::Interrupted,
            Self::System { .. } => Code::System,
            Self::Channels(error) => error.code(),
            Self::Memory(error) => error.code(),
        }
    }

    pub(crate) fn system(call: &'static str, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        if source.kind() == io::ErrorKind::Interrupted {
            Self::Interrupted
        } else {
            Self::System { call, source }
        }
    }
}
