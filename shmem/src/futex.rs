//! Waiting on a word that several processes share.

use std::num::NonZeroU32;

use dragon_protocol::wire;
use rustix::io::Errno;
use rustix::thread::{Timespec, futex};

use crate::clock;

/// The type that the kernel waits on; always the standard one, also in a model.
type Word = std::sync::atomic::AtomicU32;

/// How long an operation may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Not at all: the try form.
    Now,
    /// Until this CLOCK_MONOTONIC time in nanoseconds.
    At(u64),
    /// For ever.
    Never,
}

impl Deadline {
    /// `nanoseconds` from now; for ever when that is beyond the clock.
    #[must_use]
    pub fn after(nanoseconds: u64) -> Self {
        match nanoseconds {
            0 => Self::Now,
            n => clock::now().checked_add(n).map_or(Self::Never, Self::At),
        }
    }

    /// The number in a request.
    #[must_use]
    pub const fn to_wire(self) -> u64 {
        match self {
            Self::Now => wire::NOW,
            Self::At(time) => time,
            Self::Never => wire::NEVER,
        }
    }

    /// The inverse of [`Deadline::to_wire`].
    #[must_use]
    pub const fn from_wire(time: u64) -> Self {
        match time {
            wire::NOW => Self::Now,
            wire::NEVER => Self::Never,
            time => Self::At(time),
        }
    }

    /// Whether the time is over.
    #[must_use]
    pub fn passed(self) -> bool {
        match self {
            Self::Now => true,
            Self::At(time) => clock::now() >= time,
            Self::Never => false,
        }
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitResult {
    /// Somebody woke this thread, or the kernel did for no reason: look again.
    Woken,
    /// The word had changed already.
    Changed,
    /// The deadline passed.
    TimedOut,
    /// A signal handler ran.
    Interrupted,
}

/// Sleeps while `word` is `expected`, until somebody wakes it or the deadline passes. Shared between processes.
#[must_use]
pub fn wait(word: &Word, expected: u32, deadline: Deadline) -> WaitResult {
    let until = match deadline {
        Deadline::Now => return WaitResult::TimedOut,
        Deadline::Never => None,
        Deadline::At(time) => Some(Timespec {
            tv_sec: (time / 1_000_000_000).cast_signed(),
            // Below 10^9.
            tv_nsec: (time % 1_000_000_000).cast_signed(),
        }),
    };
    match futex::wait_bitset(
        word,
        futex::Flags::empty(),
        expected,
        until.as_ref(),
        NonZeroU32::MAX,
    ) {
        Ok(()) => WaitResult::Woken,
        Err(Errno::TIMEDOUT) => WaitResult::TimedOut,
        Err(Errno::INTR) => WaitResult::Interrupted,
        // EAGAIN; every other error means that the word cannot be waited on, and looking again is right for that too.
        Err(_) => WaitResult::Changed,
    }
}

/// Wakes up to `count` sleepers; returns how many there were.
pub fn wake(word: &Word, count: u32) -> usize {
    futex::wake(
        word,
        futex::Flags::empty(),
        count.min(i32::MAX.cast_unsigned()),
    )
    .unwrap_or(0)
}
