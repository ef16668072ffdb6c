//! Channels: FIFO queues of messages, bounded or growing up to a limit, with several senders and receivers.

use std::io::IoSlice;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{AtomicU64, Ordering};
use dragon_shmem::{Block, Deadline, Member, ThreadGuard};

mod chain;
mod links;
mod ops;
mod quick;
mod test_point;

pub(crate) use ops::{Local, Outgoing, Source, Ticket, block_of, count};
pub(crate) use test_point::{TestPoint, test_point};

/// The argument of an intent that says which ring of an object with several ones it is about.
pub(crate) const ROW_ARGUMENT: usize = 2;

use crate::cell::{self, Found, Spot, Take};
use crate::error::{Error, Result, within};
use crate::message::Message;
use crate::object::{Handle, is_alive};
use crate::remote;
use crate::ring::{Label, MAX_CAPACITY, MAX_INLINE, Plain, Ring, to_usize};
use chain::{Chain, Opened};
use links::Links as _;
use quick::{Quick, Small, Tried};

/// How a channel is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelOptions {
    /// How many messages it holds; of an unbounded one: how many it has room for at first.
    pub capacity: u32,
    /// Messages up to so many bytes travel in the channel's own memory; larger ones get a block of the pool.
    pub block: u32,
    /// A number of the user's choice.
    pub user: u64,
    /// The channel grows from its pool when it is full, up to so many messages.
    pub unbounded: Option<u32>,
}

impl Default for ChannelOptions {
    /// 64 messages of 936 bytes: the channel fits into one page of the pool, of which messages can have 91 %.
    fn default() -> Self {
        Self {
            capacity: 64,
            block: 936,
            user: 0,
            unbounded: None,
        }
    }
}

/// Bytes of messages to a channel of another node that may be on their way from one handle when nobody waits for their arrival
/// ([`Returns::Immediately`]); each message counts for 512 bytes more than it has, which is what it costs the agents.
pub const CREDIT: u64 = 4 << 20;
/// What each of them counts for beside its bytes.
const COST: u64 = 512;

/// When a send returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Returns {
    /// At once. To a channel of another node: nobody reports whether the message arrived; but once for every few thousand
    /// messages ([`CREDIT`]) the send is as `Deposited`, so that no more than that is ever on its way from one handle. To one
    /// of this node: as `Deposited`.
    Immediately,
    /// When the sender's bytes may be written over: they have been copied. Otherwise as `Immediately`.
    Buffered,
    /// When the message is in the channel.
    #[default]
    Deposited,
    /// When somebody has received the message. A time-out takes nothing back: the message stays in the channel. Signal
    /// handlers do not end the wait for a receipt.
    Received,
}

/// How a message is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOptions {
    /// 64 bits for the receiver, beside the bytes.
    pub hint: u64,
    /// How long to wait: for room, and with [`Returns::Received`] for the receipt.
    pub deadline: Deadline,
    /// When to return.
    pub returns: Returns,
    /// A trace id that travels with the message.
    pub trace: Option<[u8; 16]>,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self {
            hint: 0,
            deadline: Deadline::Never,
            returns: Returns::default(),
            trace: None,
        }
    }
}

/// A state of a channel to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// There is a message.
    Readable,
    /// There is room for one.
    Writable,
    /// There is no message.
    Empty,
    /// There is no room.
    Full,
    /// The channel was destroyed.
    Closed,
}

impl Poll {
    fn op(self) -> Op {
        match self {
            Self::Readable => Op::PollReadable,
            Self::Writable => Op::PollWritable,
            Self::Empty => Op::PollEmpty,
            Self::Full => Op::PollFull,
            // No receipt for a message that there is not: it waits for the end.
            Self::Closed => Op::AwaitReceipt,
        }
    }
}

/// What a channel is and how full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Messages in it, those just being sent among them.
    pub messages: u64,
    /// Most messages that it holds; of an unbounded one: its limit.
    pub capacity: u64,
    /// Messages up to so many bytes travel in the channel's own memory.
    pub block: u64,
    /// Whether it grows.
    pub unbounded: bool,
    /// Senders that sleep until there is room.
    pub senders_waiting: u32,
    /// Receivers that sleep until there is a message.
    pub receivers_waiting: u32,
    /// Sleepers that wait for another state, or for a receipt.
    pub watchers: u32,
    /// Rings that it consists of: 1 unless it has grown.
    pub segments: u32,
    /// Bytes of its own memory; blocks of large messages are not among them.
    pub bytes: u64,
}

/// A message that was received into the receiver's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The sender's 64 bits.
    pub hint: u64,
    /// Bytes of the message, at the start of the buffer.
    pub length: usize,
    /// The sender's trace id.
    pub trace: Option<[u8; 16]>,
}

/// A handle on a channel of this or another node. Handles can be used by several threads at once.
#[derive(Debug)]
pub struct Channel {
    handle: Handle,
    /// Bytes that were sent without waiting for their arrival, of a channel of another node; see [`CREDIT`].
    posted: AtomicU64,
    /// The channel's memory, when it lies on this node. The handle's reference keeps its block, the member its mapping.
    ring: Option<Ring>,
    /// What an unbounded channel has grown by.
    opened: Option<Box<Opened>>,
}

/// Creates a channel on this node.
///
/// # Errors
/// When an option is out of its range, or there is no memory or no place in the object table.
pub fn create_channel(member: &Arc<Member>, options: &ChannelOptions) -> Result<Channel> {
    let ChannelOptions {
        capacity,
        block,
        user,
        unbounded,
    } = *options;
    if member.is_forked() {
        return Err(Error::Forked);
    }
    within("capacity", capacity, 1, MAX_CAPACITY)?;
    within("block", block, 0, MAX_INLINE)?;
    if let Some(limit) = unbounded {
        within(
            "limit of an unbounded channel",
            limit,
            capacity,
            MAX_CAPACITY,
        )?;
    }
    let place = member.alloc(Ring::size(capacity, block))?.offset;
    let limit = unbounded.map_or(0, u64::from);
    let made = Ring::init(member.pool(), place, capacity, block, limit).and_then(|()| {
        let id = member.create(ObjectKind::Channel, |entry, _| {
            entry.user.store(user, Ordering::Relaxed);
            // The block is named before it is shared: recovery of an unpublished object frees the block that it names.
            entry.block.store(place, Ordering::Release);
            member.share(place)
        })?;
        Ok((id, Ring::open(member.pool(), place)?))
    });
    let (id, ring) = match made {
        Ok(made) => made,
        Err(error) => {
            // Nobody else has seen the block. If it cannot be freed, the first error is still the one to tell.
            let _ = member.free(place);
            return Err(error);
        }
    };
    Ok(Channel::of(Handle::created(member, id, user), Some(ring)))
}

impl Channel {
    fn of(handle: Handle, ring: Option<Ring>) -> Self {
        let opened = ring
            .filter(|ring| ring.limit() != 0)
            .map(|_| Box::default());
        Self {
            handle,
            posted: AtomicU64::new(0),
            ring,
            opened,
        }
    }

    /// Attaches to the channel that a descriptor names. `adopt`: take over the reference that was counted when the
    /// descriptor was exported.
    ///
    /// # Errors
    /// When the descriptor is of another runtime or kind, or the channel is gone, or its node cannot be reached.
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let handle = Handle::attach(member, descriptor, ObjectKind::Channel, adopt)?;
        let ring = match handle.local()? {
            Some(entry) => Some(open(member, entry)?),
            None => None,
        };
        Ok(Self::of(handle, ring))
    }

    /// Sends a message; returns when it is in the channel.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::AtLimit`] (try form), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`],
    /// no memory for a large message, or what a remote channel's node answers.
    #[inline]
    pub fn send(&self, bytes: &[u8], hint: u64, deadline: Deadline) -> Result<()> {
        if let Some(quick) = self.quick() {
            let mut tried = quick.send(bytes, hint);
            if tried == Tried::Full && quick.wait_for_room(&self.handle.spin, deadline) {
                tried = quick.send(bytes, hint);
            }
            if tried == Tried::Sent {
                return Ok(());
            }
        }
        self.send_parts(&[IoSlice::new(bytes)], hint, deadline)
    }

    /// Sends one message made of several parts.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_parts(&self, parts: &[IoSlice<'_>], hint: u64, deadline: Deadline) -> Result<()> {
        let label = Label { hint, trace: None };
        match self.local()? {
            Some(local) => local
                .send_parts(&self.handle.spin, parts, &label, deadline)
                .map(drop),
            None => remote::send(
                self.handle.member(),
                self.handle.id(),
                parts,
                &label,
                deadline,
            )
            .map(drop),
        }
    }

    /// Sends one message made of several parts, as the options say.
    ///
    /// ```
    /// # use dragon_channels::{ChannelOptions, Deadline, SendOptions, create_channel};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let member = dragon_channels::local::member()?;
    /// let channel = create_channel(&member, &ChannelOptions::default())?;
    /// let options = SendOptions { hint: 7, trace: Some([1; 16]), ..SendOptions::default() };
    /// channel.send_with(&[std::io::IoSlice::new(b"hello")], &options)?;
    /// let message = channel.receive(Deadline::Now)?;
    /// assert_eq!((message.hint(), message.trace()), (7, Some([1; 16])));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_with(&self, parts: &[IoSlice<'_>], options: &SendOptions) -> Result<()> {
        let SendOptions {
            hint,
            deadline,
            returns,
            trace,
        } = *options;
        if let [part] = parts
            && trace.is_none()
            && returns != Returns::Received
            && self
                .quick()
                .is_some_and(|quick| quick.send(part, hint) == Tried::Sent)
        {
            return Ok(());
        }
        let (member, id) = (self.handle.member(), self.handle.id());
        let label = Label { hint, trace };
        let Some(local) = self.local()? else {
            if matches!(returns, Returns::Immediately | Returns::Buffered) && self.has_credit(parts)
            {
                return remote::post_message(member, id, parts, &label, deadline);
            }
            let ticket = remote::send(member, id, parts, &label, deadline)?;
            return self.await_remote(ticket, returns, deadline);
        };
        let ticket = local.send_parts(&self.handle.spin, parts, &label, deadline)?;
        self.await_local(&local, ticket, returns, deadline)
    }

    /// Whether a message may be sent without waiting for its arrival. When the credit is used up, one has to wait: messages
    /// of this process for one channel keep their order, so the earlier ones have arrived when that one has.
    fn has_credit(&self, parts: &[IoSlice<'_>]) -> bool {
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let cost = bytes.saturating_add(COST);
        let used = self
            .posted
            .fetch_add(cost, Ordering::Relaxed)
            .saturating_add(cost);
        if used > CREDIT {
            self.posted.store(0, Ordering::Relaxed);
        }
        used <= CREDIT
    }

    /// Sends a block that this process allocated, in whichever pool, without copying it: the time that it takes does not
    /// depend on its size. With success the block is the receiver's; otherwise it stays the caller's.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_block(&self, block: Block, hint: u64, deadline: Deadline) -> Result<()> {
        let options = SendOptions {
            hint,
            deadline,
            ..SendOptions::default()
        };
        self.send_block_with(block, &options)
    }

    /// As [`Channel::send_block`], as the options say. When only the receipt of the message fails (time-out, destroyed), the
    /// block is the channel's all the same.
    ///
    /// # Errors
    /// As [`Channel::send_with`].
    pub fn send_block_with(&self, block: Block, options: &SendOptions) -> Result<()> {
        let SendOptions {
            hint,
            deadline,
            returns,
            trace,
        } = *options;
        let (member, id) = (self.handle.member(), self.handle.id());
        let label = Label { hint, trace };
        let Some(local) = self.local()? else {
            let ticket = remote::send_block(member, id, block, &label, deadline)?;
            return self.await_remote(ticket, returns, deadline);
        };
        let thread = member.thread()?;
        let outgoing = Outgoing::Block(block);
        let ticket = local.send(&thread, &self.handle.spin, &outgoing, &label, deadline)?;
        drop(thread);
        self.await_local(&local, ticket, returns, deadline)
    }

    /// Sends several messages, each with its hint, in their order; waits for room until the deadline. Returns how many were
    /// sent: fewer than all when time was up, or something failed after the first.
    ///
    /// # Errors
    /// As [`Channel::send`], when not a single message was sent.
    pub fn send_many(&self, messages: &[(&[u8], u64)], deadline: Deadline) -> Result<usize> {
        let mut sent = 0;
        while let Some((bytes, hint)) = messages.get(sent) {
            // What fits goes in one step; the next one, which is too large or finds no room, by itself.
            if let Some(local) = self.local()? {
                let rest = messages.get(sent..).unwrap_or(&[]);
                let fits = |(bytes, _): &&(&[u8], u64)| local.ring.fits(bytes.len() as u64, false);
                let small = rest.iter().take_while(fits).count();
                let thread = self.handle.member().thread()?;
                let now = local.send_some(&thread, rest.get(..small).unwrap_or(&[]));
                drop(thread);
                match now {
                    Ok(0) => {}
                    Ok(count) => {
                        sent += count;
                        continue;
                    }
                    Err(_) if sent > 0 => return Ok(sent),
                    Err(error) => return Err(error),
                }
            }
            match self.send(bytes, *hint, deadline) {
                Ok(()) => sent += 1,
                Err(_) if sent > 0 => return Ok(sent),
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// Receives the oldest message.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`], or what a remote
    /// channel's node answers.
    #[inline]
    pub fn receive(&self, deadline: Deadline) -> Result<Message> {
        // Filled in its place: moving a message through the results of every step would cost more than all else.
        let mut received = Ok(Message::empty());
        if let (Some(quick), Ok(message)) = (self.quick(), &mut received)
            && self.receive_quickly(&quick, u64::MAX, deadline, |spot, plain| {
                message.fill_plain(quick.ring, spot, plain);
            })
        {
            return received;
        }
        self.receive_any(&mut received, deadline);
        received
    }

    /// [`Channel::receive`] for any message and any channel.
    fn receive_any(&self, received: &mut Result<Message>, deadline: Deadline) {
        let outcome = match (self.local(), &mut *received) {
            (Ok(Some(local)), Ok(message)) => {
                local.receive_with(&self.handle.spin, u64::MAX, deadline, |source| {
                    source.read_into(message);
                })
            }
            (Ok(_), _) => {
                *received = remote::receive(self.handle.member(), self.handle.id(), deadline);
                return;
            }
            (Err(error), _) => Err(error),
        };
        if let Err(error) = outcome {
            *received = Err(error);
        }
    }

    /// Receives the oldest message into the caller's memory, without an allocation on the way.
    ///
    /// # Errors
    /// As [`Channel::receive`]; [`Error::TooLong`] when the message does not fit: it stays in the channel.
    #[inline]
    pub fn receive_into(&self, buffer: &mut [u8], deadline: Deadline) -> Result<Received> {
        let mut received = Received::default();
        if let Some(quick) = self.quick() {
            let room = buffer.len() as u64;
            let copy = |spot, message: Plain| {
                // SAFETY: messages longer than the buffer are left in the channel.
                unsafe { quick.ring.copy_plain(spot, message, buffer.as_mut_ptr()) };
                received.hint = message.hint;
                received.length = to_usize(message.length);
            };
            if self.receive_quickly(&quick, room, deadline, copy) {
                return Ok(received);
            }
        }
        self.receive_any_into(buffer, deadline)
    }

    /// Whether a small message was received by `read`, or came while this could spin for it.
    #[inline]
    fn receive_quickly(
        &self,
        quick: &Quick<'_>,
        longest: u64,
        deadline: Deadline,
        mut read: impl FnMut(Spot, Plain),
    ) -> bool {
        // One place for both tries, so that the code of the first is the one that runs after the wait.
        let mut waited = false;
        loop {
            match quick.receive(longest, &mut read) {
                Small::Taken => return true,
                Small::Empty if !waited && quick.wait_for_message(&self.handle.spin, deadline) => {
                    waited = true;
                }
                Small::Empty | Small::Other => return false,
            }
        }
    }

    /// [`Channel::receive_into`] for any message and any channel.
    fn receive_any_into(&self, buffer: &mut [u8], deadline: Deadline) -> Result<Received> {
        let Some(local) = self.local()? else {
            return self.receive_remote_into(buffer, deadline);
        };
        let room = buffer.len() as u64;
        let mut received = Received::default();
        local.receive_with(&self.handle.spin, room, deadline, |source| match source {
            Source::Cell(ring, position, content) => {
                // SAFETY: messages longer than the buffer are left in the channel.
                unsafe { ring.copy_out(position, content, buffer.as_mut_ptr()) };
                received = Received {
                    hint: content.hint,
                    length: to_usize(content.length),
                    trace: ring.trace(position, content),
                };
            }
            Source::Message(message) => received = received_into(&message, buffer),
        })?;
        Ok(received)
    }

    #[cold]
    fn receive_remote_into(&self, buffer: &mut [u8], deadline: Deadline) -> Result<Received> {
        let (member, room) = (self.handle.member(), buffer.len() as u64);
        let message = remote::receive_at_most(member, self.handle.id(), room, deadline)?;
        Ok(received_into(&message, buffer))
    }

    /// Receives up to `most` messages: waits for the first until the deadline, and takes what else is there.
    ///
    /// # Errors
    /// As [`Channel::receive`], for the first message.
    pub fn receive_many(&self, most: usize, deadline: Deadline) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        let mut until = deadline;
        while messages.len() < most {
            match self.receive(until) {
                Ok(message) => messages.push(message),
                Err(_) if !messages.is_empty() => break,
                Err(error) => return Err(error),
            }
            until = Deadline::Now;
        }
        Ok(messages)
    }

    /// A copy of the oldest message, which stays in the channel.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn peek(&self, deadline: Deadline) -> Result<Message> {
        match self.local()? {
            Some(local) => local.peek(&self.handle.spin, deadline),
            None => remote::peek(self.handle.member(), self.handle.id(), deadline),
        }
    }

    /// Waits until a message can be received; returns how many there are, those just being sent among them.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn poll(&self, deadline: Deadline) -> Result<u64> {
        self.poll_for(Poll::Readable, deadline)
    }

    /// Waits until the channel is in a state; returns how many messages it has then. Others may change it at once.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form: it is not in that state), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`]
    /// except for [`Poll::Closed`], or what a remote channel's node answers.
    pub fn poll_for(&self, what: Poll, deadline: Deadline) -> Result<u64> {
        let count = match self.local()? {
            Some(local) => local.poll(what, &self.handle.spin, deadline),
            None => {
                // For the end: a receipt that never comes.
                let arguments = [Ticket::NONE, 0];
                let reply = self.handle.call(what.op(), arguments, deadline);
                reply.map(|[count, _]| count)
            }
        };
        match count {
            Err(Error::Destroyed(_)) if what == Poll::Closed => Ok(0),
            count => count,
        }
    }

    /// What the channel is and how full.
    ///
    /// # Errors
    /// [`Error::Destroyed`], or what a remote channel's node answers.
    pub fn attributes(&self) -> Result<Attributes> {
        match self.local()? {
            Some(local) => local.attributes(),
            None => remote::attributes(self.handle.member(), self.handle.id()),
        }
    }

    crate::object::common_methods!();

    /// The short way, for a channel of this node.
    #[inline]
    fn quick(&self) -> Option<Quick<'_>> {
        let ring = self.ring.as_ref()?;
        Some(Quick {
            member: self.handle.member(),
            id: self.handle.id_ref(),
            entry: self.handle.entry()?,
            ring,
        })
    }

    fn local(&self) -> Result<Option<Local<'_>>> {
        let (Some(entry), Some(ring)) = (self.handle.local()?, &self.ring) else {
            return Ok(None);
        };
        Ok(Some(Local {
            member: self.handle.member(),
            id: self.handle.id(),
            entry,
            ring,
            opened: self.opened.as_deref(),
            row: None,
        }))
    }

    fn await_local(
        &self,
        local: &Local<'_>,
        ticket: Ticket,
        returns: Returns,
        deadline: Deadline,
    ) -> Result<()> {
        if returns == Returns::Received {
            through_signals(|| local.await_receipt(&self.handle.spin, ticket, deadline))
        } else {
            Ok(())
        }
    }

    fn await_remote(&self, ticket: u64, returns: Returns, deadline: Deadline) -> Result<()> {
        if returns == Returns::Received {
            let wait = || self.handle.call(Op::AwaitReceipt, [ticket, 0], deadline);
            through_signals(wait).map(drop)
        } else {
            Ok(())
        }
    }
}

/// Waits on when a signal handler ran: the message is sent, and a sender that heard of the signal would send it again.
fn through_signals<T>(wait: impl Fn() -> Result<T>) -> Result<T> {
    loop {
        match wait() {
            Err(Error::Interrupted) => {}
            waited => return waited,
        }
    }
}

fn received_into(message: &Message, buffer: &mut [u8]) -> Received {
    Received {
        hint: message.hint(),
        length: message.copy_to(0, buffer),
        trace: message.trace(),
    }
}

/// The memory of a channel of this node.
pub(crate) fn open(member: &Member, entry: &ObjectEntry) -> Result<Ring> {
    Ring::open(member.pool(), entry.block.load(Ordering::Acquire))
}

/// Frees what the memory of a channel names to which nobody refers any more: the blocks of its messages, and the rings that
/// it has grown by. If the process dies in here, this is done once more, and goes on where it was.
pub(crate) fn discard(member: &Member, id: ObjectId, entry: &ObjectEntry) {
    let (Ok(first), Ok(thread)) = (open(member, entry), member.thread_to_empty()) else {
        return;
    };
    drain(member, id, &thread, (0, 0), &first);
    for (n, word) in (1..).zip((1..).map_while(|n| first.segment(n))) {
        let block = word.load(Ordering::Acquire);
        if block == 0 {
            // None, or freed by a process that died in here before it came to the next one.
            continue;
        }
        if let Ok(ring) = Ring::open(member.pool(), block) {
            drain(member, id, &thread, (0, n), &ring);
        }
        // It fails only for what was scribbled over.
        let _ = member.free_then(block, || word.store(0, Ordering::Release));
        word.store(0, Ordering::Release);
    }
}

/// Receives and drops what is in a ring that nobody else uses any more. `row`: which one of the object's rings it is.
pub(crate) fn empty(member: &Member, id: ObjectId, ring: &Ring, row: u32) {
    // It fails only on memory that was scribbled over.
    if let Ok(thread) = member.thread_to_empty() {
        drain(member, id, &thread, (row, 0), ring);
    }
}

/// Frees the blocks of the messages in a ring. Each is received like any other, so a death in the middle leaves nothing that
/// recovery of a receiver does not know.
fn drain(
    member: &Member,
    id: ObjectId,
    thread: &ThreadGuard<'_>,
    (row, segment): (u32, u64),
    ring: &Ring,
) {
    let (index, generation) = (id.index, id.generation);
    // Before the operation: whoever reads the operation finds its row.
    thread.intent.set(ROW_ARGUMENT, row.into());
    thread
        .intent
        .begin(Op::Receive, index, generation, [Ticket::NONE, 0]);
    let announce = |position| thread.intent.set(0, Ticket { segment, position }.pack());
    let look = |position| match ring.content(position).by_reference {
        true => Take::Claim,
        false => Take::<_>::Copied(()),
    };
    // Nobody else is left, so each claim succeeds, and the loop ends after at most one round of the cells.
    let mut skipped = false;
    let mut next = || cell::receive(ring, member.slot().index, &mut skipped, announce, look);
    loop {
        match next() {
            Ok(Found::Copied(..)) => {}
            Ok(Found::Claimed(position)) => {
                let released = || cell::release(ring, position);
                // It fails only for what was scribbled over.
                if member.free_then(ring.block(position), released).is_err() {
                    released();
                }
            }
            _ => break,
        }
    }
    thread.intent.end();
}

/// Whether a channel is readable, and whether it is writable, found out by reading alone.
pub(crate) fn readiness(member: &Member, entry: &ObjectEntry) -> Result<(bool, bool)> {
    let first = open(member, entry)?;
    if first.limit() == 0 {
        return Ok((cell::is_readable(&first), cell::is_writable(&first)));
    }
    let chain = Chain {
        member,
        first,
        opened: None,
    };
    Ok((chain.is_readable(), chain.has_room()))
}

/// Makes all that sleep on a channel look again.
pub(crate) fn wake_everyone(member: &Member, entry: &ObjectEntry, id: ObjectId) -> Result<()> {
    let ring = open(member, entry)?;
    ring.readable().wake(u32::MAX);
    ring.writable().wake(u32::MAX);
    if !is_alive(entry, id) {
        ring.closing().wake(u32::MAX);
    }
    Ok(())
}
