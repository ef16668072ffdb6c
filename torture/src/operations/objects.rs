//! Locks, events, semaphores, the end of processes.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use dragon_channels::{Deadline, Error, Event, Lock, ProcessObject, Semaphore, SemaphoreOptions};
use dragon_shmem::Member;

use crate::operations::channel::{Nothing, wait_until_asleep};
use crate::operations::{Act, Operation, Words, operation, soon};
use crate::survivor::Survivor;

pub(super) const OPERATIONS: &[Operation] = &[
    operation("lock-create", |_| Ok(Box::new(Nothing)), creates_lock),
    operation("lock-acquire", |m| lock(m, false, false), acquires),
    operation("lock-release", |m| lock(m, false, false), releases),
    operation(
        "lock-release-to-sleeper",
        |m| lock(m, false, true),
        releases_after_release,
    ),
    operation("lock-acquire-waits", |m| lock(m, true, false), acquires),
    Operation {
        cpus: 1,
        ..operation("lock-acquire-sleeps", |m| lock(m, true, false), acquires)
    },
    operation("lock-times-out", |m| lock(m, true, false), times_out),
    operation("event-set", |m| event(m, false), sets),
    operation("event-set-wakes", |m| event(m, true), sets),
    operation("event-clear", |m| event(m, false), clears),
    operation("event-wait", |m| event(m, false), waits),
    Operation {
        cpus: 1,
        ..operation("event-sleep", |m| event(m, false), waits)
    },
    operation("semaphore-acquire", |m| semaphore(m, 2, false), takes),
    operation("semaphore-release", |m| semaphore(m, 1, false), gives),
    operation("semaphore-release-wakes", |m| semaphore(m, 0, true), gives),
    operation("semaphore-acquire-waits", |m| semaphore(m, 0, false), takes),
    operation("semaphore-acquire-owned", |m| owned(m, 3), takes_two),
    operation("semaphore-release-owned", |m| owned(m, 3), gives_back_two),
    operation(
        "semaphore-wait-zero",
        |m| semaphore(m, 0, false),
        waits_for_zero,
    ),
    operation("lock-recursive", recursive, acquires_twice),
    operation("process-wait", process, joins),
];

struct LockRig {
    member: Arc<Member>,
    lock: Arc<Lock>,
    /// The survivor has it at the start, and releases it when asked.
    held: bool,
    has_it: bool,
    /// A thread sleeps on it once asked.
    sleeper: bool,
    asleep: Option<JoinHandle<Result<(), Error>>>,
}

fn lock(member: &Arc<Member>, held: bool, sleeper: bool) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(LockRig {
        member: Arc::clone(member),
        lock: Arc::new(Lock::create(member, 0)?),
        held,
        has_it: false,
        sleeper,
        asleep: None,
    }))
}

fn recursive(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(LockRig {
        member: Arc::clone(member),
        lock: Arc::new(Lock::create_recursive(member, 0)?),
        held: false,
        has_it: false,
        sleeper: false,
        asleep: None,
    }))
}

impl Survivor for LockRig {
    fn arm(&mut self) -> Result<Vec<String>> {
        if self.held {
            self.lock.acquire(Deadline::Now)?;
            self.has_it = true;
        }
        Ok(vec![self.lock.descriptor().to_string()])
    }

    fn release(&mut self) -> Result<()> {
        if self.has_it {
            self.has_it = false;
            return Ok(self.lock.release(false)?);
        }
        ensure!(
            self.sleeper && self.asleep.is_none(),
            "the victim sleeps on"
        );
        let lock = Arc::clone(&self.lock);
        self.asleep = Some(thread::spawn(move || {
            lock.acquire(Deadline::Never)?;
            lock.release(false)
        }));
        wait_until_waiting(&self.member)
    }

    fn check(&mut self) -> Result<()> {
        if std::mem::take(&mut self.has_it) {
            self.lock.release(false)?;
        }
        if let Some(asleep) = self.asleep.take() {
            let joined = asleep.join().ok().context("the sleeping thread panicked")?;
            joined.context("the thread that waited for the lock")?;
        }
        // The dead may have had it: told once.
        self.lock.acquire(soon()).context("the lock is lost")?;
        self.lock.release(false)?;
        let again = self.lock.acquire(Deadline::Now)?;
        ensure!(!again.owner_died, "told twice that the owner died");
        Ok(self.lock.release(false)?)
    }
}

/// Lock waits have no mark of their own; an intent is all there is to see, and the kernel's word that the thread sleeps.
fn wait_until_waiting(member: &Member) -> Result<()> {
    loop {
        for record in member.control().threads(member.slot().index)? {
            if !record.is_touched() {
                break;
            }
            if record.intent.read().is_some() {
                return Ok(());
            }
        }
        thread::yield_now();
    }
}

struct EventRig {
    member: Arc<Member>,
    event: Arc<Event>,
    sleeper: bool,
    asleep: Option<JoinHandle<Result<(), Error>>>,
}

fn event(member: &Arc<Member>, sleeper: bool) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(EventRig {
        member: Arc::clone(member),
        event: Arc::new(Event::create(member, 0)?),
        sleeper,
        asleep: None,
    }))
}

impl Survivor for EventRig {
    fn arm(&mut self) -> Result<Vec<String>> {
        self.event.clear()?;
        if self.sleeper {
            let event = Arc::clone(&self.event);
            self.asleep = Some(thread::spawn(move || event.wait(Deadline::Never)));
            wait_until_asleep(&self.member)?;
        }
        Ok(vec![self.event.descriptor().to_string()])
    }

    fn release(&mut self) -> Result<()> {
        Ok(self.event.set()?)
    }

    fn check(&mut self) -> Result<()> {
        self.event.set()?;
        if let Some(asleep) = self.asleep.take() {
            let joined = asleep.join().ok().context("the sleeping thread panicked")?;
            joined.context("the thread that waited for the event")?;
        }
        self.event.wait(Deadline::Now)?;
        self.event.clear()?;
        ensure!(!self.event.is_set()?, "the event stays set");
        Ok(())
    }
}

struct SemaphoreRig {
    member: Arc<Member>,
    semaphore: Arc<Semaphore>,
    units: u32,
    sleeper: bool,
    asleep: Option<JoinHandle<Result<(), Error>>>,
    released: u32,
}

const MOST: u32 = 5;

fn semaphore(member: &Arc<Member>, units: u32, sleeper: bool) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(SemaphoreRig {
        member: Arc::clone(member),
        semaphore: Arc::new(Semaphore::create(member, units, MOST, 0)?),
        units,
        sleeper,
        asleep: None,
        released: 0,
    }))
}

fn owned(member: &Arc<Member>, units: u32) -> Result<Box<dyn Survivor>> {
    let options = SemaphoreOptions {
        value: units,
        most: units,
        owned: true,
        ..SemaphoreOptions::default()
    };
    Ok(Box::new(Owned(
        Semaphore::with_options(member, &options)?,
        units,
    )))
}

/// A semaphore whose units come back when who took them dies.
struct Owned(Semaphore, u32);

impl Survivor for Owned {
    fn arm(&mut self) -> Result<Vec<String>> {
        Ok(vec![self.0.descriptor().to_string()])
    }

    fn check(&mut self) -> Result<()> {
        let Self(semaphore, units) = self;
        let now = semaphore.value()?;
        ensure!(now == *units, "{now} of {units} units are left");
        semaphore.acquire_many(*units, Deadline::Now)?;
        Ok(semaphore.release(*units)?)
    }
}

impl Survivor for SemaphoreRig {
    fn arm(&mut self) -> Result<Vec<String>> {
        self.released = 0;
        if self.sleeper {
            let semaphore = Arc::clone(&self.semaphore);
            self.asleep = Some(thread::spawn(move || semaphore.acquire(Deadline::Never)));
            wait_until_asleep(&self.member)?;
        }
        Ok(vec![self.semaphore.descriptor().to_string()])
    }

    fn release(&mut self) -> Result<()> {
        ensure!(self.released == 0, "the victim sleeps on after its wake-up");
        self.released = 1;
        Ok(self.semaphore.release(1)?)
    }

    fn check(&mut self) -> Result<()> {
        let mut expected = self.units + self.released;
        if let Some(asleep) = self.asleep.take() {
            self.semaphore.release(1)?;
            let joined = asleep.join().ok().context("the sleeping thread panicked")?;
            joined.context("the thread that waited for a unit")?;
            expected = self.units;
        }
        // One unit more or less: the victim's.
        let now = self.semaphore.value()?;
        ensure!(
            now.abs_diff(expected) <= 1,
            "{now} units, and {expected} were expected but for one"
        );
        for _ in 0..now {
            self.semaphore.acquire(Deadline::Now)?;
        }
        ensure!(
            self.semaphore.acquire(Deadline::Now) == Err(Error::Empty),
            "more units than the semaphore says"
        );
        if self.units > 0 {
            self.semaphore.release(self.units)?;
        }
        Ok(())
    }
}

const STATUS: i32 = 3 << 8;

struct ProcessRig {
    member: Arc<Member>,
    /// The end of a process is once for all: a new one each time.
    process: Option<ProcessObject>,
}

fn process(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(ProcessRig {
        member: Arc::clone(member),
        process: None,
    }))
}

impl Survivor for ProcessRig {
    fn arm(&mut self) -> Result<Vec<String>> {
        let process = ProcessObject::create(&self.member, 1, 0)?;
        let descriptor = process.descriptor().to_string();
        self.process = Some(process);
        Ok(vec![descriptor])
    }

    fn release(&mut self) -> Result<()> {
        let process = self.process.as_ref().context("armed")?;
        Ok(process.finish(STATUS)?)
    }

    fn check(&mut self) -> Result<()> {
        let process = self.process.take().context("armed")?;
        match process.wait(Deadline::Now) {
            Ok(STATUS) | Err(Error::Empty) => Ok(()),
            other => bail!("{other:?} in place of the status"),
        }
    }
}

/// Keeps the handle beyond the operation, and runs `act` on it.
fn act<T: 'static>(object: T, act: impl FnOnce(&T) -> Result<()> + 'static) -> Act {
    let object: &'static T = Box::leak(Box::new(object));
    Box::new(move || act(object))
}

fn attached_lock(member: &Arc<Member>, words: &Words) -> Result<Lock> {
    Ok(Lock::attach(member, &words.descriptor(0)?, false)?)
}

fn creates_lock(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        drop(Lock::create(&member, 0)?);
        Ok(())
    }))
}

fn acquires(member: &Arc<Member>, words: &Words) -> Result<Act> {
    Ok(act(attached_lock(member, words)?, |lock| {
        lock.acquire(Deadline::Never)?;
        Ok(())
    }))
}

fn releases(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let lock = attached_lock(member, words)?;
    lock.acquire(Deadline::Now)?;
    Ok(act(lock, |lock| Ok(lock.release(false)?)))
}

fn releases_after_release(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let lock = attached_lock(member, words)?;
    lock.acquire(Deadline::Now)?;
    crate::tracer::Marker::Release.raise();
    Ok(act(lock, |lock| Ok(lock.release(false)?)))
}

fn times_out(member: &Arc<Member>, words: &Words) -> Result<Act> {
    Ok(act(attached_lock(member, words)?, |lock| {
        match lock.acquire(Deadline::after(1_000)) {
            Err(Error::Timeout) => Ok(()),
            other => bail!("{other:?} in place of a timeout"),
        }
    }))
}

fn attached_event(member: &Arc<Member>, words: &Words) -> Result<Event> {
    Ok(Event::attach(member, &words.descriptor(0)?, false)?)
}

fn sets(member: &Arc<Member>, words: &Words) -> Result<Act> {
    Ok(act(
        attached_event(member, words)?,
        |event| Ok(event.set()?),
    ))
}

fn clears(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let event = attached_event(member, words)?;
    event.set()?;
    Ok(act(event, |event| Ok(event.clear()?)))
}

fn waits(member: &Arc<Member>, words: &Words) -> Result<Act> {
    Ok(act(attached_event(member, words)?, |event| {
        Ok(event.wait(Deadline::Never)?)
    }))
}

fn attached_semaphore(member: &Arc<Member>, words: &Words) -> Result<Semaphore> {
    Ok(Semaphore::attach(member, &words.descriptor(0)?, false)?)
}

fn takes(member: &Arc<Member>, words: &Words) -> Result<Act> {
    Ok(act(attached_semaphore(member, words)?, |semaphore| {
        Ok(semaphore.acquire(Deadline::Never)?)
    }))
}

fn gives(member: &Arc<Member>, words: &Words) -> Result<Act> {
    Ok(act(attached_semaphore(member, words)?, |semaphore| {
        Ok(semaphore.release(1)?)
    }))
}

fn takes_two(member: &Arc<Member>, words: &Words) -> Result<Act> {
    Ok(act(attached_semaphore(member, words)?, |semaphore| {
        Ok(semaphore.acquire_many(2, Deadline::Never)?)
    }))
}

fn gives_back_two(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let semaphore = attached_semaphore(member, words)?;
    semaphore.acquire_many(2, Deadline::Now)?;
    Ok(act(semaphore, |semaphore| Ok(semaphore.release(2)?)))
}

fn waits_for_zero(member: &Arc<Member>, words: &Words) -> Result<Act> {
    Ok(act(attached_semaphore(member, words)?, |semaphore| {
        Ok(semaphore.wait_zero(Deadline::Never)?)
    }))
}

fn acquires_twice(member: &Arc<Member>, words: &Words) -> Result<Act> {
    Ok(act(attached_lock(member, words)?, |lock| {
        lock.acquire(Deadline::Never)?;
        lock.acquire(Deadline::Never)?;
        lock.release(false)?;
        Ok(lock.release(false)?)
    }))
}

fn joins(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let process = ProcessObject::attach(member, &words.descriptor(0)?, false)?;
    Ok(act(process, |process| {
        process.wait(Deadline::Never)?;
        Ok(())
    }))
}
