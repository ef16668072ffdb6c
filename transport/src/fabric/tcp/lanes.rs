//! Further lanes of a connection: opened by the side that opened the link when large payloads wait for the socket at either
//! end, one to each of the other networks that both nodes are on, or as many as were asked for; given up when nothing
//! has passed on them for a second or two: the opener says the last on them, and the acceptor closes them when what it has
//! sent on them has arrived. A lane that cannot be had is tried again after a pause, when it is wanted.

use core::net::SocketAddr;
use std::collections::HashMap;
use std::sync::Arc;

use dragon_protocol::handshake::Peer;
use dragon_protocol::wire::FrameHeader;
use dragon_protocol::{Code, NodeIndex};
use rustix::net::sockopt;

use super::connection::{Connection, Lane};
use super::session::{LANES, Session};
use super::{Io, TcpFabric, seconds};
use crate::clock;
use crate::fabric::{Handler, LinkError};

/// The first pause after a lane was lost or not to be had, in nanoseconds; it doubles.
const PAUSE: u64 = 100_000_000;
/// The longest pause after one that was not to be had,
const LONGEST: u64 = 5_000_000_000;
/// and after one that broke with pieces under way. Each of those costs the connection and a time of silence; one that lets the
/// handshake through and nothing large would do so for ever.
const LONGEST_BROKEN: u64 = 300_000_000_000;

/// When lanes that were not to be had are tried again, and those that are being opened given up.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// For each link and lane: not before, and the next pause.
    until: HashMap<(u64, usize), (u64, u64)>,
    /// The lanes that are being opened: their connections, and when they are given up.
    opening: Vec<(u64, u64)>,
}

impl Pauses {
    /// When something is to be done.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.opening.iter().map(|(due, _)| *due).min()
    }

    /// A link has ended.
    pub(super) fn forget(&mut self, link: u64) {
        self.until.retain(|(id, _), _| *id != link);
    }

    fn failed(&mut self, link: u64, lane: usize, longest: u64, now: u64) {
        let (until, pause) = self.until.entry((link, lane)).or_insert((0, PAUSE));
        *until = now.saturating_add(*pause);
        // One that is not to be had now may be the same that broke.
        *pause = (*pause * 2).min(longest.max(*pause));
    }
}

impl TcpFabric {
    /// How many connections there are with a node now, on which anything may be sent.
    #[must_use]
    pub fn connections(&self, node: NodeIndex) -> usize {
        let table = self.table();
        let of_node = table.sessions.values().filter(|s| s.node == node);
        let stand = of_node.filter(|session| session.token().is_some());
        stand.map(|session| 1 + session.lanes()).sum()
    }

    /// Opens the lanes that are wanted, and gives up those that take too long.
    pub(super) fn look_for_lanes(&self, io: &mut Io, now: u64, handler: &mut dyn Handler) {
        let opening = &io.pauses.opening;
        let late = opening.iter().filter(|(due, _)| *due <= now);
        for token in late.map(|(_, token)| *token).collect::<Vec<_>>() {
            let reason = LinkError::Connect(std::io::ErrorKind::TimedOut.into());
            self.finish(io, token, reason, handler);
        }
        for id in self.shared.take_wanted_lanes() {
            let session = self.table().sessions.get(&id).cloned();
            if let Some(session) = session {
                self.open_lanes(io, &session, now);
            }
        }
    }

    fn open_lanes(&self, io: &mut Io, session: &Arc<Session>, now: u64) {
        let (Some((_, first)), Some(connection)) = (session.first_lane(), session.connection())
        else {
            return;
        };
        let Ok(Some(there)) = rustix::net::getpeername(&first) else {
            return;
        };
        let Ok(there) = SocketAddr::try_from(there) else {
            return;
        };
        let addresses = self.lane_addresses(session.node, there);
        session.set_most_lanes(addresses.len());
        let of_link = |c: &&Connection| c.session.as_ref().is_some_and(|s| s.id == session.id);
        let lanes = io.connections.values().filter(of_link);
        let have: Vec<usize> = lanes.filter_map(|c| Some(c.lane?.index)).collect();
        for (index, address) in addresses.iter().enumerate() {
            let pause = io.pauses.until.get(&(session.id, index));
            if have.contains(&index) || pause.is_some_and(|(until, _)| now < *until) {
                continue;
            }
            let Ok(mut lane) = self.connect(address, session) else {
                io.pauses.failed(session.id, index, LONGEST, now);
                continue;
            };
            // It costs little to do without it, so a cut is noticed sooner than that of the first.
            self.tune_lane(&lane);
            let due = now.saturating_add(seconds(self.config.handshake_s));
            lane.becomes(Lane {
                connection,
                index,
                due,
            });
            io.pauses.opening.push((due, lane.token));
            io.connections.insert(lane.token, lane);
        }
    }

    /// Where the further lanes of a connection lead whose first leads there.
    fn lane_addresses(&self, node: NodeIndex, there: SocketAddr) -> Vec<SocketAddr> {
        let all = self.table().peers.get(&node).cloned();
        let all = all.map(|peer| peer.addresses).unwrap_or_default();
        // One for each network that both are on.
        let rails = self.config.rails.iter();
        let mut rails: Vec<SocketAddr> = rails
            .filter_map(|rail| all.iter().find(|address| rail.leads_to(address.ip())))
            .copied()
            .collect();
        if rails.is_empty() {
            rails.push(there);
        }
        let more = match self.config.connections {
            0 => rails.len() - usize::from(rails.contains(&there)),
            count => count - 1,
        };
        let first = rails.iter().position(|address| *address == there);
        let next = first.map_or(0, |at| at + 1);
        let others = rails.iter().cycle().skip(next).copied();
        others.take(more.min(LANES)).collect()
    }

    /// After how many seconds a further lane counts as cut.
    fn lane_silence(&self) -> u32 {
        (self.config.silence_s / 3).max(3)
    }

    fn tune_lane(&self, lane: &Connection) {
        let silence = self.lane_silence();
        // Without it the lane is only given up later.
        let _ = sockopt::set_tcp_user_timeout(&lane.socket, silence.saturating_mul(1000));
    }

    /// A node that has proved the key opens a further lane of a connection.
    pub(super) fn lane_asked(
        &self,
        io: &mut Io,
        token: u64,
        peer: Peer,
        open: &FrameHeader,
    ) -> Result<(), LinkError> {
        let table = self.table();
        if table.forgotten.contains(&peer.node) {
            return Err(LinkError::UnknownNode(peer.node));
        }
        let number = open.deadline.get();
        let session = table.accepted.get(&peer.node).cloned();
        drop(table);
        let session = session.filter(|session| {
            session.number == open.request.get()
                && session.connection() == Some(number)
                && session.lanes() < LANES
        });
        let known = session.is_some();
        let (Some(session), Some(connection)) = (session, self.answer(io, token, open, known, 0)?)
        else {
            return Ok(());
        };
        self.tune_lane(connection);
        connection.session = Some(Arc::clone(&session));
        connection.becomes(Lane {
            connection: number,
            index: 0,
            due: u64::MAX,
        });
        let (socket, sealer) = (Arc::clone(&connection.socket), connection.sealer());
        session.attach_lane(socket, token, number, sealer)
    }

    /// The node agrees to a lane that this side opened.
    pub(super) fn lane_agreed(
        &self,
        io: &mut Io,
        token: u64,
        open: &FrameHeader,
    ) -> Result<(), LinkError> {
        let Some(connection) = io.connections.get_mut(&token) else {
            return Ok(());
        };
        let (Some(session), Some(lane)) = (connection.session.clone(), connection.lane.as_mut())
        else {
            return Err(LinkError::ClosedHere);
        };
        if open.request.get() != session.number || open.status.get() != Code::Ok.to_i32() {
            return Err(LinkError::Ended);
        }
        lane.due = u64::MAX;
        let number = lane.connection;
        io.pauses.opening.retain(|(_, opening)| *opening != token);
        let (socket, sealer) = (Arc::clone(&connection.socket), connection.sealer());
        session.attach_lane(socket, token, number, sealer)
    }

    /// A further lane broke or did not come up. Where a piece may have been lost with it the connection breaks, and the
    /// link goes on with another, from the first frame that has not arrived.
    pub(super) fn without_lane(
        &self,
        io: &mut Io,
        session: &Arc<Session>,
        lane: &Connection,
        reason: LinkError,
        handler: &mut dyn Handler,
    ) {
        io.pauses.opening.retain(|(_, token)| *token != lane.token);
        let first = session.token();
        let of_this = lane
            .lane
            .is_some_and(|l| session.connection() == Some(l.connection));
        let opening = lane.lane.is_some_and(|l| l.due != u64::MAX);
        let breaks = session.detach_lane(lane.token) || matches!(reason, LinkError::Malformed(_));
        if let Some(Lane { index, .. }) = lane.lane {
            if opening || breaks {
                let longest = if breaks { LONGEST_BROKEN } else { LONGEST };
                io.pauses.failed(session.id, index, longest, clock::now());
            } else {
                io.pauses.until.remove(&(session.id, index));
            }
        }
        if let Some(first) = first.filter(|_| breaks && of_this) {
            tracing::debug!(link = session.id, %reason, "a lane broke with pieces under way");
            self.finish(io, first, reason, handler);
            // A node that is stopped for a while takes nothing either: it is waited for as long as without lanes.
            if let Some(dial) = io.dials.get_mut(&session.id) {
                let sooner = self.config.silence_s.saturating_sub(self.lane_silence());
                dial.prolong(seconds(sooner.into()));
            }
        }
    }

    /// Drops the further lanes of a link's connection, which has ended.
    pub(super) fn drop_lanes(&self, io: &mut Io, session: &Session) {
        let of_link = |c: &&Connection| {
            c.lane.is_some() && c.session.as_ref().is_some_and(|s| s.id == session.id)
        };
        let lanes = io.connections.values().filter(of_link);
        for token in lanes.map(|c| c.token).collect::<Vec<_>>() {
            io.pauses.opening.retain(|(_, opening)| *opening != token);
            self.drop_connection(io, token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes on the first lane between two breaks grows, however large a frame is.
    #[test]
    fn a_lane_that_breaks_again_and_again_is_left_alone_for_longer_and_longer() {
        let mut pauses = Pauses::default();
        let mut pause = |longest| {
            pauses.failed(1, 0, longest, 10);
            pauses.until[&(1, 0)].0 - 10
        };
        let broken: Vec<u64> = (0..16).map(|_| pause(LONGEST_BROKEN)).collect();
        assert!(
            broken.is_sorted() && broken[..11].is_sorted_by(|a, b| a < b),
            "{broken:?}"
        );
        assert_eq!((broken[0], broken[15]), (PAUSE, LONGEST_BROKEN));
        // It does not become better by not coming up.
        assert_eq!(pause(LONGEST), LONGEST_BROKEN);
        pauses.forget(1);
        let mut pause = |longest| {
            pauses.failed(1, 0, longest, 10);
            pauses.until[&(1, 0)].0 - 10
        };
        assert_eq!((0..16).map(|_| pause(LONGEST)).last(), Some(LONGEST));
    }
}
