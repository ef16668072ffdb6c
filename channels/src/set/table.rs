//! The table of a set's members, in a block of the pool.
//!
//! ```text
//! 0     magic, capacity, hint (the lowest place that may be free), used (places up to here have been used)
//! 128   places, 32 bytes each: state, object, token, about
//! ```
//! The state of a place is `version 32 | slot 20 | interests 8 | phase 4`, from the high end:
//!
//! ```text
//!  FREE(v) ─add: CAS→ CLAIMED(v, slot) ─store→ MEMBER(v, slot) ─remove: CAS→ LEAVING(v, slot) ─store→ FREE(v+1)
//!                          └─recovery→ FREE(v+1)  └─recovery of an add that was not finished: as remove
//! ```

use std::ptr::NonNull;

use dragon_shmem::Member;
use dragon_shmem::pool::Pool;
use dragon_shmem::region::Shared;
use dragon_shmem::subscription::MAX_MEMBERS;
use dragon_shmem::sync::{AtomicU32, AtomicU64, Ordering, high, low};

use super::Interest;
use crate::error::Result;

#[derive(Debug)]
#[repr(C, align(128))]
struct Head {
    magic: AtomicU32,
    capacity: AtomicU32,
    hint: AtomicU32,
    used: AtomicU32,
}

/// One member.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Place {
    pub(super) state: AtomicU64,
    /// generation 32 | index 32.
    pub(super) object: AtomicU64,
    pub(super) token: AtomicU64,
    /// Kind and node of the object, and how it is with one of another node: see [`super::elsewhere`].
    pub(super) about: AtomicU64,
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Head {}
// SAFETY: as above.
unsafe impl Shared for Place {}

const MAGIC: u32 = u32::from_le_bytes(*b"SET1");
const PLACES: u64 = 128;
const PLACE: u64 = size_of::<Place>() as u64;
#[cfg(not(loom))]
const _: () = assert!(size_of::<Head>() == 128 && PLACE == 32);

/// What a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    Free = 0,
    Claimed = 1,
    Member = 2,
    Leaving = 3,
}

/// The word of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlaceState(pub(super) u64);

impl PlaceState {
    pub(super) fn new(version: u32, slot: u32, interest: Interest, phase: Phase) -> Self {
        Self(
            u64::from(version) << 32
                | u64::from(slot & 0xf_ffff) << 12
                | u64::from(interest.0 & 0xff) << 4
                | phase as u64,
        )
    }

    pub(super) fn phase(self) -> Option<Phase> {
        Some(match self.0 & 0xf {
            0 => Phase::Free,
            1 => Phase::Claimed,
            2 => Phase::Member,
            3 => Phase::Leaving,
            _ => return None,
        })
    }

    pub(super) fn version(self) -> u32 {
        high(self.0)
    }

    pub(super) fn slot(self) -> u32 {
        low(self.0 >> 12) & 0xf_ffff
    }

    pub(super) fn interest(self) -> Interest {
        Interest(low(self.0 >> 4) & 0xff)
    }
}

/// The table, as this process has it mapped. Its capacity was checked when it was opened and is never read again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    base: NonNull<u8>,
    capacity: u32,
}

// SAFETY: a Table only points to shared memory, which it accesses by atomics.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    pub(super) fn size(capacity: u32) -> u64 {
        PLACES + u64::from(capacity) * PLACE
    }

    pub(super) fn init(pool: &Pool, offset: u64, capacity: u32) -> Result<()> {
        pool.check(offset, Self::size(capacity))?;
        let head: &Head = pool.data().view(offset)?;
        head.capacity.store(capacity, Ordering::Relaxed);
        head.hint.store(0, Ordering::Relaxed);
        head.used.store(0, Ordering::Relaxed);
        for n in 0..u64::from(capacity) {
            let place: &Place = pool.data().view(offset + PLACES + n * PLACE)?;
            place.state.store(0, Ordering::Relaxed);
            place.about.store(0, Ordering::Relaxed);
        }
        head.magic.store(MAGIC, Ordering::Release);
        Ok(())
    }

    pub(super) fn open(member: &Member, offset: u64) -> Result<Self> {
        let pool = member.pool();
        let corrupt = |what, value: u32| dragon_shmem::Error::Corrupt {
            what,
            value: value.into(),
        };
        pool.check(offset, PLACES)?;
        let head: &Head = pool.data().view(offset)?;
        let magic = head.magic.load(Ordering::Acquire);
        if magic != MAGIC {
            return Err(corrupt("magic of a set", magic).into());
        }
        let capacity = head.capacity.load(Ordering::Relaxed);
        if capacity == 0 || capacity > MAX_MEMBERS {
            return Err(corrupt("capacity of a set", capacity).into());
        }
        pool.check(offset, Self::size(capacity))?;
        Ok(Self {
            base: pool.data().bytes(offset, Self::size(capacity))?,
            capacity,
        })
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    fn head(&self) -> &Head {
        // SAFETY: `open` checked that the block has room for the head and is aligned; Head is Shared.
        unsafe { self.base.cast::<Head>().as_ref() }
    }

    pub(super) fn place(&self, n: u32) -> Option<&Place> {
        if n >= self.capacity {
            return None;
        }
        let at = usize::try_from(PLACES + u64::from(n) * PLACE).ok()?;
        // SAFETY: below the capacity, so the place lies inside the block that `open` checked.
        let place = unsafe { self.base.add(at) };
        // SAFETY: as above; places are aligned to 32 bytes; Place is Shared.
        Some(unsafe { place.cast::<Place>().as_ref() })
    }

    /// Claims a free place; `announce` is told which before each try. `None`: the set is full.
    pub(super) fn claim(
        &self,
        slot: u32,
        interest: Interest,
        mut announce: impl FnMut(u32, u32),
    ) -> Option<(u32, &Place, u32)> {
        let start = self.head().hint.load(Ordering::Relaxed);
        for n in (0..self.capacity).map(|n| start.wrapping_add(n) % self.capacity) {
            let place = self.place(n)?;
            let now = PlaceState(place.state.load(Ordering::Acquire));
            if now.phase() != Some(Phase::Free) {
                continue;
            }
            announce(n, now.version());
            let claimed = PlaceState::new(now.version(), slot, interest, Phase::Claimed);
            if place
                .state
                .compare_exchange(now.0, claimed.0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                self.head().hint.store(n + 1, Ordering::Relaxed);
                self.head().used.fetch_max(n + 1, Ordering::Relaxed);
                return Some((n, place, now.version()));
            }
        }
        None
    }

    /// Frees a place that the caller has claimed.
    pub(super) fn free(&self, n: u32, place: &Place, version: u32) {
        let free = PlaceState::new(version.wrapping_add(1), 0, Interest(0), Phase::Free);
        place.state.store(free.0, Ordering::Release);
        self.head().hint.fetch_min(n, Ordering::Relaxed);
    }

    /// How many places have been used: the first ones.
    pub(super) fn used(&self) -> u32 {
        self.head().used.load(Ordering::Relaxed).min(self.capacity)
    }

    /// How many members there are.
    pub(super) fn count(&self) -> u32 {
        let used = self.used();
        let is_member = |n: &u32| {
            self.place(*n).is_some_and(|place| {
                PlaceState(place.state.load(Ordering::Relaxed)).phase() == Some(Phase::Member)
            })
        };
        u32::try_from((0..used).filter(is_member).count()).unwrap_or(u32::MAX)
    }
}
