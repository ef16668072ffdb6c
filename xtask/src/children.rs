//! Runs commands under a time limit, and knows all processes that came of them.
//!
//! This process is made the reaper of its descendants, so that a process whose parent has ended is still found below it
//! and none outlives its limit.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};

use crate::repo::shown;

/// How a command that was run under a limit ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) timed_out: bool,
    pub(crate) wall: Duration,
    /// Processor time of the command and of all its descendants that have ended.
    pub(crate) cpu: Duration,
}

/// From here on orphans below this process become its children.
pub(crate) fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("cannot become the reaper of descendants")
}

/// The command, hearing the signals that whoever started us had ignored (`nohup`, a shell's background): tests send them, and
/// programs leave ignored what they find ignored.
fn hearing(command: &Command) -> Command {
    let mut hearing = Command::new("env");
    hearing
        .arg("--default-signal=HUP,INT,QUIT")
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => hearing.env(name, value),
            None => hearing.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        hearing.current_dir(folder);
    }
    hearing
}

/// Runs a command, gives each line of its stdout to `on_line`, and kills all below this process at the limit.
pub(crate) fn run_lines(
    command: &mut Command,
    limit: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<Ended> {
    let mut command = hearing(command);
    run(command.stdout(Stdio::piped()), limit, |child| {
        let Some(stdout) = child.stdout.take() else {
            return Ok(());
        };
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            on_line(String::from_utf8_lossy(&line).trim_end_matches('\n'));
            line.clear();
        }
        Ok(())
    })
}

/// Runs a command with its stdout and stderr collected, for a measurement.
pub(crate) fn run_captured(
    command: &mut Command,
    limit: Duration,
) -> Result<(Ended, String, String)> {
    let mut texts = (String::new(), String::new());
    let ended = run(
        command.stdout(Stdio::piped()).stderr(Stdio::piped()),
        limit,
        |child| {
            let stderr = child.stderr.take();
            let reader = thread::spawn(move || read_all(stderr));
            texts.0 = read_all(child.stdout.take())?;
            texts.1 = reader.join().unwrap_or_else(|_| Ok(String::new()))?;
            Ok(())
        },
    )?;
    Ok((ended, texts.0, texts.1))
}

fn run(
    command: &mut Command,
    limit: Duration,
    consume: impl FnOnce(&mut Child) -> io::Result<()>,
) -> Result<Ended> {
    let cpu_before = cpu_of_children();
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let (done, over) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        let timed_out = over.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        if timed_out {
            kill_descendants();
        }
        timed_out
    });
    let consumed = consume(&mut child);
    let status = child.wait();
    let wall = start.elapsed();
    drop(done);
    let timed_out = watchdog.join().unwrap_or(false);
    reap_orphans();
    consumed.with_context(|| format!("cannot read the output of {}", shown(command)))?;
    Ok(Ended {
        status: status?,
        timed_out,
        wall,
        cpu: cpu_of_children().saturating_sub(cpu_before),
    })
}

fn read_all(stream: Option<impl Read>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Ends every process below this one. Repeated, because a process may fork while we look.
fn kill_descendants() {
    for _ in 0..20 {
        let found = descendants();
        if found.is_empty() {
            return;
        }
        for pid in found {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // One that has ended in the meantime is what we want.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

fn descendants() -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut todo = vec![process::id()];
    while let Some(parent) = todo.pop() {
        for child in children_of(parent) {
            if is_alive(child) && found.insert(child) {
                todo.push(child);
            }
        }
    }
    found
}

fn children_of(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            stat.rsplit_once(')')
                .map(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
        })
        .is_some_and(|ended| !ended)
}

/// Collects orphans that have ended. Only called while no `Child` of ours is unwaited for.
fn reap_orphans() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// Processor time of all children that were waited for, and of theirs.
fn cpu_of_children() -> Duration {
    // Fields 16 and 17, counted behind the command's name, which may hold blanks: clock ticks of 10 ms.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_limit_orphans_end_too() -> Result<()> {
        adopt_orphans()?;
        // The sleeper holds stdout in a session of its own, and its parent ends at once: that this returns shows its end.
        let mut command = Command::new("sh");
        command.args(["-c", "setsid sleep 1000 & echo started"]);
        let ended = run_lines(&mut command, Duration::from_millis(300), |_| {})?;
        assert!(ended.timed_out && ended.status.success());
        Ok(())
    }
}
