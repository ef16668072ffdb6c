//! Hosts for the `dragon` command that are this machine: addresses of the loopback range, reached by a script in the place of
//! ssh. What goes wrong on a host is a line of shell that the script runs before the daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::local::dragon;

/// Hosts of one test.
#[derive(Debug)]
pub struct Hosts {
    folder: TempDir,
    nodes: u32,
}

/// The remote shell: the last number of the address is one more than the node's.
const SHELL: &str = r#"#!/bin/sh
folder=$(dirname "$0")
node=$((${1##*.} - 1))
shift
[ -e "$folder/before-$node" ] && . "$folder/before-$node"
exec "$@"
"#;

impl Hosts {
    /// So many hosts on which nothing goes wrong.
    ///
    /// # Panics
    /// When the script cannot be written.
    #[must_use]
    pub fn new(nodes: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let script = folder.path().join("rsh");
        fs::write(&script, SHELL).expect("the script is written");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it can be run");
        Self { folder, nodes }
    }

    /// Has a host run a line of shell before its daemon, which is `"$@"` there.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn with(self, node: u32, line: &str) -> Self {
        let place = self.folder.path().join(format!("before-{node}"));
        fs::write(place, format!("{line}\n")).expect("the line is written");
        self
    }

    /// Has a host wait for ever: what a remote shell does that hangs.
    #[must_use]
    pub fn hanging(self, node: u32) -> Self {
        self.with(node, "exec sleep 100000")
    }

    /// `dragon` over these hosts.
    #[must_use]
    pub fn dragon(&self, words: &[&str]) -> Command {
        let shell = self.folder.path().join("rsh").display().to_string();
        let hosts = format!("127.0.0.[1-{}]", self.nodes);
        dragon(["--hostlist", &hosts, "--rsh", &shell].iter().chain(words))
    }

    /// Where a line of shell finds files of this test.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
