//! Whoever does not know the key gets nothing and keeps nobody out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dragon_protocol::NodeIndex;
use dragon_protocol::handshake::{ANSWER, Connector, Role};
use dragon_protocol::key::JobKey;
use dragon_protocol::wire::{FrameHeader, FrameKind};
use dragon_transport::Body;
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::fabric::{Fabric, Frame, Handler, Incoming, Link, LinkError, PeerAddress};
use zerocopy::FromZeros;

const WATCHDOG: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Seen {
    up: u64,
    frames: u64,
    lost: Vec<String>,
}

type Shared = Arc<(Mutex<Seen>, Condvar)>;

struct Watcher(Shared);

impl Handler for Watcher {
    fn land(&mut self, _: &Arc<dyn Link>, _: &FrameHeader) -> Option<Body> {
        None
    }

    fn frame(&mut self, _: &Arc<dyn Link>, _: &FrameHeader, _: Incoming<'_>) {
        self.0.0.lock().unwrap().frames += 1;
    }

    fn up(&mut self, _: &Arc<dyn Link>) {
        self.0.0.lock().unwrap().up += 1;
        self.0.1.notify_all();
    }

    fn lost(&mut self, _: &Arc<dyn Link>, _: bool, reason: &LinkError, _: Vec<Frame>) {
        self.0.0.lock().unwrap().lost.push(reason.to_string());
    }
}

struct Victim {
    fabric: Arc<TcpFabric>,
    seen: Shared,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Victim {
    fn start(change: impl FnOnce(&mut TcpConfig)) -> Self {
        let mut config = TcpConfig::new(NodeIndex::FIRST, key());
        change(&mut config);
        let fabric = Arc::new(TcpFabric::bind(config).unwrap());
        let seen = Shared::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (io, end, mut watcher) = (
            Arc::clone(&fabric),
            Arc::clone(&stop),
            Watcher(Arc::clone(&seen)),
        );
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Acquire) {
                io.progress(&mut watcher, u64::MAX).unwrap();
            }
        });
        Self {
            fabric,
            seen,
            stop,
            thread: Some(thread),
        }
    }

    fn port(&self) -> u16 {
        self.fabric.local_address().unwrap().port()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        stream
    }

    fn wait_until_up(&self, count: u64) {
        let seen = self.seen.0.lock().unwrap();
        let waited = self
            .seen
            .1
            .wait_timeout_while(seen, WATCHDOG, |seen| seen.up < count);
        assert!(!waited.unwrap().1.timed_out(), "no link came up");
    }

    fn saw_nothing(&self) {
        let seen = self.seen.0.lock().unwrap();
        assert_eq!((seen.up, seen.frames, seen.lost.len()), (0, 0, 0));
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.fabric.wake();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn key() -> JobKey {
    JobKey::from_hex(&"5a".repeat(32)).unwrap()
}

fn node(n: u32) -> NodeIndex {
    NodeIndex::new(n).unwrap()
}

fn hello(key: &JobKey) -> Connector {
    Connector::new(key, Role::Data, node(1), NodeIndex::FIRST, 1, [9; 32])
}

/// What opens a new link, after the proof.
fn open(number: u64) -> [u8; 80] {
    let header = FrameHeader {
        kind: FrameKind::Open as u8,
        request: number.into(),
        arg1: 1.into(),
        ..FrameHeader::new_zeroed()
    };
    zerocopy::transmute!(header)
}

/// Reads until the other side closes; a reset counts as closed.
fn closed(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
    bytes
}

#[test]
fn noise_is_answered_with_a_closed_connection() {
    let victim = Victim::start(|_| {});
    for noise in [&b"GET / HTTP/1.1\r\n"[..], &[0; 4096], &[0xff; 100_000]] {
        let mut stream = victim.connect();
        // The victim may close while the noise is still being written.
        let _ = stream.write_all(noise);
        let _ = stream.write_all(&[b'x'; 100]);
        assert_eq!(closed(stream), b"");
    }
    victim.saw_nothing();
    assert_eq!(victim.fabric.stats().refused, 3);
    assert_eq!(victim.fabric.stats().half_open, 0);
}

#[test]
fn silence_is_ended_by_the_deadline() {
    let victim = Victim::start(|config| config.handshake_s = 1);
    let silent = victim.connect();
    let mut slow = victim.connect();
    slow.write_all(&hello(&key()).hello()[..40]).unwrap();
    assert_eq!(closed(silent), b"");
    assert_eq!(closed(slow), b"");
    victim.saw_nothing();
    assert_eq!(victim.fabric.stats().half_open, 0);
}

#[test]
fn a_wrong_key_gets_no_further() {
    let victim = Victim::start(|_| {});
    let wrong = JobKey::from_hex(&"11".repeat(32)).unwrap();
    let mut stream = victim.connect();
    let connector = hello(&wrong);
    stream.write_all(&connector.hello()).unwrap();
    let mut answer = [0; ANSWER];
    stream.read_exact(&mut answer).unwrap();
    assert!(connector.answer(&answer, 1).is_err());
    stream.write_all(&[0x77; 112]).unwrap();
    stream.write_all(&[1; 800]).unwrap_or(());
    assert_eq!(closed(stream), b"");
    victim.saw_nothing();
}

#[test]
fn a_recorded_proof_is_of_no_use() {
    let victim = Victim::start(|_| {});
    let mut stream = victim.connect();
    let connector = hello(&key());
    let first = connector.hello();
    stream.write_all(&first).unwrap();
    let mut answer = [0; ANSWER];
    stream.read_exact(&mut answer).unwrap();
    let (proof, _) = connector.answer(&answer, 1).unwrap();
    stream.write_all(&proof).unwrap();
    stream.write_all(&open(7)).unwrap();
    victim.wait_until_up(1);
    // That one stands. The same bytes once more do not.
    let mut replay = victim.connect();
    replay.write_all(&first).unwrap();
    replay.read_exact(&mut answer).unwrap();
    replay.write_all(&proof).unwrap();
    replay.write_all(&open(7)).unwrap_or(());
    assert_eq!(closed(replay), b"");
    assert_eq!(victim.fabric.stats().accepted, 1);
}

#[test]
fn a_malformed_frame_of_a_proved_peer_closes_its_connection() {
    for spoil in [
        |header: &mut [u8; 80]| header[0] = 99,
        |header: &mut [u8; 80]| header[64..72].copy_from_slice(&u64::MAX.to_le_bytes()),
    ] {
        let victim = Victim::start(|_| {});
        let mut stream = victim.connect();
        let connector = hello(&key());
        stream.write_all(&connector.hello()).unwrap();
        let mut answer = [0; ANSWER];
        stream.read_exact(&mut answer).unwrap();
        stream
            .write_all(&connector.answer(&answer, 1).unwrap().0)
            .unwrap();
        stream.write_all(&open(7)).unwrap();
        stream.read_exact(&mut [0; 80]).unwrap();
        let mut header = [0; 80];
        header[0] = 1;
        spoil(&mut header);
        stream.write_all(&header).unwrap();
        assert_eq!(closed(stream), b"");
        let seen = victim.seen.0.lock().unwrap();
        assert_eq!((seen.up, seen.frames), (1, 0));
        assert!(seen.lost[0].contains("malformed"), "{:?}", seen.lost);
    }
}

#[test]
fn a_flood_of_silent_connections_keeps_nobody_out() {
    let victim = Victim::start(|config| config.half_open = 8);
    let flood: Vec<TcpStream> = (0..40).map(|_| victim.connect()).collect();
    let friend = Victim::start(|config| config.node = node(1));
    friend.fabric.set_peers(vec![PeerAddress {
        node: NodeIndex::FIRST,
        addresses: vec![(std::net::Ipv4Addr::LOCALHOST, victim.port()).into()],
    }]);
    let _link = friend.fabric.link(NodeIndex::FIRST).unwrap();
    victim.wait_until_up(1);
    friend.wait_until_up(1);
    // The oldest are closed without a word; at most eight of the flood stay until their deadline.
    for stream in flood.into_iter().take(30) {
        assert_eq!(closed(stream), b"");
    }
    let mut late = victim.connect();
    late.write_all(b"noise").unwrap();
    late.write_all(&[0; 80]).unwrap_or(());
    assert_eq!(closed(late), b"");
    assert_eq!(victim.fabric.stats().accepted, 1);
    assert!(victim.fabric.stats().half_open <= 8);
}
