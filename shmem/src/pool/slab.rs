//! Slabs: pages of equal blocks, owned by one slot.
//!
//! The states of a block, by its bits (allocated, shared, freed):
//!
//! | bits | state | who may change it |
//! |---|---|---|
//! | 0 – – | free | the owner: sets `allocated` |
//! | 1 0 0 | private to the owner | the owner: sets `shared` or `freed`; recovery frees it |
//! | 1 1 0 | shared | whoever has it: sets `freed` by `fetch_or` |
//! | 1 x 1 | freed | the owner collects it: clears `shared`, `allocated`, `freed`, in this order |
//!
//! Each step of collecting can be repeated, so an owner that dies in between leaves nothing that recovery must know about.

use dragon_protocol::SlotId;

use super::Pool;
use super::page::{BITMAP, PAGE, PageMeta, PageWord, Tag};
use crate::error::Result;
use crate::slot::Slot;
use crate::sync::{AtomicU64, Ordering, low};
use crate::thread::Intent;

/// Number of size classes: 64 B, 128 B, … 32 KiB.
pub const CLASSES: usize = 10;
const SMALLEST: u64 = 64;

/// Size class of a block, `None` when it is too large for a slab.
#[must_use]
pub fn class_of(length: u64) -> Option<usize> {
    let class = length
        .max(SMALLEST)
        .checked_next_power_of_two()?
        .trailing_zeros()
        - SMALLEST.trailing_zeros();
    Some(class as usize).filter(|class| *class < CLASSES)
}

/// Bytes of a block of a class.
#[must_use]
pub fn class_size(class: usize) -> u64 {
    // Four bits of a page word can say more than there are classes.
    SMALLEST << class.min(CLASSES - 1)
}

/// The bits of one slab, apart from where they lie, so that models can check them.
#[derive(Clone, Copy, Debug)]
pub struct Bits<'a> {
    allocated: &'a [AtomicU64],
    shared: &'a [AtomicU64],
    freed: &'a [AtomicU64],
}

impl<'a> Bits<'a> {
    /// The bits of `blocks` blocks.
    #[must_use]
    pub fn new(
        allocated: &'a [AtomicU64],
        shared: &'a [AtomicU64],
        freed: &'a [AtomicU64],
    ) -> Self {
        Self {
            allocated,
            shared,
            freed,
        }
    }

    fn of(meta: &'a PageMeta, class: usize) -> Self {
        let words = words_of(class);
        Self::new(
            &meta.allocated[..words],
            &meta.shared[..words],
            &meta.freed[..words],
        )
    }

    /// Allocates a block, collecting freed ones when none is free. `blocks` is how many the slab has. For the owner only.
    #[must_use]
    pub fn allocate(self, blocks: u32) -> Option<u32> {
        self.take(blocks).or_else(|| {
            if self.collect() {
                self.take(blocks)
            } else {
                None
            }
        })
    }

    fn take(self, blocks: u32) -> Option<u32> {
        for (n, word) in (0..).zip(self.allocated) {
            let mine = word.load(Ordering::Relaxed);
            let bit = (!mine).trailing_zeros();
            let index = n * 64 + bit;
            if bit < 64 && index < blocks {
                // A plain store is enough: nobody else writes this word. Release: who learns of the block later sees it
                // allocated.
                word.store(mine | 1 << bit, Ordering::Release);
                return Some(index);
            }
        }
        None
    }

    /// Makes freed blocks free; true when there were any. For the owner only, or for recovery after its death.
    pub fn collect(self) -> bool {
        let mut any = false;
        for n in 0..self.freed.len() {
            // Acquire pairs with the Release of `free`: what the freeing process did with the block is over.
            let gone = self.freed[n].load(Ordering::Acquire);
            if gone != 0 {
                self.shared[n].fetch_and(!gone, Ordering::Relaxed);
                self.allocated[n].store(
                    self.allocated[n].load(Ordering::Relaxed) & !gone,
                    Ordering::Release,
                );
                self.freed[n].fetch_and(!gone, Ordering::Release);
                any = true;
            }
        }
        any
    }

    /// Frees a block; false when it is free already.
    #[must_use]
    pub fn free(self, block: u32) -> bool {
        let (n, bit) = (block as usize / 64, 1 << (block % 64));
        let allocated = self.allocated[n].load(Ordering::Acquire) & bit != 0;
        // SeqCst: see `release_orphan`.
        allocated && self.freed[n].fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    /// Shares a private block; false when it is not one.
    #[must_use]
    pub fn share(self, block: u32) -> bool {
        let (n, bit) = (block as usize / 64, 1 << (block % 64));
        let private = self.allocated[n].load(Ordering::Relaxed)
            & !self.freed[n].load(Ordering::Relaxed)
            & bit
            != 0;
        private && self.shared[n].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Frees all private blocks of an owner that is dead.
    pub fn free_private(self) {
        self.collect();
        for n in 0..self.allocated.len() {
            let kept =
                self.allocated[n].load(Ordering::Acquire) & self.shared[n].load(Ordering::Acquire);
            self.allocated[n].store(kept, Ordering::Release);
        }
    }

    /// Blocks in use.
    #[must_use]
    pub fn in_use(self) -> u64 {
        let used = |n: usize| {
            self.allocated[n].load(Ordering::SeqCst) & !self.freed[n].load(Ordering::SeqCst)
        };
        (0..self.allocated.len())
            .map(|n| u64::from(used(n).count_ones()))
            .sum()
    }
}

fn blocks_of(class: usize) -> u32 {
    low(PAGE / class_size(class))
}

fn words_of(class: usize) -> usize {
    (blocks_of(class) as usize).div_ceil(64).min(BITMAP)
}

pub(super) fn alloc(
    pool: &Pool,
    slabs: &mut Vec<u32>,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    class: usize,
) -> Result<Option<u64>> {
    for position in (0..slabs.len()).rev() {
        let page = slabs[position];
        let bits = Bits::of(pool.page_meta(page)?, class);
        if let Some(block) = bits.allocate(blocks_of(class)) {
            // The slab that has room is tried first the next time.
            let last = slabs.len() - 1;
            slabs.swap(position, last);
            return Ok(Some(
                u64::from(page) * PAGE + u64::from(block) * class_size(class),
            ));
        }
    }
    let Some(page) = claim(pool, slot, owner, intent, class)? else {
        return Ok(None);
    };
    slabs.push(page);
    let block = Bits::of(pool.page_meta(page)?, class)
        .allocate(blocks_of(class))
        .unwrap_or(0);
    Ok(Some(
        u64::from(page) * PAGE + u64::from(block) * class_size(class),
    ))
}

/// Claims a page for a new slab and puts it into the owner's list.
fn claim(
    pool: &Pool,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    class: usize,
) -> Result<Option<u32>> {
    let Some(page) = super::extent::claim_pages(pool, owner, intent, 1)? else {
        return Ok(None);
    };
    let meta = pool.page_meta(page)?;
    for words in [&meta.allocated, &meta.shared, &meta.freed] {
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
    }
    let head = &slot.slabs[pool.number() as usize % slot.slabs.len()];
    meta.next
        .store(head.load(Ordering::Relaxed), Ordering::Relaxed);
    pool.page(page)?
        .store(PageWord::new(Tag::Slab, Some(owner.index), class, 1));
    head.store(u64::from(page) + 1, Ordering::Release);
    intent.end();
    Ok(Some(page))
}

pub(super) fn check(pool: &Pool, page: u32, word: PageWord, offset: u64) -> Result<u32> {
    let size = class_size(word.class());
    let inside = offset - u64::from(page) * PAGE;
    let block = u32::try_from(inside / size)
        .ok()
        .filter(|_| inside.is_multiple_of(size))
        .ok_or_else(|| pool.not_allocated(offset))?;
    let bits = Bits::of(pool.page_meta(page)?, word.class());
    let (n, bit) = (block as usize / 64, 1_u64 << (block % 64));
    let used =
        bits.allocated[n].load(Ordering::Acquire) & !bits.freed[n].load(Ordering::Acquire) & bit
            != 0;
    if used {
        Ok(block)
    } else {
        Err(pool.not_allocated(offset))
    }
}

pub(super) fn free(pool: &Pool, page: u32, word: PageWord, offset: u64) -> Result<()> {
    let block = check(pool, page, word, offset)?;
    if !Bits::of(pool.page_meta(page)?, word.class()).free(block) {
        return Err(pool.not_allocated(offset));
    }
    release_orphan(pool, page)
}

pub(super) fn share(pool: &Pool, page: u32, word: PageWord, offset: u64) -> Result<()> {
    let block = check(pool, page, word, offset)?;
    if Bits::of(pool.page_meta(page)?, word.class()).share(block) {
        Ok(())
    } else {
        Err(pool.not_allocated(offset))
    }
}

pub(super) fn in_use(meta: &PageMeta) -> u64 {
    Bits::new(&meta.allocated, &meta.shared, &meta.freed).in_use()
}

/// Frees the page of a slab without owner and without blocks in use.
///
/// Recovery orphans the page and then calls this; a process that frees the last block sets its bit and then calls this. Both
/// steps of both are SeqCst, so at least one of them sees what the other did, and the compare-and-swap lets one act.
pub(super) fn release_orphan(pool: &Pool, page: u32) -> Result<()> {
    let word = pool.page(page)?.load();
    if word.tag() == Tag::Slab && word.owner().is_none() && in_use(pool.page_meta(page)?) == 0 {
        // Whether somebody else was quicker does not matter.
        let _ = pool.page(page)?.replace(word, PageWord::FREE);
    }
    Ok(())
}

/// Recovers the slabs of a dead owner.
pub(crate) fn recover(pool: &Pool, slot: &Slot, owner: SlotId) -> Result<()> {
    let head = &slot.slabs[pool.number() as usize % slot.slabs.len()];
    let mut next = head.swap(0, Ordering::AcqRel);
    // The list may have been scribbled over: it has at most as many pages as are committed.
    for _ in 0..pool.committed_pages() {
        let Some(page) = next
            .checked_sub(1)
            .and_then(|page| u32::try_from(page).ok())
            .filter(|page| *page < pool.committed_pages())
        else {
            break;
        };
        next = pool.page_meta(page)?.next.load(Ordering::Acquire);
        orphan(pool, page, owner)?;
    }
    Ok(())
}

/// Frees the private blocks of a dead owner's slab, and gives the slab up.
pub(super) fn orphan(pool: &Pool, page: u32, owner: SlotId) -> Result<()> {
    let word = pool.page(page)?.load();
    if word.tag() == Tag::Slab && word.owner() == Some(owner.index) {
        Bits::of(pool.page_meta(page)?, word.class()).free_private();
        if pool.page(page)?.replace(word, word.orphaned()) {
            release_orphan(pool, page)?;
        }
    }
    Ok(())
}

#[cfg(all(test, loom))]
mod model {
    use super::{AtomicU64, Bits};
    use loom::sync::Arc;
    use loom::thread;

    /// The owner allocates while another process frees: no block is given out twice, none is lost.
    #[test]
    fn loom_free_against_allocate() {
        loom::model(|| {
            let words = Arc::new([
                [AtomicU64::new(0)],
                [AtomicU64::new(0)],
                [AtomicU64::new(0)],
            ]);
            let bits = Bits::new(&words[0], &words[1], &words[2]);
            let (a, b) = (bits.allocate(2).unwrap(), bits.allocate(2).unwrap());
            assert!(bits.share(a) && bits.share(b));
            let theirs = words.clone();
            let other = thread::spawn(move || {
                assert!(Bits::new(&theirs[0], &theirs[1], &theirs[2]).free(a))
            });
            let again = bits.allocate(2);
            assert!(again.is_none() || again == Some(a));
            other.join().unwrap();
            let last = bits.allocate(2);
            assert!(
                last.is_some() != again.is_some(),
                "the freed block is given out once"
            );
            assert_eq!(bits.in_use(), 2);
        });
    }
}
