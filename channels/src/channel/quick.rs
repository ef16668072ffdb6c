//! The short way through sending and receiving: a small message, a bounded channel of this node, and at most a moment's wait.
//!
//! It does what the long way does, with the same steps on the same words, or nothing at all; then the long way finds out what
//! is the matter. Its results are a word or two: an [`Error`](crate::Error) is large, and a result that has room for one is
//! written in parts and read as a whole at each step, for which a processor waits until the parts have left its store
//! buffer. That cost more than the operation.

use std::sync::Arc;

use dragon_protocol::ObjectId;
use dragon_protocol::op::Op;
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::Ordering;
use dragon_shmem::{Deadline, Member, ThreadGuard};

use super::ops::{Ticket, count};
use super::test_point::{TestPoint, test_point};
use crate::cell::{self, Cells as _, Place, Spot};
use crate::object::{is_alive, notify_watcher_of};
use crate::ring::{Plain, Ring};
use crate::set::Interest;
use crate::wait::{Spin, WaitWord, fence_after_rmw};

/// A bounded channel of this node, for one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quick<'a> {
    pub(crate) member: &'a Arc<Member>,
    pub(crate) id: &'a ObjectId,
    pub(crate) entry: &'a ObjectEntry,
    pub(crate) ring: &'a Ring,
}

/// How a short try to send ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// The message is in the channel.
    Sent,
    /// There is no room.
    Full,
    /// The message or the channel is of another sort, the channel is no more, or its words contradict each other.
    Other,
}

/// How a short try to receive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Small {
    /// A message was received.
    Taken,
    /// There is none.
    Empty,
    /// The message or the channel is of another sort, the channel is no more, or its words contradict each other.
    Other,
}

impl Quick<'_> {
    /// Sends bytes in a cell, or does nothing.
    #[inline]
    pub(crate) fn send(&self, bytes: &[u8], hint: u64) -> Tried {
        let Self { member, ring, .. } = *self;
        if bytes.len() as u64 > ring.inline()
            || ring.limit() != 0
            || !is_alive(self.entry, *self.id)
        {
            return Tried::Other;
        }
        let Some(thread) = member.thread_again().or_else(|| find_record(member)) else {
            return Tried::Other;
        };
        let intent = &thread.intent;
        let arguments = [Ticket::NONE, 0];
        intent.begin(Op::Send, self.id.index, self.id.generation, arguments);
        let announce = |position| {
            let segment = 0;
            intent.set(0, Ticket { segment, position }.pack());
            true
        };
        let slot = member.slot().index;
        let spot = match cell::claim_at_once(ring, slot, |position| {
            announce(position);
        }) {
            Some(spot) => spot,
            None => match claim(ring, slot, announce) {
                Ok(spot) => spot,
                Err(tried) => return tried,
            },
        };
        ring.write_part(spot, hint, bytes);
        test_point(TestPoint::Sending);
        cell::publish_at(ring, spot, slot);
        // Pairs with the fences of `sleep` and of `watch`. Publishing is a swap.
        fence_after_rmw();
        wake(member, ring.readable(), 1);
        notify_watcher_of(member, self.entry, *self.id, Interest::READABLE);
        count(&member.counters().sends, 1);
        Tried::Sent
    }

    /// Spins for a moment where that is worth while. True: try again.
    #[inline]
    pub(crate) fn wait_for_room(&self, spin: &Spin, deadline: Deadline) -> bool {
        self.spin(spin, deadline, || cell::room_is_shown(self.ring))
    }

    /// Spins for a moment where that is worth while. True: try again.
    #[inline]
    pub(crate) fn wait_for_message(&self, spin: &Spin, deadline: Deadline) -> bool {
        self.spin(spin, deadline, || cell::maybe_readable(self.ring))
    }

    #[inline]
    fn spin(&self, spin: &Spin, deadline: Deadline, ready: impl Fn() -> bool) -> bool {
        deadline != Deadline::Now && spin.briefly(self.member.control().words(), ready)
    }

    /// Receives a message of at most `longest` bytes by `read`, which may be called several times: the last one counts, if
    /// the message is taken in the end. Needs no record of the thread: the message is the caller's from one instruction to
    /// the next.
    #[inline]
    pub(crate) fn receive(&self, longest: u64, mut read: impl FnMut(Spot, Plain)) -> Small {
        let Self { member, ring, .. } = *self;
        if ring.limit() != 0 || !is_alive(self.entry, *self.id) {
            return Small::Other;
        }
        let mut look = |spot| match ring.plain(spot) {
            Some(message) if message.length <= longest => {
                read(spot, message);
                true
            }
            _ => false,
        };
        if !cell::receive_at_once(ring, &mut look) {
            return if cell::maybe_readable(ring) {
                Small::Other
            } else {
                Small::Empty
            };
        }
        test_point(TestPoint::Receiving);
        // Pairs with the fences of `sleep` and of `watch`. Receiving is a compare-and-swap.
        fence_after_rmw();
        wake(member, ring.writable(), 1);
        notify_watcher_of(member, self.entry, *self.id, Interest::WRITABLE);
        count(&member.counters().receives, 1);
        Small::Taken
    }
}

/// Claims a cell when others are in the way, or room must be looked for.
#[cold]
fn claim(ring: &Ring, slot: u32, announce: impl FnMut(u64) -> bool) -> Result<Spot, Tried> {
    match cell::claim_to_send(ring, slot, announce) {
        Ok(Place::Claimed(position)) => Ok(ring.capacity().spot(position)),
        Ok(Place::Full) => Err(Tried::Full),
        Ok(Place::Closed(_)) | Err(_) => Err(Tried::Other),
    }
}

/// When this thread has no record from before.
#[cold]
fn find_record(member: &Member) -> Option<ThreadGuard<'_>> {
    member.thread().ok()
}

/// Wakes sleepers for so many changes that each concern one of them.
#[inline]
pub(super) fn wake(member: &Member, word: &WaitWord, changes: u32) {
    if changes == 1 {
        // No more at a time than can run; but never one alone, which may have been stopped before it looked.
        word.wake_one_of(|| {
            let cpus = member.control().words().cpus.load(Ordering::Relaxed);
            cpus.max(2)
        });
    } else {
        word.wake_sleepers(changes);
    }
}
