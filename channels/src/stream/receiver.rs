//! The receiving end of a conversation.

use std::sync::Arc;

use dragon_protocol::ObjectId;
use dragon_protocol::op::Op;
use dragon_shmem::Deadline;

use super::local::{Conversation, End, How, Local};
use super::rows::Rows;
use super::{CLOSE_RECEIVER, Endpoint};
use crate::error::{Error, Result};
use crate::message::Message;
use crate::object::Handle;
use crate::remote;
use crate::ring::Ring;

/// The receiving end of a conversation.
///
/// ```
/// use dragon_channels::local::LocalNode;
/// use dragon_channels::{Deadline, Endpoint, EndpointOptions, Error};
///
/// let node = LocalNode::new()?;
/// let endpoint = Endpoint::create(&node.member()?, &EndpointOptions::default())?;
/// let mut sender = endpoint.open_send(Deadline::Never)?;
/// sender.send(b"in two parts", 7, Deadline::Never)?;
/// drop(sender);
/// let mut receiver = endpoint.accept(Deadline::Never)?;
/// let mut part = [0; 8];
/// assert!(!receiver.receive_into(&mut part, Deadline::Never)?.last);
/// let rest = receiver.receive(Deadline::Never)?;
/// assert_eq!((&part, rest.into_vec()), (b"in two p", b"arts".to_vec()));
/// assert!(matches!(receiver.receive(Deadline::Never), Err(Error::EndOfStream(_))));
/// # Ok::<(), dragon_channels::Error>(())
/// ```
/// When it is dropped before the end, the sender's next chunk is refused.
#[derive(Debug)]
pub struct StreamReceiver {
    handle: Arc<Handle>,
    way: Way,
    /// A chunk that was received in part, and how far.
    current: Option<(Message, usize)>,
    /// How the stream ended.
    ended: Option<Error>,
}

#[derive(Debug)]
enum Way {
    Local {
        rows: Rows,
        ring: Ring,
        conversation: Conversation,
    },
    Remote(u64),
    /// The whole conversation, until it is taken.
    Buffered(Option<Message>),
}

/// What [`StreamReceiver::receive_into`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bytes written into the buffer.
    pub length: usize,
    /// The argument of the chunk.
    pub argument: u64,
    /// The chunk ends here; otherwise the next receive goes on with it.
    pub last: bool,
}

impl StreamReceiver {
    pub(super) fn local(
        endpoint: &Endpoint,
        rows: Rows,
        ring: Ring,
        conversation: Conversation,
    ) -> Self {
        Self::new(
            endpoint,
            Way::Local {
                rows,
                ring,
                conversation,
            },
        )
    }

    pub(super) fn remote(endpoint: &Endpoint, conversation: u64) -> Self {
        Self::new(endpoint, Way::Remote(conversation))
    }

    pub(super) fn buffered(endpoint: &Endpoint, whole: Message) -> Self {
        Self::new(endpoint, Way::Buffered(Some(whole)))
    }

    fn new(endpoint: &Endpoint, way: Way) -> Self {
        Self {
            handle: Arc::clone(&endpoint.handle),
            way,
            current: None,
            ended: None,
        }
    }

    /// The endpoint.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.handle.id()
    }

    /// Receives the next chunk, or the rest of one that was received in part. [`Message::hint`] is its argument.
    ///
    /// # Errors
    /// [`Error::EndOfStream`] behind the last chunk when the sender has closed, [`Error::PeerDied`] when it died or broke
    /// off; both again with each further call. [`Error::Empty`] (try form), [`Error::Timeout`], [`Error::Interrupted`],
    /// [`Error::Destroyed`], or what another node answers.
    pub fn receive(&mut self, deadline: Deadline) -> Result<Message> {
        if let Some((message, at)) = self.current.take() {
            let mut rest = vec![0; message.len().saturating_sub(at)];
            message.copy_to(at, &mut rest);
            return Ok(Message::owned(message.hint(), rest));
        }
        self.next(deadline)
    }

    /// Receives as much of the next chunk as the buffer has room for.
    ///
    /// # Errors
    /// As [`StreamReceiver::receive`].
    pub fn receive_into(&mut self, buffer: &mut [u8], deadline: Deadline) -> Result<Part> {
        let (message, at) = match self.current.take() {
            Some(current) => current,
            None => (self.next(deadline)?, 0),
        };
        let length = message.copy_to(at, buffer);
        let (argument, last) = (message.hint(), at + length == message.len());
        if !last {
            self.current = Some((message, at + length));
        }
        Ok(Part {
            length,
            argument,
            last,
        })
    }

    /// Waits until [`StreamReceiver::receive`] would not wait: true for a chunk, false for the end.
    ///
    /// # Errors
    /// As [`StreamReceiver::receive`], apart from the end.
    pub fn poll(&mut self, deadline: Deadline) -> Result<bool> {
        if self.current.is_some() || self.ended.is_some() {
            return Ok(self.current.is_some());
        }
        match &self.way {
            Way::Buffered(whole) => Ok(whole.is_some()),
            Way::Remote(conversation) => {
                let arguments = [0, *conversation];
                let polled = self.handle.call(Op::PollReadable, arguments, deadline)?;
                Ok(polled[0] != 0)
            }
            Way::Local {
                rows,
                ring,
                conversation,
            } => {
                let (local, row) = self.open(rows, *conversation)?;
                let channel = local.channel(*ring, conversation.row);
                channel.poll(&self.handle.spin, row, deadline)
            }
        }
    }

    /// Gives the conversation up. The sender's next chunk is refused with [`Error::PeerClosed`], unless it has ended already.
    ///
    /// # Errors
    /// When the endpoint is gone or cannot be reached.
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    fn next(&mut self, deadline: Deadline) -> Result<Message> {
        if let Some(end) = &self.ended {
            return Err(end.clone());
        }
        let received = self.take(deadline);
        if let Err(end @ (Error::EndOfStream(_) | Error::PeerDied(_))) = &received {
            let end = end.clone();
            // The row goes on to its next conversation now, not when the caller drops this. If that fails, the endpoint is
            // gone.
            let _ = self.end();
            self.ended = Some(end);
        }
        received
    }

    fn take(&mut self, deadline: Deadline) -> Result<Message> {
        let id = self.handle.id();
        match &mut self.way {
            Way::Buffered(whole) => whole.take().ok_or(Error::EndOfStream(id)),
            Way::Remote(conversation) => {
                remote::receive_from(self.handle.member(), id, *conversation, deadline)
            }
            Way::Local {
                rows,
                ring,
                conversation,
            } => {
                let (rows, ring, conversation) = (*rows, *ring, *conversation);
                let (local, row) = self.open(&rows, conversation)?;
                let channel = local.channel(ring, conversation.row);
                channel.receive(&self.handle.spin, row, deadline)
            }
        }
    }

    fn open<'a>(
        &'a self,
        rows: &'a Rows,
        conversation: Conversation,
    ) -> Result<(Local<'a>, &'a super::rows::Row)> {
        let gone = || dragon_shmem::Error::NoSuchObject(self.handle.id());
        let local = Local {
            member: self.handle.member(),
            id: self.handle.id(),
            entry: self.handle.local()?.ok_or_else(gone)?,
            rows: *rows,
        };
        Ok((local, rows.row(conversation.row).ok_or_else(gone)?))
    }

    fn end(&mut self) -> Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        self.ended = Some(Error::EndOfStream(self.handle.id()));
        match &self.way {
            Way::Local {
                rows, conversation, ..
            } => {
                let (local, _) = self.open(rows, *conversation)?;
                let slot = local.member.slot().index;
                local.close(*conversation, End::Receiver, How::Closed, slot)
            }
            Way::Remote(conversation) => {
                let arguments = [CLOSE_RECEIVER.into(), *conversation];
                loop {
                    // Nothing was done when a signal interrupts it, and nobody could close it once more.
                    let closed = self
                        .handle
                        .call(Op::StreamClose, arguments, Deadline::Never);
                    if closed != Err(Error::Interrupted) {
                        return closed.map(drop);
                    }
                }
            }
            Way::Buffered(_) => Ok(()),
        }
    }
}

impl Drop for StreamReceiver {
    fn drop(&mut self) {
        // A forked child has a copy of the handle, not of the end.
        if !self.handle.member().is_forked() {
            // It fails when the endpoint is gone: nobody is left to be told.
            let _ = self.end();
        }
    }
}
