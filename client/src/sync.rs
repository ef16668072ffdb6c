//! What processes of any nodes use to wait for each other.

use std::sync::Arc;

use dragon_channels as channels;
use dragon_channels::{
    Acquired, BarrierState, BroadcastOptions, ConditionOptions, Passed, SemaphoreOptions, Trigger,
    Turn,
};
use dragon_protocol::Descriptor;
use dragon_shmem::{Deadline, Member};

use crate::error::Result;
use crate::handle::{Handle, Object};
use crate::objects::{Message, common, destroy};
use crate::session::Session;

destroy!(Lock, Event, Semaphore, Barrier, Condition, Broadcast);
common!(Lock, channels::Lock, "lock");
common!(Event, channels::Event, "event");
common!(Semaphore, channels::Semaphore, "semaphore");
common!(Barrier, channels::Barrier, "barrier");
common!(Condition, channels::Condition, "condition");
common!(Broadcast, channels::Broadcast, "broadcast");

/// A lock among processes of any node. It belongs to the process that acquired it, not to the thread; a recursive one
/// belongs to the thread.
///
/// ```no_run
/// use dragon::{Deadline, Lock};
///
/// let lock = Lock::create(0)?;
/// if lock.acquire(Deadline::Never)?.owner_died {
///     eprintln!("the last owner died half-way");
/// }
/// lock.release(false)?;
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Lock(Handle<channels::Lock>);

impl Lock {
    /// Makes a lock on this node, held by nobody. `user`: a number of the caller's choice, carried in descriptors.
    ///
    /// # Errors
    /// When a table is full.
    pub fn create(user: u64) -> Result<Self> {
        Handle::create(|member| Ok(channels::Lock::create(member, user)?)).map(Self)
    }

    /// Makes a lock on this node that belongs to the thread that acquires it, which may acquire it again and releases it
    /// as often. When its owner dies it becomes free whatever its depth.
    ///
    /// ```no_run
    /// use dragon::{Deadline, Lock};
    ///
    /// let lock = Lock::create_recursive(0)?;
    /// lock.acquire(Deadline::Never)?;
    /// lock.acquire(Deadline::Now)?;
    /// lock.release(false)?;
    /// lock.release(false)?;
    /// # Ok::<(), dragon::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a table is full.
    pub fn create_recursive(user: u64) -> Result<Self> {
        Handle::create(|member| Ok(channels::Lock::create_recursive(member, user)?)).map(Self)
    }

    /// Acquires the lock, a recursive one that this thread has already once more; tells whether its last owner died while
    /// it held it.
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Empty`](crate::Code::Empty) when it did
    /// not become free in time; [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    #[inline]
    pub fn acquire(&self, deadline: Deadline) -> Result<Acquired> {
        Ok(self.0.get()?.acquire(deadline)?)
    }

    /// Releases the lock. `any`: whichever process holds it; a recursive lock is released by the thread that holds it and
    /// by nobody else.
    ///
    /// # Errors
    /// [`Code::NotOwner`](crate::Code::NotOwner) when nobody holds it, or without `any` another process does, or of a
    /// recursive one another thread.
    #[inline]
    pub fn release(&self, any: bool) -> Result<()> {
        Ok(self.0.get()?.release(any)?)
    }
}

/// A flag that processes wait for.
///
/// ```no_run
/// use dragon::{Deadline, Event};
///
/// let event = Event::create(0)?;
/// event.set()?;
/// event.wait(Deadline::Never)?;
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Event(Handle<channels::Event>);

impl Event {
    /// Makes an event on this node, not set.
    ///
    /// # Errors
    /// When a table is full.
    pub fn create(user: u64) -> Result<Self> {
        Handle::create(|member| Ok(channels::Event::create(member, user)?)).map(Self)
    }

    /// Sets it: all who wait go on.
    ///
    /// # Errors
    /// When it was destroyed, or its node is down.
    pub fn set(&self) -> Result<()> {
        Ok(self.0.get()?.set()?)
    }

    /// Clears it.
    ///
    /// # Errors
    /// As [`Event::set`].
    pub fn clear(&self) -> Result<()> {
        Ok(self.0.get()?.clear()?)
    }

    /// Whether it is set.
    ///
    /// # Errors
    /// As [`Event::set`].
    pub fn is_set(&self) -> Result<bool> {
        Ok(self.0.get()?.is_set()?)
    }

    /// Waits until it is set.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn wait(&self, deadline: Deadline) -> Result<()> {
        Ok(self.0.get()?.wait(deadline)?)
    }
}

/// A counting semaphore: units that processes take and give.
///
/// Units have no owner: one process may take them and another give them, and those of a process that dies are gone. Of a
/// semaphore that was made [*owned*](Semaphore::with_options) only those who took units may give them, and what a dead process
/// had is given back.
///
/// ```no_run
/// use dragon::{Deadline, Semaphore};
///
/// let places = Semaphore::create(3, 3, 0)?;
/// places.acquire(Deadline::Never)?;
/// places.acquire_many(2, Deadline::Never)?;
/// places.wait_zero(Deadline::Never)?;
/// places.release(3)?;
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Semaphore(Handle<channels::Semaphore>);

impl Semaphore {
    /// Makes a semaphore on this node with `value` units, that never has more than `max`.
    ///
    /// # Errors
    /// When `value` is more than `max`, or a table is full.
    pub fn create(value: u32, max: u32, user: u64) -> Result<Self> {
        Handle::create(|member| Ok(channels::Semaphore::create(member, value, max, user)?))
            .map(Self)
    }

    /// Makes a semaphore on this node, as the options say.
    ///
    /// ```no_run
    /// use dragon::{Code, Deadline, Semaphore, SemaphoreOptions};
    ///
    /// let options = SemaphoreOptions { value: 2, most: 2, owned: true, user: 0 };
    /// let licences = Semaphore::with_options(&options)?;
    /// licences.acquire(Deadline::Never)?;
    /// licences.release(1)?;
    /// assert_eq!(licences.release(1).unwrap_err().code(), Code::NotOwner);
    /// # Ok::<(), dragon::Error>(())
    /// ```
    ///
    /// # Errors
    /// When an option is out of range, or the pool or a table is full.
    pub fn with_options(options: &SemaphoreOptions) -> Result<Self> {
        Handle::create(|member| Ok(channels::Semaphore::with_options(member, options)?)).map(Self)
    }

    /// Takes one unit.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn acquire(&self, deadline: Deadline) -> Result<()> {
        Ok(self.0.get()?.acquire(deadline)?)
    }

    /// Takes `units` at once, or none of them.
    ///
    /// # Errors
    /// As [`Lock::acquire`]; [`Code::InvalidArgument`](crate::Code::InvalidArgument) for 0 and for more than the semaphore can
    /// have.
    pub fn acquire_many(&self, units: u32, deadline: Deadline) -> Result<()> {
        Ok(self.0.get()?.acquire_many(units, deadline)?)
    }

    /// Waits until all units are taken. A zero that is over at once is noticed too, when it comes after the call.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn wait_zero(&self, deadline: Deadline) -> Result<()> {
        Ok(self.0.get()?.wait_zero(deadline)?)
    }

    /// Gives `count` units.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument) when there would be more than it can have;
    /// [`Code::NotOwner`](crate::Code::NotOwner) when it is owned and this process has not taken so many.
    pub fn release(&self, count: u32) -> Result<()> {
        Ok(self.0.get()?.release(count)?)
    }

    /// How many units there are.
    ///
    /// # Errors
    /// When it was destroyed, or its node is down.
    pub fn value(&self) -> Result<u32> {
        Ok(self.0.get()?.value()?)
    }
}

/// A barrier: a fixed number of parties, threads of processes of any nodes, wait for each other, again and again.
///
/// A party that gives up or dies breaks the barrier: the others get [`Code::Broken`](crate::Code::Broken), with a text that
/// says why, until somebody resets it.
///
/// ```no_run
/// use dragon::{Barrier, Code, Deadline};
///
/// let barrier = Barrier::create(4, 0)?;
/// match barrier.wait(Deadline::after(60_000_000_000)) {
///     Ok(0) => println!("all are here, and this party is the one to tell"),
///     Ok(_) => {}
///     Err(error) if error.code() == Code::Broken => {
///         eprintln!("{error}");
///         barrier.reset()?;
///     }
///     Err(error) => return Err(error),
/// }
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Barrier(Handle<channels::Barrier>);

impl Barrier {
    /// Makes a barrier on this node for so many parties.
    ///
    /// # Errors
    /// When there are none or too many parties, or the pool or a table is full.
    pub fn create(parties: u32, user: u64) -> Result<Self> {
        Handle::create(|member| Ok(channels::Barrier::create(member, parties, user)?)).map(Self)
    }

    /// Arrives, and waits until all parties are there. Each gets another number from 0 on.
    ///
    /// # Errors
    /// [`Code::Broken`](crate::Code::Broken). [`Code::Timeout`](crate::Code::Timeout): this party's time was up, which has
    /// broken the barrier for the others. Without any effect: [`Code::Empty`](crate::Code::Empty) for [`Deadline::Now`] when
    /// others are missing, and [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    pub fn wait(&self, deadline: Deadline) -> Result<u32> {
        Ok(self.0.get()?.wait(deadline)?)
    }

    /// As [`Barrier::create`], of a barrier at which one party acts before all go on.
    ///
    /// # Errors
    /// As [`Barrier::create`].
    pub fn create_with_action(parties: u32, user: u64) -> Result<Self> {
        Handle::create(|member| {
            Ok(channels::Barrier::create_with_action(
                member, parties, user,
            )?)
        })
        .map(Self)
    }

    /// As [`Barrier::wait`], but a signal alone does not end the wait: `on_signal` is called in the middle of it and says
    /// whether it goes on.
    ///
    /// Of a barrier with an action, one party comes back before the others, with a [`Turn`]: the others go on when it says
    /// that it has [acted](Barrier::acted), or get [`Code::Broken`](crate::Code::Broken) when it dies before. The deadline is
    /// for the others to come, and not for the action.
    ///
    /// # Errors
    /// As [`Barrier::wait`]; [`Code::Interrupted`](crate::Code::Interrupted) when `on_signal` says so.
    pub fn wait_through_signals(
        &self,
        deadline: Deadline,
        on_signal: impl FnMut() -> bool,
    ) -> Result<Passed> {
        Ok(self.0.get()?.wait_through_signals(deadline, on_signal)?)
    }

    /// Says that the party whose turn it was has acted: all go on; or that it failed: the barrier is broken for all.
    ///
    /// # Errors
    /// [`Code::Broken`](crate::Code::Broken) when it was broken while the party acted;
    /// [`Code::NotOwner`](crate::Code::NotOwner) when it was not this process's turn.
    pub fn acted(&self, turn: Turn, done: bool) -> Result<()> {
        Ok(self.0.get()?.acted(turn, done)?)
    }

    /// Breaks the barrier for all who wait, and all who come, until it is reset.
    ///
    /// # Errors
    /// When it was destroyed, or its node is down.
    pub fn abort(&self) -> Result<()> {
        Ok(self.0.get()?.abort()?)
    }

    /// Makes the barrier whole again. Who waits at this moment gets [`Code::Broken`](crate::Code::Broken).
    ///
    /// # Errors
    /// As [`Barrier::abort`].
    pub fn reset(&self) -> Result<()> {
        Ok(self.0.get()?.reset()?)
    }

    /// How many parties it is for, how many wait, and why it is broken if it is.
    ///
    /// # Errors
    /// As [`Barrier::abort`].
    pub fn state(&self) -> Result<BarrierState> {
        Ok(self.0.get()?.state()?)
    }
}

/// A condition: who holds a lock waits for something that others bring about under the same lock.
///
/// ```no_run
/// use dragon::{Condition, ConditionOptions, Deadline, Lock};
///
/// # fn work_is_there() -> bool { true }
/// let lock = Lock::create(0)?;
/// let condition = Condition::create(&ConditionOptions::default())?;
/// lock.acquire(Deadline::Never)?;
/// while !work_is_there() {
///     condition.wait(&lock, Deadline::Never)?;
/// }
/// lock.release(false)?;
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Condition(Handle<channels::Condition>);

impl Condition {
    /// Makes a condition on this node.
    ///
    /// # Errors
    /// When an option is out of range, or the pool or a table is full.
    pub fn create(options: &ConditionOptions) -> Result<Self> {
        Handle::create(|member| Ok(channels::Condition::create(member, options)?)).map(Self)
    }

    /// Gives the lock up, waits for a notification, and takes the lock again, also when the wait failed. A recursive lock is
    /// given up whatever its depth, and has it again afterwards. Condition and lock may lie on different nodes.
    ///
    /// Success tells whether the lock's last owner died while it held it; where that is so, a wait whose time is up succeeds,
    /// too.
    ///
    /// # Errors
    /// [`Code::NotOwner`](crate::Code::NotOwner) when the caller does not hold the lock;
    /// [`Code::TableFull`](crate::Code::TableFull) when as many wait as can; otherwise as [`Lock::acquire`]. When the lock
    /// itself was destroyed, or its node is down, the caller does not have it afterwards.
    pub fn wait(&self, lock: &Lock, deadline: Deadline) -> Result<Acquired> {
        let lock = lock.0.get()?;
        Ok(self.0.get()?.wait(lock, deadline)?)
    }

    /// As [`Condition::wait`], but a signal alone does not end the wait: `on_signal` is called in the middle of it and says
    /// whether it goes on. A notification that comes while it runs is not missed; one that comes to a wait that `on_signal`
    /// ends goes to the next who waits. It hears of signals also while the lock is taken again. `taken` is how that was, whatever
    /// came of the wait; `None`: the caller does not have the lock.
    ///
    /// # Errors
    /// As [`Condition::wait`]; [`Code::Interrupted`](crate::Code::Interrupted) when `on_signal` says so.
    pub fn wait_through_signals(
        &self,
        lock: &Lock,
        deadline: Deadline,
        on_signal: impl FnMut() -> bool,
        taken: &mut Option<Acquired>,
    ) -> Result<Acquired> {
        let lock = lock.0.get()?;
        Ok(self
            .0
            .get()?
            .wait_through_signals(lock, deadline, on_signal, taken)?)
    }

    /// Wakes the one who waits longest, if anybody does; how many were woken.
    ///
    /// # Errors
    /// When it was destroyed, or its node is down.
    pub fn notify_one(&self) -> Result<u32> {
        Ok(self.0.get()?.notify_one()?)
    }

    /// Wakes all who wait; how many.
    ///
    /// # Errors
    /// As [`Condition::notify_one`].
    pub fn notify_all(&self) -> Result<u32> {
        Ok(self.0.get()?.notify_all()?)
    }

    /// Wakes up to `count` of those who wait, the longest first; how many.
    ///
    /// # Errors
    /// As [`Condition::notify_one`].
    pub fn notify(&self, count: u32) -> Result<u32> {
        Ok(self.0.get()?.notify(count)?)
    }

    /// How many wait at this moment.
    ///
    /// # Errors
    /// As [`Condition::notify_one`].
    pub fn waiting(&self) -> Result<u32> {
        Ok(self.0.get()?.waiting()?)
    }
}

/// A broadcast: one, some or all of those who wait at this moment are woken, and get the payload that comes with it.
///
/// ```no_run
/// use dragon::{Broadcast, BroadcastOptions, Deadline, Trigger};
///
/// let news = Broadcast::create(&BroadcastOptions::default())?;
/// println!("attach with {}, and wait", news.descriptor());
/// // When three wait, all of them get it.
/// let woken = news.trigger(Trigger::ALL.after(3), b"start", Deadline::Never)?;
/// assert!(woken >= 3);
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Broadcast(Handle<channels::Broadcast>);

impl Broadcast {
    /// Makes a broadcast on this node.
    ///
    /// # Errors
    /// When an option is out of range, or the pool or a table is full.
    pub fn create(options: &BroadcastOptions) -> Result<Self> {
        Handle::create(|member| Ok(channels::Broadcast::create(member, options)?)).map(Self)
    }

    /// Waits for the next trigger; returns its payload. A trigger from before is never waited for.
    ///
    /// # Errors
    /// As [`Lock::acquire`]; [`Code::TableFull`](crate::Code::TableFull) when as many wait as can.
    pub fn wait(&self, deadline: Deadline) -> Result<Message> {
        let (broadcast, session) = self.below()?;
        Ok(Message::new(broadcast.wait(deadline)?, session))
    }

    /// Wakes those who wait, and gives them the payload; how many. When nobody waits, nothing happens.
    ///
    /// # Errors
    /// With [`Trigger::after`], as [`Lock::acquire`] while fewer wait. When too many payloads are on their way:
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Full`](crate::Code::Full).
    pub fn trigger(&self, trigger: Trigger, payload: &[u8], deadline: Deadline) -> Result<u32> {
        Ok(self.0.get()?.trigger(trigger, payload, deadline)?)
    }

    /// How many wait at this moment.
    ///
    /// # Errors
    /// When it was destroyed, or its node is down.
    pub fn waiting(&self) -> Result<u32> {
        Ok(self.0.get()?.waiting()?)
    }

    /// The broadcast of the layer below, and the session that it belongs to.
    pub(crate) fn below(&self) -> Result<(&channels::Broadcast, &'static Session)> {
        self.0.get_with_session()
    }
}
