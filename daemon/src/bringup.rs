//! Bring-up: the daemons find each other and form a tree.
//!
//! Every daemon knows the list of hosts, its own rank and the key. It listens on a port from a sequence that both ends
//! derive from the key, connects to its parent in the tree, and waits for its children. Readiness is gathered up, the
//! table of nodes is sent down: O(log N) steps. States and deadlines are in `docs/bring-up.md`.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use dragon_protocol::control::{Membership, PeerMessage};
use dragon_protocol::key::{JobKey, PORT_TRIES};
use dragon_protocol::launch::NodeInfo;
use dragon_protocol::{NodeIndex, frame};
use dragon_transport::descriptors::Frees;
use dragon_transport::strangers::{HALF_OPEN, HalfOpen, Refusals};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};

use crate::adapter::Job;
use crate::link;
use crate::listener::{Listener, NOWHERE};
use crate::services::Event;

/// Reports of nodes below that may wait to be looked at.
const REPORTS: usize = 64;

/// Where a daemon stands when everyone is up.
#[derive(Debug)]
pub struct Tree {
    /// All nodes.
    pub membership: Membership,
    /// The connection to the node above; none on the first node.
    pub parent: Option<(NodeIndex, TcpStream)>,
    /// The connections to the nodes below.
    pub children: Vec<(NodeIndex, TcpStream)>,
}

/// Listens on the first free port of the key's sequence. A node of a one-node runtime needs no listener.
///
/// # Errors
/// When all ports of the sequence are taken.
pub async fn listen(job: &Job) -> Result<TcpListener> {
    let (first, last) = job.ports;
    let mut taken = Vec::new();
    for attempt in 0..PORT_TRIES {
        let port = job.key.port(job.node, attempt, first, last);
        match TcpListener::bind((job.listen_address(), port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => taken.push(format!("{port}: {error}")),
        }
    }
    bail!(
        "no free port for the bring-up between {first} and {last}; tried {}",
        taken.join(", ")
    )
}

/// Accepts control connections for as long as the daemon lives. Whoever proves the key is reported; others are closed.
pub async fn accept(
    key: JobKey,
    node: NodeIndex,
    mut listener: Listener,
    events: mpsc::Sender<Event>,
) {
    let mut strangers = Strangers::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                    let key = key.clone();
                    let proof = async move { prove(&key, node, stream).await };
                    strangers.enter(proof, from.unwrap_or(NOWHERE)).await;
                }
                Err(error) => strangers.refuse(NOWHERE, &anyhow!("not accepted: {error}")),
            },
            Some(shaken) = strangers.handshakes.join_next_with_id() => strangers.leave(shaken),
        }
        for (peer, stream) in strangers.proved.drain(..) {
            // The control loop may have other things to do than to take it at once.
            let events = events.clone();
            tokio::spawn(async move { events.send(Event::Accepted(peer, stream)).await });
        }
    }
}

async fn prove(key: &JobKey, node: NodeIndex, stream: OwnedFd) -> Result<(NodeIndex, TcpStream)> {
    // Declared first, dropped last: also when this is given up.
    let _frees = Frees;
    let mut stream = TcpStream::from_std(stream.into())?;
    let peer = link::accept(key, node, &mut stream).await?;
    Ok((peer, stream))
}

/// Control connections in their handshake.
#[derive(Debug)]
struct Strangers {
    handshakes: JoinSet<Result<(NodeIndex, TcpStream)>>,
    half_open: HalfOpen<AbortHandle>,
    /// Who is none any more.
    proved: Vec<(NodeIndex, TcpStream)>,
    refusals: Refusals,
}

impl Default for Strangers {
    fn default() -> Self {
        Self {
            handshakes: JoinSet::new(),
            half_open: HalfOpen::new(HALF_OPEN),
            proved: Vec::new(),
            refusals: Refusals::default(),
        }
    }
}

/// How a handshake ended.
type Shaken = Result<(Id, Result<(NodeIndex, TcpStream)>), JoinError>;

impl Strangers {
    /// A connection came. The proof has a deadline of its own.
    async fn enter(
        &mut self,
        proof: impl Future<Output = Result<(NodeIndex, TcpStream)>> + Send + 'static,
        from: SocketAddr,
    ) {
        let task = self.handshakes.spawn(proof);
        self.half_open.enter(task, from, u64::MAX);
        if self.half_open.len() > self.half_open.share() {
            // Whose proof has arrived already is not among those who may have to go.
            tokio::task::yield_now().await;
            while let Some(shaken) = self.handshakes.try_join_next_with_id() {
                self.leave(shaken);
            }
        }
        while let Some(stranger) = self.half_open.surplus() {
            stranger.connection.abort();
            let why = anyhow!("too many connections are in their handshake at once");
            self.refuse(stranger.from, &why);
        }
    }

    /// A handshake has ended.
    fn leave(&mut self, shaken: Shaken) {
        let id = match &shaken {
            Ok((id, _)) => *id,
            Err(aborted) => aborted.id(),
        };
        let stranger = self.half_open.leave(|task| task.id() == id);
        match (shaken, stranger) {
            (Ok((_, Ok(proved))), _) => self.proved.push(proved),
            (Ok((_, Err(error))), Some(stranger)) => self.refuse(stranger.from, &error),
            // It had to go, and was refused then.
            _ => {}
        }
    }

    fn refuse(&mut self, from: SocketAddr, why: &anyhow::Error) {
        if let Some(untold) = self.refusals.tell(from, link::now()) {
            tracing::warn!(%from, untold, "refused a control connection: {why:#}");
        }
    }
}

/// Waits until every node is up. `me` is complete but for its address, which the connections tell.
///
/// # Errors
/// When a node does not come up in time, or says why it cannot.
pub async fn run(job: &Job, mut me: NodeInfo, events: &mut mpsc::Receiver<Event>) -> Result<Tree> {
    let deadline = Instant::now() + job.bring_up;
    let mut parent = match job.parent() {
        None => None,
        Some(above) => Some((above, connect_to_parent(job, above, deadline).await?)),
    };
    if let Some((_, stream)) = &parent {
        me.address = own_address(stream)?;
    }
    let gathered = gather(job, me, deadline, events).await;
    let (nodes, mut children) = match gathered {
        Ok(gathered) => gathered,
        Err(error) => {
            if let Some((_, stream)) = &mut parent {
                let _ = send(stream, &PeerMessage::Failed(format!("{error:#}"))).await;
            }
            return Err(error);
        }
    };
    let membership = match &mut parent {
        None => Membership {
            runtime: job.key.runtime_id(),
            global_services: NodeIndex::FIRST,
            nodes,
        },
        Some((above, stream)) => {
            let host = job.host(*above);
            send(stream, &PeerMessage::Ready(nodes))
                .await
                .with_context(|| format!("lost {host} while coming up"))?;
            match timeout_at(deadline, link::read_frame(stream)).await {
                Ok(Ok(PeerMessage::Up(membership))) => membership,
                Ok(Ok(PeerMessage::Failed(why))) => bail!("{why}"),
                Ok(Ok(other)) => bail!("{host} sent {other:?} where 'up' was expected"),
                Ok(Err(error)) => return Err(error.context(format!("lost {host} while coming up"))),
                Err(_) => bail!(
                    "{host} did not say within {:?} that all nodes are up",
                    job.bring_up
                ),
            }
        }
    };
    for (_, stream) in &mut children {
        let _ = send(stream, &PeerMessage::Up(membership.clone())).await;
    }
    Ok(Tree {
        membership,
        parent,
        children,
    })
}

/// The parent starts at the same moment: its port may not be open yet, so this tries again, with growing pauses, until
/// the deadline.
async fn connect_to_parent(job: &Job, above: NodeIndex, deadline: Instant) -> Result<TcpStream> {
    let (first, last) = job.ports;
    let host = job.host(above);
    let mut pause = Duration::from_millis(1);
    loop {
        let mut why = anyhow!("not tried");
        for attempt in 0..PORT_TRIES {
            let port = job.key.port(above, attempt, first, last);
            match timeout_at(
                deadline,
                link::connect(&job.key, job.node, above, host, port),
            )
            .await
            {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => why = error,
                Err(_) => break,
            }
        }
        if Instant::now() + pause >= deadline {
            return Err(why.context(format!(
                "node {} ({host}) was not reached within {:?}",
                above, job.bring_up
            )));
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Waits until all children, and all below them, are ready.
async fn gather(
    job: &Job,
    mut me: NodeInfo,
    deadline: Instant,
    events: &mut mpsc::Receiver<Event>,
) -> Result<(Vec<NodeInfo>, Vec<(NodeIndex, TcpStream)>)> {
    let mut missing: HashSet<_> = job.children().into_iter().collect();
    let (ready, mut reports) = mpsc::channel(REPORTS);
    let (mut nodes, mut below) = (Vec::new(), Vec::new());
    while !missing.is_empty() {
        let late = |missing: &HashSet<NodeIndex>| {
            let mut names: Vec<_> = missing
                .iter()
                .map(|node| format!("{node} ({})", job.host(*node)))
                .collect();
            names.sort();
            anyhow!(
                "not up within {:?}: node {}",
                job.bring_up,
                names.join(", node ")
            )
        };
        tokio::select! {
            event = events.recv() => if let Some(Event::Accepted(node, mut stream)) = event {
                if !missing.contains(&node) {
                    tracing::warn!(%node, "connected twice or is no child of this node; closed");
                    continue;
                }
                if me.address.is_empty() {
                    me.address = own_address(&stream)?;
                }
                let ready = ready.clone();
                tokio::spawn(async move {
                    let report = link::read_frame::<PeerMessage>(&mut stream).await;
                    let _ = ready.send((node, stream, report)).await;
                });
            },
            report = reports.recv() => match report {
                Some((node, stream, Ok(PeerMessage::Ready(infos)))) => {
                    missing.remove(&node);
                    nodes.extend(infos);
                    below.push((node, stream));
                }
                Some((_, _, Ok(PeerMessage::Failed(why)))) => bail!("{why}"),
                Some((node, _, other)) => bail!("node {node} ({}) ended while coming up: {other:?}", job.host(node)),
                None => return Err(late(&missing)),
            },
            () = tokio::time::sleep_until(deadline) => return Err(late(&missing)),
        }
    }
    if me.address.is_empty() {
        me.address = "127.0.0.1".to_owned();
    }
    nodes.push(me);
    nodes.sort_by_key(|info| info.node);
    Ok((nodes, below))
}

/// This node's address as the connection has it. A listener of both families shows IPv4 addresses in their IPv6 form.
fn own_address(stream: &TcpStream) -> Result<String> {
    Ok(stream.local_addr()?.ip().to_canonical().to_string())
}

async fn send(stream: &mut TcpStream, message: &PeerMessage) -> Result<()> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes)?;
    Ok(stream.write_all(&bytes).await?)
}

#[cfg(test)]
mod tests;
