//! Unbounded channels: a chain of rings, each at least twice as large as the one before it.
//!
//! Senders use the newest ring. One that finds it full adds a ring to the chain, closes the full one to senders, and goes on
//! to the new one; receivers drain the oldest, see its end, and go on. So per-sender order holds: nobody sends to a ring
//! that is closed, and nobody receives from one before those before it are drained. A drained ring stays allocated until
//! the channel goes, so that a receiver that was slow meets no memory of others; since sizes double, all of them together are
//! at most as large as the last.
//!
//! The limit is exact: a sender claims a position only if it and what is left in older rings are below it, and a position is
//! claimed once. The last ring has as many cells as the limit allows messages.

use std::sync::OnceLock;

use dragon_protocol::op::Op;
use dragon_shmem::sync::Ordering;
use dragon_shmem::{Member, ThreadGuard};

use super::ops::{Local, TestPoint, Ticket, broken, test_point};
use crate::cell::{self, Cells as _, Place};
use crate::error::{Error, Result};
use crate::ring::{MAX_SEGMENTS, Ring};

/// The further rings of a chain that a handle has opened.
#[derive(Debug, Default)]
pub(crate) struct Opened([OnceLock<Ring>; MAX_SEGMENTS]);

/// The rings of a channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain<'a> {
    pub(super) member: &'a Member,
    pub(super) first: Ring,
    pub(super) opened: Option<&'a Opened>,
}

impl Chain<'_> {
    /// A ring of the chain.
    pub(super) fn segment(&self, n: u64) -> Result<Ring> {
        if n == 0 {
            return Ok(self.first);
        }
        let index = usize::try_from(n).map_err(|_| corrupt(n))?;
        let cached = self.opened.and_then(|opened| opened.0.get(index - 1));
        if let Some(ring) = cached.and_then(OnceLock::get) {
            return Ok(*ring);
        }
        // Acquire pairs with the Release in `add_ring`.
        let block = self
            .first
            .segment(index)
            .map_or(0, |word| word.load(Ordering::Acquire));
        if block == 0 {
            return Err(corrupt(n));
        }
        let ring = Ring::open(self.member.pool(), block)?;
        if let Some(cached) = cached {
            // Somebody else may have been quicker, with the same ring.
            let _ = cached.set(ring);
        }
        Ok(ring)
    }

    /// All rings, the oldest first.
    pub(super) fn rings(&self) -> Vec<Ring> {
        (0..=MAX_SEGMENTS as u64)
            .map_while(|n| self.segment(n).ok())
            .collect()
    }

    /// The ring that receivers use.
    #[inline]
    pub(super) fn receiving(&self) -> Result<(u64, Ring)> {
        if self.first.limit() == 0 {
            return Ok((0, self.first));
        }
        let n = self.first.receiving().load(Ordering::Acquire);
        Ok((n, self.segment(n)?))
    }

    /// Messages in the rings from `oldest` on that are before `segment`.
    fn left_before(&self, oldest: u64, segment: u64) -> u64 {
        // Both may have been scribbled over.
        (oldest..segment.min(MAX_SEGMENTS as u64 + 1))
            .filter_map(|n| self.segment(n).ok())
            .map(|ring| {
                let end = ring.end().load(Ordering::Acquire).saturating_sub(1);
                end.saturating_sub(cell::next_to_receive(&ring))
            })
            .fold(0, u64::saturating_add)
    }

    /// Messages, those being sent among them.
    pub(super) fn length(&self) -> u64 {
        let oldest = self.first.receiving().load(Ordering::Acquire);
        let newest = self.first.sending().load(Ordering::Acquire).max(oldest);
        let newest_ring = self.segment(newest).unwrap_or(self.first);
        let before = self.left_before(oldest, newest);
        let length = before.saturating_add(cell::length(&newest_ring));
        length.min(self.first.limit())
    }

    pub(super) fn has_room(&self) -> bool {
        self.length() < self.first.limit()
    }

    /// Whether it is worth while to try to receive.
    pub(super) fn maybe_readable(&self) -> bool {
        self.receiving()
            .is_ok_and(|(_, ring)| cell::maybe_readable(&ring) || cell::maybe_ended(&ring))
    }

    /// Whether a message can be received, found out by reading alone.
    pub(super) fn is_readable(&self) -> bool {
        let Ok((first, _)) = self.receiving() else {
            return false;
        };
        for n in first.. {
            let Ok(ring) = self.segment(n) else { break };
            if cell::is_readable(&ring) {
                return true;
            }
            // What is in the next ring comes after all of this one.
            if ring.end().load(Ordering::Acquire) != cell::next_to_receive(&ring).wrapping_add(1) {
                break;
            }
        }
        false
    }
}

fn corrupt(value: u64) -> Error {
    dragon_shmem::Error::Corrupt {
        what: "ring of an unbounded channel",
        value,
    }
    .into()
}

impl Local<'_> {
    pub(super) fn chain(&self) -> Chain<'_> {
        Chain {
            member: self.member,
            first: *self.ring,
            opened: self.opened,
        }
    }

    /// The ring that receivers use.
    #[inline]
    pub(super) fn receiving_ring(&self) -> Result<(u64, Ring)> {
        if self.ring.limit() == 0 {
            Ok((0, *self.ring))
        } else {
            self.chain().receiving()
        }
    }

    /// Ring `drained` is at its end.
    #[cold]
    pub(super) fn go_on_receiving(&self, drained: u64) -> Result<()> {
        self.chain().segment(drained + 1)?;
        self.ring
            .receiving()
            .fetch_max(drained + 1, Ordering::AcqRel);
        Ok(())
    }

    pub(super) fn claim_place_in_chain(
        &self,
        thread: &ThreadGuard<'_>,
    ) -> Result<Option<(Ring, Ticket)>> {
        loop {
            let segment = self.ring.sending().load(Ordering::Acquire);
            let ring = self.chain().segment(segment)?;
            let announce = |position| {
                thread.intent.set(0, Ticket { segment, position }.pack());
                self.within_limit(segment, position)
            };
            let place = cell::claim_to_send(&ring, self.member.slot().index, announce);
            match place.map_err(broken)? {
                Place::Claimed(position) => {
                    return Ok(Some((ring, Ticket { segment, position })));
                }
                Place::Full if !self.grow(segment, &ring)? => return Ok(None),
                Place::Full => {}
                Place::Closed(position) => self.go_on_sending(segment, &ring, position),
            }
        }
    }

    fn go_on_sending(&self, closed: u64, ring: &Ring, position: u64) {
        // Before anybody sends to the next ring, receivers can see that there is one.
        cell::show_end(ring, position);
        self.ring.sending().fetch_max(closed + 1, Ordering::AcqRel);
    }

    /// Whether a message at this position is within the limit, as long as older rings are not drained.
    fn within_limit(&self, segment: u64, position: u64) -> bool {
        let oldest = self.ring.receiving().load(Ordering::Acquire);
        if oldest >= segment {
            return true;
        }
        let before = self.chain().left_before(oldest, segment);
        position.saturating_add(before) < self.ring.limit()
    }

    /// Adds a ring behind ring `full`, and closes that. False: the limit is reached.
    #[cold]
    fn grow(&self, full: u64, ring: &Ring) -> Result<bool> {
        let limit = self.ring.limit();
        let cells = ring.capacity().cells();
        if cells >= limit || !self.chain().has_room() || full >= MAX_SEGMENTS as u64 {
            return Ok(false);
        }
        let next = full + 1;
        if self.chain().segment(next).is_err() {
            self.add_ring(next, cells.saturating_mul(2).min(limit))?;
        }
        test_point(TestPoint::Grown);
        cell::close(ring).map_err(broken)?;
        self.ring.sending().fetch_max(next, Ordering::AcqRel);
        Ok(true)
    }

    /// Allocates ring `n` and puts it into the chain. The intent says whose the block is from before it is shared until it
    /// is in the chain.
    fn add_ring(&self, n: u64, cells: u64) -> Result<()> {
        let member = self.member;
        let index = usize::try_from(n).map_err(|_| corrupt(n))?;
        let word = self.ring.segment(index).ok_or_else(|| corrupt(n))?;
        let cells = u32::try_from(cells).map_err(|_| corrupt(cells))?;
        let inline = u32::try_from(self.ring.inline()).map_err(|_| corrupt(n))?;
        let block = member.alloc(Ring::size(cells, inline))?.offset;
        let made = Ring::init(member.pool(), block, cells, inline, self.ring.limit());
        let thread = made.and_then(|()| Ok(member.thread()?));
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => {
                member.free(block)?;
                return Err(error);
            }
        };
        let id = self.id;
        thread
            .intent
            .begin(Op::Grow, id.index, id.generation, [block, n]);
        member.share(block)?;
        test_point(TestPoint::Growing);
        // Release: who sees the block sees an empty ring.
        let added = word.compare_exchange(0, block, Ordering::AcqRel, Ordering::Acquire);
        if added.is_err() {
            // Somebody else was quicker.
            member.free_with(&thread, block)?;
        }
        Ok(())
    }

    /// The ring in which a message lies.
    pub(crate) fn ring_of(&self, ticket: Ticket) -> Result<Ring> {
        self.chain().segment(ticket.segment)
    }

    /// Recovery of a process that died while it added a ring: its block is freed unless it is in the chain. While it is
    /// private this fails, and it goes with the private memory.
    pub(crate) fn undo_growth(&self, block: u64, n: u64) {
        let word = usize::try_from(n)
            .ok()
            .and_then(|index| self.ring.segment(index));
        if word.is_some_and(|word| word.load(Ordering::Acquire) != block) {
            let _ = self.member.free(block);
        }
    }
}
