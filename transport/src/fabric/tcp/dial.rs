//! Connecting: for a new link once to each address of the node, and again only where that closes in the handshake, as it
//! does when very many connect at once; for one whose connection broke until its time is over.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::connection::Connection;
use super::session::Session;
use super::wire::READABLE;
use super::{Io, TcpFabric, seconds};
use crate::clock;
use crate::fabric::{Handler, LinkError};

/// A link that this side opens, or opens again.
#[derive(Debug)]
pub(super) struct Dial {
    session: Arc<Session>,
    /// The connection under way.
    pub(super) token: Option<u64>,
    /// When that is given up, or when the next round begins.
    due: u64,
    /// When the link is given up.
    until: u64,
    /// The next address of the node.
    next: usize,
    /// Addresses of this round at which nobody listens.
    refused: usize,
    /// The pause before the next round.
    pause: u64,
}

/// The first pause between two rounds over a node's addresses, in nanoseconds; it doubles.
const PAUSE: u64 = 20_000_000;
/// The longest such pause.
const LONGEST: u64 = 1_000_000_000;

/// The last pause before a node is asked again that closes in the handshake of a new link.
const BUSY: u64 = 640_000_000;

impl Dial {
    /// When something is to be done.
    pub(super) fn due(&self) -> u64 {
        self.due
    }

    /// Gives the link more time, in nanoseconds.
    pub(super) fn prolong(&mut self, by: u64) {
        let until = self.until.saturating_add(by);
        if self.due == self.until {
            self.due = until;
        }
        self.until = until;
    }
}

impl TcpFabric {
    /// Begins to open a link.
    pub(super) fn dial_first(
        &self,
        io: &mut Io,
        session: &Arc<Session>,
        handler: &mut dyn Handler,
    ) {
        if self.table().sessions.contains_key(&session.id) {
            let reason = LinkError::NoAddress(session.node);
            self.dial(io, session, reason, handler);
        }
    }

    /// A connection of the link broke or did not come up: the next address, the next round, or the end.
    pub(super) fn dial(
        &self,
        io: &mut Io,
        session: &Arc<Session>,
        mut reason: LinkError,
        handler: &mut dyn Handler,
    ) {
        let now = clock::now();
        let limit = if session.is_up() {
            self.config.reconnect_s
        } else {
            self.config.handshake_s.saturating_mul(2)
        };
        let dial = io.dials.entry(session.id).or_insert_with(|| Dial {
            session: Arc::clone(session),
            token: None,
            due: now,
            until: now.saturating_add(seconds(limit)),
            next: 0,
            refused: 0,
            pause: PAUSE,
        });
        if dial.token.take().is_some() && is_refusal(&reason) {
            dial.refused += 1;
        }
        let peer = self.table().peers.get(&session.node).cloned();
        let addresses = peer.map(|peer| peer.addresses).unwrap_or_default();
        while let Some(address) = addresses.get(dial.next) {
            dial.next += 1;
            match self.connect(address, session) {
                Ok(connection) => {
                    dial.token = Some(connection.token);
                    // The last address gets all the time that there is.
                    let left = if dial.next < addresses.len() {
                        now.saturating_add(seconds(self.config.handshake_s) / 2)
                    } else {
                        u64::MAX
                    };
                    dial.due = dial.until.min(left);
                    io.connections.insert(connection.token, connection);
                    return;
                }
                Err(error) => {
                    reason = LinkError::Connect(error);
                    dial.refused += usize::from(is_refusal(&reason));
                }
            }
        }
        // Where nobody listens any more, the node's agent has ended.
        let gone = dial.refused >= addresses.len();
        // Who closes in the handshake has too many of them at the moment, or takes us for a stranger.
        let closed = matches!(reason, LinkError::Closed | LinkError::Network(_));
        let again = session.is_up() || closed && dial.pause <= BUSY;
        if gone || !again || now >= dial.until {
            return self.lose(io, session, &reason, handler);
        }
        dial.next = 0;
        dial.refused = 0;
        // Those who were closed together come back one by one.
        let apart = dial.pause / 64 * (session.number % 64);
        dial.due = now.saturating_add(dial.pause / 2 + apart).min(dial.until);
        dial.pause = (dial.pause * 2).min(LONGEST);
    }

    /// Ends attempts that are past their time, and begins new rounds.
    pub(super) fn redial(&self, io: &mut Io, now: u64, handler: &mut dyn Handler) {
        let due = io.dials.values().filter(|dial| dial.due <= now);
        let due: Vec<_> = due.map(|d| (Arc::clone(&d.session), d.token)).collect();
        for (session, token) in due {
            let reason = LinkError::Connect(io::ErrorKind::TimedOut.into());
            match token {
                Some(token) => self.finish(io, token, reason, handler),
                None => self.dial(io, &session, reason, handler),
            }
        }
    }

    pub(super) fn connect(
        &self,
        address: &SocketAddr,
        session: &Arc<Session>,
    ) -> io::Result<Connection> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        self.tune(&socket)?;
        match rustix::net::connect(&socket, address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let token = self.shared.next_id();
        let interest = READABLE | epoll::EventFlags::OUT;
        let connection = Connection::opening(token, socket, Arc::clone(session));
        self.shared.add(&connection.socket, token, interest)?;
        Ok(connection)
    }
}

/// A number for a link that no other link to the same node has, also of an earlier life of this node.
pub(super) fn number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(u64::from_le_bytes(bytes))
}

fn is_refusal(reason: &LinkError) -> bool {
    matches!(reason, LinkError::Connect(e) if e.kind() == io::ErrorKind::ConnectionRefused)
}
