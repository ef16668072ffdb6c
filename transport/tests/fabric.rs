//! What every fabric promises, checked on each of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dragon_protocol::NodeIndex;
use dragon_protocol::key::JobKey;
use dragon_protocol::wire::{FrameHeader, FrameKind};
use dragon_transport::Body;
use dragon_transport::fabric::mem::MemHub;
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::fabric::{
    Fabric, Frame, Handler, Incoming, Link, LinkError, PeerAddress, Side,
};
use zerocopy::FromZeros;

/// A test that hangs is ended by this; nothing is ever expected to take this long.
const WATCHDOG: Duration = Duration::from_secs(120);

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Up(Side, NodeIndex),
    Frame(u64, Vec<u8>),
    Skipped(u64, u64),
    Lost {
        side: Side,
        was_up: bool,
        unsent: Vec<u64>,
    },
}

struct Recorder {
    events: Sender<Event>,
    links: Arc<Mutex<HashMap<u64, Arc<dyn Link>>>>,
    /// Answer each request with its own payload.
    echo: bool,
    /// Give no place to large payloads.
    stingy: bool,
}

impl Handler for Recorder {
    fn land(&mut self, _: &Arc<dyn Link>, header: &FrameHeader) -> Option<Body> {
        let length = usize::try_from(header.payload.get()).unwrap();
        (!self.stingy).then(|| Body::Bytes(vec![0; length]))
    }

    fn frame(&mut self, link: &Arc<dyn Link>, header: &FrameHeader, payload: Incoming<'_>) {
        let bytes = match payload {
            Incoming::Small(bytes) => bytes.to_vec(),
            Incoming::Landed(body) => body.to_vec(),
            Incoming::Skipped(n) => {
                let event = Event::Skipped(header.request.get(), n);
                return self.events.send(event).unwrap();
            }
        };
        if self.echo {
            let mut reply = frame(header.request.get(), bytes.clone());
            reply.header.kind = FrameKind::Reply as u8;
            link.submit(reply).unwrap();
        }
        let event = Event::Frame(header.request.get(), bytes);
        self.events.send(event).unwrap();
    }

    fn up(&mut self, link: &Arc<dyn Link>) {
        self.links
            .lock()
            .unwrap()
            .insert(link.id(), Arc::clone(link));
        let event = Event::Up(link.side(), link.node());
        self.events.send(event).unwrap();
    }

    fn lost(&mut self, link: &Arc<dyn Link>, was_up: bool, _: &LinkError, unsent: Vec<Frame>) {
        self.links.lock().unwrap().remove(&link.id());
        let unsent = unsent.iter().map(|f| f.header.request.get()).collect();
        let side = link.side();
        let event = Event::Lost {
            side,
            was_up,
            unsent,
        };
        self.events.send(event).unwrap();
    }
}

struct Node {
    fabric: Arc<dyn Fabric>,
    events: Receiver<Event>,
    links: Arc<Mutex<HashMap<u64, Arc<dyn Link>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    fn start(fabric: Arc<dyn Fabric>, echo: bool, stingy: bool) -> Self {
        let (sender, events) = channel();
        let links = Arc::new(Mutex::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut recorder = Recorder {
            events: sender,
            links: Arc::clone(&links),
            echo,
            stingy,
        };
        let (io, end) = (Arc::clone(&fabric), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Acquire) {
                io.progress(&mut recorder, u64::MAX).unwrap();
            }
        });
        Self {
            fabric,
            events,
            links,
            stop,
            thread: Some(thread),
        }
    }

    fn next(&self) -> Event {
        self.events.recv_timeout(WATCHDOG).expect("an event")
    }

    fn link(&self, to: u32) -> Arc<dyn Link> {
        self.fabric.link(node(to)).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.fabric.wake();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn node(n: u32) -> NodeIndex {
    NodeIndex::new(n).unwrap()
}

fn key() -> JobKey {
    JobKey::from_hex(&"5a".repeat(32)).unwrap()
}

fn frame(request: u64, payload: Vec<u8>) -> Frame {
    let header = FrameHeader {
        kind: FrameKind::Request as u8,
        request: request.into(),
        payload: (payload.len() as u64).into(),
        ..FrameHeader::new_zeroed()
    };
    let body = Body::Bytes(payload);
    Frame { header, body }
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mix = |n: usize| (n as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    (0..length).map(|n| u8::try_from(mix(n)).unwrap()).collect()
}

fn tcp(nodes: u32) -> Vec<Arc<dyn Fabric>> {
    tcp_with(nodes, false)
}

fn tcp_with(nodes: u32, encrypt: bool) -> Vec<Arc<dyn Fabric>> {
    tcp_of(nodes, encrypt, 0)
}

fn tcp_of(nodes: u32, encrypt: bool, connections: usize) -> Vec<Arc<dyn Fabric>> {
    let config = |n| TcpConfig {
        encrypt,
        connections,
        ..TcpConfig::new(node(n), key())
    };
    let fabrics: Vec<TcpFabric> = (0..nodes)
        .map(|n| TcpFabric::bind(config(n)).unwrap())
        .collect();
    let peers: Vec<PeerAddress> = (0..nodes)
        .zip(&fabrics)
        .map(|(n, fabric)| PeerAddress {
            node: node(n),
            addresses: vec![(Ipv4Addr::LOCALHOST, fabric.local_address().unwrap().port()).into()],
        })
        .collect();
    fabrics
        .into_iter()
        .map(|fabric| {
            fabric.set_peers(peers.clone());
            Arc::new(fabric) as Arc<dyn Fabric>
        })
        .collect()
}

fn mem(nodes: u32) -> Vec<Arc<dyn Fabric>> {
    let hub = MemHub::new();
    (0..nodes)
        .map(|n| Arc::new(hub.node(node(n))) as Arc<dyn Fabric>)
        .collect()
}

fn on_each(test: impl Fn(Vec<Arc<dyn Fabric>>)) {
    test(tcp(2));
    test(tcp_with(2, true));
    test(tcp_of(2, false, 3));
    test(mem(2));
}

#[test]
fn frames_arrive_once_and_in_order_whatever_their_size() {
    on_each(|fabrics| {
        let [a, b] = [&fabrics[0], &fabrics[1]].map(|f| Node::start(Arc::clone(f), false, false));
        let link = a.link(1);
        let sizes = [
            0, 1, 79, 80, 4095, 4096, 4097, 65_536, 70_000, 1, 0, 3_000_000, 17,
        ];
        let mut sent = Vec::new();
        for round in 0..5_u64 {
            for (n, size) in sizes.into_iter().enumerate() {
                let request = round * 100 + n as u64 + 1;
                sent.push((request, pattern(size, request)));
            }
        }
        for (request, payload) in &sent {
            link.submit(frame(*request, payload.clone())).unwrap();
        }
        assert_eq!(b.next(), Event::Up(Side::Accepted, node(0)));
        for (request, payload) in sent {
            assert_eq!(b.next(), Event::Frame(request, payload));
        }
        assert_eq!(a.next(), Event::Up(Side::Opened, node(1)));
        let frames = 5 * sizes.len() as u64;
        assert_eq!(a.fabric.stats().frames_sent, frames);
        assert_eq!(b.fabric.stats().frames_received, frames);
        assert_eq!(a.fabric.stats().opened, 1);
        assert_eq!(b.fabric.stats().accepted, 1);
        let ([near], [far]) = (&a.fabric.peers()[..], &b.fabric.peers()[..]) else {
            panic!("one peer each")
        };
        assert_eq!(
            (near.node, near.links, near.frames_sent),
            (node(1), 1, frames)
        );
        assert_eq!(
            (far.node, far.links, far.frames_received),
            (node(0), 1, frames)
        );
        assert_eq!((far.retries, far.reconnects), (0, 0));
    });
}

/// Passes on what comes for a port, in small pieces.
fn trickle(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (near, far) = (
            listener.accept().unwrap().0,
            TcpStream::connect(to).unwrap(),
        );
        far.set_nodelay(true).unwrap();
        let (mut back, mut answers) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
        let mut piece = [0; 5000];
        while let Ok(count @ 1..) = (&near).read(&mut piece) {
            if (&far).write_all(&piece[..count]).is_err() {
                return;
            }
        }
    });
    address
}

#[test]
fn a_large_frame_that_trickles_in_arrives_when_nothing_follows_it() {
    for encrypt in [false, true] {
        let fabrics = tcp_with(2, encrypt);
        let far = fabrics[1].local_address().unwrap().port();
        fabrics[0].set_peers(vec![PeerAddress {
            node: node(1),
            addresses: vec![trickle((Ipv4Addr::LOCALHOST, far).into())],
        }]);
        let a = Node::start(Arc::clone(&fabrics[0]), false, false);
        let b = Node::start(Arc::clone(&fabrics[1]), false, false);
        let link = a.link(1);
        link.submit(frame(0, Vec::new())).unwrap();
        assert_eq!(b.next(), Event::Up(Side::Accepted, node(0)));
        assert_eq!(b.next(), Event::Frame(0, Vec::new()));
        for n in 1..=100_u8 {
            let size = 4097 + usize::from(n) * 104_729 % 700_001;
            link.submit(frame(n.into(), vec![n; size])).unwrap();
            assert!(
                b.next() == Event::Frame(n.into(), vec![n; size]),
                "{size} bytes"
            );
        }
    }
}

#[test]
fn frames_that_are_queued_leave_with_the_flush() {
    for fabrics in [tcp(2), tcp_with(2, true), tcp_of(2, false, 3)] {
        let a = Node::start(Arc::clone(&fabrics[0]), false, false);
        let b = Node::start(Arc::clone(&fabrics[1]), false, false);
        let link = a.link(1);
        link.submit(frame(0, Vec::new())).unwrap();
        assert_eq!(b.next(), Event::Up(Side::Accepted, node(0)));
        assert_eq!(b.next(), Event::Frame(0, Vec::new()));
        // More than one call to the network takes, and no acknowledgement comes that would send them.
        for n in 1..=200 {
            link.queue(frame(n, pattern(64, n))).unwrap();
        }
        assert_eq!(link.queued(), 200 * (80 + 64), "they wait");
        link.flush();
        for n in 1..=200 {
            assert_eq!(b.next(), Event::Frame(n, pattern(64, n)));
        }
        assert_eq!(link.queued(), 0);
        // Too many to wait: nobody has to flush for them.
        for n in 201..=2000 {
            link.queue(frame(n, pattern(64, n))).unwrap();
        }
        assert_eq!(b.next(), Event::Frame(201, pattern(64, 201)));
    }
}

#[test]
fn both_directions_of_a_link_carry_large_frames_at_once() {
    on_each(|fabrics| {
        let a = Node::start(Arc::clone(&fabrics[0]), false, false);
        let b = Node::start(Arc::clone(&fabrics[1]), true, false);
        let link = a.link(1);
        for n in 1..=30 {
            link.submit(frame(n, pattern(1_000_000, n))).unwrap();
        }
        assert_eq!(a.next(), Event::Up(Side::Opened, node(1)));
        for n in 1..=30 {
            assert_eq!(a.next(), Event::Frame(n, pattern(1_000_000, n)));
        }
        drop(b);
    });
}

#[test]
fn a_payload_without_a_place_is_skipped_and_the_next_frame_is_well() {
    on_each(|fabrics| {
        let a = Node::start(Arc::clone(&fabrics[0]), false, false);
        let b = Node::start(Arc::clone(&fabrics[1]), false, true);
        let link = a.link(1);
        for n in 0..5 {
            let large = frame(2 * n + 1, pattern(500_000, n));
            link.submit(large).unwrap();
            link.submit(frame(2 * n + 2, vec![7; 10])).unwrap();
        }
        assert_eq!(b.next(), Event::Up(Side::Accepted, node(0)));
        for n in 0..5 {
            assert_eq!(b.next(), Event::Skipped(2 * n + 1, 500_000));
            assert_eq!(b.next(), Event::Frame(2 * n + 2, vec![7; 10]));
        }
    });
}

#[test]
fn many_threads_send_on_one_link() {
    on_each(|fabrics| {
        let a = Node::start(Arc::clone(&fabrics[0]), false, false);
        let b = Node::start(Arc::clone(&fabrics[1]), false, false);
        let (threads, each) = (16_u64, 500_u64);
        std::thread::scope(|scope| {
            for t in 0..threads {
                let link = a.link(1);
                scope.spawn(move || {
                    for n in 0..each {
                        let size = usize::try_from(n * 37 % 9000).unwrap();
                        link.submit(frame(t << 32 | n, vec![0; size])).unwrap();
                    }
                });
            }
        });
        assert_eq!(b.next(), Event::Up(Side::Accepted, node(0)));
        let mut last = HashMap::new();
        for _ in 0..threads * each {
            let Event::Frame(request, _) = b.next() else {
                panic!("only frames were sent")
            };
            let expected = last.entry(request >> 32).or_insert(0_u64);
            assert_eq!(request & 0xffff_ffff, *expected);
            *expected += 1;
        }
    });
}

#[test]
fn a_closed_link_is_lost_at_both_ends_and_gives_frames_back() {
    on_each(|fabrics| {
        let a = Node::start(Arc::clone(&fabrics[0]), false, false);
        let b = Node::start(Arc::clone(&fabrics[1]), false, false);
        let link = a.link(1);
        link.submit(frame(1, vec![1])).unwrap();
        assert_eq!(a.next(), Event::Up(Side::Opened, node(1)));
        assert_eq!(b.next(), Event::Up(Side::Accepted, node(0)));
        assert_eq!(b.next(), Event::Frame(1, vec![1]));
        link.close();
        let lost = |side| Event::Lost {
            side,
            was_up: true,
            unsent: vec![],
        };
        assert_eq!(a.next(), lost(Side::Opened));
        assert_eq!(b.next(), lost(Side::Accepted));
        assert_eq!(link.submit(frame(2, vec![])).unwrap_err().header.request, 2);
        // The next one is a new link.
        let again = a.link(1);
        assert_ne!(again.id(), link.id());
        again.submit(frame(3, vec![3])).unwrap();
        assert_eq!(b.next(), Event::Up(Side::Accepted, node(0)));
        assert_eq!(b.next(), Event::Frame(3, vec![3]));
    });
}

#[test]
fn many_nodes_that_connect_at_once_are_all_let_in() {
    const OTHERS: u32 = 64;
    let few = TcpConfig {
        half_open: 16,
        ..TcpConfig::new(node(0), key())
    };
    let fabric = Arc::new(TcpFabric::bind(few).unwrap());
    let port = fabric.local_address().unwrap().port();
    let others: Vec<Node> = (1..=OTHERS)
        .map(|n| {
            let other = Arc::new(TcpFabric::bind(TcpConfig::new(node(n), key())).unwrap());
            other.set_peers(vec![PeerAddress {
                node: node(0),
                addresses: vec![(Ipv4Addr::LOCALHOST, port).into()],
            }]);
            Node::start(other, false, false)
        })
        .collect();
    let links: Vec<_> = others.iter().map(|other| other.link(0)).collect();
    let all = Node::start(fabric, false, false);
    for (n, link) in (1..).zip(&links) {
        link.submit(frame(n, Vec::new())).unwrap();
    }
    let mut up = 0;
    while up < 2 * OTHERS {
        match all.next() {
            Event::Up(..) | Event::Frame(..) => up += 1,
            other => panic!("{other:?}"),
        }
    }
    for other in &others {
        assert_eq!(other.next(), Event::Up(Side::Opened, node(0)));
    }
}

#[test]
fn a_forgotten_node_is_refused() {
    on_each(|fabrics| {
        let a = Node::start(Arc::clone(&fabrics[0]), false, false);
        let b = Node::start(Arc::clone(&fabrics[1]), false, false);
        let link = a.link(1);
        assert_eq!(a.next(), Event::Up(Side::Opened, node(1)));
        assert_eq!(b.next(), Event::Up(Side::Accepted, node(0)));
        b.fabric.forget(node(0));
        assert!(matches!(b.next(), Event::Lost { .. }));
        assert!(matches!(a.next(), Event::Lost { .. }));
        assert!(matches!(
            b.fabric.link(node(0)),
            Err(LinkError::UnknownNode(_))
        ));
        drop(link);
    });
}

#[test]
fn an_unknown_node_is_an_error() {
    on_each(|fabrics| {
        let error = fabrics[0].link(node(9)).unwrap_err();
        assert!(error.to_string().contains('9'), "{error}");
    });
}

#[test]
fn frames_for_a_node_that_does_not_listen_come_back_unsent() {
    let fabrics = tcp(2);
    fabrics[1].close_listener();
    let a = Node::start(Arc::clone(&fabrics[0]), false, false);
    // The refusal may come at once or with the first event.
    if let Ok(link) = a.fabric.link(node(1)) {
        let queued = link.submit(frame(1, vec![1])).is_ok();
        let unsent = if queued { vec![1] } else { vec![] };
        let (side, was_up) = (Side::Opened, false);
        let lost = Event::Lost {
            side,
            was_up,
            unsent,
        };
        assert_eq!(a.next(), lost);
    }
    assert!(a.links.lock().unwrap().is_empty());
}

#[test]
fn a_newer_connection_of_a_node_replaces_the_older() {
    let fabrics = tcp(2);
    let b = Node::start(Arc::clone(&fabrics[1]), false, false);
    let old = Node::start(Arc::clone(&fabrics[0]), false, false);
    let _link = old.link(1);
    assert_eq!(b.next(), Event::Up(Side::Accepted, node(0)));
    // The same node from another socket, as after a break that only one side has noticed.
    let again = TcpFabric::bind(TcpConfig::new(node(0), key())).unwrap();
    again.set_peers(vec![PeerAddress {
        node: node(1),
        addresses: vec![
            (
                Ipv4Addr::LOCALHOST,
                fabrics[1].local_address().unwrap().port(),
            )
                .into(),
        ],
    }]);
    let new = Node::start(Arc::new(again), false, false);
    let _newer = new.link(1);
    assert!(matches!(b.next(), Event::Lost { was_up: true, .. }));
    assert_eq!(b.next(), Event::Up(Side::Accepted, node(0)));
    assert_eq!(b.fabric.stats().links, 1);
}

#[test]
fn a_node_that_encrypts_and_one_that_does_not_refuse_each_other() {
    let plain = Node::start(Arc::clone(&tcp(2)[0]), false, false);
    let sealed = tcp_with(1, true).remove(0);
    plain.fabric.set_peers(vec![PeerAddress {
        node: node(1),
        addresses: sealed.local_addresses(),
    }]);
    let sealed = Node::start(sealed, false, false);
    let link = plain.link(1);
    link.submit(frame(1, vec![1])).unwrap();
    let (side, was_up) = (Side::Opened, false);
    let lost = Event::Lost {
        side,
        was_up,
        unsent: vec![1],
    };
    assert_eq!(plain.next(), lost);
    assert!(sealed.events.try_recv().is_err());
}
