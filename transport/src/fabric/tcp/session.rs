//! A link over TCP: what any thread may use of it. It outlives its connections.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dragon_protocol::NodeIndex;
use dragon_protocol::wire::{FrameHeader, FrameKind};
use rustix::event::epoll;
use zerocopy::FromZeros;

use super::seal::Sealer;
use super::shared::{PeerCounters, Shared};
use super::wire::{Outgoing, Step, Wire};
use crate::clock;
use crate::fabric::stream::{Assembly, Window};
use crate::fabric::{Frame, Link, LinkError, Side};

/// A link.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) side: Side,
    pub(super) node: NodeIndex,
    /// Its number, chosen by the side that opened it.
    pub(super) number: u64,
    pub(super) peer: Arc<PeerCounters>,
    clock_offset: AtomicI64,
    up: AtomicBool,
    /// Numbered frames received on all its connections.
    received: AtomicU64,
    /// How many of them the other side has been told of.
    told: AtomicU64,
    out: Mutex<Out>,
    /// What came ahead of its turn; the I/O thread's alone.
    assembly: Mutex<Assembly>,
    /// Pieces have passed since that was last looked at.
    lanes_used: AtomicBool,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Out {
    closed: bool,
    /// The connection's first lane, when there is one that has completed its handshake.
    wire: Option<Wire>,
    /// What the side that opened the link calls that connection.
    connection: u64,
    /// The connection's further lanes.
    lanes: Vec<Wire>,
    window: Window,
    /// An acknowledgement is wanted.
    acknowledge: bool,
    /// When more lanes were asked for last.
    asked: u64,
    /// The next acknowledgement says that more lanes could be used.
    wants_lanes: bool,
    /// How many further lanes there may be.
    most: usize,
    /// What connections have not brought to the other side.
    stuck: Option<Stuck>,
}

/// The oldest frame that the other side did not have when a connection stood.
#[derive(Debug)]
struct Stuck {
    frame: u64,
    /// When the first connection stood with which it could have gone.
    since: u64,
    /// How many stood since, that one not counted.
    again: u32,
}

/// So many connections are made again for the same frame at least.
const AGAIN: u32 = 3;

/// Bytes that wait for others before they are sent.
const TOGETHER: u64 = 64 << 10;

/// Further lanes that a connection may have.
pub(super) const LANES: usize = crate::interface::MOST - 1;
/// How often lanes are asked for at most where there are none, in nanoseconds.
const ASK: u64 = 100_000_000;
/// How often more are where there are some.
const ASK_MORE: u64 = 1_000_000_000;

/// Frames and bytes received that the other side may keep a copy of before it is told that it need not.
const UNTOLD: u64 = 32;

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("side", &self.side)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(
        side: Side,
        node: NodeIndex,
        number: u64,
        peer: Arc<PeerCounters>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            id: shared.next_id(),
            side,
            node,
            number,
            peer,
            clock_offset: AtomicI64::new(0),
            up: AtomicBool::new(false),
            received: AtomicU64::new(0),
            told: AtomicU64::new(0),
            out: Mutex::new(Out {
                closed: false,
                wire: None,
                connection: 0,
                lanes: Vec::new(),
                window: Window::default(),
                acknowledge: false,
                asked: 0,
                wants_lanes: false,
                most: LANES,
                stuck: None,
            }),
            assembly: Mutex::default(),
            lanes_used: AtomicBool::new(false),
            shared,
        }
    }

    /// Whether it ever stood.
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Numbered frames received so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// A numbered frame is about to be handed on.
    pub(super) fn count_received(&self) {
        // One thread alone writes it.
        let received = self.received.load(Ordering::Relaxed);
        self.received.store(received + 1, Ordering::Release);
    }

    /// A connection stands: what the other side lacks is sent on it. `open`: what the opener calls the connection, and how
    /// many frames the other side has. `limit`: for how long, in nanoseconds, the same frame is tried again at least.
    ///
    /// # Errors
    /// When the link is closed, the other side claims what cannot be, a frame does not get through, or the network fails.
    pub(super) fn attach(
        &self,
        socket: Arc<OwnedFd>,
        token: u64,
        clock_offset: i64,
        open: (u64, u64),
        limit: u64,
        sealer: Option<Sealer>,
    ) -> Result<(), LinkError> {
        let (connection, received) = open;
        let mut out = self.out();
        if out.closed {
            return Err(LinkError::ClosedHere);
        }
        *self.assembly() = Assembly::default();
        out.lanes = Vec::new();
        out.window.resume(received)?;
        out.get_through(limit)?;
        out.wire = Some(Wire::new(socket, token, true, sealer));
        (out.connection, out.acknowledge) = (connection, false);
        self.told.store(self.received(), Ordering::Relaxed);
        self.clock_offset.store(clock_offset, Ordering::Relaxed);
        self.up.store(true, Ordering::Release);
        self.write(&mut out).map_err(LinkError::Network)
    }

    /// The connection broke, unless the link has another by now.
    pub(super) fn detach(&self, token: u64) {
        let mut out = self.out();
        if out.wire.as_ref().is_some_and(|wire| wire.token == token) {
            out.wire = None;
            out.lanes = Vec::new();
            out.window.broke();
            *self.assembly() = Assembly::default();
        }
    }

    /// What the opener calls the connection that it has.
    pub(super) fn connection(&self) -> Option<u64> {
        let out = self.out();
        out.wire.as_ref().map(|_| out.connection)
    }

    /// Its first lane.
    pub(super) fn first_lane(&self) -> Option<(u64, Arc<OwnedFd>)> {
        let out = self.out();
        let wire = out.wire.as_ref();
        wire.map(|wire| (wire.token, Arc::clone(&wire.socket)))
    }

    /// A further lane of the connection stands.
    ///
    /// # Errors
    /// When there is no such connection any more, or it has enough.
    pub(super) fn attach_lane(
        &self,
        socket: Arc<OwnedFd>,
        token: u64,
        connection: u64,
        sealer: Option<Sealer>,
    ) -> Result<(), LinkError> {
        let mut out = self.out();
        if out.wire.is_none() || out.connection != connection || out.lanes.len() >= LANES {
            return Err(LinkError::Ended);
        }
        out.lanes.push(Wire::new(socket, token, false, sealer));
        self.lanes_used.store(true, Ordering::Relaxed);
        self.shared.roomy.store(true, Ordering::Relaxed);
        self.send(out);
        Ok(())
    }

    /// A further lane is gone. Returns whether the connection must go with it: a piece may have been lost.
    pub(super) fn detach_lane(&self, token: u64) -> bool {
        let mut out = self.out();
        let Some(at) = out.lanes.iter().position(|lane| lane.token == token) else {
            return false;
        };
        let lane = out.lanes.swap_remove(at);
        // What was lost on the way to this side is at stake for the other, which sees the end as well, but perhaps later. From
        // a lane that is being closed nothing is expected.
        lane.is_at_stake(&out.window) || !lane.is_closing() && !self.assembly().is_idle()
    }

    /// The other side sends nothing more on a further lane; nor does this side.
    pub(super) fn lane_ends(&self, token: u64) {
        let mut out = self.out();
        let lane = out.lanes.iter_mut().find(|lane| lane.token == token);
        lane.into_iter().for_each(Wire::close);
        self.close_lanes(&out);
    }

    /// Closes the lanes on which the side that opened them has said the last, once that has all that went on them: what is
    /// under way when a lane is closed can so never be lost with it.
    fn close_lanes(&self, out: &Out) {
        if self.side == Side::Accepted {
            let closing = out.lanes.iter().filter(|lane| lane.is_closing());
            let over = closing.filter(|lane| !lane.is_at_stake(&out.window));
            over.for_each(|lane| self.shared.broken(lane.token));
        }
    }

    /// How many further lanes there may be, as the side that opens them has found.
    pub(super) fn set_most_lanes(&self, most: usize) {
        self.out().most = most;
    }

    /// How many further lanes there are.
    pub(super) fn lanes(&self) -> usize {
        self.out().lanes.len()
    }

    /// Pieces pass.
    pub(super) fn uses_lanes(&self) {
        self.lanes_used.store(true, Ordering::Relaxed);
    }

    /// What came ahead of its turn.
    pub(super) fn assembly(&self) -> MutexGuard<'_, Assembly> {
        self.assembly.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that it has.
    pub(super) fn token(&self) -> Option<u64> {
        self.out().wire.as_ref().map(|wire| wire.token)
    }

    /// The socket takes bytes again.
    pub(super) fn writable(&self) -> io::Result<()> {
        self.write(&mut self.out())
    }

    /// The other side has so many frames.
    pub(super) fn acknowledged(&self, count: u16) -> io::Result<()> {
        let mut out = self.out();
        let waited = !out.window.is_ready() && out.window.queued() > 0;
        out.window.acknowledged(count);
        if out.window.is_roomy() {
            self.shared.roomy.store(true, Ordering::Relaxed);
        }
        self.close_lanes(&out);
        if waited { self.write(&mut out) } else { Ok(()) }
    }

    /// Tells the other side what has arrived, when it is worth it. `large`: it keeps a large payload until it is told.
    pub(super) fn acknowledge(&self, large: bool) -> io::Result<()> {
        let untold = self.received() - self.told.load(Ordering::Relaxed);
        if untold == 0 || !large && untold < UNTOLD {
            return Ok(());
        }
        let mut out = self.out();
        out.acknowledge = true;
        self.write(&mut out)
    }

    /// The other side could use more lanes.
    pub(super) fn asked_for_lanes(&self) {
        if self.side == Side::Opened {
            self.shared.want_lanes(self.id);
        }
    }

    /// What a further lane does with the link, whose end it does not notice: errors are those of the first.
    pub(super) fn of_a_lane(&self, result: io::Result<()>) {
        let token = self.token();
        if let (Err(error), Some(token)) = (result, token) {
            tracing::debug!(link = self.id, %error, "sending failed");
            self.shared.broken(token);
        }
    }

    /// The end of the link, whatever state it was in. Returns the frames of which no byte was sent.
    pub(super) fn end(&self) -> Vec<Frame> {
        let mut out = self.out();
        out.closed = true;
        out.wire = None;
        out.lanes = Vec::new();
        *self.assembly() = Assembly::default();
        out.window.end()
    }

    /// Says that the link ends, where that can be said at once.
    pub(super) fn say_end(&self) {
        let mut out = self.out();
        let Out { wire, window, .. } = &mut *out;
        let between = |wire: &&mut Wire| !wire.is_within(window) && wire.has_no_aside();
        if let Some(wire) = wire.as_mut().filter(between) {
            wire.set_aside(aside(FrameKind::End, 0));
            // Whoever misses it learns it when it tries to go on with the link.
            let _ = self.write(&mut out);
        }
    }

    /// Gives up room that was not needed lately, and lanes; whether there is more to give up.
    pub(super) fn tidy(&self) -> bool {
        let mut guard = self.out();
        let out = &mut *guard;
        out.window.tidy();
        let again = out.window.is_roomy();
        let mut open: Vec<_> = out.lanes.iter_mut().filter(|l| !l.is_closing()).collect();
        if self.side == Side::Accepted || open.is_empty() {
            return again;
        }
        let at_stake = open.iter().any(|lane| lane.is_at_stake(&out.window));
        if self.lanes_used.swap(false, Ordering::Relaxed) || at_stake {
            return true;
        }
        // Whoever needs them asks for them again. The other side closes them: it may have begun to use them just now.
        for lane in &mut open {
            lane.close();
            lane.set_aside(aside(FrameKind::End, 0));
        }
        self.send(guard);
        again
    }

    /// Frames that were not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.out().window.len() as u64
    }

    fn fill_header(&self, header: &mut FrameHeader) {
        let received = self.received();
        header.acknowledged = low(received).into();
        self.told.store(received, Ordering::Relaxed);
    }

    /// Sends what the sockets take. What remains is sent when they are writable again.
    fn write(&self, out: &mut Out) -> io::Result<()> {
        let mut first = Step::Went;
        let mut others = [Step::Went; LANES];
        loop {
            self.want_acknowledge(out);
            let Out {
                wire,
                lanes,
                window,
                ..
            } = out;
            let Some(wire) = wire else {
                return Ok(());
            };
            let mut outgoing = Outgoing {
                window,
                peer: &self.peer,
                divide: lanes.iter().any(|lane| !lane.is_closing()),
            };
            // By turns, so that each lane gets its part of what there is.
            if first != Step::Full {
                first = wire.step(&mut outgoing)?;
            }
            let mut went = first == Step::Went;
            for (lane, step) in lanes.iter_mut().zip(&mut others) {
                if *step != Step::Full {
                    *step = lane.step(&mut outgoing).unwrap_or_else(|error| {
                        tracing::debug!(link = self.id, %error, "sending on a lane failed");
                        self.shared.broken(lane.token);
                        Step::Full
                    });
                    if *step == Step::Went {
                        self.uses_lanes();
                        went = true;
                    }
                }
            }
            if !went {
                break;
            }
        }
        for (lane, step) in out.lanes.iter_mut().zip(others) {
            lane.watch(step == Step::Full, &self.shared)?;
        }
        if first == Step::Full {
            self.ask_for_lanes(out);
        }
        let wire = out.wire.as_mut();
        wire.map_or(Ok(()), |wire| wire.watch(first == Step::Full, &self.shared))
    }

    /// The socket takes no more: where that is for large payloads, other lanes may.
    fn ask_for_lanes(&self, out: &mut Out) {
        if out.lanes.len() >= out.most || !out.window.is_loaded() {
            return;
        }
        let now = clock::now();
        let pause = if out.lanes.is_empty() { ASK } else { ASK_MORE };
        if now.saturating_sub(out.asked) < pause {
            return;
        }
        match self.side {
            Side::Opened => self.shared.want_lanes(self.id),
            // How many there may be is for the opener to know.
            Side::Accepted => (out.acknowledge, out.wants_lanes) = (true, true),
        }
        out.asked = now;
    }

    fn want_acknowledge(&self, out: &mut Out) {
        let free = |wire: &&mut Wire| wire.has_no_aside();
        if out.acknowledge
            && let Some(wire) = out.wire.as_mut().filter(free)
        {
            let received = self.received();
            self.told.store(received, Ordering::Relaxed);
            wire.set_aside(FrameHeader {
                arg0: u64::from(out.wants_lanes).into(),
                ..aside(FrameKind::Acknowledge, received)
            });
            (out.acknowledge, out.wants_lanes) = (false, false);
        }
    }

    /// Queues a frame, and sends when there are more than so many bytes.
    #[expect(
        clippy::result_large_err,
        reason = "the frame comes back to be sent again, and boxes cost every frame an allocation"
    )]
    fn enter(&self, mut frame: Frame, most: u64) -> Result<(), Frame> {
        let mut out = self.out();
        if out.closed {
            return Err(frame);
        }
        self.fill_header(&mut frame.header);
        out.window.submit(frame);
        if out.window.queued() > most {
            self.send(out);
        }
        Ok(())
    }

    /// Sends what is queued, unless the socket takes no more: then it is sent when the socket is writable again.
    fn send(&self, mut out: MutexGuard<'_, Out>) {
        let full = epoll::EventFlags::OUT;
        let waits = out
            .wire
            .as_ref()
            .is_some_and(|wire| wire.interest.contains(full));
        if waits {
            return;
        }
        if let Err(error) = self.write(&mut out) {
            let token = out.wire.as_ref().map(|wire| wire.token);
            drop(out);
            tracing::debug!(link = self.id, %error, "sending failed");
            if let Some(token) = token {
                self.shared.broken(token);
            }
        }
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Out {
    /// Another connection stands. An error when one after the other did, for long enough, and the same frame has not arrived:
    /// the way carries the handshake and not that, and whoever waits for it is to be told.
    fn get_through(&mut self, limit: u64) -> Result<(), LinkError> {
        let now = clock::now();
        let before = self.stuck.take();
        let Some(frame) = self.window.oldest() else {
            return Ok(());
        };
        let stuck = match before.filter(|before| before.frame == frame) {
            Some(before) => Stuck {
                again: before.again + 1,
                ..before
            },
            None => Stuck {
                frame,
                since: now,
                again: 0,
            },
        };
        if stuck.again >= AGAIN && now.saturating_sub(stuck.since) > limit {
            return Err(LinkError::Stuck(stuck.again));
        }
        self.stuck = Some(stuck);
        Ok(())
    }
}

impl Link for Session {
    fn id(&self) -> u64 {
        self.id
    }

    fn node(&self) -> NodeIndex {
        self.node
    }

    fn side(&self) -> Side {
        self.side
    }

    fn clock_offset(&self) -> i64 {
        self.clock_offset.load(Ordering::Relaxed)
    }

    fn submit(&self, frame: Frame) -> Result<(), Frame> {
        self.enter(frame, 0)
    }

    fn queue(&self, frame: Frame) -> Result<(), Frame> {
        self.enter(frame, TOGETHER)
    }

    fn flush(&self) {
        self.send(self.out());
    }

    fn queued(&self) -> u64 {
        let out = self.out();
        let sealed: u64 = out.wire.iter().chain(&out.lanes).map(Wire::sealed).sum();
        out.window.queued() + sealed
    }

    fn close(&self) {
        // The I/O thread does the rest.
        self.shared.doom(self.id);
    }
}

fn aside(kind: FrameKind, received: u64) -> FrameHeader {
    FrameHeader {
        kind: kind as u8,
        acknowledged: low(received).into(),
        ..FrameHeader::new_zeroed()
    }
}

fn low(count: u64) -> u16 {
    let [low, high, ..] = count.to_le_bytes();
    u16::from_le_bytes([low, high])
}
