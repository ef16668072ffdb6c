//! D. Vyukov's bounded queue with several senders and receivers, for messages of 64 bytes: a cell's sequence says for which
//! position it is ready; positions are claimed by compare-and-swap on head and tail.

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::atomic::Ordering;

use anyhow::Result;

use crate::memory::Shared;

const CELLS: u64 = 256;
const CELL: usize = 128;
const HEAD: usize = 0;
const TAIL: usize = 16;
const FIRST: usize = 256;

/// A ring of 256 cells that forked processes share.
#[derive(Debug)]
pub struct Ring(Shared);

impl Ring {
    /// An empty ring.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new() -> Result<Self> {
        let ring = Self(Shared::new(FIRST + 256 * CELL)?);
        for n in 0..CELLS {
            ring.0.word(place(n) / 8).store(n, Ordering::SeqCst);
        }
        Ok(ring)
    }

    /// Spins until there is room.
    pub fn send(&self, payload: &[u8; 64]) {
        let position = self.claim(TAIL, 0);
        let bytes = self.0.bytes(place(position) + 8, 64);
        // SAFETY: the cell is ours until its sequence says otherwise.
        unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), bytes, 64) };
        self.pass_on(position, position + 1);
    }

    /// Spins until there is a message.
    pub fn receive(&self, payload: &mut [u8; 64]) {
        let position = self.claim(HEAD, 1);
        let bytes = self.0.bytes(place(position) + 8, 64);
        // SAFETY: as in `send`.
        unsafe { std::ptr::copy_nonoverlapping(bytes, payload.as_mut_ptr(), 64) };
        self.pass_on(position, position + CELLS);
    }

    fn claim(&self, word: usize, ahead: u64) -> u64 {
        let word = self.0.word(word);
        let mut position = word.load(Ordering::Relaxed);
        loop {
            let sequence = self.0.word(place(position) / 8).load(Ordering::Acquire);
            if sequence == position + ahead {
                match word.compare_exchange_weak(
                    position,
                    position + 1,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return position,
                    Err(now) => position = now,
                }
            } else {
                turn();
                position = word.load(Ordering::Relaxed);
            }
        }
    }

    fn pass_on(&self, position: u64, next: u64) {
        let sequence = self.0.word(place(position) / 8);
        sequence.store(next, Ordering::Release);
    }
}

fn place(position: u64) -> usize {
    FIRST + (position % CELLS) as usize * CELL
}

/// One round of a loop that waits: now and then others get the processor.
pub fn turn() {
    thread_local!(static TURNS: Cell<u32> = const { Cell::new(0) });
    TURNS.set(TURNS.get().wrapping_add(1));
    if TURNS.get().is_multiple_of(1 << 14) {
        std::thread::yield_now();
    }
    spin_loop();
}
