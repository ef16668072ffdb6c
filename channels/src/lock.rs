//! Locks that know their owner: when it dies, the next one gets the lock and is told so.
//!
//! The word is `waiters 1 bit | died 1 | destroyed 1 | owner's slot + 1, 20 bits`. It is a mutex after Drepper ("Futexes Are
//! Tricky", 2011): who cannot have the lock sets the waiters bit and sleeps; who was asleep takes the lock with the bit set,
//! since others may still sleep. The owner's slot stands in the word itself, so taking the lock and recording who has it is
//! one step. Recovery finds the lock through the dead process's reference to it.
//!
//! A recursive lock belongs to a thread. A second word, `thread 32 bits | depth 32`, is written by the owner alone: after it
//! took the lock, and before it gives it back. So whoever finds its own process in the first word and its own number in the
//! second is the owner.

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{AtomicU64, Ordering, high, low};
use dragon_shmem::{Deadline, Member, WaitResult};

use crate::error::{Error, Result};
use crate::object::{Handle, alive, is_alive, notify_watcher};
use crate::sleep::FutexWord;
use crate::wait::fence_after_rmw;

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

/// A handle on a lock of this or another node.
///
/// A plain lock belongs to the process that acquires it, not to the thread. Dropping a handle releases nothing: the process
/// holds the lock until it releases it through any handle, also one that it attaches later, or ends.
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
///
/// A recursive lock belongs to the thread, which may acquire it again and releases it as often.
///
/// ```
/// use dragon_channels::{Deadline, Error, Lock};
///
/// let lock = Lock::create_recursive(&dragon_channels::local::member()?, 0)?;
/// lock.acquire(Deadline::Never)?;
/// lock.acquire(Deadline::Never)?;
/// std::thread::scope(|scope| {
///     let other = || (lock.acquire(Deadline::Now), lock.release(false));
///     let (acquired, released) = scope.spawn(other).join().expect("it does not panic");
///     assert_eq!(acquired, Err(Error::Empty));
///     assert_eq!(released, Err(Error::NotOwner(lock.id())));
/// });
/// lock.release(false)?;
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

    /// Creates a lock on this node that its owner may acquire again. It belongs to a thread, not to the process.
    ///
    /// # Errors
    /// When a table is full.
    pub fn create_recursive(member: &Arc<Member>, user: u64) -> Result<Self> {
        let init = |entry: &ObjectEntry| entry.body[RECURSIVE].store(1, Ordering::Relaxed);
        let id = crate::object::create(member, ObjectKind::Lock, user, init)?;
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

    /// Acquires the lock; a recursive one that this thread has already, once more.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form: somebody has it), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`].
    pub fn acquire(&self, deadline: Deadline) -> Result<Acquired> {
        let Some(entry) = self.handle.local()? else {
            let arguments = [thread_number().into(), 0];
            let [died, _] = self.handle.call(Op::LockAcquire, arguments, deadline)?;
            return Ok(Acquired {
                owner_died: died != 0,
            });
        };
        let (id, words) = (self.handle.id(), words(entry));
        let slot = self.handle.member().slot().index;
        let who = words.caller(slot);
        alive(entry, id)?;
        if let Some(acquired) = words.try_acquire(who, 0) {
            return Ok(acquired);
        }
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        let thread = self.handle.member().thread()?;
        thread
            .intent
            .begin(Op::LockAcquire, id.index, id.generation, [0, 0]);
        let free = || words.is_free() || !is_alive(entry, id);
        let node = self.handle.member().control().words();
        while self.handle.spin.until(node, &thread.intent, deadline, free) {
            alive(entry, id)?;
            if let Some(acquired) = words.try_acquire(who, 0) {
                return Ok(acquired);
            }
            if deadline.passed() {
                return Err(Error::Timeout);
            }
        }
        words.sleep_for(who, deadline, || alive(entry, id))
    }

    /// Releases the lock. `any`: whoever holds it; otherwise this process must. A recursive lock must be held by this
    /// thread, whatever `any` says, and is free when it was released as often as acquired.
    ///
    /// # Errors
    /// [`Error::NotOwner`], [`Error::Destroyed`].
    pub fn release(&self, any: bool) -> Result<()> {
        match self.handle.local()? {
            Some(entry) => {
                let member = self.handle.member();
                let who = words(entry).caller(member.slot().index);
                release(member, entry, self.handle.id(), who, any)
            }
            None => {
                let arguments = [any.into(), thread_number().into()];
                self.handle
                    .call(Op::LockRelease, arguments, Deadline::Now)
                    .map(drop)
            }
        }
    }

    /// Releases the lock whatever its depth, which this returns: for a condition.
    pub(crate) fn give_up(&self) -> Result<u32> {
        let thread = thread_number();
        match self.handle.local()? {
            Some(entry) => {
                let member = self.handle.member();
                let slot = member.slot().index;
                give_up(member, entry, self.handle.id(), Who { slot, thread })
            }
            None => {
                let arguments = [WHOLLY, thread.into()];
                let called = self
                    .handle
                    .call(Op::LockRelease, arguments, Deadline::Now)?;
                Ok(low(called[0]))
            }
        }
    }

    /// Acquires the lock with the depth that it had, and lets no signal keep it from that; `on_signal` hears of each.
    pub(crate) fn take_again(&self, depth: u32, mut on_signal: impl FnMut()) -> Result<Acquired> {
        let thread = thread_number();
        let acquired = loop {
            match self.acquire(Deadline::Never) {
                Err(Error::Interrupted) => on_signal(),
                acquired => break acquired?,
            }
        };
        if depth > 1 {
            match self.handle.local()? {
                Some(entry) => {
                    let slot = self.handle.member().slot().index;
                    words(entry).set_depth(Who { slot, thread }, depth);
                }
                None => {
                    // It has the lock, so this only sets the depth.
                    let arguments = [thread.into(), depth.into()];
                    self.handle.call_surely(Op::LockAcquire, arguments)?;
                }
            }
        }
        Ok(acquired)
    }

    crate::object::common_methods!();
}

impl Drop for Lock {
    fn drop(&mut self) {
        let slot = self.handle.member().slot().index;
        match self.handle.local() {
            // The lock outlives the handle, as the process may still release it through another one; the reference stays, so
            // that recovery finds the lock when the process ends.
            Ok(Some(entry)) if words(entry).owner() == Some(slot) => self.handle.keep_reference(),
            // The lock's node knows.
            Ok(None) => self.handle.keep_if_held(),
            _ => {}
        }
    }
}

/// Body word that names the thread that holds a recursive lock, and how often.
const HOLDER: usize = 2;
/// Body word that is 1 in a recursive lock.
const RECURSIVE: usize = 3;

/// A thread as locks know it: its process's slot, and its number in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) slot: u32,
    pub(crate) thread: u32,
}

/// The calling thread's number, which no other thread of this process ever has. (The kernel's numbers are used again.)
#[cfg(not(loom))]
pub(crate) fn thread_number() -> u32 {
    use dragon_shmem::sync::AtomicU32;
    static NEXT: AtomicU32 = AtomicU32::new(1);
    thread_local!(static MINE: u32 = NEXT.fetch_add(1, Ordering::Relaxed));
    MINE.with(|mine| *mine)
}

#[cfg(loom)]
pub(crate) fn thread_number() -> u32 {
    0
}

/// Where a lock lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'a> {
    pub(crate) word: &'a FutexWord,
    pub(crate) holder: &'a AtomicU64,
    pub(crate) recursive: bool,
}

/// The words of a lock of this node.
pub(crate) fn words(entry: &ObjectEntry) -> Words<'_> {
    Words {
        // SAFETY: an AtomicU64 is as large and aligned as needed for the AtomicU32 in its lower half (little-endian
        // machines); after the object was published nobody uses the whole. (In a model it is larger; models have no entries.)
        word: unsafe { &*std::ptr::from_ref::<AtomicU64>(&entry.body[0]).cast::<FutexWord>() },
        holder: &entry.body[HOLDER],
        recursive: entry.body[RECURSIVE].load(Ordering::Relaxed) != 0,
    }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<FutexWord>() == 4);

impl Words<'_> {
    /// The calling thread, of the process with this slot. Only recursive locks are a thread's.
    fn caller(&self, slot: u32) -> Who {
        let thread = if self.recursive { thread_number() } else { 0 };
        Who { slot, thread }
    }

    fn is_free(&self) -> bool {
        self.word.word.load(Ordering::Relaxed) & OWNER == 0
    }

    /// The slot of the process that has the lock.
    pub(crate) fn owner(&self) -> Option<u32> {
        // Acquire, through the release sequence of whoever freed the lock before: the second word is at least as new.
        (self.word.word.load(Ordering::Acquire) & OWNER).checked_sub(1)
    }

    /// Whether the lock is this thread's; for a plain one, its process's.
    pub(crate) fn is_owner(&self, who: Who) -> bool {
        self.owner() == Some(who.slot)
            && (!self.recursive || high(self.holder.load(Ordering::Relaxed)) == who.thread)
    }

    /// One try. `waiters` is set in the word when others may sleep.
    pub(crate) fn try_acquire(&self, who: Who, waiters: u32) -> Option<Acquired> {
        let word = &self.word.word;
        let mut seen = word.load(Ordering::Relaxed);
        while seen & OWNER == 0 {
            let mine = seen & (WAITERS | DESTROYED) | waiters | (who.slot + 1);
            // Acquire pairs with the Release of `release`: the last owner's writes are seen.
            match word.compare_exchange_weak(seen, mine, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    if self.recursive {
                        self.set_depth(who, 1);
                    }
                    return Some(Acquired {
                        owner_died: seen & DIED != 0,
                    });
                }
                Err(now) => seen = now,
            }
        }
        if self.recursive && self.is_owner(who) {
            // A depth that does not fit is an acquisition that fails, as if another thread had the lock.
            let depth = low(self.holder.load(Ordering::Relaxed)).checked_add(1)?;
            self.set_depth(who, depth);
            return Some(Acquired { owner_died: false });
        }
        None
    }

    /// How often a recursive lock's owner, the caller, has acquired it.
    pub(crate) fn depth(&self) -> u32 {
        low(self.holder.load(Ordering::Relaxed))
    }

    /// Written by the owner alone.
    pub(crate) fn set_depth(&self, who: Who, depth: u32) {
        let holder = u64::from(who.thread) << 32 | u64::from(depth);
        self.holder.store(holder, Ordering::Relaxed);
    }

    /// Sleeps until the lock can be had; `alive` fails when it was destroyed.
    pub(crate) fn sleep_for(
        &self,
        who: Who,
        deadline: Deadline,
        alive: impl Fn() -> Result<()>,
    ) -> Result<Acquired> {
        let word = &self.word.word;
        let ended = loop {
            alive()?;
            if let Some(acquired) = self.try_acquire(who, WAITERS) {
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
            match self.word.sleep(marked, deadline) {
                WaitResult::Woken | WaitResult::Changed => {}
                WaitResult::TimedOut => break Error::Timeout,
                WaitResult::Interrupted => break Error::Interrupted,
            }
        };
        // This thread may have been woken before, and somebody else took the lock without knowing of those who still sleep.
        if word.fetch_or(WAITERS, Ordering::Relaxed) & OWNER == 0 {
            self.word.wake(1);
        }
        Err(ended)
    }

    /// Gives the lock back, and wakes one who sleeps for it. False: the caller does not hold it.
    pub(crate) fn release(&self, who: Who, any: bool) -> Released {
        if self.recursive {
            if !self.is_owner(who) {
                return Released::NotOwner;
            }
            match self.depth() {
                0 | 1 => self.holder.store(0, Ordering::Relaxed),
                depth => {
                    self.set_depth(who, depth - 1);
                    return Released::Kept;
                }
            }
        }
        let any = any && !self.recursive;
        let word = &self.word.word;
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let owner = seen & OWNER;
            if owner == 0 || !any && owner != who.slot + 1 {
                return Released::NotOwner;
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
        fence_after_rmw();
        if seen & WAITERS != 0 {
            self.word.wake(1);
        }
        Released::Freed
    }

    /// Hands on a lock whose owner died, however often it had acquired it. True when it was the owner.
    pub(crate) fn hand_on(&self, slot: u32) -> bool {
        if self.recursive && self.owner() == Some(slot) {
            // Nobody else writes it: only its thread could have released the lock.
            self.holder.store(0, Ordering::Relaxed);
        }
        let update = |seen: u32| (seen & OWNER == slot + 1).then_some(seen & !OWNER | DIED);
        self.word
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, update)
            .is_ok()
    }

    /// Makes all sleepers look again.
    pub(crate) fn wake_everyone(&self, alive: bool) {
        if !alive {
            // The word changes, so that nobody goes to sleep on what it was.
            self.word.word.fetch_or(DESTROYED, Ordering::AcqRel);
        }
        self.word.wake(u32::MAX);
    }
}

/// What came of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// The lock is free.
    Freed,
    /// It was acquired more often than released so far.
    Kept,
    /// The caller does not hold it.
    NotOwner,
}

pub(crate) fn release(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    who: Who,
    any: bool,
) -> Result<()> {
    alive(entry, id)?;
    match words(entry).release(who, any) {
        Released::Freed => notify_watcher(member, entry, id),
        Released::Kept => {}
        Released::NotOwner => return Err(Error::NotOwner(id)),
    }
    Ok(())
}

/// Argument 0 of a release that is for a recursive lock's whole depth.
pub(crate) const WHOLLY: u64 = 2;

/// Releases a lock whatever its depth, which this returns.
pub(crate) fn give_up(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    who: Who,
) -> Result<u32> {
    alive(entry, id)?;
    let words = words(entry);
    let depth = if words.recursive && words.is_owner(who) {
        let depth = words.depth();
        words.set_depth(who, 1);
        depth
    } else {
        1
    };
    release(member, entry, id, who, false)?;
    Ok(depth)
}

/// One try for a process of another node. `depth`: it has the lock already, and this is its depth.
pub(crate) fn try_acquire(entry: &ObjectEntry, who: Who, depth: u32) -> Option<Acquired> {
    let words = words(entry);
    if depth > 1 && words.recursive && words.is_owner(who) {
        words.set_depth(who, depth);
        return Some(Acquired { owner_died: false });
    }
    words.try_acquire(who, 0)
}

#[cfg(test)]
mod tests;
