//! TCP: works anywhere.
//!
//! One listener on any free port, one connection for each direction in which a node sends requests, opened on demand. The
//! I/O thread ([`Fabric::progress`]) accepts, shakes hands and reads; whoever submits a frame while nothing is queued
//! writes it to the socket itself, and the I/O thread sends what the socket did not take.
//!
//! Strangers: a connection that has not proved the key holds nothing but its socket and at most one handshake message; it
//! is closed after [`TcpConfig::handshake_s`] seconds, and when more than [`TcpConfig::half_open`] are in that state, the
//! oldest is closed for the newest: a flood of silent connections cannot keep a node of the job out.
//!
//! A dead host or a cut cable ends a connection after [`TcpConfig::silence_s`] seconds by the kernel's own probes
//! (keepalive, TCP_USER_TIMEOUT); nobody wakes up for that.

mod conn;
mod raw;
mod read;
mod shared;

use core::fmt;
use core::sync::atomic::Ordering;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dragon_protocol::NodeIndex;
use dragon_protocol::handshake::Peer;
use dragon_protocol::key::JobKey;
use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use self::conn::Conn;
use self::read::{Identity, Progress, Reader, Scratch};
use self::shared::{FIRST_LISTENER, Shared, WAKER};
use super::{Fabric, FabricStats, Handler, Link, LinkError, PeerAddress, Side};
use crate::clock;

/// How a node speaks TCP.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// This node.
    pub node: NodeIndex,
    /// The job key.
    pub key: JobKey,
    /// Addresses to listen on; the port of each is any free one.
    pub listen: Vec<IpAddr>,
    /// How many connections may be in their handshake.
    pub half_open: usize,
    /// How long a handshake may take, in seconds; opening a connection may take twice as long.
    pub handshake_s: u64,
    /// After how many seconds of silence a connection counts as cut.
    pub silence_s: u32,
}

impl TcpConfig {
    /// The usual limits, listening on all IPv4 addresses.
    #[must_use]
    pub fn new(node: NodeIndex, key: JobKey) -> Self {
        Self {
            node,
            key,
            listen: vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
            half_open: 64,
            handshake_s: 5,
            silence_s: 10,
        }
    }
}

/// The TCP fabric of one node.
pub struct TcpFabric {
    config: TcpConfig,
    identity: Identity,
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    table: Mutex<Table>,
    io: Mutex<Io>,
}

/// What all threads use.
struct Table {
    listeners: Vec<(u64, OwnedFd)>,
    peers: HashMap<NodeIndex, PeerAddress>,
    forgotten: HashSet<NodeIndex>,
    conns: HashMap<u64, Arc<Conn>>,
    opened: HashMap<NodeIndex, Arc<Conn>>,
    accepted: HashMap<NodeIndex, Arc<Conn>>,
    /// Deadlines of connections being opened, in their order.
    opening: VecDeque<(u64, u64)>,
}

impl Table {
    fn listener(&self, number: u64) -> Option<&OwnedFd> {
        let found = self.listeners.iter().find(|(n, _)| *n == number);
        found.map(|(_, listener)| listener)
    }
}

/// What the I/O thread alone uses.
struct Io {
    readers: HashMap<u64, Reader>,
    scratch: Scratch,
    /// Deadlines of accepted connections in their handshake, in their order.
    half_open: VecDeque<(u64, u64)>,
    /// Closed for a moment when the process has no file descriptor left, so that a connection can be accepted and closed.
    spare: Option<OwnedFd>,
    refusals: Refusals,
}

/// How many events one wait takes.
const EVENTS: usize = 64;
/// How many connections are accepted before others get their turn.
const ACCEPTS: usize = 64;

impl fmt::Debug for TcpFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpFabric")
            .field("node", &self.identity.node)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl TcpFabric {
    /// Listens.
    ///
    /// # Errors
    /// When the system refuses a socket or the address cannot be listened on.
    pub fn bind(config: TcpConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared::new()?);
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        for (address, number) in config.listen.iter().zip(FIRST_LISTENER..WAKER) {
            let listener = std::net::TcpListener::bind((*address, 0))?;
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
            let listener = OwnedFd::from(listener);
            let token = epoll::EventData::new_u64(number);
            epoll::add(&shared.epoll, &listener, token, epoll::EventFlags::IN)?;
            listeners.push((number, listener));
        }
        Ok(Self {
            identity: Identity {
                node: config.node,
                key: config.key.clone(),
            },
            config,
            addresses,
            shared,
            table: Mutex::new(Table {
                listeners,
                peers: HashMap::new(),
                forgotten: HashSet::new(),
                conns: HashMap::new(),
                opened: HashMap::new(),
                accepted: HashMap::new(),
                opening: VecDeque::new(),
            }),
            io: Mutex::new(Io {
                readers: HashMap::new(),
                scratch: Scratch::new(),
                half_open: VecDeque::new(),
                spare: spare(),
                refusals: Refusals::default(),
            }),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, table: &mut Table, node: NodeIndex) -> Result<Arc<Conn>, LinkError> {
        let unknown = || LinkError::UnknownNode(node);
        let peer = table.peers.get(&node).ok_or_else(unknown)?;
        let mut socket = Err(LinkError::NoAddress(node));
        for address in &peer.addresses {
            socket = self.connect(address).map_err(LinkError::Connect);
            if socket.is_ok() {
                break;
            }
        }
        let socket = socket?;
        let id = self.shared.next_id();
        let conn = Arc::new(Conn::opening(id, node, socket, Arc::clone(&self.shared)));
        self.shared.add(&conn).map_err(LinkError::Connect)?;
        table.conns.insert(id, Arc::clone(&conn));
        table.opened.insert(node, Arc::clone(&conn));
        let limit = seconds(self.config.handshake_s.saturating_mul(2));
        table
            .opening
            .push_back((clock::now().saturating_add(limit), id));
        // The I/O thread may have to wake up earlier than it knows.
        self.shared.wake();
        Ok(conn)
    }

    fn connect(&self, address: &SocketAddr) -> io::Result<OwnedFd> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        self.tune(&socket)?;
        match rustix::net::connect(&socket, address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR) => Ok(socket),
            Err(e) => Err(e.into()),
        }
    }

    fn tune(&self, socket: &OwnedFd) -> io::Result<()> {
        let silence = self.config.silence_s.max(3);
        let probe = Duration::from_secs(u64::from(silence / 4).max(1));
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, probe)?;
        sockopt::set_tcp_keepintvl(socket, probe)?;
        sockopt::set_tcp_keepcnt(socket, 3)?;
        sockopt::set_tcp_user_timeout(socket, silence.saturating_mul(1000))?;
        Ok(())
    }

    fn event(&self, io: &mut Io, event: &epoll::Event, handler: &mut dyn Handler) {
        // The fields are copied out: the kernel's structure is packed.
        let (id, flags) = ({ event.data }.u64(), { event.flags });
        match id {
            WAKER => self.shared.clear_wake(),
            FIRST_LISTENER..WAKER => self.accept(io, id),
            _ => {
                let Some(conn) = self.table().conns.get(&id).cloned() else {
                    return;
                };
                if let Err(reason) = self.serve(io, &conn, flags, handler) {
                    self.finish(io, &conn, &reason, handler);
                }
            }
        }
    }

    fn serve(
        &self,
        io: &mut Io,
        conn: &Arc<Conn>,
        flags: epoll::EventFlags,
        handler: &mut dyn Handler,
    ) -> Result<(), LinkError> {
        let reader = io
            .readers
            .entry(conn.id)
            .or_insert_with(|| match conn.side {
                Side::Accepted => Reader::accepted(),
                Side::Opened => Reader::opening(),
            });
        let broken = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        if conn.is_connecting() {
            let result = sockopt::socket_error(conn.socket()).map_err(io::Error::from);
            let result = result.and_then(|r| r.map_err(io::Error::from));
            result.map_err(LinkError::Connect)?;
            if flags.intersects(epoll::EventFlags::OUT) {
                reader.connected(conn, &self.identity)?;
            }
            return Ok(());
        }
        if flags.intersects(epoll::EventFlags::OUT) {
            conn.writable().map_err(LinkError::Network)?;
        }
        if !flags.intersects(epoll::EventFlags::IN | broken) {
            return Ok(());
        }
        if conn.is_up() {
            return reader.frames(conn, &mut io.scratch, &self.shared.counters, handler);
        }
        match reader.shake(conn, &self.identity)? {
            Progress::Waiting => Ok(()),
            Progress::Stands(peer) => self.stand(io, conn, peer, handler),
        }
    }

    fn stand(
        &self,
        io: &mut Io,
        conn: &Arc<Conn>,
        peer: Peer,
        handler: &mut dyn Handler,
    ) -> Result<(), LinkError> {
        let mut table = self.table();
        if table.forgotten.contains(&peer.node) {
            return Err(LinkError::UnknownNode(peer.node));
        }
        let mut old = None;
        match conn.side {
            Side::Accepted => {
                self.tune(
                    &conn
                        .socket()
                        .try_clone_to_owned()
                        .map_err(LinkError::Network)?,
                )
                .map_err(LinkError::Network)?;
                io.half_open.retain(|(_, id)| *id != conn.id);
                let half_open = io.half_open.len() as u64;
                let counters = &self.shared.counters;
                counters.half_open.store(half_open, Ordering::Relaxed);
                counters.accepted.fetch_add(1, Ordering::Relaxed);
                old = table.accepted.insert(peer.node, Arc::clone(conn));
            }
            Side::Opened => {
                table.opening.retain(|(_, id)| *id != conn.id);
                let counters = &self.shared.counters;
                counters.opened.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(table);
        if let Some(old) = old {
            self.finish(io, &old, &LinkError::Superseded, handler);
        }
        let stands = conn.stand(peer);
        handler.up(&(Arc::clone(conn) as Arc<dyn Link>));
        stands.map_err(LinkError::Network)
    }

    /// The end of a connection, whatever state it was in.
    fn finish(&self, io: &mut Io, conn: &Arc<Conn>, reason: &LinkError, handler: &mut dyn Handler) {
        let mut table = self.table();
        if table.conns.remove(&conn.id).is_none() {
            return;
        }
        let node = conn.node();
        if !conn.is_up()
            && let Some(peer) = table
                .peers
                .get_mut(&node)
                .filter(|_| conn.side == Side::Opened)
        {
            // The next attempt goes to another of its addresses.
            let count = peer.addresses.len();
            peer.addresses.rotate_left(1.min(count));
        }
        let same = |known: Option<&Arc<Conn>>| known.is_some_and(|c| c.id == conn.id);
        if same(table.opened.get(&node)) {
            table.opened.remove(&node);
        }
        if same(table.accepted.get(&node)) {
            table.accepted.remove(&node);
        }
        table.opening.retain(|(_, id)| *id != conn.id);
        // Under the lock, so that nobody submits to a link that is no longer to be found.
        let unsent = conn.end();
        drop(table);
        io.readers.remove(&conn.id);
        // This and the shutdown below fail only for a socket that is gone already.
        let _ = epoll::delete(&self.shared.epoll, conn.socket());
        if conn.is_up() || conn.side == Side::Opened {
            let link = Arc::clone(conn) as Arc<dyn Link>;
            handler.lost(&link, conn.is_up(), reason, unsent);
        } else {
            io.half_open.retain(|(_, id)| *id != conn.id);
            let counters = &self.shared.counters;
            let half_open = io.half_open.len() as u64;
            counters.half_open.store(half_open, Ordering::Relaxed);
            counters.refused.fetch_add(1, Ordering::Relaxed);
            io.refusals.log(conn, reason);
        }
        // Last: who sees the end of the stream may rely on everything above.
        let _ = rustix::net::shutdown(conn.socket(), rustix::net::Shutdown::Both);
    }

    fn accept(&self, io: &mut Io, number: u64) {
        for _ in 0..ACCEPTS {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accepted = match self.table().listener(number) {
                Some(listener) => rustix::net::accept_with(listener, flags),
                None => return,
            };
            match accepted {
                Ok(socket) => self.accepted(io, socket),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                    // Without this the listener would stay readable and wake the thread for ever.
                    drop(io.spare.take());
                    if let Some(listener) = self.table().listener(number) {
                        drop(rustix::net::accept_with(listener, flags));
                    }
                    io.spare = spare();
                    tracing::warn!("no file descriptor left: a connection was closed");
                    return;
                }
                // Errors of the connection that was to be accepted; the next one may be well.
                Err(_) => {}
            }
        }
    }

    fn accepted(&self, io: &mut Io, socket: OwnedFd) {
        // Handshake messages must not wait for each other.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let id = self.shared.next_id();
        let conn = Arc::new(Conn::accepted(id, socket, Arc::clone(&self.shared)));
        if let Err(error) = self.shared.add(&conn) {
            tracing::warn!(%error, "a connection cannot be watched and was closed");
            return;
        }
        self.table().conns.insert(id, conn);
        let limit = seconds(self.config.handshake_s);
        io.half_open
            .push_back((clock::now().saturating_add(limit), id));
        let half_open = io.half_open.len() as u64;
        let counters = &self.shared.counters;
        counters.half_open.store(half_open, Ordering::Relaxed);
    }

    /// Closes what is over a limit or past its deadline, and what another thread wants closed.
    fn sweep(&self, io: &mut Io, handler: &mut dyn Handler) {
        let now = clock::now();
        for id in self.shared.take_doomed() {
            self.finish_by_id(io, id, &LinkError::ClosedHere, handler);
        }
        while let Some(&(deadline, id)) = io.half_open.front() {
            let reason = if io.half_open.len() > self.config.half_open {
                LinkError::HalfOpen(self.config.half_open)
            } else if deadline <= now {
                LinkError::Silent(self.config.handshake_s)
            } else {
                break;
            };
            io.half_open.pop_front();
            self.finish_by_id(io, id, &reason, handler);
        }
        loop {
            let first = self.table().opening.front().copied();
            let Some((_, id)) = first.filter(|(deadline, _)| *deadline <= now) else {
                break;
            };
            self.table().opening.pop_front();
            let reason = LinkError::Connect(io::ErrorKind::TimedOut.into());
            self.finish_by_id(io, id, &reason, handler);
        }
    }

    fn finish_by_id(&self, io: &mut Io, id: u64, reason: &LinkError, handler: &mut dyn Handler) {
        let conn = self.table().conns.get(&id).cloned();
        if let Some(conn) = conn {
            self.finish(io, &conn, reason, handler);
        }
    }
}

impl Fabric for TcpFabric {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn local_addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    fn set_peers(&self, peers: Vec<PeerAddress>) {
        let mut table = self.table();
        table.peers = peers.into_iter().map(|p| (p.node, p)).collect();
    }

    fn link(&self, node: NodeIndex) -> Result<Arc<dyn Link>, LinkError> {
        let mut table = self.table();
        if let Some(conn) = table.opened.get(&node) {
            return Ok(Arc::clone(conn) as Arc<dyn Link>);
        }
        if table.forgotten.contains(&node) {
            return Err(LinkError::UnknownNode(node));
        }
        Ok(self.open(&mut table, node)? as Arc<dyn Link>)
    }

    fn forget(&self, node: NodeIndex) {
        let mut table = self.table();
        table.forgotten.insert(node);
        let both = [table.opened.get(&node), table.accepted.get(&node)];
        let both: Vec<_> = both.into_iter().flatten().cloned().collect();
        drop(table);
        for conn in both {
            conn.close();
        }
    }

    fn progress(&self, handler: &mut dyn Handler, deadline: u64) -> io::Result<()> {
        let mut io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        let opening = self.table().opening.front().map(|(at, _)| *at);
        let half_open = io.half_open.front().map(|(at, _)| *at);
        let deadline = [Some(deadline), opening, half_open];
        let deadline = deadline.into_iter().flatten().min().unwrap_or(u64::MAX);
        let empty = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(WAKER),
        };
        let mut events = [empty; EVENTS];
        let timeout = timeout(deadline);
        let count = match epoll::wait(&self.shared.epoll, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(e) => return Err(e.into()),
        };
        for event in &events[..count] {
            self.event(&mut io, event, handler);
        }
        self.sweep(&mut io, handler);
        Ok(())
    }

    fn wake(&self) {
        self.shared.wake();
    }

    fn close_listener(&self) {
        for (_, listener) in self.table().listeners.drain(..) {
            let _ = epoll::delete(&self.shared.epoll, listener.as_fd());
        }
    }

    fn stats(&self) -> FabricStats {
        let table = self.table();
        let up = table.conns.values().filter(|c| c.is_up()).count();
        self.shared.counters.stats(up as u64)
    }
}

/// Log lines about strangers: at most one a second, with the number of those that were not told.
#[derive(Debug, Default)]
struct Refusals {
    last: u64,
    untold: u64,
}

impl Refusals {
    fn log(&mut self, conn: &Conn, reason: &LinkError) {
        let now = clock::now();
        if self.last != 0 && now.saturating_sub(self.last) < seconds(1) {
            self.untold += 1;
            return;
        }
        let from = rustix::net::getpeername(conn.socket()).ok().flatten();
        let from = from.and_then(|a| SocketAddr::try_from(a).ok());
        let from = from.map_or_else(|| "a closed socket".to_owned(), |a| a.to_string());
        let untold = core::mem::take(&mut self.untold);
        tracing::warn!(%from, %reason, untold, "refused a connection to the data port");
        self.last = now;
    }
}

fn spare() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

fn seconds(n: u64) -> u64 {
    n.saturating_mul(1_000_000_000)
}

fn timeout(deadline: u64) -> Option<Timespec> {
    if deadline == u64::MAX {
        return None;
    }
    let left = Duration::from_nanos(deadline.saturating_sub(clock::now()));
    Timespec::try_from(left).ok()
}
