//! Seats: where those wait who are woken one by one, each by name.
//!
//! Who waits takes a seat, and whoever wakes it writes into that seat; so a wake-up is given to exactly one waiter and stays
//! with it, whether it sleeps, has not gone to sleep yet, or its time is up at this moment. A seat's word is
//! `low bits of the ticket 32 | note 8 | slot 20 | tag 4`:
//!
//! ```text
//!              sit: CAS                 store              give: CAS               stand: store
//!   FREE ────────────────▶ TAKEN(slot) ───────▶ WAITING(slot) ─────▶ GIVEN(slot, note) ────────▶ FREE
//!    ▲                                           │      ▲ │  before it sleeps: CAS
//!    │                        withdraw: CAS      │      │ ▼
//!    ├───────────────────────────────────────────┘   SLEEPING(slot) ──▶ GIVEN
//!    └── (destroy: ENDED, from WAITING and SLEEPING)
//! ```
//! The ticket is drawn from a counter and says who came first. One that is lost with a dead process harms nobody: it is only
//! compared. Whoever holds a seat is named in its word, so recovery finds the seats of a dead process.

use dragon_shmem::region::Shared;
use dragon_shmem::sync::{AtomicU64, Ordering, fence, low};
use dragon_shmem::{Deadline, WaitResult};

use crate::error::{Error, Result};
use crate::memory::Map;
use crate::sleep::WideWord;

const FREE: u64 = 0;
const TAKEN: u64 = 1;
const WAITING: u64 = 2;
const SLEEPING: u64 = 3;
const GIVEN: u64 = 4;
const ENDED: u64 = 5;
const TAG: u64 = 0xf;
const SLOTS: u32 = (1 << 20) - 1;

/// Wakes everyone.
pub(crate) const ALL: u32 = u32::MAX;
/// Most seats of an object.
pub(crate) const MOST_SEATS: u32 = 1 << 16;

/// A seat. 16 bytes.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Seat {
    state: WideWord,
    ticket: AtomicU64,
}

/// What stands before the seats.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct SeatsHead {
    /// The next ticket.
    tickets: AtomicU64,
    /// No seat from this one on was ever taken.
    top: AtomicU64,
    /// Where to begin to look for a free seat.
    hint: AtomicU64,
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Seat {}
// SAFETY: as above.
unsafe impl Shared for SeatsHead {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Seat>() == 16 && size_of::<SeatsHead>() == 64);

/// The seats of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seats<'a> {
    pub(crate) head: &'a SeatsHead,
    pub(crate) seats: &'a [Seat],
}

/// How a wait in a seat stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing has happened.
    Waiting,
    /// It was woken, with this note.
    Given(u8),
    /// The object was destroyed.
    Ended,
}

const fn word(ticket: u64, note: u8, slot: u32, tag: u64) -> u64 {
    (low(ticket) as u64) << 32 | (note as u64) << 24 | ((slot & SLOTS) as u64) << 4 | tag
}

const fn retag(state: u64, tag: u64) -> u64 {
    state & !TAG | tag
}

const fn slot_of(state: u64) -> u32 {
    low(state >> 4) & SLOTS
}

const fn note_of(state: u64) -> u8 {
    state.to_le_bytes()[3]
}

const fn waits(state: u64) -> bool {
    matches!(state & TAG, WAITING | SLEEPING)
}

impl<'a> Seats<'a> {
    /// The head and so many seats behind it, from `at` on.
    pub(crate) fn open(map: &Map<'a>, at: u64, seats: u32) -> Result<Self> {
        Ok(Self {
            head: map.at(at)?,
            seats: map.many(at + size_of::<SeatsHead>() as u64, seats)?,
        })
    }

    /// Bytes of the head and so many seats.
    pub(crate) const fn size(seats: u32) -> u64 {
        size_of::<SeatsHead>() as u64 + seats as u64 * size_of::<Seat>() as u64
    }

    fn used(&self) -> impl Iterator<Item = (u32, &Seat)> {
        let top = usize::try_from(self.head.top.load(Ordering::Acquire)).unwrap_or(usize::MAX);
        (0..).zip(self.seats.iter().take(top))
    }

    fn seat(&self, index: u32) -> Result<&Seat> {
        self.seats.get(index as usize).ok_or_else(|| {
            let what = "number of a seat";
            let value = index.into();
            dragon_shmem::Error::Corrupt { what, value }.into()
        })
    }

    /// Takes a seat for a thread of the process with this slot: from now on it can be woken. Its number.
    pub(crate) fn sit(&self, slot: u32) -> Result<u32> {
        let count = u32::try_from(self.seats.len()).unwrap_or(u32::MAX);
        let start = low(self.head.hint.load(Ordering::Relaxed)) % count.max(1);
        for index in (start..count).chain(0..start) {
            let seat = &self.seats[index as usize];
            if seat.state.word.load(Ordering::Relaxed) & TAG != FREE {
                continue;
            }
            // Before the seat is taken, so that whoever wakes, and recovery, look at it.
            self.head
                .top
                .fetch_max(u64::from(index) + 1, Ordering::AcqRel);
            let taken = word(0, 0, slot, TAKEN);
            let free = seat.state.word.load(Ordering::Relaxed);
            if free & TAG != FREE
                || seat
                    .state
                    .word
                    .compare_exchange(free, taken, Ordering::AcqRel, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            self.head
                .hint
                .store(u64::from(index) + 1, Ordering::Relaxed);
            let ticket = self.head.tickets.fetch_add(1, Ordering::AcqRel);
            seat.ticket.store(ticket, Ordering::Relaxed);
            // Release: who sees it waiting sees its ticket.
            let waiting = word(ticket, 0, slot, WAITING);
            seat.state.word.store(waiting, Ordering::Release);
            // Between this and the look at whether the object was destroyed; `end` has one the other way round.
            fence(Ordering::SeqCst);
            return Ok(index);
        }
        Err(dragon_shmem::Error::TableFull {
            table: "places for those who wait at one object",
            size: count,
        }
        .into())
    }

    /// Whether a seat is that of a thread of the process with this slot.
    pub(crate) fn is_of(&self, index: u32, slot: u32) -> Result<bool> {
        let state = self.seat(index)?.state.word.load(Ordering::Acquire);
        Ok(state & TAG != FREE && slot_of(state) == slot)
    }

    /// How the wait in a seat stands.
    pub(crate) fn look(&self, index: u32) -> Result<Look> {
        // Acquire pairs with the Release of `give`.
        let state = self.seat(index)?.state.word.load(Ordering::Acquire);
        Ok(match state & TAG {
            GIVEN => Look::Given(note_of(state)),
            ENDED => Look::Ended,
            _ => Look::Waiting,
        })
    }

    /// Waits in a seat until it is woken; the note. `alive` fails when the object was destroyed. Whoever fails has left the
    /// seat; whoever succeeds must [`Seats::stand`].
    pub(crate) fn wait(
        &self,
        index: u32,
        deadline: Deadline,
        alive: impl Fn() -> Result<()>,
    ) -> Result<u8> {
        self.wait_and_stay(index, deadline, alive).or_else(|ended| {
            // It may have been woken at this very moment.
            self.withdraw(index)?.ok_or(ended)
        })
    }

    /// As [`Seats::wait`], but whoever fails has the seat still, and can be woken in it.
    pub(crate) fn wait_and_stay(
        &self,
        index: u32,
        deadline: Deadline,
        alive: impl Fn() -> Result<()>,
    ) -> Result<u8> {
        let seat = self.seat(index)?;
        loop {
            match self.look(index)? {
                Look::Given(note) => return Ok(note),
                Look::Waiting | Look::Ended => {}
            }
            alive()?;
            let state = seat.state.word.load(Ordering::Acquire);
            if matches!(state & TAG, FREE | TAKEN) {
                let what = "seat of one who waits";
                return Err(dragon_shmem::Error::Corrupt { what, value: state }.into());
            }
            let asleep = retag(state, SLEEPING);
            if !waits(state)
                || state != asleep
                    && seat
                        .state
                        .word
                        .compare_exchange(state, asleep, Ordering::AcqRel, Ordering::Relaxed)
                        .is_err()
            {
                // Woken, or destroyed: that shows the next time.
                continue;
            }
            match seat.state.sleep(asleep, deadline) {
                WaitResult::Woken | WaitResult::Changed => {}
                WaitResult::TimedOut => return Err(Error::Timeout),
                WaitResult::Interrupted => return Err(Error::Interrupted),
            }
        }
    }

    /// Gives a seat up without having been woken; the note when that has just happened: then [`Seats::stand`] is left to do.
    pub(crate) fn withdraw(&self, index: u32) -> Result<Option<u8>> {
        let seat = self.seat(index)?;
        loop {
            let state = seat.state.word.load(Ordering::Acquire);
            match state & TAG {
                WAITING | SLEEPING | ENDED => {
                    let left = seat.state.word.compare_exchange(
                        state,
                        FREE,
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    );
                    if left.is_ok() {
                        self.free(index);
                        return Ok(None);
                    }
                }
                GIVEN => return Ok(Some(note_of(state))),
                // Not this caller's any more.
                _ => return Ok(None),
            }
        }
    }

    /// Leaves a seat after being woken.
    pub(crate) fn stand(&self, index: u32) -> Result<()> {
        self.seat(index)?.state.word.store(FREE, Ordering::Release);
        self.free(index);
        Ok(())
    }

    fn free(&self, index: u32) {
        // The lowest free seat is taken next: so few have to be looked at.
        self.head.hint.fetch_min(index.into(), Ordering::Relaxed);
    }

    /// What [`Seats::give`] takes for those who are waiting now, and nobody who comes later.
    pub(crate) fn limit(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.head.tickets.load(Ordering::Acquire)
    }

    /// Wakes up to `count` of those who have waited since before `limit`, the oldest first; how many. `each` is called with
    /// true before a seat is tried, and with false when it was not to be had.
    pub(crate) fn give(&self, limit: u64, count: u32, note: u8, each: impl Fn(bool)) -> u32 {
        let mut given = 0;
        while given < count {
            let mut found = self.oldest(limit, count - given);
            if found.is_empty() {
                break;
            }
            for (_, state, index) in found.drain(..) {
                let seat = &self.seats[index as usize];
                let to = word(state >> 32, note, slot_of(state), GIVEN);
                each(true);
                // Release pairs with the Acquire of `look`. The ticket in the word makes sure that it is the same wait.
                let swapped = seat.state.word.compare_exchange(
                    state,
                    to,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if swapped.is_err() {
                    each(false);
                    continue;
                }
                given += 1;
                if state & TAG == SLEEPING {
                    seat.state.wake(1);
                }
            }
        }
        given
    }

    /// As [`Seats::give`], by one who dies before it wakes.
    #[cfg(all(test, loom))]
    pub(crate) fn give_and_die(&self, index: u32) {
        let given = |state| waits(state).then_some(retag(state, GIVEN));
        let word = &self.seats[index as usize].state.word;
        let _ = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, given);
    }

    /// The oldest of those who wait: ticket, state, seat.
    fn oldest(&self, limit: u64, count: u32) -> Vec<(u64, u64, u32)> {
        let waiting = self.used().filter_map(|(index, seat)| {
            let state = seat.state.word.load(Ordering::Acquire);
            let ticket = seat.ticket.load(Ordering::Relaxed);
            // A ticket that is not the word's belongs to the seat's next wait, or its last.
            (waits(state) && low(ticket) == low(state >> 32) && ticket < limit)
                .then_some((ticket, state, index))
        });
        if count == 1 {
            return waiting.min().into_iter().collect();
        }
        let mut found: Vec<_> = waiting.collect();
        found.sort_unstable();
        found.truncate(count as usize);
        found
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> u32 {
        fence(Ordering::SeqCst);
        let waits = |(_, seat): &(u32, &Seat)| waits(seat.state.word.load(Ordering::Relaxed));
        u32::try_from(self.used().filter(waits).count()).unwrap_or(u32::MAX)
    }

    /// Whether somebody was woken with this note and has not left.
    pub(crate) fn is_given(&self, note: u8) -> bool {
        self.used().any(|(_, seat)| {
            let state = seat.state.word.load(Ordering::Acquire);
            state & TAG == GIVEN && note_of(state) == note
        })
    }

    /// Ends all waits: the object was destroyed, and says so to whoever looks.
    pub(crate) fn end(&self) {
        fence(Ordering::SeqCst);
        for (_, seat) in self.used() {
            let end = |state| waits(state).then_some(retag(state, ENDED));
            let ended = seat
                .state
                .word
                .fetch_update(Ordering::AcqRel, Ordering::Relaxed, end);
            if ended.is_ok() {
                seat.state.wake(u32::MAX);
            }
        }
    }

    /// Frees the seats of a dead process; `given` hears the note of each that had been woken. Wakes those to whom the process
    /// may have given something without having come to waking them.
    pub(crate) fn recover(&self, slot: u32, mut given: impl FnMut(u8)) {
        for (index, seat) in self.used() {
            let state = seat.state.word.load(Ordering::Acquire);
            if state & TAG == FREE || slot_of(state) != slot {
                if state & TAG == GIVEN {
                    seat.state.wake(1);
                }
                continue;
            }
            // Whoever wakes may be quicker; nobody else changes it.
            let last = seat.state.word.swap(FREE, Ordering::AcqRel);
            self.free(index);
            if last & TAG == GIVEN {
                given(note_of(last));
            }
        }
    }
}
