//! How a chain of rings grows, is used and is gone through: over a channel's memory, and in models of all interleavings.
//! What it is for stands in [`super::chain`].

use dragon_shmem::sync::{AtomicU64, Ordering};

use super::Ticket;
use super::ops::broken;
use super::test_point::{TestPoint, test_point};
use crate::cell::{self, Cells, Place};
use crate::error::{Error, Result};
use crate::ring::MAX_SEGMENTS;

/// The rings of a channel, and the words that say which of them are used.
pub(super) trait Links {
    /// A ring.
    type Ring: Cells;

    /// Most messages of all rings.
    fn limit(&self) -> u64;
    /// Hint: the ring that senders use.
    fn sending(&self) -> &AtomicU64;
    /// The oldest ring that is not known to be drained.
    fn receiving(&self) -> &AtomicU64;
    /// A ring; fails when there is none of that number.
    fn ring(&self, n: u64) -> Result<Self::Ring>;

    /// Messages in the rings from `oldest` on that are before `segment`.
    fn left_before(&self, oldest: u64, segment: u64) -> u64 {
        // Both may have been scribbled over.
        (oldest..segment.min(MAX_SEGMENTS as u64 + 1))
            .filter_map(|n| self.ring(n).ok())
            .map(|ring| {
                let end = ring.end().load(Ordering::Acquire).saturating_sub(1);
                end.saturating_sub(cell::next_to_receive(&ring))
            })
            .fold(0, u64::saturating_add)
    }

    /// Messages, those being sent among them.
    fn length(&self) -> u64 {
        let oldest = self.receiving().load(Ordering::Acquire);
        let newest = self.sending().load(Ordering::Acquire).max(oldest);
        let last = self.ring(newest).map_or(0, |ring| cell::length(&ring));
        let length = self.left_before(oldest, newest).saturating_add(last);
        length.min(self.limit())
    }

    fn has_room(&self) -> bool {
        self.length() < self.limit()
    }

    /// Whether a message at this position is within the limit, as long as older rings are not drained.
    fn within_limit(&self, segment: u64, position: u64) -> bool {
        let oldest = self.receiving().load(Ordering::Acquire);
        if oldest >= segment {
            return true;
        }
        position.saturating_add(self.left_before(oldest, segment)) < self.limit()
    }

    /// Ring `drained` is at its end.
    #[cold]
    fn go_on_receiving(&self, drained: u64) -> Result<()> {
        self.ring(drained + 1)?;
        self.receiving().fetch_max(drained + 1, Ordering::AcqRel);
        Ok(())
    }

    fn go_on_sending(&self, closed: u64, ring: &Self::Ring, position: u64) {
        // Before anybody sends to the next ring, receivers can see that there is one.
        cell::show_end(ring, position);
        self.sending().fetch_max(closed + 1, Ordering::AcqRel);
    }
}

/// Rings that can be added to.
pub(super) trait Grow: Links {
    /// Puts a ring of so many cells into the chain, unless somebody is quicker.
    fn add_ring(&self, n: u64, cells: u64) -> Result<()>;

    /// Claims a cell for a sender; `announce` as for [`cell::claim_to_send`]. `None`: the limit is reached.
    fn claim(
        &self,
        slot: u32,
        mut announce: impl FnMut(Ticket),
    ) -> Result<Option<(Self::Ring, Ticket)>> {
        loop {
            let segment = self.sending().load(Ordering::Acquire);
            let ring = self.ring(segment)?;
            let announce = |position| {
                announce(Ticket { segment, position });
                self.within_limit(segment, position)
            };
            match cell::claim_to_send(&ring, slot, announce).map_err(broken)? {
                Place::Claimed(position) => {
                    return Ok(Some((ring, Ticket { segment, position })));
                }
                Place::Full if !self.grow(segment, &ring)? => return Ok(None),
                Place::Full => {}
                Place::Closed(position) => self.go_on_sending(segment, &ring, position),
            }
        }
    }

    /// Adds a ring behind ring `full`, and closes that. False: the limit is reached.
    #[cold]
    fn grow(&self, full: u64, ring: &Self::Ring) -> Result<bool> {
        let limit = self.limit();
        let cells = ring.capacity().cells();
        if cells >= limit || !self.has_room() || full >= MAX_SEGMENTS as u64 {
            return Ok(false);
        }
        let next = full + 1;
        if self.ring(next).is_err() {
            self.add_ring(next, cells.saturating_mul(2).min(limit))?;
        }
        test_point(TestPoint::Grown);
        cell::close(ring).map_err(broken)?;
        self.sending().fetch_max(next, Ordering::AcqRel);
        Ok(true)
    }
}

/// The error for a ring that is not there.
pub(super) fn corrupt(value: u64) -> Error {
    dragon_shmem::Error::Corrupt {
        what: "ring of an unbounded channel",
        value,
    }
    .into()
}

#[cfg(all(test, loom))]
mod model;
