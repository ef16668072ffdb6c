//! Objects of other nodes: a request into the node's gateway channel, and the reply in the thread's reply cell.
//!
//! The deadline travels with the request, and the owner's agent ends it there; so a reply always comes, at the latest from
//! this node's agent when the owner's node is lost, and nobody waits here with a deadline of its own. A signal cancels the
//! request: the reply is then [`Code::Cancelled`], or the real one if it was quicker.

use std::io::IoSlice;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::wire::{self, NO_REPLY, Request};
use dragon_protocol::{Code, ObjectId};
use dragon_shmem::member::Reserved;
use dragon_shmem::thread::{Reply, ReplyPayload};
use dragon_shmem::{Block, Deadline, Member, ThreadGuard, WaitResult};
use zerocopy::IntoBytes as _;

use crate::attempt::Arguments;
use crate::channel::{self, Attributes, Local, Outgoing, block_of};
use crate::error::{Error, Result};
use crate::message::Message;
use crate::ring::Label;
use crate::set::elsewhere::Subscription;
use crate::wait::Spin;

/// The operation number of a request that cancels the one with the same ticket.
pub const CANCEL: u8 = 0;
/// Messages that a gateway channel holds: more than threads that can have a request under way at once, in all but the
/// largest jobs; when it is full, senders wait.
pub const GATEWAY_CAPACITY: u32 = 1024;
/// Bytes of a request with its payload that travel inline in a gateway channel.
pub const GATEWAY_BLOCK: u32 = 336;

/// Bytes of a request without payload.
const REQUEST: u64 = size_of::<Request>() as u64;

/// Asks for an operation without payload, and waits for the reply.
///
/// # Errors
/// What the reply says; [`Error::NoGateway`] without an agent; [`Error::Interrupted`].
pub fn call(
    member: &Arc<Member>,
    op: Op,
    object: ObjectId,
    arguments: [u64; 2],
    deadline: Deadline,
) -> Result<Reply> {
    let answer = ask(member, op, object, arguments, &What::Nothing, deadline)?;
    answer.discard(member)
}

/// Sends a message to a channel of another node.
pub(crate) fn send(
    member: &Arc<Member>,
    object: ObjectId,
    parts: &[IoSlice<'_>],
    label: &Label,
    deadline: Deadline,
) -> Result<u64> {
    send_to(member, object, parts, label, deadline)
}

/// As [`send`]; the second argument names a conversation of an endpoint.
pub(crate) fn send_to(
    member: &Arc<Member>,
    object: ObjectId,
    parts: &[IoSlice<'_>],
    arguments: impl Into<Arguments>,
    deadline: Deadline,
) -> Result<u64> {
    let what = What::Parts(parts);
    sent(
        member,
        ask(member, Op::Send, object, arguments, &what, deadline)?,
    )
}

/// What the reply to a send says: where the message lies.
fn sent(member: &Member, answer: Answer<'_>) -> Result<u64> {
    Ok(answer.discard(member)?.arg0)
}

/// Sends a message to a channel of another node without waiting for a reply. An error is told to nobody; the agents log it.
pub(crate) fn post_message(
    member: &Arc<Member>,
    object: ObjectId,
    parts: &[IoSlice<'_>],
    label: &Label,
    deadline: Deadline,
) -> Result<()> {
    let thread = member.thread()?;
    let mut request = request(member, &thread, Op::Send as u8, object);
    request.thread = NO_REPLY.into();
    request.arg0 = label.hint.into();
    request.deadline = deadline.to_wire().into();
    post_traced(member, &thread, &request, label.trace, &What::Parts(parts))
}

/// Sends a private block to a channel of another node. With success the block is the agent's.
pub(crate) fn send_block(
    member: &Arc<Member>,
    object: ObjectId,
    block: Block,
    label: &Label,
    deadline: Deadline,
) -> Result<u64> {
    send_block_to(member, object, block, label, deadline)
}

/// As [`send_block`]; the second argument names a conversation of an endpoint.
pub(crate) fn send_block_to(
    member: &Arc<Member>,
    object: ObjectId,
    block: Block,
    arguments: impl Into<Arguments>,
    deadline: Deadline,
) -> Result<u64> {
    let what = What::Block(block);
    sent(
        member,
        ask(member, Op::Send, object, arguments, &what, deadline)?,
    )
}

/// Asks for an operation with a payload.
pub(crate) fn call_with(
    member: &Arc<Member>,
    op: Op,
    object: ObjectId,
    arguments: [u64; 2],
    parts: &[IoSlice<'_>],
    deadline: Deadline,
) -> Result<Reply> {
    let what = What::Parts(parts);
    Ok(ask(member, op, object, arguments, &what, deadline)?.reply)
}

/// As [`call_with`], with a private block for the payload. With success the block is the agent's.
pub(crate) fn call_with_block(
    member: &Arc<Member>,
    op: Op,
    object: ObjectId,
    arguments: [u64; 2],
    block: Block,
    deadline: Deadline,
) -> Result<Reply> {
    let what = What::Block(block);
    Ok(ask(member, op, object, arguments, &what, deadline)?.reply)
}

/// Receives a message from a channel of another node.
pub(crate) fn receive(
    member: &Arc<Member>,
    object: ObjectId,
    deadline: Deadline,
) -> Result<Message> {
    receive_from(member, object, 0, deadline)
}

/// As [`receive`], a message of at most `room` bytes: a longer one stays in the channel.
pub(crate) fn receive_at_most(
    member: &Arc<Member>,
    object: ObjectId,
    room: u64,
    deadline: Deadline,
) -> Result<Message> {
    let arguments = [room.saturating_add(1), 0];
    Ok(call_for_message(member, Op::Receive, object, arguments, deadline)?.0)
}

/// The most bytes that a message may have, by argument 0 of [`Op::Receive`]: that is one more, or 0 for what fits into a
/// frame.
pub(crate) fn most_bytes(argument: u64) -> u64 {
    argument
        .checked_sub(1)
        .map_or(wire::MAX_PAYLOAD, |room| room.min(wire::MAX_PAYLOAD))
}

/// Why a channel keeps the next message, whose length the reply to [`Op::Receive`] names.
fn kept(channel: ObjectId, length: u64, argument: u64) -> Error {
    let room = argument.wrapping_sub(1);
    if length <= wire::MAX_PAYLOAD {
        Error::TooLong {
            channel,
            length,
            room,
        }
    } else {
        Error::TooLarge {
            length,
            limit: wire::MAX_PAYLOAD,
        }
    }
}

/// A copy of the oldest message of a channel of another node.
pub(crate) fn peek(member: &Arc<Member>, object: ObjectId, deadline: Deadline) -> Result<Message> {
    Ok(call_for_message(member, Op::Peek, object, [0, 0], deadline)?.0)
}

/// What a channel of another node is and how full.
pub(crate) fn attributes(member: &Arc<Member>, object: ObjectId) -> Result<Attributes> {
    let (reply, _) = call_for_message(member, Op::Attributes, object, [0, 0], Deadline::Now)?;
    decode(&reply.into_vec()).ok_or(Error::Remote(Code::Corrupt, object))
}

/// Words of [`Attributes`] in a reply.
const ATTRIBUTES: usize = 9;

/// Attributes as the payload of a reply: nine words, little-endian.
pub(crate) fn encode(attributes: &Attributes) -> Vec<u8> {
    let Attributes {
        messages,
        capacity,
        block,
        unbounded,
        senders_waiting,
        receivers_waiting,
        watchers,
        segments,
        bytes,
    } = *attributes;
    let words: [u64; ATTRIBUTES] = [
        messages,
        capacity,
        block,
        unbounded.into(),
        senders_waiting.into(),
        receivers_waiting.into(),
        watchers.into(),
        segments.into(),
        bytes,
    ];
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The inverse of [`encode`].
fn decode(payload: &[u8]) -> Option<Attributes> {
    let (words, _) = payload.as_chunks::<8>();
    let word = |n: usize| words.get(n).copied().map(u64::from_le_bytes);
    let small = |n: usize| word(n).and_then(|word| u32::try_from(word).ok());
    Some(Attributes {
        messages: word(0)?,
        capacity: word(1)?,
        block: word(2)?,
        unbounded: word(3)? != 0,
        senders_waiting: small(4)?,
        receivers_waiting: small(5)?,
        watchers: small(6)?,
        segments: small(7)?,
        bytes: word(8)?,
    })
}

/// As [`receive`], from a conversation of an endpoint.
pub(crate) fn receive_from(
    member: &Arc<Member>,
    object: ObjectId,
    conversation: u64,
    deadline: Deadline,
) -> Result<Message> {
    let arguments = [0, conversation];
    Ok(call_for_message(member, Op::Receive, object, arguments, deadline)?.0)
}

/// Asks for an operation whose reply is a message. Also the reply's second result.
pub(crate) fn call_for_message(
    member: &Arc<Member>,
    op: Op,
    object: ObjectId,
    arguments: [u64; 2],
    deadline: Deadline,
) -> Result<(Message, u64)> {
    let answer = ask(member, op, object, arguments, &What::Nothing, deadline)?;
    message_of(member, answer)
}

/// Copies bytes of a block of this node, from the second place on, to a place in a block of another one.
pub(crate) fn copy_in(
    member: &Arc<Member>,
    pool: ObjectId,
    to: [u64; 2],
    (block, at): (u64, u64),
    length: u64,
) -> Result<()> {
    let what = What::Lent(block, at, length);
    let answer = ask(member, Op::CopyIn, pool, to, &what, Deadline::Never)?;
    answer.discard(member).map(drop)
}

/// A copy of bytes of a block of another node.
pub(crate) fn copy_out(
    member: &Arc<Member>,
    pool: ObjectId,
    from: [u64; 2],
    length: u64,
) -> Result<Message> {
    let length = length.to_le_bytes();
    let parts = [IoSlice::new(&length)];
    let what = What::Parts(&parts);
    let answer = ask(member, Op::CopyOut, pool, from, &what, Deadline::Never)?;
    Ok(message_of(member, answer)?.0)
}

/// Gives a block of another node back; waits for no reply.
pub(crate) fn free_block(member: &Arc<Member>, pool: ObjectId, address: u64) -> Result<()> {
    tell(member, Op::BlockFree, pool, address)
}

/// The message that came with a reply, and the reply's second result.
fn message_of(member: &Arc<Member>, answer: Answer<'_>) -> Result<(Message, u64)> {
    let Answer { reply, place } = answer;
    let mut message = match reply.payload {
        ReplyPayload::Inline(bytes) => Message::owned(reply.arg0, bytes),
        ReplyPayload::Block { offset, length } => {
            Message::held(member, reply.arg0, offset, length, place.keep())?
        }
    };
    message.set_trace(reply.trace);
    Ok((message, reply.arg1))
}

/// Gives a reference back, or drops one that is in transit; waits for no reply.
pub(crate) fn detach(member: &Arc<Member>, object: ObjectId, transit: bool) -> Result<()> {
    tell(member, Op::Detach, object, transit.into())
}

/// Gives a reference back, unless what this process holds can be released or recovered only through it; waits for the
/// reply, which says whether it was given back.
pub(crate) fn detach_unless_held(member: &Arc<Member>, object: ObjectId) -> Result<bool> {
    match call(member, Op::Detach, object, [0, 0], Deadline::Never) {
        Ok(reply) => Ok(reply.arg0 != KEPT),
        // Nobody knows whether it was: then it stays, which does no harm.
        Err(Error::Interrupted) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Argument 0 of the reply to [`Op::Detach`]: the reference stays, since the process holds the object.
pub(crate) const KEPT: u64 = 1;

/// Tells this node's agent that an object changed on which it has requests parked.
///
/// # Errors
/// [`Error::NoGateway`] without an agent.
pub fn notify(member: &Arc<Member>, object: ObjectId) -> Result<()> {
    tell(member, Op::Notify, object, 0)
}

/// Tells this node's agent that a set asks for less: for the member in a place, or for any.
pub(crate) fn ask_for_less(member: &Arc<Member>, set: ObjectId, place: Option<u32>) -> Result<()> {
    let argument = place.map_or(0, |place| u64::from(place) + 1);
    tell(member, Op::Notify, set, argument)
}

/// Has this node's agent ask once when an object of another node is ready, and hand the answer to a set.
pub(crate) fn subscribe(
    member: &Arc<Member>,
    object: ObjectId,
    interest: u32,
    subscription: Subscription,
) -> Result<()> {
    let thread = member.thread()?;
    let mut request = request(member, &thread, Op::Subscribe as u8, object);
    request.thread = NO_REPLY.into();
    request.arg0 = u64::from(interest).into();
    let subscription = subscription.to_request();
    let parts = [IoSlice::new(subscription.as_bytes())];
    post(member, &thread, &request, &What::Parts(&parts))
}

fn tell(member: &Arc<Member>, op: Op, object: ObjectId, argument: u64) -> Result<()> {
    let thread = member.thread()?;
    let mut request = request(member, &thread, op as u8, object);
    request.thread = NO_REPLY.into();
    request.arg0 = argument.into();
    request.deadline = wire::NEVER.into();
    post_surely(member, &thread, &request)
}

/// Puts a request into the gateway channel, whatever signals come: what is not told now is never told.
fn post_surely(member: &Arc<Member>, thread: &ThreadGuard<'_>, request: &Request) -> Result<()> {
    loop {
        match post(member, thread, request, &What::Nothing) {
            Err(Error::Interrupted) => {}
            posted => return posted,
        }
    }
}

enum What<'a> {
    Nothing,
    Parts(&'a [IoSlice<'a>]),
    Block(Block),
    /// Bytes of a block that stays the caller's: its address, where in it, how many.
    Lent(u64, u64, u64),
}

/// A reply, and the place in the held table where its block stands if it has one.
struct Answer<'a> {
    reply: Reply,
    place: Reserved<'a>,
}

impl Answer<'_> {
    /// The reply without its block, which is freed.
    fn discard(mut self, member: &Member) -> Result<Reply> {
        if let ReplyPayload::Block { offset, .. } = self.reply.payload {
            member.free_held(self.place.keep(), offset)?;
            self.reply.payload = ReplyPayload::Inline(Vec::new());
        }
        Ok(self.reply)
    }
}

impl From<&Label> for Arguments {
    fn from(label: &Label) -> Self {
        Self {
            words: [label.hint, 0],
            trace: label.trace,
        }
    }
}

fn ask<'a>(
    member: &'a Arc<Member>,
    op: Op,
    object: ObjectId,
    arguments: impl Into<Arguments>,
    what: &What<'_>,
    deadline: Deadline,
) -> Result<Answer<'a>> {
    let Arguments {
        words: arguments,
        trace,
    } = arguments.into();
    // Before the request leaves: a block that comes with the reply must find a place.
    let place = member.reserve()?;
    let thread = member.thread()?;
    let ticket = thread.reply.begin(op, object);
    let mut request = request(member, &thread, op as u8, object);
    request.ticket = ticket.into();
    request.deadline = deadline.to_wire().into();
    request.arg0 = arguments[0].into();
    request.arg1 = arguments[1].into();
    if let Err(error) = post_traced(member, &thread, &request, trace, what) {
        // No agent has the ticket, so the cell is ours.
        let _ = thread.reply.abandon();
        return Err(error);
    }
    channel::count(&member.counters().remote, 1);
    let spins = reply_spins(member);
    let record = |block| place.set(block);
    let reply = match thread.reply.wait(Deadline::Never, spins, record) {
        Ok(reply) => reply,
        Err(_) => cancel(member, &thread, object, ticket, record)?,
    };
    drop(thread);
    let answer = Answer { reply, place };
    let code = Code::from_i32(answer.reply.status);
    match Error::of_reply(code, object) {
        None => Ok(answer),
        Some(Error::Remote(Code::Cancelled, _)) => Err(Error::Interrupted),
        Some(Error::Remote(Code::TooLarge, _)) if op == Op::Receive => {
            let length = answer.discard(member)?.arg0;
            Err(kept(object, length, arguments[0]))
        }
        Some(error) => answer.discard(member).and(Err(error)),
    }
}

/// Cancels a request after a signal, and waits for what comes in its place.
fn cancel(
    member: &Arc<Member>,
    thread: &ThreadGuard<'_>,
    object: ObjectId,
    ticket: u64,
    record: impl Fn(u64),
) -> Result<Reply> {
    let mut request = request(member, thread, CANCEL, object);
    request.ticket = ticket.into();
    let posted = post_surely(member, thread, &request);
    if posted.is_err() && thread.reply.abandon() {
        return Err(Error::Interrupted);
    }
    loop {
        match thread.reply.wait(Deadline::Never, 0, &record) {
            Ok(reply) => return Ok(reply),
            Err(WaitResult::Interrupted) => {}
            Err(_) => return Err(Error::Interrupted),
        }
    }
}

fn request(member: &Member, thread: &ThreadGuard<'_>, op: u8, object: ObjectId) -> Request {
    let slot = member.slot();
    Request {
        op,
        by_reference: 0,
        reserved: [0; 2],
        slot: slot.index.into(),
        slot_generation: slot.generation.into(),
        thread: thread.index().into(),
        ticket: 0.into(),
        target: object.into(),
        deadline: wire::NEVER.into(),
        arg0: 0.into(),
        arg1: 0.into(),
        block: 0.into(),
        payload: 0.into(),
    }
}

/// Puts a request into the gateway channel.
fn post(
    member: &Arc<Member>,
    thread: &ThreadGuard<'_>,
    request: &Request,
    what: &What<'_>,
) -> Result<()> {
    post_traced(member, thread, request, None, what)
}

/// As [`post`], a message with a trace id.
fn post_traced(
    member: &Arc<Member>,
    thread: &ThreadGuard<'_>,
    request: &Request,
    trace: Option<[u8; 16]>,
    what: &What<'_>,
) -> Result<()> {
    let object = request.target.object();
    let none = || {
        let node = member.control().node();
        // The request was made from an id, so there is one.
        object.map_or(Error::Timeout, |object| Error::NoGateway(node, object))
    };
    let gateway = member.control().gateway().ok_or_else(none)?;
    member.control().slot(member.slot().index)?.set_asked();
    let entry = member.control().entry(gateway).map_err(|_| none())?;
    let ring = channel::open(member, entry)?;
    let local = Local {
        member,
        id: gateway,
        entry,
        ring: &ring,
        opened: None,
        row: None,
    };
    let put = |request: &Request, parts: &[IoSlice<'_>], carried: Option<u64>| {
        let mut all = Vec::with_capacity(parts.len() + 2);
        all.push(IoSlice::new(request.as_bytes()));
        all.extend(trace.iter().map(|trace| IoSlice::new(trace)));
        all.extend(parts.iter().map(|part| IoSlice::new(part)));
        let length = all.iter().map(|part| part.len() as u64).sum();
        let outgoing = match carried {
            Some(offset) => Outgoing::Carrying(&all, length, offset),
            None => Outgoing::Inline(&all, length),
        };
        let label = Label::default();
        let sent = local.send(thread, &Spin::default(), &outgoing, &label, Deadline::Never);
        // The agent has closed its gateway; the object itself may be well.
        sent.map(drop).map_err(|error| match error {
            Error::Destroyed(_) => none(),
            other => other,
        })
    };
    let mut request = *request;
    let mut header = REQUEST;
    if let Some(trace) = &trace {
        request.target.flags |= wire::TRACED;
        header += trace.len() as u64;
    }
    let (block, ours) = match what {
        What::Nothing => return put(&request, &[], None),
        What::Parts(parts) => {
            let length = parts.iter().map(|part| part.len() as u64).sum::<u64>();
            check_length(length)?;
            request.payload = length.into();
            if header + length <= local.ring.inline() {
                return put(&request, parts, None);
            }
            (block_of(member, parts, length)?, true)
        }
        What::Block(block) => (*block, false),
        What::Lent(address, at, length) => {
            check_length(*length)?;
            request.by_reference = 2;
            request.block = (*address).into();
            request.payload = (*length).into();
            return put(&request, &[IoSlice::new(&at.to_le_bytes())], None);
        }
    };
    check_length(block.length)?;
    request.by_reference = 1;
    request.block = block.offset.into();
    request.payload = block.length.into();
    let sent = put(&request, &[], Some(block.offset));
    if sent.is_err() && ours {
        member.free(block.offset)?;
    }
    sent
}

fn check_length(length: u64) -> Result<()> {
    if length <= wire::MAX_PAYLOAD {
        Ok(())
    } else {
        Err(Error::TooLarge {
            length,
            limit: wire::MAX_PAYLOAD,
        })
    }
}

/// Rounds to spin for a reply. With few CPUs the agents need them more.
fn reply_spins(member: &Member) -> u32 {
    use dragon_shmem::sync::Ordering;
    if member.control().words().cpus.load(Ordering::Relaxed) > 4 {
        2_000
    } else {
        0
    }
}
