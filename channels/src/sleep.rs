//! Words that threads sleep on themselves, without a sequence beside them: whoever sleeps names the value that it saw, and
//! whoever wakes has changed the word before.

use dragon_shmem::sync::AtomicU32;
use dragon_shmem::{Deadline, WaitResult};

#[cfg(loom)]
use crate::wait::model::Futex;

/// 32 bits to sleep on.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct FutexWord {
    pub(crate) word: AtomicU32,
    #[cfg(loom)]
    model: Futex,
}

impl FutexWord {
    /// Sleeps while the word is `seen`.
    #[cfg(not(loom))]
    pub(crate) fn sleep(&self, seen: u32, deadline: Deadline) -> WaitResult {
        dragon_shmem::futex::wait(&self.word, seen, deadline)
    }

    /// Wakes up to `count` sleepers.
    #[cfg(not(loom))]
    pub(crate) fn wake(&self, count: u32) {
        dragon_shmem::futex::wake(&self.word, count);
    }

    #[cfg(loom)]
    pub(crate) fn sleep(&self, seen: u32, _: Deadline) -> WaitResult {
        let same = || self.word.load(dragon_shmem::sync::Ordering::Relaxed) == seen;
        self.model.wait_while(same)
    }

    #[cfg(loom)]
    pub(crate) fn wake(&self, count: u32) {
        self.model.wake(count);
    }
}
