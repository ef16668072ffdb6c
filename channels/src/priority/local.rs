//! What is done to a queue of this node, by its processes and by agents on behalf of others.

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Code, ObjectId};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{Ordering, low};
use dragon_shmem::thread::Intended;
use dragon_shmem::{Deadline, Member, ThreadGuard};

use super::{MOST_LEVELS, PriorityQueueState};
use crate::attempt::{Attempt, Payload};
use crate::cell;
use crate::channel::{Local, ROW_ARGUMENT, Source, Ticket, empty};
use crate::error::{Error, Result, within};
use crate::message::Message;
use crate::object::alive;
use crate::ring::{Label, Ring};
use crate::wait::Spin;

/// Body word that says how many levels there are.
pub(super) const LEVELS: usize = 0;

/// The levels of a queue of this node, the most urgent first.
pub(super) fn open(member: &Member, entry: &ObjectEntry) -> Result<Vec<Ring>> {
    let levels = low(entry.body[LEVELS].load(Ordering::Relaxed)).clamp(1, MOST_LEVELS);
    let block = entry.block.load(Ordering::Acquire);
    Ok(Ring::open_bank(member.pool(), block, levels)?.collect())
}

/// A queue of this node, for one operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue<'a> {
    pub(super) member: &'a Arc<Member>,
    pub(super) id: ObjectId,
    pub(super) entry: &'a ObjectEntry,
    /// There is at least one.
    pub(super) levels: &'a [Ring],
}

impl<'a> Queue<'a> {
    /// A level, as if it were a channel.
    pub(super) fn level(&self, level: u32) -> Result<Local<'a>> {
        let most = u32::try_from(self.levels.len() - 1).unwrap_or(u32::MAX);
        within("level of a message", level, 0, most)?;
        Ok(self.local(level, &self.levels[level as usize]))
    }

    fn local(&self, level: u32, ring: &'a Ring) -> Local<'a> {
        Local {
            member: self.member,
            id: self.id,
            entry: self.entry,
            ring,
            opened: None,
            row: Some(level),
        }
    }

    /// All levels, the most urgent first.
    fn all(&self) -> impl Iterator<Item = (u32, Local<'a>)> {
        let queue = *self;
        let levels = (0..).zip(self.levels);
        levels.map(move |(level, ring)| (level, queue.local(level, ring)))
    }

    /// Those in which there may be a message. Who finds none here has not overlooked one that was sent before it looked.
    fn filled(&self) -> impl Iterator<Item = (u32, Local<'a>)> {
        self.all()
            .filter(|(_, local)| cell::maybe_readable(local.ring))
    }

    pub(super) fn receive(&self, spin: &Spin, deadline: Deadline) -> Result<(u32, Message)> {
        // Filled in its place, as that of a channel.
        let mut message = Message::empty();
        let mut read = |source: Source<'_>| source.read_into(&mut message);
        let level = match self.try_receive(None, &mut read)? {
            Some(level) => level,
            None => self.wait(Op::Receive, spin, deadline, |thread| {
                self.try_receive(Some(thread), &mut read)
            })?,
        };
        Ok((level, message))
    }

    /// One try to receive the most urgent message: its level. `read` as for [`Local::receive_with`].
    fn try_receive(
        &self,
        thread: Option<&ThreadGuard<'_>>,
        read: &mut impl FnMut(Source<'_>),
    ) -> Result<Option<u32>> {
        alive(self.entry, self.id)?;
        for (level, local) in self.filled() {
            if let Some(thread) = thread {
                // A position in one level is never read together with another level.
                thread.intent.set(0, Ticket::NONE);
                thread.intent.set(ROW_ARGUMENT, level.into());
            }
            if local.try_receive(thread, u64::MAX, read)?.is_some() {
                return Ok(Some(level));
            }
        }
        Ok(None)
    }

    pub(super) fn peek(&self, spin: &Spin, deadline: Deadline) -> Result<(u32, Message)> {
        match self.try_peek()? {
            Some(found) => Ok(found),
            None => self.wait(Op::Peek, spin, deadline, |_| self.try_peek()),
        }
    }

    fn try_peek(&self) -> Result<Option<(u32, Message)>> {
        alive(self.entry, self.id)?;
        for (level, local) in self.filled() {
            if let Some(message) = local.try_peek()? {
                return Ok(Some((level, message)));
            }
        }
        Ok(None)
    }

    pub(super) fn poll(&self, spin: &Spin, deadline: Deadline) -> Result<u64> {
        match self.try_poll()? {
            Some(count) => Ok(count),
            None => self.wait(Op::PollReadable, spin, deadline, |_| self.try_poll()),
        }
    }

    /// How many messages there are, when one can be received.
    fn try_poll(&self) -> Result<Option<u64>> {
        alive(self.entry, self.id)?;
        for (_, local) in self.filled() {
            if local.is_readable()? {
                let count: u64 = self.levels.iter().map(cell::length).sum();
                return Ok(Some(count.max(1)));
            }
        }
        Ok(None)
    }

    /// Waits until `attempt` finds a message.
    fn wait<T>(
        &self,
        op: Op,
        spin: &Spin,
        deadline: Deadline,
        mut attempt: impl FnMut(&ThreadGuard<'_>) -> Result<Option<T>>,
    ) -> Result<T> {
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        let first = self.level(0)?;
        let thread = self.member.thread()?;
        first.begin(&thread, op, 0);
        let readable = || self.levels.iter().any(cell::maybe_readable);
        first.wait_for_message(&thread, spin, deadline, || attempt(&thread), readable)
    }

    pub(super) fn state(&self) -> Result<PriorityQueueState> {
        let mut state = PriorityQueueState {
            messages: Vec::with_capacity(self.levels.len()),
            capacity: 0,
            block: 0,
            senders_waiting: 0,
            receivers_waiting: 0,
            bytes: 0,
        };
        for (_, local) in self.all() {
            let level = local.attributes()?;
            state.messages.push(level.messages);
            state.capacity = level.capacity;
            state.block = level.block;
            state.senders_waiting += u64::from(level.senders_waiting);
            // All levels have one place for them.
            state.receivers_waiting = level.receivers_waiting.into();
            state.bytes += level.bytes;
        }
        Ok(state)
    }
}

/// The operations for agents, as [`crate::attempt()`] does those of other objects.
pub(crate) fn attempt(
    member: &Arc<Member>,
    op: Op,
    id: ObjectId,
    entry: &ObjectEntry,
    [arg0, arg1]: [u64; 2],
    payload: Payload<'_>,
) -> Result<Attempt> {
    // Before it is opened, so that the first error tells that it was destroyed.
    alive(entry, id)?;
    let queue = Queue {
        member,
        id,
        entry,
        levels: &open(member, entry)?,
    };
    match op {
        Op::Push => {
            let level = u32::try_from(arg1).unwrap_or(u32::MAX);
            {
                let (hint, trace) = (arg0, None);
                crate::attempt::send(&queue.level(level)?, payload, &Label { hint, trace })
            }
        }
        Op::Pop => found(queue.receive(&Spin::default(), Deadline::Now)),
        Op::Peek => found(queue.peek(&Spin::default(), Deadline::Now)),
        Op::PollReadable => Ok(queue
            .try_poll()?
            .map_or(Attempt::NotYet, |count| Attempt::done(count, 0))),
        Op::Attributes => found(Ok((0, Message::owned(0, queue.state()?.encode())))),
        _ => Ok(Attempt::failed(Code::Unsupported)),
    }
}

/// A reply with a message and its level.
fn found(found: Result<(u32, Message)>) -> Result<Attempt> {
    match found {
        Ok((level, message)) => Ok(Attempt::Done {
            status: Code::Ok,
            arg0: message.hint(),
            arg1: level.into(),
            message: Some(message),
        }),
        Err(Error::Empty) => Ok(Attempt::NotYet),
        Err(error) => Err(error),
    }
}

/// The level that a dead process's intent is about. (One that only waits names any.)
pub(crate) fn ring_of(member: &Member, entry: &ObjectEntry, intended: &Intended) -> Option<Ring> {
    let levels = open(member, entry).ok()?;
    let level = usize::try_from(intended.arguments[ROW_ARGUMENT]).ok()?;
    levels.get(level).or(levels.first()).copied()
}

/// Makes all senders and receivers that sleep look again.
pub(crate) fn wake_everyone(member: &Member, entry: &ObjectEntry) -> Result<()> {
    let levels = open(member, entry)?;
    for ring in &levels {
        ring.writable().wake(u32::MAX);
    }
    // One place for all levels.
    if let Some(first) = levels.first() {
        first.readable().wake(u32::MAX);
    }
    Ok(())
}

/// Whether a message can be received, found out by reading alone.
pub(crate) fn is_readable(member: &Member, entry: &ObjectEntry) -> Result<bool> {
    Ok(open(member, entry)?.iter().any(cell::is_readable))
}

/// Frees the blocks of the messages in a queue to which nobody refers any more.
pub(crate) fn discard(member: &Member, id: ObjectId, entry: &ObjectEntry) {
    for (level, ring) in (0..).zip(open(member, entry).unwrap_or_default()) {
        empty(member, id, &ring, level);
    }
}
