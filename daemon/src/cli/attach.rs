//! `dragon attach`: a program, or a shell, that finds the runtime in its environment.
//!
//! This process becomes the program, so terminal, signals and exit code are its own. It is no child of the daemon: the
//! runtime does not end it, but what it does with the runtime ends with the runtime.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};
use dragon_protocol::env;

use super::RUNTIME_FAILED;
use super::enter::{enter_job, enter_node};
use super::runtime::{Conversation, find};
use super::tools::Attach;
use crate::program::{self, NOT_EXECUTABLE};

/// Runs the command; returns only when no program was started.
#[must_use]
pub fn run(arguments: &Attach) -> ExitCode {
    let (code, error) = match prepare(arguments) {
        Ok(Ok(mut command)) => {
            let error = command.exec();
            let name = PathBuf::from(command.get_program());
            (NOT_EXECUTABLE, anyhow!("{}: {error}", name.display()))
        }
        Ok(Err(no)) => (no.code, anyhow!(no.text)),
        Err(error) => (RUNTIME_FAILED, error),
    };
    eprintln!("dragon: {error:#}");
    ExitCode::from(code)
}

fn prepare(arguments: &Attach) -> Result<Result<Command, program::Refusal>> {
    match arguments.node {
        Some(node) => enter_node(&arguments.which, node)?,
        None => enter_job(&arguments.which)?,
    }
    let found = find(&arguments.which, arguments.node)?;
    // It answers, it is this user's, and of this release: otherwise the program would only fail later.
    drop(Conversation::with(&found)?);
    let words = if arguments.program.is_empty() {
        vec![shell()]
    } else {
        arguments.program.clone()
    };
    Ok(program::resolve(&words).map(|program| {
        let mut words = program.words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).env(env::RUNTIME, &found.name);
        command
    }))
}

fn shell() -> OsString {
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
    shell.unwrap_or_else(|| "/bin/sh".into())
}
