//! What an agent may need of memory whatever happens, and that a receiver or a node which takes nothing holds back only those
//! who send to it. The bounds are those of `docs/wire.md`; the memory of this process is counted byte by byte.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;
#[path = "rig/victim.rs"]
mod victim;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dragon_channels::{CREDIT, Channel, Error, Returns, SendOptions};
use dragon_protocol::op::Op;
use dragon_protocol::wire::{FRAME_HEADER, FrameHeader, FrameKind, NEVER};
use dragon_protocol::{Code, NodeIndex};
use dragon_transport::Body;
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::fabric::{Fabric, Frame, Handler, Incoming, Link, LinkError, PeerAddress};
use rig::{POOL, channel, index, info, pattern, seen_by, until, watched};
use victim::{Raw, accepted, answer, header, key, node, open};
use zerocopy::{FromBytes, IntoBytes};

/// Counts the bytes that are allocated.
struct Counting;

static BYTES: AtomicI64 = AtomicI64::new(0);

fn size(layout: Layout) -> i64 {
    i64::try_from(layout.size()).unwrap_or(i64::MAX)
}

// SAFETY: every call is the system allocator's own, with the caller's arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(size(layout), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        BYTES.fetch_sub(size(layout), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test at a time, since all of them count the same bytes.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn allocated() -> i64 {
    BYTES.load(Ordering::Relaxed)
}

/// Bytes that have been allocated since `before`.
fn since(before: i64) -> u64 {
    u64::try_from(allocated() - before).unwrap_or(0)
}

/// Without waiting for the arrival.
fn posted(hint: u64) -> SendOptions {
    SendOptions {
        hint,
        deadline: watched(),
        returns: Returns::Immediately,
        ..SendOptions::default()
    }
}

fn post(channel: &Channel, bytes: &[u8], hint: u64) -> Result<(), Error> {
    channel.send_with(&[std::io::IoSlice::new(bytes)], &posted(hint))
}

#[test]
fn a_receiver_that_receives_nothing_holds_its_senders_back() {
    const SENDERS: u64 = 4;
    const EACH: u64 = 8_000;
    let _alone = alone();
    let nodes = rig::tcp(&[POOL; 2]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&far, 4);
    let other = channel(&far, 4);
    let remote: Vec<Channel> = (0..SENDERS)
        .map(|_| seen_by(&near, owned.descriptor()))
        .collect();
    let to_other = seen_by(&near, other.descriptor());
    let before = allocated();
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (remote, sender) in remote.iter().zip(0..) {
            let sent = &sent;
            scope.spawn(move || {
                for n in 0..EACH {
                    post(remote, &[7; 700], sender << 32 | n).unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Each has used up its credit, and waits.
        until("all senders wait", || nodes[0].stats().pending == SENDERS);
        assert!(sent.load(Ordering::Relaxed) < SENDERS * EACH / 2);
        // Both agents are of this process.
        let needs = since(before);
        assert!(needs <= 2 * SENDERS * CREDIT, "{needs} bytes");
        // Nobody else is held back.
        for n in 0..100 {
            to_other.send(b"passes", n, watched()).unwrap();
            assert_eq!(other.receive(watched()).unwrap().hint(), n);
        }
        // And nothing is lost, doubled or out of its order when somebody receives at last.
        let mut next = remote.iter().map(|_| 0).collect::<Vec<u64>>();
        for _ in 0..SENDERS * EACH {
            let hint = owned.receive(watched()).unwrap().hint();
            let sender = usize::try_from(hint >> 32).unwrap();
            assert_eq!(hint & 0xffff_ffff, next[sender], "sender {sender}");
            next[sender] += 1;
        }
    });
    assert_eq!(nodes[1].stats().messages_lost, 0);
    until("nothing is kept", || since(before) < 200_000);
}

#[test]
fn what_a_peer_sends_without_waiting_is_bounded_here_too() {
    let _alone = alone();
    let nodes = rig::tcp(&[POOL; 1]);
    let owner = nodes[0].client();
    let owned = channel(&owner, 1);
    owned.send(b"full", 0, watched()).unwrap();
    let port = nodes[0].agent.local_address().unwrap().port();
    let (mut raw, _) = Raw::stand(port, 5, false, open(1));
    let before = allocated();
    let bytes = [1; 4096];
    let message = FrameHeader {
        op: Op::Send as u8,
        target: owned.id().into(),
        deadline: NEVER.into(),
        payload: 4096.into(),
        ..header(FrameKind::Request, 0)
    };
    let message = [message.as_bytes(), &bytes[..]].concat();
    for _ in 0..20_000 {
        raw.stream.write_all(&message).unwrap();
    }
    // A request is counted when it comes, before anything is done with it.
    until("each of them waits, or is lost", || {
        let stats = nodes[0].stats();
        stats.parked + stats.messages_lost == 20_000
    });
    let (stats, needs) = (nodes[0].stats(), since(before));
    assert!(needs <= 64 << 20, "{needs} bytes");
    assert!(stats.messages_lost > 1000, "{stats:?}");
    assert_eq!(stats.requests_received, 20_000);
    drop(raw);
}

#[test]
fn what_comes_back_to_a_full_channel_is_bounded() {
    let _alone = alone();
    let nodes = rig::tcp(&[POOL; 1]);
    let owner = nodes[0].client();
    let owned = channel(&owner, 1);
    owned.send(b"full", 0, watched()).unwrap();
    let port = nodes[0].agent.local_address().unwrap().port();
    let (mut raw, _) = Raw::stand(port, 5, false, open(1));
    let before = allocated();
    let back = |length: usize, hint: u64| {
        let header = FrameHeader {
            op: Op::Receive as u8,
            target: owned.id().into(),
            arg0: hint.into(),
            payload: (length as u64).into(),
            ..header(FrameKind::Return, 0)
        };
        [header.as_bytes(), &vec![1; length][..]].concat()
    };
    // Blocks of the pool are not counted: one of them alone is longer than the bound.
    let large = 65 << 20;
    raw.stream.write_all(&back(large, 1)).unwrap();
    for hint in 0..20_000 {
        raw.stream.write_all(&back(4096, hint + 2)).unwrap();
    }
    until("each of them waits, or is lost", || {
        let stats = nodes[0].stats();
        stats.parked + stats.messages_lost == 20_001
    });
    let (stats, needs) = (nodes[0].stats(), since(before));
    assert!(needs <= 64 << 20, "{needs} bytes");
    assert!(stats.messages_lost > 1000, "{stats:?}");
    assert_eq!(stats.returned, 20_001);
    // What was kept comes in its order, as soon as there is room.
    assert_eq!(owned.receive(watched()).unwrap().hint(), 0);
    let first = owned.receive(watched()).unwrap();
    assert_eq!((first.hint(), first.len()), (1, large));
    drop(first);
    for hint in 0..stats.parked - 1 {
        assert_eq!(owned.receive(watched()).unwrap().hint(), hint + 2);
    }
    until("nothing waits", || nodes[0].stats().parked == 0);
    drop(raw);
}

#[test]
fn a_full_channel_and_an_empty_one_hold_up_no_other_of_the_same_link() {
    let _alone = alone();
    rig::on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let (full, empty) = (channel(&far, 1), channel(&far, 4));
        let (there, back) = (channel(&far, 4), channel(&far, 4));
        let remote = |of: &Channel| seen_by(&near, of.descriptor());
        let (to_full, from_empty) = (remote(&full), remote(&empty));
        let (to_there, from_back) = (remote(&there), remote(&back));
        to_full.send(b"fills it", 0, watched()).unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (to_full, from_empty) = (&to_full, &from_empty);
                scope.spawn(move || to_full.send(&pattern(200_000, n), n, watched()).unwrap());
                scope.spawn(move || from_empty.receive(watched()).unwrap());
            }
            until("all wait", || nodes[1].stats().parked == 16);
            for size in [10, 4000, 500_000] {
                for n in 0..50 {
                    let bytes = pattern(size, n);
                    to_there.send(&bytes, n, watched()).unwrap();
                    let message = there.receive(watched()).unwrap();
                    back.send(&message.into_vec(), n, watched()).unwrap();
                    let message = from_back.receive(watched()).unwrap();
                    assert_eq!(message.hint(), n);
                    assert!(message.into_vec() == bytes);
                }
            }
            assert_eq!(nodes[1].stats().parked, 16);
            for n in 0..9 {
                full.receive(watched()).unwrap();
                if n < 8 {
                    empty.send(b"", n, watched()).unwrap();
                }
            }
        });
    });
}

/// What nobody waits for has no other bound: the daemon's own messages, and what comes back.
#[test]
fn what_is_posted_to_a_node_that_reads_nothing_is_bounded() {
    const POSTS: u64 = 24_000;
    let _alone = alone();
    let nodes = rig::tcp(&[POOL; 1]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let deaf_port = listener.local_addr().unwrap().port();
    nodes[0].agent.set_peers(&[info(index(2), deaf_port)]);
    let owned = channel(&nodes[0].client(), 1);
    let mut object = owned.id();
    object.node = index(2);
    let before = allocated();
    let post = |hint| nodes[0].agent.post(object, hint, vec![7; 4096]);
    post(0);
    let stream = deaf(&listener, index(2), 0);
    for hint in 1..POSTS {
        post(hint);
        // Those that the agent has not looked at yet are the daemon's own.
        let sent = || {
            let stats = nodes[0].stats();
            stats.messages_sent + stats.messages_lost
        };
        if hint % 1000 == 999 {
            until("they are sent or dropped", || sent() == hint + 1);
        }
    }
    let (stats, needs) = (nodes[0].stats(), since(before));
    assert!(stats.messages_lost > 1000, "{stats:?}");
    // What is queued, and what each of those needs besides.
    assert!(needs <= 72 << 20, "{needs} bytes");
    drop(listener);
    drop(stream);
    until("nothing is kept", || since(before) < 200_000);
}

/// A node that proves the key, lets a link be opened, says yes to so many requests, and reads nothing any more.
fn deaf(listener: &TcpListener, me: NodeIndex, yes: u64) -> TcpStream {
    let (mut stream, open) = accepted(listener, me);
    answer(&mut stream, &open, Code::Ok, 0);
    let mut said = 0;
    while said < yes {
        let mut request = [0; FRAME_HEADER];
        stream.read_exact(&mut request).unwrap();
        let request = FrameHeader::read_from_bytes(&request).unwrap();
        if request.request.get() == 0 {
            // A message of one that has heard its yes before the others have asked.
            let mut message = vec![0; usize::try_from(request.payload.get()).unwrap()];
            stream.read_exact(&mut message).unwrap();
            continue;
        }
        assert_eq!(request.payload.get(), 0);
        said += 1;
        let reply = FrameHeader {
            kind: FrameKind::Reply as u8,
            ..request
        };
        stream.write_all(reply.as_bytes()).unwrap();
    }
    stream
}

#[test]
fn a_node_that_reads_nothing_holds_back_only_those_who_send_to_it() {
    const SENDERS: u64 = 6;
    let _alone = alone();
    let nodes = rig::tcp(&[POOL; 2]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nodes[1].agent.local_address().unwrap().port();
    let deaf_port = listener.local_addr().unwrap().port();
    let peers = [info(index(1), port), info(index(2), deaf_port)];
    nodes[0].agent.set_peers(&peers);
    let owned = channel(&far, 4);
    let remote = seen_by(&near, owned.descriptor());
    let mut descriptor = owned.descriptor();
    descriptor.object.node = index(2);
    let before = allocated();
    std::thread::scope(|scope| {
        let near = &near;
        let send = move |n| {
            let channel = seen_by(near, descriptor);
            let bytes = [7; 4096];
            let fails = |hint: &u64| post(&channel, &bytes, *hint).is_err();
            assert!((0..20_000).any(|hint| fails(&hint)), "sender {n}");
            // What comes next is as hopeless.
            channel.send(b"more", 0, watched()).unwrap_err().code()
        };
        let senders: Vec<_> = (0..SENDERS).map(|n| scope.spawn(move || send(n))).collect();
        let stream = deaf(&listener, index(2), SENDERS);
        until("all senders wait", || {
            nodes[0].stats().pending == SENDERS && nodes[0].stats().messages_sent > 1000
        });
        let needs = since(before);
        assert!(needs <= SENDERS * CREDIT * 5 / 4, "{needs} bytes");
        for n in 0..100 {
            remote.send(b"passes", n, watched()).unwrap();
            assert_eq!(owned.receive(watched()).unwrap().hint(), n);
        }
        // It ends: so does each of them, with a named error.
        drop(listener);
        drop(stream);
        for sender in senders {
            assert_eq!(sender.join().unwrap(), Code::Unreachable);
        }
    });
    assert_eq!(nodes[0].stats().pending, 0);
    until("nothing is kept", || since(before) < 200_000);
}

/// Answers each request with its own payload.
struct Echo {
    answers: Arc<AtomicU64>,
    ups: Arc<AtomicU64>,
}

impl Handler for Echo {
    fn land(&mut self, _: &Arc<dyn Link>, header: &FrameHeader) -> Option<Body> {
        let length = usize::try_from(header.payload.get()).unwrap();
        Some(Body::Bytes(vec![0; length]))
    }

    fn frame(&mut self, link: &Arc<dyn Link>, header: &FrameHeader, payload: Incoming<'_>) {
        let body = match payload {
            Incoming::Small(bytes) => Body::Bytes(bytes.to_vec()),
            Incoming::Landed(body) => body,
            Incoming::Skipped(_) => panic!("there is memory for all"),
        };
        if header.kind == FrameKind::Request as u8 {
            let kind = FrameKind::Reply as u8;
            let header = FrameHeader { kind, ..*header };
            // A closed link is missed in the end.
            let _ = link.submit(Frame { header, body });
        } else {
            self.answers.fetch_add(1, Ordering::Release);
        }
    }

    fn up(&mut self, _: &Arc<dyn Link>) {
        self.ups.fetch_add(1, Ordering::Release);
    }

    // Those that are lost are missed in the end.
    fn lost(&mut self, link: &Arc<dyn Link>, _: bool, reason: &LinkError, _: Vec<Frame>) {
        eprintln!("lost {}: {reason}", link.node());
    }
}

/// A fabric that echoes, with its thread and counts of answers and links.
struct Echoing {
    fabric: Arc<TcpFabric>,
    answers: Arc<AtomicU64>,
    ups: Arc<AtomicU64>,
    number: rustix::process::Pid,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Echoing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.fabric.wake();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn echoing(n: u32, encrypt: bool) -> Echoing {
    let mut config = TcpConfig::new(node(n), key());
    config.encrypt = encrypt;
    // On a machine that has other things to do, too.
    config.handshake_s = 60;
    config.listen = vec![Ipv4Addr::LOCALHOST.into()];
    let fabric = Arc::new(TcpFabric::bind(config).unwrap());
    let (answers, ups) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (io, mut echo) = (
        Arc::clone(&fabric),
        Echo {
            answers: Arc::clone(&answers),
            ups: Arc::clone(&ups),
        },
    );
    let (tell, told) = std::sync::mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        tell.send(rustix::thread::gettid()).unwrap();
        while !end.load(Ordering::Acquire) {
            io.progress(&mut echo, u64::MAX).unwrap();
        }
    });
    Echoing {
        fabric,
        answers,
        ups,
        number: told.recv().unwrap(),
        stop,
        thread: Some(thread),
    }
}

/// What each link carries before it is idle: some frames of each size.
const LOAD: [usize; 4] = [9000, 4096, 900, 0];
const BURST: u64 = 3;

impl Echoing {
    /// Opens a link to each, one after the other; sends the load on it, and waits for all answers.
    fn link_to(&self, peers: Vec<PeerAddress>) {
        let nodes: Vec<NodeIndex> = peers.iter().map(|p| p.node).collect();
        self.fabric.set_peers(peers);
        for (node, links) in nodes.iter().zip(1..) {
            let link = self.fabric.link(*node).unwrap();
            for size in LOAD {
                for n in 0..BURST {
                    let header = FrameHeader {
                        payload: (size as u64).into(),
                        ..header(FrameKind::Request, n)
                    };
                    let body = Body::Bytes(vec![1; size]);
                    link.submit(Frame { header, body }).unwrap();
                }
            }
            let all = links * LOAD.len() as u64 * BURST;
            let answers = || self.answers.load(Ordering::Acquire);
            until("all answers", || answers() == all);
        }
    }

    fn switches(&self) -> u64 {
        let thread = self.number.as_raw_nonzero();
        let path = format!("/proc/self/task/{thread}/status");
        let status = std::fs::read_to_string(path).unwrap();
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        let numbers = lines.map(|line| line.split_whitespace().last().unwrap().parse::<u64>());
        numbers.map(Result::unwrap).sum()
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "that nothing happens meanwhile is what is shown"
)]
fn idle_for(time: Duration) {
    std::thread::sleep(time);
}

fn at(n: u32, port: u16) -> PeerAddress {
    PeerAddress {
        node: node(n),
        addresses: vec![(Ipv4Addr::LOCALHOST, port).into()],
    }
}

const PEERS: u32 = 64;
const HUB: &str = "DRAGON_TEST_HUB";

/// The peers of the test below, in a process of their own: only its parent gives it something to do.
#[test]
fn peers_of_the_hub() {
    let Ok(hub) = std::env::var(HUB) else { return };
    let (port, encrypt) = hub.split_once(' ').unwrap();
    let (port, encrypt) = (port.parse().unwrap(), encrypt == "true");
    with_all_descriptors();
    let peers: Vec<Echoing> = (1..=PEERS).map(|n| echoing(n, encrypt)).collect();
    let ports = peers
        .iter()
        .map(|p| p.fabric.local_address().unwrap().port().to_string());
    println!("\nports {}", ports.collect::<Vec<_>>().join(" "));
    for peer in &peers {
        peer.link_to(vec![at(0, port)]);
    }
    println!("\nidle");
    // The parent closes it.
    let _ = std::io::stdin().read(&mut [0]);
}

fn with_all_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, all).unwrap();
}

#[test]
fn an_idle_peer_needs_20_kb_at_most_and_wakes_nobody() {
    let _alone = alone();
    with_all_descriptors();
    for encrypt in [false, true] {
        let hub = echoing(0, encrypt);
        let before = allocated();
        let port = hub.fabric.local_address().unwrap().port();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["peers_of_the_hub", "--exact", "--nocapture"])
            .env(HUB, format!("{port} {encrypt}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line = |prefix: &str| {
            let found = lines.find_map(|l| l.unwrap().strip_prefix(prefix).map(str::to_owned));
            found.unwrap_or_else(|| panic!("the peers did not say '{prefix}'"))
        };
        let ports = line("ports ");
        let ports = (1..).zip(ports.split(' '));
        hub.link_to(
            ports
                .map(|(n, port)| at(n, port.parse().unwrap()))
                .collect(),
        );
        line("idle");
        assert_eq!(hub.ups.load(Ordering::Acquire), 2 * u64::from(PEERS));
        let quiet = || {
            let before = hub.switches();
            idle_for(Duration::from_millis(1500));
            hub.switches() == before
        };
        until(
            "the last acknowledgements have come, and room was given up",
            quiet,
        );
        let each = since(before) / u64::from(PEERS);
        println!("encrypt {encrypt}: {each} bytes for each peer");
        assert!(each <= 20_000, "{each} bytes for each peer");
        // Quiet for longer than any probe: nobody wakes up for a peer that has nothing to say.
        let then = hub.switches();
        idle_for(Duration::from_secs(2));
        assert_eq!(hub.switches(), then);
        assert_eq!(hub.fabric.stats().links, 2 * u64::from(PEERS));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
