//! Operations without death.

use std::io::IoSlice;
use std::sync::Arc;
use std::thread;

use dragon_protocol::op::Op;
use dragon_protocol::{Code, SlotId};
use proptest::prelude::*;

use crate::fixture::Node;
use crate::{
    Attempt, Channel, ChannelOptions, Deadline, Error, Event, Lock, Payload, ProcessObject,
    Semaphore, Waiting, attempt, create_channel, recover, watch,
};

fn options(capacity: u32, block: u32) -> ChannelOptions {
    ChannelOptions {
        capacity,
        block,
        ..ChannelOptions::default()
    }
}

fn soon() -> Deadline {
    Deadline::after(1_000_000)
}

#[test]
fn messages_of_all_sizes_arrive_and_leave_nothing() {
    let node = Node::new();
    let (a, b) = (node.member(), node.member());
    let before = node.used();
    let channel = create_channel(&a, &options(3, 100)).unwrap();
    let theirs = Channel::attach(&b, &channel.export().unwrap(), true).unwrap();
    let with_channel = node.used();
    for size in [0, 1, 99, 100, 101, 192, 193, 4096, 70_000, 3 << 20] {
        let bytes: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let (front, back) = bytes.split_at(size / 3);
        let parts = [IoSlice::new(front), IoSlice::new(back)];
        channel.send_parts(&parts, 7, Deadline::Now).unwrap();
        assert_eq!(theirs.poll(Deadline::Now).unwrap(), 1);
        let message = theirs.receive(Deadline::Now).unwrap();
        assert_eq!((message.hint(), message.len()), (7, size));
        assert_eq!(message.block().is_some(), size > 100);
        assert_eq!(message.into_vec(), bytes);
        assert_eq!(node.used(), with_channel, "{size} bytes left something");
    }
    drop(theirs);
    drop(channel);
    assert_eq!(node.used(), before);
}

#[test]
fn try_forms_and_deadlines() {
    let node = Node::new();
    let member = node.member();
    let channel = create_channel(&member, &options(2, 8)).unwrap();
    assert_eq!(channel.receive(Deadline::Now).unwrap_err(), Error::Empty);
    assert_eq!(channel.receive(soon()).unwrap_err(), Error::Timeout);
    assert_eq!(channel.poll(soon()).unwrap_err(), Error::Timeout);
    for _ in 0..2 {
        channel.send(b"12345678", 0, Deadline::Now).unwrap();
    }
    let used = node.used();
    assert_eq!(channel.send(b"x", 0, Deadline::Now), Err(Error::Full));
    assert_eq!(channel.send(&[0; 500], 0, soon()), Err(Error::Timeout));
    assert_eq!(node.used(), used, "a message that was not sent is freed");
    let attributes = channel.attributes().unwrap();
    assert_eq!((attributes.messages, attributes.capacity), (2, 2));
}

#[test]
fn options_out_of_range_are_refused_with_the_limit() {
    let node = Node::new();
    let member = node.member();
    for (options, what) in [
        (
            options(0, 8),
            "capacity is 0: it must be from 1 to 16777216",
        ),
        (
            options(1, 1 << 30),
            "block is 1073741824: it must be from 0 to 1048576",
        ),
    ] {
        let error = create_channel(&member, &options).unwrap_err();
        assert_eq!(error.to_string(), what);
    }
    let error = create_channel(&member, &options(1 << 24, 1 << 20)).unwrap_err();
    assert_eq!(error.code(), Code::OutOfMemory);
}

#[test]
fn destroy_ends_all_waits() {
    let node = Node::new();
    let member = node.member();
    let empty = Arc::new(create_channel(&member, &options(1, 8)).unwrap());
    let full = Arc::new(create_channel(&member, &options(1, 8)).unwrap());
    full.send(b"x", 0, Deadline::Now).unwrap();
    let waits: Vec<_> = (0..4)
        .map(|n| {
            let (empty, full) = (Arc::clone(&empty), Arc::clone(&full));
            thread::spawn(move || match n {
                0 => empty.receive(Deadline::Never).map(drop),
                1 => empty.poll(Deadline::Never).map(drop),
                _ => full.send(b"y", 0, Deadline::Never),
            })
        })
        .collect();
    empty.destroy().unwrap();
    full.destroy().unwrap();
    for wait in waits {
        assert!(matches!(wait.join().unwrap(), Err(Error::Destroyed(_))));
    }
    assert!(matches!(
        full.receive(Deadline::Now),
        Err(Error::Destroyed(_))
    ));
}

#[test]
fn a_handle_of_another_kind_or_runtime_is_refused() {
    let node = Node::new();
    let member = node.member();
    let lock = Lock::create(&member, 5).unwrap();
    let mut descriptor = lock.descriptor();
    assert_eq!(descriptor.user, 5);
    let error = Channel::attach(&member, &descriptor, false).unwrap_err();
    assert_eq!(error.code(), Code::WrongKind);
    descriptor.runtime.0 ^= 1;
    let error = Lock::attach(&member, &descriptor, false).unwrap_err();
    assert_eq!(error.code(), Code::Refused);
    let descriptor = lock.descriptor();
    drop(lock);
    let error = Lock::attach(&member, &descriptor, false).unwrap_err();
    assert_eq!(error.code(), Code::NoSuchObject);
}

/// Every message arrives once, in the order of its sender, with more threads than cells.
#[test]
fn several_senders_and_receivers() {
    const EACH: u64 = 2_000;
    let node = Node::new();
    let before = node.used();
    let member = node.member();
    let channel = Arc::new(create_channel(&member, &options(5, 16)).unwrap());
    let senders: Vec<_> = (0..3_u64)
        .map(|sender| {
            let channel = Arc::clone(&channel);
            thread::spawn(move || {
                for n in 0..EACH {
                    // Every seventh one travels by reference.
                    let length = if n % 7 == 0 { 40 } else { 8 };
                    let bytes = vec![u8::try_from(n % 256).unwrap(); length];
                    channel
                        .send(&bytes, sender << 32 | n, Deadline::Never)
                        .unwrap();
                }
            })
        })
        .collect();
    let receivers: Vec<_> = (0..3)
        .map(|_| {
            let channel = Arc::clone(&channel);
            thread::spawn(move || {
                let mut seen = Vec::new();
                while let Ok(message) = channel.receive(Deadline::Never) {
                    let hint = message.hint();
                    let value = u8::try_from((hint & 0xffff_ffff) % 256).unwrap();
                    assert!(message.into_vec().iter().all(|byte| *byte == value));
                    seen.push(hint);
                }
                seen
            })
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    // The channel is empty when a try form says so; then the receivers may go.
    while channel.poll(Deadline::Now).is_ok() {
        thread::yield_now();
    }
    channel.destroy().unwrap();
    let mut all = Vec::new();
    for receiver in receivers {
        let seen = receiver.join().unwrap();
        for sender in 0..3 {
            let of_one = seen.iter().filter(|hint| **hint >> 32 == sender);
            assert!(of_one.is_sorted());
        }
        all.extend(seen);
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len() as u64, 3 * EACH);
    drop(channel);
    assert_eq!(node.used(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A channel is a bounded queue of byte strings.
    #[test]
    fn a_channel_against_vec_deque(
        capacity in 1_u32..6,
        block in 0_u32..80,
        ops in prop::collection::vec((any::<bool>(), 0_usize..200, 0_usize..3), 0..80),
    ) {
        let node = Node::new();
        let owner = node.member();
        let channel = create_channel(&owner, &options(capacity, block)).unwrap();
        let members: Vec<_> = (0..3).map(|_| node.member()).collect();
        let handles: Vec<_> = members
            .iter()
            .map(|member| Channel::attach(member, &channel.descriptor(), false).unwrap())
            .collect();
        let mut model = std::collections::VecDeque::new();
        for (n, (is_send, length, who)) in (0..).zip(ops) {
            if is_send {
                let bytes = vec![7_u8; length];
                let sent = handles[who].send(&bytes, n, Deadline::Now);
                if model.len() < capacity as usize {
                    sent.unwrap();
                    model.push_back((n, length));
                } else {
                    prop_assert_eq!(sent, Err(Error::Full));
                }
            } else {
                let got = handles[who].receive(Deadline::Now).ok();
                let got = got.map(|message| (message.hint(), message.len()));
                prop_assert_eq!(got, model.pop_front());
            }
            prop_assert_eq!(channel.attributes().unwrap().messages, model.len() as u64);
        }
    }
}

#[test]
fn a_lock_excludes_and_is_handed_over() {
    let node = Node::new();
    let (a, b) = (node.member(), node.member());
    let lock = Lock::create(&a, 0).unwrap();
    let theirs = Arc::new(Lock::attach(&b, &lock.descriptor(), false).unwrap());
    assert!(matches!(lock.release(true), Err(Error::NotOwner(_))));
    assert!(!lock.acquire(Deadline::Now).unwrap().owner_died);
    assert_eq!(theirs.acquire(Deadline::Now), Err(Error::Empty));
    assert_eq!(theirs.acquire(soon()), Err(Error::Timeout));
    assert!(matches!(theirs.release(false), Err(Error::NotOwner(_))));
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let theirs = Arc::clone(&theirs);
            thread::spawn(move || {
                theirs.acquire(Deadline::Never).unwrap();
                theirs.release(false).unwrap();
            })
        })
        .collect();
    lock.release(false).unwrap();
    for waiter in waiters {
        waiter.join().unwrap();
    }
    theirs.acquire(Deadline::Now).unwrap();
    lock.release(true).unwrap();
    lock.acquire(Deadline::Now).unwrap();
    let waiter = {
        let theirs = Arc::clone(&theirs);
        thread::spawn(move || theirs.acquire(Deadline::Never))
    };
    lock.destroy().unwrap();
    assert!(matches!(waiter.join().unwrap(), Err(Error::Destroyed(_))));
}

#[test]
fn a_counter_under_a_lock() {
    const EACH: u64 = 5_000;
    let node = Node::new();
    let member = node.member();
    let lock = Lock::create(&member, 0).unwrap();
    let counter = std::sync::atomic::AtomicU64::new(0);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    lock.acquire(Deadline::Never).unwrap();
                    counter.store(counter.load(relaxed) + 1, relaxed);
                    lock.release(false).unwrap();
                }
            });
        }
    });
    assert_eq!(counter.load(relaxed), 4 * EACH);
}

#[test]
fn events_semaphores_and_process_ends() {
    let node = Node::new();
    let member = node.member();
    let event = Event::create(&member, 0).unwrap();
    assert_eq!(event.wait(Deadline::Now), Err(Error::Empty));
    assert_eq!(event.wait(soon()), Err(Error::Timeout));
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| event.wait(Deadline::Never)))
            .collect();
        event.set().unwrap();
        for waiter in waiters {
            waiter.join().unwrap().unwrap();
        }
    });
    assert!(event.is_set().unwrap());
    event.clear().unwrap();
    assert!(!event.is_set().unwrap());

    let semaphore = Semaphore::create(&member, 1, 3, 0).unwrap();
    semaphore.acquire(Deadline::Now).unwrap();
    assert_eq!(semaphore.acquire(soon()), Err(Error::Timeout));
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| semaphore.acquire(Deadline::Never)))
            .collect();
        semaphore.release(3).unwrap();
        for waiter in waiters {
            waiter.join().unwrap().unwrap();
        }
    });
    assert_eq!(semaphore.value().unwrap(), 0);
    semaphore.release(3).unwrap();
    let error = semaphore.release(1).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "semaphore {} has 3 of at most 3 units: 1 more cannot be given",
            semaphore.id()
        )
    );

    let process = ProcessObject::create(&member, 42, 0).unwrap();
    assert_eq!(process.pid().unwrap(), Some(42));
    assert_eq!(process.wait(Deadline::Now), Err(Error::Empty));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| process.wait(Deadline::Never));
        process.finish(-9).unwrap();
        assert_eq!(waiter.join().unwrap(), Ok(-9));
    });
    process.destroy().unwrap();
    assert_eq!(process.wait(Deadline::Now), Ok(-9), "the status stays");
}

fn done(attempt: Attempt) -> (Code, u64) {
    match attempt {
        Attempt::Done { status, arg0, .. } => (status, arg0),
        Attempt::NotYet => panic!("not done"),
    }
}

#[test]
fn attempts_never_wait_and_watches_notify_once() {
    let node = Node::new();
    let member = node.member();
    let proxy = node
        .control
        .claim_proxy(
            node.control.node(),
            SlotId {
                index: 3,
                generation: 1,
            },
        )
        .unwrap();
    let channel = create_channel(&member, &options(1, 8)).unwrap();
    let id = channel.id();
    let go = |op, arguments, payload| {
        attempt(
            &node.daemon,
            op,
            id,
            proxy,
            arguments,
            payload,
            &mut Waiting::default(),
        )
    };
    assert_eq!(done(go(Op::Attach, [0, 0], Payload::EMPTY)).0, Code::Ok);
    assert!(matches!(
        go(Op::Receive, [0, 0], Payload::EMPTY),
        Attempt::NotYet
    ));
    watch(&node.daemon, id).unwrap();
    assert!(matches!(
        go(Op::Receive, [0, 0], Payload::EMPTY),
        Attempt::NotYet
    ));
    channel.send(b"abc", 9, Deadline::Now).unwrap();
    assert_eq!(*node.notified.lock().unwrap(), [id]);
    let Attempt::Done {
        message: Some(message),
        arg0: 9,
        ..
    } = go(Op::Receive, [0, 0], Payload::EMPTY)
    else {
        panic!("no message")
    };
    assert_eq!(message.into_vec(), b"abc");
    assert_eq!(
        done(go(Op::Send, [1, 0], Payload::Inline(&[1; 300]))).0,
        Code::Ok
    );
    assert!(matches!(
        go(Op::Send, [1, 0], Payload::Inline(b"x")),
        Attempt::NotYet
    ));
    assert_eq!(
        node.notified.lock().unwrap().len(),
        1,
        "the watch was not armed again"
    );
    // A block stays the caller's while the channel is full, and is consumed in the end.
    let used = node.used();
    let block = node.daemon.alloc(500).unwrap();
    assert!(matches!(
        go(Op::Send, [2, 0], Payload::Block(block)),
        Attempt::NotYet
    ));
    assert_eq!(channel.receive(Deadline::Now).unwrap().len(), 300);
    assert_eq!(
        done(go(Op::Send, [2, 0], Payload::Block(block))).0,
        Code::Ok
    );
    let message = channel.receive(Deadline::Now).unwrap();
    assert_eq!((message.len(), message.block()), (500, Some(block.offset)));
    drop(message);
    let block = node.daemon.alloc(500).unwrap();
    assert_eq!(done(go(Op::Destroy, [0, 0], Payload::EMPTY)).0, Code::Ok);
    assert_eq!(
        done(go(Op::Send, [2, 0], Payload::Block(block))).0,
        Code::Destroyed
    );
    assert!(node.used() < used, "the block of the failed send is freed");
    assert_eq!(done(go(Op::Detach, [0, 0], Payload::EMPTY)).0, Code::Ok);
    assert_eq!(
        done(go(Op::Detach, [0, 0], Payload::EMPTY)).0,
        Code::NoSuchObject
    );
    assert_eq!(
        done(go(Op::LockRelease, [0, 0], Payload::EMPTY)).0,
        Code::WrongKind
    );
}

#[test]
fn a_lost_node_gives_its_locks_and_references_back() {
    let node = Node::new();
    let before = node.used();
    let member = node.member();
    let remote = SlotId {
        index: 3,
        generation: 1,
    };
    let proxy = node
        .control
        .claim_proxy(node.control.node(), remote)
        .unwrap();
    let lock = Lock::create(&member, 0).unwrap();
    let channel = create_channel(&member, &options(1, 8)).unwrap();
    for id in [lock.id(), channel.id()] {
        let attached = attempt(
            &node.daemon,
            Op::Attach,
            id,
            proxy,
            [0, 0],
            Payload::EMPTY,
            &mut Waiting::default(),
        );
        assert_eq!(done(attached).0, Code::Ok);
    }
    let go = |op| {
        attempt(
            &node.daemon,
            op,
            lock.id(),
            proxy,
            [0, 0],
            Payload::EMPTY,
            &mut Waiting::default(),
        )
    };
    assert_eq!(done(go(Op::LockAcquire)), (Code::Ok, 0));
    assert!(matches!(go(Op::LockAcquire), Attempt::NotYet));
    assert_eq!(lock.acquire(Deadline::Now), Err(Error::Empty));
    drop(channel);
    assert!(node.used() > before, "the other node still refers to it");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| lock.acquire(Deadline::Never));
        let recovered = recover(&node.daemon, proxy).unwrap();
        assert_eq!(recovered.locks, 1);
        assert!(waiter.join().unwrap().unwrap().owner_died);
    });
    assert_eq!(node.used(), before);
}

/// A request goes through the gateway, and the reply comes back to the thread that asked.
#[test]
fn a_remote_operation_asks_the_gateway() {
    use dragon_protocol::wire::Request;
    use dragon_protocol::{NodeIndex, ObjectId, ObjectKind};
    use dragon_shmem::thread::{Reply, ReplyPayload};
    use zerocopy::FromBytes as _;

    let node = Node::new();
    let member = node.member();
    let object = ObjectId {
        node: NodeIndex::new(1).unwrap(),
        kind: ObjectKind::Channel,
        index: 4,
        generation: 2,
    };
    let descriptor = dragon_protocol::Descriptor {
        runtime: node.control.runtime(),
        object,
        user: 0,
    };
    let error = Channel::attach(&member, &descriptor, true).unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "there is no agent yet");
    let gateway = create_channel(
        &node.daemon,
        &options(
            crate::remote::GATEWAY_CAPACITY,
            crate::remote::GATEWAY_BLOCK,
        ),
    )
    .unwrap();
    node.control.set_gateway(gateway.id());
    let agent = thread::spawn({
        let (control, daemon) = (node.control.clone(), Arc::clone(&node.daemon));
        move || {
            let mut seen = Vec::new();
            loop {
                let bytes = gateway.receive(Deadline::Never).unwrap().into_vec();
                let (request, payload) = Request::read_from_prefix(&bytes).unwrap();
                assert_eq!(request.target.object(), Some(object));
                let op = Op::from_u8(request.op).unwrap();
                let length = usize::try_from(request.payload.get()).unwrap();
                if request.by_reference == 1 {
                    daemon
                        .pool()
                        .check(request.block.get(), request.payload.get())
                        .unwrap();
                    daemon.free(request.block.get()).unwrap();
                } else {
                    assert_eq!(payload.len(), length);
                }
                seen.push((op, length));
                if op == Op::Detach {
                    return seen;
                }
                let status = match op {
                    Op::Receive => Code::Destroyed,
                    _ => Code::Ok,
                };
                let reply = Reply {
                    status: status.to_i32(),
                    arg0: 11,
                    arg1: 22,
                    trace: None,
                    payload: ReplyPayload::Inline(match op {
                        Op::Attributes => (1_u64..10).flat_map(u64::to_le_bytes).collect(),
                        _ => Vec::new(),
                    }),
                };
                let records = control.threads(request.slot.get()).unwrap();
                let cell = &records[request.thread.get() as usize].reply;
                assert!(cell.complete(request.ticket.get(), &reply).unwrap());
                assert!(!cell.complete(request.ticket.get(), &reply).unwrap());
            }
        }
    });
    let before = node.used();
    let channel = Channel::attach(&member, &descriptor, true).unwrap();
    channel.send(b"hello", 1, Deadline::Never).unwrap();
    channel.send(&[1; 5000], 1, Deadline::Never).unwrap();
    let attributes = channel.attributes().unwrap();
    assert_eq!((attributes.messages, attributes.bytes), (1, 9));
    assert!(matches!(channel.receive(soon()), Err(Error::Destroyed(_))));
    drop(channel);
    let seen = agent.join().unwrap();
    let expected = [
        (Op::Attach, 0),
        (Op::Send, 5),
        (Op::Send, 5000),
        (Op::Attributes, 0),
        (Op::Receive, 0),
        (Op::Detach, 0),
    ];
    assert_eq!(seen, expected);
    // The gateway went with the agent's handle.
    assert!(node.used() < before);
}
