//! Conditions: who holds a lock waits for something that others bring about under the same lock.
//!
//! A waiter takes a seat while it still holds the lock, and gives the lock up only then. So whoever notifies under the lock
//! sees it, and between giving up and waiting there is nothing to be lost. A notification is written into the seat of the one
//! who waits longest; it is that waiter's, awake or asleep. The seat is left only when the waiter has the lock again: if it
//! dies before that, recovery passes its notification on to the next.

use std::cell::Cell;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{Ordering, low};
use dragon_shmem::{Deadline, Member};

use crate::error::{Error, Result, within};
use crate::lock::{Acquired, Lock};
use crate::memory;
use crate::object::{Handle, alive, notify_watcher};
use crate::seat::{ALL, Look, MOST_SEATS, Seats};

/// How a condition is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConditionOptions {
    /// How many threads can wait at once.
    pub waiters: u32,
    /// A number of the user's choice.
    pub user: u64,
}

impl Default for ConditionOptions {
    /// 1024 waiters.
    fn default() -> Self {
        Self {
            waiters: 1024,
            user: 0,
        }
    }
}

/// A handle on a condition of this or another node.
///
/// ```
/// use dragon_channels::{Condition, ConditionOptions, Deadline, Error, Lock};
/// use std::sync::atomic::{AtomicBool, Ordering};
///
/// let member = dragon_channels::local::member()?;
/// let (lock, ready) = (Lock::create(&member, 0)?, AtomicBool::new(false));
/// let condition = Condition::create(&member, &ConditionOptions::default())?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| -> Result<(), Error> {
///         lock.acquire(Deadline::Never)?;
///         ready.store(true, Ordering::Relaxed);
///         condition.notify_one()?;
///         lock.release(false)
///     });
///     lock.acquire(Deadline::Never)?;
///     while !ready.load(Ordering::Relaxed) {
///         condition.wait(&lock, Deadline::Never)?;
///     }
///     lock.release(false)
/// })?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Condition {
    handle: Handle,
}

impl Condition {
    /// Creates a condition on this node.
    ///
    /// # Errors
    /// When an option is out of its range, a table is full, or there is no memory.
    pub fn create(member: &Arc<Member>, options: &ConditionOptions) -> Result<Self> {
        let ConditionOptions { waiters, user } = *options;
        within("waiters of a condition", waiters, 1, MOST_SEATS)?;
        let size = Seats::size(waiters);
        let fill = |block| memory::zero(member, block, size);
        let init = |entry: &ObjectEntry| {
            entry.body[WAITERS].store(waiters.into(), Ordering::Relaxed);
        };
        let id = memory::create(member, ObjectKind::Condition, user, size, fill, init)?;
        let handle = Handle::created(member, id, user);
        Ok(Self { handle })
    }

    /// Attaches to the condition that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let handle = Handle::attach(member, descriptor, ObjectKind::Condition, adopt)?;
        Ok(Self { handle })
    }

    /// Gives the lock up, waits for a notification, and takes the lock again: also when it fails. A recursive lock is given
    /// up whatever its depth, and has it again afterwards. The lock may lie on another node than the condition.
    ///
    /// Success tells whether the lock's last owner died while it held it. So that this is not lost, a wait whose time is up
    /// succeeds, too, where that is so: as always, the caller looks whether what it waits for is there, and waits again.
    ///
    /// # Errors
    /// [`Error::NotOwner`] when the caller does not hold the lock; [`Error::Empty`] (try form), [`Error::Timeout`],
    /// [`Error::Interrupted`], [`Error::Destroyed`]; what taking the lock again fails with: then the caller does not have it.
    pub fn wait(&self, lock: &Lock, deadline: Deadline) -> Result<Acquired> {
        let mut taken = None;
        let woken = self.wait_with(lock, deadline, None, &mut taken);
        match (&woken, taken) {
            (Err(Error::Timeout | Error::Empty), Some(acquired)) if acquired.owner_died => {
                Ok(acquired)
            }
            _ => woken,
        }
    }

    /// As [`Condition::wait`], but a signal alone does not end the wait: `on_signal` is called in the middle of it and says
    /// whether it goes on. The seat is kept meanwhile, so a notification that comes while `on_signal` runs is not missed; one
    /// that comes to a wait that `on_signal` ends goes to the next who waits.
    ///
    /// Signals that come while the lock is taken again are told to `on_signal` at once; a wait that it ends then fails as soon
    /// as it has the lock.
    ///
    /// `taken` is how the lock was taken again, whatever came of the wait; `None`: the caller does not have it.
    ///
    /// # Errors
    /// As [`Condition::wait`]; [`Error::Interrupted`] when `on_signal` says so.
    pub fn wait_through_signals(
        &self,
        lock: &Lock,
        deadline: Deadline,
        mut on_signal: impl FnMut() -> bool,
        taken: &mut Option<Acquired>,
    ) -> Result<Acquired> {
        self.wait_with(lock, deadline, Some(&mut on_signal), taken)
    }

    fn wait_with(
        &self,
        lock: &Lock,
        deadline: Deadline,
        mut on_signal: Option<&mut dyn FnMut() -> bool>,
        taken: &mut Option<Acquired>,
    ) -> Result<Acquired> {
        *taken = None;
        // Whether somebody who hears of signals has ended the wait: then it takes no notification.
        let stopped = Cell::new(false);
        let mut hear = || {
            let goes_on = on_signal.as_mut().map(|on_signal| on_signal());
            stopped.set(stopped.get() || goes_on == Some(false));
            goes_on.unwrap_or(false)
        };
        let (seat, depth) = loop {
            match self.begin(lock) {
                Err(Error::Interrupted) if hear() => {}
                Ok(begun) => break begun,
                Err(error) => {
                    // The lock was not given up.
                    let owner_died = false;
                    let has_it = !matches!(error, Error::NotOwner(_));
                    *taken = has_it.then_some(Acquired { owner_died });
                    return Err(error);
                }
            }
        };
        let mut woken = loop {
            match self.wait_in(seat, deadline) {
                Err(Error::Interrupted) if hear() => {}
                woken => break woken,
            }
        };
        // Whoever gives up may be notified at this very moment. Where there is no condition any more, nobody is.
        if woken.is_err() && self.leave(seat, stopped.get()).unwrap_or(false) {
            woken = Ok(());
        }
        let acquired = lock.take_again(depth, || {
            hear();
        });
        *taken = acquired.as_ref().ok().copied();
        if woken.is_ok() {
            // With the lock, and not before: a waiter that dies on its way to it has passed its notification on.
            self.stand(seat, stopped.get() || acquired.is_err())?;
        }
        let acquired = acquired?;
        if stopped.get() {
            return Err(Error::Interrupted);
        }
        woken.map(|()| acquired)
    }

    /// Wakes the one who waits longest, if anybody does; how many were woken.
    ///
    /// # Errors
    /// [`Error::Destroyed`], or what another node answers.
    pub fn notify_one(&self) -> Result<u32> {
        self.notify(1)
    }

    /// Wakes all who wait; how many.
    ///
    /// # Errors
    /// As [`Condition::notify_one`].
    pub fn notify_all(&self) -> Result<u32> {
        self.notify(ALL)
    }

    /// Wakes up to `count` of those who wait, the longest first; how many.
    ///
    /// # Errors
    /// As [`Condition::notify_one`].
    pub fn notify(&self, count: u32) -> Result<u32> {
        match self.handle.local()? {
            Some(entry) => notify(self.handle.member(), entry, self.handle.id(), count),
            None => {
                let arguments = [count.into(), 0];
                let called = self
                    .handle
                    .call(Op::ConditionNotify, arguments, Deadline::Now)?;
                Ok(low(called[0]))
            }
        }
    }

    /// How many wait at this moment.
    ///
    /// # Errors
    /// As [`Condition::notify_one`].
    pub fn waiting(&self) -> Result<u32> {
        let (member, id) = (self.handle.member(), self.handle.id());
        match self.handle.local()? {
            Some(entry) => Ok(attributes(member, entry, id)?.0),
            None => {
                let called = self.handle.call(Op::Attributes, [0, 0], Deadline::Now)?;
                Ok(low(called[0]))
            }
        }
    }

    /// Takes a seat, and gives the lock up; the lock's depth.
    fn begin(&self, lock: &Lock) -> Result<(u32, u32)> {
        let seat = self.sit()?;
        match lock.give_up() {
            Ok(depth) => Ok((seat, depth)),
            Err(error) => {
                // The first error is the one that says how things stand.
                let _ = self.stand(seat, true);
                Err(error)
            }
        }
    }

    fn sit(&self) -> Result<u32> {
        let member = self.handle.member();
        match self.handle.local()? {
            Some(entry) => sit(member, entry, self.handle.id(), member.slot().index),
            None => {
                let called = self
                    .handle
                    .call(Op::ConditionWait, [phase::SIT, 0], Deadline::Now)?;
                Ok(low(called[0]))
            }
        }
    }

    /// Waits in a seat, which is kept, whatever comes of it.
    fn wait_in(&self, seat: u32, deadline: Deadline) -> Result<()> {
        let member = self.handle.member();
        let Some(entry) = self.handle.local()? else {
            let arguments = [phase::WAIT, seat.into()];
            return self
                .handle
                .call(Op::ConditionWait, arguments, deadline)
                .map(drop);
        };
        let (id, seats) = (self.handle.id(), seats(member, entry)?);
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        // Its intent has recovery wake what it may have kept awake others from; the seat itself speaks for the rest.
        let thread = member.thread()?;
        let (index, generation) = (id.index, id.generation);
        thread
            .intent
            .begin(Op::ConditionWait, index, generation, [0, 0]);
        let woken = || !matches!(seats.look(seat), Ok(Look::Waiting));
        let words = member.control().words();
        self.handle
            .spin
            .until(words, &thread.intent, deadline, woken);
        seats
            .wait_and_stay(seat, deadline, || alive(entry, id))
            .map(drop)
    }

    /// Gives a seat up, unless a notification is in it and is not to be passed on: then that is the answer, and the seat is
    /// kept.
    fn leave(&self, seat: u32, pass_on: bool) -> Result<bool> {
        if pass_on {
            return self.stand(seat, true).map(|()| false);
        }
        match self.handle.local()? {
            Some(entry) => withdraw(self.handle.member(), entry, seat),
            None => {
                let arguments = [phase::WITHDRAW, seat.into()];
                let [_, given] = self.handle.call_surely(Op::ConditionWait, arguments)?;
                Ok(given == phase::GIVEN)
            }
        }
    }

    /// Leaves a seat. `pass_on`: a notification in it goes to the next.
    fn stand(&self, seat: u32, pass_on: bool) -> Result<()> {
        let member = self.handle.member();
        match self.handle.local()? {
            Some(entry) => stand(member, entry, self.handle.id(), seat, pass_on),
            None => {
                let what = if pass_on {
                    phase::PASS_ON
                } else {
                    phase::STAND
                };
                let arguments = [what, seat.into()];
                self.handle
                    .call_surely(Op::ConditionWait, arguments)
                    .map(drop)
            }
        }
    }

    crate::object::common_methods!();
}

/// What a request to wait for a condition asks for: its argument 0. Argument 1 is the seat.
pub(crate) mod phase {
    /// The second result of a request that got a seat, which is the first one.
    pub(crate) const SEATED: u64 = 1;
    /// The second result of a request to leave a seat, the first one, in which a notification was: it is kept.
    pub(crate) const GIVEN: u64 = 2;

    /// A seat.
    pub(crate) const SIT: u64 = 0;
    /// To be woken in it. When that does not come, the seat is kept.
    pub(crate) const WAIT: u64 = 1;
    /// To leave it.
    pub(crate) const STAND: u64 = 2;
    /// To leave it, and to have a notification passed on.
    pub(crate) const PASS_ON: u64 = 3;
    /// To leave it, unless a notification is in it.
    pub(crate) const WITHDRAW: u64 = 4;
}

/// Body word that holds the number of seats.
const WAITERS: usize = 2;
/// The note of a notification that was for one, or some: when its waiter dies it is for another.
const ONE: u8 = 1;
/// The note of one that was for all.
const EVERYONE: u8 = 0;

fn seats<'a>(member: &'a Member, entry: &ObjectEntry) -> Result<Seats<'a>> {
    let waiters = low(entry.body[WAITERS].load(Ordering::Relaxed)).min(MOST_SEATS);
    let block = entry.block.load(Ordering::Acquire);
    let map = memory::map(member, block, Seats::size(waiters))?;
    Seats::open(&map, 0, waiters)
}

/// Does what a process of another node asks; `None`: nobody has woken it.
pub(crate) fn try_wait(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    slot: u32,
    [what, seat]: [u64; 2],
) -> Result<Option<[u64; 2]>> {
    if what == phase::SIT {
        let seat = sit(member, entry, id, slot)?;
        return Ok(Some([seat.into(), phase::SEATED]));
    }
    let seat = low(seat);
    if !seats(member, entry)?.is_of(seat, slot)? {
        return Err(Error::NotOwner(id));
    }
    match what {
        phase::WAIT => Ok(is_woken(member, entry, id, seat)?.then_some([0, 0])),
        phase::WITHDRAW if withdraw(member, entry, seat)? => Ok(Some([seat.into(), phase::GIVEN])),
        phase::WITHDRAW => Ok(Some([0, 0])),
        _ => {
            stand(member, entry, id, seat, what == phase::PASS_ON)?;
            Ok(Some([0, 0]))
        }
    }
}

/// Takes a seat.
fn sit(member: &Member, entry: &ObjectEntry, id: ObjectId, slot: u32) -> Result<u32> {
    alive(entry, id)?;
    seats(member, entry)?.sit(slot)
}

/// Whether the one in a seat was woken.
fn is_woken(member: &Member, entry: &ObjectEntry, id: ObjectId, seat: u32) -> Result<bool> {
    alive(entry, id)?;
    Ok(matches!(seats(member, entry)?.look(seat)?, Look::Given(_)))
}

/// Gives a seat up; true when its owner has just been woken, and has it still.
fn withdraw(member: &Member, entry: &ObjectEntry, seat: u32) -> Result<bool> {
    Ok(seats(member, entry)?.withdraw(seat)?.is_some())
}

/// Leaves a seat; see [`Condition::wait`].
fn stand(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    seat: u32,
    pass_on: bool,
) -> Result<()> {
    let seats = seats(member, entry)?;
    let note = seats.withdraw(seat)?;
    if note.is_some() {
        seats.stand(seat)?;
    }
    if pass_on && note == Some(ONE) && seats.give(seats.limit(), 1, ONE, |_| {}) != 0 {
        notify_watcher(member, entry, id);
    }
    Ok(())
}

pub(crate) fn notify(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    count: u32,
) -> Result<u32> {
    alive(entry, id)?;
    let seats = seats(member, entry)?;
    let note = if count == ALL { EVERYONE } else { ONE };
    let woken = seats.give(seats.limit(), count, note, |_| {});
    if woken != 0 {
        notify_watcher(member, entry, id);
    }
    Ok(woken)
}

/// How many wait, and can wait.
pub(crate) fn attributes(member: &Member, entry: &ObjectEntry, id: ObjectId) -> Result<(u32, u32)> {
    alive(entry, id)?;
    let seats = seats(member, entry)?;
    let most = u32::try_from(seats.seats.len()).unwrap_or(u32::MAX);
    Ok((seats.waiting(), most))
}

/// Frees the seats of a dead process, and passes on the notifications that it had taken.
pub(crate) fn recover(member: &Arc<Member>, entry: &ObjectEntry, slot: u32) {
    // It fails on memory that was scribbled over.
    let Ok(seats) = seats(member, entry) else {
        return;
    };
    let mut left = 0;
    seats.recover(slot, |note| left += u32::from(note == ONE));
    seats.give(seats.limit(), left, ONE, |_| {});
}

/// Ends all waits.
pub(crate) fn end(member: &Member, entry: &ObjectEntry) -> Result<()> {
    seats(member, entry)?.end();
    Ok(())
}

#[cfg(test)]
mod tests;
