//! What people ask about a running runtime, and what its daemons answer.
//!
//! ```text
//! tool ──Inspect──▶ daemon of this node ──Inspect──▶ its neighbours in the tree ──▶ theirs …
//!      ◀─Inspected─                     ◀─Inspected─
//! ```
//! Each daemon answers for its own node out of shared memory and `/proc`, asks no process, and adds the answers of those
//! behind it. The names of the fields are those that `--json` prints: they are interface (`docs/inspection.md`).

use serde::{Deserialize, Serialize};

use crate::ids::NodeIndex;

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Subject {
    /// The node as a whole.
    Status,
    /// Its processes.
    Processes,
    /// Its channels.
    Channels,
    /// Its pools.
    Pools,
    /// What its daemon has logged.
    Logs(LogFilter),
}

/// Which nodes are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Scope {
    /// One node; `None`: the one that is asked.
    One(Option<NodeIndex>),
    /// All of them.
    All,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspect {
    /// What is asked about.
    pub subject: Subject,
    /// Most rows of all answers together: at most [`MOST_ROWS`].
    pub limit: u32,
    /// For how long the answers of other nodes are waited for, in milliseconds.
    pub patience_ms: u32,
}

/// Most rows of an answer.
pub const MOST_ROWS: u32 = 10_000;
/// For how long the answers of other nodes are waited for, in milliseconds, unless the question says otherwise.
pub const PATIENCE_MS: u32 = 5_000;

/// What one node answers, or why it does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAnswer {
    /// The node.
    pub node: NodeIndex,
    /// Its answer.
    pub answer: Result<Answer, String>,
}

/// The answer of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Answer {
    /// To [`Subject::Status`].
    Status(Box<NodeStatus>),
    /// To [`Subject::Processes`].
    Processes(Rows<ProcessRow>),
    /// To [`Subject::Channels`].
    Channels(Rows<ChannelRow>),
    /// To [`Subject::Pools`].
    Pools(Rows<PoolRow>),
    /// To [`Subject::Logs`].
    Logs(Rows<LogLine>),
}

/// Some of the rows that there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows<T> {
    /// The first ones.
    pub rows: Vec<T>,
    /// How many there are.
    pub total: u64,
}

impl Answer {
    /// How many rows it has.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Status(_) => 1,
            Self::Processes(rows) => rows.rows.len(),
            Self::Channels(rows) => rows.rows.len(),
            Self::Pools(rows) => rows.rows.len(),
            Self::Logs(rows) => rows.rows.len(),
        }
    }

    /// Keeps at most so many rows; the total stays what it is.
    pub fn truncate(&mut self, rows: usize) {
        match self {
            Self::Status(_) => {}
            Self::Processes(all) => all.rows.truncate(rows),
            Self::Channels(all) => all.rows.truncate(rows),
            Self::Pools(all) => all.rows.truncate(rows),
            // The latest lines are the ones that matter.
            Self::Logs(all) => drop(all.rows.drain(..all.rows.len().saturating_sub(rows))),
        }
    }
}

/// A node as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its index.
    pub node: u32,
    /// Its host.
    pub host: String,
    /// The runtime, 16 hexadecimal digits.
    pub runtime: String,
    /// Name of the job: the second part of the attach socket's name.
    pub job: String,
    /// Release of the daemon.
    pub release: String,
    /// The daemon's pid.
    pub pid: u32,
    /// How long the daemon has been running, in seconds.
    pub uptime_s: u64,
    /// Nodes of the runtime that are up, as this one knows.
    pub nodes_up: u32,
    /// Those that it knows to be lost.
    pub nodes_down: Vec<u32>,
    /// The epoch in which that was agreed on; 0 as long as all nodes are up. It only grows.
    pub epoch: u64,
    /// The node that runs global services.
    pub global_services: u32,
    /// CPUs granted on this node.
    pub cpus: u32,
    /// Memory granted on this node, in bytes.
    pub memory_bytes: u64,
    /// Memory that the daemon itself has, in bytes: RssAnon and RssFile.
    pub daemon_rss_bytes: u64,
    /// Memory of the machine, in bytes.
    pub machine_memory_bytes: u64,
    /// What of it is available, in bytes.
    pub machine_available_bytes: u64,
    /// Time that the machine's CPUs were busy since its start, all CPUs together, in milliseconds.
    pub machine_busy_ms: u64,
    /// Time that they had, in milliseconds.
    pub machine_cpu_ms: u64,
    /// Live processes that the runtime started.
    pub processes: u32,
    /// Processes that are attached.
    pub attached: u32,
    /// Processes of other nodes that hold something here.
    pub proxies: u32,
    /// Objects of each kind: name and number.
    pub objects: Vec<(String, u32)>,
    /// Pools.
    pub pools: u32,
    /// Limits of all pools, in bytes.
    pub pool_limit_bytes: u64,
    /// Memory that all pools have taken from the system, in bytes.
    pub pool_committed_bytes: u64,
    /// Bytes in allocated blocks of all pools.
    pub pool_used_bytes: u64,
    /// Messages that processes of this node sent to channels of this node.
    pub local_sent: u64,
    /// Messages that they received from channels of this node.
    pub local_received: u64,
    /// Requests that they made to other nodes.
    pub remote_requests: u64,
    /// Slots of dead processes that were recovered.
    pub recoveries: u64,
    /// Requests to the daemon.
    pub control_requests: u64,
    /// Messages of the daemon to other daemons, but for heartbeats.
    pub control_sent: u64,
    /// And from them.
    pub control_received: u64,
    /// Where the daemon tells its numbers to a monitoring system; empty: nowhere.
    pub metrics: String,
    /// What passed between this node and others.
    pub transport: TransportStatus,
    /// And with each of them.
    pub peers: Vec<PeerStatus>,
}

/// What a node's transport agent has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportStatus {
    /// Requests that left.
    pub requests_sent: u64,
    /// Requests that came.
    pub requests_received: u64,
    /// Messages that left.
    pub messages_sent: u64,
    /// Messages that came.
    pub messages_received: u64,
    /// Messages that were put back because their receiver was gone.
    pub messages_returned: u64,
    /// Messages that were lost.
    pub messages_lost: u64,
    /// Requests of this node that are under way.
    pub requests_pending: u64,
    /// Requests of other nodes that wait here.
    pub requests_parked: u64,
}

/// What passed between a node and another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The other node.
    pub peer: u32,
    /// Links that stand.
    pub links: u64,
    /// Frames that left.
    pub frames_sent: u64,
    /// Frames that came.
    pub frames_received: u64,
    /// Bytes that left.
    pub bytes_sent: u64,
    /// Bytes that came.
    pub bytes_received: u64,
    /// Frames that were sent again.
    pub retries: u64,
    /// Connections that were made again.
    pub reconnects: u64,
    /// Bytes that wait to be sent.
    pub queued_bytes: u64,
    /// Frames of which the other node has not said that it has them.
    pub unacknowledged: u64,
    /// Half of the requests took no longer, in nanoseconds.
    pub latency_50_ns: u64,
    /// 99 of 100 requests took no longer, in nanoseconds.
    pub latency_99_ns: u64,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRow {
    /// Its node.
    pub node: u32,
    /// Its pid there.
    pub pid: u32,
    /// Its parent's pid.
    pub parent: u32,
    /// The process object; empty for a process that the runtime did not start.
    pub object: String,
    /// `head`, `managed` (started by the runtime) or `attached` (it only uses the runtime).
    pub role: String,
    /// Its group, where it is of one; else empty.
    pub group: String,
    /// Its rank in the group.
    pub rank: Option<u64>,
    /// Its slot, when it is attached.
    pub slot: Option<u32>,
    /// State as `ps` writes it: R, S, D, T, Z and so on.
    pub state: String,
    /// Processor time in user mode, in milliseconds.
    pub user_ms: u64,
    /// Processor time in the kernel, in milliseconds.
    pub system_ms: u64,
    /// Memory of its own, in bytes: RssAnon.
    pub rss_anon_bytes: u64,
    /// How long it has been running, in seconds.
    pub age_s: u64,
    /// Messages that it sent to channels of its node.
    pub local_sent: u64,
    /// Messages that it received from channels of its node.
    pub local_received: u64,
    /// Requests that it made to other nodes.
    pub remote_requests: u64,
    /// Its command line, at most [`COMMAND_BYTES`] bytes of it.
    pub command: String,
}

/// So much of a command line is told.
pub const COMMAND_BYTES: usize = 256;

/// A channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelRow {
    /// Its node.
    pub node: u32,
    /// Its object.
    pub object: String,
    /// The number that its creator chose.
    pub user: u64,
    /// `alive` or `destroyed`: ended, while somebody still refers to it.
    pub state: String,
    /// Most messages that it holds.
    pub capacity: u64,
    /// Whether it grows up to that.
    pub unbounded: bool,
    /// Messages in it.
    pub messages: u64,
    /// Messages that were ever sent to it.
    pub sent: u64,
    /// Messages that were ever received from it.
    pub received: u64,
    /// Senders that sleep until there is room.
    pub senders_waiting: u32,
    /// Receivers that sleep until there is a message.
    pub receivers_waiting: u32,
    /// Sleepers that wait for another state.
    pub watchers: u32,
    /// Bytes of its own memory; blocks of large messages are not among them.
    pub bytes: u64,
    /// Who refers to it, descriptors in transit among them.
    pub references: u32,
    /// The slot of its creator.
    pub owner_slot: u32,
    /// The process that has that slot now: the creator, while it lives. 0: nobody.
    pub owner_pid: u32,
}

/// A pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    /// Its node.
    pub node: u32,
    /// Its number there; 0 is the default pool.
    pub pool: u32,
    /// Its name.
    pub name: String,
    /// Its limit, in bytes.
    pub limit_bytes: u64,
    /// Memory taken from the system, in bytes.
    pub committed_bytes: u64,
    /// Bytes in allocated blocks.
    pub used_bytes: u64,
    /// Allocated blocks.
    pub blocks: u64,
    /// Bytes of freed extents that stay together for the next allocation of their length.
    pub kept_bytes: u64,
    /// Never less than the most that was in use at once, in bytes.
    pub peak_bytes: u64,
    /// The largest block that could be allocated, in bytes.
    pub largest_free_bytes: u64,
    /// Who owns pages of it: the largest first, at most [`MOST_OWNERS`].
    pub owners: Vec<PoolOwner>,
}

/// So many owners of a pool are told.
pub const MOST_OWNERS: usize = 16;

/// What one process has of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolOwner {
    /// Its slot; none: shared blocks, and those of processes that are gone.
    pub slot: Option<u32>,
    /// Its pid; 0 for a process of another node.
    pub pid: u32,
    /// Bytes.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
}

/// How important a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What happens.
    Info,
    /// What happens, in detail.
    Debug,
}

/// Which lines are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFilter {
    /// Lines of this level and more important ones.
    pub level: LogLevel,
}

/// A line of a daemon's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The node.
    pub node: u32,
    /// When: microseconds since 1970, by the node's clock.
    pub time_us: u64,
    /// How important.
    pub level: LogLevel,
    /// Which part of the daemon says it.
    pub target: String,
    /// The text.
    pub text: String,
}

/// Lines of logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBatch {
    /// The lines, in the order of each node's log.
    pub lines: Vec<LogLine>,
    /// Lines that were forgotten before they could be told: they came faster than they were taken.
    pub lost: u64,
}
