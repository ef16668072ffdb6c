//! The outgoing side of one connection of a link: its first lane, which carries all that has an order, or a further one,
//! which carries pieces of large payloads.

use core::ptr::NonNull;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use dragon_protocol::wire::{FRAME_HEADER, FrameHeader};
use rustix::event::epoll;
use zerocopy::IntoBytes;

use super::raw;
use super::seal::Sealer;
use super::shared::{PeerCounters, Shared};
use crate::fabric::stream::{Outlet, Piece, Window};

/// A connection that has completed its handshake.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) token: u64,
    outlet: Outlet,
    /// What the epoll instance has been told to watch for.
    pub(super) interest: epoll::EventFlags,
    /// A frame without a number that goes out between two others, and how much of it has gone.
    aside: Option<(FrameHeader, usize)>,
    /// Where the connection is encrypted.
    sealer: Option<Sealer>,
}

/// What a connection watches for while nothing is queued.
pub(super) const READABLE: epoll::EventFlags = epoll::EventFlags::IN;

/// What one step of writing led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Bytes went.
    Went,
    /// There is nothing for this lane.
    Idle,
    /// The socket takes no more for now.
    Full,
}

/// What is sent, and how.
pub(super) struct Outgoing<'a> {
    pub(super) window: &'a mut Window,
    pub(super) peer: &'a PeerCounters,
    /// Large payloads are to go in pieces.
    pub(super) divide: bool,
}

impl Wire {
    pub(super) fn new(
        socket: Arc<OwnedFd>,
        token: u64,
        first: bool,
        sealer: Option<Sealer>,
    ) -> Self {
        Self {
            socket,
            token,
            outlet: Outlet::new(first),
            interest: READABLE,
            aside: None,
            sealer,
        }
    }

    /// Bytes that were sealed and have not gone.
    pub(super) fn sealed(&self) -> u64 {
        let sealed = self.sealer.as_ref().map_or(0, |sealer| sealer.rest().len());
        sealed as u64
    }

    /// Whether nothing waits to go between two frames.
    pub(super) fn has_no_aside(&self) -> bool {
        self.aside.is_none()
    }

    /// After what has gone in part no piece goes on this lane any more.
    pub(super) fn close(&mut self) {
        self.outlet.close();
    }

    /// Whether no further piece goes on this lane.
    pub(super) fn is_closing(&self) -> bool {
        self.outlet.is_closing()
    }

    /// Whether a piece that was given to this lane has perhaps not arrived.
    pub(super) fn is_at_stake(&self, window: &Window) -> bool {
        self.outlet.is_at_stake(window)
    }

    /// A frame without a number is to go next.
    pub(super) fn set_aside(&mut self, header: FrameHeader) {
        self.aside = Some((header, 0));
    }

    /// Whether a frame or a piece has gone in part.
    pub(super) fn is_within(&self, window: &Window) -> bool {
        self.outlet.is_within(window)
    }

    /// Watches for what is of use now.
    pub(super) fn watch(&mut self, full: bool, shared: &Shared) -> io::Result<()> {
        let mut wanted = READABLE;
        if full {
            wanted |= epoll::EventFlags::OUT;
        }
        if wanted != self.interest {
            self.interest = wanted;
            shared.watch(&self.socket, self.token, wanted)?;
        }
        Ok(())
    }

    /// Sends with one call what comes next.
    pub(super) fn step(&mut self, out: &mut Outgoing<'_>) -> io::Result<Step> {
        if let Some(mut sealer) = self.sealer.take() {
            let step = self.step_sealed(out, &mut sealer);
            self.sealer = Some(sealer);
            return step;
        }
        let within = self.is_within(out.window);
        if let Some((header, gone)) = self.aside.as_mut().filter(|_| !within) {
            let bytes = &header.as_bytes()[*gone..];
            // SAFETY: the header is not touched before the call returns.
            let piece = unsafe { Piece::new(NonNull::from(bytes).cast(), bytes.len()) };
            // SAFETY: the piece is initialised memory of this process.
            let sent = unsafe { raw::send(self.socket.as_fd(), &[piece]) };
            let Some(sent) = taken(sent)? else {
                return Ok(Step::Full);
            };
            out.peer.bytes_sent(sent as u64);
            *gone += sent;
            if *gone == FRAME_HEADER {
                self.aside = None;
            }
            return Ok(Step::Went);
        }
        let aside = self.aside.is_some();
        // SAFETY: neither the window nor the outlet is changed before the pieces were used.
        let (pieces, count) = unsafe { self.outlet.pieces(out.window, aside, out.divide) };
        if count == 0 {
            return Ok(Step::Idle);
        }
        // SAFETY: the pieces are headers and bodies of frames that stay in the window, unmoved, during the call, and the
        // head of a piece in the outlet.
        let sent = unsafe { raw::send(self.socket.as_fd(), &pieces[..count]) };
        let Some(sent) = taken(sent)? else {
            return Ok(Step::Full);
        };
        out.peer.bytes_sent(sent as u64);
        out.peer.wrote(self.outlet.wrote(out.window, sent as u64));
        Ok(Step::Went)
    }

    /// The same over an encrypted connection: what was sealed counts as written.
    fn step_sealed(&mut self, out: &mut Outgoing<'_>, sealer: &mut Sealer) -> io::Result<Step> {
        if sealer.rest().is_empty() {
            self.fill(out, sealer);
            if !sealer.seal()? {
                return Ok(Step::Idle);
            }
        }
        let bytes = sealer.rest();
        // SAFETY: the record is not touched before the call returns.
        let piece = unsafe { Piece::new(NonNull::from(bytes).cast(), bytes.len()) };
        // SAFETY: the piece is initialised memory of this process.
        let sent = unsafe { raw::send(self.socket.as_fd(), &[piece]) };
        let Some(sent) = taken(sent)? else {
            return Ok(Step::Full);
        };
        out.peer.bytes_sent(sent as u64);
        sealer.sent(sent);
        Ok(Step::Went)
    }

    /// Takes what comes next into a record, up to what that holds.
    fn fill(&mut self, out: &mut Outgoing<'_>, sealer: &mut Sealer) {
        if !self.is_within(out.window)
            && let Some((header, _)) = self.aside.take()
        {
            let bytes = header.as_bytes();
            // SAFETY: the header is not touched before it was copied.
            let piece = unsafe { Piece::new(NonNull::from(bytes).cast(), bytes.len()) };
            // SAFETY: the piece is initialised memory of this process.
            unsafe { sealer.take(&[piece]) };
        }
        loop {
            let aside = self.aside.is_some();
            // SAFETY: neither the window nor the outlet is changed before the pieces were copied.
            let (pieces, count) = unsafe { self.outlet.pieces(out.window, aside, out.divide) };
            // SAFETY: the pieces are headers and bodies of frames that stay in the window during the call, and the head of
            // a piece in the outlet.
            let took = unsafe { sealer.take(&pieces[..count]) };
            if took > 0 {
                out.peer.wrote(self.outlet.wrote(out.window, took as u64));
            }
            if took == 0 || self.aside.is_some() && !self.is_within(out.window) {
                return;
            }
        }
    }
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
