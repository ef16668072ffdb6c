//! A fabric within one process, for tests of everything above it: nodes of one [`MemHub`] reach each other through queues.
//!
//! It keeps the promises of [`super`] and lets a test cut the links between two nodes. There are no strangers on it, so it
//! has no handshake.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use dragon_protocol::NodeIndex;

use super::{
    Fabric, FabricStats, Frame, Handler, Incoming, Link, LinkError, PeerAddress, PeerStats, SMALL,
    Side,
};
use crate::clock;

/// Where the nodes of a test find each other.
#[derive(Clone, Debug, Default)]
pub struct MemHub {
    inner: Arc<Hub>,
}

#[derive(Debug, Default)]
struct Hub {
    nodes: Mutex<HashMap<NodeIndex, Weak<Node>>>,
    next_link: AtomicU64,
}

/// One node of a [`MemHub`].
#[derive(Debug)]
pub struct MemFabric {
    hub: Arc<Hub>,
    node: Arc<Node>,
}

#[derive(Debug)]
struct Node {
    index: NodeIndex,
    inbox: Mutex<VecDeque<Event>>,
    arrived: Condvar,
    links: Mutex<Links>,
    counters: Counters,
    /// The same by node.
    peers: Mutex<HashMap<NodeIndex, PeerStats>>,
}

#[derive(Debug, Default)]
struct Links {
    opened: HashMap<NodeIndex, Arc<MemLink>>,
    accepted: HashMap<NodeIndex, Arc<MemLink>>,
    forgotten: HashSet<NodeIndex>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Counters {
    opened: AtomicU64,
    accepted: AtomicU64,
    frames_sent: AtomicU64,
    frames_received: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

#[derive(Debug)]
enum Event {
    Up(Arc<MemLink>),
    Frame(Arc<MemLink>, Frame),
    Lost(Arc<MemLink>, LinkError),
    Wake,
}

#[derive(Debug)]
struct MemLink {
    id: u64,
    side: Side,
    node: NodeIndex,
    home: Weak<Node>,
    /// The other end, and the node that it belongs to.
    other: Mutex<Option<(Weak<Self>, Weak<Node>)>>,
    open: AtomicBool,
    /// The handler has heard of the end: nothing may follow.
    finished: AtomicBool,
}

impl MemHub {
    /// A hub without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node.
    #[must_use]
    pub fn node(&self, index: NodeIndex) -> MemFabric {
        let node = Arc::new(Node {
            index,
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            links: Mutex::default(),
            counters: Counters::default(),
            peers: Mutex::default(),
        });
        lock(&self.inner.nodes).insert(index, Arc::downgrade(&node));
        MemFabric {
            hub: Arc::clone(&self.inner),
            node,
        }
    }

    /// Breaks all links between two nodes, as a cut cable would when its time-out has passed.
    pub fn cut(&self, a: NodeIndex, b: NodeIndex) {
        let Some(node) = lock(&self.inner.nodes).get(&a).and_then(Weak::upgrade) else {
            return;
        };
        let links = lock(&node.links);
        let both = [links.opened.get(&b), links.accepted.get(&b)];
        let both: Vec<_> = both.into_iter().flatten().cloned().collect();
        drop(links);
        for link in both {
            link.end(LinkError::Network(std::io::ErrorKind::TimedOut.into()));
        }
    }
}

impl Node {
    fn post(&self, event: Event) {
        lock(&self.inbox).push_back(event);
        self.arrived.notify_one();
    }

    fn with_peer(&self, node: NodeIndex, change: impl FnOnce(&mut PeerStats)) {
        let mut peers = lock(&self.peers);
        change(peers.entry(node).or_insert(PeerStats::new(node)));
    }

    fn unlink(&self, link: &Arc<MemLink>) {
        let mut links = lock(&self.links);
        let map = match link.side {
            Side::Opened => &mut links.opened,
            Side::Accepted => &mut links.accepted,
        };
        if map.get(&link.node).is_some_and(|l| l.id == link.id) {
            map.remove(&link.node);
        }
    }
}

impl MemLink {
    /// Ends both ends. Each hears of it once, after the frames that were sent before.
    fn end(self: &Arc<Self>, reason: LinkError) {
        let other = lock(&self.other).clone();
        self.end_here(reason);
        if let Some(other) = other.and_then(|(link, _)| link.upgrade()) {
            other.end_here(LinkError::Closed);
        }
    }

    fn end_here(self: &Arc<Self>, reason: LinkError) {
        if self.open.swap(false, Ordering::AcqRel)
            && let Some(home) = self.home.upgrade()
        {
            home.unlink(self);
            home.post(Event::Lost(Arc::clone(self), reason));
        }
    }
}

impl Link for MemLink {
    fn id(&self) -> u64 {
        self.id
    }

    fn node(&self) -> NodeIndex {
        self.node
    }

    fn side(&self) -> Side {
        self.side
    }

    fn clock_offset(&self) -> i64 {
        0
    }

    fn submit(&self, frame: Frame) -> Result<(), Frame> {
        let other = lock(&self.other).clone();
        let other = other.and_then(|(link, node)| Some((link.upgrade()?, node.upgrade()?)));
        let (Some((link, node)), Some(home)) = (other, self.home.upgrade()) else {
            return Err(frame);
        };
        if !self.open.load(Ordering::Acquire) {
            return Err(frame);
        }
        home.counters.sent(&frame);
        home.with_peer(self.node, |peer| {
            peer.frames_sent += 1;
            peer.bytes_sent += bytes(&frame);
        });
        node.post(Event::Frame(link, frame));
        Ok(())
    }

    fn queued(&self) -> u64 {
        0
    }

    fn close(&self) {
        let other = lock(&self.other).clone();
        let Some(other) = other.and_then(|(link, _)| link.upgrade()) else {
            return;
        };
        let this = lock(&other.other).as_ref().and_then(|(l, _)| l.upgrade());
        if let Some(this) = this {
            this.end(LinkError::ClosedHere);
        }
    }
}

impl Counters {
    fn sent(&self, frame: &Frame) {
        self.frames_sent.fetch_add(1, Ordering::Relaxed);
        self.bytes_sent.fetch_add(bytes(frame), Ordering::Relaxed);
    }

    fn received(&self, frame: &Frame) {
        self.frames_received.fetch_add(1, Ordering::Relaxed);
        self.bytes_received
            .fetch_add(bytes(frame), Ordering::Relaxed);
    }
}

fn bytes(frame: &Frame) -> u64 {
    dragon_protocol::wire::FRAME_HEADER as u64 + frame.body.len()
}

impl Fabric for MemFabric {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn local_addresses(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    fn set_peers(&self, _peers: Vec<PeerAddress>) {}

    fn link(&self, to: NodeIndex) -> Result<Arc<dyn Link>, LinkError> {
        let mut links = lock(&self.node.links);
        if let Some(link) = links.opened.get(&to) {
            return Ok(Arc::clone(link) as Arc<dyn Link>);
        }
        if links.forgotten.contains(&to) {
            return Err(LinkError::UnknownNode(to));
        }
        let theirs = lock(&self.hub.nodes).get(&to).and_then(Weak::upgrade);
        let theirs = theirs.ok_or(LinkError::UnknownNode(to))?;
        let new = |side, node, home: &Arc<Node>| {
            Arc::new(MemLink {
                id: self.hub.next_link.fetch_add(1, Ordering::Relaxed) + 1,
                side,
                node,
                home: Arc::downgrade(home),
                other: Mutex::new(None),
                open: AtomicBool::new(true),
                finished: AtomicBool::new(false),
            })
        };
        let near = new(Side::Opened, to, &self.node);
        let far = new(Side::Accepted, self.node.index, &theirs);
        *lock(&near.other) = Some((Arc::downgrade(&far), Arc::downgrade(&theirs)));
        *lock(&far.other) = Some((Arc::downgrade(&near), Arc::downgrade(&self.node)));
        links.opened.insert(to, Arc::clone(&near));
        drop(links);
        let mut their_links = lock(&theirs.links);
        if their_links.closed || their_links.forgotten.contains(&self.node.index) {
            drop(their_links);
            self.node.unlink(&near);
            let refused = std::io::ErrorKind::ConnectionRefused;
            return Err(LinkError::Connect(refused.into()));
        }
        let old = their_links
            .accepted
            .insert(self.node.index, Arc::clone(&far));
        drop(their_links);
        if let Some(old) = old {
            old.end_here(LinkError::Superseded);
        }
        self.node.counters.opened.fetch_add(1, Ordering::Relaxed);
        theirs.counters.accepted.fetch_add(1, Ordering::Relaxed);
        self.node.post(Event::Up(Arc::clone(&near)));
        theirs.post(Event::Up(far));
        Ok(near)
    }

    fn forget(&self, node: NodeIndex) {
        let mut links = lock(&self.node.links);
        links.forgotten.insert(node);
        let both = [links.opened.get(&node), links.accepted.get(&node)];
        let both: Vec<_> = both.into_iter().flatten().cloned().collect();
        drop(links);
        for link in both {
            link.end(LinkError::ClosedHere);
        }
    }

    fn progress(&self, handler: &mut dyn Handler, deadline: u64) -> std::io::Result<()> {
        let mut inbox = lock(&self.node.inbox);
        while inbox.is_empty() {
            let now = clock::now();
            if deadline <= now {
                return Ok(());
            }
            inbox = if deadline == u64::MAX {
                let waited = self.node.arrived.wait(inbox);
                waited.unwrap_or_else(PoisonError::into_inner)
            } else {
                let time = Duration::from_nanos(deadline - now);
                let waited = self.node.arrived.wait_timeout(inbox, time);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
        let events = core::mem::take(&mut *inbox);
        drop(inbox);
        for event in events {
            match event {
                Event::Wake => {}
                Event::Up(link) => handler.up(&(link as Arc<dyn Link>)),
                Event::Lost(link, reason) => {
                    link.finished.store(true, Ordering::Relaxed);
                    handler.lost(&(link as Arc<dyn Link>), true, &reason, Vec::new());
                }
                Event::Frame(link, _) if link.finished.load(Ordering::Relaxed) => {}
                Event::Frame(link, frame) => {
                    self.node.counters.received(&frame);
                    self.node.with_peer(link.node, |peer| {
                        peer.frames_received += 1;
                        peer.bytes_received += bytes(&frame);
                    });
                    deliver(handler, &(link as Arc<dyn Link>), frame);
                    handler.pause();
                }
            }
        }
        Ok(())
    }

    fn wake(&self) {
        self.node.post(Event::Wake);
    }

    fn close_listener(&self) {
        lock(&self.node.links).closed = true;
    }

    fn stats(&self) -> FabricStats {
        let counters = &self.node.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let links = lock(&self.node.links);
        FabricStats {
            opened: get(&counters.opened),
            accepted: get(&counters.accepted),
            links: (links.opened.len() + links.accepted.len()) as u64,
            frames_sent: get(&counters.frames_sent),
            frames_received: get(&counters.frames_received),
            bytes_sent: get(&counters.bytes_sent),
            bytes_received: get(&counters.bytes_received),
            ..FabricStats::default()
        }
    }

    fn peers(&self) -> Vec<PeerStats> {
        let links = lock(&self.node.links);
        let peers = lock(&self.node.peers);
        let with_links = |peer: &PeerStats| {
            let opened = links.opened.contains_key(&peer.node);
            let accepted = links.accepted.contains_key(&peer.node);
            PeerStats {
                links: u64::from(opened) + u64::from(accepted),
                ..*peer
            }
        };
        peers.values().map(with_links).collect()
    }
}

fn deliver(handler: &mut dyn Handler, link: &Arc<dyn Link>, frame: Frame) {
    let Frame { header, body } = frame;
    if body.len() <= SMALL {
        let bytes = body.to_vec();
        return handler.frame(link, &header, Incoming::Small(&bytes));
    }
    match handler.land(link, &header) {
        Some(mut landing) => {
            body.copy_into(&mut landing);
            handler.frame(link, &header, Incoming::Landed(landing));
        }
        None => handler.frame(link, &header, Incoming::Skipped(body.len())),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
