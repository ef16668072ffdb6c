//! What stands behind a remote shell: a process that starts the daemon, waits for it, and sweeps up when it was killed, as the
//! `dragon` command does on its own machine.
//!
//! Behind a remote shell it reads nothing and owns nothing. The daemon watches it, and the remote shell that started it: when
//! either ends, whoever started the daemon is gone. A daemon that is stopped notices neither; then the supervisor kills it. As a task of a workload manager it joins the starter first
//! (`adapter/join.rs`), and what the starter says becomes the daemon's standard input: there who started the task may come and
//! go, and the line decides.
//!
//! PBS ends a job by killing the sessions of its tasks at once, and knows nothing of those that programs have made for
//! themselves. So there a supervisor leaves the session once the daemon is in it ([`APART`]): it outlives that moment, and
//! sweeps. The process that PBS has started stays, and stands for the task.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use dragon_protocol::env;
use rustix::process::{Pid, Signal, pidfd_send_signal, set_child_subreaper};
use tokio::signal::unix::SignalKind;
use tokio::time::sleep;

use crate::adapter::client::is_stopped;
use crate::adapter::join::{self, Joined};
use crate::adapter::launcher::{self, NOT_UP, STDIN};
use crate::cli::RUNTIME_FAILED;
use crate::cli::launcher::{END_LIMIT, HINT_WAIT};
use crate::exec::set_default;
use crate::heard::Heard;
use crate::journal::say;
use crate::readable::end_of;
use crate::sweep;

/// The argument of a daemon that has a supervisor.
pub const SUPERVISED: &str = "--supervised";
/// One more of a daemon whose supervisor has joined the starter.
const JOINED: &str = "--joined";

/// Whether this process is the daemon of a supervisor.
#[must_use]
pub fn is_there() -> bool {
    std::env::args_os().any(|word| word == SUPERVISED)
}

/// Whether this process is the daemon of a supervisor that has joined: whoever started that may come and go.
#[must_use]
pub fn has_joined() -> bool {
    std::env::args_os().any(|word| word == JOINED)
}

/// The argument of a supervisor that leaves the session in which the daemon is.
pub const APART: &str = "--apart";

/// Runs the daemon with these arguments; returns its exit code.
///
/// # Errors
/// When it cannot be started.
pub fn run(arguments: &[OsString]) -> Result<u8> {
    // The launcher has its remote shell ignore the terminal's interrupts, and one that stays on this machine leaves that to what it
    // runs.
    set_default(libc::SIGINT);
    // What the daemon's processes leave when it is killed comes to this one.
    set_child_subreaper(Pid::from_raw(1)).context("cannot become subreaper")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let code = runtime.block_on(supervise(arguments));
    sweep::kill_all_but(Vec::new());
    code
}

async fn supervise(arguments: &[OsString]) -> Result<u8> {
    // Before the daemon is there: none of them may end this process alone.
    let mut term = Heard::new(SignalKind::terminate())?;
    let hang_up = Heard::new(SignalKind::hangup())?;
    let user1 = Heard::new(SignalKind::user_defined1())?;
    let user2 = Heard::new(SignalKind::user_defined2())?;
    // The launcher passes on those that are meant for the daemon.
    let _interrupt = Heard::new(SignalKind::interrupt())?;
    let apart = arguments.iter().any(|word| word == APART);
    let mut joined = match join::way(arguments) {
        Some(way) if apart => tokio::select! {
            joined = join::join(way, arguments) => Some(joined?),
            () = term.recv() => return Ok(NOT_UP),
        },
        _ => None,
    };
    let is_task = !apart && join::way(arguments).is_some();
    // Who starts the task of a workload manager may come and go.
    let parent = rustix::process::getppid().filter(|_| !is_task);
    let parent = parent.map(|pid| end_of(pid.as_raw_nonzero().get().cast_unsigned()));
    let mut command = if is_task {
        supervisor(arguments)?
    } else {
        daemon(arguments, joined.is_some(), apart)?
    };
    let mut child = command.spawn().context("cannot start the daemon")?;
    if apart {
        // It leads no process group: it is the child of one that waits for it.
        rustix::process::setsid().context("cannot make a session")?;
    }
    let stdin = child.stdin.take();
    let end = end_of(child.id())?;
    let daemon = end.get_ref();
    let pid = child.id();
    // It hears no other signal, and nobody else on this host is there to end it.
    let kill_if_stopped = || {
        if is_stopped(pid) {
            let _ = pidfd_send_signal(daemon, Signal::KILL);
        }
    };
    let pass_on = async |mut heard: Heard, number: Signal| {
        loop {
            heard.recv().await;
            // It may have ended in between.
            let _ = pidfd_send_signal(daemon, number);
        }
    };
    let is_joined = joined.is_some();
    let terminate = async {
        let mut number = Signal::TERM;
        loop {
            term.recv().await;
            let _ = pidfd_send_signal(daemon, number);
            kill_if_stopped();
            // Whoever can end a task by signals alone has no other way to end a daemon that hangs, and what it has started.
            if is_joined {
                number = Signal::KILL;
            }
        }
    };
    let parent_gone = async {
        if let Some(Ok(parent)) = &parent
            && parent.readable().await.is_ok()
        {
            // The daemon of one that is not apart watches whoever started that itself.
            if apart {
                let _ = pidfd_send_signal(daemon, Signal::TERM);
            }
            sleep(HINT_WAIT).await;
            kill_if_stopped();
            sleep(END_LIMIT).await;
            let _ = pidfd_send_signal(daemon, Signal::KILL);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = end.readable() => drop(ended?),
        () = parent_gone => {}
        () = terminate => {}
        () = pass_on(hang_up, Signal::HUP) => {}
        () = pass_on(user1, Signal::USR1) => {}
        () = pass_on(user2, Signal::USR2) => {}
        () = say_to(stdin, &mut joined) => {}
    }
    let status = child.wait()?;
    if let Some(signal) = status.signal() {
        let rank = launcher::rank(arguments);
        say(&format!(
            "the daemon of node {rank} was ended by signal {signal}"
        ));
        return Ok(u8::try_from(128 + signal).unwrap_or(RUNTIME_FAILED));
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(RUNTIME_FAILED))
}

/// The command that starts the supervisor of a task.
fn supervisor(arguments: &[OsString]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).arg(APART);
    Ok(command)
}

/// The command that starts the daemon.
fn daemon(arguments: &[OsString], joined: bool, apart: bool) -> Result<Command> {
    let mut arguments = arguments.to_vec();
    let mut command = Command::new(std::env::current_exe()?);
    if joined {
        if let Some(source) = arguments.get_mut(1) {
            *source = STDIN.into();
        }
        command.stdin(Stdio::piped()).env_remove(env::JOIN_KEY);
        arguments.push(JOINED.into());
    }
    command.args(arguments).arg(SUPERVISED);
    // A terminal that this host shares with the launcher's is none of the daemon's business. On the launcher's own it is.
    if joined || !apart {
        command.process_group(0);
    }
    Ok(command)
}

/// Waits for one more signal.
/// Passes on to the daemon what its starter says; its input ends when the starter is gone.
async fn say_to(stdin: Option<std::process::ChildStdin>, joined: &mut Option<Joined>) {
    if let (Some(stdin), Some(joined)) = (stdin, joined)
        && let Err(error) = joined.pass_on(OwnedFd::from(stdin)).await
    {
        tracing::debug!("the starter: {error:#}");
    }
    std::future::pending().await
}
