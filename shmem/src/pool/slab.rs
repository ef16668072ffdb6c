//! Slabs: pages of equal blocks, owned by one slot.
//!
//! The states of a block, by its bits (allocated, shared, freed):
//!
//! | bits | state | who may change it |
//! |---|---|---|
//! | 0 – – | free | the owner: sets `allocated` |
//! | 1 0 0 | private to the owner | the owner: sets `shared`, or clears `allocated`; recovery frees it |
//! | 1 1 0 | shared | who has it: sets `freed` by `fetch_or`; the owner may clear `shared`, then `allocated` |
//! | 1 1 1 | freed | the owner collects it: clears `shared`, `allocated`, `freed`, in this order |
//!
//! Whatever the owner does is a single store, or a sequence that passes through "private"; each step of collecting can be
//! repeated. So an owner that dies leaves nothing that recovery must know about. A process that frees a block of another
//! owner announces it with the block's stamp and the slab's version: as long as both are unchanged, the bits tell whether it
//! happened; when they have changed, it did.

use dragon_protocol::SlotId;
use dragon_protocol::op::Op;

use super::list::List;
use super::page::{BITMAP, Bitmaps, PAGE, PageWord, Stamps, Tag, Word};
use super::{Cache, Pool, extent};
use crate::error::Result;
use crate::slot::Slot;
use crate::sync::{AtomicU64, Ordering, crosswise, low};
use crate::thread::{Intended, Intent};

/// Number of size classes: 64 B, 128 B, … 32 KiB.
pub const CLASSES: usize = 10;
const SMALLEST: u64 = 64;

/// Size class of a block, `None` when it is too large for a slab.
#[inline]
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
#[inline]
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
    /// The bits in three bitmaps of equal length.
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

    #[inline]
    fn of(maps: &'a Bitmaps, class: usize) -> Self {
        let words = words_of(class);
        Self::new(
            &maps.allocated[..words],
            &maps.shared[..words],
            &maps.freed[..words],
        )
    }

    /// Allocates one of `blocks` blocks, the search starting in word `from`, which is moved to where it ended. `stamp` is
    /// called before the block counts as allocated. For the owner only.
    #[inline]
    pub fn allocate(self, blocks: u32, from: &mut usize, stamp: impl FnOnce(u32)) -> Option<u32> {
        while let Some(word) = self.allocated.get(*from) {
            let mine = word.load(Ordering::Relaxed);
            let bit = (!mine).trailing_zeros();
            let index = low(*from as u64) * 64 + bit;
            if bit < 64 && index < blocks {
                stamp(index);
                // A plain store is enough: nobody else writes this word. Release: who learns of the block later sees it
                // allocated, and who sees it allocated sees its stamp.
                word.store(mine | 1 << bit, Ordering::Release);
                return Some(index);
            }
            *from += 1;
        }
        None
    }

    /// Makes freed blocks free; true when there were any. For the owner only, or for recovery after its death.
    pub fn collect(self) -> bool {
        let mut any = false;
        for n in 0..self.freed.len() {
            if self.freed[n].load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Acquire pairs with `free`: what the freeing process did with the block is over.
            let gone = self.freed[n].load(Ordering::Acquire);
            self.shared[n].fetch_and(!gone, Ordering::Relaxed);
            self.allocated[n].store(
                self.allocated[n].load(Ordering::Relaxed) & !gone,
                Ordering::Release,
            );
            // Release pairs with the Acquire in `is_shared`: who sees the bit gone sees the others gone.
            self.freed[n].fetch_and(!gone, Ordering::AcqRel);
            any = true;
        }
        any
    }

    /// Frees a shared block of another owner; false when it is none.
    #[must_use]
    pub fn free(self, block: u32) -> bool {
        let (n, bit) = place(block);
        // SeqCst: see `release_orphan`.
        self.is_shared(block) && self.freed[n].fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    /// Frees a block of one's own; `between` is called when it is private again. False when it is free. For the owner only.
    #[must_use]
    #[inline]
    pub fn free_own(self, block: u32, between: impl FnOnce()) -> bool {
        let (n, bit) = place(block);
        let mine = self.allocated[n].load(Ordering::Relaxed);
        if mine & bit == 0 || self.freed[n].load(Ordering::Relaxed) & bit != 0 {
            return false;
        }
        if self.shared[n].load(Ordering::Relaxed) & bit != 0 {
            self.shared[n].fetch_and(!bit, Ordering::AcqRel);
        }
        between();
        self.allocated[n].store(mine & !bit, Ordering::Release);
        true
    }

    /// Shares a private block; false when it is not one. For the owner only.
    #[must_use]
    pub fn share(self, block: u32) -> bool {
        let (n, bit) = place(block);
        self.is_used(block) && self.shared[n].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Whether a block is private or shared.
    #[inline]
    #[must_use]
    pub fn is_used(self, block: u32) -> bool {
        let (n, bit) = place(block);
        // In this order: freed bits go last, so a block whose bit is gone has lost the others before.
        self.freed[n].load(Ordering::Acquire) & bit == 0
            && self.allocated[n].load(Ordering::Acquire) & bit != 0
    }

    /// Whether a block is shared and not freed.
    #[inline]
    #[must_use]
    pub fn is_shared(self, block: u32) -> bool {
        let (n, bit) = place(block);
        self.is_used(block) && self.shared[n].load(Ordering::Acquire) & bit != 0
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

#[inline]
const fn place(block: u32) -> (usize, u64) {
    (block as usize / 64, 1 << (block % 64))
}

#[inline]
fn blocks_of(class: usize) -> u32 {
    low(PAGE / class_size(class))
}

#[inline]
fn words_of(class: usize) -> usize {
    (blocks_of(class) as usize).div_ceil(64).min(BITMAP)
}

/// What an owner remembers about its slabs of one class, in its own memory.
#[derive(Debug, Default)]
pub(super) struct Class {
    pages: Vec<u32>,
    /// The page in use, and the word of its bitmap where the search goes on: the words before it are full.
    current: Option<u32>,
    word: usize,
    /// A page in which the owner freed a block lately.
    hint: Option<u32>,
    /// Which page is looked at next for blocks that others freed.
    cursor: usize,
}

impl Class {
    /// Allocates from the page in use; this is the path that has to be short.
    #[inline]
    pub(super) fn alloc(&mut self, pool: &Pool, class: usize) -> Result<Option<u64>> {
        let Some(page) = self.current else {
            return Ok(None);
        };
        let bits = Bits::of(pool.bitmaps(page)?, class);
        let stamps = pool.stamps(page)?;
        let block = bits.allocate(blocks_of(class), &mut self.word, |block| stamps.bump(block));
        Ok(block.map(|block| u64::from(page) * PAGE + u64::from(block) * class_size(class)))
    }

    /// Allocates from a page that has freed blocks, and makes it the one in use. It looks at the page in use, the one of the
    /// owner's latest free, and at a few others or `all`: that is cheap for each block, and comes round to all of them.
    pub(super) fn alloc_freed(
        &mut self,
        pool: &Pool,
        class: usize,
        all: bool,
    ) -> Result<Option<u64>> {
        const SOME: usize = 8;
        let count = if all { usize::MAX } else { SOME }.min(self.pages.len());
        let recent = [self.current, self.hint.take()].into_iter().flatten();
        let others = (0..count).map(|n| self.pages[(self.cursor + n) % self.pages.len()]);
        let candidates = recent.chain(others).collect::<Vec<_>>();
        self.cursor = self.cursor.wrapping_add(count) % self.pages.len().max(1);
        for page in candidates {
            if !self.wake(pool, page)? {
                continue;
            }
            Bits::of(pool.bitmaps(page)?, class).collect();
            self.use_page(pool, page)?;
            if let Some(offset) = self.alloc(pool, class)? {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    /// Makes a page the one in use, and puts the one before to rest.
    fn use_page(&mut self, pool: &Pool, page: u32) -> Result<()> {
        if let Some(before) = self.current.filter(|before| *before != page) {
            let word = pool.page(before)?;
            // Nobody else writes the word of a slab that is not at rest.
            word.store(word.load().resting());
        }
        (self.current, self.word) = (Some(page), 0);
        Ok(())
    }

    /// Takes the mark of rest from a page; false when somebody else has the page, or looks at it at this moment.
    fn wake(&mut self, pool: &Pool, page: u32) -> Result<bool> {
        if self.current == Some(page) {
            return Ok(true);
        }
        let word = pool.page(page)?.load();
        Ok(word.tag() == Tag::Slab
            && word.is_resting()
            && !word.is_looked_at()
            && pool.page(page)?.replace(word, word.awake()))
    }

    /// Forgets the pages that others took because no block in them was in use; true when there were any.
    pub(super) fn forget_taken(
        &mut self,
        pool: &Pool,
        slot: &Slot,
        owner: SlotId,
        intent: &Intent,
        class: usize,
    ) -> Result<bool> {
        let mut taken = Vec::new();
        for page in &self.pages {
            let word = pool.page(*page)?.load();
            let mine = word.tag() == Tag::Slab
                && word.owner() == Some(owner.index)
                && word.class() == class
                && pool.page_meta(*page)?.linked.load(Ordering::Relaxed)
                    == u64::from(owner.index) + 1;
            if !mine {
                taken.push(*page);
            }
        }
        let any = !taken.is_empty();
        for page in taken {
            intent.begin(Op::Allocate, pool.number(), 0, [page.into(), 0]);
            unlink(pool, slot, owner, page)?;
            intent.end();
            self.pages.retain(|other| *other != page);
            self.hint = self.hint.filter(|hint| *hint != page);
        }
        Ok(any)
    }

    #[inline]
    fn freed(&mut self, page: u32, block: u32) {
        if self.current == Some(page) {
            self.word = self.word.min(place(block).0);
        } else {
            self.hint = Some(page);
        }
    }
}

/// Allocates from a page of its own.
pub(super) fn alloc_new(
    pool: &Pool,
    cache: &mut Cache,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    class: usize,
) -> Result<Option<u64>> {
    let Some(page) = extent::claim_for_slab(pool, &mut cache.near, owner, intent)? else {
        return Ok(None);
    };
    let meta = pool.page_meta(page)?;
    let mark = u64::from(owner.index) + 1;
    if meta
        .linked
        .compare_exchange(0, mark, Ordering::AcqRel, Ordering::Relaxed)
        .is_err()
    {
        // It was a slab of somebody who has not noticed yet that it is not any more.
        extent::release(pool, page, 1)?;
        intent.end();
        return Ok(None);
    }
    let maps = pool.bitmaps(page)?;
    for words in [&maps.allocated, &maps.shared, &maps.freed] {
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
    }
    let word = PageWord::new(Tag::Slab, Some(owner.index), class, meta.renew());
    pool.page(page)?.store(word);
    List::slabs(pool, slot).link(page)?;
    intent.end();
    let cached = &mut cache.classes[class];
    cached.pages.push(page);
    cached.use_page(pool, page)?;
    cached.alloc(pool, class)
}

/// Takes a page out of its owner's list: the intent names it.
fn unlink(pool: &Pool, slot: &Slot, owner: SlotId, page: u32) -> Result<()> {
    List::slabs(pool, slot).unlink(page)?;
    pool.page_meta(page)?.forget_link(owner.index);
    Ok(())
}

/// Adopts a slab whose owner is gone, and in which there is room, and allocates from it: the one that was orphaned last, or
/// with `all` any.
pub(super) fn adopt(
    pool: &Pool,
    cache: &mut Cache,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    class: usize,
    all: bool,
) -> Result<Option<u64>> {
    let hint = pool.orphan_hint(class)?.load(Ordering::Relaxed);
    if hint != 0 {
        pool.orphan_hint(class)?.store(0, Ordering::Relaxed);
    }
    let total = pool.committed_pages();
    let pages = if all {
        0..total
    } else {
        hint..hint + u32::from(hint != 0)
    };
    for page in pages.filter(|page| *page < total) {
        let word = pool.page(page)?.load();
        if word.tag() != Tag::Slab || word.owner().is_some() || word.class() != class {
            continue;
        }
        let (meta, maps) = (pool.page_meta(page)?, pool.bitmaps(page)?);
        let mark = u64::from(owner.index) + 1;
        if in_use(maps, class) == u64::from(blocks_of(class)) {
            continue;
        }
        intent.begin(Op::Allocate, pool.number(), 0, [page.into(), 1]);
        let linked = meta
            .linked
            .compare_exchange(0, mark, Ordering::AcqRel, Ordering::Relaxed);
        if linked.is_err() || !pool.page(page)?.replace(word, word.owned(owner.index)) {
            if linked.is_ok() {
                meta.forget_link(owner.index);
            }
            intent.end();
            continue;
        }
        List::slabs(pool, slot).link(page)?;
        intent.end();
        let cached = &mut cache.classes[class];
        cached.pages.push(page);
        Bits::of(maps, class).collect();
        cached.use_page(pool, page)?;
        if let Some(offset) = cached.alloc(pool, class)? {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

/// What an intent says that takes an empty slab away from its owner, in its field for a generation.
pub(super) const TAKE_EMPTY: u32 = 2;

/// Takes the page of a slab at rest in which no block is in use, and frees it; false when it is not one any more.
pub(super) fn take_empty(
    pool: &Pool,
    owner: SlotId,
    intent: &Intent,
    page: u32,
    word: PageWord,
) -> Result<bool> {
    let maps = pool.bitmaps(page)?;
    if word.is_looked_at() || in_use(maps, word.class()) != 0 {
        return Ok(false);
    }
    intent.begin(Op::Free, pool.number(), TAKE_EMPTY, [page.into(), 0]);
    let at = (pool.page(page)?, &pool.page_meta(page)?.looker);
    let taken = begin_look(at.1, owner.index)
        && take_looked_at(at.0, word, owner.index, |class| in_use(maps, class));
    if taken {
        extent::release(pool, page, 1)?;
    }
    // Not before the page is free: until then recovery finds by it what is left to be done.
    end_look(at.1, owner.index);
    intent.end();
    Ok(taken)
}

/// Makes the caller the one who looks; false when somebody else does.
fn begin_look(looker: &AtomicU64, thief: u32) -> bool {
    let mark = u64::from(thief) + 1;
    // Acquire pairs with the Release of `end_look`: the mark of whoever looked before is gone from the word.
    looker
        .compare_exchange(0, mark, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

/// Ends what [`begin_look`] began, if it did.
fn end_look(looker: &AtomicU64, thief: u32) {
    let mark = u64::from(thief) + 1;
    let _ = looker.compare_exchange(mark, 0, Ordering::AcqRel, Ordering::Relaxed);
}

/// For the one who looks. Between the two changes of the word the owner takes no block, so what is seen to be empty stays
/// empty; and since nobody else marks the word meanwhile, a word with the mark has had it all the time.
fn take_looked_at(
    page: &Word,
    word: PageWord,
    thief: u32,
    in_use: impl FnOnce(usize) -> u64,
) -> bool {
    if !page.replace(word, word.looked_at()) {
        return false;
    }
    crosswise();
    if in_use(word.class()) != 0 {
        let _ = page.replace(word.looked_at(), word.resting());
        return false;
    }
    let claimed = PageWord::new(Tag::Claimed, Some(thief), 0, 1);
    page.replace(word.looked_at(), claimed)
}

/// Finishes or undoes [`take_empty`] of a dead process.
pub(super) fn recover_take(pool: &Pool, owner: SlotId, intended: &Intended) -> Result<()> {
    let Some(page) = u32::try_from(intended.arguments[0])
        .ok()
        .filter(|page| *page < pool.committed_pages())
    else {
        return Ok(());
    };
    let (at, looker) = (pool.page(page)?, &pool.page_meta(page)?.looker);
    let word = at.load();
    if word.tag() == Tag::Claimed && word.owner() == Some(owner.index) {
        extent::release(pool, page, 1)?;
    }
    undo_look(at, looker, owner.index);
    Ok(())
}

/// Takes the mark of a dead looker away, never that of another.
fn undo_look(page: &Word, looker: &AtomicU64, dead: u32) {
    if looker.load(Ordering::Acquire) != u64::from(dead) + 1 {
        return;
    }
    let word = page.load();
    if word.tag() == Tag::Slab && word.is_looked_at() {
        let _ = page.replace(word, word.resting());
    }
    end_look(looker, dead);
}

/// Gives the pages of slabs without blocks in use back to the pool; true when there were any.
pub(super) fn trim(
    pool: &Pool,
    cached: &mut Class,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    class: usize,
) -> Result<bool> {
    let mut any = cached.forget_taken(pool, slot, owner, intent, class)?;
    for page in cached.pages.clone() {
        if !cached.wake(pool, page)? {
            continue;
        }
        let bits = Bits::of(pool.bitmaps(page)?, class);
        bits.collect();
        if bits.in_use() != 0 {
            if cached.current != Some(page) {
                let word = pool.page(page)?;
                word.store(word.load().resting());
            }
            continue;
        }
        any = true;
        if cached.current == Some(page) {
            (cached.current, cached.word) = (None, 0);
        }
        cached.hint = cached.hint.filter(|hint| *hint != page);
        cached.pages.retain(|other| *other != page);
        cached.cursor = 0;
        // Recovery finds a page that is in the list no more by the same intent as one that is not in it yet.
        intent.begin(Op::Allocate, pool.number(), 0, [page.into(), 1]);
        unlink(pool, slot, owner, page)?;
        extent::release(pool, page, 1)?;
        intent.end();
    }
    Ok(any)
}

/// Which block of the slab starts at `offset`, whatever its state.
#[inline]
fn block_at(pool: &Pool, page: u32, word: PageWord, offset: u64) -> Result<u32> {
    let size = class_size(word.class());
    let inside = offset - u64::from(page) * PAGE;
    u32::try_from(inside / size)
        .ok()
        .filter(|_| inside.is_multiple_of(size))
        .ok_or_else(|| pool.not_allocated(offset))
}

#[inline]
pub(super) fn check(pool: &Pool, page: u32, word: PageWord, offset: u64) -> Result<u32> {
    let block = block_at(pool, page, word, offset)?;
    if Bits::of(pool.bitmaps(page)?, word.class()).is_used(block) {
        Ok(block)
    } else {
        Err(pool.not_allocated(offset))
    }
}

/// Whether the block is shared; an error when it is free.
pub(super) fn is_shared(pool: &Pool, page: u32, word: PageWord, offset: u64) -> Result<bool> {
    let block = check(pool, page, word, offset)?;
    Ok(Bits::of(pool.bitmaps(page)?, word.class()).is_shared(block))
}

/// Frees a block of one's own slab.
#[inline]
pub(super) fn free_own(
    pool: &Pool,
    cached: &mut Class,
    page: u32,
    word: PageWord,
    offset: u64,
    between: impl FnOnce(),
) -> Result<()> {
    let block = check(pool, page, word, offset)?;
    if !Bits::of(pool.bitmaps(page)?, word.class()).free_own(block, between) {
        return Err(pool.not_allocated(offset));
    }
    cached.freed(page, block);
    Ok(())
}

/// What an intent to free says it is about, in its field for a generation.
pub(super) const FREE_BLOCK: u32 = 1;

/// Frees a shared block of somebody else's slab, or of an orphan. `announced` is called when recovery would finish it.
pub(super) fn free(
    pool: &Pool,
    intent: &Intent,
    page: u32,
    word: PageWord,
    offset: u64,
    announced: impl FnOnce(),
) -> Result<()> {
    let block = check(pool, page, word, offset)?;
    let bits = Bits::of(pool.bitmaps(page)?, word.class());
    if !bits.is_shared(block) {
        return Err(pool.not_allocated(offset));
    }
    let identity = u64::from(word.extra()) << 16 | pool.stamps(page)?.get(block);
    intent.begin(Op::Free, pool.number(), FREE_BLOCK, [offset, identity]);
    announced();
    let freed = bits.free(block);
    if freed {
        release_orphan(pool, page)?;
    }
    intent.end();
    if freed {
        Ok(())
    } else {
        Err(pool.not_allocated(offset))
    }
}

pub(super) fn share(pool: &Pool, page: u32, word: PageWord, offset: u64) -> Result<()> {
    let block = check(pool, page, word, offset)?;
    if Bits::of(pool.bitmaps(page)?, word.class()).share(block) {
        Ok(())
    } else {
        Err(pool.not_allocated(offset))
    }
}

pub(super) fn in_use(maps: &Bitmaps, class: usize) -> u64 {
    Bits::of(maps, class).in_use()
}

/// Frees the page of a slab without owner and without blocks in use.
///
/// Recovery orphans the page and then calls this; a process that frees the last block sets its bit and then calls this. Both
/// steps of both are SeqCst, so at least one of them sees what the other did, and the compare-and-swap lets one act. The
/// word has the slab's version, so whoever was delayed cannot free a later slab in the same page.
pub(super) fn release_orphan(pool: &Pool, page: u32) -> Result<()> {
    let maps = pool.bitmaps(page)?;
    if release_empty(pool.page(page)?, |class| in_use(maps, class)) {
        pool.lower_hint(page)?;
    }
    Ok(())
}

fn release_empty(page: &Word, in_use: impl FnOnce(usize) -> u64) -> bool {
    crosswise();
    let word = page.load();
    word.tag() == Tag::Slab
        && word.owner().is_none()
        && in_use(word.class()) == 0
        && page.replace(word, PageWord::FREE)
}

/// Gives up the slabs of a living owner, and frees its private blocks. It may die at any step.
pub(super) fn abandon(pool: &Pool, slot: &Slot, owner: SlotId, intent: &Intent) -> Result<()> {
    List::slabs(pool, slot).drain(|page, unlink| {
        // Recovery finds a page that is in the list no more by the same intent as one that is not in it yet.
        intent.begin(Op::Allocate, pool.number(), 0, [page.into(), 1]);
        unlink();
        pool.page_meta(page)?.forget_link(owner.index);
        orphan(pool, page, owner)?;
        intent.end();
        Ok(())
    })
}

/// Recovers the slabs of a dead owner.
pub(crate) fn recover(pool: &Pool, slot: &Slot, owner: SlotId) -> Result<()> {
    List::slabs(pool, slot).take(|page| {
        pool.page_meta(page)?.forget_link(owner.index);
        orphan(pool, page, owner)
    })
}

/// Frees the private blocks of a dead owner's slab, and gives the slab up.
pub(super) fn orphan(pool: &Pool, page: u32, owner: SlotId) -> Result<()> {
    let mine = |word: PageWord| word.tag() == Tag::Slab && word.owner() == Some(owner.index);
    let mut word = pool.page(page)?.load();
    // First out of the reach of those who take empty slabs at rest.
    while mine(word) && word != word.awake() {
        let _ = pool.page(page)?.replace(word, word.awake());
        word = pool.page(page)?.load();
    }
    if mine(word) {
        Bits::of(pool.bitmaps(page)?, word.class()).free_private();
        if pool.page(page)?.replace(word, word.orphaned()) {
            pool.orphan_hint(word.class())?
                .store(page, Ordering::Relaxed);
            release_orphan(pool, page)?;
        }
    }
    Ok(())
}

/// Finishes the free of a block that a dead process had announced.
pub(super) fn recover_free(pool: &Pool, intended: &Intended) -> Result<()> {
    let [offset, identity, ..] = intended.arguments;
    let Ok(page) = pool.page_of(offset) else {
        return Ok(());
    };
    let word = pool.page(page)?.load();
    if word.tag() != Tag::Slab || u64::from(word.extra()) != identity >> 16 {
        return Ok(());
    }
    if let Ok(block) = block_at(pool, page, word, offset) {
        let bits = Bits::of(pool.bitmaps(page)?, word.class());
        finish_free(bits, pool.stamps(page)?, block, identity & 0xffff);
    }
    release_orphan(pool, page)
}

/// Frees the block unless the dead process had done so already.
fn finish_free(bits: Bits<'_>, stamps: &Stamps, block: u32, stamp: u64) {
    // The bits first: if they are of a later allocation, the stamp, which was written before them, is too.
    if bits.is_shared(block) && stamps.get(block) == stamp {
        let _ = bits.free(block);
    }
}

#[cfg(all(test, loom))]
#[path = "slab_model.rs"]
mod model;
