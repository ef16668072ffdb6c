//! Processes that are killed in the middle of an operation.

use std::collections::HashMap;
use std::mem::ManuallyDrop;

use dragon_protocol::op::Op;
use dragon_shmem::control::SPARE_THREADS;
use proptest::prelude::RngExt as _;
use proptest::test_runner::TestRng;

use crate::cell;
use crate::channel::TestPoint;
use crate::fixture::{Node, Role, stop_at};
use crate::wait::mark;
use crate::{
    Channel, ChannelOptions, Deadline, Error, Event, Lock, PriorityQueue, PriorityQueueOptions,
    Semaphore, create_channel,
};

/// Bytes of a message that travels by reference.
const LARGE: usize = 1_000;
/// A hint is the sender's number and the message's.
const SENDER: u32 = 40;

pub(super) fn play(name: &str, role: &Role) {
    let member = &role.member;
    match name {
        // Words: channel, size. Stops in the middle of the third message.
        "stop-sending" => {
            let channel = Channel::attach(member, &role.descriptor(0), true).unwrap();
            stop_at(TestPoint::Sending, 2);
            let size = usize::try_from(role.number(1)).unwrap();
            for n in 0.. {
                channel.send(&vec![1; size], n, Deadline::Never).unwrap();
            }
        }
        // Words: channel. Stops in the middle of the second message, while it holds the first.
        "stop-receiving" => {
            let channel = Channel::attach(member, &role.descriptor(0), true).unwrap();
            stop_at(TestPoint::Receiving, 1);
            let _first = channel.receive(Deadline::Never).unwrap();
            let _ = channel.receive(Deadline::Never);
        }
        // Words: queue. Waits for a message, and stops in the middle of receiving it.
        "stop-popping" => {
            let queue = PriorityQueue::attach(member, &role.descriptor(0), true).unwrap();
            stop_at(TestPoint::Receiving, 0);
            let _ = queue.receive(Deadline::Never);
        }
        // Words: queue, level. Stops in the middle of sending to it.
        "stop-pushing" => {
            let queue = PriorityQueue::attach(member, &role.descriptor(0), true).unwrap();
            stop_at(TestPoint::Sending, 0);
            let level = u32::try_from(role.number(1)).unwrap();
            let _ = queue.send(level, &[1; LARGE], 0, Deadline::Never);
        }
        // Words: channel, number of the sender. Sends for ever.
        "send" => {
            let channel = Channel::attach(member, &role.descriptor(0), true).unwrap();
            for n in 0_u64.. {
                let length = if n % 3 == 0 { LARGE } else { 8 };
                let bytes = vec![u8::try_from(n % 256).unwrap(); length];
                let hint = role.number(1) << SENDER | n;
                match channel.send(&bytes, hint, Deadline::Never) {
                    Ok(()) => {}
                    Err(Error::Destroyed(_)) => return,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        // Words: from, to. Forwards for ever.
        "forward" => {
            let from = Channel::attach(member, &role.descriptor(0), false).unwrap();
            let to = Channel::attach(member, &role.descriptor(1), false).unwrap();
            while let Ok(message) = from.receive(Deadline::Never) {
                let hint = message.hint();
                if to.send(&message.into_vec(), hint, Deadline::Never).is_err() {
                    return;
                }
            }
        }
        // Words: lock, channel. Takes the lock, says so, and keeps it.
        "hold-lock" => {
            let lock = Lock::attach(member, &role.descriptor(0), true).unwrap();
            let said = Channel::attach(member, &role.descriptor(1), true).unwrap();
            lock.acquire(Deadline::Never).unwrap();
            said.send(b"", 0, Deadline::Never).unwrap();
            let _ = said.send(b"", 0, Deadline::Never);
        }
        // Words: event, semaphore, lock, channel, which. Says that it is there, and waits on one of them for ever.
        "wait" => {
            let event = Event::attach(member, &role.descriptor(0), true).unwrap();
            let semaphore = Semaphore::attach(member, &role.descriptor(1), true).unwrap();
            let lock = Lock::attach(member, &role.descriptor(2), true).unwrap();
            let channel = Channel::attach(member, &role.descriptor(3), true).unwrap();
            match role.number(4) {
                0 => event.wait(Deadline::Never).unwrap(),
                1 => semaphore.acquire(Deadline::Never).unwrap(),
                2 => drop(lock.acquire(Deadline::Never).unwrap()),
                _ => drop(channel.receive(Deadline::Never).unwrap()),
            }
        }
        other => panic!("no role is called {other}"),
    }
}

fn channel(node: &Node, capacity: u32) -> (std::sync::Arc<dragon_shmem::Member>, Channel) {
    let member = node.member();
    let options = ChannelOptions {
        capacity,
        block: 64,
        ..ChannelOptions::default()
    };
    let channel = create_channel(&member, &options).unwrap();
    (member, channel)
}

fn exported(channel: &Channel) -> String {
    channel.export().unwrap().to_string()
}

#[test]
fn a_sender_killed_with_a_claimed_cell_costs_only_its_message() {
    for size in [8, LARGE, 100_000] {
        let node = Node::new();
        let before = node.used();
        let (_member, channel) = channel(&node, 8);
        let with_channel = node.used();
        let sender = node.spawn("stop-sending", &[exported(&channel), size.to_string()]);
        sender.wait_until_stopped();
        channel.send(b"behind it", 99, Deadline::Now).unwrap();
        let mut got = Vec::new();
        while let Ok(message) = channel.receive(Deadline::Now) {
            got.push(message.hint());
        }
        assert_eq!(got, [0, 1], "the claimed cell holds up what is behind it");
        let recovered = sender.kill(&node);
        assert_eq!(recovered.cells, 1);
        assert_eq!(channel.receive(Deadline::Now).unwrap().hint(), 99);
        assert_eq!(
            node.used(),
            with_channel,
            "its block of {size} bytes is freed"
        );
        drop(channel);
        assert_eq!(node.used(), before, "its reference is given back");
    }
}

#[test]
fn a_receiver_killed_with_a_claimed_message_costs_only_that() {
    // The smallest of them lies in its cell, and is too large to be copied before it is claimed.
    for size in [400, LARGE, 100_000] {
        let node = Node::new();
        let before = node.used();
        let member = node.member();
        let options = ChannelOptions {
            capacity: 4,
            block: 500,
            ..ChannelOptions::default()
        };
        let channel = create_channel(&member, &options).unwrap();
        let with_channel = node.used();
        let receiver = node.spawn("stop-receiving", &[exported(&channel)]);
        for n in 0..4 {
            channel.send(&vec![1; size], n, Deadline::Never).unwrap();
        }
        receiver.wait_until_stopped();
        channel.send(b"", 4, Deadline::Never).unwrap();
        assert_eq!(
            channel.send(b"", 5, Deadline::Now),
            Err(Error::Full),
            "the claimed cell is still in use"
        );
        let recovered = receiver.kill(&node);
        assert_eq!(recovered.cells, 1);
        assert_eq!(recovered.blocks, if size > 500 { 2 } else { 0 });
        channel.send(b"", 5, Deadline::Now).unwrap();
        for n in 2..6 {
            assert_eq!(channel.receive(Deadline::Now).unwrap().hint(), n);
        }
        assert_eq!(node.used(), with_channel);
        drop(channel);
        assert_eq!(node.used(), before);
    }
}

/// The intent of who waits at the queue names the level in which it found something.
#[test]
fn who_dies_in_a_level_is_recovered_in_that_level() {
    for level in 0..3 {
        let node = Node::new();
        let member = node.member();
        let options = PriorityQueueOptions {
            levels: 3,
            capacity: 2,
            block: 500,
            user: 0,
        };
        let queue = PriorityQueue::create(&member, &options).unwrap();
        let words = [queue.export().unwrap().to_string(), level.to_string()];
        let before = node.used();
        let receiver = node.spawn("stop-popping", &words[..1]);
        while queue.state().unwrap().receivers_waiting == 0 {
            std::thread::yield_now();
        }
        queue.send(level, &[1; LARGE], 0, Deadline::Now).unwrap();
        receiver.wait_until_stopped();
        assert_eq!(receiver.kill(&node).cells, 1, "{level}");
        assert_eq!(node.used(), before);
        let words = [queue.export().unwrap().to_string(), level.to_string()];
        let sender = node.spawn("stop-pushing", &words);
        sender.wait_until_stopped();
        assert_eq!(sender.kill(&node).cells, 1, "{level}");
        assert_eq!(node.used(), before);
        // Both places of the level can be used.
        for n in 0..2 {
            queue.send(level, b"", n, Deadline::Now).unwrap();
        }
        for n in 0..2 {
            let (found, message) = queue.receive(Deadline::Now).unwrap();
            assert_eq!((found, message.hint()), (level, n));
        }
    }
}

#[test]
fn a_waiting_sender_and_receiver_go_on_after_a_death() {
    let node = Node::new();
    let (_member, channel) = channel(&node, 1);
    // A sleeping receiver behind a claimed cell, and a sleeping sender: both go on.
    let sender = node.spawn("stop-sending", &[exported(&channel), "8".to_owned()]);
    for n in 0..2 {
        assert_eq!(channel.receive(Deadline::Never).unwrap().hint(), n);
    }
    sender.wait_until_stopped();
    std::thread::scope(|scope| {
        let receive = scope.spawn(|| channel.receive(Deadline::Never).unwrap().hint());
        let send = scope.spawn(|| channel.send(b"", 50, Deadline::Never).unwrap());
        sender.kill(&node);
        send.join().unwrap();
        assert_eq!(receive.join().unwrap(), 50);
    });
}

/// Senders are killed at random moments in heavy traffic: what the others send arrives whole and in order, and of each
/// killed one everything up to some message.
#[test]
fn senders_killed_in_traffic() {
    let node = Node::new();
    let before = node.used();
    let mut random = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    {
        let (_member, channel) = channel(&node, 16);
        let spawn = |n: u64| {
            let words = [exported(&channel), n.to_string()];
            node.spawn("send", &words)
        };
        let steady = spawn(0);
        let mut next: HashMap<u64, u64> = HashMap::new();
        let mut take = |deadline| -> Result<u64, Error> {
            let message = channel.receive(deadline)?;
            let (sender, n) = (
                message.hint() >> SENDER,
                message.hint() & ((1 << SENDER) - 1),
            );
            let expected = next.entry(sender).or_default();
            assert_eq!(n, *expected, "sender {sender}");
            *expected += 1;
            let bytes = message.into_vec();
            assert_eq!(bytes.len(), if n.is_multiple_of(3) { LARGE } else { 8 });
            assert!(bytes.iter().all(|byte| u64::from(*byte) == n % 256));
            Ok(sender)
        };
        for round in 1..=20 {
            let victim = spawn(round);
            let mut left: u32 = random.random_range(1..300);
            while left > 0 {
                left -= u32::from(take(Deadline::Never).unwrap() == round);
            }
            victim.kill(&node);
        }
        for _ in 0..1_000 {
            take(Deadline::Never).unwrap();
        }
        channel.destroy().unwrap();
        steady.join(&node);
        assert!(next.len() == 21);
        // What is left in the channel at its end belongs to nobody: it is emptied with it.
        drop(channel);
    }
    let left = node.used() - before;
    assert_eq!(left, 0, "{left} bytes are left");
}

/// Receivers are killed at random moments in heavy traffic: at most one message is lost for each.
#[test]
fn receivers_killed_in_traffic() {
    const TOTAL: u64 = 20_000;
    let node = Node::new();
    let before = node.used();
    let mut random = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let (_member, from) = channel(&node, 16);
    let (_other, to) = channel(&node, 16);
    let with_channels = node.used();
    // Not exported: a victim may be killed before it could adopt the references.
    let words = [from.descriptor().to_string(), to.descriptor().to_string()];
    let spawn = || node.spawn("forward", &words);
    let mut kills = 0;
    let mut got = Vec::new();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for n in 0..TOTAL {
                let length = if n % 3 == 0 { LARGE } else { 8 };
                from.send(&vec![0; length], n, Deadline::Never).unwrap();
            }
        });
        let steady = spawn();
        while (got.len() as u64) < TOTAL - 1_000 {
            let victim = spawn();
            for _ in 0..random.random_range(1..1_500) {
                if got.len() as u64 >= TOTAL - 1_000 {
                    break;
                }
                got.push(to.receive(Deadline::Never).unwrap().hint());
            }
            victim.kill(&node);
            kills += 1;
        }
        // The sender ends when everything is taken; then one forwarder is left, which waits.
        while !sender.is_finished() {
            if let Ok(message) = to.receive(Deadline::after(10_000_000)) {
                got.push(message.hint());
            }
        }
        sender.join().unwrap();
        while let Ok(message) = to.receive(Deadline::after(200_000_000)) {
            got.push(message.hint());
        }
        steady.kill(&node);
    });
    got.sort_unstable();
    let all = got.len();
    got.dedup();
    assert_eq!(got.len(), all, "no message arrives twice");
    let lost = TOTAL - got.len() as u64;
    assert!(lost <= kills, "{lost} messages lost with {kills} receivers");
    let left = node.used() - with_channels;
    assert_eq!(left, 0, "{left} bytes are left after {kills} kills");
    drop((from, to));
    assert_eq!(node.used(), before);
}

#[test]
fn a_dead_owners_lock_goes_to_the_next_who_is_told() {
    let node = Node::new();
    let (member, said) = channel(&node, 1);
    let lock = Lock::create(&member, 0).unwrap();
    let words = [lock.export().unwrap().to_string(), exported(&said)];
    let owner = node.spawn("hold-lock", &words);
    said.receive(Deadline::Never).unwrap();
    assert_eq!(lock.acquire(Deadline::Now), Err(Error::Empty));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| lock.acquire(Deadline::Never).unwrap());
        assert_eq!(owner.kill(&node).locks, 1);
        assert!(waiter.join().unwrap().owner_died);
    });
    lock.release(false).unwrap();
    assert!(
        !lock.acquire(Deadline::Now).unwrap().owner_died,
        "told once"
    );
}

/// The lock belongs to the process: without any handle it is still found when that ends.
#[test]
fn a_lock_that_is_held_without_a_handle_is_handed_on() {
    for recursive in [false, true] {
        let node = Node::new();
        let (living, dead) = (node.member(), node.member());
        let lock = match recursive {
            true => Lock::create_recursive(&living, 0).unwrap(),
            false => Lock::create(&living, 0).unwrap(),
        };
        let theirs = Lock::attach(&dead, &lock.descriptor(), false).unwrap();
        theirs.acquire(Deadline::Now).unwrap();
        drop(theirs);
        assert_eq!(lock.acquire(Deadline::Now), Err(Error::Empty));
        let recovered = crate::recover(&node.daemon, dead.slot()).unwrap();
        assert_eq!(recovered.locks, 1);
        assert!(lock.acquire(Deadline::Now).unwrap().owner_died);
        lock.release(false).unwrap();
    }
}

#[test]
fn waiters_killed_in_their_sleep_leave_nothing() {
    let node = Node::new();
    let (member, channel) = channel(&node, 1);
    let event = Event::create(&member, 0).unwrap();
    let semaphore = Semaphore::create(&member, 0, 5, 0).unwrap();
    let lock = Lock::create(&member, 0).unwrap();
    lock.acquire(Deadline::Now).unwrap();
    for which in 0..4 {
        let words = [
            event.export().unwrap().to_string(),
            semaphore.export().unwrap().to_string(),
            lock.export().unwrap().to_string(),
            exported(&channel),
            which.to_string(),
        ];
        let waiter = node.spawn("wait", &words);
        // Asleep, or at least inside the wait: its intent says so.
        let records = node.control.threads(waiter.slot.index).unwrap();
        let record = &records[SPARE_THREADS as usize];
        while record
            .intent
            .read()
            .is_none_or(|intended| intended.step != 1)
            && !(which == 2 && record.intent.read().is_some())
        {
            std::thread::yield_now();
        }
        waiter.kill(&node);
    }
    event.set().unwrap();
    semaphore.release(2).unwrap();
    semaphore.acquire(Deadline::Now).unwrap();
    lock.release(false).unwrap();
    lock.acquire(Deadline::Now).unwrap();
    channel.send(b"", 1, Deadline::Now).unwrap();
    assert_eq!(channel.receive(Deadline::Now).unwrap().hint(), 1);
    assert_eq!(
        node.control
            .words()
            .spinners
            .load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}

/// Who is counted as a spinner when it dies is counted no more.
#[test]
fn a_dead_spinner_is_counted_out() {
    let node = Node::new();
    let (_member, channel) = channel(&node, 1);
    let dead = node.member();
    let spinners = &node.control.words().spinners;
    let id = channel.id();
    // The thread of a dead process ends nothing.
    let thread = ManuallyDrop::new(dead.thread().unwrap());
    let (index, generation) = (id.index, id.generation);
    thread.intent.begin(Op::Receive, index, generation, [0, 0]);
    thread.intent.step(mark::SPINNER);
    spinners.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    crate::recover(&node.daemon, dead.slot()).unwrap();
    assert_eq!(spinners.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// Two threads of a process wanted one cell, and it died before the loser looked for the next: whichever of them has shared
/// its block, and whichever is found first.
#[test]
fn of_two_threads_at_one_cell_no_block_is_lost() {
    for winner in 0..2 {
        let node = Node::new();
        let (_member, channel) = channel(&node, 4);
        let before = node.used();
        let dead = node.member();
        let _theirs =
            ManuallyDrop::new(Channel::attach(&dead, &channel.descriptor(), false).unwrap());
        let id = channel.id();
        let entry = node.control.object(id.index).unwrap();
        let ring = crate::channel::open(&dead, entry).unwrap();
        let claimed = cell::claim_to_send(&ring, dead.slot().index, |_| true);
        let cell::Place::Claimed(position) = claimed.unwrap() else {
            panic!("the channel has room");
        };
        let blocks = [(); 2].map(|()| dead.alloc(1_000).unwrap().offset);
        for block in blocks {
            let thread = ManuallyDrop::new(dead.thread().unwrap());
            let (index, generation) = (id.index, id.generation);
            let arguments = [position, block];
            thread.intent.begin(Op::Send, index, generation, arguments);
        }
        dead.share(blocks[winner]).unwrap();
        crate::recover(&node.daemon, dead.slot()).unwrap();
        assert_eq!(node.used(), before, "{winner}");
        channel.send(b"next", 0, Deadline::Now).unwrap();
        channel.receive(Deadline::Now).unwrap();
    }
}

/// Who changes an object takes the agent's mark away and then tells the agent. It may die in between.
#[test]
fn the_agent_hears_of_a_change_whose_maker_died_before_telling() {
    let node = Node::new();
    let (_member, channel) = channel(&node, 4);
    let dead = node.member();
    let theirs = ManuallyDrop::new(Channel::attach(&dead, &channel.descriptor(), false).unwrap());
    crate::watch(&node.daemon, channel.id()).unwrap();
    theirs.send(b"", 0, Deadline::Now).unwrap();
    // As if it had not come to that.
    node.notified.lock().unwrap().clear();
    crate::recover(&node.daemon, dead.slot()).unwrap();
    assert!(node.notified.lock().unwrap().contains(&channel.id()));
}
