//! Replies of other nodes that were there when their process died, and that no thread of it took.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind};
use dragon_shmem::Member;
use dragon_shmem::thread::{Reply, ReplyPayload, Untaken};

use crate::fixture::Node;

fn elsewhere(kind: ObjectKind) -> ObjectId {
    ObjectId {
        node: NodeIndex::new(3).unwrap(),
        kind,
        index: 5,
        generation: 8,
    }
}

/// A shared block of somebody else, as the agent makes it for a reply.
fn block(daemon: &Arc<Member>) -> ReplyPayload {
    let block = daemon.alloc(1_000).unwrap();
    daemon.share(block.offset).unwrap();
    ReplyPayload::Block {
        offset: block.offset,
        length: 1_000,
    }
}

/// Lets a thread of `dead` ask, and the agent answer.
fn answered(dead: &Arc<Member>, op: Op, object: ObjectId, reply: &Reply) {
    // The thread of a dead process gives nothing back.
    let thread = ManuallyDrop::new(dead.thread().unwrap());
    let ticket = thread.reply.begin(op, object);
    assert!(thread.reply.complete(ticket, reply).unwrap());
}

fn reply(code: Code, payload: ReplyPayload) -> Reply {
    Reply {
        status: code.to_i32(),
        arg0: 11,
        arg1: 2,
        payload,
        trace: None,
    }
}

/// What was received, popped or acquired goes back, with all that is known of it; whatever else came is freed.
#[test]
fn what_was_taken_from_others_goes_back_and_the_rest_is_freed() {
    use ObjectKind::{Channel, PriorityQueue, Semaphore, Stream};
    let cases = [
        (Op::Receive, Channel, Code::Ok, true),
        (Op::Pop, PriorityQueue, Code::Ok, true),
        (Op::SemaphoreAcquire, Semaphore, Code::Ok, true),
        // A conversation ends with its receiver.
        (Op::Receive, Stream, Code::Ok, false),
        (Op::Receive, Channel, Code::Destroyed, false),
        (Op::Pop, PriorityQueue, Code::Timeout, false),
        (Op::SemaphoreAcquire, Semaphore, Code::Timeout, false),
        // Copies.
        (Op::Peek, PriorityQueue, Code::Ok, false),
        (Op::Attributes, Channel, Code::Ok, false),
    ];
    for (op, kind, code, goes_back) in cases {
        for large in [false, true] {
            let node = Node::new();
            let dead = node.member();
            let before = node.used();
            let payload = match large {
                true => block(&node.daemon),
                false => ReplyPayload::Inline(vec![7; 40]),
            };
            let object = elsewhere(kind);
            answered(&dead, op, object, &reply(code, payload.clone()));
            let recovered = crate::recover(&node.daemon, dead.slot()).unwrap();
            let what = format!("{op:?} {kind:?} {code:?} {large}");
            if goes_back {
                let untaken = Untaken {
                    asked: Some((op, object)),
                    reply: reply(code, payload.clone()),
                };
                assert_eq!(recovered.untaken, [untaken], "{what}");
                if let ReplyPayload::Block { offset, .. } = payload {
                    // It is the caller's, and still there.
                    node.daemon.free(offset).unwrap();
                }
                assert_eq!(recovered.blocks, 0, "{what}");
            } else {
                assert_eq!(recovered.untaken, [], "{what}");
                assert_eq!(recovered.blocks, u32::from(large), "{what}");
            }
            assert_eq!(node.used(), before, "{what}");
        }
    }
}

/// A thread that takes a reply writes its block into the held table before it gives the cell back. In between the block stands
/// in both, and is one.
#[test]
fn a_block_that_was_being_taken_is_one_block() {
    let cases = [
        (Op::Pop, ObjectKind::PriorityQueue, 1),
        (Op::Peek, ObjectKind::Channel, 0),
    ];
    for (op, kind, untaken) in cases {
        let node = Node::new();
        let dead = node.member();
        let before = node.used();
        let payload = block(&node.daemon);
        let ReplyPayload::Block { offset, .. } = payload else {
            panic!("it is one");
        };
        answered(&dead, op, elsewhere(kind), &reply(Code::Ok, payload));
        dead.hold_block(offset).unwrap();
        let recovered = crate::recover(&node.daemon, dead.slot()).unwrap();
        assert_eq!(recovered.untaken.len(), untaken);
        assert_eq!(recovered.blocks as usize, 1 - untaken);
        let freed = node.daemon.free(offset);
        assert_eq!(freed.is_ok(), untaken == 1, "freed once");
        assert_eq!(node.used(), before);
    }
}

/// All threads of a process are looked at, and a cell that is taken, asked anew or given up brings nothing.
#[test]
fn each_thread_has_a_reply_of_its_own() {
    let node = Node::new();
    let dead = node.member();
    let queue = elsewhere(ObjectKind::PriorityQueue);
    let message = |n| Reply {
        arg0: n,
        ..reply(Code::Ok, ReplyPayload::Inline(vec![1]))
    };
    for n in 0..3 {
        answered(&dead, Op::Pop, queue, &message(n));
    }
    let taken = ManuallyDrop::new(dead.thread().unwrap());
    let ticket = taken.reply.begin(Op::Pop, queue);
    assert!(taken.reply.complete(ticket, &message(9)).unwrap());
    let got = taken.reply.wait(crate::Deadline::Never, 0, |_| {});
    assert_eq!(got.unwrap().arg0, 9);
    let asks = ManuallyDrop::new(dead.thread().unwrap());
    let late = asks.reply.begin(Op::Pop, queue);
    let recovered = crate::recover(&node.daemon, dead.slot()).unwrap();
    let hints: Vec<u64> = recovered.untaken.iter().map(|u| u.reply.arg0).collect();
    assert_eq!(hints, [0, 1, 2]);
    // The agent is told that nobody waits any more, and keeps the message.
    assert!(!asks.reply.complete(late, &message(4)).unwrap());
}
