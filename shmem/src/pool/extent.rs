//! Extents: runs of pages for blocks of more than 32 KiB.
//!
//! Allocation claims the page words one by one in address order, each by compare-and-swap from FREE; on the first that is
//! taken it gives the claimed ones back and goes on behind it. The intent names the run before the first claim, so recovery
//! looks at these words only. A private extent is in its owner's list; sharing takes the owner out of the word first and
//! the extent out of the list then. Who frees an extent claims its first word, and frees the pages from the last one on.

use dragon_protocol::SlotId;
use dragon_protocol::op::Op;

use super::page::{PAGE, PageWord, Tag};
use super::{Pool, list, slab};
use crate::error::Result;
use crate::slot::Slot;
use crate::sync::{AtomicU64, Ordering, high, low};
use crate::thread::{Intended, Intent};

pub(super) fn alloc(
    pool: &Pool,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    length: u64,
) -> Result<Option<u64>> {
    // The caller refused what is longer than the pool, so this fits.
    let pages = u32::try_from(length.div_ceil(PAGE)).unwrap_or(u32::MAX);
    let Some(first) = claim_pages(pool, owner, intent, pages)? else {
        return Ok(None);
    };
    pool.page_meta(first)?.renew();
    for page in first + 1..first + pages {
        pool.page(page)?
            .store(PageWord::new(Tag::Body, Some(owner.index), 0, 0));
    }
    pool.page(first)?
        .store(PageWord::new(Tag::Extent, Some(owner.index), 0, pages));
    list::link(pool, head(pool, slot), first)?;
    intent.end();
    Ok(Some(u64::from(first) * PAGE))
}

/// Claims a run of free pages; the intent stays open until the caller has recorded what it is. `None`: no run is free in
/// what is committed.
pub(super) fn claim_pages(
    pool: &Pool,
    owner: SlotId,
    intent: &Intent,
    pages: u32,
) -> Result<Option<u32>> {
    let total = pool.committed_pages();
    // The lowest page that may be free: a hint, so the pages before it are looked at before there is said to be no room.
    let start = u32::try_from(pool.hint()?.load(Ordering::Relaxed)).map_or(0, |n| n.min(total));
    for (from, to) in [(start, total), (0, start.saturating_add(pages).min(total))] {
        if let Some(first) = claim_between(pool, owner, intent, pages, from, to)? {
            if pages == 1 || first == from {
                pool.hint()?
                    .store(u64::from(first) + u64::from(pages), Ordering::Relaxed);
            }
            return Ok(Some(first));
        }
    }
    Ok(None)
}

fn claim_between(
    pool: &Pool,
    owner: SlotId,
    intent: &Intent,
    pages: u32,
    from: u32,
    to: u32,
) -> Result<Option<u32>> {
    let mut first = from;
    while first.checked_add(pages).is_some_and(|end| end <= to) {
        let run = first..first + pages;
        let taken = match first_that(run.clone(), |page| {
            Ok(pool.page(page)?.load() != PageWord::FREE)
        })? {
            Some(taken) => taken,
            None => {
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
        let length = if word.tag() == Tag::Extent {
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
    list::unlink(pool, head(pool, slot), page)
}

/// What an intent to free says it is about, in its field for a generation.
pub(super) const FREE_EXTENT: u32 = 0;

/// Frees an extent: a shared one, or one's own. `announced` is called when recovery would finish it.
pub(super) fn free(
    pool: &Pool,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    page: u32,
    offset: u64,
    announced: impl FnOnce(),
) -> Result<()> {
    let word = pool.page(page)?.load();
    // A private extent of somebody else is not ours to free.
    let private = word.owner();
    if word.tag() != Tag::Extent
        || !offset.is_multiple_of(PAGE)
        || private.is_some_and(|other| other != owner.index)
    {
        return Err(pool.not_allocated(offset));
    }
    let version = pool.page_meta(page)?.version.load(Ordering::SeqCst);
    let run = u64::from(word.extra()) << 32 | u64::from(page);
    intent.begin(Op::Free, pool.number(), FREE_EXTENT, [run, version]);
    announced();
    let claimed = PageWord::new(Tag::Claimed, Some(owner.index), 0, word.extra());
    if !pool.page(page)?.replace(word, claimed) {
        intent.end();
        return Err(pool.not_allocated(offset));
    }
    if private.is_some() {
        list::unlink(pool, head(pool, slot), page)?;
    }
    release(pool, page, word.extra())?;
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
    list::drain(pool, head(pool, slot), |page, unlink| {
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
    list::take(pool, head(pool, slot), |page| {
        let word = pool.page(page)?.load();
        if word.tag() == Tag::Extent && word.owner() == Some(owner.index) {
            release(pool, page, word.extra())?;
        }
        Ok(())
    })
}

/// Finishes or undoes what a thread of a dead process was doing to the pool. Its lists were recovered before.
pub(crate) fn recover_intent(pool: &Pool, owner: SlotId, intended: &Intended) -> Result<()> {
    match (intended.op, intended.generation) {
        (Op::Allocate, _) => recover_claim(pool, owner, intended),
        (Op::Free, FREE_EXTENT) => recover_free(pool, owner, intended),
        (Op::Free, slab::FREE_BLOCK) => slab::recover_free(pool, intended),
        _ => Ok(()),
    }
}

/// Pages that were being claimed, or given back: FREE, all of them.
fn recover_claim(pool: &Pool, owner: SlotId, intended: &Intended) -> Result<()> {
    let [first, pages, ..] = intended.arguments;
    let Some((first, pages)) = run_in(pool, first, pages) else {
        return Ok(());
    };
    // A slab whose page word is written and which is in no list.
    slab::orphan(pool, first, owner)?;
    for page in first..first + pages {
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

#[inline]
fn head<'a>(pool: &Pool, slot: &'a Slot) -> &'a AtomicU64 {
    &slot.extents[pool.number() as usize % slot.extents.len()]
}
