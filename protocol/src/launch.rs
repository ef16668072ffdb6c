//! What a daemon is told when it starts, and what it tells about its node.

use serde::{Deserialize, Serialize};

use crate::ids::NodeIndex;

/// Everything a daemon needs for the bring-up, whoever started it: the launcher writes it as one frame to a pipe or to
/// the standard input of the remote shell; under a workload manager the adapter derives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The job key.
    pub key: [u8; 32],
    /// Name of the job within the attach socket's name, for people who read `/proc/net/unix`.
    pub job: String,
    /// This daemon's rank.
    pub rank: u32,
    /// Host name or address of each rank.
    pub hosts: Vec<String>,
    /// Range of ports for the bring-up.
    pub ports: (u16, u16),
    /// Children of a node in the tree.
    pub fanout: u32,
    /// How long the bring-up may take, in milliseconds.
    pub bring_up_ms: u64,
    /// The head program: its words as bytes. Only the first rank's is started; it is empty on others.
    pub program: Vec<Vec<u8>>,
    /// Limit of the default pool in bytes; 0: half of the memory granted on the node.
    pub pool: u64,
    /// Whether a process's output goes up the tree to the first node rather than to the daemon's own.
    pub forward_output: bool,
}

/// A node, as its daemon announces it in the bring-up and as everybody knows it afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its index.
    pub node: NodeIndex,
    /// Its host name.
    pub host: String,
    /// Address for other daemons and agents: an IP address as text.
    pub address: String,
    /// Port of the control listener.
    pub control_port: u16,
    /// Port of the data listener.
    pub data_port: u16,
    /// CPUs granted on the node.
    pub cpus: u32,
    /// Bytes of memory granted on the node.
    pub memory: u64,
    /// Process id of the daemon, on its node.
    pub pid: u32,
}
