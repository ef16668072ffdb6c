//! Queues with priorities, from other nodes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use std::mem::ManuallyDrop;

use dragon_channels::{Deadline, Error, PriorityQueue, PriorityQueueOptions};
use dragon_protocol::Code;
use dragon_protocol::op::Op;
use dragon_shmem::thread::{Reply, ReplyPayload};
use rig::{on_each, pattern, soon, until, watched};

fn options(levels: u32, capacity: u32) -> PriorityQueueOptions {
    PriorityQueueOptions {
        levels,
        capacity,
        ..PriorityQueueOptions::default()
    }
}

#[test]
fn the_most_urgent_message_of_another_node_comes_first() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let queue = PriorityQueue::create(&far, &options(3, 2)).unwrap();
        let remote = PriorityQueue::attach(&near, &queue.descriptor(), false).unwrap();
        let blocks = nodes[1].blocks();
        assert_eq!(remote.receive(Deadline::Now).unwrap_err(), Error::Empty);
        assert_eq!(remote.peek(Deadline::Now).unwrap_err(), Error::Empty);
        assert_eq!(remote.poll(Deadline::Now), Err(Error::Empty));
        assert_eq!(remote.receive(soon()).unwrap_err(), Error::Timeout);
        for (level, size) in [(2, 10), (1, 100_000), (0, 500)] {
            let payload = pattern(size, size as u64);
            remote
                .send(level, &payload, size as u64, watched())
                .unwrap();
        }
        let block = near.alloc(50_000).unwrap();
        near.pool()
            .write(block.offset, 0, &pattern(50_000, 50_000))
            .unwrap();
        remote.send_block(1, block, 50_000, watched()).unwrap();
        assert_eq!(remote.send(1, b"", 0, Deadline::Now), Err(Error::Full));
        assert_eq!(remote.send(1, &[0; 70_000], 0, soon()), Err(Error::Timeout));
        let wrong = remote.send(3, b"", 0, Deadline::Now).unwrap_err();
        assert_eq!(wrong, Error::Remote(Code::InvalidArgument, queue.id()));
        assert_eq!(remote.poll(watched()).unwrap(), 4);
        assert_eq!(remote.state().unwrap(), queue.state().unwrap());
        assert_eq!(remote.state().unwrap().messages, [1, 2, 1]);
        let (level, message) = remote.peek(watched()).unwrap();
        assert_eq!((level, message.hint()), (0, 500));
        for (level, size) in [(0, 500), (1, 100_000), (1, 50_000), (2, 10)] {
            let (found, message) = remote.receive(watched()).unwrap();
            assert_eq!((found, message.hint()), (level, size as u64));
            assert!(message.into_vec() == pattern(size, size as u64));
        }
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| remote.receive(watched()).unwrap().0);
            until("it is parked", || nodes[1].stats().parked == 1);
            queue.send(2, b"x", 0, watched()).unwrap();
            assert_eq!(receiver.join().unwrap(), 2);
        });
        until("all is freed", || nodes[1].blocks() == blocks);
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| remote.receive(watched()).map(drop));
            until("it is parked", || nodes[1].stats().parked == 1);
            queue.destroy().unwrap();
            let ended = receiver.join().unwrap();
            assert_eq!(ended, Err(Error::Destroyed(queue.id())));
        });
    });
}

/// Senders that wait for room in one level hold up nobody who sends to another.
#[test]
fn each_level_has_its_own_queue_of_senders() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let queue = PriorityQueue::create(&far, &options(2, 1)).unwrap();
        let remote = PriorityQueue::attach(&near, &queue.descriptor(), false).unwrap();
        for level in [0, 1] {
            queue.send(level, b"", u64::from(level), watched()).unwrap();
        }
        std::thread::scope(|scope| {
            let patient = scope.spawn(|| remote.send(1, b"", 11, watched()));
            until("it is parked", || nodes[1].stats().parked == 1);
            let urgent = scope.spawn(|| remote.send(0, b"", 10, watched()));
            until("both are parked", || nodes[1].stats().parked == 2);
            assert_eq!(queue.receive(watched()).unwrap().1.hint(), 0);
            urgent.join().unwrap().unwrap();
            assert_eq!(queue.receive(watched()).unwrap().1.hint(), 10);
            assert_eq!(queue.receive(watched()).unwrap().1.hint(), 1);
            patient.join().unwrap().unwrap();
            assert_eq!(queue.receive(watched()).unwrap().1.hint(), 11);
        });
    });
}

#[test]
fn a_message_for_a_dead_process_goes_back_to_its_level() {
    on_each(2, |nodes| {
        for size in [10, 1_000, 300_000] {
            let (near, far) = (nodes[0].client(), nodes[1].client());
            let queue = PriorityQueue::create(&far, &options(3, 2)).unwrap();
            let remote = PriorityQueue::attach(&near, &queue.descriptor(), false).unwrap();
            let slot = near.slot();
            // The thread never gets an answer, as the thread of a dead process: it is left behind.
            std::thread::spawn(move || remote.receive(Deadline::Never).map(drop));
            until("the receive is parked", || nodes[1].stats().parked == 1);
            // Dead, and the agents have not heard of it: the message crosses and finds nobody.
            nodes[0].control.release_slot(slot).unwrap();
            let payload = pattern(size, 5);
            let returned = nodes[1].stats().returned;
            queue.send(1, &payload, 99, watched()).unwrap();
            until("it came back", || nodes[1].stats().returned == returned + 1);
            let (level, message) = queue.receive(watched()).unwrap();
            assert_eq!((level, message.hint()), (1, 99));
            assert!(message.into_vec() == payload);
            assert_eq!(nodes[0].stats().messages_lost, 0);
        }
    });
}

/// The agent had answered, and the process died before it looked.
#[test]
fn a_message_that_a_dead_process_did_not_look_at_goes_back_to_its_level() {
    on_each(2, |nodes| {
        for size in [10, 1_000, 300_000] {
            let (near, far) = (nodes[0].client(), nodes[1].client());
            let queue = PriorityQueue::create(&far, &options(3, 2)).unwrap();
            let (here, there) = (nodes[0].blocks(), nodes[1].blocks());
            let payload = pattern(size, 5);
            let block = match size {
                10 => ReplyPayload::Inline(payload.clone()),
                _ => {
                    // As the agent makes it.
                    let block = nodes[0].daemon.alloc(size as u64).unwrap();
                    let pool = nodes[0].daemon.pool();
                    pool.write(block.offset, 0, &payload).unwrap();
                    nodes[0].daemon.share(block.offset).unwrap();
                    ReplyPayload::Block {
                        offset: block.offset,
                        length: size as u64,
                    }
                }
            };
            // The thread of a dead process gives nothing back.
            let thread = ManuallyDrop::new(near.thread().unwrap());
            let ticket = thread.reply.begin(Op::Pop, queue.id());
            let reply = Reply {
                status: Code::Ok.to_i32(),
                arg0: 99,
                arg1: 1,
                payload: block,
                trace: None,
            };
            assert!(thread.reply.complete(ticket, &reply).unwrap());
            queue.send(1, b"behind it", 100, watched()).unwrap();
            queue.send(2, b"less urgent", 101, watched()).unwrap();
            let returned = nodes[0].stats().returned;
            nodes[0].dies(near.slot());
            until("it is sent back", || {
                nodes[0].stats().returned == returned + 1
            });
            until("it came back", || {
                queue.state().unwrap().messages == [0, 2, 1]
            });
            let mut found = Vec::new();
            while let Ok((level, message)) = queue.receive(Deadline::Now) {
                let hint = message.hint();
                let whole = hint != 99 || message.into_vec() == payload;
                found.push((level, hint, whole));
            }
            // Behind what came meanwhile, but in its level.
            assert_eq!(found, [(1, 100, true), (1, 99, true), (2, 101, true)]);
            until("nothing is left", || {
                (nodes[0].blocks(), nodes[1].blocks()) == (here, there)
            });
        }
    });
}

#[test]
fn a_dead_process_of_another_node_takes_nothing_along_that_it_waited_for() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let queue = PriorityQueue::create(&far, &options(2, 1)).unwrap();
        let remote = PriorityQueue::attach(&near, &queue.descriptor(), false).unwrap();
        // The threads never get an answer, as those of a dead process: they are left behind.
        std::thread::spawn(move || remote.receive(Deadline::Never).map(drop));
        until("it is parked", || nodes[1].stats().parked == 1);
        nodes[0].dies(near.slot());
        until("nothing is parked", || nodes[1].stats().parked == 0);
        until("the proxy is recovered", || nodes[1].stats().proxies == 0);
        queue.send(1, b"kept", 1, watched()).unwrap();
        assert_eq!(queue.receive(watched()).unwrap().1.into_vec(), b"kept");
    });
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let queue = PriorityQueue::create(&far, &options(2, 1)).unwrap();
        let remote = PriorityQueue::attach(&near, &queue.descriptor(), false).unwrap();
        let blocks = nodes[1].blocks();
        queue.send(1, b"first", 1, watched()).unwrap();
        std::thread::spawn(move || remote.send(1, &[3; 10_000], 0, Deadline::Never));
        until("it is parked", || nodes[1].stats().parked == 1);
        nodes[0].dies(near.slot());
        until("nothing is parked", || nodes[1].stats().parked == 0);
        until("all is freed", || nodes[1].blocks() == blocks);
        assert_eq!(queue.receive(watched()).unwrap().1.into_vec(), b"first");
        assert_eq!(queue.receive(Deadline::Now).unwrap_err(), Error::Empty);
    });
}
