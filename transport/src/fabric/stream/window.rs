//! What one end of a link sends: frames in their order, kept until the other end has them.

use core::ptr::NonNull;
use std::collections::VecDeque;

use dragon_protocol::wire::{APART, FRAME_HEADER, FrameHeader};
use zerocopy::IntoBytes;

use super::pieces::Leaving;
use super::{PIECE, PIECES, Piece, SPLIT};
use crate::body::Body;
use crate::fabric::{Frame, LinkError, SMALL};

/// Frames of one link that may be on their way without having been acknowledged; far below what the 16 bits of an
/// acknowledgement can tell apart.
pub(super) const FRAMES: usize = 8192;
/// Frames for which an idle link keeps room.
const FEW: usize = 32;
/// Bytes of such frames, unless one alone is larger.
pub(super) const BYTES: u64 = 64 << 20;
/// Bytes of frames, large payloads apart, that may follow one that goes in pieces before that was acknowledged: the other
/// side holds them until it has all of it.
pub(super) const BEHIND: u64 = if cfg!(test) { 8 << 10 } else { 64 << 10 };

/// The outgoing frames of a link.
#[derive(Debug, Default)]
pub(in crate::fabric) struct Window {
    /// From the oldest that was not acknowledged.
    frames: VecDeque<Frame>,
    /// Frames that were acknowledged: the number of the first in `frames`.
    acknowledged: u64,
    /// How many of `frames` have been written to the present connection as a whole.
    next: usize,
    /// Bytes of the one after those that have been written.
    written: u64,
    /// Bytes of the frames that have been written as a whole.
    kept: u64,
    /// Frames of which any byte has ever been written, counted from the beginning of the link.
    touched: u64,
    /// Frames that have been written as a whole to any connection, counted likewise.
    finished: u64,
    /// Bytes that have not been written to the present connection.
    queued: u64,
    /// The most frames that there were since [`Window::tidy`] last looked.
    peak: usize,
    /// The frame that is being divided, and where its next piece begins.
    dividing: Option<(u64, u64)>,
    /// The frames of pieces that are written in part, one for each lane at most.
    under_way: Vec<u64>,
    /// The oldest divided frame that was not acknowledged.
    divided: Option<u64>,
    /// Bytes of the frames written after that, see [`BEHIND`].
    behind: u64,
}

/// What the next call sends.
pub(super) type Pieces = ([Piece; PIECES], usize);

/// What happened by writing bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::fabric) struct Wrote {
    /// Frames that are written as a whole now, for the first time.
    pub(in crate::fabric) frames: u64,
    /// The same for frames that were sent before.
    pub(in crate::fabric) again: u64,
}

impl Window {
    /// Queues a frame. Small payloads are copied out of the pool, so that nothing of it is held until they are acknowledged.
    pub(in crate::fabric) fn submit(&mut self, mut frame: Frame) {
        if frame.body.len() <= SMALL && !matches!(frame.body, Body::Bytes(_)) {
            frame.body = Body::Bytes(frame.body.to_vec());
        }
        self.queued += length(&frame);
        self.frames.push_back(frame);
        self.peak = self.peak.max(self.frames.len());
    }

    /// Bytes that wait to be written.
    pub(in crate::fabric) fn queued(&self) -> u64 {
        self.queued
    }

    /// Frames that were not acknowledged, written or not.
    pub(in crate::fabric) fn len(&self) -> usize {
        self.frames.len()
    }

    /// The number of the oldest frame that was not acknowledged.
    pub(in crate::fabric) fn oldest(&self) -> Option<u64> {
        (!self.frames.is_empty()).then_some(self.acknowledged)
    }

    /// Whether there is room for more frames than an idle link needs.
    pub(in crate::fabric) fn is_roomy(&self) -> bool {
        self.frames.capacity() > FEW
    }

    /// Gives up the room that was not used since the last call. To be called now and then while [`Window::is_roomy`]: not
    /// whenever frames were acknowledged, since a busy link would take the same memory again and again.
    pub(in crate::fabric) fn tidy(&mut self) {
        let used = self.peak.next_power_of_two().max(FEW);
        if self.frames.capacity() > used {
            self.frames.shrink_to(used);
        }
        self.peak = self.frames.len();
    }

    /// Whether a frame is written in part: nothing else may be sent before its end.
    pub(super) fn is_within_a_frame(&self) -> bool {
        self.written > 0
    }

    /// Whether there is a frame to write now, on the first lane.
    pub(in crate::fabric) fn is_ready(&self) -> bool {
        let may = || self.dividing.is_none() && self.may_send(self.next, self.kept, self.behind);
        self.frames
            .get(self.next)
            .is_some_and(|f| is_apart(f) || may())
    }

    /// Whether the next frame, all of it or a part, is to be written before any piece on the first lane.
    pub(super) fn is_before_pieces(&self) -> bool {
        self.written > 0 || self.frames.get(self.next).is_some_and(is_apart)
    }

    /// Whether what waits is worth another lane.
    pub(in crate::fabric) fn is_loaded(&self) -> bool {
        let large = |frame: &Frame| frame.body.len() >= SPLIT;
        let next = || self.frames.get(self.next).is_some_and(large);
        self.queued >= SPLIT && (self.dividing.is_some() || next())
    }

    /// Whether the other side has said that it has the frame with this number.
    pub(super) fn is_acknowledged(&self, number: u64) -> bool {
        number < self.acknowledged
    }

    /// Whether pieces are left of a divided frame.
    pub(super) fn is_dividing(&self) -> bool {
        self.dividing.is_some()
    }

    /// Begins to divide the next frame, where that is large and nothing of it was written.
    pub(super) fn divide(&mut self) {
        let may = self.dividing.is_none() && self.written == 0;
        if !may || !self.is_ready() {
            return;
        }
        let number = self.acknowledged + self.next as u64;
        let large = |frame: &&mut Frame| frame.body.len() >= SPLIT && !is_apart(frame);
        if let Some(frame) = self.frames.get_mut(self.next).filter(large) {
            frame.header.kind |= APART;
            self.dividing = Some((number, 0));
            self.touched = self.touched.max(number + 1);
        }
    }

    /// The next piece of the frame that is being divided.
    pub(super) fn take_piece(&mut self) -> Option<Leaving> {
        let (number, at) = self.dividing?;
        let frame = self.frame(number)?;
        let all = frame.body.len();
        let length = PIECE.min(all - at);
        let piece = Leaving::new(number, &frame.header, at, length);
        let next = at + length;
        self.dividing = (next < all).then_some((number, next));
        self.under_way.push(number);
        Some(piece)
    }

    /// The bytes of a piece to write next; none when the connection that it belonged to has broken.
    ///
    /// # Safety
    /// Neither the window nor the piece may be changed while they are used.
    pub(super) unsafe fn piece(&self, piece: &Leaving) -> Option<[Piece; 2]> {
        let frame = self.frame(piece.number)?;
        // SAFETY: the payload of the piece's frame, which stays while the piece is under way; else as the caller promises.
        Some(unsafe { piece.rest(frame.body.start()) })
    }

    /// So many bytes of a piece were written; whether it was the rest.
    pub(super) fn wrote_piece(&mut self, piece: &mut Leaving, count: u64) -> bool {
        let (of_payload, whole) = piece.wrote(count);
        self.queued = self.queued.saturating_sub(of_payload);
        let found = self.under_way.iter().position(|n| *n == piece.number);
        if let Some(at) = found.filter(|_| whole) {
            self.under_way.swap_remove(at);
        }
        whole
    }

    fn frame(&self, number: u64) -> Option<&Frame> {
        let at = number.checked_sub(self.acknowledged)?;
        self.frames.get(usize::try_from(at).ok()?)
    }

    /// The bytes to write next on the first lane. With `rest_only` not beyond the frame that is written in part; with
    /// `divide` not beyond a frame that is to be divided.
    ///
    /// # Safety
    /// The pieces lead into the window: nothing of it may be changed while they are used.
    pub(super) unsafe fn pieces(&self, rest_only: bool, divide: bool) -> Pieces {
        // SAFETY: a piece of no bytes touches no memory.
        let mut pieces = [unsafe { Piece::new(NonNull::dangling(), 0) }; PIECES];
        let mut count = 0;
        let mut skip = self.written;
        let mut kept = self.kept;
        let mut behind = self.behind;
        for (at, frame) in self.frames.iter().enumerate().skip(self.next) {
            let own_turn = rest_only || divide && frame.body.len() >= SPLIT;
            let over = own_turn && at > self.next;
            let apart = is_apart(frame);
            if over || count + 2 > PIECES || !apart && !self.may_send(at, kept, behind) {
                break;
            }
            kept += length(frame);
            behind += cost(frame.body.len());
            let (body, len) = body_part(&frame.body);
            let body = (body, if apart { 0 } else { len });
            for (start, len) in [header_part(&frame.header), body] {
                let left = len.saturating_sub(skip);
                if left > 0 {
                    let offset = usize::try_from(len - left).unwrap_or(0);
                    let left = usize::try_from(left).unwrap_or(usize::MAX);
                    // SAFETY: the offset is below the length of the part.
                    let start = unsafe { start.add(offset) };
                    // SAFETY: as the caller promises, the frame stays where it is while the piece is used.
                    pieces[count] = unsafe { Piece::new(start, left) };
                    count += 1;
                }
                skip = skip.saturating_sub(len);
            }
            if apart {
                break;
            }
        }
        (pieces, count)
    }

    /// So many bytes of the pieces were written.
    pub(super) fn wrote(&mut self, count: u64) -> Wrote {
        self.queued = self.queued.saturating_sub(count);
        self.written += count;
        let mut wrote = Wrote::default();
        while let Some(frame) = self.frames.get(self.next) {
            let number = self.acknowledged + self.next as u64;
            let apart = is_apart(frame);
            let whole = if apart {
                FRAME_HEADER as u64
            } else {
                length(frame)
            };
            if self.written < whole {
                if self.written > 0 {
                    self.touched = self.touched.max(number + 1);
                }
                break;
            }
            if number < self.finished {
                wrote.again += 1;
            } else {
                wrote.frames += 1;
                self.finished = number + 1;
            }
            self.touched = self.touched.max(number + 1);
            if self.divided.is_some() {
                self.behind += cost(frame.body.len());
            } else if apart {
                self.divided = Some(number);
            }
            self.written -= whole;
            self.kept += length(frame);
            self.next += 1;
        }
        wrote
    }

    /// The other side has so many frames, in the 16 bits that a header has room for. What was said earlier and comes again
    /// changes nothing.
    pub(in crate::fabric) fn acknowledged(&mut self, count: u16) {
        let [low, high, ..] = self.acknowledged.to_le_bytes();
        let by = usize::from(count.wrapping_sub(u16::from_le_bytes([low, high])));
        // Nobody has a frame of which a part has not been written.
        let end = self.acknowledged + by as u64;
        let begun = self.dividing.iter().map(|(number, _)| number);
        let whole = begun.chain(&self.under_way).all(|number| *number >= end);
        if by <= self.next && whole {
            self.forget(by);
        }
    }

    /// A new connection: the other side has `received` frames; the others are sent again.
    ///
    /// # Errors
    /// When it claims frames that were never sent, or has lost some that it had.
    pub(in crate::fabric) fn resume(&mut self, received: u64) -> Result<(), LinkError> {
        let by = received.checked_sub(self.acknowledged);
        let by = by.filter(|_| received <= self.finished);
        let by = by.and_then(|by| usize::try_from(by).ok());
        let Some(by) = by.filter(|by| *by <= self.frames.len()) else {
            let (acknowledged, finished) = (self.acknowledged, self.finished);
            return Err(LinkError::Malformed(format!(
                "the peer claims {received} frames; it acknowledged {acknowledged}, and {finished} were sent"
            )));
        };
        self.broke();
        self.next = by;
        self.forget(by);
        self.queued = self.frames.iter().map(length).sum();
        Ok(())
    }

    /// The connection broke: what was written to it may have arrived or not.
    pub(in crate::fabric) fn broke(&mut self) {
        self.next = 0;
        self.written = 0;
        self.kept = 0;
        self.queued = self.frames.iter().map(length).sum();
        self.dividing = None;
        self.under_way = Vec::new();
        (self.divided, self.behind) = (None, 0);
        for frame in &mut self.frames {
            frame.header.kind &= !APART;
        }
    }

    /// The end of the link. Returns the frames of which no byte was ever written.
    pub(in crate::fabric) fn end(&mut self) -> Vec<Frame> {
        let touched = usize::try_from(self.touched - self.acknowledged).unwrap_or(usize::MAX);
        self.broke();
        let frames = core::mem::take(&mut self.frames);
        self.acknowledged += frames.len() as u64;
        self.finished = self.acknowledged;
        self.touched = self.touched.max(self.acknowledged);
        (self.next, self.written, self.kept, self.queued) = (0, 0, 0, 0);
        frames.into_iter().skip(touched).collect()
    }

    fn may_send(&self, at: usize, kept: u64, behind: u64) -> bool {
        let behind = self.divided.is_none() || behind < BEHIND;
        // What has begun goes on, and one frame is always allowed.
        at == 0 || at < FRAMES && kept < BYTES && behind || at == self.next && self.written > 0
    }

    fn forget(&mut self, count: usize) {
        for frame in self.frames.drain(..count) {
            self.kept = self.kept.saturating_sub(length(&frame));
        }
        self.next -= count;
        self.acknowledged += count as u64;
        if self
            .divided
            .is_some_and(|number| number < self.acknowledged)
        {
            let sent = self.frames.iter().take(self.next);
            let first = sent.clone().position(is_apart);
            self.divided = first.map(|at| self.acknowledged + at as u64);
            let after = sent.skip(first.map_or(self.next, |at| at + 1));
            self.behind = after.map(|frame| cost(frame.body.len())).sum();
        }
    }
}

/// Whether it was divided.
fn is_apart(frame: &Frame) -> bool {
    frame.header.kind & APART != 0
}

/// What a frame with such a payload takes of the memory of who must hold it; a large payload is in a block of the pool.
pub(super) fn cost(payload: u64) -> u64 {
    FRAME_HEADER as u64 + if payload <= SMALL { payload } else { 0 }
}

fn length(frame: &Frame) -> u64 {
    FRAME_HEADER as u64 + frame.body.len()
}

fn header_part(header: &FrameHeader) -> (NonNull<u8>, u64) {
    let bytes = header.as_bytes();
    (NonNull::from(bytes).cast(), bytes.len() as u64)
}

fn body_part(body: &Body) -> (NonNull<u8>, u64) {
    (body.start(), body.len())
}
