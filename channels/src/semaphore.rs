//! Counting semaphores. Units have no owner: one process may take them and another give them, so a dead process's units are
//! not given back.

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{Ordering, fence, low};
use dragon_shmem::{Deadline, Member};

use crate::error::{Error, Result};
use crate::object::{Handle, alive, notify_watcher, wait_word, word};

/// A handle on a semaphore of this or another node.
///
/// ```
/// use dragon_channels::{Deadline, Error, Semaphore};
///
/// let places = Semaphore::create(&dragon_channels::local::member()?, 2, 2, 0)?;
/// places.acquire(Deadline::Never)?;
/// assert_eq!(places.value()?, 1);
/// places.release(1)?;
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
        if value > most || most == 0 {
            return Err(Error::InvalidArgument {
                what: "value of a semaphore",
                value: value.into(),
                least: 0,
                most: most.into(),
            });
        }
        let init = |entry: &ObjectEntry| {
            word(entry).store(value, Ordering::Relaxed);
            entry.body[MOST].store(most.into(), Ordering::Relaxed);
        };
        let id = crate::object::create(member, ObjectKind::Semaphore, user, init)?;
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
        let Some(entry) = self.handle.local()? else {
            return self
                .handle
                .call(Op::SemaphoreAcquire, [0, 0], deadline)
                .map(drop);
        };
        let id = self.handle.id();
        let take = || Ok(try_acquire(entry, id)?.then_some(()));
        let more = || word(entry).load(Ordering::Relaxed) != 0;
        self.handle
            .wait(entry, Op::SemaphoreAcquire, deadline, take, more)
    }

    /// Gives units back.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there would be more than the semaphore can have; [`Error::Destroyed`].
    pub fn release(&self, units: u32) -> Result<()> {
        match self.handle.local()? {
            Some(entry) => release(self.handle.member(), entry, self.handle.id(), units),
            None => self
                .handle
                .call(Op::SemaphoreRelease, [units.into(), 0], Deadline::Now)
                .map(drop),
        }
    }

    /// How many units there are.
    ///
    /// # Errors
    /// [`Error::Destroyed`], or what another node answers.
    pub fn value(&self) -> Result<u32> {
        match self.handle.local()? {
            Some(entry) => value(entry, self.handle.id()),
            None => Ok(low(self.handle.call(
                Op::SemaphoreValue,
                [0, 0],
                Deadline::Now,
            )?[0])),
        }
    }

    crate::object::common_methods!();
}

/// Body word that holds the most units.
const MOST: usize = 2;

/// One try.
pub(crate) fn try_acquire(entry: &ObjectEntry, id: ObjectId) -> Result<bool> {
    alive(entry, id)?;
    // Acquire pairs with the Release of `release`.
    let taken =
        word(entry).fetch_update(Ordering::Acquire, Ordering::Relaxed, |n| n.checked_sub(1));
    Ok(taken.is_ok())
}

pub(crate) fn release(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    units: u32,
) -> Result<()> {
    alive(entry, id)?;
    let most = low(entry.body[MOST].load(Ordering::Relaxed));
    let more = |n: u32| n.checked_add(units).filter(|n| *n <= most);
    word(entry)
        .fetch_update(Ordering::AcqRel, Ordering::Relaxed, more)
        .map_err(|value| Error::InvalidArgument {
            what: "units given to a semaphore",
            value: units.into(),
            least: 0,
            most: most.saturating_sub(value).into(),
        })?;
    fence(Ordering::SeqCst);
    wait_word(entry).wake_sleepers(units);
    notify_watcher(member, entry, id);
    Ok(())
}

pub(crate) fn value(entry: &ObjectEntry, id: ObjectId) -> Result<u32> {
    alive(entry, id)?;
    Ok(word(entry).load(Ordering::Acquire))
}
