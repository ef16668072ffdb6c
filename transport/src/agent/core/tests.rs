use std::sync::Arc;

use dragon_channels::{ChannelOptions, Event, create_channel};
use dragon_protocol::op::Op;
use dragon_protocol::wire::{self, FrameHeader, FrameKind};
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind, RuntimeId};
use dragon_shmem::thread::ReplyPayload;
use dragon_shmem::{Control, Deadline, Error, Hooks, Member, Pool};

use super::super::late::{Ask, Asked, Chunk, Receiver};
use super::super::owner::{Job, Origin};
use super::super::requests::Caller;
use super::{Core, header};
use crate::body::{Body, PoolBlock};
use crate::fabric::mem::MemHub;

const RUNTIME: RuntimeId = RuntimeId(0xd2a6_0000_0000_0002);

struct NoHooks(Pool);

impl Hooks for NoHooks {
    fn commit(&self, _: u32, bytes: u64) -> Result<(), Error> {
        self.0.commit(bytes)
    }

    fn notify(&self, _: ObjectId) {}
}

/// The core of a node that reaches no other, and a process of that node.
fn alone() -> (Core, Arc<Member>) {
    let node = NodeIndex::new(0).unwrap();
    let control = Control::create(RUNTIME, node, 2).unwrap();
    let pool = Pool::create(RUNTIME, node, 0, 16 << 20).unwrap();
    let member = |slot| {
        let hooks = Box::new(NoHooks(pool.clone()));
        Member::new(control.clone(), pool.clone(), slot, hooks).unwrap()
    };
    let daemon = member(control.claim_daemon_slot().unwrap());
    let client = member(control.claim_slot(std::process::id()).unwrap());
    let gateway = create_channel(&daemon, &ChannelOptions::default()).unwrap();
    let fabric = Arc::new(MemHub::new().node(node));
    (Core::new(daemon, node, fabric, gateway), client)
}

fn endpoint() -> ObjectId {
    ObjectId {
        node: NodeIndex::new(1).unwrap(),
        kind: ObjectKind::Stream,
        index: 1,
        generation: 1,
    }
}

/// A receiver gives up while a chunk is on its way to it, and asks again before that comes back: it gets the chunk, and the
/// owner is not asked for the next one.
#[test]
fn a_request_gets_the_chunk_that_an_earlier_one_did_not_take() {
    let (core, client) = alone();
    let slot = client.slot();
    let it = Receiver {
        slot,
        endpoint: endpoint(),
        conversation: 9,
    };
    let records = core.member.control().threads(slot.index).unwrap();
    let cell = &records[0].reply;
    let asks = || Caller::Thread {
        slot,
        thread: 0,
        ticket: cell.begin(Op::Receive, it.endpoint),
    };
    let request = FrameHeader {
        slot: slot.index.into(),
        slot_generation: slot.generation.into(),
        deadline: wire::NEVER.into(),
        arg1: it.conversation.into(),
        ..header(FrameKind::Request, Op::Receive, it.endpoint)
    };
    let body = PoolBlock::allocate(&core.member, 5_000).unwrap();
    let chunk = Chunk {
        argument: 7,
        body: Body::Block(body),
    };
    assert!(core.requests().keep_late(it, chunk, false).is_none());
    let first = Ask {
        caller: asks(),
        receiver: it,
        op: Op::Receive,
        request: Some(request),
    };
    let found = core.requests().late.ask(first);
    let Asked::Chunk(chunk) = found else {
        panic!("{found:?}");
    };
    assert!(cell.abandon());
    core.request(asks(), request, Op::Receive, Body::empty());
    for ask in core.give_chunk(&first, chunk) {
        core.give_late(ask);
    }
    let reply = cell.wait(Deadline::Now, 0, |_| {}).unwrap();
    assert_eq!((reply.status, reply.arg0), (Code::Ok.to_i32(), 7));
    let ReplyPayload::Block { offset, length } = reply.payload else {
        panic!("{reply:?}");
    };
    assert_eq!(length, 5_000);
    client.free(offset).unwrap();
    assert!(!core.requests().late.has(&it));
}

/// The block of a chunk that nobody takes any more is free again.
#[test]
fn a_chunk_for_a_dead_process_is_freed() {
    let (core, client) = alone();
    let it = Receiver {
        slot: client.slot(),
        endpoint: endpoint(),
        conversation: 9,
    };
    let blocks = || core.member.pool().stats().unwrap().blocks;
    let before = blocks();
    let body = PoolBlock::allocate(&core.member, 5_000).unwrap();
    let chunk = Chunk {
        argument: 7,
        body: Body::Block(body),
    };
    core.requests().keep_late(it, chunk, false);
    let ask = Ask {
        caller: Caller::Thread {
            slot: it.slot,
            thread: 0,
            ticket: 1,
        },
        receiver: it,
        op: Op::Receive,
        request: None,
    };
    let found = core.requests().late.ask(ask);
    let Asked::Chunk(chunk) = found else {
        panic!("{found:?}");
    };
    core.requests().slot_gone(it.slot, std::iter::empty());
    assert!(core.give_chunk(&ask, chunk).is_empty());
    assert!(!core.requests().late.has(&it));
    assert_eq!(blocks(), before);
}

/// Who comes to wait is tried, and those who wait already are left alone until something changes.
#[test]
fn many_who_wait_for_an_event_cost_as_much_as_there_are() {
    const WAITERS: u64 = 1000;
    let (core, client) = alone();
    let event = Event::create(&client, 0).unwrap();
    let wait = || Job {
        origin: Origin {
            link: None,
            request: 0,
            node: core.node,
            slot: core.member.slot(),
        },
        op: Op::EventWait,
        object: event.id(),
        arg0: 0,
        arg1: 0,
        trace: None,
        deadline: wire::NEVER,
    };
    core.with_owner(|owner, member, answers| {
        for _ in 0..WAITERS {
            owner.execute(member, wait(), &[], Body::empty(), answers);
        }
        assert_eq!((owner.parked(), answers.len()), (1000, 0));
        // When it comes, and once more when a change would be told.
        assert_eq!(owner.attempts, 2 * WAITERS);
        event.set().unwrap();
        owner.changed(member, event.id(), answers);
        assert_eq!((owner.parked(), answers.len()), (0, 1000));
        assert_eq!(owner.attempts, 3 * WAITERS);
    });
}
