//! Control connections between two daemons: handshake, then framed [`PeerMessage`]s both ways.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dragon_protocol::control::PeerMessage;
use dragon_protocol::handshake::{ANSWER, Acceptor, Connector, HELLO, PROOF, Role};
use dragon_protocol::key::JobKey;
use dragon_protocol::{NodeIndex, frame};
use dragon_transport::strangers::HANDSHAKE;
use rustix::net::sockopt;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::output::Sink;
use crate::services::Event;

/// The sending half of a connection to another daemon.
#[derive(Clone, Debug)]
pub struct Link {
    /// The other node.
    pub node: NodeIndex,
    /// Our address on this connection, and the peer's.
    pub addresses: (SocketAddr, SocketAddr),
    queue: mpsc::Sender<PeerMessage>,
}

/// Messages that wait for a slow peer before their sender has to wait too.
const QUEUE: usize = 256;

impl Link {
    /// Queues a message, waiting while the queue is full: that is the back-pressure on output.
    pub async fn send(&self, message: PeerMessage) {
        // A closed queue means that the connection ended; its reader reports that.
        let _ = self.queue.send(message).await;
    }

    /// Queues a message without waiting for room: from the control loop, which never waits.
    pub fn post(&self, message: PeerMessage) {
        if let Err(mpsc::error::TrySendError::Full(message)) = self.queue.try_send(message) {
            let queue = self.queue.clone();
            tokio::spawn(async move { queue.send(message).await });
        }
    }
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
    let exchange = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let connector = Connector::new(key, Role::Control, me, to, now(), challenge()?);
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
    let exchange = async {
        stream.set_nodelay(true)?;
        let mut hello = [0; HELLO];
        stream.read_exact(&mut hello).await?;
        let accepted = Acceptor::new(key, Role::Control, me, &hello, now(), challenge()?);
        let (acceptor, answer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(ours) = Acceptor::refusal(Role::Control, me, &hello, now(), false) {
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

/// Starts the tasks of a connection: what arrives goes to `events`, and so does its end. Output goes straight to `sink`:
/// while that has no room nothing more is read from the connection, and the writing processes wait in the end.
///
/// # Errors
/// When the socket is already gone.
pub fn run(
    node: NodeIndex,
    stream: TcpStream,
    sink: Option<Sink>,
    events: &mpsc::Sender<Event>,
) -> Result<Link> {
    let addresses = (stream.local_addr()?, stream.peer_addr()?);
    notice_dead_hosts(&stream)?;
    let (read, write) = stream.into_split();
    let (queue, outgoing) = mpsc::channel(QUEUE);
    tokio::spawn(write_frames(write, outgoing));
    let events = events.clone();
    tokio::spawn(async move {
        if let Err(error) = read_frames(node, read, sink, &events).await {
            tracing::debug!(%node, "control connection ended: {error:#}");
        }
        let _ = events.send(Event::LinkLost(node, addresses)).await;
    });
    Ok(Link {
        node,
        addresses,
        queue,
    })
}

/// A host that is gone sends nothing, not even a reset: the kernel asks, without waking anybody here.
fn notice_dead_hosts(stream: &TcpStream) -> Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(stream, 5)?;
    sockopt::set_tcp_user_timeout(stream, 7000)?;
    Ok(())
}

async fn read_frames(
    node: NodeIndex,
    mut stream: OwnedReadHalf,
    sink: Option<Sink>,
    events: &mpsc::Sender<Event>,
) -> Result<()> {
    loop {
        let message = match (read_frame(&mut stream).await?, &sink) {
            (PeerMessage::Output(is_error, bytes), Some(sink)) => {
                sink.write(is_error, bytes).await;
                continue;
            }
            (message, _) => message,
        };
        if events.send(Event::Peer(node, message)).await.is_err() {
            bail!("the daemon is ending");
        }
    }
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

async fn write_frames(mut stream: OwnedWriteHalf, mut outgoing: mpsc::Receiver<PeerMessage>) {
    let mut buffer = Vec::new();
    while let Some(message) = outgoing.recv().await {
        buffer.clear();
        // What else is queued already goes out in the same write.
        let mut next = Some(message);
        while let Some(message) = next {
            if let Err(error) = frame::encode(&message, &mut buffer) {
                // Whoever waits for an answer learns it by the end of the connection.
                tracing::error!("a control connection ends: {error}");
                return;
            }
            next = outgoing.try_recv().ok();
        }
        if stream.write_all(&buffer).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// This node's monotonic clock in nanoseconds.
#[must_use]
pub fn now() -> u64 {
    dragon_shmem::clock::now()
}

fn is_end(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::UnexpectedEof
}

fn challenge() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("no random numbers from the kernel")?;
    Ok(bytes)
}
