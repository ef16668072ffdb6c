//! A barrier's words, and what is done to them.
//!
//! Each party that arrives takes a *place*: the first that is free in the row of this phase. A place's word is
//! `phase 40 bits | slot 20 | tag 4`, so a party that dies is found by its slot. There are two rows, used in turn, so that the
//! next phase can begin while parties of the last one still leave. The barrier's word is
//! `phase 40 bits | version 16 | – | reason 4 | state 4`:
//!
//! ```text
//!                 all places of the row are taken: CAS by whoever sees it
//!   WHOLE(p) ───────────────────────────────────────────────────────────▶ WHOLE(p+1)
//!     │  ▲ │
//!     │  │ └── time over, abort, death: CAS ──▶ BROKEN(p, reason)
//!     │  │                                          │ reset: CAS
//!     │  └── no place is taken: CAS ── RESETTING(p) ◀─── reset: CAS (from WHOLE too); abort: CAS back
//!     ▼            as WHOLE(p+4)
//!   one party takes its arrival back: the version, so that nobody completes who has seen it there
//!
//!   with an action:
//!   WHOLE(p) ── all places are taken: CAS ──▶ ACTING(p, index) ── its party is done: CAS ──▶ WHOLE(p+1)
//!                                                 └── it failed, its death, abort ──▶ BROKEN(p), reset ──▶ RESETTING(p)
//! ```
//! Whether a phase was completed is decided by one compare-and-swap of that word, and a party in phase `p` knows from the
//! word alone how its wait ended. As long as it has its place the word cannot go beyond `p+2`, which needs the same row again;
//! a reset waits until all places are left, and skips so many phases that nobody takes it for a completion.
//!
//! Where there is an action, the last party that came acts before the others go on: its index stands in the word in place of
//! the version, and it keeps its place until it is done, so that its death is noticed there. Who waits meanwhile has arrived
//! for good: no time that is up breaks anything any more.

use dragon_shmem::sync::{AtomicU64, Ordering, fence, low};

use super::Breakage;
use crate::wait::WaitWord;

const FREE: u64 = 0;
const HERE: u64 = 1;
const LEAVING: u64 = 2;
const SLOTS: u32 = (1 << 20) - 1;

const WHOLE: u64 = 0;
const BROKEN: u64 = 1;
const RESETTING: u64 = 2;
const ACTING: u64 = 3;
const TAG: u64 = 0xf;
/// One more version.
const VERSION: u64 = 1 << 8;
const VERSIONS: u64 = 0xffff << 8;

const fn place(phase: u64, slot: u32, tag: u64) -> u64 {
    phase << 24 | ((slot & SLOTS) as u64) << 4 | tag
}

const fn phase_of(word: u64) -> u64 {
    word >> 24
}

const fn slot_of(place: u64) -> u32 {
    low(place >> 4) & SLOTS
}

const fn state(phase: u64, reason: u64, state: u64) -> u64 {
    phase << 24 | reason << 4 | state
}

fn reason_of(word: u64) -> Breakage {
    Breakage::from_number(word >> 4 & 0xf)
}

/// The word while the party with this index acts.
const fn acting(phase: u64, index: u32) -> u64 {
    state(phase, 0, ACTING) | (index as u64) << 8 & VERSIONS
}

/// Where a party is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    phase: u64,
    index: u32,
}

impl Place {
    /// As a number, for a caller that comes back with it.
    pub(crate) const fn number(self) -> u64 {
        self.phase << 24 | self.index as u64
    }

    /// The inverse of [`Place::number`]; of another number a place that [`Words::is_of`] denies.
    pub(crate) const fn from_number(number: u64) -> Self {
        let (phase, index) = (number >> 24, low(number) & 0xff_ffff);
        Self { phase, index }
    }
}

/// What came of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The party has a place.
    At(Place),
    /// The barrier is broken.
    Broken(Breakage),
    /// There is no place yet: parties of an earlier phase still leave, or the barrier is being reset.
    Later,
}

/// How the wait of a party stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Others are missing.
    Waiting,
    /// All are there. The party's number.
    Passed(u32),
    /// All are there, and the party is to act. Its number.
    Acts(u32),
    /// All are there, and another party acts.
    Held,
    /// The barrier was broken.
    Broken(Breakage),
}

/// Where a barrier lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a> {
    pub(super) word: &'a AtomicU64,
    /// Where to begin to look for a free place: phase 40 bits | index 24.
    pub(super) hint: &'a AtomicU64,
    /// Where those sleep who have a place.
    pub(super) done: &'a WaitWord,
    /// Where those sleep who have none yet.
    pub(super) room: &'a WaitWord,
    /// Two rows.
    pub(super) places: &'a [AtomicU64],
    /// Whether one party acts before all go on.
    pub(super) acts: bool,
}

impl<'a> Words<'a> {
    fn parties(&self) -> usize {
        self.places.len() / 2
    }

    fn row(&self, phase: u64) -> &'a [AtomicU64] {
        let (even, odd) = self.places.split_at(self.parties());
        if phase.is_multiple_of(2) { even } else { odd }
    }

    fn at(&self, at: Place) -> &'a AtomicU64 {
        // Indices come from `arrive`; one that was scribbled over leads nowhere else.
        let row = self.row(at.phase);
        &row[at.index as usize % row.len()]
    }

    /// Takes a place for a party of the process with this slot. True: the barrier moved on, others are to be woken.
    pub(super) fn arrive(&self, slot: u32) -> (Arrival, bool) {
        let mut moved = false;
        loop {
            // Acquire pairs with the Release of whoever moved the barrier on.
            let word = self.word.load(Ordering::Acquire);
            let phase = phase_of(word);
            match word & TAG {
                WHOLE => {}
                BROKEN => return (Arrival::Broken(reason_of(word)), moved),
                _ => return (Arrival::Later, moved),
            }
            let hint = self.hint.load(Ordering::Relaxed);
            let start = if phase_of(hint) == phase {
                low(hint) & 0xff_ffff
            } else {
                0
            };
            // From the hint on, and once more from the beginning: a party may have taken its arrival back.
            for start in [start, 0] {
                match self.take(phase, start, slot) {
                    Take::At(index) => {
                        // Of two who take the last two places, one at least sees the other's.
                        fence(Ordering::SeqCst);
                        let last = self.row(phase).last().map(|p| p.load(Ordering::Acquire));
                        let full = last.is_some_and(|p| p & TAG == HERE && phase_of(p) == phase);
                        // If this party is to act, nobody else has to know.
                        moved |= full && self.complete(phase, index) && !self.acts;
                        return (Arrival::At(Place { phase, index }), moved);
                    }
                    Take::Later => return (Arrival::Later, moved),
                    Take::Full => {}
                }
            }
            // All places are taken, but the barrier has not moved on: its last party is about to do that, or leaves.
            let completed = self.complete(phase, 0);
            moved |= completed;
            if !completed && self.word.load(Ordering::Acquire) == word {
                return (Arrival::Later, moved);
            }
        }
    }

    fn take(&self, phase: u64, start: u32, slot: u32) -> Take {
        for (index, at) in (0..).zip(self.row(phase)).skip(start as usize) {
            loop {
                let seen = at.load(Ordering::Acquire);
                match (seen & TAG, phase_of(seen)) {
                    (FREE, of) if of <= phase => {
                        let mine = place(phase, slot, HERE);
                        // Release: a party's doings before it came are seen by all who pass.
                        if at
                            .compare_exchange(seen, mine, Ordering::AcqRel, Ordering::Relaxed)
                            .is_ok()
                        {
                            let hint = phase << 24 | u64::from(index + 1);
                            self.hint.store(hint, Ordering::Relaxed);
                            return Take::At(index);
                        }
                    }
                    (HERE | LEAVING, of) if of < phase => return Take::Later,
                    // Taken in this phase, or the barrier is further on already.
                    _ => break,
                }
            }
        }
        Take::Full
    }

    /// Moves on to the next phase if all places are taken, or has the party with this index act before. False: not all, or
    /// somebody was quicker.
    fn complete(&self, phase: u64, index: u32) -> bool {
        loop {
            // Read before the places: a party that takes its arrival back in between has changed the version.
            let word = self.word.load(Ordering::Acquire);
            let all = || {
                self.row(phase).iter().all(|at| {
                    let seen = at.load(Ordering::Acquire);
                    seen & TAG == HERE && phase_of(seen) == phase
                })
            };
            if phase_of(word) != phase || word & TAG != WHOLE || !all() {
                return false;
            }
            let next = if self.acts {
                acting(phase, index)
            } else {
                state(phase + 1, 0, WHOLE)
            };
            if self
                .word
                .compare_exchange(word, next, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                return true;
            }
        }
    }

    /// Whether a place is that of a party of the process with this slot.
    pub(super) fn is_of(&self, at: Place, slot: u32) -> bool {
        let taken = place(at.phase, slot, HERE);
        (at.index as usize) < self.parties() && self.at(at).load(Ordering::Acquire) == taken
    }

    /// The party in a place has acted: all go on, or the barrier is broken. False: it was broken meanwhile.
    pub(super) fn acted(&self, at: Place, done: bool) -> bool {
        let next = if done {
            state(at.phase + 1, 0, WHOLE)
        } else {
            state(at.phase, Breakage::Aborted.number(), BROKEN)
        };
        self.word
            .compare_exchange(
                acting(at.phase, at.index),
                next,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// How the wait in a place stands.
    pub(super) fn look(&self, at: Place) -> Look {
        let word = self.word.load(Ordering::Acquire);
        match phase_of(word).wrapping_sub(at.phase) {
            0 if word & TAG == WHOLE => Look::Waiting,
            0 if word == acting(at.phase, at.index) => Look::Acts(at.index),
            0 if word & TAG == ACTING => Look::Held,
            0 => Look::Broken(reason_of(word)),
            1 | 2 => Look::Passed(at.index),
            // A reset that was over before this party had its place.
            _ => Look::Broken(Breakage::Reset),
        }
    }

    /// Leaves a place at the end of a wait. True: the barrier is whole again after a reset.
    pub(super) fn leave(&self, at: Place) -> bool {
        self.at(at)
            .store(place(at.phase + 1, 0, FREE), Ordering::Release);
        self.end_reset()
    }

    /// Takes an arrival back; `None` when that was possible, else how the wait ended: then the place is left to
    /// [`Words::leave`].
    pub(super) fn withdraw(&self, at: Place) -> Option<Look> {
        let mine = self.at(at);
        let slot = slot_of(mine.load(Ordering::Relaxed));
        mine.store(place(at.phase, slot, LEAVING), Ordering::Release);
        loop {
            let word = self.word.load(Ordering::Acquire);
            if phase_of(word) != at.phase || word & TAG != WHOLE {
                // All were there, with us; or it was broken.
                mine.store(place(at.phase, slot, HERE), Ordering::Release);
                return Some(self.look(at));
            }
            // Who completes has read the version before it looked at the places: either it sees that we leave, or it fails.
            let next = word & !VERSIONS | word.wrapping_add(VERSION) & VERSIONS;
            if self
                .word
                .compare_exchange(word, next, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                mine.store(place(at.phase, 0, FREE), Ordering::Release);
                self.hint.store(at.phase << 24, Ordering::Relaxed);
                return None;
            }
        }
    }

    /// Breaks the barrier in a phase; false when that is over, or the barrier broken already.
    pub(super) fn break_phase(&self, phase: u64, why: Breakage) -> bool {
        self.change(|word| {
            (phase_of(word) == phase && word & TAG == WHOLE).then_some(state(
                phase,
                why.number(),
                BROKEN,
            ))
        })
    }

    /// Breaks the barrier for a party that is gone: when others wait for it to come, or to act.
    pub(super) fn break_for(&self, at: Place, why: Breakage) {
        self.change(|word| {
            (phase_of(word) == at.phase && word & TAG == WHOLE
                || word == acting(at.phase, at.index))
            .then_some(state(at.phase, why.number(), BROKEN))
        });
    }

    /// As [`Words::break_phase`], for the party in a place.
    pub(super) fn break_at(&self, at: Place, why: Breakage) -> bool {
        self.break_phase(at.phase, why)
    }

    /// Breaks the barrier in whatever phase it is. A reset is ended by who aborts, and not by one whose time is up meanwhile.
    pub(super) fn break_any(&self, why: Breakage) -> bool {
        self.change(|word| {
            let breaks = match word & TAG {
                BROKEN => false,
                RESETTING => why == Breakage::Aborted,
                _ => true,
            };
            breaks.then_some(state(phase_of(word), why.number(), BROKEN))
        })
    }

    /// Begins a reset: who waits is told that the barrier is broken, and when all have left it is whole.
    pub(super) fn reset(&self) {
        self.change(|word| {
            (word & TAG != RESETTING).then_some(state(
                phase_of(word),
                Breakage::Reset.number(),
                RESETTING,
            ))
        });
        self.end_reset();
    }

    fn change(&self, to: impl Fn(u64) -> Option<u64>) -> bool {
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, to)
            .is_ok()
    }

    /// Ends a reset if all places are left.
    fn end_reset(&self) -> bool {
        // Between leaving a place, or beginning the reset, and the look at the other.
        fence(Ordering::SeqCst);
        let word = self.word.load(Ordering::Acquire);
        if word & TAG != RESETTING {
            return false;
        }
        let empty = |at: &AtomicU64| at.load(Ordering::Acquire) & TAG == FREE;
        let next = state(phase_of(word) + 4, 0, WHOLE);
        self.places.iter().all(empty)
            && self
                .word
                .compare_exchange(word, next, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    /// Wakes everyone who waits for anything here. Costs nothing while nobody does.
    pub(super) fn wake(&self) {
        fence(Ordering::SeqCst);
        self.done.wake_sleepers(u32::MAX);
        self.room.wake_sleepers(u32::MAX);
    }

    /// Wakes those who wait for a place.
    pub(super) fn wake_room(&self) {
        fence(Ordering::SeqCst);
        self.room.wake_sleepers(u32::MAX);
    }

    /// How many wait in the present phase, and why the barrier is broken, if it is.
    pub(super) fn attributes(&self) -> (u32, Option<Breakage>) {
        let word = self.word.load(Ordering::Acquire);
        let phase = phase_of(word);
        let here = |at: &&AtomicU64| {
            let seen = at.load(Ordering::Acquire);
            seen & TAG == HERE && phase_of(seen) == phase
        };
        let waiting = self.row(phase).iter().filter(here).count();
        (
            u32::try_from(waiting).unwrap_or(u32::MAX),
            matches!(word & TAG, BROKEN | RESETTING).then(|| reason_of(word)),
        )
    }

    /// What the parties of a dead process leave: their places, and a barrier that is broken if others waited for them.
    pub(super) fn recover(&self, slot: u32) {
        for (index, at) in (0..).zip(self.places) {
            let seen = at.load(Ordering::Acquire);
            if seen & TAG == FREE || slot_of(seen) != slot {
                continue;
            }
            let phase = phase_of(seen);
            // It may have been the last one, and have died before it moved the barrier on. It cannot act any more, though.
            if self.acts || !self.complete(phase, 0) {
                let index = index % u32::try_from(self.parties()).unwrap_or(u32::MAX);
                self.break_for(Place { phase, index }, Breakage::Died);
            }
            at.store(place(phase + 1, 0, FREE), Ordering::Release);
        }
        self.end_reset();
    }
}

/// What came of looking for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Take {
    At(u32),
    Later,
    Full,
}
