//! Tests of queues with priorities.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::local::{self, LocalNode};
use crate::{Interest, Set};

fn options(levels: u32, capacity: u32) -> PriorityQueueOptions {
    PriorityQueueOptions {
        levels,
        capacity,
        block: 64,
        user: 0,
    }
}

fn used(node: &LocalNode) -> u64 {
    node.daemon().pool().stats().map_or(0, |stats| stats.used)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u32, usize),
    Receive,
    Peek,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..5_u32, prop_oneof![0..64_usize, 65..300_usize])
            .prop_map(|(level, size)| Step::Send(level, size)),
        3 => Just(Step::Receive),
        1 => Just(Step::Peek),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn against_an_oracle(steps in proptest::collection::vec(step(), 1..120)) {
        let node = LocalNode::new().unwrap();
        let member = node.member().unwrap();
        let before = used(&node);
        {
            let queue = PriorityQueue::create(&member, &options(5, 3)).unwrap();
            let mut oracle: Vec<VecDeque<(u64, usize)>> = vec![VecDeque::new(); 5];
            for (n, step) in (0..).zip(steps) {
                let first = oracle.iter().position(|level| !level.is_empty());
                match step {
                    Step::Send(level, size) => {
                        let sent = queue.send(level, &vec![7; size], n, Deadline::Now);
                        let row = &mut oracle[level as usize];
                        if row.len() == 3 {
                            prop_assert_eq!(sent, Err(Error::Full));
                        } else {
                            prop_assert_eq!(sent, Ok(()));
                            row.push_back((n, size));
                        }
                    }
                    Step::Receive | Step::Peek => {
                        let found = match step {
                            Step::Peek => queue.peek(Deadline::Now),
                            _ => queue.receive(Deadline::Now),
                        };
                        let Some(first) = first else {
                            prop_assert_eq!(found.unwrap_err(), Error::Empty);
                            continue;
                        };
                        let (level, message) = found.unwrap();
                        prop_assert_eq!(level as usize, first);
                        let expected = oracle[first][0];
                        prop_assert_eq!((message.hint(), message.len()), expected);
                        prop_assert!(message.into_vec().iter().all(|byte| *byte == 7));
                        if let Step::Receive = step {
                            oracle[first].pop_front();
                        }
                    }
                }
                let messages: Vec<u64> = oracle.iter().map(|level| level.len() as u64).collect();
                prop_assert_eq!(queue.state().unwrap().messages, messages);
            }
        }
        prop_assert_eq!(used(&node), before);
    }
}

#[test]
fn deadlines_limits_and_the_end() {
    let member = local::member().unwrap();
    let queue = PriorityQueue::create(&member, &options(2, 1)).unwrap();
    let soon = || Deadline::after(1_000_000);
    assert_eq!(queue.receive(soon()).unwrap_err(), Error::Timeout);
    assert_eq!(queue.poll(Deadline::Now).unwrap_err(), Error::Empty);
    let error = queue.send(2, b"", 0, Deadline::Now).unwrap_err();
    assert_eq!(
        error.to_string(),
        "level of a message is 2: it must be from 0 to 1"
    );
    queue.send(1, b"x", 0, Deadline::Now).unwrap();
    assert_eq!(queue.send(1, b"y", 0, soon()), Err(Error::Timeout));
    assert_eq!(queue.send(1, &[0; 500], 0, soon()), Err(Error::Timeout));
    queue.send(0, b"z", 0, Deadline::Now).unwrap();
    assert_eq!(queue.poll(Deadline::Now), Ok(2));
    let full = PriorityQueueState {
        messages: vec![1, 1],
        capacity: 1,
        block: 64,
        senders_waiting: 0,
        receivers_waiting: 0,
        bytes: queue.state().unwrap().bytes,
    };
    assert_eq!(queue.state().unwrap(), full);
    assert_eq!(PriorityQueueState::decode(&full.encode()), Some(full));
    thread::scope(|scope| {
        let sender = scope.spawn(|| queue.send(1, b"w", 0, Deadline::Never));
        assert_eq!(queue.receive(Deadline::Never).unwrap().0, 0);
        assert_eq!(queue.receive(Deadline::Never).unwrap().0, 1);
        sender.join().unwrap().unwrap();
        assert_eq!(queue.receive(Deadline::Never).unwrap().1.into_vec(), b"w");
        let receiver = scope.spawn(|| queue.receive(Deadline::Never).map(drop));
        let poller = scope.spawn(|| queue.poll(Deadline::Never).map(drop));
        queue.destroy().unwrap();
        for ended in [receiver, poller] {
            assert!(matches!(ended.join().unwrap(), Err(Error::Destroyed(_))));
        }
    });
    for wrong in [0, 65] {
        let error = PriorityQueue::create(&member, &options(wrong, 1)).unwrap_err();
        let text = format!("levels of a queue is {wrong}: it must be from 1 to 64");
        assert_eq!(error.to_string(), text);
    }
}

/// Who was woken for a message and does not take it wakes the next, whatever the level.
#[test]
fn who_only_looks_passes_the_wake_up_on() {
    let member = local::member().unwrap();
    let queue = PriorityQueue::create(&member, &options(3, 2)).unwrap();
    let asleep = |count| {
        while queue.state().unwrap().receivers_waiting < count {
            thread::yield_now();
        }
    };
    let watchdog = || Deadline::after(60_000_000_000);
    for level in 0..3 {
        thread::scope(|scope| {
            let poller = scope.spawn(|| queue.poll(watchdog()));
            asleep(1);
            let receiver = scope.spawn(|| queue.receive(watchdog()).map(|found| found.0));
            asleep(2);
            queue.send(level, b"", 0, Deadline::Now).unwrap();
            assert_eq!(receiver.join().unwrap(), Ok(level));
            // In case that the receiver was quicker.
            queue.send(level, b"", 0, Deadline::Now).unwrap();
            assert_eq!(poller.join().unwrap(), Ok(1));
            queue.receive(Deadline::Now).unwrap();
        });
    }
}

/// Each level has a place of its own where senders sleep.
#[test]
fn destroying_a_queue_wakes_the_senders_of_all_levels() {
    let member = local::member().unwrap();
    let queue = PriorityQueue::create(&member, &options(3, 1)).unwrap();
    for level in 0..3 {
        queue.send(level, b"", 0, Deadline::Now).unwrap();
    }
    thread::scope(|scope| {
        let send = |level| queue.send(level, b"", 0, Deadline::Never);
        let senders = [0, 1, 2].map(|level| scope.spawn(move || send(level)));
        while queue.state().unwrap().senders_waiting < 3 {
            thread::yield_now();
        }
        queue.destroy().unwrap();
        for sender in senders {
            let ended = sender.join().unwrap();
            assert!(matches!(ended, Err(Error::Destroyed(_))), "{ended:?}");
        }
    });
}

/// Senders and receivers on all levels: each message arrives once, and those of one sender and level in order.
#[test]
fn every_message_arrives_once_and_in_order() {
    const EACH: u64 = 2_000;
    const SENDERS: u64 = 3;
    let node = LocalNode::new().unwrap();
    let before = used(&node);
    {
        let members = [(); 3].map(|()| node.member().unwrap());
        let queue = PriorityQueue::create(&members[0], &options(3, 4)).unwrap();
        let received = AtomicU64::new(0);
        thread::scope(|scope| {
            for (sender, member) in (0..SENDERS).zip(&members) {
                let descriptor = queue.descriptor();
                scope.spawn(move || {
                    let queue = PriorityQueue::attach(member, &descriptor, false).unwrap();
                    for n in 0..EACH {
                        let level = u32::try_from(n % 3).unwrap();
                        let size = if n % 7 == 0 { 200 } else { 8 };
                        let hint = sender << 32 | n;
                        queue
                            .send(level, &vec![1; size], hint, Deadline::Never)
                            .unwrap();
                    }
                });
            }
            for member in &members[1..] {
                let (descriptor, received) = (queue.descriptor(), &received);
                let senders = members.len();
                scope.spawn(move || {
                    let queue = PriorityQueue::attach(member, &descriptor, false).unwrap();
                    let mut last = vec![[None; 3]; senders];
                    while received.fetch_add(1, Ordering::Relaxed) < SENDERS * EACH {
                        let (level, message) = queue.receive(Deadline::Never).unwrap();
                        let sender = usize::try_from(message.hint() >> 32).unwrap();
                        let n = message.hint() & 0xffff_ffff;
                        let last = &mut last[sender][level as usize];
                        assert!(last.is_none_or(|last| last < n));
                        *last = Some(n);
                    }
                });
            }
        });
        assert_eq!(queue.state().unwrap().messages, [0; 3]);
    }
    assert_eq!(used(&node), before);
}

/// What was sent before a receive began is never passed over for something less urgent, however busy the levels are.
#[test]
fn urgent_messages_are_never_passed_over() {
    const ROUNDS: u64 = 3_000;
    let node = LocalNode::new().unwrap();
    let members = [(); 3].map(|()| node.member().unwrap());
    let queue = PriorityQueue::create(&members[0], &options(3, 8)).unwrap();
    // Urgent messages: sent, and begun to be received.
    let (sent, ended) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let (descriptor, queue, sent, ended) = (queue.descriptor(), &queue, &sent, &ended);
        let flood = &members[1];
        scope.spawn(move || {
            let queue = PriorityQueue::attach(flood, &descriptor, false).unwrap();
            while ended.load(Ordering::Acquire) == 0 {
                for level in [1, 2] {
                    // Full now and then.
                    let _ = queue.send(level, b"", 0, Deadline::Now);
                }
            }
        });
        scope.spawn(move || {
            for n in 1..=ROUNDS {
                queue.send(0, b"", n, Deadline::Never).unwrap();
                sent.store(n, Ordering::Release);
            }
        });
        let receiver = &members[2];
        scope.spawn(move || {
            let queue = PriorityQueue::attach(receiver, &descriptor, false).unwrap();
            let mut urgent = 0;
            while urgent < ROUNDS {
                let before = sent.load(Ordering::Acquire);
                let (level, message) = queue.receive(Deadline::Never).unwrap();
                if level == 0 {
                    urgent += 1;
                    assert_eq!(message.hint(), urgent);
                } else {
                    assert!(urgent >= before, "{before} were sent, {urgent} received");
                }
            }
            ended.store(1, Ordering::Release);
        });
    });
}

#[test]
fn a_queue_stands_in_a_set() {
    let member = local::member().unwrap();
    let queue = PriorityQueue::create(&member, &options(3, 2)).unwrap();
    let set = Set::create(&member, 4, 0).unwrap();
    set.add(queue.id(), Interest::READABLE, 5).unwrap();
    assert_eq!(set.wait(Deadline::Now).unwrap_err(), Error::Empty);
    for level in [2, 0] {
        thread::scope(|scope| {
            let waiter = scope.spawn(|| set.wait(Deadline::Never).unwrap());
            queue.send(level, b"", 0, Deadline::Never).unwrap();
            let ready = waiter.join().unwrap();
            assert_eq!((ready.len(), ready[0].token), (1, 5));
        });
        queue.receive(Deadline::Now).unwrap();
        assert_eq!(set.poll().unwrap(), []);
    }
    let error = set.add(queue.id(), Interest::WRITABLE, 0).unwrap_err();
    assert!(matches!(
        error,
        Error::InvalidArgument {
            value: 2,
            most: 1,
            ..
        }
    ));
    queue.destroy().unwrap();
    assert_eq!(set.wait(Deadline::Never).unwrap()[0].token, 5);
}

/// A block is handed over as it is, and comes back when nobody takes it.
#[test]
fn blocks_are_handed_over() {
    let node = LocalNode::new().unwrap();
    let member = node.member().unwrap();
    let before = used(&node);
    {
        let queue = PriorityQueue::create(&member, &options(2, 1)).unwrap();
        let block = || member.alloc(5_000).unwrap();
        queue.send_block(1, block(), 3, Deadline::Never).unwrap();
        let refused = block();
        let full = queue.send_block(1, refused, 4, Deadline::Now);
        assert_eq!(full, Err(Error::Full));
        member.free(refused.offset).unwrap();
        queue.send(0, &[9; 5_000], 5, Deadline::Never).unwrap();
        assert_eq!(queue.receive(Deadline::Now).unwrap().1.hint(), 5);
        // One message is left in the queue when it goes.
    }
    assert_eq!(used(&node), before);
}
