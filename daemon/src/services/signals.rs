//! Signals that a daemon hears, and what they ask for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::End;
use crate::adapter::Manager;
use crate::heard::Heard;
use crate::passed::{FOR_PROGRAMS, Passed, STOPPING};

/// A second interrupt within this time ends the job whatever the head does with it.
const TWICE: Duration = Duration::from_secs(1);

/// What a signal means.
pub(super) enum Signalled {
    /// A child has ended.
    Child,
    /// The job is to end.
    End(End),
    /// The job has run for as long as it may.
    TimeIsUp(Duration),
    /// Whoever started this daemon is gone.
    Abandoned,
    /// It is meant for the head program.
    ForHead(rustix::process::Signal),
}

/// Signals that a daemon handles.
pub(super) struct Signals {
    pub(super) child: Signal,
    terminate: Signal,
    hang_up: Heard,
    interrupt: Heard,
    last_interrupt: Option<Instant>,
    /// Whoever started this daemon is gone.
    pub(super) parent_gone: Arc<Notify>,
    /// Before the head runs an interrupt means the bring-up.
    pub(super) head_runs: bool,
    /// All that Slurm sends to a task is for the program, whose end is the task's.
    pub(super) are_the_programs: bool,
    quit: Heard,
    passed: Passed,
    /// When the job ends at the latest, and what the user said about it.
    time_limit: Option<(Instant, Duration)>,
}

impl Signals {
    pub(super) fn new(manager: &Manager) -> Result<Self> {
        // Elsewhere the terminal stops all that it has started.
        let stopping = match manager {
            Manager::Slurm { .. } => &STOPPING[..],
            _ => &[],
        };
        Ok(Self {
            child: signal(SignalKind::child())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: Heard::new(SignalKind::hangup())?,
            interrupt: Heard::new(SignalKind::interrupt())?,
            last_interrupt: None,
            parent_gone: Arc::default(),
            head_runs: false,
            are_the_programs: false,
            quit: Heard::new(SignalKind::quit())?,
            passed: Passed::take(&[&FOR_PROGRAMS, stopping])?,
            time_limit: None,
        })
    }

    /// From now on the job may run for so long.
    pub(super) fn limit_time(&mut self, limit: Option<Duration>) {
        self.time_limit = limit.map(|limit| (Instant::now() + limit, limit));
    }

    /// Waits for a signal: SIGTERM, SIGHUP and a second SIGINT within a second end the job that has a head.
    pub(super) async fn next(&mut self) -> Signalled {
        let are_the_programs = self.are_the_programs;
        let end = |signal: rustix::process::Signal, why: &str| match signal.as_raw() {
            _ if are_the_programs => Signalled::ForHead(signal),
            number => Signalled::End(End {
                code: 128 + u8::try_from(number).unwrap_or_default(),
                why: why.to_owned(),
            }),
        };
        let limit = self.time_limit;
        let time_is_up = async {
            match limit {
                Some((at, limit)) => {
                    tokio::time::sleep_until(at).await;
                    limit
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            limit = time_is_up => {
                self.time_limit = None;
                Signalled::TimeIsUp(limit)
            }
            _ = self.child.recv() => Signalled::Child,
            _ = self.terminate.recv() => end(rustix::process::Signal::TERM, "SIGTERM"),
            () = self.hang_up.recv() => end(rustix::process::Signal::HUP, "SIGHUP"),
            () = self.quit.recv() => Signalled::ForHead(rustix::process::Signal::QUIT),
            signal = self.passed.next() => Signalled::ForHead(signal),
            () = self.interrupt.recv() => {
                let before = self.last_interrupt.replace(Instant::now());
                let twice = before.is_some_and(|at| at.elapsed() < TWICE) && !are_the_programs;
                if !self.head_runs || twice {
                    return Signalled::End(End::interrupted());
                }
                Signalled::ForHead(rustix::process::Signal::INT)
            }
            () = self.parent_gone.notified() => Signalled::Abandoned,
        }
    }

    /// Waits for a signal that ends the job.
    pub(super) async fn ending(&mut self) -> End {
        loop {
            match self.next().await {
                Signalled::End(end) => return end,
                Signalled::Abandoned => return End::abandoned(),
                _ => {}
            }
        }
    }
}
