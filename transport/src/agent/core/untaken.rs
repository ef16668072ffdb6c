//! Replies that nobody takes: what came too late waits for the next receiver or goes back to its owner, and what a request obtained
//! for a caller that is gone is given back.

use std::collections::VecDeque;
use std::sync::Arc;

use dragon_channels::undoing;
use dragon_protocol::op::Op;
use dragon_protocol::wire::{self, FrameHeader, FrameKind};
use dragon_protocol::{Code, SlotId};
use dragon_shmem::Block;
use dragon_shmem::thread::{ReplyPayload, Untaken};
use zerocopy::little_endian::{I32, U64};

use super::{Core, Payload, results};
use crate::agent::late::{Ask, Asked, Chunk, Receiver};
use crate::agent::owner::{Job, Origin};
use crate::agent::stats::{self, add};
use crate::body::{Body, PoolBlock};
use crate::fabric::{Frame, Link};

impl Core {
    /// Gives a receiver the first chunk that came too late for it, or tells it that there is one; without any, the owner is
    /// asked. Whoever asks for the same meanwhile gets its turn afterwards.
    pub(super) fn give_late(&self, ask: Ask) {
        let mut asks = VecDeque::new();
        let mut next = Some(ask);
        while let Some(ask) = next {
            let Ask { caller, op, .. } = ask;
            let mut requests = self.requests();
            match (requests.late.ask(ask), ask.request) {
                (Asked::Chunk(chunk), _) => {
                    drop(requests);
                    asks.extend(self.give_chunk(&ask, chunk));
                }
                (Asked::Readable, _) => {
                    drop(requests);
                    let one = Payload::Small(&[]);
                    // Nothing is lost with it.
                    let _ = self.hand_over(caller, &results([1, 0]), one);
                }
                (Asked::Waits, _) => {}
                (Asked::Nothing, Some(header)) => {
                    self.request_of_owner(requests, caller, header, op, Body::empty());
                }
                // Another thread of the process took it.
                (Asked::Nothing, None) => {
                    drop(requests);
                    self.complete(caller, Code::Cancelled);
                }
            }
            next = asks.pop_front();
        }
    }

    /// Hands a chunk over that came too late before. Returns who asked meanwhile.
    pub(super) fn give_chunk(&self, ask: &Ask, chunk: Chunk) -> VecDeque<Ask> {
        let Chunk { argument, body } = chunk;
        let header = results([argument, ask.receiver.conversation]);
        let given = self.hand_over(ask.caller, &header, Payload::Body(body));
        let (code, back) = match given {
            Ok(()) => (None, None),
            Err((code, body)) => (code, Some(Chunk { argument, body })),
        };
        // Before the caller learns that there was no memory, and can ask again.
        let asks = self.requests().late.given(&ask.receiver, back);
        if let Some(code) = code {
            self.complete(ask.caller, code);
        }
        asks
    }

    /// A reply that nobody waits for: a message in it goes back to its owner.
    pub(super) fn late(&self, header: &FrameHeader, body: Body) {
        self.put_aside(header, body, false);
    }

    /// What a caller cannot take: a message goes back to its owner, a chunk of a stream waits here for its receiver, behind
    /// others or as the first.
    pub(super) fn put_aside(&self, header: &FrameHeader, body: Body, first: bool) {
        let Some(target) = header.target.object() else {
            return;
        };
        if let Some(receiver) = Receiver::of_reply(header) {
            let argument = header.arg0.get();
            let chunk = Chunk { argument, body };
            let waiting = self.requests().keep_late(receiver, chunk, first);
            if let Some((number, pending)) = waiting {
                self.cancel(number, pending.node, false);
                let op = pending.wants.map_or(Op::Receive, |(op, _)| op);
                self.give_late(Ask {
                    caller: pending.caller,
                    receiver,
                    op,
                    request: None,
                });
            }
            return;
        }
        if !stats::carries_message(header) {
            return;
        }
        let back = FrameHeader {
            arg0: header.arg0,
            arg1: header.arg1,
            payload: body.len().into(),
            ..super::header(FrameKind::Return, Op::Receive, target)
        };
        add(&self.counters.returned);
        let header = back.with_trace(header.trace_id());
        self.send_to(target.node, Frame { header, body });
    }

    /// A reply that a dead process of this node did not take: what it brought goes back.
    pub(in crate::agent) fn untaken(&self, untaken: Untaken) {
        let Untaken { asked, reply } = untaken;
        let Some((op, target)) = asked else { return };
        let body = match reply.payload {
            ReplyPayload::Inline(bytes) => Body::Bytes(bytes),
            ReplyPayload::Block { offset, length } => {
                match PoolBlock::adopt(&self.member, Block { offset, length }) {
                    Ok(block) => Body::Block(block),
                    Err(error) => {
                        tracing::warn!(object = %target, %error, "a message for a dead process was lost");
                        return;
                    }
                }
            }
        };
        let header = FrameHeader {
            status: I32::new(reply.status),
            arg0: reply.arg0.into(),
            arg1: reply.arg1.into(),
            ..super::header(FrameKind::Reply, op, target)
        };
        let header = header.with_trace(reply.trace);
        self.undo(None, &header);
        self.late(&header, body);
    }

    /// A frame of an accepted link could not be sent. A message in it goes back to its channel, and what it would have told that
    /// its caller obtained is taken back: that one is told that this node is out of its reach.
    pub(in crate::agent) fn undelivered(&self, link: &Arc<dyn Link>, frame: Frame) {
        let Frame { header, body } = frame;
        let Some(object) = header.target.object() else {
            return;
        };
        // What waits behind it would get it next, over the same link, and so on.
        self.with_owner(|owner, member, _| owner.link_lost(member, link.id()));
        if stats::carries_message(&header) {
            return self.put_back(object, &header, body);
        }
        let Some((op, [arg0, arg1])) = undoing_of(&header) else {
            return;
        };
        let job = Job {
            origin: Origin {
                link: Some(Arc::clone(link)),
                request: 0,
                node: link.node(),
                slot: SlotId {
                    index: header.slot.get(),
                    generation: header.slot_generation.get(),
                },
            },
            op,
            object,
            arg0,
            arg1,
            trace: None,
            deadline: wire::NOW,
        };
        self.with_owner(|owner, member, answers| {
            // What a process that is gone had was recovered.
            if is_for_the_dead(op) || owner.knows(&job.origin) {
                owner.execute(member, job, &[], Body::empty(), answers);
            }
        });
    }

    /// What a request obtained for a caller that no longer waits is given back. Of a dead caller that is only what its owner
    /// does not recover.
    pub(super) fn undo(&self, slot: Option<SlotId>, header: &FrameHeader) {
        let Some(target) = header.target.object() else {
            return;
        };
        let Some((op, [arg0, arg1])) = undoing_of(header) else {
            return;
        };
        let alive = slot.filter(|slot| self.member.control().slot_is(*slot));
        if alive.is_none() && !is_for_the_dead(op) {
            return;
        }
        let slot = alive.unwrap_or(self.member.slot());
        let header = FrameHeader {
            slot: slot.index.into(),
            slot_generation: slot.generation.into(),
            deadline: wire::NEVER.into(),
            arg0: U64::new(arg0),
            arg1: U64::new(arg1),
            ..super::header(FrameKind::Request, op, target)
        };
        let body = Body::empty();
        self.send_to(target.node, Frame { header, body });
    }
}

/// What takes back what a request has obtained, by the reply to it.
fn undoing_of(reply: &FrameHeader) -> Option<(Op, [u64; 2])> {
    let code = Code::from_i32(reply.status.get());
    let op = Op::from_u8(reply.op).filter(|_| matches!(code, Code::Ok | Code::OwnerDied))?;
    undoing(op, [reply.arg0.get(), reply.arg1.get()])
}

/// Whether this has to be done also of a process that is gone: no owner recovers it. (A semaphore that knows who has its units
/// gives them back by itself, and refuses whoever else does.)
fn is_for_the_dead(op: Op) -> bool {
    op == Op::SemaphoreRelease
}
