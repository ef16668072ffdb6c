//! Chunks of streams of other nodes that came when their receiver could not take them: it had just given up waiting, or this
//! node had no memory for them. They wait here for its next request.
//!
//! A message of a channel goes back to its owner in such a case, where others may have it. A chunk has one receiver, and one
//! that went back would come again behind the next one.
//!
//! A receiver has one request under way at a time, besides those that it has given up: one thread uses it (`&mut` in Rust, a lock
//! in C). So a late chunk ends one waiting request at most.

use std::collections::{HashMap, VecDeque};

use dragon_channels::stream;
use dragon_protocol::op::Op;
use dragon_protocol::wire::FrameHeader;
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind, SlotId};

use super::requests::Caller;
use crate::body::Body;

/// The receiver of a conversation: a process of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Receiver {
    pub(super) slot: SlotId,
    pub(super) endpoint: ObjectId,
    pub(super) conversation: u64,
}

impl Receiver {
    /// For whom a reply brings a chunk.
    pub(super) fn of_reply(header: &FrameHeader) -> Option<Self> {
        let brings = header.op == Op::Receive as u8 && header.status.get() == Code::Ok.to_i32();
        brings.then(|| Self::named(header)).flatten()
    }

    /// Who asks for a chunk, or whether there is one.
    pub(super) fn of_request(op: Op, header: &FrameHeader) -> Option<Self> {
        let asks = matches!(op, Op::Receive | Op::PollReadable);
        asks.then(|| Self::named(header)).flatten()
    }

    /// Who ends.
    pub(super) fn of_end(op: Op, header: &FrameHeader) -> Option<Self> {
        let ends = op == Op::StreamClose && header.arg0.get() == stream::RECEIVER_CLOSES;
        ends.then(|| Self::named(header)).flatten()
    }

    fn named(header: &FrameHeader) -> Option<Self> {
        let endpoint = header.target.object()?;
        let conversation = header.arg1.get();
        // A buffered endpoint has messages, without a conversation.
        let is_stream = endpoint.kind == ObjectKind::Stream && conversation != 0;
        is_stream.then(|| Self {
            slot: SlotId {
                index: header.slot.get(),
                generation: header.slot_generation.get(),
            },
            endpoint,
            conversation,
        })
    }
}

/// A chunk and its argument.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) argument: u64,
    pub(super) body: Body,
}

/// A request of a receiver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) caller: Caller,
    pub(super) receiver: Receiver,
    pub(super) op: Op,
    /// What goes to the owner when there is no chunk here; none of a request that has been there already.
    pub(super) request: Option<FrameHeader>,
}

/// What [`Late::ask`] found.
#[derive(Debug)]
pub(super) enum Asked {
    /// The first chunk: it is on its way until [`Late::given`].
    Chunk(Chunk),
    /// There is a chunk, and that is all that was asked.
    Readable,
    /// A chunk is on its way to an earlier request: what becomes of this one shows when that has arrived.
    Waits,
    /// There is nothing here.
    Nothing,
}

/// What is here for one receiver.
#[derive(Debug, Default)]
struct Line {
    chunks: VecDeque<Chunk>,
    /// A chunk is on its way to the receiver, and may come back as the first one.
    giving: bool,
    /// Requests that came meanwhile.
    asks: VecDeque<Ask>,
    /// The receiver or the owner is gone: nothing is kept any more.
    over: bool,
}

/// The chunks that wait, those of each receiver in their order. A line stands as long as it has chunks or one is on its way.
#[derive(Debug, Default)]
pub(super) struct Late(HashMap<Receiver, Line>);

impl Late {
    /// Whether there are chunks here, or one is on its way and may come back.
    pub(super) fn has(&self, receiver: &Receiver) -> bool {
        self.0.contains_key(receiver)
    }

    /// Keeps one that came after all others.
    pub(super) fn push(&mut self, receiver: Receiver, chunk: Chunk) {
        let line = self.0.entry(receiver).or_default();
        if !line.over {
            line.chunks.push_back(chunk);
        }
    }

    /// Keeps one that came before all others.
    pub(super) fn push_first(&mut self, receiver: Receiver, chunk: Chunk) {
        let line = self.0.entry(receiver).or_default();
        if !line.over {
            line.chunks.push_front(chunk);
        }
    }

    /// A request for the first chunk, or whether there is one.
    pub(super) fn ask(&mut self, ask: Ask) -> Asked {
        let Some(line) = self.0.get_mut(&ask.receiver) else {
            return Asked::Nothing;
        };
        if ask.op == Op::PollReadable && !line.chunks.is_empty() {
            return Asked::Readable;
        }
        if line.giving {
            line.asks.push_back(ask);
            return Asked::Waits;
        }
        let first = line.chunks.pop_front();
        line.giving = first.is_some();
        first.map_or(Asked::Nothing, Asked::Chunk)
    }

    /// The chunk that was on its way has arrived, or comes `back`. Returns the requests that came meanwhile.
    pub(super) fn given(&mut self, receiver: &Receiver, back: Option<Chunk>) -> VecDeque<Ask> {
        let Some(line) = self.0.get_mut(receiver) else {
            return VecDeque::new();
        };
        line.giving = false;
        if let Some(chunk) = back.filter(|_| !line.over) {
            line.chunks.push_front(chunk);
        }
        let asks = core::mem::take(&mut line.asks);
        if line.chunks.is_empty() {
            self.0.remove(receiver);
        }
        asks
    }

    /// The receiver has ended.
    pub(super) fn forget(&mut self, receiver: &Receiver) {
        self.end(|ended| ended == receiver);
    }

    /// A process of this node is gone.
    pub(super) fn slot_gone(&mut self, slot: SlotId) {
        self.end(|receiver| receiver.slot == slot);
    }

    /// The owners there are gone.
    pub(super) fn node_gone(&mut self, node: NodeIndex) {
        self.end(|receiver| receiver.endpoint.node == node);
    }

    /// Drops the chunks. A line with one on its way stays, so that this one is dropped if it comes back, and the requests
    /// that wait for it get an answer.
    fn end(&mut self, ends: impl Fn(&Receiver) -> bool) {
        self.0.retain(|receiver, line| {
            if !ends(receiver) {
                return true;
            }
            line.chunks.clear();
            line.over = true;
            line.giving
        });
    }
}
