//! Pieces of payloads on their way out, and which lane sends what.

use core::ptr::NonNull;

use dragon_protocol::wire::{FRAME_HEADER, FrameHeader, FrameKind};
use zerocopy::{FromZeros, IntoBytes};

use super::window::{Pieces, Window, Wrote};
use super::{PIECES, Piece};

/// Bytes before those of the payload: a header of its own, and that of its frame.
pub(super) const PIECE_HEAD: usize = 2 * FRAME_HEADER;

/// What one lane sends of a window: the first lane all that has an order, any lane pieces of large payloads.
#[derive(Debug)]
pub(in crate::fabric) struct Outlet {
    first: bool,
    /// The piece that has gone in part.
    piece: Option<Leaving>,
    /// The frame of the latest piece.
    latest: Option<u64>,
    /// No further piece begins here.
    closing: bool,
}

impl Outlet {
    /// Of the first lane or of a further one.
    pub(in crate::fabric) const fn new(first: bool) -> Self {
        Self {
            first,
            piece: None,
            latest: None,
            closing: false,
        }
    }

    /// Lets the piece that has gone in part be the last one.
    pub(in crate::fabric) fn close(&mut self) {
        self.closing = true;
    }

    /// Whether no further piece begins here.
    pub(in crate::fabric) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether a piece that was given to this lane has perhaps not arrived.
    pub(in crate::fabric) fn is_at_stake(&self, window: &Window) -> bool {
        self.latest
            .is_some_and(|number| !window.is_acknowledged(number))
    }

    /// Whether a frame or a piece has gone in part: nothing else may be sent on this lane before its end.
    pub(in crate::fabric) fn is_within(&self, window: &Window) -> bool {
        self.piece.is_some() || self.first && window.is_within_a_frame()
    }

    /// The bytes to write next on this lane; none: there is nothing for it. With `rest_only` not beyond what has gone in
    /// part; with `divide` large payloads go in pieces.
    ///
    /// # Safety
    /// They lead into the window and this: nothing of both may be changed while they are used.
    pub(in crate::fabric) unsafe fn pieces(
        &mut self,
        window: &mut Window,
        rest_only: bool,
        divide: bool,
    ) -> Pieces {
        let frames = self.first && {
            // The header of a divided frame comes before its pieces.
            if divide && self.piece.is_none() && !window.is_before_pieces() {
                window.divide();
            }
            self.piece.is_none() && (window.is_before_pieces() || !window.is_dividing())
        };
        if frames && window.is_ready() {
            // SAFETY: as the caller promises.
            return unsafe { window.pieces(rest_only, divide) };
        }
        // SAFETY: a piece of no bytes touches no memory.
        let mut pieces = [unsafe { Piece::new(NonNull::dangling(), 0) }; PIECES];
        if frames {
            return (pieces, 0);
        }
        if self.piece.is_none() && !self.closing {
            self.piece = window.take_piece();
            let number = self.piece.as_ref().map(|piece| piece.number);
            self.latest = number.or(self.latest);
        }
        // SAFETY: as the caller promises.
        let rest = |piece| unsafe { window.piece(piece) };
        let Some(rest) = self.piece.as_ref().and_then(rest) else {
            return (pieces, 0);
        };
        pieces[..rest.len()].copy_from_slice(&rest);
        (pieces, rest.len())
    }

    /// So many of those bytes were written.
    pub(in crate::fabric) fn wrote(&mut self, window: &mut Window, count: u64) -> Wrote {
        let Some(piece) = &mut self.piece else {
            return window.wrote(count);
        };
        if window.wrote_piece(piece, count) {
            self.piece = None;
        }
        Wrote::default()
    }
}

/// A piece that is being written to a lane.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) number: u64,
    head: [u8; PIECE_HEAD],
    at: u64,
    length: u64,
    written: u64,
}

impl Leaving {
    /// So many bytes at a place of the payload of a frame.
    pub(super) fn new(number: u64, frame: &FrameHeader, at: u64, length: u64) -> Self {
        let piece = FrameHeader {
            kind: FrameKind::Piece as u8,
            request: number.into(),
            arg0: at.into(),
            payload: length.into(),
            ..FrameHeader::new_zeroed()
        };
        let mut head = [0; PIECE_HEAD];
        head[..FRAME_HEADER].copy_from_slice(piece.as_bytes());
        head[FRAME_HEADER..].copy_from_slice(frame.as_bytes());
        Self {
            number,
            head,
            at,
            length,
            written: 0,
        }
    }

    /// The bytes to write next, of a payload that begins at `payload`.
    ///
    /// # Safety
    /// `payload` must be that of the frame, and stay; this piece must stay where it is while the memory is used.
    pub(super) unsafe fn rest(&self, payload: NonNull<u8>) -> [Piece; 2] {
        let written = usize::try_from(self.written).unwrap_or(usize::MAX);
        let head = &self.head[written.min(PIECE_HEAD)..];
        let beyond = self.written.saturating_sub(PIECE_HEAD as u64);
        let offset = usize::try_from(self.at + beyond).unwrap_or(0);
        let left = usize::try_from(self.length - beyond).unwrap_or(0);
        // SAFETY: the piece lies within the payload.
        let start = unsafe { payload.add(offset) };
        // SAFETY: as the caller promises.
        let head = unsafe { Piece::new(NonNull::from(head).cast(), head.len()) };
        // SAFETY: likewise.
        [head, unsafe { Piece::new(start, left) }]
    }

    /// So many bytes were written; returns how many of them are of the payload, and whether it was the rest.
    pub(super) fn wrote(&mut self, count: u64) -> (u64, bool) {
        let head = PIECE_HEAD as u64;
        let before = self.written.max(head);
        self.written += count;
        let of_payload = self.written.max(head) - before;
        (of_payload, self.written == head + self.length)
    }
}
