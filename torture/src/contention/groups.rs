//! What processes wait for together under contention: sets, streams, conditions, broadcasts, memory by its number.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use dragon_channels::{
    Broadcast, BroadcastOptions, Channel, Condition, ConditionOptions, Deadline, Endpoint,
    EndpointOptions, Error, Interest, Lock, PriorityQueue, Set, SharedMemory, Trigger,
};
use dragon_protocol::Descriptor;
use dragon_shmem::Member;
use dragon_shmem::pool::tag::PoolTag;

use crate::operations::{bytes_of, checked};
use crate::random::Random;

/// Members of the set that stay, by their tokens: lanes that can be received from. Tokens from here on are of members that come
/// and go.
const STAYING: u64 = 100;
/// The queue's: its first level.
const QUEUE: u64 = super::CHANNELS as u64;
const PLACES: u32 = 64;
const STREAMS: u32 = 3;
const NUMBERS: u64 = 3;
const DEFAULT: PoolTag = PoolTag::DEFAULT;

/// The objects, as the one who made them has them, and as each worker has.
pub(super) struct Groups {
    set: Set,
    endpoint: Endpoint,
    /// Of the condition.
    lock: Lock,
    condition: Condition,
    broadcast: Broadcast,
}

impl Groups {
    /// Creates them; the channels and the queue are members of the set.
    pub(super) fn new(
        member: &Arc<Member>,
        channels: &[Channel],
        queue: &PriorityQueue,
    ) -> Result<Self> {
        let options = EndpointOptions {
            streams: STREAMS,
            // A channel that is kept would count as one that is left over.
            kept: 0,
            capacity: 4,
            block: 64,
            ..EndpointOptions::default()
        };
        let set = Set::create(member, PLACES, 0)?;
        for (token, channel) in (0..).zip(channels) {
            set.add(channel.id(), Interest::READABLE, token)?;
        }
        set.add(queue.id(), Interest::READABLE, QUEUE)?;
        Ok(Self {
            set,
            endpoint: Endpoint::create(member, &options)?,
            lock: Lock::create(member, 0)?,
            condition: Condition::create(member, &ConditionOptions::default())?,
            broadcast: Broadcast::create(member, &BroadcastOptions::default())?,
        })
    }

    pub(super) fn descriptors(&self) -> [Descriptor; 5] {
        [
            self.set.descriptor(),
            self.endpoint.descriptor(),
            self.lock.descriptor(),
            self.condition.descriptor(),
            self.broadcast.descriptor(),
        ]
    }

    pub(super) fn attach(member: &Arc<Member>, descriptors: &[Descriptor; 5]) -> Result<Self> {
        let [set, endpoint, lock, condition, broadcast] = descriptors;
        Ok(Self {
            set: Set::attach(member, set, false)?,
            endpoint: Endpoint::attach(member, endpoint, false)?,
            lock: Lock::attach(member, lock, false)?,
            condition: Condition::attach(member, condition, false)?,
            broadcast: Broadcast::attach(member, broadcast, false)?,
        })
    }

    /// One thing of many. Returns a lane that is said to be readable.
    pub(super) fn work(
        &self,
        member: &Arc<Member>,
        channels: &[Channel],
        random: &mut Random,
        moment: u64,
    ) -> Result<Option<usize>> {
        let deadline = Deadline::after(random.below(2) * moment);
        match random.below(9) {
            0 => return self.wait(deadline).context("set"),
            1 => self.join(channels).context("membership")?,
            2 | 3 => self.say(random, deadline).context("stream, sending")?,
            4 | 5 => self.hear(deadline).context("stream, receiving")?,
            6 => self.meet(random, deadline).context("condition")?,
            7 => self.call(random, deadline).context("broadcast")?,
            _ => share(member, random).context("named memory")?,
        }
        Ok(None)
    }

    fn wait(&self, deadline: Deadline) -> Result<Option<usize>> {
        let Some(ready) = unless_late(self.set.wait(deadline))? else {
            return Ok(None);
        };
        let mut tokens = ready.iter().map(|ready| ready.token);
        let lane = tokens.find(|token| *token < STAYING);
        Ok(lane.and_then(|token| usize::try_from(token).ok()))
    }

    /// A membership of its own, for a moment. One that is left behind by a death stays in the set, until that is full.
    fn join(&self, channels: &[Channel]) -> Result<()> {
        match self.set.add(channels[0].id(), Interest::READABLE, STAYING) {
            Ok(membership) => Ok(self.set.remove(membership)?),
            Err(Error::SetFull { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn say(&self, random: &mut Random, deadline: Deadline) -> Result<()> {
        let Some(mut sender) = unless_late(self.endpoint.open_send(deadline))? else {
            return Ok(());
        };
        for n in 0..random.below(8) {
            let length = [8, 64, 300, 70_000][usize::try_from(random.below(4))?];
            match sender.send(&bytes_of(n, length), n, deadline) {
                Ok(()) => {}
                Err(Error::Full | Error::Timeout | Error::PeerDied(_) | Error::PeerClosed(_)) => {
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        match sender.close(deadline) {
            Ok(())
            | Err(Error::Full | Error::Timeout | Error::PeerDied(_) | Error::PeerClosed(_)) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What comes is whole and in order, up to some chunk.
    fn hear(&self, deadline: Deadline) -> Result<()> {
        let Some(mut receiver) = unless_late(self.endpoint.accept(deadline))? else {
            return Ok(());
        };
        for expected in 0.. {
            match receiver.receive(deadline) {
                Ok(chunk) => {
                    let n = checked(chunk)?;
                    ensure!(n == expected, "chunk {n} in place of {expected}");
                }
                Err(Error::Empty | Error::Timeout | Error::EndOfStream(_) | Error::PeerDied(_)) => {
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn meet(&self, random: &mut Random, deadline: Deadline) -> Result<()> {
        if unless_late(self.lock.acquire(deadline))?.is_none() {
            return Ok(());
        }
        match random.below(3) {
            0 => {
                self.condition.notify_one()?;
            }
            1 => {
                self.condition.notify_all()?;
            }
            _ => {
                unless_late(self.condition.wait(&self.lock, deadline))?;
            }
        }
        Ok(self.lock.release(false)?)
    }

    fn call(&self, random: &mut Random, deadline: Deadline) -> Result<()> {
        let n = random.below(4);
        let length = [8, 300, 3_000, 70_000][usize::try_from(n)?];
        match random.below(3) {
            0 => {
                unless_late(
                    self.broadcast
                        .trigger(Trigger::ONE, &bytes_of(n, length), deadline),
                )?;
            }
            1 => {
                unless_late(
                    self.broadcast
                        .trigger(Trigger::ALL, &bytes_of(n, length), deadline),
                )?;
            }
            _ => {
                if let Some(message) = unless_late(self.broadcast.wait(deadline))? {
                    let bytes = message.into_vec();
                    let sent = (0..4).any(|n| bytes == bytes_of(n, bytes.len()));
                    ensure!(sent, "a payload of {} bytes that nobody sent", bytes.len());
                }
            }
        }
        Ok(())
    }

    /// Everybody else is gone: nobody waits any more, and everything works.
    pub(super) fn check(
        &self,
        member: &Arc<Member>,
        channels: &[Channel],
        queue: &PriorityQueue,
    ) -> Result<()> {
        let deadline = Deadline::after(10_000_000_000);
        while let Some(receiver) = unless_late(self.endpoint.accept(Deadline::Now))? {
            drop(receiver);
        }
        let mut senders = Vec::new();
        for _ in 0..STREAMS {
            let sender = self.endpoint.open_send(deadline);
            senders.push(sender.context("a row of the endpoint is lost")?);
        }
        drop(senders);
        while let Some(receiver) = unless_late(self.endpoint.accept(Deadline::Now))? {
            drop(receiver);
        }
        let acquired = self.lock.acquire(deadline);
        acquired.context("the condition's lock is lost")?;
        self.lock.release(false)?;
        let waiting = (self.condition.waiting()?, self.broadcast.waiting()?);
        ensure!(waiting == (0, 0), "{waiting:?} wait, it says");
        self.broadcast.trigger(Trigger::ALL, &[1; 300], deadline)?;
        for (token, channel) in (0..).zip(channels) {
            channel.send(b"", 0, Deadline::Now)?;
            self.tells_of(token, deadline)?;
            channel.receive(Deadline::Now)?;
        }
        queue.send(super::LEVELS - 1, b"", 0, Deadline::Now)?;
        self.tells_of(QUEUE, deadline)?;
        queue.receive(Deadline::Now)?;
        for number in 0..NUMBERS {
            drop(SharedMemory::create(member, DEFAULT, number, &[1; 10])?);
        }
        Ok(())
    }

    fn tells_of(&self, token: u64, deadline: Deadline) -> Result<()> {
        let ready = self.set.wait(deadline).context("the set")?;
        let told = ready.iter().any(|ready| ready.token == token);
        ensure!(
            told,
            "member {token} is readable, and the set says {ready:?}"
        );
        Ok(())
    }
}

fn share(member: &Arc<Member>, random: &mut Random) -> Result<()> {
    let number = random.below(NUMBERS);
    let expected = bytes_of(number, 500);
    let made = if random.below(2) == 0 {
        SharedMemory::create(member, DEFAULT, number, &expected)
    } else {
        SharedMemory::find(member, DEFAULT, number)
    };
    let memory = match made {
        Ok(memory) => memory,
        Err(Error::Memory(
            dragon_shmem::Error::AlreadyExists { .. } | dragon_shmem::Error::NoSuchMemory { .. },
        )) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = vec![0; expected.len()];
    memory.read(0, &mut bytes)?;
    ensure!(bytes == expected, "memory {number} has other bytes");
    Ok(())
}

/// `None` when nothing was there, or the time was up.
fn unless_late<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Empty | Error::Full | Error::Timeout) => Ok(None),
        Err(error) => Err(error),
    }
}
