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
    /// First page of a free extent that its last owner keeps for itself, as long as nobody needs it more.
    Kept = 6,
}

/// A page word: tag 4 bits | class 4 | owner's slot plus one 20 (0: nobody's) | reserved 4 | extra 32, from the low end. What
/// is extra: the pages of an extent, the version of a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageWord(u64);

impl PageWord {
    /// The word of a free page.
    pub const FREE: Self = Self(0);

    /// Puts a word together.
    #[inline]
    #[must_use]
    pub fn new(tag: Tag, owner: Option<u32>, class: usize, extra: u32) -> Self {
        let owner = owner.map_or(0, |slot| u64::from(slot) + 1);
        Self(
            tag as u64
                | (class as u64 & 0xf) << 4
                | (owner & 0xf_ffff) << 8
                | u64::from(extra) << 32,
        )
    }

    /// What the page is used for.
    #[inline]
    #[must_use]
    pub fn tag(self) -> Tag {
        match self.0 & 0xf {
            0 => Tag::Free,
            1 => Tag::Slab,
            2 => Tag::Extent,
            3 => Tag::Body,
            4 => Tag::Claimed,
            6 => Tag::Kept,
            _ => Tag::Reserved,
        }
    }

    /// Its size class.
    #[inline]
    #[must_use]
    pub fn class(self) -> usize {
        usize::from(self.0.to_le_bytes()[0] >> 4)
    }

    /// The slot that owns it. Nobody owns a shared extent, and an orphaned slab.
    #[inline]
    #[must_use]
    pub fn owner(self) -> Option<u32> {
        (low(self.0 >> 8) & 0xf_ffff).checked_sub(1)
    }

    /// Pages of the extent that it starts; the version of a slab.
    #[inline]
    #[must_use]
    pub fn extra(self) -> u32 {
        high(self.0)
    }

    /// The same without an owner.
    #[inline]
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
    #[cfg(all(test, loom))]
    pub(super) fn new(word: PageWord) -> Self {
        Self(AtomicU64::new(word.0))
    }

    /// Reads it.
    #[must_use]
    #[inline]
    pub fn load(&self) -> PageWord {
        PageWord(self.0.load(Ordering::SeqCst))
    }

    /// Writes it: by its owner alone. Release: who sees it sees what the owner wrote before.
    #[inline]
    pub fn store(&self, word: PageWord) {
        self.0.store(word.0, Ordering::Release);
    }

    /// Changes it if it is still as it was read.
    #[must_use]
    #[inline]
    pub fn replace(&self, from: PageWord, to: PageWord) -> bool {
        self.0
            .compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }
}

/// Blocks of the smallest class in a page, in words of a bitmap.
pub const BITMAP: usize = 16;

/// Record of a page. 512 bytes; what others write lies on cache lines apart from what the owner reads all the time.
#[derive(Debug)]
#[repr(C, align(512))]
pub struct PageMeta {
    /// The next page in its owner's list, plus one; 0 ends the list.
    pub next: AtomicU64,
    /// The one before it, plus one. Read by the owner only, never by recovery.
    pub prev: AtomicU64,
    /// How often the page has been made a slab or the head of an extent. Written by whoever has it claimed.
    pub version: AtomicU64,
    reserved: [AtomicU64; 13],
    /// Blocks that are allocated; written by the owner alone.
    pub allocated: [AtomicU64; BITMAP],
    /// Blocks that were shared.
    pub shared: [AtomicU64; BITMAP],
    /// Blocks that were freed and not collected yet.
    pub freed: [AtomicU64; BITMAP],
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for PageMeta {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<PageMeta>() == 512);

impl PageMeta {
    /// Counts one more use of the page, which the caller has claimed; returns the number, cut to what a page word holds.
    #[inline]
    pub fn renew(&self) -> u32 {
        let version = self.version.load(Ordering::Relaxed).wrapping_add(1);
        // Release: who sees the page in its next use sees the version of that use.
        self.version.store(version, Ordering::Release);
        low(version)
    }
}

/// How often each block of a page has been given out, 16 bits each. 2 KiB. Written by the slab's owner alone, before the bit
/// that says that the block is allocated; so a block's bits together with its stamp say whether they still speak of the
/// same allocation.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Stamps([AtomicU64; STAMP_WORDS]);

#[cfg(not(loom))]
const STAMP_WORDS: usize = 256;
/// A model needs one block only.
#[cfg(loom)]
const STAMP_WORDS: usize = 1;

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Stamps {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Stamps>() == 2048);

impl Stamps {
    #[cfg(all(test, loom))]
    pub(super) fn new() -> Self {
        Self([AtomicU64::new(0)])
    }

    /// The stamp of a block.
    #[inline]
    #[must_use]
    pub fn get(&self, block: u32) -> u64 {
        let (word, shift) = Self::place(block);
        word.map_or(0, |n| self.0[n].load(Ordering::Acquire) >> shift & 0xffff)
    }

    /// The next stamp for a block. For the owner only.
    #[inline]
    pub fn bump(&self, block: u32) {
        let (word, shift) = Self::place(block);
        if let Some(n) = word {
            let before = self.0[n].load(Ordering::Relaxed);
            let stamp = (before >> shift).wrapping_add(1) & 0xffff;
            let after = before & !(0xffff << shift) | stamp << shift;
            // The Release of the allocated bit, which follows, publishes it.
            self.0[n].store(after, Ordering::Relaxed);
        }
    }

    fn place(block: u32) -> (Option<usize>, u32) {
        let word = block as usize / 4;
        (Some(word).filter(|n| *n < STAMP_WORDS), block % 4 * 16)
    }
}
