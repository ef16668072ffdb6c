//! The operations on a channel of this node.

mod state;

use std::cell::Cell;
use std::io::IoSlice;
use std::sync::Arc;

use dragon_protocol::ObjectId;
use dragon_protocol::op::Op;
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{AtomicU64, Ordering};
use dragon_shmem::{Block, Deadline, Member, ThreadGuard};

use super::ROW_ARGUMENT;
use super::chain::Opened;
use super::links::Links as _;
use super::quick::{self, Quick, Small};
use super::test_point::{TestPoint, test_point};

use crate::cell::{self, Found, Place, Spot, Take};
use crate::error::{Error, Result};
use crate::message::Message;
use crate::object::{alive, is_alive, notify_watcher_of};
use crate::ring::{Content, Label, Ring};
use crate::set::Interest;
use crate::wait::{self, Spin, WaitWord, fence_after_rmw, mark};

/// What is sent.
#[derive(Debug)]
pub(crate) enum Outgoing<'a> {
    /// Bytes that fit into a cell, and how many.
    Inline(&'a [IoSlice<'a>], u64),
    /// Bytes that fit into a cell and speak of a private block, which is shared with the message.
    Carrying(&'a [IoSlice<'a>], u64, u64),
    /// A private block.
    Block(Block),
    /// A block that is shared already: one that is put back.
    Shared(Block),
}

impl Outgoing<'_> {
    #[inline]
    pub(crate) fn block_to_share(&self) -> Option<u64> {
        match self {
            Self::Inline(..) | Self::Shared(_) => None,
            Self::Carrying(_, _, address) => Some(*address),
            Self::Block(block) => Some(block.offset),
        }
    }

    #[inline]
    fn write(&self, ring: &Ring, position: u64, label: &Label) {
        match self {
            Self::Inline(parts, length) | Self::Carrying(parts, length, _) => {
                ring.write_inline(position, label, parts, *length);
            }
            Self::Block(block) | Self::Shared(block) => {
                ring.write_reference(position, label, block.offset, block.length);
            }
        }
    }
}

/// Where a message lies: the ring of a chain, and the position in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) segment: u64,
    pub(crate) position: u64,
}

/// Bits of a position in a packed ticket.
const POSITION: u32 = 58;

impl Ticket {
    /// Argument 0 of an intent to send or receive, before the first claim.
    pub(crate) const NONE: u64 = u64::MAX;

    /// As one word: argument 0 of an intent, and what a remote sender is told.
    #[inline]
    pub(crate) const fn pack(self) -> u64 {
        self.segment << POSITION | self.position & ((1 << POSITION) - 1)
    }

    /// The inverse of [`Ticket::pack`].
    pub(crate) const fn unpack(word: u64) -> Option<Self> {
        if word == Self::NONE {
            return None;
        }
        Some(Self {
            segment: word >> POSITION,
            position: word & ((1 << POSITION) - 1),
        })
    }
}

/// What a receiver reads from.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    /// A cell: its ring, position and content. What is read is thrown away if another receiver turns out to have it.
    Cell(&'a Ring, u64, &'a Content),
    /// A message that came by reference.
    Message(Message),
}

impl Source<'_> {
    /// Makes it the contents of a message, in the place of what that was.
    #[inline]
    pub(crate) fn read_into(self, message: &mut Message) {
        match self {
            Self::Cell(ring, position, content) => message.fill(ring, position, content),
            Self::Message(leased) => *message = leased,
        }
    }
}

/// A channel of this node, for one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local<'a> {
    pub(crate) member: &'a Arc<Member>,
    pub(crate) id: ObjectId,
    pub(crate) entry: &'a ObjectEntry,
    /// The first ring.
    pub(crate) ring: &'a Ring,
    /// The further rings of an unbounded channel that the handle has opened.
    pub(crate) opened: Option<&'a Opened>,
    /// Which ring of an object it is that has several: a conversation's, or that of a level.
    pub(crate) row: Option<u32>,
}

/// Sending.
impl Local<'_> {
    /// Sends bytes: in a cell when they fit, in a block otherwise.
    #[inline]
    pub(crate) fn send_parts(
        &self,
        spin: &Spin,
        parts: &[IoSlice<'_>],
        label: &Label,
        deadline: Deadline,
    ) -> Result<Ticket> {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if self.ring.fits(length, label.trace.is_some()) {
            let thread = self.member.thread()?;
            let outgoing = Outgoing::Inline(parts, length);
            return self.send(&thread, spin, &outgoing, label, deadline);
        }
        self.send_large(spin, parts, length, label, deadline)
    }

    fn send_large(
        &self,
        spin: &Spin,
        parts: &[IoSlice<'_>],
        length: u64,
        label: &Label,
        deadline: Deadline,
    ) -> Result<Ticket> {
        alive(self.entry, self.id)?;
        let block = block_of(self.member, parts, length)?;
        let thread = self.member.thread()?;
        let sent = self.send(&thread, spin, &Outgoing::Block(block), label, deadline);
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
        label: &Label,
        deadline: Deadline,
    ) -> Result<Ticket> {
        self.begin(thread, Op::Send, outgoing.block_to_share().unwrap_or(0));
        let sent = match self.deposit(thread, outgoing, label) {
            Ok(Some(ticket)) => Ok(ticket),
            Err(error) => Err(error),
            Ok(None) => self.send_later(thread, spin, outgoing, label, deadline),
        };
        thread.intent.end();
        if sent.is_ok() {
            self.count_sent(1);
        }
        sent
    }

    #[cold]
    fn send_later(
        &self,
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        outgoing: &Outgoing<'_>,
        label: &Label,
        deadline: Deadline,
    ) -> Result<Ticket> {
        if deadline == Deadline::Now {
            return Err(self.no_room());
        }
        self.wait_writable(thread, spin, deadline, || {
            self.deposit(thread, outgoing, label)
        })
    }

    /// One try to send. `None`: the channel is full.
    #[inline]
    pub(crate) fn deposit(
        &self,
        thread: &ThreadGuard<'_>,
        outgoing: &Outgoing<'_>,
        label: &Label,
    ) -> Result<Option<Ticket>> {
        alive(self.entry, self.id)?;
        if self.ring.limit() != 0 {
            return self.deposit_in_chain(thread, outgoing, label);
        }
        let segment = 0;
        let announce = |position| {
            thread.intent.set(0, Ticket { segment, position }.pack());
            true
        };
        match cell::claim_to_send(self.ring, self.member.slot().index, announce) {
            Ok(Place::Claimed(position)) => {
                self.fill(self.ring, position, outgoing, label)?;
                Ok(Some(Ticket { segment, position }))
            }
            Ok(Place::Full | Place::Closed(_)) => Ok(None),
            Err(error) => Err(broken(error)),
        }
    }

    #[cold]
    fn deposit_in_chain(
        &self,
        thread: &ThreadGuard<'_>,
        outgoing: &Outgoing<'_>,
        label: &Label,
    ) -> Result<Option<Ticket>> {
        let Some((ring, ticket)) = self.claim_place_in_chain(thread)? else {
            return Ok(None);
        };
        self.fill(&ring, ticket.position, outgoing, label)?;
        Ok(Some(ticket))
    }

    /// Writes a message into a claimed cell, and publishes it.
    #[inline]
    fn fill(
        &self,
        ring: &Ring,
        position: u64,
        outgoing: &Outgoing<'_>,
        label: &Label,
    ) -> Result<()> {
        outgoing.write(ring, position, label);
        if let Some(address) = outgoing.block_to_share()
            // Shared only while the claim stands: from the claim recovery knows whose the block is.
            && let Err(error) = self.member.share(address)
        {
            cell::abandon(ring, position);
            self.readable_changed(1);
            return Err(error.into());
        }
        test_point(TestPoint::Sending);
        cell::publish(ring, position, self.member.slot().index);
        self.readable_changed(1);
        Ok(())
    }

    /// Claims a cell for a message. `None`: the channel is full.
    fn claim_place(&self, thread: &ThreadGuard<'_>) -> Result<Option<(Ring, Ticket)>> {
        alive(self.entry, self.id)?;
        if self.ring.limit() != 0 {
            return self.claim_place_in_chain(thread);
        }
        let segment = 0;
        let announce = |position| {
            thread.intent.set(0, Ticket { segment, position }.pack());
            true
        };
        match cell::claim_to_send(self.ring, self.member.slot().index, announce) {
            Ok(Place::Claimed(position)) => Ok(Some((*self.ring, Ticket { segment, position }))),
            Ok(Place::Full | Place::Closed(_)) => Ok(None),
            Err(error) => Err(broken(error)),
        }
    }

    /// Sends messages that fit into cells, as long as there is room; returns how many. One record, one look for sleepers.
    pub(crate) fn send_some(
        &self,
        thread: &ThreadGuard<'_>,
        messages: &[(&[u8], u64)],
    ) -> Result<usize> {
        self.begin(thread, Op::Send, 0);
        let slot = self.member.slot().index;
        let mut sent = 0;
        let mut failed = Ok(());
        for &(bytes, hint) in messages {
            match self.claim_place(thread) {
                Ok(Some((ring, ticket))) => {
                    let label = Label { hint, trace: None };
                    let parts = [IoSlice::new(bytes)];
                    ring.write_inline(ticket.position, &label, &parts, bytes.len() as u64);
                    // If this process dies behind it, recovery wakes who sleeps: the intent names the channel.
                    cell::publish_more(&ring, ticket.position, slot);
                    sent += 1;
                }
                Ok(None) => break,
                Err(error) => {
                    failed = Err(error);
                    break;
                }
            }
        }
        if sent != 0 {
            dragon_shmem::sync::fence(Ordering::SeqCst);
            self.wake_readable(u32::try_from(sent).unwrap_or(u32::MAX));
            self.count_sent(sent as u64);
        }
        thread.intent.end();
        // What was sent counts more than why there is not more of it: the next call says that.
        if sent == 0 {
            failed.map(|()| 0)
        } else {
            Ok(sent)
        }
    }

    /// Waits until `attempt` finds room.
    pub(crate) fn wait_writable<T>(
        &self,
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        deadline: Deadline,
        attempt: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        self.wait_writable_or(thread, spin, deadline, attempt, || false)
    }

    /// As [`Local::wait_writable`]; `over`: nobody will make room any more, as `attempt` finds.
    pub(crate) fn wait_writable_or<T>(
        &self,
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        deadline: Deadline,
        attempt: impl FnMut() -> Result<Option<T>>,
        over: impl Fn() -> bool,
    ) -> Result<T> {
        let writable = |look| {
            over()
                || match (self.ring.limit(), look) {
                    (0, Look::Glance) => cell::room_is_shown(self.ring),
                    (0, Look::Thorough) => cell::maybe_writable(self.ring),
                    _ => self.chain().has_room(),
                }
        };
        let at = (self.ring.writable(), mark::SECOND);
        self.wait(at, thread, spin, deadline, attempt, writable)
    }

    /// The error of the try form without room.
    fn no_room(&self) -> Error {
        match self.ring.limit() {
            0 => Error::Full,
            limit => Error::AtLimit {
                channel: self.id,
                limit,
                messages: self.length(),
            },
        }
    }
}

/// Receiving.
impl Local<'_> {
    #[inline]
    pub(crate) fn receive(&self, spin: &Spin, deadline: Deadline) -> Result<Message> {
        // Filled in its place: moving a message through the results of every step would cost more than all else.
        let mut message = Message::empty();
        self.receive_with(spin, u64::MAX, deadline, |source| {
            source.read_into(&mut message);
        })?;
        Ok(message)
    }

    /// Receives a message of at most `longest` bytes by `read`, which may be called several times: the last one counts.
    #[inline]
    pub(crate) fn receive_with(
        &self,
        spin: &Spin,
        longest: u64,
        deadline: Deadline,
        mut read: impl FnMut(Source<'_>),
    ) -> Result<()> {
        if self.try_receive(None, longest, &mut read)?.is_some() {
            return Ok(());
        }
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        self.receive_later(spin, longest, deadline, &mut read)
    }

    #[cold]
    fn receive_later(
        &self,
        spin: &Spin,
        longest: u64,
        deadline: Deadline,
        read: &mut impl FnMut(Source<'_>),
    ) -> Result<()> {
        let thread = self.member.thread()?;
        self.begin(&thread, Op::Receive, 0);
        self.wait_readable(&thread, spin, deadline, || {
            self.try_receive(Some(&thread), longest, read)
        })
    }

    /// One try to receive. `None`: nothing is there. A small message in a cell needs no record, since it is the caller's
    /// from one instruction to the next; for others one is taken.
    #[inline]
    pub(crate) fn try_receive(
        &self,
        thread: Option<&ThreadGuard<'_>>,
        longest: u64,
        read: &mut impl FnMut(Source<'_>),
    ) -> Result<Option<()>> {
        alive(self.entry, self.id)?;
        let look = |spot: Spot, message| {
            read(Source::Cell(
                self.ring,
                spot.position,
                &Content::from(message),
            ));
        };
        match self.quick().receive(longest, look) {
            Small::Taken => Ok(Some(())),
            Small::Empty => Ok(None),
            Small::Other => self.try_any(thread, longest, read),
        }
    }

    #[inline]
    fn quick(&self) -> Quick<'_> {
        Quick {
            member: self.member,
            id: &self.id,
            entry: self.entry,
            ring: self.ring,
        }
    }

    /// [`Local::try_receive`] for any message and any channel.
    #[cold]
    fn try_any(
        &self,
        thread: Option<&ThreadGuard<'_>>,
        longest: u64,
        read: &mut impl FnMut(Source<'_>),
    ) -> Result<Option<()>> {
        if let Some(thread) = thread {
            return self.try_receive_recorded(thread, longest, read);
        }
        let thread = self.member.thread()?;
        self.begin(&thread, Op::Receive, 0);
        self.try_receive_recorded(&thread, longest, read)
    }

    fn try_receive_recorded(
        &self,
        thread: &ThreadGuard<'_>,
        longest: u64,
        read: &mut impl FnMut(Source<'_>),
    ) -> Result<Option<()>> {
        loop {
            let (segment, ring) = self.receiving_ring()?;
            let mut skipped = false;
            let announce = |position| thread.intent.set(0, Ticket { segment, position }.pack());
            let look = |position| {
                let content = ring.content(position);
                if content.length > longest {
                    Take::Leave(content.length)
                } else if Ring::copied_first(&content) {
                    read(Source::Cell(&ring, position, &content));
                    Take::Copied(())
                } else {
                    Take::Claim
                }
            };
            let slot = self.member.slot().index;
            let found = cell::receive(&ring, slot, &mut skipped, announce, look);
            let other = match found.map_err(broken)? {
                Found::Copied(..) => {
                    test_point(TestPoint::Receiving);
                    self.received(skipped);
                    return Ok(Some(()));
                }
                Found::Claimed(position) => {
                    let released = Cell::new(false);
                    let release = || {
                        if !released.replace(true) {
                            cell::release(&ring, position);
                        }
                    };
                    let value = self.read_claimed(&ring, position, read, release);
                    test_point(TestPoint::Receiving);
                    release();
                    self.received(skipped);
                    return value.map(Some);
                }
                Found::Left(_, length) => Some(Either::Long(length)),
                Found::End => Some(Either::End),
                Found::Empty => None,
            };
            if skipped {
                self.writable_changed(u32::MAX);
            }
            match other {
                None => return Ok(None),
                Some(Either::Long(length)) => {
                    return Err(Error::TooLong {
                        channel: self.id,
                        length,
                        room: longest,
                    });
                }
                Some(Either::End) => self.go_on_receiving(segment)?,
            }
        }
    }

    fn read_claimed(
        &self,
        ring: &Ring,
        position: u64,
        read: &mut impl FnMut(Source<'_>),
        release: impl FnOnce(),
    ) -> Result<()> {
        let content = ring.content(position);
        if !content.by_reference {
            read(Source::Cell(ring, position, &content));
            return Ok(());
        }
        let block = ring.block(position);
        let trace = ring.trace(position, &content);
        let mut message =
            Message::leased(self.member, content.hint, block, content.length, release)?;
        message.set_trace(trace);
        read(Source::Message(message));
        Ok(())
    }

    #[inline]
    fn received(&self, skipped: bool) {
        self.writable_changed(if skipped { u32::MAX } else { 1 });
        count(&self.member.counters().receives, 1);
    }

    /// Waits until `attempt` finds a message.
    #[inline]
    pub(crate) fn wait_readable<T>(
        &self,
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        deadline: Deadline,
        attempt: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        self.wait_readable_or(thread, spin, deadline, attempt, || false)
    }

    /// As [`Local::wait_readable`]; `over`: nobody will send any more, as `attempt` finds.
    #[inline]
    pub(crate) fn wait_readable_or<T>(
        &self,
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        deadline: Deadline,
        attempt: impl FnMut() -> Result<Option<T>>,
        over: impl Fn() -> bool,
    ) -> Result<T> {
        let readable = || {
            if over() {
                true
            } else if self.ring.limit() == 0 {
                cell::maybe_readable(self.ring)
            } else {
                self.chain().maybe_readable()
            }
        };
        self.wait_for_message(thread, spin, deadline, attempt, readable)
    }

    /// Waits until `attempt` finds a message, where receivers wait. `readable`: whether it is worth while to try.
    #[inline]
    pub(crate) fn wait_for_message<T>(
        &self,
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        deadline: Deadline,
        attempt: impl FnMut() -> Result<Option<T>>,
        readable: impl Fn() -> bool,
    ) -> Result<T> {
        let at = (self.ring.readable(), mark::FIRST);
        self.wait(at, thread, spin, deadline, attempt, |_| readable())
    }

    /// Waits at a word, with its mark, until `attempt` gives something; it is worth while to try when `ready`.
    #[inline]
    fn wait<T>(
        &self,
        (word, mark): (&WaitWord, u32),
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Result<Option<T>>,
        ready: impl Fn(Look) -> bool,
    ) -> Result<T> {
        let mut rounds = 0_u32;
        let mut spun = || {
            rounds = rounds.wrapping_add(1);
            let look = if rounds.is_multiple_of(ROUNDS_PER_THOROUGH_LOOK) {
                Look::Thorough
            } else {
                Look::Glance
            };
            ready(look) || !is_alive(self.entry, self.id)
        };
        let words = self.member.control().words();
        while spin.until(words, &thread.intent, deadline, &mut spun) {
            if let Some(value) = attempt()? {
                return Ok(value);
            }
            if deadline.passed() {
                return Err(Error::Timeout);
            }
        }
        let counted = |yes| thread.intent.step(if yes { mark } else { 0 });
        let more = || ready(Look::Thorough);
        wait::sleep_until(word, deadline, counted, attempt, more)
    }

    /// The oldest message, copied; it stays in the channel. `None`: nothing is there.
    pub(crate) fn try_peek(&self) -> Result<Option<Message>> {
        alive(self.entry, self.id)?;
        loop {
            let (segment, ring) = self.receiving_ring()?;
            let mut skipped = false;
            let look = |position| Take::<(), _>::Leave(self.copy_of(&ring, position));
            let found = cell::receive(&ring, 0, &mut skipped, |_| {}, look);
            if skipped {
                self.writable_changed(u32::MAX);
            }
            match found.map_err(broken)? {
                Found::Left(_, message) => return message.map(Some),
                Found::End => self.go_on_receiving(segment)?,
                _ => return Ok(None),
            }
        }
    }

    /// A copy of a message that others may receive meanwhile; then it is thrown away, an error likewise.
    fn copy_of(&self, ring: &Ring, position: u64) -> Result<Message> {
        let content = ring.content(position);
        let mut message = if content.by_reference {
            let address = ring.block(position);
            self.member.check(address, content.length)?;
            let mut bytes = vec![0; crate::ring::to_usize(content.length)];
            self.member.read(address, 0, &mut bytes)?;
            Message::owned(content.hint, bytes)
        } else {
            let mut bytes = vec![0; crate::ring::to_usize(content.length)];
            ring.copy_unclaimed(position, &content, &mut bytes);
            Message::owned(content.hint, bytes)
        };
        message.set_trace(ring.trace(position, &content));
        Ok(message)
    }

    /// Peeks, and waits for a message until the deadline.
    pub(crate) fn peek(&self, spin: &Spin, deadline: Deadline) -> Result<Message> {
        if let Some(message) = self.try_peek()? {
            return Ok(message);
        }
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        let thread = self.member.thread()?;
        self.begin(&thread, Op::Peek, 0);
        self.wait_readable(&thread, spin, deadline, || self.try_peek())
    }
}

/// How a spinner looks whether there is something for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Without disturbing others; may miss something.
    Glance,
    /// Whatever it costs.
    Thorough,
}

/// One look of a spinner in so many is a thorough one.
const ROUNDS_PER_THOROUGH_LOOK: u32 = 64;

/// What there is besides a message that was received.
enum Either {
    /// A message that is longer than the receiver's room for it.
    Long(u64),
    /// The end of a ring.
    End,
}

/// Telling others.
impl Local<'_> {
    /// Wakes whom new messages concern.
    #[inline]
    pub(crate) fn readable_changed(&self, count: u32) {
        // Pairs with the fences of `sleep` and of `watch`. Publishing is a swap.
        fence_after_rmw();
        self.wake_readable(count);
    }

    #[inline]
    fn wake_readable(&self, count: u32) {
        quick::wake(self.member, self.ring.readable(), count);
        notify_watcher_of(self.member, self.entry, self.id, Interest::READABLE);
    }

    /// Wakes whom free cells concern.
    #[inline]
    pub(crate) fn writable_changed(&self, count: u32) {
        // As above; receiving is a compare-and-swap, and releasing a swap.
        fence_after_rmw();
        quick::wake(self.member, self.ring.writable(), count);
        notify_watcher_of(self.member, self.entry, self.id, Interest::WRITABLE);
    }

    #[inline]
    pub(crate) fn begin(&self, thread: &ThreadGuard<'_>, op: Op, block: u64) {
        let (index, generation) = (self.id.index, self.id.generation);
        if let Some(row) = self.row {
            // Before the operation: whoever reads the operation finds its row.
            thread.intent.set(ROW_ARGUMENT, row.into());
        }
        thread
            .intent
            .begin(op, index, generation, [Ticket::NONE, block]);
    }

    #[inline]
    fn count_sent(&self, number: u64) {
        count(&self.member.counters().sends, number);
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

/// Counts some more; each slot's counters are written by its own process, and a lost count among its threads is no harm.
#[inline]
pub(crate) fn count(counter: &AtomicU64, number: u64) {
    counter.store(counter.load(Ordering::Relaxed) + number, Ordering::Relaxed);
}

pub(crate) fn broken(broken: cell::Broken) -> Error {
    dragon_shmem::Error::Corrupt {
        what: "cell of a channel",
        value: broken.0,
    }
    .into()
}
