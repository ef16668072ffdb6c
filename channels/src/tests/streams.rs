//! Streams: conversations in order and whole, and what a death in the middle of one leaves.

use std::collections::{BTreeSet, VecDeque};

use dragon_shmem::Error as MemoryError;
use dragon_shmem::sync::{AtomicU64, Ordering};
use proptest::prelude::*;
use proptest::test_runner::TestRng;

use crate::channel::TestPoint;
use crate::fixture::{Node, Role, stop_at};
use crate::{
    Deadline, Endpoint, EndpointOptions, Error, Interest, Set, StreamReceiver, StreamSender,
};

/// Plays a role of these tests; false when there is none of that name.
pub(super) fn play(name: &str, role: &Role) -> bool {
    let member = &role.member;
    match name {
        // Words: endpoint, point, how often before, bytes of a chunk. Opens, sends two chunks and closes; again and again.
        "stream-send" => {
            let endpoint = Endpoint::attach(member, &role.descriptor(0), true).unwrap();
            stop(role);
            let chunk = vec![7; usize::try_from(role.number(3)).unwrap()];
            while let Ok(mut sender) = endpoint.open_send(Deadline::Never) {
                for n in 0..2 {
                    if sender.send(&chunk, n, Deadline::Never).is_err() {
                        return true;
                    }
                }
                sender.close(Deadline::Never).unwrap();
            }
        }
        // Words: the same. Accepts and receives to the end; again and again.
        "stream-receive" => {
            let endpoint = Endpoint::attach(member, &role.descriptor(0), true).unwrap();
            stop(role);
            while let Ok(mut receiver) = endpoint.accept(Deadline::Never) {
                while receiver.receive(Deadline::Never).is_ok() {}
            }
        }
        // Words: endpoint. Has a descriptor that stays silent.
        "stream-silent" => {
            let endpoint = Endpoint::attach(member, &role.descriptor(0), true).unwrap();
            let sender = endpoint.open_send(Deadline::Never).unwrap();
            let (_fd, pump) = sender.into_fd().unwrap();
            let _ = pump.join();
        }
        _ => return false,
    }
    true
}

const POINTS: [TestPoint; 7] = [
    TestPoint::Opening,
    TestPoint::Offering,
    TestPoint::Accepting,
    TestPoint::Sending,
    TestPoint::Receiving,
    TestPoint::Closing,
    // None of the above: it is never met.
    TestPoint::Lowered,
];

fn stop(role: &Role) {
    let point = POINTS[usize::try_from(role.number(1)).unwrap()];
    stop_at(point, u32::try_from(role.number(2)).unwrap());
}

pub(super) fn endpoint(node: &Node, streams: u32, kept: u32) -> Endpoint {
    let options = EndpointOptions {
        streams,
        kept,
        capacity: 4,
        block: 64,
        ..EndpointOptions::default()
    };
    Endpoint::create(&node.member(), &options).unwrap()
}

pub(super) fn pair(endpoint: &Endpoint) -> (StreamSender, StreamReceiver) {
    let sender = endpoint.open_send(Deadline::Now).unwrap();
    (sender, endpoint.accept(Deadline::Now).unwrap())
}

/// All rows can be used, and nothing is left when the endpoint goes.
pub(super) fn is_whole(node: &Node, endpoint: Endpoint, before: u64) {
    let mut pairs = Vec::new();
    while let Ok(mut sender) = endpoint.open_send(Deadline::Now) {
        sender.send(b"x", 5, Deadline::Now).unwrap();
        let mut receiver = endpoint.accept(Deadline::Now).unwrap();
        assert_eq!(receiver.receive(Deadline::Now).unwrap().hint(), 5);
        pairs.push((sender, receiver));
    }
    assert_eq!(pairs.len(), 3, "all rows are free");
    for (mut sender, mut receiver) in pairs {
        sender.close(Deadline::Now).unwrap();
        let end = receiver.receive(Deadline::Now).unwrap_err();
        assert_eq!(end, Error::EndOfStream(endpoint.id()));
    }
    drop(endpoint);
    let left = node.used() - before;
    assert_eq!(left, 0, "{left} bytes are left");
}

#[test]
fn chunks_arrive_whole_and_in_order_up_to_the_end() {
    let node = Node::new();
    let before = node.used();
    let endpoint = endpoint(&node, 3, 1);
    let (mut sender, mut receiver) = pair(&endpoint);
    assert!(matches!(receiver.receive(Deadline::Now), Err(Error::Empty)));
    assert_eq!(receiver.poll(Deadline::Now), Err(Error::Empty));
    sender.send(b"small", 1, Deadline::Now).unwrap();
    sender.send(&[9; 100_000], 2, Deadline::Now).unwrap();
    sender.send(b"", 3, Deadline::Now).unwrap();
    let member = node.member();
    let block = member.alloc(5_000).unwrap();
    // The sender's own process allocated the block that it hands over.
    let theirs = Endpoint::attach(&member, &endpoint.descriptor(), false).unwrap();
    let mut other = theirs.open_send(Deadline::Now).unwrap();
    other.send_block(block, 4, Deadline::Now).unwrap();
    sender.send(b"fourth", 4, Deadline::Now).unwrap();
    assert_eq!(sender.send(b"fifth", 5, Deadline::Now), Err(Error::Full));
    assert_eq!(
        sender.send(b"fifth", 5, Deadline::after(1_000_000)),
        Err(Error::Timeout)
    );
    assert_eq!(receiver.poll(Deadline::Now), Ok(true));
    let chunk = receiver.receive(Deadline::Now).unwrap();
    assert_eq!((chunk.hint(), chunk.into_vec()), (1, b"small".to_vec()));
    let mut part = [0; 30_000];
    for n in 0..3 {
        let got = receiver.receive_into(&mut part, Deadline::Now).unwrap();
        assert_eq!(
            (got.length, got.argument, got.last),
            (30_000, 2, false),
            "{n}"
        );
    }
    let rest = receiver.receive(Deadline::Now).unwrap();
    assert_eq!((rest.len(), rest.hint()), (10_000, 2), "what is left of it");
    let got = receiver.receive_into(&mut part, Deadline::Now).unwrap();
    assert_eq!((got.length, got.argument, got.last), (0, 3, true));
    assert_eq!(receiver.receive(Deadline::Now).unwrap().hint(), 4);
    sender.close(Deadline::Now).unwrap();
    sender.close(Deadline::Now).unwrap();
    assert_eq!(receiver.poll(Deadline::Now), Ok(false));
    for _ in 0..2 {
        let end = receiver.receive(Deadline::Never).unwrap_err();
        assert_eq!(end, Error::EndOfStream(endpoint.id()));
    }
    let mut second = endpoint.accept(Deadline::Now).unwrap();
    let chunk = second.receive(Deadline::Now).unwrap();
    assert_eq!((chunk.len(), chunk.block()), (5_000, Some(block.offset)));
    drop((chunk, receiver, second, other, theirs, sender));
    is_whole(&node, endpoint, before);
}

#[test]
fn whoever_opens_waits_for_a_row_and_whoever_accepts_for_a_conversation() {
    let node = Node::new();
    let before = node.used();
    let endpoint = endpoint(&node, 3, 3);
    assert!(matches!(endpoint.accept(Deadline::Now), Err(Error::Empty)));
    let error = endpoint.accept(Deadline::after(1_000_000)).unwrap_err();
    assert_eq!(error, Error::Timeout);
    let mut open: Vec<_> = (0..3)
        .map(|_| endpoint.open_send(Deadline::Now).unwrap())
        .collect();
    let error = endpoint.open_send(Deadline::Now).unwrap_err();
    assert_eq!(error, Error::Full);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| endpoint.open_send(Deadline::Never).unwrap());
        let mut first = open.remove(0);
        first.send(b"1", 1, Deadline::Now).unwrap();
        first.close(Deadline::Now).unwrap();
        let mut receiver = endpoint.accept(Deadline::Never).unwrap();
        assert_eq!(receiver.receive(Deadline::Now).unwrap().hint(), 1);
        receiver.close().unwrap();
        let mut last = waiter.join().unwrap();
        last.send(b"", 4, Deadline::Now).unwrap();
        for (n, sender) in (2..).zip(&mut open) {
            sender.send(b"", n, Deadline::Now).unwrap();
        }
        for n in 2..5 {
            let mut receiver = endpoint.accept(Deadline::Now).unwrap();
            let got = receiver.receive(Deadline::Now).unwrap().hint();
            assert_eq!(got, n, "in the order in which they were opened");
        }
    });
    drop(open);
    is_whole(&node, endpoint, before);
}

#[test]
fn a_receiver_that_ends_first_is_told_to_the_sender() {
    let node = Node::new();
    let before = node.used();
    let endpoint = endpoint(&node, 3, 0);
    let (mut sender, receiver) = pair(&endpoint);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            loop {
                if let Err(error) = sender.send(&[1; 1_000], 0, Deadline::Never) {
                    break error;
                }
            }
        });
        drop(receiver);
        assert_eq!(waiter.join().unwrap(), Error::PeerClosed(endpoint.id()));
    });
    drop(sender);
    is_whole(&node, endpoint, before);
}

#[test]
fn what_breaks_off_is_not_taken_for_the_whole() {
    let node = Node::new();
    let endpoint = endpoint(&node, 3, 0);
    let (mut sender, mut receiver) = pair(&endpoint);
    sender.send(b"a part", 1, Deadline::Now).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let first = receiver.receive(Deadline::Never).unwrap();
            (first.hint(), receiver.receive(Deadline::Never).unwrap_err())
        });
        sender.abort().unwrap();
        assert_eq!(waiter.join().unwrap(), (1, Error::PeerDied(endpoint.id())));
    });
}

#[test]
fn a_buffered_conversation_is_one_message() {
    let node = Node::new();
    let before = node.used();
    let options = EndpointOptions {
        buffered: true,
        streams: 2,
        block: 64,
        ..EndpointOptions::default()
    };
    let endpoint = Endpoint::create(&node.member(), &options).unwrap();
    assert!(endpoint.is_buffered());
    let mut sender = endpoint.open_send(Deadline::Now).unwrap();
    sender.send(b"all ", 7, Deadline::Now).unwrap();
    sender.send(&[b'x'; 200], 8, Deadline::Now).unwrap();
    assert!(matches!(endpoint.accept(Deadline::Now), Err(Error::Empty)));
    sender.close(Deadline::Now).unwrap();
    drop(endpoint.open_send(Deadline::Now).unwrap());
    let mut third = endpoint.open_send(Deadline::Now).unwrap();
    assert_eq!(third.close(Deadline::Now), Err(Error::Full));
    let mut receiver = endpoint.accept(Deadline::Now).unwrap();
    assert_eq!(receiver.poll(Deadline::Now), Ok(true));
    let chunk = receiver.receive(Deadline::Now).unwrap();
    assert_eq!((chunk.len(), chunk.hint()), (204, 7));
    let end = receiver.receive(Deadline::Now).unwrap_err();
    assert_eq!(end, Error::EndOfStream(endpoint.id()));
    third.close(Deadline::Now).unwrap();
    for _ in 0..2 {
        let mut empty = endpoint.accept(Deadline::Now).unwrap();
        assert!(empty.receive(Deadline::Now).unwrap().is_empty());
    }
    drop((chunk, receiver, sender, third, endpoint));
    assert_eq!(node.used(), before);
}

#[test]
fn many_senders_and_many_receivers() {
    const SENDERS: u64 = 8;
    const EACH: u64 = 40;
    const CHUNKS: u64 = 30;
    let node = Node::new();
    let before = node.used();
    let endpoint = endpoint(&node, 3, 2);
    let name = endpoint.descriptor();
    let whole: u64 = std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let member = node.member();
            scope.spawn(move || {
                let endpoint = Endpoint::attach(&member, &name, false).unwrap();
                for conversation in 0..EACH {
                    let mut stream = endpoint.open_send(Deadline::Never).unwrap();
                    for n in 0..CHUNKS {
                        let argument = sender << 40 | conversation << 20 | n;
                        let length = if n % 7 == 0 { 3_000 } else { 8 };
                        let bytes = vec![u8::try_from(n).unwrap(); length];
                        stream.send(&bytes, argument, Deadline::Never).unwrap();
                    }
                    stream.close(Deadline::Never).unwrap();
                }
            });
        }
        let receivers: Vec<_> = (0..4)
            .map(|_| {
                let member = node.member();
                scope.spawn(move || {
                    let endpoint = Endpoint::attach(&member, &name, false).unwrap();
                    let mut whole = 0;
                    for _ in 0..SENDERS * EACH / 4 {
                        let mut stream = endpoint.accept(Deadline::Never).unwrap();
                        let mut of = None;
                        for n in 0..CHUNKS {
                            let chunk = stream.receive(Deadline::Never).unwrap();
                            let whose = chunk.hint() >> 20;
                            assert_eq!(*of.get_or_insert(whose), whose, "one sender's alone");
                            assert_eq!(chunk.hint() & 0xf_ffff, n);
                        }
                        let end = stream.receive(Deadline::Never).unwrap_err();
                        assert_eq!(end, Error::EndOfStream(endpoint.id()));
                        whole += 1;
                    }
                    whole
                })
            })
            .collect();
        receivers.into_iter().map(|r| r.join().unwrap()).sum()
    });
    assert_eq!(whole, SENDERS * EACH);
    is_whole(&node, endpoint, before);
}

#[test]
fn destroying_an_endpoint_ends_every_wait() {
    let node = Node::new();
    let endpoint = endpoint(&node, 1, 0);
    let (mut sender, mut receiver) = pair(&endpoint);
    let destroyed = Error::Destroyed(endpoint.id());
    std::thread::scope(|scope| {
        let waiters = [
            scope.spawn(|| endpoint.open_send(Deadline::Never).map(drop).unwrap_err()),
            scope.spawn(|| endpoint.accept(Deadline::Never).map(drop).unwrap_err()),
            scope.spawn(|| receiver.receive(Deadline::Never).map(drop).unwrap_err()),
        ];
        endpoint.destroy().unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), destroyed);
        }
    });
    assert_eq!(sender.send(b"", 0, Deadline::Now), Err(destroyed));
}

#[test]
fn an_endpoint_in_a_set() {
    let node = Node::new();
    let member = node.member();
    let endpoint = endpoint(&node, 1, 1);
    let set = Set::create(&member, 2, 0).unwrap();
    set.add(endpoint.id(), Interest::READABLE, 1).unwrap();
    set.add(endpoint.id(), Interest::WRITABLE, 2).unwrap();
    let tokens = || -> Vec<u64> { set.poll().unwrap().iter().map(|r| r.token).collect() };
    assert_eq!(tokens(), [2]);
    let mut sender = endpoint.open_send(Deadline::Now).unwrap();
    assert_eq!(tokens(), [1]);
    let receiver = endpoint.accept(Deadline::Now).unwrap();
    assert_eq!(tokens(), []);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| set.wait(Deadline::Never).unwrap());
        sender.close(Deadline::Now).unwrap();
        drop(receiver);
        assert_eq!(waiter.join().unwrap()[0].token, 2);
    });
}

/// A sender that dies anywhere: its receiver gets what was sent and then the news, and everything can be used again.
#[test]
fn a_sender_killed_at_each_point() {
    // Point, how often it is passed before, what a receiver gets.
    let cases = [
        (0, 0, None),
        (1, 0, Some(0)),
        (3, 0, Some(0)),
        (3, 1, Some(1)),
        (5, 0, Some(2)),
    ];
    for (point, after, chunks) in cases {
        for size in [8, 5_000] {
            let node = Node::new();
            let before = node.used();
            let endpoint = endpoint(&node, 3, 1);
            let words = [endpoint.export().unwrap().to_string()];
            let numbers = [point, after, size].map(|n| n.to_string());
            let victim = node.spawn("stream-send", &[&words[..], &numbers[..]].concat());
            victim.wait_until_stopped();
            // Accepted before the death or after it; the offer of one that died before it was shown comes after.
            let accepted = endpoint.accept(Deadline::Now).ok();
            victim.kill(&node);
            let receiver = accepted.or_else(|| endpoint.accept(Deadline::Now).ok());
            assert_eq!(receiver.is_some(), chunks.is_some(), "point {point}");
            if let (Some(mut receiver), Some(chunks)) = (receiver, chunks) {
                for n in 0..chunks {
                    let chunk = receiver.receive(Deadline::Now).unwrap();
                    assert_eq!((chunk.hint(), chunk.len()), (n, size));
                }
                let end = receiver.receive(Deadline::Now).unwrap_err();
                let closed = point == 5;
                let expected = if closed {
                    Error::EndOfStream
                } else {
                    Error::PeerDied
                };
                assert_eq!(end, expected(endpoint.id()), "point {point} after {after}");
            }
            is_whole(&node, endpoint, before);
        }
    }
}

/// A receiver that dies anywhere: its sender is told.
#[test]
fn a_receiver_killed_at_each_point() {
    for (point, after) in [(2, 0), (4, 0), (4, 1), (5, 0)] {
        for size in [8, 5_000] {
            let node = Node::new();
            let before = node.used();
            let endpoint = endpoint(&node, 3, 1);
            let words = [endpoint.export().unwrap().to_string()];
            let numbers = [point, after, 0].map(|n| n.to_string());
            let mut sender = endpoint.open_send(Deadline::Now).unwrap();
            for n in 0..3 {
                sender.send(&vec![1; size], n, Deadline::Now).unwrap();
            }
            if point == 5 {
                sender.close(Deadline::Now).unwrap();
            }
            let victim = node.spawn("stream-receive", &[&words[..], &numbers[..]].concat());
            victim.wait_until_stopped();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    if point == 5 {
                        return;
                    }
                    let refused = loop {
                        if let Err(error) = sender.send(&vec![1; size], 9, Deadline::Never) {
                            break error;
                        }
                    };
                    assert_eq!(refused, Error::PeerDied(endpoint.id()));
                });
                victim.kill(&node);
                waiter.join().unwrap();
            });
            drop(sender);
            is_whole(&node, endpoint, before);
        }
    }
}

/// Senders and receivers are killed at random moments in traffic: no survivor hangs, and nothing is left.
#[test]
fn killed_in_traffic() {
    let node = Node::new();
    let before = node.used();
    let mut random = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let endpoint = endpoint(&node, 3, 1);
    // Not exported: a victim may be killed before it could adopt the reference.
    let name = endpoint.descriptor().to_string();
    let spawn = |role: &str| {
        let words = [name.as_str(), "6", "0", "300"].map(str::to_owned);
        node.spawn(role, &words)
    };
    let steady = [spawn("stream-send"), spawn("stream-receive")];
    for round in 0..30 {
        let victim = spawn(if round % 2 == 0 {
            "stream-send"
        } else {
            "stream-receive"
        });
        for _ in 0..random.random_range(1..40) {
            let mut sender = endpoint.open_send(Deadline::Never).unwrap();
            for n in 0..3 {
                match sender.send(&[3; 300], n, Deadline::Never) {
                    Ok(()) => {}
                    Err(Error::PeerDied(_)) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        victim.kill(&node);
    }
    for process in steady {
        process.kill(&node);
    }
    while let Ok(receiver) = endpoint.accept(Deadline::Now) {
        drop(receiver);
    }
    is_whole(&node, endpoint, before);
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Accept,
    Send(usize, usize),
    Receive(usize),
    CloseSender(usize),
    CloseReceiver(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = || 0..6_usize;
    let length = prop_oneof![0..100_usize, Just(5_000)];
    let step = prop_oneof![
        2 => Just(Step::Open),
        2 => Just(Step::Accept),
        6 => (n(), length).prop_map(|(n, length)| Step::Send(n, length)),
        6 => n().prop_map(Step::Receive),
        1 => n().prop_map(Step::CloseSender),
        1 => n().prop_map(Step::CloseReceiver),
    ];
    proptest::collection::vec(step, 1..120)
}

/// A conversation as it should be.
#[derive(Default)]
struct Model {
    chunks: VecDeque<usize>,
    sender_closed: bool,
    receiver_closed: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Against queues of chunks.
    #[test]
    fn as_queues_of_chunks(steps in steps()) {
        let node = Node::new();
        let before = node.used();
        let endpoint = endpoint(&node, 3, 1);
        let mut models: Vec<Model> = Vec::new();
        let mut senders: Vec<(usize, StreamSender)> = Vec::new();
        let mut receivers: Vec<(usize, StreamReceiver)> = Vec::new();
        let mut offered = VecDeque::new();
        let open = |models: &[Model]| {
            models.iter().filter(|m| !(m.sender_closed && m.receiver_closed)).count()
        };
        for step in steps {
            match step {
                Step::Open => match endpoint.open_send(Deadline::Now) {
                    Ok(sender) => {
                        offered.push_back(models.len());
                        senders.push((models.len(), sender));
                        models.push(Model::default());
                        prop_assert!(open(&models) <= 3);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, Error::Full);
                        prop_assert_eq!(open(&models), 3);
                    }
                },
                Step::Accept => match endpoint.accept(Deadline::Now) {
                    Ok(receiver) => {
                        let expected = offered.pop_front();
                        prop_assert!(expected.is_some());
                        receivers.push((expected.unwrap(), receiver));
                    }
                    Err(error) => {
                        prop_assert_eq!(error, Error::Empty);
                        prop_assert!(offered.is_empty());
                    }
                },
                Step::Send(n, length) if !senders.is_empty() => {
                    let n = n % senders.len();
                    let (model, sender) = &mut senders[n];
                    let model = &mut models[*model];
                    let sent = sender.send(&vec![1; length], length as u64, Deadline::Now);
                    if model.receiver_closed {
                        prop_assert_eq!(sent, Err(Error::PeerClosed(endpoint.id())));
                    } else if model.chunks.len() == 4 {
                        prop_assert_eq!(sent, Err(Error::Full));
                    } else {
                        prop_assert_eq!(sent, Ok(()));
                        model.chunks.push_back(length);
                    }
                }
                Step::Receive(n) if !receivers.is_empty() => {
                    let n = n % receivers.len();
                    let (model, receiver) = &mut receivers[n];
                    let model = &mut models[*model];
                    match (receiver.receive(Deadline::Now), model.chunks.pop_front()) {
                        (Ok(chunk), Some(length)) => {
                            prop_assert_eq!(chunk.len(), length);
                            prop_assert_eq!(chunk.hint(), length as u64);
                        }
                        (Err(Error::EndOfStream(_)), None) => {
                            prop_assert!(model.sender_closed);
                            model.receiver_closed = true;
                        }
                        (got, None) => {
                            prop_assert_eq!(got.unwrap_err(), Error::Empty);
                            prop_assert!(!model.sender_closed);
                        }
                        (got, Some(_)) => prop_assert!(false, "{:?}", got),
                    }
                }
                Step::CloseSender(n) if !senders.is_empty() => {
                    let (model, mut sender) = senders.remove(n % senders.len());
                    sender.close(Deadline::Now).unwrap();
                    models[model].sender_closed = true;
                }
                Step::CloseReceiver(n) if !receivers.is_empty() => {
                    let (model, receiver) = receivers.remove(n % receivers.len());
                    receiver.close().unwrap();
                    models[model].receiver_closed = true;
                }
                _ => {}
            }
        }
        drop((senders, receivers));
        while let Ok(receiver) = endpoint.accept(Deadline::Now) {
            drop(receiver);
        }
        is_whole(&node, endpoint, before);
    }
}

#[test]
fn options_out_of_range_are_named() {
    let node = Node::new();
    let member = node.member();
    let refused = |options: EndpointOptions, value: &str| {
        let error = Endpoint::create(&member, &options).unwrap_err();
        assert!(error.to_string().contains(value), "{error}");
    };
    let default = EndpointOptions::default();
    refused(
        EndpointOptions {
            streams: 0,
            ..default
        },
        "streams is 0",
    );
    refused(
        EndpointOptions {
            streams: 5_000,
            ..default
        },
        "4096",
    );
    refused(
        EndpointOptions {
            capacity: 0,
            ..default
        },
        "capacity is 0",
    );
    refused(
        EndpointOptions {
            block: u32::MAX,
            ..default
        },
        "1048576",
    );
    let used: BTreeSet<u64> = [node.used()].into();
    assert!(used.contains(&0));
}

/// A conversation that ends is emptied even when all the process's thread records are in use: the row goes on to the next.
#[test]
fn a_row_is_emptied_whatever_the_process_does() {
    let node = Node::new();
    let before = node.used();
    let (sending, receiving) = (node.member(), node.member());
    let endpoint = endpoint(&node, 1, 1);
    let from = Endpoint::attach(&sending, &endpoint.descriptor(), false).unwrap();
    let to = Endpoint::attach(&receiving, &endpoint.descriptor(), false).unwrap();
    let mut sender = from.open_send(Deadline::Now).unwrap();
    let receiver = to.accept(Deadline::Now).unwrap();
    sender.send(b"not received", 0, Deadline::Now).unwrap();
    sender.send(&[1; 1_000], 0, Deadline::Now).unwrap();
    drop(sender);
    let busy: Vec<_> = std::iter::from_fn(|| receiving.thread().ok()).collect();
    // The last handle on the endpoint, too: nobody would come back to the row.
    drop((receiver, to));
    drop(busy);
    let mut sender = from.open_send(Deadline::Now).unwrap();
    sender.send(b"new", 0, Deadline::Now).unwrap();
    let mut receiver = endpoint.accept(Deadline::Now).unwrap();
    let got = receiver.receive(Deadline::Now).unwrap().into_vec();
    assert_eq!(got, b"new");
    drop((sender, receiver, from, endpoint));
    assert_eq!(node.used(), before);
}

/// A stream channel that was scribbled over takes its own conversation with it, and not the row.
#[test]
fn a_row_with_a_scribbled_channel_goes_on() {
    let node = Node::new();
    let before = node.used();
    let endpoint = endpoint(&node, 1, 1);
    let entry = node.control.entry(endpoint.id()).unwrap();
    let rows = entry.block.load(Ordering::Relaxed);
    // State, block and ticket of the first row lie behind the head.
    let pool = node.daemon.pool().data();
    let scribble = || {
        let ring = pool.view::<AtomicU64>(rows + 1_024 + 8).unwrap();
        let ring = ring.load(Ordering::Relaxed);
        let magic = pool.view::<AtomicU64>(ring).unwrap();
        magic.store(0, Ordering::Relaxed);
    };
    let is_corrupt = |error: Error| matches!(error, Error::Memory(MemoryError::Corrupt { .. }));
    // Before it is accepted: the receiver is told, and the sender.
    let mut sender = endpoint.open_send(Deadline::Now).unwrap();
    scribble();
    assert!(is_corrupt(endpoint.accept(Deadline::Now).unwrap_err()));
    let refused = sender.send(b"", 0, Deadline::Now).unwrap_err();
    assert_eq!(refused, Error::PeerDied(endpoint.id()));
    drop(sender);
    let (mut sender, mut receiver) = pair(&endpoint);
    sender.send(b"whole", 1, Deadline::Now).unwrap();
    assert_eq!(receiver.receive(Deadline::Now).unwrap().hint(), 1);
    drop((sender, receiver));
    // While it is kept for the next one.
    scribble();
    let (mut sender, mut receiver) = pair(&endpoint);
    sender.send(b"whole", 2, Deadline::Now).unwrap();
    assert_eq!(receiver.receive(Deadline::Now).unwrap().hint(), 2);
    drop((sender, receiver, endpoint));
    assert_eq!(node.used(), before);
}
