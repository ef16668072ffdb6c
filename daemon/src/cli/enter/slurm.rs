//! Into a job of Slurm: a step of it.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// A step for one process, beside those that run.
pub(super) fn step(
    job: &str,
    host: Option<&str>,
    dragon: &Path,
    words: Vec<OsString>,
    terminal: bool,
) -> Command {
    let number = job.split('.').next().unwrap_or_default();
    let mut command = Command::new("srun");
    command.args(["--overlap", "--nodes=1", "--ntasks=1", "--quiet"]);
    command.arg(format!("--jobid={number}"));
    if let Some(host) = host {
        command.arg(format!("--nodelist={host}"));
    }
    if terminal {
        command.arg("--pty");
    }
    command.arg(dragon).args(words);
    command
}
