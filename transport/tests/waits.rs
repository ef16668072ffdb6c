//! Waits of other nodes' processes for objects of this one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use std::mem::ManuallyDrop;

use dragon_channels::{
    Barrier, Breakage, Broadcast, BroadcastOptions, Condition, ConditionOptions, Deadline, Error,
    Event, Lock, Poll, Returns, Semaphore, SemaphoreOptions, SendOptions, Trigger,
};
use rig::{channel, on_each, pattern, seen_by, soon, until, watched};

#[test]
fn an_event_that_is_set_and_cleared_at_once_is_noticed_by_all() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let event = Event::create(&far, 0).unwrap();
        let remote = Event::attach(&near, &event.descriptor(), false).unwrap();
        std::thread::scope(|scope| {
            let waiters = [(); 3].map(|()| scope.spawn(|| remote.wait(watched())));
            until("all are parked", || nodes[1].stats().parked == 3);
            event.set().unwrap();
            event.clear().unwrap();
            for waiter in waiters {
                waiter.join().unwrap().unwrap();
            }
        });
        assert_eq!(remote.wait(Deadline::Now), Err(Error::Empty));
        assert_eq!(remote.wait(soon()), Err(Error::Timeout));
    });
}

#[test]
fn a_zero_of_a_semaphore_is_noticed_from_another_node() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let semaphore = Semaphore::create(&far, 2, 2, 0).unwrap();
        let remote = Semaphore::attach(&near, &semaphore.descriptor(), false).unwrap();
        remote.acquire_many(2, watched()).unwrap();
        remote.wait_zero(Deadline::Now).unwrap();
        remote.release(2).unwrap();
        let error = remote.release(1).unwrap_err();
        let text = format!(
            "semaphore {} has 2 of at most 2 units: 1 more cannot be given",
            semaphore.id()
        );
        assert_eq!(error.to_string(), text);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| remote.wait_zero(watched()));
            until("it is parked", || nodes[1].stats().parked == 1);
            semaphore.acquire_many(2, Deadline::Now).unwrap();
            semaphore.release(2).unwrap();
            waiter.join().unwrap().unwrap();
        });
    });
}

#[test]
fn a_process_of_another_node_gives_its_owned_units_back_when_it_dies() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let options = SemaphoreOptions {
            value: 3,
            most: 3,
            owned: true,
            user: 0,
        };
        let semaphore = Semaphore::with_options(&far, &options).unwrap();
        // Nothing is dropped when a process dies.
        let remote = Semaphore::attach(&near, &semaphore.descriptor(), false).unwrap();
        let remote = ManuallyDrop::new(remote);
        remote.acquire_many(2, watched()).unwrap();
        assert_eq!(
            semaphore.release(1),
            Err(Error::NotOwner(semaphore.id())),
            "they are another's"
        );
        remote.release(1).unwrap();
        assert_eq!(semaphore.value().unwrap(), 2);
        nodes[0].dies(near.slot());
        until("its unit is back", || semaphore.value().unwrap() == 3);
    });
}

#[test]
fn a_recursive_lock_belongs_to_a_thread_of_another_node() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let lock = Lock::create_recursive(&far, 0).unwrap();
        let remote = Lock::attach(&near, &lock.descriptor(), false).unwrap();
        remote.acquire(watched()).unwrap();
        remote.acquire(watched()).unwrap();
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| {
                assert_eq!(remote.acquire(Deadline::Now), Err(Error::Empty));
                assert_eq!(remote.release(true), Err(Error::NotOwner(lock.id())));
            });
            refused.join().unwrap();
            let waiter = scope.spawn(|| lock.acquire(watched()).unwrap());
            remote.release(false).unwrap();
            assert_eq!(remote.release(false), Ok(()));
            assert!(!waiter.join().unwrap().owner_died);
        });
    });
}

#[test]
fn a_condition_is_waited_for_from_another_node() {
    on_each(3, |nodes| {
        let members = [nodes[0].client(), nodes[1].client(), nodes[2].client()];
        // The lock and the condition need not lie on the same node.
        for home in [1, 2] {
            let lock = Lock::create_recursive(&members[1], 0).unwrap();
            let condition =
                Condition::create(&members[home], &ConditionOptions::default()).unwrap();
            let theirs = |n: usize| {
                let lock = Lock::attach(&members[n], &lock.descriptor(), false).unwrap();
                let condition =
                    Condition::attach(&members[n], &condition.descriptor(), false).unwrap();
                (lock, condition)
            };
            let (lock0, condition0) = theirs(0);
            let not_owner = condition0.wait(&lock0, watched());
            assert_eq!(not_owner, Err(Error::NotOwner(lock.id())));
            lock0.acquire(watched()).unwrap();
            lock0.acquire(watched()).unwrap();
            assert_eq!(condition0.wait(&lock0, Deadline::Now), Err(Error::Empty));
            assert_eq!(condition0.wait(&lock0, soon()), Err(Error::Timeout));
            std::thread::scope(|scope| {
                let notifier = scope.spawn(|| {
                    let (lock2, condition2) = theirs(2);
                    lock2.acquire(watched()).unwrap();
                    assert_eq!(condition2.notify_one().unwrap(), 1);
                    lock2.release(false).unwrap();
                });
                condition0.wait(&lock0, watched()).unwrap();
                notifier.join().unwrap();
            });
            lock0.release(false).unwrap();
            assert_eq!(
                lock.acquire(Deadline::Now),
                Err(Error::Empty),
                "its depth is 1"
            );
            lock0.release(false).unwrap();
            lock.acquire(watched()).unwrap();
        }
    });
}

#[test]
fn a_dead_process_of_another_node_passes_its_notification_on() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let slot = near.slot();
        let lock = Lock::create(&far, 0).unwrap();
        let condition = Condition::create(&far, &ConditionOptions::default()).unwrap();
        let near_lock = Lock::attach(&near, &lock.descriptor(), false).unwrap();
        let near_condition = Condition::attach(&near, &condition.descriptor(), false).unwrap();
        // The thread never gets an answer, as the thread of a dead process: it is left behind.
        std::thread::spawn(move || {
            near_lock.acquire(watched()).unwrap();
            near_condition.wait(&near_lock, Deadline::Never).map(drop)
        });
        until("it waits", || nodes[1].stats().parked == 1);
        std::thread::scope(|scope| {
            let next = scope.spawn(|| {
                lock.acquire(watched()).unwrap();
                condition.wait(&lock, watched()).unwrap();
                lock.release(false).unwrap();
            });
            until("both wait", || condition.waiting().unwrap() == 2);
            lock.acquire(watched()).unwrap();
            assert_eq!(condition.notify_one().unwrap(), 1, "who came first");
            until("it is on its way to the lock", || {
                nodes[1].stats().parked == 1
            });
            nodes[0].dies(slot);
            until("it is recovered", || nodes[1].stats().proxies == 0);
            lock.release(false).unwrap();
            next.join().unwrap();
        });
    });
}

#[test]
fn a_broadcast_reaches_every_node() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let broadcast = Broadcast::create(&far, &BroadcastOptions::default()).unwrap();
        let remote = Broadcast::attach(&near, &broadcast.descriptor(), false).unwrap();
        assert_eq!(remote.wait(Deadline::Now).unwrap_err(), Error::Empty);
        assert_eq!(remote.wait(soon()).unwrap_err(), Error::Timeout);
        let blocks = nodes[1].blocks();
        for (n, size) in [0, 10, 1_000, 200_000].into_iter().enumerate() {
            let payload = pattern(size, n as u64);
            std::thread::scope(|scope| {
                let waiters = [&broadcast, &remote, &remote]
                    .map(|broadcast| scope.spawn(|| broadcast.wait(watched()).unwrap().into_vec()));
                let triggerer = [&broadcast, &remote][n % 2];
                let woken = triggerer
                    .trigger(Trigger::ALL.after(3), &payload, watched())
                    .unwrap();
                assert_eq!(woken, 3);
                for waiter in waiters {
                    assert!(waiter.join().unwrap() == payload);
                }
            });
            until("all is freed", || nodes[1].blocks() == blocks);
        }
        assert_eq!(remote.waiting().unwrap(), 0);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| remote.wait(watched()));
            until("it waits", || remote.waiting().unwrap() == 1);
            broadcast.destroy().unwrap();
            assert!(matches!(waiter.join().unwrap(), Err(Error::Destroyed(_))));
        });
    });
}

#[test]
fn parties_of_several_nodes_meet_at_a_barrier() {
    on_each(3, |nodes| {
        let members = [nodes[0].client(), nodes[1].client(), nodes[2].client()];
        let slot = members[2].slot();
        let owned = Barrier::create(&members[0], 3, 0).unwrap();
        let theirs = |n: usize| Barrier::attach(&members[n], &owned.descriptor(), false).unwrap();
        let (second, third) = (theirs(1), theirs(2));
        let broken = |why| {
            Err(Error::Broken {
                barrier: owned.id(),
                why,
            })
        };
        for _ in 0..5 {
            std::thread::scope(|scope| {
                let parties = [&owned, &second, &third]
                    .map(|barrier| scope.spawn(|| barrier.wait(watched()).unwrap()));
                let mut numbers = parties.map(|party| party.join().unwrap());
                numbers.sort_unstable();
                assert_eq!(numbers, [0, 1, 2]);
            });
        }
        assert_eq!(second.wait(Deadline::Now), Err(Error::Empty));
        assert_eq!(second.state().unwrap().waiting, 0, "a try leaves nothing");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| third.wait(watched()));
            until("it waits", || second.state().unwrap().waiting == 1);
            assert_eq!(second.wait(soon()), Err(Error::Timeout));
            assert_eq!(waiter.join().unwrap(), broken(Breakage::Timeout));
        });
        assert_eq!(second.wait(watched()), broken(Breakage::Timeout));
        second.reset().unwrap();
        second.abort().unwrap();
        assert_eq!(owned.wait(watched()), broken(Breakage::Aborted));
        owned.reset().unwrap();
        // The thread never gets an answer, as the thread of a dead process: it is left behind.
        std::thread::spawn(move || third.wait(Deadline::Never));
        until("it waits", || owned.state().unwrap().waiting == 1);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| second.wait(watched()));
            until("both wait", || owned.state().unwrap().waiting == 2);
            nodes[2].dies(slot);
            assert_eq!(waiter.join().unwrap(), broken(Breakage::Died));
        });
    });
}

/// Whoever waits for the end of a channel, or for a receipt that may never come, holds up nobody who waits for another.
#[test]
fn receipts_come_each_by_itself() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        let remote = seen_by(&near, owned.descriptor());
        let send = || {
            let options = SendOptions {
                returns: Returns::Received,
                deadline: watched(),
                ..SendOptions::default()
            };
            remote.send_with(&[std::io::IoSlice::new(b"")], &options)
        };
        std::thread::scope(|scope| {
            let end = scope.spawn(|| remote.poll_for(Poll::Closed, watched()));
            until("it is parked", || nodes[1].stats().parked == 1);
            let receipt = scope.spawn(send);
            until("both are parked", || nodes[1].stats().parked == 2);
            owned.receive(Deadline::Now).unwrap();
            receipt.join().unwrap().unwrap();
            owned.destroy().unwrap();
            assert_eq!(end.join().unwrap(), Ok(0));
        });
    });
}
