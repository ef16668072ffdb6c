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
use dragon_shmem::sync::{AtomicU64, Ordering};
use dragon_shmem::{Member, ThreadGuard};

use super::links::{Grow, Links, corrupt};
use super::ops::{Local, Ticket};
use super::test_point::{TestPoint, test_point};
use crate::cell::{self, Cells as _};
use crate::error::Result;
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

impl Links for Chain<'_> {
    type Ring = Ring;

    fn limit(&self) -> u64 {
        self.first.limit()
    }

    fn sending(&self) -> &AtomicU64 {
        self.first.sending()
    }

    fn receiving(&self) -> &AtomicU64 {
        self.first.receiving()
    }

    fn ring(&self, n: u64) -> Result<Ring> {
        self.segment(n)
    }
}

impl Links for Local<'_> {
    type Ring = Ring;

    fn limit(&self) -> u64 {
        self.ring.limit()
    }

    fn sending(&self) -> &AtomicU64 {
        self.ring.sending()
    }

    fn receiving(&self) -> &AtomicU64 {
        self.ring.receiving()
    }

    fn ring(&self, n: u64) -> Result<Ring> {
        self.chain().segment(n)
    }
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

    pub(super) fn claim_place_in_chain(
        &self,
        thread: &ThreadGuard<'_>,
    ) -> Result<Option<(Ring, Ticket)>> {
        let announce = |ticket: Ticket| thread.intent.set(0, ticket.pack());
        self.claim(self.member.slot().index, announce)
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

impl Grow for Local<'_> {
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
}
