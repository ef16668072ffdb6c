//! Streams whose ends lie on different nodes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use std::sync::atomic::{AtomicBool, Ordering};

use dragon_channels::{Deadline, Endpoint, EndpointOptions, Error};
use rig::{on_each, pattern, until, watched};

fn options() -> EndpointOptions {
    EndpointOptions {
        streams: 2,
        kept: 1,
        capacity: 4,
        ..EndpointOptions::default()
    }
}

#[test]
fn a_stream_between_any_two_nodes() {
    on_each(3, |nodes| {
        let owner = nodes[0].client();
        let before = nodes[0].blocks();
        let endpoint = Endpoint::create(&owner, &options()).unwrap();
        let on = |n: usize| {
            let member = nodes[n].client();
            Endpoint::attach(&member, &endpoint.descriptor(), false).unwrap()
        };
        for (from, to) in [(0, 1), (1, 0), (1, 2), (1, 1)] {
            let (sending, receiving) = (on(from), on(to));
            assert!(matches!(receiving.accept(Deadline::Now), Err(Error::Empty)));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut sender = sending.open_send(watched()).unwrap();
                    for n in 0..40_u64 {
                        let length = if n % 5 == 0 { 100_000 } else { 10 };
                        sender.send(&pattern(length, n), n, watched()).unwrap();
                    }
                    sender.close(watched()).unwrap();
                });
                let mut receiver = receiving.accept(watched()).unwrap();
                for n in 0..40_u64 {
                    assert!(receiver.poll(watched()).unwrap());
                    let chunk = receiver.receive(watched()).unwrap();
                    let length = if n % 5 == 0 { 100_000 } else { 10 };
                    assert_eq!(chunk.hint(), n, "from {from} to {to}");
                    assert!(chunk.into_vec() == pattern(length, n));
                }
                let end = receiver.receive(watched()).unwrap_err();
                assert_eq!(end, Error::EndOfStream(endpoint.id()));
            });
        }
        drop(endpoint);
        until("everything is given back", || nodes[0].blocks() == before);
    });
}

/// Conversations at one endpoint do not wait for each other.
#[test]
fn a_silent_conversation_holds_nobody_up() {
    on_each(2, |nodes| {
        let owner = nodes[0].client();
        let endpoint = Endpoint::create(&owner, &options()).unwrap();
        let far = Endpoint::attach(&nodes[1].client(), &endpoint.descriptor(), false).unwrap();
        let mut silent = endpoint.open_send(watched()).unwrap();
        let mut lively = endpoint.open_send(watched()).unwrap();
        assert!(matches!(far.open_send(Deadline::Now), Err(Error::Full)));
        let mut first = far.accept(watched()).unwrap();
        let mut second = far.accept(watched()).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(move || first.receive(watched()).unwrap().hint());
            until("the receive is parked", || nodes[0].stats().parked == 1);
            for n in 0..10 {
                lively.send(b"", n, watched()).unwrap();
                assert_eq!(second.receive(watched()).unwrap().hint(), n);
            }
            silent.send(b"", 99, watched()).unwrap();
            assert_eq!(waiter.join().unwrap(), 99);
        });
    });
}

#[test]
fn a_dead_end_on_another_node_is_told_of() {
    on_each(2, |nodes| {
        let owner = nodes[0].client();
        let endpoint = Endpoint::create(&owner, &options()).unwrap();
        let descriptor = endpoint.descriptor();
        // The sender's process dies.
        let theirs = nodes[1].client();
        let far = Endpoint::attach(&theirs, &descriptor, false).unwrap();
        let mut sender = far.open_send(watched()).unwrap();
        sender.send(b"before", 1, watched()).unwrap();
        let mut receiver = endpoint.accept(watched()).unwrap();
        assert_eq!(receiver.receive(watched()).unwrap().hint(), 1);
        nodes[1].dies(theirs.slot());
        let end = receiver.receive(watched()).unwrap_err();
        assert_eq!(end, Error::PeerDied(endpoint.id()));
        let _ = std::mem::ManuallyDrop::new((sender, far));
        // The receiver's process dies.
        let theirs = nodes[1].client();
        let far = Endpoint::attach(&theirs, &descriptor, false).unwrap();
        let mut sender = endpoint.open_send(watched()).unwrap();
        let receiver = far.accept(watched()).unwrap();
        nodes[1].dies(theirs.slot());
        let refused = loop {
            if let Err(error) = sender.send(b"", 0, watched()) {
                break error;
            }
        };
        assert_eq!(refused, Error::PeerDied(endpoint.id()));
        let _ = std::mem::ManuallyDrop::new((receiver, far));
        drop(sender);
        // Both rows can be used again.
        drop((
            endpoint.open_send(Deadline::Now).unwrap(),
            endpoint.open_send(Deadline::Now).unwrap(),
        ));
    });
}

#[test]
fn a_buffered_conversation_crosses_as_one_message() {
    on_each(2, |nodes| {
        let owner = nodes[0].client();
        let options = EndpointOptions {
            buffered: true,
            ..options()
        };
        let endpoint = Endpoint::create(&owner, &options).unwrap();
        let far = Endpoint::attach(&nodes[1].client(), &endpoint.descriptor(), false).unwrap();
        assert!(far.is_buffered());
        for (from, to) in [(&far, &endpoint), (&endpoint, &far)] {
            let mut sender = from.open_send(watched()).unwrap();
            sender.send(b"one ", 3, watched()).unwrap();
            sender.send(b"message", 4, watched()).unwrap();
            sender.close(watched()).unwrap();
            let mut receiver = to.accept(watched()).unwrap();
            let chunk = receiver.receive(watched()).unwrap();
            assert_eq!(
                (chunk.hint(), chunk.into_vec()),
                (3, b"one message".to_vec())
            );
            let end = receiver.receive(watched()).unwrap_err();
            assert_eq!(end, Error::EndOfStream(endpoint.id()));
        }
    });
}

/// A receiver of another node that closes first is told to the sender, and the other way round.
#[test]
fn ends_that_close_first() {
    on_each(2, |nodes| {
        let owner = nodes[0].client();
        let endpoint = Endpoint::create(&owner, &options()).unwrap();
        let far = Endpoint::attach(&nodes[1].client(), &endpoint.descriptor(), false).unwrap();
        let mut sender = far.open_send(watched()).unwrap();
        drop(endpoint.accept(watched()).unwrap());
        let refused = sender.send(b"", 0, watched()).unwrap_err();
        assert_eq!(refused, Error::PeerClosed(endpoint.id()));
        drop(sender);
        let sender = far.open_send(watched()).unwrap();
        let mut receiver = endpoint.accept(watched()).unwrap();
        sender.abort().unwrap();
        let end = receiver.receive(watched()).unwrap_err();
        assert_eq!(end, Error::PeerDied(endpoint.id()));
    });
}

/// A pump whose descriptor is silent notices on another node too that its receiver has ended.
#[test]
fn a_silent_descriptor_on_another_node() {
    on_each(2, |nodes| {
        let owner = nodes[0].client();
        let before = nodes[0].blocks();
        let endpoint = Endpoint::create(&owner, &options()).unwrap();
        let theirs = nodes[1].client();
        let far = Endpoint::attach(&theirs, &endpoint.descriptor(), false).unwrap();
        let (fd, pump) = far.open_send(watched()).unwrap().into_fd().unwrap();
        let receiver = endpoint.accept(watched()).unwrap();
        until("the lookout waits", || nodes[0].stats().parked == 1);
        receiver.close().unwrap();
        assert_eq!(pump.join(), Err(Error::PeerClosed(endpoint.id())));
        drop(fd);
        // In good order nobody waits any longer either.
        let (fd, pump) = far.open_send(watched()).unwrap().into_fd().unwrap();
        let mut receiver = endpoint.accept(watched()).unwrap();
        until("the lookout waits", || nodes[0].stats().parked == 1);
        drop(fd);
        assert_eq!(pump.join(), Ok(0));
        until("nobody waits", || nodes[0].stats().parked == 0);
        let end = receiver.receive(watched()).unwrap_err();
        assert_eq!(end, Error::EndOfStream(endpoint.id()));
        drop((receiver, far, endpoint));
        until("everything is given back", || nodes[0].blocks() == before);
    });
}

/// A chunk for which the receiver's node has no memory is not lost, and the next one does not come before it.
#[test]
fn a_chunk_waits_for_memory_at_its_receiver() {
    on_each(2, |nodes| {
        let owner = nodes[0].client();
        let endpoint = Endpoint::create(&owner, &options()).unwrap();
        let theirs = nodes[1].client();
        let far = Endpoint::attach(&theirs, &endpoint.descriptor(), false).unwrap();
        let mut sender = endpoint.open_send(watched()).unwrap();
        let mut receiver = far.accept(watched()).unwrap();
        for (n, length) in (0..).zip([100_000, 10, 70_000]) {
            sender.send(&pattern(length, n), n, watched()).unwrap();
        }
        sender.close(watched()).unwrap();
        let before = nodes[1].blocks();
        let mut all = Vec::new();
        for length in [1 << 20, 64 << 10, 1_000] {
            while let Ok(block) = theirs.alloc(length) {
                all.push(block.offset);
            }
        }
        for _ in 0..2 {
            let error = receiver.receive(watched()).unwrap_err();
            assert!(error.to_string().contains("used up"), "{error}");
            assert!(receiver.poll(watched()).unwrap(), "there is a chunk");
        }
        for block in all {
            theirs.free(block).unwrap();
        }
        for (n, length) in (0..).zip([100_000, 10, 70_000]) {
            let chunk = receiver.receive(watched()).unwrap();
            assert_eq!(chunk.hint(), n);
            assert!(chunk.into_vec() == pattern(length, n));
        }
        let end = receiver.receive(watched()).unwrap_err();
        assert_eq!(end, Error::EndOfStream(endpoint.id()));
        assert_eq!(nodes[1].blocks(), before);
        assert_eq!(nodes[1].stats().messages_lost, 0);
    });
}

/// However often a receiver is interrupted while chunks are handed to it, each comes once, in its order, and before the end.
#[test]
fn an_interrupted_receiver_gets_every_chunk() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all zeros is a valid sigaction: no flags (the wait is not restarted), an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: the action is initialised, and the handler does nothing.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    on_each(2, |nodes| {
        let owner = nodes[0].client();
        let endpoint = Endpoint::create(&owner, &options()).unwrap();
        let theirs = nodes[1].client();
        let far = Endpoint::attach(&theirs, &endpoint.descriptor(), false).unwrap();
        let before = nodes[1].blocks();
        for _ in 0..20 {
            let mut sender = endpoint.open_send(watched()).unwrap();
            let mut receiver = far.accept(watched()).unwrap();
            let done = AtomicBool::new(false);
            // SAFETY: it has no preconditions.
            let here = unsafe { libc::pthread_self() };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for n in 0..10_u64 {
                        let length = if n % 2 == 1 { 1 << 20 } else { 2_000 };
                        sender.send(&pattern(length, n), n, watched()).unwrap();
                    }
                    sender.close(watched()).unwrap();
                });
                scope.spawn(|| {
                    while !done.load(Ordering::Acquire) {
                        // SAFETY: the thread waits for this one before it ends.
                        unsafe { libc::pthread_kill(here, libc::SIGUSR1) };
                        std::thread::yield_now();
                    }
                });
                let mut hints = Vec::new();
                let end = loop {
                    match receiver.receive(watched()) {
                        Ok(chunk) => hints.push(chunk.hint()),
                        Err(Error::Interrupted) => {}
                        Err(error) => break error,
                    }
                };
                done.store(true, Ordering::Release);
                assert_eq!(end, Error::EndOfStream(endpoint.id()));
                assert_eq!(hints, Vec::from_iter(0..10));
            });
            receiver.close().unwrap();
        }
        until("everything is given back", || nodes[1].blocks() == before);
    });
}
