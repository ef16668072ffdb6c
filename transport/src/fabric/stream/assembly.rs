//! What came ahead of its turn on a link with several lanes: frames whose payloads come in pieces on any of them, and the
//! frames that follow those on the first lane. Without I/O.
//!
//! The first lane carries every numbered frame in its order, of a divided one the header alone. Each piece names its frame
//! and repeats that header, so it is received into its place at once, whether the first lane has brought the frame or not.
//! Frames are handed on in their order, a divided one when all of its pieces are here. What is held is bounded, and a peer
//! that sends what no peer would send is refused by name ([`LinkError::Malformed`]).

use std::collections::VecDeque;

use dragon_protocol::wire::FrameHeader;
use zerocopy::IntoBytes;

use super::window::{BEHIND, BYTES, FRAMES, cost};
use super::{PIECE, Piece, SPLIT, Sink};
use crate::body::Body;
use crate::fabric::{Incoming, LinkError};

/// What came ahead of its turn.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    /// From the frame that is handed on next, which is not complete.
    queue: VecDeque<Slot>,
    /// Frames that come in pieces.
    coming: Vec<Coming>,
    /// What the frames in the queue take of this process's memory.
    parked: u64,
}

#[derive(Debug)]
enum Slot {
    /// The frame with this number, which is in `coming`.
    Divided(u64),
    Small(FrameHeader, Vec<u8>),
    Landed(FrameHeader, Body),
    Skipped(FrameHeader),
}

/// A frame that comes in pieces.
#[derive(Debug)]
struct Coming {
    number: u64,
    header: FrameHeader,
    /// Where it goes; `None`: there was no place.
    body: Option<Body>,
    /// The pieces that have come or begun to, a bit for each.
    begun: Vec<u64>,
    /// Bytes that have not arrived.
    missing: u64,
    /// The first lane has brought the frame.
    announced: bool,
}

/// A piece that is arriving.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arriving {
    /// Its frame.
    pub(super) number: u64,
    /// Where in the payload its next byte belongs.
    pub(super) at: u64,
    /// How many bytes have not arrived.
    pub(super) left: u64,
}

impl Assembly {
    /// Whether nothing came ahead of its turn.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.coming.is_empty()
    }

    /// The first lane brought a frame as a whole.
    pub(super) fn pass(
        &mut self,
        header: &FrameHeader,
        payload: Incoming<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        if self.is_idle() {
            sink.frame(header, payload);
            return Ok(());
        }
        let number = self.next(sink);
        if self.coming.iter().any(|coming| coming.number == number) {
            let text = format!("frame {number} came as a whole and in pieces");
            return Err(LinkError::Malformed(text));
        }
        if self.queue.is_empty() {
            sink.frame(header, payload);
            return Ok(());
        }
        let slot = match payload {
            Incoming::Small(bytes) => Slot::Small(*header, bytes.to_vec()),
            Incoming::Landed(body) => Slot::Landed(*header, body),
            Incoming::Skipped(_) => Slot::Skipped(*header),
        };
        self.park(slot, header)
    }

    /// The first lane brought the header of a frame whose payload comes in pieces.
    pub(super) fn announce(
        &mut self,
        header: &FrameHeader,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        let number = self.next(sink);
        let at = self.coming(number, header, sink)?;
        self.coming[at].announced = true;
        self.park(Slot::Divided(number), header)?;
        self.advance(sink);
        Ok(())
    }

    /// A piece begins: where its bytes belong. `header`: of its frame.
    pub(super) fn begin(
        &mut self,
        piece: &FrameHeader,
        header: &FrameHeader,
        sink: &mut dyn Sink,
    ) -> Result<Arriving, LinkError> {
        let (number, at, left) = (piece.request.get(), piece.arg0.get(), piece.payload.get());
        let bad = |what: String| LinkError::Malformed(format!("a piece of frame {number} {what}"));
        let (first, past) = (sink.received(), self.next(sink));
        let known = self.coming.iter().any(|coming| coming.number == number);
        if !known && !(past..first.saturating_add(FRAMES as u64)).contains(&number) {
            return Err(bad(format!(
                "which is unknown: {first} frames are here, {past} have come"
            )));
        }
        let length = header.payload.get();
        if at >= length || left > length - at {
            return Err(bad(format!(
                "is beyond its end: {left} bytes at {at} of {length}"
            )));
        }
        if at % PIECE != 0 || left != PIECE.min(length - at) {
            return Err(bad(format!(
                "overlaps others: {left} bytes at {at}, where pieces of {PIECE} bytes are due"
            )));
        }
        let found = self.coming(number, header, sink)?;
        let index = at / PIECE;
        let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
        let bit = 1 << (index % 64);
        // There is a bit for every piece up to the end of the payload.
        let word = &mut self.coming[found].begun[word];
        if *word & bit != 0 {
            return Err(bad(format!("has come before: {left} bytes at {at}")));
        }
        *word |= bit;
        Ok(Arriving { number, at, left })
    }

    /// The memory that a piece still needs; `None`: its bytes go nowhere.
    pub(super) fn place(&mut self, piece: &Arriving) -> Option<Piece> {
        let found = self.coming.iter_mut().find(|c| c.number == piece.number);
        let body = found?.body.as_mut()?;
        let (at, len) = (
            usize::try_from(piece.at).ok()?,
            usize::try_from(piece.left).ok()?,
        );
        // SAFETY: a piece lies within its payload, and the body is as long as that.
        let start = unsafe { body.start_mut().add(at) };
        // SAFETY: this part of the body is that of one piece, which one reader receives.
        Some(unsafe { Piece::new(start, len) })
    }

    /// Bytes of a piece came where no network call could put them into their place.
    pub(super) fn write(&mut self, piece: &Arriving, bytes: &[u8]) {
        let found = self.coming.iter_mut().find(|c| c.number == piece.number);
        if let Some(body) = found.and_then(|coming| coming.body.as_mut()) {
            body.write_at(piece.at, bytes);
        }
    }

    /// So many bytes of a frame are in their place.
    pub(super) fn filled(&mut self, number: u64, count: u64, sink: &mut dyn Sink) {
        let found = self.coming.iter_mut().find(|c| c.number == number);
        let Some(coming) = found else {
            return;
        };
        coming.missing = coming.missing.saturating_sub(count);
        if coming.missing == 0 {
            self.advance(sink);
        }
    }

    /// The number of the next frame of the first lane.
    fn next(&self, sink: &dyn Sink) -> u64 {
        sink.received() + self.queue.len() as u64
    }

    /// The place of a divided frame in the list, which begins with the first that is heard of it.
    fn coming(
        &mut self,
        number: u64,
        header: &FrameHeader,
        sink: &mut dyn Sink,
    ) -> Result<usize, LinkError> {
        let bad = |what: String| LinkError::Malformed(format!("frame {number} {what}"));
        let known = self.coming.iter().position(|c| c.number == number);
        if let Some(at) = known {
            if self.coming[at].header.as_bytes() != header.as_bytes() {
                return Err(bad("has two different headers".to_owned()));
            }
            return Ok(at);
        }
        let length = header.payload.get();
        if length < SPLIT {
            return Err(bad(format!(
                "comes in pieces and has {length} bytes; that is for {SPLIT} and more"
            )));
        }
        // The last one may be of any length.
        let last = self.coming.iter().map(|c| c.number).max();
        let last = last.map_or(number, |last| last.max(number));
        let lengths = self
            .coming
            .iter()
            .map(|c| (c.number, c.header.payload.get()));
        let all = lengths.chain([(number, length)]);
        let before: u64 = all.filter(|(n, _)| *n != last).map(|(_, l)| l).sum();
        if before >= BYTES {
            return Err(bad(format!(
                "comes in pieces while {before} bytes of others do; the limit is {BYTES}"
            )));
        }
        let pieces = usize::try_from(length.div_ceil(PIECE)).unwrap_or(usize::MAX);
        self.coming.push(Coming {
            number,
            header: *header,
            body: sink.land(header).filter(|body| body.len() == length),
            begun: vec![0; pieces.div_ceil(64)],
            missing: length,
            announced: false,
        });
        Ok(self.coming.len() - 1)
    }

    fn park(&mut self, slot: Slot, header: &FrameHeader) -> Result<(), LinkError> {
        if !self.queue.is_empty() {
            if self.parked >= BEHIND {
                let text =
                    format!("more than {BEHIND} bytes of frames behind one that comes in pieces");
                return Err(LinkError::Malformed(text));
            }
            self.parked += cost(header.payload.get());
        }
        self.queue.push_back(slot);
        Ok(())
    }

    /// Hands on what is complete, up to the first that is not.
    fn advance(&mut self, sink: &mut dyn Sink) {
        while let Some(slot) = self.queue.front() {
            let mut divided = None;
            if let Slot::Divided(number) = slot {
                let found = self.coming.iter().position(|c| c.number == *number);
                let complete = found.filter(|at| self.coming[*at].missing == 0);
                let Some(at) = complete else {
                    return;
                };
                divided = Some(self.coming.swap_remove(at));
            }
            match (self.queue.pop_front(), divided) {
                (Some(Slot::Small(header, bytes)), _) => {
                    sink.frame(&header, Incoming::Small(&bytes));
                }
                (Some(Slot::Landed(header, body)), _) => {
                    sink.frame(&header, Incoming::Landed(body));
                }
                (Some(Slot::Skipped(header)), _) => {
                    sink.frame(&header, Incoming::Skipped(header.payload.get()));
                }
                (_, Some(Coming { header, body, .. })) => {
                    let skipped = Incoming::Skipped(header.payload.get());
                    sink.frame(&header, body.map_or(skipped, Incoming::Landed));
                }
                (_, None) => {}
            }
            // The first in the queue is what the others wait for.
            let first = self.queue.front().map_or(0, Slot::cost);
            self.parked = self.parked.saturating_sub(first);
        }
        // An idle link holds no memory.
        self.queue = VecDeque::new();
        self.parked = 0;
        if self.coming.is_empty() {
            self.coming = Vec::new();
        }
    }
}

impl Slot {
    fn cost(&self) -> u64 {
        match self {
            // Never a small payload.
            Self::Divided(_) => cost(SPLIT),
            Self::Small(header, _) | Self::Landed(header, _) | Self::Skipped(header) => {
                cost(header.payload.get())
            }
        }
    }
}
