//! The lists of pages that a slot owns: of its slabs, and of its private extents. One of each for every pool.
//!
//! Only the owner changes them, one thread at a time; recovery follows `next` from the head when the owner is dead. Each
//! change shows in that direction by a single store, so the list is whole at every moment. `prev` only spares the owner the
//! search. A list may have been scribbled over: it is followed for as many pages as there are, and within the pool.

use super::Pool;
use crate::error::{Error, Result};
use crate::sync::{AtomicU64, Ordering};

/// Puts a page in front. Its page word is written before.
pub(super) fn link(pool: &Pool, head: &AtomicU64, page: u32) -> Result<()> {
    let meta = pool.page_meta(page)?;
    let next = head.load(Ordering::Relaxed);
    meta.next.store(next, Ordering::Relaxed);
    meta.prev.store(0, Ordering::Relaxed);
    let link = u64::from(page) + 1;
    if let Some(next) = page_of(pool, next) {
        pool.page_meta(next)?.prev.store(link, Ordering::Relaxed);
    }
    // Release: recovery that sees the page in the list sees where the list goes on.
    head.store(link, Ordering::Release);
    Ok(())
}

/// Takes a page out.
pub(super) fn unlink(pool: &Pool, head: &AtomicU64, page: u32) -> Result<()> {
    let meta = pool.page_meta(page)?;
    let (prev, next) = (
        meta.prev.load(Ordering::Relaxed),
        meta.next.load(Ordering::Relaxed),
    );
    let link = match page_of(pool, prev) {
        Some(prev) => &pool.page_meta(prev)?.next,
        None => head,
    };
    if link.load(Ordering::Relaxed) != u64::from(page) + 1 {
        return Err(Error::Corrupt {
            what: "list of a slot's pages",
            value: prev,
        });
    }
    link.store(next, Ordering::Release);
    if let Some(next) = page_of(pool, next) {
        pool.page_meta(next)?.prev.store(prev, Ordering::Relaxed);
    }
    Ok(())
}

/// Empties the list of a dead owner and calls `each` with its pages. `each` may give the page away: where the list goes on
/// is read before.
pub(super) fn take(
    pool: &Pool,
    head: &AtomicU64,
    mut each: impl FnMut(u32) -> Result<()>,
) -> Result<()> {
    let mut link = head.swap(0, Ordering::AcqRel);
    for _ in 0..pool.committed_pages() {
        let Some(page) = page_of(pool, link) else {
            break;
        };
        link = pool.page_meta(page)?.next.load(Ordering::Acquire);
        each(page)?;
    }
    Ok(())
}

/// Empties the list of a living owner, which may die on the way: `each` takes the page out by the function that it is given.
pub(super) fn drain(
    pool: &Pool,
    head: &AtomicU64,
    mut each: impl FnMut(u32, &dyn Fn()) -> Result<()>,
) -> Result<()> {
    for _ in 0..pool.committed_pages() {
        let Some(page) = page_of(pool, head.load(Ordering::Relaxed)) else {
            break;
        };
        let next = pool.page_meta(page)?.next.load(Ordering::Relaxed);
        #[cfg(all(test, not(loom)))]
        tests::step();
        each(page, &|| {
            head.store(next, Ordering::Release);
            #[cfg(all(test, not(loom)))]
            tests::step();
        })?;
    }
    head.store(0, Ordering::Release);
    Ok(())
}

/// A test's process "dies" by a panic after so many steps.
#[cfg(all(test, not(loom)))]
pub(super) use tests::stop_after;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    thread_local!(static LEFT: Cell<u32> = const { Cell::new(u32::MAX) });

    pub(in super::super) fn stop_after(steps: u32) {
        LEFT.set(steps);
    }

    pub(super) fn step() {
        match LEFT.get() {
            u32::MAX => {}
            0 => std::panic::resume_unwind(Box::new("killed")),
            left => LEFT.set(left - 1),
        }
    }
}

/// The page that a link names, unless it ends the list or is nonsense.
fn page_of(pool: &Pool, link: u64) -> Option<u32> {
    let page = u32::try_from(link.checked_sub(1)?).ok()?;
    (page < pool.committed_pages()).then_some(page)
}
