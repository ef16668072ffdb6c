//! The way to a runtime that is not on this machine, or to a node of it that is not: through the workload manager.

mod pbs;
mod slurm;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use dragon_protocol::inspect::{Answer, PATIENCE_MS, Scope, Subject};
use dragon_protocol::{NodeIndex, env};
use serde_json::Value;

pub(super) use pbs::{WORD as PBS_WORD, arrive};

use super::runtime::{Conversation, Found, find, is_job, listening, these};
use super::tools::Which;
use crate::adapter::pbs::server;
use crate::program;

/// Runs this very command inside a job of the workload manager, when the runtime is not on this machine. Does not return
/// when it could be started.
///
/// # Errors
/// When there is no job, no workload manager, or the command cannot be started; otherwise it returns at once with `Ok` when
/// there is nothing to be done.
pub fn enter_job(which: &Which) -> Result<()> {
    match job_elsewhere(which)? {
        Some(job) => job.go_on_inside(None),
        None => Ok(()),
    }
}

/// As [`enter_job`], where a certain node is wanted: also when only that is not on this machine.
///
/// # Errors
/// As those of [`enter_job`]; also when there is no such node, or no way to it from here.
pub fn enter_node(which: &Which, node: NodeIndex) -> Result<()> {
    if let Some(job) = job_elsewhere(which)? {
        return job.go_on_inside(Some(&job.host_of(node)?));
    }
    if which.inside || find(which, Some(node)).is_ok() {
        return Ok(());
    }
    let here = find(which, None)?;
    let host = host_of(&here, node)?;
    match Job::of_runtime(&here.job) {
        Some(job) => job.go_on_inside(Some(&host)),
        None => bail!(
            "node {node} of job {job} is on {host}, and not on this machine or in another network namespace of it; type there: dragon attach --job {job} --node {node}",
            job = here.job
        ),
    }
}

/// The job that is meant, where none of its daemons is on this machine, and it can be one of a workload manager.
fn job_elsewhere(which: &Which) -> Result<Option<Job<'_>>> {
    let Some(job) = which.job.as_deref().filter(|_| !which.inside) else {
        return Ok(None);
    };
    if listening()?.iter().any(|found| is_job(&found.job, job)) {
        return Ok(None);
    }
    let here = |command: &Path| program::resolve(&[command.as_os_str().to_owned()]).is_ok();
    Ok(Job::named(job, || {
        here(Path::new("srun")) || !here(&server::command("qstat"))
    }))
}

/// A job of a workload manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job<'a> {
    /// Of Slurm: its number, or one of its steps.
    Slurm(&'a str),
    /// Of PBS.
    Pbs(&'a str),
}

impl<'a> Job<'a> {
    /// The job that somebody names: `4711` and its step `4711.0` for Slurm; `12.server`, `12[3].server`, `12[3]` for PBS. A
    /// bare number is one of Slurm where there is a Slurm.
    fn named(name: &'a str, there_is_slurm: impl FnOnce() -> bool) -> Option<Self> {
        let (number, rest) = name.split_once('.').unwrap_or((name, ""));
        if name.ends_with('.') {
            return None;
        }
        if is_number(number) && (is_number(rest) || rest.is_empty() && there_is_slurm()) {
            return Some(Self::Slurm(name));
        }
        let (sequence, index) = number.split_once('[').unwrap_or((number, "]"));
        let index = index.strip_suffix(']')?;
        let is_job = is_number(sequence) && (index.is_empty() || is_number(index));
        (is_job && !number.ends_with("[]")).then_some(Self::Pbs(name))
    }

    /// The job that the name of a runtime tells: those of Slurm are named after its steps, those of PBS after its jobs.
    fn of_runtime(name: &'a str) -> Option<Self> {
        name.contains('.')
            .then(|| Self::named(name, || true))
            .flatten()
    }

    fn name(self) -> &'a str {
        match self {
            Self::Slurm(name) | Self::Pbs(name) => name,
        }
    }

    /// `dragon` with these words, as a process of the job on its first host or on the given one.
    fn dragon(self, host: Option<&str>, words: Vec<OsString>, terminal: bool) -> Result<Command> {
        if let Some(host) = host {
            ensure!(!host.starts_with('-'), "'{host}' is no name of a host");
        }
        let own = std::env::current_exe().context("cannot find this command's own path")?;
        let mut command = match self {
            Self::Slurm(job) => slurm::step(job, host, &own, words, terminal),
            Self::Pbs(job) => pbs::task(job, host, &own, words, terminal)?,
        };
        // What names the runtime of this shell means nothing there.
        command.env_remove(env::RUNTIME);
        Ok(command)
    }

    /// This process becomes one of the job that runs this very command.
    fn go_on_inside(self, host: Option<&str>) -> Result<()> {
        let mut words: Vec<_> = std::env::args_os().skip(1).collect();
        words.insert(words.len().min(1), "--inside".into());
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        let mut command = self.dragon(host, words, terminal)?;
        let error = command.exec();
        Err(self.not_started(&command, error))
    }

    /// The host of a node of a job that is not on this machine: its first node is asked.
    fn host_of(self, node: NodeIndex) -> Result<String> {
        let job = self.name();
        let node_text = node.to_string();
        let words = ["status", "--inside", "--json", "--job", job, "--node"];
        let words = words.into_iter().chain([&*node_text]).map(OsString::from);
        let mut command = self.dragon(None, words.collect(), false)?;
        // What it has to say on standard error is for the user.
        let done = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output();
        let done = done.map_err(|error| self.not_started(&command, error))?;
        let status: Option<Value> = serde_json::from_slice(&done.stdout).ok();
        let host = status.and_then(|status| Some(status["nodes"][0]["host"].as_str()?.to_owned()));
        host.with_context(|| {
            format!("it is not known on which host of job {job} its node {node} is")
        })
    }

    fn not_started(self, command: &Command, error: io::Error) -> anyhow::Error {
        let program = command.get_program().display();
        let job = self.name();
        match (error.kind(), self) {
            (io::ErrorKind::NotFound, Self::Slurm(_)) => anyhow::anyhow!(
                "no runtime of yours on this machine is of job {job}, and there is no srun to look for it in a job of Slurm{}",
                listening().map(|all| these(&all)).unwrap_or_default()
            ),
            _ => anyhow::Error::new(error).context(format!(
                "{program}, the way to job {job}, cannot be started"
            )),
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_told_apart_by_their_names() {
        use Job::{Pbs, Slurm};
        for (name, job) in [
            ("4711", Some(Slurm("4711"))),
            ("4711.0", Some(Slurm("4711.0"))),
            ("12.pbs", Some(Pbs("12.pbs"))),
            ("12.pbs.site.org", Some(Pbs("12.pbs.site.org"))),
            ("12.pbs.4711", Some(Pbs("12.pbs.4711"))),
            ("12[3].pbs", Some(Pbs("12[3].pbs"))),
            ("12[3]", Some(Pbs("12[3]"))),
            ("12[].pbs", None),
            ("12[x].pbs", None),
            ("12[3.pbs", None),
            ("12]", None),
            ("12.", None),
            ("[3].pbs", None),
            ("x", None),
            ("x.pbs", None),
            ("", None),
            (".0", None),
            ("47-11", None),
        ] {
            assert_eq!(Job::named(name, || true), job, "{name}");
            let of_runtime = job.filter(|_| name.contains('.'));
            assert_eq!(Job::of_runtime(name), of_runtime, "{name}");
        }
        assert_eq!(Job::named("12", || false), Some(Pbs("12")));
        assert_eq!(Job::named("12.0", || false), Some(Slurm("12.0")));
    }
}
