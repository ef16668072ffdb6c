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
    /// First page of a free extent that stays together, as long as nobody needs it more: its last owner keeps it for itself, or
    /// without an owner it is for anybody who wants as many pages.
    Kept = 6,
}

const RESTING: u64 = 1 << 28;
const LOOKED_AT: u64 = 1 << 29;

/// A page word: tag 4 bits | class 4 | owner's slot plus one 20 (0: nobody's) | marks of a slab 4 | extra 32, from the low end. What
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

    /// The same with another value of `extra`.
    #[must_use]
    pub fn with_extra(self, extra: u32) -> Self {
        Self(self.0 & 0xffff_ffff | u64::from(extra) << 32)
    }

    /// Whether the owner of a slab has put it aside: then it takes no block in it before it has this mark away, and who finds
    /// no room may take the page when no block in it is in use.
    #[inline]
    #[must_use]
    pub fn is_resting(self) -> bool {
        self.0 & RESTING != 0
    }

    /// Whether somebody is looking whether a slab at rest is empty. The owner cannot use it meanwhile.
    #[must_use]
    pub fn is_looked_at(self) -> bool {
        self.0 & LOOKED_AT != 0
    }

    /// The same slab, in use by its owner.
    #[must_use]
    pub fn awake(self) -> Self {
        Self(self.0 & !(RESTING | LOOKED_AT))
    }

    /// The same slab, at rest.
    #[must_use]
    pub fn resting(self) -> Self {
        Self(self.awake().0 | RESTING)
    }

    /// The same slab at rest, while somebody looks whether it is empty.
    #[must_use]
    pub fn looked_at(self) -> Self {
        Self(self.0 | RESTING | LOOKED_AT)
    }

    /// The same with an owner.
    #[must_use]
    pub fn owned(self, owner: u32) -> Self {
        Self(self.orphaned().0 | (u64::from(owner) + 1) << 8)
    }

    /// The same without an owner.
    #[inline]
    #[must_use]
    pub fn orphaned(self) -> Self {
        Self(self.awake().0 & !(0xf_ffff << 8))
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

/// The place of a page in a list of its owner.
#[derive(Debug)]
#[repr(C)]
pub struct Links {
    /// The next page, plus one; 0 ends the list.
    pub next: AtomicU64,
    /// The one before it, plus one. Read by the owner only, never by recovery.
    pub prev: AtomicU64,
}

/// Record of a page. One cache line: of a page that is no slab it is all that costs memory beside the page's word. The bitmaps
/// of a slab lie in a table of their own.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct PageMeta {
    /// Its place in a list of slabs.
    pub slabs: Links,
    /// How often the page has been made a slab or the head of an extent. Written by whoever has it claimed.
    pub version: AtomicU64,
    /// Its place in a list of private extents.
    pub extents: Links,
    /// The slot in whose list of slabs the page is, plus one; 0 for none. Only then may it become somebody's slab.
    pub linked: AtomicU64,
    /// Who looks whether the slab, at rest, is empty: his slot plus one, 0 for nobody. He alone sets the mark of that in the
    /// page's word and takes it away, or recovery after his death; so the mark that he finds is his own.
    pub looker: AtomicU64,
    reserved: AtomicU64,
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for PageMeta {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<PageMeta>() == 64);

/// Which blocks of a slab are in use. 384 bytes; what others write lies on cache lines apart from what the owner reads all the
/// time. Of a page that was never a slab nobody looks at them.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Bitmaps {
    /// Blocks that are allocated; written by the owner alone.
    pub allocated: [AtomicU64; BITMAP],
    /// Blocks that were shared.
    pub shared: [AtomicU64; BITMAP],
    /// Blocks that were freed and not collected yet.
    pub freed: [AtomicU64; BITMAP],
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Bitmaps {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Bitmaps>() == 384);

impl PageMeta {
    /// Takes the page out of a dead owner's list, as far as the mark goes.
    pub(super) fn forget_link(&self, owner: u32) {
        let _ = self.linked.compare_exchange(
            u64::from(owner) + 1,
            0,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }

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
