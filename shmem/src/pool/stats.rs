//! What a pool holds, counted page by page when somebody asks: nothing is counted on the way of an allocation.

use std::collections::BTreeMap;

use super::page::{PAGE, Tag};
use super::slab::{self, class_size};
use super::{Pool, Stats};
use crate::error::Result;

/// What a pool holds at the moment. Processes go on meanwhile, so the numbers may not agree to the last block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// The pool's limit, in bytes.
    pub limit: u64,
    /// Memory taken from the system, in bytes.
    pub committed: u64,
    /// Bytes in allocated blocks, each with the room that it has: its size class, or whole pages of 64 KiB.
    pub used: u64,
    /// Bytes that are not in allocated blocks: the limit less what is used.
    pub free: u64,
    /// Bytes of free extents that stay together for the next allocations of their length; among the free ones.
    pub kept: u64,
    /// Bytes up to the end of the highest page that was ever in use: never less than the most that was in use at once.
    pub peak: u64,
    /// Bytes of the largest block that could be allocated, if memory for it can be committed.
    pub largest_free: u64,
    /// Allocated blocks.
    pub blocks: u64,
    /// How many blocks there are of each room, in bytes.
    pub by_size: BTreeMap<u64, u64>,
    /// By slot: bytes and blocks in pages that the slot's process owns: its slabs, with blocks that it shared, and its private
    /// extents. `None`: shared extents, and slabs whose owner is gone.
    pub by_owner: BTreeMap<Option<u32>, (u64, u64)>,
}

impl Pool {
    /// How full the pool is, counted page by page: for people and tests, not for hot paths.
    ///
    /// # Errors
    /// When shared memory is corrupt.
    pub fn stats(&self) -> Result<Stats> {
        let all = self.statistics()?;
        Ok(Stats {
            limit: all.limit,
            committed: all.committed,
            used: all.used,
            blocks: all.blocks,
        })
    }

    /// What the pool holds, counted page by page; pages that were never used are not looked at.
    ///
    /// # Errors
    /// When shared memory is corrupt.
    pub fn statistics(&self) -> Result<Statistics> {
        let top = self.top()?;
        let mut all = Statistics {
            limit: self.limit(),
            committed: self.committed_memory()?,
            peak: u64::from(top) * PAGE,
            ..Statistics::default()
        };
        let mut run = 0_u64;
        let mut page = 0;
        while page < top {
            let word = self.page(page)?.load();
            let (blocks, room, pages) = match word.tag() {
                Tag::Slab => {
                    let blocks = slab::in_use(self.bitmaps(page)?, word.class());
                    (blocks, class_size(word.class()), 1)
                }
                Tag::Extent => (1, u64::from(word.extra()) * PAGE, word.extra().max(1)),
                Tag::Kept => {
                    all.kept = all.kept.saturating_add(u64::from(word.extra()) * PAGE);
                    (0, 0, word.extra().max(1))
                }
                _ => (0, 0, 1),
            };
            // Pages whose memory was given back can be had again.
            let free = matches!(word.tag(), Tag::Free | Tag::Kept)
                || word.tag() == Tag::Reserved && page != 0;
            run = if free { run + u64::from(pages) } else { 0 };
            all.largest_free = all.largest_free.max(run * PAGE);
            if blocks > 0 {
                // Lengths of extents may have been scribbled over: no sum of them may overflow.
                let bytes = blocks * room;
                all.blocks += blocks;
                all.used = all.used.saturating_add(bytes);
                *all.by_size.entry(room).or_default() += blocks;
                let owner = all.by_owner.entry(word.owner()).or_default();
                *owner = (owner.0.saturating_add(bytes), owner.1 + blocks);
            }
            page = page.saturating_add(pages);
        }
        // What lies beyond the highest page that was ever used is one run with what is free before it.
        let rest = self.limit().saturating_sub(u64::from(top.max(1)) * PAGE);
        all.largest_free = all.largest_free.max(run * PAGE + rest);
        all.free = all.limit.saturating_sub(all.used);
        Ok(all)
    }
}
