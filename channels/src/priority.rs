//! Queues with levels of priority: the most urgent message comes first, and within a level the oldest.
//!
//! Each level is a ring of cells as a channel has one, with a capacity of its own: a flood of one level leaves the others their
//! room. A receiver tries the levels in their order, so what was sent before it began is never passed over for something
//! less urgent. All receivers sleep at one word, senders at that of their level.
//!
//! There is no protocol here beside that of channels: a process that dies in a level is recovered as one that dies in a
//! channel, and its intent names the level.

mod local;

use std::io::IoSlice;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Code, Descriptor, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{Ordering, low};
use dragon_shmem::{Block, Deadline, Member};

use crate::channel::Outgoing;
use crate::error::{Error, Result, within};
use crate::memory;
use crate::message::Message;
use crate::object::Handle;
use crate::remote;
use crate::ring::{Label, MAX_CAPACITY, MAX_INLINE, Ring};
use local::{LEVELS, Queue, open};
pub(crate) use local::{attempt, discard, is_readable, ring_of, wake_everyone};

/// How a queue with priorities is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriorityQueueOptions {
    /// How many levels it has, at most 64. Level 0 is the most urgent.
    pub levels: u32,
    /// How many messages each level holds.
    pub capacity: u32,
    /// Messages up to so many bytes travel in the queue's own memory; larger ones get a block of the pool.
    pub block: u32,
    /// A number of the user's choice.
    pub user: u64,
}

impl Default for PriorityQueueOptions {
    /// 4 levels of 64 messages of 168 bytes: the queue fits into one page of the pool.
    fn default() -> Self {
        Self {
            levels: 4,
            capacity: 64,
            block: 168,
            user: 0,
        }
    }
}

/// Most levels.
const MOST_LEVELS: u32 = 64;

/// How full a queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriorityQueueState {
    /// Messages in each level, those being sent among them; the most urgent level is the first.
    pub messages: Vec<u64>,
    /// How many messages each level can hold.
    pub capacity: u64,
    /// Messages up to so many bytes travel in the queue's own memory.
    pub block: u64,
    /// Senders that sleep until there is room in their level.
    pub senders_waiting: u64,
    /// Receivers that sleep until there is a message.
    pub receivers_waiting: u64,
    /// Bytes of its own memory; blocks of large messages are not among them.
    pub bytes: u64,
}

/// A handle on a queue with priorities of this or another node. Handles can be used by several threads at once.
///
/// ```
/// use dragon_channels::{Deadline, Error, PriorityQueue, PriorityQueueOptions};
///
/// let member = dragon_channels::local::member()?;
/// let queue = PriorityQueue::create(&member, &PriorityQueueOptions::default())?;
/// queue.send(2, b"when there is time", 7, Deadline::Never)?;
/// queue.send(0, b"now", 8, Deadline::Never)?;
/// let (level, message) = queue.receive(Deadline::Never)?;
/// assert_eq!((level, message.hint(), message.into_vec()), (0, 8, b"now".to_vec()));
/// let (level, message) = queue.receive(Deadline::Never)?;
/// assert_eq!((level, message.hint()), (2, 7));
/// assert_eq!(queue.receive(Deadline::Now).unwrap_err(), Error::Empty);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct PriorityQueue {
    handle: Handle,
    /// The levels, when the queue lies on this node. The handle's reference keeps their block, the member its mapping.
    levels: Option<Vec<Ring>>,
}

impl PriorityQueue {
    /// Creates a queue on this node.
    ///
    /// # Errors
    /// When an option is out of its range, a table is full, or there is no memory.
    pub fn create(member: &Arc<Member>, options: &PriorityQueueOptions) -> Result<Self> {
        let PriorityQueueOptions {
            levels,
            capacity,
            block: inline,
            user,
        } = *options;
        within("levels of a queue", levels, 1, MOST_LEVELS)?;
        within("capacity", capacity, 1, MAX_CAPACITY)?;
        within("block", inline, 0, MAX_INLINE)?;
        let size = Ring::bank_size(levels, capacity, inline);
        let fill = |block| Ring::init_bank(member.pool(), block, levels, capacity, inline);
        let init = |entry: &ObjectEntry| entry.body[LEVELS].store(levels.into(), Ordering::Relaxed);
        let id = memory::create(member, ObjectKind::PriorityQueue, user, size, fill, init)?;
        Self::of(Handle::created(member, id, user))
    }

    /// Attaches to the queue that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let kind = ObjectKind::PriorityQueue;
        Self::of(Handle::attach(member, descriptor, kind, adopt)?)
    }

    fn of(handle: Handle) -> Result<Self> {
        let levels = match handle.local()? {
            Some(entry) => Some(open(handle.member(), entry)?),
            None => None,
        };
        Ok(Self { handle, levels })
    }

    /// Sends a message to a level; returns when it is in the queue.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a level that the queue does not have; [`Error::Full`] (try form: the level is full),
    /// [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`], no memory for a large message, or what another node
    /// answers.
    pub fn send(&self, level: u32, bytes: &[u8], hint: u64, deadline: Deadline) -> Result<()> {
        self.send_parts(level, &[IoSlice::new(bytes)], hint, deadline)
    }

    /// Sends one message made of several parts.
    ///
    /// # Errors
    /// As [`PriorityQueue::send`].
    pub fn send_parts(
        &self,
        level: u32,
        parts: &[IoSlice<'_>],
        hint: u64,
        deadline: Deadline,
    ) -> Result<()> {
        let (member, id) = (self.handle.member(), self.handle.id());
        let Some(queue) = self.local()? else {
            let arguments = [hint, level.into()];
            return remote::call_with(member, Op::Push, id, arguments, parts, deadline).map(drop);
        };
        let label = Label { hint, trace: None };
        queue
            .level(level)?
            .send_parts(&self.handle.spin, parts, &label, deadline)
            .map(drop)
    }

    /// Sends a block that this process allocated, in whichever pool, without copying it. With success the block is the
    /// receiver's; otherwise it stays the caller's.
    ///
    /// # Errors
    /// As [`PriorityQueue::send`].
    pub fn send_block(
        &self,
        level: u32,
        block: Block,
        hint: u64,
        deadline: Deadline,
    ) -> Result<()> {
        let (member, id) = (self.handle.member(), self.handle.id());
        let Some(queue) = self.local()? else {
            let arguments = [hint, level.into()];
            return remote::call_with_block(member, Op::Push, id, arguments, block, deadline)
                .map(drop);
        };
        let local = queue.level(level)?;
        let label = Label { hint, trace: None };
        let thread = member.thread()?;
        let outgoing = Outgoing::Block(block);
        local
            .send(&thread, &self.handle.spin, &outgoing, &label, deadline)
            .map(drop)
    }

    /// Receives the most urgent message, and its level.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`], or what another node
    /// answers.
    pub fn receive(&self, deadline: Deadline) -> Result<(u32, Message)> {
        match self.local()? {
            Some(queue) => queue.receive(&self.handle.spin, deadline),
            None => self.ask_for_message(Op::Pop, deadline),
        }
    }

    /// A copy of the most urgent message, which stays in the queue, and its level.
    ///
    /// # Errors
    /// As [`PriorityQueue::receive`].
    pub fn peek(&self, deadline: Deadline) -> Result<(u32, Message)> {
        match self.local()? {
            Some(queue) => queue.peek(&self.handle.spin, deadline),
            None => self.ask_for_message(Op::Peek, deadline),
        }
    }

    /// Waits until a message can be received; returns how many there are, those just being sent among them.
    ///
    /// # Errors
    /// As [`PriorityQueue::receive`].
    pub fn poll(&self, deadline: Deadline) -> Result<u64> {
        match self.local()? {
            Some(queue) => queue.poll(&self.handle.spin, deadline),
            None => Ok(self.handle.call(Op::PollReadable, [0, 0], deadline)?[0]),
        }
    }

    /// How full the queue is.
    ///
    /// # Errors
    /// [`Error::Destroyed`], or what another node answers.
    pub fn state(&self) -> Result<PriorityQueueState> {
        if let Some(queue) = self.local()? {
            return queue.state();
        }
        let (_, message) = self.ask_for_message(Op::Attributes, Deadline::Now)?;
        let corrupt = Error::Remote(Code::Corrupt, self.handle.id());
        PriorityQueueState::decode(&message.into_vec()).ok_or(corrupt)
    }

    crate::object::common_methods!();

    fn local(&self) -> Result<Option<Queue<'_>>> {
        let (Some(entry), Some(levels)) = (self.handle.local()?, &self.levels) else {
            return Ok(None);
        };
        Ok(Some(Queue {
            member: self.handle.member(),
            id: self.handle.id(),
            entry,
            levels,
        }))
    }

    /// Asks the owner's node for a message and its level.
    fn ask_for_message(&self, op: Op, deadline: Deadline) -> Result<(u32, Message)> {
        let (member, id) = (self.handle.member(), self.handle.id());
        let (message, level) = remote::call_for_message(member, op, id, [0, 0], deadline)?;
        Ok((low(level), message))
    }
}

/// Words of a state in a reply before those of the levels.
const FIXED: usize = 5;

impl PriorityQueueState {
    /// The state as the payload of a reply: words, little-endian.
    fn encode(&self) -> Vec<u8> {
        let Self {
            messages,
            capacity,
            block,
            senders_waiting,
            receivers_waiting,
            bytes,
        } = self;
        let fixed: [u64; FIXED] = [
            *capacity,
            *block,
            *senders_waiting,
            *receivers_waiting,
            *bytes,
        ];
        let words = fixed.iter().chain(messages);
        words.flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The inverse of [`PriorityQueueState::encode`].
    fn decode(payload: &[u8]) -> Option<Self> {
        let (words, []) = payload.as_chunks::<8>() else {
            return None;
        };
        let words: Vec<u64> = words.iter().copied().map(u64::from_le_bytes).collect();
        let (fixed, messages) = words.split_first_chunk::<FIXED>()?;
        let [capacity, block, senders_waiting, receivers_waiting, bytes] = *fixed;
        Some(Self {
            messages: messages.to_vec(),
            capacity,
            block,
            senders_waiting,
            receivers_waiting,
            bytes,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
