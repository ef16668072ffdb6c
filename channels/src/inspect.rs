//! Looking at objects without a reference to them: for the daemon of their node, which tells people what is there.
//!
//! Nothing is written, nobody is asked, and whatever a scribbler left in shared memory is an error at most.

use std::sync::Arc;

use dragon_protocol::ObjectId;
use dragon_shmem::Member;

use crate::channel::{Attributes, Local, open};
use crate::error::Result;

/// A channel, as it is at a moment. Processes go on meanwhile, so the numbers may not agree to the last message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelState {
    /// What it is and how full.
    pub attributes: Attributes,
    /// Messages that were ever sent to it. One whose sender died in the middle of sending counts too.
    pub sent: u64,
    /// Messages that were ever taken from it.
    pub received: u64,
}

/// What a channel of this node is and how full.
///
/// # Errors
/// When there is no such channel (any more), or shared memory is corrupt.
pub fn channel(member: &Arc<Member>, id: ObjectId) -> Result<ChannelState> {
    let entry = member.control().entry(id)?;
    let ring = open(member, entry)?;
    let local = Local {
        member,
        id,
        entry,
        ring: &ring,
        opened: None,
        row: None,
    };
    let attributes = local.attributes()?;
    let received = local.taken();
    Ok(ChannelState {
        attributes,
        sent: received.saturating_add(attributes.messages),
        received,
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use dragon_protocol::ObjectKind;
    use dragon_shmem::Deadline;

    use super::*;
    use crate::{ChannelOptions, Error, create_channel, local};

    #[test]
    fn messages_are_counted_over_all_rings_of_a_channel() {
        let member = local::member().unwrap();
        for unbounded in [None, Some(100)] {
            let options = ChannelOptions {
                capacity: 4,
                unbounded,
                ..ChannelOptions::default()
            };
            let handle = create_channel(&member, &options).unwrap();
            let look = || {
                let state = channel(&member, handle.id()).unwrap();
                (state.sent, state.received, state.attributes.messages)
            };
            assert_eq!(look(), (0, 0, 0));
            let mut expected = (0, 0);
            for round in 0..9_u64 {
                // An unbounded one grows, and its first rings are drained.
                let burst = if unbounded.is_some() { 3 + round } else { 3 };
                for _ in 0..burst {
                    handle.send(b"x", 0, Deadline::Now).unwrap();
                }
                expected.0 += burst;
                assert_eq!(look(), (expected.0, expected.1, expected.0 - expected.1));
                for _ in 0..if unbounded.is_some() { 2 } else { 3 } {
                    handle.receive(Deadline::Now).unwrap();
                    expected.1 += 1;
                }
                assert_eq!(look(), (expected.0, expected.1, expected.0 - expected.1));
            }
            while handle.receive(Deadline::Now).is_ok() {
                expected.1 += 1;
            }
            assert_eq!(look(), (expected.0, expected.0, 0));
            let (id, attributes) = (handle.id(), handle.attributes().unwrap());
            assert_eq!(channel(&member, id).unwrap().attributes, attributes);
            drop(handle);
            assert!(channel(&member, id).is_err(), "it is gone");
        }
    }

    #[test]
    fn what_is_no_channel_is_an_error() {
        let member = local::member().unwrap();
        let lock = crate::Lock::create(&member, 0).unwrap();
        assert!(channel(&member, lock.id()).is_err());
        let id = ObjectId {
            kind: ObjectKind::Channel,
            ..lock.id()
        };
        let error = channel(&member, id).unwrap_err();
        assert!(matches!(error, Error::Memory(_)), "{error:?}");
    }
}
