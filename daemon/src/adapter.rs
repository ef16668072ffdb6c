//! Who started this daemon, and what that tells it: the only place that knows one workload manager from another.

pub mod allocation;
pub mod client;
pub mod declared;
pub mod join;
pub mod launcher;
pub mod pbs;
pub mod remote;
pub mod slurm;
pub mod task;
pub mod wishes;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, bail};
use dragon_protocol::key::JobKey;
use dragon_protocol::launch::Network;
use dragon_protocol::{NodeIndex, env};

use self::task::Shape;
use crate::config::{Config, keys};
use crate::network;

/// What a daemon knows when it starts.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job key.
    pub key: JobKey,
    /// Name of the job in the attach socket's name.
    pub name: String,
    /// This node.
    pub node: NodeIndex,
    /// Host name or address of each node, by index.
    pub hosts: Vec<String>,
    /// Range of ports for the bring-up.
    pub ports: (u16, u16),
    /// Children of a node in the tree of daemons.
    pub fanout: u32,
    /// How long the bring-up may take.
    pub bring_up: Duration,
    /// The program as the user typed it.
    pub program: Vec<OsString>,
    /// What it is to the runtime.
    pub shape: Shape,
    /// All settings that are in force.
    pub config: Config,
    /// Variables that programs find in their environment, whatever else is there.
    pub environment: Vec<(OsString, OsString)>,
    /// Limit of the default pool in bytes; 0: half of the granted memory.
    pub pool: u64,
    /// Whether output goes up the tree rather than to the daemon's own.
    pub forward_output: bool,
    /// Other tasks of the step on this node, which report their CPUs. They wait for the end, or are the program too.
    pub siblings: u32,
    /// CPUs that the workload manager granted on this node, where it says so.
    pub cpus: Option<u32>,
    /// The network between the nodes.
    pub network: Network,
    /// Who owns the job.
    pub manager: Manager,
}

/// Who owns the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manager {
    /// The `dragon` command on this machine, or a supervisor between the two.
    Launcher {
        /// The pid of the command.
        pid: u32,
    },
    /// The `dragon` command over a remote shell. What it says comes on standard input, whose end means that it is gone; on
    /// the first node the head's input is among it.
    RemoteLauncher,
    /// A program that needed a runtime.
    Client {
        /// Its pid.
        owner: u32,
    },
    /// Slurm.
    Slurm {
        /// `JOB.STEP`, for `scancel`.
        step: String,
        /// In the runtime of an allocation: where the keeper of its script or shell listens.
        keeper: Option<String>,
    },
}

/// The role of this process.
#[derive(Debug)]
pub enum Role {
    /// The daemon of its node.
    Daemon(Box<Job>),
    /// Another task of the same step on the same node.
    Sibling(Box<Job>),
}

/// Finds out who started this process. `launch` is where the launcher's message comes from, when there is a launcher.
///
/// # Errors
/// When nobody did, or what they said makes no sense.
pub fn detect(launch: Option<&OsStr>, arguments: &[OsString]) -> Result<Role> {
    if let Some(source) = launch {
        launcher::check_release(arguments)?;
        return Ok(Role::Daemon(Box::new(launcher::read(source)?)));
    }
    if arguments
        .first()
        .is_some_and(|first| first == client::DAEMON)
    {
        return Ok(Role::Daemon(Box::new(client::read()?)));
    }
    if std::env::var_os(env::STEP_KEY).is_some() {
        return slurm::read(arguments);
    }
    bail!("dragond is started by a workload manager or by the dragon command; type dragon --help");
}

fn node_limit(config: &Config) -> Duration {
    let limit = config.number(&keys::NODE_LIMIT);
    Duration::from_secs(limit.unwrap_or(10))
}

/// After what silence of a host the connections to it end: soon enough that the end of a host is told from that of a daemon.
#[must_use]
pub fn host_limit(config: &Config) -> Duration {
    node_limit(config) * 4 / 5
}

/// Whether a variable is between the workload manager's part and the daemon alone.
pub(crate) fn is_secret(name: &OsStr) -> bool {
    let ours = [
        env::STEP_KEY,
        env::STEP_PROGRAM,
        env::STEP_DRAGOND,
        env::STEP_MODE,
        env::STEP_SETTINGS,
        env::STEP_BAD_EXIT,
        env::STEP_KEEPER,
        env::JOIN_KEY,
    ];
    ours.iter().any(|ours| name == *ours)
}

impl Job {
    /// Name of the attach socket of this node, without the leading NUL.
    #[must_use]
    pub fn socket_name(&self) -> String {
        let uid = rustix::process::getuid().as_raw();
        format!(
            "dragon/{uid}/{}/{}/{:016x}",
            self.name,
            self.node,
            self.key.socket_part(self.node)
        )
    }

    /// The node above this one in the tree.
    #[must_use]
    pub fn parent(&self) -> Option<NodeIndex> {
        self.parent_of(self.node)
    }

    /// The node above another one.
    #[must_use]
    pub fn parent_of(&self, node: NodeIndex) -> Option<NodeIndex> {
        let above = node.get().checked_sub(1)? / self.fanout.max(1);
        NodeIndex::new(above)
    }

    /// The nodes below this one in the tree.
    #[must_use]
    pub fn children(&self) -> Vec<NodeIndex> {
        let first = u64::from(self.node.get()) * u64::from(self.fanout) + 1;
        let below = first..(first + u64::from(self.fanout)).min(self.hosts.len() as u64);
        below
            .filter_map(|n| NodeIndex::new(u32::try_from(n).ok()?))
            .collect()
    }

    /// Whether a variable of the daemon's environment is kept from user programs: secrets, and under Slurm what makes a
    /// worker look like a task of the step.
    #[must_use]
    pub fn hides(&self, name: &OsStr) -> bool {
        is_secret(name)
            || matches!(self.manager, Manager::Slurm { .. }) && slurm::is_task_variable(name)
    }

    /// The environment of a program that nobody gives one: this daemon's, without what is hidden, and what the settings and
    /// the launcher add.
    #[must_use]
    pub fn environment_for_programs(&self) -> BTreeMap<OsString, OsString> {
        self.environment_without(|name| self.hides(name))
    }

    /// The environment of programs that are tasks of the step: what makes them so is theirs.
    #[must_use]
    pub fn environment_of_tasks(&self) -> BTreeMap<OsString, OsString> {
        self.environment_without(is_secret)
    }

    fn environment_without(&self, hides: impl Fn(&OsStr) -> bool) -> BTreeMap<OsString, OsString> {
        let own = std::env::vars_os().filter(|(name, _)| !hides(name));
        let settings = self.config.for_programs();
        let settings = settings.map(|(name, value)| (name.into(), value.into()));
        settings
            .chain(own)
            .chain(self.environment.clone())
            .collect()
    }

    /// After what silence a node is lost.
    #[must_use]
    pub fn node_limit(&self) -> Duration {
        node_limit(&self.config)
    }

    /// After what silence of another host the connections to it end.
    #[must_use]
    pub fn host_limit(&self) -> Duration {
        host_limit(&self.config)
    }

    /// Whether all nodes are on this machine.
    #[must_use]
    pub fn all_here(&self) -> bool {
        self.hosts.iter().all(|host| host == "127.0.0.1")
    }

    /// The address to listen on in the bring-up: where all nodes are on this machine, nobody else can reach it.
    #[must_use]
    pub fn listen_address(&self) -> IpAddr {
        if self.all_here() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            network::any_address()
        }
    }

    /// Host name of a node, for messages.
    #[must_use]
    pub fn host(&self, node: NodeIndex) -> &str {
        self.hosts
            .get(node.get() as usize)
            .map_or("?", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_reaches_every_node_once() {
        for nodes in 1..40_u32 {
            for fanout in 1..5 {
                let job = |n| Job {
                    node: NodeIndex::new(n).unwrap(),
                    fanout,
                    ..test_job(nodes)
                };
                let mut seen: Vec<_> = (0..nodes)
                    .flat_map(|n| job(n).children())
                    .map(NodeIndex::get)
                    .collect();
                seen.sort_unstable();
                assert_eq!(
                    seen,
                    (1..nodes).collect::<Vec<_>>(),
                    "{nodes} nodes, fan-out {fanout}"
                );
                for n in 1..nodes {
                    let parent = job(n).parent().unwrap();
                    assert!(
                        job(parent.get())
                            .children()
                            .iter()
                            .any(|child| child.get() == n)
                    );
                }
            }
        }
    }

    fn test_job(nodes: u32) -> Job {
        Job {
            key: JobKey::new([7; 32]),
            name: "test".to_owned(),
            node: NodeIndex::FIRST,
            hosts: (0..nodes).map(|n| format!("n{n}")).collect(),
            ports: (1, 2),
            fanout: 2,
            bring_up: Duration::from_secs(1),
            program: Vec::new(),
            shape: Shape::Head,
            config: Config::default(),
            environment: Vec::new(),
            pool: 0,
            forward_output: false,
            siblings: 0,
            cpus: None,
            network: Network::default(),
            manager: Manager::Launcher { pid: 1 },
        }
    }
}
