//! The rows of an endpoint: its conversations, in a block of the pool.
//!
//! ```text
//! 0      constants    magic, rows, kept, capacity, inline bytes; read once when the endpoint is opened, and checked
//! 128    acceptable   where those sleep who wait for a conversation
//! 256    openable     where those sleep who wait for a free row
//! 384    next ticket, rows that have been used
//! 512    offered      a bit for each row that waits for its receiver
//! 1024   rows         64 bytes each: state, block of its stream channel, ticket, three wait words
//! ```
//! The state of a row is `version 16 | – 1 | flags 7 | receiver's slot 20 | sender's slot 20`, from the high end:
//!
//! ```text
//! FREE ─open: CAS→ OPENING(slot) ─store→ OPEN(sender) + OFFERED ─accept: CAS→ OPEN(sender, receiver)
//!   OPEN: each end adds its flag when it closes or dies; who adds the second one goes on to
//!   CLOSING(slot) ─empties the channel, frees it unless it is kept─store→ FREE(version + 1)
//! ```
//! So each row is changed by compare-and-swap alone or belongs to the slot in its word, and that is all that recovery needs
//! to read.

use std::ptr::NonNull;

use dragon_shmem::Member;
use dragon_shmem::pool::Pool;
use dragon_shmem::region::Shared;
use dragon_shmem::sync::{AtomicU32, AtomicU64, Ordering, low};

use crate::error::Result;
use crate::ring::{MAX_CAPACITY, MAX_INLINE, Ring};
use crate::wait::WaitWord;

/// Most conversations of an endpoint at once.
pub(super) const MAX_ROWS: u32 = 4096;
const OFFERED_WORDS: usize = MAX_ROWS as usize / 64;

#[derive(Debug)]
#[repr(C, align(128))]
struct Constants {
    magic: AtomicU32,
    rows: AtomicU32,
    kept: AtomicU32,
    capacity: AtomicU32,
    inline: AtomicU32,
}

#[derive(Debug)]
#[repr(C, align(128))]
struct Line<T>(T);

#[derive(Debug)]
#[repr(C, align(128))]
struct Counts {
    ticket: AtomicU64,
    used: AtomicU32,
}

#[derive(Debug)]
#[repr(C)]
struct Head {
    constants: Constants,
    acceptable: Line<WaitWord>,
    openable: Line<WaitWord>,
    counts: Counts,
    offered: [AtomicU64; OFFERED_WORDS],
}

/// A conversation, or a place for one.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Row {
    pub(super) state: AtomicU64,
    /// Block of the stream channel; 0 for none.
    pub(super) block: AtomicU64,
    /// Rows are accepted in the order of their tickets.
    pub(super) ticket: AtomicU64,
    // Where those sleep who wait in the row's conversation. Not in the stream channel: who ends first still has to wake the
    // other, who may meanwhile have ended as well and given the channel's block back. A row stays, and a wake-up that comes
    // to the next conversation is merely in vain.
    //
    // They are emptied with the row, and never again. Whoever lives has left them when its end is given up, so all that can
    // be there when the row is opened anew is the count of one that died between counting itself in and saying so, and that
    // costs its successors a system call now and then; but recovery may yet come, a second time, to count a dead one out.
    readable: WaitWord,
    writable: WaitWord,
    closing: WaitWord,
}

impl Row {
    /// The row's stream channel, whose users sleep in the row. It may be used as long as the channel is the row's and the
    /// endpoint's block is allocated: everybody opens it by this.
    pub(super) fn ring(&self, pool: &Pool) -> Result<Ring> {
        let ring = Ring::open(pool, self.block.load(Ordering::Acquire))?;
        // SAFETY: rows lie in the endpoint's block, which stays mapped and outlives the conversations in it.
        Ok(unsafe { ring.sleeping_at(&self.readable, &self.writable, &self.closing) })
    }

    /// Makes all who sleep in the row's conversation look again; whatever has become of its stream channel.
    pub(super) fn wake_everyone(&self) {
        for word in [&self.readable, &self.writable, &self.closing] {
            word.wake(u32::MAX);
        }
    }
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Constants {}
// SAFETY: as above.
unsafe impl Shared for Head {}
// SAFETY: as above.
unsafe impl Shared for Row {}

const MAGIC: u32 = u32::from_le_bytes(*b"STM1");
const ROWS: u64 = size_of::<Head>() as u64;
const ROW: u64 = size_of::<Row>() as u64;
#[cfg(not(loom))]
const _: () = assert!(ROWS == 1024 && ROW == 64);

/// Which way a row goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    Free = 0,
    Opening = 1,
    Open = 2,
    Closing = 3,
}

/// Flags of an open row.
pub(super) mod flag {
    /// The sender has closed its end.
    pub(in super::super) const SENDER_CLOSED: u32 = 1 << 2;
    /// The sender died, or broke off.
    pub(in super::super) const SENDER_DIED: u32 = 1 << 3;
    /// The receiver has closed its end.
    pub(in super::super) const RECEIVER_CLOSED: u32 = 1 << 4;
    /// The receiver died.
    pub(in super::super) const RECEIVER_DIED: u32 = 1 << 5;
    /// It has no receiver yet.
    pub(in super::super) const OFFERED: u32 = 1 << 6;

    /// The sender has ended.
    pub(in super::super) const SENDER_ENDED: u32 = SENDER_CLOSED | SENDER_DIED;
    /// The receiver has ended.
    pub(in super::super) const RECEIVER_ENDED: u32 = RECEIVER_CLOSED | RECEIVER_DIED;
}

/// The word of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(pub(super) u64);

const SLOT: u32 = 0xf_ffff;
const FLAGS: u32 = 0x7f;

impl State {
    pub(super) fn new(version: u32, phase: Phase, flags: u32, receiver: u32, sender: u32) -> Self {
        Self(
            u64::from(version & 0xffff) << 48
                | u64::from((flags | phase as u32) & FLAGS) << 40
                | u64::from(receiver & SLOT) << 20
                | u64::from(sender & SLOT),
        )
    }

    pub(super) fn version(self) -> u32 {
        low(self.0 >> 48)
    }

    pub(super) fn phase(self) -> Phase {
        match (self.0 >> 40) & 3 {
            0 => Phase::Free,
            1 => Phase::Opening,
            2 => Phase::Open,
            _ => Phase::Closing,
        }
    }

    pub(super) fn flags(self) -> u32 {
        low(self.0 >> 40) & FLAGS & !3
    }

    pub(super) fn has(self, flags: u32) -> bool {
        self.flags() & flags != 0
    }

    pub(super) fn receiver(self) -> u32 {
        low(self.0 >> 20) & SLOT
    }

    /// The sender's slot; in OPENING and CLOSING that of whoever is at work.
    pub(super) fn sender(self) -> u32 {
        low(self.0) & SLOT
    }
}

/// How an endpoint of streams is shaped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) rows: u32,
    pub(super) kept: u32,
    pub(super) capacity: u32,
    pub(super) inline: u32,
}

/// The rows, as this process has them mapped. The constants were checked when it was opened and are never read again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    base: NonNull<u8>,
    pub(super) shape: Shape,
}

// SAFETY: Rows only point to shared memory, which is accessed by atomics.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

impl Rows {
    pub(super) fn size(rows: u32) -> u64 {
        ROWS + u64::from(rows) * ROW
    }

    pub(super) fn init(pool: &Pool, offset: u64, shape: Shape) -> Result<()> {
        pool.check(offset, Self::size(shape.rows))?;
        let head: &Head = pool.data().view(offset)?;
        let constants = &head.constants;
        for (word, value) in [
            (&constants.rows, shape.rows),
            (&constants.kept, shape.kept),
            (&constants.capacity, shape.capacity),
            (&constants.inline, shape.inline),
        ] {
            word.store(value, Ordering::Relaxed);
        }
        head.acceptable.0.reset();
        head.openable.0.reset();
        head.counts.ticket.store(0, Ordering::Relaxed);
        head.counts.used.store(0, Ordering::Relaxed);
        for word in &head.offered {
            word.store(0, Ordering::Relaxed);
        }
        for n in 0..u64::from(shape.rows) {
            let row: &Row = pool.data().view(offset + ROWS + n * ROW)?;
            row.state.store(0, Ordering::Relaxed);
            row.block.store(0, Ordering::Relaxed);
            for word in [&row.readable, &row.writable, &row.closing] {
                word.reset();
            }
        }
        constants.magic.store(MAGIC, Ordering::Release);
        Ok(())
    }

    /// The rows in a block; `None` when it is that of a buffered endpoint.
    pub(super) fn open(member: &Member, offset: u64) -> Result<Option<Self>> {
        let pool = member.pool();
        let corrupt = |what, value: u32| -> Result<Option<Self>> {
            Err(dragon_shmem::Error::Corrupt {
                what,
                value: value.into(),
            }
            .into())
        };
        pool.check(offset, size_of::<Constants>() as u64)?;
        let constants: &Constants = pool.data().view(offset)?;
        if constants.magic.load(Ordering::Acquire) != MAGIC {
            return Ok(None);
        }
        let read = |word: &AtomicU32| word.load(Ordering::Relaxed);
        let shape = Shape {
            rows: read(&constants.rows),
            kept: read(&constants.kept),
            capacity: read(&constants.capacity),
            inline: read(&constants.inline),
        };
        if shape.rows == 0 || shape.rows > MAX_ROWS {
            return corrupt("rows of an endpoint", shape.rows);
        }
        if shape.capacity == 0 || shape.capacity > MAX_CAPACITY || shape.inline > MAX_INLINE {
            return corrupt("capacity of an endpoint", shape.capacity);
        }
        let size = Self::size(shape.rows);
        pool.check(offset, size)?;
        let base = pool.data().bytes(offset, size)?;
        Ok(Some(Self { base, shape }))
    }

    fn head(&self) -> &Head {
        // SAFETY: `open` checked that the block has room for the head, and blocks of that size are aligned to more than its
        // alignment; Head is Shared.
        unsafe { self.base.cast::<Head>().as_ref() }
    }

    pub(super) fn row(&self, n: u32) -> Option<&Row> {
        if n >= self.shape.rows {
            return None;
        }
        let at = usize::try_from(ROWS + u64::from(n) * ROW).ok()?;
        // SAFETY: the row lies inside the block that `open` checked.
        let row = unsafe { self.base.add(at) };
        // SAFETY: as above; rows are aligned to their size; Row is Shared.
        Some(unsafe { row.cast::<Row>().as_ref() })
    }

    /// Rows that have been used: no others need to be looked at.
    pub(super) fn used(&self) -> impl Iterator<Item = (u32, &Row)> {
        let used = self.head().counts.used.load(Ordering::Acquire);
        (0..used.min(self.shape.rows)).filter_map(|n| Some((n, self.row(n)?)))
    }

    /// Where those sleep who wait for a conversation.
    pub(super) fn acceptable(&self) -> &WaitWord {
        &self.head().acceptable.0
    }

    /// Where those sleep who wait for a free row.
    pub(super) fn openable(&self) -> &WaitWord {
        &self.head().openable.0
    }

    /// Claims a free row, the lowest one; `announce` is told which before each try.
    pub(super) fn claim(&self, slot: u32, mut announce: impl FnMut(u32)) -> Option<(u32, &Row)> {
        for n in 0..self.shape.rows {
            let row = self.row(n)?;
            let now = State(row.state.load(Ordering::Acquire));
            if now.phase() != Phase::Free {
                continue;
            }
            announce(n);
            // Before the claim: a row that is in use is never beyond those that recovery looks at.
            self.head().counts.used.fetch_max(n + 1, Ordering::AcqRel);
            let opening = State::new(now.version(), Phase::Opening, 0, 0, slot);
            if row
                .state
                .compare_exchange(now.0, opening.0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                return Some((n, row));
            }
        }
        None
    }

    /// Whether a conversation could be opened now.
    pub(super) fn any_free(&self) -> bool {
        (0..self.shape.rows).any(|n| {
            self.row(n)
                .is_some_and(|row| State(row.state.load(Ordering::Relaxed)).phase() == Phase::Free)
        })
    }

    pub(super) fn next_ticket(&self) -> u64 {
        self.head().counts.ticket.fetch_add(1, Ordering::Relaxed)
    }

    /// Shows a row to those who accept.
    pub(super) fn offer(&self, n: u32) {
        let (word, bit) = ((n / 64) as usize % OFFERED_WORDS, 1 << (n % 64));
        self.head().offered[word].fetch_or(bit, Ordering::AcqRel);
    }

    /// Takes back what [`Rows::offer`] did. A row that is offered anew meanwhile is shown again.
    pub(super) fn withdraw(&self, n: u32) {
        let (word, bit) = ((n / 64) as usize % OFFERED_WORDS, 1_u64 << (n % 64));
        self.head().offered[word].fetch_and(!bit, Ordering::AcqRel);
        if self.is_offered(n) {
            self.offer(n);
        }
    }

    fn is_offered(&self, n: u32) -> bool {
        self.row(n).is_some_and(|row| {
            let state = State(row.state.load(Ordering::Acquire));
            state.phase() == Phase::Open && state.has(flag::OFFERED)
        })
    }

    /// The offered row that waits longest. Only reads.
    pub(super) fn oldest_offer(&self) -> Option<(u32, &Row)> {
        let ticket = |row: &Row| row.ticket.load(Ordering::Relaxed);
        self.shown()
            .filter(|n| self.is_offered(*n))
            .filter_map(|n| Some((n, self.row(n)?)))
            .min_by_key(|(_, row)| ticket(row))
    }

    /// Rows that are shown as offered, which may be behind the truth.
    pub(super) fn shown(&self) -> impl Iterator<Item = u32> {
        let words = (0..).zip(&self.head().offered);
        let words = words.take(self.shape.rows.div_ceil(64) as usize);
        words.flat_map(|(n, word): (u32, &AtomicU64)| {
            let bits = word.load(Ordering::Acquire);
            (0..64).filter_map(move |b| (bits >> b & 1 != 0).then_some(n * 64 + b))
        })
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::ptr;

    use super::super::{Endpoint, EndpointOptions, Form};
    use crate::Deadline;
    use crate::fixture::Node;

    /// The stream channel may be another's memory before the last wake-up comes.
    #[test]
    fn who_waits_in_a_conversation_sleeps_in_its_row() {
        let node = Node::new();
        let member = node.member();
        let endpoint = Endpoint::create(&member, &EndpointOptions::default()).unwrap();
        let _sender = endpoint.open_send(Deadline::Now).unwrap();
        let Form::Streamed(rows) = endpoint.form else {
            panic!("it has rows");
        };
        let row = rows.row(0).unwrap();
        let ring = row.ring(member.pool()).unwrap();
        for (word, in_row) in [
            (ring.readable(), &row.readable),
            (ring.writable(), &row.writable),
            (ring.closing(), &row.closing),
        ] {
            assert!(ptr::eq(word, in_row));
        }
    }
}
