//! Bytes from one process to another by two copies: into a buffer that both map, and out of it. Buffers are used in turn; two
//! words count how many were filled and how many emptied.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use crate::memory::Shared;
use crate::ring::turn;

const FILLED: usize = 0;
/// On cache lines of its own.
const EMPTIED: usize = 16;
const FIRST: usize = 4096;

/// Buffers that forked processes share: one of them sends, one receives.
#[derive(Debug)]
pub struct Buffers {
    shared: Shared,
    /// How many, and how long each is.
    count: u64,
    length: usize,
    /// How many messages this process has passed on.
    passed: Cell<u64>,
}

impl Buffers {
    /// So many buffers of so many bytes, all empty.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(count: u32, length: usize) -> Result<Self> {
        Ok(Self {
            shared: Shared::new(FIRST + count as usize * length)?,
            count: count.into(),
            length,
            passed: Cell::new(0),
        })
    }

    /// Fills a buffer, as soon as there is an empty one. The message is as long as a buffer.
    pub fn send(&self, message: &[u8]) {
        let passed = self.passed.get();
        self.wait(EMPTIED, (passed + 1).saturating_sub(self.count));
        let length = self.length.min(message.len());
        // SAFETY: the receiver has emptied the buffer, and waits for us.
        unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), self.buffer(passed), length) };
        self.pass_on(FILLED, passed + 1);
    }

    /// Empties the next buffer, as soon as it is full.
    pub fn receive(&self, message: &mut [u8]) {
        let passed = self.passed.get();
        self.wait(FILLED, passed + 1);
        let length = self.length.min(message.len());
        // SAFETY: the sender has filled the buffer, and waits for us.
        unsafe { std::ptr::copy_nonoverlapping(self.buffer(passed), message.as_mut_ptr(), length) };
        self.pass_on(EMPTIED, passed + 1);
    }

    fn buffer(&self, number: u64) -> *mut u8 {
        // A remainder of a number that was a u32.
        #[allow(clippy::cast_possible_truncation)]
        let place = (number % self.count) as usize;
        self.shared.bytes(FIRST + place * self.length, self.length)
    }

    fn wait(&self, word: usize, until: u64) {
        let word: &AtomicU64 = self.shared.word(word);
        while word.load(Ordering::Acquire) < until {
            turn();
        }
    }

    fn pass_on(&self, word: usize, now: u64) {
        self.passed.set(now);
        self.shared.word(word).store(now, Ordering::Release);
    }
}
