//! A node of the job whose agent says what it likes: frames at the agent of this one.

#[path = "../../transport/tests/rig/hearing.rs"]
mod hearing;

use dragon_protocol::wire::{FRAME_HEADER, FrameHeader};
use dragon_transport::fabric::Side;
use hearing::Hearing;
use zerocopy::{FromBytes, IntoBytes};

/// The input is frames, each after a byte that says what it is about: the number of an object, which takes the place of the
/// target; whether it comes on the link that this node opened; whether this node has asked for it.
pub(crate) fn peer(data: &[u8]) {
    // Without memory there is nothing to be seen.
    let _ = run(data);
}

fn run(mut data: &[u8]) -> dragon_channels::Result<()> {
    let node = Hearing::new()?;
    while let Some((about, rest)) = data.split_first() {
        let Some((head, rest)) = rest.split_at_checked(FRAME_HEADER) else {
            break;
        };
        let Ok(mut header) = FrameHeader::read_from_bytes(head) else {
            break;
        };
        if let Some(object) = node.objects.get(usize::from(about & 15)) {
            header.target = (*object).into();
        }
        let side = if about & 16 == 0 {
            Side::Accepted
        } else {
            header.target.node = 1.into();
            Side::Opened
        };
        if about & 32 != 0 {
            node.victim.ask(header);
        }
        let payload = rest
            .len()
            .min(usize::try_from(header.payload.get()).unwrap_or(0));
        let (payload, rest) = rest.split_at(payload);
        node.victim
            .hear(side, &[header.as_bytes(), payload].concat());
        data = rest;
    }
    assert_eq!(node.victim.end(), 0, "requests are kept");
    Ok(())
}
