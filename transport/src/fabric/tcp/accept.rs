//! Accepting: what comes to a listener becomes a stranger, and what nobody can take is turned away.
//!
//! Without a descriptor for it a connection stays in the listener's queue and keeps that readable. It is accepted and
//! closed with the spare descriptor. Where even that is not to be had (another thread of the process took it), the
//! listeners are watched for new connections only, until a descriptor is free: nobody spins.

use core::sync::atomic::Ordering;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, sockopt};

use super::connection::Connection;
use super::wire::READABLE;
use super::{Io, TcpFabric, seconds};
use crate::{clock, descriptors};

/// Where a connection comes from that was gone before that could be seen.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// How many connections are accepted before others get their turn.
const ACCEPTS: usize = 64;
/// How a connection is accepted.
const ACCEPTED: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);
/// Listeners are watched for connections that wait,
pub(super) const WAITING: EventFlags = EventFlags::IN;
/// or, after one could not be taken, for those that come.
const COMING: EventFlags = EventFlags::IN.union(EventFlags::ET);

impl TcpFabric {
    /// A listener has connections.
    pub(super) fn accept(&self, io: &mut Io, number: u64) {
        for _ in 0..ACCEPTS {
            let accepted = match self.table().listener(number) {
                Some(listener) => rustix::net::acceptfrom_with(listener, ACCEPTED),
                None => return,
            };
            match accepted {
                Ok((socket, from)) => {
                    let from = from.and_then(|a| SocketAddr::try_from(a).ok());
                    self.accepted(io, socket, from.unwrap_or(NOWHERE));
                }
                Err(Errno::AGAIN) => return self.listen_on(io),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    return self.turn_away_unseen(io, number);
                }
                // Errors of the connection that was to be accepted; the next one may be well.
                Err(_) => {}
            }
        }
        self.listen_on(io);
    }

    fn accepted(&self, io: &mut Io, socket: OwnedFd, from: SocketAddr) {
        // Handshake messages must not wait for each other.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let token = self.shared.next_id();
        let connection = Connection::accepted(token, socket);
        if let Err(error) = self.shared.add(&connection.socket, token, READABLE) {
            tracing::warn!(%error, "a connection cannot be watched and was closed");
            return;
        }
        io.connections.insert(token, connection);
        let limit = seconds(self.config.handshake_s);
        let until = clock::now().saturating_add(limit);
        io.half_open.enter(token, from, until);
        let half_open = io.half_open.len() as u64;
        self.shared.half_open.store(half_open, Ordering::Relaxed);
    }

    /// A connection cannot be accepted for want of a descriptor or of memory.
    fn turn_away_unseen(&self, io: &mut Io, number: u64) {
        let mut taken = Err(Errno::MFILE);
        let spare = io.spare.without(|| {
            if let Some(listener) = self.table().listener(number) {
                taken = rustix::net::accept_with(listener, ACCEPTED).map(drop);
            }
        });
        let closed = taken.is_ok();
        if let Some(untold) = io.refusals.tell(NOWHERE, clock::now()) {
            tracing::warn!(
                untold,
                closed,
                "no file descriptor or memory left for a connection: it was closed, or waits"
            );
        }
        // While others take what this thread gives away it waits until a descriptor is free.
        let goes_on = spare && matches!(taken, Ok(()) | Err(Errno::AGAIN));
        if !goes_on && !io.stopped {
            self.stop_listening(io);
        }
    }

    fn stop_listening(&self, io: &mut Io) {
        io.stopped = true;
        let shared = Arc::clone(&self.shared);
        descriptors::when_free(move || {
            shared.free.store(true, Ordering::Release);
            shared.wake();
        });
        // Where connections wait they are told of once more, now that a free descriptor is not overlooked.
        self.watch_listeners(COMING);
    }

    /// After connections were accepted, or a descriptor may be free: back to the usual, where a spare one can be had again.
    pub(super) fn listen_on(&self, io: &mut Io) {
        if !io.stopped {
            return;
        }
        if io.spare.regain() {
            io.stopped = false;
            self.watch_listeners(WAITING);
        }
    }

    /// A descriptor may be free.
    pub(super) fn descriptor_free(&self, io: &mut Io) {
        if self.shared.free.swap(false, Ordering::AcqRel) {
            self.listen_on(io);
            if io.stopped {
                self.stop_listening(io);
            }
        }
    }

    fn watch_listeners(&self, events: EventFlags) {
        for (number, listener) in &self.table().listeners {
            let token = epoll::EventData::new_u64(*number);
            if let Err(error) = epoll::modify(&self.shared.epoll, listener, token, events) {
                tracing::warn!(%error, "a listener cannot be watched as it should");
            }
        }
    }
}
