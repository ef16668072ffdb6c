//! Locks, semaphores and events among members and processes, some of which die.

use std::thread;

use crate::fixture::{Node, Role};
use crate::{Channel, Deadline, Error, Event, Lock, Semaphore, SemaphoreOptions, create_channel};

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
