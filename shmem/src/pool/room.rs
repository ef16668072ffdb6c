//! Waiting for memory that others free.
//!
//! Who finds no room reads the sequence, sets `wanted`, and looks once more; then it sleeps while the sequence stays. Who
//! frees looks at `wanted` afterwards, and only when it is set takes it away, raises the sequence and wakes everyone. So a
//! free costs one load of a line that is hardly ever written, and a waiter that dies leaves nothing that must be mended: its
//! `wanted` costs one wake-up in vain.
//!
//! Between setting `wanted` and looking, and between a free and looking at `wanted`, there must be a full fence, or each
//! side misses the other (Dekker). The side that frees is the frequent one: it has none. The waiter has the kernel run one on
//! every processor where a process of ours is running (`membarrier`, global expedited); processes that could not register for
//! that fence themselves.

use crate::error::Result;
use crate::sync::{AtomicU32, Ordering};

/// The words for it in a pool's metadata.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Room {
    sequence: AtomicU32,
    wanted: AtomicU32,
}

impl Room {
    /// Announces that memory is wanted. What is returned is passed to [`Room::wait`], after one more look.
    pub(crate) fn want(&self) -> Result<u32> {
        // Acquire: with a sequence comes what was freed before it was raised.
        let sequence = self.sequence.load(Ordering::Acquire);
        // A swap and not a store: whoever took the mark away before has freed before, and this look must see it.
        self.wanted.swap(1, Ordering::SeqCst);
        barrier::for_all()?;
        Ok(sequence)
    }

    /// Whether anybody waits: after memory was freed.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        barrier::of_who_frees();
        self.wanted.load(Ordering::Relaxed) != 0
    }

    /// Wakes those who wait, if there are any: after memory was freed.
    #[inline]
    pub(crate) fn freed(&self) {
        if self.is_wanted() {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if self.wanted.swap(0, Ordering::AcqRel) != 0 {
            self.wake_all();
        }
    }

    /// Makes everyone who waits look again.
    pub(crate) fn wake_all(&self) {
        // Release pairs with the Acquire in `want`.
        self.sequence.fetch_add(1, Ordering::Release);
        #[cfg(not(loom))]
        crate::futex::wake(&self.sequence, u32::MAX);
    }

    /// Sleeps until memory was freed.
    #[cfg(not(loom))]
    pub(crate) fn wait(
        &self,
        sequence: u32,
        deadline: crate::futex::Deadline,
    ) -> crate::futex::WaitResult {
        crate::futex::wait(&self.sequence, sequence, deadline)
    }

    #[cfg(loom)]
    pub(crate) fn wait(
        &self,
        sequence: u32,
        _: crate::futex::Deadline,
    ) -> crate::futex::WaitResult {
        while self.sequence.load(Ordering::Acquire) == sequence {
            loom::thread::yield_now();
        }
        crate::futex::WaitResult::Woken
    }
}

/// The two halves of the fence.
#[cfg(not(any(loom, miri)))]
pub(crate) mod barrier {
    use rustix::thread::{MembarrierCommand, membarrier};
    use std::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};

    use crate::error::{Result, system};

    /// Whether this process has to fence itself.
    static ALONE: AtomicBool = AtomicBool::new(true);

    /// Registers this process. Once is enough, and a forked child inherits it, unless it was forked in the middle of it: again
    /// costs nothing.
    pub(crate) fn register() {
        let registered = membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok();
        ALONE.store(!registered, Ordering::Release);
    }

    #[inline]
    pub(crate) fn of_who_frees() {
        if ALONE.load(Ordering::Relaxed) {
            fence(Ordering::SeqCst);
        } else {
            compiler_fence(Ordering::SeqCst);
        }
    }

    pub(crate) fn for_all() -> Result<()> {
        fence(Ordering::SeqCst);
        membarrier(MembarrierCommand::GlobalExpedited).map_err(system("membarrier"))
    }
}

/// Where there is no such call, both sides fence.
#[cfg(any(loom, miri))]
pub(crate) mod barrier {
    use crate::error::Result;
    use crate::sync::{Ordering, fence};

    #[cfg(not(loom))]
    pub(crate) fn register() {}

    pub(crate) fn of_who_frees() {
        fence(Ordering::SeqCst);
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the real one")]
    pub(crate) fn for_all() -> Result<()> {
        fence(Ordering::SeqCst);
        Ok(())
    }
}

/// One process frees the only block while two wait for it: neither sleeps on while there is a block to be had.
#[cfg(all(test, loom))]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::Room;
    use crate::futex::Deadline;
    use crate::sync::{AtomicU32, Ordering};

    struct Pool {
        room: Room,
        free: AtomicU32,
    }

    impl Pool {
        fn take(&self) -> bool {
            self.free
                .compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        }

        fn take_or_wait(&self) {
            while !self.take() {
                let sequence = self.room.want().unwrap();
                if self.take() {
                    return;
                }
                let _ = self.room.wait(sequence, Deadline::Never);
            }
        }

        fn give(&self) {
            self.free.store(1, Ordering::Release);
            self.room.freed();
        }
    }

    #[test]
    fn loom_nobody_sleeps_while_there_is_room() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let pool = Arc::new(Pool {
                room: Room {
                    sequence: AtomicU32::new(0),
                    wanted: AtomicU32::new(0),
                },
                free: AtomicU32::new(0),
            });
            let theirs = pool.clone();
            let other = thread::spawn(move || {
                theirs.take_or_wait();
                theirs.give();
            });
            pool.give();
            pool.take_or_wait();
            pool.give();
            other.join().unwrap();
        });
    }
}
