//! What channels offer beyond sending and receiving.

use std::collections::VecDeque;
use std::io::IoSlice;

use proptest::prelude::*;

use crate::fixture::Node;
use crate::{
    ChannelOptions, Deadline, Endpoint, EndpointOptions, Error, Poll, PriorityQueue,
    PriorityQueueOptions, Returns, SendOptions, create_channel,
};

fn options(capacity: u32, block: u32, unbounded: Option<u32>) -> ChannelOptions {
    ChannelOptions {
        capacity,
        block,
        unbounded,
        ..ChannelOptions::default()
    }
}

#[test]
fn an_empty_channel_of_the_default_shape_takes_little_more_than_its_blocks() {
    let node = Node::new();
    let member = node.member();
    let before = node.used();
    let default = ChannelOptions::default();
    let channel = create_channel(&member, &default).unwrap();
    let taken = node.used() - before;
    let blocks = u64::from(default.capacity) * u64::from(default.block);
    assert!(taken * 100 <= blocks * 110, "{taken} bytes for {blocks}");
    assert!(channel.attributes().unwrap().bytes <= taken);
}

#[test]
fn an_unbounded_channel_grows_up_to_its_limit_and_leaves_nothing() {
    let node = Node::new();
    let (member, other) = (node.member(), node.member());
    let before = node.used();
    let channel = create_channel(&member, &options(2, 16, Some(21))).unwrap();
    let theirs = crate::Channel::attach(&other, &channel.export().unwrap(), true).unwrap();
    for round in 0..3 {
        for n in 0..21_u64 {
            // Every fifth one travels by reference.
            let bytes = vec![1; if n % 5 == 0 { 100 } else { 8 }];
            channel.send(&bytes, n, Deadline::Now).unwrap();
        }
        let error = theirs.send(b"x", 0, Deadline::Now).unwrap_err();
        let expected = Error::AtLimit {
            channel: channel.id(),
            limit: 21,
            messages: 21,
        };
        assert_eq!(error, expected, "round {round}");
        let soon = Deadline::after(1_000_000);
        assert_eq!(theirs.send(b"x", 0, soon), Err(Error::Timeout));
        assert_eq!(channel.poll_for(Poll::Full, Deadline::Now), Ok(21));
        for n in 0..21 {
            assert_eq!(theirs.peek(Deadline::Now).unwrap().hint(), n);
            assert_eq!(theirs.receive(Deadline::Now).unwrap().hint(), n);
        }
        assert_eq!(theirs.receive(Deadline::Now).unwrap_err(), Error::Empty);
    }
    assert!(channel.attributes().unwrap().segments > 1);
    channel.send(&[1; 100], 0, Deadline::Now).unwrap();
    drop((channel, theirs));
    assert_eq!(node.used(), before);
}

#[test]
fn senders_and_receivers_of_a_growing_channel() {
    const EACH: u64 = 3_000;
    let node = Node::new();
    let member = node.member();
    let channel = create_channel(&member, &options(2, 16, Some(500))).unwrap();
    let mut all: Vec<u64> = std::thread::scope(|scope| {
        for sender in 0..2_u64 {
            let channel = &channel;
            scope.spawn(move || {
                for n in 0..EACH {
                    channel
                        .send(b"12345678", sender << 32 | n, Deadline::Never)
                        .unwrap();
                }
            });
        }
        let receivers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let one = |_| channel.receive(Deadline::Never).unwrap().hint();
                    let seen: Vec<u64> = (0..EACH).map(one).collect();
                    for sender in 0..2 {
                        assert!(
                            seen.iter()
                                .filter(|hint| **hint >> 32 == sender)
                                .is_sorted()
                        );
                    }
                    seen
                })
            })
            .collect();
        receivers
            .into_iter()
            .flat_map(|r| r.join().unwrap())
            .collect()
    });
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len() as u64, 2 * EACH);
}

#[test]
fn receipts_polls_labels_and_batches() {
    let node = Node::new();
    let member = node.member();
    let channel = create_channel(&member, &options(3, 40, None)).unwrap();
    for size in [3, 40, 500] {
        let send = SendOptions {
            hint: u64::MAX,
            trace: Some([9; 16]),
            ..SendOptions::default()
        };
        let bytes = vec![5; size];
        channel.send_with(&[IoSlice::new(&bytes)], &send).unwrap();
        let peeked = channel.peek(Deadline::Now).unwrap();
        let mut small = [0; 2];
        let error = channel.receive_into(&mut small, Deadline::Now).unwrap_err();
        assert!(error.to_string().contains("there is room for 2"), "{error}");
        let mut buffer = [0; 600];
        let received = channel.receive_into(&mut buffer, Deadline::Now).unwrap();
        assert_eq!((received.hint, received.length), (u64::MAX, size));
        assert_eq!(received.trace, Some([9; 16]));
        assert_eq!(peeked.trace(), received.trace);
        assert_eq!(peeked.into_vec(), &buffer[..size]);
    }
    let receipt = SendOptions {
        returns: Returns::Received,
        ..SendOptions::default()
    };
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| channel.send_with(&[IoSlice::new(b"x")], &receipt));
        channel.receive(Deadline::Never).unwrap();
        sender.join().unwrap().unwrap();
        let waits = [Poll::Full, Poll::Readable].map(|what| {
            let channel = &channel;
            scope.spawn(move || channel.poll_for(what, Deadline::Never))
        });
        let messages: Vec<(&[u8], u64)> = (0..3).map(|n| (&b"abc"[..], n)).collect();
        assert_eq!(channel.send_many(&messages, Deadline::Now), Ok(3));
        for wait in waits {
            wait.join().unwrap().unwrap();
        }
        let empty = scope.spawn(|| channel.poll_for(Poll::Empty, Deadline::Never));
        let closed = scope.spawn(|| channel.poll_for(Poll::Closed, Deadline::Never));
        assert_eq!(
            channel.poll_for(Poll::Writable, Deadline::Now),
            Err(Error::Empty)
        );
        let got = channel.receive_many(9, Deadline::Now).unwrap();
        assert_eq!(
            got.iter().map(crate::Message::hint).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        empty.join().unwrap().unwrap();
        channel.destroy().unwrap();
        assert_eq!(closed.join().unwrap(), Ok(0));
    });
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Send(usize),
    SendMany(usize),
    Receive,
    ReceiveMany(usize),
    Peek,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A channel that grows is a queue up to its limit.
    #[test]
    fn an_unbounded_channel_against_vec_deque(
        capacity in 1_u32..4,
        more in 0_u32..20,
        ops in prop::collection::vec(
            prop_oneof![
                4 => (0_usize..100).prop_map(Op::Send), 1 => (1_usize..6).prop_map(Op::SendMany),
                3 => Just(Op::Receive), 1 => (1_usize..6).prop_map(Op::ReceiveMany), 1 => Just(Op::Peek),
            ],
            0..120,
        ),
    ) {
        let node = Node::new();
        let member = node.member();
        let before = node.used();
        let limit = capacity + more;
        let channel = create_channel(&member, &options(capacity, 24, Some(limit))).unwrap();
        let mut model = VecDeque::new();
        for (n, op) in (0_u64..).zip(ops) {
            match op {
                Op::Send(length) => {
                    let sent = channel.send(&vec![3; length], n, Deadline::Now);
                    prop_assert_eq!(sent.is_ok(), model.len() < limit as usize);
                    if sent.is_ok() {
                        model.push_back(n);
                    }
                }
                Op::SendMany(count) => {
                    let messages = vec![(&b"12345"[..], n); count];
                    let sent = channel.send_many(&messages, Deadline::Now).unwrap_or(0);
                    prop_assert_eq!(sent, count.min(limit as usize - model.len()));
                    model.extend(std::iter::repeat_n(n, sent));
                }
                Op::Receive => {
                    let got = channel.receive(Deadline::Now).ok().map(|m| m.hint());
                    prop_assert_eq!(got, model.pop_front());
                }
                Op::ReceiveMany(count) => {
                    let got = channel.receive_many(count, Deadline::Now).unwrap_or_default();
                    let expected: Vec<_> = model.drain(..count.min(model.len())).collect();
                    prop_assert_eq!(got.iter().map(crate::Message::hint).collect::<Vec<_>>(), expected);
                }
                Op::Peek => {
                    let seen = channel.peek(Deadline::Now).ok().map(|m| m.hint());
                    prop_assert_eq!(seen, model.front().copied());
                }
            }
            prop_assert_eq!(channel.attributes().unwrap().messages, model.len() as u64);
        }
        drop(channel);
        prop_assert_eq!(node.used(), before);
    }
}

/// What goes with messages in it frees their blocks, also when all thread records of the process are in use.
#[test]
fn the_last_handle_frees_what_was_not_received_whatever_the_process_does() {
    const LARGE: [usize; 3] = [1_000, 70_000, 300_000];
    let node = Node::new();
    let (member, other) = (node.member(), node.member());
    let before = node.used();
    for unbounded in [None, Some(9)] {
        let channel = create_channel(&other, &options(9, 16, unbounded)).unwrap();
        let last = crate::Channel::attach(&member, &channel.export().unwrap(), true).unwrap();
        for length in LARGE.iter().cycle().take(9) {
            channel.send(&vec![1; *length], 0, Deadline::Now).unwrap();
        }
        let received = last.receive(Deadline::Now).unwrap();
        drop(channel);
        let busy: Vec<_> = std::iter::from_fn(|| member.thread().ok()).collect();
        assert!(last.receive(Deadline::Now).is_err(), "no record is left");
        drop((received, last));
        drop(busy);
        assert_eq!(node.used(), before, "unbounded: {unbounded:?}");
    }
    let queue = PriorityQueue::create(&member, &PriorityQueueOptions::default()).unwrap();
    let buffered = EndpointOptions {
        buffered: true,
        ..EndpointOptions::default()
    };
    let endpoint = Endpoint::create(&member, &buffered).unwrap();
    for (level, length) in (0..).zip(LARGE) {
        let bytes = vec![1; length];
        queue.send(level, &bytes, 0, Deadline::Now).unwrap();
        let mut sender = endpoint.open_send(Deadline::Now).unwrap();
        sender.send(&bytes, 0, Deadline::Now).unwrap();
        sender.close(Deadline::Now).unwrap();
    }
    let busy: Vec<_> = std::iter::from_fn(|| member.thread().ok()).collect();
    drop((queue, endpoint));
    drop(busy);
    assert_eq!(node.used(), before);
}
