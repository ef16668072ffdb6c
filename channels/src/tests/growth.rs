//! Unbounded channels: growth that dies in the middle, and words that were scribbled over.

use crate::channel::{TestPoint, open};
use crate::fixture::{Node, Role, stop_at};
use crate::{Channel, ChannelOptions, Deadline, Error, Interest, Poll, Set, create_channel};
use dragon_protocol::op::Op;
use dragon_shmem::sync::Ordering;
use std::mem::ManuallyDrop;

const LIMIT: u32 = 40;

pub(super) fn play(name: &str, role: &Role) -> bool {
    let point = match name {
        "stop-growing" => TestPoint::Growing,
        "stop-grown" => TestPoint::Grown,
        "grow" => TestPoint::Lowered,
        _ => return false,
    };
    // Words: channel, number of the sender, how often to grow before it stops.
    let channel = Channel::attach(&role.member, &role.descriptor(0), false).unwrap();
    if name != "grow" {
        stop_at(point, u32::try_from(role.number(2)).unwrap());
    }
    let hint = role.number(1) << 32;
    for n in 0_u64.. {
        let length = if n % 3 == 0 { 300 } else { 8 };
        let sent = channel.send(&vec![1; length], hint | n, Deadline::Never);
        match sent {
            Ok(()) => {}
            Err(Error::Destroyed(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    true
}

fn unbounded(node: &Node) -> Channel {
    let options = ChannelOptions {
        capacity: 2,
        block: 64,
        unbounded: Some(LIMIT),
        ..ChannelOptions::default()
    };
    create_channel(&node.member(), &options).unwrap()
}

/// A sender dies with a ring that is shared and not in the chain, or with one in the chain before it has closed the full one:
/// the ring is freed, or used by the next sender.
#[test]
fn a_sender_killed_while_it_grows_the_channel() {
    for role in ["stop-growing", "stop-grown"] {
        for growths in 0..3 {
            let node = Node::new();
            let before = node.used();
            let channel = unbounded(&node);
            let words = [
                channel.descriptor().to_string(),
                "1".to_owned(),
                growths.to_string(),
            ];
            let sender = node.spawn(role, &words);
            sender.wait_until_stopped();
            let rings = channel.attributes().unwrap().segments;
            let expected = growths + 1 + u32::from(role == "stop-grown");
            assert_eq!(rings, expected, "{role} {growths}");
            let there = channel.attributes().unwrap().messages;
            // Others can send meanwhile, and grow the channel themselves.
            channel.send(b"", 2 << 32, Deadline::Now).unwrap();
            sender.kill(&node);
            assert_eq!(channel.attributes().unwrap().segments, growths + 2);
            let left = u64::from(LIMIT) - there - 1;
            for n in 1..=left {
                channel.send(b"", 2 << 32 | n, Deadline::Now).unwrap();
            }
            let more = channel.send(b"", 0, Deadline::Now);
            assert!(matches!(more, Err(Error::AtLimit { .. })), "{more:?}");
            let expected = (0..there)
                .map(|n| 1 << 32 | n)
                .chain((0..=left).map(|n| 2 << 32 | n));
            for hint in expected {
                assert_eq!(channel.receive(Deadline::Now).unwrap().hint(), hint);
            }
            drop(channel);
            assert_eq!(node.used(), before, "{role} {growths}");
        }
    }
}

/// It dies when its ring is in the chain, and its intent says still that it adds it.
#[test]
fn a_ring_in_the_chain_outlives_who_added_it() {
    let node = Node::new();
    let channel = unbounded(&node);
    for n in 0..u64::from(LIMIT) {
        channel.send(b"", n, Deadline::Now).unwrap();
    }
    let used = node.used();
    let id = channel.id();
    let entry = node.control.object(id.index).unwrap();
    let ring = open(&node.daemon, entry).unwrap();
    for n in 1..u64::from(channel.attributes().unwrap().segments) {
        let word = ring.segment(usize::try_from(n).unwrap()).unwrap();
        let dead = node.member();
        // The thread of a dead process ends nothing.
        let thread = ManuallyDrop::new(dead.thread().unwrap());
        let added = [word.load(Ordering::Acquire), n];
        thread
            .intent
            .begin(Op::Grow, id.index, id.generation, added);
        crate::recover(&node.daemon, dead.slot()).unwrap();
        assert_eq!(node.used(), used, "ring {n}");
    }
    for n in 0..u64::from(LIMIT) {
        assert_eq!(channel.receive(Deadline::Now).unwrap().hint(), n);
    }
}

/// A set only reads: it finds the message in the next ring although nobody has gone on to that yet.
#[test]
fn a_set_looks_behind_a_drained_ring() {
    let node = Node::new();
    let channel = unbounded(&node);
    let set = Set::create(&node.member(), 1, 0).unwrap();
    set.add(channel.id(), Interest::READABLE, 7).unwrap();
    for n in 0..20 {
        channel.send(b"", n, Deadline::Now).unwrap();
    }
    for n in 0..20 {
        assert_eq!(set.poll().unwrap().len(), 1, "{n} were received");
        assert_eq!(channel.receive(Deadline::Now).unwrap().hint(), n);
    }
    assert_eq!(set.poll().unwrap(), []);
}

/// Senders of several processes are killed while all of them grow the same channel.
#[test]
fn senders_killed_in_traffic_that_grows() {
    let node = Node::new();
    let before = node.used();
    for round in 0..6 {
        let channel = unbounded(&node);
        let spawn = |n: u64| {
            let words = [channel.descriptor().to_string(), n.to_string()];
            node.spawn("grow", &words)
        };
        let senders = [1, 2, 3].map(spawn);
        let mut next = [0; 4];
        let mut take = |deadline| -> Result<(), Error> {
            let message = channel.receive(deadline)?;
            let (sender, n) = (message.hint() >> 32, message.hint() & 0xffff_ffff);
            let expected = &mut next[usize::try_from(sender).unwrap()];
            assert_eq!(n, *expected, "sender {sender}");
            *expected += 1;
            Ok(())
        };
        for (number, sender) in senders.into_iter().enumerate() {
            for _ in 0..round * 7 + number {
                take(Deadline::Never).unwrap();
            }
            sender.kill(&node);
        }
        while take(Deadline::Now).is_ok() {}
        for n in 0..LIMIT.into() {
            channel.send(b"", n, Deadline::Now).unwrap();
        }
        drop(channel);
        assert_eq!(node.used(), before, "round {round}");
    }
}

/// Whatever stands in the words of the chain, each operation ends.
#[test]
fn scribbled_words_of_a_chain_lead_nobody_astray() {
    for value in [1, 2, 24, 25, 63, 1 << 32, u64::MAX - 1, u64::MAX] {
        for which in 0..5 {
            let node = Node::new();
            let channel = unbounded(&node);
            for hint in 0..5 {
                channel.send(b"", hint, Deadline::Now).unwrap();
            }
            let entry = node.control.object(channel.id().index).unwrap();
            let ring = open(&node.daemon, entry).unwrap();
            let word = match which {
                0 => ring.sending(),
                1 => ring.receiving(),
                2 => ring.segment(1).unwrap(),
                3 => crate::cell::Cells::end(&ring),
                _ => crate::cell::Cells::tail(&ring),
            };
            word.store(value, Ordering::Relaxed);
            // Errors and results are both right: that each of them comes is the point.
            let other = node.member();
            let other = Channel::attach(&other, &channel.descriptor(), false).unwrap();
            for handle in [&channel, &other] {
                let _ = handle.attributes();
                let _ = handle.send(b"", 9, Deadline::Now);
                let _ = handle.send_many(&[(b"", 1), (b"", 2)], Deadline::Now);
                let _ = handle.peek(Deadline::Now);
                let _ = handle.poll_for(Poll::Full, Deadline::Now);
                let _ = handle.poll(Deadline::Now);
                let _ = handle.receive_many(3, Deadline::Now);
            }
            assert!(
                !channel
                    .attributes()
                    .is_ok_and(|now| now.messages > LIMIT.into())
            );
        }
    }
}
