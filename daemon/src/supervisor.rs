//! What stands behind a remote shell: a process that starts the daemon, waits for it, and sweeps up when it was killed, as the
//! `dragon` command does on its own machine.
//!
//! It reads nothing and owns nothing. When it is killed itself, the daemon sees its parent end, and ends the job.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, pidfd_send_signal, set_child_subreaper};
use tokio::signal::unix::{SignalKind, signal};

use crate::adapter::launcher;
use crate::cli::RUNTIME_FAILED;
use crate::journal::say;
use crate::readable::end_of;
use crate::sweep;

/// The argument of a daemon that has a supervisor.
pub const SUPERVISED: &str = "--supervised";

/// Runs the daemon with these arguments; returns its exit code.
///
/// # Errors
/// When it cannot be started.
pub fn run(arguments: &[OsString]) -> Result<u8> {
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
    let kinds = [
        (SignalKind::terminate(), Signal::TERM),
        (SignalKind::hangup(), Signal::HUP),
        (SignalKind::user_defined1(), Signal::USR1),
        (SignalKind::user_defined2(), Signal::USR2),
    ];
    // Before the daemon is there: none of them may end this process alone.
    let kinds = kinds.map(|(kind, number)| signal(kind).map(|stream| (stream, number)));
    // The launcher passes on those that are meant for the daemon.
    let _interrupt = signal(SignalKind::interrupt())?;
    let parent = rustix::process::getppid();
    let parent = parent.map(|pid| end_of(pid.as_raw_nonzero().get().cast_unsigned()));
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .arg(SUPERVISED)
        // A terminal that this host shares with the launcher's is none of the daemon's business.
        .process_group(0)
        .spawn()
        .context("cannot start the daemon")?;
    let end = end_of(child.id())?;
    let daemon = end.get_ref();
    let pass_on = async |kind: std::io::Result<(tokio::signal::unix::Signal, Signal)>| {
        if let Ok((mut stream, number)) = kind {
            while stream.recv().await.is_some() {
                // It may have ended in between.
                let _ = pidfd_send_signal(daemon, number);
            }
        }
    };
    let [term, hang_up, user1, user2] = kinds;
    let parent_gone = async {
        if let Some(Ok(parent)) = &parent
            && parent.readable().await.is_ok()
        {
            let _ = pidfd_send_signal(daemon, Signal::TERM);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = end.readable() => drop(ended?),
        () = pass_on(term) => {}
        () = pass_on(hang_up) => {}
        () = pass_on(user1) => {}
        () = pass_on(user2) => {}
        () = parent_gone => {}
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
