//! TCP: works anywhere.
//!
//! One listener on each interface in use, on any free port; one link for each direction in which a node sends requests,
//! opened on demand. The I/O thread ([`Fabric::progress`]) connects, accepts, shakes hands and reads; whoever submits a
//! frame while nothing is queued writes it to the socket itself, and the I/O thread sends what the socket did not take.
//!
//! A link outlives its connection: when that breaks, the side that opened it connects again, to the next of the node's
//! addresses, and both go on where they were (`fabric/stream.rs`). Whoever was restarted or has given the link up says so,
//! and the link is lost: after [`TcpConfig::reconnect_s`] seconds at the side that opened it, and, so that it never loses
//! what the other would go on with, later at the one that accepted it.
//!
//! Strangers: a connection that has not proved the key holds nothing but its socket and at most one handshake message; it
//! is closed after [`TcpConfig::handshake_s`] seconds, and when more than [`TcpConfig::half_open`] are in that state, or a
//! quarter of that from one source, the oldest is closed for the newest (`strangers.rs`): a flood of silent connections
//! cannot keep a node of the job out.
//!
//! A dead host or a cut cable ends a connection after [`TcpConfig::silence_s`] seconds by the kernel's own probes
//! (keepalive, TCP_USER_TIMEOUT); nobody wakes up for that.

mod accept;
mod connection;
mod dial;
mod lanes;
mod raw;
pub mod seal;
mod session;
mod shared;
mod wire;

use core::fmt;
use core::sync::atomic::Ordering;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dragon_protocol::handshake::Peer;
use dragon_protocol::key::JobKey;
use dragon_protocol::wire::{FrameHeader, FrameKind};
use dragon_protocol::{Code, NodeIndex};
use rustix::event::{Timespec, epoll};
use rustix::net::sockopt;
use zerocopy::FromZeros;

use self::connection::{Connection, Identity, LANE, Progress, Scratch};
use self::dial::Dial;
use self::lanes::Pauses;
use self::session::Session;
use self::shared::{FIRST_LISTENER, PeerCounters, Shared, WAKER};
use self::wire::READABLE;
use super::{Fabric, FabricStats, Handler, Link, LinkError, PeerAddress, PeerStats, Side};
use crate::descriptors::Spare;
use crate::interface::Rail;
use crate::strangers::{HALF_OPEN, HANDSHAKE, HalfOpen, Refusals, Stranger};
use crate::{clock, descriptors};

/// How a node speaks TCP.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// This node.
    pub node: NodeIndex,
    /// The job key.
    pub key: JobKey,
    /// Addresses to listen on; the port of each is any free one.
    pub listen: Vec<IpAddr>,
    /// How many connections may be in their handshake; one source may have a quarter of that.
    pub half_open: usize,
    /// How long a handshake may take, in seconds; opening a connection may take twice as long.
    pub handshake_s: u64,
    /// After how many seconds of silence a connection counts as cut.
    pub silence_s: u32,
    /// For how many seconds a link whose connection broke is tried to be gone on with; 0: it ends with its connection. All
    /// nodes must agree.
    pub reconnect_s: u64,
    /// Whether what follows the handshake is encrypted. All nodes must agree.
    pub encrypt: bool,
    /// How many connections to have with a node whose link large payloads fill, 1 to [`crate::interface::MOST`]; 0: one for
    /// each of `rails` on which the node listens, too.
    pub connections: usize,
    /// The networks that are to be used together. With none, and for a node that is on none of them, all connections lead
    /// to one address.
    pub rails: Vec<Rail>,
}

impl TcpConfig {
    /// The usual limits, listening on all IPv4 addresses.
    #[must_use]
    pub fn new(node: NodeIndex, key: JobKey) -> Self {
        Self {
            node,
            key,
            listen: vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
            half_open: HALF_OPEN,
            handshake_s: HANDSHAKE.as_secs(),
            silence_s: 10,
            reconnect_s: 5,
            encrypt: false,
            connections: 0,
            rails: Vec::new(),
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
#[derive(Default)]
struct Table {
    listeners: Vec<(u64, OwnedFd)>,
    peers: HashMap<NodeIndex, PeerAddress>,
    counters: HashMap<NodeIndex, Arc<PeerCounters>>,
    forgotten: HashSet<NodeIndex>,
    sessions: HashMap<u64, Arc<Session>>,
    opened: HashMap<NodeIndex, Arc<Session>>,
    accepted: HashMap<NodeIndex, Arc<Session>>,
    /// Links that were asked for and that the I/O thread has not seen yet.
    wanted: Vec<Arc<Session>>,
}

impl Table {
    fn listener(&self, number: u64) -> Option<&OwnedFd> {
        let found = self.listeners.iter().find(|(n, _)| *n == number);
        found.map(|(_, listener)| listener)
    }

    fn counters(&mut self, node: NodeIndex) -> Arc<PeerCounters> {
        Arc::clone(self.counters.entry(node).or_default())
    }
}

/// What the I/O thread alone uses.
struct Io {
    connections: HashMap<u64, Connection>,
    scratch: Scratch,
    /// Accepted connections in their handshake.
    half_open: HalfOpen<u64>,
    /// Links that this side opens, or opens again.
    dials: HashMap<u64, Dial>,
    /// Accepted links without a connection, and when they are given up, in their order.
    broken: VecDeque<(u64, u64)>,
    /// Links that cannot have more lanes for a while.
    pauses: Pauses,
    spare: Spare,
    /// No connection could be accepted, nor turned away: see `accept.rs`.
    stopped: bool,
    refusals: Refusals,
    /// When links give up room for frames that they did not need of late; `u64::MAX`: none has any.
    tidy: u64,
}

/// How many events one wait takes.
const EVENTS: usize = 64;
/// How often the links that were busy are looked at, in seconds.
const TIDY: u64 = 1;
/// How much longer than its opener, in seconds, the other side keeps a link whose connection broke: it may have noticed
/// the break later by the time of silence.
const LONGER: u64 = 3;

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
    /// When the system refuses a socket or an address cannot be listened on.
    pub fn bind(config: TcpConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared::new()?);
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        for (address, number) in config.listen.iter().zip(FIRST_LISTENER..WAKER) {
            let listener = std::net::TcpListener::bind((*address, 0))?;
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
            let listener = OwnedFd::from(listener);
            let token = epoll::EventData::new_u64(number);
            epoll::add(&shared.epoll, &listener, token, accept::WAITING)?;
            listeners.push((number, listener));
        }
        Ok(Self {
            identity: Identity {
                node: config.node,
                key: config.key.clone(),
                encrypt: config.encrypt,
            },
            addresses,
            shared,
            table: Mutex::new(Table {
                listeners,
                ..Table::default()
            }),
            io: Mutex::new(Io {
                connections: HashMap::new(),
                scratch: Scratch::new(config.encrypt),
                half_open: HalfOpen::new(config.half_open),
                dials: HashMap::new(),
                broken: VecDeque::new(),
                pauses: Pauses::default(),
                spare: Spare::take(),
                stopped: false,
                refusals: Refusals::default(),
                tidy: u64::MAX,
            }),
            config,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (token, flags) = ({ event.data }.u64(), { event.flags });
        match token {
            WAKER => self.shared.clear_wake(),
            FIRST_LISTENER..WAKER => self.accept(io, token),
            _ => {
                if let Err(reason) = self.serve(io, token, flags, handler) {
                    self.finish(io, token, reason, handler);
                }
            }
        }
    }

    fn serve(
        &self,
        io: &mut Io,
        token: u64,
        flags: epoll::EventFlags,
        handler: &mut dyn Handler,
    ) -> Result<(), LinkError> {
        let Some(connection) = io.connections.get_mut(&token) else {
            return Ok(());
        };
        let broken = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        if connection.is_connecting() {
            let result = sockopt::socket_error(connection.fd()).map_err(io::Error::from);
            let result = result.and_then(|r| r.map_err(io::Error::from));
            result.map_err(LinkError::Connect)?;
            if flags.intersects(epoll::EventFlags::OUT) {
                let to = connection.session.as_ref().map(|session| session.node);
                connection.connected(&self.identity, to.unwrap_or(NodeIndex::FIRST))?;
                let readable = READABLE;
                let watched = self.shared.watch(&connection.socket, token, readable);
                watched.map_err(LinkError::Network)?;
            }
            return Ok(());
        }
        if flags.intersects(epoll::EventFlags::OUT)
            && let Some(session) = &connection.session
        {
            let result = session.writable();
            if connection.lane.is_some() {
                session.of_a_lane(result);
            } else {
                result.map_err(LinkError::Network)?;
            }
        }
        if !flags.intersects(epoll::EventFlags::IN | broken) {
            return Ok(());
        }
        if connection.stands() {
            return connection.frames(&mut io.scratch, handler);
        }
        match connection.shake(&self.identity)? {
            Progress::Waiting => Ok(()),
            Progress::Asks(peer, open) if open.arg1.get() == LANE => {
                self.lane_asked(io, token, peer, &open)
            }
            Progress::Asks(peer, open) => self.asked(io, token, peer, &open, handler),
            Progress::Agrees(_, open) if connection.lane.is_some() => {
                self.lane_agreed(io, token, &open)
            }
            Progress::Agrees(peer, open) => self.agreed(io, token, peer, &open, handler),
        }
    }

    /// A node that has proved the key opens a link, or goes on with one.
    fn asked(
        &self,
        io: &mut Io,
        token: u64,
        peer: Peer,
        open: &FrameHeader,
        handler: &mut dyn Handler,
    ) -> Result<(), LinkError> {
        let number = open.request.get();
        let mut table = self.table();
        if table.forgotten.contains(&peer.node) {
            return Err(LinkError::UnknownNode(peer.node));
        }
        let known = table.accepted.get(&peer.node);
        let known = known.filter(|session| session.number == number).cloned();
        let new = known.is_none() && open.arg1.get() == 1;
        let session = known.clone().or_else(|| {
            let counters = table.counters(peer.node);
            let shared = Arc::clone(&self.shared);
            let session = || Session::new(Side::Accepted, peer.node, number, counters, shared);
            new.then(|| Arc::new(session()))
        });
        let mut old = None;
        if let Some(session) = session.as_ref().filter(|_| new) {
            old = table.accepted.insert(peer.node, Arc::clone(session));
            table.sessions.insert(session.id, Arc::clone(session));
            self.shared.accepted.fetch_add(1, Ordering::Relaxed);
        }
        drop(table);
        if let Some(old) = old {
            self.lose(io, &old, &LinkError::Superseded, handler);
        }
        // What the old connection has brought and nobody has read comes again on this one.
        if let Some(session) = &session {
            if let Some(before) = session.token() {
                session.detach(before);
                self.drop_connection(io, before);
            }
            self.drop_lanes(io, session);
        }
        if let Some(connection) = io.connections.get_mut(&token) {
            connection.session.clone_from(&session);
        }
        let received = session.as_ref().map_or(0, |session| session.received());
        let known = session.is_some();
        let (Some(session), Some(connection)) =
            (session, self.answer(io, token, open, known, received)?)
        else {
            return Ok(());
        };
        let sealer = connection.sealer();
        let socket = Arc::clone(&connection.socket);
        io.broken.retain(|(_, id)| *id != session.id);
        let (offset, received) = (peer.clock_offset, open.arg0.get());
        let open = (open.deadline.get(), received);
        let limit = seconds(self.config.reconnect_s);
        let stands = session.attach(socket, token, offset, open, limit, sealer);
        self.stood(&session, new, handler);
        stands
    }

    /// Answers who has proved the key, a stranger no more, and asks for a link or for a further lane of one. `known`: it is to
    /// be had; `received`: frames of the link that are here.
    fn answer<'a>(
        &self,
        io: &'a mut Io,
        token: u64,
        open: &FrameHeader,
        known: bool,
        received: u64,
    ) -> Result<Option<&'a mut Connection>, LinkError> {
        self.proved(io, token);
        let Some(connection) = io.connections.get_mut(&token) else {
            return Ok(None);
        };
        self.tune(&connection.socket).map_err(LinkError::Network)?;
        let code = if known { Code::Ok } else { Code::Unreachable };
        connection.agree(&FrameHeader {
            kind: FrameKind::Open as u8,
            status: code.to_i32().into(),
            request: open.request,
            arg0: received.into(),
            ..FrameHeader::new_zeroed()
        })?;
        if known {
            Ok(Some(connection))
        } else {
            Err(LinkError::Ended)
        }
    }

    /// The node agrees to a link that this side opened.
    fn agreed(
        &self,
        io: &mut Io,
        token: u64,
        peer: Peer,
        open: &FrameHeader,
        handler: &mut dyn Handler,
    ) -> Result<(), LinkError> {
        let Some(connection) = io.connections.get_mut(&token) else {
            return Ok(());
        };
        let Some(session) = connection.session.clone() else {
            return Err(LinkError::ClosedHere);
        };
        if open.request.get() != session.number || open.status.get() != Code::Ok.to_i32() {
            return Err(LinkError::Ended);
        }
        let sealer = connection.sealer();
        let socket = Arc::clone(&connection.socket);
        io.dials.remove(&session.id);
        let new = !session.is_up();
        let (offset, received) = (peer.clock_offset, open.arg0.get());
        let limit = seconds(self.config.reconnect_s);
        let stands = session.attach(socket, token, offset, (token, received), limit, sealer);
        if new && session.is_up() {
            self.shared.opened.fetch_add(1, Ordering::Relaxed);
        }
        self.stood(&session, new, handler);
        stands
    }

    /// The link stands, for the first time or again.
    fn stood(&self, session: &Arc<Session>, new: bool, handler: &mut dyn Handler) {
        if !new {
            session.peer.reconnected();
        } else if session.is_up() {
            handler.up(&(Arc::clone(session) as Arc<dyn Link>));
        }
    }

    /// The end of a connection, and perhaps of its link.
    fn finish(&self, io: &mut Io, token: u64, reason: LinkError, handler: &mut dyn Handler) {
        let stranger = io.half_open.leave(|t| *t == token);
        let Some(connection) = self.take_connection(io, token) else {
            return;
        };
        match (connection.session.clone(), stranger) {
            (Some(session), _) if connection.lane.is_some() => {
                self.without_lane(io, &session, &connection, reason, handler);
            }
            (Some(session), _) => self.without(io, &session, token, reason, handler),
            (None, Some(stranger)) => self.refuse(io, stranger.from, &reason),
            // It proved the key, and its link is not to be had.
            (None, None) => tracing::debug!(%reason, "a connection came to no link"),
        }
        // Last: who sees the end of the stream may rely on everything above.
        close(connection);
    }

    /// A link has lost a connection.
    fn without(
        &self,
        io: &mut Io,
        session: &Arc<Session>,
        token: u64,
        reason: LinkError,
        handler: &mut dyn Handler,
    ) {
        session.detach(token);
        if session.token().is_none() {
            self.drop_lanes(io, session);
        }
        let over = matches!(
            reason,
            LinkError::Malformed(_)
                | LinkError::Ended
                | LinkError::ClosedHere
                | LinkError::Stuck(_)
        );
        let stood_and_ends = self.config.reconnect_s == 0 && session.is_up();
        if over || stood_and_ends && session.token().is_none() {
            return self.lose(io, session, &reason, handler);
        }
        match session.side {
            Side::Opened => self.dial(io, session, reason, handler),
            Side::Accepted if session.token().is_none() => {
                let kept =
                    seconds(self.config.reconnect_s * LONGER + u64::from(self.config.silence_s));
                let until = clock::now().saturating_add(kept);
                io.broken.push_back((until, session.id));
            }
            Side::Accepted => {}
        }
    }

    fn turn_away(&self, io: &mut Io, stranger: &Stranger<u64>, reason: &LinkError) {
        self.refuse(io, stranger.from, reason);
        self.drop_connection(io, stranger.connection);
    }

    fn refuse(&self, io: &mut Io, from: SocketAddr, reason: &LinkError) {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(untold) = io.refusals.tell(from, clock::now()) {
            tracing::warn!(%from, %reason, untold, "refused a connection to the data port");
        }
    }

    fn drop_connection(&self, io: &mut Io, token: u64) {
        if let Some(connection) = self.take_connection(io, token) {
            close(connection);
        }
    }

    fn take_connection(&self, io: &mut Io, token: u64) -> Option<Connection> {
        let connection = io.connections.remove(&token)?;
        self.proved(io, token);
        // It fails only for a socket that is gone already.
        let _ = epoll::delete(&self.shared.epoll, &connection.socket);
        Some(connection)
    }

    /// A connection is in its handshake no more.
    fn proved(&self, io: &mut Io, token: u64) {
        io.half_open.leave(|t| *t == token);
        let half_open = io.half_open.len() as u64;
        self.shared.half_open.store(half_open, Ordering::Relaxed);
    }

    /// The end of a link, whatever state it was in.
    fn lose(
        &self,
        io: &mut Io,
        session: &Arc<Session>,
        reason: &LinkError,
        handler: &mut dyn Handler,
    ) {
        let mut table = self.table();
        if table.sessions.remove(&session.id).is_none() {
            return;
        }
        let map = match session.side {
            Side::Opened => &mut table.opened,
            Side::Accepted => &mut table.accepted,
        };
        if map.get(&session.node).is_some_and(|s| s.id == session.id) {
            map.remove(&session.node);
        }
        // Under the lock, so that nobody submits to a link that is no longer to be found.
        let token = session.token();
        let unsent = session.end();
        drop(table);
        let under_way = io.dials.remove(&session.id).and_then(|dial| dial.token);
        io.broken.retain(|(_, id)| *id != session.id);
        self.drop_lanes(io, session);
        io.pauses.forget(session.id);
        let link = Arc::clone(session) as Arc<dyn Link>;
        handler.lost(&link, session.is_up(), reason, unsent);
        // Last: who sees the end of the stream may rely on everything above.
        for token in [token, under_way].into_iter().flatten() {
            self.drop_connection(io, token);
        }
    }

    /// Does what other threads want, and ends what is over a limit or past its deadline.
    fn sweep(&self, io: &mut Io, handler: &mut dyn Handler) {
        let now = clock::now();
        for token in self.shared.take_broken() {
            let reason = LinkError::Network(io::ErrorKind::BrokenPipe.into());
            self.finish(io, token, reason, handler);
        }
        for id in self.shared.take_doomed() {
            let session = self.table().sessions.get(&id).cloned();
            if let Some(session) = session {
                session.say_end();
                self.lose(io, &session, &LinkError::ClosedHere, handler);
            }
        }
        let wanted = core::mem::take(&mut self.table().wanted);
        for session in wanted {
            self.dial_first(io, &session, handler);
        }
        while let Some(stranger) = io.half_open.surplus() {
            self.turn_away(io, &stranger, &LinkError::HalfOpen);
        }
        while let Some(stranger) = io.half_open.overdue(now) {
            let reason = LinkError::Silent(self.config.handshake_s);
            self.turn_away(io, &stranger, &reason);
        }
        while let Some(&(_, id)) = io.broken.front().filter(|(until, _)| *until <= now) {
            io.broken.pop_front();
            let session = self.table().sessions.get(&id).cloned();
            if let Some(session) = session {
                let reason = LinkError::Network(io::ErrorKind::TimedOut.into());
                self.lose(io, &session, &reason, handler);
            }
        }
        self.redial(io, now, handler);
        self.look_for_lanes(io, now, handler);
        self.descriptor_free(io);
        self.tidy(io, now);
    }

    /// Some time after a link was busy, and until it keeps no more room than an idle one: what it did not use meanwhile goes.
    fn tidy(&self, io: &mut Io, now: u64) {
        if io.tidy <= now {
            io.tidy = u64::MAX;
            let sessions: Vec<_> = self.table().sessions.values().cloned().collect();
            for session in sessions {
                if session.tidy() {
                    self.shared.roomy.store(true, Ordering::Relaxed);
                }
            }
        }
        let roomy = &self.shared.roomy;
        if io.tidy == u64::MAX && roomy.load(Ordering::Relaxed) {
            roomy.store(false, Ordering::Relaxed);
            io.tidy = now.saturating_add(seconds(TIDY));
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
        if let Some(session) = table.opened.get(&node) {
            return Ok(Arc::clone(session) as Arc<dyn Link>);
        }
        let unknown = table.forgotten.contains(&node);
        let peer = table.peers.get(&node).filter(|_| !unknown);
        let peer = peer.ok_or(LinkError::UnknownNode(node))?;
        if peer.addresses.is_empty() {
            return Err(LinkError::NoAddress(node));
        }
        let number = dial::number().map_err(LinkError::Connect)?;
        let counters = table.counters(node);
        let shared = Arc::clone(&self.shared);
        let session = Session::new(Side::Opened, node, number, counters, shared);
        let session = Arc::new(session);
        table.sessions.insert(session.id, Arc::clone(&session));
        table.opened.insert(node, Arc::clone(&session));
        table.wanted.push(Arc::clone(&session));
        drop(table);
        self.shared.wake();
        Ok(session as Arc<dyn Link>)
    }

    fn forget(&self, node: NodeIndex) {
        let mut table = self.table();
        table.forgotten.insert(node);
        let both = [table.opened.get(&node), table.accepted.get(&node)];
        let both: Vec<_> = both.into_iter().flatten().cloned().collect();
        drop(table);
        for session in both {
            session.close();
        }
    }

    fn progress(&self, handler: &mut dyn Handler, deadline: u64) -> io::Result<()> {
        let mut io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        let half_open = io.half_open.next_deadline();
        let broken = io.broken.front().map(|(at, _)| *at);
        let dial = io.dials.values().map(Dial::due).min();
        let lane = io.pauses.next_due();
        let deadline = [Some(deadline), dial, half_open, broken, Some(io.tidy), lane];
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

    fn longest_silence(&self) -> u64 {
        seconds(u64::from(self.config.silence_s).saturating_add(self.config.reconnect_s))
    }

    fn close_listener(&self) {
        for (_, listener) in self.table().listeners.drain(..) {
            let _ = epoll::delete(&self.shared.epoll, listener.as_fd());
        }
    }

    fn stats(&self) -> FabricStats {
        let table = self.table();
        let up = table.sessions.values().filter(|s| s.is_up()).count();
        let peers: Vec<PeerStats> = table.counters.values().map(|c| c.stats()).collect();
        self.shared.stats(up as u64, &peers)
    }

    fn peers(&self) -> Vec<PeerStats> {
        let table = self.table();
        let counters = table.counters.iter().map(|(node, counters)| {
            let of = |s: &&Arc<Session>| s.node == *node;
            let sessions: Vec<_> = table.sessions.values().filter(of).collect();
            PeerStats {
                node: *node,
                links: sessions.iter().filter(|s| s.is_up()).count() as u64,
                queued: sessions.iter().map(|s| s.queued()).sum(),
                unacknowledged: sessions.iter().map(|s| s.unacknowledged()).sum(),
                ..counters.stats()
            }
        });
        counters.collect()
    }
}

fn close(connection: Connection) {
    // It fails only for a socket that is gone already.
    let _ = rustix::net::shutdown(&connection.socket, rustix::net::Shutdown::Both);
    drop(connection);
    descriptors::freed();
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
