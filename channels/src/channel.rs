//! Channels: bounded FIFO queues of messages, with several senders and receivers.

use std::io::IoSlice;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::Ordering;
use dragon_shmem::{Block, Deadline, Member, ThreadGuard};

use crate::cell;
use crate::error::{Error, Result, within};
use crate::message::Message;
use crate::object::{Handle, alive, is_alive, notify_watcher_of};
use crate::remote;
use crate::ring::{MAX_CAPACITY, MAX_INLINE, Ring};
use crate::set::Interest;
use crate::wait::{self, Spin, fence_after_rmw, mark};

/// How a channel is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelOptions {
    /// How many messages it holds.
    pub capacity: u32,
    /// Messages up to so many bytes travel in the channel's own memory; larger ones get a block of the pool.
    pub block: u32,
    /// A number of the user's choice.
    pub user: u64,
}

impl Default for ChannelOptions {
    /// 256 messages of 144 bytes: the channel fits into one page of the pool.
    fn default() -> Self {
        Self {
            capacity: 256,
            block: 144,
            user: 0,
        }
    }
}

/// A handle on a channel of this or another node. Handles can be used by several threads at once.
///
/// ```
/// use dragon_channels::{ChannelOptions, Deadline, Error, create_channel};
///
/// let member = dragon_channels::local::member()?;
/// let options = ChannelOptions { capacity: 2, ..ChannelOptions::default() };
/// let channel = create_channel(&member, &options)?;
/// channel.send(b"first", 1, Deadline::Never)?;
/// channel.send(b"second", 2, Deadline::Now)?;
/// assert_eq!(channel.send(b"third", 3, Deadline::Now), Err(Error::Full));
/// let message = channel.receive(Deadline::after(1_000_000_000))?;
/// assert_eq!((message.hint(), message.into_vec()), (1, b"first".to_vec()));
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Channel {
    handle: Handle,
    /// The channel's memory, when it lies on this node. The handle's reference keeps its block, the member its mapping.
    ring: Option<Ring>,
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
    } = *options;
    if member.is_forked() {
        return Err(Error::Forked);
    }
    within("capacity", capacity, 1, MAX_CAPACITY)?;
    within("block", block, 0, MAX_INLINE)?;
    let place = member.alloc(Ring::size(capacity, block))?.offset;
    let made = Ring::init(member.pool(), place, capacity, block).and_then(|()| {
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
    Ok(Channel {
        handle: Handle::created(member, id, user),
        ring: Some(ring),
    })
}

impl Channel {
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
        Ok(Self { handle, ring })
    }

    /// Sends a message; returns when it is in the channel.
    ///
    /// # Errors
    /// [`Error::Full`] (try form), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`], no memory for a large
    /// message, or what a remote channel's node answers.
    #[inline]
    pub fn send(&self, bytes: &[u8], hint: u64, deadline: Deadline) -> Result<()> {
        self.send_parts(&[IoSlice::new(bytes)], hint, deadline)
    }

    /// Sends one message made of several parts.
    ///
    /// # Errors
    /// As [`Channel::send`].
    #[inline]
    pub fn send_parts(&self, parts: &[IoSlice<'_>], hint: u64, deadline: Deadline) -> Result<()> {
        match self.local()? {
            Some(local) => local.send_parts(&self.handle.spin, parts, hint, deadline),
            None => remote::send(
                self.handle.member(),
                self.handle.id(),
                parts,
                hint,
                deadline,
            ),
        }
    }

    /// Sends a block that this process allocated, without copying it. With success the block is the receiver's; otherwise
    /// it stays the caller's.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_block(&self, block: Block, hint: u64, deadline: Deadline) -> Result<()> {
        match self.local()? {
            Some(local) => {
                let thread = local.member.thread()?;
                local.send(
                    &thread,
                    &self.handle.spin,
                    &Outgoing::Block(block),
                    hint,
                    deadline,
                )
            }
            None => remote::send_block(
                self.handle.member(),
                self.handle.id(),
                block,
                hint,
                deadline,
            ),
        }
    }

    /// Receives the oldest message.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`], or what a remote
    /// channel's node answers.
    #[inline]
    pub fn receive(&self, deadline: Deadline) -> Result<Message> {
        match self.local()? {
            Some(local) => local.receive(&self.handle.spin, deadline),
            None => remote::receive(self.handle.member(), self.handle.id(), deadline),
        }
    }

    /// Waits until a message can be received; returns how many there are, those just being sent among them.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn poll(&self, deadline: Deadline) -> Result<u64> {
        match self.local()? {
            Some(local) => local.poll(&self.handle.spin, deadline),
            None => Ok(self.handle.call(Op::PollReadable, [0, 0], deadline)?[0]),
        }
    }

    /// How many messages the channel holds (those being sent among them), and how many it can hold.
    ///
    /// # Errors
    /// [`Error::Destroyed`], or what a remote channel's node answers.
    pub fn attributes(&self) -> Result<(u64, u64)> {
        match self.local()? {
            Some(local) => local.attributes(),
            None => {
                let [length, capacity] = self.handle.call(Op::Attributes, [0, 0], Deadline::Now)?;
                Ok((length, capacity))
            }
        }
    }

    crate::object::common_methods!();

    #[inline]
    fn local(&self) -> Result<Option<Local<'_>>> {
        let (Some(entry), Some(ring)) = (self.handle.local()?, self.ring) else {
            return Ok(None);
        };
        Ok(Some(Local {
            member: self.handle.member(),
            id: self.handle.id(),
            entry,
            ring,
        }))
    }
}

/// The memory of a channel of this node.
pub(crate) fn open(member: &Member, entry: &ObjectEntry) -> Result<Ring> {
    Ring::open(member.pool(), entry.block.load(Ordering::Acquire))
}

/// Frees the blocks of the messages in a channel to which nobody refers any more. Each is received like any other, so a
/// death in the middle leaves nothing that recovery of a receiver does not know.
pub(crate) fn discard(member: &Member, id: ObjectId, entry: &ObjectEntry) {
    if let Ok(ring) = open(member, entry) {
        empty(member, id, ring, 0);
    }
}

/// Receives and drops what is in a ring that nobody else uses any more. `row`: which one of the object's rings it is.
pub(crate) fn empty(member: &Member, id: ObjectId, ring: Ring, row: u32) {
    let Ok(thread) = member.thread() else {
        return;
    };
    let (index, generation) = (id.index, id.generation);
    // Before the operation: whoever reads the operation finds its row.
    thread.intent.set(ROW_ARGUMENT, row.into());
    thread
        .intent
        .begin(Op::Receive, index, generation, [NO_POSITION, 0]);
    let announce = |position| thread.intent.set(0, position);
    // Nobody else is left, so each claim succeeds, and the loop ends after at most one round of the cells.
    while let Ok(cell::Found {
        position: Some(position),
        ..
    }) = cell::claim_to_receive(&ring, member.slot().index, announce)
    {
        let released = || cell::release(&ring, position);
        match ring.content(position).block {
            // It fails only for what was scribbled over.
            Some(block) if member.free_then(block, released).is_ok() => {}
            _ => released(),
        }
    }
}

/// Whether a channel is readable, and whether it is writable, found out by reading alone.
pub(crate) fn readiness(member: &Member, entry: &ObjectEntry) -> Result<(bool, bool)> {
    let ring = open(member, entry)?;
    Ok((cell::is_readable(&ring), cell::is_writable(&ring)))
}

/// Makes all senders and receivers that sleep look again.
pub(crate) fn wake_everyone(member: &Member, entry: &ObjectEntry) -> Result<()> {
    let ring = open(member, entry)?;
    ring.readable().wake(u32::MAX);
    ring.writable().wake(u32::MAX);
    Ok(())
}

/// What is sent.
#[derive(Debug)]
pub(crate) enum Outgoing<'a> {
    /// Bytes that fit into a cell.
    Inline(&'a [IoSlice<'a>]),
    /// Bytes that fit into a cell and speak of a private block, which is shared with the message.
    Carrying(&'a [IoSlice<'a>], u64),
    /// A private block.
    Block(Block),
    /// A block that is shared already: one that is put back.
    Shared(Block),
}

impl Outgoing<'_> {
    pub(crate) fn block_to_share(&self) -> Option<u64> {
        match self {
            Self::Inline(_) | Self::Shared(_) => None,
            Self::Carrying(_, offset) => Some(*offset),
            Self::Block(block) => Some(block.offset),
        }
    }
}

/// Argument 0 of an intent to send or receive, before the first claim.
pub(crate) const NO_POSITION: u64 = u64::MAX;
/// The argument that says which ring of an object with several ones it is about.
pub(crate) const ROW_ARGUMENT: usize = 2;

/// A channel of this node, for one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local<'a> {
    pub(crate) member: &'a Arc<Member>,
    pub(crate) id: ObjectId,
    pub(crate) entry: &'a ObjectEntry,
    pub(crate) ring: Ring,
}

impl Local<'_> {
    #[inline]
    pub(crate) fn send_parts(
        &self,
        spin: &Spin,
        parts: &[IoSlice<'_>],
        hint: u64,
        deadline: Deadline,
    ) -> Result<()> {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if length <= self.ring.inline() {
            let thread = self.member.thread()?;
            return self.send(&thread, spin, &Outgoing::Inline(parts), hint, deadline);
        }
        self.send_large(spin, parts, length, hint, deadline)
    }

    fn send_large(
        &self,
        spin: &Spin,
        parts: &[IoSlice<'_>],
        length: u64,
        hint: u64,
        deadline: Deadline,
    ) -> Result<()> {
        alive(self.entry, self.id)?;
        let block = block_of(self.member, parts, length)?;
        let thread = self.member.thread()?;
        let sent = self.send(&thread, spin, &Outgoing::Block(block), hint, deadline);
        if sent.is_err() {
            drop(thread);
            self.member.free(block.offset)?;
        }
        sent
    }

    /// Sends with the thread record that the caller has.
    #[inline]
    pub(crate) fn send(
        &self,
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        outgoing: &Outgoing<'_>,
        hint: u64,
        deadline: Deadline,
    ) -> Result<()> {
        let shares = outgoing.block_to_share().unwrap_or(0);
        let (index, generation) = (self.id.index, self.id.generation);
        thread
            .intent
            .begin(Op::Send, index, generation, [NO_POSITION, shares]);
        let attempt = || self.deposit(thread, outgoing, hint);
        let sent = match attempt() {
            Ok(Some(())) => Ok(()),
            Err(error) => Err(error),
            Ok(None) if deadline == Deadline::Now => Err(Error::Full),
            Ok(None) => self.wait_to_send(thread, spin, deadline, attempt),
        };
        thread.intent.end();
        if sent.is_ok() {
            count(
                &self
                    .member
                    .control()
                    .slot(self.member.slot().index)?
                    .counters
                    .sends,
            );
        }
        sent
    }

    #[cold]
    pub(crate) fn wait_to_send(
        &self,
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Result<Option<()>>,
    ) -> Result<()> {
        let writable = || cell::maybe_writable(&self.ring);
        let ready = || writable() || !is_alive(self.entry, self.id);
        while spin.until(
            self.member.control().words(),
            &thread.intent,
            deadline,
            ready,
        ) {
            if let Some(sent) = attempt()? {
                return Ok(sent);
            }
            if deadline.passed() {
                return Err(Error::Timeout);
            }
        }
        let counted = |yes| thread.intent.step(if yes { mark::SECOND } else { 0 });
        wait::sleep_until(self.ring.writable(), deadline, counted, attempt, writable)
    }

    /// One try to send. `None`: the channel is full.
    #[inline]
    pub(crate) fn deposit(
        &self,
        thread: &ThreadGuard<'_>,
        outgoing: &Outgoing<'_>,
        hint: u64,
    ) -> Result<Option<()>> {
        alive(self.entry, self.id)?;
        let slot = self.member.slot().index;
        let announce = |position| thread.intent.set(0, position);
        let claimed = cell::claim_to_send(&self.ring, slot, announce).map_err(broken)?;
        let Some(position) = claimed else {
            return Ok(None);
        };
        match outgoing {
            Outgoing::Inline(parts) | Outgoing::Carrying(parts, _) => {
                self.ring.write_inline(position, hint, parts);
            }
            Outgoing::Block(block) | Outgoing::Shared(block) => {
                self.ring
                    .write_reference(position, hint, block.offset, block.length);
            }
        }
        if let Some(offset) = outgoing.block_to_share()
            // Shared only while the claim stands: from the claim recovery knows whose the block is.
            && let Err(error) = self.member.share(offset)
        {
            cell::abandon(&self.ring, position);
            self.readable_changed();
            return Err(error.into());
        }
        test_point(TestPoint::Sending);
        cell::publish(&self.ring, position, slot);
        self.readable_changed();
        Ok(Some(()))
    }

    #[inline]
    pub(crate) fn receive(&self, spin: &Spin, deadline: Deadline) -> Result<Message> {
        let thread = self.member.thread()?;
        let (index, generation) = (self.id.index, self.id.generation);
        thread
            .intent
            .begin(Op::Receive, index, generation, [NO_POSITION, 0]);
        let attempt = || self.claim(&thread);
        let claimed = match attempt()? {
            Some(claimed) => claimed,
            None if deadline == Deadline::Now => return Err(Error::Empty),
            None => self.wait_readable(&thread, spin, deadline, attempt)?,
        };
        let counters = &self
            .member
            .control()
            .slot(self.member.slot().index)?
            .counters;
        count(&counters.receives);
        self.take(claimed)
    }

    #[inline]
    pub(crate) fn wait_readable<T>(
        &self,
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let readable = || cell::maybe_readable(&self.ring);
        let ready = || readable() || !is_alive(self.entry, self.id);
        while spin.until(
            self.member.control().words(),
            &thread.intent,
            deadline,
            ready,
        ) {
            if let Some(value) = attempt()? {
                return Ok(value);
            }
            if deadline.passed() {
                return Err(Error::Timeout);
            }
        }
        let counted = |yes| thread.intent.step(if yes { mark::FIRST } else { 0 });
        wait::sleep_until(self.ring.readable(), deadline, counted, attempt, readable)
    }

    /// One try to claim a message. `None`: nothing is there.
    #[inline]
    pub(crate) fn claim(&self, thread: &ThreadGuard<'_>) -> Result<Option<Claimed>> {
        alive(self.entry, self.id)?;
        let slot = self.member.slot().index;
        let announce = |position| thread.intent.set(0, position);
        let found = cell::claim_to_receive(&self.ring, slot, announce).map_err(broken)?;
        if found.position.is_none() && found.skipped {
            self.writable_changed(u32::MAX);
        }
        Ok(found.position.map(|position| Claimed {
            position,
            skipped: found.skipped,
        }))
    }

    /// Takes a claimed message out of its cell. Apart from the claim, so that the message itself is moved less.
    #[inline]
    pub(crate) fn take(&self, Claimed { position, skipped }: Claimed) -> Result<Message> {
        let content = self.ring.content(position);
        let released = std::cell::Cell::new(false);
        let message = match content.block {
            None => {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "cut to what fits into a cell"
                )]
                let length = content.length as usize;
                let bytes = self.ring.inline_bytes(position);
                // SAFETY: the cell has at least so many bytes, and the claim keeps senders away from it.
                Ok(unsafe { Message::copied(content.hint, bytes, length) })
            }
            Some(block) => {
                let release = || {
                    cell::release(&self.ring, position);
                    released.set(true);
                };
                Message::leased(self.member, content.hint, block, content.length, release)
            }
        };
        test_point(TestPoint::Receiving);
        if !released.get() {
            cell::release(&self.ring, position);
        }
        self.writable_changed(if skipped { u32::MAX } else { 1 });
        message
    }

    pub(crate) fn poll(&self, spin: &Spin, deadline: Deadline) -> Result<u64> {
        let attempt = || {
            let readable = self.is_readable()?;
            Ok(readable.then(|| cell::length(&self.ring).max(1)))
        };
        if let Some(count) = attempt()? {
            return Ok(count);
        }
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        let thread = self.member.thread()?;
        let (index, generation) = (self.id.index, self.id.generation);
        thread
            .intent
            .begin(Op::PollReadable, index, generation, [NO_POSITION, 0]);
        self.wait_readable(&thread, spin, deadline, attempt)
    }

    pub(crate) fn is_readable(&self) -> Result<bool> {
        alive(self.entry, self.id)?;
        let found = cell::peek(&self.ring).map_err(broken)?;
        if found.skipped {
            self.writable_changed(u32::MAX);
        }
        Ok(found.position.is_some())
    }

    pub(crate) fn attributes(&self) -> Result<(u64, u64)> {
        use cell::Cells as _;
        alive(self.entry, self.id)?;
        Ok((cell::length(&self.ring), self.ring.capacity().cells()))
    }

    /// Wakes whom a new message concerns.
    #[inline]
    pub(crate) fn readable_changed(&self) {
        // Pairs with the fences of `sleep_until` and of `watch`. Publishing ends with the compare-and-swap of the hint.
        fence_after_rmw();
        self.ring.readable().wake_sleepers(1);
        notify_watcher_of(self.member, self.entry, self.id, Interest::READABLE);
    }

    /// Wakes whom free cells concern.
    #[inline]
    pub(crate) fn writable_changed(&self, count: u32) {
        // As above; so does releasing.
        fence_after_rmw();
        self.ring.writable().wake_sleepers(count);
        notify_watcher_of(self.member, self.entry, self.id, Interest::WRITABLE);
    }
}

/// A private block with the parts of a message.
pub(crate) fn block_of(member: &Member, parts: &[IoSlice<'_>], length: u64) -> Result<Block> {
    let block = member.alloc(length)?;
    let mut at = block.offset;
    for part in parts {
        // Invariant: the block, in the default pool, has `length` bytes, the sum of the parts.
        member.pool().data().copy_in(at, part)?;
        at += part.len() as u64;
    }
    Ok(block)
}

/// Counts one more; each slot's counters are written by its own process, and a lost count among its threads is no harm.
#[inline]
pub(crate) fn count(counter: &dragon_shmem::sync::AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

pub(crate) fn broken(broken: cell::Broken) -> Error {
    dragon_shmem::Error::Corrupt {
        what: "cell of a channel",
        value: broken.0,
    }
    .into()
}

/// A message that this thread has claimed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claimed {
    position: u64,
    /// Places of dead senders were freed on the way.
    skipped: bool,
}

/// Where tests stop a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TestPoint {
    /// A payload of a broadcast is ready, and nobody has been woken.
    Triggering,
    /// A waiter has been woken, and has not read.
    Woken,
    /// A cell is claimed and written, not published.
    Sending,
    /// A message is claimed and taken, its cell not released.
    Receiving,
    /// A place in a set is claimed.
    Subscribing,
    /// A member is in its set, and not yet in its object's list.
    Subscribed,
    /// A member is on its way out of a set.
    Unsubscribing,
    /// A waiter has lowered a member's flag, and not yet looked again.
    Lowered,
    /// A row is claimed for a conversation.
    Opening,
    /// A conversation is open, and not yet shown to those who accept.
    Offering,
    /// A conversation is accepted, and still shown.
    Accepting,
    /// An end of a conversation is given up, and the other not yet told; or the row is being emptied.
    Closing,
}

#[cfg(any(not(test), loom))]
#[inline]
pub(crate) fn test_point(_: TestPoint) {}

#[cfg(all(test, not(loom)))]
pub(crate) use crate::fixture::test_point;
