//! Joining: how a daemon that a workload manager has started comes to what its starter says.
//!
//! Where a remote shell has a standard input, a task of a workload manager has none. So the starter (the `dragon` command)
//! listens on a port of its own and makes a key that is good for this bring-up alone; it gives both to the daemons by
//! whatever way the workload manager has, which others may see. What stands before the daemon on its node (`supervisor.rs`)
//! connects: both sides prove the key, the daemon says its rank, and from then on the line is encrypted and carries what a
//! remote shell's input would: the launch message, then what the launcher says. Its end means the same, too.
//!
//! Each rank joins once. When all have, or the time is over, nobody listens any more, and the key is worth nothing. A second
//! one that knows the key ends the bring-up, since nobody can say which of the two was meant.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, PipeWriter};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use dragon_protocol::handshake::{HandshakeError, Role};
use dragon_protocol::key::JobKey;
use dragon_protocol::{NodeIndex, env};
use dragon_transport::descriptors::Frees;
use dragon_transport::fabric::tcp::seal::{EMPTY, Keys, Opener, RECORD, Sealer, Shake};
use dragon_transport::strangers::HANDSHAKE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::launcher;
use crate::link;
use crate::listener::{Listener, NOWHERE};
use crate::network::any_address;
use crate::strangers::Strangers;

/// What a source of the launch message begins with, when it is a starter that listens.
const WAY: &str = "tcp:";
/// How long a daemon tries to reach a starter that listens.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the starter's host may be silent. The nodes notice a dead host by a limit of their own; a line that ended earlier
/// would end a node that they still count on.
const SILENCE: Duration = Duration::from_secs(60);

/// The starter's side: a port, its key, and the daemons that have not joined.
#[derive(Debug)]
pub struct Door {
    listener: Listener,
    port: u16,
    key: JobKey,
    /// The names of all hosts, by rank.
    hosts: Vec<String>,
    /// How long a host may be silent.
    silence: Duration,
    expected: BTreeMap<u32, Expected>,
}

/// A daemon that has not joined.
#[derive(Debug)]
struct Expected {
    /// What it is to be told.
    says: pipe::Receiver,
    /// Closed when the line has ended.
    ends: PipeWriter,
}

/// Who has proved the key.
struct Claim {
    from: SocketAddr,
    node: NodeIndex,
    stream: TcpStream,
    keys: Keys,
}

impl Door {
    /// Listens, with a new key, for the hosts of a job, by rank. `silence`: how long one of them may be silent.
    ///
    /// # Errors
    /// When there is no port or no random number to be had.
    pub fn open(hosts: Vec<String>, silence: Duration) -> Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).context("no random numbers from the kernel")?;
        let socket = std::net::TcpListener::bind((any_address(), 0))
            .context("no port for the other nodes of the job")?;
        Ok(Self {
            port: socket.local_addr()?.port(),
            listener: Listener::turning_away(socket.into(), "join port")?,
            key: JobKey::new(key),
            hosts,
            silence,
            expected: BTreeMap::new(),
        })
    }

    /// The key, for [`env::JOIN_KEY`].
    #[must_use]
    pub fn key(&self) -> String {
        let bytes = self.key.as_bytes().iter();
        bytes.fold(String::new(), |mut hex, byte| {
            // Writing to a string does not fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// What a daemon is told after `--launch`: this port, on the first host.
    #[must_use]
    pub fn way(&self) -> String {
        let host = self.hosts.first().map_or("127.0.0.1", String::as_str);
        format!("{WAY}{host}:{}", self.port)
    }

    /// Expects a daemon. What is written to the first pipe is for it; the second ends when the line to it has, or when it
    /// has not joined in time.
    ///
    /// # Errors
    /// When there are no pipes to be had.
    pub fn expect(&mut self, rank: u32) -> Result<(PipeWriter, io::PipeReader)> {
        let (reader, writer) = io::pipe()?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        let says = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
        let (ended, ends) = io::pipe()?;
        self.expected.insert(rank, Expected { says, ends });
        Ok((writer, ended))
    }

    /// Lets daemons in until all have joined or the time is over: then the first node says who is missing.
    ///
    /// # Errors
    /// When somebody else knows the key.
    pub async fn admit(mut self, until: Instant) -> Result<()> {
        let mut strangers = Strangers::new("connection of a joining node");
        while !self.expected.is_empty() {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, from)) => {
                        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                        let from = from.unwrap_or(NOWHERE);
                        strangers.enter(prove(self.key.clone(), stream, from), from).await;
                    }
                    Err(error) => strangers.refuse(NOWHERE, &anyhow!("not accepted: {error}")),
                },
                Some(shaken) = strangers.shaken() => strangers.leave(shaken),
                () = sleep_until(until) => break,
            }
            for claim in strangers.proved() {
                self.let_in(claim)?;
            }
        }
        Ok(())
    }

    fn let_in(&mut self, claim: Claim) -> Result<()> {
        let rank = claim.node.get();
        if let Some(expected) = self.expected.remove(&rank) {
            link::notice_dead_hosts(&claim.stream, self.silence)?;
            tokio::spawn(async move {
                let Expected { says, ends } = expected;
                if let Err(error) = tell(says, claim.stream, claim.keys).await {
                    tracing::debug!(rank, "the line to a node: {error:#}");
                }
                drop(ends);
            });
            return Ok(());
        }
        let from = claim.from.ip().to_canonical();
        match self.hosts.get(rank as usize) {
            Some(host) => bail!(
                "somebody at {from} joins as node {rank} ({host}), which has joined already: the join key of this job is known to others, and the job is not started"
            ),
            None => bail!(
                "somebody at {from} joins as node {rank} of a job of {} nodes: the join key of this job is known to others, and the job is not started",
                self.hosts.len()
            ),
        }
    }
}

/// Lets a stranger prove the key; the connection is encrypted from then on.
async fn prove(key: JobKey, stream: OwnedFd, from: SocketAddr) -> Result<Claim> {
    // Declared first, dropped last: also when this is given up.
    let _frees = Frees;
    let mut stream = TcpStream::from_std(stream.into())?;
    let node = link::accept_as(Role::Join, &key, NodeIndex::FIRST, &mut stream).await?;
    let exchange = async {
        let mut shake = Shake::new(&key, false)?;
        let mut message = [0; EMPTY];
        stream.read_exact(&mut message).await?;
        shake.hear(&message)?;
        stream.write_all(&shake.say(&[])?).await?;
        anyhow::Ok(shake.finish()?)
    };
    let keys = timeout(HANDSHAKE, exchange)
        .await
        .context("the handshake was not completed in time")??;
    Ok(Claim {
        from,
        node,
        stream,
        keys,
    })
}

/// Tells a daemon what comes out of a pipe, until that ends or the daemon does.
async fn tell(mut says: pipe::Receiver, stream: TcpStream, keys: Keys) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let mut sealer = Sealer::new(keys);
    let telling = async {
        let mut bytes = vec![0; 16 << 10];
        loop {
            let read = says.read(&mut bytes).await?;
            if read == 0 {
                return to.shutdown().await;
            }
            let mut rest = &bytes[..read];
            while !rest.is_empty() {
                rest = &rest[sealer.add(rest)..];
                sealer.seal()?;
                to.write_all(sealer.rest()).await?;
                sealer.sent(sealer.rest().len());
            }
        }
    };
    let hearing = async {
        // A daemon says nothing: this is its end.
        from.read(&mut [0; 1]).await.map(drop)
    };
    tokio::select! {
        told = telling => told?,
        ended = hearing => return ended,
    }
    // The daemon ends now, and closes its end when it has.
    from.read(&mut [0; 1]).await.map(drop)
}

/// Whether these are the arguments of a daemon that joins; where its starter listens, then.
#[must_use]
pub fn way(arguments: &[OsString]) -> Option<&str> {
    let launch = arguments.first().is_some_and(|first| first == "--launch");
    let source = arguments.get(1).filter(|_| launch)?;
    source.to_str()?.strip_prefix(WAY)
}

/// The daemon's side of a line.
#[derive(Debug)]
pub struct Joined {
    stream: TcpStream,
    keys: Keys,
}

/// Joins the starter that listens at `HOST:PORT`. `arguments` say the rank.
///
/// # Errors
/// When nobody listens there any more, or somebody else does.
pub async fn join(way: &str, arguments: &[OsString]) -> Result<Joined> {
    launcher::check_release(arguments)?;
    let rank = launcher::rank(arguments);
    let node = rank.parse().ok().and_then(NodeIndex::new);
    let node = node.with_context(|| format!("'{rank}' is not the number of a node"))?;
    let key = std::env::var(env::JOIN_KEY).ok();
    let key = key.as_deref().and_then(JobKey::from_hex).with_context(|| {
        format!(
            "node {node} has no key to join with: {} is not 64 hexadecimal digits",
            env::JOIN_KEY
        )
    })?;
    let address = way.rsplit_once(':');
    let address = address.and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let address = address.with_context(|| format!("{WAY}{way}: HOST:PORT is wanted"))?;
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(10);
    loop {
        let error = match enter(&key, node, address).await {
            Ok(joined) => return Ok(joined),
            Err(error) => error,
        };
        // One that has not been let in may be among too many at once.
        if is_final(&error) || Instant::now() + pause >= deadline {
            return Err(error.context(format!("node {node} cannot join its starter at {way}")));
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Whether trying again is of no use.
fn is_final(error: &anyhow::Error) -> bool {
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    error.downcast_ref::<HandshakeError>().is_some()
        || error.downcast_ref::<io::Error>().is_some_and(refused)
}

async fn enter(key: &JobKey, node: NodeIndex, address: (&str, u16)) -> Result<Joined> {
    let mut stream = link::connect_as(Role::Join, key, node, NodeIndex::FIRST, address).await?;
    let exchange = async {
        let mut shake = Shake::new(key, true)?;
        stream.write_all(&shake.say(&[])?).await?;
        let mut message = [0; EMPTY];
        stream.read_exact(&mut message).await?;
        shake.hear(&message)?;
        anyhow::Ok(shake.finish()?)
    };
    let keys = timeout(HANDSHAKE, exchange)
        .await
        .context("no answer to the handshake")??;
    link::notice_dead_hosts(&stream, SILENCE)?;
    Ok(Joined { stream, keys })
}

impl Joined {
    /// Passes on what the starter says, until it is gone or nobody reads any more.
    ///
    /// # Errors
    /// When the line breaks, or what came over it was changed.
    pub async fn pass_on(&mut self, to: OwnedFd) -> Result<()> {
        rustix::io::ioctl_fionbio(&to, true)?;
        let mut to = pipe::Sender::from_owned_fd(to)?;
        let mut opener = Opener::new(self.keys.clone());
        let mut sealed: Vec<u8> = Vec::new();
        let mut plain = vec![0; RECORD];
        loop {
            while let Some((taken, given)) = opener.open(&sealed, &mut plain)? {
                sealed.drain(..taken);
                to.write_all(&plain[..given]).await?;
            }
            if self.stream.read_buf(&mut sealed).await? == 0 {
                ensure!(sealed.is_empty(), "the line to the starter broke");
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
