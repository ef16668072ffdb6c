//! The I/O thread: executes what other nodes ask, delivers what they answer, ends what is past its time.

use core::sync::atomic::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::wire::{self, FrameHeader, FrameKind};
use dragon_protocol::{Code, NodeIndex, SlotId};

use super::core::{Core, Payload, is_closing};
use super::outbox;
use super::owner::{Job, Origin};
use super::requests::Caller;
use crate::body::{Body, PoolBlock};
use crate::clock;
use crate::fabric::{Frame, Handler, Incoming, Link, LinkError, Side};

/// Bytes of messages that are held in the thread's own memory, on their way back because the pool has no room for them.
const RESCUE: u64 = 64 << 20;

/// Runs until the agent closes.
pub(super) fn run(core: &Core) {
    work(core);
    let callers = core.requests().io_ends();
    cancelled(core, callers);
}

fn work(core: &Core) {
    let mut events = Events::new(core);
    while !is_closing(core) {
        let deadline = core.with_owner(|owner, member, answers| {
            owner.expire(member, clock::now(), answers);
            owner.next_deadline()
        });
        due(core);
        let deadline = core.requests().sleep(deadline, clock::now());
        if let Err(error) = core.fabric.progress(&mut events, deadline) {
            tracing::error!(%error, fabric = core.fabric.name(), "the fabric fails; no other node can be reached any more");
            core.end_all();
            return;
        }
    }
    core.end_all();
    events.drain();
}

pub(super) fn due(core: &Core) {
    let due = core.requests().due(clock::now());
    for caller in due.callers {
        core.complete(caller, Code::Unreachable);
    }
    cancelled(core, due.cancelled);
    for node in due.retry {
        core.tell(node);
    }
}

fn cancelled(core: &Core, callers: Vec<Caller>) {
    for caller in callers {
        core.complete(caller, Code::Cancelled);
    }
}

pub(super) struct Events<'a> {
    core: &'a Core,
    links: HashMap<u64, Arc<dyn Link>>,
    /// Why the last payload had no place.
    no_room: Code,
}

impl<'a> Events<'a> {
    pub(super) fn new(core: &'a Core) -> Self {
        Self {
            core,
            links: HashMap::new(),
            no_room: Code::OutOfMemory,
        }
    }
}

impl Events<'_> {
    /// Says goodbye on all links, and waits until everything has left or the deadline has passed.
    fn drain(&mut self) {
        self.core.fabric.close_listener();
        for link in self.links.values() {
            let header = FrameHeader {
                kind: FrameKind::Goodbye as u8,
                ..zerocopy::FromZeros::new_zeroed()
            };
            let body = Body::empty();
            // A closed link needs no goodbye.
            let _ = link.submit(Frame { header, body });
        }
        loop {
            let deadline = self.core.close_by.load(Ordering::Acquire);
            let queued = self.links.values().any(|l| l.queued() > 0);
            if !queued || clock::now() >= deadline {
                break;
            }
            if self.core.fabric.progress(self, deadline).is_err() {
                break;
            }
        }
        for link in self.links.values() {
            link.close();
        }
        // The fabric closes what is marked; what it tells of it is of no interest any more.
        let _ = self.core.fabric.progress(self, 0);
    }

    fn request(
        &mut self,
        link: &Arc<dyn Link>,
        header: &FrameHeader,
        small: &[u8],
        body: Body,
        failed: Option<Code>,
    ) {
        let node = self.core.node;
        let op = Op::from_u8(header.op).filter(|op| on_wire(*op));
        let object = header.target.object().filter(|o| o.node == node);
        let (Some(op), Some(object), None) = (op, object, failed) else {
            return self.refuse(link, header, failed.unwrap_or(Code::InvalidArgument));
        };
        let job = Job {
            origin: origin(link, header),
            op,
            object,
            arg0: header.arg0.get(),
            arg1: header.arg1.get(),
            trace: header.trace_id(),
            deadline: here(header.deadline.get(), link.clock_offset()),
        };
        self.core
            .with_owner(|owner, member, answers| owner.execute(member, job, small, body, answers));
    }

    /// Answers a request with nothing but a code.
    fn refuse(&self, link: &Arc<dyn Link>, request: &FrameHeader, code: Code) {
        if request.request.get() == 0 {
            return;
        }
        let header = FrameHeader {
            kind: FrameKind::Reply as u8,
            op: request.op,
            status: code.to_i32().into(),
            request: request.request,
            target: request.target,
            ..zerocopy::FromZeros::new_zeroed()
        };
        let body = Body::empty();
        // A closed link needs no answer.
        let _ = self.core.submit(link, Frame { header, body });
    }

    fn slot_down(&self, link: &Arc<dyn Link>, request: &FrameHeader) {
        let slot = SlotId {
            index: request.slot.get(),
            generation: request.slot_generation.get(),
        };
        let node = link.node();
        self.core
            .with_owner(|owner, member, answers| owner.slot_down(member, node, slot, answers));
        self.refuse(link, request, Code::Ok);
    }

    fn goodbye(&self, node: NodeIndex) {
        tracing::debug!(%node, "the node's agent closes");
        self.core.node_gone(node, Code::NodeDown);
    }
}

impl Handler for Events<'_> {
    fn land(&mut self, _: &Arc<dyn Link>, header: &FrameHeader) -> Option<Body> {
        let length = header.payload.get();
        match PoolBlock::allocate(&self.core.member, length) {
            Ok(block) => return Some(Body::Block(block)),
            Err(error) => {
                self.no_room = error.code();
                tracing::debug!(%error, length, "no place for a payload");
            }
        }
        // A message that was taken for a caller here must not be lost: it goes back to its owner. One at a time.
        let rescue = super::stats::carries_message(header)
            && header.kind != FrameKind::Request as u8
            && length <= RESCUE;
        rescue.then(|| Body::Bytes(vec![0; usize::try_from(length).unwrap_or(0)]))
    }

    fn frame(&mut self, link: &Arc<dyn Link>, header: &FrameHeader, payload: Incoming<'_>) {
        // Answers leave together, see `pause`.
        outbox::hold();
        let core = self.core;
        core.counters
            .received(header, &core.member.control().words().counters);
        let side = link.side();
        let no_room = self.no_room;
        match (FrameKind::from_u8(header.kind), side) {
            (Some(FrameKind::Request), Side::Accepted) => match payload {
                Incoming::Small(bytes) => self.request(link, header, bytes, Body::empty(), None),
                Incoming::Landed(body) => self.request(link, header, &[], body, None),
                Incoming::Skipped(_) => {
                    self.request(link, header, &[], Body::empty(), Some(no_room));
                }
            },
            (Some(FrameKind::Reply), Side::Opened) => {
                let payload = match payload {
                    Incoming::Small(bytes) => Payload::Small(bytes),
                    Incoming::Landed(body) => Payload::Body(body),
                    Incoming::Skipped(_) => Payload::Lost(no_room),
                };
                core.reply(&**link, header, payload);
            }
            (Some(FrameKind::Cancel), Side::Accepted) => {
                let answer = header.arg0.get() == 1;
                let request = header.request.get();
                core.with_owner(|owner, member, answers| {
                    owner.cancel(member, link.id(), request, answer, answers);
                });
            }
            (Some(FrameKind::Return), Side::Accepted) => {
                let object = header.target.object().filter(|o| o.node == core.node);
                let body = match payload {
                    Incoming::Small(bytes) => Some(Body::Bytes(bytes.to_vec())),
                    Incoming::Landed(body) => Some(body),
                    Incoming::Skipped(_) => None,
                };
                if let (Some(object), Some(body)) = (object, body) {
                    core.put_back(object, header, body);
                }
            }
            (Some(FrameKind::SlotDown), Side::Accepted) => self.slot_down(link, header),
            (Some(FrameKind::Goodbye), _) => self.goodbye(link.node()),
            (kind, side) => {
                tracing::warn!(node = %link.node(), ?kind, ?side, "a frame in the wrong direction: the connection is closed");
                link.close();
            }
        }
    }

    fn pause(&mut self) {
        outbox::send();
    }

    fn up(&mut self, link: &Arc<dyn Link>) {
        tracing::debug!(node = %link.node(), side = ?link.side(), "connection up");
        self.links.insert(link.id(), Arc::clone(link));
        if link.side() == Side::Opened {
            self.core.requests().link_up(link.node());
            self.core.tell(link.node());
        }
    }

    fn lost(&mut self, link: &Arc<dyn Link>, was_up: bool, reason: &LinkError, unsent: Vec<Frame>) {
        let node = link.node();
        self.links.remove(&link.id());
        if let LinkError::Malformed(_) = reason {
            tracing::warn!(%node, side = ?link.side(), %reason, "connection closed");
        } else {
            tracing::debug!(%node, side = ?link.side(), %reason, "connection lost");
        }
        if link.side() == Side::Accepted {
            self.core
                .with_owner(|owner, member, _| owner.link_lost(member, link.id()));
            for frame in unsent {
                self.core.undelivered(link, frame);
            }
            return;
        }
        if is_closing(self.core) {
            return;
        }
        let numbers: HashSet<u64> = unsent.iter().map(|f| f.header.request.get()).collect();
        let (lost, again) = self
            .core
            .requests()
            .link_lost(node, link.id(), was_up, &numbers);
        if !lost.is_empty() {
            tracing::warn!(%node, %reason, requests = lost.len(), "requests failed: the connection is lost");
        }
        for pending in lost {
            self.core.fail(&pending, Code::Unreachable);
        }
        if again {
            for frame in unsent {
                self.core.send_to(node, frame);
            }
            // The word that nobody waits for them may have overtaken them.
            let cancelled = self
                .core
                .requests()
                .cancelled(numbers.into_iter().collect());
            for number in cancelled {
                self.core.cancel(number, node, true);
            }
        }
    }
}

fn origin(link: &Arc<dyn Link>, header: &FrameHeader) -> Origin {
    Origin {
        link: Some(Arc::clone(link)),
        request: header.request.get(),
        node: link.node(),
        slot: SlotId {
            index: header.slot.get(),
            generation: header.slot_generation.get(),
        },
    }
}

/// A deadline on this node's clock.
fn here(deadline: u64, offset: i64) -> u64 {
    match deadline {
        wire::NOW | wire::NEVER => deadline,
        // Neither end of the scale may be reached: both mean something else.
        at => at.saturating_add_signed(offset).clamp(1, wire::NEVER - 1),
    }
}

/// Whether another node may ask for this.
fn on_wire(op: Op) -> bool {
    !matches!(op, Op::Notify | Op::Allocate | Op::Free)
}
