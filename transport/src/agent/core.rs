//! What the agent's two threads share, and how requests, answers and endings pass between the tables and the fabric.
//!
//! Locks: `requests` and `owner` are never held together, and neither while a frame is submitted.

mod untaken;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dragon_channels::set::elsewhere;
use dragon_channels::{Arguments, Channel};
use dragon_protocol::op::Op;
use dragon_protocol::wire::{self, FrameHeader, FrameKind};
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind, SlotId};
use dragon_shmem::Member;
use dragon_shmem::thread::{REPLY_INLINE, Reply, ReplyPayload, Untaken};
use zerocopy::FromZeros;
use zerocopy::little_endian::{I32, U32};

use super::late::{Ask, Chunk, Receiver};
use super::latency::Latencies;
use super::local;
use super::outbox;
use super::owner::{Answer, Job, Origin, Owner};
use super::requests::{Caller, Pending, Requests};
use super::stats::{AgentStats, Counters, PeerReport, add};
use crate::body::Body;
use crate::clock;
use crate::fabric::{Fabric, Frame, Link};

/// What other threads ask of the gateway thread.
#[derive(Debug)]
pub(super) enum Command {
    /// Send a message of the daemon's own.
    Post(ObjectId, u64, Vec<u8>),
    /// An object of this node that has parked requests changed.
    Changed(ObjectId),
    /// A process of this node is gone: what it held of other nodes, and the replies that it did not take.
    SlotGone(SlotId, Vec<ObjectId>, Vec<Untaken>),
    /// A node is down.
    NodeDown(NodeIndex),
    /// End.
    Close,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) member: Arc<Member>,
    pub(super) node: NodeIndex,
    pub(super) fabric: Arc<dyn Fabric>,
    pub(super) gateway: Channel,
    pub(super) counters: Counters,
    pub(super) closing: AtomicBool,
    /// CLOCK_MONOTONIC time after which nothing is flushed any more.
    pub(super) close_by: AtomicU64,
    requests: Mutex<Requests>,
    owner: Mutex<Owner>,
    commands: Mutex<VecDeque<Command>>,
    latencies: Mutex<Latencies>,
    /// When the log was last told of a message that was dropped; 0: never.
    told_drop: AtomicU64,
}

/// Bytes of one link's queue over which messages that nobody waits for are dropped.
const POST_LIMIT: u64 = 64 << 20;

impl Core {
    pub(super) fn new(
        member: Arc<Member>,
        node: NodeIndex,
        fabric: Arc<dyn Fabric>,
        gateway: Channel,
    ) -> Self {
        let silence = fabric.longest_silence();
        Self {
            member,
            node,
            fabric,
            gateway,
            counters: Counters::default(),
            closing: AtomicBool::new(false),
            close_by: AtomicU64::new(u64::MAX),
            requests: Mutex::new(Requests::new(silence)),
            owner: Mutex::default(),
            commands: Mutex::default(),
            latencies: Mutex::default(),
            told_drop: AtomicU64::new(0),
        }
    }

    /// Has the gateway thread do something.
    pub(super) fn command(&self, command: Command) {
        lock(&self.commands).push_back(command);
        local::nudge(&self.gateway);
    }

    pub(super) fn next_command(&self) -> Option<Command> {
        lock(&self.commands).pop_front()
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, Requests> {
        lock(&self.requests)
    }

    pub(super) fn stats(&self) -> AgentStats {
        let pending = self.requests().len() as u64;
        let owner = lock(&self.owner);
        AgentStats {
            pending,
            parked: owner.parked() as u64,
            proxies: owner.proxies() as u64,
            fabric: self.fabric.stats(),
            ..self.counters.stats()
        }
    }

    pub(super) fn peers(&self) -> Vec<PeerReport> {
        let peers = self.fabric.peers().into_iter();
        let latencies = lock(&self.latencies);
        let report = |fabric: crate::fabric::PeerStats| PeerReport {
            fabric,
            latency: latencies.of(fabric.node),
        };
        peers.map(report).collect()
    }

    /// Works on the objects of this node, then sends the answers that came of it.
    pub(super) fn with_owner<R>(
        &self,
        work: impl FnOnce(&mut Owner, &Arc<Member>, &mut Vec<Answer>) -> R,
    ) -> R {
        let mut answers = Vec::new();
        let inside = local::Inside::enter();
        let mut owner = lock(&self.owner);
        let result = work(&mut owner, &self.member, &mut answers);
        owner.notified(&self.member, &mut answers);
        drop(owner);
        drop(inside);
        for answer in answers {
            self.answer(answer);
        }
        result
    }

    fn answer(&self, answer: Answer) {
        let Some(link) = answer
            .origin
            .link
            .clone()
            .filter(|_| answer.origin.request != 0)
        else {
            if answer.done.code != Code::Ok {
                self.failed_unasked(&answer);
            }
            return;
        };
        let done = answer.done;
        let header = FrameHeader {
            status: I32::new(done.code.to_i32()),
            request: answer.origin.request.into(),
            slot: answer.origin.slot.index.into(),
            slot_generation: answer.origin.slot.generation.into(),
            arg0: done.arg0.into(),
            arg1: done.arg1.into(),
            payload: done.body.len().into(),
            ..header(FrameKind::Reply, answer.op, answer.object)
        };
        let frame = Frame {
            header: header.with_trace(done.trace),
            body: done.body,
        };
        if let Err(frame) = self.submit(&link, frame) {
            self.undelivered(&link, frame);
        }
    }

    fn failed_unasked(&self, answer: &Answer) {
        let (op, object, code) = (answer.op, answer.object, answer.done.code);
        tracing::debug!(?op, %object, %code, "a request without a caller failed");
        // One that came back to a channel that is gone went with it.
        let lost = answer.origin.link.is_some() || code == Code::Full;
        match code {
            _ if !lost || !matches!(op, Op::Send | Op::Push) => {}
            // At the end of a program that is as it should be: whoever would have received it has destroyed it, or is gone.
            Code::NoSuchObject | Code::Destroyed => {
                add(&self.counters.messages_lost);
            }
            _ => self.dropped(object, "its channel did not take it"),
        }
    }

    /// A message that nobody waits for is lost: counted, and told once a second at most.
    fn dropped(&self, object: ObjectId, why: &str) {
        let lost = add(&self.counters.messages_lost) + 1;
        let (now, last) = (clock::now(), self.told_drop.load(Ordering::Relaxed));
        if last != 0 && now.saturating_sub(last) < 1_000_000_000 {
            return;
        }
        self.told_drop.store(now, Ordering::Relaxed);
        tracing::warn!(%object, lost, "a message that nobody waits for was dropped: {why}");
    }

    #[expect(
        clippy::result_large_err,
        reason = "the frame comes back to be sent again, and boxes cost every frame an allocation"
    )]
    pub(super) fn submit(&self, link: &Arc<dyn Link>, frame: Frame) -> Result<(), Frame> {
        let header = frame.header;
        let node = &self.member.control().words().counters;
        self.counters.sent(&header, node);
        outbox::submit(link, frame).inspect_err(|_| self.counters.not_sent(&header, node))
    }

    /// Puts a message back into an object of this node: into a channel, or into its level of a queue with priorities.
    pub(super) fn put_back(&self, object: ObjectId, header: &FrameHeader, body: Body) {
        add(&self.counters.returned);
        let op = match object.kind {
            ObjectKind::PriorityQueue => Op::Push,
            _ => Op::Send,
        };
        let arguments = Arguments {
            words: [header.arg0.get(), header.arg1.get()],
            trace: header.trace_id(),
        };
        self.send_here(op, object, arguments, body);
    }

    /// Sends a message that nobody waits for to an object of this node.
    fn send_here(&self, op: Op, object: ObjectId, arguments: Arguments, body: Body) {
        let [arg0, arg1] = arguments.words;
        let job = Job {
            origin: Origin {
                link: None,
                request: 0,
                node: self.node,
                slot: self.member.slot(),
            },
            op,
            object,
            arg0,
            arg1,
            trace: arguments.trace,
            deadline: wire::NEVER,
        };
        self.with_owner(|owner, member, answers| owner.execute(member, job, &[], body, answers));
    }

    /// Sends a message that nobody waits for to any channel.
    pub(super) fn post(&self, object: ObjectId, hint: u64, body: Body) {
        if object.node == self.node {
            return self.send_here(Op::Send, object, [hint, 0].into(), body);
        }
        let slot = self.member.slot();
        let header = FrameHeader {
            slot: slot.index.into(),
            slot_generation: slot.generation.into(),
            deadline: wire::NEVER.into(),
            arg0: hint.into(),
            payload: body.len().into(),
            ..header(FrameKind::Request, Op::Send, object)
        };
        self.send_to(object.node, Frame { header, body });
    }

    /// Makes a request of a caller of this node.
    pub(super) fn request(&self, caller: Caller, header: FrameHeader, op: Op, body: Body) {
        match Receiver::of_request(op, &header) {
            Some(receiver) => self.give_late(Ask {
                caller,
                receiver,
                op,
                request: Some(header),
            }),
            None => self.request_of_owner(self.requests(), caller, header, op, body),
        }
    }

    /// Makes a request for which there is nothing here. `requests`: still locked since that was seen.
    fn request_of_owner(
        &self,
        mut requests: MutexGuard<'_, Requests>,
        caller: Caller,
        mut header: FrameHeader,
        op: Op,
        body: Body,
    ) {
        let Some(target) = header.target.object() else {
            drop(requests);
            return self.complete(caller, Code::InvalidArgument);
        };
        let ends = Receiver::of_end(op, &header);
        if let Some(receiver) = &ends {
            requests.late.forget(receiver);
        }
        let now = clock::now();
        let begun = requests.begin(caller, op, target, header.deadline.get(), now);
        if let Ok(begun) = &begun {
            if let Some(receiver) = Receiver::of_request(op, &header) {
                requests.wants_chunk(begun.number, op, receiver.conversation);
            }
            if let Some(receiver) = ends {
                requests.ends_receiver(begun.number, receiver);
            }
        }
        drop(requests);
        let begun = match begun {
            Ok(begun) => begun,
            Err(code) => return self.complete(caller, code),
        };
        if begun.wake {
            self.fabric.wake();
        }
        if let Some((number, node)) = begun.displaced {
            self.cancel(number, node, false);
        }
        header.request = begun.number.into();
        self.send_to(target.node, Frame { header, body });
    }

    /// Asks the owner to end a request. With `answer` the reply still comes: cancelled, or what was quicker.
    pub(super) fn cancel(&self, number: u64, node: NodeIndex, answer: bool) {
        let header = FrameHeader {
            kind: FrameKind::Cancel as u8,
            request: number.into(),
            arg0: u64::from(answer).into(),
            ..FrameHeader::new_zeroed()
        };
        self.send_to(
            node,
            Frame {
                header,
                body: Body::empty(),
            },
        );
    }

    /// Gives a frame to the link to a node, which is opened when there is none. When that fails, a request in it ends.
    pub(super) fn send_to(&self, node: NodeIndex, mut frame: Frame) {
        let number = frame.header.request.get();
        let counts = frame.header.kind == FrameKind::Request as u8
            || frame.header.kind == FrameKind::SlotDown as u8;
        // The second time the link was lost between the look-up and the submission.
        for _ in 0..2 {
            let link = match self.fabric.link(node) {
                Ok(link) => link,
                Err(error) => {
                    tracing::debug!(%node, %error, "no way to the node");
                    break;
                }
            };
            if counts && number != 0 && !self.requests().set_link(number, link.id()) {
                return;
            }
            if number == 0 && link.queued() > POST_LIMIT {
                break;
            }
            match self.submit(&link, frame) {
                Ok(()) => return,
                Err(back) => frame = back,
            }
        }
        self.unsendable(&frame, counts);
    }

    fn unsendable(&self, frame: &Frame, counts: bool) {
        if counts && frame.header.request.get() != 0 {
            let pending = self.requests().finish(frame.header.request.get());
            if let Some(pending) = pending {
                self.fail(&pending, Code::Unreachable);
            }
        } else if super::stats::carries_message(&frame.header)
            && let Some(object) = frame.header.target.object()
        {
            self.dropped(object, "its node cannot be reached, or takes no more");
        }
    }

    /// Ends a request without the owner's word.
    pub(super) fn fail(&self, pending: &Pending, code: Code) {
        match pending.caller {
            Caller::Gone(_) => {
                if self.requests().tell_later(pending.node, clock::now()) {
                    self.fabric.wake();
                }
            }
            caller if !pending.expired => self.complete(caller, code),
            Caller::Thread { .. } | Caller::Member(_) => {}
        }
    }

    /// Wakes a caller with a code and nothing else.
    pub(super) fn complete(&self, caller: Caller, code: Code) {
        let reply = Reply {
            status: code.to_i32(),
            arg0: 0,
            arg1: 0,
            payload: ReplyPayload::Inline(Vec::new()),
            trace: None,
        };
        self.deliver(caller, &reply);
    }

    /// Puts a reply into the caller's cell, or into the member of a set; false when nobody waits for it any more.
    pub(super) fn deliver(&self, caller: Caller, reply: &Reply) -> bool {
        if let Caller::Member(subscription) = caller {
            let code = Code::from_i32(reply.status);
            elsewhere::answer(&self.member, subscription, code, reply.arg0);
            return true;
        }
        let Caller::Thread {
            slot,
            thread,
            ticket,
        } = caller
        else {
            return false;
        };
        let control = self.member.control();
        if thread == wire::NO_REPLY || !control.slot_is(slot) {
            return false;
        }
        let Ok(records) = control.threads(slot.index) else {
            return false;
        };
        let record = records.get(thread as usize);
        let done = record.map(|record| record.reply.complete(ticket, reply));
        matches!(done, Some(Ok(true)))
    }

    /// The end of a request came from its owner. `payload`: what came with it.
    pub(super) fn reply(&self, link: &dyn Link, header: &FrameHeader, payload: Payload<'_>) {
        let pending = self.requests().finish(header.request.get());
        let Some(pending) = pending else {
            // Its thread may have gone on to another one, after it was told that the owner does not answer.
            let asked = SlotId {
                index: header.slot.get(),
                generation: header.slot_generation.get(),
            };
            self.undo(Some(asked), header);
            return self.late(header, payload.keep());
        };
        if let Caller::Gone(slot) = pending.caller {
            self.requests().told(link.node(), slot);
            return;
        }
        if pending.expired {
            self.undo(pending.caller.slot(), header);
            return self.late(header, payload.keep());
        }
        let took = clock::now().saturating_sub(pending.begun);
        lock(&self.latencies).record(pending.node, took);
        if let Payload::Lost(code) = payload {
            if super::stats::carries_message(header) {
                add(&self.counters.messages_lost);
                tracing::warn!(object = %pending.target, %code, "a message was lost: no memory to receive it");
            }
            return self.complete(pending.caller, code);
        }
        let receiver = Receiver::of_reply(header);
        let receiver = receiver.filter(|receiver| self.requests().late.has(receiver));
        let payload = match receiver {
            None => payload,
            Some(receiver) => {
                // Others came before this one.
                let (argument, body) = (header.arg0.get(), payload.keep());
                let kept = self
                    .requests()
                    .keep_behind(receiver, Chunk { argument, body });
                match kept {
                    Ok(()) => {
                        return self.give_late(Ask {
                            caller: pending.caller,
                            receiver,
                            op: Op::Receive,
                            request: None,
                        });
                    }
                    // They went meanwhile.
                    Err(chunk) => Payload::Body(chunk.body),
                }
            }
        };
        match self.hand_over(pending.caller, header, payload) {
            Ok(()) => {}
            Err((Some(code), body)) => {
                // There is no memory for it here, so it goes back to where it came from; a chunk before its receiver can
                // ask for the next one.
                self.put_aside(header, body, true);
                self.complete(pending.caller, code);
            }
            Err((None, body)) => {
                self.undo(pending.caller.slot(), header);
                self.late(header, body);
            }
        }
    }

    /// Puts a reply with its payload into the caller's cell. Otherwise the payload comes back, with a code when there is no
    /// memory for it, and without when nobody waits any more.
    fn hand_over(
        &self,
        caller: Caller,
        header: &FrameHeader,
        payload: Payload<'_>,
    ) -> Result<(), (Option<Code>, Body)> {
        let (payload, kept) = match payload {
            Payload::Small(bytes) if bytes.len() <= REPLY_INLINE => {
                (ReplyPayload::Inline(bytes.to_vec()), None)
            }
            Payload::Body(Body::Bytes(bytes)) if bytes.len() <= REPLY_INLINE => {
                (ReplyPayload::Inline(bytes), None)
            }
            payload => match local::to_shared_block(&self.member, payload.keep()) {
                Ok(body) => (local::block_of(&body), Some(body)),
                Err((code, body)) => return Err((Some(code), body)),
            },
        };
        let reply = Reply {
            status: header.status.get(),
            arg0: header.arg0.get(),
            arg1: header.arg1.get(),
            payload,
            trace: header.trace_id(),
        };
        if self.deliver(caller, &reply) {
            // The caller frees the block from now on.
            if let Some(Body::Block(block)) = kept {
                let _ = block.into_block();
            }
            return Ok(());
        }
        let body = kept.unwrap_or_else(|| match reply.payload {
            ReplyPayload::Inline(bytes) => Body::Bytes(bytes),
            ReplyPayload::Block { .. } => Body::empty(),
        });
        Err((None, body))
    }

    /// Drops what a set of this node, or any, asked for and does not want any more: for the member in a place, or for any.
    pub(super) fn drop_unwanted(&self, set: Option<ObjectId>, place: Option<u32>) {
        let subscriptions = self.requests().subscriptions(set, place);
        for (number, subscription) in subscriptions {
            if elsewhere::is_wanted(&self.member, subscription) {
                continue;
            }
            let pending = self.requests().finish(number);
            if let Some(pending) = pending {
                self.cancel(number, pending.node, false);
            }
        }
    }

    /// Tells a node of the dead processes that it has not heard of.
    pub(super) fn tell(&self, node: NodeIndex) {
        let owed = self.requests().owed(node);
        for slot in owed {
            // The number of any object of that node does for the target: only the node matters.
            let target = ObjectId {
                node,
                kind: ObjectKind::Channel,
                index: 0,
                generation: 0,
            };
            let header = FrameHeader {
                arg0: u64::from(slot.index).into(),
                arg1: u64::from(slot.generation).into(),
                slot: U32::new(slot.index),
                slot_generation: U32::new(slot.generation),
                deadline: wire::NEVER.into(),
                ..self::header(FrameKind::SlotDown, Op::Detach, target)
            };
            self.request(Caller::Gone(slot), header, Op::Detach, Body::empty());
        }
    }

    /// Ends all requests to a node, and refuses new ones.
    pub(super) fn node_gone(&self, node: NodeIndex, code: Code) {
        let pending = self.requests().node_gone(node, code);
        for pending in pending {
            self.fail(&pending, code);
        }
    }

    pub(super) fn end_all(&self) {
        let pending = self.requests().end();
        for pending in pending {
            self.fail(&pending, Code::RuntimeGone);
        }
    }
}

/// What came with a reply.
#[derive(Debug)]
pub(super) enum Payload<'a> {
    Small(&'a [u8]),
    Body(Body),
    /// It was skipped for want of memory.
    Lost(Code),
}

impl Payload<'_> {
    fn keep(self) -> Body {
        match self {
            Self::Small(bytes) => Body::Bytes(bytes.to_vec()),
            Self::Body(body) => body,
            Self::Lost(_) => Body::empty(),
        }
    }
}

/// A header with kind, operation and object, and zeros.
pub(super) fn header(kind: FrameKind, op: Op, object: ObjectId) -> FrameHeader {
    FrameHeader {
        kind: kind as u8,
        op: op as u8,
        target: object.into(),
        ..FrameHeader::new_zeroed()
    }
}

/// The header of a reply that says yes, as far as its caller sees it.
fn results([arg0, arg1]: [u64; 2]) -> FrameHeader {
    FrameHeader {
        arg0: arg0.into(),
        arg1: arg1.into(),
        ..FrameHeader::new_zeroed()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn is_closing(core: &Core) -> bool {
    core.closing.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests;
