//! Conversations that both ends give up at once, and ends that spin until the other has given up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use super::streams::{endpoint, is_whole, pair};
use crate::fixture::{Filled, Node};
use crate::{Deadline, Endpoint, Error, WaitMode, recover};

/// Rounds, each of which takes some microseconds.
const ROUNDS: usize = 20_000;

/// Where two threads meet. Nobody is woken, so that they go on from there at the same moment.
#[derive(Default)]
struct Meeting(AtomicUsize);

impl Meeting {
    fn wait(&self) {
        let arrived = self.0.fetch_add(1, Ordering::AcqRel);
        while self.0.load(Ordering::Acquire) < (arrived | 1) + 1 {
            thread::yield_now();
        }
    }
}

/// Who ends first wakes the other, who may have given the memory of the conversation back by then.
#[test]
fn ends_that_close_at_once_leave_the_memory_of_others_alone() {
    let node = Node::new();
    let member = node.member();
    let before = node.used();
    let endpoint = endpoint(&node, 3, 0);
    let without = node.used();
    let ends = pair(&endpoint);
    let channel = node.used() - without;
    drop(ends);
    let meeting = Arc::new(Meeting::default());
    let (give, given) = mpsc::sync_channel(1);
    let other = {
        let (meeting, member) = (Arc::clone(&meeting), Arc::clone(&member));
        thread::spawn(move || {
            let mut changed = 0;
            for receiver in given {
                let receiver: crate::StreamReceiver = receiver;
                meeting.wait();
                receiver.close().unwrap();
                let filled = Filled::new(&member, channel);
                meeting.wait();
                changed += u32::from(!filled.is_unchanged());
            }
            changed
        })
    };
    let mut changed = 0;
    for round in 0..ROUNDS {
        let (mut sender, receiver) = pair(&endpoint);
        give.send(receiver).unwrap();
        meeting.wait();
        // The moments of the two ends meet in every way.
        for _ in 0..round % 64 * 8 {
            std::hint::spin_loop();
        }
        sender.close(Deadline::Now).unwrap();
        let filled = Filled::new(&member, channel);
        meeting.wait();
        changed += u32::from(!filled.is_unchanged());
    }
    drop(give);
    assert_eq!(changed + other.join().unwrap(), 0, "changed blocks");
    is_whole(&node, endpoint, before);
}

/// How the other end is given up.
#[derive(Clone, Copy, Debug)]
enum Way {
    Closes,
    Breaks,
    Dies,
}

#[test]
fn a_receiver_that_spins_is_told_of_the_senders_end() {
    let node = Node::new();
    let before = node.used();
    let endpoint = endpoint(&node, 3, 1);
    endpoint.set_wait_mode(WaitMode::Spin);
    for poll in [false, true] {
        for way in [Way::Closes, Way::Breaks, Way::Dies] {
            let dying = node.member();
            let theirs = Endpoint::attach(&dying, &endpoint.descriptor(), false).unwrap();
            let mut sender = theirs.open_send(Deadline::Now).unwrap();
            let mut receiver = endpoint.accept(Deadline::Now).unwrap();
            sender.send(b"one", 0, Deadline::Now).unwrap();
            let (tell, got) = mpsc::channel();
            let waiting = thread::spawn(move || {
                tell.send(receiver.receive(Deadline::Never).unwrap().len())
                    .unwrap();
                if poll {
                    assert_eq!(receiver.poll(Deadline::Never), Ok(false));
                }
                receiver.receive(Deadline::Never).unwrap_err()
            });
            assert_eq!(got.recv(), Ok(3));
            // It spins by now, or will, which makes no difference.
            crate::fixture::pause(1_000_000);
            let id = endpoint.id();
            let expected = match way {
                Way::Closes => {
                    sender.close(Deadline::Now).unwrap();
                    Error::EndOfStream(id)
                }
                Way::Breaks => {
                    sender.abort().unwrap();
                    Error::PeerDied(id)
                }
                Way::Dies => {
                    let _ = std::mem::ManuallyDrop::new((theirs, sender));
                    recover(&node.daemon, dying.slot()).unwrap();
                    Error::PeerDied(id)
                }
            };
            assert_eq!(waiting.join().unwrap(), expected, "{way:?}");
        }
    }
    is_whole(&node, endpoint, before);
}

#[test]
fn a_sender_that_spins_is_told_of_the_receivers_end() {
    let node = Node::new();
    let before = node.used();
    let endpoint = endpoint(&node, 3, 1);
    endpoint.set_wait_mode(WaitMode::Spin);
    for way in [Way::Closes, Way::Dies] {
        let dying = node.member();
        let theirs = Endpoint::attach(&dying, &endpoint.descriptor(), false).unwrap();
        let mut sender = endpoint.open_send(Deadline::Now).unwrap();
        let receiver = theirs.accept(Deadline::Now).unwrap();
        let (tell, full) = mpsc::channel();
        let waiting = thread::spawn(move || {
            while sender.send(b"x", 0, Deadline::Now).is_ok() {}
            tell.send(()).unwrap();
            sender.send(b"x", 0, Deadline::Never).unwrap_err()
        });
        full.recv().unwrap();
        crate::fixture::pause(1_000_000);
        let id = endpoint.id();
        let expected = match way {
            Way::Closes | Way::Breaks => {
                receiver.close().unwrap();
                Error::PeerClosed(id)
            }
            Way::Dies => {
                let _ = std::mem::ManuallyDrop::new((theirs, receiver));
                recover(&node.daemon, dying.slot()).unwrap();
                Error::PeerDied(id)
            }
        };
        assert_eq!(waiting.join().unwrap(), expected, "{way:?}");
    }
    is_whole(&node, endpoint, before);
}
