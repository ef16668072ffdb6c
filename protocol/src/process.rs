//! How processes are to be started: where, with what around them, and what they are given of the node.

use serde::{Deserialize, Serialize};

use crate::error::Code;
use crate::ids::{NodeIndex, ObjectId};

/// How a process is to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnRequest {
    /// On which node.
    pub place: Place,
    /// What to run.
    pub program: Program,
    /// The whole environment, as bytes; the daemon adds what names the runtime, the rank, and the GPUs that were reserved.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory, as bytes. Empty: the daemon's.
    pub directory: Vec<u8>,
    /// Standard input, output and error.
    pub stdio: [Stdio; 3],
    /// What else it starts with.
    pub settings: Settings,
    /// CPUs and GPUs that are its own while it runs.
    pub reservation: Reservation,
    /// Its place in a group, when it has one.
    pub rank: Option<Rank>,
    /// A channel that gets one [`ExitNotice`](crate::control::ExitNotice) (its bytes) when the process has ended.
    pub notify: Option<ObjectId>,
}

impl SpawnRequest {
    /// A request for a program with nothing around it: where the policy says, no environment, output to the job's.
    #[must_use]
    pub fn new(program: Program) -> Self {
        Self {
            place: Place::default(),
            program,
            environment: Vec::new(),
            directory: Vec::new(),
            stdio: [Stdio::Null, Stdio::Forward, Stdio::Forward],
            settings: Settings::default(),
            reservation: Reservation::default(),
            rank: None,
            notify: None,
        }
    }
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Program {
    /// An executable with its arguments, looked up in the PATH of the given environment.
    Executable(Vec<Vec<u8>>),
    /// A Python worker from the warm interpreter of its node.
    Python {
        /// The interpreter's path.
        interpreter: Vec<u8>,
        /// The interpreter's own options, as `-O`.
        options: Vec<Vec<u8>>,
        /// What is imported once, before workers are forked, in the form that the package `dragon` gives it. Empty: nothing.
        preload: Vec<u8>,
        /// What the worker unpickles.
        payload: Vec<u8>,
    },
}

/// On which node a process is to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Place {
    /// Where `DRAGON_PLACEMENT` of its environment says, in turn when that says nothing.
    #[default]
    Default,
    /// On this node.
    Node(NodeIndex),
    /// On the node whose host has this name.
    Host(String),
    /// Where a policy says.
    Policy(Policy),
}

/// How processes are spread over the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Policy {
    /// One on each node in turn.
    RoundRobin,
    /// Those of one request in as many equal runs as there are nodes: the first ones on the first node, and so on.
    Block,
    /// As many on a node as it has CPUs for (each counts with those it reserves, at least one), then on the next.
    Packed,
    /// On the creator's node.
    Local,
    /// In turn on the other nodes.
    Remote,
}

impl Policy {
    /// The policy with this name: what `DRAGON_PLACEMENT` may say.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"roundrobin" => Self::RoundRobin,
            b"block" => Self::Block,
            b"packed" => Self::Packed,
            b"local" => Self::Local,
            b"remote" => Self::Remote,
            _ => return None,
        })
    }
}

/// One of standard input, output and error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Stdio {
    /// Output: to the output of the job, whole lines at a time. Input has none: that is [`Stdio::Null`].
    Forward,
    /// Nowhere, and from nowhere.
    Null,
    /// The daemon's own on the process's node: of a runtime on one machine, the terminal of the command `dragon`.
    Inherit,
    /// Standard error goes where standard output goes.
    Merge,
    /// A file on the process's node; a relative path begins at its working directory.
    File {
        /// The path, as bytes.
        path: Vec<u8>,
        /// Output is added at its end; otherwise what it held is gone.
        append: bool,
    },
    /// A channel, of any node: a message is a piece of what the process reads or writes, an empty one is the end.
    Channel(ObjectId),
}

/// What else a process starts with. What is `None` it has from the daemon of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Its file mode creation mask.
    pub umask: Option<u32>,
    /// Added to its nice value, -20 to 19.
    pub nice: Option<i32>,
    /// Its resource limits.
    pub limits: Vec<Limit>,
    /// When it ends without being told.
    pub lives: Lives,
}

/// A resource limit, as `setrlimit` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Of what.
    pub kind: LimitKind,
    /// The limit that counts; `None`: unlimited.
    pub soft: Option<u64>,
    /// How far the process may raise it; `None`: unlimited.
    pub hard: Option<u64>,
}

/// What a resource limit is about. The numbers are those of the C interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[repr(u8)]
pub enum LimitKind {
    /// Seconds of processor time.
    Cpu = 0,
    /// Bytes of a file.
    FileSize = 1,
    /// Bytes of data.
    Data = 2,
    /// Bytes of the stack.
    Stack = 3,
    /// Bytes of a core dump.
    Core = 4,
    /// Processes of the user.
    Processes = 5,
    /// Open files.
    OpenFiles = 6,
    /// Bytes of locked memory.
    LockedMemory = 7,
    /// Bytes of addresses.
    AddressSpace = 8,
}

impl LimitKind {
    /// The kind with this number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Cpu,
            1 => Self::FileSize,
            2 => Self::Data,
            3 => Self::Stack,
            4 => Self::Core,
            5 => Self::Processes,
            6 => Self::OpenFiles,
            7 => Self::LockedMemory,
            8 => Self::AddressSpace,
            _ => return None,
        })
    }
}

/// When a process ends without being told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Lives {
    /// With the runtime.
    #[default]
    UntilTheEnd,
    /// When the process that asked for it has ended or left the runtime: it is killed, with all that it started.
    WithCreator,
}

/// CPUs and GPUs of its node that a process has for itself while it runs, from what the job was granted there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// CPUs: the process is bound to them.
    pub cpus: Cpus,
    /// GPUs: the variables that vendors' libraries read name them.
    pub gpus: Gpus,
    /// How long to wait for them, in milliseconds; `None`: refused at once when they are not free.
    pub wait_ms: Option<u64>,
}

impl Reservation {
    /// Whether nothing is reserved.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cpus == Cpus::None && self.gpus == Gpus::None
    }
}

/// CPUs to be reserved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Cpus {
    /// None: the process runs on whatever CPUs the job was granted.
    #[default]
    None,
    /// So many, of one NUMA node where one has them.
    Count(u32),
    /// These, by the kernel's numbers.
    These(Vec<u32>),
    /// So many of a NUMA node; 0: all that the job was granted of it.
    Numa {
        /// The kernel's number of the NUMA node.
        node: u32,
        /// How many.
        count: u32,
    },
}

/// GPUs to be reserved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Gpus {
    /// None: the process sees what its environment says.
    #[default]
    None,
    /// So many.
    Count(u32),
    /// These, by the names under which the job was granted them.
    These(Vec<String>),
}

/// The place of a process among those of its group: what its environment tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    /// Its number in the group.
    pub rank: u32,
    /// Its number among those of its node.
    pub local: u32,
    /// Members of the group.
    pub size: u32,
}

/// How far a signal reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reach {
    /// The process alone, as `kill` does.
    #[default]
    Process,
    /// The process, its process group, and every process that descends from it.
    Tree,
}

/// A started process, or why it was not started.
pub type SpawnResult = Result<Spawned, (Code, String)>;

/// A started process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawned {
    /// The object to wait for. One reference to it is in transit, for the requester to adopt.
    pub process: ObjectId,
    /// Its pid on its node.
    pub pid: u32,
}
