//! Whatever arrives as bytes or text from another process.

use dragon_protocol::attach::{AttachHello, AttachReply, Attached, release_text};
use dragon_protocol::control::{ClientReply, ClientRequest, Numbered, PeerMessage};
use dragon_protocol::handshake::{ANSWER, Acceptor, Connector, HELLO, PROOF, Role};
use dragon_protocol::key::JobKey;
use dragon_protocol::launch::LaunchSpec;
use dragon_protocol::wire::{FrameHeader, Request};
use dragon_protocol::{Descriptor, NodeIndex, frame, hostlist};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zerocopy::FromBytes;

/// Descriptors, in both forms: what is read can be written, and is the same when it is read again.
pub(crate) fn descriptor(data: &[u8]) {
    let mut found: Vec<Descriptor> = Descriptor::from_bytes(data).into_iter().collect();
    found.extend(
        std::str::from_utf8(data)
            .ok()
            .and_then(|text| text.parse::<Descriptor>().ok()),
    );
    for descriptor in found {
        let text = descriptor.to_string();
        assert_eq!(text.parse(), Ok(descriptor), "{text}");
    }
}

/// The messages of an attach.
pub(crate) fn attach(data: &[u8]) {
    if let Ok((hello, _)) = AttachHello::read_from_prefix(data) {
        let _ = format!("{hello:?}");
    }
    if let Ok((reply, _)) = AttachReply::read_from_prefix(data) {
        let _ = format!("{reply:?}");
    }
    if let Some(release) = data.first_chunk() {
        let _ = release_text(*release);
    }
    let _ = frame::decode::<Attached>(data).map(|attached| format!("{attached:?}"));
}

/// Messages of the control plane, as frames: a length, and a body.
pub(crate) fn control(data: &[u8]) {
    let Some((head, body)) = data.split_first_chunk() else {
        return;
    };
    let Ok(length) = frame::body_length(*head) else {
        return;
    };
    let body = &body[..length.min(body.len())];
    let _ = frame::decode::<Numbered<ClientRequest>>(body).map(|message| again(&message));
    let _ = frame::decode::<Numbered<ClientReply>>(body).map(|message| again(&message));
    let _ = frame::decode::<PeerMessage>(body).map(|message| format!("{message:?}"));
    let _ = frame::decode::<LaunchSpec>(body).map(|message| format!("{message:?}"));
}

/// What was read can be written, and is the same when it is read again.
fn again<T>(message: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let mut bytes = Vec::new();
    // One that is longer than a frame may be cannot be written.
    if frame::encode(message, &mut bytes).is_ok() {
        assert_eq!(frame::decode::<T>(&bytes[4..]).as_ref(), Ok(message));
    }
}

/// Frames between agents.
pub(crate) fn wire(data: &[u8]) {
    if let Ok((header, rest)) = FrameHeader::read_from_prefix(data) {
        let _ = format!("{header:?}");
        if let Ok((request, _)) = Request::read_from_prefix(rest) {
            let _ = request.target.object().map(|object| format!("{object:?}"));
        }
    }
}

/// Both sides of the proof that two nodes are of one job.
pub(crate) fn handshake(data: &[u8]) {
    let Some(key) = JobKey::from_hex(&"5a".repeat(32)) else {
        return;
    };
    let node = NodeIndex::FIRST;
    if let Some(first) = data.first_chunk::<HELLO>() {
        let accepted = Acceptor::new(&key, Role::Data, node, first, 1, [7; 32]);
        let _ = Acceptor::refusal(Role::Data, node, first, 1, false);
        if let (Ok((acceptor, _)), Some(proof)) = (accepted, data.last_chunk::<PROOF>()) {
            let _ = acceptor.finish(proof);
        }
    }
    if let Some(answer) = data.first_chunk::<ANSWER>() {
        let connector = Connector::new(&key, Role::Data, node, node, 1, [9; 32]);
        let hello = answer.first_chunk().map(|hello| connector.refused(hello));
        assert!(hello.is_some());
        let _ = connector.answer(answer, 1);
    }
}

/// Text from the environment and the command line.
pub(crate) fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = JobKey::from_hex(text);
    // A short list may name all of the 2^24 hosts that there can be, which takes its time and shows nothing.
    let longest = text
        .split(|c: char| !c.is_ascii_digit())
        .map(str::len)
        .max();
    if longest.unwrap_or(0) <= 2 && text.matches('[').count() <= 2 {
        let _ = hostlist::expand(text);
    }
}
