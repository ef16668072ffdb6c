//! Pools: blocks of shared memory, allocated by any process, recovered when it dies.
//!
//! A pool is two regions: the data, a sparse memfd of the pool's limit of which the daemon has committed a prefix, and the
//! metadata, which holds a word, a record and what a slab needs for each page of 64 KiB.
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

mod bytes;
mod commit;
pub mod extent;
pub mod label;
mod list;
pub mod page;
pub(crate) mod resize;
pub(crate) mod room;
pub mod slab;
mod spare;
mod stats;
pub mod table;
pub mod tag;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dragon_protocol::{NodeIndex, PoolOptions, RuntimeId, SlotId};

use crate::error::{Error, Result, io};
use crate::member::ThreadGuard;
use crate::region::{Backing, Region, Shared};
use crate::slot::{KEPT, MAX_POOLS, Slot};
use crate::sync::{AtomicU32, AtomicU64, Ordering, low};
use crate::thread::Intent;
use commit::Truth;
use page::{Bitmaps, PAGE, PageMeta, PageWord, Stamps, Tag};
use room::Room;
use slab::{CLASSES, Class, class_of};
pub use stats::Statistics;
use tag::PoolTag;

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
#[repr(C, align(128))]
struct PoolWords {
    limit: AtomicU64,
    /// The pool's [`PoolTag`].
    tag: AtomicU64,
    /// Bytes committed: a prefix of the data. Nobody touches what lies beyond.
    committed: AtomicU64,
    /// Where those wait who found no room. Hardly ever written.
    room: Room,
    reserved: [AtomicU64; 12],
    /// Where the search for free pages starts. Apart from what everybody reads all the time.
    hint: AtomicU64,
    /// Per class: a slab whose owner is gone; 0 for none. A hint.
    orphans: [AtomicU32; 16],
    /// Pages from the first one to the highest that was ever in use.
    top: AtomicU64,
    reserved2: [AtomicU64; 6],
    /// Free runs of pages that are still together: number of pages 32 bits | first page 32; 0 for none. See [`spare`].
    spares: [AtomicU64; spare::SPARES],
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for PoolWords {}

/// A mapped pool; clones share the mapping.
#[derive(Clone, Debug)]
pub struct Pool {
    meta: Region,
    data: Region,
    tag: PoolTag,
    limit: u64,
    tables: Tables,
    /// No block is smaller.
    minimum: u64,
    name: Arc<str>,
    /// What is committed; the owner's.
    truth: Option<Truth>,
}

/// An allocated block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its address: pool and offset in it, see [`PoolTag`]. Of a block in the default pool that is the offset.
    pub offset: u64,
    /// Bytes asked for; the block may have room for more.
    pub length: u64,
}

/// What an owner remembers about its slabs, in its own memory. One lock guards it; it is private to the process, so it
/// dies with it.
#[derive(Debug, Default)]
pub struct Cache {
    classes: [Class; CLASSES],
    kept: extent::Kept,
    /// Which spare extent made room last.
    victim: usize,
    near: extent::Near,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Its limit in bytes.
    pub limit: u64,
    /// Bytes committed, and not released again.
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
        let tag = PoolTag::new(number, 0).ok_or(Error::TableFull {
            table: "pools",
            size: low(MAX_POOLS as u64),
        })?;
        Self::create_tagged(runtime, node, tag, limit)
    }

    /// As [`Pool::create`], under a tag.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create_tagged(
        runtime: RuntimeId,
        node: NodeIndex,
        tag: PoolTag,
        limit: u64,
    ) -> Result<Self> {
        let _ = node;
        let options = PoolOptions {
            limit,
            ..PoolOptions::default()
        };
        Self::create_with(runtime, tag, &options)
    }

    /// Creates a pool with options. Nothing is committed yet, also not when they ask for it: that is the owner's, who knows
    /// what memory there is.
    ///
    /// # Errors
    /// When an option is out of its range, or the kernel refuses.
    pub fn create_with(runtime: RuntimeId, tag: PoolTag, options: &PoolOptions) -> Result<Self> {
        options.check()?;
        let limit = limit_of(options);
        let name = format!("dragon-pool{}", tag.number());
        let (meta, data) = (format!("{name}-meta"), format!("{name}-{}", options.name));
        let meta = Region::create(&meta, META, runtime, Tables::of(limit).end)?;
        let data = if options.file.is_empty() {
            Region::create(data.trim_end_matches('-'), DATA, runtime, limit)?
        } else {
            let path = Path::new(OsStr::from_bytes(&options.file));
            let data = Region::create_in_file(path, DATA, runtime, limit)?;
            // Others get its descriptor; so nothing of it stays, whoever is killed.
            std::fs::remove_file(path).map_err(io("unlink"))?;
            data
        };
        if options.huge_pages {
            data.advise_huge()?;
        }
        if let Some(node) = options.numa_node {
            data.bind(node)?;
        }
        Self::init(meta, data, tag, options)
    }

    /// Creates a pool in memory of this process alone.
    ///
    /// # Errors
    /// When an option is out of its range, or there is no memory.
    pub fn create_private(runtime: RuntimeId, tag: PoolTag, options: &PoolOptions) -> Result<Self> {
        options.check()?;
        let limit = limit_of(options);
        let meta = Region::create_private(META, runtime, Tables::of(limit).end)?;
        let data = Region::create_private(DATA, runtime, limit)?;
        Self::init(meta, data, tag, options)
    }

    fn init(meta: Region, data: Region, tag: PoolTag, options: &PoolOptions) -> Result<Self> {
        let limit = data.size();
        let words: &PoolWords = meta.view(WORDS)?;
        words.limit.store(limit, Ordering::Relaxed);
        words.tag.store(tag.to_u16().into(), Ordering::Relaxed);
        let label = Self::label_of(&meta)?;
        let minimum = u64::from(options.minimum_block);
        label.minimum.store(minimum, Ordering::Relaxed);
        let huge = u64::from(options.huge_pages);
        label.huge.store(huge, Ordering::Relaxed);
        label.set_name(&options.name);
        let pool = Self {
            meta,
            data,
            tag,
            limit,
            minimum,
            name: Arc::from(options.name.as_str()),
            tables: Tables::of(limit),
            truth: Some(Truth::default()),
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
        Self::map_backed(runtime, number, meta, data, Backing::Memfd)
    }

    /// As [`Pool::map`], where the data lies in a file.
    ///
    /// # Errors
    /// As [`Pool::map`].
    pub fn map_backed(
        runtime: RuntimeId,
        number: u32,
        meta: (OwnedFd, u64),
        data: (OwnedFd, u64),
        backing: Backing,
    ) -> Result<Self> {
        let limit = data.1;
        if !limit.is_multiple_of(CHUNK) || limit > PoolOptions::MOST_LIMIT {
            return Err(Error::Corrupt {
                what: "limit of a pool",
                value: limit,
            });
        }
        if meta.1 != Tables::of(limit).end {
            return Err(Error::Region {
                what: "size of the pool's metadata",
                expected: Tables::of(limit).end,
                found: meta.1,
            });
        }
        let meta = Region::map(meta.0, meta.1, META, runtime)?;
        let data = match backing {
            Backing::File => Region::map_file(data.0, data.1, DATA, runtime)?,
            _ => Region::map(data.0, data.1, DATA, runtime)?,
        };
        let words: &PoolWords = meta.view(WORDS)?;
        let named = words.tag.load(Ordering::Relaxed);
        let tag = u16::try_from(named).ok().and_then(PoolTag::from_u16);
        let Some(tag) = tag.filter(|tag| tag.number() == number) else {
            return Err(Error::Region {
                what: "number of the pool",
                expected: number.into(),
                found: named >> 8,
            });
        };
        let label = Self::label_of(&meta)?;
        let (name, minimum) = label.read()?;
        if label.huge.load(Ordering::Relaxed) != 0 {
            // The daemon obtained what there is; without the advice this mapping uses it in small pieces.
            let _ = data.advise_huge();
        }
        Ok(Self {
            meta,
            data,
            tag,
            limit,
            minimum,
            name: name.into(),
            tables: Tables::of(limit),
            truth: None,
        })
    }

    /// The pool as others have it: without the right to commit.
    #[must_use]
    pub fn as_guest(&self) -> Self {
        Self {
            truth: None,
            ..self.clone()
        }
    }

    /// Its number within the node.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.tag.number()
    }

    /// What stands for it in the addresses of its blocks.
    #[must_use]
    pub fn tag(&self) -> PoolTag {
        self.tag
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
    #[inline]
    #[must_use]
    pub fn committed(&self) -> u64 {
        // Acquire pairs with the Release in `commit`: who sees the watermark may touch what lies below.
        self.words()
            .map_or(0, |words| words.committed.load(Ordering::Acquire))
            .min(self.limit)
    }

    /// The largest block that a pool of this limit can hold.
    #[must_use]
    pub const fn largest(limit: u64) -> u64 {
        limit.saturating_sub(PAGE)
    }

    /// The error of a pool without room for `asked` bytes.
    #[must_use]
    pub fn out_of_memory(&self, asked: u64) -> Error {
        let used = self.stats().map_or(self.limit, |stats| stats.used);
        Error::OutOfMemory {
            pool: self.label(),
            asked,
            free: self.limit.saturating_sub(used),
            limit: self.limit,
            note: self.note(),
        }
    }

    /// Allocates from the page in use, or takes an extent that this process keeps; `None`: [`Pool::alloc`] finds out what is the
    /// matter. The result is in registers, while one that has room for an error is written to memory in parts and read as a
    /// whole, for which a processor waits until the parts have left its store buffer.
    #[inline]
    pub(crate) fn alloc_at_once(
        &self,
        cache: &Mutex<Cache>,
        slot: &Slot,
        owner: SlotId,
        length: u64,
    ) -> Option<u64> {
        match class_of(length.max(self.minimum)) {
            Some(class) => lock(cache).classes[class].alloc(self, class).ok()?,
            None => self.alloc_kept(cache, slot, owner, length),
        }
    }

    fn alloc_kept(
        &self,
        cache: &Mutex<Cache>,
        slot: &Slot,
        owner: SlotId,
        length: u64,
    ) -> Option<u64> {
        let pages = u32::try_from(length.div_ceil(PAGE)).ok()?;
        let kept = extent::alloc_kept(self, &mut lock(cache), slot, owner, pages);
        Some(u64::from(kept.ok()??) * PAGE)
    }

    /// Allocates without asking for more memory; returns the offset. The lock of the owner's cache is taken for each step.
    pub(crate) fn alloc<'a>(
        &self,
        cache: &Mutex<Cache>,
        slot: &Slot,
        owner: SlotId,
        thread: impl FnOnce() -> Result<ThreadGuard<'a>>,
        length: u64,
    ) -> Result<Option<u64>> {
        let Some(class) = class_of(length.max(self.minimum)) else {
            return self.alloc_extent(cache, slot, owner, thread, length);
        };
        let mut guard = lock(cache);
        let cached = &mut guard.classes[class];
        if let Some(offset) = cached.alloc(self, class)? {
            return Ok(Some(offset));
        }
        if let Some(offset) = cached.alloc_freed(self, class, false)? {
            return Ok(Some(offset));
        }
        let thread = thread()?;
        let new =
            |cache: &mut Cache| slab::alloc_new(self, cache, slot, owner, &thread.intent, class);
        let adopt = |cache: &mut Cache, all| {
            slab::adopt(self, cache, slot, owner, &thread.intent, class, all)
        };
        let mut found = adopt(&mut guard, false)?;
        if found.is_none() {
            found = new(&mut guard)?;
        }
        if found.is_none() {
            found = guard.classes[class].alloc_freed(self, class, true)?;
        }
        if found.is_none() && self.trim(&mut guard, slot, owner, &thread.intent)? {
            found = new(&mut guard)?;
        }
        if found.is_none() {
            found = adopt(&mut guard, true)?;
        }
        if found.is_none() {
            // A free page that is still in the list of a former owner cannot be a slab; but it can be a block of its own.
            let extent = extent::alloc(self, &mut guard, slot, owner, &thread.intent, 1)?;
            found = extent.map(|page| u64::from(page) * PAGE);
        }
        Ok(found)
    }

    fn alloc_extent<'a>(
        &self,
        cache: &Mutex<Cache>,
        slot: &Slot,
        owner: SlotId,
        thread: impl FnOnce() -> Result<ThreadGuard<'a>>,
        length: u64,
    ) -> Result<Option<u64>> {
        if length > self.limit {
            return Err(self.out_of_memory(length));
        }
        let pages = u32::try_from(length.div_ceil(PAGE)).unwrap_or(u32::MAX);
        let mut guard = lock(cache);
        if let Some(page) = extent::alloc_kept(self, &mut guard, slot, owner, pages)? {
            return Ok(Some(u64::from(page) * PAGE));
        }
        if let Some(page) = spare::take(self, slot, owner, pages)? {
            return Ok(Some(u64::from(page) * PAGE));
        }
        let thread = thread()?;
        if pages >= spare::SHORTEST {
            spare::make_place(self, owner, &thread.intent, &mut guard.victim)?;
        }
        let extent =
            |cache: &mut Cache| extent::alloc(self, cache, slot, owner, &thread.intent, pages);
        let mut found = extent(&mut guard)?;
        if found.is_none() && self.trim(&mut guard, slot, owner, &thread.intent)? {
            found = extent(&mut guard)?;
        }
        Ok(found.map(|page| u64::from(page) * PAGE))
    }

    /// Gives back what the process keeps although nothing in it is in use, and what nobody does; true when there was any.
    fn trim(&self, cache: &mut Cache, slot: &Slot, owner: SlotId, intent: &Intent) -> Result<bool> {
        let mut any = extent::trim(self, &mut cache.kept, owner, intent)?;
        any |= spare::trim(self, owner, Some(intent))?;
        for (class, cached) in cache.classes.iter_mut().enumerate() {
            any |= slab::trim(self, cached, slot, owner, intent, class)?;
        }
        Ok(any)
    }

    /// Frees a block; `between` is called when the rest of the work is recovery's in case of a death.
    #[inline]
    pub(crate) fn free<'a>(
        &self,
        cache: &Mutex<Cache>,
        slot: &Slot,
        owner: SlotId,
        thread: impl Fn() -> Result<ThreadRef<'a>>,
        offset: u64,
        between: impl FnOnce(),
    ) -> Result<()> {
        self.free_quietly(cache, slot, owner, &thread, offset, between)?;
        if self.room()?.is_wanted() {
            self.make_room(cache, slot, owner, thread);
        }
        Ok(())
    }

    /// Somebody waits for memory: what this process keeps although nothing is in it goes back first. If that fails, the block is
    /// free all the same, and who waits looks for it.
    #[cold]
    fn make_room<'a>(
        &self,
        cache: &Mutex<Cache>,
        slot: &Slot,
        owner: SlotId,
        thread: impl Fn() -> Result<ThreadRef<'a>>,
    ) {
        if let Ok(thread) = thread() {
            let _ = self.trim(&mut lock(cache), slot, owner, &thread.intent);
        }
        if let Ok(room) = self.room() {
            room.freed();
        }
    }

    /// Where those wait who found no room.
    #[inline]
    pub(crate) fn room(&self) -> Result<&Room> {
        Ok(&self.words()?.room)
    }

    /// Makes everyone look again who waits for memory of the pool: when it was destroyed.
    pub fn wake_waiters(&self) {
        if let Ok(room) = self.room() {
            room.wake_all();
        }
    }

    #[inline]
    fn free_quietly<'a>(
        &self,
        cache: &Mutex<Cache>,
        slot: &Slot,
        owner: SlotId,
        thread: impl FnOnce() -> Result<ThreadRef<'a>>,
        offset: u64,
        between: impl FnOnce(),
    ) -> Result<()> {
        let index = self.page_of(offset)?;
        let word = self.page(index)?.load();
        match word.tag() {
            Tag::Slab if word.owner() == Some(owner.index) => {
                let mut cache = lock(cache);
                let cached = &mut cache.classes[word.class().min(CLASSES - 1)];
                slab::free_own(self, cached, index, word, offset, between)
            }
            Tag::Slab => slab::free(self, &thread()?.intent, index, word, offset, between),
            Tag::Extent if word.owner() == Some(owner.index) => {
                let mut cache = lock(cache);
                extent::free_own(
                    self, &mut cache, slot, owner, thread, index, offset, between,
                )
            }
            Tag::Extent => {
                let thread = thread()?;
                extent::free(
                    self,
                    cache,
                    slot,
                    owner,
                    &thread.intent,
                    index,
                    offset,
                    between,
                )
            }
            _ => Err(self.not_allocated(offset)),
        }
    }

    /// Takes back what other processes keep although nothing in it is in use: when there is no room and no more memory.
    /// True when there was any.
    pub(crate) fn reclaim(&self, owner: SlotId, intent: &Intent) -> Result<bool> {
        extent::reclaim(self, owner, intent)
    }

    /// Gives up all that a living process has in the pool: frees its private blocks, and leaves its slabs to whoever frees
    /// the last block in them. Its threads are out of the pool.
    pub(crate) fn abandon(
        &self,
        cache: &Mutex<Cache>,
        slot: &Slot,
        owner: SlotId,
        intent: &Intent,
    ) -> Result<()> {
        let mut cache = lock(cache);
        extent::trim(self, &mut cache.kept, owner, intent)?;
        *cache = Cache::default();
        extent::abandon(self, slot, owner, intent)?;
        slab::abandon(self, slot, owner, intent)
    }

    pub(crate) fn share(
        &self,
        cache: &Mutex<Cache>,
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
                let _list = lock(cache);
                extent::share(self, slot, index, word, offset)
            }
            _ => Err(self.not_allocated(offset)),
        }
    }

    /// Bytes committed, and not released again.
    fn committed_memory(&self) -> Result<u64> {
        let released = self.label_words()?.released.load(Ordering::Relaxed);
        Ok(self.committed().saturating_sub(released))
    }

    /// Pages from the first one to the highest that was ever in use.
    fn top(&self) -> Result<u32> {
        let top = self.words()?.top.load(Ordering::Relaxed);
        Ok(u32::try_from(top).map_or(u32::MAX, |top| top.min(self.committed_pages())))
    }

    /// Pages up to this one are about to be used.
    pub(crate) fn raise_top(&self, top: u32) -> Result<()> {
        let word = &self.words()?.top;
        if word.load(Ordering::Relaxed) < u64::from(top) {
            word.fetch_max(top.into(), Ordering::Relaxed);
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn page(&self, index: u32) -> Result<&page::Word> {
        #[cfg(all(test, not(loom)))]
        tests::LOOKS.set(tests::LOOKS.get() + 1);
        self.meta.view(PAGES + u64::from(index) * 8)
    }

    #[inline]
    pub(crate) fn page_meta(&self, index: u32) -> Result<&PageMeta> {
        self.meta
            .view(self.tables.records + u64::from(index) * size_of::<PageMeta>() as u64)
    }

    /// The bits of a page that is a slab.
    #[inline]
    pub(crate) fn bitmaps(&self, index: u32) -> Result<&Bitmaps> {
        self.meta
            .view(self.tables.bitmaps + u64::from(index) * size_of::<Bitmaps>() as u64)
    }

    #[inline]
    pub(crate) fn stamps(&self, index: u32) -> Result<&Stamps> {
        self.meta
            .view(self.tables.stamps + u64::from(index) * size_of::<Stamps>() as u64)
    }

    pub(crate) fn committed_pages(&self) -> u32 {
        u32::try_from(self.committed() / PAGE).unwrap_or(u32::MAX)
    }

    pub(crate) fn hint(&self) -> Result<&AtomicU64> {
        Ok(&self.words()?.hint)
    }

    /// The table of spare extents.
    #[inline]
    fn spares(&self) -> Result<&[AtomicU64; spare::SPARES]> {
        Ok(&self.words()?.spares)
    }

    /// Where a slab of a class may be found whose owner is gone.
    pub(crate) fn orphan_hint(&self, class: usize) -> Result<&AtomicU32> {
        Ok(&self.words()?.orphans[class % 16])
    }

    /// A page has become free.
    pub(crate) fn lower_hint(&self, page: u32) -> Result<()> {
        self.hint()?.fetch_min(page.into(), Ordering::Relaxed);
        Ok(())
    }

    #[inline]
    pub(crate) fn page_of(&self, offset: u64) -> Result<u32> {
        let index = u32::try_from(offset / PAGE)
            .ok()
            .filter(|_| offset < self.committed());
        index.ok_or_else(|| self.not_allocated(offset))
    }

    #[cold]
    pub(crate) fn not_allocated(&self, offset: u64) -> Error {
        Error::NotAllocated {
            pool: self.number(),
            offset,
        }
    }

    #[inline]
    fn words(&self) -> Result<&PoolWords> {
        self.meta.view(WORDS)
    }
}

fn limit_of(options: &PoolOptions) -> u64 {
    options.limit.max(CHUNK).next_multiple_of(CHUNK)
}

/// Where the tables behind the page words start in the metadata, and where it ends. Each is on pages of memory of its own, so
/// that those which only slabs need cost nothing where there is none.
#[derive(Clone, Copy, Debug)]
struct Tables {
    records: u64,
    bitmaps: u64,
    stamps: u64,
    end: u64,
}

impl Tables {
    const fn of(limit: u64) -> Self {
        let pages = limit / PAGE;
        let records = (PAGES + pages * 8).next_multiple_of(64);
        let bitmaps = (records + pages * size_of::<PageMeta>() as u64).next_multiple_of(4096);
        let stamps = (bitmaps + pages * size_of::<Bitmaps>() as u64).next_multiple_of(4096);
        Self {
            records,
            bitmaps,
            stamps,
            end: stamps + pages * size_of::<Stamps>() as u64,
        }
    }
}

/// Notes in the slot that an extent is about to be kept, or to be taken from the spare ones.
#[inline]
fn keep(pool: &Pool, slot: &Slot, place: usize, page: u32) {
    slot.kept[pool.number() as usize % slot.kept.len()][place % KEPT]
        .store(page, Ordering::Release);
}

// A thread that panicked left the cache consistent: it holds no more than where to look first.
#[inline]
pub(crate) fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread record for freeing: one leased for it, or the caller's.
pub(crate) enum ThreadRef<'a> {
    Leased(ThreadGuard<'a>),
    Callers(&'a ThreadGuard<'a>),
}

impl<'a> std::ops::Deref for ThreadRef<'a> {
    type Target = ThreadGuard<'a>;

    fn deref(&self) -> &ThreadGuard<'a> {
        match self {
            Self::Leased(guard) => guard,
            Self::Callers(guard) => guard,
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod backing_tests;
#[cfg(test)]
#[cfg(not(loom))]
mod death_tests;
#[cfg(test)]
#[cfg(not(loom))]
mod spare_tests;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
