//! Ends of a conversation that spin until the other has given up.

use std::sync::mpsc;
use std::thread;

use super::streams::{endpoint, is_whole};
use crate::fixture::Node;
use crate::{Deadline, Endpoint, Error, WaitMode, recover};

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
