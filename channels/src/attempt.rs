//! The operations for agents: they never wait. An agent executes the requests of other nodes; what cannot be done at once
//! it parks, arms the object's watch, and tries again when it is notified.

use std::borrow::Cow;
use std::io::IoSlice;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Code, ObjectId, ObjectKind, SlotId};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::reference::Change;
use dragon_shmem::sync::{Ordering, fence, low};
use dragon_shmem::{Block, Deadline, Member};

use crate::barrier::{Place, request};
use crate::channel::{Local, Outgoing, Poll, Source, Ticket, block_of, open};
use crate::condition::phase;
use crate::error::{Error, Result};
use crate::lock::Who;
use crate::message::Message;
use crate::object::{alive, destroy, discard, drop_transit};
use crate::remote;
use crate::ring::Label;
use crate::set::elsewhere::asked_for;
use crate::set::subscribers::AGENT;
use crate::wait::Spin;
use crate::{
    Trigger, barrier, broadcast, condition, event, lock, priority, process, semaphore, stream,
};

/// What comes with a request.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Bytes.
    Inline(&'a [u8]),
    /// A block of the default pool, private to the caller. With [`Attempt::Done`] it was sent or freed; with
    /// [`Attempt::NotYet`] it stays the caller's.
    Block(Block),
    /// A block that is shared already, as a message that is put back. Consumed like [`Payload::Block`].
    Shared(Block),
}

impl Payload<'_> {
    /// No payload.
    pub const EMPTY: Payload<'static> = Payload::Inline(&[]);
}

/// What an operation is told beside its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// See [`Op`].
    pub words: [u64; 2],
    /// The trace id of a message for a channel.
    pub trace: Option<[u8; 16]>,
}

impl From<[u64; 2]> for Arguments {
    fn from(words: [u64; 2]) -> Self {
        Self { words, trace: None }
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Attempt {
    /// It is over, one way or the other.
    Done {
        /// How.
        status: Code,
        /// First result.
        arg0: u64,
        /// Second result.
        arg1: u64,
        /// The received message.
        message: Option<Message>,
    },
    /// It must wait for a change of the object.
    NotYet,
}

impl Attempt {
    pub(crate) fn failed(status: Code) -> Self {
        Self::Done {
            status,
            arg0: 0,
            arg1: 0,
            message: None,
        }
    }

    /// Done when there is a message.
    fn with(message: Option<Message>) -> Self {
        match message {
            Some(message) => Self::Done {
                status: Code::Ok,
                arg0: message.hint(),
                arg1: 0,
                message: Some(message),
            },
            None => Self::NotYet,
        }
    }

    pub(crate) fn done(arg0: u64, arg1: u64) -> Self {
        Self::Done {
            status: Code::Ok,
            arg0,
            arg1,
            message: None,
        }
    }

    fn when(ready: bool) -> Self {
        if ready {
            Self::done(0, 0)
        } else {
            Self::NotYet
        }
    }
}

/// What an agent keeps with a request that waits, from one attempt to the next: since when it waits, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// What a counter of the object was at the first attempt.
    start: Option<u32>,
    /// Where among those who wait at the object.
    seat: Option<u32>,
    /// Where at a barrier.
    place: Option<Place>,
}

/// Tries an operation on an object of this node, for `on_behalf`: the slot, or proxy slot, that owns the locks and
/// references that it takes. [`Attempt::NotYet`] is only given for operations that can wait: what to do with it when the
/// caller does not want to wait is the agent's affair. Who tries again hands in the same `waiting`.
pub fn attempt(
    member: &Arc<Member>,
    op: Op,
    object: ObjectId,
    on_behalf: SlotId,
    arguments: impl Into<Arguments>,
    payload: Payload<'_>,
    waiting: &mut Waiting,
) -> Attempt {
    let Arguments {
        words: arguments,
        trace,
    } = arguments.into();
    let attempt = match op {
        Op::Attach => take_reference(member, object, on_behalf, arguments[0] != 0),
        Op::Detach => give_reference(member, object, on_behalf, arguments[0] != 0),
        _ => with_reference(member, object, |entry| {
            let call = Call {
                member,
                id: object,
                entry,
                on_behalf,
                arguments,
                trace,
            };
            execute(&call, op, payload, waiting)
        }),
    };
    let attempt = attempt.unwrap_or_else(|error| Attempt::failed(error.code()));
    if let (Attempt::Done { status, .. }, Payload::Block(block) | Payload::Shared(block)) =
        (&attempt, payload)
        && (*status != Code::Ok || !matches!(op, Op::Send | Op::Push))
    {
        // Fails only when the block was scribbled over; the requester gets the first error.
        let _ = member.free(block.offset);
    }
    attempt
}

/// Ends the wait of a request that was attempted and not done: its time is over, its caller does not want to wait any more,
/// or nobody is there any more to take the result (`wanted` is false). It may have been done at this very moment: then that
/// is returned, and is the answer.
pub fn withdraw(
    member: &Arc<Member>,
    op: Op,
    object: ObjectId,
    on_behalf: SlotId,
    waiting: Waiting,
    end: End,
) -> Attempt {
    let withdrawn = with_reference(member, object, |entry| {
        let call = Call {
            member,
            id: object,
            entry,
            on_behalf,
            arguments: [0, 0],
            trace: None,
        };
        give_up(&call, op, waiting, end)
    });
    // What is gone needs not be withdrawn from.
    withdrawn.unwrap_or(Attempt::NotYet)
}

/// What takes back what a request has obtained, by its results: for a caller that cannot be told of it any more. (An object that
/// it has made goes with the caller itself.)
#[must_use]
pub fn undoing(op: Op, [first, second]: [u64; 2]) -> Option<(Op, [u64; 2])> {
    Some(match op {
        // The results name the units; those of an earlier release do not, and there was one.
        Op::SemaphoreAcquire => (Op::SemaphoreRelease, [first.max(1), 0]),
        // They name the thread.
        Op::LockAcquire => (Op::LockRelease, [0, second]),
        Op::Attach => (Op::Detach, [0, 0]),
        // They name the conversation.
        Op::StreamOpen => (Op::StreamClose, [stream::UNOPEN, first]),
        Op::StreamAccept => (Op::StreamClose, [stream::UNACCEPT, first]),
        // They name its address.
        Op::BlockAllocate => (Op::BlockFree, [first, 0]),
        Op::ConditionWait if matches!(second, phase::SEATED | phase::GIVEN) => {
            (op, [phase::PASS_ON, first])
        }
        Op::BarrierWait => match second {
            request::ACTS => (op, [request::FAILED, first]),
            request::HELD | request::HELD_BY_SIGNAL => (op, [request::LEAVE, first]),
            _ => return None,
        },
        _ => return None,
    })
}

/// Why a request ends before it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its deadline has passed.
    Timeout,
    /// Its caller wants it to have had no effect: it does not want to wait, or a signal came.
    Cancelled,
    /// Nobody waits for the answer any more.
    Lost,
}

fn give_up(call: &Call<'_>, op: Op, waiting: Waiting, end: End) -> Result<Attempt> {
    let &Call {
        member, id, entry, ..
    } = call;
    if let Some(place) = waiting.place {
        return barrier::give_up(member, entry, id, place, end);
    }
    if op == Op::BarrierWait && end == End::Timeout {
        barrier::give_up_outside(member, entry, id)?;
    }
    match (op, waiting.seat) {
        (Op::BroadcastWait, Some(seat)) => {
            let wanted = end != End::Lost;
            Ok(Attempt::with(broadcast::withdraw(
                member, entry, id, seat, wanted,
            )?))
        }
        _ => Ok(Attempt::NotYet),
    }
}

/// Arms the watch of an object: its next change calls [`dragon_shmem::Hooks::notify`], or notifies the gateway. The caller
/// must attempt once more afterwards, for what changed in between.
///
/// # Errors
/// When there is no such object.
pub fn watch(member: &Member, object: ObjectId) -> Result<()> {
    member
        .control()
        .entry(object)?
        .watch
        .fetch_or(AGENT, Ordering::Relaxed);
    // Pairs with the fence between a change and the look at the watch.
    fence(Ordering::SeqCst);
    Ok(())
}

/// Keeps the object while the agent works on it: its users may all be gone at any moment.
pub(crate) fn with_reference<T>(
    member: &Arc<Member>,
    object: ObjectId,
    work: impl FnOnce(&ObjectEntry) -> Result<T>,
) -> Result<T> {
    let control = member.control();
    member.take_directly(object)?;
    let result = control
        .object(object.index)
        .map_err(Error::from)
        .and_then(work);
    member.give_directly(object, |entry| discard(member, object, entry))?;
    result
}

/// An operation on an object that is kept.
struct Call<'a> {
    member: &'a Arc<Member>,
    id: ObjectId,
    entry: &'a ObjectEntry,
    on_behalf: SlotId,
    arguments: [u64; 2],
    trace: Option<[u8; 16]>,
}

fn execute(
    call: &Call<'_>,
    op: Op,
    payload: Payload<'_>,
    waiting: &mut Waiting,
) -> Result<Attempt> {
    let &Call {
        member,
        id,
        entry,
        on_behalf,
        arguments: [arg0, arg1],
        trace,
    } = call;
    let slot = on_behalf.index;
    let who = |thread| Who {
        slot,
        thread: low(thread),
    };
    let is = |kind| {
        if id.kind == kind {
            Ok(())
        } else {
            Err(dragon_shmem::Error::WrongKind(id))
        }
    };
    let opened = std::cell::OnceCell::new();
    let channel = || -> Result<Local<'_>> {
        is(ObjectKind::Channel)?;
        // Before the channel is opened, so that the first error tells that it was destroyed.
        alive(entry, id)?;
        let ring = open(member, entry)?;
        let ring = opened.get_or_init(|| ring);
        Ok(Local {
            member,
            id,
            entry,
            ring,
            opened: None,
            row: None,
        })
    };
    Ok(match op {
        Op::Attributes
        | Op::StreamOpen
        | Op::StreamAccept
        | Op::StreamClose
        | Op::StreamWatch
        | Op::Send
        | Op::Receive
        | Op::PollReadable
            if id.kind == ObjectKind::Stream =>
        {
            stream::attempt(member, op, id, entry, on_behalf, call.arguments, payload)?
        }
        Op::Push | Op::Pop | Op::Peek | Op::PollReadable | Op::Attributes
            if id.kind == ObjectKind::PriorityQueue =>
        {
            priority::attempt(member, op, id, entry, call.arguments, payload)?
        }
        Op::Push | Op::Pop => return Err(dragon_shmem::Error::WrongKind(id).into()),
        Op::Send => {
            let label = Label { hint: arg0, trace };
            send(&channel()?, payload, &label)?
        }
        Op::Receive => receive(&channel()?, remote::most_bytes(arg0))?,
        Op::PollReadable => polled(&channel()?, Poll::Readable)?,
        Op::PollWritable => polled(&channel()?, Poll::Writable)?,
        Op::PollEmpty => polled(&channel()?, Poll::Empty)?,
        Op::PollFull => polled(&channel()?, Poll::Full)?,
        Op::Peek => match channel()?.try_peek()? {
            Some(message) => Attempt::Done {
                status: Code::Ok,
                arg0: message.hint(),
                arg1: 0,
                message: Some(message),
            },
            None => Attempt::NotYet,
        },
        Op::AwaitReceipt => {
            let channel = channel()?;
            // A receipt for no message: the wait for the channel's end.
            match Ticket::unpack(arg0).map(|ticket| channel.try_receipt(ticket)) {
                Some(received) => Attempt::when(received?.is_some()),
                None => Attempt::NotYet,
            }
        }
        Op::Attributes if id.kind == ObjectKind::Condition => {
            let (waiting, most) = condition::attributes(member, entry, id)?;
            Attempt::done(waiting.into(), most.into())
        }
        Op::Attributes if id.kind == ObjectKind::Broadcast => {
            let (waiting, most) = broadcast::attributes(member, entry, id)?;
            Attempt::done(waiting.into(), most.into())
        }
        Op::Attributes => {
            let attributes = channel()?.attributes()?;
            let bytes = remote::encode(&attributes);
            Attempt::Done {
                status: Code::Ok,
                arg0: attributes.messages,
                arg1: attributes.capacity,
                message: Some(Message::owned(0, bytes)),
            }
        }
        Op::Destroy => {
            destroy(member, id)?;
            Attempt::done(0, 0)
        }
        Op::Export => {
            member.control().change_directly(id, Change::Export)?;
            Attempt::done(0, 0)
        }
        Op::LockAcquire => {
            is(ObjectKind::Lock)?;
            alive(entry, id)?;
            match lock::try_acquire(entry, who(arg0), low(arg1)) {
                Some(acquired) => Attempt::done(acquired.owner_died.into(), arg0),
                None => Attempt::NotYet,
            }
        }
        Op::LockRelease => {
            is(ObjectKind::Lock)?;
            if arg0 == lock::WHOLLY {
                let depth = lock::give_up(member, entry, id, who(arg1))?;
                return Ok(Attempt::done(depth.into(), 0));
            }
            lock::release(member, entry, id, who(arg1), arg0 != 0)?;
            Attempt::done(0, 0)
        }
        Op::EventSet => {
            is(ObjectKind::Event)?;
            event::set(member, entry, id)?;
            Attempt::done(0, 0)
        }
        Op::EventClear => {
            is(ObjectKind::Event)?;
            event::clear(entry, id)?;
            Attempt::done(0, 0)
        }
        Op::EventWait => {
            is(ObjectKind::Event)?;
            Attempt::when(event::has_happened(entry, id, &mut waiting.start)?)
        }
        Op::EventIsSet => {
            is(ObjectKind::Event)?;
            Attempt::done(event::is_set(entry, id)?.into(), 0)
        }
        Op::ProcessWait => {
            is(ObjectKind::Process)?;
            match process::status(entry, id)? {
                Some(status) => Attempt::done(status.cast_unsigned().into(), 0),
                None => Attempt::NotYet,
            }
        }
        Op::SemaphoreAcquire => {
            is(ObjectKind::Semaphore)?;
            // A request of an earlier release names no units.
            let units = low(arg0).max(1);
            match semaphore::try_acquire(member, entry, id, slot, units)? {
                true => Attempt::done(units.into(), 0),
                false => Attempt::NotYet,
            }
        }
        Op::SemaphoreWaitZero => {
            is(ObjectKind::Semaphore)?;
            let start = &mut waiting.start;
            Attempt::when(semaphore::is_zero(member, entry, id, start)?)
        }
        Op::SemaphoreRelease => {
            is(ObjectKind::Semaphore)?;
            let units = u32::try_from(arg0).unwrap_or(u32::MAX);
            semaphore::release(member, entry, id, slot, units)?;
            Attempt::done(0, 0)
        }
        Op::SemaphoreValue => {
            is(ObjectKind::Semaphore)?;
            let (value, most) = semaphore::value(member, entry, id)?;
            Attempt::done(value.into(), most.into())
        }
        Op::ConditionWait => {
            is(ObjectKind::Condition)?;
            match condition::try_wait(member, entry, id, slot, [arg0, arg1])? {
                Some([first, second]) => Attempt::done(first, second),
                None => Attempt::NotYet,
            }
        }
        Op::ConditionNotify => {
            is(ObjectKind::Condition)?;
            let count = u32::try_from(arg0).unwrap_or(u32::MAX);
            Attempt::done(condition::notify(member, entry, id, count)?.into(), 0)
        }
        Op::BarrierWait => {
            is(ObjectKind::Barrier)?;
            let place = &mut waiting.place;
            match barrier::try_wait(member, entry, id, slot, [arg0, arg1], place)? {
                Some([first, second]) => Attempt::done(first, second),
                None => Attempt::NotYet,
            }
        }
        Op::BarrierAbort => {
            is(ObjectKind::Barrier)?;
            barrier::abort(member, entry, id)?;
            Attempt::done(0, 0)
        }
        Op::BarrierReset => {
            is(ObjectKind::Barrier)?;
            barrier::reset(member, entry, id)?;
            Attempt::done(0, 0)
        }
        Op::BarrierAttributes => {
            is(ObjectKind::Barrier)?;
            let [parties, broken] = barrier::attributes(member, entry, id)?;
            Attempt::done(parties, broken)
        }
        Op::BroadcastTrigger => {
            is(ObjectKind::Broadcast)?;
            let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
            let trigger = Trigger::some(number(arg0)).after(number(arg1));
            let bytes = bytes_of(member, payload)?;
            match broadcast::try_trigger(member, entry, id, trigger, &bytes)? {
                Some(woken) => Attempt::done(woken.into(), 0),
                None => Attempt::NotYet,
            }
        }
        Op::Subscribe => match asked_for(member, entry, id, arg0)? {
            Some(found) => Attempt::done(found, 0),
            None => Attempt::NotYet,
        },
        Op::BroadcastWait => {
            is(ObjectKind::Broadcast)?;
            let seat = &mut waiting.seat;
            Attempt::with(broadcast::try_wait(member, entry, id, slot, seat)?)
        }
        _ => Attempt::failed(Code::Unsupported),
    })
}

fn polled(channel: &Local<'_>, what: Poll) -> Result<Attempt> {
    let count = channel.try_poll(what)?;
    Ok(count.map_or(Attempt::NotYet, |count| Attempt::done(count, 0)))
}

/// The bytes of a payload.
fn bytes_of<'a>(member: &Member, payload: Payload<'a>) -> Result<Cow<'a, [u8]>> {
    match payload {
        Payload::Inline(bytes) => Ok(Cow::Borrowed(bytes)),
        Payload::Block(block) | Payload::Shared(block) => {
            let length = usize::try_from(block.length).map_err(|_| {
                let what = "length of a payload";
                let value = block.length;
                dragon_shmem::Error::Corrupt { what, value }
            })?;
            member.pool().check(block.offset, block.length)?;
            let mut bytes = vec![0; length];
            member.pool().read(block.offset, 0, &mut bytes)?;
            Ok(Cow::Owned(bytes))
        }
    }
}

/// Receives a message of at most `longest` bytes; a longer one stays where it is, and its length is told.
fn receive(channel: &Local<'_>, longest: u64) -> Result<Attempt> {
    let mut message = Message::empty();
    let read = |source: Source<'_>| source.read_into(&mut message);
    match channel.receive_with(&Spin::default(), longest, Deadline::Now, read) {
        Ok(()) => Ok(Attempt::with(Some(message))),
        Err(Error::Empty) => Ok(Attempt::NotYet),
        Err(Error::TooLong { length, .. }) => Ok(Attempt::Done {
            status: Code::TooLarge,
            arg0: length,
            arg1: 0,
            message: None,
        }),
        Err(error) => Err(error),
    }
}

pub(crate) fn send(channel: &Local<'_>, payload: Payload<'_>, label: &Label) -> Result<Attempt> {
    let member = channel.member;
    let fits = |length| channel.ring.fits(length, label.trace.is_some());
    send_with(member, fits, payload, |outgoing| {
        let thread = member.thread()?;
        channel.send(&thread, &Spin::default(), outgoing, label, Deadline::Now)
    })
}

/// Sends a payload by `put`; what `fits` travels in the channel's own memory.
pub(crate) fn send_with(
    member: &Arc<Member>,
    fits: impl Fn(u64) -> bool,
    payload: Payload<'_>,
    put: impl Fn(&Outgoing<'_>) -> Result<Ticket>,
) -> Result<Attempt> {
    let sent = match payload {
        Payload::Block(block) => put(&Outgoing::Block(block)),
        Payload::Shared(block) => put(&Outgoing::Shared(block)),
        Payload::Inline(bytes) => {
            let parts = [IoSlice::new(bytes)];
            let length = bytes.len() as u64;
            if fits(length) {
                put(&Outgoing::Inline(&parts, length))
            } else {
                let block = block_of(member, &parts, bytes.len() as u64)?;
                let sent = put(&Outgoing::Block(block));
                if sent.is_err() {
                    member.free(block.offset)?;
                }
                sent
            }
        }
    };
    match sent {
        Ok(ticket) => Ok(Attempt::done(ticket.pack(), 0)),
        Err(Error::Full | Error::AtLimit { .. }) => Ok(Attempt::NotYet),
        Err(error) => Err(error),
    }
}

/// Takes a reference for another process: recorded in the held table of its (proxy) slot.
fn take_reference(
    member: &Member,
    object: ObjectId,
    on_behalf: SlotId,
    adopt: bool,
) -> Result<Attempt> {
    member.hold_for(on_behalf, object, adopt)?;
    Ok(Attempt::done(0, 0))
}

/// Gives a reference of another process back, or drops one in transit.
fn give_reference(
    member: &Arc<Member>,
    object: ObjectId,
    on_behalf: SlotId,
    transit: bool,
) -> Result<Attempt> {
    if transit {
        drop_transit(member, object)?;
        return Ok(Attempt::done(0, 0));
    }
    // As with a handle that is dropped on this node: recovery finds what is held by the reference.
    if is_held(member, object, on_behalf.index) {
        return Ok(Attempt::done(remote::KEPT, 0));
    }
    member.give_for(on_behalf, object, |entry| discard(member, object, entry))?;
    Ok(Attempt::done(0, 0))
}

/// Whether a process holds a lock, or units that it owns.
fn is_held(member: &Member, object: ObjectId, slot: u32) -> bool {
    let Ok(entry) = member.control().entry(object) else {
        return false;
    };
    match object.kind {
        ObjectKind::Lock => lock::words(entry).owner() == Some(slot),
        ObjectKind::Semaphore => semaphore::holds(member, entry, object, slot),
        _ => false,
    }
}

/// The number of references that an object has, for tests and tools.
///
/// # Errors
/// When there is no such object.
pub fn references(member: &Member, object: ObjectId) -> Result<u32> {
    Ok(low(member.control().entry(object)?.references().into()))
}
