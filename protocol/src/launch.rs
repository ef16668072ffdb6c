//! What a daemon is told when it starts, and what it tells about its node.

use std::net::{IpAddr, SocketAddr};

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
    /// Children of a node in the tree.
    pub fanout: u32,
    /// The head program: its words as bytes. Only the first rank's is started; it is empty on others.
    pub program: Vec<Vec<u8>>,
    /// Settings that differ from their defaults, by name, as text: the same on all nodes. What the daemon's own machine has
    /// in files and in its environment does not count.
    pub settings: Vec<(String, String)>,
    /// Variables that programs find in their environment, whatever else is there.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory of programs, as bytes. Empty: that in which the daemon was started.
    pub directory: Vec<u8>,
    /// Whether the directory was asked for: without it the job cannot run. Else it is entered where there is one.
    pub directory_needed: bool,
    /// Whether a process's output goes up the tree to the first node rather than to the daemon's own.
    pub forward_output: bool,
    /// CPUs that a workload manager granted on this node, where it says so.
    pub cpus: Option<u32>,
}

/// What the launcher says to the first daemon on its standard input, behind the [`LaunchSpec`], where a remote shell lies
/// between them. Each is one frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromLauncher {
    /// Bytes for the head's standard input. None at all: it ends.
    Input(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A signal that the launcher got.
    Signal(i32),
}

/// How the nodes of a job speak to each other: the same on all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Name of the transport; empty: the best there is.
    pub transport: String,
    /// Interfaces to use, by name, regular expression or network, separated by commas; empty: the best there are.
    pub interface: String,
    /// Whether what passes between the nodes is encrypted.
    pub encrypt: bool,
    /// For how many seconds a connection that broke is tried to be made again: at most [`Network::LONGEST_RECONNECT`].
    pub reconnect: Option<u32>,
    /// How many connections two nodes may have for large payloads: 1 to [`Network::MOST_CONNECTIONS`]; `None`: one for each
    /// network that both are on.
    pub connections: Option<u32>,
}

impl Network {
    /// The largest value of [`Network::reconnect`]. Who waits for an object of a node that is gone waits that long for the
    /// error.
    pub const LONGEST_RECONNECT: u32 = 300;
    /// The largest value of [`Network::connections`].
    pub const MOST_CONNECTIONS: u32 = 8;
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
    /// Port of the data listener that takes connections at any address of the node; 0: there is none.
    pub data_port: u16,
    /// Where the data listeners are on the interfaces that were chosen, the best first.
    pub data: Vec<SocketAddr>,
    /// CPUs granted on the node.
    pub cpus: u32,
    /// Bytes of memory granted on the node.
    pub memory: u64,
    /// Process id of the daemon, on its node.
    pub pid: u32,
}

impl NodeInfo {
    /// Where the node's transport agent can be reached, the best first. The address of the bring-up comes last: it is
    /// known to lead to the node, though perhaps not by the fastest way.
    #[must_use]
    pub fn data_addresses(&self) -> Vec<SocketAddr> {
        let mut all = self.data.clone();
        let known = self.address.parse::<IpAddr>().ok();
        let last = known.filter(|_| self.data_port != 0);
        let last = last.map(|address| SocketAddr::new(address, self.data_port));
        all.extend(last.filter(|address| !all.contains(address)));
        all
    }
}
