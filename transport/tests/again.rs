//! Links that go on with another connection, and those of which no connection is of use any more.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "rig/victim.rs"]
mod victim;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dragon_protocol::Code;
use dragon_protocol::wire::FrameKind;
use dragon_transport::Body;
use dragon_transport::fabric::{Fabric, Frame, Link, PeerAddress};
use rustix::net::sockopt;
use victim::{Greeted, Raw, Victim, WATCHDOG, accepted, answer, header, node, open, open_again};
use zerocopy::IntoBytes;

fn submit(link: &Arc<dyn Link>, kind: FrameKind, count: u64) {
    for number in 0..count {
        let frame = Frame {
            header: header(kind, number),
            body: Body::empty(),
        };
        link.submit(frame).unwrap();
    }
}

/// The connections come up, and end with nothing told of the frame that was sent on each.
#[test]
fn a_frame_that_no_connection_brings_over_ends_its_link() {
    const FRAMES: u64 = 12;
    let near = Victim::start(|config| config.reconnect_s = 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    near.fabric.set_peers(vec![PeerAddress {
        node: node(1),
        addresses: vec![(Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()).into()],
    }]);
    let link = near.fabric.link(node(1)).unwrap();
    submit(&link, FrameKind::Request, FRAMES);
    let over = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&over);
    let peer = std::thread::spawn(move || {
        let mut stood = 0;
        while !end.load(Ordering::Acquire) {
            let (mut stream, open) = accepted(&listener, node(1));
            // As long as each brings one it goes on, for longer than is tried in vain.
            answer(&mut stream, &open, Code::Ok, stood.min(FRAMES - 1));
            stood += 1;
            if stood < FRAMES {
                pause(150);
            }
        }
        stood
    });
    near.wait_for("the end", |seen| !seen.lost.is_empty());
    over.store(true, Ordering::Release);
    let lost = near.seen().lost[0].clone();
    assert!(lost.contains("none brought the next frame"), "{lost}");
    // The next request tries again, and lets the peer end.
    near.fabric.link(node(1)).unwrap();
    let stood = peer.join().unwrap();
    assert!(stood > FRAMES + 3, "{stood} connections");
}

#[expect(
    clippy::disallowed_methods,
    reason = "connections are to stand for a while with nothing passing"
)]
fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// The same for what the side sends that accepted the link.
#[test]
fn a_reply_that_no_connection_brings_over_ends_its_link() {
    for encrypt in [false, true] {
        let victim = Victim::start(|config| {
            config.reconnect_s = 1;
            config.encrypt = encrypt;
        });
        let (raw, _) = victim.raw(3, open(7));
        victim.wait_for("the link", |seen| seen.up == 1);
        submit(&victim.seen().links[0], FrameKind::Reply, 1);
        raw.closed_from_here();
        let begin = Instant::now();
        loop {
            let (raw, answer) = victim.raw(3, open_again(7, 0));
            if answer.status.get() != 0 {
                break;
            }
            raw.closed_from_here();
            assert!(begin.elapsed() < WATCHDOG, "it goes on for ever");
        }
        let lost = victim.seen().lost.clone();
        assert_eq!(lost.len(), 1, "{lost:?}");
        assert!(lost[0].contains("none brought the next frame"), "{lost:?}");
    }
}

/// Where a link ends with its connection, this one does: it does not seem to have the one that it had before.
#[test]
fn a_link_whose_next_connection_is_gone_before_it_was_answered_has_none() {
    let victim = Victim::start(|config| config.reconnect_s = 0);
    let (mut first, _) = victim.raw(3, open(7));
    let mut next = Greeted::new(victim.port(), 3, false);
    // The thread that reads is kept from it until the next connection was reset.
    let seen = victim.seen();
    first.send(header(FrameKind::Request, 1).as_bytes());
    let begin = Instant::now();
    while victim.fabric.stats().frames_received == 0 {
        assert!(begin.elapsed() < WATCHDOG, "nothing arrives");
        std::thread::yield_now();
    }
    let message = next.message(&open_again(7, 0));
    next.stream.write_all(&message).unwrap();
    sockopt::set_socket_linger(&next.stream, Some(Duration::ZERO)).unwrap();
    drop(next);
    drop(seen);
    victim.wait_for("the end", |seen| seen.lost.len() == 1);
    first.closed();
}

/// What a link was told before it broke it does not hear again, and what it had not heard comes.
#[test]
fn a_link_goes_on_with_the_first_frame_that_has_not_come() {
    for encrypt in [false, true] {
        let victim = Victim::start(|config| config.encrypt = encrypt);
        let mut raw: Option<Raw> = None;
        for received in 0..5 {
            let opening = if received == 0 {
                open(7)
            } else {
                open_again(7, 0)
            };
            // The one before is replaced, whether its end was seen or not.
            let (mut next, answer) = victim.raw(3, opening);
            assert_eq!(answer.status.get(), 0);
            assert_eq!(answer.arg0.get(), received, "what has come");
            next.send(header(FrameKind::Request, received).as_bytes());
            victim.wait_for("a frame", |seen| seen.frames.len() as u64 > received);
            if let Some(before) = raw.replace(next) {
                before.closed();
            }
        }
        let numbers: Vec<u64> = victim.seen().frames.iter().map(|(n, _)| *n).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
        assert_eq!(victim.seen().up, 1);
    }
}
