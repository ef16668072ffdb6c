//! What is done to the rows of an endpoint of this node, by the processes of the node and by agents on behalf of others.

use std::sync::Arc;

use dragon_protocol::ObjectId;
use dragon_protocol::op::Op;
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{Ordering, fence, low};
use dragon_shmem::{Deadline, Member, ThreadGuard};

use super::rows::{Phase, Row, Rows, State, flag};
use crate::channel::{self, Outgoing, Source, TestPoint, Ticket, test_point};
use crate::error::{Error, Result};
use crate::message::Message;
use crate::object::{alive, notify_watcher_of};
use crate::ring::{Label, Ring};
use crate::set::Interest;
use crate::wait::{Spin, mark};

/// No row, in an intent.
pub(super) const NO_ROW: u64 = u64::MAX;

/// A conversation as a number: version 32 bits | row + 1. 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conversation {
    pub(super) row: u32,
    pub(super) version: u32,
}

impl Conversation {
    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.version) << 32 | u64::from(self.row + 1)
    }

    pub(super) fn of(number: u64) -> Option<Self> {
        Some(Self {
            row: low(number).checked_sub(1)?,
            version: low(number >> 32),
        })
    }
}

/// One end of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Sender,
    Receiver,
}

/// How an end is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// In good order.
    Closed,
    /// Its process died, or breaks off.
    Died,
}

impl End {
    fn slot(self, state: State) -> u32 {
        match self {
            Self::Sender => state.sender(),
            Self::Receiver => state.receiver(),
        }
    }

    fn ended(self) -> u32 {
        match self {
            Self::Sender => flag::SENDER_ENDED,
            Self::Receiver => flag::RECEIVER_ENDED,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Sender => Self::Receiver,
            Self::Receiver => Self::Sender,
        }
    }

    fn flag(self, how: How) -> u32 {
        match (self, how) {
            (Self::Sender, How::Closed) => flag::SENDER_CLOSED,
            (Self::Sender, How::Died) => flag::SENDER_DIED,
            (Self::Receiver, How::Closed) => flag::RECEIVER_CLOSED,
            (Self::Receiver, How::Died) => flag::RECEIVER_DIED,
        }
    }
}

/// An endpoint of this node that has rows, for one operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local<'a> {
    pub(super) member: &'a Arc<Member>,
    pub(super) id: ObjectId,
    pub(super) entry: &'a ObjectEntry,
    pub(super) rows: Rows,
}

impl Local<'_> {
    fn changed(&self, what: Interest) {
        notify_watcher_of(self.member, self.entry, self.id, what);
    }

    /// One try to open a conversation for the process of `slot`. `None`: all rows are in use.
    pub(super) fn open(
        &self,
        thread: &ThreadGuard<'_>,
        slot: u32,
    ) -> Result<Option<(Conversation, Ring)>> {
        alive(self.entry, self.id)?;
        let claimed = self.rows.claim(slot, |n| thread.intent.set(0, n.into()));
        let Some((n, row)) = claimed else {
            return Ok(None);
        };
        test_point(TestPoint::Opening);
        let version = State(row.state.load(Ordering::Relaxed)).version();
        let ring = match self.channel_of(thread, row) {
            Ok(ring) => ring,
            Err(error) => {
                self.free_row(row, version);
                return Err(error);
            }
        };
        let ticket = self.rows.next_ticket();
        row.ticket.store(ticket, Ordering::Relaxed);
        let offered = State::new(version, Phase::Open, flag::OFFERED, 0, slot);
        // Release: who accepts it sees its channel and its ticket.
        row.state.store(offered.0, Ordering::Release);
        test_point(TestPoint::Offering);
        self.show(n);
        let conversation = Conversation { row: n, version };
        Ok(Some((conversation, ring)))
    }

    /// The stream channel of a row that the caller has claimed.
    fn channel_of(&self, thread: &ThreadGuard<'_>, row: &Row) -> Result<Ring> {
        let block = row.block.load(Ordering::Acquire);
        if block != 0 {
            match row.ring(self.member.pool()) {
                Ok(ring) => return Ok(ring),
                // A channel that was kept, and scribbled over.
                Err(_) => self.give_channel_back(row, block),
            }
        }
        let shape = self.rows.shape;
        let size = Ring::size(shape.capacity, shape.inline);
        let block = self.member.alloc(size)?.offset;
        let made =
            Ring::init(self.member.pool(), block, shape.capacity, shape.inline, 0).and_then(|()| {
                // Named before it is shared: if this process dies, recovery frees it unless it is the row's by then.
                thread.intent.set(1, block);
                Ok(self.member.share(block)?)
            });
        if let Err(error) = made {
            thread.intent.set(1, 0);
            self.member.free(block)?;
            return Err(error);
        }
        row.block.store(block, Ordering::Release);
        thread.intent.set(1, 0);
        row.ring(self.member.pool())
    }

    /// Shows an offered row, and wakes one who waits for it.
    pub(super) fn show(&self, n: u32) {
        self.rows.offer(n);
        fence(Ordering::SeqCst);
        self.rows.acceptable().wake_sleepers(1);
        self.changed(Interest::READABLE);
    }

    /// One try to accept a conversation for the process of `slot`.
    pub(super) fn accept(
        &self,
        thread: &ThreadGuard<'_>,
        slot: u32,
    ) -> Result<Option<(Conversation, Ring)>> {
        alive(self.entry, self.id)?;
        while let Some((n, row)) = self.rows.oldest_offer() {
            let now = State(row.state.load(Ordering::Acquire));
            if now.phase() != Phase::Open || !now.has(flag::OFFERED) {
                continue;
            }
            thread.intent.set(0, n.into());
            let flags = now.flags() & !flag::OFFERED;
            let taken = State::new(now.version(), Phase::Open, flags, slot, now.sender());
            if row
                .state
                .compare_exchange(now.0, taken.0, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            test_point(TestPoint::Accepting);
            self.rows.withdraw(n);
            let conversation = Conversation {
                row: n,
                version: now.version(),
            };
            let ring = row.ring(self.member.pool()).inspect_err(|_| {
                // Nobody can receive from a channel that was scribbled over: the sender is told, and the row goes on.
                let _ = self.close(conversation, End::Receiver, How::Died, slot);
            })?;
            return Ok(Some((conversation, ring)));
        }
        Ok(None)
    }

    /// Puts a conversation back that nobody has received anything of: it waits for another receiver.
    pub(super) fn unaccept(&self, conversation: Conversation, slot: u32) -> Result<()> {
        let row = self.row(conversation)?;
        let back = |word| {
            let now = State(word);
            let ours = now.phase() == Phase::Open
                && now.version() == conversation.version
                && !now.has(flag::OFFERED | flag::RECEIVER_ENDED)
                && now.receiver() == slot;
            let flags = now.flags() | flag::OFFERED;
            ours.then(|| State::new(now.version(), Phase::Open, flags, 0, now.sender()).0)
        };
        if row
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, back)
            .is_ok()
        {
            self.show(conversation.row);
        }
        Ok(())
    }

    /// Takes back a conversation in which nothing was sent.
    pub(super) fn unopen(&self, conversation: Conversation, slot: u32) -> Result<()> {
        let row = self.row(conversation)?;
        let back = |word| {
            let now = State(word);
            let ours = now.phase() == Phase::Open
                && now.version() == conversation.version
                && now.has(flag::OFFERED)
                && now.sender() == slot;
            ours.then(|| State::new(now.version(), Phase::Closing, 0, 0, slot).0)
        };
        if row
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, back)
            .is_err()
        {
            return self.close(conversation, End::Sender, How::Died, slot);
        }
        self.rows.withdraw(conversation.row);
        self.finish_closing(conversation.row, row);
        Ok(())
    }

    fn row(&self, conversation: Conversation) -> Result<&Row> {
        self.rows
            .row(conversation.row)
            .ok_or(dragon_shmem::Error::NoSuchObject(self.id).into())
    }

    /// Gives one end up for the process of `slot`. The second one to end sees to the row.
    pub(super) fn close(
        &self,
        conversation: Conversation,
        end: End,
        how: How,
        slot: u32,
    ) -> Result<()> {
        let n = conversation.row;
        let row = self.row(conversation)?;
        let mut now = State(row.state.load(Ordering::Acquire));
        let next = loop {
            let ours = now.phase() == Phase::Open
                && now.version() == conversation.version
                && end.slot(now) == slot
                && !now.has(end.ended())
                && (end == End::Sender || !now.has(flag::OFFERED));
            if !ours {
                return Err(dragon_shmem::Error::NoSuchObject(self.id).into());
            }
            let next = if now.has(end.other().ended()) {
                State::new(now.version(), Phase::Closing, 0, 0, slot)
            } else {
                State(now.0 | State::new(0, Phase::Free, end.flag(how), 0, 0).0)
            };
            // Release: who sees the end sees everything that was sent before.
            match row
                .state
                .compare_exchange(now.0, next.0, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => break next,
                Err(other) => now = State(other),
            }
        };
        test_point(TestPoint::Closing);
        if next.phase() == Phase::Closing {
            self.finish_closing(n, row);
        } else {
            self.wake_row(row);
        }
        Ok(())
    }

    /// Makes both ends of a conversation look again. Both may have ended by now: the stream channel is not looked at.
    pub(super) fn wake_row(&self, row: &Row) {
        fence(Ordering::SeqCst);
        row.wake_everyone();
        self.changed(Interest::READABLE | Interest::WRITABLE);
    }

    /// Empties the channel of a row that is the caller's, gives it back unless it is kept, and frees the row. Can be
    /// repeated.
    pub(super) fn finish_closing(&self, n: u32, row: &Row) {
        let block = row.block.load(Ordering::Acquire);
        if let Ok(ring) = row.ring(self.member.pool()) {
            channel::empty(self.member, self.id, &ring, n);
        }
        if block != 0 && n >= self.rows.shape.kept {
            self.give_channel_back(row, block);
        }
        let version = State(row.state.load(Ordering::Relaxed)).version();
        self.free_row(row, version);
    }

    /// Frees the stream channel of a row that is the caller's.
    fn give_channel_back(&self, row: &Row, block: u64) {
        let forget = || row.block.store(0, Ordering::Release);
        // It fails only on memory that was scribbled over.
        let _ = self.member.free_then(block, forget);
        forget();
    }

    /// Makes a row that is the caller's free for the next conversation.
    pub(super) fn free_row(&self, row: &Row, version: u32) {
        let free = State::new(version.wrapping_add(1), Phase::Free, 0, 0, 0);
        row.state.store(free.0, Ordering::Release);
        fence(Ordering::SeqCst);
        self.rows.openable().wake_sleepers(1);
        self.changed(Interest::WRITABLE);
    }

    /// The stream channel of a row.
    pub(super) fn channel(&self, ring: Ring, row: u32) -> Channel<'_> {
        Channel {
            member: self.member,
            id: self.id,
            entry: self.entry,
            ring,
            row,
        }
    }

    /// The channel of a conversation, as an agent finds it.
    pub(super) fn channel_by(
        &self,
        conversation: Conversation,
        end: End,
        slot: u32,
    ) -> Result<(Channel<'_>, &Row)> {
        let row = self.row(conversation)?;
        let now = State(row.state.load(Ordering::Acquire));
        let theirs = now.phase() == Phase::Open
            && now.version() == conversation.version
            && end.slot(now) == slot
            && (end == End::Sender || !now.has(flag::OFFERED));
        if !theirs {
            return Err(dragon_shmem::Error::NoSuchObject(self.id).into());
        }
        let ring = row.ring(self.member.pool())?;
        Ok((self.channel(ring, conversation.row), row))
    }
}

/// What the receiver's end means for the sender.
pub(super) fn sender_may_go_on(row: &Row, id: ObjectId) -> Result<()> {
    let now = State(row.state.load(Ordering::Acquire));
    if now.has(flag::RECEIVER_DIED) {
        Err(Error::PeerDied(id))
    } else if now.has(flag::RECEIVER_CLOSED) {
        Err(Error::PeerClosed(id))
    } else {
        Ok(())
    }
}

/// Whether the sender of the row's conversation has closed or died.
pub(super) fn sender_has_ended(row: &Row) -> bool {
    State(row.state.load(Ordering::Acquire)).has(flag::SENDER_ENDED)
}

/// Whether the receiver of the row's conversation has closed or died.
fn receiver_has_ended(row: &Row) -> bool {
    State(row.state.load(Ordering::Acquire)).has(flag::RECEIVER_ENDED)
}

/// What the sender's end means for the receiver once the channel is empty. Read before the channel is looked at.
pub(super) fn end_of(row: &Row, id: ObjectId) -> Option<Error> {
    let now = State(row.state.load(Ordering::Acquire));
    if now.has(flag::SENDER_DIED) {
        Some(Error::PeerDied(id))
    } else if now.has(flag::SENDER_CLOSED) {
        Some(Error::EndOfStream(id))
    } else {
        None
    }
}

/// The channel of one conversation, for one operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Channel<'a> {
    pub(super) member: &'a Arc<Member>,
    pub(super) id: ObjectId,
    pub(super) entry: &'a ObjectEntry,
    pub(super) ring: Ring,
    pub(super) row: u32,
}

impl Channel<'_> {
    fn local(&self) -> channel::Local<'_> {
        channel::Local {
            member: self.member,
            id: self.id,
            entry: self.entry,
            ring: &self.ring,
            opened: None,
            row: Some(self.row),
        }
    }

    /// Sends a chunk, unless the receiver has ended.
    pub(super) fn send(
        &self,
        spin: &Spin,
        row: &Row,
        outgoing: &Outgoing<'_>,
        argument: u64,
        deadline: Deadline,
    ) -> Result<Ticket> {
        let local = self.local();
        let thread = self.member.thread()?;
        let block = outgoing.block_to_share().unwrap_or(0);
        local.begin(&thread, Op::Send, block);
        let label = Label {
            hint: argument,
            trace: None,
        };
        let attempt = || {
            sender_may_go_on(row, self.id)?;
            local.deposit(&thread, outgoing, &label)
        };
        match attempt()? {
            Some(ticket) => Ok(ticket),
            None if deadline == Deadline::Now => Err(Error::Full),
            None => {
                let over = || receiver_has_ended(row);
                local.wait_writable_or(&thread, spin, deadline, attempt, over)
            }
        }
    }

    /// Receives a chunk, or tells how the stream ended.
    pub(super) fn receive(&self, spin: &Spin, row: &Row, deadline: Deadline) -> Result<Message> {
        let local = self.local();
        let thread = self.member.thread()?;
        local.begin(&thread, Op::Receive, 0);
        let mut message = Message::empty();
        let mut read = |source: Source<'_>| source.read_into(&mut message);
        let mut attempt = || {
            let end = end_of(row, self.id);
            match (local.try_receive(Some(&thread), u64::MAX, &mut read)?, end) {
                (Some(()), _) => Ok(Some(())),
                (None, Some(end)) => Err(end),
                (None, None) => Ok(None),
            }
        };
        match attempt()? {
            Some(()) => {}
            None if deadline == Deadline::Now => return Err(Error::Empty),
            None => {
                let over = || sender_has_ended(row);
                local.wait_readable_or(&thread, spin, deadline, attempt, over)?;
            }
        }
        Ok(message)
    }

    /// Waits beside the sender until the receiver has ended or the endpoint goes, which is an error, or until `stopped`: whoever
    /// stops it wakes those who wait for the channel's end.
    pub(super) fn watch_receiver(&self, row: &Row, stopped: impl Fn() -> bool) -> Result<()> {
        let local = self.local();
        let thread = self.member.thread()?;
        local.begin(&thread, Op::StreamWatch, 0);
        let attempt = || {
            if stopped() {
                return Ok(Some(()));
            }
            alive(self.entry, self.id)?;
            sender_may_go_on(row, self.id).map(|()| None)
        };
        // A word of its own: each chunk would wake those at the others.
        let at = (self.ring.closing(), mark::THIRD);
        let spin = Spin::default();
        local.watch(&thread, &spin, at.0, at.1, Deadline::Never, attempt)
    }

    /// Waits until a chunk or the end of the stream is there; true for a chunk.
    pub(super) fn poll(&self, spin: &Spin, row: &Row, deadline: Deadline) -> Result<bool> {
        let attempt = || {
            let end = end_of(row, self.id);
            let readable = self.local().is_readable()?;
            Ok((readable || end.is_some()).then_some(readable))
        };
        if let Some(readable) = attempt()? {
            return Ok(readable);
        }
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        let thread = self.member.thread()?;
        let local = self.local();
        local.begin(&thread, Op::PollReadable, 0);
        let over = || sender_has_ended(row);
        local.wait_readable_or(&thread, spin, deadline, attempt, over)
    }
}
