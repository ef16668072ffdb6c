//! The lists of pages that a slot owns: of its slabs, and of its private extents. One of each for every pool.
//!
//! Only the owner changes them, one thread at a time; recovery follows `next` from the head when the owner is dead. Each
//! change shows in that direction by a single store, so the list is whole at every moment. `prev` only spares the owner the
//! search. A list may have been scribbled over: it is followed for as many pages as there are, and within the pool.
//!
//! The two lists have links of their own in a page's record: a slab that others took away from its owner, and that is an
//! extent now, stays in the owner's list of slabs until the owner looks.

use super::Pool;
use super::page::Links;
use crate::error::{Error, Result};
use crate::slot::Slot;
use crate::sync::{AtomicU64, Ordering};

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Slabs,
    Extents,
}

/// A list of one slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct List<'a> {
    pool: &'a Pool,
    head: &'a AtomicU64,
    which: Which,
}

impl<'a> List<'a> {
    #[inline]
    pub(super) fn slabs(pool: &'a Pool, slot: &'a Slot) -> Self {
        Self {
            pool,
            head: &slot.slabs[pool.number() as usize % slot.slabs.len()],
            which: Which::Slabs,
        }
    }

    #[inline]
    pub(super) fn extents(pool: &'a Pool, slot: &'a Slot) -> Self {
        Self {
            pool,
            head: &slot.extents[pool.number() as usize % slot.extents.len()],
            which: Which::Extents,
        }
    }

    #[inline]
    fn links(self, page: u32) -> Result<&'a Links> {
        let meta = self.pool.page_meta(page)?;
        Ok(match self.which {
            Which::Slabs => &meta.slabs,
            Which::Extents => &meta.extents,
        })
    }

    /// Puts a page in front. Its page word is written before.
    #[inline]
    pub(super) fn link(self, page: u32) -> Result<()> {
        let links = self.links(page)?;
        let next = self.head.load(Ordering::Relaxed);
        links.next.store(next, Ordering::Relaxed);
        links.prev.store(0, Ordering::Relaxed);
        let link = u64::from(page) + 1;
        if let Some(next) = self.page_of(next) {
            self.links(next)?.prev.store(link, Ordering::Relaxed);
        }
        // Release: recovery that sees the page in the list sees where the list goes on.
        self.head.store(link, Ordering::Release);
        Ok(())
    }

    /// Takes a page out.
    #[inline]
    pub(super) fn unlink(self, page: u32) -> Result<()> {
        let links = self.links(page)?;
        let (prev, next) = (
            links.prev.load(Ordering::Relaxed),
            links.next.load(Ordering::Relaxed),
        );
        let link = match self.page_of(prev) {
            Some(prev) => &self.links(prev)?.next,
            None => self.head,
        };
        if link.load(Ordering::Relaxed) != u64::from(page) + 1 {
            return Err(Error::Corrupt {
                what: "list of a slot's pages",
                value: prev,
            });
        }
        link.store(next, Ordering::Release);
        if let Some(next) = self.page_of(next) {
            self.links(next)?.prev.store(prev, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Empties the list of a dead owner and calls `each` with its pages. `each` may give the page away: where the list goes
    /// on is read before.
    pub(super) fn take(self, mut each: impl FnMut(u32) -> Result<()>) -> Result<()> {
        let mut link = self.head.swap(0, Ordering::AcqRel);
        for _ in 0..self.pool.committed_pages() {
            let Some(page) = self.page_of(link) else {
                break;
            };
            link = self.links(page)?.next.load(Ordering::Acquire);
            each(page)?;
        }
        Ok(())
    }

    /// Empties the list of a living owner, which may die on the way: `each` takes the page out by the function that it is
    /// given.
    pub(super) fn drain(self, mut each: impl FnMut(u32, &dyn Fn()) -> Result<()>) -> Result<()> {
        for _ in 0..self.pool.committed_pages() {
            let Some(page) = self.page_of(self.head.load(Ordering::Relaxed)) else {
                break;
            };
            let next = self.links(page)?.next.load(Ordering::Relaxed);
            #[cfg(all(test, not(loom)))]
            tests::step();
            each(page, &|| {
                self.head.store(next, Ordering::Release);
                #[cfg(all(test, not(loom)))]
                tests::step();
            })?;
        }
        self.head.store(0, Ordering::Release);
        Ok(())
    }

    /// The page that a link names, unless it ends the list or is nonsense.
    #[inline]
    fn page_of(self, link: u64) -> Option<u32> {
        let page = u32::try_from(link.checked_sub(1)?).ok()?;
        (page < self.pool.committed_pages()).then_some(page)
    }
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
