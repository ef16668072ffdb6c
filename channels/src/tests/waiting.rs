//! How handles wait.

use std::sync::Arc;
use std::thread;

use dragon_shmem::clock;
use dragon_shmem::sync::Ordering;

use crate::fixture::Node;
use crate::{ChannelOptions, Deadline, Error, Event, Lock, WaitMode, create_channel};

const MODES: [WaitMode; 3] = [WaitMode::Adaptive, WaitMode::Spin, WaitMode::Sleep];

fn small() -> ChannelOptions {
    ChannelOptions {
        capacity: 1,
        block: 8,
        ..ChannelOptions::default()
    }
}

#[test]
fn each_mode_gets_its_message_its_time_out_and_its_end() {
    let node = Node::new();
    let member = node.member();
    for mode in MODES {
        let channel = Arc::new(create_channel(&member, &small()).unwrap());
        channel.set_wait_mode(mode);
        assert_eq!(channel.wait_mode(), mode);
        let end = clock::now() + 3_000_000;
        assert_eq!(
            channel.receive(Deadline::At(end)).unwrap_err(),
            Error::Timeout
        );
        assert!(clock::now() >= end, "{mode:?}: not before the deadline");
        let theirs = Arc::clone(&channel);
        let (tell, received) = std::sync::mpsc::channel();
        let receiver = thread::spawn(move || {
            tell.send(theirs.receive(Deadline::Never).unwrap().hint())
                .unwrap();
            theirs.receive(Deadline::Never).unwrap_err()
        });
        channel.send(b"x", 7, Deadline::Never).unwrap();
        assert_eq!(received.recv().unwrap(), 7);
        channel.destroy().unwrap();
        assert_eq!(receiver.join().unwrap(), Error::Destroyed(channel.id()));
    }
    assert_eq!(node.control.words().spinners.load(Ordering::Relaxed), 0);
}

#[test]
fn other_objects_wait_as_they_are_told() {
    let node = Node::new();
    let member = node.member();
    for mode in MODES {
        let event = Event::create(&member, 0).unwrap();
        let lock = Lock::create(&member, 0).unwrap();
        event.set_wait_mode(mode);
        lock.set_wait_mode(mode);
        let soon = || Deadline::after(1_000_000);
        assert_eq!(event.wait(soon()).unwrap_err(), Error::Timeout);
        lock.acquire(Deadline::Now).unwrap();
        assert_eq!(lock.acquire(soon()).unwrap_err(), Error::Timeout);
        event.set().unwrap();
        event.wait(Deadline::Never).unwrap();
        lock.release(false).unwrap();
    }
}

#[test]
fn with_as_many_spinners_as_cpus_nobody_else_spins() {
    let node = Node::new();
    let member = node.member();
    let words = node.control.words();
    let record = member.thread().unwrap();
    let spin = crate::wait::Spin::default();
    let mut looks = 0;
    words.spinners.store(2, Ordering::Relaxed);
    let found = spin.until(words, &record.intent, Deadline::Never, || {
        looks += 1;
        false
    });
    assert_eq!((found, looks), (false, 0));
    words.spinners.store(0, Ordering::Relaxed);
    assert!(!spin.until(words, &record.intent, Deadline::Never, || {
        looks += 1;
        false
    }));
    assert!(looks > 0);
    spin.set_mode(WaitMode::Sleep);
    let looked = looks;
    assert!(!spin.until(words, &record.intent, Deadline::Never, || {
        looks += 1;
        false
    }));
    assert_eq!(looks, looked);
}
