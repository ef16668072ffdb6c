use std::sync::Arc;

use dragon_channels::{
    Barrier, Breakage, ChannelOptions, Condition, ConditionOptions, Event, Lock, Semaphore,
    create_channel,
};
use dragon_protocol::op::Op;
use dragon_protocol::wire::{self, FrameHeader, FrameKind};
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind, RuntimeId};
use dragon_shmem::thread::ReplyPayload;
use dragon_shmem::{Control, Deadline, Error, Hooks, Member, Pool};

use dragon_channels::stream;

use super::super::late::{Ask, Asked, Chunk, Receiver};
use super::super::owner::{Job, Origin};
use super::super::requests::Caller;
use super::super::{gateway, io};
use super::{Core, Payload, header};
use crate::body::{Body, PoolBlock};
use crate::fabric::mem::MemHub;
use crate::fabric::{Fabric, Frame, Handler, Incoming, Link, LinkError, Side};

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
    of(&MemHub::new())
}

/// The core of the first node of a hub, and a process of that node.
fn of(hub: &MemHub) -> (Core, Arc<Member>) {
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
    let fabric = Arc::new(hub.node(node));
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

/// The headers of the frames that came to a node.
struct Came(Vec<FrameHeader>);

impl Handler for Came {
    fn land(&mut self, _: &Arc<dyn Link>, _: &FrameHeader) -> Option<Body> {
        None
    }

    fn frame(&mut self, _: &Arc<dyn Link>, header: &FrameHeader, _: Incoming<'_>) {
        self.0.push(*header);
    }

    fn up(&mut self, _: &Arc<dyn Link>) {}

    fn lost(&mut self, _: &Arc<dyn Link>, _: bool, _: &LinkError, _: Vec<Frame>) {}
}

/// What the owner is asked for then, and with which arguments.
type Undone = Option<(Op, [u64; 2])>;

/// An owner that was silent for too long answers after all, when its caller has been told that it does not.
#[test]
fn what_a_late_reply_brings_is_given_back() {
    late_replies(false);
}

/// The same when the caller's thread has asked for something else since.
#[test]
fn what_a_late_reply_to_an_earlier_request_brings_is_given_back() {
    late_replies(true);
}

fn late_replies(displaced: bool) {
    let hub = MemHub::new();
    let (core, client) = of(&hub);
    let there = NodeIndex::new(1).unwrap();
    let owner = hub.node(there);
    let ok = Code::Ok;
    let (condition, barrier) = (ObjectKind::Condition, ObjectKind::Barrier);
    let rows: [(Op, ObjectKind, Code, [u64; 2], Undone); 15] = [
        (
            Op::LockAcquire,
            ObjectKind::Lock,
            ok,
            [0, 5],
            Some((Op::LockRelease, [0, 5])),
        ),
        (
            Op::LockAcquire,
            ObjectKind::Lock,
            Code::OwnerDied,
            [0, 6],
            Some((Op::LockRelease, [0, 6])),
        ),
        (
            Op::LockAcquire,
            ObjectKind::Lock,
            Code::Timeout,
            [0, 5],
            None,
        ),
        (
            Op::SemaphoreAcquire,
            ObjectKind::Semaphore,
            ok,
            [3, 0],
            Some((Op::SemaphoreRelease, [3, 0])),
        ),
        (
            Op::Attach,
            ObjectKind::Channel,
            ok,
            [0, 0],
            Some((Op::Detach, [0, 0])),
        ),
        (
            Op::StreamOpen,
            ObjectKind::Stream,
            ok,
            [9, 0],
            Some((Op::StreamClose, [stream::UNOPEN, 9])),
        ),
        (
            Op::StreamAccept,
            ObjectKind::Stream,
            ok,
            [9, 0],
            Some((Op::StreamClose, [stream::UNACCEPT, 9])),
        ),
        (
            Op::BlockAllocate,
            ObjectKind::Pool,
            ok,
            [4096, 10],
            Some((Op::BlockFree, [4096, 0])),
        ),
        (Op::EventWait, ObjectKind::Event, ok, [1, 0], None),
        // A seat, that a notification was in it, and that it was woken there.
        (
            Op::ConditionWait,
            condition,
            ok,
            [7, 1],
            Some((Op::ConditionWait, [3, 7])),
        ),
        (
            Op::ConditionWait,
            condition,
            ok,
            [7, 2],
            Some((Op::ConditionWait, [3, 7])),
        ),
        (Op::ConditionWait, condition, ok, [0, 0], None),
        // The turn to act, a place that is kept, and all that is left to know.
        (
            Op::BarrierWait,
            barrier,
            ok,
            [9, 1],
            Some((Op::BarrierWait, [4, 9])),
        ),
        (
            Op::BarrierWait,
            barrier,
            ok,
            [9, 2],
            Some((Op::BarrierWait, [2, 9])),
        ),
        (Op::BarrierWait, barrier, ok, [3, 0], None),
    ];
    for (op, kind, status, [arg0, arg1], expected) in rows {
        let target = ObjectId { kind, ..endpoint() };
        let slot = client.slot();
        let caller = Caller::Thread {
            slot,
            thread: 0,
            ticket: 1,
        };
        let request = FrameHeader {
            slot: slot.index.into(),
            slot_generation: slot.generation.into(),
            deadline: 1.into(),
            ..header(FrameKind::Request, op, target)
        };
        let mut came = Came(Vec::new());
        core.request(caller, request, op, Body::empty());
        owner.progress(&mut came, 0).unwrap();
        let [asked] = came.0[..] else {
            panic!("{:?}", came.0);
        };
        assert_eq!(core.requests().due(u64::MAX - 1).callers, [caller]);
        if displaced {
            let next = Caller::Thread {
                slot,
                thread: 0,
                ticket: 2,
            };
            core.request(next, request, Op::EventWait, Body::empty());
            owner.progress(&mut came, 0).unwrap();
        }
        let reply = FrameHeader {
            kind: FrameKind::Reply as u8,
            status: status.to_i32().into(),
            arg0: arg0.into(),
            arg1: arg1.into(),
            ..asked
        };
        let link = core.fabric.link(there).unwrap();
        came.0.clear();
        core.reply(&*link, &reply, Payload::Small(&[]));
        owner.progress(&mut came, 0).unwrap();
        let undone = came.0.first().map(|undo| {
            assert_eq!(
                (undo.kind, undo.request.get()),
                (FrameKind::Request as u8, 0)
            );
            assert_eq!(undo.slot.get(), slot.index, "{op:?}: as the caller");
            assert_eq!(undo.target, asked.target);
            let op = Op::from_u8(undo.op).unwrap();
            (op, [undo.arg0.get(), undo.arg1.get()])
        });
        assert_eq!(undone, expected, "{op:?}");
        assert_eq!(came.0.len(), usize::from(expected.is_some()), "{op:?}");
        assert_eq!(core.requests().end().len(), usize::from(displaced));
    }
}

/// A thread that gets a signal gives its request up; when the end of that is on its way to it, that is what it gets.
#[test]
fn who_gives_up_gets_what_is_on_its_way() {
    let hub = MemHub::new();
    let (core, client) = of(&hub);
    let slot = client.slot();
    let records = core.member.control().threads(slot.index).unwrap();
    let cell = &records[0].reply;
    let target = endpoint();
    for taken in [true, false] {
        let caller = Caller::Thread {
            slot,
            thread: 0,
            ticket: cell.begin(Op::ConditionWait, target),
        };
        let begun = core
            .requests()
            .begin(caller, Op::ConditionWait, target, wire::NEVER, 0);
        // The I/O thread has the reply, and has not come to delivering it.
        let number = begun.unwrap().number;
        assert!(core.requests().finish(number).is_some());
        gateway::cancel(&core, caller);
        if taken {
            let handed = core.hand_over(caller, &super::results([7, 1]), Payload::Small(&[]));
            assert!(handed.is_ok(), "{handed:?}");
        }
        io::due(&core);
        let reply = cell.wait(Deadline::Now, 0, |_| {}).unwrap();
        let expected = match taken {
            true => (Code::Ok, 7),
            false => (Code::Cancelled, 0),
        };
        assert_eq!((Code::from_i32(reply.status), reply.arg0), expected);
    }
    assert!(core.requests().io_ends().is_empty());
    let caller = Caller::Thread {
        slot,
        thread: 0,
        ticket: cell.begin(Op::ConditionWait, target),
    };
    gateway::cancel(&core, caller);
    let reply = cell.wait(Deadline::Now, 0, |_| {}).unwrap();
    let over = Code::Cancelled.to_i32();
    assert_eq!(reply.status, over, "nobody would do it later");
}

/// A link that was closed from the other side.
#[derive(Debug)]
struct Closed;

impl Link for Closed {
    fn id(&self) -> u64 {
        1
    }

    fn node(&self) -> NodeIndex {
        NodeIndex::new(1).unwrap()
    }

    fn side(&self) -> Side {
        Side::Accepted
    }

    fn clock_offset(&self) -> i64 {
        0
    }

    fn submit(&self, frame: Frame) -> Result<(), Frame> {
        Err(frame)
    }

    fn queued(&self) -> u64 {
        0
    }

    fn close(&self) {}
}

/// A process of another node gets something here, and the connection is gone before it can be told.
#[test]
fn what_nobody_can_be_told_of_is_taken_back() {
    let (core, client) = alone();
    let slot = client.slot();
    let ask = |op, object, [arg0, arg1]: [u64; 2]| {
        let job = Job {
            origin: Origin {
                link: Some(Arc::new(Closed)),
                request: 1,
                node: Closed.node(),
                slot,
            },
            op,
            object,
            arg0,
            arg1,
            trace: None,
            deadline: wire::NEVER,
        };
        core.with_owner(|owner, member, answers| {
            owner.execute(member, job, &[], Body::empty(), answers);
        });
    };
    let lock = Lock::create(&client, 0).unwrap();
    ask(Op::LockAcquire, lock.id(), [5, 0]);
    lock.acquire(Deadline::Now).unwrap();
    let semaphore = Semaphore::create(&client, 1, 1, 0).unwrap();
    let before = semaphore.value().unwrap();
    ask(Op::SemaphoreAcquire, semaphore.id(), [1, 0]);
    assert_eq!(semaphore.value().unwrap(), before);
    let condition = Condition::create(&client, &ConditionOptions::default()).unwrap();
    ask(Op::ConditionWait, condition.id(), [0, 0]);
    assert_eq!(condition.waiting().unwrap(), 0);
    let barrier = Barrier::create_with_action(&client, 1, 0).unwrap();
    ask(Op::BarrierWait, barrier.id(), [0, 0]);
    let broken = barrier.state().unwrap().broken;
    assert_eq!(broken, Some(Breakage::Aborted), "nobody waits for its turn");
}
