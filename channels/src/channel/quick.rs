//! The short way through sending and receiving: a small message, a bounded channel of this node, and nothing to wait for.
//!
//! It does what the long way does, with the same steps on the same words, or nothing at all; then the long way finds out what
//! is the matter. Its results are a word or two: an [`Error`](crate::Error) is large, and a result that has room for one is
//! written in parts and read as a whole at each step, for which a processor waits until the parts have left its store
//! buffer. That cost more than the operation.

use std::sync::Arc;

use dragon_protocol::ObjectId;
use dragon_protocol::op::Op;
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::slot::SlotCounters;
use dragon_shmem::sync::Ordering;
use dragon_shmem::{Member, ThreadGuard};

use super::ops::{Ticket, count};
use super::test_point::{TestPoint, test_point};
use crate::cell::{self, Found, Place, Take};
use crate::object::{is_alive, notify_watcher_of};
use crate::ring::{Content, Ring};
use crate::set::Interest;
use crate::wait::{WaitWord, fence_after_rmw};

/// A bounded channel of this node, for one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quick<'a> {
    pub(crate) member: &'a Arc<Member>,
    pub(crate) id: &'a ObjectId,
    pub(crate) entry: &'a ObjectEntry,
    pub(crate) ring: &'a Ring,
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
    /// Sends bytes in a cell. False: nothing was done.
    #[inline]
    pub(crate) fn send(&self, bytes: &[u8], hint: u64) -> bool {
        let Self { member, ring, .. } = *self;
        if bytes.len() as u64 > ring.inline()
            || ring.limit() != 0
            || !is_alive(self.entry, *self.id)
        {
            return false;
        }
        let Some(thread) = member.thread_again().or_else(|| find_record(member)) else {
            return false;
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
        let Ok(Place::Claimed(position)) = cell::claim_to_send(ring, slot, announce) else {
            return false;
        };
        ring.write_part(position, hint, bytes);
        test_point(TestPoint::Sending);
        cell::publish(ring, position, slot);
        // Pairs with the fences of `sleep` and of `watch`. Publishing is a swap.
        fence_after_rmw();
        wake(member, ring.readable(), 1);
        notify_watcher_of(member, self.entry, *self.id, Interest::READABLE);
        if let Some(counters) = self.counters() {
            count(&counters.sends, 1);
        }
        true
    }

    /// Receives a message of at most `longest` bytes by `read`, which may be called several times: the last one counts, if
    /// the message is taken in the end. Needs no record of the thread: the message is the caller's from one instruction to
    /// the next.
    #[inline]
    pub(crate) fn receive(
        &self,
        longest: u64,
        mut read: impl FnMut(&Ring, u64, &Content),
    ) -> Small {
        let Self { member, ring, .. } = *self;
        if ring.limit() != 0 || !is_alive(self.entry, *self.id) {
            return Small::Other;
        }
        let mut skipped = false;
        let look = |position| {
            let content = ring.content(position);
            if content.length <= longest && !content.traced && Ring::copied_first(&content) {
                read(ring, position, &content);
                Take::Copied(())
            } else {
                Take::Leave(())
            }
        };
        let found = cell::receive(ring, member.slot().index, &mut skipped, |_| {}, look);
        let taken = match found {
            Ok(Found::Copied(..)) => true,
            Ok(Found::Empty | Found::End) => false,
            Ok(Found::Left(..) | Found::Claimed(_)) | Err(_) => return Small::Other,
        };
        if taken {
            test_point(TestPoint::Receiving);
            self.writable_changed(if skipped { u32::MAX } else { 1 });
            if let Some(counters) = self.counters() {
                count(&counters.receives, 1);
            }
            return Small::Taken;
        }
        if skipped {
            self.writable_changed(u32::MAX);
        }
        Small::Empty
    }

    /// Wakes whom free cells concern.
    #[inline]
    fn writable_changed(&self, count: u32) {
        // Pairs with the fences of `sleep` and of `watch`. Receiving is a compare-and-swap.
        fence_after_rmw();
        wake(self.member, self.ring.writable(), count);
        notify_watcher_of(self.member, self.entry, *self.id, Interest::WRITABLE);
    }

    #[inline]
    fn counters(&self) -> Option<&SlotCounters> {
        let slot = self.member.control().slot(self.member.slot().index);
        slot.ok().map(|slot| &slot.counters)
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
