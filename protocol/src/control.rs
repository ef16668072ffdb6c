//! The control plane: what clients ask their node's daemon, and what daemons tell each other.
//!
//! All of it is framed by [`crate::frame`]. What a client and its daemon say to each other is [`Numbered`]: any number of
//! requests may be under way, and daemons answer in any order.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::error::Code;
use crate::frame::FrameError;
use crate::group::{GroupLetter, GroupRequest, MemberInfo};
use crate::ids::{NodeIndex, ObjectId, RuntimeId, SlotId};
use crate::inspect::{Inspect, LogBatch, LogFilter, NodeAnswer, Scope};
use crate::launch::NodeInfo;
use crate::membership::MemberMessage;
use crate::names::{NameMessage, NameRequest, Outcome, StoreRequest, Value};
use crate::pool::PoolOptions;
pub use crate::process::{Program, Reach, SpawnRequest, SpawnResult, Spawned};

/// What stands in a frame between a client and its daemon. A client gives each request a number that none of those under
/// way has, from 1 on; the answer has the number of its request.
pub type Numbered<T> = (u64, T);

/// The number of what is no request, and of what answers none: with it the daemon says why it ends the connection.
pub const NO_REQUEST: u64 = 0;

/// What a client asks. Every request gets exactly one [`ClientReply`], unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ClientRequest {
    /// Commit memory of a pool so that `bytes` more can be allocated.
    Commit {
        /// Which pool.
        pool: u32,
        /// How many bytes the caller needs.
        bytes: u64,
    },
    /// Start processes, all on their way with one request.
    Spawn(Vec<SpawnRequest>),
    /// Send a signal to a process.
    Signal {
        /// The process.
        process: ObjectId,
        /// Signal number.
        signal: i32,
        /// Whom it reaches.
        reach: Reach,
    },
    /// Who is in the runtime.
    Nodes,
    /// What this node's daemon has counted.
    Stats,
    /// Make a pool for this process.
    CreatePool(PoolOptions),
    /// Pass the regions of a pool: this process has met the address of a block in it.
    MapPool {
        /// The upper 16 bits of the address.
        tag: u16,
    },
    /// This process gave its reference to a pool back, and only the daemon's own was left.
    PoolReleased(ObjectId),
    /// Give memory that no pool uses back to the system.
    TrimPools,
    /// Make a group of processes, or do something with one.
    Group(GroupRequest),
    /// Something about the names of the runtime.
    Name(NameRequest),
    /// Something about the key-value store of this node.
    Store(StoreRequest),
    /// This process leaves, though it lives on: what it had may be recovered. There is no answer.
    Leave,
    /// What is there, and what it does.
    Inspect(Inspect, Scope),
    /// Lines of the daemons' logs, those that are there and those to come: [`ClientReply::Logged`] again and again, until
    /// the client closes the connection.
    FollowLogs(LogFilter, Scope),
    /// The starts that were asked for with this number wait for CPUs and GPUs no longer: those that still wait fail with
    /// [`Code::Interrupted`], and the request is answered. There is no answer to this, and so no number.
    Cancel(u64),
}

/// The answer to a [`ClientRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ClientReply {
    /// Done.
    Done,
    /// Not done: why, and a sentence that names values, limits and the way out.
    Failed(Code, String),
    /// One result for each requested process.
    Spawned(Vec<SpawnResult>),
    /// The nodes.
    Nodes(Membership),
    /// The counters by name.
    Stats(Vec<(String, u64)>),
    /// A pool. With it come two file descriptors: its metadata, then its data.
    Pool(PoolGiven),
    /// So many bytes went back to the system.
    Trimmed(u64),
    /// A group: its object. When it was made by the request, one reference to it is in transit.
    Group(ObjectId),
    /// Members of a group.
    Members(Vec<MemberInfo>),
    /// One answer of each node that was asked.
    Inspected(Vec<NodeAnswer>),
    /// Lines of the daemons' logs.
    Logged(LogBatch),
    /// What a name or a key stands for, or stood for, if anything.
    Value(Option<Value>),
    /// Names or keys.
    Keys(Vec<Vec<u8>>),
}

/// A pool as a process gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolGiven {
    /// The pool's object.
    pub object: ObjectId,
    /// The upper 16 bits of the addresses of its blocks.
    pub tag: u16,
    /// Bytes of its metadata.
    pub meta: u64,
    /// Bytes of its data: its limit.
    pub data: u64,
    /// The data lies in a file, not in a sealed memfd.
    pub file: bool,
}

/// The nodes of the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The runtime.
    pub runtime: RuntimeId,
    /// The node that runs global services.
    pub global_services: NodeIndex,
    /// All nodes, by index.
    pub nodes: Vec<NodeInfo>,
}

/// The message that a notify channel gets: 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitNotice {
    /// The process.
    pub process: ObjectId,
    /// Its status as `waitpid` gives it.
    pub status: i32,
}

impl ExitNotice {
    /// Bytes of a notice.
    pub const LEN: usize = 24;

    /// node u32, index u32, generation u32, kind u8 and three zeros, status i32, zero u32.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..4].copy_from_slice(&self.process.node.get().to_le_bytes());
        b[4..8].copy_from_slice(&self.process.index.to_le_bytes());
        b[8..12].copy_from_slice(&self.process.generation.to_le_bytes());
        b[12] = self.process.kind as u8;
        b[16..20].copy_from_slice(&self.status.to_le_bytes());
        b
    }
}

/// What daemons tell each other over a control connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum PeerMessage {
    /// Up the tree: the sender and all below it are ready.
    Ready(Vec<NodeInfo>),
    /// Down the tree: everyone is ready.
    Up(Membership),
    /// Up or down the tree: the bring-up failed, and why.
    Failed(String),
    /// Up the tree: output of a process. `true`: standard error.
    Output(bool, #[serde(with = "serde_bytes")] Vec<u8>),
    /// To the node where the processes are to run.
    Spawn {
        /// Number of the request at its sender.
        request: u64,
        /// The process that asked.
        creator: SlotId,
        /// That process's number for the request.
        asked: u64,
        /// What to start.
        spawns: Vec<SpawnRequest>,
    },
    /// The answer.
    Spawned {
        /// Number of the request.
        request: u64,
        /// One result each.
        results: Vec<SpawnResult>,
    },
    /// To the owner of a process: send it a signal.
    Signal {
        /// Number of the request at its sender.
        request: u64,
        /// The process.
        process: ObjectId,
        /// Signal number.
        signal: i32,
        /// Whom it reaches.
        reach: Reach,
    },
    /// The answer to a request that needs no more than a code and a sentence.
    Answer {
        /// Number of the request.
        request: u64,
        /// How it ended.
        code: Code,
        /// Why.
        text: String,
    },
    /// About who is a member.
    Member(MemberMessage),
    /// About names.
    Name(NameMessage),
    /// A node is lost.
    NodeDown(NodeIndex),
    /// Down the tree: the runtime ends; stop everything, answer with [`PeerMessage::Ended`].
    Shutdown(String),
    /// Up the tree: the sender and all below it have stopped everything, and their output has been passed on.
    Ended,
    /// A process of the sender is gone that had something started here which goes with it.
    SlotGone(SlotId),
    /// Along the tree: about a group.
    Group(Box<GroupLetter>),
    /// To the node of a group: what a process of the sender asks, with the number of the request.
    GroupAsked(u64, Box<GroupRequest>),
    /// The answer.
    GroupAnswered(u64, Box<ClientReply>),
    /// What is there, and what it does.
    Inspect {
        /// Number of the request at its sender.
        request: u64,
        /// Whether the receiver asks the nodes behind it too.
        beyond: bool,
        /// The question.
        question: Inspect,
    },
    /// The answer.
    Inspected {
        /// Number of the request.
        request: u64,
        /// One answer of each node, as far as they came in time.
        answers: Vec<NodeAnswer>,
    },
    /// The sender wants lines of logs from now on.
    FollowLogs {
        /// Number of the request at its sender.
        request: u64,
        /// Whether also those of the nodes behind the receiver.
        beyond: bool,
        /// Which lines.
        filter: LogFilter,
        /// Whether only lines that come from now on: the sender has those before.
        later: bool,
    },
    /// Lines. No more come until [`PeerMessage::LogsTaken`].
    Logged {
        /// Number of the request.
        request: u64,
        /// The lines.
        batch: LogBatch,
    },
    /// The sender has room for more lines.
    LogsTaken {
        /// Number of its request.
        request: u64,
    },
    /// The sender wants no more lines.
    UnfollowLogs {
        /// Number of its request.
        request: u64,
    },
    /// Down the tree: so many bytes of output have been passed on, and as many more may come.
    Room(u32),
    /// Up the tree: the processes of the sender and of all below it have ended. Their output is on its way; [`PeerMessage::Ended`]
    /// follows it. With the exit code of the sender: one that was told to end by a signal has a code that says by which.
    Stopped(u8),
    /// The answer to [`PeerMessage::SlotGone`].
    SlotForgotten(SlotId),
    /// The starts that a process of the sender asked for with this number of its own wait no longer.
    CancelStarts {
        /// The process.
        creator: SlotId,
        /// Its number for the request.
        asked: u64,
    },
    /// To the owner of processes: nobody has got them, so nobody will adopt the references that were made for it.
    Unclaimed(Vec<ObjectId>),
    /// Down the tree, in place of a welcome: come again, to one of these addresses of the sender. They are on the interfaces
    /// that the job is to use, and the address by which this connection came is not.
    Elsewhere(Vec<SocketAddr>),
    /// Nobody waits any longer for the members that were asked for by [`PeerMessage::GroupAsked`] with this number.
    GroupCancelled(u64),
    /// Up the tree: the tasks of these nodes have ended, and of no other one below the sender any run. A sender that gets other
    /// nodes below it, or another one above, says it again.
    TasksEnded(Vec<NodeIndex>),
    /// Up the tree: the task of a node that is its daemon's own ended with this code, which is not 0. Slurm has not heard of it.
    TaskFailed(NodeIndex, u8),
    /// Down the tree: nobody reads the output of the job any more, or with `true` its errors.
    OutputRefused(bool),
}

impl PeerMessage {
    /// What is said in the place of an answer that is too long for a frame: why there is none. `None` for what is no answer.
    #[must_use]
    pub fn in_place_of(&self, error: &FrameError) -> Option<Self> {
        let code = Code::TooLarge;
        let text = format!("the answer is too large: {error}; ask for less at once");
        Some(match self {
            Self::Name(NameMessage::Answer { request, .. }) => Self::Name(NameMessage::Answer {
                request: *request,
                outcome: Outcome::Failed(code, text),
            }),
            Self::Spawned { request, results } => Self::Spawned {
                request: *request,
                results: vec![Err((code, String::new())); results.len()],
            },
            Self::Answer { request, .. } => Self::Answer {
                request: *request,
                code,
                text,
            },
            Self::GroupAnswered(number, _) => {
                Self::GroupAnswered(*number, Box::new(ClientReply::Failed(code, text)))
            }
            Self::Inspected { request, .. } => Self::Inspected {
                request: *request,
                answers: Vec::new(),
            },
            _ => return None,
        })
    }
}
