//! A task of a step that is the program, and not the daemon of its node: it waits until the runtime is up, runs the program as its
//! child, and ends as that does.
//!
//! It stays in front of the program, because the program must not outlive the runtime: whoever kills the daemon, or this process,
//! ends the program. Slurm sees one task that gets signals, and ends by itself or by one of them. What the program reads and writes
//! is the program's alone: whoever is at the other end sees the end when the program closes its own.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use dragon_protocol::attach::{AttachReply, ROLE_TASK};
use dragon_protocol::process::Settings;
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{Signal as Heard, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::adapter::Job;
use crate::adapter::task::Task;
use crate::cli::RUNTIME_FAILED;
use crate::exit::Exit;
use crate::forker::{Fork, Forker, Source, null};
use crate::journal;
use crate::passed::{ENDING, FOR_PROGRAMS, Passed, STOPPING};
use crate::program::{self, Program};
use crate::resources;
use crate::services::Event;
use crate::sibling;
use crate::sweep;
use crate::tree;

/// How long a program may take to end when the runtime does before it.
const GRACE: Duration = Duration::from_secs(2);

/// Runs the program of the task, which gets all that this process was started with.
///
/// # Errors
/// When the node's daemon does not come up, or the kernel refuses what a child needs.
pub async fn run(job: &Job, task: Task) -> Result<Exit> {
    let mut daemon = sibling::report(job, ROLE_TASK).await?;
    let mut reply = [0; size_of::<AttachReply>()];
    if daemon.read_exact(&mut reply).await.is_err() {
        // The runtime did not come up. One daemon says why.
        return Ok(Exit::Code(RUNTIME_FAILED));
    }
    let program = match program::resolve(&job.program) {
        Ok(program) => program,
        Err(no) => {
            journal::say(&no.text);
            return Ok(Exit::Code(no.code));
        }
    };
    // What the program leaves behind is this process's to end, where the runtime ends before it.
    rustix::process::set_child_subreaper(Pid::from_raw(1))?;
    // What is handled here is handled before the thread that starts the program notes what is.
    let mut signals = Passed::take(&[&ENDING, &FOR_PROGRAMS, &STOPPING])?;
    let mut child = signal(SignalKind::child())?;
    let (events, mut started) = mpsc::channel(1);
    // The program ends with the thread, and that with its last handle.
    let forker = Forker::start(events)?;
    forker.start_process(Some(0), fork_of(job, &task, program));
    let rank = task.rank;
    drop(task);
    let pid = match started.recv().await {
        Some(Event::Started(_, Ok(pid))) => pid,
        Some(Event::Started(_, Err(text))) => {
            journal::say(&text);
            return Ok(Exit::Code(program::NOT_EXECUTABLE));
        }
        _ => bail!("the thread that starts the program has ended"),
    };
    // One that is gone is noticed below.
    let _ = daemon.write_all(&told_program(pid, rank)).await;
    read_and_write_nothing().context("cannot let go of what the program reads and writes")?;
    let mut word = [0];
    loop {
        if let Some(status) = ended(pid) {
            return Ok(Exit::Like(status));
        }
        tokio::select! {
            _ = child.recv() => {}
            signal = signals.next() => {
                if resources::in_step_group() {
                    tree::signal(pid, false, signal);
                }
            }
            // The daemon has nothing to say: this is its end, or that of the runtime.
            _ = daemon.read(&mut word) => {
                end(pid, &mut child).await;
                return Ok(Exit::Code(RUNTIME_FAILED));
            }
        }
    }
}

/// What the daemon of the node is told of the program that runs now: its pid, and the number of its task.
fn told_program(pid: u32, rank: u32) -> [u8; 8] {
    (u64::from(rank) << 32 | u64::from(pid)).to_le_bytes()
}

/// The pid of a program, and the number of its task, as the daemon is told.
#[must_use]
pub fn program_from(told: [u8; 8]) -> (u32, u32) {
    let half = |at: usize| [told[at], told[at + 1], told[at + 2], told[at + 3]];
    (u32::from_le_bytes(half(0)), u32::from_le_bytes(half(4)))
}

/// How the program of a task is started: as Slurm would have started it, and with the end of this process for its own.
pub(crate) fn fork_of(job: &Job, task: &Task, program: Program) -> Fork {
    Fork {
        words: program.words,
        look_up: false,
        environment: task.environment(job),
        directory: None,
        stdio: [Source::Inherit, Source::Inherit, Source::Inherit],
        own_group: false,
        settings: Settings::default(),
        cpus: task.cpus.clone(),
        inherited: task.inherited.clone(),
    }
}

/// Closes input, output and errors of this process, which the program has too. It says nothing more.
fn read_and_write_nothing() -> std::io::Result<()> {
    let null = null()?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}

/// Ends a program that the runtime has left behind, and all that it started: Slurm's own part may be gone too.
async fn end(pid: u32, child: &mut Heard) {
    tree::signal(pid, false, Signal::TERM);
    let its_end = async {
        while ended(pid).is_none() {
            child.recv().await;
        }
    };
    let _ = timeout(GRACE, its_end).await;
    sweep::kill_all_but(Vec::new());
}

/// Reads the statuses of all children that have ended: that of the program, if it is among them.
fn ended(pid: u32) -> Option<i32> {
    let mut found = None;
    while let Ok(Some((child, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if child.as_raw_nonzero().get().cast_unsigned() == pid {
            found = Some(status.as_raw());
        }
    }
    found
}
