//! Waits of other nodes' processes for objects of this one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use dragon_channels::{Deadline, Error, Event, Lock, Semaphore, SemaphoreOptions};
use rig::{on_each, soon, until, watched};

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
        let remote = Semaphore::attach(&near, &semaphore.descriptor(), false).unwrap();
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
