//! Extents: runs of pages for blocks of more than 32 KiB.
//!
//! Allocation claims the page words one by one in address order, each by compare-and-swap from FREE; on the first that is
//! taken it gives the claimed ones back and goes on behind it. The intent names the run before the first claim, so recovery
//! looks at these words only. A private extent is in its owner's list; sharing takes the owner out of the word first and
//! the extent out of the list then.

use dragon_protocol::SlotId;
use dragon_protocol::op::Op;

use super::Pool;
use super::page::{PAGE, PageWord, Tag};
use crate::error::Result;
use crate::slot::Slot;
use crate::sync::{Ordering, low};
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
    let head = &slot.extents[pool.number() as usize % slot.extents.len()];
    pool.page_meta(first)?
        .next
        .store(head.load(Ordering::Relaxed), Ordering::Relaxed);
    for page in first + 1..first + pages {
        pool.page(page)?
            .store(PageWord::new(Tag::Body, Some(owner.index), 0, 0));
    }
    pool.page(first)?
        .store(PageWord::new(Tag::Extent, Some(owner.index), 0, pages));
    head.store(u64::from(first) + 1, Ordering::Release);
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
    let start = pool.hint()?.load(Ordering::Relaxed) % u64::from(total.max(1));
    // The hint is below `total`, which fits.
    let start = u32::try_from(start).unwrap_or(0);
    for (from, to) in [(start, total), (0, start.saturating_add(pages).min(total))] {
        if let Some(first) = claim_between(pool, owner, intent, pages, from, to)? {
            pool.hint()?
                .store(u64::from(first) + u64::from(pages), Ordering::Relaxed);
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
                lost
            }
        };
        first = taken + 1;
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
    unlink(pool, slot, page)
}

pub(super) fn free(
    pool: &Pool,
    slot: &Slot,
    owner: SlotId,
    intent: &Intent,
    page: u32,
    word: PageWord,
    offset: u64,
) -> Result<()> {
    // A private extent of somebody else is not ours to free.
    if !offset.is_multiple_of(PAGE) || word.owner().is_some_and(|other| other != owner.index) {
        return Err(pool.not_allocated(offset));
    }
    intent.begin(
        Op::Free,
        pool.number(),
        0,
        [page.into(), word.pages().into()],
    );
    if !pool.page(page)?.replace(
        word,
        PageWord::new(Tag::Claimed, Some(owner.index), 0, word.pages()),
    ) {
        intent.end();
        return Err(pool.not_allocated(offset));
    }
    if word.owner().is_some() {
        unlink(pool, slot, page)?;
    }
    release(pool, page, word.pages())?;
    intent.end();
    Ok(())
}

/// Frees the pages of an extent whose head is claimed: from the last to the first, so that what is left after a death is
/// always a head and the body pages right behind it.
fn release(pool: &Pool, first: u32, pages: u32) -> Result<()> {
    let end = first.saturating_add(pages).min(pool.committed_pages());
    for page in (first..end).rev() {
        pool.page(page)?.store(PageWord::FREE);
    }
    Ok(())
}

/// Takes an extent out of its owner's list. By the owner, one thread at a time.
fn unlink(pool: &Pool, slot: &Slot, page: u32) -> Result<()> {
    let mut link = &slot.extents[pool.number() as usize % slot.extents.len()];
    let wanted = u64::from(page) + 1;
    for _ in 0..pool.committed_pages() {
        let at = link.load(Ordering::Relaxed);
        if at == wanted {
            link.store(
                pool.page_meta(page)?.next.load(Ordering::Relaxed),
                Ordering::Release,
            );
            return Ok(());
        }
        let Some(next) = at
            .checked_sub(1)
            .and_then(|next| u32::try_from(next).ok())
            .filter(|next| *next < pool.committed_pages())
        else {
            break;
        };
        link = &pool.page_meta(next)?.next;
    }
    Ok(())
}

/// Frees the private extents of a dead owner.
pub(crate) fn recover(pool: &Pool, slot: &Slot, owner: SlotId) -> Result<()> {
    let mut next =
        slot.extents[pool.number() as usize % slot.extents.len()].swap(0, Ordering::AcqRel);
    for _ in 0..pool.committed_pages() {
        let Some(page) = next
            .checked_sub(1)
            .and_then(|page| u32::try_from(page).ok())
            .filter(|page| *page < pool.committed_pages())
        else {
            break;
        };
        next = pool.page_meta(page)?.next.load(Ordering::Acquire);
        let word = pool.page(page)?.load();
        if word.tag() == Tag::Extent && word.owner() == Some(owner.index) {
            release(pool, page, word.pages())?;
        }
    }
    Ok(())
}

/// Finishes or undoes what a thread of a dead process was doing to pages.
pub(crate) fn recover_intent(
    pool: &Pool,
    slot: &Slot,
    owner: SlotId,
    intended: &Intended,
) -> Result<()> {
    let limit = u64::from(pool.committed_pages());
    let (first, pages) = (intended.arguments[0], intended.arguments[1]);
    if first >= limit || pages > limit || first + pages > limit {
        return Ok(());
    }
    let (first, pages) = (low(first), low(pages));
    match intended.op {
        Op::Allocate => {
            // A slab whose page word was written but which is in no list yet; a listed one was recovered before.
            super::slab::orphan(pool, first, owner)?;
            let listed = slot.extents[pool.number() as usize % slot.extents.len()]
                .load(Ordering::Acquire)
                == u64::from(first) + 1;
            for page in first..first + pages {
                let word = pool.page(page)?.load();
                let mine = word.owner() == Some(owner.index)
                    && matches!(word.tag(), Tag::Claimed | Tag::Body | Tag::Extent);
                if mine && !listed {
                    pool.page(page)?.store(PageWord::FREE);
                }
            }
        }
        Op::Free => {
            let head = pool.page(first)?.load();
            if head.tag() == Tag::Claimed && head.owner() == Some(owner.index) {
                let mut end = first + 1;
                while end < first + pages && pool.page(end)?.load().tag() == Tag::Body {
                    end += 1;
                }
                release(pool, first, end - first)?;
            }
        }
        _ => {}
    }
    Ok(())
}
