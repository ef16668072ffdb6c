//! Replies that nobody takes: what came too late waits for the next receiver or goes back to its owner, and what a request obtained
//! for a caller that is gone is given back.

use std::collections::VecDeque;

use dragon_channels::stream;
use dragon_protocol::op::Op;
use dragon_protocol::wire::{self, FrameHeader, FrameKind};
use dragon_protocol::{Code, SlotId};
use dragon_shmem::Block;
use dragon_shmem::thread::{ReplyPayload, Untaken};
use zerocopy::little_endian::{I32, U64};

use super::{Core, Payload, results};
use crate::agent::late::{Ask, Asked, Chunk, Receiver};
use crate::agent::stats::{self, add};
use crate::body::{Body, PoolBlock};
use crate::fabric::Frame;

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

    /// What a request obtained for a caller that no longer waits is given back. Of a dead caller that is only what its owner
    /// does not recover.
    pub(super) fn undo(&self, slot: Option<SlotId>, header: &FrameHeader) {
        let code = Code::from_i32(header.status.get());
        let Some(target) = header.target.object() else {
            return;
        };
        if !matches!(code, Code::Ok | Code::OwnerDied) {
            return;
        }
        let alive = slot.filter(|slot| self.member.control().slot_is(*slot));
        // Of an opened or accepted stream the reply names the conversation.
        let conversation = header.arg0.get();
        let (op, arg0, arg1) = match Op::from_u8(header.op) {
            // The reply names the units; one of an earlier release does not, and there was one. A semaphore that knows its
            // owners gives them back by itself, and refuses the agent.
            Some(Op::SemaphoreAcquire) => (Op::SemaphoreRelease, header.arg0.get().max(1), 0),
            _ if alive.is_none() => return,
            // The reply names the thread.
            Some(Op::LockAcquire) => (Op::LockRelease, 0, header.arg1.get()),
            Some(Op::Attach) => (Op::Detach, 0, 0),
            Some(Op::StreamOpen) => (Op::StreamClose, stream::UNOPEN, conversation),
            Some(Op::StreamAccept) => (Op::StreamClose, stream::UNACCEPT, conversation),
            // The reply names its address.
            Some(Op::BlockAllocate) => (Op::BlockFree, header.arg0.get(), 0),
            _ => return,
        };
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
