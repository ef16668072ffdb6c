//! An attached process: its slot, its threads, what it refers to, and what it allocates.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use dragon_protocol::{Code, ObjectId, ObjectKind, PoolOptions, SlotId};

use crate::control::{Control, MAX_HELD};
use crate::error::{Error, Result};
use crate::held::State;
use crate::object::ObjectEntry;
use crate::pool::tag::PoolTag;
use crate::pool::{Block, Cache, Pool, ThreadRef};
use crate::reference::{Change, Outcome};
use crate::region::Pinned;
use crate::slot::{Slot, SlotCounters};
use crate::sync::Ordering;
use crate::thread::ThreadRecord;

mod fork;
mod guard;
mod keep;
mod memory;
mod pools;
mod proxy;

pub use fork::ForkMark;
use guard::Turns;
pub use guard::{SpareGuard, ThreadGuard};
use keep::Keeping;
pub use memory::Value;
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

    /// Makes a pool for the process of `slot`; also its object. Only the daemon makes pools.
    ///
    /// # Errors
    /// When an option is out of its range, the node has as many pools as it can, or there is no memory.
    fn create_pool(&self, options: &PoolOptions, slot: SlotId) -> Result<(Pool, ObjectId)> {
        let _ = (options, slot);
        Err(Error::Daemon(
            Code::Unsupported,
            "this process has no daemon that makes pools".to_owned(),
        ))
    }

    /// Gives memory that no pool of the node uses back to the system; returns how many bytes. Only the daemon does that.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn trim(&self) -> Result<u64> {
        Ok(0)
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
    /// The process's slot and its threads' records, checked once.
    own: Pinned<Slot>,
    records: Pinned<[ThreadRecord]>,
    keeping: Keeping,
    hooks: Box<dyn Hooks>,
    held: Mutex<Registry>,
    /// For the daemon: what the processes of other nodes hold, by their proxy slots.
    proxies: Mutex<HashMap<u32, Registry>>,
    cache: Mutex<Cache>,
    turns: Turns,
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
    /// For proxies: each reference at a place of its own.
    further: HashMap<ObjectId, Vec<u32>>,
    /// For proxies: blocks, by their addresses.
    blocks: HashMap<u64, u32>,
    free: Vec<u32>,
    used: u32,
}

impl Member {
    /// Registers this process for the kernel's fences, as the first member does otherwise. Once is enough, and a forked child
    /// inherits it. The call costs nothing while the process has one thread; with a second one the kernel waits for a grace
    /// period of its own, some 10 ms: who starts threads before it is a member calls this first.
    #[cfg(not(loom))]
    pub fn prepare() {
        crate::pool::room::barrier::register();
    }

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
        #[cfg(not(loom))]
        Self::prepare();
        Self::meanwhile(control, pool, slot, hooks)
    }

    /// The same while another thread calls [`Member::prepare`]: until that has returned this process fences itself.
    ///
    /// # Errors
    /// As [`Member::new`].
    pub fn meanwhile(
        control: Control,
        pool: Pool,
        slot: SlotId,
        hooks: Box<dyn Hooks>,
    ) -> Result<Arc<Self>> {
        let fork = ForkMark::new()?;
        Ok(Arc::new(Self {
            own: control.pin_slot(slot.index)?,
            records: control.pin_threads(slot.index)?,
            keeping: Keeping::new(),
            control,
            pool,
            slot,
            hooks,
            held: Mutex::default(),
            proxies: Mutex::default(),
            cache: Mutex::default(),
            turns: Turns::default(),
            pools: RwLock::default(),
            fork,
        }))
    }

    /// The node's control region.
    #[inline]
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The default pool.
    #[inline]
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The process's slot.
    #[inline]
    #[must_use]
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// What the process counts.
    #[inline]
    #[must_use]
    pub fn counters(&self) -> &SlotCounters {
        &self.own.counters
    }

    /// What others do for this member.
    #[must_use]
    pub fn hooks(&self) -> &dyn Hooks {
        &*self.hooks
    }

    /// Whether this process is a child that inherited the member: it has no slot of its own.
    #[inline]
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.fork.is_forked()
    }

    /// By which [`Member::is_forked`] is known, also when the member is gone.
    #[must_use]
    pub fn fork_mark(&self) -> ForkMark {
        self.fork
    }

    /// Allocates a block in the default pool. It is private to this process until [`Member::share`].
    ///
    /// # Errors
    /// When the pool or the job's memory limit leaves no room.
    #[inline]
    pub fn alloc(&self, length: u64) -> Result<Block> {
        let at_once = self
            .pool
            .alloc_at_once(&self.cache, &self.own, self.slot, length);
        match at_once {
            Some(offset) => Ok(Block { offset, length }),
            None => self.alloc_slowly(length),
        }
    }

    fn alloc_slowly(&self, length: u64) -> Result<Block> {
        // More than this many rounds can only be lost to others who take what was committed for us.
        const ROUNDS: u32 = 64;
        for _ in 0..ROUNDS {
            if let Some(block) = self.try_alloc(length)? {
                return Ok(block);
            }
            self.more(&self.pool, length)?;
        }
        Err(self.pool.out_of_memory(length))
    }

    /// Makes room in a pool: by more memory, or by what other processes keep without using it.
    fn more(&self, pool: &Pool, length: u64) -> Result<()> {
        let Err(error) = self.hooks.commit(pool.number(), length) else {
            return Ok(());
        };
        let thread = self.thread()?;
        if pool.reclaim(self.slot, &thread.intent)? {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// As [`Member::alloc`], from the memory that is committed already; `None` when that has no room.
    ///
    /// # Errors
    /// When the block is larger than the pool's limit, or shared memory is corrupt.
    #[inline]
    pub fn try_alloc(&self, length: u64) -> Result<Option<Block>> {
        let found = self
            .pool
            .alloc(&self.cache, &self.own, self.slot, || self.thread(), length)?;
        Ok(found.map(|offset| Block { offset, length }))
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
        self.pool
            .free(&self.cache, &self.own, self.slot, thread, offset, || {})
    }

    /// Frees a block that [`Member::hold_block`] recorded at `place`, and forgets it there. If the process dies anywhere in
    /// here, recovery frees the block exactly once.
    ///
    /// # Errors
    /// When the address is not that of an allocated block; the place is free then too. When the block's pool cannot be mapped
    /// for want of a place in the held table; the block is freed when the process ends then.
    pub fn free_held(&self, place: u32, offset: u64) -> Result<()> {
        let entry = self.control.held_entry(self.slot.index, place)?;
        let freed = self.free_then(offset, || entry.clear());
        if matches!(freed, Err(Error::TableFull { .. })) && !entry.is_empty() {
            // The block stays this process's, and recovery frees it.
            return freed;
        }
        entry.clear();
        self.held().free.push(place);
        freed
    }

    /// As [`Member::free`]; `between` is called when recovery would finish the free if this process died: whatever else
    /// names the block may forget it then.
    ///
    /// # Errors
    /// As [`Member::free`]; `between` may not have been called then.
    #[inline]
    pub fn free_then(&self, offset: u64, between: impl FnOnce()) -> Result<()> {
        if PoolTag::of(offset) != PoolTag::DEFAULT {
            return self.free_elsewhere(offset, None, between);
        }
        self.free_in(&self.pool, &self.cache, offset, between)
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
        self.pool.share(&self.cache, &self.own, self.slot, offset)
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
        let place = self.place()?;
        let entry = self.control.held_entry(self.slot.index, place)?;
        let made = self
            .control
            .claim_object(kind, self.slot, |id| {
                entry.set(id, 0, State::Claiming);
            })
            .and_then(|id| {
                let made = self
                    .control
                    .change(self.slot, place, id, Change::Create)
                    .and_then(|_| init(self.control.object(id.index)?, id))
                    .and_then(|()| self.control.publish(id, self.slot));
                if made.is_err() {
                    self.control.unclaim_object(id, self.slot)?;
                }
                made.map(|()| id)
            });
        match made {
            Ok(id) => {
                entry.set(id, 0, State::Held);
                self.held().objects.insert(id, (1, place));
                Ok(id)
            }
            Err(error) => {
                self.forget_place(place);
                Err(error)
            }
        }
    }

    /// Counts one more handle of this process on an object of another node. For the first one `take` gets the reference; for
    /// a further one it is called with `false`, so that it can drop one that was in transit.
    ///
    /// # Errors
    /// When the held table is full, or `take` fails.
    pub fn hold<E: From<Error>>(
        &self,
        id: ObjectId,
        take: impl FnOnce(bool) -> Result<(), E>,
        give: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if self.is_held_once_more(id) {
            return take(false).or_else(|error| self.unhold(id, give).and(Err(error)));
        }
        let place = self.place()?;
        self.control
            .held_entry(self.slot.index, place)?
            .set_remote(id);
        if let Err(error) = take(true) {
            self.forget_place(place);
            return Err(error);
        }
        let mut held = self.held();
        if let Some((count, _)) = held.objects.get_mut(&id) {
            // Another thread was quicker: one reference is enough.
            *count += 1;
            drop(held);
            self.forget_place(place);
            return give();
        }
        held.objects.insert(id, (1, place));
        Ok(())
    }

    /// Counts one handle less on an object of another node; `give` gives the reference back after the last one.
    ///
    /// # Errors
    /// What `give` fails with.
    pub fn unhold<E: From<Error>>(
        &self,
        id: ObjectId,
        give: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.unhold_unless(id, || give().map(|()| true))
    }

    /// As [`Member::unhold`], but the reference stays, for the rest of this process's life, when `give` says that it was not
    /// given back.
    ///
    /// # Errors
    /// What `give` fails with; then the reference is forgotten.
    pub fn unhold_unless<E: From<Error>>(
        &self,
        id: ObjectId,
        give: impl FnOnce() -> Result<bool, E>,
    ) -> Result<(), E> {
        let Some(place) = self.held().one_less(id) else {
            return Ok(());
        };
        let given = give();
        if matches!(given, Ok(false)) {
            // Unless another thread has attached meanwhile: its place does for both, and this one names the same.
            self.held().objects.entry(id).or_insert((1, place));
        } else {
            self.forget_place(place);
        }
        given.map(drop)
    }

    /// Takes a reference to an object of this node for one more handle; with `adopt` the one that came with a descriptor.
    /// If the process dies anywhere in here, recovery knows whether it has the reference.
    ///
    /// # Errors
    /// When there is no such object (any more), or the held table is full.
    pub fn attach(&self, id: ObjectId, adopt: bool) -> Result<()> {
        if self.is_held_once_more(id) {
            return match adopt.then(|| self.drop_transit(id)) {
                // There was none in transit: the descriptor was attached before, or never exported.
                None | Some(Ok(()) | Err(Error::NoSuchObject(_))) => Ok(()),
                Some(Err(error)) => self.detach(id).and(Err(error)),
            };
        }
        let place = self.place()?;
        let change = if adopt { Change::Adopt } else { Change::Take };
        if let Err(error) = self.control.change(self.slot, place, id, change) {
            self.forget_place(place);
            return Err(error);
        }
        let mut held = self.held();
        if let Some((count, _)) = held.objects.get_mut(&id) {
            // Another thread was quicker: one reference is enough.
            *count += 1;
            drop(held);
            return self.give(place, id, |_| {});
        }
        held.objects.insert(id, (1, place));
        Ok(())
    }

    /// Gives one handle on an object of this node back, as [`Member::detach_with`] for one without contents.
    ///
    /// # Errors
    /// As [`Member::detach_with`].
    pub fn detach(&self, id: ObjectId) -> Result<()> {
        self.detach_with(id, |_| {})
    }

    /// Gives one handle on an object of this node back. With the last reference of all processes the object goes: `contents`
    /// frees what its block names, then the block is freed. If the process dies in the middle, recovery calls the like of
    /// `contents` once more: each of its steps must bear that.
    ///
    /// # Errors
    /// When shared memory is corrupt.
    pub fn detach_with(&self, id: ObjectId, contents: impl FnOnce(&ObjectEntry)) -> Result<()> {
        let Some(place) = self.held().one_less(id) else {
            return Ok(());
        };
        self.give(place, id, contents)
    }

    fn give(&self, place: u32, id: ObjectId, contents: impl FnOnce(&ObjectEntry)) -> Result<()> {
        self.change_and_dispose(place, id, Change::Give, contents)
    }

    fn change_and_dispose(
        &self,
        place: u32,
        id: ObjectId,
        change: Change,
        contents: impl FnOnce(&ObjectEntry),
    ) -> Result<()> {
        let changed = self.control.change(self.slot, place, id, change);
        let disposed = match changed {
            Ok(State::Last) => self.dispose(id, contents),
            other => other.map(drop),
        };
        self.forget_place(place);
        disposed
    }

    /// Counts a reference in transit: for a descriptor that is about to be sent.
    ///
    /// # Errors
    /// When there is no such object (any more), or the held table is full.
    pub fn export(&self, id: ObjectId) -> Result<()> {
        let place = self.place()?;
        let exported = self.control.change(self.slot, place, id, Change::Export);
        self.forget_place(place);
        exported.map(drop)
    }

    /// Drops a reference that is in transit, as [`Member::drop_transit_with`] for an object without contents.
    ///
    /// # Errors
    /// As [`Member::drop_transit_with`].
    pub fn drop_transit(&self, id: ObjectId) -> Result<()> {
        self.drop_transit_with(id, |_| {})
    }

    /// Drops a reference that is in transit: for a descriptor that was received and is not attached. As
    /// [`Member::detach_with`] when it was the last one.
    ///
    /// # Errors
    /// When there is no such object (any more), or none of its references is in transit.
    pub fn drop_transit_with(
        &self,
        id: ObjectId,
        contents: impl FnOnce(&ObjectEntry),
    ) -> Result<()> {
        let place = self.place()?;
        let dropped = self.change_and_dispose(place, id, Change::Drop, contents);
        self.tell_of_pool(id);
        dropped
    }

    /// Frees the memory of an object to which nobody refers any more: the contents, the block, the entry. Each step can be
    /// repeated: for the daemon, when a process died between them.
    ///
    /// # Errors
    /// When shared memory is corrupt.
    pub fn dispose(&self, id: ObjectId, contents: impl FnOnce(&ObjectEntry)) -> Result<()> {
        let Ok(entry) = self.control.entry(id) else {
            return Ok(());
        };
        contents(entry);
        let block = entry.block.load(Ordering::Acquire);
        if block != 0 {
            // When the rest of the free is recovery's, the entry names the block no more. A free that fails met memory that
            // was scribbled over: the entry goes all the same.
            let forget = || entry.block.store(0, Ordering::Release);
            let _ = self.free_then(block, forget);
            forget();
        }
        self.control.free_entry(id)
    }

    /// Keeps an object of this node while the daemon works on it; ended by [`Member::give_directly`].
    ///
    /// # Errors
    /// When there is no such object (any more).
    pub fn take_directly(&self, id: ObjectId) -> Result<()> {
        self.control.change_directly(id, Change::Take).map(drop)
    }

    /// Gives a reference back without a trace: one of [`Member::take_directly`], or that of a dead process. For the daemon
    /// only. As [`Member::detach_with`] when it was the last one.
    ///
    /// # Errors
    /// When there is no such object (any more).
    pub fn give_directly(&self, id: ObjectId, contents: impl FnOnce(&ObjectEntry)) -> Result<()> {
        match self.control.change_directly(id, Change::Give)? {
            Outcome::Last => self.dispose(id, contents),
            _ => Ok(()),
        }
    }

    /// As [`Member::give_directly`], for a reference in transit.
    ///
    /// # Errors
    /// As [`Member::give_directly`].
    pub fn drop_directly(&self, id: ObjectId, contents: impl FnOnce(&ObjectEntry)) -> Result<()> {
        let dropped = match self.control.change_directly(id, Change::Drop)? {
            Outcome::Last => self.dispose(id, contents),
            _ => Ok(()),
        };
        self.tell_of_pool(id);
        dropped
    }

    /// Records a shared block that this process now reads and will free with [`Member::free_held`]; recovery frees it
    /// otherwise.
    ///
    /// # Errors
    /// When the held table is full.
    pub fn hold_block(&self, address: u64) -> Result<u32> {
        let place = self.place()?;
        self.control
            .held_entry(self.slot.index, place)?
            .set_block(address);
        Ok(place)
    }

    /// Makes sure that there will be a place in the held table for a block that may come.
    ///
    /// # Errors
    /// When the held table is full.
    pub fn reserve(&self) -> Result<Reserved<'_>> {
        Ok(Reserved {
            member: self,
            place: self.place()?,
        })
    }

    /// Forgets a block that [`Member::hold_block`] recorded at `place`, and that is somebody else's by now: the caller has
    /// handed it on, and from there recovery knows whose it is.
    pub fn release_block(&self, place: u32) {
        self.forget_place(place);
    }

    fn place(&self) -> Result<u32> {
        self.held().place(&self.own)
    }

    fn forget_place(&self, place: u32) {
        if let Ok(entry) = self.control.held_entry(self.slot.index, place) {
            entry.clear();
            self.held().free.push(place);
        }
    }

    fn is_held_once_more(&self, id: ObjectId) -> bool {
        let mut held = self.held();
        let Some((count, _)) = held.objects.get_mut(&id) else {
            return false;
        };
        *count += 1;
        true
    }

    // A thread that panicked inside the registry left it consistent: each change is a single insertion or removal.
    fn held(&self) -> MutexGuard<'_, Registry> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn place(&mut self, slot: &Slot) -> Result<u32> {
        if let Some(place) = self.free.pop() {
            return Ok(place);
        }
        if self.used == MAX_HELD {
            return Err(Error::TableFull {
                table: "places for what one process holds (handles on objects, received messages)",
                size: MAX_HELD,
            });
        }
        self.used += 1;
        // Before the place is used: recovery reads so many.
        slot.held_top.store(self.used, Ordering::Release);
        Ok(self.used - 1)
    }

    /// Counts a handle less; the place of the object when it was the last.
    fn one_less(&mut self, id: ObjectId) -> Option<u32> {
        let (count, place) = self.objects.get_mut(&id)?;
        *count -= 1;
        let place = *place;
        (*count == 0).then(|| {
            self.objects.remove(&id);
            place
        })
    }
}

/// What is said of an address that is not that of a block of whoever names it.
#[must_use]
pub fn not_allocated(address: u64) -> Error {
    Error::NotAllocated {
        pool: PoolTag::of(address).number(),
        offset: PoolTag::offset(address),
    }
}

/// A place in the held table for a block that may come.
#[derive(Debug)]
pub struct Reserved<'a> {
    member: &'a Member,
    place: u32,
}

impl Reserved<'_> {
    /// Records the block.
    pub fn set(&self, address: u64) {
        if let Ok(entry) = self
            .member
            .control
            .held_entry(self.member.slot.index, self.place)
        {
            entry.set_block(address);
        }
    }

    /// The place, for [`Member::free_held`].
    #[must_use]
    pub fn keep(self) -> u32 {
        std::mem::ManuallyDrop::new(self).place
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.member.forget_place(self.place);
    }
}
