//! Words that threads sleep on themselves, without a sequence beside them: whoever sleeps names the value that it saw, and
//! whoever wakes has changed the word before.

use dragon_shmem::sync::{AtomicU32, AtomicU64};
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

/// 64 bits to sleep on; the kernel compares the lower half.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct WideWord {
    pub(crate) word: AtomicU64,
    #[cfg(loom)]
    model: Futex,
}

// SAFETY: repr(C), only an atomic.
unsafe impl dragon_shmem::region::Shared for WideWord {}

impl WideWord {
    #[cfg(not(loom))]
    fn half(&self) -> &AtomicU32 {
        // SAFETY: the lower half of an AtomicU64 (little-endian machines) is an aligned AtomicU32. It is only given to the
        // kernel, which compares it.
        unsafe { &*std::ptr::from_ref(&self.word).cast::<AtomicU32>() }
    }

    /// Sleeps while the lower half of the word is that of `seen`.
    #[cfg(not(loom))]
    pub(crate) fn sleep(&self, seen: u64, deadline: Deadline) -> WaitResult {
        dragon_shmem::futex::wait(self.half(), dragon_shmem::sync::low(seen), deadline)
    }

    /// Wakes up to `count` sleepers.
    #[cfg(not(loom))]
    pub(crate) fn wake(&self, count: u32) {
        dragon_shmem::futex::wake(self.half(), count);
    }

    #[cfg(loom)]
    pub(crate) fn sleep(&self, seen: u64, _: Deadline) -> WaitResult {
        let same = || self.word.load(dragon_shmem::sync::Ordering::Relaxed) == seen;
        self.model.wait_while(same)
    }

    #[cfg(loom)]
    pub(crate) fn wake(&self, count: u32) {
        self.model.wake(count);
    }
}
