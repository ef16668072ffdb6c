//! Spare extents: runs of pages that stay together after their block was freed, for whoever wants as many next.
//!
//! Claiming the pages of a large block one by one, and giving them back, takes a time that grows with the block. So who frees
//! one leaves its pages as they are, makes its head KEPT without an owner, and puts it into a small table of the pool; who
//! allocates a block of the same length takes it by one compare-and-swap of the head. A block that goes from one process to
//! another and is freed there thus costs both the same whatever its length.
//!
//! An entry of the table is a hint: the word of the head says whether the run is spare. Only a run that no dead process's
//! intent names is in no entry for a moment; recovery frees it. Who finds no room gives all of them back first.

use dragon_protocol::SlotId;
use dragon_protocol::op::Op;

use super::extent::{FREE_EXTENT, release};
use super::list::List;
use super::page::{PageWord, Tag, Word};
use super::{Pool, keep};
use crate::error::Result;
use crate::slot::{KEPT, Slot};
use crate::sync::{AtomicU64, Ordering, high, low};
use crate::thread::Intent;

/// Entries of a pool's table.
pub(super) const SPARES: usize = 16;

/// Pages of the shortest extent that becomes a spare one: a shorter one is claimed as quickly.
pub(super) const SHORTEST: u32 = 8;

/// The word of a spare extent's head.
pub(super) fn head(pages: u32) -> PageWord {
    PageWord::new(Tag::Kept, None, 0, pages)
}

/// Takes a spare extent of the right length; it is private to the caller then.
#[inline]
pub(super) fn take(pool: &Pool, slot: &Slot, owner: SlotId, pages: u32) -> Result<Option<u32>> {
    if pages < SHORTEST {
        return Ok(None);
    }
    for spare in pool.spares()? {
        let found = spare.load(Ordering::Acquire);
        let Some((page, _)) = run(pool, found).filter(|run| run.1 == pages) else {
            continue;
        };
        // Until it is in the list, recovery finds it by this entry of the slot.
        keep(pool, slot, KEPT - 1, page);
        if !take_run(spare, found, pool.page(page)?, pages, owner.index) {
            continue;
        }
        pool.page_meta(page)?.renew();
        List::extents(pool, slot).link(page)?;
        return Ok(Some(page));
    }
    Ok(None)
}

/// Makes an extent a spare one whose head the caller has claimed, and which its intent names; when there are too many of them,
/// its pages become free.
pub(super) fn put(pool: &Pool, owner: SlotId, page: u32, pages: u32) -> Result<()> {
    if pages < SHORTEST {
        return release(pool, page, pages);
    }
    pool.page(page)?.store(head(pages));
    if enter(pool.spares()?, entry(page, pages)) {
        return Ok(());
    }
    free(pool, owner, page, pages).map(drop)
}

/// Gives one spare extent back to the pool when there is no place for another: nobody seems to want these lengths any more.
pub(super) fn make_place(
    pool: &Pool,
    owner: SlotId,
    intent: &Intent,
    victim: &mut usize,
) -> Result<()> {
    let spares = pool.spares()?;
    if spares
        .iter()
        .all(|spare| spare.load(Ordering::Relaxed) != 0)
    {
        *victim = (*victim + 1) % SPARES;
        give_back(pool, owner, Some(intent), *victim)?;
    }
    Ok(())
}

/// Gives all spare extents back to the pool; true when there were any. The daemon, whose death ends the runtime, does without
/// an intent.
pub(super) fn trim(pool: &Pool, owner: SlotId, intent: Option<&Intent>) -> Result<bool> {
    let mut any = false;
    for which in 0..SPARES {
        any |= give_back(pool, owner, intent, which)?;
    }
    Ok(any)
}

fn give_back(pool: &Pool, owner: SlotId, intent: Option<&Intent>, which: usize) -> Result<bool> {
    let spare = &pool.spares()?[which % SPARES];
    let found = spare.load(Ordering::Acquire);
    if found == 0 {
        return Ok(false);
    }
    if let Some(intent) = intent {
        // As for a kept extent: no version, the head says whether there is anything to finish.
        intent.begin(Op::Free, pool.number(), FREE_EXTENT, [found, u64::MAX]);
    }
    // First of all, so that nonsense goes too.
    let mine = clear(spare, found);
    let freed = match run(pool, found).filter(|_| mine) {
        Some((page, pages)) => free(pool, owner, page, pages)?,
        None => false,
    };
    if let Some(intent) = intent {
        intent.end();
    }
    Ok(freed)
}

/// Frees the pages of a spare extent; false when it is none any more.
pub(super) fn free(pool: &Pool, owner: SlotId, page: u32, pages: u32) -> Result<bool> {
    let won = claim(pool.page(page)?, pages, owner.index);
    if won {
        release(pool, page, pages)?;
    }
    Ok(won)
}

/// Takes the run that an entry named: the word of its head decides who has it, and he clears the entry.
#[inline]
fn take_run(spare: &AtomicU64, found: u64, page: &Word, pages: u32, owner: u32) -> bool {
    let private = PageWord::new(Tag::Extent, Some(owner), 0, pages);
    // When somebody was quicker the entry is his to clear: the run may be spare again by now.
    let won = page.replace(head(pages), private);
    if won {
        clear(spare, found);
    }
    won
}

/// Puts a run into the table; false when that is full.
fn enter(spares: &[AtomicU64], entry: u64) -> bool {
    spares.iter().any(|spare| {
        // Release pairs with the Acquire in `take`.
        let (done, not) = (Ordering::AcqRel, Ordering::Relaxed);
        spare.load(Ordering::Relaxed) == 0 && spare.compare_exchange(0, entry, done, not).is_ok()
    })
}

/// Clears an entry; false when it is another by now.
#[inline]
fn clear(spare: &AtomicU64, found: u64) -> bool {
    let (done, not) = (Ordering::AcqRel, Ordering::Relaxed);
    spare.compare_exchange(found, 0, done, not).is_ok()
}

/// Claims the head of a spare run, so that its pages are the caller's to free.
fn claim(page: &Word, pages: u32, owner: u32) -> bool {
    let claimed = PageWord::new(Tag::Claimed, Some(owner), 0, pages);
    page.replace(head(pages), claimed)
}

/// As in an intent that names the run.
fn entry(page: u32, pages: u32) -> u64 {
    u64::from(pages) << 32 | u64::from(page)
}

/// First page and length, unless the entry is empty or nonsense.
fn run(pool: &Pool, entry: u64) -> Option<(u32, u32)> {
    let (page, pages) = (low(entry), high(entry));
    let end = page.checked_add(pages)?;
    (pages > 0 && end <= pool.committed_pages()).then_some((page, pages))
}

#[cfg(all(test, loom))]
#[path = "spare_model.rs"]
mod model;
