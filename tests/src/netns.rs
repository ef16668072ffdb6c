//! Nodes that have nothing of their own but the network: namespaces that are joined by a bridge. They come up in milliseconds,
//! and end with this process, whatever ends it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::cluster::nodes_possible;
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

impl Netns {
    /// So many nodes.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn up(nodes: u32) -> Result<Self, String> {
        nodes_possible()?;
        let text = |error: std::io::Error| error.to_string();
        let folder = tempfile::tempdir().map_err(text)?;
        let script = folder.path().join("rsh");
        fs::write(&script, SHELL).map_err(text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).map_err(text)?;
        let bridge = Holder::start()?;
        bridge.script("ip link add bridge type bridge && ip link set bridge up")?;
        let holders = (0..nodes).map(|_| Holder::start());
        let holders: Vec<_> = holders.collect::<Result<_, _>>()?;
        for (node, holder) in (0..).zip(&holders) {
            let (pid, address) = (holder.pid(), address(node));
            bridge.script(&format!(
                "ip link add v{node} type veth peer name eth0 netns {pid} && ip link set v{node} master bridge up"
            ))?;
            holder.script(&format!(
                "ip addr add {address}/24 dev eth0 && ip link set eth0 up"
            ))?;
            fs::write(folder.path().join(format!("pid-{node}")), pid.to_string()).map_err(text)?;
        }
        Ok(Self {
            folder,
            bridge,
            nodes: holders,
        })
    }

    /// A command that runs another on a host: it takes a node's address for the host.
    #[must_use]
    pub fn shell(&self) -> PathBuf {
        self.folder.path().join("rsh")
    }

    /// `dragon` over the first nodes.
    #[must_use]
    pub fn dragon(&self, nodes: u32, words: &[&str]) -> Command {
        let hosts: Vec<_> = (0..nodes).map(address).collect();
        let shell = self.shell().display().to_string();
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

    /// Takes a node's link up again.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn join(&self, node: u32) -> Result<(), String> {
        self.bridge.script(&format!("ip link set v{node} up"))
    }
}

/// The address of a node.
#[must_use]
pub fn address(node: u32) -> String {
    format!("10.78.0.{}", node + 1)
}
