//! The least that handing a word to a sleeper costs: a futex for each direction.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::thread::futex;

use crate::Turns;

/// The turn that tells the second process to end.
pub const END: u32 = u32::MAX;

/// The first process: asks, and sleeps until the second has answered. Returns the turn.
///
/// # Errors
/// The kernel refuses.
pub fn ask(turns: &Turns, before: u32) -> Result<u32> {
    let turn = (before + 1) % END;
    pass(&turns.ping.0, turn)?;
    wait_while(&turns.pong.0, before)?;
    Ok(turn)
}

/// The second process: sleeps until it is asked again, and answers. Returns the turn.
///
/// # Errors
/// The kernel refuses.
pub fn answer(turns: &Turns, before: u32) -> Result<u32> {
    let turn = wait_while(&turns.ping.0, before)?;
    if turn != END {
        pass(&turns.pong.0, turn)?;
    }
    Ok(turn)
}

/// The first process ends the second.
///
/// # Errors
/// The kernel refuses.
pub fn end(turns: &Turns) -> Result<()> {
    pass(&turns.ping.0, END)
}

pub(crate) fn pass(word: &AtomicU32, turn: u32) -> Result<()> {
    word.store(turn, Ordering::Release);
    futex::wake(word, futex::Flags::empty(), 1).context("futex wake")?;
    Ok(())
}

/// Sleeps while the word is `old`; returns what it is then. The other process's end is watched for by a thread or by the kernel.
pub(crate) fn wait_while(word: &AtomicU32, old: u32) -> Result<u32> {
    loop {
        let turn = word.load(Ordering::Acquire);
        if turn != old {
            return Ok(turn);
        }
        match futex::wait(word, futex::Flags::empty(), old, None) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).context("futex wait"),
        }
    }
}
