//! DragonHPC from the Python package index, as a peer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::python;
use crate::repo::Repo;

/// Its bring-up alone takes seconds, and it is known to hang now and then.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

pub(super) const NAME: &str = "upstream 0.15.0";

#[derive(Debug)]
pub(super) struct Upstream {
    venv: PathBuf,
}

impl Upstream {
    pub(super) fn install(repo: &Repo) -> Result<Self> {
        let venv = repo.path(".venv-upstream");
        python::ensure_venv(&venv)?;
        python::ensure_module(repo, &venv, "dragon", "dragonhpc==0.15.0")?;
        Ok(Self { venv })
    }

    /// Its launcher, for one node.
    pub(super) fn launcher(&self, repo: &Repo, program: &Path) -> Command {
        let mut command = repo.in_some_venv(&self.venv, self.venv.join("bin/dragon"));
        command.arg("-s").arg(program);
        command
    }
}
