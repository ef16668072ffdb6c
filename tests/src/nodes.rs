//! Nodes of the rig (`tests/rig/cluster`) without the product: network namespaces for a test's own programs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cluster::nodes_possible;
use crate::local::{Finished, repository, run};
use crate::suite::Shared;

/// Nodes, which go down with this value. A program of a test that is to run on them is put beside their state.
#[derive(Debug)]
pub struct Nodes {
    folder: PathBuf,
    program: PathBuf,
}

impl Shared for Nodes {}

impl Nodes {
    /// So many nodes. On each of them this very program can be started.
    ///
    /// # Errors
    /// What this machine lacks.
    ///
    /// # Panics
    /// When they do not come up all the same.
    pub fn up(nodes: u32) -> Result<Self, String> {
        nodes_possible()?;
        let folder = Path::new("/var/tmp").join(format!("dragon-links-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let program = folder.join("program");
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        std::fs::copy(own, &program).map_err(|error| error.to_string())?;
        let nodes_up = Self { folder, program };
        let up = run(&mut nodes_up.rig(&["up", &nodes.to_string()]));
        assert!(up.code == Some(0), "the nodes did not come up: {}", up.err);
        Ok(nodes_up)
    }

    /// Where their state is, which all of them see.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// This program, where all of them see it.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The rig's own command.
    #[must_use]
    pub fn rig(&self, words: &[&str]) -> Command {
        let mut command = Command::new(repository().join("tests/rig/cluster"));
        command
            .args(words)
            .env("RIG_RUN", &self.folder)
            .env("RIG_OWNER", std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command on a node, as root, to its end.
    #[must_use]
    pub fn on(&self, node: &str, words: &[&str]) -> Finished {
        run(&mut self.rig(&[&["exec", node, "-u", "root"], words].concat()))
    }

    /// Starts this program on a node, with these arguments.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self, node: &str, words: &[&str]) -> Child {
        let program = self.program.to_string_lossy();
        let all = [&["exec", node, "-u", "root", &*program], words].concat();
        let mut command = self.rig(&all);
        command.stdin(Stdio::piped()).stderr(Stdio::inherit());
        command
            .spawn()
            .unwrap_or_else(|error| panic!("{node}: {error}"))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        let down = run(&mut self.rig(&["down"]));
        if down.code != Some(0) {
            let folder = self.folder.display();
            eprintln!("the nodes in {folder} did not go down: {}", down.err);
        } else if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}
