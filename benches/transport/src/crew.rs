//! The processes of a measurement, and the orders that they work by: each sleeps until it is told to work, works, and says
//! when it began and ended and how much it did. So contestants that stand side by side work in turn.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dragon_raw::memory::{Children, Shared};
use dragon_raw::{cores, pin};
use dragon_shmem::sync::AtomicU32;
use dragon_shmem::{Deadline, futex};
use rustix::time::{ClockId, clock_gettime};

use crate::net::{Net, Side};

/// Where processes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Each node on a core of its own.
    Pinned,
    /// Wherever the kernel puts them.
    Free,
}

/// The processes.
pub(crate) struct Crew<'a> {
    net: &'a Net,
    place: Place,
    board: Shared,
    children: Children,
    seats: usize,
}

/// A process that works by orders.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat(usize);

/// What a process has done by one order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// CLOCK_MONOTONIC nanoseconds.
    pub(crate) began: u64,
    pub(crate) ended: u64,
    pub(crate) count: u64,
}

impl Work {
    pub(crate) fn seconds(self) -> f64 {
        (self.ended - self.began) as f64 / 1e9
    }
}

/// Most processes that work by orders.
const SEATS: usize = 256;
/// Bytes of the board for each.
const SEAT: usize = 256;
/// A measurement that takes longer hangs.
const LIMIT: u64 = 60_000_000_000;

impl<'a> Crew<'a> {
    pub(crate) fn new(net: &'a Net, place: Place) -> Result<Self> {
        Ok(Self {
            net,
            place,
            board: Shared::new(SEATS * SEAT)?,
            children: Children::default(),
            seats: 0,
        })
    }

    /// A process of a node. Returns its number.
    pub(crate) fn fork(
        &mut self,
        side: Side,
        body: impl FnOnce() -> Result<Infallible>,
    ) -> Result<libc::pid_t> {
        let (net, place) = (self.net, self.place);
        let number = self.children.len();
        self.children.fork(|| {
            net.enter(side)?;
            if place == Place::Pinned {
                let (first, second) = cores(false)?;
                pin(if side == 0 { first } else { second })?;
            }
            body().map(|never| match never {})
        })?;
        self.children.pid(number).context("no such child")
    }

    /// A process of a node that works by orders. `prepare` is run once; what it returns is run for each order, with its amount,
    /// and returns how much it did.
    pub(crate) fn worker<W: FnMut(u64) -> Result<u64>>(
        &mut self,
        side: Side,
        prepare: impl FnOnce() -> Result<W>,
    ) -> Result<(Seat, libc::pid_t)> {
        let seat = Seat(self.seats);
        ensure!(self.seats < SEATS, "more than {SEATS} processes");
        self.seats += 1;
        let board = self.board.clone();
        let pid = self.fork(side, || {
            let mut work = prepare()?;
            let (order, done) = (word(&board, seat, 0), word(&board, seat, 1));
            set(done, 1);
            let mut seen = 0;
            loop {
                seen = wait(order, seen);
                let amount = board.word(value(seat, 0)).load(Ordering::Acquire);
                let began = now();
                let count = work(amount)?;
                for (n, result) in [began, now(), count].into_iter().enumerate() {
                    board
                        .word(value(seat, n + 1))
                        .store(result, Ordering::Release);
                }
                set(done, seen + 1);
            }
        })?;
        Ok((seat, pid))
    }

    /// Waits until all are prepared.
    pub(crate) fn ready(&self) -> Result<()> {
        (0..self.seats).try_for_each(|n| self.until(Seat(n), 1))
    }

    /// Gives an order.
    pub(crate) fn order(&self, seat: Seat, amount: u64) {
        let order = word(&self.board, seat, 0);
        self.board
            .word(value(seat, 0))
            .store(amount, Ordering::Release);
        set(order, order.load(Ordering::Relaxed) + 1);
    }

    /// What came of the last order.
    pub(crate) fn work(&self, seat: Seat) -> Result<Work> {
        let order = word(&self.board, seat, 0).load(Ordering::Relaxed);
        self.until(seat, order + 1)?;
        let [began, ended, count] =
            [1, 2, 3].map(|n| self.board.word(value(seat, n)).load(Ordering::Acquire));
        Ok(Work {
            began,
            ended,
            count,
        })
    }

    /// Gives the same order to several, the last one first, and waits until all have done.
    pub(crate) fn together(&self, seats: &[Seat], amount: u64) -> Result<Vec<Work>> {
        seats
            .iter()
            .rev()
            .for_each(|seat| self.order(*seat, amount));
        seats.iter().map(|seat| self.work(*seat)).collect()
    }

    fn until(&self, seat: Seat, wanted: u32) -> Result<()> {
        let done = word(&self.board, seat, 1);
        let limit = now() + LIMIT;
        loop {
            let seen = done.load(Ordering::Acquire);
            if seen >= wanted {
                return Ok(());
            }
            self.children.check()?;
            ensure!(now() < limit, "not done after {} s", LIMIT / 1_000_000_000);
            // Once in a while it looks whether a child has ended.
            let _ = futex::wait(done, seen, Deadline::after(200_000_000));
        }
    }

    /// How the processes are placed.
    pub(crate) fn note(&self) -> Result<String> {
        let (first, second) = cores(false)?;
        Ok(match self.place {
            Place::Pinned => format!("node 0 on core {first}, node 1 on core {second}"),
            Place::Free => "not pinned".to_owned(),
        })
    }
}

/// Waits for something that happens soon, outside of what is measured.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let limit = now() + LIMIT;
    while !condition() {
        if now() > limit {
            bail!("never: {what}");
        }
        pause(Duration::from_millis(1));
    }
    Ok(())
}

/// Sleeps, on a word that nobody changes.
pub(crate) fn pause(time: Duration) {
    let never = AtomicU32::new(0);
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let _ = futex::wait(&never, 0, Deadline::after(nanoseconds));
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let [seconds, nanoseconds] = [time.tv_sec, time.tv_nsec].map(|n| u64::try_from(n).unwrap_or(0));
    seconds * 1_000_000_000 + nanoseconds
}

fn value(seat: Seat, n: usize) -> usize {
    seat.0 * SEAT / 8 + 1 + n
}

/// Word 0: the number of the last order. Word 1: one more than the last order that was done.
fn word(board: &Shared, seat: Seat, n: usize) -> &AtomicU32 {
    let place = board.bytes(seat.0 * SEAT + n * SEAT / 2, 4);
    // SAFETY: inside the mapping, which is never unmapped, and aligned; atomics accept every bit pattern.
    unsafe { &*place.cast::<AtomicU32>() }
}

fn set(word: &AtomicU32, to: u32) {
    word.store(to, Ordering::Release);
    futex::wake(word, u32::MAX);
}

fn wait(word: &AtomicU32, old: u32) -> u32 {
    loop {
        let seen = word.load(Ordering::Acquire);
        if seen != old {
            return seen;
        }
        let _ = futex::wait(word, old, Deadline::Never);
    }
}
