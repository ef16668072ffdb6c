//! Where the agent touches this node's own objects: attempts, watches, the gateway channel, blocks.

use std::cell::RefCell;
use std::sync::Arc;

use dragon_channels::{Arguments, Attempt, Channel, End, Error, Message, Payload, Waiting};
use dragon_protocol::{Code, ObjectId, SlotId};
use dragon_shmem::thread::ReplyPayload;
use dragon_shmem::{Deadline, Member};

use super::memory;
use super::owner::Job;
use crate::body::{Body, PoolBlock};
use crate::fabric::SMALL;

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is over.
    Done(Done),
    /// It has to wait.
    NotYet,
}

/// The end of an operation.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) code: Code,
    pub(super) arg0: u64,
    pub(super) arg1: u64,
    /// The received message.
    pub(super) body: Body,
    /// Its trace id.
    pub(super) trace: Option<[u8; 16]>,
}

impl Done {
    /// With nothing but a code.
    pub(super) fn with(code: Code) -> Self {
        Self {
            code,
            arg0: 0,
            arg1: 0,
            body: Body::empty(),
            trace: None,
        }
    }
}

/// Tries an operation. The payload is `small`, or else `body`, which is taken when the operation is done.
pub(super) fn attempt(
    member: &Arc<Member>,
    job: &Job,
    on_behalf: SlotId,
    small: &[u8],
    body: &mut Body,
    waiting: &mut Waiting,
) -> Outcome {
    if let Some(outcome) = memory::attempt(member, job, on_behalf, small, body) {
        return outcome;
    }
    let copy;
    let payload = match &*body {
        Body::Block(block) if block.is_shared() => Payload::Shared(block.block()),
        Body::Block(block) => Payload::Block(block.block()),
        Body::Bytes(bytes) if bytes.is_empty() => Payload::Inline(small),
        Body::Bytes(bytes) => Payload::Inline(bytes),
        Body::Message(_) => {
            copy = body.to_vec();
            Payload::Inline(&copy)
        }
    };
    let arguments = Arguments {
        words: [job.arg0, job.arg1],
        trace: job.trace,
    };
    let (op, object) = (job.op, job.object);
    let attempt =
        dragon_channels::attempt(member, op, object, on_behalf, arguments, payload, waiting);
    if let Attempt::Done { .. } = attempt
        && let Body::Block(block) = core::mem::replace(body, Body::empty())
    {
        // It was sent or freed.
        let _ = block.into_block();
    }
    outcome(attempt)
}

fn outcome(attempt: Attempt) -> Outcome {
    match attempt {
        Attempt::NotYet => Outcome::NotYet,
        Attempt::Done {
            status,
            arg0,
            arg1,
            message,
        } => Outcome::Done(Done {
            code: status,
            arg0,
            arg1,
            trace: message.as_ref().and_then(Message::trace),
            body: message.map_or_else(Body::empty, Body::from_message),
        }),
    }
}

/// Ends the wait of a request that was not done.
pub(super) fn withdraw(
    member: &Arc<Member>,
    job: &Job,
    on_behalf: SlotId,
    waiting: Waiting,
    end: End,
) -> Outcome {
    let (op, object) = (job.op, job.object);
    outcome(dragon_channels::withdraw(
        member, op, object, on_behalf, waiting, end,
    ))
}

/// Has the next change of an object told to the agent.
pub(super) fn watch(member: &Member, object: ObjectId) {
    if let Err(error) = dragon_channels::watch(member, object) {
        // It is gone: the attempts on it that follow find that out by themselves.
        tracing::debug!(%object, %error, "cannot be watched");
    }
}

/// Recovers what the process behind a proxy slot held here.
pub(super) fn recover(member: &Arc<Member>, proxy: SlotId) {
    match dragon_channels::recover(member, proxy) {
        Ok(recovered) => tracing::debug!(?proxy, ?recovered, "recovered a process of another node"),
        Err(error) => tracing::error!(?proxy, %error, "cannot recover a process of another node"),
    }
}

/// A body that is kept for long: not in the lease of a message, which takes a place in the daemon's held table.
pub(super) fn settled(member: &Arc<Member>, body: Body) -> Body {
    let Body::Message(_) = body else {
        return body;
    };
    let mut settled = match PoolBlock::allocate(member, body.len()) {
        Ok(block) if body.len() > SMALL => Body::Block(block),
        _ => return Body::Bytes(body.to_vec()),
    };
    body.copy_into(&mut settled);
    settled
}

/// The body as a block that everybody may use: what is handed to another process.
pub(super) fn to_shared_block(member: &Arc<Member>, body: Body) -> Result<Body, (Code, Body)> {
    let mut block = match body {
        Body::Block(block) => block,
        body => match PoolBlock::allocate(member, body.len().max(1)) {
            Err(error) => return Err((error.code(), body)),
            Ok(block) => {
                let length = body.len();
                let mut copy = Body::Block(block);
                body.copy_into(&mut copy);
                let Body::Block(block) = copy else {
                    return Err((Code::Corrupt, body));
                };
                block.cut(length)
            }
        },
    };
    match block.share() {
        Ok(()) => Ok(Body::Block(block)),
        Err(error) => Err((error.code(), Body::Block(block))),
    }
}

/// The reply that hands a shared block over.
pub(super) fn block_of(body: &Body) -> ReplyPayload {
    match body {
        Body::Block(block) => ReplyPayload::Block {
            offset: block.block().offset,
            length: block.block().length,
        },
        _ => ReplyPayload::Inline(Vec::new()),
    }
}

/// What the gateway gave.
pub(super) enum Received {
    /// A request.
    Request(Vec<u8>),
    /// Nothing, but the gateway stands: look at the commands.
    Again,
    /// There is no gateway any more.
    Over(Error),
}

/// Sleeps until there is something in the gateway.
pub(super) fn next_request(gateway: &Channel) -> Received {
    match gateway.receive(Deadline::Never) {
        Ok(message) => Received::Request(message.into_vec()),
        Err(Error::Interrupted | Error::Timeout | Error::Empty) => Received::Again,
        Err(error) => Received::Over(error),
    }
}

/// What is still in the gateway.
pub(super) fn left_request(gateway: &Channel) -> Option<Vec<u8>> {
    let message = gateway.receive(Deadline::Now).ok()?;
    Some(message.into_vec())
}

/// Wakes the gateway thread, if it sleeps.
pub(super) fn nudge(gateway: &Channel) {
    // A full gateway has woken it already.
    let _ = gateway.send(&[], 0, Deadline::Now);
}

/// Nobody can put a request into the gateway any more.
pub(super) fn close_gateway(gateway: &Channel) {
    if let Err(error) = gateway.destroy() {
        tracing::debug!(%error, "the gateway was gone already");
    }
}

thread_local! {
    /// While this thread works on objects: the watched ones that it has changed itself.
    static CHANGED: RefCell<Option<Vec<ObjectId>>> = const { RefCell::new(None) };
}

/// This thread works on objects, under the lock of the parked requests. What it changes is not told to the gateway thread;
/// it looks itself.
pub(super) struct Inside(());

impl Inside {
    pub(super) fn enter() -> Self {
        CHANGED.set(Some(Vec::new()));
        Self(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        CHANGED.set(None);
    }
}

/// Notes a change for later when this thread is inside; false when it is not.
pub(super) fn defer(object: ObjectId) -> bool {
    CHANGED.with_borrow_mut(|changed| match changed {
        Some(objects) => {
            objects.push(object);
            true
        }
        None => false,
    })
}

/// The changes noted since the last call.
pub(super) fn take_notified() -> Vec<ObjectId> {
    CHANGED.with_borrow_mut(|changed| changed.as_mut().map(core::mem::take).unwrap_or_default())
}
