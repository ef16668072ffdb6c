//! Counting semaphores: units that processes take and give.
//!
//! By default units have no owner: one process may take them and another give them, so a dead process's units are not given
//! back. Of a semaphore that is created as *owned*, only those who took units may give them, and what a dead process had is
//! given back by recovery.
//!
//! The word is `how often the value became 0, 32 bits | value 32`, so that a waiter for zero also notices a zero that was
//! over before it looked. Those who wait for units sleep on one wait word, those who wait for zero on another.

mod owned;

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Code, Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{AtomicU64, Ordering, fence, high, low};
use dragon_shmem::{Deadline, Member};

use self::owned::Owned;
use crate::error::{Error, Result, within};
use crate::object::{Handle, alive, notify_watcher, second_wait_word, wait_word};
use crate::wait::{WaitWord, fence_after_rmw, mark};

/// How a semaphore is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SemaphoreOptions {
    /// How many units it has.
    pub value: u32,
    /// How many units it never has more of.
    pub most: u32,
    /// Only who took units may give them, and recovery gives back what a dead process had. Such a semaphore has at most
    /// [`MOST_OWNED`] units.
    pub owned: bool,
    /// A number of the user's choice.
    pub user: u64,
}

impl Default for SemaphoreOptions {
    /// One unit, which has no owner.
    fn default() -> Self {
        Self {
            value: 1,
            most: u32::MAX,
            owned: false,
            user: 0,
        }
    }
}

pub use self::owned::MOST_OWNED;

/// A handle on a semaphore of this or another node.
///
/// ```
/// use dragon_channels::{Deadline, Error, Semaphore};
///
/// let places = Semaphore::create(&dragon_channels::local::member()?, 3, 3, 0)?;
/// places.acquire(Deadline::Never)?;
/// places.acquire_many(2, Deadline::Never)?;
/// places.wait_zero(Deadline::Never)?;
/// assert_eq!(places.acquire(Deadline::Now), Err(Error::Empty));
/// places.release(3)?;
/// assert_eq!(places.value()?, 3);
/// assert!(places.release(1).unwrap_err().to_string().contains("at most 3"));
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Semaphore {
    handle: Handle,
}

impl Semaphore {
    /// Creates a semaphore on this node with `value` units, that never has more than `most`.
    ///
    /// # Errors
    /// When `value` is more than `most`, or a table is full.
    pub fn create(member: &Arc<Member>, value: u32, most: u32, user: u64) -> Result<Self> {
        let options = SemaphoreOptions {
            value,
            most,
            user,
            ..SemaphoreOptions::default()
        };
        Self::with_options(member, &options)
    }

    /// Creates a semaphore on this node.
    ///
    /// ```
    /// use dragon_channels::{Deadline, Error, Semaphore, SemaphoreOptions};
    ///
    /// let options = SemaphoreOptions { value: 2, most: 2, owned: true, ..Default::default() };
    /// let places = Semaphore::with_options(&dragon_channels::local::member()?, &options)?;
    /// places.acquire(Deadline::Never)?;
    /// places.release(1)?;
    /// assert_eq!(places.release(1), Err(Error::NotOwner(places.id())));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// When an option is out of its range, a table is full, or there is no memory.
    pub fn with_options(member: &Arc<Member>, options: &SemaphoreOptions) -> Result<Self> {
        let SemaphoreOptions {
            value,
            most,
            owned,
            user,
        } = *options;
        let limit = if owned { MOST_OWNED } else { u32::MAX };
        within("most units of a semaphore", most, 1, limit)?;
        within("value of a semaphore", value, 0, most)?;
        let init = |entry: &ObjectEntry| {
            entry.body[VALUE].store(value.into(), Ordering::Relaxed);
            entry.body[MOST].store(most.into(), Ordering::Relaxed);
        };
        let id = if owned {
            let fill = |block| Owned::init(member, block, most);
            let kind = ObjectKind::Semaphore;
            crate::memory::create(member, kind, user, Owned::size(most), fill, init)?
        } else {
            crate::object::create(member, ObjectKind::Semaphore, user, init)?
        };
        let handle = Handle::created(member, id, user);
        Ok(Self { handle })
    }

    /// Attaches to the semaphore that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let handle = Handle::attach(member, descriptor, ObjectKind::Semaphore, adopt)?;
        Ok(Self { handle })
    }

    /// Takes one unit.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`].
    pub fn acquire(&self, deadline: Deadline) -> Result<()> {
        self.acquire_many(1, deadline)
    }

    /// Takes `units` at once, or none of them.
    ///
    /// # Errors
    /// As [`Semaphore::acquire`]; [`Error::InvalidArgument`] for 0 and for more than the semaphore can have.
    pub fn acquire_many(&self, units: u32, deadline: Deadline) -> Result<()> {
        let Some(entry) = self.handle.local()? else {
            return self
                .handle
                .call(Op::SemaphoreAcquire, [units.into(), 0], deadline)
                .map(drop);
        };
        let (member, id) = (self.handle.member(), self.handle.id());
        let slot = member.slot().index;
        let words = Words::open(member, entry, id)?;
        words.check(units)?;
        let take = || {
            alive(entry, id)?;
            Ok(take(member, entry, id, &words, slot, units)?.then_some(()))
        };
        if deadline != Deadline::Now && units > 1 {
            // SeqCst: before the caller counts itself among the waiters; see `release`.
            words.many.store(1, Ordering::SeqCst);
        }
        let more = || words.value() != 0;
        let (word, count) = (wait_word(entry), mark::FIRST);
        self.handle
            .wait_at(word, count, Op::SemaphoreAcquire, deadline, take, more)
    }

    /// Gives units back.
    ///
    /// # Errors
    /// [`Error::TooManyUnits`] when there would be more than the semaphore can have; [`Error::NotOwner`] when the semaphore
    /// is owned and this process did not take so many; [`Error::Destroyed`].
    pub fn release(&self, units: u32) -> Result<()> {
        let (member, id) = (self.handle.member(), self.handle.id());
        if let Some(entry) = self.handle.local()? {
            return release(member, entry, id, member.slot().index, units);
        }
        let called = self
            .handle
            .call(Op::SemaphoreRelease, [units.into(), 0], Deadline::Now);
        match called {
            Err(Error::Remote(Code::InvalidArgument, _)) => {
                let [value, most] = self
                    .handle
                    .call(Op::SemaphoreValue, [0, 0], Deadline::Now)?;
                Err(Error::TooManyUnits {
                    semaphore: id,
                    value: low(value),
                    most: low(most),
                    units,
                })
            }
            other => other.map(drop),
        }
    }

    /// How many units there are.
    ///
    /// # Errors
    /// [`Error::Destroyed`], or what another node answers.
    pub fn value(&self) -> Result<u32> {
        match self.handle.local()? {
            Some(entry) => Ok(value(self.handle.member(), entry, self.handle.id())?.0),
            None => Ok(low(self.handle.call(
                Op::SemaphoreValue,
                [0, 0],
                Deadline::Now,
            )?[0])),
        }
    }

    /// Waits until all units are taken. A zero that is over at once is noticed too, when it comes after the call.
    ///
    /// # Errors
    /// As [`Semaphore::acquire`].
    pub fn wait_zero(&self, deadline: Deadline) -> Result<()> {
        let Some(entry) = self.handle.local()? else {
            return self
                .handle
                .call(Op::SemaphoreWaitZero, [0, 0], deadline)
                .map(drop);
        };
        let id = self.handle.id();
        let words = Words::open(self.handle.member(), entry, id)?;
        let start = words.zeros();
        let happened = || {
            alive(entry, id)?;
            Ok((words.value() == 0 || words.zeros() != start).then_some(()))
        };
        let (word, count) = (second_wait_word(entry), mark::SECOND);
        // A zero is for all who wait, and all are woken: nothing is left to pass on.
        let none = || false;
        self.handle
            .wait_at(word, count, Op::SemaphoreWaitZero, deadline, happened, none)
    }

    crate::object::common_methods!();
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        let (member, id) = (self.handle.member(), self.handle.id());
        let slot = member.slot().index;
        match self.handle.local() {
            // As with a lock: another handle may still give the units, and recovery finds them through the reference.
            Ok(Some(entry)) if holds(member, entry, id, slot) => self.handle.keep_reference(),
            Ok(None) => self.handle.keep_if_held(),
            _ => {}
        }
    }
}

/// Whether a process has units that it owns.
pub(crate) fn holds(member: &Member, entry: &ObjectEntry, id: ObjectId, slot: u32) -> bool {
    Words::open(member, entry, id)
        .is_ok_and(|words| words.owned.is_some_and(|owned| owned.holds(slot)))
}

/// Body word that holds value and zeros.
const VALUE: usize = 0;
/// Body word that holds the most units.
const MOST: usize = 2;
/// Body word that is 1 when somebody has waited for several units at once.
const MANY: usize = 4;

/// Where a semaphore lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'a> {
    word: &'a AtomicU64,
    many: &'a AtomicU64,
    units: &'a WaitWord,
    zero: &'a WaitWord,
    most: u32,
    owned: Option<Owned<'a>>,
}

impl<'a> Words<'a> {
    fn open(member: &'a Member, entry: &'a ObjectEntry, id: ObjectId) -> Result<Self> {
        // Before the block is opened, so that the first error tells that the semaphore was destroyed.
        alive(entry, id)?;
        let word = &entry.body[VALUE];
        let most = low(entry.body[MOST].load(Ordering::Relaxed));
        let owned = match entry.block.load(Ordering::Acquire) {
            0 => None,
            block => Some(Owned::open(member, word, block, most)?),
        };
        Ok(Self {
            word,
            many: &entry.body[MANY],
            units: wait_word(entry),
            zero: second_wait_word(entry),
            most,
            owned,
        })
    }

    fn check(&self, units: u32) -> Result<()> {
        within("units of a semaphore", units, 1, self.most)
    }

    fn value(&self) -> u32 {
        let word = self.word.load(Ordering::Acquire);
        match self.owned {
            None => low(word),
            Some(_) => owned::value(word),
        }
    }

    fn zeros(&self) -> u32 {
        let word = self.word.load(Ordering::Acquire);
        match self.owned {
            None => high(word),
            Some(_) => owned::zeros(word),
        }
    }

    /// Takes units if they are there, and tells how many are left; wakes those who wait for zero when none are.
    fn try_acquire(&self, slot: u32, units: u32) -> Result<Option<u32>> {
        let left = match &self.owned {
            None => self.take(units),
            Some(owned) => owned.take(slot, units)?,
        };
        if left == Some(0) {
            self.fence();
            self.zero.wake_sleepers(u32::MAX);
        }
        Ok(left)
    }

    /// One try without owners; returns how many units are left.
    fn take(&self, units: u32) -> Option<u32> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let left = low(word).checked_sub(units)?;
            let zeros = high(word).wrapping_add(u32::from(left == 0));
            let to = u64::from(zeros) << 32 | u64::from(left);
            // Acquire pairs with the Release of `give`.
            match self
                .word
                .compare_exchange_weak(word, to, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return Some(left),
                Err(now) => word = now,
            }
        }
    }

    /// Gives units without owners. Fails with the value when there would be too many.
    fn give(&self, units: u32) -> Result<(), u32> {
        let more = |word: u64| {
            let value = low(word).checked_add(units).filter(|n| *n <= self.most)?;
            Some(u64::from(high(word)) << 32 | u64::from(value))
        };
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, more)
            .map(drop)
            .map_err(low)
    }

    /// Between a change and the look at the waiters, as for all changes.
    fn fence(&self) {
        match &self.owned {
            // `take` and `give` end with the change.
            None => fence_after_rmw(),
            Some(_) => fence(Ordering::SeqCst),
        }
    }

    /// Wakes those whom more units concern.
    fn wake(&self, units: u32) {
        self.fence();
        // One who waits for several units may be woken by one, and go to sleep again while another could have it: when there
        // are such, all look. The flag is set before its owner counts itself in, so who is counted is seen with its flag.
        let count = if self.many.load(Ordering::Relaxed) == 0 {
            units
        } else {
            u32::MAX
        };
        self.units.wake_sleepers(count);
    }
}

/// One try, for the process with this slot.
pub(crate) fn try_acquire(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    slot: u32,
    units: u32,
) -> Result<bool> {
    let words = Words::open(member, entry, id)?;
    words.check(units)?;
    take(member, entry, id, &words, slot, units)
}

fn take(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    words: &Words<'_>,
    slot: u32,
    units: u32,
) -> Result<bool> {
    let left = words.try_acquire(slot, units)?;
    if left == Some(0) {
        notify_watcher(member, entry, id);
    }
    Ok(left.is_some())
}

pub(crate) fn release(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    slot: u32,
    units: u32,
) -> Result<()> {
    let words = Words::open(member, entry, id)?;
    match &words.owned {
        None => words.give(units).map_err(|value| Error::TooManyUnits {
            semaphore: id,
            value,
            most: words.most,
            units,
        })?,
        Some(owned) if owned.give(slot, units)? => {}
        Some(_) => return Err(Error::NotOwner(id)),
    }
    words.wake(units);
    notify_watcher(member, entry, id);
    Ok(())
}

/// How many units there are, and can be.
pub(crate) fn value(member: &Member, entry: &ObjectEntry, id: ObjectId) -> Result<(u32, u32)> {
    let words = Words::open(member, entry, id)?;
    Ok((words.value(), words.most))
}

/// Whether there are no units, or there were none at some time since `start`, which is set at the first call.
pub(crate) fn is_zero(
    member: &Member,
    entry: &ObjectEntry,
    id: ObjectId,
    start: &mut Option<u32>,
) -> Result<bool> {
    let words = Words::open(member, entry, id)?;
    let zeros = words.zeros();
    Ok(words.value() == 0 || *start.get_or_insert(zeros) != zeros)
}

/// Gives the units of a dead process back, in case they have owners. How many.
pub(crate) fn recover(member: &Member, entry: &ObjectEntry, id: ObjectId, slot: u32) -> u32 {
    // It fails for a semaphore that was destroyed, which has no units any more, or was scribbled over.
    let Ok(words) = Words::open(member, entry, id) else {
        return 0;
    };
    words.owned.map_or(0, |owned| owned.recover(slot))
}

#[cfg(test)]
mod tests;
