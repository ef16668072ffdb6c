//! Signals that the launcher hears, and what they ask for.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::heard::Heard;

/// How long an orderly end may take, that of a job with a slow reader of its output included.
pub(crate) const END_LIMIT: Duration = Duration::from_secs(90);
/// The same after a second interrupt: whoever types it is in a hurry.
const END_SOON: Duration = Duration::from_secs(10);
/// Interrupts that follow each other within this time belong together.
const TWICE: Duration = Duration::from_secs(1);
/// Signals for the job: the first daemon ends it, or passes them on to the head. An interrupt from the terminal reaches
/// the head and the daemons without this process.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    hang_up: Heard,
    interrupt: Heard,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hang_up: Heard::new(SignalKind::hangup())?,
            interrupt: Heard::new(SignalKind::interrupt())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            () = self.hang_up.recv() => Signal::HUP,
            _ = self.user1.recv() => Signal::USR1,
            _ = self.user2.recv() => Signal::USR2,
            () = self.interrupt.recv() => Signal::INT,
        }
    }
}

/// Whether a signal means nothing to the runtime.
pub(super) fn is_for_head(signal: Signal) -> bool {
    matches!(signal, Signal::USR1 | Signal::USR2)
}

/// Interrupts from the terminal, as far as they follow each other within a second.
#[derive(Default)]
pub(super) struct Interrupts {
    count: u32,
    last: Option<Instant>,
}

impl Interrupts {
    /// Whether the last one came a moment ago.
    pub(super) fn just_came(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() < TWICE)
    }

    /// One more; returns how long the job may take to end now. The first is the head's, and ends a job that comes up; the
    /// second ends the job; more are for remote shells that hang.
    pub(super) fn limit(&mut self) -> Option<Duration> {
        let last = self.last.replace(Instant::now());
        if last.is_some_and(|last| last.elapsed() >= TWICE) {
            self.count = 0;
        }
        self.count += 1;
        match self.count {
            1 => None,
            2 => Some(END_SOON),
            _ => Some(Duration::ZERO),
        }
    }
}
