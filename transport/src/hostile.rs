//! What the fuzzer and the property tests feed with bytes of the wire: not part of the interface.
//!
//! A peer that has proved the key may still say anything. The bytes of its stream become frames ([`frames`]), and frames are
//! executed ([`Victim`]); whatever they are, an error or a result comes of it.

use core::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dragon_channels::Channel;
use dragon_protocol::NodeIndex;
use dragon_protocol::wire::{FrameHeader, FrameKind};
use dragon_shmem::Member;

use crate::agent::Harness;
use crate::body::Body;
use crate::fabric::stream::{Assembly, CARRY, Inbound, Sink};
use crate::fabric::{
    Fabric, FabricStats, Frame, Handler, Incoming, Link, LinkError, PeerAddress, Side,
};

/// Reads the bytes, but for the first, as the stream of a connection: at once, and in pieces whose lengths follow from the
/// first byte. What arrives must be the same.
///
/// # Panics
/// When it is not.
pub fn frames(data: &[u8]) {
    let Some((seed, bytes)) = data.split_first() else {
        return;
    };
    let whole = read(bytes, 0);
    assert_eq!(read(bytes, u64::from(*seed) + 1), whole);
}

/// What a reader heard.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Frame(u8, u64, Vec<u8>),
    Skipped(u64, u64),
    Acknowledged(u16),
    End,
    Refused(String),
}

/// The longest payload that gets a place.
const PLACE: u64 = 1 << 20;

impl Sink for Vec<Heard> {
    fn land(&mut self, header: &FrameHeader) -> Option<Body> {
        let length = header.payload.get();
        // Some get none, as when the pool is full.
        let place = length <= PLACE && header.request.get() % 4 != 3;
        place.then(|| Body::Bytes(vec![0; usize::try_from(length).unwrap_or(0)]))
    }

    fn frame(&mut self, header: &FrameHeader, payload: Incoming<'_>) {
        let number = header.request.get();
        let bytes = match payload {
            Incoming::Small(bytes) => bytes.to_vec(),
            Incoming::Landed(body) => body.to_vec(),
            Incoming::Skipped(length) => return self.push(Heard::Skipped(number, length)),
        };
        assert_eq!(bytes.len() as u64, header.payload.get());
        self.push(Heard::Frame(header.kind, number, bytes));
    }

    fn received(&self) -> u64 {
        let counts = |heard: &&Heard| matches!(heard, Heard::Frame(..) | Heard::Skipped(..));
        self.iter().filter(counts).count() as u64
    }

    fn acknowledged(&mut self, count: u16) {
        self.push(Heard::Acknowledged(count));
    }

    fn end(&mut self) {
        self.push(Heard::End);
    }
}

/// Reads a stream as a connection does; `seed` 0: in one piece.
fn read(mut bytes: &[u8], seed: u64) -> Vec<Heard> {
    let mut heard = Vec::new();
    let (mut inbound, mut assembly) = (Inbound::default(), Assembly::default());
    let mut random = seed;
    while !bytes.is_empty() && heard.last() != Some(&Heard::End) {
        random = random
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(seed);
        let most = match (seed, random >> 62) {
            (0, _) => bytes.len(),
            (_, 0) => 1,
            (_, 1) => 80,
            _ => usize::try_from(random >> 52 & 0xfff).unwrap_or(0) + 1,
        };
        let (now, rest) = bytes.split_at(most.min(bytes.len()));
        bytes = rest;
        let mut scratch = vec![0; CARRY];
        let carried = inbound.take_carry(&mut scratch);
        scratch.truncate(carried);
        let mut now = now;
        // What belongs to a large payload is received straight into its place, or comes with the rest.
        if random >> 61 & 1 == 0
            && let Some(piece) = inbound.landing(&mut assembly)
        {
            let direct = piece.len.min(now.len());
            // SAFETY: the piece is that long, and the body's memory is apart from the bytes.
            unsafe { core::ptr::copy_nonoverlapping(now.as_ptr(), piece.start.as_ptr(), direct) };
            if let Err(error) = inbound.landed(direct as u64, &mut assembly, &mut heard) {
                heard.push(Heard::Refused(error.to_string()));
                break;
            }
            now = &now[direct..];
        }
        scratch.extend_from_slice(now);
        if let Err(error) = inbound.parse(&scratch, &mut assembly, &mut heard) {
            heard.push(Heard::Refused(error.to_string()));
            break;
        }
    }
    heard
}

/// An agent without threads and without a network, of which a hostile peer has both links.
#[derive(Debug)]
pub struct Victim {
    agent: Harness,
    opened: Arc<dyn Link>,
    accepted: Arc<dyn Link>,
}

impl Victim {
    /// The agent of the node that the daemon's own membership is of.
    #[must_use]
    pub fn new(member: Arc<Member>, gateway: Channel) -> Self {
        let link = |side| Arc::new(Nowhere::new(side)) as Arc<dyn Link>;
        let (opened, accepted) = (link(Side::Opened), link(Side::Accepted));
        let fabric = Arc::new(OneLink(Arc::clone(&opened)));
        Self {
            agent: Harness::new(member, fabric, gateway),
            opened,
            accepted,
        }
    }

    /// Begins a request of this node's first thread, which a reply may then be about.
    pub fn ask(&self, header: FrameHeader) {
        self.agent.ask(header);
    }

    /// The peer says this, on the link that it accepted or on the one that it opened.
    pub fn hear(&self, side: Side, bytes: &[u8]) {
        let link = match side {
            Side::Opened => &self.opened,
            Side::Accepted => &self.accepted,
        };
        self.agent.with_events(|events| {
            let mut inbound = Inbound::default();
            let mut to = To {
                link,
                events,
                received: 0,
            };
            // What is none of the protocol ends the connection.
            let _ = inbound.parse(bytes, &mut Assembly::default(), &mut to);
        });
    }

    /// Both links are lost. Returns how many requests are still kept.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.agent.with_events(|events| {
            for link in [&self.opened, &self.accepted] {
                events.lost(link, true, &LinkError::Closed, Vec::new());
            }
        });
        self.agent.kept()
    }
}

struct To<'a> {
    link: &'a Arc<dyn Link>,
    events: &'a mut dyn Handler,
    received: u64,
}

impl Sink for To<'_> {
    fn land(&mut self, header: &FrameHeader) -> Option<Body> {
        self.events.land(self.link, header)
    }

    fn frame(&mut self, header: &FrameHeader, payload: Incoming<'_>) {
        self.received += 1;
        self.events.frame(self.link, header, payload);
    }

    fn received(&self) -> u64 {
        self.received
    }

    fn acknowledged(&mut self, _: u16) {}

    fn end(&mut self) {}
}

/// A link that leads nowhere.
#[derive(Debug)]
struct Nowhere {
    side: Side,
    sent: AtomicU64,
}

/// The peer.
fn peer() -> NodeIndex {
    NodeIndex::new(1).unwrap_or(NodeIndex::FIRST)
}

impl Nowhere {
    fn new(side: Side) -> Self {
        Self {
            side,
            sent: AtomicU64::new(0),
        }
    }
}

impl Link for Nowhere {
    fn id(&self) -> u64 {
        self.side as u64 + 1
    }

    fn node(&self) -> NodeIndex {
        peer()
    }

    fn side(&self) -> Side {
        self.side
    }

    fn clock_offset(&self) -> i64 {
        0
    }

    fn submit(&self, frame: Frame) -> Result<(), Frame> {
        // What leaves is well-formed, whatever came.
        assert!(FrameKind::from_u8(frame.header.kind).is_some());
        assert_eq!(frame.header.payload.get(), frame.body.len());
        if self.side == Side::Accepted {
            assert_eq!(frame.header.kind, FrameKind::Reply as u8);
            assert_ne!(frame.header.request.get(), 0);
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn queued(&self) -> u64 {
        0
    }

    fn close(&self) {}
}

/// A network of one link.
struct OneLink(Arc<dyn Link>);

impl fmt::Debug for OneLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneLink")
    }
}

impl Fabric for OneLink {
    fn name(&self) -> &'static str {
        "none"
    }

    fn local_addresses(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    fn set_peers(&self, _: Vec<PeerAddress>) {}

    fn link(&self, node: NodeIndex) -> Result<Arc<dyn Link>, LinkError> {
        if node == peer() {
            Ok(Arc::clone(&self.0))
        } else {
            Err(LinkError::UnknownNode(node))
        }
    }

    fn forget(&self, _: NodeIndex) {}

    fn progress(&self, _: &mut dyn Handler, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self) {}

    fn close_listener(&self) {}

    fn stats(&self) -> FabricStats {
        FabricStats::default()
    }
}
