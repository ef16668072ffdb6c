//! Units with owners. Taking units and recording whose they are must be one step for whoever may find the taker dead.
//!
//! Each acquisition has a *record*: `generation 40 bits | slot 20 | tag 4`, and how many units. The semaphore's word is
//! `stamp 24 | zeros 8 | pending 16 | value 16`. One compare-and-swap of that word takes the units and names the record for
//! which they are (`pending` is its number + 1); from then on they are taken, and *anybody* finishes: first the record's tag
//! is moved on, then `pending` is cleared. So a process that dies in between leaves work that the next one who comes does
//! (helping, as in the recoverable objects of Attiya, Ben-Baruch and Hendler, PODC 2018). Giving back is the same the other way.
//!
//! ```text
//!            owner: CAS                word: −n            owner: CAS              word: +k
//!   FREE(g) ───────────▶ WANT(g+1, slot) ─────▶ HELD(slot) ──────────▶ GIVING(slot) ─────▶ GIVEN(slot)
//!     ▲ ▲                    │ not enough            ▲                                        │ │
//!     │ └────────────────────┘                       └──────────────── some are left ────────┘ │
//!     └────────────────────────────────────────────────────────────── none are left ────────────┘
//! ```
//! A record whose tag the word has moved on (HELD, GIVEN) is changed further only after `pending` was cleared; so whoever
//! helps never meets a later step of the same record.

use dragon_shmem::Member;
use dragon_shmem::sync::{AtomicU32, AtomicU64, Ordering, high, low};

use crate::error::Result;
use crate::memory;

/// The most units of a semaphore whose units have owners.
pub const MOST_OWNED: u32 = (1 << 16) - 1 - SPARE;
/// Records beyond one for each unit: for those who are just trying.
const SPARE: u32 = 64;

const SLOTS: u32 = (1 << 20) - 1;
const FREE: u64 = 0;
const WANT: u64 = 1;
const HELD: u64 = 2;
const GIVING: u64 = 3;
const GIVEN: u64 = 4;
const TAG: u64 = 0xf;

/// An acquisition. 16 bytes.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Record {
    state: AtomicU64,
    /// Units, in HELD and from there on; in GIVEN `left` is what counts.
    units: AtomicU32,
    /// Units that are left after what is being given.
    left: AtomicU32,
}

/// What stands before the records.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Head {
    /// No record from this one on was ever used.
    top: AtomicU64,
}

// SAFETY: repr(C), only atomics.
unsafe impl dragon_shmem::region::Shared for Record {}
// SAFETY: as above.
unsafe impl dragon_shmem::region::Shared for Head {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Record>() == 16 && size_of::<Head>() == 64);

/// The units in the word.
pub(super) const fn value(word: u64) -> u32 {
    low(word) & 0xffff
}

/// How often there were none, in the word.
pub(super) const fn zeros(word: u64) -> u32 {
    high(word) & 0xff
}

const fn pending(word: u64) -> Option<u32> {
    (low(word) >> 16).checked_sub(1)
}

/// The word with another value, for a record.
fn changed(word: u64, value: u32, record: u32) -> u64 {
    let stamp = (high(word) >> 8).wrapping_add(1) & 0xff_ffff;
    let zeros = zeros(word).wrapping_add(u32::from(value == 0)) & 0xff;
    u64::from(stamp << 8 | zeros) << 32 | u64::from((record + 1) << 16 | value)
}

const fn finished(word: u64) -> u64 {
    word & !0xffff_0000
}

const fn state(generation: u64, slot: u32, tag: u64) -> u64 {
    generation << 24 | ((slot & SLOTS) as u64) << 4 | tag
}

const fn retag(state: u64, tag: u64) -> u64 {
    state & !TAG | tag
}

const fn slot_of(state: u64) -> u32 {
    low(state >> 4) & SLOTS
}

/// The next state of a record that nobody uses any more.
const fn freed(state: u64) -> u64 {
    self::state((state >> 24) + 1, 0, FREE)
}

/// Where an owned semaphore lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owned<'a> {
    pub(super) word: &'a AtomicU64,
    pub(super) head: &'a Head,
    pub(super) records: &'a [Record],
}

impl<'a> Owned<'a> {
    /// Bytes that the records need.
    pub(super) fn size(most: u32) -> u64 {
        size_of::<Head>() as u64 + u64::from(most + SPARE) * size_of::<Record>() as u64
    }

    pub(super) fn init(member: &Member, block: u64, most: u32) -> Result<()> {
        memory::zero(member, block, Self::size(most))
    }

    pub(super) fn open(
        member: &'a Member,
        word: &'a AtomicU64,
        block: u64,
        most: u32,
    ) -> Result<Self> {
        let map = memory::map(member, block, Self::size(most))?;
        Ok(Self {
            word,
            head: map.at(0)?,
            records: map.many(size_of::<Head>() as u64, most + SPARE)?,
        })
    }

    fn used(&self) -> impl Iterator<Item = (u32, &'a Record)> {
        let top = usize::try_from(self.head.top.load(Ordering::Acquire)).unwrap_or(usize::MAX);
        (0..).zip(self.records.iter().take(top))
    }

    /// Finishes what the word says is pending. Returns the word without anything pending.
    fn help(&self) -> u64 {
        loop {
            let word = self.word.load(Ordering::Acquire);
            let Some(number) = pending(word) else {
                return word;
            };
            if let Some(record) = self.records.get(number as usize) {
                let state = record.state.load(Ordering::Acquire);
                // Looked at again: so the state was read while the word spoke of it.
                if self.word.load(Ordering::Acquire) != word {
                    continue;
                }
                let to = match state & TAG {
                    WANT => Some(HELD),
                    GIVING => Some(GIVEN),
                    // Somebody was quicker.
                    _ => None,
                };
                if let Some(tag) = to {
                    let _ = record.state.compare_exchange(
                        state,
                        retag(state, tag),
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    );
                }
            }
            let _ = self.word.compare_exchange(
                word,
                finished(word),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
    }

    /// Changes the value for a record, which is then finished. `None`: the change is not possible.
    fn change(&self, number: u32, change: impl Fn(u32) -> Option<u32>) -> Option<u32> {
        loop {
            let word = self.help();
            let to = change(value(word))?;
            let swapped = self.word.compare_exchange(
                word,
                changed(word, to, number),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if swapped.is_ok() {
                self.help();
                return Some(to);
            }
        }
    }

    /// Takes units; returns how many are left. `None`: there are not enough.
    pub(super) fn take(&self, slot: u32, units: u32) -> Result<Option<u32>> {
        if value(self.help()) < units {
            return Ok(None);
        }
        let (number, record, claimed) = self.claim(slot)?;
        record.units.store(units, Ordering::Relaxed);
        let left = self.change(number, |value| value.checked_sub(units));
        if left.is_none() {
            // Nothing was pending for it, so nobody else touches it.
            record.state.store(freed(claimed), Ordering::Release);
        }
        Ok(left)
    }

    /// A record for an acquisition.
    fn claim(&self, slot: u32) -> Result<(u32, &'a Record, u64)> {
        // More rounds than others need to give up what they only tried with, unless they were stopped in the middle.
        const ROUNDS: u32 = 1 << 10;
        for _ in 0..ROUNDS {
            for (number, record) in (0..).zip(self.records) {
                let seen = record.state.load(Ordering::Relaxed);
                if seen & TAG != FREE {
                    continue;
                }
                // Before the claim, so that recovery finds it.
                self.head
                    .top
                    .fetch_max(u64::from(number) + 1, Ordering::AcqRel);
                let claimed = state((seen >> 24) + 1, slot, WANT);
                if record
                    .state
                    .compare_exchange(seen, claimed, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
                {
                    return Ok((number, record, claimed));
                }
            }
            dragon_shmem::sync::spin_loop();
        }
        Err(dragon_shmem::Error::TableFull {
            table: "acquisitions of a semaphore under way",
            size: u32::try_from(self.records.len()).unwrap_or(u32::MAX),
        }
        .into())
    }

    /// Gives units that processes with this slot took. False: they have not so many, and nothing is given.
    pub(super) fn give(&self, slot: u32, units: u32) -> Result<bool> {
        let mut claimed = Vec::new();
        let mut missing = units;
        for (number, record) in self.used() {
            if missing == 0 {
                break;
            }
            let Some(giving) = self.claim_held(record, slot) else {
                continue;
            };
            let held = record.units.load(Ordering::Relaxed);
            let given = held.min(missing);
            missing -= given;
            claimed.push((number, record, giving, held - given, given));
        }
        for (number, record, giving, left, given) in claimed {
            if missing != 0 {
                record.state.store(retag(giving, HELD), Ordering::Release);
                continue;
            }
            record.left.store(left, Ordering::Relaxed);
            self.finish_giving(number, record, giving, left, given);
        }
        Ok(missing == 0)
    }

    /// Claims a record with units of a slot, so that they can be given.
    fn claim_held(&self, record: &Record, slot: u32) -> Option<u64> {
        let seen = record.state.load(Ordering::Acquire);
        if seen & TAG != HELD || slot_of(seen) != slot {
            return None;
        }
        // What made it HELD may still be pending.
        self.help();
        let giving = retag(seen, GIVING);
        record
            .state
            .compare_exchange(seen, giving, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then_some(giving)
    }

    fn finish_giving(&self, number: u32, record: &Record, giving: u64, left: u32, given: u32) {
        // The sum fits: what was taken is given.
        self.change(number, |value| Some((value + given).min(0xffff)));
        self.settle(record, giving, left);
    }

    /// GIVEN → HELD with what is left, or FREE.
    fn settle(&self, record: &Record, giving: u64, left: u32) {
        if left == 0 {
            record.state.store(freed(giving), Ordering::Release);
        } else {
            record.units.store(left, Ordering::Relaxed);
            record.state.store(retag(giving, HELD), Ordering::Release);
        }
    }

    /// Whether a process has units.
    pub(super) fn holds(&self, slot: u32) -> bool {
        self.used().any(|(_, record)| {
            let state = record.state.load(Ordering::Acquire);
            state & TAG != FREE && slot_of(state) == slot
        })
    }

    /// Gives all units of a dead process; returns how many.
    pub(super) fn recover(&self, slot: u32) -> u32 {
        let mut units = 0;
        for (number, record) in self.used() {
            // Several steps for one record: GIVEN with units left becomes HELD, HELD becomes GIVING.
            loop {
                self.help();
                let state = record.state.load(Ordering::Acquire);
                if state & TAG == FREE || slot_of(state) != slot {
                    break;
                }
                match state & TAG {
                    // Its owner died before the units were taken.
                    WANT => record.state.store(freed(state), Ordering::Release),
                    HELD => {
                        let _ = self.claim_held(record, slot);
                    }
                    GIVING => {
                        let held = record.units.load(Ordering::Relaxed);
                        record.left.store(0, Ordering::Relaxed);
                        self.finish_giving(number, record, state, 0, held);
                        units += held;
                    }
                    GIVEN => {
                        let left = record.left.load(Ordering::Relaxed);
                        self.settle(record, state, left);
                    }
                    // Scribbled over.
                    _ => record.state.store(freed(state), Ordering::Release),
                }
            }
        }
        units
    }
}
