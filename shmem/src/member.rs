//! An attached process: its slot, its threads, what it refers to, and what it allocates.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use dragon_protocol::{ObjectId, ObjectKind, SlotId};
use memmap2::MmapMut;
use rustix::mm::Advice;

use crate::control::{Control, MAX_HELD, MAX_THREADS};
use crate::error::{Error, Result, io, system};
use crate::held::State;
use crate::object::ObjectEntry;
use crate::pool::tag::PoolTag;
use crate::pool::{Block, Cache, Pool, ThreadRef};
use crate::sync::Ordering;
use crate::thread::ThreadRecord;

mod pools;

pub use pools::Pin;

/// What a member needs of others.
pub trait Hooks: Send + Sync {
    /// Asks the daemon to commit memory so that `bytes` more can be allocated from a pool. Only the daemon commits.
    ///
    /// # Errors
    /// When pool or memory limit leave no room.
    fn commit(&self, pool: u32, bytes: u64) -> Result<()>;

    /// An object that an agent watches has changed.
    fn notify(&self, object: ObjectId);

    /// Maps the pool with this tag; the daemon passes its regions. Also the pool's object.
    ///
    /// # Errors
    /// When there is no such pool (any more).
    fn pool(&self, tag: PoolTag) -> Result<(Pool, ObjectId)> {
        Err(Error::NoSuchPool(tag))
    }

    /// The pool that has a number now: for recovery, by the daemon alone.
    fn numbered_pool(&self, _number: u32) -> Option<Pool> {
        None
    }

    /// This process has given its reference to a pool back, and only the daemon's own is left.
    fn pool_released(&self, _object: ObjectId) {}
}

/// An attached process, or the daemon itself.
pub struct Member {
    control: Control,
    pool: Pool,
    slot: SlotId,
    hooks: Box<dyn Hooks>,
    held: Mutex<Registry>,
    cache: Mutex<Cache>,
    /// The pools beside the default one that this process has mapped, by number.
    pools: RwLock<Vec<Option<Arc<pools::Mapped>>>>,
    fork: ForkMark,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("slot", &self.slot)
            .field("node", &self.control.node())
            .finish_non_exhaustive()
    }
}

/// What the process refers to: how many handles it has, and where that stands in the held table.
#[derive(Debug, Default)]
struct Registry {
    objects: HashMap<ObjectId, (u32, u32)>,
    free: Vec<u32>,
    used: u32,
}

impl Member {
    /// A member with the slot that the daemon gave to this process.
    ///
    /// # Errors
    /// When the kernel refuses memory.
    pub fn new(
        control: Control,
        pool: Pool,
        slot: SlotId,
        hooks: Box<dyn Hooks>,
    ) -> Result<Arc<Self>> {
        let fork = ForkMark::new()?;
        Ok(Arc::new(Self {
            control,
            pool,
            slot,
            hooks,
            held: Mutex::default(),
            cache: Mutex::default(),
            pools: RwLock::default(),
            fork,
        }))
    }

    /// The node's control region.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The default pool.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The process's slot.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// What others do for this member.
    #[must_use]
    pub fn hooks(&self) -> &dyn Hooks {
        &*self.hooks
    }

    /// Whether this process is a child that inherited the member: it has no slot of its own.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.fork.is_forked()
    }

    /// A record for an operation of this thread; normally the one that the thread used last.
    ///
    /// # Errors
    /// When too many threads of the process are inside operations at once.
    #[inline]
    pub fn thread(&self) -> Result<ThreadGuard<'_>> {
        thread_local!(static LAST: Cell<u32> = const { Cell::new(u32::MAX) });
        let records = self.control.threads(self.slot.index)?;
        let claim = |index: u32| {
            let record = records.get(index as usize)?;
            let free = record
                .busy
                .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
            // Lazily: a guard that is made and dropped would give up the record of whoever has it.
            free.then(|| ThreadGuard { record, index })
        };
        // The hint may be of another member of this process: only records that this one has used are taken by it.
        let last = LAST.get();
        if records
            .get(last as usize)
            .is_some_and(ThreadRecord::is_touched)
            && let Some(guard) = claim(last)
        {
            return Ok(guard);
        }
        let guard = (0..MAX_THREADS).find_map(|index| {
            records
                .get(index as usize)?
                .touched
                .store(1, Ordering::Release);
            claim(index)
        });
        let guard = guard.ok_or(Error::TableFull {
            table: "records for threads of one process",
            size: MAX_THREADS,
        })?;
        LAST.set(guard.index);
        Ok(guard)
    }

    /// Allocates a block in the default pool. It is private to this process until [`Member::share`].
    ///
    /// # Errors
    /// When the pool or the job's memory limit leaves no room.
    pub fn alloc(&self, length: u64) -> Result<Block> {
        // More than this many rounds can only be lost to others who take what was committed for us.
        const ROUNDS: u32 = 64;
        for _ in 0..ROUNDS {
            if let Some(block) = self.try_alloc(length)? {
                return Ok(block);
            }
            self.hooks.commit(self.pool.number(), length)?;
        }
        Err(self.pool.out_of_memory(length))
    }

    /// As [`Member::alloc`], from the memory that is committed already; `None` when that has no room.
    ///
    /// # Errors
    /// When the block is larger than the pool's limit, or shared memory is corrupt.
    #[inline]
    pub fn try_alloc(&self, length: u64) -> Result<Option<Block>> {
        self.pool.alloc(
            &self.cache,
            self.slot_entry()?,
            self.slot,
            || self.thread(),
            length,
        )
    }

    /// Frees a block: one's own private one, or any shared one.
    ///
    /// # Errors
    /// When the address is not that of an allocated block.
    #[inline]
    pub fn free(&self, offset: u64) -> Result<()> {
        self.free_then(offset, || {})
    }

    /// As [`Member::free`], inside an operation: the intent is written over.
    ///
    /// # Errors
    /// As [`Member::free`].
    pub fn free_with(&self, thread: &ThreadGuard<'_>, offset: u64) -> Result<()> {
        if PoolTag::of(offset) != PoolTag::DEFAULT {
            return self.free_elsewhere(offset, Some(thread), || {});
        }
        let thread = || Ok(ThreadRef::Callers(thread));
        self.pool.free(
            &self.cache,
            self.slot_entry()?,
            self.slot,
            thread,
            offset,
            || {},
        )
    }

    /// Frees a block that [`Member::hold_block`] recorded at `place`, and forgets it there. If the process dies anywhere in
    /// here, recovery frees the block exactly once; with [`Member::release_block`] and [`Member::free`] one after the other
    /// it is lost when the process dies between them.
    ///
    /// # Errors
    /// When the address is not that of an allocated block; the place is free then too.
    pub fn free_held(&self, place: u32, offset: u64) -> Result<()> {
        let entry = self
            .control
            .held(self.slot.index)?
            .get(place as usize)
            .ok_or(Error::Corrupt {
                what: "place in the held table",
                value: place.into(),
            })?;
        let freed = self.free_then(offset, || entry.clear());
        entry.clear();
        self.held().free.push(place);
        freed
    }

    #[inline]
    fn free_then(&self, offset: u64, between: impl FnOnce()) -> Result<()> {
        if PoolTag::of(offset) != PoolTag::DEFAULT {
            return self.free_elsewhere(offset, None, between);
        }
        let thread = || self.thread().map(ThreadRef::Leased);
        self.pool.free(
            &self.cache,
            self.slot_entry()?,
            self.slot,
            thread,
            offset,
            between,
        )
    }

    /// Makes a private block everybody's: it outlives this process until somebody frees it.
    ///
    /// # Errors
    /// When the address is not that of a private block of this process.
    #[inline]
    pub fn share(&self, offset: u64) -> Result<()> {
        if PoolTag::of(offset) != PoolTag::DEFAULT {
            return self.share_elsewhere(offset);
        }
        self.pool
            .share(&self.cache, self.slot_entry()?, self.slot, offset)
    }

    /// Creates an object of this node. `init` fills its entry; it becomes visible when that succeeds.
    ///
    /// # Errors
    /// When a table is full, or `init` fails.
    pub fn create(
        &self,
        kind: ObjectKind,
        init: impl FnOnce(&ObjectEntry, ObjectId) -> Result<()>,
    ) -> Result<ObjectId> {
        let place = self.held().place()?;
        let table = self.control.held(self.slot.index)?;
        let entry = &table[place as usize];
        let made = self
            .control
            .claim_object(kind, self.slot, |id| entry.set(id, State::Taking))
            .and_then(|id| {
                let made = self
                    .control
                    .object(id.index)
                    .and_then(|object| init(object, id))
                    .and_then(|()| self.control.publish(id, self.slot));
                if made.is_err() {
                    self.control.unclaim_object(id, self.slot)?;
                }
                made.map(|()| id)
            });
        match made {
            Ok(id) => {
                entry.set(id, State::Held);
                self.held().objects.insert(id, (1, place));
                Ok(id)
            }
            Err(error) => {
                entry.clear();
                self.held().free.push(place);
                Err(error)
            }
        }
    }

    /// Counts one more handle of this process on an object. For the first one `take` gets the reference; for a further one
    /// it is called with `false`, so that it can drop one that was in transit.
    ///
    /// # Errors
    /// When the held table is full, or `take` fails.
    pub fn hold<E: From<Error>>(
        &self,
        id: ObjectId,
        take: impl FnOnce(bool) -> Result<(), E>,
        give: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut held = self.held();
        if let Some((count, _)) = held.objects.get_mut(&id) {
            *count += 1;
            drop(held);
            return take(false).or_else(|error| self.unhold(id, give).and(Err(error)));
        }
        let place = held.place()?;
        drop(held);
        let entry = &self.control.held(self.slot.index)?[place as usize];
        entry.set(id, State::Taking);
        let taken = take(true);
        let mut held = self.held();
        if let Err(error) = taken {
            entry.clear();
            held.free.push(place);
            return Err(error);
        }
        if let Some((count, _)) = held.objects.get_mut(&id) {
            // Another thread was quicker: one reference is enough.
            *count += 1;
            entry.clear();
            held.free.push(place);
            drop(held);
            return give();
        }
        entry.set(id, State::Held);
        held.objects.insert(id, (1, place));
        Ok(())
    }

    /// Counts one handle less; `give` gives the reference back after the last one.
    ///
    /// # Errors
    /// What `give` fails with.
    pub fn unhold<E: From<Error>>(
        &self,
        id: ObjectId,
        give: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut held = self.held();
        let Some((count, place)) = held.objects.get_mut(&id) else {
            return Ok(());
        };
        *count -= 1;
        if *count > 0 {
            return Ok(());
        }
        let place = *place;
        held.objects.remove(&id);
        drop(held);
        let entry = &self.control.held(self.slot.index)?[place as usize];
        entry.set(id, State::Giving);
        let given = give();
        entry.clear();
        self.held().free.push(place);
        given
    }

    /// Takes a reference to an object of this node for one more handle.
    ///
    /// # Errors
    /// When there is no such object (any more).
    pub fn attach(&self, id: ObjectId, adopt: bool) -> Result<()> {
        let take = |first: bool| match (first, adopt) {
            (true, _) => self.control.take_reference(id, adopt),
            (false, true) => self.control.drop_transit(id).map(drop),
            (false, false) => Ok(()),
        };
        self.hold(id, take, || self.give_back(id))
    }

    /// Gives one handle on an object of this node back.
    ///
    /// # Errors
    /// When shared memory is corrupt.
    pub fn detach(&self, id: ObjectId) -> Result<()> {
        self.unhold(id, || self.give_back(id))
    }

    /// Gives a reference back, and frees the object's block with the last one.
    ///
    /// # Errors
    /// When there is no such object (any more).
    pub fn give_back(&self, id: ObjectId) -> Result<()> {
        match self.control.give_reference(id)? {
            Some(block) if block != 0 => self.free(block),
            _ => Ok(()),
        }
    }

    /// Drops a reference that is in transit, and frees the object's block if it was the last one.
    ///
    /// # Errors
    /// When there is no such object (any more).
    pub fn drop_transit(&self, id: ObjectId) -> Result<()> {
        match self.control.drop_transit(id)? {
            Some(block) if block != 0 => self.free(block),
            _ => Ok(()),
        }
    }

    /// Records a shared block that this process now reads and will free; recovery frees it otherwise.
    ///
    /// # Errors
    /// When the held table is full.
    pub fn hold_block(&self, offset: u64) -> Result<u32> {
        let place = self.held().place()?;
        self.control.held(self.slot.index)?[place as usize].set_block(offset);
        Ok(place)
    }

    /// Forgets a block that [`Member::hold_block`] recorded at `place`.
    pub fn release_block(&self, place: u32) {
        if let Ok(table) = self.control.held(self.slot.index)
            && let Some(entry) = table.get(place as usize)
        {
            entry.clear();
            self.held().free.push(place);
        }
    }

    #[inline]
    fn slot_entry(&self) -> Result<&crate::slot::Slot> {
        self.control.slot(self.slot.index)
    }

    // A thread that panicked inside the registry left it consistent: each change is a single insertion or removal.
    fn held(&self) -> MutexGuard<'_, Registry> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn place(&mut self) -> Result<u32> {
        if let Some(place) = self.free.pop() {
            return Ok(place);
        }
        if self.used == MAX_HELD {
            return Err(Error::TableFull {
                table: "places for objects that one process holds",
                size: MAX_HELD,
            });
        }
        self.used += 1;
        Ok(self.used - 1)
    }
}

/// A thread record in use.
#[derive(Debug)]
pub struct ThreadGuard<'a> {
    record: &'a ThreadRecord,
    index: u32,
}

impl ThreadGuard<'_> {
    /// Its number within the slot.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Deref for ThreadGuard<'_> {
    type Target = ThreadRecord;

    #[inline]
    fn deref(&self) -> &ThreadRecord {
        self.record
    }
}

impl Drop for ThreadGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.record.intent.end();
        self.record.busy.store(0, Ordering::Release);
    }
}

/// A byte that the kernel clears in a forked child. Under Miri nothing forks.
struct ForkMark(Option<MmapMut>);

impl ForkMark {
    fn new() -> Result<Self> {
        if cfg!(miri) {
            return Ok(Self(None));
        }
        let mut page = MmapMut::map_anon(4096).map_err(io("mmap"))?;
        // SAFETY: the range is exactly the mapping that `page` owns; the advice changes nothing in this process.
        unsafe {
            rustix::mm::madvise(
                page.as_mut_ptr().cast(),
                page.len(),
                Advice::LinuxWipeOnFork,
            )
        }
        .map_err(system("madvise(MADV_WIPEONFORK)"))?;
        page[0] = 1;
        Ok(Self(Some(page)))
    }

    #[inline]
    fn is_forked(&self) -> bool {
        // SAFETY: the page is mapped as long as self lives. Volatile, since the kernel changes it behind the compiler.
        let wiped = |page: &MmapMut| unsafe { page.as_ptr().read_volatile() == 0 };
        self.0.as_ref().is_some_and(wiped)
    }
}
