//! Blocks by their address, in the default pool and in any other of the node.
//!
//! The default pool is always there. Another one is mapped when the process first meets one of its blocks, and stays mapped.
//! While the process uses it (a handle, a message in it, an operation on a block), it has one reference to the pool's
//! object, in its held table; so the pool's number is given to no other pool meanwhile. When the last use ends, the process
//! first gives up what is private to it in the pool, then the reference; the mapping alone keeps nothing alive.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dragon_protocol::{ObjectId, ObjectKind, PoolOptions};

use super::Member;
use crate::error::{Error, Result};
use crate::object::{ObjectEntry, State};
use crate::pool::table;
use crate::pool::tag::PoolTag;
use crate::pool::{Block, Cache, Pool, ThreadRef};
use crate::recover::Pools;
use crate::sync::{AtomicU32, Ordering};

/// A pool beside the default one, as a process has it mapped.
#[derive(Debug)]
pub(crate) struct Mapped {
    pool: Pool,
    object: ObjectId,
    cache: Mutex<Cache>,
    /// Uses by this process; it has a reference to the object while there are any.
    users: AtomicU32,
    /// Held while the reference is taken or given back. True while there is one: also after a last use that could not be
    /// ended, since no thread record was free; then the next use goes on with it, and with what is private there.
    referred: Mutex<bool>,
}

/// Keeps a pool in place while one of its blocks is used; given back by [`Member::unpin`].
#[derive(Debug)]
#[must_use = "a pin is given back by `unpin`"]
pub struct Pin(Option<Arc<Mapped>>);

impl Member {
    /// Allocates a block in a pool that this process has attached to, as [`Member::alloc`] does in the default one.
    ///
    /// # Errors
    /// When the pool or the job's memory limit leaves no room, the pool was destroyed, or this process has no handle on it.
    pub fn alloc_in(&self, pool: PoolTag, length: u64) -> Result<Block> {
        if pool == PoolTag::DEFAULT {
            return self.alloc(length);
        }
        let mapped = self.pin_pool(pool)?;
        // With this use alone the block would be given up at its end.
        let allocated = if mapped.users.load(Ordering::Relaxed) > 1 {
            self.alloc_mapped(&mapped, length)
        } else {
            Err(Error::NoSuchPool(pool))
        };
        self.unpin_pool(&mapped);
        allocated
    }

    /// As [`Member::alloc_in`], from the memory that is committed already; `None` when that has no room.
    ///
    /// # Errors
    /// As [`Member::alloc_in`].
    pub fn try_alloc_in(&self, pool: PoolTag, length: u64) -> Result<Option<Block>> {
        if pool == PoolTag::DEFAULT {
            return self.try_alloc(length);
        }
        let mapped = self.pin_pool(pool)?;
        let allocated = if mapped.users.load(Ordering::Relaxed) > 1 {
            self.try_alloc_mapped(&mapped, length)
        } else {
            Err(Error::NoSuchPool(pool))
        };
        self.unpin_pool(&mapped);
        allocated
    }

    fn alloc_mapped(&self, mapped: &Mapped, length: u64) -> Result<Block> {
        // As in `alloc`.
        const ROUNDS: u32 = 64;
        for _ in 0..ROUNDS {
            if let Some(block) = self.try_alloc_mapped(mapped, length)? {
                return Ok(block);
            }
            self.more(&mapped.pool, length)?;
        }
        Err(mapped.pool.out_of_memory(length))
    }

    fn try_alloc_mapped(&self, mapped: &Mapped, length: u64) -> Result<Option<Block>> {
        let (state, _, generation, _) = self.control.object(mapped.object.index)?.read();
        if state != State::Alive || generation != mapped.object.generation {
            return Err(Error::Destroyed(mapped.object));
        }
        let slot = &self.own;
        let allocated =
            mapped
                .pool
                .alloc(&mapped.cache, slot, self.slot, || self.thread(), length)?;
        Ok(allocated.map(|offset| Block {
            offset: mapped.pool.tag().address(offset),
            length,
        }))
    }

    /// Checks that `length` bytes at an address lie inside one allocated block.
    ///
    /// # Errors
    /// When they do not, or there is no such pool (any more).
    #[inline]
    pub fn check(&self, address: u64, length: u64) -> Result<()> {
        self.with_pool(address, |pool, offset| pool.check(offset, length))
    }

    /// Where `length` bytes at an address are mapped, after [`Member::check`]. Others may write them at any time: copy, never
    /// refer. Of a block outside the default pool this stays true only while the pool is in use: see [`Member::pin`].
    ///
    /// # Errors
    /// When they do not lie inside one allocated block, or there is no such pool (any more).
    #[inline]
    pub fn bytes(&self, address: u64, length: u64) -> Result<NonNull<u8>> {
        self.with_pool(address, |pool, offset| {
            pool.check(offset, length)?;
            pool.data().bytes(offset, length)
        })
    }

    /// Copies bytes into a block.
    ///
    /// # Errors
    /// When they do not fit, or there is no such pool (any more).
    pub fn write(&self, address: u64, at: u64, bytes: &[u8]) -> Result<()> {
        self.with_pool(address, |pool, offset| pool.write(offset, at, bytes))
    }

    /// Copies bytes out of a block.
    ///
    /// # Errors
    /// When the block is shorter, or there is no such pool (any more).
    pub fn read(&self, address: u64, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.with_pool(address, |pool, offset| pool.read(offset, at, bytes))
    }

    /// Room of the allocated block at an address.
    ///
    /// # Errors
    /// When there is none, or there is no such pool (any more).
    pub fn block_room(&self, address: u64) -> Result<u64> {
        self.with_pool(address, Pool::block_room)
    }

    /// Whether the allocated block at an address has been shared.
    ///
    /// # Errors
    /// When there is none, or there is no such pool (any more).
    pub fn is_shared(&self, address: u64) -> Result<bool> {
        self.with_pool(address, Pool::is_shared)
    }

    /// Calls `act` with the pool in which an address lies, and the offset there. The pool stays in place meanwhile.
    ///
    /// # Errors
    /// When there is no such pool (any more), and what `act` fails with.
    #[inline]
    pub fn with_pool<T>(
        &self,
        address: u64,
        act: impl FnOnce(&Pool, u64) -> Result<T>,
    ) -> Result<T> {
        let tag = PoolTag::of(address);
        if tag == PoolTag::DEFAULT {
            return act(&self.pool, address);
        }
        let mapped = self.pin_pool(tag)?;
        let result = act(&mapped.pool, PoolTag::offset(address));
        self.unpin_pool(&mapped);
        result
    }

    /// As [`Member::with_pool`], with what the process remembers of the pool.
    pub(super) fn with_cache<T>(
        &self,
        address: u64,
        act: impl FnOnce(&Pool, &Mutex<Cache>, u64) -> Result<T>,
    ) -> Result<T> {
        let tag = PoolTag::of(address);
        if tag == PoolTag::DEFAULT {
            return act(&self.pool, &self.cache, address);
        }
        let mapped = self.pin_pool(tag)?;
        let result = act(&mapped.pool, &mapped.cache, PoolTag::offset(address));
        self.unpin_pool(&mapped);
        result
    }

    /// Keeps the pool in which an address lies in place until [`Member::unpin`].
    ///
    /// # Errors
    /// When there is no such pool (any more).
    #[inline]
    pub fn pin(&self, address: u64) -> Result<Pin> {
        let tag = PoolTag::of(address);
        if tag == PoolTag::DEFAULT {
            return Ok(Pin(None));
        }
        self.pin_pool(tag).map(|mapped| Pin(Some(mapped)))
    }

    /// Ends what [`Member::pin`] began.
    #[inline]
    pub fn unpin(&self, pin: Pin) {
        if let Some(mapped) = pin.0 {
            self.unpin_pool(&mapped);
        }
    }

    #[cold]
    pub(super) fn free_elsewhere(
        &self,
        address: u64,
        thread: Option<&super::ThreadGuard<'_>>,
        between: impl FnOnce(),
    ) -> Result<()> {
        let mapped = self.pin_pool(PoolTag::of(address))?;
        let (pool, cache) = (&mapped.pool, &mapped.cache);
        let offset = PoolTag::offset(address);
        let freed = match thread {
            None => self.free_in(pool, cache, offset, between),
            Some(thread) => {
                let thread = || Ok(ThreadRef::Callers(thread));
                pool.free(cache, &self.own, self.slot, thread, offset, between)
            }
        };
        self.unpin_pool(&mapped);
        freed
    }

    #[cold]
    pub(super) fn share_elsewhere(&self, address: u64) -> Result<()> {
        let mapped = self.pin_pool(PoolTag::of(address))?;
        let offset = PoolTag::offset(address);
        let shared = mapped
            .pool
            .share(&mapped.cache, &self.own, self.slot, offset);
        self.unpin_pool(&mapped);
        shared
    }

    /// One more use of a pool beside the default one, which is mapped for the first one.
    fn pin_pool(&self, tag: PoolTag) -> Result<Arc<Mapped>> {
        let mapped = match self.mapped(tag) {
            Some(mapped) => mapped,
            None => self.map_pool(tag)?,
        };
        match self.pin_mapped(&mapped) {
            // The pool is gone; so is the mapping, with the last who uses it.
            Err(Error::NoSuchObject(_)) => {
                self.forget_mapped(&mapped);
                Err(Error::NoSuchPool(tag))
            }
            pinned => pinned.map(|()| mapped),
        }
    }

    fn forget_mapped(&self, mapped: &Arc<Mapped>) {
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        let is_it = |known: &mut Arc<Mapped>| Arc::ptr_eq(known, mapped);
        if let Some(place) = pools.get_mut(mapped.pool.number() as usize) {
            place.take_if(is_it);
        }
    }

    fn pin_mapped(&self, mapped: &Mapped) -> Result<()> {
        if more(&mapped.users) {
            return Ok(());
        }
        let mut referred = mapped.lock();
        if more(&mapped.users) {
            return Ok(());
        }
        if !*referred {
            let slot = &self.own;
            self.attach(mapped.object, false)?;
            let number = mapped.pool.number() as usize;
            // The lists are empty, whoever had the slot before; and recovery looks at them from now on.
            slot.slabs[number].store(0, Ordering::Relaxed);
            slot.extents[number].store(0, Ordering::Relaxed);
            slot.pools.fetch_or(1 << number, Ordering::AcqRel);
            *referred = true;
        }
        mapped.users.store(1, Ordering::Release);
        Ok(())
    }

    fn mapped(&self, tag: PoolTag) -> Option<Arc<Mapped>> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let found = pools.get(tag.number() as usize)?.as_ref();
        found.filter(|mapped| mapped.pool.tag() == tag).cloned()
    }

    fn map_pool(&self, tag: PoolTag) -> Result<Arc<Mapped>> {
        let tag = PoolTag::from_u16(tag.to_u16()).ok_or(Error::NoSuchPool(tag))?;
        let (pool, object) = self.hooks.pool(tag)?;
        if pool.tag() != tag {
            return Err(Error::NoSuchPool(tag));
        }
        Ok(self.keep_mapped(pool, object))
    }

    /// Notes a pool that was mapped. Another thread may have been quicker.
    fn keep_mapped(&self, pool: Pool, object: ObjectId) -> Arc<Mapped> {
        let number = pool.number() as usize;
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        if pools.len() <= number {
            pools.resize_with(number + 1, || None);
        }
        match &pools[number] {
            Some(known) if known.pool.tag() == pool.tag() => Arc::clone(known),
            _ => {
                let mapped = Arc::new(Mapped {
                    pool,
                    object,
                    cache: Mutex::default(),
                    users: AtomicU32::new(0),
                    referred: Mutex::default(),
                });
                pools[number] = Some(Arc::clone(&mapped));
                mapped
            }
        }
    }

    fn unpin_pool(&self, mapped: &Mapped) {
        let fewer = |users: u32| (users > 1).then(|| users - 1);
        let counted = |_| ();
        if mapped
            .users
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, fewer)
            .map(counted)
            .is_ok()
        {
            return;
        }
        let left = {
            let mut referred = mapped.lock();
            // It fails when no thread record is free: then everything stays as it is for the next use, or for recovery. (Or on
            // memory that was scribbled over.)
            mapped.users.fetch_sub(1, Ordering::AcqRel) == 1
                && self.leave_pool(mapped, &mut referred).is_ok()
        };
        if left {
            self.tell_of_pool(mapped.object);
        }
    }

    /// The last use of a pool ends.
    fn leave_pool(&self, mapped: &Mapped, referred: &mut bool) -> Result<()> {
        let slot = &self.own;
        let thread = self.thread()?;
        mapped
            .pool
            .abandon(&mapped.cache, slot, self.slot, &thread.intent)?;
        drop(thread);
        slot.pools
            .fetch_and(!(1 << mapped.pool.number()), Ordering::AcqRel);
        *referred = false;
        self.detach(mapped.object)
    }

    /// One reference to a pool is the daemon's: it is told when no other is left.
    pub(super) fn tell_of_pool(&self, id: ObjectId) {
        if id.kind != ObjectKind::Pool || id.node != self.control.node() {
            return;
        }
        if let Ok(entry) = self.control.object(id.index)
            && is_left_alone(entry)
        {
            self.hooks.pool_released(id);
        }
    }

    /// Asks the daemon for a new pool, of which this process has the first use.
    ///
    /// # Errors
    /// When an option is out of its range, the node has as many pools as it can, or there is no memory.
    pub fn create_pool(&self, options: &PoolOptions) -> Result<(PoolTag, ObjectId, Pin)> {
        options.check()?;
        let (pool, object) = self.hooks.create_pool(options, self.slot)?;
        let mapped = self.keep_mapped(pool, object);
        self.pin_mapped(&mapped)?;
        if options.pre_touch {
            // Later accesses of this process find the pages in place. It has done its own part if that is refused.
            let _ = mapped.pool.data().populate(0, mapped.pool.limit());
        }
        Ok((mapped.pool.tag(), object, Pin(Some(mapped))))
    }

    /// One use of the pool that is this object. The caller has a reference.
    ///
    /// # Errors
    /// When it was destroyed, or is no pool.
    pub fn pin_object(&self, id: ObjectId) -> Result<(PoolTag, Pin)> {
        let entry = self.control.entry(id)?;
        let corrupt = || Error::Corrupt {
            what: "tag of a pool",
            value: id.index.into(),
        };
        let tag = table::tag_of(entry).ok_or_else(corrupt)?;
        if entry.read().0 != State::Alive {
            return Err(Error::Destroyed(id));
        }
        let mapped = self.pin_pool(tag)?;
        if mapped.object != id {
            self.unpin_pool(&mapped);
            return Err(corrupt());
        }
        Ok((tag, Pin(Some(mapped))))
    }

    /// Notes a pool of which this member is the owner.
    pub(crate) fn keep_pool(&self, pool: &Pool, object: ObjectId) {
        self.keep_mapped(pool.clone(), object);
    }

    /// The owner gives up its reference to a pool, unless others have one or it uses the pool itself; true when nobody has
    /// one any more.
    pub(crate) fn give_pool_up(&self, tag: PoolTag, id: ObjectId, destroyed: bool) -> bool {
        let Some(mapped) = self.mapped(tag) else {
            return false;
        };
        let referred = mapped.lock();
        let alone =
            |entry: &ObjectEntry| is_left_alone(entry) && (destroyed || entry.in_transit() == 0);
        let used = *referred || mapped.users.load(Ordering::Acquire) > 0;
        if used || !self.control.entry(id).is_ok_and(alone) {
            return false;
        }
        // It fails only on memory that was scribbled over.
        let _ = self.detach(id);
        if self.control.entry(id).is_ok() && self.attach(id, false).is_ok() {
            // Somebody was quicker.
            return false;
        }
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        pools[tag.number() as usize] = None;
        true
    }
}

/// Whether the daemon alone refers to a pool, descriptors on their way apart.
fn is_left_alone(entry: &ObjectEntry) -> bool {
    entry.references().saturating_sub(entry.in_transit()) <= 1
}

impl Mapped {
    // Nothing is left half done by a panic while the lock is held: what it guards is counted last.
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.referred.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one more user unless there is none.
fn more(users: &AtomicU32) -> bool {
    let more = |users: u32| (users > 0).then(|| users + 1);
    users
        .fetch_update(Ordering::AcqRel, Ordering::Relaxed, more)
        .is_ok()
}

impl Pools for Member {
    /// The default pool, one that this member has mapped, or one that it can map.
    fn numbered(&self, number: u32) -> Option<Pool> {
        if number == self.pool.number() {
            return Some(self.pool.clone());
        }
        self.hooks.numbered_pool(number)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
