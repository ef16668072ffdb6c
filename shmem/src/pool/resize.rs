//! A change of a block's length in its place.
//!
//! A block of a slab has the room of its size class. An extent grows into the pages behind it when they are free, and gives
//! pages at its end back. Its length is in one word, the page word of its head, which changes by one compare-and-swap: before
//! it a longer extent has claimed its new pages, after it a shorter one gives the old ones back. The intent names both
//! lengths, and the head says which of them is true.

use std::sync::Mutex;

use dragon_protocol::SlotId;
use dragon_protocol::op::Op;

use super::extent::{self, release_kept};
use super::page::{PAGE, PageWord, Tag};
use super::slab::class_size;
use super::{Cache, Pool, ThreadRef, lock, slab};
use crate::error::{Error, Result};
use crate::sync::{high, low};
use crate::thread::{Intended, Intent};

impl Pool {
    /// Gives the block at `offset` room for `length` bytes. It is private to the caller, or shared and nobody else uses it.
    pub(crate) fn resize<'a>(
        &self,
        cache: &Mutex<Cache>,
        owner: SlotId,
        thread: impl FnOnce() -> Result<ThreadRef<'a>>,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let index = self.page_of(offset)?;
        let word = self.page(index)?.load();
        let foreign = word.owner().is_some_and(|other| other != owner.index);
        match word.tag() {
            Tag::Slab => {
                let shared = slab::is_shared(self, index, word, offset)?;
                if foreign && !shared {
                    return Err(self.not_allocated(offset));
                }
                let room = class_size(word.class());
                if length <= room {
                    Ok(())
                } else {
                    Err(self.too_long(offset, length, room))
                }
            }
            Tag::Extent if offset.is_multiple_of(PAGE) && !foreign => {
                let pages = length.max(1).div_ceil(PAGE);
                if pages == u64::from(word.extra()) {
                    return Ok(());
                }
                let thread = thread()?;
                // The pages behind the block are claimed as in an allocation: by one thread of a process at a time.
                let _cache = lock(cache);
                let pages = u32::try_from(pages).unwrap_or(u32::MAX);
                if pages < word.extra() {
                    self.shrink(&thread.intent, index, word, pages)
                } else {
                    self.grow(owner, &thread.intent, index, word, pages)
                        .map_err(|room| self.too_long(offset, length, room))
                }
            }
            _ => Err(self.not_allocated(offset)),
        }
    }

    fn too_long(&self, offset: u64, asked: u64, room: u64) -> Error {
        Error::CannotGrow {
            pool: self.number(),
            offset,
            asked,
            room,
        }
    }

    fn shrink(&self, intent: &Intent, first: u32, word: PageWord, pages: u32) -> Result<()> {
        announce(self, intent, first, word.extra(), pages);
        if !self.page(first)?.replace(word, word.with_extra(pages)) {
            intent.end();
            return Err(self.not_allocated(u64::from(first) * PAGE));
        }
        extent::release(self, first + pages, word.extra() - pages)?;
        intent.end();
        Ok(())
    }

    /// The error is the room that the block could have.
    fn grow(
        &self,
        owner: SlotId,
        intent: &Intent,
        first: u32,
        word: PageWord,
        pages: u32,
    ) -> Result<(), u64> {
        let end = u64::from(first) + u64::from(pages);
        let limit = u64::from(self.committed_pages()).min(end);
        let room = |page: u32| u64::from(page - first) * PAGE;
        let now = room(first + word.extra());
        for page in first + word.extra()..low(limit) {
            let found = self.page(page).map_err(|_| now)?;
            let kept = found.load();
            let freed = kept.tag() == Tag::Kept
                && release_kept(self, owner, intent, (page, kept.extra())).map_err(|_| now)?;
            if !freed && found.load() != PageWord::FREE {
                return Err(room(page));
            }
        }
        if limit < end {
            return Err(room(low(limit)));
        }
        self.raise_top(first + pages).map_err(|_| now)?;
        announce(self, intent, first, word.extra(), pages);
        let result = self.claim_behind(owner, first, word, pages);
        intent.end();
        result
    }

    fn claim_behind(
        &self,
        owner: SlotId,
        first: u32,
        word: PageWord,
        pages: u32,
    ) -> Result<(), u64> {
        let room = |page: u32| u64::from(page - first) * PAGE;
        let claimed = PageWord::new(Tag::Claimed, Some(owner.index), 0, 0);
        let start = first + word.extra();
        let page_at = |page| self.page(page).map_err(|_| room(start));
        for page in start..first + pages {
            if !page_at(page)?.replace(PageWord::FREE, claimed) {
                for mine in (start..page).rev() {
                    page_at(mine)?.store(PageWord::FREE);
                }
                return Err(room(page));
            }
        }
        for page in start..first + pages {
            page_at(page)?.store(PageWord::new(Tag::Body, Some(owner.index), 0, 0));
        }
        if page_at(first)?.replace(word, word.with_extra(pages)) {
            return Ok(());
        }
        // Somebody freed the block that only the caller should use.
        extent::release(self, start, pages - word.extra()).map_err(|_| room(start))?;
        Err(room(start))
    }
}

fn announce(pool: &Pool, intent: &Intent, first: u32, from: u32, to: u32) {
    let lengths = u64::from(to) << 32 | u64::from(from);
    intent.begin(Op::Resize, pool.number(), 0, [first.into(), lengths]);
}

/// Finishes or undoes a change of length that a dead process had announced: before anything else is done to its memory.
pub(crate) fn recover(pool: &Pool, owner: SlotId, intended: &Intended) -> Result<()> {
    let [first, lengths, ..] = intended.arguments;
    let (from, to) = (low(lengths), high(lengths));
    let longest = u64::from(from.max(to));
    let inside = first
        .checked_add(longest)
        .is_some_and(|end| end <= u64::from(pool.committed_pages()));
    if !inside {
        return Ok(());
    }
    let first = low(first);
    let head = pool.page(first)?.load();
    if head.tag() != Tag::Extent {
        return Ok(());
    }
    if to < from && head.extra() == to {
        // It has its new length: what is left of the old one lies right behind it.
        let mut end = first + to;
        while end < first + from && pool.page(end)?.load().tag() == Tag::Body {
            end += 1;
        }
        return extent::release(pool, first + to, end - first - to);
    }
    if to > from && head.extra() == from {
        // It has its old length: what the process claimed behind it was free before.
        for page in first + from..first + to {
            let word = pool.page(page)?.load();
            if word.owner() == Some(owner.index) && matches!(word.tag(), Tag::Claimed | Tag::Body) {
                pool.page(page)?.store(PageWord::FREE);
                pool.lower_hint(page)?;
            }
        }
    }
    Ok(())
}
