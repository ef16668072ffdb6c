use dragon_protocol::op::Op;
use dragon_protocol::{NodeIndex, ObjectId, ObjectKind};

use super::{IDLE, Intent, Reply, ReplyCell, ReplyPayload, STATE, ThreadRecord};
use crate::futex::Deadline;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

const CHANNEL: ObjectId = ObjectId {
    node: NodeIndex::FIRST,
    kind: ObjectKind::Channel,
    index: 7,
    generation: 9,
};

impl ThreadRecord {
    fn empty() -> Self {
        Self {
            busy: AtomicU32::new(0),
            touched: AtomicU32::new(0),
            intent: Intent {
                op: AtomicU32::new(0),
                step: AtomicU32::new(0),
                index: AtomicU32::new(0),
                generation: AtomicU32::new(0),
                arguments: std::array::from_fn(|_| AtomicU64::new(0)),
            },
            reply: ReplyCell {
                state: AtomicU32::new(IDLE),
                status: AtomicU32::new(0),
                ticket: AtomicU64::new(0),
                asked: std::array::from_fn(|_| AtomicU64::new(0)),
                arg0: AtomicU64::new(0),
                arg1: AtomicU64::new(0),
                length: AtomicU64::new(0),
                block: AtomicU64::new(0),
                inline: std::array::from_fn(|_| AtomicU64::new(0)),
                trace: AtomicU64::new(0),
            },
        }
    }
}

fn reply(arg0: u64, payload: ReplyPayload) -> Reply {
    Reply {
        status: 0,
        arg0,
        arg1: 0,
        payload,
        trace: None,
    }
}

fn inline(arg0: u64) -> Reply {
    reply(arg0, ReplyPayload::Inline(vec![7; 5]))
}

#[cfg(not(loom))]
mod plain {
    use std::sync::Arc;

    use super::super::READY;
    use super::*;
    use crate::futex::WaitResult;

    #[test]
    fn a_reply_reaches_only_the_request_with_its_ticket() {
        let cell = ThreadRecord::empty().reply;
        assert!(!cell.complete(0, &inline(1)).unwrap(), "nobody asked");
        let first = cell.begin(Op::Receive, CHANNEL);
        assert!(cell.abandon());
        assert!(!cell.complete(first, &inline(1)).unwrap(), "given up");
        let second = cell.begin(Op::Receive, CHANNEL);
        assert!(!cell.complete(first, &inline(1)).unwrap(), "too late");
        assert_eq!(
            cell.wait(Deadline::Now, 0, |_| {}),
            Err(WaitResult::TimedOut)
        );
        assert!(cell.complete(second, &inline(2)).unwrap());
        assert!(!cell.complete(second, &inline(3)).unwrap(), "once");
        assert!(!cell.abandon(), "the reply has won");
        assert_eq!(cell.wait(Deadline::Never, 0, |_| {}), Ok(inline(2)));
        assert!(cell.complete(second, &inline(4)).is_ok_and(|done| !done));
    }

    #[test]
    fn a_reply_that_does_not_fit_is_refused() {
        let cell = ThreadRecord::empty().reply;
        let ticket = cell.begin(Op::Receive, CHANNEL);
        let large = reply(
            0,
            ReplyPayload::Inline(vec![0; super::super::REPLY_INLINE + 1]),
        );
        assert!(cell.complete(ticket, &large).is_err());
        assert!(cell.complete(ticket, &inline(1)).unwrap());
    }

    #[test]
    fn a_waiting_thread_is_woken() {
        let record = Arc::new(ThreadRecord::empty());
        let ticket = record.reply.begin(Op::Receive, CHANNEL);
        let theirs = record.clone();
        let agent = std::thread::spawn(move || theirs.reply.complete(ticket, &inline(9)).unwrap());
        let wait = || record.reply.wait(Deadline::Never, 0, |_| {});
        let got = loop {
            if let Ok(reply) = wait() {
                break reply;
            }
        };
        assert_eq!(got.arg0, 9);
        assert!(agent.join().unwrap());
    }

    #[test]
    fn recovery_gets_a_reply_that_nobody_took() {
        let record = ThreadRecord::empty();
        record.busy.store(1, Ordering::Relaxed);
        record.touched.store(1, Ordering::Relaxed);
        let ticket = record.reply.begin(Op::Receive, CHANNEL);
        let block = ReplyPayload::Block {
            offset: 4096,
            length: 10,
        };
        assert!(
            record
                .reply
                .complete(ticket, &reply(0, block.clone()))
                .unwrap()
        );
        let untaken = record.reply.reset().unwrap();
        assert_eq!(untaken.asked, Some((Op::Receive, CHANNEL)));
        assert_eq!(untaken.reply, reply(0, block));
        assert_eq!(record.reply.reset(), None);
        record.clear();
        assert_eq!(record.busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_block_is_recorded_before_the_cell_is_given_back() {
        let cell = ThreadRecord::empty().reply;
        let ticket = cell.begin(Op::Pop, CHANNEL);
        let block = ReplyPayload::Block {
            offset: 4096,
            length: 10,
        };
        assert!(cell.complete(ticket, &reply(0, block)).unwrap());
        let mut recorded = 0;
        let record = |offset| {
            // Who dies here leaves the reply to recovery.
            assert_eq!(cell.state.load(Ordering::Relaxed) & STATE, READY);
            recorded = offset;
        };
        cell.wait(Deadline::Never, 0, record).unwrap();
        assert_eq!(recorded, 4096);
        assert_eq!(cell.state.load(Ordering::Relaxed) & STATE, IDLE);
    }

    #[test]
    fn a_record_that_is_being_filled_is_not_given_out_again() {
        let record = ThreadRecord::empty();
        record.busy.store(1, Ordering::Relaxed);
        let ticket = record.reply.begin(Op::Receive, CHANNEL);
        assert!(
            record
                .reply
                .change(ticket, super::super::WAITING, super::super::FILLING)
        );
        record.clear();
        assert_eq!(record.busy.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn scribbled_cells_give_no_more_than_they_hold() {
        let cell = ThreadRecord::empty().reply;
        cell.length.store(u64::MAX, Ordering::Relaxed);
        cell.state.store(READY, Ordering::Relaxed);
        let reply = cell.wait(Deadline::Now, 0, |_| {}).unwrap();
        assert_eq!(
            reply.payload,
            ReplyPayload::Inline(vec![0; super::super::REPLY_INLINE])
        );
        assert_eq!(cell.state.load(Ordering::Relaxed) & STATE, IDLE);
    }

    #[test]
    fn intents_read_as_they_were_written() {
        let intent = ThreadRecord::empty().intent;
        assert_eq!(intent.read(), None);
        intent.begin(Op::Send, 3, 4, [5, 6]);
        intent.step(7);
        intent.set(3, 8);
        let read = intent.read().unwrap();
        assert_eq!(
            (read.op, read.step, read.index, read.generation),
            (Op::Send, 7, 3, 4)
        );
        assert_eq!(read.arguments, [5, 6, 0, 8]);
        intent.end();
        assert_eq!(intent.read(), None);
    }
}

/// Every interleaving of a thread that gives up, asks again, and two threads of the agent with the old and the new reply.
#[cfg(loom)]
mod model {
    use super::*;
    use loom::thread;

    #[test]
    fn loom_complete_against_abandon() {
        loom::model(|| {
            let cell = loom::sync::Arc::new(ThreadRecord::empty());
            let ticket = cell.reply.begin(Op::Receive, CHANNEL);
            let theirs = cell.clone();
            let agent = thread::spawn(move || theirs.reply.complete(ticket, &inline(1)).unwrap());
            let given_up = cell.reply.abandon();
            let taken = !given_up && {
                let got = cell.reply.wait(Deadline::Never, 0, |_| {}).unwrap();
                got == inline(1)
            };
            let delivered = agent.join().unwrap();
            assert!(delivered != given_up, "exactly one of the two wins");
            assert_eq!(delivered, taken);
            assert_eq!(cell.reply.state.load(Ordering::Relaxed) & STATE, IDLE);
        });
    }

    #[test]
    fn loom_a_late_reply_does_not_disturb_the_next_request() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let cell = loom::sync::Arc::new(ThreadRecord::empty());
            let first = cell.reply.begin(Op::Receive, CHANNEL);
            assert!(cell.reply.abandon());
            let late = cell.clone();
            let late = thread::spawn(move || late.reply.complete(first, &inline(1)).unwrap());
            let second = cell.reply.begin(Op::Receive, CHANNEL);
            let agent = cell.clone();
            let agent = thread::spawn(move || agent.reply.complete(second, &inline(2)).unwrap());
            assert_eq!(
                cell.reply.wait(Deadline::Never, 0, |_| {}).unwrap(),
                inline(2)
            );
            assert!(agent.join().unwrap() && !late.join().unwrap());
        });
    }
}
