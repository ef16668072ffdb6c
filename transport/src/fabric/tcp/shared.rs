//! What the connections of one TCP fabric share: the epoll instance, the way to wake the I/O thread, the counters.

use core::sync::atomic::{AtomicU64, Ordering};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::conn::Conn;

/// Token of the first listener.
pub(super) const FIRST_LISTENER: u64 = 0;
/// Token of the eventfd that wakes the I/O thread.
pub(super) const WAKER: u64 = 63;
/// The first number of a connection.
const FIRST: u64 = 64;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) epoll: OwnedFd,
    waker: OwnedFd,
    next: AtomicU64,
    /// Connections that another thread wants to be closed.
    doomed: Mutex<Vec<u64>>,
    pub(super) counters: Counters,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) opened: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) half_open: AtomicU64,
    frames_sent: AtomicU64,
    frames_received: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

impl Counters {
    pub(super) fn bytes_sent(&self, n: u64) {
        self.bytes_sent.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn frame_sent(&self) {
        self.frames_sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn bytes_received(&self, n: u64) {
        self.bytes_received.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn frame_received(&self) {
        self.frames_received.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stats(&self, links: u64) -> crate::fabric::FabricStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        crate::fabric::FabricStats {
            opened: get(&self.opened),
            accepted: get(&self.accepted),
            links,
            half_open: get(&self.half_open),
            refused: get(&self.refused),
            frames_sent: get(&self.frames_sent),
            frames_received: get(&self.frames_received),
            bytes_sent: get(&self.bytes_sent),
            bytes_received: get(&self.bytes_received),
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
            counters: Counters::default(),
        })
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins to watch a connection.
    pub(super) fn add(&self, conn: &Conn) -> io::Result<()> {
        let token = epoll::EventData::new_u64(conn.id);
        Ok(epoll::add(
            &self.epoll,
            conn.socket(),
            token,
            conn.interest(),
        )?)
    }

    /// Changes what a connection is watched for.
    pub(super) fn watch(&self, conn: &Conn, interest: epoll::EventFlags) -> io::Result<()> {
        let token = epoll::EventData::new_u64(conn.id);
        Ok(epoll::modify(&self.epoll, conn.socket(), token, interest)?)
    }

    /// Has the I/O thread close a connection.
    pub(super) fn doom(&self, id: u64) {
        self.doomed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(id);
        self.wake();
    }

    pub(super) fn take_doomed(&self) -> Vec<u64> {
        core::mem::take(&mut *self.doomed.lock().unwrap_or_else(PoisonError::into_inner))
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
}
