//! The least that a spinning hand-over of a word costs.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Turns;

/// The turn that tells the second process to end.
pub const END: u32 = u32::MAX;

/// The first process: asks, and spins until the second has answered. Returns the turn.
pub fn ask(turns: &Turns, before: u32) -> u32 {
    let turn = (before + 1) % END;
    turns.ping.0.store(turn, Ordering::Release);
    wait_for(&turns.pong.0, turn);
    turn
}

/// The second process: spins until it is asked again, and answers. Returns the turn.
pub fn answer(turns: &Turns, before: u32) -> u32 {
    let turn = loop {
        let turn = turns.ping.0.load(Ordering::Acquire);
        if turn != before {
            break turn;
        }
        spin_loop();
    };
    if turn != END {
        turns.pong.0.store(turn, Ordering::Release);
    }
    turn
}

fn wait_for(word: &AtomicU32, turn: u32) {
    while word.load(Ordering::Acquire) != turn {
        spin_loop();
    }
}
