//! What one end of a link receives: frames out of a stream of bytes.
//!
//! Frames with small payloads are parsed where they were received; nothing is copied unless a frame is cut by the end of
//! what has arrived. A larger payload goes straight into the memory that the sink names.

use dragon_protocol::wire::{APART, FRAME_HEADER, FrameHeader, FrameKind, MAX_PAYLOAD};
use zerocopy::FromBytes;

use super::assembly::{Arriving, Assembly};
use super::{PIECE_HEAD, Piece};
use crate::body::Body;
use crate::fabric::{Incoming, LinkError, SMALL};

/// What takes the frames of a connection.
pub(crate) trait Sink {
    /// A place for a payload of more than [`SMALL`] bytes.
    fn land(&mut self, header: &FrameHeader) -> Option<Body>;
    /// A frame that counts.
    fn frame(&mut self, header: &FrameHeader, payload: Incoming<'_>);
    /// How many frames that count were handed on, on all connections of the link.
    fn received(&self) -> u64;
    /// The other side has so many frames, in 16 bits.
    fn acknowledged(&mut self, count: u16);
    /// The other side could use more lanes.
    fn more_lanes(&mut self) {}
    /// The other side closes the link; on a lane that is not the first, that lane.
    fn end(&mut self);
}

/// How far the stream of one connection was read.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    stage: Stage,
    /// The beginning of a frame whose rest has not arrived.
    carry: Vec<u8>,
    /// It is not the first lane: pieces alone may come.
    pieces_only: bool,
}

/// [`SMALL`] as a length in memory.
pub(in crate::fabric) const SMALL_BYTES: usize = 4096;
const _: () = assert!(SMALL_BYTES as u64 == SMALL);

/// The most that [`Inbound::take_carry`] gives.
pub(crate) const CARRY: usize = FRAME_HEADER + SMALL_BYTES;

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Header,
    /// A payload on its way into its place.
    Landing {
        header: FrameHeader,
        body: Body,
        filled: u64,
    },
    /// A payload without a place.
    Skipping { header: FrameHeader, left: u64 },
    /// A piece of a payload.
    Piece(Arriving),
}

impl Inbound {
    /// Of a lane that is not the first of its link.
    pub(crate) fn of_a_lane() -> Self {
        Self {
            pieces_only: true,
            ..Self::default()
        }
    }

    /// The most that is to be read beyond [`Inbound::landing`]: where a piece follows, no more than its head, so that the
    /// piece itself is received into its place; with one that has no place what is left of it.
    pub(in crate::fabric) fn beyond(&self, assembly: &mut Assembly) -> Option<usize> {
        let placeless = match &self.stage {
            Stage::Piece(piece) if assembly.place(piece).is_none() => piece.left,
            Stage::Piece(_) => 0,
            _ if self.pieces_only => 0,
            _ => return None,
        };
        let head = PIECE_HEAD - self.carry.len().min(PIECE_HEAD);
        Some(usize::try_from(placeless).unwrap_or(0) + head)
    }

    /// Moves what was carried over to the beginning of `buffer`; returns its length.
    pub(crate) fn take_carry(&mut self, buffer: &mut [u8]) -> usize {
        let carried = self.carry.len();
        buffer[..carried].copy_from_slice(&self.carry);
        self.carry.clear();
        carried
    }

    /// Keeps bytes until more arrive.
    pub(in crate::fabric) fn keep(&mut self, bytes: &[u8]) {
        self.carry.clear();
        self.carry.extend_from_slice(bytes);
        if bytes.is_empty() && self.carry.capacity() > 0 {
            self.carry = Vec::new();
        }
    }

    /// The memory that the payload under way still needs.
    pub(crate) fn landing(&mut self, assembly: &mut Assembly) -> Option<Piece> {
        let (body, filled) = match &mut self.stage {
            Stage::Landing { body, filled, .. } => (body, filled),
            Stage::Piece(piece) => return assembly.place(piece),
            _ => return None,
        };
        let len = usize::try_from(body.len() - *filled).ok()?;
        let filled = usize::try_from(*filled).ok()?;
        // SAFETY: less than the body's length is filled, so the place is within the body.
        let start = unsafe { body.start_mut().add(filled) };
        // SAFETY: the rest of a body that this reader alone holds.
        Some(unsafe { Piece::new(start, len) })
    }

    /// So many bytes of [`Inbound::landing`] were filled.
    ///
    /// # Errors
    /// When the frame is one too many.
    pub(crate) fn landed(
        &mut self,
        count: u64,
        assembly: &mut Assembly,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        let (body, filled) = match &mut self.stage {
            Stage::Landing { body, filled, .. } => (body, filled),
            Stage::Piece(piece) => {
                let number = piece.number;
                piece.at += count;
                piece.left = piece.left.saturating_sub(count);
                if piece.left == 0 {
                    self.stage = Stage::Header;
                }
                assembly.filled(number, count, sink);
                return Ok(());
            }
            _ => return Ok(()),
        };
        *filled += count;
        if *filled == body.len()
            && let Stage::Landing { header, body, .. } = core::mem::take(&mut self.stage)
        {
            return assembly.pass(&header, Incoming::Landed(body), sink);
        }
        Ok(())
    }

    /// Parses what arrived: what [`Inbound::take_carry`] gave, and what followed it.
    ///
    /// # Errors
    /// When the bytes are none of this protocol.
    pub(crate) fn parse(
        &mut self,
        mut bytes: &[u8],
        assembly: &mut Assembly,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        loop {
            match &mut self.stage {
                Stage::Skipping { header, left } => {
                    let skipped = (bytes.len() as u64).min(*left);
                    *left -= skipped;
                    bytes = &bytes[usize::try_from(skipped).unwrap_or(bytes.len())..];
                    if *left > 0 {
                        self.keep(&[]);
                        return Ok(());
                    }
                    let header = *header;
                    self.stage = Stage::Header;
                    let skipped = Incoming::Skipped(header.payload.get());
                    assembly.pass(&header, skipped, sink)?;
                }
                Stage::Landing { body, filled, .. } => {
                    let left = usize::try_from(body.len() - *filled).unwrap_or(usize::MAX);
                    let (now, rest) = bytes.split_at(left.min(bytes.len()));
                    body.write_at(*filled, now);
                    bytes = rest;
                    self.landed(now.len() as u64, assembly, sink)?;
                }
                Stage::Piece(piece) => {
                    let left = usize::try_from(piece.left).unwrap_or(usize::MAX);
                    let (now, rest) = bytes.split_at(left.min(bytes.len()));
                    assembly.write(piece, now);
                    bytes = rest;
                    self.landed(now.len() as u64, assembly, sink)?;
                }
                Stage::Header => {}
            }
            if !matches!(self.stage, Stage::Header) {
                self.keep(&[]);
                return Ok(());
            }
            let Some((head, rest)) = bytes.split_at_checked(FRAME_HEADER) else {
                self.keep(bytes);
                return Ok(());
            };
            let (header, kind, apart) = read_frame(head)?;
            let payload = header.payload.get();
            match kind {
                FrameKind::Piece if !apart => {
                    let Some((head, after)) = rest.split_at_checked(FRAME_HEADER) else {
                        self.keep(bytes);
                        return Ok(());
                    };
                    let (of, _, apart) = read_frame(head)?;
                    if !apart {
                        let text = "a piece of a frame that has none".to_owned();
                        return Err(LinkError::Malformed(text));
                    }
                    self.stage = Stage::Piece(assembly.begin(&header, &of, sink)?);
                    bytes = after;
                    continue;
                }
                FrameKind::End if payload == 0 && !apart => {
                    sink.end();
                    return Ok(());
                }
                _ if self.pieces_only => {
                    let text = format!("{kind:?} on a lane that is not the first");
                    return Err(LinkError::Malformed(text));
                }
                FrameKind::Acknowledge if payload == 0 && !apart => {
                    sink.acknowledged(header.acknowledged.get());
                    if header.arg0.get() == 1 {
                        sink.more_lanes();
                    }
                    bytes = rest;
                    continue;
                }
                FrameKind::Acknowledge | FrameKind::End | FrameKind::Open | FrameKind::Piece => {
                    return Err(LinkError::Malformed(format!("{kind:?} out of place")));
                }
                _ => {}
            }
            if apart {
                sink.acknowledged(header.acknowledged.get());
                assembly.announce(&header, sink)?;
                bytes = rest;
                continue;
            }
            if payload <= SMALL {
                let payload = usize::try_from(payload).unwrap_or(SMALL_BYTES);
                let Some((payload, after)) = rest.split_at_checked(payload) else {
                    self.keep(bytes);
                    return Ok(());
                };
                sink.acknowledged(header.acknowledged.get());
                assembly.pass(&header, Incoming::Small(payload), sink)?;
                bytes = after;
                continue;
            }
            sink.acknowledged(header.acknowledged.get());
            bytes = rest;
            let body = sink.land(&header).filter(|body| body.len() == payload);
            self.stage = match body {
                Some(body) => Stage::Landing {
                    header,
                    body,
                    filled: 0,
                },
                None => Stage::Skipping {
                    header,
                    left: payload,
                },
            };
        }
    }
}

/// Reads a header of the handshake.
///
/// # Errors
/// When it is none.
pub(in crate::fabric) fn read_header(bytes: &[u8]) -> Result<(FrameHeader, FrameKind), LinkError> {
    match read_frame(bytes)? {
        (header, kind, false) => Ok((header, kind)),
        (_, kind, true) => Err(LinkError::Malformed(format!("{kind:?} in pieces"))),
    }
}

/// Reads a header, and whether its payload comes apart from it.
fn read_frame(bytes: &[u8]) -> Result<(FrameHeader, FrameKind, bool), LinkError> {
    let mut header = FrameHeader::read_from_bytes(bytes)
        .map_err(|_| LinkError::Malformed("a short header".to_owned()))?;
    let apart = header.kind & APART != 0;
    header.kind &= !APART;
    let Some(kind) = FrameKind::from_u8(header.kind) else {
        let text = format!("kind {} is unknown", header.kind);
        return Err(LinkError::Malformed(text));
    };
    if header.payload.get() > MAX_PAYLOAD {
        let text = format!(
            "a payload of {} bytes, the limit is {MAX_PAYLOAD}",
            header.payload.get()
        );
        return Err(LinkError::Malformed(text));
    }
    Ok((header, kind, apart))
}
