//! What carries frames between two agents.
//!
//! A [`Fabric`] is shaped so that sockets, a test's memory and a network adapter with its own queues can all stand behind
//! it: sending is a submission that never blocks, everything that happens is told through one completion call
//! ([`Fabric::progress`]), payloads lie in registered memory ([`Body::Block`]) from which a fabric may read and into which
//! it may write without a copy, and a node is addressed by its index, with or without a connection underneath.
//!
//! A [`Link`] has a direction. The node that opened it sends requests on it, the node that accepted it answers them on it;
//! nothing else passes. So all that is under way between two nodes is bound to one link, and the end of a link is the end
//! of exactly the requests that were made on it. Two nodes that use each other's objects have two links.
//!
//! Promises of every implementation:
//! * frames of one link arrive in the order of their submission, each once, or the link is lost; it may outlive what is
//!   underneath it;
//! * [`Handler::lost`] is called exactly once for each link, with all frames of which no byte left this node;
//! * [`Link::submit`] fails, and gives the frame back, once the link is closed; it never waits;
//! * the handler is only called from within [`Fabric::progress`].

pub mod mem;
pub(crate) mod stream;
pub mod tcp;

use core::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use dragon_protocol::NodeIndex;
use dragon_protocol::handshake::HandshakeError;
use dragon_protocol::wire::FrameHeader;

use crate::body::Body;

/// Payloads up to this many bytes are handed over where they were received; longer ones are received straight into the
/// memory that [`Handler::land`] names.
pub const SMALL: u64 = 4096;

/// One frame: the header as it is on the wire, and the payload, whose length the header repeats.
#[derive(Debug)]
pub struct Frame {
    /// The header.
    pub header: FrameHeader,
    /// The payload. Its memory is held until the last byte has been handed to the network.
    pub body: Body,
}

/// Which end of a link this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This node opened the link: it sends requests on it.
    Opened,
    /// The other node opened it: this node sends replies on it.
    Accepted,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The node is not among the known ones.
    #[error("node {0} is not known to this agent")]
    UnknownNode(NodeIndex),
    /// The node announced no address.
    #[error("node {0} announced no address for its data port")]
    NoAddress(NodeIndex),
    /// No connection came up.
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    /// The proof of the key failed.
    #[error("handshake: {0}")]
    Handshake(#[from] HandshakeError),
    /// The other side did not complete the handshake in time.
    #[error("the handshake was not complete after {0} s")]
    Silent(u64),
    /// Too many connections are in their handshake; this was the oldest.
    #[error("too many connections are in their handshake at once")]
    HalfOpen,
    /// The other side closed.
    #[error("the other side closed the connection")]
    Closed,
    /// The network failed.
    #[error("the connection failed: {0}")]
    Network(#[source] std::io::Error),
    /// Not a frame of this protocol.
    #[error("malformed frame: {0}")]
    Malformed(String),
    /// The other side ended the link, or does not know it: its agent was restarted, or has given the link up.
    #[error("the other side has ended the link")]
    Ended,
    /// One connection after the other stood, and none of them brought the next frame to the other side.
    #[error(
        "{0} connections stood, and none brought the next frame to the other side: a large one may not get through"
    )]
    Stuck(u32),
    /// The same node opened a newer link.
    #[error("the node opened a newer connection")]
    Superseded,
    /// This side closed it.
    #[error("this side closed the connection")]
    ClosedHere,
}

/// The way to one node, or from it.
pub trait Link: Send + Sync + fmt::Debug {
    /// A number that no other link of the fabric ever has.
    fn id(&self) -> u64;
    /// The other node.
    fn node(&self) -> NodeIndex;
    /// Which end this is.
    fn side(&self) -> Side;
    /// What to add to the other node's monotonic clock to get this node's. 0 until the link is up.
    fn clock_offset(&self) -> i64;
    /// Queues a frame, and sends it at once when nothing waits before it. Never blocks.
    ///
    /// # Errors
    /// Gives the frame back when the link is closed.
    #[expect(
        clippy::result_large_err,
        reason = "the frame comes back to be sent again, and boxes cost every frame an allocation"
    )]
    fn submit(&self, frame: Frame) -> Result<(), Frame>;
    /// Queues a frame that may wait for others: it leaves at the latest with [`Link::flush`]. Never blocks.
    ///
    /// # Errors
    /// As [`Link::submit`].
    #[expect(
        clippy::result_large_err,
        reason = "the frame comes back to be sent again, and boxes cost every frame an allocation"
    )]
    fn queue(&self, frame: Frame) -> Result<(), Frame> {
        self.submit(frame)
    }
    /// Sends what waits for others.
    fn flush(&self) {}
    /// Bytes that were submitted and have not left this node.
    fn queued(&self) -> u64;
    /// Closes the link from this side. What is queued is not sent any more; [`Handler::lost`] follows.
    fn close(&self);
}

/// The payload of a frame that arrived.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// At most [`SMALL`] bytes, valid during the call.
    Small(&'a [u8]),
    /// The body that [`Handler::land`] gave, filled.
    Landed(Body),
    /// [`Handler::land`] had no place for so many bytes; they were skipped.
    Skipped(u64),
}

/// What hears of everything that happens on a fabric. Called from [`Fabric::progress`] only.
pub trait Handler {
    /// A frame with a payload of more than [`SMALL`] bytes begins: where its payload shall go. `None`: skip the payload.
    /// The body must be `header.payload` bytes long.
    fn land(&mut self, link: &Arc<dyn Link>, header: &FrameHeader) -> Option<Body>;
    /// A frame arrived.
    fn frame(&mut self, link: &Arc<dyn Link>, header: &FrameHeader, payload: Incoming<'_>);
    /// What has arrived on a link has been told: follows every call of [`Handler::frame`], though perhaps only after others
    /// of the same link.
    fn pause(&mut self) {}
    /// A link stands: both sides have proved the key.
    fn up(&mut self, link: &Arc<dyn Link>);
    /// A link ended. `was_up`: whether [`Handler::up`] was called for it. `unsent`: frames of which no byte was sent.
    fn lost(&mut self, link: &Arc<dyn Link>, was_up: bool, reason: &LinkError, unsent: Vec<Frame>);
}

/// Where a node can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The node.
    pub node: NodeIndex,
    /// Where its data listeners are, the best first: one on each interface that it uses.
    pub addresses: Vec<SocketAddr>,
}

/// What a fabric has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FabricStats {
    /// Links that this node opened and that came up.
    pub opened: u64,
    /// Links that others opened and that came up.
    pub accepted: u64,
    /// Links that stand now.
    pub links: u64,
    /// Connections in their handshake now.
    pub half_open: u64,
    /// Connections that never proved the key.
    pub refused: u64,
    /// Frames handed to the network as a whole.
    pub frames_sent: u64,
    /// Frames received as a whole.
    pub frames_received: u64,
    /// Bytes handed to the network.
    pub bytes_sent: u64,
    /// Bytes received from the network.
    pub bytes_received: u64,
    /// Frames that were sent again, because the connection broke before the other side had them.
    pub retries: u64,
    /// Connections that were made again for a link.
    pub reconnects: u64,
}

/// What a fabric has counted with one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStats {
    /// The node.
    pub node: NodeIndex,
    /// Links that stand now.
    pub links: u64,
    /// Frames handed to the network as a whole.
    pub frames_sent: u64,
    /// Frames received as a whole.
    pub frames_received: u64,
    /// Bytes handed to the network.
    pub bytes_sent: u64,
    /// Bytes received from the network.
    pub bytes_received: u64,
    /// Frames that were sent again.
    pub retries: u64,
    /// Connections that were made again.
    pub reconnects: u64,
    /// Bytes that wait to be sent.
    pub queued: u64,
    /// Frames of which the node has not said that it has them.
    pub unacknowledged: u64,
}

impl PeerStats {
    /// Nothing yet.
    #[must_use]
    pub const fn new(node: NodeIndex) -> Self {
        Self {
            node,
            links: 0,
            frames_sent: 0,
            frames_received: 0,
            bytes_sent: 0,
            bytes_received: 0,
            retries: 0,
            reconnects: 0,
            queued: 0,
            unacknowledged: 0,
        }
    }
}

/// A network.
pub trait Fabric: Send + Sync + fmt::Debug {
    /// Its name, for logs.
    fn name(&self) -> &'static str;
    /// Where it listens; empty for a fabric without addresses. The address may be the unspecified one.
    fn local_addresses(&self) -> Vec<SocketAddr>;
    /// The first of [`Fabric::local_addresses`].
    fn local_address(&self) -> Option<SocketAddr> {
        self.local_addresses().first().copied()
    }
    /// Tells where the other nodes are. Nodes that are no longer listed keep their links.
    fn set_peers(&self, peers: Vec<PeerAddress>);
    /// The link to a node, opened now when there is none. What is submitted while it opens is sent when it stands.
    ///
    /// # Errors
    /// When the node is not known or the attempt to connect fails at once.
    fn link(&self, node: NodeIndex) -> Result<Arc<dyn Link>, LinkError>;
    /// Refuses the node from now on and closes all links with it.
    fn forget(&self, node: NodeIndex);
    /// Waits for events until `deadline` (CLOCK_MONOTONIC nanoseconds, `u64::MAX`: without one) or [`Fabric::wake`], and
    /// tells the handler of them. One thread at a time.
    ///
    /// # Errors
    /// When the system refuses the wait itself; the fabric is of no more use then.
    fn progress(&self, handler: &mut dyn Handler, deadline: u64) -> std::io::Result<()>;
    /// Makes the current or the next [`Fabric::progress`] return.
    fn wake(&self);
    /// How long the other side of a link may be silent before the link is lost, in nanoseconds.
    fn longest_silence(&self) -> u64 {
        0
    }
    /// Accepts nobody any more.
    fn close_listener(&self);
    /// What has been counted.
    fn stats(&self) -> FabricStats;
    /// What has been counted with each node.
    fn peers(&self) -> Vec<PeerStats> {
        Vec::new()
    }
}
