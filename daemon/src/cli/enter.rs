//! The way to a runtime that is not on this machine, or to a node of it that is not: through the workload manager.

use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use dragon_protocol::inspect::{Answer, PATIENCE_MS, Scope, Subject};
use dragon_protocol::{NodeIndex, env};
use serde_json::Value;

use super::runtime::{Conversation, Found, find, is_job, listening, these};
use super::tools::Which;

/// Runs this very command inside a job of the workload manager, when the runtime is not on this machine. Does not return
/// when it could be started.
///
/// # Errors
/// When there is no job, no workload manager, or the command cannot be started; otherwise it returns at once with `Ok` when
/// there is nothing to be done.
pub fn enter_job(which: &Which) -> Result<()> {
    match job_elsewhere(which)? {
        Some(job) => become_step(job, None),
        None => Ok(()),
    }
}

/// As [`enter_job`], where a certain node is wanted: also when only that is not on this machine.
///
/// # Errors
/// As those of [`enter_job`]; also when there is no such node, or no way to it from here.
pub fn enter_node(which: &Which, node: NodeIndex) -> Result<()> {
    if let Some(job) = job_elsewhere(which)? {
        return become_step(job, Some(&host_in_job(job, node)?));
    }
    if which.inside || find(which, Some(node)).is_ok() {
        return Ok(());
    }
    let here = find(which, None)?;
    let host = host_of(&here, node)?;
    match slurm_number(&here.job) {
        Some(_) if here.job.contains('.') => become_step(&here.job, Some(&host)),
        _ => bail!(
            "node {node} of job {job} is on {host}, and not on this machine or in another network namespace of it; type there: dragon attach --job {job} --node {node}",
            job = here.job
        ),
    }
}

/// The job that is meant, where none of its daemons is on this machine, and it can be one of Slurm.
fn job_elsewhere(which: &Which) -> Result<Option<&str>> {
    let Some(job) = which.job.as_deref().filter(|_| !which.inside) else {
        return Ok(None);
    };
    if listening()?.iter().any(|found| is_job(&found.job, job)) {
        return Ok(None);
    }
    Ok(slurm_number(job).map(|_| job))
}

/// Slurm's jobs have numbers, and their steps another one behind a dot.
fn slurm_number(job: &str) -> Option<&str> {
    let number = job.split('.').next().unwrap_or_default();
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(number)
}

/// This process becomes a step of the job, on its first node or on the given one, that runs this very command.
fn become_step(job: &str, host: Option<&str>) -> Result<()> {
    let mut command = step(job, host)?;
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        command.arg("--pty");
    }
    let own = std::env::current_exe().context("cannot find this command's own path")?;
    let mut words = std::env::args_os().skip(1);
    command
        .arg(own)
        .args(words.next())
        .arg("--inside")
        .args(words);
    Err(not_started(job, command.exec()))
}

/// The host of a node of a job that is not on this machine: its first node is asked.
fn host_in_job(job: &str, node: NodeIndex) -> Result<String> {
    let mut command = step(job, None)?;
    let own = std::env::current_exe().context("cannot find this command's own path")?;
    command.arg(own).args(["status", "--inside", "--json"]);
    command.args(["--job", job, "--node", &node.to_string()]);
    // What it has to say on standard error is for the user.
    let done = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let done = done.map_err(|error| not_started(job, error))?;
    let status: Option<Value> = serde_json::from_slice(&done.stdout).ok();
    let host = status.and_then(|status| Some(status["nodes"][0]["host"].as_str()?.to_owned()));
    host.with_context(|| format!("it is not known on which host of job {job} its node {node} is"))
}

/// The host of a node, which the daemon on this machine asks.
fn host_of(here: &Found, node: NodeIndex) -> Result<String> {
    let scope = Scope::One(Some(node));
    let mut conversation = Conversation::with(here)?;
    let answers = conversation.inspect(Subject::Status, scope, 1, PATIENCE_MS)?;
    match answers.into_iter().next().map(|answer| answer.answer) {
        Some(Ok(Answer::Status(status))) => Ok(status.host),
        Some(Err(why)) => bail!("node {node} of job {}: {why}", here.job),
        _ => bail!("the daemon answered something else"),
    }
}

/// A step of a job for one process, beside those that run.
fn step(job: &str, host: Option<&str>) -> Result<Command> {
    let number = slurm_number(job).context("no job of Slurm")?;
    let mut command = Command::new("srun");
    command.args(["--overlap", "--nodes=1", "--ntasks=1", "--quiet"]);
    command.arg(format!("--jobid={number}"));
    if let Some(host) = host {
        ensure!(!host.starts_with('-'), "'{host}' is no name of a host");
        command.arg(format!("--nodelist={host}"));
    }
    // What names the runtime of this shell means nothing there.
    command.env_remove(env::RUNTIME);
    Ok(command)
}

fn not_started(job: &str, error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!(
            "no runtime of yours on this machine is of job {job}, and there is no srun to look for it in a job of Slurm{}",
            listening().map(|all| these(&all)).unwrap_or_default()
        ),
        _ => anyhow::Error::new(error).context("srun cannot be started"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_slurm_have_numbers() {
        for (job, number) in [
            ("4711", Some("4711")),
            ("4711.0", Some("4711")),
            ("x", None),
            ("", None),
            (".0", None),
            ("47-11", None),
        ] {
            assert_eq!(slurm_number(job), number, "{job}");
        }
    }
}
