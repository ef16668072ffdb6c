//! `cargo xtask torture`: builds the release libraries and the program that kills processes in them, and runs it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::repo::{self, Repo};

pub(crate) fn torture(repo: &Repo, args: &[OsString]) -> Result<ExitCode> {
    build(repo)?;
    let program = repo.release("dragon-torture");
    let error = Command::new(&program).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// Builds the program.
pub(crate) fn build(repo: &Repo) -> Result<()> {
    repo::run(
        repo.cargo()
            .args(["build", "--release", "-p", "dragon-torture"]),
    )
}
