//! One TCP connection: the half that any thread may use (its queue of outgoing frames), see [`super::read`] for the half
//! that belongs to the I/O thread.

use core::fmt;
use core::ptr::NonNull;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use dragon_protocol::NodeIndex;
use dragon_protocol::handshake::Peer;
use dragon_protocol::wire::{FRAME_HEADER, FrameHeader};
use rustix::event::epoll;
use zerocopy::IntoBytes;

use super::raw::{self, PIECES, Piece};
use super::shared::Shared;
use crate::body::Body;
use crate::fabric::{Frame, Link, Side};

/// A connection, as a [`Link`] once its handshake is complete.
pub(super) struct Conn {
    pub(super) id: u64,
    pub(super) side: Side,
    /// The node that this side means to talk to; accepted connections learn it in the handshake.
    expected: Option<NodeIndex>,
    socket: OwnedFd,
    peer: OnceLock<Peer>,
    out: Mutex<Out>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Out {
    state: State,
    /// Bytes of the handshake that are to be sent before any frame.
    greeting: Vec<u8>,
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that have been sent.
    sent: u64,
    /// Bytes of frames queued, without what has been sent.
    queued: u64,
    /// What the epoll instance has been told to watch for.
    interest: epoll::EventFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Handshake,
    Up,
    Closed,
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("id", &self.id)
            .field("side", &self.side)
            .field("node", &self.peer.get().map(|p| p.node).or(self.expected))
            .finish_non_exhaustive()
    }
}

/// What an accepted or opened connection watches for while nothing is queued.
pub(super) const READABLE: epoll::EventFlags = epoll::EventFlags::IN;

impl Conn {
    /// An accepted connection.
    pub(super) fn accepted(id: u64, socket: OwnedFd, shared: Arc<Shared>) -> Self {
        Self::new(
            id,
            Side::Accepted,
            None,
            socket,
            State::Handshake,
            READABLE,
            shared,
        )
    }

    /// A connection under way to `node`.
    pub(super) fn opening(id: u64, node: NodeIndex, socket: OwnedFd, shared: Arc<Shared>) -> Self {
        let interest = READABLE | epoll::EventFlags::OUT;
        let state = State::Connecting;
        Self::new(
            id,
            Side::Opened,
            Some(node),
            socket,
            state,
            interest,
            shared,
        )
    }

    fn new(
        id: u64,
        side: Side,
        expected: Option<NodeIndex>,
        socket: OwnedFd,
        state: State,
        interest: epoll::EventFlags,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            id,
            side,
            expected,
            socket,
            peer: OnceLock::new(),
            out: Mutex::new(Out {
                state,
                greeting: Vec::new(),
                frames: VecDeque::new(),
                sent: 0,
                queued: 0,
                interest,
            }),
            shared,
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn interest(&self) -> epoll::EventFlags {
        self.out().interest
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.out().state == State::Connecting
    }

    pub(super) fn is_up(&self) -> bool {
        self.peer.get().is_some()
    }

    /// Sends bytes of the handshake before any frame.
    pub(super) fn greet(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = self.out();
        if out.state == State::Connecting {
            out.state = State::Handshake;
        }
        out.greeting.extend_from_slice(bytes);
        self.flush(&mut out)
    }

    /// The handshake is complete: frames may pass.
    pub(super) fn stand(&self, peer: Peer) -> io::Result<()> {
        let _ = self.peer.set(peer);
        let mut out = self.out();
        if out.state != State::Closed {
            out.state = State::Up;
        }
        self.flush(&mut out)
    }

    /// The socket takes bytes again.
    pub(super) fn writable(&self) -> io::Result<()> {
        let mut out = self.out();
        self.flush(&mut out)
    }

    /// Nothing is sent any more. Returns the frames of which no byte was sent.
    pub(super) fn end(&self) -> Vec<Frame> {
        let mut out = self.out();
        out.state = State::Closed;
        let started = out.sent > 0;
        out.queued = 0;
        out.sent = 0;
        let frames = core::mem::take(&mut out.frames);
        frames.into_iter().skip(usize::from(started)).collect()
    }

    /// Sends what the socket takes. What remains is sent when the socket is writable again.
    fn flush(&self, out: &mut Out) -> io::Result<()> {
        let result = self.send_all(out);
        if out.state == State::Closed {
            return Ok(());
        }
        let mut wanted = READABLE;
        let waits = match out.state {
            State::Connecting => true,
            State::Handshake => !out.greeting.is_empty(),
            State::Up | State::Closed => !out.greeting.is_empty() || !out.frames.is_empty(),
        };
        if waits {
            wanted |= epoll::EventFlags::OUT;
        }
        if wanted != out.interest && result.is_ok() {
            out.interest = wanted;
            self.shared.watch(self, wanted)?;
        }
        result
    }

    fn send_all(&self, out: &mut Out) -> io::Result<()> {
        while !out.greeting.is_empty() {
            let start = NonNull::from(out.greeting.as_mut_slice()).cast();
            // SAFETY: the greeting is not touched before the call returns.
            let piece = unsafe { Piece::new(start, out.greeting.len()) };
            // SAFETY: the piece is the greeting, initialised memory of this process.
            let sent = unsafe { raw::send(self.socket(), &[piece]) };
            match taken(sent)? {
                Some(n) => drop(out.greeting.drain(..n)),
                None => return Ok(()),
            }
        }
        if out.state != State::Up {
            return Ok(());
        }
        while !out.frames.is_empty() {
            let (pieces, count) = gather(out);
            // SAFETY: the pieces are headers and bodies of frames that stay in the queue, unmoved, during the call.
            let sent = unsafe { raw::send(self.socket(), &pieces[..count]) };
            match taken(sent)? {
                Some(n) => self.account(out, n as u64),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn account(&self, out: &mut Out, sent: u64) {
        self.shared.counters.bytes_sent(sent);
        out.queued = out.queued.saturating_sub(sent);
        out.sent += sent;
        while let Some(frame) = out.frames.front() {
            let whole = frame_len(frame);
            if out.sent < whole {
                break;
            }
            out.sent -= whole;
            out.frames.pop_front();
            self.shared.counters.frame_sent();
        }
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link for Conn {
    fn id(&self) -> u64 {
        self.id
    }

    fn node(&self) -> NodeIndex {
        let known = self.peer.get().map(|p| p.node).or(self.expected);
        // An accepted connection becomes a link only when its handshake has told the node.
        known.unwrap_or(NodeIndex::FIRST)
    }

    fn side(&self) -> Side {
        self.side
    }

    fn clock_offset(&self) -> i64 {
        self.peer.get().map_or(0, |p| p.clock_offset)
    }

    fn submit(&self, frame: Frame) -> Result<(), Frame> {
        let mut out = self.out();
        if out.state == State::Closed {
            return Err(frame);
        }
        out.queued += frame_len(&frame);
        out.frames.push_back(frame);
        // Frames before this one wait for a writable socket: so does this one.
        if out.frames.len() == 1
            && out.state == State::Up
            && let Err(error) = self.flush(&mut out)
        {
            drop(out);
            tracing::debug!(link = self.id, %error, "sending failed");
            self.close();
        }
        Ok(())
    }

    fn queued(&self) -> u64 {
        self.out().queued
    }

    fn close(&self) {
        // The I/O thread sees the end of the stream, and does the rest.
        let _ = rustix::net::shutdown(self.socket(), rustix::net::Shutdown::Both);
        self.shared.doom(self.id);
    }
}

fn frame_len(frame: &Frame) -> u64 {
    FRAME_HEADER as u64 + frame.body.len()
}

/// The pieces of the first frames of the queue, without what has been sent.
fn gather(out: &Out) -> ([Piece; PIECES], usize) {
    let nowhere = NonNull::<u8>::dangling();
    // SAFETY: a piece of no bytes touches no memory.
    let mut pieces = [unsafe { Piece::new(nowhere, 0) }; PIECES];
    let mut count = 0;
    let mut skip = out.sent;
    for frame in &out.frames {
        if count + 2 > PIECES {
            break;
        }
        for (start, len) in [header_part(&frame.header), body_part(&frame.body)] {
            let left = len.saturating_sub(skip);
            if left > 0 {
                let offset = usize::try_from(len - left).unwrap_or(0);
                let left = usize::try_from(left).unwrap_or(usize::MAX);
                // SAFETY: the offset is below the length of the part.
                let start = unsafe { start.add(offset) };
                // SAFETY: the frame stays in the queue while the pieces are used, and nothing here writes to it.
                pieces[count] = unsafe { Piece::new(start, left) };
                count += 1;
            }
            skip = skip.saturating_sub(len);
        }
    }
    (pieces, count)
}

fn header_part(header: &FrameHeader) -> (NonNull<u8>, u64) {
    let bytes = header.as_bytes();
    (NonNull::from(bytes).cast(), bytes.len() as u64)
}

fn body_part(body: &Body) -> (NonNull<u8>, u64) {
    (body.start(), body.len())
}

/// How many bytes went; `None` when the socket takes no more for now.
fn taken(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Some(0)),
        Err(e) => Err(e),
    }
}
