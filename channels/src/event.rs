//! Events: a flag that processes wait for.
//!
//! The word is `how often it was set 31 bits | set 1 bit`, so that a waiter also notices an event that was set and cleared
//! again before it looked.

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{Ordering, fence};
use dragon_shmem::{Deadline, Member};

use crate::error::Result;
use crate::object::{Handle, alive, notify_watcher, wait_word, word};

/// A handle on an event of this or another node.
///
/// ```
/// use dragon_channels::{Deadline, Error, Event};
///
/// let event = Event::create(&dragon_channels::local::member()?, 0)?;
/// assert_eq!(event.wait(Deadline::Now), Err(Error::Empty));
/// event.set()?;
/// event.wait(Deadline::Never)?;
/// event.clear()?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Event {
    handle: Handle,
}

impl Event {
    /// Creates an event on this node, not set.
    ///
    /// # Errors
    /// When a table is full.
    pub fn create(member: &Arc<Member>, user: u64) -> Result<Self> {
        let id = crate::object::create(member, ObjectKind::Event, user, |_| {})?;
        let handle = Handle::created(member, id, user);
        Ok(Self { handle })
    }

    /// Attaches to the event that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let handle = Handle::attach(member, descriptor, ObjectKind::Event, adopt)?;
        Ok(Self { handle })
    }

    /// Sets the event: everyone who waits goes on.
    ///
    /// # Errors
    /// [`crate::Error::Destroyed`], or what another node answers.
    pub fn set(&self) -> Result<()> {
        match self.handle.local()? {
            Some(entry) => set(self.handle.member(), entry, self.handle.id()),
            None => self
                .handle
                .call(Op::EventSet, [0, 0], Deadline::Now)
                .map(drop),
        }
    }

    /// Clears the event.
    ///
    /// # Errors
    /// As [`Event::set`].
    pub fn clear(&self) -> Result<()> {
        match self.handle.local()? {
            Some(entry) => clear(entry, self.handle.id()),
            None => self
                .handle
                .call(Op::EventClear, [0, 0], Deadline::Now)
                .map(drop),
        }
    }

    /// Whether the event is set.
    ///
    /// # Errors
    /// As [`Event::set`].
    pub fn is_set(&self) -> Result<bool> {
        match self.handle.local()? {
            Some(entry) => is_set(entry, self.handle.id()),
            None => Ok(self.handle.call(Op::EventIsSet, [0, 0], Deadline::Now)?[0] != 0),
        }
    }

    /// Waits until the event is set.
    ///
    /// # Errors
    /// [`crate::Error::Empty`] (try form), [`crate::Error::Timeout`], [`crate::Error::Interrupted`],
    /// [`crate::Error::Destroyed`].
    pub fn wait(&self, deadline: Deadline) -> Result<()> {
        let Some(entry) = self.handle.local()? else {
            return self.handle.call(Op::EventWait, [0, 0], deadline).map(drop);
        };
        let id = self.handle.id();
        let start = Some(word(entry).load(Ordering::Acquire) >> 1);
        let happened = || Ok(has_happened(entry, id, &mut { start })?.then_some(()));
        // An event is for all who wait, and `set` wakes them all: nothing is left to pass on.
        self.handle
            .wait(entry, Op::EventWait, deadline, happened, || false)
    }

    crate::object::common_methods!();
}

pub(crate) fn set(member: &Arc<Member>, entry: &ObjectEntry, id: ObjectId) -> Result<()> {
    alive(entry, id)?;
    let once_more = |now: u32| (now & 1 == 0).then(|| (now | 1).wrapping_add(2));
    // Release pairs with the Acquire of who waits: it sees what was done before.
    if word(entry)
        .fetch_update(Ordering::AcqRel, Ordering::Relaxed, once_more)
        .is_ok()
    {
        fence(Ordering::SeqCst);
        wait_word(entry).wake_sleepers(u32::MAX);
        notify_watcher(member, entry, id);
    }
    Ok(())
}

pub(crate) fn clear(entry: &ObjectEntry, id: ObjectId) -> Result<()> {
    alive(entry, id)?;
    word(entry).fetch_and(!1, Ordering::AcqRel);
    Ok(())
}

/// Whether the event is set, or was at some time since `start`, which is set at the first call.
pub(crate) fn has_happened(
    entry: &ObjectEntry,
    id: ObjectId,
    start: &mut Option<u32>,
) -> Result<bool> {
    alive(entry, id)?;
    // Acquire pairs with the Release of `set`.
    let now = word(entry).load(Ordering::Acquire);
    Ok(now & 1 != 0 || *start.get_or_insert(now >> 1) != now >> 1)
}

pub(crate) fn is_set(entry: &ObjectEntry, id: ObjectId) -> Result<bool> {
    alive(entry, id)?;
    Ok(word(entry).load(Ordering::Acquire) & 1 != 0)
}
