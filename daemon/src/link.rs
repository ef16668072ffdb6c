//! Control connections between two daemons: handshake, then framed [`PeerMessage`]s both ways.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dragon_protocol::control::PeerMessage;
use dragon_protocol::frame::FrameError;
use dragon_protocol::handshake::{ANSWER, Acceptor, Connector, HELLO, PROOF, Role};
use dragon_protocol::key::JobKey;
use dragon_protocol::{NodeIndex, frame};
use dragon_transport::strangers::HANDSHAKE;
use rustix::net::sockopt;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};

use crate::listener::NOWHERE;
use crate::output::Sink;
use crate::services::Event;

/// The sending half of a connection to another daemon.
///
/// What daemons tell each other and what processes write share the connection and nothing else: output waits for room at the
/// other end, and never before a message that is no output.
#[derive(Clone, Debug)]
pub struct Link {
    /// The other node.
    pub node: NodeIndex,
    /// Our address on this connection, and the peer's.
    pub addresses: (SocketAddr, SocketAddr),
    /// Frames. An empty one ends the connection.
    control: mpsc::UnboundedSender<Vec<u8>>,
    /// Bytes in `control`.
    waiting: Arc<AtomicUsize>,
    /// Frames of output.
    output: mpsc::Sender<Vec<u8>>,
    /// Bytes of output for which the other end has room.
    room: Arc<Semaphore>,
}

/// Output that a node takes from one below it before it has passed it on.
const WINDOW: usize = 512 << 10;
/// Frames of output that wait to be written: the window bounds their bytes.
const OUTPUTS: usize = 4;
/// Room is given back in parts of the window that are no smaller, while there is more to pass on.
const PART: usize = WINDOW / 4;
/// A peer that leaves so many bytes unread is no peer any more.
const LONGEST_QUEUE: usize = 256 << 20;

impl Link {
    /// Sends output, waiting until the other end has room for it: that is the back-pressure.
    ///
    /// # Errors
    /// The bytes, when the connection has ended; its reader reports that.
    pub async fn send_output(&self, is_error: bool, bytes: Vec<u8>) -> Result<(), Vec<u8>> {
        let Ok(room) = self.room.acquire_many(cost(bytes.len())).await else {
            return Err(bytes);
        };
        room.forget();
        let mut frame = Vec::with_capacity(bytes.len() + 16);
        match encode(&PeerMessage::Output(is_error, bytes), &mut frame) {
            Ok(()) => drop(self.output.send(frame).await),
            Err(error) => tracing::error!("output is lost: {error}"),
        }
        Ok(())
    }

    /// Waits until the other end has passed on all output.
    pub async fn output_passed_on(&self) {
        drop(self.room.acquire_many(cost(WINDOW)).await);
    }

    /// Queues a message without waiting: the control loop never does. A peer that takes nothing for long is given up.
    pub fn post(&self, message: PeerMessage) {
        let mut frame = Vec::new();
        // An answer that is too long for a frame is told to be, and nothing else is harmed.
        let encoded = encode(&message, &mut frame).or_else(|error| {
            let instead = message.in_place_of(&error).ok_or(error)?;
            encode(&instead, &mut frame)
        });
        if let Err(error) = encoded {
            tracing::error!(node = %self.node, "the control connection ends: {error}");
            return self.close();
        }
        let waiting = self.waiting.fetch_add(frame.len(), Ordering::Relaxed);
        if waiting > LONGEST_QUEUE {
            tracing::error!(node = %self.node, "the control connection ends: {waiting} bytes wait, and the other end takes none");
            return self.close();
        }
        // A closed queue means that the connection ended; its reader reports that.
        let _ = self.control.send(frame);
    }

    /// Ends the connection behind what is queued.
    pub fn close(&self) {
        let _ = self.control.send(Vec::new());
    }
}

/// What a piece of output takes of the window. No piece is longer, and if it were it would have it for itself.
fn cost(bytes: usize) -> u32 {
    u32::try_from(bytes.min(WINDOW)).unwrap_or(u32::MAX)
}

/// Messages that this process has sent and received over control connections, but for heartbeats and what else the members
/// say to each other whatever happens. Only counted, never decided upon.
static SENT: AtomicU64 = AtomicU64::new(0);
static RECEIVED: AtomicU64 = AtomicU64::new(0);

/// How many messages this daemon has sent to others, and how many it has received from them.
#[must_use]
pub fn counted() -> (u64, u64) {
    (
        SENT.load(Ordering::Relaxed),
        RECEIVED.load(Ordering::Relaxed),
    )
}

fn count(message: &PeerMessage, counter: &AtomicU64) {
    if !matches!(message, PeerMessage::Member(_)) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Adds a message to `bytes`, from where it is sent.
///
/// # Errors
/// When it is longer than a frame.
pub fn encode(message: &PeerMessage, bytes: &mut Vec<u8>) -> Result<(), FrameError> {
    frame::encode(message, bytes)?;
    count(message, &SENT);
    Ok(())
}

/// Connects to another daemon and proves the key both ways.
///
/// # Errors
/// When the connection cannot be made or the handshake fails.
pub async fn connect(
    key: &JobKey,
    me: NodeIndex,
    to: NodeIndex,
    host: &str,
    port: u16,
) -> Result<TcpStream> {
    connect_as(Role::Control, key, me, to, (host, port)).await
}

/// The same in a role; what joins is encrypted.
///
/// # Errors
/// As [`connect`].
pub async fn connect_as(
    role: Role,
    key: &JobKey,
    me: NodeIndex,
    to: NodeIndex,
    address: (&str, u16),
) -> Result<TcpStream> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let connector = Connector::new(key, role, me, to, now(), challenge()?);
        let connector = connector.encrypted(role == Role::Join);
        stream.write_all(&connector.hello()).await?;
        let mut answer = [0; ANSWER];
        stream.read_exact(&mut answer[..HELLO]).await?;
        if let Err(error) = stream.read_exact(&mut answer[HELLO..]).await {
            let hello = answer.first_chunk().filter(|_| is_end(&error));
            return Err(hello.map_or(error.into(), |hello| connector.refused(hello).into()));
        }
        let (proof, _) = connector.answer(&answer, now())?;
        stream.write_all(&proof).await?;
        Ok(stream)
    };
    tokio::time::timeout(HANDSHAKE, exchange)
        .await
        .context("no answer to the handshake")?
}

/// Lets another daemon prove itself; everything else is closed.
///
/// # Errors
/// When the peer does not complete the handshake in time.
pub async fn accept(key: &JobKey, me: NodeIndex, stream: &mut TcpStream) -> Result<NodeIndex> {
    accept_as(Role::Control, key, me, stream).await
}

/// The same in a role; what joins is encrypted.
///
/// # Errors
/// As [`accept`].
pub async fn accept_as(
    role: Role,
    key: &JobKey,
    me: NodeIndex,
    stream: &mut TcpStream,
) -> Result<NodeIndex> {
    let encrypt = role == Role::Join;
    let exchange = async {
        stream.set_nodelay(true)?;
        let mut hello = [0; HELLO];
        stream.read_exact(&mut hello).await?;
        let (now, challenge) = (now(), challenge()?);
        let accepted = Acceptor::with_encryption(key, role, me, &hello, now, challenge, encrypt);
        let (acceptor, answer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(ours) = Acceptor::refusal(role, me, &hello, now, encrypt) {
                    stream.write_all(&ours).await?;
                }
                return Err(error.into());
            }
        };
        stream.write_all(&answer).await?;
        let mut proof = [0; PROOF];
        stream.read_exact(&mut proof).await?;
        Ok(acceptor.finish(&proof)?.node)
    };
    tokio::time::timeout(HANDSHAKE, exchange)
        .await
        .context("the handshake was not completed in time")?
}

/// A connection that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Our address on it, and the peer's.
    pub addresses: (SocketAddr, SocketAddr),
    /// The other host answered no more; else the other end has closed it.
    pub silent: bool,
}

/// Starts the tasks of a connection: what arrives goes to `events`, and so does its end. Output goes straight to `sink`;
/// what that has no room for waits here, up to a bound, then at the other end, and the writing processes wait in the end.
/// One that is gone already ends like any other; one to a host that is silent for longer than `patience` ends too.
pub fn run(
    node: NodeIndex,
    stream: TcpStream,
    sink: Option<Sink>,
    patience: Duration,
    events: &mpsc::Sender<Event>,
) -> Link {
    let addresses = (
        stream.local_addr().unwrap_or(NOWHERE),
        stream.peer_addr().unwrap_or(NOWHERE),
    );
    if let Err(error) = notice_dead_hosts(&stream, patience) {
        tracing::debug!(%node, "a control connection without keepalive: {error:#}");
    }
    let (read, write) = stream.into_split();
    let (control, messages) = mpsc::unbounded_channel();
    let (output, outputs) = mpsc::channel(OUTPUTS);
    let link = Link {
        node,
        addresses,
        control,
        waiting: Arc::default(),
        output,
        room: Arc::new(Semaphore::new(WINDOW)),
    };
    let silent = Arc::new(AtomicBool::new(false));
    let written = write_frames(write, messages, link.waiting.clone(), outputs);
    let unheard = silent.clone();
    tokio::spawn(async move {
        if let Err(error) = written.await {
            // The kernel says it once: to whoever reads or to whoever writes.
            unheard.fetch_or(is_silence(&error), Ordering::Relaxed);
        }
    });
    let room = link.room.clone();
    let passed_on = sink.map(|sink| pass_on(sink, &link));
    let events = events.clone();
    tokio::spawn(async move {
        if let Err(error) = read_frames(node, read, passed_on, &room, &events).await {
            tracing::debug!(%node, "control connection ended: {error:#}");
            let of_system = error.downcast_ref::<io::Error>();
            silent.fetch_or(of_system.is_some_and(is_silence), Ordering::Relaxed);
        }
        room.close();
        let ended = Ended {
            addresses,
            silent: silent.load(Ordering::Relaxed),
        };
        let _ = events.send(Event::LinkLost(node, ended)).await;
    });
    link
}

/// A host that is gone sends nothing, not even a reset: the kernel asks, without waking anybody here. With a timeout for
/// what was sent it counts that time, and no probes.
///
/// # Errors
/// When the kernel does not.
pub fn notice_dead_hosts(stream: &TcpStream, patience: Duration) -> Result<()> {
    let second = Duration::from_secs(1);
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, (patience / 4).max(second))?;
    sockopt::set_tcp_keepintvl(stream, second)?;
    let patience = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, patience)?;
    Ok(())
}

/// Whether an error says that the other host does not answer.
fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(
        error.kind(),
        TimedOut | HostUnreachable | NetworkUnreachable
    )
}

/// What came and was not passed on yet.
struct Backlog {
    pieces: mpsc::UnboundedSender<(bool, Vec<u8>)>,
    bytes: Arc<AtomicUsize>,
}

/// Starts to pass on output from below, and to give room for more back. Whatever the sink does, the connection is read.
fn pass_on(sink: Sink, link: &Link) -> Backlog {
    let (pieces, mut queue) = mpsc::unbounded_channel::<(bool, Vec<u8>)>();
    let bytes = Arc::new(AtomicUsize::new(0));
    let (link, backlog) = (link.clone(), bytes.clone());
    tokio::spawn(async move {
        let mut passed = 0;
        while let Some((is_error, piece)) = queue.recv().await {
            let cost = cost(piece.len()) as usize;
            sink.write(is_error, piece).await;
            backlog.fetch_sub(cost, Ordering::Relaxed);
            passed += cost;
            if queue.is_empty() || passed >= PART {
                // Its part of the window was at most all of it.
                link.post(PeerMessage::Room(u32::try_from(passed).unwrap_or(0)));
                passed = 0;
            }
        }
    });
    Backlog { pieces, bytes }
}

async fn read_frames(
    node: NodeIndex,
    mut stream: OwnedReadHalf,
    below: Option<Backlog>,
    room: &Semaphore,
    events: &mpsc::Sender<Event>,
) -> Result<()> {
    loop {
        let message = match (read_message(&mut stream).await?, &below) {
            (PeerMessage::Output(is_error, piece), Some(backlog)) => {
                let cost = cost(piece.len()) as usize;
                let before = backlog.bytes.fetch_add(cost, Ordering::Relaxed);
                ensure!(
                    before + cost <= WINDOW,
                    "more output than there is room for"
                );
                let _ = backlog.pieces.send((is_error, piece));
                continue;
            }
            (PeerMessage::Room(bytes), None) => {
                let more = bytes as usize;
                ensure!(
                    more <= WINDOW - room.available_permits(),
                    "more room than was taken"
                );
                room.add_permits(more);
                continue;
            }
            (message, _) => message,
        };
        if events.send(Event::Peer(node, message)).await.is_err() {
            bail!("the daemon is ending");
        }
    }
}

/// Reads one message of another daemon.
///
/// # Errors
/// At end of file, or when the bytes are no message.
pub async fn read_message(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<PeerMessage> {
    let message = read_frame(stream).await?;
    count(&message, &RECEIVED);
    Ok(message)
}

/// Reads one frame.
///
/// # Errors
/// At end of file, or when the bytes are no message.
pub async fn read_frame<T: DeserializeOwned>(
    stream: &mut (impl AsyncReadExt + Unpin),
) -> Result<T> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let mut body = vec![0; frame::body_length(head)?];
    stream.read_exact(&mut body).await?;
    Ok(frame::decode(&body)?)
}

async fn write_frames(
    mut stream: OwnedWriteHalf,
    mut control: mpsc::UnboundedReceiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    mut outputs: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut ends = false;
    while !ends {
        let mut buffer = tokio::select! {
            biased;
            frame = control.recv() => frame.unwrap_or_default(),
            Some(piece) = outputs.recv() => {
                stream.write_all(&piece).await?;
                continue;
            }
        };
        ends = buffer.is_empty();
        let mut taken = buffer.len();
        // What else is queued already goes out in the same write.
        while !ends && let Ok(frame) = control.try_recv() {
            ends = frame.is_empty();
            taken += frame.len();
            buffer.extend_from_slice(&frame);
        }
        stream.write_all(&buffer).await?;
        waiting.fetch_sub(taken, Ordering::Relaxed);
    }
    stream.shutdown().await
}

/// This node's monotonic clock in nanoseconds.
#[must_use]
pub fn now() -> u64 {
    dragon_shmem::clock::now()
}

fn is_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

fn challenge() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("no random numbers from the kernel")?;
    Ok(bytes)
}
