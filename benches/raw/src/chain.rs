//! The bare chain client – agent – TCP – agent – client, and back: on each node a client, and an agent with a thread for each
//! direction. Everybody sleeps until it is called: clients and the outgoing thread in a futex, the incoming thread in `read`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};

use crate::Turns;
use crate::sleep::{pass, wait_while};

/// How the clients wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// In a futex; the agent wakes them.
    Sleep,
    /// In a loop that lets others have the CPU.
    Spin,
}

/// The agent's thread that takes from its client: `ping` of the node's words.
///
/// # Errors
/// The kernel refuses, or the other node is gone.
pub fn carry_out(words: &Turns, mut stream: &TcpStream) -> Result<()> {
    let mut turn = 0;
    loop {
        turn = wait_while(&words.ping.0, turn)?;
        let message = u64::from(turn).to_le_bytes();
        stream.write_all(&message).context("write")?;
    }
}

/// The agent's thread that gives to its client: `pong` of the node's words.
///
/// # Errors
/// The kernel refuses, or the other node is gone.
pub fn carry_in(words: &Turns, mut stream: &TcpStream, wait: Wait) -> Result<()> {
    let mut message = [0_u8; 8];
    loop {
        stream.read_exact(&mut message).context("read")?;
        let turn = u32::from_le_bytes([message[0], message[1], message[2], message[3]]);
        match wait {
            Wait::Sleep => pass(&words.pong.0, turn)?,
            Wait::Spin => words.pong.0.store(turn, Ordering::Release),
        }
    }
}

/// The client that asks. Returns the turn.
///
/// # Errors
/// The kernel refuses.
pub fn ask(words: &Turns, before: u32, wait: Wait) -> Result<u32> {
    let turn = before.wrapping_add(1);
    pass(&words.ping.0, turn)?;
    await_turn(words, before, wait)
}

/// The client that answers. Returns the turn.
///
/// # Errors
/// The kernel refuses.
pub fn answer(words: &Turns, before: u32, wait: Wait) -> Result<u32> {
    let turn = await_turn(words, before, wait)?;
    pass(&words.ping.0, turn)?;
    Ok(turn)
}

fn await_turn(words: &Turns, before: u32, wait: Wait) -> Result<u32> {
    if wait == Wait::Sleep {
        return wait_while(&words.pong.0, before);
    }
    loop {
        let turn = words.pong.0.load(Ordering::Acquire);
        if turn != before {
            return Ok(turn);
        }
        std::thread::yield_now();
    }
}
