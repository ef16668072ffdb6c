//! The points in operations at which tests stop a process, to kill it there.

/// Where tests stop a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TestPoint {
    /// A payload of a broadcast is ready, and nobody has been woken.
    Triggering,
    /// A waiter has been woken, and has not read.
    Woken,
    /// A party has its place at a barrier.
    Arrived,
    /// A cell is claimed and written, not published.
    Sending,
    /// A message is claimed and taken; its cell, unless it was small, is not released; no sender has been woken.
    Receiving,
    /// A further ring is ready and shared, and not in the chain.
    Growing,
    /// It is in the chain, and the full one is not closed.
    Grown,
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
