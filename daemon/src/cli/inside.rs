//! `dragon prog` in an allocation that has a runtime already: a head in that one. Several may run one after the other, and at
//! once.
//!
//! This process becomes the program, as in `dragon attach`: terminal, signals and exit code are its own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use dragon_protocol::env;

use super::launcher::{Failure, enter, environment};
use super::outputs::Outputs;
use super::runtime::{Conversation, Found, listening};
use super::{Arguments, RUNTIME_FAILED};
use crate::config::keys::{self, Reach};
use crate::program::{self, NOT_EXECUTABLE};

/// Whether the command line names no other place than the job around this command, and that has a runtime.
///
/// # Errors
/// When fewer or more nodes are wanted than it has.
pub fn is_meant(arguments: &Arguments) -> Result<bool> {
    let job = std::env::var("SLURM_JOB_ID").unwrap_or_default();
    let runtime = std::env::var(env::JOB_RUNTIME);
    if names_a_place(arguments) || !runtime.is_ok_and(|name| env::is_of_job(&name, &job)) {
        return Ok(false);
    }
    let all = std::env::var("SLURM_JOB_NUM_NODES").unwrap_or_default();
    let nodes = arguments.nodes.filter(|nodes| *nodes > 0);
    if let Some(nodes) = nodes.filter(|nodes| nodes.to_string() != all) {
        bail!(
            "--nodes {nodes}: the runtime of this job is up and has {all} nodes; leave --nodes out, or add -s for a runtime on this node alone"
        );
    }
    Ok(true)
}

/// Whether the command line says where the runtime is to be.
pub fn names_a_place(arguments: &Arguments) -> bool {
    arguments.single
        || arguments.local_nodes
        || arguments.hostlist.is_some()
        || arguments.hostfile.is_some()
        || arguments.nodes == Some(1)
}

/// Becomes the program; returns only when that fails.
///
/// # Errors
/// When the command line makes no sense here, the runtime has ended, or the program does not exist.
pub fn become_head(arguments: &Arguments) -> Result<u8, Failure> {
    let usage = |error| Failure { error, code: 2 };
    if arguments.program.is_empty() {
        return Err(usage(anyhow!("no program given; type dragon --help")));
    }
    let variables = environment(&arguments.env).map_err(usage)?;
    let settings = settings(arguments).map_err(usage)?;
    let outputs = outputs(arguments).map_err(usage)?;
    let config = arguments.config().map_err(usage)?;
    enter(arguments.cwd.as_deref()).map_err(usage)?;
    program::use_interpreter(config.text(&keys::PYTHON));
    let runtime = runtime().map_err(|error| Failure {
        error,
        code: RUNTIME_FAILED,
    })?;
    let program = program::resolve(&arguments.program).map_err(|no| Failure {
        error: anyhow!(no.text),
        code: no.code,
    })?;
    let mut words = program.words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command
        .args(words)
        .env(env::RUNTIME, &runtime.name)
        .env(env::HEAD, std::process::id().to_string());
    let variables = variables
        .iter()
        .map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value)));
    command.envs(settings).envs(variables);
    outputs.give(&mut command, 0).map_err(usage)?;
    let error = command.exec();
    let name = command.get_program().to_string_lossy().into_owned();
    Err(Failure {
        error: anyhow!("{name}: {error}"),
        code: NOT_EXECUTABLE,
    })
}

/// The daemon of the job's runtime on this node.
fn runtime() -> Result<Found> {
    let name = std::env::var(env::JOB_RUNTIME).unwrap_or_default();
    let job = name.split('/').nth(2).unwrap_or_default();
    let found = listening()?.into_iter().find(|found| found.job == job);
    let found = found.with_context(|| {
        format!(
            "the runtime {job} of this job, which {} names, has ended; -s starts one on this node alone",
            env::JOB_RUNTIME
        )
    })?;
    // It answers, it is this user's, and of this release: otherwise the program would only fail later.
    drop(Conversation::with(&found)?);
    Ok(found)
}

/// Settings that were typed, for the environment of the program. The runtime is up, and has its own.
fn settings(arguments: &Arguments) -> Result<Vec<(String, String)>> {
    let mut typed = arguments.habits.settings()?;
    typed.extend(arguments.settings.0.iter().cloned());
    for (key, value) in &typed {
        ensure!(
            key.reach == Reach::Programs,
            "--{option} {value}: the runtime of this job is up, with the settings of its start; give it to sbatch or salloc (--dragon=head,NAME=VALUE, or {variable}={value} in their environment), or add -s for a runtime on this node alone",
            option = key.option(),
            variable = key.variable()
        );
    }
    let variables = typed.into_iter();
    Ok(variables
        .map(|(key, value)| (key.variable(), value))
        .collect())
}

fn outputs(arguments: &Arguments) -> Result<Outputs> {
    let outputs = Outputs::new(arguments.output.as_deref())?;
    ensure!(
        !outputs.one_for_each_node(),
        "--output with %n: the runtime of this job is up, and what its nodes write goes into the job's own output; leave %n out"
    );
    Ok(outputs)
}
