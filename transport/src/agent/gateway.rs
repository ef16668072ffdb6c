//! The gateway thread: takes the requests of this node's processes out of the gateway channel and sends them, and does
//! what the daemon asks of the agent, in one order for all of it.

use core::sync::atomic::Ordering;

use dragon_channels::set::elsewhere::{self, Subscription};
use dragon_protocol::op::Op;
use dragon_protocol::wire::{self, FrameHeader, FrameKind, Request};
use dragon_protocol::{Code, ObjectId, ObjectKind, SlotId};
use dragon_shmem::Block;
use zerocopy::FromBytes;

use super::core::{Core, header, is_closing};
use super::local::{self, Received};
use super::outbox;
use super::requests::Caller;
use crate::body::{Body, PoolBlock};

/// How many requests are taken before their frames leave, at most.
const TOGETHER: usize = 64;

/// Runs until the agent closes.
pub(super) fn run(core: &Core) {
    loop {
        while let Some(command) = core.next_command() {
            obey(core, command);
        }
        if is_closing(core) {
            break;
        }
        match local::next_request(&core.gateway) {
            Received::Request(bytes) => requests(core, &bytes),
            Received::Again => {}
            Received::Over(error) => {
                tracing::debug!(%error, "the gateway is closed");
                break;
            }
        }
    }
    // What is in the gateway now gets an answer, unless its caller has gone; nobody takes from it afterwards.
    while let Some(bytes) = local::left_request(&core.gateway) {
        refuse(core, &bytes);
    }
    local::close_gateway(&core.gateway);
    core.end_all();
    core.fabric.wake();
}

fn obey(core: &Core, command: super::core::Command) {
    use super::core::Command;
    match command {
        Command::Post(object, hint, bytes) => core.post(object, hint, Body::Bytes(bytes)),
        Command::Changed(object) => changed(core, object, 0),
        Command::SlotGone(slot, held, untaken) => {
            let nodes = held.iter().map(|object| object.node);
            let nodes = nodes.filter(|node| *node != core.node);
            let end = core.requests().slot_gone(slot, nodes);
            for (number, node) in end.cancel {
                core.cancel(number, node, false);
            }
            for reply in untaken {
                core.untaken(reply);
            }
            for node in end.tell {
                core.tell(node);
            }
            // It may have died before it told of a member that it took out of a set.
            core.drop_unwanted(None, None);
        }
        Command::NodeDown(node) => {
            core.node_gone(node, Code::NodeDown);
            core.fabric.forget(node);
            core.with_owner(|owner, member, answers| owner.node_down(member, node, answers));
        }
        Command::Close => core.closing.store(true, Ordering::Release),
    }
}

/// Does what a request asks, and what those ask that lie behind it by now: their frames leave in the same calls to the
/// network.
fn requests(core: &Core, first: &[u8]) {
    outbox::hold();
    request(core, first);
    for _ in 1..TOGETHER {
        match local::left_request(&core.gateway) {
            Some(bytes) => request(core, &bytes),
            None => break,
        }
    }
    outbox::send();
}

fn request(core: &Core, bytes: &[u8]) {
    let Ok((request, inline)) = Request::read_from_prefix(bytes) else {
        // Too short for a request: a nudge to look at the commands.
        return;
    };
    let caller = caller(&request);
    let Some((trace, inline)) = traced(&request, inline) else {
        return core.complete(caller, Code::Corrupt);
    };
    let body = match body(core, &request, inline) {
        Ok(body) => body,
        Err(code) => return core.complete(caller, code),
    };
    if request.op == 0 {
        return cancel(core, caller);
    }
    let Some(op) = Op::from_u8(request.op) else {
        return core.complete(caller, Code::InvalidArgument);
    };
    let Some(target) = request.target.object() else {
        return core.complete(caller, Code::InvalidArgument);
    };
    if op == Op::Notify {
        return changed(core, target, request.arg0.get());
    }
    if target.node == core.node || body.len() > wire::MAX_PAYLOAD {
        let own = target.node == core.node;
        let code = if own {
            Code::InvalidArgument
        } else {
            Code::TooLarge
        };
        return core.complete(caller, code);
    }
    let frame = FrameHeader {
        slot: request.slot,
        slot_generation: request.slot_generation,
        deadline: request.deadline,
        arg0: request.arg0,
        arg1: request.arg1,
        payload: body.len().into(),
        ..header(FrameKind::Request, op, target)
    };
    let frame = frame.with_trace(trace);
    if op == Op::Subscribe && request.thread.get() == wire::NO_REPLY {
        return subscribe(core, frame, inline);
    }
    if request.thread.get() != wire::NO_REPLY {
        return core.request(caller, frame, op, body);
    }
    if !core.requests().is_gone(slot(&request)) {
        let header = frame;
        core.send_to(target.node, crate::fabric::Frame { header, body });
    }
}

/// An object of this node changed that the agent watches, or a set asks for less: for the member in place `argument - 1`, or
/// for any.
fn changed(core: &Core, object: ObjectId, argument: u64) {
    if object.kind == ObjectKind::Set {
        let place = argument.checked_sub(1);
        let place = place.map(|place| u32::try_from(place).unwrap_or(u32::MAX));
        return core.drop_unwanted(Some(object), place);
    }
    core.with_owner(|owner, member, answers| owner.changed(member, object, answers));
}

/// A set of this node asks for an object of another one. The question is the set's, so it is not bound to the process that
/// asks.
fn subscribe(core: &Core, frame: FrameHeader, inline: &[u8]) {
    let Ok((subscription, _)) = wire::Subscription::read_from_prefix(inline) else {
        return;
    };
    let subscription = Subscription::of_request(core.node, &subscription);
    // The set may have gone, or the process, whose end was told before its last request was read.
    if !elsewhere::is_wanted(&core.member, subscription) {
        return;
    }
    let own = core.member.slot();
    let frame = FrameHeader {
        slot: own.index.into(),
        slot_generation: own.generation.into(),
        deadline: wire::NEVER.into(),
        payload: 0.into(),
        ..frame
    };
    let caller = Caller::Member(subscription);
    core.request(caller, frame, Op::Subscribe, Body::empty());
}

/// A thread waits no longer: its request ends, unless its end is on the way already.
pub(super) fn cancel(core: &Core, caller: Caller) {
    let mut requests = core.requests();
    if let Some((number, node)) = requests.cancel(caller) {
        drop(requests);
        return core.cancel(number, node, true);
    }
    let later = requests.cancel_later(caller);
    drop(requests);
    if later {
        core.fabric.wake();
    } else {
        core.complete(caller, Code::Cancelled);
    }
}

fn refuse(core: &Core, bytes: &[u8]) {
    let Ok((request, inline)) = Request::read_from_prefix(bytes) else {
        return;
    };
    if let Some((_, inline)) = traced(&request, inline) {
        // Dropping the body frees its block.
        drop(body(core, &request, inline));
    }
    core.complete(caller(&request), Code::RuntimeGone);
}

/// The trace id that follows a request, and what follows that. `None`: it should be there and is not.
fn traced<'a>(request: &Request, inline: &'a [u8]) -> Option<(Option<[u8; 16]>, &'a [u8])> {
    if request.target.flags & wire::TRACED == 0 {
        return Some((None, inline));
    }
    let (trace, rest) = inline.split_first_chunk()?;
    Some((Some(*trace), rest))
}

/// The payload of a request: what follows it, or the block that it names, which is this process's from now on unless it is
/// lent.
fn body(core: &Core, request: &Request, inline: &[u8]) -> Result<Body, Code> {
    let length = request.payload.get();
    if request.by_reference == 0 {
        let length = usize::try_from(length).map_err(|_| Code::Corrupt)?;
        let bytes = inline.get(..length).ok_or(Code::Corrupt)?;
        return Ok(Body::Bytes(bytes.to_vec()));
    }
    let offset = request.block.get();
    if request.by_reference == 2 {
        let at = inline.first_chunk().copied().map(u64::from_le_bytes);
        let at = at.ok_or(Code::Corrupt)?;
        let lent = PoolBlock::lend(&core.member, offset, at, length);
        return lent.map(Body::Block).map_err(|e| e.code());
    }
    let block = PoolBlock::adopt(&core.member, Block { offset, length });
    block.map(Body::Block).map_err(|e| e.code())
}

fn caller(request: &Request) -> Caller {
    Caller::Thread {
        slot: slot(request),
        thread: request.thread.get(),
        ticket: request.ticket.get(),
    }
}

fn slot(request: &Request) -> SlotId {
    SlotId {
        index: request.slot.get(),
        generation: request.slot_generation.get(),
    }
}
