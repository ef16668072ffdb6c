//! A lock among the threads of one process that a fork cannot leave locked.
//!
//! A standard mutex that another thread held at the moment of a fork stays locked in the child for ever. This one
//! remembers which process took it; a child takes it over.

use std::sync::atomic::{AtomicU32, Ordering};

use dragon_shmem::Deadline;
use dragon_shmem::futex::{self, WaitResult};

use crate::error::{Error, Result};

/// Set when a thread may sleep on the word. Process ids have at most 22 bits.
const WAITED_FOR: u32 = 1 << 31;

/// 0, or the id of the process that holds it, perhaps with [`WAITED_FOR`].
#[derive(Debug)]
pub(crate) struct ProcessLock(AtomicU32);

impl ProcessLock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Takes it; a signal ends the wait.
    pub(crate) fn lock(&self) -> Result<Guard<'_>> {
        let own = rustix::process::getpid().as_raw_pid().cast_unsigned();
        let mut mine = own;
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            if seen & !WAITED_FOR != own {
                // Acquire pairs with the Release of the guard's drop.
                match self
                    .0
                    .compare_exchange(seen, mine, Ordering::Acquire, Ordering::Relaxed)
                {
                    Ok(_) => return Ok(Guard(self)),
                    Err(now) => seen = now,
                }
                continue;
            }
            let asleep = own | WAITED_FOR;
            if seen != asleep
                && let Err(now) =
                    self.0
                        .compare_exchange(seen, asleep, Ordering::Relaxed, Ordering::Relaxed)
            {
                seen = now;
                continue;
            }
            if futex::wait(&self.0, asleep, Deadline::Never) == WaitResult::Interrupted {
                return Err(Error::Interrupted);
            }
            // Others may sleep too, so whoever has slept wakes when it is done.
            mine = asleep;
            seen = self.0.load(Ordering::Relaxed);
        }
    }
}

/// Holds a [`ProcessLock`].
#[derive(Debug)]
pub(crate) struct Guard<'a>(&'a ProcessLock);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.0.0.swap(0, Ordering::Release) & WAITED_FOR != 0 {
            futex::wake(&self.0.0, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    #[test]
    fn it_excludes() {
        static LOCK: ProcessLock = ProcessLock::new();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let guard = LOCK.lock().unwrap();
                        // Not one step, so that a missing exclusion loses counts.
                        let seen = COUNT.load(Ordering::Relaxed);
                        COUNT.store(seen + 1, Ordering::Relaxed);
                        drop(guard);
                    }
                });
            }
        });
        assert_eq!(COUNT.load(Ordering::Relaxed), 40_000);
    }

    #[test]
    fn one_of_another_process_is_taken_over() {
        let lock = ProcessLock::new();
        lock.0.store(u32::MAX >> 1, Ordering::Relaxed);
        drop(lock.lock().unwrap());
        assert_eq!(lock.0.load(Ordering::Relaxed), 0);
    }
}
