//! The sending end of a conversation.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dragon_protocol::ObjectId;
use dragon_protocol::op::Op;
use dragon_shmem::sync::{Ordering, fence};
use dragon_shmem::{Block, Deadline, Member};

use super::local::{Conversation, End, How, Local, sender_may_go_on};
use super::rows::Rows;
use super::{BREAK_SENDER, CLOSE_SENDER, Endpoint, Form};
use crate::channel::{self, Outgoing, block_of};
use crate::error::{Error, Result};
use crate::object::{Handle, alive};
use crate::remote;
use crate::ring::{Label, Ring};

/// The sending end of a conversation.
///
/// ```
/// use dragon_channels::local::LocalNode;
/// use dragon_channels::{Deadline, Endpoint, EndpointOptions};
///
/// let node = LocalNode::new()?;
/// let member = node.member()?;
/// let endpoint = Endpoint::create(&member, &EndpointOptions::default())?;
/// let mut sender = endpoint.open_send(Deadline::Never)?;
/// let block = member.alloc(1 << 20)?;
/// member.write(block.offset, 0, b"a megabyte that nobody copies")?;
/// sender.send_block(block, 1, Deadline::Never)?;
/// sender.close(Deadline::Never)?;
/// # Ok::<(), dragon_channels::Error>(())
/// ```
/// Close it when all is sent; a sender that is dropped closes in good order, too, unless
/// its thread panics: then it breaks off, as one that died.
#[derive(Debug)]
pub struct StreamSender {
    handle: Arc<Handle>,
    way: Way,
    ended: bool,
}

#[derive(Debug)]
enum Way {
    Local {
        rows: Rows,
        ring: Ring,
        conversation: Conversation,
    },
    Remote(u64),
    Buffered {
        form: Form,
        bytes: Vec<u8>,
        argument: Option<u64>,
    },
}

impl StreamSender {
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

    pub(super) fn buffered(endpoint: &Endpoint) -> Self {
        Self::new(
            endpoint,
            Way::Buffered {
                form: endpoint.form,
                bytes: Vec::new(),
                argument: None,
            },
        )
    }

    fn new(endpoint: &Endpoint, way: Way) -> Self {
        Self {
            handle: Arc::clone(&endpoint.handle),
            way,
            ended: false,
        }
    }

    /// The endpoint.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.handle.id()
    }

    /// Sends a chunk with an argument, which the receiver gets as [`crate::Message::hint`]. Waits while the stream channel is
    /// full. Buffered: adds to what is sent at the end; the argument of the first chunk goes with it.
    ///
    /// # Errors
    /// [`Error::PeerClosed`] or [`Error::PeerDied`] when the receiver has ended; [`Error::Full`] (try form),
    /// [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`], no memory for a large chunk, or what another node
    /// answers.
    pub fn send(&mut self, bytes: &[u8], argument: u64, deadline: Deadline) -> Result<()> {
        let parts = [IoSlice::new(bytes)];
        match &mut self.way {
            Way::Buffered {
                bytes: all,
                argument: first,
                ..
            } => {
                // A forked child has a copy of what was collected, and no right to it.
                self.handle.local()?;
                all.extend_from_slice(bytes);
                first.get_or_insert(argument);
                Ok(())
            }
            Way::Remote(conversation) => remote::send_to(
                self.handle.member(),
                self.handle.id(),
                &parts,
                [argument, *conversation],
                deadline,
            )
            .map(drop),
            Way::Local { ring, .. } if bytes.len() as u64 <= ring.inline() => self.put(
                &Outgoing::Inline(&parts, bytes.len() as u64),
                argument,
                deadline,
            ),
            Way::Local { .. } => {
                self.check()?;
                let member = Arc::clone(self.handle.member());
                let block = block_of(&member, &parts, bytes.len() as u64)?;
                let sent = self.put(&Outgoing::Block(block), argument, deadline);
                if sent.is_err() {
                    member.free(block.offset)?;
                }
                sent
            }
        }
    }

    /// Sends a block that this process allocated as a chunk, without copying it. With success the block is the receiver's;
    /// otherwise it stays the caller's. Buffered: its bytes are copied, and it is freed.
    ///
    /// # Errors
    /// As [`StreamSender::send`].
    pub fn send_block(&mut self, block: Block, argument: u64, deadline: Deadline) -> Result<()> {
        match &mut self.way {
            Way::Local { .. } => self.put(&Outgoing::Block(block), argument, deadline),
            Way::Remote(conversation) => remote::send_block_to(
                self.handle.member(),
                self.handle.id(),
                block,
                [argument, *conversation],
                deadline,
            )
            .map(drop),
            Way::Buffered { .. } => {
                let member = Arc::clone(self.handle.member());
                let length = usize::try_from(block.length).map_err(|_| Error::TooLarge {
                    length: block.length,
                    limit: usize::MAX as u64,
                })?;
                let mut copy = vec![0; length];
                member.read(block.offset, 0, &mut copy)?;
                self.send(&copy, argument, deadline)?;
                Ok(member.free(block.offset)?)
            }
        }
    }

    /// Ends the conversation in good order: the receiver gets [`Error::EndOfStream`] behind what was sent. Waits for nothing,
    /// except in the buffered form, which sends everything here.
    ///
    /// # Errors
    /// Buffered: as [`StreamSender::send`]; the sender can be closed once more then. Otherwise when the endpoint is gone or
    /// cannot be reached, or [`Error::Interrupted`] of one of another node, which can be closed once more.
    pub fn close(&mut self, deadline: Deadline) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        if let Way::Buffered {
            form,
            bytes,
            argument,
        } = &mut self.way
        {
            let argument = argument.unwrap_or(0);
            send_whole(&self.handle, *form, bytes, argument, deadline)?;
            self.ended = true;
            return Ok(());
        }
        let closed = self.end(How::Closed);
        // Nothing was done then, and the caller may still want it.
        self.ended = closed != Err(Error::Interrupted);
        closed
    }

    /// Breaks the conversation off: the receiver gets [`Error::PeerDied`] behind what was sent, so that it does not take a
    /// part for the whole. Buffered: nothing is sent.
    ///
    /// # Errors
    /// When the endpoint is gone or cannot be reached.
    pub fn abort(mut self) -> Result<()> {
        let ended = std::mem::replace(&mut self.ended, true);
        if ended {
            Ok(())
        } else {
            self.end_surely(How::Died)
        }
    }

    /// Ends it for a caller who cannot do so once more.
    fn end_surely(&self, how: How) -> Result<()> {
        loop {
            match self.end(how) {
                Err(Error::Interrupted) => {}
                other => return other,
            }
        }
    }

    fn end(&self, how: How) -> Result<()> {
        match &self.way {
            Way::Local {
                rows, conversation, ..
            } => {
                let Some(local) = self.rows(rows)? else {
                    return Ok(());
                };
                let slot = local.member.slot().index;
                local.close(*conversation, End::Sender, how, slot)
            }
            Way::Remote(conversation) => {
                let what = match how {
                    How::Closed => CLOSE_SENDER,
                    How::Died => BREAK_SENDER,
                };
                let arguments = [what.into(), *conversation];
                self.handle
                    .call(Op::StreamClose, arguments, Deadline::Never)
                    .map(drop)
            }
            Way::Buffered { .. } => Ok(()),
        }
    }

    fn rows(&self, rows: &Rows) -> Result<Option<Local<'_>>> {
        Ok(self.handle.local()?.map(|entry| Local {
            member: self.handle.member(),
            id: self.handle.id(),
            entry,
            rows: *rows,
        }))
    }

    /// The receiver, for a thread that waits for its end beside this sender. `None` for a buffered conversation, which has no
    /// receiver before it ends.
    pub(super) fn peer(&self) -> Option<Peer> {
        let way = match &self.way {
            Way::Local {
                rows,
                ring,
                conversation,
            } => PeerWay::Local {
                rows: *rows,
                ring: *ring,
                conversation: *conversation,
            },
            Way::Remote(conversation) => PeerWay::Remote(*conversation),
            Way::Buffered { .. } => return None,
        };
        Some(Peer {
            handle: Arc::clone(&self.handle),
            way,
            stopped: AtomicBool::new(false),
        })
    }

    fn put(&self, outgoing: &Outgoing<'_>, argument: u64, deadline: Deadline) -> Result<()> {
        let gone = || dragon_shmem::Error::NoSuchObject(self.id());
        let Way::Local {
            rows,
            ring,
            conversation,
        } = &self.way
        else {
            return Err(gone().into());
        };
        let local = self.rows(rows)?.ok_or_else(gone)?;
        let row = rows.row(conversation.row).ok_or_else(gone)?;
        if self.ended {
            return Err(Error::PeerClosed(local.id));
        }
        let channel = local.channel(*ring, conversation.row);
        channel
            .send(&self.handle.spin, row, outgoing, argument, deadline)
            .map(drop)
    }

    /// Fails early when the receiver has ended, before memory is taken.
    fn check(&self) -> Result<()> {
        if let Way::Local {
            rows, conversation, ..
        } = &self.way
            && let Some(row) = rows.row(conversation.row)
        {
            sender_may_go_on(row, self.id())?;
        }
        Ok(())
    }
}

/// The receiver of a conversation, as its sender's process sees it.
#[derive(Debug)]
pub(super) struct Peer {
    handle: Arc<Handle>,
    way: PeerWay,
    stopped: AtomicBool,
}

#[derive(Debug)]
enum PeerWay {
    Local {
        rows: Rows,
        ring: Ring,
        conversation: Conversation,
    },
    Remote(u64),
}

impl Peer {
    /// Waits until the receiver has ended or cannot be reached, which is an error, or until [`Peer::stop`].
    pub(super) fn watch(&self) -> Result<()> {
        loop {
            match self.watch_once() {
                Err(Error::Interrupted) => {}
                other => return other,
            }
        }
    }

    fn watch_once(&self) -> Result<()> {
        let id = self.handle.id();
        match &self.way {
            PeerWay::Local {
                rows,
                ring,
                conversation,
            } => {
                let gone = || dragon_shmem::Error::NoSuchObject(id);
                let local = Local {
                    member: self.handle.member(),
                    id,
                    entry: self.handle.local()?.ok_or_else(gone)?,
                    rows: *rows,
                };
                let row = rows.row(conversation.row).ok_or_else(gone)?;
                let channel = local.channel(*ring, conversation.row);
                channel.watch_receiver(row, || self.stopped.load(Ordering::Acquire))
            }
            PeerWay::Remote(conversation) => {
                let arguments = [0, *conversation];
                self.handle
                    .call(Op::StreamWatch, arguments, Deadline::Never)
                    .map(drop)
            }
        }
    }

    /// Ends the wait of [`Peer::watch`], if it can be ended from here. Of a conversation of this node it must be over before
    /// the sender ends: the row in which it sleeps may be another conversation's after that. On another node it is over with the
    /// conversation, and this returns false.
    pub(super) fn stop(&self) -> bool {
        let PeerWay::Local { ring, .. } = &self.way else {
            return false;
        };
        self.stopped.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        ring.closing().wake(u32::MAX);
        true
    }
}

/// Sends a whole buffered conversation.
fn send_whole(
    handle: &Handle,
    form: Form,
    bytes: &[u8],
    argument: u64,
    deadline: Deadline,
) -> Result<()> {
    let member: &Arc<Member> = handle.member();
    let parts = [IoSlice::new(bytes)];
    match (form, handle.local()?) {
        (Form::Buffered(ring), Some(entry)) => {
            alive(entry, handle.id())?;
            let channel = channel::Local {
                member,
                id: handle.id(),
                entry,
                ring: &ring,
                opened: None,
                row: None,
            };
            let label = Label {
                hint: argument,
                trace: None,
            };
            channel
                .send_parts(&handle.spin, &parts, &label, deadline)
                .map(drop)
        }
        _ => remote::send_to(member, handle.id(), &parts, [argument, 0], deadline).map(drop),
    }
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        // A forked child has a copy of the handle, not of the end.
        if self.ended || self.handle.member().is_forked() {
            return;
        }
        // It fails when the endpoint is gone, or a buffered one has no room now: nobody is left to be told.
        let _ = if std::thread::panicking() {
            self.end_surely(How::Died)
        } else if let Way::Buffered { .. } = self.way {
            self.close(Deadline::Now)
        } else {
            self.end_surely(How::Closed)
        };
    }
}
