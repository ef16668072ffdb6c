//! Pools: blocks of shared memory, allocated by any process, recovered when it dies.
//!
//! A pool is two regions: the data, a sparse memfd of the pool's limit of which the daemon has committed a prefix, and the
//! metadata, which holds one word and one record for each page of 64 KiB.
//!
//! * Small blocks (64 B to 32 KiB, powers of two) lie in *slabs*: a page of one size class, owned by one slot. Only the
//!   owner allocates in it, so it sets bits of the `allocated` bitmap with plain read-modify-stores; whoever frees sets a
//!   bit of the `freed` bitmap with `fetch_or`, and the bit itself says whether it happened. The owner collects freed
//!   blocks when it runs out. See [`slab`].
//! * Larger blocks are *extents*: runs of pages, claimed one page word after the other by compare-and-swap. See [`extent`].
//!
//! A block is private to the process that allocated it until it is shared; recovery frees the private ones of a dead
//! process, by its list of slabs and its list of private extents. A slab whose owner is gone is an orphan: it goes with its
//! last block.
//!
//! The idea that a freed bitmap of its own makes ownership of a slab cheap is mimalloc's (local and thread-free lists);
//! bits in place of lists make it recoverable.

pub mod extent;
pub mod page;
pub mod slab;

use std::os::fd::OwnedFd;

use dragon_protocol::{NodeIndex, RuntimeId, SlotId};

use crate::error::{Error, Result};
use crate::region::{Region, Shared};
use crate::slot::Slot;
use crate::sync::{AtomicU64, Ordering};
use crate::thread::Intent;
use page::{PAGE, PageMeta, PageWord, Tag};
use slab::{CLASSES, class_of, class_size};

/// Kind of a pool's metadata region in its header.
pub const META: u32 = 2;
/// Kind of a pool's data region.
pub const DATA: u32 = 3;
/// What is committed at once at least: 2 MiB, the size of a huge page.
pub const CHUNK: u64 = 2 << 20;

const WORDS: u64 = 4096;
const PAGES: u64 = 8192;

/// Words of a pool.
#[derive(Debug)]
#[repr(C, align(64))]
struct PoolWords {
    limit: AtomicU64,
    number: AtomicU64,
    /// Bytes committed: a prefix of the data. Nobody touches what lies beyond.
    committed: AtomicU64,
    /// Where the search for free pages starts.
    hint: AtomicU64,
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for PoolWords {}

/// A mapped pool; clones share the mapping.
#[derive(Clone, Debug)]
pub struct Pool {
    meta: Region,
    data: Region,
    number: u32,
    limit: u64,
}

/// An allocated block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where it lies in its pool.
    pub offset: u64,
    /// Bytes asked for; the block may have room for more.
    pub length: u64,
}

/// What an owner remembers about its slabs, in its own memory. One lock guards it; it is private to the process, so it
/// dies with it.
#[derive(Debug, Default)]
pub struct Cache {
    /// Pages of each class, the one in use last.
    slabs: [Vec<u32>; CLASSES],
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Its limit in bytes.
    pub limit: u64,
    /// Bytes committed.
    pub committed: u64,
    /// Bytes in allocated blocks.
    pub used: u64,
    /// Allocated blocks.
    pub blocks: u64,
}

impl Pool {
    /// Creates a pool with a limit in bytes, rounded up to 2 MiB. Nothing is committed yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(runtime: RuntimeId, node: NodeIndex, number: u32, limit: u64) -> Result<Self> {
        let limit = limit.max(CHUNK).next_multiple_of(CHUNK);
        let meta = Region::create(
            &format!("dragon-pool{number}-meta"),
            META,
            runtime,
            meta_size(limit),
        )?;
        let data = Region::create(&format!("dragon-pool{number}"), DATA, runtime, limit)?;
        let _ = node;
        let words: &PoolWords = meta.view(WORDS)?;
        words.limit.store(limit, Ordering::Relaxed);
        words.number.store(number.into(), Ordering::Relaxed);
        let pool = Self {
            meta,
            data,
            number,
            limit,
        };
        // The data region's own header lies in the first page, which is therefore never free.
        pool.page(0)?
            .store(PageWord::new(Tag::Reserved, None, 0, 1));
        Ok(pool)
    }

    /// Maps the pool that the daemon created.
    ///
    /// # Errors
    /// When the regions are not of this release and runtime, or do not belong together.
    pub fn map(
        runtime: RuntimeId,
        number: u32,
        meta: (OwnedFd, u64),
        data: (OwnedFd, u64),
    ) -> Result<Self> {
        let limit = data.1;
        if !limit.is_multiple_of(CHUNK) || meta.1 != meta_size(limit) {
            return Err(Error::Region {
                what: "size of the pool's metadata",
                expected: meta_size(limit),
                found: meta.1,
            });
        }
        let meta = Region::map(meta.0, meta.1, META, runtime)?;
        let data = Region::map(data.0, data.1, DATA, runtime)?;
        Ok(Self {
            meta,
            data,
            number,
            limit,
        })
    }

    /// Its number within the node.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The metadata region.
    #[must_use]
    pub fn meta(&self) -> &Region {
        &self.meta
    }

    /// The data region.
    #[must_use]
    pub fn data(&self) -> &Region {
        &self.data
    }

    /// Bytes committed.
    #[must_use]
    pub fn committed(&self) -> u64 {
        // Acquire pairs with the Release in `commit`: who sees the watermark may touch what lies below.
        self.words()
            .map_or(0, |words| words.committed.load(Ordering::Acquire))
            .min(self.limit)
    }

    /// Commits so many more bytes, rounded up to 2 MiB, as far as the limit allows. For the daemon only.
    ///
    /// # Errors
    /// When the limit is reached, or there is no memory.
    pub fn commit(&self, bytes: u64) -> Result<()> {
        let committed = self.committed();
        let more = bytes
            .max(1)
            .checked_next_multiple_of(CHUNK)
            .unwrap_or(u64::MAX)
            .min(self.limit - committed);
        if more == 0 || bytes > self.limit {
            return Err(self.out_of_memory(bytes));
        }
        self.data.commit(committed, more)?;
        self.words()?
            .committed
            .store(committed + more, Ordering::Release);
        Ok(())
    }

    /// The error of a pool without room for `asked` bytes.
    #[must_use]
    pub fn out_of_memory(&self, asked: u64) -> Error {
        let used = self.stats().map_or(self.limit, |stats| stats.used);
        Error::OutOfMemory {
            pool: self.number,
            asked,
            free: self.limit.saturating_sub(used),
            limit: self.limit,
        }
    }

    pub(crate) fn alloc(
        &self,
        cache: &mut Cache,
        slot: &Slot,
        owner: SlotId,
        intent: &Intent,
        length: u64,
    ) -> Result<Option<Block>> {
        let offset = match class_of(length) {
            Some(class) => slab::alloc(self, &mut cache.slabs[class], slot, owner, intent, class)?,
            None if length > self.limit => return Err(self.out_of_memory(length)),
            None => extent::alloc(self, slot, owner, intent, length)?,
        };
        Ok(offset.map(|offset| Block { offset, length }))
    }

    pub(crate) fn free(
        &self,
        _: &mut Cache,
        slot: &Slot,
        owner: SlotId,
        intent: &Intent,
        offset: u64,
    ) -> Result<()> {
        let index = self.page_of(offset)?;
        let word = self.page(index)?.load();
        match word.tag() {
            Tag::Slab => slab::free(self, index, word, offset),
            Tag::Extent => extent::free(self, slot, owner, intent, index, word, offset),
            _ => Err(self.not_allocated(offset)),
        }
    }

    pub(crate) fn share(
        &self,
        _: &mut Cache,
        slot: &Slot,
        owner: SlotId,
        offset: u64,
    ) -> Result<()> {
        let index = self.page_of(offset)?;
        let word = self.page(index)?.load();
        match word.tag() {
            Tag::Slab if word.owner() == Some(owner.index) => {
                slab::share(self, index, word, offset)
            }
            Tag::Extent if word.owner() == Some(owner.index) => {
                extent::share(self, slot, index, word, offset)
            }
            _ => Err(self.not_allocated(offset)),
        }
    }

    /// Room of the allocated block at `offset`.
    ///
    /// # Errors
    /// When there is none.
    pub fn block_room(&self, offset: u64) -> Result<u64> {
        let index = self.page_of(offset)?;
        let word = self.page(index)?.load();
        match word.tag() {
            Tag::Slab => slab::check(self, index, word, offset).map(|_| class_size(word.class())),
            Tag::Extent if offset.is_multiple_of(PAGE) => Ok(u64::from(word.pages()) * PAGE),
            _ => Err(self.not_allocated(offset)),
        }
    }

    /// Checks that `length` bytes at `offset` lie inside one allocated block.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self, offset: u64, length: u64) -> Result<()> {
        let room = self.block_room(offset)?;
        if length <= room {
            Ok(())
        } else {
            Err(Error::Corrupt {
                what: "length of a block's contents",
                value: length,
            })
        }
    }

    /// Copies bytes into a block.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn write(&self, offset: u64, at: u64, bytes: &[u8]) -> Result<()> {
        let end = at.checked_add(bytes.len() as u64).ok_or(Error::Corrupt {
            what: "offset",
            value: at,
        })?;
        self.check(offset, end)?;
        self.data.copy_in(offset + at, bytes)
    }

    /// Copies bytes out of a block.
    ///
    /// # Errors
    /// When the block is shorter.
    pub fn read(&self, offset: u64, at: u64, bytes: &mut [u8]) -> Result<()> {
        let end = at.checked_add(bytes.len() as u64).ok_or(Error::Corrupt {
            what: "offset",
            value: at,
        })?;
        self.check(offset, end)?;
        self.data.copy_out(offset + at, bytes)
    }

    /// Counts what is allocated, page by page: for people and tests, not for hot paths.
    ///
    /// # Errors
    /// When shared memory is corrupt.
    pub fn stats(&self) -> Result<Stats> {
        let committed = self.committed();
        let mut stats = Stats {
            limit: self.limit,
            committed,
            used: 0,
            blocks: 0,
        };
        for index in 0..u32::try_from(committed / PAGE).unwrap_or(u32::MAX) {
            let word = self.page(index)?.load();
            let (blocks, size) = match word.tag() {
                Tag::Slab => (
                    slab::in_use(self.page_meta(index)?),
                    class_size(word.class()),
                ),
                Tag::Extent => (1, u64::from(word.pages()) * PAGE),
                _ => continue,
            };
            stats.blocks += blocks;
            stats.used += blocks * size;
        }
        Ok(stats)
    }

    pub(crate) fn page(&self, index: u32) -> Result<&page::Word> {
        self.meta.view(PAGES + u64::from(index) * 8)
    }

    pub(crate) fn page_meta(&self, index: u32) -> Result<&PageMeta> {
        let table = (PAGES + self.limit / PAGE * 8).next_multiple_of(512);
        self.meta
            .view(table + u64::from(index) * size_of::<PageMeta>() as u64)
    }

    pub(crate) fn committed_pages(&self) -> u32 {
        u32::try_from(self.committed() / PAGE).unwrap_or(u32::MAX)
    }

    pub(crate) fn hint(&self) -> Result<&AtomicU64> {
        Ok(&self.words()?.hint)
    }

    fn page_of(&self, offset: u64) -> Result<u32> {
        let index = u32::try_from(offset / PAGE)
            .ok()
            .filter(|_| offset < self.committed());
        index.ok_or_else(|| self.not_allocated(offset))
    }

    pub(crate) fn not_allocated(&self, offset: u64) -> Error {
        Error::NotAllocated {
            pool: self.number,
            offset,
        }
    }

    fn words(&self) -> Result<&PoolWords> {
        self.meta.view(WORDS)
    }
}

fn meta_size(limit: u64) -> u64 {
    let pages = limit / PAGE;
    (PAGES + pages * 8).next_multiple_of(512) + pages * size_of::<PageMeta>() as u64
}

#[cfg(test)]
mod tests;
