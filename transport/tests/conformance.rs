//! Each operation of each object, by a process of the object's node and by one of another node, from the same function, over
//! each fabric: the same results, the same errors, the same wake-ups.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use std::fmt::Debug;
use std::io::IoSlice;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use dragon_channels::{
    Barrier, Breakage, Broadcast, BroadcastOptions, Channel, Condition, ConditionOptions, Deadline,
    Endpoint, EndpointOptions, Error, Event, Lock, Poll, PriorityQueue, PriorityQueueOptions,
    ProcessObject, Result, Returns, Semaphore, SemaphoreOptions, SendOptions, Trigger,
};
use dragon_protocol::op::Op;
use dragon_shmem::Member;
use dragon_shmem::thread::{Reply, ReplyPayload};
use rig::{Node, channel, on_each, pattern, seen_by, soon, until, watched};

/// Who uses whose objects.
struct Site<'a> {
    nodes: &'a [Node],
    /// A process of the second node, which makes the objects.
    owner: Arc<Member>,
    /// Another process, of that node or of the first one.
    user: Arc<Member>,
    /// The user's node.
    home: &'a Node,
}

impl Site<'_> {
    /// Calls `wait` on a thread, and `end` when that waits, as far as it shows.
    fn ended_by<T: Send>(&self, wait: impl FnOnce() -> T + Send, end: impl FnOnce()) -> T {
        let owner = &self.nodes[1];
        let before = owner.stats().parked;
        std::thread::scope(|scope| {
            let waiter = scope.spawn(wait);
            if self.home.index == owner.index {
                std::thread::yield_now();
            } else {
                until("it waits at the owner", || owner.stats().parked > before);
            }
            end();
            waiter.join().unwrap()
        })
    }
}

fn everywhere(test: impl Fn(&Site<'_>)) {
    on_each(2, |nodes| {
        for home in [&nodes[1], &nodes[0]] {
            test(&Site {
                nodes,
                owner: nodes[1].client(),
                user: home.client(),
                home,
            });
        }
    });
}

/// Try forms and timed forms of something that has to wait.
fn waits<T: Debug + PartialEq>(now: Error, wait: impl Fn(Deadline) -> Result<T>) {
    assert_eq!(wait(Deadline::Now), Err(now));
    assert_eq!(wait(soon()), Err(Error::Timeout));
    assert_eq!(wait(Deadline::At(1)), Err(Error::Timeout));
}

fn hint(message: Result<dragon_channels::Message>) -> Result<u64> {
    message.map(|message| message.hint())
}

#[test]
fn sends_return_when_they_are_to() {
    everywhere(|site| {
        let owned = channel(&site.owner, 4);
        let used = seen_by(&site.user, owned.descriptor());
        let send = |returns, length: usize| {
            let bytes = pattern(length, 1);
            let options = SendOptions {
                hint: length as u64,
                deadline: watched(),
                returns,
                ..SendOptions::default()
            };
            used.send_with(&[IoSlice::new(&bytes)], &options)
        };
        for length in [0, 10, 300, 5000, 100_000] {
            for returns in [Returns::Immediately, Returns::Buffered, Returns::Deposited] {
                send(returns, length).unwrap();
                if returns == Returns::Deposited {
                    assert_eq!(owned.poll(Deadline::Now).unwrap(), 1);
                }
                let message = owned.receive(watched()).unwrap();
                assert_eq!(message.hint(), length as u64);
                assert!(message.into_vec() == pattern(length, 1), "{returns:?}");
            }
            std::thread::scope(|scope| {
                let sender = scope.spawn(|| send(Returns::Received, length));
                owned.poll_for(Poll::Readable, watched()).unwrap();
                assert!(!sender.is_finished());
                owned.receive(watched()).unwrap();
                sender.join().unwrap().unwrap();
            });
        }
        let many: Vec<(&[u8], u64)> = vec![(b"a", 1), (b"b", 2), (b"c", 3)];
        assert_eq!(used.send_many(&many, watched()).unwrap(), 3);
        for n in 1..4 {
            assert_eq!(hint(owned.receive(Deadline::Now)), Ok(n));
        }
        let block = site.user.alloc(70_000).unwrap();
        used.send_block(block, 9, watched()).unwrap();
        assert_eq!(owned.receive(watched()).unwrap().len(), 70_000);
        while used.send(b"", 0, Deadline::Now).is_ok() {}
        waits(Error::Full, |deadline| used.send(b"", 0, deadline));
        let sent = || used.send(b"last", 7, watched());
        site.ended_by(sent, || drop(owned.receive(watched()).unwrap()))
            .unwrap();
    });
}

#[test]
fn messages_are_received_and_looked_at() {
    everywhere(|site| {
        let owned = channel(&site.owner, 8);
        let used = seen_by(&site.user, owned.descriptor());
        waits(Error::Empty, |deadline| hint(used.receive(deadline)));
        waits(Error::Empty, |deadline| hint(used.peek(deadline)));
        for length in [0, 40, 384, 5000, 100_000] {
            let bytes = pattern(length, 2);
            owned.send(&bytes, length as u64, watched()).unwrap();
            for _ in 0..2 {
                let seen = used.peek(watched()).unwrap();
                assert_eq!(seen.hint(), length as u64);
                assert!(seen.into_vec() == bytes, "{length}: seen");
            }
            let mut into = vec![0; length + 10];
            let received = used.receive_into(&mut into, watched()).unwrap();
            assert_eq!((received.hint, received.length), (length as u64, length));
            assert!(into[..length] == bytes, "{length}: received");
        }
        for n in 0..5 {
            owned.send(b"", n, watched()).unwrap();
        }
        let first = used.receive_many(3, watched()).unwrap();
        let rest = used.receive_many(9, watched()).unwrap();
        let hints: Vec<u64> = first.iter().chain(&rest).map(|m| m.hint()).collect();
        assert_eq!((first.len(), hints), (3, vec![0, 1, 2, 3, 4]));
        let message = site.ended_by(
            || used.receive(watched()),
            || owned.send(b"at last", 5, watched()).unwrap(),
        );
        assert_eq!(hint(message), Ok(5));
    });
}

#[test]
fn a_message_that_is_too_long_for_its_receiver_stays() {
    everywhere(|site| {
        let owned = channel(&site.owner, 8);
        let used = seen_by(&site.user, owned.descriptor());
        let into = |room: usize, deadline| {
            let mut buffer = vec![0; room];
            let received = used.receive_into(&mut buffer, deadline)?;
            buffer.truncate(received.length);
            Ok((received.hint, buffer))
        };
        for length in [1, 300, 5000, 100_000] {
            let content = pattern(length, 3);
            owned.send(&content, 1, watched()).unwrap();
            owned.send(b"next", 2, watched()).unwrap();
            for room in [0, length - 1] {
                let error = Error::TooLong {
                    channel: owned.id(),
                    length: length as u64,
                    room: room as u64,
                };
                for deadline in [Deadline::Now, watched()] {
                    assert_eq!(into(room, deadline), Err(error.clone()));
                }
                assert_eq!(owned.attributes().unwrap().messages, 2);
            }
            assert_eq!(into(length, Deadline::Now), Ok((1, content)));
            assert_eq!(into(9, Deadline::Now), Ok((2, b"next".to_vec())));
        }
        // One that waits for it, too; whoever waits behind it gets the message.
        std::thread::scope(|scope| {
            let other = seen_by(&site.user, owned.descriptor());
            let behind = site.ended_by(
                || into(3, watched()),
                || {
                    let behind = scope.spawn(move || other.receive(watched()));
                    owned.send(b"four", 4, watched()).unwrap();
                    // Whichever comes first: there is one for each.
                    owned.send(b"5", 5, watched()).unwrap();
                    assert_eq!(hint(behind.join().unwrap()).map(|hint| hint / 4), Ok(1));
                },
            );
            match behind {
                Err(Error::TooLong { length: 4, .. }) => drop(owned.receive(watched()).unwrap()),
                received => assert_eq!(received, Ok((5, b"5".to_vec()))),
            }
        });
        assert_eq!(owned.attributes().unwrap().messages, 0);
        waits(Error::Empty, |deadline| into(9, deadline));
        assert_eq!(site.nodes[1].stats().messages_lost, 0);
    });
}

#[test]
fn trace_ids_travel_with_their_messages() {
    everywhere(|site| {
        let owned = channel(&site.owner, 4);
        let used = seen_by(&site.user, owned.descriptor());
        let with = |hint: u64, trace, returns| SendOptions {
            hint,
            deadline: watched(),
            returns,
            trace,
        };
        let id: [u8; 16] = pattern(16, 4).try_into().unwrap();
        for (to, from) in [(&used, &owned), (&owned, &used)] {
            for length in [0, 10, 230, 250, 384, 936, 5000, 100_000] {
                let content = pattern(length, 5);
                let parts = [IoSlice::new(&content)];
                for (trace, returns) in [
                    (Some(id), Returns::Deposited),
                    (None, Returns::Deposited),
                    (Some([0; 16]), Returns::Immediately),
                    (Some([255; 16]), Returns::Buffered),
                ] {
                    to.send_with(&parts, &with(7, trace, returns)).unwrap();
                    let seen = from.peek(watched()).unwrap();
                    assert_eq!((seen.hint(), seen.trace()), (7, trace), "{length}: seen");
                    let message = from.receive(watched()).unwrap();
                    assert_eq!((message.hint(), message.trace()), (7, trace), "{length}");
                    assert!(message.into_vec() == content, "{length}");
                }
            }
            let options = with(8, Some(id), Returns::Deposited);
            to.send_with(&[IoSlice::new(b"into")], &options).unwrap();
            let received = from.receive_into(&mut [0; 9], watched()).unwrap();
            assert_eq!((received.hint, received.trace), (8, Some(id)));
        }
        let block = site.user.alloc(70_000).unwrap();
        let options = with(9, Some(id), Returns::Deposited);
        used.send_block_with(block, &options).unwrap();
        assert_eq!(owned.receive(watched()).unwrap().trace(), Some(id));
        // One that has to wait for room, and one that is waited for.
        while owned.send(b"", 0, Deadline::Now).is_ok() {}
        let send = || used.send_with(&[IoSlice::new(b"late")], &options);
        site.ended_by(send, || drop(owned.receive(watched()).unwrap()))
            .unwrap();
        let arrived = || owned.receive(watched()).unwrap();
        let last = std::iter::repeat_with(arrived).find(|m| m.hint() == 9);
        assert_eq!(last.unwrap().trace(), Some(id));
        let send = || owned.send_with(&[IoSlice::new(b"soon")], &options).unwrap();
        let message = site.ended_by(|| used.receive(watched()), send).unwrap();
        assert_eq!((message.hint(), message.trace()), (9, Some(id)));
    });
}

/// A message for a process that is dead by the time it comes goes back with its trace id.
#[test]
fn what_comes_back_has_its_trace_id() {
    on_each(2, |nodes| {
        let owned = channel(&nodes[1].client(), 4);
        for length in [10, 5000] {
            let dying = nodes[0].client();
            // The reply lies in the cell of a thread that never takes it.
            let thread = ManuallyDrop::new(dying.thread().unwrap());
            let block = nodes[0].daemon.alloc(5000).unwrap();
            nodes[0].daemon.share(block.offset).unwrap();
            let ticket = thread.reply.begin(Op::Receive, owned.id());
            let reply = Reply {
                status: 0,
                arg0: 3,
                arg1: 0,
                payload: match length {
                    10 => ReplyPayload::Inline(vec![1; 10]),
                    _ => ReplyPayload::Block {
                        offset: block.offset,
                        length: 5000,
                    },
                },
                trace: Some([7; 16]),
            };
            assert!(thread.reply.complete(ticket, &reply).unwrap());
            nodes[0].dies(dying.slot());
            let back = owned.receive(watched()).unwrap();
            assert_eq!((back.hint(), back.len()), (3, length));
            assert_eq!(back.trace(), Some([7; 16]));
            if length == 10 {
                nodes[0].daemon.free(block.offset).unwrap();
            }
        }
    });
}

#[test]
fn states_are_waited_for() {
    everywhere(|site| {
        let owned = channel(&site.owner, 2);
        let used = seen_by(&site.user, owned.descriptor());
        for state in [Poll::Readable, Poll::Full, Poll::Closed] {
            waits(Error::Empty, |deadline| used.poll_for(state, deadline));
        }
        used.poll_for(Poll::Empty, Deadline::Now).unwrap();
        used.poll_for(Poll::Writable, Deadline::Now).unwrap();
        let send = || owned.send(b"", 0, watched()).unwrap();
        let receive = || drop(owned.receive(watched()).unwrap());
        let poll = |state| used.poll_for(state, watched());
        assert_eq!(site.ended_by(|| poll(Poll::Readable), send), Ok(1));
        site.ended_by(|| poll(Poll::Full), send).unwrap();
        for state in [Poll::Writable, Poll::Empty] {
            waits(Error::Empty, |deadline| used.poll_for(state, deadline));
            site.ended_by(|| poll(state), receive).unwrap();
            if state == Poll::Writable {
                assert_eq!(used.attributes().unwrap().messages, 1);
            }
        }
        let (theirs, ours) = (used.attributes().unwrap(), owned.attributes().unwrap());
        assert_eq!((theirs.capacity, theirs.block), (ours.capacity, ours.block));
        assert_eq!((theirs.messages, theirs.bytes), (0, ours.bytes));
        site.ended_by(|| poll(Poll::Closed), || owned.destroy().unwrap())
            .unwrap();
    });
}

#[test]
fn destroying_ends_every_wait() {
    everywhere(|site| {
        let full = |used: &Channel| while used.send(b"", 0, Deadline::Now).is_ok() {};
        type Wait = fn(&Channel) -> Result<()>;
        let of_channels: [(bool, Wait); 5] = [
            (false, |used| used.receive(watched()).map(drop)),
            (false, |used| used.peek(watched()).map(drop)),
            (false, |used| used.poll(watched()).map(drop)),
            (true, |used| used.send(b"", 0, watched())),
            (true, |used| used.poll_for(Poll::Empty, watched()).map(drop)),
        ];
        for (filled, wait) in of_channels {
            let owned = channel(&site.owner, 1);
            let used = seen_by(&site.user, owned.descriptor());
            if filled {
                full(&used);
            }
            let ended = site.ended_by(|| wait(&used), || owned.destroy().unwrap());
            assert_eq!(ended, Err(Error::Destroyed(owned.id())));
        }
        macro_rules! ends {
            ($kind:ident, $made:expr, $used:ident => $wait:expr) => {{
                let made = $made;
                let $used = $kind::attach(&site.user, &made.descriptor(), false).unwrap();
                let ended = site.ended_by(|| $wait.map(drop), || made.destroy().unwrap());
                assert_eq!(ended, Err(Error::Destroyed(made.id())));
            }};
        }
        let owner = &site.owner;
        let lock = Lock::create(owner, 0).unwrap();
        lock.acquire(watched()).unwrap();
        ends!(Lock, lock, used => used.acquire(watched()));
        ends!(Event, Event::create(owner, 0).unwrap(), used => used.wait(watched()));
        ends!(Semaphore, Semaphore::create(owner, 0, 1, 0).unwrap(), used => used.acquire(watched()));
        ends!(Semaphore, Semaphore::create(owner, 1, 1, 0).unwrap(), used => used.wait_zero(watched()));
        ends!(Barrier, Barrier::create(owner, 2, 0).unwrap(), used => used.wait(watched()));
        let options = BroadcastOptions::default();
        ends!(Broadcast, Broadcast::create(owner, &options).unwrap(), used => used.wait(watched()));
        let options = PriorityQueueOptions::default();
        ends!(PriorityQueue, PriorityQueue::create(owner, &options).unwrap(), used => used.receive(watched()));
        let options = EndpointOptions::default();
        ends!(Endpoint, Endpoint::create(owner, &options).unwrap(), used => used.accept(watched()));
    });
}

#[test]
fn locks_are_had_by_one_and_handed_on() {
    everywhere(|site| {
        let owned = Lock::create(&site.owner, 0).unwrap();
        let used = Lock::attach(&site.user, &owned.descriptor(), false).unwrap();
        owned.acquire(watched()).unwrap();
        waits(Error::Empty, |deadline| used.acquire(deadline).map(drop));
        assert_eq!(used.release(false), Err(Error::NotOwner(owned.id())));
        let had = site.ended_by(|| used.acquire(watched()), || owned.release(false).unwrap());
        assert!(!had.unwrap().owner_died);
        assert_eq!(owned.acquire(Deadline::Now).map(drop), Err(Error::Empty));
        used.release(false).unwrap();
        // A process of either node dies with the lock.
        for node in site.nodes {
            let dying = node.client();
            let theirs = Lock::attach(&dying, &owned.descriptor(), false).unwrap();
            let theirs = ManuallyDrop::new(theirs);
            theirs.acquire(watched()).unwrap();
            let had = site.ended_by(|| used.acquire(watched()), || node.dies(dying.slot()));
            assert!(had.unwrap().owner_died);
            used.release(false).unwrap();
        }
        assert!(!owned.acquire(watched()).unwrap().owner_died);
    });
}

#[test]
fn events_semaphores_and_ends_of_processes() {
    everywhere(|site| {
        let event = Event::create(&site.owner, 0).unwrap();
        let used = Event::attach(&site.user, &event.descriptor(), false).unwrap();
        waits(Error::Empty, |deadline| used.wait(deadline));
        site.ended_by(|| used.wait(watched()), || event.set().unwrap())
            .unwrap();
        assert!(used.is_set().unwrap());
        used.clear().unwrap();
        assert!(!event.is_set().unwrap());
        used.set().unwrap();
        event.wait(Deadline::Now).unwrap();

        for owned_units in [false, true] {
            let options = SemaphoreOptions {
                value: 3,
                most: 3,
                owned: owned_units,
                user: 0,
            };
            let semaphore = Semaphore::with_options(&site.owner, &options).unwrap();
            let used = Semaphore::attach(&site.user, &semaphore.descriptor(), false).unwrap();
            used.acquire(watched()).unwrap();
            used.acquire_many(2, watched()).unwrap();
            assert_eq!(used.value(), Ok(0));
            used.wait_zero(Deadline::Now).unwrap();
            waits(Error::Empty, |deadline| used.acquire(deadline));
            used.release(3).unwrap();
            assert!(used.release(1).is_err(), "more than it can have");
            waits(Error::Empty, |deadline| used.wait_zero(deadline));
            semaphore.acquire_many(3, watched()).unwrap();
            let take = || used.acquire_many(2, watched());
            site.ended_by(take, || semaphore.release(2).unwrap())
                .unwrap();
            used.release(2).unwrap();
            assert_eq!(semaphore.value(), Ok(2));
        }

        let process = ProcessObject::create(&site.nodes[1].daemon, 77, 0).unwrap();
        let used = ProcessObject::attach(&site.user, &process.descriptor(), false).unwrap();
        waits(Error::Empty, |deadline| used.wait(deadline));
        let end = || process.finish(9).unwrap();
        assert_eq!(site.ended_by(|| used.wait(watched()), end), Ok(9));
        assert_eq!(used.wait(Deadline::Now), Ok(9));
    });
}

#[test]
fn barriers_conditions_and_broadcasts() {
    everywhere(|site| {
        let barrier = Barrier::create(&site.owner, 2, 0).unwrap();
        let used = Barrier::attach(&site.user, &barrier.descriptor(), false).unwrap();
        for _ in 0..3 {
            let meet = || assert!(barrier.wait(watched()).is_ok());
            site.ended_by(|| used.wait(watched()), meet).unwrap();
        }
        let broken = |why| {
            let barrier = barrier.id();
            Err(Error::Broken { barrier, why })
        };
        let wait = || used.wait(watched());
        let there = || until("it is there", || barrier.state().unwrap().waiting == 1);
        let abort = || {
            there();
            barrier.abort().unwrap();
        };
        let aborted = site.ended_by(wait, abort);
        assert_eq!(aborted, broken(Breakage::Aborted));
        assert_eq!(used.state().unwrap().broken, Some(Breakage::Aborted));
        used.reset().unwrap();
        assert_eq!(barrier.state().unwrap().broken, None);
        let reset = || {
            there();
            barrier.reset().unwrap();
        };
        let reset = site.ended_by(wait, reset);
        assert_eq!(reset, broken(Breakage::Reset));

        let lock = Lock::create(&site.owner, 0).unwrap();
        let options = ConditionOptions::default();
        let condition = Condition::create(&site.owner, &options).unwrap();
        let their_lock = Lock::attach(&site.user, &lock.descriptor(), false).unwrap();
        let used = Condition::attach(&site.user, &condition.descriptor(), false).unwrap();
        let wait = || {
            their_lock.acquire(watched()).unwrap();
            let woken = used.wait(&their_lock, watched());
            their_lock.release(false).unwrap();
            woken
        };
        let notify = || {
            until("it waits", || condition.waiting() == Ok(1));
            lock.acquire(watched()).unwrap();
            assert_eq!(condition.notify_one(), Ok(1));
            lock.release(false).unwrap();
        };
        std::thread::scope(|scope| {
            let waiter = scope.spawn(wait);
            notify();
            waiter.join().unwrap().unwrap();
        });
        their_lock.acquire(watched()).unwrap();
        let late = used.wait(&their_lock, soon()).map(drop);
        assert_eq!(late, Err(Error::Timeout));
        their_lock.release(false).unwrap();
        assert_eq!(used.notify_all(), Ok(0));

        let options = BroadcastOptions::default();
        let broadcast = Broadcast::create(&site.owner, &options).unwrap();
        let used = Broadcast::attach(&site.user, &broadcast.descriptor(), false).unwrap();
        waits(Error::Empty, |deadline| hint(used.wait(deadline)));
        for length in [0, 100, 5000, 100_000] {
            let payload = pattern(length, 3);
            let trigger = || {
                until("it waits", || broadcast.waiting() == Ok(1));
                let woken = broadcast.trigger(Trigger::ALL, &payload, watched());
                assert_eq!(woken, Ok(1));
            };
            let message = site.ended_by(|| used.wait(watched()), trigger).unwrap();
            assert!(message.into_vec() == payload, "{length}");
            // And the other way round.
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| broadcast.wait(watched()).unwrap().into_vec());
                let trigger = Trigger::ALL.after(1);
                assert_eq!(used.trigger(trigger, &payload, watched()), Ok(1));
                assert!(waiter.join().unwrap() == payload, "{length}");
            });
        }
    });
}

#[test]
fn queues_with_priorities_and_streams() {
    everywhere(|site| {
        let options = PriorityQueueOptions {
            levels: 3,
            capacity: 2,
            ..PriorityQueueOptions::default()
        };
        let queue = PriorityQueue::create(&site.owner, &options).unwrap();
        let used = PriorityQueue::attach(&site.user, &queue.descriptor(), false).unwrap();
        let level = |received: Result<(u32, dragon_channels::Message)>| {
            received.map(|(level, message)| (level, message.hint()))
        };
        waits(Error::Empty, |deadline| level(used.receive(deadline)));
        for (n, of) in [(0, 2), (1, 1), (2, 2), (3, 0)] {
            used.send(of, &pattern(5000, n), n, watched()).unwrap();
        }
        waits(Error::Full, |deadline| used.send(2, b"", 9, deadline));
        assert_eq!(used.poll(Deadline::Now), Ok(4));
        assert_eq!(level(used.peek(Deadline::Now)), Ok((0, 3)));
        for expected in [(0, 3), (1, 1), (2, 0), (2, 2)] {
            assert_eq!(level(used.receive(watched())), Ok(expected));
        }
        let send = || queue.send(1, b"", 7, watched()).unwrap();
        let received = site.ended_by(|| level(used.receive(watched())), send);
        assert_eq!(received, Ok((1, 7)));

        let endpoint = Endpoint::create(&site.owner, &EndpointOptions::default()).unwrap();
        let used = Endpoint::attach(&site.user, &endpoint.descriptor(), false).unwrap();
        for (opens, accepts) in [(&endpoint, &used), (&used, &endpoint)] {
            let mut sender = opens.open_send(watched()).unwrap();
            let mut receiver = accepts.accept(watched()).unwrap();
            assert_eq!(receiver.poll(Deadline::Now), Err(Error::Empty));
            assert_eq!(hint(receiver.receive(Deadline::Now)), Err(Error::Empty));
            assert_eq!(hint(receiver.receive(soon())), Err(Error::Timeout));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for (n, length) in (0..).zip([0, 300, 5000, 100_000, 1]) {
                        sender.send(&pattern(length, n), n, watched()).unwrap();
                    }
                    sender.close(watched()).unwrap();
                });
                for (n, length) in (0..).zip([0, 300, 5000, 100_000, 1]) {
                    let chunk = receiver.receive(watched()).unwrap();
                    assert_eq!(chunk.hint(), n);
                    assert!(chunk.into_vec() == pattern(length, n), "{length}");
                }
                let end = hint(receiver.receive(watched()));
                assert_eq!(end, Err(Error::EndOfStream(endpoint.id())));
            });
            // The receiver closes first; the sender's process dies.
            let mut sender = opens.open_send(watched()).unwrap();
            accepts.accept(watched()).unwrap().close().unwrap();
            let closed = Err(Error::PeerClosed(endpoint.id()));
            while sender.send(b"", 0, watched()) != closed {
                std::thread::yield_now();
            }
            let dying = site.home.client();
            let theirs = Endpoint::attach(&dying, &endpoint.descriptor(), false).unwrap();
            let theirs = ManuallyDrop::new(theirs);
            let _sender = ManuallyDrop::new(theirs.open_send(watched()).unwrap());
            let mut receiver = accepts.accept(watched()).unwrap();
            site.home.dies(dying.slot());
            let end = hint(receiver.receive(watched()));
            assert_eq!(end, Err(Error::PeerDied(endpoint.id())));
        }
    });
}

#[test]
fn a_process_that_dies_waiting_takes_nothing_along() {
    everywhere(|site| {
        let owned = channel(&site.owner, 4);
        let before = site.nodes[1].stats();
        if site.home.index == site.nodes[1].index {
            // A thread of a process of this rig cannot be killed; deaths on the own node are tested with real processes.
            return;
        }
        // None gets the slot of another, whose thread goes on.
        let all: Vec<_> = (0..10).map(|_| site.home.client()).collect();
        for dying in all {
            let slot = dying.slot();
            let descriptor = owned.descriptor();
            std::thread::spawn(move || {
                let theirs = ManuallyDrop::new(seen_by(&dying, descriptor));
                drop(theirs.receive(Deadline::Never));
            });
            until("it waits at the owner", || {
                site.nodes[1].stats().parked == before.parked + 1
            });
            site.home.dies(slot);
            owned.send(b"", 1, watched()).unwrap();
            assert_eq!(hint(owned.receive(watched())), Ok(1));
            until("nobody waits", || {
                site.nodes[1].stats().parked == before.parked
            });
        }
    });
}
