//! Chunks of streams of other nodes that came when their receiver could not take them: it had just given up waiting, or this
//! node had no memory for them. They wait here for its next request.
//!
//! A message of a channel goes back to its owner in such a case, where others may have it. A chunk has one receiver, and one
//! that went back would come again behind the next one.

use std::collections::{HashMap, VecDeque};

use dragon_channels::stream;
use dragon_protocol::op::Op;
use dragon_protocol::wire::FrameHeader;
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind, SlotId};

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

/// The chunks that wait, those of each receiver in their order.
#[derive(Debug, Default)]
pub(super) struct Late(HashMap<Receiver, VecDeque<Chunk>>);

impl Late {
    pub(super) fn has(&self, receiver: &Receiver) -> bool {
        self.0.contains_key(receiver)
    }

    /// Keeps one that came after all others.
    pub(super) fn push(&mut self, receiver: Receiver, chunk: Chunk) {
        self.0.entry(receiver).or_default().push_back(chunk);
    }

    /// Keeps one that came before all others.
    pub(super) fn push_first(&mut self, receiver: Receiver, chunk: Chunk) {
        self.0.entry(receiver).or_default().push_front(chunk);
    }

    /// The first one.
    pub(super) fn pop(&mut self, receiver: &Receiver) -> Option<Chunk> {
        let chunks = self.0.get_mut(receiver)?;
        let chunk = chunks.pop_front();
        if chunks.is_empty() {
            self.0.remove(receiver);
        }
        chunk
    }

    /// The receiver has ended.
    pub(super) fn forget(&mut self, receiver: &Receiver) {
        self.0.remove(receiver);
    }

    /// A process of this node is gone.
    pub(super) fn slot_gone(&mut self, slot: SlotId) {
        self.0.retain(|receiver, _| receiver.slot != slot);
    }

    /// The owners there are gone.
    pub(super) fn node_gone(&mut self, node: NodeIndex) {
        self.0.retain(|receiver, _| receiver.endpoint.node != node);
    }
}
