use dragon_protocol::control::{
    ClientReply, ClientRequest, ExitNotice, PeerMessage, Program, SpawnRequest,
};
use dragon_protocol::frame::{FrameError, MAX_FRAME, body_length, decode, encode};
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind};
use proptest::prelude::*;

fn spawn(arguments: Vec<Vec<u8>>, environment: Vec<(Vec<u8>, Vec<u8>)>) -> SpawnRequest {
    SpawnRequest {
        environment,
        directory: b"/tmp".to_vec(),
        ..SpawnRequest::new(Program::Executable(arguments))
    }
}

fn split(frame: &[u8]) -> &[u8] {
    let (head, body) = frame.split_at(4);
    assert_eq!(body_length(head.try_into().unwrap()), Ok(body.len()));
    body
}

proptest! {
    #[test]
    fn a_request_with_any_bytes_comes_back(
        arguments in prop::collection::vec(any::<Vec<u8>>(), 0..8),
        environment in prop::collection::vec(any::<(Vec<u8>, Vec<u8>)>(), 0..8),
    ) {
        let request = ClientRequest::Spawn(vec![spawn(arguments, environment)]);
        let mut frame = Vec::new();
        encode(&request, &mut frame).unwrap();
        prop_assert_eq!(decode::<ClientRequest>(split(&frame)), Ok(request));
    }

    #[test]
    fn noise_is_decoded_or_refused(body in any::<Vec<u8>>()) {
        let _ = decode::<ClientRequest>(&body);
        let _ = decode::<ClientReply>(&body);
        let _ = decode::<PeerMessage>(&body);
    }

    #[test]
    fn a_cut_frame_is_refused(cut in any::<prop::sample::Index>()) {
        let message = PeerMessage::Answer { request: 77, code: Code::NodeDown, text: "gone".to_owned() };
        let mut frame = Vec::new();
        encode(&message, &mut frame).unwrap();
        let body = &frame[4..];
        let cut = cut.index(body.len());
        prop_assert!(decode::<PeerMessage>(&body[..cut]).is_err());
    }
}

#[test]
fn frames_are_appended_one_after_the_other() {
    let mut frames = Vec::new();
    encode(&ClientRequest::Nodes, &mut frames).unwrap();
    let first = frames.len();
    encode(&ClientRequest::Stats, &mut frames).unwrap();
    assert_eq!(
        decode::<ClientRequest>(split(&frames[..first])),
        Ok(ClientRequest::Nodes)
    );
    assert_eq!(
        decode::<ClientRequest>(split(&frames[first..])),
        Ok(ClientRequest::Stats)
    );
}

#[test]
fn bytes_after_the_message_are_refused() {
    let mut frame = Vec::new();
    encode(&ClientRequest::Nodes, &mut frame).unwrap();
    frame.push(0);
    let length = frame.len() - 4;
    assert_eq!(
        decode::<ClientRequest>(&frame[4..]),
        Err(FrameError::Malformed(length))
    );
}

#[test]
fn a_length_over_the_limit_is_refused_with_both_numbers() {
    let length = u32::try_from(MAX_FRAME).unwrap() + 1;
    let error = body_length(length.to_le_bytes()).unwrap_err();
    assert_eq!(
        error,
        FrameError::TooLong {
            length: MAX_FRAME + 1,
            limit: MAX_FRAME
        }
    );
    let text = error.to_string();
    assert!(
        text.contains("67108865") && text.contains("67108864"),
        "{text}"
    );
    assert_eq!(body_length([0; 4]), Ok(0));
    let most = u32::try_from(MAX_FRAME).unwrap();
    assert_eq!(body_length(most.to_le_bytes()), Ok(MAX_FRAME));
}

#[test]
fn a_message_over_the_limit_is_not_written() {
    let request = ClientRequest::Spawn(vec![spawn(vec![vec![b'x'; MAX_FRAME]], vec![])]);
    let mut frame = vec![1, 2, 3];
    assert!(matches!(
        encode(&request, &mut frame),
        Err(FrameError::TooLong { .. })
    ));
    assert_eq!(frame, [1, 2, 3]);
}

#[test]
fn an_exit_notice_is_twenty_four_bytes() {
    let notice = ExitNotice {
        process: ObjectId {
            node: NodeIndex::new(3).unwrap(),
            kind: ObjectKind::Process,
            index: 9,
            generation: 2,
        },
        status: 0x0100,
    };
    let bytes = notice.to_bytes();
    assert_eq!(bytes.len(), ExitNotice::LEN);
    assert_eq!(
        bytes,
        [
            3, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0
        ]
    );
}

#[test]
fn an_answer_that_is_too_long_for_a_frame_becomes_a_refusal_and_a_request_does_not() {
    let error = FrameError::TooLong {
        length: MAX_FRAME + 1,
        limit: MAX_FRAME,
    };
    let answer = PeerMessage::Answer {
        request: 7,
        code: Code::Ok,
        text: "x".repeat(MAX_FRAME),
    };
    let mut frame = Vec::new();
    assert!(encode(&answer, &mut frame).is_err());
    let instead = answer.in_place_of(&error).unwrap();
    encode(&instead, &mut frame).unwrap();
    let PeerMessage::Answer {
        request: 7,
        code: Code::TooLarge,
        text,
    } = instead
    else {
        panic!("{instead:?}");
    };
    assert!(text.contains("67108865"), "{text}");
    assert_eq!(PeerMessage::Stopped(0).in_place_of(&error), None);
}
