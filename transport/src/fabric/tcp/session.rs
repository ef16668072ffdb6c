//! A link over TCP: what any thread may use of it. It outlives its connections.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dragon_protocol::NodeIndex;
use dragon_protocol::wire::{FRAME_HEADER, FrameHeader, FrameKind};
use rustix::event::epoll;
use zerocopy::{FromZeros, IntoBytes};

use super::raw;
use super::seal::Sealer;
use super::shared::{PeerCounters, Shared};
use crate::fabric::stream::{Piece, Window};
use crate::fabric::{Frame, Link, LinkError, Side};

/// A link.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) side: Side,
    pub(super) node: NodeIndex,
    /// Its number, chosen by the side that opened it.
    pub(super) number: u64,
    pub(super) peer: Arc<PeerCounters>,
    clock_offset: AtomicI64,
    up: AtomicBool,
    /// Numbered frames received on all its connections.
    received: AtomicU64,
    /// How many of them the other side has been told of.
    told: AtomicU64,
    out: Mutex<Out>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Out {
    closed: bool,
    /// The connection, when there is one that has completed its handshake.
    wire: Option<Wire>,
    window: Window,
}

#[derive(Debug)]
struct Wire {
    socket: Arc<OwnedFd>,
    token: u64,
    /// What the epoll instance has been told to watch for.
    interest: epoll::EventFlags,
    /// A frame without a number that goes out between two others, and how much of it has gone.
    aside: Option<(FrameHeader, usize)>,
    /// An acknowledgement is wanted.
    acknowledge: bool,
    /// Where the connection is encrypted.
    sealer: Option<Sealer>,
}

/// What a connection watches for while nothing is queued.
pub(super) const READABLE: epoll::EventFlags = epoll::EventFlags::IN;

/// Bytes that wait for others before they are sent.
const TOGETHER: u64 = 64 << 10;

/// Frames and bytes received that the other side may keep a copy of before it is told that it need not.
const UNTOLD: u64 = 32;

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("side", &self.side)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(
        side: Side,
        node: NodeIndex,
        number: u64,
        peer: Arc<PeerCounters>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            id: shared.next_id(),
            side,
            node,
            number,
            peer,
            clock_offset: AtomicI64::new(0),
            up: AtomicBool::new(false),
            received: AtomicU64::new(0),
            told: AtomicU64::new(0),
            out: Mutex::new(Out {
                closed: false,
                wire: None,
                window: Window::default(),
            }),
            shared,
        }
    }

    /// Whether it ever stood.
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Numbered frames received so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// A numbered frame is about to be handed on.
    pub(super) fn count_received(&self) {
        // One thread alone writes it.
        let received = self.received.load(Ordering::Relaxed);
        self.received.store(received + 1, Ordering::Release);
    }

    /// A connection stands: what the other side, which has `received` frames, lacks is sent on it.
    pub(super) fn attach(
        &self,
        socket: Arc<OwnedFd>,
        token: u64,
        clock_offset: i64,
        received: u64,
        sealer: Option<Sealer>,
    ) -> Result<(), LinkError> {
        let mut out = self.out();
        if out.closed {
            return Err(LinkError::ClosedHere);
        }
        out.window.resume(received)?;
        out.wire = Some(Wire {
            socket,
            token,
            interest: READABLE,
            aside: None,
            acknowledge: false,
            sealer,
        });
        self.told.store(self.received(), Ordering::Relaxed);
        self.clock_offset.store(clock_offset, Ordering::Relaxed);
        self.up.store(true, Ordering::Release);
        self.write(&mut out).map_err(LinkError::Network)
    }

    /// The connection broke, unless the link has another by now.
    pub(super) fn detach(&self, token: u64) {
        let mut out = self.out();
        if out.wire.as_ref().is_some_and(|wire| wire.token == token) {
            out.wire = None;
            out.window.broke();
        }
    }

    /// The connection that it has.
    pub(super) fn token(&self) -> Option<u64> {
        self.out().wire.as_ref().map(|wire| wire.token)
    }

    /// The socket takes bytes again.
    pub(super) fn writable(&self) -> io::Result<()> {
        self.write(&mut self.out())
    }

    /// The other side has so many frames.
    pub(super) fn acknowledged(&self, count: u16) -> io::Result<()> {
        let mut out = self.out();
        let waited = !out.window.is_ready() && out.window.queued() > 0;
        out.window.acknowledged(count);
        if out.window.is_roomy() {
            self.shared.roomy.store(true, Ordering::Relaxed);
        }
        if waited { self.write(&mut out) } else { Ok(()) }
    }

    /// Tells the other side what has arrived, when it is worth it. `large`: it keeps a large payload until it is told.
    pub(super) fn acknowledge(&self, large: bool) -> io::Result<()> {
        let untold = self.received() - self.told.load(Ordering::Relaxed);
        if untold == 0 || !large && untold < UNTOLD {
            return Ok(());
        }
        let mut out = self.out();
        if let Some(wire) = &mut out.wire {
            wire.acknowledge = true;
        }
        self.write(&mut out)
    }

    /// The end of the link, whatever state it was in. Returns the frames of which no byte was sent.
    pub(super) fn end(&self) -> Vec<Frame> {
        let mut out = self.out();
        out.closed = true;
        out.wire = None;
        out.window.end()
    }

    /// Says that the link ends, where that can be said at once.
    pub(super) fn say_end(&self) {
        let mut out = self.out();
        let within = out.window.is_within_a_frame();
        if let Some(wire) = out.wire.as_mut().filter(|w| !within && w.aside.is_none()) {
            wire.aside = Some((aside(FrameKind::End, 0), 0));
            // Whoever misses it learns it when it tries to go on with the link.
            let _ = self.write(&mut out);
        }
    }

    /// Gives up room that was not needed lately; whether there is more to give up.
    pub(super) fn tidy(&self) -> bool {
        let mut out = self.out();
        out.window.tidy();
        out.window.is_roomy()
    }

    /// Frames that were not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.out().window.len() as u64
    }

    fn fill_header(&self, header: &mut FrameHeader) {
        let received = self.received();
        header.acknowledged = low(received).into();
        self.told.store(received, Ordering::Relaxed);
    }

    /// Sends what the socket takes. What remains is sent when the socket is writable again.
    fn write(&self, out: &mut Out) -> io::Result<()> {
        let Out { wire, window, .. } = out;
        let Some(wire) = wire else {
            return Ok(());
        };
        let all = if let Some(mut sealer) = wire.sealer.take() {
            let all = self.send_sealed(wire, &mut sealer, window);
            wire.sealer = Some(sealer);
            all?
        } else {
            self.send_all(wire, window)?
        };
        let mut wanted = READABLE;
        if !all {
            wanted |= epoll::EventFlags::OUT;
        }
        if wanted != wire.interest {
            wire.interest = wanted;
            self.shared.watch(&wire.socket, wire.token, wanted)?;
        }
        Ok(())
    }

    /// Returns whether everything went.
    fn send_all(&self, wire: &mut Wire, window: &mut Window) -> io::Result<bool> {
        loop {
            self.want_acknowledge(wire);
            if let Some((header, gone)) =
                wire.aside.as_mut().filter(|_| !window.is_within_a_frame())
            {
                let bytes = &header.as_bytes()[*gone..];
                // SAFETY: the header is not touched before the call returns.
                let piece = unsafe { Piece::new(NonNull::from(bytes).cast(), bytes.len()) };
                // SAFETY: the piece is initialised memory of this process.
                let sent = unsafe { raw::send(wire.socket.as_fd(), &[piece]) };
                let Some(sent) = taken(sent)? else {
                    return Ok(false);
                };
                self.peer.bytes_sent(sent as u64);
                *gone += sent;
                if *gone == FRAME_HEADER {
                    wire.aside = None;
                }
                continue;
            }
            if !window.is_ready() {
                return Ok(true);
            }
            // SAFETY: the window is not changed before the pieces were used.
            let (pieces, count) = unsafe { window.pieces(wire.aside.is_some()) };
            // SAFETY: the pieces are headers and bodies of frames that stay in the window, unmoved, during the call.
            let sent = unsafe { raw::send(wire.socket.as_fd(), &pieces[..count]) };
            let Some(sent) = taken(sent)? else {
                return Ok(false);
            };
            self.peer.bytes_sent(sent as u64);
            self.peer.wrote(window.wrote(sent as u64));
        }
    }

    /// The same over an encrypted connection: what was sealed counts as written.
    fn send_sealed(
        &self,
        wire: &mut Wire,
        sealer: &mut Sealer,
        window: &mut Window,
    ) -> io::Result<bool> {
        loop {
            while !sealer.rest().is_empty() {
                let bytes = sealer.rest();
                // SAFETY: the record is not touched before the call returns.
                let piece = unsafe { Piece::new(NonNull::from(bytes).cast(), bytes.len()) };
                // SAFETY: the piece is initialised memory of this process.
                let sent = unsafe { raw::send(wire.socket.as_fd(), &[piece]) };
                let Some(sent) = taken(sent)? else {
                    return Ok(false);
                };
                self.peer.bytes_sent(sent as u64);
                sealer.sent(sent);
            }
            self.want_acknowledge(wire);
            if !window.is_within_a_frame()
                && let Some((header, _)) = wire.aside.take()
            {
                let bytes = header.as_bytes();
                // SAFETY: the header is not touched before it was copied.
                let piece = unsafe { Piece::new(NonNull::from(bytes).cast(), bytes.len()) };
                // SAFETY: the piece is initialised memory of this process.
                unsafe { sealer.take(&[piece]) };
            }
            while window.is_ready() {
                // SAFETY: the window is not changed before the pieces were copied.
                let (pieces, count) = unsafe { window.pieces(wire.aside.is_some()) };
                // SAFETY: the pieces are headers and bodies of frames that stay in the window during the call.
                let took = unsafe { sealer.take(&pieces[..count]) };
                if took == 0 {
                    break;
                }
                self.peer.wrote(window.wrote(took as u64));
                if wire.aside.is_some() && !window.is_within_a_frame() {
                    break;
                }
            }
            if !sealer.seal()? {
                return Ok(true);
            }
        }
    }

    fn want_acknowledge(&self, wire: &mut Wire) {
        if wire.acknowledge && wire.aside.is_none() {
            let received = self.received();
            self.told.store(received, Ordering::Relaxed);
            wire.aside = Some((aside(FrameKind::Acknowledge, received), 0));
            wire.acknowledge = false;
        }
    }

    /// Queues a frame, and sends when there are more than so many bytes.
    #[expect(
        clippy::result_large_err,
        reason = "the frame comes back to be sent again, and boxes cost every frame an allocation"
    )]
    fn enter(&self, mut frame: Frame, most: u64) -> Result<(), Frame> {
        let mut out = self.out();
        if out.closed {
            return Err(frame);
        }
        self.fill_header(&mut frame.header);
        out.window.submit(frame);
        if out.window.queued() > most {
            self.send(out);
        }
        Ok(())
    }

    /// Sends what is queued, unless the socket takes no more: then it is sent when the socket is writable again.
    fn send(&self, mut out: MutexGuard<'_, Out>) {
        let full = epoll::EventFlags::OUT;
        let waits = out
            .wire
            .as_ref()
            .is_some_and(|wire| wire.interest.contains(full));
        if waits {
            return;
        }
        if let Err(error) = self.write(&mut out) {
            let token = out.wire.as_ref().map(|wire| wire.token);
            drop(out);
            tracing::debug!(link = self.id, %error, "sending failed");
            if let Some(token) = token {
                self.shared.broken(token);
            }
        }
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link for Session {
    fn id(&self) -> u64 {
        self.id
    }

    fn node(&self) -> NodeIndex {
        self.node
    }

    fn side(&self) -> Side {
        self.side
    }

    fn clock_offset(&self) -> i64 {
        self.clock_offset.load(Ordering::Relaxed)
    }

    fn submit(&self, frame: Frame) -> Result<(), Frame> {
        self.enter(frame, 0)
    }

    fn queue(&self, frame: Frame) -> Result<(), Frame> {
        self.enter(frame, TOGETHER)
    }

    fn flush(&self) {
        self.send(self.out());
    }

    fn queued(&self) -> u64 {
        let out = self.out();
        let sealer = out.wire.as_ref().and_then(|wire| wire.sealer.as_ref());
        let sealed = sealer.map_or(0, |sealer| sealer.rest().len());
        out.window.queued() + sealed as u64
    }

    fn close(&self) {
        // The I/O thread does the rest.
        self.shared.doom(self.id);
    }
}

fn aside(kind: FrameKind, received: u64) -> FrameHeader {
    FrameHeader {
        kind: kind as u8,
        acknowledged: low(received).into(),
        ..FrameHeader::new_zeroed()
    }
}

fn low(count: u64) -> u16 {
    let [low, high, ..] = count.to_le_bytes();
    u16::from_le_bytes([low, high])
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
