//! Requests to the gateway, and the same requests on the wire.
//!
//! A client that needs an object of another node writes a [`Request`] (and its payload) into its node's gateway channel
//! and sleeps on the reply cell of its thread. The agent sends the request as a frame, the owner's agent executes it,
//! waiting there if it must, and a reply frame goes back.
//!
//! ```text
//! frame = FrameHeader (80 bytes), payload (header.payload bytes)
//! ```

use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::{NodeIndex, ObjectId, ObjectKind};

/// No deadline.
pub const NEVER: u64 = u64::MAX;
/// Do not wait: the try form.
pub const NOW: u64 = 0;

/// The object that a request is for, as bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Target {
    /// The owning node.
    pub node: U32,
    /// Index in its object table.
    pub index: U32,
    /// Generation of that entry.
    pub generation: U32,
    /// An [`ObjectKind`].
    pub kind: u8,
    /// [`TRACED`], or 0.
    pub flags: u8,
    /// Reserved, 0.
    pub reserved: [u8; 2],
}

/// A flag: a trace id travels with the message. In a [`Request`] it follows the header, before everything else.
pub const TRACED: u8 = 1;

impl From<ObjectId> for Target {
    fn from(id: ObjectId) -> Self {
        Self {
            node: id.node.get().into(),
            index: id.index.into(),
            generation: id.generation.into(),
            kind: id.kind as u8,
            flags: 0,
            reserved: [0; 2],
        }
    }
}

impl Target {
    /// The object, unless the bytes name none.
    #[must_use]
    pub fn object(&self) -> Option<ObjectId> {
        Some(ObjectId {
            node: NodeIndex::new(self.node.get())?,
            kind: ObjectKind::from_u8(self.kind)?,
            index: self.index.get(),
            generation: self.generation.get(),
        })
    }
}

/// A request in the gateway channel: this header, then the payload inline, or else in the block that it names.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Request {
    /// An [`crate::op::Op`].
    pub op: u8,
    /// 0: the payload follows this header. 1: it is the block at `block`, which the agent frees. 2: it lies in that block, from
    /// the place on that follows this header (u64), and stays the caller's, who waits for the reply.
    pub by_reference: u8,
    /// Reserved, 0.
    pub reserved: [u8; 2],
    /// The caller's slot.
    pub slot: U32,
    /// Generation of the slot.
    pub slot_generation: U32,
    /// The caller's thread record within the slot: where the reply goes. [`NO_REPLY`]: nowhere.
    pub thread: U32,
    /// Ticket of the caller: the reply cell takes only the reply with its current ticket.
    pub ticket: U64,
    /// The object.
    pub target: Target,
    /// Deadline in CLOCK_MONOTONIC nanoseconds of this node, [`NOW`] or [`NEVER`].
    pub deadline: U64,
    /// First argument, see [`crate::op::Op`].
    pub arg0: U64,
    /// Second argument.
    pub arg1: U64,
    /// Address of the payload's block when `by_reference` is not 0.
    pub block: U64,
    /// Bytes of payload.
    pub payload: U64,
}

/// What follows a request of [`crate::op::Op::Subscribe`] in the gateway channel: the member of a set that the answer is for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Subscription {
    /// The set on the own node: its index.
    pub set: U32,
    /// Its generation.
    pub generation: U32,
    /// The member's place.
    pub place: U32,
    /// How often the place had been given out before.
    pub version: U32,
    /// Number of the question at this place.
    pub ask: U32,
}

/// A [`Request::thread`] that wants no reply.
pub const NO_REPLY: u32 = u32::MAX;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Execute `op` on `target`.
    Request = 1,
    /// The end of the request with the same number.
    Reply = 2,
    /// The caller of the request with this number is gone or waits no longer: forget it. With argument 0 = 1 the reply
    /// still comes (`Cancelled`, unless the request has ended already); with 0 none does.
    Cancel = 3,
    /// A message that was taken for a caller that is gone: put it back into `target`.
    Return = 4,
    /// The process with the given slot of the sender's node is gone: recover what it held here. Answered by a reply, so
    /// that it can be sent again when the connection breaks.
    SlotDown = 5,
    /// The sender closes: nothing follows.
    Goodbye = 6,
    /// Nothing but [`FrameHeader::acknowledged`]; with `arg0` = 1 the acceptor says that it could use more lanes. Not
    /// numbered, as the kinds below.
    Acknowledge = 7,
    /// The last message of a handshake in each direction: begins the link with the number in `request`, or goes on with
    /// it after a connection broke. `arg0`: frames that the sender has received on that link; `arg1`: 1 when the link is
    /// new, 2 when this is a further lane of the connection that the opener numbered `deadline`. In the answer `status`
    /// says whether that is so.
    Open = 8,
    /// The sender ends the link: it is not to be gone on with. On a further lane: nothing more comes on that lane.
    End = 9,
    /// A part of the payload of the numbered frame `request` (counted from 0), which begins at `arg0` in it. That frame's
    /// header follows, [`FrameHeader::kind`] with [`APART`], and then `payload` bytes.
    Piece = 10,
}

/// Added to the kind of a numbered frame whose payload does not follow it: it comes in pieces, on any lane of the link.
pub const APART: u8 = 0x80;

/// Bytes of each piece of a payload but the last.
pub const PIECE: u64 = 256 << 10;

/// Only payloads of so many bytes come in pieces.
pub const SPLIT: u64 = 2 * PIECE;

impl FrameKind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        Some(match n {
            1 => Self::Request,
            2 => Self::Reply,
            3 => Self::Cancel,
            4 => Self::Return,
            5 => Self::SlotDown,
            6 => Self::Goodbye,
            7 => Self::Acknowledge,
            8 => Self::Open,
            9 => Self::End,
            10 => Self::Piece,
            _ => return None,
        })
    }
}

/// The header of every frame between two agents.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    /// A [`FrameKind`].
    pub kind: u8,
    /// An [`crate::op::Op`]; 0 where the kind needs none.
    pub op: u8,
    /// How many numbered frames of the link the sender has received: the lower 16 bits.
    pub acknowledged: U16,
    /// Replies: a [`crate::Code`].
    pub status: I32,
    /// The requesting agent's number for the request; replies and cancels repeat it. 0: no reply is wanted.
    pub request: U64,
    /// The object.
    pub target: Target,
    /// The caller's slot on the requesting node: owner of locks and references taken by this request.
    pub slot: U32,
    /// Generation of that slot.
    pub slot_generation: U32,
    /// Deadline in the *sender's* CLOCK_MONOTONIC nanoseconds ([`NOW`], [`NEVER`]); the receiver adds the offset of the
    /// two clocks that the handshake measured.
    pub deadline: U64,
    /// First argument, see [`crate::op::Op`].
    pub arg0: U64,
    /// Second argument; the first half of a trace id, see [`FrameHeader::trace_id`].
    pub arg1: U64,
    /// Bytes of payload that follow.
    pub payload: U64,
    /// The second half of a trace id, else 0.
    pub trace: U64,
}

impl FrameHeader {
    /// The trace id of the message in this frame.
    #[must_use]
    pub fn trace_id(&self) -> Option<[u8; 16]> {
        let is_traced = self.target.flags & TRACED != 0;
        is_traced.then(|| trace_of([self.arg1.get(), self.trace.get()]))
    }

    /// The same header for a message with that trace id: messages of channels have no second argument.
    #[must_use]
    pub fn with_trace(mut self, trace: Option<[u8; 16]>) -> Self {
        if let Some(trace) = trace {
            let [first, second] = words_of(trace);
            self.target.flags |= TRACED;
            self.arg1 = first.into();
            self.trace = second.into();
        }
        self
    }
}

/// A trace id as two words.
#[must_use]
pub fn words_of(trace: [u8; 16]) -> [u64; 2] {
    let halves: [[u8; 8]; 2] = zerocopy::transmute!(trace);
    halves.map(u64::from_le_bytes)
}

/// The inverse of [`words_of`].
#[must_use]
pub fn trace_of(words: [u64; 2]) -> [u8; 16] {
    zerocopy::transmute!(words.map(u64::to_le_bytes))
}

/// Bytes of a [`FrameHeader`].
pub const FRAME_HEADER: usize = size_of::<FrameHeader>();

/// The largest payload of one frame; the sender refuses more, the receiver closes the connection.
pub const MAX_PAYLOAD: u64 = 1 << 32;

const _: () = assert!(size_of::<Request>() == 80 && FRAME_HEADER == 80);
