//! The payloads of a broadcast that are on their way: each triggered and not yet read by all whom it woke.
//!
//! A payload lies in one of a few places. A place's word is `generation 40 bits | slot 20 | tag 4`:
//!
//! ```text
//!            CAS                  store                store            CAS                  store
//!   FREE(g) ─────▶ FILLING(slot) ───────▶ OPEN(slot) ───────▶ DONE(g) ─────▶ FREEING(slot) ───────▶ FREE(g+1)
//! ```
//! FILLING: its triggerer writes it. OPEN: it is being given to those who wait. DONE: to all who get it; they read it. Whether
//! somebody still has to read it is written in the seats, and whoever finds none that names the place frees it. `given`
//! counts the readers that are left, so that not everyone who leaves has to look at the seats; once a process has died in
//! between it is unreliable, and then everyone does.

use std::cell::Cell;

use dragon_shmem::region::Shared;
use dragon_shmem::sync::{AtomicU64, Ordering, fence, low};

use crate::error::Result;
use crate::memory::Map;
use crate::seat::Seats;

const FREE: u64 = 0;
const FILLING: u64 = 1;
const OPEN: u64 = 2;
const DONE: u64 = 3;
const FREEING: u64 = 4;
const TAG: u64 = 0xf;
const SLOTS: u32 = (1 << 20) - 1;
/// In `given`: the count cannot be relied upon.
const UNRELIABLE: u64 = 1 << 63;
/// The note of a seat that was woken without a payload. Also the most places.
pub(super) const NONE: u8 = u8::MAX;

/// A place. 32 bytes.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Place {
    state: AtomicU64,
    given: AtomicU64,
    /// Bytes.
    length: AtomicU64,
    /// The block that holds them; 0 when they lie in the broadcast's own memory.
    block: AtomicU64,
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Place {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Place>() == 32);

const fn word(generation: u64, slot: u32, tag: u64) -> u64 {
    generation << 24 | ((slot & SLOTS) as u64) << 4 | tag
}

const fn slot_of(state: u64) -> u32 {
    low(state >> 4) & SLOTS
}

/// Frees a block, and calls the function when recovery would do the rest if this process died now.
type FreeBlock<'a> = &'a dyn Fn(u64, &dyn Fn());

/// All payloads of a broadcast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payloads<'a> {
    pub(super) places: &'a [Place],
}

impl<'a> Payloads<'a> {
    pub(super) const fn size(places: u32) -> u64 {
        places as u64 * size_of::<Place>() as u64
    }

    pub(super) fn open(map: &Map<'a>, at: u64, places: u32) -> Result<Self> {
        Ok(Self {
            places: map.many(at, places)?,
        })
    }

    fn numbered(&self) -> impl Iterator<Item = (u8, &'a Place)> {
        (0..NONE).zip(self.places)
    }

    /// Claims a place for a triggerer.
    pub(super) fn claim(&self, slot: u32) -> Option<u8> {
        self.numbered().find_map(|(number, place)| {
            let state = place.state.load(Ordering::Relaxed);
            let mine = word(state >> 24, slot, FILLING);
            (state & TAG == FREE
                && place
                    .state
                    .compare_exchange(state, mine, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok())
            .then_some(number)
        })
    }

    fn place(&self, number: u8) -> &'a Place {
        // Numbers come from `claim`, or from a seat's note: `read` checks those.
        &self.places[usize::from(number) % self.places.len()]
    }

    /// Names the block of a claimed place; from then on recovery frees it.
    pub(super) fn set_block(&self, number: u8, block: u64) {
        self.place(number).block.store(block, Ordering::Release);
    }

    /// The payload is written: it can be given.
    pub(super) fn publish(&self, number: u8, length: u64) {
        let place = self.place(number);
        place.length.store(length, Ordering::Relaxed);
        place.given.store(0, Ordering::Relaxed);
        self.retag(place, OPEN);
    }

    /// Gives a claimed place back that nobody was given.
    pub(super) fn abandon(&self, number: u8) {
        let place = self.place(number);
        place.block.store(0, Ordering::Relaxed);
        let state = place.state.load(Ordering::Relaxed);
        let free = word((state >> 24) + 1, 0, FREE);
        place.state.store(free, Ordering::Release);
    }

    fn retag(&self, place: &Place, tag: u64) {
        let state = place.state.load(Ordering::Relaxed);
        place.state.store(state & !TAG | tag, Ordering::Release);
    }

    /// Counts a reader in, or out when it was not to be had.
    pub(super) fn count(&self, number: u8, one_more: bool) {
        let given = &self.place(number).given;
        if one_more {
            given.fetch_add(1, Ordering::AcqRel);
        } else {
            given.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Nobody is given it any more. True when it was freed.
    pub(super) fn close(
        &self,
        number: u8,
        seats: &Seats<'_>,
        slot: u32,
        free: FreeBlock<'_>,
    ) -> bool {
        let place = self.place(number);
        self.retag(place, DONE);
        // The last reader changes `given` and looks at the state; here it is the other way round.
        fence(Ordering::SeqCst);
        is_over(place.given.load(Ordering::Relaxed)) && self.sweep(number, seats, slot, free)
    }

    /// Length and block of the payload that a seat was given; `None` when there is no such.
    pub(super) fn content(&self, number: u8) -> Option<(u64, Option<u64>)> {
        let place = self.places.get(usize::from(number))?;
        let block = place.block.load(Ordering::Relaxed);
        let length = place.length.load(Ordering::Relaxed);
        Some((length, (block != 0).then_some(block)))
    }

    /// A reader has left its seat. True when the payload was freed.
    pub(super) fn done(
        &self,
        number: u8,
        seats: &Seats<'_>,
        slot: u32,
        free: FreeBlock<'_>,
    ) -> bool {
        let Some(place) = self.places.get(usize::from(number)) else {
            return false;
        };
        let left = place.given.fetch_sub(1, Ordering::AcqRel).wrapping_sub(1);
        fence(Ordering::SeqCst);
        is_over(left) && self.sweep(number, seats, slot, free)
    }

    /// Frees a payload that nobody has to read any more; false when somebody has, or somebody else frees it.
    fn sweep(&self, number: u8, seats: &Seats<'_>, slot: u32, free: FreeBlock<'_>) -> bool {
        let place = self.place(number);
        let state = place.state.load(Ordering::Acquire);
        // The seats after the state: nobody is given it any more, so what is not found now is never found.
        if state & TAG != DONE || seats.is_given(number) {
            return false;
        }
        let mine = word(state >> 24, slot, FREEING);
        let claimed =
            place
                .state
                .compare_exchange(state, mine, Ordering::AcqRel, Ordering::Relaxed);
        claimed.is_ok() && {
            self.finish_freeing(place, free);
            true
        }
    }

    fn finish_freeing(&self, place: &Place, free: FreeBlock<'_>) {
        let state = place.state.load(Ordering::Relaxed);
        let released = Cell::new(false);
        let release = || {
            place.block.store(0, Ordering::Relaxed);
            let free = word((state >> 24) + 1, 0, FREE);
            place.state.store(free, Ordering::Release);
            released.set(true);
        };
        match place.block.load(Ordering::Relaxed) {
            0 => {}
            block => free(block, &release),
        }
        // Also when the block could not be freed: it was scribbled over.
        if !released.get() {
            release();
        }
    }

    /// What a dead process was doing to payloads, after its seats were freed. `own` is the slot of whoever recovers; `lost`
    /// hears of blocks that nobody names any more.
    pub(super) fn recover(
        &self,
        slot: u32,
        seats: &Seats<'_>,
        own: u32,
        free: FreeBlock<'_>,
        mut lost: impl FnMut(u64),
    ) {
        for (number, place) in self.numbered() {
            let state = place.state.load(Ordering::Acquire);
            if state & TAG == FREE {
                continue;
            }
            if slot_of(state) == slot && state & TAG != DONE {
                match state & TAG {
                    FILLING | FREEING => {
                        let block = place.block.load(Ordering::Relaxed);
                        if block != 0 {
                            lost(block);
                        }
                        self.abandon(number);
                        continue;
                    }
                    // Who was woken reads it; the others were not woken.
                    _ => self.retag(place, DONE),
                }
            }
            // It may have been a reader, and be counted for ever.
            place.given.fetch_or(UNRELIABLE, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            self.sweep(number, seats, own, free);
        }
    }

    /// Frees all: nobody refers to the broadcast any more. Can be repeated.
    pub(super) fn discard(&self, free: FreeBlock<'_>) {
        for (_, place) in self.numbered() {
            if place.state.load(Ordering::Acquire) & TAG != FREE {
                self.finish_freeing(place, free);
            }
        }
    }

    /// How many places are free.
    #[cfg(test)]
    pub(super) fn free_places(&self) -> usize {
        let free = |(_, place): &(u8, &Place)| place.state.load(Ordering::Acquire) & TAG == FREE;
        self.numbered().filter(free).count()
    }
}

/// Whether the count says that there may be no reader left.
const fn is_over(given: u64) -> bool {
    given == 0 || given & UNRELIABLE != 0
}
