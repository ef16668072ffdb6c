//! A node of which a test has the wire: raw connections to it, with and without the key, plain and encrypted.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use dragon_protocol::handshake::{ANSWER, Acceptor, Connector, HELLO, PROOF, Role};
use dragon_protocol::key::JobKey;
use dragon_protocol::wire::{FRAME_HEADER, FrameHeader, FrameKind};
use dragon_protocol::{Code, NodeIndex};
use dragon_transport::Body;
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::fabric::{Fabric, Frame, Handler, Incoming, Link, LinkError, PeerAddress};
use tracing::dispatcher;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// A test that hangs is ended by this; nothing is ever expected to take this long.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(120);

/// What a fabric told of.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) up: u64,
    /// Number and payload of each frame.
    pub(crate) frames: Vec<(u64, Vec<u8>)>,
    pub(crate) lost: Vec<String>,
    /// Those that came up.
    pub(crate) links: Vec<Arc<dyn Link>>,
}

type Shared = Arc<(Mutex<Seen>, Condvar)>;

struct Watcher(Shared);

impl Watcher {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }
}

impl Handler for Watcher {
    fn land(&mut self, _: &Arc<dyn Link>, header: &FrameHeader) -> Option<Body> {
        // Hostile lengths get no memory.
        let length = usize::try_from(header.payload.get()).unwrap();
        (length <= 1 << 20).then(|| Body::Bytes(vec![0; length]))
    }

    fn frame(&mut self, _: &Arc<dyn Link>, header: &FrameHeader, payload: Incoming<'_>) {
        let bytes = match payload {
            Incoming::Small(bytes) => bytes.to_vec(),
            Incoming::Landed(body) => body.to_vec(),
            Incoming::Skipped(_) => Vec::new(),
        };
        self.note(|seen| seen.frames.push((header.request.get(), bytes)));
    }

    fn up(&mut self, link: &Arc<dyn Link>) {
        self.note(|seen| {
            seen.up += 1;
            seen.links.push(Arc::clone(link));
        });
    }

    fn lost(&mut self, _: &Arc<dyn Link>, _: bool, reason: &LinkError, _: Vec<Frame>) {
        self.note(|seen| seen.lost.push(reason.to_string()));
    }
}

/// Takes no notice of anything.
pub(crate) struct Deaf;

impl Handler for Deaf {
    fn land(&mut self, _: &Arc<dyn Link>, _: &FrameHeader) -> Option<Body> {
        None
    }

    fn frame(&mut self, _: &Arc<dyn Link>, _: &FrameHeader, _: Incoming<'_>) {}

    fn up(&mut self, _: &Arc<dyn Link>) {}

    fn lost(&mut self, _: &Arc<dyn Link>, _: bool, _: &LinkError, _: Vec<Frame>) {}
}

/// A fabric with its I/O thread.
pub(crate) struct Victim {
    pub(crate) fabric: Arc<TcpFabric>,
    node: NodeIndex,
    encrypt: bool,
    seen: Shared,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Victim {
    pub(crate) fn start(change: impl FnOnce(&mut TcpConfig)) -> Self {
        let mut config = TcpConfig::new(NodeIndex::FIRST, key());
        change(&mut config);
        let (node, encrypt) = (config.node, config.encrypt);
        let fabric = Arc::new(TcpFabric::bind(config).unwrap());
        let seen = Shared::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (io, end, mut watcher) = (
            Arc::clone(&fabric),
            Arc::clone(&stop),
            Watcher(Arc::clone(&seen)),
        );
        // What it logs goes where its maker's log goes.
        let log = dispatcher::get_default(Clone::clone);
        let thread = std::thread::spawn(move || {
            let _log = dispatcher::set_default(&log);
            while !end.load(Ordering::Acquire) {
                io.progress(&mut watcher, u64::MAX).unwrap();
            }
        });
        Self {
            fabric,
            node,
            encrypt,
            seen,
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.fabric.local_address().unwrap().port()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.port())
    }

    /// Opens a link to another one, and waits until it stands.
    pub(crate) fn link_to(&self, other: &Self) -> Arc<dyn Link> {
        self.fabric.set_peers(vec![PeerAddress {
            node: other.node,
            addresses: vec![(std::net::Ipv4Addr::LOCALHOST, other.port()).into()],
        }]);
        let link = self.fabric.link(other.node).unwrap();
        self.wait_for("a link", |seen| seen.up == 1);
        link
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.0.lock().unwrap()
    }

    pub(crate) fn wait_for(&self, what: &str, there: impl Fn(&Seen) -> bool) {
        let waited = self
            .seen
            .1
            .wait_timeout_while(self.seen(), WATCHDOG, |seen| !there(seen));
        let (seen, waited) = waited.unwrap();
        assert!(!waited.timed_out(), "never: {what}; there is {seen:?}");
    }

    pub(crate) fn saw_nothing(&self) {
        let seen = self.seen();
        assert_eq!((seen.up, seen.frames.len(), seen.lost.len()), (0, 0, 0));
    }

    /// A raw connection of that node with which a link stands.
    pub(crate) fn raw(&self, from: u32, open: FrameHeader) -> (Raw, FrameHeader) {
        Raw::stand(self.port(), from, self.encrypt, open)
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

pub(crate) fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(WATCHDOG)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

pub(crate) fn key() -> JobKey {
    JobKey::from_hex(&"5a".repeat(32)).unwrap()
}

pub(crate) fn node(n: u32) -> NodeIndex {
    NodeIndex::new(n).unwrap()
}

pub(crate) fn hello(key: &JobKey) -> Connector {
    Connector::new(key, Role::Data, node(1), NodeIndex::FIRST, 1, [9; 32])
}

pub(crate) fn header(kind: FrameKind, request: u64) -> FrameHeader {
    FrameHeader {
        kind: kind as u8,
        request: request.into(),
        ..FrameHeader::new_zeroed()
    }
}

/// What opens a new link, after the proof.
pub(crate) fn open(number: u64) -> FrameHeader {
    FrameHeader {
        arg1: 1.into(),
        ..header(FrameKind::Open, number)
    }
}

/// What goes on with a link after `received` frames.
pub(crate) fn open_again(number: u64, received: u64) -> FrameHeader {
    FrameHeader {
        arg0: received.into(),
        ..header(FrameKind::Open, number)
    }
}

/// Reads until the other side closes; a reset counts as closed.
pub(crate) fn closed(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
    bytes
}

/// The next connection that comes to node `me`, of one that proves the key, and what it opens: the answer comes next.
pub(crate) fn accepted(listener: &TcpListener, me: NodeIndex) -> (TcpStream, FrameHeader) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    let mut hello = [0; HELLO];
    stream.read_exact(&mut hello).unwrap();
    let accepted = Acceptor::new(&key(), Role::Data, me, &hello, 1, [3; 32]);
    let (acceptor, answer) = accepted.unwrap();
    stream.write_all(&answer).unwrap();
    let mut message = [0; PROOF + FRAME_HEADER];
    stream.read_exact(&mut message).unwrap();
    let proof = message[..PROOF].try_into().unwrap();
    acceptor.finish(proof).unwrap();
    let open = FrameHeader::read_from_bytes(&message[PROOF..]).unwrap();
    (stream, open)
}

/// Answers what a connection opens; `received`: frames of the link that have come.
pub(crate) fn answer(stream: &mut TcpStream, open: &FrameHeader, code: Code, received: u64) {
    let answer = FrameHeader {
        status: code.to_i32().into(),
        arg0: received.into(),
        ..header(FrameKind::Open, open.request.get())
    };
    stream.write_all(answer.as_bytes()).unwrap();
}

/// A connection that has proved the key, byte by byte.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    seal: Option<Seal>,
}

/// The keys of an encrypted connection, and how many records were sent with them.
struct Seal {
    keys: snow::StatelessTransportState,
    sent: u64,
}

/// A connection whose proof comes next.
pub(crate) struct Greeted {
    pub(crate) stream: TcpStream,
    pub(crate) proof: [u8; 32],
    noise: Option<snow::HandshakeState>,
}

impl Greeted {
    pub(crate) fn new(port: u16, from: u32, encrypt: bool) -> Self {
        let key = key();
        let connector = Connector::new(&key, Role::Data, node(from), NodeIndex::FIRST, 1, [9; 32]);
        let connector = connector.encrypted(encrypt);
        let mut stream = connect(port);
        stream.write_all(&connector.hello()).unwrap();
        let mut answer = [0; ANSWER];
        stream.read_exact(&mut answer).unwrap();
        let (proof, _) = connector.answer(&answer, 1).unwrap();
        let noise = encrypt.then(|| {
            let shared = key.proof("encrypt", &[]);
            let pattern = "Noise_NNpsk0_25519_AESGCM_SHA256".parse().unwrap();
            let builder = snow::Builder::new(pattern).psk(0, &shared).unwrap();
            builder.build_initiator().unwrap()
        });
        Self {
            stream,
            proof,
            noise,
        }
    }

    /// What comes next: the proof, and the opening as it is on the wire.
    pub(crate) fn message(&mut self, open: &FrameHeader) -> Vec<u8> {
        let mut message = self.proof.to_vec();
        match &mut self.noise {
            None => message.extend_from_slice(open.as_bytes()),
            Some(noise) => {
                let mut sealed = [0; 200];
                let length = noise.write_message(open.as_bytes(), &mut sealed).unwrap();
                message.extend_from_slice(&sealed[..length]);
            }
        }
        message
    }

    /// Reads the answer to the opening.
    pub(crate) fn answered(mut self) -> (Raw, FrameHeader) {
        let mut answer = [0; FRAME_HEADER + 48];
        let seal = match self.noise.take() {
            None => {
                self.stream.read_exact(&mut answer[..FRAME_HEADER]).unwrap();
                None
            }
            Some(mut noise) => {
                self.stream.read_exact(&mut answer).unwrap();
                let message = answer;
                noise.read_message(&message, &mut answer).unwrap();
                let keys = noise.into_stateless_transport_mode().unwrap();
                Some(Seal { keys, sent: 0 })
            }
        };
        let header = FrameHeader::read_from_bytes(&answer[..FRAME_HEADER]).unwrap();
        let stream = self.stream;
        (Raw { stream, seal }, header)
    }
}

impl From<TcpStream> for Raw {
    /// One that is not encrypted.
    fn from(stream: TcpStream) -> Self {
        Self { stream, seal: None }
    }
}

impl Raw {
    pub(crate) fn stand(
        port: u16,
        from: u32,
        encrypt: bool,
        open: FrameHeader,
    ) -> (Self, FrameHeader) {
        let mut greeted = Greeted::new(port, from, encrypt);
        let message = greeted.message(&open);
        greeted.stream.write_all(&message).unwrap();
        greeted.answered()
    }

    /// The bytes as they are on the wire: themselves, or a record.
    pub(crate) fn sealed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Some(seal) = &mut self.seal else {
            return bytes.to_vec();
        };
        let mut record = vec![0; bytes.len() + 16];
        let sealed = seal.keys.write_message(seal.sent, bytes, &mut record);
        assert_eq!(sealed.unwrap(), record.len());
        seal.sent += 1;
        let length = u16::try_from(record.len()).unwrap().to_le_bytes();
        [&length[..], &record].concat()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let bytes = self.sealed(bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends these bytes of the wire, which the other side may refuse in the middle, and no more.
    pub(crate) fn send_last(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Sends more, which the other side may refuse in the middle.
    pub(crate) fn send_last_part(&mut self, bytes: &[u8]) {
        let bytes = self.sealed(bytes);
        let _ = self.stream.write_all(&bytes);
    }

    /// Closes it from this side, and waits for the other.
    pub(crate) fn closed_from_here(self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        closed(self.stream);
    }

    /// Waits for the end.
    pub(crate) fn closed(self) {
        closed(self.stream);
    }
}
