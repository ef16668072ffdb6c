//! What the links of one TCP fabric share: the epoll instance, the way to wake the I/O thread, the counters.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use dragon_protocol::NodeIndex;
use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::fabric::stream::Wrote;
use crate::fabric::{FabricStats, PeerStats};

/// Token of the first listener.
pub(super) const FIRST_LISTENER: u64 = 0;
/// Token of the eventfd that wakes the I/O thread.
pub(super) const WAKER: u64 = 63;
/// The first number of a connection or a link.
const FIRST: u64 = 64;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) epoll: OwnedFd,
    waker: OwnedFd,
    next: AtomicU64,
    /// Links that another thread wants to be closed.
    doomed: Mutex<Vec<u64>>,
    /// Connections on which another thread could not send.
    broken: Mutex<Vec<u64>>,
    /// Links that could use more lanes.
    lanes: Mutex<Vec<u64>>,
    /// A link has more room for frames than an idle one keeps.
    pub(super) roomy: AtomicBool,
    /// A descriptor may be free for a fabric that stopped accepting for want of one.
    pub(super) free: AtomicBool,
    pub(super) opened: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) half_open: AtomicU64,
}

/// What was counted with one node.
#[derive(Debug, Default)]
pub(super) struct PeerCounters {
    frames_sent: AtomicU64,
    frames_received: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    retries: AtomicU64,
    reconnects: AtomicU64,
}

impl PeerCounters {
    pub(super) fn bytes_sent(&self, n: u64) {
        self.bytes_sent.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn wrote(&self, wrote: Wrote) {
        self.frames_sent.fetch_add(wrote.frames, Ordering::Relaxed);
        if wrote.again > 0 {
            self.retries.fetch_add(wrote.again, Ordering::Relaxed);
        }
    }

    pub(super) fn bytes_received(&self, n: u64) {
        self.bytes_received.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn frame_received(&self) {
        self.frames_received.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> PeerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PeerStats {
            frames_sent: get(&self.frames_sent),
            frames_received: get(&self.frames_received),
            bytes_sent: get(&self.bytes_sent),
            bytes_received: get(&self.bytes_received),
            retries: get(&self.retries),
            reconnects: get(&self.reconnects),
            ..PeerStats::new(NodeIndex::FIRST)
        }
    }
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let token = epoll::EventData::new_u64(WAKER);
        epoll::add(&epoll, &waker, token, epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            waker,
            next: AtomicU64::new(FIRST),
            doomed: Mutex::default(),
            broken: Mutex::default(),
            lanes: Mutex::default(),
            roomy: AtomicBool::new(false),
            free: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            half_open: AtomicU64::new(0),
        })
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins to watch a connection.
    pub(super) fn add(
        &self,
        socket: &OwnedFd,
        token: u64,
        interest: epoll::EventFlags,
    ) -> io::Result<()> {
        let token = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, socket, token, interest)?)
    }

    /// Changes what a connection is watched for.
    pub(super) fn watch(
        &self,
        socket: &OwnedFd,
        token: u64,
        interest: epoll::EventFlags,
    ) -> io::Result<()> {
        let token = epoll::EventData::new_u64(token);
        Ok(epoll::modify(&self.epoll, socket, token, interest)?)
    }

    /// Has the I/O thread close a link.
    pub(super) fn doom(&self, id: u64) {
        lock(&self.doomed).push(id);
        self.wake();
    }

    pub(super) fn take_doomed(&self) -> Vec<u64> {
        core::mem::take(&mut *lock(&self.doomed))
    }

    /// Tells the I/O thread that a connection takes no bytes any more.
    pub(super) fn broken(&self, token: u64) {
        lock(&self.broken).push(token);
        self.wake();
    }

    pub(super) fn take_broken(&self) -> Vec<u64> {
        core::mem::take(&mut *lock(&self.broken))
    }

    /// Has the I/O thread look for more lanes for a link.
    pub(super) fn want_lanes(&self, id: u64) {
        lock(&self.lanes).push(id);
        self.wake();
    }

    pub(super) fn take_wanted_lanes(&self) -> Vec<u64> {
        core::mem::take(&mut *lock(&self.lanes))
    }

    pub(super) fn wake(&self) {
        // It fails only when the counter is full: then the thread is awake already.
        let _ = rustix::io::write(&self.waker, &1_u64.to_ne_bytes());
    }

    pub(super) fn clear_wake(&self) {
        let mut count = [0; 8];
        // Nothing to read means that another wake-up took it.
        let _ = rustix::io::read(&self.waker, &mut count);
    }

    /// What was counted with all nodes together.
    pub(super) fn stats(&self, links: u64, peers: &[PeerStats]) -> FabricStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let sum = |of: fn(&PeerStats) -> u64| peers.iter().map(of).sum();
        FabricStats {
            opened: get(&self.opened),
            accepted: get(&self.accepted),
            links,
            half_open: get(&self.half_open),
            refused: get(&self.refused),
            frames_sent: sum(|p| p.frames_sent),
            frames_received: sum(|p| p.frames_received),
            bytes_sent: sum(|p| p.bytes_sent),
            bytes_received: sum(|p| p.bytes_received),
            retries: sum(|p| p.retries),
            reconnects: sum(|p| p.reconnects),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
