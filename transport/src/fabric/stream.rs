//! Frames over byte streams that may break: numbers, acknowledgements, and the copy that is kept until the other side has
//! a frame. Without I/O, so that a simulation can break it anywhere.
//!
//! A link has two [`Window`]s (one at each end, for what that end sends) and outlives its connections. Frames are numbered
//! by counting: the n-th frame of a link is the n-th that was submitted, and the receiver hands them on in that order. Each
//! frame's header says how many frames its sender has received ([`dragon_protocol::wire::FrameHeader::acknowledged`]), and
//! a frame of its own does when nothing else passes. A frame is kept until it was acknowledged. When a connection breaks,
//! the next one begins with both sides telling how many frames they have: the sender forgets those, and sends the others
//! again from the first byte. So each frame is handed on once, in order, or the link is lost.
//!
//! A connection may have further lanes: streams that carry pieces of large payloads and nothing else ([`Assembly`]). They
//! end with it; when one breaks with a piece that has perhaps not arrived, so does the connection. One that is not needed is
//! closed in two steps: one side says that it was the last, the other closes it when its pieces have arrived. So what is said above
//! holds however many there are.

mod assembly;
mod inbound;
mod pieces;
mod window;

#[cfg(test)]
mod simulation;

use dragon_protocol::wire;

pub(crate) use self::assembly::Assembly;
pub(super) use self::inbound::read_header;
pub(crate) use self::inbound::{CARRY, Inbound, Sink};
pub(super) use self::pieces::Outlet;
use self::pieces::PIECE_HEAD;
pub(super) use self::window::{Window, Wrote};

/// A stretch of memory that a network call reads or writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) start: core::ptr::NonNull<u8>,
    pub(crate) len: usize,
}

/// Bytes of each piece of a payload but the last: fewer where that is simulated.
const PIECE: u64 = if cfg!(test) { 8 << 10 } else { wire::PIECE };
/// Only payloads of so many bytes go in pieces.
const SPLIT: u64 = 2 * PIECE;
const _: () = assert!(wire::SPLIT == 2 * wire::PIECE);

/// How many pieces one call takes at most.
pub(super) const PIECES: usize = 128;

impl Piece {
    /// # Safety
    /// `start .. start + len` must stay mapped while the piece is in use, readable where it is sent from and writable where
    /// it is received into, and no reference to it may exist that a write would break.
    pub(super) unsafe fn new(start: core::ptr::NonNull<u8>, len: usize) -> Self {
        Self { start, len }
    }
}
