//! Cells: the places of a bounded queue with several senders and receivers, claimed by compare-and-swap on the cell.
//!
//! The queue descends from Vyukov's bounded MPMC queue: each cell carries the lap for which it is ready. It differs in what
//! it does about death, and in where its words lie.
//!
//! * Nobody draws a ticket from a shared counter, since a ticket in a dead process's register would be lost for good.
//!   Whoever wants a position claims its cell, and the claim names the slot of the claimer. `tail` and `head` are hints:
//!   they never run ahead of the first unclaimed position, and whoever sees them lag looks further.
//! * A cell has three words on three cache lines. *Sender* words are written by senders alone, *receiver* words by receivers
//!   alone; they lie in arrays of their own. The *published* word lies with the message. So a message costs the two
//!   transfers of a line that it cannot do without, and claims cost none while there is one sender and one receiver.
//!
//! A position `p` belongs to cell `p mod capacity` in lap `p div capacity`. Each word is `lap 40 bits | slot 20 | tag 4`:
//!
//! ```text
//! sender     TAKEN(n-1, …) ─sender: CAS→ TAKEN(n, slot)                    once the receiver word is DONE(n-1)
//! published  FULL(n-1) ─sender: swap→ FULL(n)                              or, by recovery or a sender that gives up: DEAD(n)
//! receiver   DONE(n-1) ─receiver: CAS→ DONE(n)                             a message that was copied before: the CAS says
//!                                                                          that the copy is good, and takes it
//!            DONE(n-1) ─receiver: CAS→ READING(n, slot) ─swap→ DONE(n)     a message that is copied, or taken over, after
//! ```
//! `TAKEN(n)` without `FULL(n)` or `DEAD(n)` is a message that is being written. Order is strict: a receiver that finds one
//! at the head takes the queue for empty, for now. A queue can be closed to senders: `CLOSED(n)` in the sender word of the
//! first unclaimed position, which is the last that it will ever have.

use dragon_shmem::sync::{AtomicU64, Ordering, fence, low};

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// Sender word: claimed.
    Taken = 1,
    /// Sender word: no sender will claim this position, nor any after it.
    Closed = 2,
    /// Published word: there is a message.
    Full = 3,
    /// Published word: its sender died, or gave up; there will be no message.
    Dead = 4,
    /// Receiver word: claimed, and being read.
    Reading = 5,
    /// Receiver word: received, or skipped.
    Done = 6,
}

const LAPS: u64 = (1 << 40) - 1;
const SLOTS: u32 = (1 << 20) - 1;

/// A word of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub u64);

impl State {
    /// The word for a lap, a slot and a tag.
    #[inline]
    #[must_use]
    pub const fn new(lap: u64, slot: u32, tag: Tag) -> Self {
        Self((lap & LAPS) << 24 | ((slot & SLOTS) as u64) << 4 | tag as u64)
    }

    #[inline]
    const fn is(self, tag: Tag) -> bool {
        self.0 & 0xf == tag as u64
    }

    /// How many laps the word is ahead of `lap`; negative when it is behind.
    #[inline]
    const fn ahead_of(self, lap: u64) -> i64 {
        // The difference of two 40-bit numbers, sign-extended: laps may wrap around.
        ((self.0 >> 24).wrapping_sub(lap) << 24).cast_signed() >> 24
    }

    /// The slot in the word.
    #[inline]
    #[must_use]
    pub const fn slot(self) -> u32 {
        low(self.0 >> 4) & SLOTS
    }
}

/// The words of a cell that no message has been through, when the first lap is `lap`: sender, published, receiver.
#[must_use]
pub const fn unused(lap: u64) -> [u64; 3] {
    let before = lap.wrapping_sub(1);
    [
        State::new(before, 0, Tag::Taken).0,
        State::new(before, 0, Tag::Full).0,
        State::new(before, 0, Tag::Done).0,
    ]
}

/// How many cells there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    cells: u64,
    /// The logarithm when `cells` is a power of two, which spares the divisions.
    shift: u32,
    /// A receiver moves the hint for senders after positions that end on these bits.
    interval: u32,
}

/// A position, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The position.
    pub position: u64,
    lap: u64,
    /// The cell.
    pub index: u64,
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
        let interval = match cells {
            0..64 => 0,
            64..256 => 7,
            _ => 15,
        };
        Self {
            cells: cells as u64,
            shift,
            interval,
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

    /// Where a position lies.
    #[inline]
    #[must_use]
    pub const fn spot(self, position: u64) -> Spot {
        let (lap, index) = self.place(position);
        Spot {
            position,
            lap,
            index,
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
    /// Hint, among the senders' words: the cells of all positions below are free, or were. Spares them the receiver words.
    fn free(&self) -> &AtomicU64;
    /// Hint, among the receivers' words: all positions below have been received.
    fn done(&self) -> &AtomicU64;
    /// The position at which the queue is closed to senders, plus one; 0 while it is open.
    fn end(&self) -> &AtomicU64;
    /// The sender word of a cell; the index is below the capacity.
    fn sender(&self, index: u64) -> &AtomicU64;
    /// The published word of a cell.
    fn published(&self, index: u64) -> &AtomicU64;
    /// The receiver word of a cell.
    fn receiver(&self, index: u64) -> &AtomicU64;
    /// A free cell will be written soon.
    #[inline]
    fn will_write(&self, _index: u64) {}
}

/// The words contradict each other: somebody has scribbled over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub u64);

/// More rounds than contention can cause: a hint was scribbled over.
const ROUNDS: u32 = 1 << 20;

/// How many positions before its turn the cell of a message is fetched for writing. The last receiver has its lines, and
/// publishing waits until they have come: from one core to another that takes as long as two or three messages.
const AHEAD: u64 = 2;

/// What a sender found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The position that it has claimed.
    Claimed(u64),
    /// There is no room.
    Full,
    /// The queue is closed to senders, at this position.
    Closed(u64),
}

/// Claims the next cell for a sender. `announce` is called with a position before each try to claim it, so that recovery
/// finds it; when it says no, there is no room.
///
/// # Errors
/// When the words contradict each other.
#[inline]
pub fn claim_to_send(
    cells: &impl Cells,
    slot: u32,
    mut announce: impl FnMut(u64) -> bool,
) -> Result<Place, Broken> {
    // Acquire pairs with the Release of the hint: the positions before it are seen to be claimed.
    let mut position = cells.tail().load(Ordering::Acquire);
    for _ in 0..ROUNDS {
        let (lap, index) = cells.capacity().place(position);
        let cell = cells.sender(index);
        let word = cell.load(Ordering::Acquire);
        let ahead = State(word).ahead_of(lap);
        if ahead == -1 {
            match room(cells, position, lap, index) {
                Ok(true) => {}
                Ok(false) => return Ok(Place::Full),
                Err(Overtaken) => continue,
            }
            if !announce(position) {
                return Ok(Place::Full);
            }
            // Release: the announcement comes before the claim.
            let claim = cell.compare_exchange(
                word,
                State::new(lap, slot, Tag::Taken).0,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if claim.is_ok() {
                // Pairs with the fence of `Take::Leave`: who reads a byte that is written from now on sees its cell received.
                fence(Ordering::Release);
                cells
                    .tail()
                    .store(position.wrapping_add(1), Ordering::Release);
                return Ok(Place::Claimed(position));
            }
        } else if ahead < 0 {
            return Err(Broken(word));
        } else if ahead == 0 && State(word).is(Tag::Closed) {
            return Ok(Place::Closed(position));
        } else {
            position = after_claimed(cells, Cells::sender, position);
            cells.tail().store(position, Ordering::Release);
        }
    }
    Err(Broken(cells.tail().load(Ordering::Relaxed)))
}

/// As [`claim_to_send`], if it takes a single step: there is room as far as senders know, and no other sender in the way.
#[inline]
pub fn claim_at_once(cells: &impl Cells, slot: u32, announce: impl FnOnce(u64)) -> Option<Spot> {
    // The orderings are those of `claim_to_send`.
    let position = cells.tail().load(Ordering::Acquire);
    let spot = cells.capacity().spot(position);
    let cell = cells.sender(spot.index);
    let word = cell.load(Ordering::Acquire);
    let free = cells.free().load(Ordering::Acquire);
    if State(word).ahead_of(spot.lap) != -1 || position >= free {
        return None;
    }
    let soon = position.wrapping_add(AHEAD);
    if soon < free {
        cells.will_write(cells.capacity().place(soon).1);
    }
    announce(position);
    let claim = State::new(spot.lap, slot, Tag::Taken).0;
    cell.compare_exchange(word, claim, Ordering::AcqRel, Ordering::Relaxed)
        .ok()?;
    fence(Ordering::Release);
    cells
        .tail()
        .store(position.wrapping_add(1), Ordering::Release);
    Some(spot)
}

/// The sender word must be looked at again.
struct Overtaken;

/// Whether the cell of an unclaimed position is free: the message of the lap before has been received.
#[inline]
fn room(cells: &impl Cells, position: u64, lap: u64, index: u64) -> Result<bool, Overtaken> {
    // Acquire pairs with the Release in `look_for_room`, and so with those of the receivers.
    if position < cells.free().load(Ordering::Acquire) {
        return Ok(true);
    }
    look_for_room(cells, position, lap, index)
}

/// Looks at what receivers write: their hint first, which says how far senders may go on without looking again.
#[cold]
fn look_for_room(
    cells: &impl Cells,
    position: u64,
    lap: u64,
    index: u64,
) -> Result<bool, Overtaken> {
    // Acquire pairs with the Release in `show_done`.
    let free = cells
        .done()
        .load(Ordering::Acquire)
        .saturating_add(cells.capacity().cells());
    if position < free {
        cells.free().store(free, Ordering::Release);
        return Ok(true);
    }
    // Acquire pairs with the Release of whoever received: the message was read before it is overwritten.
    let word = cells.receiver(index).load(Ordering::Acquire);
    if word == State::new(lap.wrapping_sub(1), 0, Tag::Done).0 {
        return Ok(true);
    }
    no_room(cells, lap, index, word)
}

fn no_room(cells: &impl Cells, lap: u64, index: u64, word: u64) -> Result<bool, Overtaken> {
    let before = lap.wrapping_sub(1);
    match State(word).ahead_of(before) {
        1.. => Err(Overtaken),
        0 => Ok(false),
        _ => {
            // The oldest message is none: its place is free.
            let published = State(cells.published(index).load(Ordering::Acquire));
            if published.ahead_of(before) == 0 && published.is(Tag::Dead) {
                skip(cells, before, index);
                Err(Overtaken)
            } else {
                Ok(false)
            }
        }
    }
}

/// After the message at `position` was received: moves the hint for senders on, now and then.
#[inline]
fn show_done(cells: &impl Cells, position: u64) {
    let end = position.wrapping_add(1);
    if end & u64::from(cells.capacity().interval) == 0 {
        move_done(cells, end);
    }
}

#[cold]
fn move_done(cells: &impl Cells, end: u64) {
    let start = cells.done().load(Ordering::Relaxed);
    let received = |position: &u64| {
        let (lap, index) = cells.capacity().place(*position);
        // Acquire pairs with the Release of whoever received, so that senders have it by way of the hint.
        let word = State(cells.receiver(index).load(Ordering::Acquire));
        word.ahead_of(lap) > 0 || word.ahead_of(lap) == 0 && word.is(Tag::Done)
    };
    // A hint that lags by laps is moved at once: what is a lap behind was received.
    let from = start.max(end.saturating_sub(cells.capacity().cells()));
    let to = (from..end)
        .find(|position| !received(position))
        .unwrap_or(end);
    if to > start {
        cells.done().store(to, Ordering::Release);
    }
}

/// Marks the place of a dead sender received. True when this call did.
fn skip(cells: &impl Cells, lap: u64, index: u64) -> bool {
    cells
        .receiver(index)
        .compare_exchange(
            State::new(lap.wrapping_sub(1), 0, Tag::Done).0,
            State::new(lap, 0, Tag::Done).0,
            Ordering::AcqRel,
            Ordering::Relaxed,
        )
        .is_ok()
}

/// A position behind `position`, which is claimed, such that all before it are claimed too, and far on: the claimed ones
/// come first, so this gallops.
#[cold]
fn after_claimed<C: Cells>(cells: &C, words: impl Fn(&C, u64) -> &AtomicU64, position: u64) -> u64 {
    let size = cells.capacity().cells();
    let ahead = |position: u64| {
        let (lap, index) = cells.capacity().place(position);
        // Acquire pairs with the claim: who sees it sees the claims before it.
        let word = State(words(cells, index).load(Ordering::Acquire));
        if word.is(Tag::Closed) {
            return None;
        }
        u64::try_from(word.ahead_of(lap)).ok()
    };
    let mut claimed = position;
    let mut step = 0;
    for _ in 0..ROUNDS {
        let next = claimed.wrapping_add(step);
        match ahead(next) {
            Some(laps) => {
                claimed = next.wrapping_add(laps.wrapping_mul(size));
                step = (step * 2).clamp(1, size);
            }
            None if step <= 1 => break,
            None => step = 1,
        }
    }
    claimed.wrapping_add(1)
}

/// Publishes the message in a claimed cell. Ends with a full fence on x86: see `fence_after_rmw`.
#[inline]
pub fn publish(cells: &impl Cells, position: u64, slot: u32) {
    publish_at(cells, cells.capacity().spot(position), slot);
}

/// [`publish`].
#[inline]
pub fn publish_at(cells: &impl Cells, spot: Spot, slot: u32) {
    let Spot {
        position,
        lap,
        index,
    } = spot;
    // Release pairs with the Acquire of whoever receives: who sees FULL sees the message.
    cells
        .published(index)
        .store(State::new(lap, slot, Tag::Full).0, Ordering::Release);
    cells
        .tail()
        .swap(position.wrapping_add(1), Ordering::AcqRel);
}

/// As [`publish`], one of several: a SeqCst fence follows after the last.
#[inline]
pub fn publish_more(cells: &impl Cells, position: u64, slot: u32) {
    let (lap, index) = cells.capacity().place(position);
    // Release as in `publish`.
    cells
        .published(index)
        .store(State::new(lap, slot, Tag::Full).0, Ordering::Release);
}

/// Gives a claimed cell up: there will be no message.
pub fn abandon(cells: &impl Cells, position: u64) {
    let (lap, index) = cells.capacity().place(position);
    cells
        .published(index)
        .swap(State::new(lap, 0, Tag::Dead).0, Ordering::AcqRel);
}

/// What a receiver found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<T, L = ()> {
    /// A message that is received: what was copied before.
    Copied(u64, T),
    /// A message that was claimed, and must be released.
    Claimed(u64),
    /// A message that was left where it is.
    Left(u64, L),
    /// Nothing, for now.
    Empty,
    /// Nothing, for ever: the queue was closed to senders here.
    End,
}

/// What to do about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take<T, L = ()> {
    /// It has been copied: receive it if the copy is good.
    Copied(T),
    /// Claim it.
    Claim,
    /// Leave it; the result is good if nobody has received the message meanwhile.
    Leave(L),
}

/// As [`receive`], if it takes a single step: the oldest message is there, and no other receiver in the way. `look` copies it,
/// or says that it must not be taken like this.
#[inline]
pub fn receive_at_once(cells: &impl Cells, look: impl FnOnce(Spot) -> bool) -> bool {
    // The orderings are those of `receive`.
    let position = cells.head().load(Ordering::Acquire);
    let spot = cells.capacity().spot(position);
    let published = State(cells.published(spot.index).load(Ordering::Acquire));
    if published.ahead_of(spot.lap) != 0 || !published.is(Tag::Full) || !look(spot) {
        return false;
    }
    let before = State::new(spot.lap.wrapping_sub(1), 0, Tag::Done).0;
    let done = State::new(spot.lap, 0, Tag::Done).0;
    let taken = cells
        .receiver(spot.index)
        .compare_exchange(before, done, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok();
    if taken {
        cells
            .head()
            .store(position.wrapping_add(1), Ordering::Release);
        show_done(cells, position);
    }
    taken
}

/// Receives the oldest message. `look` is called with its position and says what to do; a copy that it makes must be thrown
/// away when it is called again, or when nothing is found in the end: the message was another's, and its bytes may have been
/// written over meanwhile. `announce` is called with a position before each try to claim it. `skipped` is set when
/// places of dead senders were freed on the way: there may be senders to wake.
///
/// # Errors
/// When the words contradict each other.
#[inline]
pub fn receive<T, L>(
    cells: &impl Cells,
    slot: u32,
    skipped: &mut bool,
    mut announce: impl FnMut(u64),
    mut look: impl FnMut(u64) -> Take<T, L>,
) -> Result<Found<T, L>, Broken> {
    // Acquire as in `claim_to_send`.
    let mut position = cells.head().load(Ordering::Acquire);
    for _ in 0..ROUNDS {
        let (lap, index) = cells.capacity().place(position);
        // Acquire pairs with the Release of `publish`.
        let word = cells.published(index).load(Ordering::Acquire);
        let ahead = State(word).ahead_of(lap);
        if ahead == -1 {
            // Acquire pairs with the Release in `close`.
            return Ok(
                if cells.end().load(Ordering::Acquire) == position.wrapping_add(1) {
                    Found::End
                } else {
                    Found::Empty
                },
            );
        }
        if ahead < 0 {
            return Err(Broken(word));
        }
        if ahead == 0 && State(word).is(Tag::Full) {
            let cell = cells.receiver(index);
            let before = State::new(lap.wrapping_sub(1), 0, Tag::Done).0;
            // AcqRel: Release, since what was copied must have been read before somebody sees the cell free.
            let change = |to| {
                cell.compare_exchange(before, to, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok()
            };
            let found = match look(position) {
                Take::Copied(value) => change(State::new(lap, 0, Tag::Done).0)
                    .then_some(Found::Copied(position, value)),
                Take::Claim => {
                    announce(position);
                    change(State::new(lap, slot, Tag::Reading).0)
                        .then_some(Found::Claimed(position))
                }
                Take::Leave(value) => {
                    // What was copied was read before the word is looked at.
                    fence(Ordering::Acquire);
                    if cell.load(Ordering::Relaxed) == before {
                        return Ok(Found::Left(position, value));
                    }
                    None
                }
            };
            if let Some(found) = found {
                cells
                    .head()
                    .store(position.wrapping_add(1), Ordering::Release);
                if matches!(found, Found::Copied(..)) {
                    show_done(cells, position);
                }
                return Ok(found);
            }
        } else if ahead == 0 && !State(word).is(Tag::Dead) {
            return Err(Broken(word));
        } else if ahead == 0 {
            *skipped |= skip(cells, lap, index);
        }
        if State(cells.receiver(index).load(Ordering::Acquire)).ahead_of(lap) < 0 {
            return Err(Broken(word));
        }
        position = after_claimed(cells, Cells::receiver, position);
        cells.head().store(position, Ordering::Release);
    }
    Err(Broken(cells.head().load(Ordering::Relaxed)))
}

/// Whether it is worth while to try to receive. Cheap: for spinning.
#[inline]
pub fn maybe_readable(cells: &impl Cells) -> bool {
    let position = cells.head().load(Ordering::Relaxed);
    let (lap, index) = cells.capacity().place(position);
    let state = State(cells.published(index).load(Ordering::Relaxed));
    state.ahead_of(lap) != -1
}

/// As [`maybe_readable`], for a queue that may be closed.
#[inline]
pub fn maybe_ended(cells: &impl Cells) -> bool {
    cells.end().load(Ordering::Relaxed) == cells.head().load(Ordering::Relaxed).wrapping_add(1)
}

/// Whether it is worth while to try to send. Cheap: for spinning.
#[inline]
pub fn maybe_writable(cells: &impl Cells) -> bool {
    let position = cells.tail().load(Ordering::Relaxed);
    let (lap, index) = cells.capacity().place(position);
    let state = State(cells.sender(index).load(Ordering::Relaxed));
    state.ahead_of(lap) != -1 || !matches!(room(cells, position, lap, index), Ok(false))
}

/// As [`maybe_writable`], as far as receivers have shown it: looks at no word that they write for each message. Room for the
/// last few messages may never be shown.
#[inline]
pub fn room_is_shown(cells: &impl Cells) -> bool {
    let done = cells.done().load(Ordering::Relaxed);
    let free = done.saturating_add(cells.capacity().cells());
    cells.tail().load(Ordering::Relaxed) < free
}

/// Whether a message can be received. Only reads, so it may be asked about a queue that is about to go; the answer is
/// worth nothing then.
#[must_use]
pub fn is_readable(cells: &impl Cells) -> bool {
    let head = next_to_receive(cells);
    for step in 0..cells.capacity().cells() {
        let (lap, index) = cells.capacity().place(head.wrapping_add(step));
        let published = State(cells.published(index).load(Ordering::Acquire));
        if published.ahead_of(lap) != 0 {
            return false;
        }
        let receiver = State(cells.receiver(index).load(Ordering::Acquire));
        if published.is(Tag::Full) && receiver.ahead_of(lap) < 0 {
            return true;
        }
    }
    false
}

/// Whether there is room for a message. Only reads, like [`is_readable`].
#[must_use]
pub fn is_writable(cells: &impl Cells) -> bool {
    let tail = first_unclaimed(cells, Cells::sender, cells.tail().load(Ordering::Acquire));
    let (lap, index) = cells.capacity().place(tail);
    let before = lap.wrapping_sub(1);
    let receiver = State(cells.receiver(index).load(Ordering::Acquire));
    let published = State(cells.published(index).load(Ordering::Acquire));
    receiver.ahead_of(lap) >= 0
        || receiver.ahead_of(before) == 0 && receiver.is(Tag::Done)
        || published.ahead_of(before) == 0 && published.is(Tag::Dead)
}

/// Gives the cell of a claimed message back to the senders. Ends with a full fence on x86.
#[inline]
pub fn release(cells: &impl Cells, position: u64) {
    let (lap, index) = cells.capacity().place(position);
    // Release pairs with the Acquire of `room`: the message was read before it is overwritten.
    cells
        .receiver(index)
        .swap(State::new(lap, 0, Tag::Done).0, Ordering::AcqRel);
    show_done(cells, position);
}

/// Closes the queue to senders: what is in it can still be received.
///
/// # Errors
/// When the words contradict each other.
pub fn close(cells: &impl Cells) -> Result<(), Broken> {
    let mut position = cells.tail().load(Ordering::Acquire);
    for _ in 0..ROUNDS {
        let (lap, index) = cells.capacity().place(position);
        let cell = cells.sender(index);
        let word = cell.load(Ordering::Acquire);
        match State(word).ahead_of(lap) {
            -1 => {
                let closed = State::new(lap, 0, Tag::Closed).0;
                let _ = cell.compare_exchange(word, closed, Ordering::AcqRel, Ordering::Relaxed);
            }
            0 if State(word).is(Tag::Closed) => {
                show_end(cells, position);
                return Ok(());
            }
            0.. => position = after_claimed(cells, Cells::sender, position),
            _ => return Err(Broken(word)),
        }
    }
    Err(Broken(cells.tail().load(Ordering::Relaxed)))
}

/// Shows receivers that the queue is closed at `position`. Whoever goes on to another queue has seen to it first, so a
/// process that died between closing and showing holds nobody up.
pub fn show_end(cells: &impl Cells, position: u64) {
    // Release: who sees it sees the claims before it.
    cells
        .end()
        .store(position.wrapping_add(1), Ordering::Release);
}

/// How many messages there are, those being written among them.
#[must_use]
pub fn length(cells: &impl Cells) -> u64 {
    let head = next_to_receive(cells);
    let tail = first_unclaimed(cells, Cells::sender, cells.tail().load(Ordering::Acquire));
    tail.saturating_sub(head).min(cells.capacity().cells())
}

/// The first position that no receiver has claimed, as far as can be seen.
pub fn next_to_receive(cells: &impl Cells) -> u64 {
    first_unclaimed(cells, Cells::receiver, cells.head().load(Ordering::Acquire))
}

fn first_unclaimed<C: Cells>(
    cells: &C,
    words: impl Fn(&C, u64) -> &AtomicU64,
    position: u64,
) -> u64 {
    let (lap, index) = cells.capacity().place(position);
    let word = State(words(cells, index).load(Ordering::Acquire));
    if word.ahead_of(lap) < 0 || word.is(Tag::Closed) {
        position
    } else {
        after_claimed(cells, words, position)
    }
}

/// Whether the message at `position` was received, or is being received.
#[must_use]
pub fn is_received(cells: &impl Cells, position: u64) -> bool {
    let (lap, index) = cells.capacity().place(position);
    State(cells.receiver(index).load(Ordering::Acquire)).ahead_of(lap) >= 0
}

/// Whether a sender that died left its claim at `position`, and no message; after [`abandon`] the others go on.
#[must_use]
pub fn left_writing(cells: &impl Cells, position: u64, slot: u32) -> bool {
    let (lap, index) = cells.capacity().place(position);
    let published = State(cells.published(index).load(Ordering::Acquire));
    cells.sender(index).load(Ordering::Acquire) == State::new(lap, slot, Tag::Taken).0
        && (published.ahead_of(lap) < 0 || published.ahead_of(lap) == 0 && published.is(Tag::Dead))
}

/// Whether a dead receiver left its claim at `position`.
#[must_use]
pub fn left_reading(cells: &impl Cells, position: u64, slot: u32) -> bool {
    let (lap, index) = cells.capacity().place(position);
    cells.receiver(index).load(Ordering::Acquire) == State::new(lap, slot, Tag::Reading).0
}

#[cfg(test)]
pub(crate) mod tests;
