//! DragonHPC from the Python package index, as a peer.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::bench::sample::{Measured, Sample};
use crate::python;
use crate::repo::Repo;
use crate::setup;

/// For one row. Its bring-up alone takes seconds, 1000 processes minutes, and it is known to hang now and then.
pub(super) const LIMIT: Duration = Duration::from_secs(600);

pub(super) const NAME: &str = "upstream 0.15.0";

/// Its round trip between two nodes of a Slurm on one machine of 2 cores, kept from 2026-11-21, since its bring-up there takes
/// a minute on two nodes when it succeeds: 120 to 350 ms.
pub(super) fn across_nodes() -> Measured {
    Ok(Sample {
        values: vec![120_000.0],
        note: "kept from 2026-11-21, the least of 120 to 350 ms".to_owned(),
        ..Sample::default()
    })
}

/// From start to prompt of its launcher with `/bin/true` on one node, kept from 2026-11-21: 2.05 s.
pub(super) fn bring_up() -> Measured {
    Ok(Sample {
        values: vec![2050.0],
        note: "kept from 2026-11-21".to_owned(),
        ..Sample::default()
    })
}

pub(super) const KEPT: &str = "upstream 0.15.0, kept";

#[derive(Debug)]
pub(super) struct Upstream {
    venv: PathBuf,
}

impl Upstream {
    pub(super) fn install(repo: &Repo) -> Result<Self> {
        let venv = repo.target("upstream-venv");
        python::ensure_venv(&venv)?;
        python::ensure_module(repo, &venv, "dragon", "dragonhpc==0.15.0")?;
        Ok(Self { venv })
    }

    /// Its launcher, for one node; program and options are to follow.
    ///
    /// Killed at a limit, it leaves its memory in /dev/shm; as root it gets one of its own, which goes with its last process.
    pub(super) fn launcher(&self, repo: &Repo) -> Command {
        const ALONE: &str = r#"mount -t tmpfs tmpfs /dev/shm && exec "$0" "$@""#;
        let launcher = self.venv.join("bin/dragon");
        let mut command = if setup::is_root() {
            let mut command = repo.in_some_venv(&self.venv, "unshare");
            command.args(["--mount", "sh", "-c", ALONE]).arg(launcher);
            command
        } else {
            repo.in_some_venv(&self.venv, launcher)
        };
        command.arg("-s");
        command
    }
}
