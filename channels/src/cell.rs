//! Cells: the places of a bounded queue with several senders and receivers, claimed by compare-and-swap on the cell.
//!
//! The queue is Vyukov's bounded MPMC queue in so far as each cell carries the lap for which it is ready. It differs in
//! what it does about death: nobody draws a ticket from a shared counter, since a ticket in a dead process's register would
//! be lost for good. Whoever wants a position claims its cell, and the claim names the slot of the claimer. `tail` and
//! `head` are hints: they never run ahead of the first unclaimed position, and everyone who sees them lag moves them on.
//!
//! A position `p` belongs to cell `p mod capacity` in lap `p div capacity`. The word of a cell is
//! `lap 40 bits | slot 20 bits | tag 4 bits`:
//!
//! ```text
//!  FREE(n) ─sender: CAS→ WRITING(n, slot) ─store→ FULL(n) ─receiver: CAS→ READING(n, slot) ─store→ FREE(n+1)
//!                            └─recovery: CAS→ DEAD(n) ─anyone: CAS→ FREE(n+1) ←─recovery: CAS─┘
//! ```
//! Order is strict: a receiver that finds a WRITING cell at the head takes the queue for empty, for now.

use dragon_shmem::sync::{AtomicU64, Ordering, low};

/// What a cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// Ready for the sender of its lap.
    Free = 0,
    /// Claimed by a sender.
    Writing = 1,
    /// Holds a message.
    Full = 2,
    /// Claimed by a receiver.
    Reading = 3,
    /// Its sender died: there will be no message.
    Dead = 4,
}

const LAPS: u64 = (1 << 40) - 1;
const SLOTS: u32 = (1 << 20) - 1;

/// The word of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub u64);

impl State {
    /// The word for a lap, a slot and a tag.
    #[inline]
    #[must_use]
    pub const fn new(lap: u64, slot: u32, tag: Tag) -> Self {
        Self((lap & LAPS) << 24 | ((slot & SLOTS) as u64) << 4 | tag as u64)
    }

    /// The tag; `None` when the word was scribbled over.
    #[inline]
    #[must_use]
    pub const fn tag(self) -> Option<Tag> {
        Some(match self.0 & 0xf {
            0 => Tag::Free,
            1 => Tag::Writing,
            2 => Tag::Full,
            3 => Tag::Reading,
            4 => Tag::Dead,
            _ => return None,
        })
    }

    /// The slot that claimed the cell.
    #[inline]
    #[must_use]
    pub const fn slot(self) -> u32 {
        low(self.0 >> 4) & SLOTS
    }

    /// How many laps the cell is ahead of `lap`; negative when it is behind.
    #[inline]
    const fn ahead_of(self, lap: u64) -> i64 {
        // The difference of two 40-bit numbers, sign-extended: laps may wrap around.
        ((self.0 >> 24).wrapping_sub(lap) << 24).cast_signed() >> 24
    }
}

/// How many cells there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    cells: u64,
    /// The logarithm when `cells` is a power of two, which spares the divisions.
    shift: u32,
}

impl Capacity {
    /// `cells` must not be 0.
    #[must_use]
    pub const fn new(cells: u32) -> Self {
        let cells = if cells == 0 { 1 } else { cells };
        let shift = if cells.is_power_of_two() {
            cells.trailing_zeros()
        } else {
            u32::MAX
        };
        Self {
            cells: cells as u64,
            shift,
        }
    }

    /// The number.
    #[inline]
    #[must_use]
    pub const fn cells(self) -> u64 {
        self.cells
    }

    /// Lap and cell of a position.
    #[inline]
    #[must_use]
    pub const fn place(self, position: u64) -> (u64, u64) {
        if self.shift < 64 {
            (position >> self.shift, position & (self.cells - 1))
        } else {
            (position / self.cells, position % self.cells)
        }
    }
}

/// Where the words of a queue lie.
pub trait Cells {
    /// How many cells there are.
    fn capacity(&self) -> Capacity;
    /// The hint where the next message is sent to.
    fn tail(&self) -> &AtomicU64;
    /// The hint where the next message is received from.
    fn head(&self) -> &AtomicU64;
    /// The word of a cell; the index is below the capacity.
    fn state(&self, index: u64) -> &AtomicU64;
}

/// The words contradict each other: somebody has scribbled over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub u64);

/// More rounds than contention can cause: a hint was scribbled over.
const ROUNDS: u32 = 1 << 20;

/// Claims the next cell for a sender. `announce` is called with a position before each try to claim it, so that recovery
/// finds it. `None`: the queue is full.
///
/// # Errors
/// When the words contradict each other.
#[inline]
pub fn claim_to_send(
    cells: &impl Cells,
    slot: u32,
    mut announce: impl FnMut(u64),
) -> Result<Option<u64>, Broken> {
    for _ in 0..ROUNDS {
        let position = cells.tail().load(Ordering::Acquire);
        let (lap, index) = cells.capacity().place(position);
        let cell = cells.state(index);
        // Acquire pairs with the Release of `release`: the last receiver has read what we are about to overwrite.
        let word = cell.load(Ordering::Acquire);
        match (State(word).ahead_of(lap), State(word).tag()) {
            (0, Some(Tag::Free)) => {
                announce(position);
                let claimed = State::new(lap, slot, Tag::Writing).0;
                // Release: the announcement comes before the claim.
                if cell
                    .compare_exchange(word, claimed, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
                {
                    return Ok(Some(position));
                }
            }
            (0.., Some(_)) => advance(cells.tail(), position),
            // The oldest message is none: its place is free.
            (-1, Some(Tag::Dead)) => {
                let free = State::new(lap, 0, Tag::Free).0;
                let _ = cell.compare_exchange(word, free, Ordering::AcqRel, Ordering::Relaxed);
            }
            // The position is unclaimed, and the hint is never ahead: so it is the next one, and its cell is in use.
            (-1, Some(Tag::Writing | Tag::Full | Tag::Reading)) => return Ok(None),
            _ => return Err(Broken(word)),
        }
    }
    Err(Broken(cells.tail().load(Ordering::Relaxed)))
}

/// Publishes the message in a claimed cell.
#[inline]
pub fn publish(cells: &impl Cells, position: u64, slot: u32) {
    let (lap, index) = cells.capacity().place(position);
    // Release pairs with the Acquire of `claim_to_receive`: who sees FULL sees the message.
    cells
        .state(index)
        .store(State::new(lap, slot, Tag::Full).0, Ordering::Release);
    advance(cells.tail(), position);
}

/// Gives a claimed cell up: there will be no message.
pub fn abandon(cells: &impl Cells, position: u64) {
    let (lap, index) = cells.capacity().place(position);
    cells
        .state(index)
        .store(State::new(lap, 0, Tag::Dead).0, Ordering::Release);
    advance(cells.tail(), position);
}

/// What a receiver found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The position that was claimed, or is readable.
    pub position: Option<u64>,
    /// Places of dead senders were freed on the way: there may be senders to wake.
    pub skipped: bool,
}

/// Claims the oldest message for a receiver. `announce` as in [`claim_to_send`].
///
/// # Errors
/// When the words contradict each other.
#[inline]
pub fn claim_to_receive(
    cells: &impl Cells,
    slot: u32,
    mut announce: impl FnMut(u64),
) -> Result<Found, Broken> {
    look(cells, |cell, word, lap, position| {
        announce(position);
        let claimed = State::new(lap, slot, Tag::Reading).0;
        cell.compare_exchange(word, claimed, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    })
}

/// Whether a message can be received.
///
/// # Errors
/// When the words contradict each other.
#[inline]
pub fn peek(cells: &impl Cells) -> Result<Found, Broken> {
    look(cells, |_, _, _, _| true)
}

#[inline]
fn look(
    cells: &impl Cells,
    mut claim: impl FnMut(&AtomicU64, u64, u64, u64) -> bool,
) -> Result<Found, Broken> {
    let mut skipped = false;
    for _ in 0..ROUNDS {
        let position = cells.head().load(Ordering::Acquire);
        let (lap, index) = cells.capacity().place(position);
        let cell = cells.state(index);
        // Acquire pairs with the Release of `publish`.
        let word = cell.load(Ordering::Acquire);
        match (State(word).ahead_of(lap), State(word).tag()) {
            (0, Some(Tag::Full)) => {
                if claim(cell, word, lap, position) {
                    return Ok(Found {
                        position: Some(position),
                        skipped,
                    });
                }
            }
            (0, Some(Tag::Dead)) => {
                let free = State::new(lap + 1, 0, Tag::Free).0;
                skipped |= cell
                    .compare_exchange(word, free, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok();
            }
            (0, Some(Tag::Reading)) | (1.., Some(_)) => advance(cells.head(), position),
            (0, Some(Tag::Free | Tag::Writing)) | (-1, Some(_)) => {
                return Ok(Found {
                    position: None,
                    skipped,
                });
            }
            _ => return Err(Broken(word)),
        }
    }
    Err(Broken(cells.head().load(Ordering::Relaxed)))
}

/// Whether it is worth while to try to receive. Cheap: for spinning.
#[inline]
pub fn maybe_readable(cells: &impl Cells) -> bool {
    let (lap, index) = cells.capacity().place(cells.head().load(Ordering::Relaxed));
    let state = State(cells.state(index).load(Ordering::Relaxed));
    !matches!(
        (state.ahead_of(lap), state.tag()),
        (0, Some(Tag::Free | Tag::Writing)) | (-1, Some(_))
    )
}

/// Whether it is worth while to try to send. Cheap: for spinning.
#[inline]
pub fn maybe_writable(cells: &impl Cells) -> bool {
    let (lap, index) = cells.capacity().place(cells.tail().load(Ordering::Relaxed));
    let state = State(cells.state(index).load(Ordering::Relaxed));
    !matches!(
        (state.ahead_of(lap), state.tag()),
        (-1, Some(Tag::Writing | Tag::Full | Tag::Reading))
    )
}

/// Whether a message can be received. Only reads, so it may be asked about a queue that is about to go; the answer is
/// worth nothing then.
#[must_use]
pub fn is_readable(cells: &impl Cells) -> bool {
    let head = cells.head().load(Ordering::Acquire);
    for step in 0..cells.capacity().cells() {
        let (lap, index) = cells.capacity().place(head.wrapping_add(step));
        let state = State(cells.state(index).load(Ordering::Acquire));
        match (state.ahead_of(lap), state.tag()) {
            (0, Some(Tag::Full)) => return true,
            (0, Some(Tag::Dead | Tag::Reading)) | (1.., Some(_)) => {}
            _ => return false,
        }
    }
    false
}

/// Whether there is room for a message. Only reads, like [`is_readable`].
#[must_use]
pub fn is_writable(cells: &impl Cells) -> bool {
    let tail = cells.tail().load(Ordering::Acquire);
    for step in 0..cells.capacity().cells() {
        let (lap, index) = cells.capacity().place(tail.wrapping_add(step));
        let state = State(cells.state(index).load(Ordering::Acquire));
        match (state.ahead_of(lap), state.tag()) {
            (0, Some(Tag::Free)) | (-1, Some(Tag::Dead)) => return true,
            (0.., Some(_)) => {}
            _ => return false,
        }
    }
    false
}

/// Gives the cell of a received message back to the senders.
#[inline]
pub fn release(cells: &impl Cells, position: u64) {
    let (lap, index) = cells.capacity().place(position);
    // Release pairs with the Acquire of `claim_to_send`: the message was read before it is overwritten.
    cells
        .state(index)
        .store(State::new(lap + 1, 0, Tag::Free).0, Ordering::Release);
    advance(cells.head(), position);
}

/// How many messages there are, those being written among them.
#[must_use]
pub fn length(cells: &impl Cells) -> u64 {
    let head = cells.head().load(Ordering::Acquire);
    let tail = cells.tail().load(Ordering::Acquire);
    tail.saturating_sub(head).min(cells.capacity().cells())
}

/// Whether a dead sender left its claim at `position`; after [`bury`] the others go on.
#[must_use]
pub fn left_writing(cells: &impl Cells, position: u64, slot: u32) -> bool {
    let (lap, index) = cells.capacity().place(position);
    cells.state(index).load(Ordering::Acquire) == State::new(lap, slot, Tag::Writing).0
}

/// Whether a dead receiver left its claim at `position`.
#[must_use]
pub fn left_reading(cells: &impl Cells, position: u64, slot: u32) -> bool {
    let (lap, index) = cells.capacity().place(position);
    cells.state(index).load(Ordering::Acquire) == State::new(lap, slot, Tag::Reading).0
}

/// Ends the claim of a dead sender.
pub fn bury(cells: &impl Cells, position: u64) {
    abandon(cells, position);
}

#[inline]
fn advance(hint: &AtomicU64, position: u64) {
    // AcqRel: who sees the hint behind a position sees that position's cell claimed. Whoever was quicker did the same.
    let _ = hint.compare_exchange(
        position,
        position.wrapping_add(1),
        Ordering::AcqRel,
        Ordering::Relaxed,
    );
}

#[cfg(test)]
mod tests;
