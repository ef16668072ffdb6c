//! `srun --dragon prog` where a runtime runs already: its first task becomes the program, as a head in that runtime.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use dragon_protocol::env;

use crate::adapter::{is_secret, slurm};
use crate::journal::say;
use crate::program::{self, NOT_EXECUTABLE};

/// Becomes the program with these arguments in the first task; the others have nothing to do, and end. Returns the exit code
/// when there is no program.
///
/// # Errors
/// When this is no task of Slurm.
pub fn run(arguments: &[OsString]) -> Result<u8> {
    let program = std::env::var_os(env::STEP_PROGRAM)
        .with_context(|| format!("{} is not set", env::STEP_PROGRAM))?;
    let rank = std::env::var("SLURM_PROCID").context("SLURM_PROCID is not set")?;
    if rank != "0" {
        return Ok(0);
    }
    let words: Vec<_> = std::iter::once(program)
        .chain(arguments.iter().cloned())
        .collect();
    let program = match program::resolve(&words) {
        Ok(program) => program,
        Err(no) => {
            say(&no.text);
            return Ok(no.code);
        }
    };
    let mut words = program.words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command
        .args(words)
        .env(env::HEAD, std::process::id().to_string());
    // It is no task among others: an `MPI_Init` in a library would wait for them.
    for (name, _) in std::env::vars_os() {
        if is_secret(&name) || slurm::is_task_variable(&name) {
            command.env_remove(name);
        }
    }
    let error = command.exec();
    say(&format!(
        "{}: {error}",
        command.get_program().to_string_lossy()
    ));
    Ok(NOT_EXECUTABLE)
}
