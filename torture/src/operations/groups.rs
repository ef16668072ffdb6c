//! Conditions and broadcasts.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use dragon_channels::{
    Broadcast, BroadcastOptions, Condition, ConditionOptions, Deadline, Error, Lock, Trigger,
};
use dragon_shmem::Member;

use crate::operations::{Act, LARGE, Operation, Words, bytes_of, operation, soon};
use crate::survivor::Survivor;

pub(super) const OPERATIONS: &[Operation] = &[
    operation("condition-wait", |m| condition(m, false), waits),
    operation("condition-notify", |m| condition(m, true), notifies),
    operation("broadcast-wait", |m| broadcast(m, false), hears),
    operation(
        "broadcast-trigger",
        |m| broadcast(m, true),
        |m, w| triggers(m, w, 8),
    ),
    operation(
        "broadcast-trigger-reference",
        |m| broadcast(m, true),
        |m, w| triggers(m, w, LARGE),
    ),
];

struct ConditionRig {
    lock: Arc<Lock>,
    condition: Arc<Condition>,
    sleeper: bool,
    asleep: Option<JoinHandle<Result<(), Error>>>,
}

fn condition(member: &Arc<Member>, sleeper: bool) -> Result<Box<dyn Survivor>> {
    let condition = Condition::create(member, &ConditionOptions::default())?;
    Ok(Box::new(ConditionRig {
        lock: Arc::new(Lock::create(member, 0)?),
        condition: Arc::new(condition),
        sleeper,
        asleep: None,
    }))
}

impl Survivor for ConditionRig {
    fn arm(&mut self) -> Result<Vec<String>> {
        if self.sleeper {
            let (lock, condition) = (Arc::clone(&self.lock), Arc::clone(&self.condition));
            self.asleep = Some(thread::spawn(move || {
                lock.acquire(Deadline::Never)?;
                let waited = condition.wait(&lock, Deadline::Never);
                lock.release(false)?;
                waited.map(drop)
            }));
            while self.condition.waiting()? == 0 {
                thread::yield_now();
            }
        }
        Ok(vec![
            self.lock.descriptor().to_string(),
            self.condition.descriptor().to_string(),
        ])
    }

    fn release(&mut self) -> Result<()> {
        self.lock.acquire(soon())?;
        self.condition.notify_all()?;
        Ok(self.lock.release(false)?)
    }

    fn check(&mut self) -> Result<()> {
        self.condition.notify_all()?;
        if let Some(asleep) = self.asleep.take() {
            let joined = asleep.join().ok().context("the sleeping thread panicked")?;
            joined.context("the thread that waited for the condition")?;
        }
        self.lock.acquire(soon()).context("the lock is lost")?;
        self.lock.release(false)?;
        let waiting = self.condition.waiting()?;
        ensure!(waiting == 0, "{waiting} wait, it says, and nobody does");
        Ok(())
    }
}

struct BroadcastRig {
    broadcast: Arc<Broadcast>,
    sleeper: bool,
    asleep: Option<JoinHandle<Result<usize, Error>>>,
}

fn broadcast(member: &Arc<Member>, sleeper: bool) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(BroadcastRig {
        broadcast: Arc::new(Broadcast::create(member, &BroadcastOptions::default())?),
        sleeper,
        asleep: None,
    }))
}

impl Survivor for BroadcastRig {
    fn arm(&mut self) -> Result<Vec<String>> {
        if self.sleeper {
            let broadcast = Arc::clone(&self.broadcast);
            let hear = move || broadcast.wait(Deadline::Never).map(|message| message.len());
            self.asleep = Some(thread::spawn(hear));
            while self.broadcast.waiting()? == 0 {
                thread::yield_now();
            }
        }
        Ok(vec![self.broadcast.descriptor().to_string()])
    }

    fn release(&mut self) -> Result<()> {
        self.broadcast.trigger(Trigger::ALL, b"news", soon())?;
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.release()?;
        if let Some(asleep) = self.asleep.take() {
            let joined = asleep.join().ok().context("the sleeping thread panicked")?;
            let length = joined.context("the thread that waited for the broadcast")?;
            ensure!([4, 8, LARGE].contains(&length), "{length} bytes came");
        }
        let waiting = self.broadcast.waiting()?;
        ensure!(waiting == 0, "{waiting} wait, it says, and nobody does");
        Ok(())
    }
}

fn waits(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let lock = Lock::attach(member, &words.descriptor(0)?, false)?;
    let condition = Condition::attach(member, &words.descriptor(1)?, false)?;
    let lock: &'static Lock = Box::leak(Box::new(lock));
    let condition: &'static Condition = Box::leak(Box::new(condition));
    lock.acquire(Deadline::Now)?;
    Ok(Box::new(move || {
        condition.wait(lock, Deadline::Never)?;
        Ok(())
    }))
}

fn notifies(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let condition = Condition::attach(member, &words.descriptor(1)?, false)?;
    let condition: &'static Condition = Box::leak(Box::new(condition));
    Ok(Box::new(move || {
        condition.notify_all()?;
        Ok(())
    }))
}

fn heard(member: &Arc<Member>, words: &Words) -> Result<&'static Broadcast> {
    let broadcast = Broadcast::attach(member, &words.descriptor(0)?, false)?;
    Ok(Box::leak(Box::new(broadcast)))
}

fn hears(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let broadcast = heard(member, words)?;
    Ok(Box::new(move || {
        drop(broadcast.wait(Deadline::Never)?);
        Ok(())
    }))
}

fn triggers(member: &Arc<Member>, words: &Words, length: usize) -> Result<Act> {
    let broadcast = heard(member, words)?;
    let bytes = bytes_of(3, length);
    Ok(Box::new(move || {
        broadcast.trigger(Trigger::ALL, &bytes, Deadline::Now)?;
        Ok(())
    }))
}
