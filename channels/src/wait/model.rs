//! A futex for models, and models of waiting. Run by `RUSTFLAGS="--cfg loom" cargo test -p dragon-channels --release --lib
//! loom`.

use std::fmt;

use dragon_shmem::WaitResult;
use dragon_shmem::sync::{AtomicU32, Ordering};
use loom::sync::{Condvar, Mutex};

/// What the kernel does for a futex: the look at the word and the falling asleep are one step for whoever wakes.
pub(crate) struct Futex {
    lock: Mutex<()>,
    sleepers: Condvar,
}

impl fmt::Debug for Futex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Futex")
    }
}

impl Default for Futex {
    fn default() -> Self {
        Self {
            lock: Mutex::new(()),
            sleepers: Condvar::new(),
        }
    }
}

impl Futex {
    pub(super) fn wait(&self, word: &AtomicU32, expected: u32) -> WaitResult {
        self.wait_while(|| word.load(Ordering::Relaxed) == expected)
    }

    pub(crate) fn wait_while(&self, same: impl FnOnce() -> bool) -> WaitResult {
        let guard = self.lock.lock().unwrap();
        if !same() {
            return WaitResult::Changed;
        }
        drop(self.sleepers.wait(guard).unwrap());
        WaitResult::Woken
    }

    pub(crate) fn wake(&self, count: u32) {
        let _guard = self.lock.lock().unwrap();
        if count == 1 {
            self.sleepers.notify_one();
        } else {
            self.sleepers.notify_all();
        }
    }
}
