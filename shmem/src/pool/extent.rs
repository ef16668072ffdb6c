//! Extents: runs of pages for blocks of more than 32 KiB.
//!
//! Allocation claims the page words one by one in address order, each by compare-and-swap from FREE; on the first that is
//! taken it gives the claimed ones back and goes on behind it. The intent names the run before the first claim, so recovery
//! looks at these words only. A private extent is in its owner's list; sharing takes the owner out of the word first and
//! the extent out of the list then. Who frees an extent claims its first word, and frees the pages from the last one on.

use std::sync::Mutex;

use dragon_protocol::SlotId;
use dragon_protocol::op::Op;

use super::list::List;
use super::page::{PAGE, PageWord, Tag};
use super::{Cache, Pool, ThreadRef, keep, lock, slab, spare};
use crate::error::Result;
use crate::slot::{KEPT, Slot};
use crate::sync::{Ordering, high, low};
use crate::thread::{Intended, Intent};

/// Extents that this process freed and keeps: claiming the pages of a large block one by one costs more than all the rest of
/// an allocation. Their pages are nobody else's, but nothing is in them; who finds no room elsewhere takes them.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// First page and number of pages; 0 pages for none. As in the slot, where recovery finds them.
    extents: [(u32, u32); PLACES],
    /// Which one makes room for the next.
    victim: usize,
}

/// Places for extents that are kept. The slot has one more, for a spare extent that is being taken.
const PLACES: usize = KEPT - 1;

/// Larger extents are left to all processes when they are freed.
const MOST_KEPT: u32 = 64;

/// Where this process looks for pages first. Processes that take pages of different chunks do not write to the same lines of
/// the metadata.
#[derive(Debug, Default)]
pub(super) struct Near {
    /// The chunk from which small runs are taken, and where in it the next search begins.
    chunk: Option<(u32, u32)>,
    /// Where the search for a chunk without any page in use goes on, and how many claims do without a search.
    search: u32,
    skip: u32,
    /// Where the search for longer runs goes on.
    run: u32,
}

/// Pages of a chunk: 2 MiB.
const CHUNK_PAGES: u32 = 32;
/// Longest run that is taken from the process's chunk.
const SMALL_RUN: u32 = 8;

/// Takes an extent of the right length from those that this process keeps.
#[inline]
pub(super) fn alloc_kept(
    pool: &Pool,
    cache: &mut Cache,
    slot: &Slot,
    owner: SlotId,
    pages: u32,
) -> Result<Option<u32>> {
    for kept in &mut cache.kept.extents {
        if kept.1 != pages {
            continue;
        }
        let (page, _) = std::mem::take(kept);
        let from = PageWord::new(Tag::Kept, Some(owner.index), 0, pages);
        let to = PageWord::new(Tag::Extent, Some(owner.index), 0, pages);
        // Until it is in the list, recovery finds it by the entry in the slot. It fails for one that others have taken.
        if pool.page(page)?.replace(from, to) {
            pool.page_meta(page)?.renew();
            List::extents(pool, slot).link(page)?;
            return Ok(Some(page));
        }
    }
    Ok(None)
}

impl Kept {
    /// A place for an extent of so many pages. When all are taken, and none is as long, one of them is to go first: the
    /// second value.
    #[inline]
    fn place(&mut self, pages: u32) -> Option<(usize, (u32, u32))> {
        if pages > MOST_KEPT {
            return None;
        }
        let first = |pages| self.extents.iter().position(|(_, kept)| *kept == pages);
        let place = match first(0) {
            Some(free) => free,
            None if first(pages).is_some() => return None,
            None => {
                self.victim = (self.victim + 1) % PLACES;
                self.victim
            }
        };
        Some((place, std::mem::take(&mut self.extents[place])))
    }
}

pub(super) fn alloc(
    pool: &Pool,
    cache: &mut Cache,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    pages: u32,
) -> Result<Option<u32>> {
    let Some(first) = claim_pages(pool, &mut cache.near, owner, intent, pages)? else {
        return Ok(None);
    };
    pool.page_meta(first)?.renew();
    for page in first + 1..first + pages {
        pool.page(page)?
            .store(PageWord::new(Tag::Body, Some(owner.index), 0, 0));
    }
    pool.page(first)?
        .store(PageWord::new(Tag::Extent, Some(owner.index), 0, pages));
    List::extents(pool, slot).link(first)?;
    intent.end();
    Ok(Some(first))
}

/// Claims a run of free pages; the intent stays open until the caller has recorded what it is. `None`: no run is free in
/// what is committed.
pub(super) fn claim_pages(
    pool: &Pool,
    near: &mut Near,
    owner: SlotId,
    intent: &Intent,
    pages: u32,
) -> Result<Option<u32>> {
    claim_where(pool, near, (owner, intent), pages, &|_| Ok(true))
}

/// As [`claim_pages`], for one page that can become a slab: it is in nobody's list of slabs.
pub(super) fn claim_for_slab(
    pool: &Pool,
    near: &mut Near,
    owner: SlotId,
    intent: &Intent,
) -> Result<Option<u32>> {
    let in_no_list = |page| Ok(pool.page_meta(page)?.linked.load(Ordering::Relaxed) == 0);
    claim_where(pool, near, (owner, intent), 1, &in_no_list)
}

type Fits<'a> = &'a dyn Fn(u32) -> Result<bool>;

fn claim_where(
    pool: &Pool,
    near: &mut Near,
    by: (SlotId, &Intent),
    pages: u32,
    fits: Fits<'_>,
) -> Result<Option<u32>> {
    let total = pool.committed_pages();
    if pages <= SMALL_RUN {
        if let Some((chunk, at)) = near.chunk {
            let end = (chunk + CHUNK_PAGES).min(total);
            for from in [at, chunk] {
                if let Some(first) = claim_between(pool, by, pages, from..end, fits)? {
                    near.chunk = Some((chunk, first + pages));
                    return Ok(Some(first));
                }
            }
        }
        near.chunk = None;
        if let Some(chunk) = near.find_chunk(pool, total)? {
            let end = chunk + CHUNK_PAGES;
            if let Some(first) = claim_between(pool, by, pages, chunk..end, fits)? {
                near.chunk = Some((chunk, first + pages));
                return Ok(Some(first));
            }
        }
    }
    // The lowest page that may be free: a hint, so the pages before it are looked at before there is said to be no room.
    let hint = u32::try_from(pool.hint()?.load(Ordering::Relaxed)).map_or(0, |n| n.min(total));
    // Holes that are too small lie at the start of a full pool: longer runs are looked for where the last one was found.
    let start = if pages == 1 {
        hint
    } else {
        hint.max(near.run.min(total))
    };
    let beyond = |page: u32| page.saturating_add(pages).min(total);
    for (from, to) in [(start, total), (hint, beyond(start)), (0, beyond(hint))] {
        if let Some(first) = claim_between(pool, by, pages, from..to, fits)? {
            if first == hint || pages == 1 {
                pool.hint()?
                    .store(u64::from(first) + u64::from(pages), Ordering::Relaxed);
            }
            if pages > 1 {
                near.run = first + pages;
            }
            return Ok(Some(first));
        }
    }
    Ok(None)
}

impl Near {
    /// The next chunk without any page in use. It looks at a few, and goes on there the next time: so it costs the same
    /// whatever the pool holds.
    fn find_chunk(&mut self, pool: &Pool, total: u32) -> Result<Option<u32>> {
        const LOOKS: u32 = 64;
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(None);
        }
        let chunks = total / CHUNK_PAGES;
        for _ in 0..LOOKS.min(chunks) {
            if self.search >= chunks {
                self.search = 0;
            }
            let chunk = self.search * CHUNK_PAGES;
            self.search += 1;
            let taken = first_that(chunk..chunk + CHUNK_PAGES, |page| {
                Ok(pool.page(page)?.load() != PageWord::FREE)
            })?;
            if taken.is_none() {
                return Ok(Some(chunk));
            }
        }
        // There is hardly any.
        self.skip = LOOKS;
        Ok(None)
    }
}

fn claim_between(
    pool: &Pool,
    (owner, intent): (SlotId, &Intent),
    pages: u32,
    within: std::ops::Range<u32>,
    fits: Fits<'_>,
) -> Result<Option<u32>> {
    let mut first = within.start;
    while first
        .checked_add(pages)
        .is_some_and(|end| end <= within.end)
    {
        let run = first..first + pages;
        let taken = match first_that(run.clone(), |page| {
            Ok(pool.page(page)?.load() != PageWord::FREE || !fits(page)?)
        })? {
            Some(taken) => taken,
            None => {
                pool.raise_top(first + pages)?;
                intent.begin(Op::Allocate, pool.number(), 0, [first.into(), pages.into()]);
                let claimed = PageWord::new(Tag::Claimed, Some(owner.index), 0, 0);
                let lost = first_that(run, |page| {
                    Ok(!pool.page(page)?.replace(PageWord::FREE, claimed))
                })?;
                let Some(lost) = lost else {
                    return Ok(Some(first));
                };
                for mine in first..lost {
                    pool.page(mine)?.store(PageWord::FREE);
                }
                intent.end();
                lost
            }
        };
        let word = pool.page(taken)?.load();
        let length = if matches!(word.tag(), Tag::Extent | Tag::Kept) {
            word.extra().max(1)
        } else {
            1
        };
        first = taken.saturating_add(length);
    }
    Ok(None)
}

fn first_that(
    pages: std::ops::Range<u32>,
    holds: impl Fn(u32) -> Result<bool>,
) -> Result<Option<u32>> {
    for page in pages {
        if holds(page)? {
            return Ok(Some(page));
        }
    }
    Ok(None)
}

pub(super) fn share(
    pool: &Pool,
    slot: &Slot,
    page: u32,
    word: PageWord,
    offset: u64,
) -> Result<()> {
    if !offset.is_multiple_of(PAGE) || !pool.page(page)?.replace(word, word.orphaned()) {
        return Err(pool.not_allocated(offset));
    }
    List::extents(pool, slot).unlink(page)
}

/// What an intent to free says it is about, in its field for a generation.
pub(super) const FREE_EXTENT: u32 = 0;

/// Frees a private extent of one's own. `between` is called at once: recovery frees what is private.
#[expect(clippy::too_many_arguments, reason = "what a free is about")]
#[inline]
pub(super) fn free_own<'a>(
    pool: &Pool,
    cache: &mut Cache,
    slot: &Slot,
    owner: SlotId,
    thread: impl FnOnce() -> Result<ThreadRef<'a>>,
    page: u32,
    offset: u64,
    between: impl FnOnce(),
) -> Result<()> {
    // Looked at again, now that the lock keeps other threads of this process away.
    let word = pool.page(page)?.load();
    if !offset.is_multiple_of(PAGE)
        || word.tag() != Tag::Extent
        || word.owner() != Some(owner.index)
    {
        return Err(pool.not_allocated(offset));
    }
    between();
    let pages = word.extra();
    let Some((place, victim)) = cache.kept.place(pages) else {
        return release_own(pool, slot, owner, &thread()?.intent, page, pages);
    };
    if victim.1 != 0 {
        release_kept(pool, owner, &thread()?.intent, victim)?;
    }
    keep(pool, slot, place, page);
    List::extents(pool, slot).unlink(page)?;
    pool.page(page)?
        .store(PageWord::new(Tag::Kept, Some(owner.index), 0, pages));
    cache.kept.extents[place] = (page, pages);
    Ok(())
}

fn release_own(
    pool: &Pool,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    page: u32,
    pages: u32,
) -> Result<()> {
    let version = pool.page_meta(page)?.version.load(Ordering::SeqCst);
    let run = u64::from(pages) << 32 | u64::from(page);
    intent.begin(Op::Free, pool.number(), FREE_EXTENT, [run, version]);
    pool.page(page)?
        .store(PageWord::new(Tag::Claimed, Some(owner.index), 0, pages));
    List::extents(pool, slot).unlink(page)?;
    spare::put(pool, owner, page, pages)?;
    intent.end();
    Ok(())
}

/// Gives a kept extent back to the pool: one's own, or that of another process. False when somebody was quicker.
pub(super) fn release_kept(
    pool: &Pool,
    owner: SlotId,
    intent: &Intent,
    (page, pages): (u32, u32),
) -> Result<bool> {
    let word = pool.page(page)?.load();
    if word.tag() != Tag::Kept || word.extra() != pages {
        return Ok(false);
    }
    let run = u64::from(pages) << 32 | u64::from(page);
    // Nothing is announced with a version: unless the head is claimed, there is nothing to finish.
    intent.begin(Op::Free, pool.number(), FREE_EXTENT, [run, u64::MAX]);
    let claimed = PageWord::new(Tag::Claimed, Some(owner.index), 0, pages);
    let won = pool.page(page)?.replace(word, claimed);
    if won {
        release(pool, page, pages)?;
    }
    intent.end();
    Ok(won)
}

/// Gives back all that this process keeps; true when there was any.
pub(super) fn trim(pool: &Pool, kept: &mut Kept, owner: SlotId, intent: &Intent) -> Result<bool> {
    let mut any = false;
    for kept in std::mem::take(&mut kept.extents) {
        any |= kept.1 != 0 && release_kept(pool, owner, intent, kept)?;
    }
    Ok(any)
}

/// Gives back what other processes keep; true when there was any.
pub(super) fn reclaim(pool: &Pool, owner: SlotId, intent: &Intent) -> Result<bool> {
    let mut any = false;
    for page in 0..pool.committed_pages() {
        let word = pool.page(page)?.load();
        any |= match word.tag() {
            Tag::Kept => release_kept(pool, owner, intent, (page, word.extra()))?,
            Tag::Slab if word.is_resting() => slab::take_empty(pool, owner, intent, page, word)?,
            _ => false,
        };
    }
    Ok(any)
}

/// Frees a shared extent. `announced` is called when recovery would finish it.
#[expect(clippy::too_many_arguments, reason = "what a free is about")]
pub(super) fn free(
    pool: &Pool,
    cache: &Mutex<Cache>,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    page: u32,
    offset: u64,
    announced: impl FnOnce(),
) -> Result<()> {
    let word = pool.page(page)?.load();
    // A private extent of somebody else is not ours to free.
    if word.tag() != Tag::Extent || !offset.is_multiple_of(PAGE) || word.owner().is_some() {
        return Err(pool.not_allocated(offset));
    }
    let pages = word.extra();
    let version = pool.page_meta(page)?.version.load(Ordering::SeqCst);
    let run = u64::from(pages) << 32 | u64::from(page);
    intent.begin(Op::Free, pool.number(), FREE_EXTENT, [run, version]);
    announced();
    let claimed = PageWord::new(Tag::Claimed, Some(owner.index), 0, pages);
    if !pool.page(page)?.replace(word, claimed) {
        intent.end();
        return Err(pool.not_allocated(offset));
    }
    if pages >= spare::SHORTEST {
        spare::put(pool, owner, page, pages)?;
        intent.end();
        return Ok(());
    }
    // Kept only when that costs nothing: the intent is in use, so nothing is thrown out for it.
    let mut cache = lock(cache);
    match cache.kept.extents.iter().position(|(_, pages)| *pages == 0) {
        Some(place) => {
            keep(pool, slot, place, page);
            pool.page(page)?
                .store(PageWord::new(Tag::Kept, Some(owner.index), 0, pages));
            cache.kept.extents[place] = (page, pages);
        }
        None => release(pool, page, pages)?,
    }
    intent.end();
    Ok(())
}

/// Frees pages that the caller has claimed: from the last to the first, so that what is left after a death is always a
/// head and the body pages right behind it.
pub(super) fn release(pool: &Pool, first: u32, pages: u32) -> Result<()> {
    let end = first.saturating_add(pages).min(pool.committed_pages());
    for page in (first..end).rev() {
        pool.page(page)?.store(PageWord::FREE);
    }
    pool.lower_hint(first)
}

/// Frees the private extents of a living owner that gives them up. It may die at any step.
pub(super) fn abandon(pool: &Pool, slot: &Slot, owner: SlotId, intent: &Intent) -> Result<()> {
    List::extents(pool, slot).drain(|page, unlink| {
        let word = pool.page(page)?.load();
        let mine = word.tag() == Tag::Extent && word.owner() == Some(owner.index);
        let pages = if mine { word.extra() } else { 0 };
        // Recovery finds an extent that is in the list no more by the same intent as one that is not in it yet.
        intent.begin(Op::Allocate, pool.number(), 0, [page.into(), pages.into()]);
        unlink();
        release(pool, page, pages)?;
        intent.end();
        Ok(())
    })
}

/// Frees the private extents of a dead owner.
pub(crate) fn recover(pool: &Pool, slot: &Slot, owner: SlotId) -> Result<()> {
    let release_private = |page: u32| {
        let word = pool.page(page)?.load();
        if matches!(word.tag(), Tag::Extent | Tag::Kept) && word.owner() == Some(owner.index) {
            let claimed = PageWord::new(Tag::Claimed, Some(owner.index), 0, word.extra());
            // It fails for a kept one that somebody takes at this moment.
            if pool.page(page)?.replace(word, claimed) {
                release(pool, page, word.extra())?;
            }
        }
        Ok(())
    };
    List::extents(pool, slot).take(release_private)?;
    // Kept ones, and those on their way between the list and being kept.
    for kept in &slot.kept[pool.number() as usize % slot.kept.len()] {
        let page = kept.swap(0, Ordering::AcqRel);
        if page != 0 && page < pool.committed_pages() {
            release_private(page)?;
        }
    }
    Ok(())
}

/// Finishes or undoes what a thread of a dead process was doing to the pool. Its lists were recovered before.
pub(crate) fn recover_intent(pool: &Pool, owner: SlotId, intended: &Intended) -> Result<()> {
    match (intended.op, intended.generation) {
        (Op::Allocate, _) => recover_claim(pool, owner, intended),
        (Op::Free, FREE_EXTENT) => recover_free(pool, owner, intended),
        (Op::Free, slab::FREE_BLOCK) => slab::recover_free(pool, intended),
        (Op::Free, slab::TAKE_EMPTY) => slab::recover_take(pool, owner, intended),
        _ => Ok(()),
    }
}

/// Pages that were being claimed, or given back: FREE, all of them.
fn recover_claim(pool: &Pool, owner: SlotId, intended: &Intended) -> Result<()> {
    let [first, pages, ..] = intended.arguments;
    if pages == 0 && first < u64::from(pool.committed_pages()) {
        // A page that was taken from the process, on its way out of the list.
        pool.page_meta(low(first))?.forget_link(owner.index);
    }
    let Some((first, pages)) = run_in(pool, first, pages) else {
        return Ok(());
    };
    // A slab whose page word is written and which is in no list.
    slab::orphan(pool, first, owner)?;
    // One that it had given up already, and found no time to free.
    slab::release_orphan(pool, first)?;
    for page in first..first + pages {
        // The lists were recovered before: it is in none.
        pool.page_meta(page)?.forget_link(owner.index);
        let word = pool.page(page)?.load();
        if word.owner() == Some(owner.index)
            && matches!(word.tag(), Tag::Claimed | Tag::Body | Tag::Extent)
        {
            pool.page(page)?.store(PageWord::FREE);
            pool.lower_hint(page)?;
        }
    }
    Ok(())
}

fn recover_free(pool: &Pool, owner: SlotId, intended: &Intended) -> Result<()> {
    let [run, version, ..] = intended.arguments;
    let Some((first, pages)) = run_in(pool, low(run).into(), high(run).into()) else {
        return Ok(());
    };
    let head = pool.page(first)?.load();
    if head.tag() == Tag::Claimed && head.owner() == Some(owner.index) {
        // What lies behind the pages that are left is free, or starts with somebody else's head.
        let mut end = first + 1;
        while end < first + pages && pool.page(end)?.load().tag() == Tag::Body {
            end += 1;
        }
        return release(pool, first, end - first);
    }
    // Spare already: it may be in no entry of the table yet, or any more.
    if spare::free(pool, owner, first, pages)? {
        return Ok(());
    }
    // Announced, and not begun. The word first: if it is of a later extent, so is the version, which was written before it.
    let shared = PageWord::new(Tag::Extent, None, 0, pages);
    if head == shared && pool.page_meta(first)?.version.load(Ordering::SeqCst) == version {
        let claimed = PageWord::new(Tag::Claimed, Some(owner.index), 0, pages);
        if pool.page(first)?.replace(shared, claimed) {
            release(pool, first, pages)?;
        }
    }
    Ok(())
}

/// The run, unless it does not lie in the committed part of the pool.
fn run_in(pool: &Pool, first: u64, pages: u64) -> Option<(u32, u32)> {
    let limit = u64::from(pool.committed_pages());
    let end = first.checked_add(pages)?;
    (pages > 0 && end <= limit).then_some((low(first), low(pages)))
}
