//! Locks, semaphores and events among members and processes, some of which die.

use std::thread;

use crate::channel::TestPoint;
use crate::fixture::{Node, Role, stop_at};
use crate::{
    Barrier, Broadcast, BroadcastOptions, Channel, Condition, ConditionOptions, Deadline, Error,
    Event, Lock, PriorityQueue, PriorityQueueOptions, Semaphore, SemaphoreOptions, Trigger,
    create_channel,
};

pub(super) fn play(name: &str, role: &Role) -> bool {
    let member = &role.member;
    match name {
        // Words: semaphore, channel, units. Takes units, says so, and keeps them.
        "hold-units" => {
            let semaphore = Semaphore::attach(member, &role.descriptor(0), true).unwrap();
            let said = Channel::attach(member, &role.descriptor(1), true).unwrap();
            let units = u32::try_from(role.number(2)).unwrap();
            semaphore.acquire_many(units, Deadline::Never).unwrap();
            // The units stay, whatever becomes of the handle.
            drop(semaphore);
            said.send(b"", 0, Deadline::Never).unwrap();
            let _ = said.send(b"", 0, Deadline::Never);
        }
        // Words: semaphore. Takes and gives units for ever.
        "use-units" => {
            let semaphore = Semaphore::attach(member, &role.descriptor(0), false).unwrap();
            for n in 0_u32.. {
                let units = 1 + n % 2;
                semaphore.acquire_many(units, Deadline::Never).unwrap();
                semaphore.release(units).unwrap();
            }
        }
        // Words: recursive lock, channel. Takes it three times, says so, and keeps it.
        "hold-lock-deep" => {
            let lock = Lock::attach(member, &role.descriptor(0), true).unwrap();
            let said = Channel::attach(member, &role.descriptor(1), true).unwrap();
            for _ in 0..3 {
                lock.acquire(Deadline::Never).unwrap();
            }
            said.send(b"", 0, Deadline::Never).unwrap();
            let _ = said.send(b"", 0, Deadline::Never);
        }
        // Words: broadcast, size, whether to stop with the first payload. Triggers for ever.
        "trigger" => {
            let broadcast = Broadcast::attach(member, &role.descriptor(0), false).unwrap();
            if role.number(2) != 0 {
                stop_at(TestPoint::Triggering, 0);
            }
            let payload = vec![1; usize::try_from(role.number(1)).unwrap()];
            loop {
                broadcast
                    .trigger(Trigger::ALL, &payload, Deadline::Never)
                    .unwrap();
            }
        }
        // Words: broadcast, -, whether to stop when it is woken first. Waits for ever.
        "wait-broadcast" => {
            let broadcast = Broadcast::attach(member, &role.descriptor(0), false).unwrap();
            if role.number(2) != 0 {
                stop_at(TestPoint::Woken, 0);
            }
            loop {
                broadcast.wait(Deadline::Never).unwrap();
            }
        }
        // Words: lock, condition, channel. Waits for the condition once.
        "wait-condition" => {
            let lock = Lock::attach(member, &role.descriptor(0), false).unwrap();
            let condition = Condition::attach(member, &role.descriptor(1), false).unwrap();
            let said = Channel::attach(member, &role.descriptor(2), false).unwrap();
            lock.acquire(Deadline::Never).unwrap();
            said.send(b"", 0, Deadline::Never).unwrap();
            condition.wait(&lock, Deadline::Never).unwrap();
        }
        // Words: barrier, whether to stop there first. Waits there for ever.
        "wait-barrier" => {
            let barrier = Barrier::attach(member, &role.descriptor(0), false).unwrap();
            if role.number(1) != 0 {
                stop_at(TestPoint::Arrived, 0);
            }
            while barrier.wait(Deadline::Never).is_ok() {}
        }
        // Words: queue, size, whether to stop with the first message. Sends to levels 1, 2, 0, 1, … for ever.
        "push" => {
            let queue = PriorityQueue::attach(member, &role.descriptor(0), false).unwrap();
            let bytes = vec![1; usize::try_from(role.number(1)).unwrap()];
            if role.number(2) != 0 {
                stop_at(TestPoint::Sending, 0);
            }
            for n in 1..u32::MAX {
                let hint = u64::from(std::process::id()) << 32 | u64::from(n);
                queue.send(n % 3, &bytes, hint, Deadline::Never).unwrap();
            }
        }
        // Words: queue, -, whether to stop with the first message. Receives for ever.
        "pop" => {
            let queue = PriorityQueue::attach(member, &role.descriptor(0), false).unwrap();
            if role.number(2) != 0 {
                stop_at(TestPoint::Receiving, 0);
            }
            loop {
                queue.receive(Deadline::Never).unwrap();
            }
        }
        _ => return false,
    }
    true
}

fn owned(value: u32) -> SemaphoreOptions {
    SemaphoreOptions {
        value,
        most: value,
        owned: true,
        user: 0,
    }
}

/// A channel of one message, on which children say how far they are.
fn said(member: &std::sync::Arc<dragon_shmem::Member>) -> Channel {
    let options = crate::ChannelOptions {
        capacity: 1,
        block: 8,
        user: 0,
        ..crate::ChannelOptions::default()
    };
    create_channel(member, &options).unwrap()
}

#[test]
fn a_dead_owners_units_come_back_and_wake_who_waits() {
    let node = Node::new();
    let before = node.used();
    let member = node.member();
    {
        let said = said(&member);
        let semaphore = Semaphore::with_options(&member, &owned(5)).unwrap();
        let words = |units: u32| {
            [
                semaphore.export().unwrap().to_string(),
                said.export().unwrap().to_string(),
                units.to_string(),
            ]
        };
        let holder = node.spawn("hold-units", &words(3));
        said.receive(Deadline::Never).unwrap();
        assert_eq!(semaphore.value().unwrap(), 2);
        semaphore.acquire_many(2, Deadline::Now).unwrap();
        semaphore.wait_zero(Deadline::Now).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| semaphore.acquire_many(3, Deadline::Never));
            assert_eq!(holder.kill(&node).units, 3);
            waiter.join().unwrap().unwrap();
        });
        semaphore.release(5).unwrap();
        assert_eq!(
            semaphore.release(1),
            Err(Error::NotOwner(semaphore.id())),
            "all are given"
        );
        assert_eq!(semaphore.value().unwrap(), 5);
    }
    assert_eq!(node.used(), before);
}

/// Users of an owned semaphore are killed at random moments: in the end all units are there.
#[test]
fn owned_units_outlive_users_killed_in_traffic() {
    let node = Node::new();
    let member = node.member();
    let semaphore = Semaphore::with_options(&member, &owned(3)).unwrap();
    let words = [semaphore.descriptor().to_string()];
    let steady = node.spawn("use-units", &words);
    for round in 0..25_u32 {
        let victim = node.spawn("use-units", &words);
        for n in 0..round * 40 {
            let units = 1 + n % 3;
            semaphore.acquire_many(units, Deadline::Never).unwrap();
            semaphore.release(units).unwrap();
        }
        victim.kill(&node);
    }
    steady.kill(&node);
    assert_eq!(semaphore.value().unwrap(), 3);
    semaphore.acquire_many(3, Deadline::Now).unwrap();
}

#[test]
fn units_without_owners_may_be_given_by_anybody() {
    let node = Node::new();
    let (a, b) = (node.member(), node.member());
    let semaphore = Semaphore::create(&a, 1, 2, 0).unwrap();
    let theirs = Semaphore::attach(&b, &semaphore.descriptor(), false).unwrap();
    semaphore.acquire(Deadline::Now).unwrap();
    theirs.release(2).unwrap();
    let error = theirs.release(1).unwrap_err().to_string();
    assert!(error.ends_with("has 2 of at most 2 units: 1 more cannot be given"));
    for wrong in [0, 3] {
        let error = semaphore.acquire_many(wrong, Deadline::Now).unwrap_err();
        let range = format!("units of a semaphore is {wrong}: it must be from 1 to 2");
        assert_eq!(error.to_string(), range);
    }
}

#[test]
fn a_waiter_for_zero_is_woken_by_the_last_unit() {
    let node = Node::new();
    let member = node.member();
    for options in [
        owned(2),
        SemaphoreOptions {
            owned: false,
            ..owned(2)
        },
    ] {
        let semaphore = Semaphore::with_options(&member, &options).unwrap();
        assert_eq!(semaphore.wait_zero(Deadline::Now), Err(Error::Empty));
        assert_eq!(
            semaphore.wait_zero(Deadline::after(1_000_000)),
            Err(Error::Timeout)
        );
        thread::scope(|scope| {
            let waiters = [(); 3].map(|()| scope.spawn(|| semaphore.wait_zero(Deadline::Never)));
            semaphore.acquire_many(2, Deadline::Never).unwrap();
            semaphore.release(1).unwrap();
            semaphore.release(1).unwrap();
            // Whoever came before noticed it; whoever comes now waits for another.
            semaphore.acquire_many(2, Deadline::Never).unwrap();
            for waiter in waiters {
                waiter.join().unwrap().unwrap();
            }
        });
        thread::scope(|scope| {
            let waiter = scope.spawn(|| semaphore.acquire(Deadline::Never));
            semaphore.destroy().unwrap();
            assert!(matches!(waiter.join().unwrap(), Err(Error::Destroyed(_))));
        });
        semaphore.release(2).unwrap_err();
    }
}

#[test]
fn a_recursive_lock_of_a_dead_owner_is_free_at_once() {
    let node = Node::new();
    let member = node.member();
    let said = said(&member);
    let lock = Lock::create_recursive(&member, 0).unwrap();
    let words = [
        lock.export().unwrap().to_string(),
        said.export().unwrap().to_string(),
    ];
    let owner = node.spawn("hold-lock-deep", &words);
    said.receive(Deadline::Never).unwrap();
    assert_eq!(lock.release(true), Err(Error::NotOwner(lock.id())));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let acquired = lock.acquire(Deadline::Never).unwrap();
            lock.release(false).unwrap();
            acquired
        });
        assert_eq!(owner.kill(&node).locks, 1);
        assert!(waiter.join().unwrap().owner_died);
    });
    assert!(!lock.acquire(Deadline::Now).unwrap().owner_died);
}

#[test]
fn threads_pass_a_recursive_lock_on() {
    let node = Node::new();
    let members = [node.member(), node.member()];
    let lock = Lock::create_recursive(&members[0], 0).unwrap();
    let value = std::sync::atomic::AtomicU32::new(0);
    thread::scope(|scope| {
        for n in 0..4 {
            let (lock, value, member) = (&lock, &value, &members[n % 2]);
            scope.spawn(move || {
                let lock = Lock::attach(member, &lock.descriptor(), false).unwrap();
                for round in 0..500 {
                    for _ in 0..=round % 3 {
                        lock.acquire(Deadline::Never).unwrap();
                    }
                    let now = value.load(std::sync::atomic::Ordering::Relaxed);
                    value.store(now + 1, std::sync::atomic::Ordering::Relaxed);
                    for _ in 0..=round % 3 {
                        lock.release(false).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(value.into_inner(), 2_000);
}

/// What each waiter sees of an event that is set and cleared at once.
#[test]
fn an_event_that_is_set_and_cleared_at_once_is_noticed() {
    let node = Node::new();
    let member = node.member();
    let event = Event::create(&member, 0).unwrap();
    for _ in 0..200 {
        thread::scope(|scope| {
            let waiter = scope.spawn(|| event.wait(Deadline::Never));
            // Until the waiter has begun, a set may come before it: it is repeated until the waiter has gone on.
            while !waiter.is_finished() {
                event.set().unwrap();
                event.clear().unwrap();
            }
            waiter.join().unwrap().unwrap();
        });
    }
}

/// Waiters and triggerers of a broadcast, killed at random moments and at chosen points, leave nothing.
#[test]
fn killed_users_of_a_broadcast_leave_nothing() {
    let node = Node::new();
    let before = node.used();
    let member = node.member();
    {
        let options = BroadcastOptions {
            payloads: 2,
            ..BroadcastOptions::default()
        };
        let broadcast = Broadcast::create(&member, &options).unwrap();
        let with_broadcast = node.used();
        let name = broadcast.descriptor().to_string();
        for size in [10, 1_000, 100_000] {
            let words = [name.clone(), size.to_string(), "1".to_owned()];
            // A triggerer with a payload that nobody was given yet.
            let triggerer = node.spawn("trigger", &words);
            triggerer.wait_until_stopped();
            triggerer.kill(&node);
            // A waiter that was woken and has not read.
            let waiter = node.spawn("wait-broadcast", &words);
            let payload = vec![1; size];
            let all = Trigger::ALL.after(1);
            broadcast.trigger(all, &payload, Deadline::Never).unwrap();
            waiter.wait_until_stopped();
            waiter.kill(&node);
            assert_eq!(node.used(), with_broadcast, "{size} bytes");
        }
        let words = |size: u64| [name.clone(), size.to_string(), "0".to_owned()];
        let steady = node.spawn("wait-broadcast", &words(0));
        for round in 0..20 {
            let size = [10, 1_000][round % 2];
            let killed = [
                node.spawn("wait-broadcast", &words(0)),
                node.spawn("trigger", &words(size)),
            ];
            for n in 0..round * 10 {
                let payload = vec![7; n * 13 % 400];
                let all = Trigger::ALL.after(1);
                broadcast.trigger(all, &payload, Deadline::Never).unwrap();
            }
            for victim in killed {
                victim.kill(&node);
            }
        }
        steady.kill(&node);
        assert_eq!(broadcast.waiting().unwrap(), 0);
        assert_eq!(node.used(), with_broadcast);
        broadcast
            .trigger(Trigger::ALL, &[1; 10_000], Deadline::Now)
            .unwrap();
    }
    assert_eq!(node.used(), before);
}

/// A waiter that is killed after it was notified, and before it has the lock, loses the notification for nobody else.
#[test]
fn a_notification_of_a_dead_waiter_goes_to_the_next() {
    let node = Node::new();
    let member = node.member();
    let lock = Lock::create(&member, 0).unwrap();
    let condition = Condition::create(&member, &ConditionOptions::default()).unwrap();
    let waiting = said(&member);
    let words = [
        lock.descriptor().to_string(),
        condition.descriptor().to_string(),
        waiting.descriptor().to_string(),
    ];
    let first = node.spawn("wait-condition", &words);
    waiting.receive(Deadline::Never).unwrap();
    // The waiter gives the lock up when it waits.
    lock.acquire(Deadline::Never).unwrap();
    thread::scope(|scope| {
        let next = scope.spawn(|| {
            let other = node.member();
            let lock = Lock::attach(&other, &lock.descriptor(), false).unwrap();
            let condition = Condition::attach(&other, &condition.descriptor(), false).unwrap();
            lock.acquire(Deadline::Never).unwrap();
            waiting.send(b"", 0, Deadline::Never).unwrap();
            condition.wait(&lock, Deadline::Never).unwrap();
            lock.release(false).unwrap();
        });
        lock.release(false).unwrap();
        waiting.receive(Deadline::Never).unwrap();
        lock.acquire(Deadline::Never).unwrap();
        assert_eq!(condition.notify_one().unwrap(), 1, "the first to wait");
        // It cannot have the lock, so it is on its way to it.
        first.kill(&node);
        lock.release(false).unwrap();
        next.join().unwrap();
    });
}

/// A party that is killed while it waits breaks the barrier for the others; a new one can use it after a reset.
#[test]
fn a_party_killed_at_a_barrier_breaks_it() {
    let node = Node::new();
    let before = node.used();
    let member = node.member();
    {
        let barrier = Barrier::create(&member, 3, 0).unwrap();
        let words = |stop: u32| [barrier.descriptor().to_string(), stop.to_string()];
        for stop in [1, 0, 1, 0] {
            let party = node.spawn("wait-barrier", &words(stop));
            if stop != 0 {
                party.wait_until_stopped();
            }
            while barrier.state().unwrap().waiting == 0 {
                thread::yield_now();
            }
            thread::scope(|scope| {
                let other = scope.spawn(|| barrier.wait(Deadline::Never));
                while barrier.state().unwrap().waiting != 2 {
                    thread::yield_now();
                }
                party.kill(&node);
                let broken = other.join().unwrap().unwrap_err();
                let text = format!(
                    "barrier {} is broken: a process died while it waited there",
                    barrier.id()
                );
                assert_eq!(broken.to_string(), text);
            });
            assert_eq!(barrier.state().unwrap().waiting, 0);
            barrier.reset().unwrap();
        }
        // In traffic: each death breaks it, or the party was not there.
        for round in 0..10 {
            let parties = [(); 2].map(|()| node.spawn("wait-barrier", &words(0)));
            for _ in 0..round * 20 {
                barrier.wait(Deadline::Never).unwrap();
            }
            for party in parties {
                party.kill(&node);
            }
            barrier.reset().unwrap();
            assert_eq!(barrier.state().unwrap().broken, None);
        }
    }
    assert_eq!(node.used(), before);
}

fn levels(member: &std::sync::Arc<dragon_shmem::Member>, capacity: u32) -> PriorityQueue {
    let options = PriorityQueueOptions {
        levels: 3,
        capacity,
        block: 64,
        user: 0,
    };
    PriorityQueue::create(member, &options).unwrap()
}

/// A sender and a receiver that die in a level hold nobody up, there and in the other levels, and leave nothing.
#[test]
fn who_is_killed_in_a_level_holds_nobody_up() {
    let node = Node::new();
    let before = node.used();
    let member = node.member();
    {
        let queue = levels(&member, 2);
        let with_queue = node.used();
        for size in [8, 500] {
            let words = |stop: u32| {
                let name = queue.descriptor().to_string();
                [name, size.to_string(), stop.to_string()]
            };
            let sender = node.spawn("push", &words(1));
            sender.wait_until_stopped();
            // Behind the message that will never come; and in a less urgent level, which goes on.
            queue.send(1, b"behind", 1, Deadline::Now).unwrap();
            queue.send(2, b"less", 2, Deadline::Now).unwrap();
            assert_eq!(queue.receive(Deadline::Now).unwrap().0, 2);
            thread::scope(|scope| {
                let receiver = scope.spawn(|| queue.receive(Deadline::Never).unwrap().1);
                let full = scope.spawn(|| queue.send(1, b"third", 3, Deadline::Never));
                assert_eq!(sender.kill(&node).cells, 1);
                assert_eq!(receiver.join().unwrap().into_vec(), b"behind");
                full.join().unwrap().unwrap();
            });
            assert_eq!(queue.receive(Deadline::Now).unwrap().1.hint(), 3);
            assert_eq!(node.used(), with_queue, "{size} bytes");

            let bytes = vec![3; size];
            for hint in [4, 5] {
                queue.send(1, &bytes, hint, Deadline::Now).unwrap();
            }
            let receiver = node.spawn("pop", &words(1));
            receiver.wait_until_stopped();
            thread::scope(|scope| {
                let full = scope.spawn(|| {
                    queue.send(1, &bytes, 6, Deadline::Never)?;
                    queue.send(1, &bytes, 7, Deadline::Never)
                });
                let cells = receiver.kill(&node).cells;
                assert_eq!(
                    cells,
                    u32::from(size > 64),
                    "a small one is received at once"
                );
                for hint in [5, 6, 7] {
                    assert_eq!(queue.receive(Deadline::Never).unwrap().1.hint(), hint);
                }
                full.join().unwrap().unwrap();
            });
            assert_eq!(node.used(), with_queue, "{size} bytes");
        }
        // One that sleeps.
        let sleeper = node.spawn(
            "pop",
            &[queue.descriptor().to_string(), "0".into(), "0".into()],
        );
        while queue.state().unwrap().receivers_waiting == 0 {
            thread::yield_now();
        }
        sleeper.kill(&node);
        assert_eq!(queue.state().unwrap().receivers_waiting, 0);
    }
    assert_eq!(node.used(), before);
}

/// Users of a queue are killed at random moments: the others go on, at most the messages of the dead are missing, and nothing
/// is left.
#[test]
fn a_queue_outlives_users_killed_in_traffic() {
    let node = Node::new();
    let before = node.used();
    let member = node.member();
    {
        let queue = levels(&member, 3);
        let with_queue = node.used();
        let words = |size: u64| [queue.descriptor().to_string(), size.to_string(), "0".into()];
        let steady = [
            node.spawn("push", &words(300)),
            node.spawn("pop", &words(0)),
        ];
        let mut last = std::collections::HashMap::new();
        for round in 0..24_u64 {
            let victims = [
                node.spawn(
                    "push",
                    &words([8, 300][usize::try_from(round % 2).unwrap()]),
                ),
                node.spawn("pop", &words(0)),
            ];
            for _ in 0..round * 15 {
                let (level, message) = queue.receive(Deadline::Never).unwrap();
                let (sender, n) = (message.hint() >> 32, message.hint() & 0xffff_ffff);
                assert_eq!(n % 3, u64::from(level));
                let before = last.insert((sender, level), n).unwrap_or(0);
                assert!(before < n, "{n} came after {before}");
                let whole = message.into_vec();
                assert!([8, 300].contains(&whole.len()) && whole.iter().all(|byte| *byte == 1));
            }
            for victim in victims {
                victim.kill(&node);
            }
        }
        for process in steady {
            process.kill(&node);
        }
        while queue.receive(Deadline::Now).is_ok() {}
        let state = queue.state().unwrap();
        assert_eq!(state.messages, [0; 3]);
        assert_eq!((state.receivers_waiting, state.senders_waiting), (0, 0));
        assert_eq!(node.used(), with_queue);
        for level in [2, 1, 0] {
            queue.send(level, b"", 0, Deadline::Now).unwrap();
        }
        for level in 0..3 {
            assert_eq!(queue.receive(Deadline::Now).unwrap().0, level);
        }
    }
    assert_eq!(node.used(), before);
}
