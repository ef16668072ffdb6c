//! `cargo xtask chaos`: builds the release binaries and the program that lets things happen to jobs, and runs it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};

use crate::repo::{self, Repo};

pub(crate) fn chaos(repo: &Repo, args: &[OsString]) -> Result<ExitCode> {
    let packages = ["-p", "dragon-daemon", "-p", "dragon-tests", "--bins"];
    repo::run(repo.cargo().args(["build", "--release"]).args(packages))?;
    let program = repo.release("dragon-chaos");
    let mut command = Command::new(&program);
    command.args(args);
    // The package is not built for this; where it is there, Python programs are among the jobs.
    let python = repo.venv_bin("python");
    let mut import = Command::new(&python);
    import.args(["-c", "import dragon"]).stderr(Stdio::null());
    if import.status().is_ok_and(|status| status.success()) {
        command.arg("--python").arg(&python);
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
