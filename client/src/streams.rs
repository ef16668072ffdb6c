//! Streams, as programs use them.

use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dragon_channels as channels;
use dragon_channels::{EndpointOptions, Part};
use dragon_protocol::Descriptor;
use dragon_shmem::{Deadline, Member};

use crate::error::{Error, Result};
use crate::handle::{Handle, Object};
use crate::objects::{Message, common, destroy};
use crate::pool::PoolBlock;
use crate::session::Session;

destroy!(Endpoint);
common!(Endpoint, channels::Endpoint, "endpoint");

/// Where senders and receivers of streams meet: any number of both, in processes of any node.
///
/// ```no_run
/// use dragon::{Code, Deadline, Endpoint, EndpointOptions};
///
/// let endpoint = Endpoint::create(&EndpointOptions::default())?;
/// let mut sender = endpoint.open_send(Deadline::Never)?;
/// sender.send(b"one of many", 1, Deadline::Never)?;
/// sender.close(Deadline::Never)?;
///
/// let mut receiver = endpoint.accept(Deadline::Never)?;
/// let chunk = receiver.receive(Deadline::Never)?;
/// assert_eq!((chunk.to_vec(), chunk.hint()), (b"one of many".to_vec(), 1));
/// let end = receiver.receive(Deadline::Never).unwrap_err();
/// assert_eq!(end.code(), Code::EndOfStream);
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Endpoint(Handle<channels::Endpoint>);

impl Endpoint {
    /// Makes an endpoint on this node.
    ///
    /// # Errors
    /// When an option is out of range, or the pool or a table is full.
    pub fn create(options: &EndpointOptions) -> Result<Self> {
        Handle::create(|member| Ok(channels::Endpoint::create(member, options)?)).map(Self)
    }

    /// Opens a conversation. Waits while there are as many as the endpoint can have.
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Full`](crate::Code::Full);
    /// [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    pub fn open_send(&self, deadline: Deadline) -> Result<StreamSender> {
        let (endpoint, session) = self.0.get_with_session()?;
        End::new(session, || Ok(endpoint.open_send(deadline)?)).map(StreamSender)
    }

    /// Accepts the conversation that waits longest.
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Empty`](crate::Code::Empty);
    /// [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    pub fn accept(&self, deadline: Deadline) -> Result<StreamReceiver> {
        let (endpoint, session) = self.0.get_with_session()?;
        End::new(session, || Ok(endpoint.accept(deadline)?)).map(StreamReceiver)
    }
}

/// An end of a conversation of the layer below. It belongs to the process that opened it, not to its forked children.
struct End<T> {
    end: ManuallyDrop<T>,
    session: &'static Session,
}

impl<T> End<T> {
    fn new(session: &'static Session, open: impl FnOnce() -> Result<T>) -> Result<Self> {
        session.enter()?;
        match open() {
            Ok(end) => Ok(Self {
                end: ManuallyDrop::new(end),
                session,
            }),
            Err(error) => {
                session.leave();
                Err(error)
            }
        }
    }

    fn get(&mut self) -> Result<&mut T> {
        if self.session.is_forked() {
            return Err(Error::Channels(channels::Error::Forked));
        }
        Ok(&mut self.end)
    }

    /// The end itself, and the session, which the caller leaves when the end is gone.
    fn take(self) -> Result<(T, &'static Session)> {
        if self.session.is_forked() {
            return Err(Error::Channels(channels::Error::Forked));
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, and not used afterwards.
        let end = unsafe { ManuallyDrop::take(&mut this.end) };
        Ok((end, this.session))
    }
}

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        // In a forked child the end is the parent's.
        if !self.session.is_forked() {
            // SAFETY: dropped here once, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.end) };
            self.session.leave();
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for End<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt(f)
    }
}

/// The sending end of a conversation. One that is dropped closes in good order, unless its thread panics.
#[derive(Debug)]
pub struct StreamSender(End<channels::StreamSender>);

impl StreamSender {
    /// Sends a chunk, with a number that the receiver gets beside it.
    ///
    /// # Errors
    /// [`Code::PeerClosed`](crate::Code::PeerClosed) and [`Code::PeerDied`](crate::Code::PeerDied) when the receiver has
    /// ended; [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Full`](crate::Code::Full) when it
    /// did not make room in time; [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    pub fn send(&mut self, bytes: &[u8], argument: u64, deadline: Deadline) -> Result<()> {
        Ok(self.0.get()?.send(bytes, argument, deadline)?)
    }

    /// Sends a block as a chunk, without copying it.
    ///
    /// # Errors
    /// As [`StreamSender::send`]; the block comes back.
    pub fn send_block(
        &mut self,
        block: PoolBlock,
        argument: u64,
        deadline: Deadline,
    ) -> Result<(), (Error, PoolBlock)> {
        block.hand_over(|block| Ok(self.0.get()?.send_block(block, argument, deadline)?))
    }

    /// Ends the conversation: the receiver gets [`Code::EndOfStream`](crate::Code::EndOfStream) behind what was sent. Waits
    /// only in the buffered form, which sends everything here.
    ///
    /// # Errors
    /// Buffered: as [`StreamSender::send`]; it can be closed once more then.
    pub fn close(&mut self, deadline: Deadline) -> Result<()> {
        Ok(self.0.get()?.close(deadline)?)
    }

    /// Breaks the conversation off: the receiver gets [`Code::PeerDied`](crate::Code::PeerDied) behind what was sent.
    ///
    /// # Errors
    /// When the endpoint is gone or cannot be reached.
    pub fn abort(self) -> Result<()> {
        let (end, session) = self.0.take()?;
        let aborted = end.abort();
        session.leave();
        Ok(aborted?)
    }

    /// Makes a descriptor of it: what is written there is sent. See [`Pump`].
    ///
    /// # Errors
    /// When the kernel refuses a pipe or a thread.
    pub fn into_fd(self) -> Result<(OwnedFd, Pump)> {
        let (end, session) = self.0.take()?;
        Pump::new(session, end.into_fd())
    }
}

/// The receiving end of a conversation. When it is dropped before the end, the sender's next chunk is refused.
#[derive(Debug)]
pub struct StreamReceiver(End<channels::StreamReceiver>);

impl StreamReceiver {
    /// Receives the next chunk, or the rest of one that was received in part. The hint of the message is its argument.
    ///
    /// # Errors
    /// [`Code::EndOfStream`](crate::Code::EndOfStream) behind the last chunk, [`Code::PeerDied`](crate::Code::PeerDied)
    /// when the sender died or broke off; [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`],
    /// [`Code::Empty`](crate::Code::Empty) when nothing came in time; [`Code::Interrupted`](crate::Code::Interrupted) after
    /// a signal.
    pub fn receive(&mut self, deadline: Deadline) -> Result<Message> {
        let session = self.0.session;
        Ok(Message::new(self.0.get()?.receive(deadline)?, session))
    }

    /// The layer below, and the session that it belongs to.
    pub(crate) fn below(&mut self) -> Result<(&mut channels::StreamReceiver, &'static Session)> {
        let session = self.0.session;
        Ok((self.0.get()?, session))
    }

    /// Receives as much of the next chunk as the buffer has room for.
    ///
    /// # Errors
    /// As [`StreamReceiver::receive`].
    pub fn receive_into(&mut self, buffer: &mut [u8], deadline: Deadline) -> Result<Part> {
        Ok(self.0.get()?.receive_into(buffer, deadline)?)
    }

    /// Waits until something is there: true for a chunk, false for the end.
    ///
    /// # Errors
    /// As [`StreamReceiver::receive`], apart from the end.
    pub fn poll(&mut self, deadline: Deadline) -> Result<bool> {
        Ok(self.0.get()?.poll(deadline)?)
    }

    /// Makes a descriptor of it: what comes can be read there. See [`Pump`].
    ///
    /// # Errors
    /// When the kernel refuses sockets or a thread.
    pub fn into_fd(self) -> Result<(OwnedFd, Pump)> {
        let (end, session) = self.0.take()?;
        Pump::new(session, end.into_fd())
    }
}

/// The thread that carries bytes between a conversation and a file descriptor. The end of the file is the end of the
/// conversation, and the other way round. Dropping it leaves the thread at work.
#[derive(Debug)]
pub struct Pump {
    pump: Option<channels::Pump>,
    session: &'static Session,
}

impl Pump {
    fn new(
        session: &'static Session,
        made: channels::Result<(OwnedFd, channels::Pump)>,
    ) -> Result<(OwnedFd, Self)> {
        match made {
            Ok((fd, pump)) => Ok((
                fd,
                Self {
                    pump: Some(pump),
                    session,
                },
            )),
            Err(error) => {
                session.leave();
                Err(error.into())
            }
        }
    }

    /// Waits for the end; how many bytes were carried.
    ///
    /// # Errors
    /// What ended it early: [`Code::PeerDied`](crate::Code::PeerDied), [`Code::PeerClosed`](crate::Code::PeerClosed), or a
    /// call of the system that failed.
    pub fn join(mut self) -> Result<u64> {
        let Some(pump) = self.pump.take() else {
            return Ok(0);
        };
        if self.session.is_forked() {
            return Err(Error::Channels(channels::Error::Forked));
        }
        let carried = pump.join();
        // The thread has given its end back. (One that is left at work keeps the process attached.)
        self.session.leave();
        Ok(carried?)
    }
}
