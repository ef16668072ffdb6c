//! Streams: conversations of unbounded length between one sender and one receiver, over an endpoint that any number of
//! processes share.
//!
//! An endpoint has *rows*, one for each conversation at a time ([`EndpointOptions::streams`]). A sender opens a conversation: it
//! claims a free row and gets a *stream channel*, a bounded channel of this conversation alone, so that a fast sender waits
//! for its own receiver and for nobody else. A receiver accepts the conversation that waits longest. What is sent are
//! chunks, each with a 64-bit argument; large ones are passed by reference. When the sender closes, the receiver gets
//! [`Error::EndOfStream`] behind the last chunk; when it dies, [`Error::PeerDied`]. When the receiver ends first, the
//! sender's next chunk is refused with [`Error::PeerClosed`] or [`Error::PeerDied`].
//!
//! A *buffered* endpoint has no rows: a sender collects what it writes in its own memory and sends all of it as one message
//! when it closes. That is the cheaper form for short conversations.
//!
//! Nothing here allocates or frees without an intent that says so, and a row's word names the processes at both ends: see
//! `docs/channels.md`.

pub mod fd;
mod local;
mod receiver;
mod recover;
mod rows;
mod sender;

pub use fd::Pump;
pub use receiver::{Part, StreamReceiver};
pub(crate) use recover::{discard, finish, give_up, readiness, ring_of, wake_everyone};
pub use sender::StreamSender;

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Code, Descriptor, ObjectId, ObjectKind, SlotId};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{Ordering, low};
use dragon_shmem::{Deadline, Member, ThreadGuard};

use crate::attempt::{Attempt, Payload};
use crate::channel;
use crate::error::{Error, Result, within};
use crate::object::{Handle, alive, is_alive};
use crate::remote;
use crate::ring::{Label, MAX_CAPACITY, MAX_INLINE, Ring};
use crate::wait::{self, Spin, WaitWord, mark};
use local::{Conversation, End, How, Local, NO_ROW};
use rows::{MAX_ROWS, Rows, Shape};

/// How an endpoint is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointOptions {
    /// All that a sender writes travels as one message when it closes.
    pub buffered: bool,
    /// How many conversations there can be at once; who opens one more waits. Buffered: how many whole conversations the
    /// endpoint holds.
    pub streams: u32,
    /// How many stream channels are kept for the next conversation when theirs has ended.
    pub kept: u32,
    /// How many chunks a stream channel holds before its sender waits.
    pub capacity: u32,
    /// Chunks up to so many bytes travel in the stream channel's own memory; larger ones are passed by reference.
    pub block: u32,
    /// A number of the user's choice.
    pub user: u64,
}

impl Default for EndpointOptions {
    /// Streamed, 64 conversations at once, 8 channels of 16 KiB kept.
    fn default() -> Self {
        Self {
            buffered: false,
            streams: 64,
            kept: 8,
            capacity: 16,
            block: 912,
            user: 0,
        }
    }
}

/// A handle on an endpoint of this or another node: senders and receivers meet there.
///
/// ```
/// use dragon_channels::local::LocalNode;
/// use dragon_channels::{Deadline, Endpoint, EndpointOptions, Error};
///
/// let node = LocalNode::new()?;
/// let endpoint = Endpoint::create(&node.member()?, &EndpointOptions::default())?;
/// let mut sender = endpoint.open_send(Deadline::Never)?;
/// sender.send(b"first", 1, Deadline::Never)?;
/// sender.send(b"second", 2, Deadline::Never)?;
/// sender.close(Deadline::Never)?;
///
/// let mut receiver = endpoint.accept(Deadline::Never)?;
/// let chunk = receiver.receive(Deadline::Never)?;
/// assert_eq!((chunk.hint(), chunk.into_vec()), (1, b"first".to_vec()));
/// assert_eq!(receiver.receive(Deadline::Never)?.into_vec(), b"second");
/// assert!(matches!(receiver.receive(Deadline::Never), Err(Error::EndOfStream(_))));
/// # Ok::<(), dragon_channels::Error>(())
/// ```
#[derive(Debug)]
pub struct Endpoint {
    handle: Arc<Handle>,
    form: Form,
}

/// What an endpoint is, and how this process reaches it.
#[derive(Clone, Copy, Debug)]
enum Form {
    Streamed(Rows),
    Buffered(Ring),
    Remote { buffered: bool },
}

impl Endpoint {
    /// Creates an endpoint on this node.
    ///
    /// # Errors
    /// When an option is out of its range, or there is no memory or no place in the object table.
    pub fn create(member: &Arc<Member>, options: &EndpointOptions) -> Result<Self> {
        if member.is_forked() {
            return Err(Error::Forked);
        }
        let EndpointOptions {
            buffered,
            streams,
            kept,
            capacity,
            block,
            user,
        } = *options;
        within("streams", streams, 1, MAX_ROWS)?;
        within("capacity", capacity, 1, MAX_CAPACITY)?;
        within("block", block, 0, MAX_INLINE)?;
        let shape = Shape {
            rows: streams,
            kept,
            capacity,
            inline: block,
        };
        let size = if buffered {
            Ring::size(streams, block)
        } else {
            Rows::size(streams)
        };
        let place = member.alloc(size)?.offset;
        let init = || {
            if buffered {
                Ring::init(member.pool(), place, streams, block, 0)
            } else {
                Rows::init(member.pool(), place, shape)
            }
        };
        let made = init().and_then(|()| {
            let id = member.create(ObjectKind::Stream, |entry, _| {
                entry.user.store(user, Ordering::Relaxed);
                // The block is named before it is shared, as that of a channel.
                entry.block.store(place, Ordering::Release);
                member.share(place)
            })?;
            Ok((id, Form::open(member, place)?))
        });
        let (id, form) = match made {
            Ok(made) => made,
            Err(error) => {
                // Nobody else has seen the block. If it cannot be freed, the first error is still the one to tell.
                let _ = member.free(place);
                return Err(error);
            }
        };
        Ok(Self {
            handle: Arc::new(Handle::created(member, id, user)),
            form,
        })
    }

    /// Attaches to the endpoint that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let handle = Handle::attach(member, descriptor, ObjectKind::Stream, adopt)?;
        let form = match handle.local()? {
            Some(entry) => Form::open(member, entry.block.load(Ordering::Acquire))?,
            None => {
                let [buffered, _] = handle.call(Op::Attributes, [0, 0], Deadline::Never)?;
                Form::Remote {
                    buffered: buffered != 0,
                }
            }
        };
        Ok(Self {
            handle: Arc::new(handle),
            form,
        })
    }

    /// Whether conversations travel as one message.
    #[must_use]
    pub fn is_buffered(&self) -> bool {
        matches!(
            self.form,
            Form::Buffered(_) | Form::Remote { buffered: true }
        )
    }

    /// Opens a conversation. Waits while there are as many as the endpoint can have; a buffered endpoint never waits here.
    ///
    /// # Errors
    /// [`Error::Full`] (try form), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`], no memory for the stream
    /// channel, or what another node answers.
    pub fn open_send(&self, deadline: Deadline) -> Result<StreamSender> {
        let entry = self.handle.local()?;
        if self.is_buffered() {
            if let Some(entry) = entry {
                alive(entry, self.id())?;
            }
            return Ok(StreamSender::buffered(self));
        }
        let Some(local) = self.rows()? else {
            let opened = self.handle.call(Op::StreamOpen, [0, 0], deadline);
            let [conversation, _] = opened.map_err(|error| match error {
                Error::Empty => Error::Full,
                other => other,
            })?;
            return Ok(StreamSender::remote(self, conversation));
        };
        let slot = local.member.slot().index;
        let (conversation, ring) = self
            .wait(
                &local,
                Op::StreamOpen,
                deadline,
                |thread| local.open(thread, slot),
                || local.rows.any_free(),
            )
            .map_err(|error| match error {
                Error::Empty => Error::Full,
                other => other,
            })?;
        Ok(StreamSender::local(self, local.rows, ring, conversation))
    }

    /// Accepts the conversation that waits longest; opens the receiving end.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`], or what another node
    /// answers.
    pub fn accept(&self, deadline: Deadline) -> Result<StreamReceiver> {
        let entry = self.handle.local()?;
        let member = self.handle.member();
        match self.form {
            Form::Buffered(ref ring) => {
                let entry = entry.ok_or(dragon_shmem::Error::NoSuchObject(self.id()))?;
                let channel = channel::Local {
                    member,
                    id: self.id(),
                    entry,
                    ring,
                    opened: None,
                    row: None,
                };
                let whole = channel.receive(&self.handle.spin, deadline)?;
                Ok(StreamReceiver::buffered(self, whole))
            }
            Form::Remote { buffered: true } => {
                let whole = remote::receive_from(member, self.id(), 0, deadline)?;
                Ok(StreamReceiver::buffered(self, whole))
            }
            Form::Remote { buffered: false } => {
                let [conversation, _] = self.handle.call(Op::StreamAccept, [0, 0], deadline)?;
                Ok(StreamReceiver::remote(self, conversation))
            }
            Form::Streamed(_) => {
                let local = self
                    .rows()?
                    .ok_or(dragon_shmem::Error::NoSuchObject(self.id()))?;
                let slot = member.slot().index;
                let (conversation, ring) = self.wait(
                    &local,
                    Op::StreamAccept,
                    deadline,
                    |thread| local.accept(thread, slot),
                    || local.rows.oldest_offer().is_some(),
                )?;
                Ok(StreamReceiver::local(self, local.rows, ring, conversation))
            }
        }
    }

    crate::object::common_methods!();

    /// The rows, of an endpoint of this node that has some.
    fn rows(&self) -> Result<Option<Local<'_>>> {
        let (Some(entry), Form::Streamed(rows)) = (self.handle.local()?, self.form) else {
            return Ok(None);
        };
        Ok(Some(Local {
            member: self.handle.member(),
            id: self.handle.id(),
            entry,
            rows,
        }))
    }

    fn wait<T>(
        &self,
        local: &Local<'_>,
        op: Op,
        deadline: Deadline,
        attempt: impl Fn(&ThreadGuard<'_>) -> Result<Option<T>>,
        more: impl Fn() -> bool,
    ) -> Result<T> {
        let thread = local.member.thread()?;
        let id = local.id;
        thread
            .intent
            .begin(op, id.index, id.generation, [NO_ROW, 0]);
        if let Some(value) = attempt(&thread)? {
            return Ok(value);
        }
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        let (word, mark) = sleepers(&local.rows, op);
        let words = local.member.control().words();
        let ready = || more() || !is_alive(local.entry, id);
        while self
            .handle
            .spin
            .until(words, &thread.intent, deadline, ready)
        {
            if let Some(value) = attempt(&thread)? {
                return Ok(value);
            }
            if deadline.passed() {
                return Err(Error::Timeout);
            }
        }
        let counted = |yes| thread.intent.step(if yes { mark } else { 0 });
        wait::sleep_until(word, deadline, counted, || attempt(&thread), &more)
    }
}

/// Where those sleep who wait to open or to accept, and the mark of one who is counted there.
fn sleepers(rows: &Rows, op: Op) -> (&WaitWord, u32) {
    if op == Op::StreamOpen {
        (rows.openable(), mark::SECOND)
    } else {
        (rows.acceptable(), mark::FIRST)
    }
}

impl Form {
    fn open(member: &Member, block: u64) -> Result<Self> {
        Ok(match Rows::open(member, block)? {
            Some(rows) => Self::Streamed(rows),
            None => Self::Buffered(Ring::open(member.pool(), block)?),
        })
    }
}

/// The operations for agents, as [`crate::attempt()`] does those of other objects. `arguments[1]` names the conversation.
pub(crate) fn attempt(
    member: &Arc<Member>,
    op: Op,
    id: ObjectId,
    entry: &ObjectEntry,
    on_behalf: SlotId,
    [arg0, arg1]: [u64; 2],
    payload: Payload<'_>,
) -> Result<Attempt> {
    // Before it is opened, so that the first error tells that it was destroyed.
    if op != Op::StreamClose {
        alive(entry, id)?;
    }
    let rows = match Form::open(member, entry.block.load(Ordering::Acquire))? {
        Form::Streamed(rows) => rows,
        Form::Buffered(ring) => {
            let channel = channel::Local {
                member,
                id,
                entry,
                ring: &ring,
                opened: None,
                row: None,
            };
            return match op {
                Op::Attributes => Ok(Attempt::done(1, 0)),
                Op::Send => {
                    let (hint, trace) = (arg0, None);
                    crate::attempt::send(&channel, payload, &Label { hint, trace })
                }
                Op::Receive => received(channel.receive(&Spin::default(), Deadline::Now), 0),
                _ => Ok(Attempt::failed(Code::Unsupported)),
            };
        }
        Form::Remote { .. } => return Ok(Attempt::failed(Code::Unsupported)),
    };
    let local = Local {
        member,
        id,
        entry,
        rows,
    };
    let slot = on_behalf.index;
    let named = || Conversation::of(arg1).ok_or(dragon_shmem::Error::NoSuchObject(id));
    let got = |opened: Option<(Conversation, Ring)>| {
        opened.map_or(Attempt::NotYet, |(conversation, ring)| {
            Attempt::done(conversation.to_u64(), ring.inline())
        })
    };
    let begin = |thread: &ThreadGuard<'_>| {
        let (index, generation) = (id.index, id.generation);
        thread.intent.begin(op, index, generation, [NO_ROW, 0]);
    };
    match op {
        Op::Attributes => Ok(Attempt::done(0, rows.shape.inline.into())),
        Op::StreamOpen => {
            let thread = member.thread()?;
            begin(&thread);
            Ok(got(local.open(&thread, slot)?))
        }
        Op::StreamAccept => {
            let thread = member.thread()?;
            begin(&thread);
            Ok(got(local.accept(&thread, slot)?))
        }
        Op::StreamClose => {
            let conversation = named()?;
            match low(arg0) {
                CLOSE_SENDER => local.close(conversation, End::Sender, How::Closed, slot)?,
                BREAK_SENDER => local.close(conversation, End::Sender, How::Died, slot)?,
                CLOSE_RECEIVER => local.close(conversation, End::Receiver, How::Closed, slot)?,
                UNOPEN_SENDER => local.unopen(conversation, slot)?,
                _ => local.unaccept(conversation, slot)?,
            }
            Ok(Attempt::done(0, 0))
        }
        Op::StreamWatch => {
            let (_, row) = local.channel_by(named()?, End::Sender, slot)?;
            local::sender_may_go_on(row, id)?;
            Ok(if local::sender_has_ended(row) {
                Attempt::done(0, 0)
            } else {
                Attempt::NotYet
            })
        }
        Op::Send => {
            let (channel, row) = local.channel_by(named()?, End::Sender, slot)?;
            local::sender_may_go_on(row, id)?;
            let fits = |length| channel.ring.fits(length, false);
            crate::attempt::send_with(member, fits, payload, |outgoing| {
                channel.send(&Spin::default(), row, outgoing, arg0, Deadline::Now)
            })
        }
        Op::Receive => {
            let (channel, row) = local.channel_by(named()?, End::Receiver, slot)?;
            received(channel.receive(&Spin::default(), row, Deadline::Now), arg1)
        }
        Op::PollReadable => {
            let (channel, row) = local.channel_by(named()?, End::Receiver, slot)?;
            match channel.poll(&Spin::default(), row, Deadline::Now) {
                Ok(readable) => Ok(Attempt::done(readable.into(), 0)),
                Err(Error::Empty) => Ok(Attempt::NotYet),
                Err(error) => Err(error),
            }
        }
        _ => Ok(Attempt::failed(Code::Unsupported)),
    }
}

/// Argument 0 of a request to close: the sender's end.
pub(crate) const CLOSE_SENDER: u32 = 0;
/// The sender breaks off.
pub(crate) const BREAK_SENDER: u32 = 1;
/// The receiver's end.
pub(crate) const CLOSE_RECEIVER: u32 = 2;

/// The sender no longer waits for the conversation that was opened for it.
const UNOPEN_SENDER: u32 = 4;

/// Argument 0 of a request to close that puts an accepted conversation back, for agents whose caller no longer waits.
pub const UNACCEPT: u64 = 3;
/// Argument 0 of a request to close by which a receiver ends, for agents that keep something for it.
pub const RECEIVER_CLOSES: u64 = CLOSE_RECEIVER as u64;
/// The same as [`UNACCEPT`] for a conversation that was opened.
pub const UNOPEN: u64 = UNOPEN_SENDER as u64;

/// The reply names the conversation, for an agent whose caller cannot take the chunk.
fn received(result: Result<crate::Message>, conversation: u64) -> Result<Attempt> {
    match result {
        Ok(message) => Ok(Attempt::Done {
            status: Code::Ok,
            arg0: message.hint(),
            arg1: conversation,
            message: Some(message),
        }),
        Err(Error::Empty) => Ok(Attempt::NotYet),
        Err(error) => Err(error),
    }
}
