//! Looking at a channel of this node: polls, receipts, attributes.

use dragon_protocol::op::Op;
use dragon_shmem::{Deadline, ThreadGuard};

use super::{Local, Ticket, broken};
use crate::cell::{self, Cells as _, Found, Take};
use crate::channel::links::Links as _;
use crate::channel::{Attributes, Poll};
use crate::error::{Error, Result};
use crate::object::alive;
use crate::ring::Ring;
use crate::wait::{self, Spin, WaitWord, mark};

/// States and waits for them.
impl Local<'_> {
    /// Whether the channel is in a state, and how many messages it has then.
    pub(crate) fn try_poll(&self, what: Poll) -> Result<Option<u64>> {
        alive(self.entry, self.id)?;
        let length = self.length();
        let yes = match what {
            Poll::Readable => self.is_readable()?,
            Poll::Writable if self.ring.limit() != 0 => length < self.ring.limit(),
            Poll::Writable => cell::maybe_writable(self.ring),
            Poll::Empty => length == 0,
            Poll::Full => length >= self.capacity(),
            Poll::Closed => false,
        };
        let least = u64::from(what == Poll::Readable);
        Ok(yes.then_some(length.max(least)))
    }

    pub(crate) fn poll(&self, what: Poll, spin: &Spin, deadline: Deadline) -> Result<u64> {
        if let Some(count) = self.try_poll(what)? {
            return Ok(count);
        }
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        let thread = self.member.thread()?;
        self.begin(&thread, what.op(), 0);
        let attempt = || self.try_poll(what);
        match what {
            Poll::Readable => self.wait_readable(&thread, spin, deadline, attempt),
            Poll::Writable => self.wait_writable(&thread, spin, deadline, attempt),
            Poll::Empty => self.watch(
                &thread,
                spin,
                self.ring.writable(),
                mark::SECOND,
                deadline,
                attempt,
            ),
            Poll::Full => self.watch(
                &thread,
                spin,
                self.ring.readable(),
                mark::FIRST,
                deadline,
                attempt,
            ),
            Poll::Closed => self.watch(
                &thread,
                spin,
                self.ring.closing(),
                mark::THIRD,
                deadline,
                attempt,
            ),
        }
    }

    /// Whether the message that was sent with this ticket has been received.
    pub(crate) fn try_receipt(&self, ticket: Ticket) -> Result<Option<()>> {
        alive(self.entry, self.id)?;
        let ring = self.chain().segment(ticket.segment)?;
        Ok(cell::is_received(&ring, ticket.position).then_some(()))
    }

    /// Waits until the message that was sent with this ticket has been received.
    pub(crate) fn await_receipt(
        &self,
        spin: &Spin,
        ticket: Ticket,
        deadline: Deadline,
    ) -> Result<()> {
        let thread = self.member.thread()?;
        self.begin(&thread, Op::AwaitReceipt, 0);
        let attempt = || self.try_receipt(ticket);
        self.watch(
            &thread,
            spin,
            self.ring.writable(),
            mark::SECOND,
            deadline,
            attempt,
        )
    }

    /// Waits for a state that this thread does not change.
    pub(crate) fn watch<T>(
        &self,
        thread: &ThreadGuard<'_>,
        spin: &Spin,
        word: &WaitWord,
        place: u32,
        deadline: Deadline,
        attempt: impl Fn() -> Result<Option<T>>,
    ) -> Result<T> {
        let mut found = None;
        let words = self.member.control().words();
        spin.until(words, &thread.intent, deadline, || {
            found = attempt().transpose();
            found.is_some()
        });
        if let Some(found) = found {
            return found;
        }
        let counted = |yes| {
            thread
                .intent
                .step(if yes { place | mark::WATCHER } else { 0 })
        };
        wait::watch_until(word, deadline, counted, attempt)
    }

    pub(crate) fn is_readable(&self) -> Result<bool> {
        alive(self.entry, self.id)?;
        loop {
            let (segment, ring) = self.receiving_ring()?;
            let mut skipped = false;
            let look = |_| Take::<()>::Leave(());
            let found = cell::receive(&ring, 0, &mut skipped, |_| {}, look).map_err(broken)?;
            if skipped {
                self.writable_changed(u32::MAX);
            }
            match found {
                Found::End => self.go_on_receiving(segment)?,
                found => return Ok(matches!(found, Found::Left(..))),
            }
        }
    }

    /// Most messages that it holds.
    fn capacity(&self) -> u64 {
        match self.ring.limit() {
            0 => self.ring.capacity().cells(),
            limit => limit,
        }
    }

    /// How many messages there are, those being sent among them.
    pub(crate) fn length(&self) -> u64 {
        if self.ring.limit() == 0 {
            cell::length(self.ring)
        } else {
            self.chain().length()
        }
    }

    /// How many messages receivers have claimed since the channel was made.
    pub(crate) fn taken(&self) -> u64 {
        let rings = self.chain().rings();
        let taken = rings.iter().map(cell::next_to_receive);
        taken.fold(0, u64::saturating_add)
    }

    pub(crate) fn attributes(&self) -> Result<Attributes> {
        alive(self.entry, self.id)?;
        let (receivers, polls) = self.ring.readable().waiters();
        let (senders, watchers) = self.ring.writable().waiters();
        let rings = self.chain().rings();
        Ok(Attributes {
            messages: self.length(),
            capacity: self.capacity(),
            block: self.ring.inline(),
            unbounded: self.ring.limit() != 0,
            senders_waiting: senders,
            receivers_waiting: receivers,
            watchers: polls + watchers + self.ring.closing().waiters().1,
            segments: u32::try_from(rings.len()).unwrap_or(u32::MAX),
            bytes: rings.iter().map(Ring::bytes).sum(),
        })
    }
}
