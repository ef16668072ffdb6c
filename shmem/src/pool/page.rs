//! Pages: the unit of a pool's metadata.

use crate::region::Shared;
use crate::sync::{AtomicU64, Ordering, high, low};

/// Bytes of a page.
pub const PAGE: u64 = 64 << 10;

/// What a page is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// Nothing.
    Free = 0,
    /// Blocks of one size class.
    Slab = 1,
    /// First page of an extent.
    Extent = 2,
    /// A further page of an extent.
    Body = 3,
    /// Somebody is changing it: the owner's intent says how.
    Claimed = 4,
    /// Not for allocation.
    Reserved = 5,
}

/// A page word: tag 4 bits | class 4 | owner's slot plus one 20 (0: nobody's) | reserved 4 | pages 32, from the low end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageWord(u64);

impl PageWord {
    /// The word of a free page.
    pub const FREE: Self = Self(0);

    /// Puts a word together.
    #[must_use]
    pub fn new(tag: Tag, owner: Option<u32>, class: usize, pages: u32) -> Self {
        let owner = owner.map_or(0, |slot| u64::from(slot) + 1);
        Self(
            tag as u64
                | (class as u64 & 0xf) << 4
                | (owner & 0xf_ffff) << 8
                | u64::from(pages) << 32,
        )
    }

    /// What the page is used for.
    #[must_use]
    pub fn tag(self) -> Tag {
        match self.0 & 0xf {
            0 => Tag::Free,
            1 => Tag::Slab,
            2 => Tag::Extent,
            3 => Tag::Body,
            4 => Tag::Claimed,
            _ => Tag::Reserved,
        }
    }

    /// Its size class.
    #[must_use]
    pub fn class(self) -> usize {
        usize::from(self.0.to_le_bytes()[0] >> 4)
    }

    /// The slot that owns it. Nobody owns a shared extent, and an orphaned slab.
    #[must_use]
    pub fn owner(self) -> Option<u32> {
        (low(self.0 >> 8) & 0xf_ffff).checked_sub(1)
    }

    /// Pages of the extent that it starts.
    #[must_use]
    pub fn pages(self) -> u32 {
        high(self.0)
    }

    /// The same without an owner.
    #[must_use]
    pub fn orphaned(self) -> Self {
        Self(self.0 & !(0xf_ffff << 8))
    }
}

/// A page word in shared memory.
#[derive(Debug)]
#[repr(transparent)]
pub struct Word(AtomicU64);

// SAFETY: a transparent atomic.
unsafe impl Shared for Word {}

impl Word {
    /// Reads it.
    #[must_use]
    pub fn load(&self) -> PageWord {
        PageWord(self.0.load(Ordering::SeqCst))
    }

    /// Writes it: by its owner alone.
    pub fn store(&self, word: PageWord) {
        self.0.store(word.0, Ordering::SeqCst);
    }

    /// Changes it if it is still as it was read.
    #[must_use]
    pub fn replace(&self, from: PageWord, to: PageWord) -> bool {
        self.0
            .compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }
}

/// Blocks of the smallest class in a page, in words of a bitmap.
pub const BITMAP: usize = 16;

/// Record of a page. 512 bytes.
#[derive(Debug)]
#[repr(C, align(512))]
pub struct PageMeta {
    /// The next page in its owner's list, plus one; 0 ends the list.
    pub next: AtomicU64,
    /// Blocks that are allocated; written by the owner alone.
    pub allocated: [AtomicU64; BITMAP],
    /// Blocks that were shared.
    pub shared: [AtomicU64; BITMAP],
    /// Blocks that were freed and not collected yet.
    pub freed: [AtomicU64; BITMAP],
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for PageMeta {}
const _: () = assert!(size_of::<PageMeta>() == 512);
