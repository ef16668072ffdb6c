//! The same call on every node: objects of another node behave as those of the own one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use std::sync::Arc;

use dragon_channels::{
    Channel, Deadline, Error, Event, Lock, ProcessObject, Semaphore, SemaphoreOptions,
};
use dragon_protocol::{Code, Descriptor, ObjectId};
use dragon_shmem::Member;
use rig::{POOL, channel, on_each, pattern, seen_by, soon, tcp, until, watched};

#[test]
fn messages_go_both_ways() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 8);
        let remote = seen_by(&near, owned.descriptor());
        remote.send(b"there", 7, watched()).unwrap();
        let message = owned.receive(watched()).unwrap();
        assert_eq!((message.hint(), message.into_vec()), (7, b"there".to_vec()));
        owned.send(b"and back", 8, watched()).unwrap();
        assert_eq!(remote.poll(Deadline::Now).unwrap(), 1);
        let attributes = remote.attributes().unwrap();
        assert_eq!((attributes.messages, attributes.capacity), (1, 8));
        let message = remote.receive(watched()).unwrap();
        assert_eq!(
            (message.hint(), message.into_vec()),
            (8, b"and back".to_vec())
        );
        let attributes = remote.attributes().unwrap();
        assert_eq!((attributes.messages, attributes.capacity), (0, 8));
    });
}

#[test]
fn every_size_arrives_and_leaves_nothing_behind() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        let remote = seen_by(&near, owned.descriptor());
        remote.send(b"", 0, watched()).unwrap();
        owned.receive(watched()).unwrap();
        let sizes = [
            0,
            1,
            144,
            145,
            192,
            255,
            256,
            257,
            383,
            384,
            385,
            4095,
            4096,
            4097,
            65_536,
            100_000,
            8 << 20,
        ];
        let before = (nodes[0].blocks(), nodes[1].blocks());
        for size in sizes {
            let payload = pattern(size, size as u64);
            remote.send(&payload, 1, watched()).unwrap();
            let message = owned.receive(watched()).unwrap();
            assert!(message.into_vec() == payload, "{size} bytes there");
            owned.send(&payload, 2, watched()).unwrap();
            let message = remote.receive(watched()).unwrap();
            assert_eq!(message.hint(), 2);
            assert!(message.into_vec() == payload, "{size} bytes back");
        }
        until("all blocks are free", || {
            (nodes[0].blocks(), nodes[1].blocks()) == before
        });
    });
}

#[test]
fn a_block_is_handed_over_without_a_copy_by_the_sender() {
    let nodes = tcp(&[POOL; 2]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&far, 4);
    let remote = seen_by(&near, owned.descriptor());
    let payload = pattern(1 << 20, 3);
    let before = nodes[0].blocks();
    let block = near.alloc(payload.len() as u64).unwrap();
    near.pool().write(block.offset, 0, &payload).unwrap();
    remote.send_block(block, 5, watched()).unwrap();
    let message = owned.receive(watched()).unwrap();
    assert!(message.block().is_some(), "it lies in the owner's pool");
    assert!(message.into_vec() == payload);
    until("the sender's block is free", || nodes[0].blocks() == before);
}

#[test]
fn a_receive_waits_at_the_owner_for_a_local_and_for_a_remote_send() {
    on_each(3, |nodes| {
        let (near, far, third) = (nodes[0].client(), nodes[1].client(), nodes[2].client());
        let owned = channel(&far, 4);
        let remote = seen_by(&near, owned.descriptor());
        let other = seen_by(&third, owned.descriptor());
        for sender in [&owned, &other] {
            std::thread::scope(|scope| {
                let receiver = scope.spawn(|| remote.receive(watched()).unwrap().into_vec());
                until("the receive is parked", || nodes[1].stats().parked == 1);
                sender.send(b"at last", 0, watched()).unwrap();
                assert_eq!(receiver.join().unwrap(), b"at last");
            });
            assert_eq!(nodes[1].stats().parked, 0);
        }
        assert_eq!(owned.attributes().unwrap().messages, 0);
    });
}

#[test]
fn a_send_waits_at_the_owner_for_room() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 1);
        let remote = seen_by(&near, owned.descriptor());
        remote.send(b"first", 0, watched()).unwrap();
        assert_eq!(
            remote.send(b"no room", 0, Deadline::Now).unwrap_err(),
            Error::Full
        );
        assert_eq!(
            remote.send(b"no room", 0, soon()).unwrap_err(),
            Error::Timeout
        );
        for large in [0, 100_000] {
            std::thread::scope(|scope| {
                let payload = pattern(large, 1);
                let sent = payload.clone();
                let remote = &remote;
                let sender = scope.spawn(move || remote.send(&sent, 9, watched()));
                until("the send is parked", || nodes[1].stats().parked == 1);
                owned.receive(watched()).unwrap();
                sender.join().unwrap().unwrap();
                assert!(owned.receive(watched()).unwrap().into_vec() == payload);
                remote.send(b"next", 0, watched()).unwrap();
            });
        }
    });
}

#[test]
fn deadlines_end_at_the_owner() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 1);
        let remote = seen_by(&near, owned.descriptor());
        assert_eq!(remote.receive(Deadline::Now).unwrap_err(), Error::Empty);
        assert_eq!(remote.poll(Deadline::Now).unwrap_err(), Error::Empty);
        assert_eq!(remote.receive(soon()).unwrap_err(), Error::Timeout);
        assert_eq!(remote.poll(soon()).unwrap_err(), Error::Timeout);
        let past = Deadline::At(1);
        assert_eq!(remote.receive(past).unwrap_err(), Error::Timeout);
        assert_eq!(nodes[1].stats().parked, 0);
        assert_eq!(nodes[0].stats().pending, 0);
    });
}

#[test]
fn a_destroyed_channel_ends_those_who_wait_for_it() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 1);
        let remote = seen_by(&near, owned.descriptor());
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| remote.receive(watched()).unwrap_err());
            until("the receive is parked", || nodes[1].stats().parked == 1);
            owned.destroy().unwrap();
            assert_eq!(receiver.join().unwrap(), Error::Destroyed(owned.id()));
        });
        assert_eq!(
            remote.send(b"x", 0, watched()).unwrap_err(),
            Error::Destroyed(owned.id())
        );
    });
}

#[test]
fn references_of_other_nodes_keep_an_object() {
    on_each(3, |nodes| {
        let (near, far, third) = (nodes[0].client(), nodes[1].client(), nodes[2].client());
        let owned = channel(&far, 4);
        let id = owned.id();
        owned.send(b"kept", 0, watched()).unwrap();
        let remote = seen_by(&near, owned.descriptor());
        drop(owned);
        // The descriptor travels on: from one stranger to another, with a reference of its own.
        let exported = remote.export().unwrap();
        drop(remote);
        let adopted = Channel::attach(&third, &exported, true).unwrap();
        assert_eq!(adopted.receive(watched()).unwrap().into_vec(), b"kept");
        let references = || nodes[1].control.entry(id).map(|e| e.references());
        until("the first reference is given back", || {
            references() == Ok(1)
        });
        drop(adopted);
        until("the object is gone", || references().is_err());
        let error = Channel::attach(&near, &exported, false).unwrap_err();
        assert_eq!(error.code(), Code::NoSuchObject);
    });
}

#[test]
fn a_descriptor_that_names_nothing_is_an_error() {
    on_each(2, |nodes| {
        let near = nodes[0].client();
        let far = channel(&nodes[1].client(), 1);
        let nothing = Descriptor {
            object: ObjectId {
                index: 60_000,
                ..far.id()
            },
            ..far.descriptor()
        };
        let error = Channel::attach(&near, &nothing, false).unwrap_err();
        assert_eq!(error.code(), Code::NoSuchObject);
        let nowhere = Descriptor {
            object: ObjectId {
                node: rig::index(77),
                ..far.id()
            },
            ..far.descriptor()
        };
        let error = Channel::attach(&near, &nowhere, false).unwrap_err();
        assert_eq!(error.code(), Code::Unreachable);
    });
}

#[test]
fn a_lock_is_held_by_one_process_of_any_node() {
    on_each(3, |nodes| {
        let (near, far, third) = (nodes[0].client(), nodes[1].client(), nodes[2].client());
        let owned = Lock::create(&far, 0).unwrap();
        let first = Lock::attach(&near, &owned.descriptor(), false).unwrap();
        let second = Lock::attach(&third, &owned.descriptor(), false).unwrap();
        assert!(!first.acquire(watched()).unwrap().owner_died);
        assert_eq!(second.acquire(Deadline::Now).unwrap_err(), Error::Empty);
        assert_eq!(second.acquire(soon()).unwrap_err(), Error::Timeout);
        assert_eq!(owned.acquire(Deadline::Now).unwrap_err(), Error::Empty);
        assert_eq!(
            second.release(false).unwrap_err(),
            Error::NotOwner(owned.id())
        );
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| second.acquire(watched()).unwrap());
            until("the acquire is parked", || nodes[1].stats().parked == 1);
            first.release(false).unwrap();
            assert!(!waiter.join().unwrap().owner_died);
        });
        // Whoever holds it: multiprocessing's rule.
        first.release(true).unwrap();
        owned.acquire(watched()).unwrap();
        owned.release(false).unwrap();
    });
}

#[test]
fn what_is_held_when_the_handle_is_dropped_stays_with_the_process() {
    on_each(2, |nodes| {
        let far = nodes[1].client();
        let lock = Lock::create(&far, 0).unwrap();
        let options = SemaphoreOptions {
            value: 2,
            most: 2,
            owned: true,
            user: 0,
        };
        let units = Semaphore::with_options(&far, &options).unwrap();
        let take = |member: &Arc<Member>| {
            let theirs = Lock::attach(member, &lock.descriptor(), false).unwrap();
            assert!(!theirs.acquire(watched()).unwrap().owner_died);
            let theirs = Semaphore::attach(member, &units.descriptor(), false).unwrap();
            theirs.acquire(watched()).unwrap();
        };
        for node in nodes {
            let holder = node.client();
            take(&holder);
            // Another handle of the process releases both; then nothing is kept.
            let again = Lock::attach(&holder, &lock.descriptor(), false).unwrap();
            again.release(false).unwrap();
            let again = Semaphore::attach(&holder, &units.descriptor(), false).unwrap();
            again.release(1).unwrap();
            take(&holder);
            assert_eq!(lock.acquire(Deadline::Now).unwrap_err(), Error::Empty);
            assert_eq!(units.value().unwrap(), 1);
            node.dies(holder.slot());
            assert!(lock.acquire(watched()).unwrap().owner_died);
            lock.release(false).unwrap();
            units.acquire_many(2, watched()).unwrap();
            units.release(2).unwrap();
        }
    });
}

#[test]
fn events_semaphores_and_exits_are_waited_for() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let event = Event::create(&far, 0).unwrap();
        let remote = Event::attach(&near, &event.descriptor(), false).unwrap();
        assert!(!remote.is_set().unwrap());
        assert_eq!(remote.wait(soon()).unwrap_err(), Error::Timeout);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| remote.wait(watched()));
            until("the wait is parked", || nodes[1].stats().parked == 1);
            event.set().unwrap();
            waiter.join().unwrap().unwrap();
        });
        assert!(remote.is_set().unwrap());
        remote.clear().unwrap();
        assert!(!event.is_set().unwrap());
        remote.set().unwrap();
        event.wait(watched()).unwrap();

        let semaphore = Semaphore::create(&far, 1, 10, 0).unwrap();
        let remote = Semaphore::attach(&near, &semaphore.descriptor(), false).unwrap();
        remote.acquire(watched()).unwrap();
        assert_eq!(remote.value().unwrap(), 0);
        assert_eq!(remote.acquire(Deadline::Now).unwrap_err(), Error::Empty);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| remote.acquire(watched()));
            until("the acquire is parked", || nodes[1].stats().parked == 1);
            semaphore.release(3).unwrap();
            waiter.join().unwrap().unwrap();
        });
        assert_eq!(semaphore.value().unwrap(), 2);
        remote.release(1).unwrap();
        assert_eq!(semaphore.value().unwrap(), 3);

        let process = ProcessObject::create(&nodes[1].daemon, 1234, 0).unwrap();
        let remote = ProcessObject::attach(&near, &process.descriptor(), false).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| remote.wait(watched()));
            until("the wait is parked", || nodes[1].stats().parked == 1);
            // The daemon's own change: told to the agent by the hook.
            process.finish(0x0300).unwrap();
            assert_eq!(waiter.join().unwrap().unwrap(), 0x0300);
        });
        assert_eq!(remote.wait(Deadline::Now).unwrap(), 0x0300);
    });
}

#[test]
fn the_daemon_posts_to_any_channel_and_never_waits() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        for owner in [&near, &far] {
            let owned = channel(owner, 1);
            for n in 0..20 {
                nodes[0].agent.post(owned.id(), n, vec![0; 10]);
            }
            // In their order, as the channel has room.
            for n in 0..20 {
                assert_eq!(owned.receive(watched()).unwrap().hint(), n);
            }
        }
    });
}

#[test]
fn sixteen_threads_each_way_and_every_message_crosses_exactly_once() {
    const THREADS: u64 = 16;
    const EACH: u64 = 200;
    on_each(2, |nodes| {
        let clients = [nodes[0].client(), nodes[1].client()];
        let owned = [channel(&clients[0], 32), channel(&clients[1], 32)];
        let remote = [
            seen_by(&clients[1], owned[0].descriptor()),
            seen_by(&clients[0], owned[1].descriptor()),
        ];
        std::thread::scope(|scope| {
            for (owned, remote) in owned.iter().zip(&remote) {
                for thread in 0..THREADS {
                    scope.spawn(move || {
                        for n in 0..EACH {
                            let size = usize::try_from(n * 97 % 6000).unwrap();
                            let payload = pattern(size, thread << 32 | n);
                            remote.send(&payload, thread << 32 | n, watched()).unwrap();
                        }
                    });
                }
                scope.spawn(move || {
                    let mut next = vec![0; usize::try_from(THREADS).unwrap()];
                    for _ in 0..THREADS * EACH {
                        let message = owned.receive(watched()).unwrap();
                        let hint = message.hint();
                        let (thread, n) = (usize::try_from(hint >> 32).unwrap(), hint & 0xffff);
                        assert_eq!(n, next[thread], "order of thread {thread}");
                        next[thread] += 1;
                        let size = usize::try_from(n * 97 % 6000).unwrap();
                        assert!(message.into_vec() == pattern(size, hint));
                    }
                });
            }
        });
        let [a, b] = [nodes[0].stats(), nodes[1].stats()];
        for stats in [a, b] {
            assert_eq!(stats.messages_sent, THREADS * EACH);
            assert_eq!(stats.messages_received, THREADS * EACH);
            assert_eq!((stats.returned, stats.messages_lost), (0, 0));
            // One request for the attach and one for each message; nothing else.
            assert_eq!(stats.requests_sent, THREADS * EACH + 1);
            assert_eq!(stats.replies_received, THREADS * EACH + 1);
            assert_eq!((stats.pending, stats.parked), (0, 0));
            assert_eq!((stats.fabric.opened, stats.fabric.accepted), (1, 1));
        }
        assert_eq!(owned[0].attributes().unwrap().messages, 0);
        assert_eq!(owned[1].attributes().unwrap().messages, 0);
    });
}

#[test]
fn remote_receivers_share_a_channel_without_loss() {
    on_each(3, |nodes| {
        let owner = nodes[0].client();
        let owned = channel(&owner, 16);
        let clients = [nodes[1].client(), nodes[2].client()];
        let seen = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for client in &clients {
                for _ in 0..4 {
                    let remote = seen_by(client, owned.descriptor());
                    let seen = &seen;
                    scope.spawn(move || {
                        loop {
                            let hint = remote.receive(watched()).unwrap().hint();
                            if hint == u64::MAX {
                                return;
                            }
                            seen.lock().unwrap().push(hint);
                        }
                    });
                }
            }
            for n in 0..1000 {
                owned
                    .send(&pattern(usize::try_from(n).unwrap(), n), n, watched())
                    .unwrap();
            }
            for _ in 0..8 {
                owned.send(b"", u64::MAX, watched()).unwrap();
            }
        });
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<u64>>());
    });
}
