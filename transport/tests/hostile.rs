//! Frames of a peer that has proved the key and says what it likes: every combination of kind, operation, object and arguments,
//! small and large, cut anywhere. The answer is an error or a result, and nothing is kept when its links are gone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "rig/hearing.rs"]
mod hearing;

use dragon_protocol::wire::{FrameHeader, NEVER, NOW};
use dragon_transport::fabric::Side;
use dragon_transport::hostile;
use hearing::Hearing;
use proptest::prelude::*;
use zerocopy::{FromZeros, IntoBytes};

/// A header whose fields are most often such that something comes of it.
fn header() -> impl Strategy<Value = (FrameHeader, usize)> {
    let number = prop_oneof![0_u64..6, any::<u64>()];
    let argument = prop_oneof![0_u64..4, 0_u64..4, any::<u64>()];
    let time = prop_oneof![Just(NOW), Just(NEVER), 1_u64..100, any::<u64>()];
    let length = prop_oneof![Just(0_usize), 0_usize..100, 4000_usize..6000];
    let kind = prop_oneof![1_u8..7, 1_u8..3, any::<u8>()];
    let op = prop_oneof![0_u8..64, any::<u8>()];
    let code = prop_oneof![Just(0_i32), 0_i32..40, any::<i32>()];
    let fields = (
        kind,
        op,
        code,
        number,
        time,
        argument.clone(),
        argument,
        length,
        0_u32..4,
    );
    fields.prop_map(
        |(kind, op, status, request, deadline, arg0, arg1, length, slot)| {
            let header = FrameHeader {
                kind,
                op,
                status: status.into(),
                request: request.into(),
                slot: slot.into(),
                slot_generation: 1.into(),
                deadline: deadline.into(),
                arg0: arg0.into(),
                arg1: arg1.into(),
                payload: (length as u64).into(),
                ..FrameHeader::new_zeroed()
            };
            (header, length)
        },
    )
}

/// Frames, each with the number of the object that it is about and the side of the link that it comes on.
fn frames() -> impl Strategy<Value = Vec<(FrameHeader, usize, usize, bool)>> {
    let frame = (header(), 0_usize..11, any::<bool>());
    let frame = frame.prop_map(|((header, length), object, side)| (header, length, object, side));
    prop::collection::vec(frame, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_peer_asks_or_answers_nothing_is_kept_of_it(frames in frames()) {
        let node = Hearing::new().unwrap();
        for (mut header, length, object, accepted) in frames {
            if let Some(id) = node.objects.get(object) {
                header.target = (*id).into();
            }
            if header.kind == 2 {
                // A reply may be to something.
                let mut asked = header;
                asked.target.node = 1.into();
                node.victim.ask(asked);
                header.target.node = 1.into();
            }
            let bytes = [header.as_bytes(), &vec![7; length]].concat();
            let side = if accepted { Side::Accepted } else { Side::Opened };
            node.victim.hear(side, &bytes);
        }
        prop_assert_eq!(node.victim.end(), 0);
        prop_assert!(node.member.pool().stats().is_ok());
    }

    #[test]
    fn a_stream_says_the_same_however_it_is_cut(
        frames in prop::collection::vec(header(), 0..8),
        tail in prop::collection::vec(any::<u8>(), 0..100),
        seed in any::<u8>(),
    ) {
        let mut bytes = vec![seed];
        for (header, length) in frames {
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend(std::iter::repeat_n(header.op, length));
        }
        bytes.extend_from_slice(&tail);
        hostile::frames(&bytes);
    }
}
