//! What the agent counts.

use core::sync::atomic::{AtomicU64, Ordering};

use dragon_protocol::Code;
use dragon_protocol::op::Op;
use dragon_protocol::wire::{FRAME_HEADER, FrameHeader, FrameKind};
use dragon_shmem::control;

use super::latency::Histogram;
use crate::fabric::{FabricStats, PeerStats};

/// What an agent has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentStats {
    /// Requests that left for other nodes.
    pub requests_sent: u64,
    /// Requests that came from other nodes.
    pub requests_received: u64,
    /// Replies that left.
    pub replies_sent: u64,
    /// Replies that came.
    pub replies_received: u64,
    /// Messages that left: with a request to send, with the reply to a receive, or because they were put back.
    pub messages_sent: u64,
    /// Messages that came in one of these ways.
    pub messages_received: u64,
    /// Messages that were put back into their channel because whoever took them was gone.
    pub returned: u64,
    /// Messages that were lost: no memory to hold them, or the connection broke.
    pub messages_lost: u64,
    /// Requests of this node's processes that are under way.
    pub pending: u64,
    /// Requests of other nodes' processes that wait here.
    pub parked: u64,
    /// Processes of other nodes that hold something here.
    pub proxies: u64,
    /// What the fabric has counted.
    pub fabric: FabricStats,
}

/// What an agent has counted with one other node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerReport {
    /// What the fabric has counted.
    pub fabric: PeerStats,
    /// How long this node's requests took there, with what they waited at their objects.
    pub latency: Histogram,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests_sent: AtomicU64,
    pub(super) requests_received: AtomicU64,
    pub(super) replies_sent: AtomicU64,
    pub(super) replies_received: AtomicU64,
    pub(super) messages_sent: AtomicU64,
    pub(super) messages_received: AtomicU64,
    pub(super) returned: AtomicU64,
    pub(super) messages_lost: AtomicU64,
}

impl Counters {
    /// A frame is about to be submitted: counted before, so that whoever has the reply finds its request counted.
    pub(super) fn sent(&self, header: &FrameHeader, node: &control::Counters) {
        self.count_sent(header, node, u64::wrapping_add);
    }

    /// A frame that was counted could not be submitted after all.
    pub(super) fn not_sent(&self, header: &FrameHeader, node: &control::Counters) {
        self.count_sent(header, node, u64::wrapping_sub);
    }

    fn count_sent(
        &self,
        header: &FrameHeader,
        node: &control::Counters,
        change: fn(u64, u64) -> u64,
    ) {
        let count = |counter: &AtomicU64, by: u64| {
            // Adding the wrapped difference is the change itself.
            counter.fetch_add(change(0, by), Ordering::Relaxed);
        };
        count(&node.bytes_sent, FRAME_HEADER as u64 + header.payload.get());
        match FrameKind::from_u8(header.kind) {
            Some(FrameKind::Request) => {
                count(&self.requests_sent, 1);
                count(&node.requests_sent, 1);
            }
            Some(FrameKind::Reply) => count(&self.replies_sent, 1),
            _ => {}
        }
        if carries_message(header) {
            count(&self.messages_sent, 1);
            count(&node.messages_sent, 1);
        }
    }

    /// A frame arrived.
    pub(super) fn received(&self, header: &FrameHeader, node: &control::Counters) {
        let bytes = FRAME_HEADER as u64 + header.payload.get();
        node.bytes_received.fetch_add(bytes, Ordering::Relaxed);
        match FrameKind::from_u8(header.kind) {
            Some(FrameKind::Request) => {
                add(&self.requests_received);
                add(&node.requests_received);
            }
            Some(FrameKind::Reply) => {
                add(&self.replies_received);
            }
            _ => {}
        }
        if carries_message(header) {
            add(&self.messages_received);
            add(&node.messages_received);
        }
    }

    pub(super) fn stats(&self) -> AgentStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        AgentStats {
            requests_sent: get(&self.requests_sent),
            requests_received: get(&self.requests_received),
            replies_sent: get(&self.replies_sent),
            replies_received: get(&self.replies_received),
            messages_sent: get(&self.messages_sent),
            messages_received: get(&self.messages_received),
            returned: get(&self.returned),
            messages_lost: get(&self.messages_lost),
            ..AgentStats::default()
        }
    }
}

/// Whether a frame carries a message of a channel.
pub(super) fn carries_message(header: &FrameHeader) -> bool {
    let is = |op: Op| header.op == op as u8;
    match FrameKind::from_u8(header.kind) {
        Some(FrameKind::Request) => is(Op::Send) || is(Op::Push),
        Some(FrameKind::Reply) => {
            (is(Op::Receive) || is(Op::Pop)) && header.status.get() == Code::Ok.to_i32()
        }
        Some(FrameKind::Return) => true,
        _ => false,
    }
}

/// Counts one more; returns how many there were.
pub(super) fn add(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed)
}
