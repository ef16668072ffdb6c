//! Nodes that have nothing of their own but the network: namespaces that are joined by a bridge. They come up in milliseconds,
//! and end with this process, whatever ends it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::cluster::nodes_possible;
use crate::job::send;
use crate::local::{dragon, run};

/// Network namespaces, one for each node, and one for the bridge.
#[derive(Debug)]
pub struct Netns {
    folder: TempDir,
    bridge: Holder,
    nodes: Vec<Holder>,
}

/// A process that holds a namespace: it ends when its input does.
#[derive(Debug)]
struct Holder(Child);

impl Holder {
    fn start() -> Result<Self, String> {
        let mut child = Command::new("unshare")
            .args([
                "--net",
                "sh",
                "-c",
                "ip link set lo up && echo there && exec cat",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut there = [0; 6];
        let read = child
            .stdout
            .as_mut()
            .map(|out| std::io::Read::read_exact(out, &mut there));
        match read {
            Some(Ok(())) => Ok(Self(child)),
            _ => Err("no network namespace could be made".to_owned()),
        }
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Runs a script in the namespace.
    fn script(&self, script: &str) -> Result<(), String> {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.pid().to_string(), "-n", "sh", "-ec", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let done = run(&mut command);
        if done.code == Some(0) {
            Ok(())
        } else {
            Err(format!("{script}: {}", done.err))
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The remote shell: the last number of the address is one more than the node's.
const SHELL: &str = r#"#!/bin/sh
node=$((${1##*.} - 1))
shift
exec nsenter -t "$(cat "$(dirname "$0")/pid-$node")" -n -- "$@"
"#;

/// The same where the host can vanish: what is left of a remote shell then is a connection that says nothing.
const FAR_SHELL: &str = r#"#!/bin/sh
folder=$(dirname "$0")
node=$((${1##*.} - 1))
shift
nsenter -t "$(cat "$folder/pid-$node")" -n -- "$@"
code=$?
[ -e "$folder/gone-$node" ] && exec sleep 100000
exit $code
"#;

impl crate::suite::Shared for Netns {}

impl Netns {
    /// So many nodes.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn up(nodes: u32) -> Result<Self, String> {
        nodes_possible()?;
        let text = |error: std::io::Error| error.to_string();
        let folder = tempfile::tempdir().map_err(text)?;
        for (name, shell) in [("rsh", SHELL), ("far", FAR_SHELL)] {
            let script = folder.path().join(name);
            fs::write(&script, shell).map_err(text)?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).map_err(text)?;
        }
        let bridge = Holder::start()?;
        let holders = (0..nodes).map(|_| Holder::start());
        let holders: Vec<_> = holders.collect::<Result<_, _>>()?;
        for (node, holder) in (0..).zip(&holders) {
            let pid = holder.pid().to_string();
            fs::write(folder.path().join(format!("pid-{node}")), pid).map_err(text)?;
        }
        let up = Self {
            folder,
            bridge,
            nodes: holders,
        };
        up.connect("bridge", 'v', "eth0", address)?;
        Ok(up)
    }

    /// Connects the nodes by a second network, whose addresses are those of [`second_address`] and whose interface is `eth1`.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn second_network(&self) -> Result<(), String> {
        self.connect("second", 'w', "eth1", second_address)
    }

    fn connect(
        &self,
        bridge: &str,
        end: char,
        interface: &str,
        address: fn(u32) -> String,
    ) -> Result<(), String> {
        self.bridge.script(&format!(
            "ip link add {bridge} type bridge && ip link set {bridge} up"
        ))?;
        for (node, holder) in (0..).zip(&self.nodes) {
            let (pid, address) = (holder.pid(), address(node));
            self.bridge.script(&format!(
                "ip link add {end}{node} type veth peer name {interface} netns {pid} && ip link set {end}{node} master {bridge} up"
            ))?;
            holder.script(&format!(
                "ip addr add {address}/24 dev {interface} && ip link set {interface} up"
            ))?;
        }
        Ok(())
    }

    /// A command that runs another on a host: it takes a node's address for the host.
    #[must_use]
    pub fn shell(&self) -> PathBuf {
        self.folder.path().join("rsh")
    }

    /// `dragon` over the first nodes.
    #[must_use]
    pub fn dragon(&self, nodes: u32, words: &[&str]) -> Command {
        self.dragon_by("rsh", nodes, words)
    }

    /// The same, through remote shells that do not end when a host is [lost](Self::lose).
    #[must_use]
    pub fn dragon_far(&self, nodes: u32, words: &[&str]) -> Command {
        self.dragon_by("far", nodes, words)
    }

    fn dragon_by(&self, shell: &str, nodes: u32, words: &[&str]) -> Command {
        let hosts: Vec<_> = (0..nodes).map(address).collect();
        let shell = self.folder.path().join(shell).display().to_string();
        dragon(
            ["--hostlist", &hosts.join(","), "--rsh", &shell]
                .iter()
                .chain(words),
        )
    }

    /// The processes that hold the nodes' namespaces.
    #[must_use]
    pub fn holders(&self) -> Vec<u32> {
        self.nodes.iter().map(Holder::pid).collect()
    }

    /// Runs a command on a node.
    #[must_use]
    pub fn on(&self, node: u32, words: &[&str]) -> Command {
        let mut command = Command::new(self.shell());
        command.arg(address(node)).args(words);
        command
    }

    /// Takes a node's link down.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cut(&self, node: u32) -> Result<(), String> {
        self.bridge.script(&format!("ip link set v{node} down"))
    }

    /// Takes the first network down for all nodes, or up again.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn first_network(&self, state: &str) -> Result<(), String> {
        self.bridge.script(&format!("ip link set bridge {state}"))
    }

    /// Takes a node's link up again.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn join(&self, node: u32) -> Result<(), String> {
        self.bridge.script(&format!("ip link set v{node} up"))
    }

    /// Nothing that a node sends reaches another; what that one sends still comes. [`Self::join_way`] undoes it.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cut_way(&self, from: u32, to: u32) -> Result<(), String> {
        // Nobody has this hardware address, and what is known for certain is not asked for again.
        self.way(
            from,
            to,
            "replace",
            "lladdr 02:00:00:00:00:00 nud permanent",
        )
    }

    /// What a node sends reaches another again.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn join_way(&self, from: u32, to: u32) -> Result<(), String> {
        self.way(from, to, "del", "")
    }

    fn way(&self, from: u32, to: u32, what: &str, how: &str) -> Result<(), String> {
        let to = address(to);
        let script = format!("ip neigh {what} {to} dev eth0 {how}");
        self.nodes[from as usize].script(&script)
    }

    /// Puts nodes on a network of their own: they reach each other, and none of the others.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn split(&self, nodes: &[u32]) -> Result<(), String> {
        let mut script = "ip link add apart type bridge; ip link set apart up".to_owned();
        for node in nodes {
            script += &format!("; ip link set v{node} master apart");
        }
        self.bridge.script(&script)
    }

    /// A host vanishes: nothing comes from it any more, and nothing runs on it.
    ///
    /// # Errors
    /// What went wrong.
    pub fn lose(&self, node: u32) -> Result<(), String> {
        let mark = self.folder.path().join(format!("gone-{node}"));
        fs::write(mark, "").map_err(|error| error.to_string())?;
        // First the network, so that no connection is ended.
        self.cut(node)?;
        let holder = self.nodes[node as usize].pid();
        let network = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let ours = network(holder);
        loop {
            let all = fs::read_dir("/proc").map_err(|error| error.to_string())?;
            let pids = all
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            let mut there = pids
                .filter(|pid| *pid != holder && network(*pid) == ours)
                .peekable();
            if there.peek().is_none() {
                return Ok(());
            }
            // One that has ended is none of the network's any more.
            for pid in there {
                let _ = send(pid, Signal::KILL);
            }
        }
    }

    /// A host that vanished is there again.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn find(&self, node: u32) -> Result<(), String> {
        let _ = fs::remove_file(self.folder.path().join(format!("gone-{node}")));
        self.join(node)
    }
}

/// The address of a node.
#[must_use]
pub fn address(node: u32) -> String {
    format!("10.78.0.{}", node + 1)
}

/// The address of a node on the second network.
#[must_use]
pub fn second_address(node: u32) -> String {
    format!("10.79.0.{}", node + 1)
}
