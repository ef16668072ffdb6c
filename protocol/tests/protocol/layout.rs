use std::mem::{offset_of, size_of};

use dragon_protocol::attach::{AttachHello, AttachReply, release_bytes, release_text};
use dragon_protocol::handshake::{ANSWER, HELLO, Hello, PROOF};
use dragon_protocol::op::Op;
use dragon_protocol::wire::{FRAME_HEADER, FrameHeader, FrameKind, Request, Target};
use dragon_protocol::{NodeIndex, ObjectId, ObjectKind, RELEASE};
use zerocopy::FromBytes;

#[test]
fn the_frozen_messages_have_their_bytes_for_ever() {
    assert_eq!(size_of::<AttachHello>(), 24);
    assert_eq!(offset_of!(AttachHello, protocol), 8);
    assert_eq!(offset_of!(AttachHello, role), 10);
    assert_eq!(offset_of!(AttachHello, release), 12);
    assert_eq!(size_of::<AttachReply>(), 24);
    assert_eq!(offset_of!(AttachReply, protocol), 8);
    assert_eq!(offset_of!(AttachReply, descriptors), 10);
    assert_eq!(offset_of!(AttachReply, release), 12);
    assert_eq!(offset_of!(AttachReply, status), 16);
    assert_eq!(offset_of!(AttachReply, body), 20);
    assert_eq!(
        (size_of::<Hello>(), HELLO, PROOF, ANSWER),
        (72, 72, 32, 104)
    );
    assert_eq!(offset_of!(Hello, clock), 24);
    assert_eq!(offset_of!(Hello, challenge), 32);
}

#[test]
fn the_wire_has_its_bytes() {
    assert_eq!((size_of::<Target>(), FRAME_HEADER), (16, 80));
    for (offset, expected) in [
        (offset_of!(FrameHeader, kind), 0),
        (offset_of!(FrameHeader, op), 1),
        (offset_of!(FrameHeader, status), 4),
        (offset_of!(FrameHeader, request), 8),
        (offset_of!(FrameHeader, target), 16),
        (offset_of!(FrameHeader, slot), 32),
        (offset_of!(FrameHeader, slot_generation), 36),
        (offset_of!(FrameHeader, deadline), 40),
        (offset_of!(FrameHeader, arg0), 48),
        (offset_of!(FrameHeader, arg1), 56),
        (offset_of!(FrameHeader, payload), 64),
        (offset_of!(FrameHeader, trace), 72),
    ] {
        assert_eq!(offset, expected);
    }
    assert_eq!(size_of::<Request>(), 80);
    for (offset, expected) in [
        (offset_of!(Request, op), 0),
        (offset_of!(Request, by_reference), 1),
        (offset_of!(Request, slot), 4),
        (offset_of!(Request, slot_generation), 8),
        (offset_of!(Request, thread), 12),
        (offset_of!(Request, ticket), 16),
        (offset_of!(Request, target), 24),
        (offset_of!(Request, deadline), 40),
        (offset_of!(Request, arg0), 48),
        (offset_of!(Request, arg1), 56),
        (offset_of!(Request, block), 64),
        (offset_of!(Request, payload), 72),
    ] {
        assert_eq!(offset, expected);
    }
}

#[test]
fn a_target_names_an_object_or_nothing() {
    for kind in (1..=5).filter_map(ObjectKind::from_u8) {
        let id = ObjectId {
            node: NodeIndex::new(NodeIndex::MAX).unwrap(),
            kind,
            index: u32::MAX,
            generation: 1,
        };
        assert_eq!(Target::from(id).object(), Some(id));
    }
    assert_eq!(Target::read_from_bytes(&[0; 16]).unwrap().object(), None);
    assert_eq!(Target::read_from_bytes(&[255; 16]).unwrap().object(), None);
}

#[test]
fn numbers_of_operations_and_frames_name_one_thing_each() {
    for n in 0..=u8::MAX {
        if let Some(op) = Op::from_u8(n) {
            assert_eq!(op as u8, n);
        }
        if let Some(kind) = FrameKind::from_u8(n) {
            assert_eq!(kind as u8, n);
        }
        if let Some(kind) = ObjectKind::from_u8(n) {
            assert_eq!(kind as u8, n);
            assert_eq!(ObjectKind::from_letter(kind.letter()), Some(kind));
        }
    }
    // Zero is nothing: a zeroed request or header must never do anything.
    assert!(Op::from_u8(0).is_none() && FrameKind::from_u8(0).is_none());
}

#[test]
fn a_release_survives_its_bytes() {
    assert_eq!(release_text(release_bytes()), RELEASE);
}
