//! Locks that know their owner: when it dies, the next one gets the lock and is told so.
//!
//! The word is `waiters 1 bit | died 1 | destroyed 1 | owner's slot + 1, 20 bits`. It is a mutex after Drepper ("Futexes Are
//! Tricky", 2011): who cannot have the lock sets the waiters bit and sleeps; who was asleep takes the lock with the bit set,
//! since others may still sleep. The owner's slot stands in the word itself, so taking the lock and recording who has it is
//! one step. Recovery finds the lock through the dead process's reference to it.

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{AtomicU32, Ordering, fence};
use dragon_shmem::{Deadline, Member, WaitResult};

use crate::error::{Error, Result};
use crate::object::{Handle, alive, is_alive, notify_watcher, word};

const WAITERS: u32 = 1 << 31;
const DIED: u32 = 1 << 30;
const DESTROYED: u32 = 1 << 29;
const OWNER: u32 = (1 << 20) - 1;

/// A lock that was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acquired {
    /// The last owner died while it held the lock: what the lock protects may be half-way through a change.
    pub owner_died: bool,
}

/// A handle on a lock of this or another node. The lock belongs to the process that acquires it, not to the thread.
///
/// ```
/// use dragon_channels::{Deadline, Error, Lock};
///
/// let lock = Lock::create(&dragon_channels::local::member()?, 0)?;
/// if lock.acquire(Deadline::Never)?.owner_died {
///     // Mend what the lock protects.
/// }
/// assert_eq!(lock.acquire(Deadline::Now), Err(Error::Empty));
/// lock.release(false)?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Lock {
    handle: Handle,
}

impl Lock {
    /// Creates a lock on this node, held by nobody.
    ///
    /// # Errors
    /// When a table is full.
    pub fn create(member: &Arc<Member>, user: u64) -> Result<Self> {
        let id = crate::object::create(member, ObjectKind::Lock, user, |_| {})?;
        let handle = Handle::created(member, id, user);
        Ok(Self { handle })
    }

    /// Attaches to the lock that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let handle = Handle::attach(member, descriptor, ObjectKind::Lock, adopt)?;
        Ok(Self { handle })
    }

    /// Acquires the lock.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form: somebody has it), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`].
    pub fn acquire(&self, deadline: Deadline) -> Result<Acquired> {
        let Some(entry) = self.handle.local()? else {
            let [died, _] = self.handle.call(Op::LockAcquire, [0, 0], deadline)?;
            return Ok(Acquired {
                owner_died: died != 0,
            });
        };
        let (id, slot) = (self.handle.id(), self.handle.member().slot().index);
        alive(entry, id)?;
        if let Some(acquired) = try_acquire(word(entry), slot, 0) {
            return Ok(acquired);
        }
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        let thread = self.handle.member().thread()?;
        thread
            .intent
            .begin(Op::LockAcquire, id.index, id.generation, [0, 0]);
        let free = || word(entry).load(Ordering::Relaxed) & OWNER == 0 || !is_alive(entry, id);
        let words = self.handle.member().control().words();
        while self
            .handle
            .spin
            .until(words, &thread.intent, deadline, free)
        {
            alive(entry, id)?;
            if let Some(acquired) = try_acquire(word(entry), slot, 0) {
                return Ok(acquired);
            }
            if deadline.passed() {
                return Err(Error::Timeout);
            }
        }
        sleep_for(entry, id, slot, deadline)
    }

    /// Releases the lock. `any`: whoever holds it; otherwise this process must.
    ///
    /// # Errors
    /// [`Error::NotOwner`], [`Error::Destroyed`].
    pub fn release(&self, any: bool) -> Result<()> {
        match self.handle.local()? {
            Some(entry) => {
                let member = self.handle.member();
                release(member, entry, self.handle.id(), member.slot().index, any)
            }
            None => {
                let arguments = [any.into(), 0];
                self.handle
                    .call(Op::LockRelease, arguments, Deadline::Now)
                    .map(drop)
            }
        }
    }

    crate::object::common_methods!();
}

impl Drop for Lock {
    fn drop(&mut self) {
        let held = |entry| {
            word(entry).load(Ordering::Relaxed) & OWNER == self.handle.member().slot().index + 1
        };
        if self
            .handle
            .local()
            .is_ok_and(|entry| entry.is_some_and(held))
        {
            // The lock outlives the handle, as the process may still release it through another one; the reference stays, so
            // that recovery finds the lock when the process ends.
            self.handle.keep_reference();
        }
    }
}

/// One try. `waiters` is set in the word when others may sleep.
pub(crate) fn try_acquire(word: &AtomicU32, slot: u32, waiters: u32) -> Option<Acquired> {
    let mut seen = word.load(Ordering::Relaxed);
    while seen & OWNER == 0 {
        let mine = seen & (WAITERS | DESTROYED) | waiters | (slot + 1);
        // Acquire pairs with the Release of `release`: the last owner's writes are seen.
        match word.compare_exchange_weak(seen, mine, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {
                return Some(Acquired {
                    owner_died: seen & DIED != 0,
                });
            }
            Err(now) => seen = now,
        }
    }
    None
}

fn sleep_for(entry: &ObjectEntry, id: ObjectId, slot: u32, deadline: Deadline) -> Result<Acquired> {
    let word = word(entry);
    let ended = loop {
        alive(entry, id)?;
        if let Some(acquired) = try_acquire(word, slot, WAITERS) {
            return Ok(acquired);
        }
        let seen = word.load(Ordering::Relaxed);
        if seen & OWNER == 0 || seen & DESTROYED != 0 {
            continue;
        }
        let marked = seen | WAITERS;
        if seen != marked
            && word
                .compare_exchange(seen, marked, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            continue;
        }
        match futex_wait(word, marked, deadline) {
            WaitResult::Woken | WaitResult::Changed => {}
            WaitResult::TimedOut => break Error::Timeout,
            WaitResult::Interrupted => break Error::Interrupted,
        }
    };
    // This thread may have been woken before, and somebody else took the lock without knowing of those who still sleep.
    if word.fetch_or(WAITERS, Ordering::Relaxed) & OWNER == 0 {
        futex_wake(word, 1);
    }
    Err(ended)
}

pub(crate) fn release(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    slot: u32,
    any: bool,
) -> Result<()> {
    alive(entry, id)?;
    let word = word(entry);
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let owner = seen & OWNER;
        if owner == 0 || !any && owner != slot + 1 {
            return Err(Error::NotOwner(id));
        }
        // Release pairs with the Acquire of `try_acquire`.
        match word.compare_exchange_weak(
            seen,
            seen & DESTROYED,
            Ordering::Release,
            Ordering::Relaxed,
        ) {
            Ok(_) => break,
            Err(now) => seen = now,
        }
    }
    fence(Ordering::SeqCst);
    if seen & WAITERS != 0 {
        futex_wake(word, 1);
    }
    notify_watcher(member, entry, id);
    Ok(())
}

/// Hands on a lock whose owner died. True when it was the owner.
pub(crate) fn hand_on(entry: &ObjectEntry, slot: u32) -> bool {
    let handed = word(entry).fetch_update(Ordering::AcqRel, Ordering::Relaxed, |seen| {
        (seen & OWNER == slot + 1).then_some(seen & !OWNER | DIED)
    });
    handed.is_ok()
}

/// Makes all sleepers look again.
pub(crate) fn wake_everyone(entry: &ObjectEntry, alive: bool) {
    if !alive {
        // The word changes, so that nobody goes to sleep on what it was.
        word(entry).fetch_or(DESTROYED, Ordering::AcqRel);
    }
    futex_wake(word(entry), u32::MAX);
}

#[cfg(not(loom))]
fn futex_wait(word: &AtomicU32, seen: u32, deadline: Deadline) -> WaitResult {
    dragon_shmem::futex::wait(word, seen, deadline)
}

#[cfg(not(loom))]
fn futex_wake(word: &AtomicU32, count: u32) {
    dragon_shmem::futex::wake(word, count);
}

#[cfg(loom)]
fn futex_wait(_: &AtomicU32, _: u32, _: Deadline) -> WaitResult {
    unreachable!("models have no locks")
}

#[cfg(loom)]
fn futex_wake(_: &AtomicU32, _: u32) {}
