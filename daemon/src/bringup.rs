//! Bring-up: the daemons find each other and form a tree.
//!
//! Every daemon knows the list of hosts, its own rank and the key. It listens on a port from a sequence that both ends
//! derive from the key, connects to its parent in the tree, and waits for its children. Readiness is gathered up, the
//! table of nodes is sent down: O(log N) steps. States and deadlines are in `docs/bring-up.md`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use dragon_protocol::NodeIndex;
use dragon_protocol::control::{Membership, PeerMessage};
use dragon_protocol::key::{JobKey, PORT_TRIES};
use dragon_protocol::launch::NodeInfo;
use dragon_transport::descriptors::Frees;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::adapter::Job;
use crate::link;
use crate::listener::{Listener, NOWHERE};
use crate::services::Event;
use crate::state::{State, enter};
use crate::strangers::Strangers;

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
    let mut strangers = Strangers::new("control connection");
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
            Some(shaken) = strangers.shaken() => strangers.leave(shaken),
        }
        for (peer, stream) in strangers.proved() {
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

/// Why a daemon did not come up.
#[derive(Debug)]
pub struct Failure {
    /// What happened.
    pub why: anyhow::Error,
    /// The node above or below knows it too, and says it.
    pub told: bool,
    /// This node has waited in vain for the one above.
    pub silent_above: bool,
}

impl Failure {
    fn own(why: anyhow::Error) -> Self {
        Self {
            why,
            told: false,
            silent_above: false,
        }
    }

    fn of_others(why: anyhow::Error) -> Self {
        Self {
            told: true,
            ..Self::own(why)
        }
    }

    fn of_silence_above(why: anyhow::Error) -> Self {
        Self {
            silent_above: true,
            ..Self::own(why)
        }
    }
}

/// Waits until every node is up. `me` is complete but for its address, which the connections tell.
///
/// # Errors
/// When a node does not come up in time, or says why it cannot.
pub async fn run(
    job: &Job,
    mut me: NodeInfo,
    events: &mut mpsc::Receiver<Event>,
) -> Result<Tree, Failure> {
    let start = Instant::now();
    let deadline = start + job.bring_up;
    let mut parent = match job.parent() {
        None => None,
        Some(above) => {
            enter(job.node, State::Connecting);
            let connected = connect_to_parent(job, above, deadline).await;
            Some((above, connected.map_err(Failure::of_silence_above)?))
        }
    };
    if let Some((_, stream)) = &parent
        && me.address.is_empty()
    {
        me.address = own_address(stream).map_err(Failure::own)?;
    }
    enter(job.node, State::Gathering);
    let (nodes, mut children) = match gather(job, me, start + gathering(job), events).await {
        Ok(gathered) => gathered,
        Err(why) => {
            let told = match &mut parent {
                None => false,
                Some((_, stream)) => {
                    let message = PeerMessage::Failed(format!("{why:#}"));
                    send(stream, &message).await.is_ok()
                }
            };
            return Err(Failure {
                told,
                ..Failure::own(why)
            });
        }
    };
    let membership = match &mut parent {
        None => Membership {
            runtime: job.key.runtime_id(),
            global_services: NodeIndex::FIRST,
            nodes,
        },
        Some((above, stream)) => {
            enter(job.node, State::Ready);
            // The node above waits as long for others, and says who is missing.
            let deadline = deadline + job.bring_up / 20;
            match ready(job, *above, stream, nodes, deadline).await {
                Ok(membership) => membership,
                Err(failure) => {
                    tell_failure(&mut children, &failure.why).await;
                    return Err(failure);
                }
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

/// Tells the node above that this one does not even begin to come up. True when it knows.
pub async fn give_up(job: &Job, why: &anyhow::Error) -> bool {
    let Some(above) = job.parent() else {
        return false;
    };
    let deadline = Instant::now() + job.bring_up;
    let Ok(mut stream) = connect_to_parent(job, above, deadline).await else {
        return false;
    };
    let why = format!("node {} ({}): {why:#}", job.node, job.host(job.node));
    send(&mut stream, &PeerMessage::Failed(why)).await.is_ok()
}

/// How long a node waits for those below. The deeper it lies the less, so that who misses a node can say so to a node above
/// that still listens.
fn gathering(job: &Job) -> Duration {
    let mut depth = 0;
    let mut node = job.node;
    while let Some(above) = job.parent_of(node) {
        (node, depth) = (above, depth + 1);
    }
    job.bring_up * (20 - depth.min(10)) / 20
}

/// Says that this node and all below are ready, and waits for the word that all nodes are. Where the node above wants to be
/// met at another of its addresses, the connection is made anew.
async fn ready(
    job: &Job,
    above: NodeIndex,
    stream: &mut TcpStream,
    nodes: Vec<NodeInfo>,
    deadline: Instant,
) -> Result<Membership, Failure> {
    let host = job.host(above);
    let lost = |error: anyhow::Error| {
        Failure::of_others(error.context(format!("lost node {above} ({host}) while coming up")))
    };
    let ready = PeerMessage::Ready(nodes);
    send(stream, &ready).await.map_err(lost)?;
    let mut said = timeout_at(deadline, link::read_message(stream)).await;
    if let Ok(Ok(PeerMessage::Elsewhere(addresses))) = said {
        match connect_there(job, above, &addresses).await {
            Ok(there) => *stream = there,
            Err(why) => {
                let told = send(stream, &PeerMessage::Failed(format!("{why:#}"))).await;
                return Err(Failure {
                    told: told.is_ok(),
                    ..Failure::own(why)
                });
            }
        }
        send(stream, &ready).await.map_err(lost)?;
        said = timeout_at(deadline, link::read_message(stream)).await;
    }
    match said {
        Ok(Ok(PeerMessage::Up(membership))) => Ok(membership),
        Ok(Ok(PeerMessage::Failed(why))) => Err(Failure::of_others(anyhow!("{why}"))),
        Ok(Ok(other)) => Err(Failure::own(anyhow!(
            "node {above} ({host}) sent {other:?} where 'up' was expected"
        ))),
        Ok(Err(error)) => Err(lost(error)),
        Err(_) => Err(Failure::of_silence_above(anyhow!(
            "node {above} ({host}) did not say within {:?} that all nodes are up",
            job.bring_up
        ))),
    }
}

/// Tells nodes below that the bring-up failed, so that they need not wait for their deadlines.
async fn tell_failure(children: &mut [(NodeIndex, TcpStream)], why: &anyhow::Error) {
    for (_, stream) in children {
        let _ = send(stream, &PeerMessage::Failed(format!("{why:#}"))).await;
    }
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

/// Connects to the node above by the interfaces that the job is to use. It listens already, so each address is tried once.
async fn connect_there(job: &Job, above: NodeIndex, addresses: &[SocketAddr]) -> Result<TcpStream> {
    let mut why = anyhow!("it named no address");
    for address in addresses {
        let host = address.ip().to_string();
        match link::connect(&job.key, job.node, above, &host, address.port()).await {
            Ok(stream) => return Ok(stream),
            Err(error) => why = error.context(format!("{address}")),
        }
    }
    Err(why.context(format!(
        "node {} ({}) does not reach node {above} ({}) by the interfaces of --interface {}",
        job.node,
        job.host(job.node),
        job.host(above),
        job.network.interface
    )))
}

/// Where a node below is to come, when it has not come by an interface that the job is to use.
fn elsewhere(job: &Job, me: &NodeInfo, stream: &TcpStream) -> Result<Vec<SocketAddr>> {
    let came_by = stream.local_addr()?.ip().to_canonical();
    // Without a choice of the user's every address will do; on one machine nothing leaves it.
    let any = me.data_port != 0 || job.all_here();
    if any || me.data.iter().any(|at| at.ip() == came_by) {
        return Ok(Vec::new());
    }
    let at = |at: &SocketAddr| SocketAddr::new(at.ip(), me.control_port);
    Ok(me.data.iter().map(at).collect())
}

/// A node below, and what it said first.
type Report = (NodeIndex, TcpStream, Result<PeerMessage>);

/// Waits until all children, and all below them, are ready.
async fn gather(
    job: &Job,
    me: NodeInfo,
    deadline: Instant,
    events: &mut mpsc::Receiver<Event>,
) -> Result<(Vec<NodeInfo>, Vec<(NodeIndex, TcpStream)>)> {
    let (failed, failure) = watch::channel(None);
    let mut reports = JoinSet::new();
    let mut below = Vec::new();
    let gathered = gather_reports(
        job,
        me,
        deadline,
        events,
        (&mut reports, &failure),
        &mut below,
    )
    .await;
    if let Err(why) = &gathered {
        tell_failure(&mut below, why).await;
        // Those that have not said anything yet.
        failed.send_replace(Some(format!("{why:#}")));
        while reports.join_next().await.is_some() {}
    }
    Ok((gathered?, below))
}

async fn gather_reports(
    job: &Job,
    mut me: NodeInfo,
    deadline: Instant,
    events: &mut mpsc::Receiver<Event>,
    (reports, failure): (
        &mut JoinSet<Option<Report>>,
        &watch::Receiver<Option<String>>,
    ),
    below: &mut Vec<(NodeIndex, TcpStream)>,
) -> Result<Vec<NodeInfo>> {
    let mut missing: BTreeSet<_> = job.children().into_iter().collect();
    let mut nodes = Vec::new();
    while !missing.is_empty() {
        tokio::select! {
            event = events.recv() => if let Some(Event::Accepted(node, stream)) = event {
                if !missing.contains(&node) {
                    tracing::warn!(%node, "connected twice or is no child of this node; closed");
                    continue;
                }
                if me.address.is_empty() {
                    me.address = own_address(&stream)?;
                }
                let elsewhere = elsewhere(job, &me, &stream)?;
                reports.spawn(report(node, stream, elsewhere, failure.clone()));
            },
            Some(report) = reports.join_next() => match report {
                Ok(Some((node, stream, Ok(PeerMessage::Ready(infos))))) => {
                    missing.remove(&node);
                    nodes.extend(infos);
                    below.push((node, stream));
                }
                Ok(Some((_, _, Ok(PeerMessage::Failed(why))))) => bail!("{why}"),
                Ok(Some((node, _, Ok(other)))) => bail!(
                    "node {node} ({}) sent {other:?} where 'ready' was expected",
                    job.host(node)
                ),
                Ok(Some((node, _, Err(error)))) => {
                    tracing::info!(%node, "{error:#}");
                    bail!("node {node} ({}) ended while coming up", job.host(node))
                }
                Ok(None) | Err(_) => {}
            },
            () = tokio::time::sleep_until(deadline) => {
                let names: Vec<_> = missing
                    .iter()
                    .map(|node| format!("node {node} ({})", job.host(*node)))
                    .collect();
                bail!("not up within {:?}: {}", job.bring_up, names.join(", "));
            }
        }
    }
    if me.address.is_empty() {
        me.address = "127.0.0.1".to_owned();
    }
    nodes.push(me);
    nodes.sort_by_key(|info| info.node);
    Ok(nodes)
}

/// What a node below says first; `None` when it was told that the bring-up failed before it said anything, or when it is to
/// come by another address, and goes.
async fn report(
    node: NodeIndex,
    mut stream: TcpStream,
    elsewhere: Vec<SocketAddr>,
    mut failure: watch::Receiver<Option<String>>,
) -> Option<Report> {
    let goes = !elsewhere.is_empty();
    if goes {
        let message = PeerMessage::Elsewhere(elsewhere);
        send(&mut stream, &message).await.ok()?;
    }
    loop {
        let said = tokio::select! {
            said = link::read_message(&mut stream) => Ok(said),
            why = failure.wait_for(Option::is_some) => Err(why.ok()?.clone()?),
        };
        match said {
            Err(why) => {
                let _ = send(&mut stream, &PeerMessage::Failed(why)).await;
                return None;
            }
            // Said before it was told to go; it says so again where it comes.
            Ok(Ok(PeerMessage::Ready(_))) if goes => {}
            Ok(Err(_)) if goes => return None,
            Ok(said) => return Some((node, stream, said)),
        }
    }
}

/// This node's address as the connection has it. A listener of both families shows IPv4 addresses in their IPv6 form.
fn own_address(stream: &TcpStream) -> Result<String> {
    Ok(stream.local_addr()?.ip().to_canonical().to_string())
}

async fn send(stream: &mut TcpStream, message: &PeerMessage) -> Result<()> {
    let mut bytes = Vec::new();
    link::encode(message, &mut bytes)?;
    Ok(stream.write_all(&bytes).await?)
}

#[cfg(test)]
mod tests;
