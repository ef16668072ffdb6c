//! The pools of a node, as their owner has them: the node's daemon, or a test in its place.
//!
//! A pool is an object of the node. Its owner has one reference to it; the pool goes when no other is left and it either was
//! destroyed or holds no block any more: what was shared outlives its makers. Its memory then returns to the system at once,
//! whoever still has it mapped, and its number may be used for another pool under the next generation.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use dragon_protocol::{ObjectId, ObjectKind, PoolOptions, SlotId};

use super::Pool;
use super::tag::PoolTag;
use crate::error::{Error, Result};
use crate::member::{Hooks, Member};
use crate::object::{ObjectEntry, State};
use crate::slot::MAX_POOLS;
use crate::sync::{Ordering, low};

/// What may be taken from the system.
pub trait Budget: Send + Sync {
    /// Agrees that so many more bytes are committed for a pool.
    ///
    /// # Errors
    /// When there is no room for them.
    fn allow(&self, pool: &Pool, bytes: u64) -> Result<()>;
}

/// No limit but the pools' own.
#[derive(Clone, Copy, Debug)]
pub struct Unlimited;

impl Budget for Unlimited {
    fn allow(&self, _: &Pool, _: u64) -> Result<()> {
        Ok(())
    }
}

/// The pools of a node.
pub struct PoolTable {
    default: Pool,
    budget: Box<dyn Budget>,
    owner: OnceLock<Weak<Member>>,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for PoolTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.lock();
        f.debug_struct("PoolTable")
            .field("default", &self.default.label())
            .field("others", &inner.pools.iter().flatten().count())
            .finish_non_exhaustive()
    }
}

struct Inner {
    /// By number; the first is never used: it is the default pool's.
    pools: Vec<Option<Owned>>,
    /// How often each number has been used.
    generations: [u8; MAX_POOLS],
    /// The number that was given out last: the next one is looked for behind it, so that tags come round late.
    last: usize,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            pools: Vec::new(),
            generations: [0; MAX_POOLS],
            last: 0,
        }
    }
}

struct Owned {
    pool: Pool,
    object: ObjectId,
    /// Who asked for it and has not taken his reference yet.
    granted: Option<SlotId>,
}

/// In a pool's entry of the object table: which word of the object's own says what.
mod body {
    pub(super) const TAG: usize = 2;
    pub(super) const LIMIT: usize = 3;
}

/// Notes in the entry of a new object which pool it is.
pub fn note(entry: &ObjectEntry, pool: &Pool) {
    entry.body[body::TAG].store(pool.tag().to_u16().into(), Ordering::Relaxed);
    entry.body[body::LIMIT].store(pool.limit(), Ordering::Release);
}

/// The tag of a pool by its entry.
#[must_use]
pub fn tag_of(entry: &ObjectEntry) -> Option<PoolTag> {
    let tag = entry.body[body::TAG].load(Ordering::Acquire);
    PoolTag::from_u16(u16::try_from(tag).ok()?)
}

impl PoolTable {
    /// A node with its default pool, and the judge of how much memory may be taken.
    #[must_use]
    pub fn new(default: Pool, budget: Box<dyn Budget>) -> Arc<Self> {
        Arc::new(Self {
            default,
            budget,
            owner: OnceLock::new(),
            inner: Mutex::default(),
        })
    }

    /// Who owns the pools: called once, when its membership stands.
    pub fn set_owner(&self, owner: &Arc<Member>) {
        let _ = self.owner.set(Arc::downgrade(owner));
    }

    fn owner(&self) -> Result<Arc<Member>> {
        let owner = self.owner.get().and_then(Weak::upgrade);
        owner.ok_or(Error::NotTheOwner(self.default.label()))
    }

    /// Makes a pool for the process of a slot. It stays until that process has taken a reference and given it back, or has
    /// died.
    ///
    /// # Errors
    /// When an option is out of its range, all numbers are in use, or there is no memory for what is to be touched at once.
    pub fn create(&self, options: &PoolOptions, granted: SlotId) -> Result<(Pool, ObjectId)> {
        let owner = self.owner()?;
        let tag = self.lock().next_tag()?;
        let runtime = owner.control().runtime();
        let pool = Pool::create_with(runtime, tag, options)?;
        if options.pre_touch {
            self.commit_in(&pool, pool.limit())?;
            pool.data().populate(0, pool.limit())?;
        }
        let mut inner = self.lock();
        let number = tag.number() as usize;
        if inner.pools.get(number).is_some_and(Option::is_some) || inner.tag(number) != Some(tag) {
            drop(inner);
            // Somebody took the number meanwhile.
            return self.create(options, granted);
        }
        let object = owner.create(ObjectKind::Pool, |entry, _| {
            entry.user.store(options.user, Ordering::Relaxed);
            note(entry, &pool);
            Ok(())
        })?;
        owner.keep_pool(&pool, object);
        if inner.pools.len() <= number {
            inner.pools.resize_with(number + 1, || None);
        }
        inner.last = number;
        inner.pools[number] = Some(Owned {
            pool: pool.clone(),
            object,
            granted: Some(granted),
        });
        Ok((pool.as_guest(), object))
    }

    /// The pool with a tag, for a process that met a block of it.
    ///
    /// # Errors
    /// When there is none (any more), or it was destroyed.
    pub fn find(&self, tag: PoolTag) -> Result<(Pool, ObjectId)> {
        let inner = self.lock();
        let slot = inner.pools.get(tag.number() as usize);
        let owned = slot
            .and_then(Option::as_ref)
            .filter(|owned| owned.pool.tag() == tag)
            .ok_or(Error::NoSuchPool(tag))?;
        if self.is_destroyed(owned.object) {
            return Err(Error::Destroyed(owned.object));
        }
        Ok((owned.pool.as_guest(), owned.object))
    }

    /// The pool that has a number now.
    #[must_use]
    pub fn numbered(&self, number: u32) -> Option<Pool> {
        if number == self.default.number() {
            return Some(self.default.clone());
        }
        let inner = self.lock();
        let owned = inner.pools.get(number as usize)?.as_ref()?;
        Some(owned.pool.clone())
    }

    /// All pools, the default one first.
    #[must_use]
    pub fn all(&self) -> Vec<Pool> {
        let inner = self.lock();
        let others = inner.pools.iter().flatten();
        std::iter::once(self.default.clone())
            .chain(others.map(|owned| owned.pool.clone()))
            .collect()
    }

    /// Commits memory of a pool. When the budget has no room, what no pool uses is released first.
    ///
    /// # Errors
    /// When pool or budget leave no room.
    pub fn commit(&self, number: u32, bytes: u64) -> Result<()> {
        let tag = PoolTag::new(number, 0).unwrap_or_default();
        let pool = self.numbered(number).ok_or(Error::NoSuchPool(tag))?;
        self.commit_in(&pool, bytes)
    }

    fn commit_in(&self, pool: &Pool, bytes: u64) -> Result<()> {
        let allow = |more| self.budget.allow(pool, more);
        match pool.commit_within(bytes, allow) {
            Err(Error::OutOfCgroupMemory(_)) if self.trim()? > 0 => {
                pool.commit_within(bytes, allow)
            }
            done => done,
        }
    }

    /// Gives the memory of chunks without blocks, in all pools, back to the system; returns how many bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn trim(&self) -> Result<u64> {
        let mut bytes = 0;
        for pool in self.all() {
            bytes += pool.release_free()?;
        }
        Ok(bytes)
    }

    /// Somebody gave his reference to a pool back: takes the pool back if it has come to its end.
    pub fn released(&self, object: ObjectId) {
        let mut inner = self.lock();
        if let Some(number) = inner.number_of(object) {
            if let Some(owned) = &mut inner.pools[number] {
                owned.granted = None;
            }
            self.collect(&mut inner, number);
        }
    }

    /// The process of a slot is gone and recovered: takes back what was made for it and never taken.
    pub fn slot_gone(&self, slot: SlotId) {
        let mut inner = self.lock();
        for number in 0..inner.pools.len() {
            if let Some(owned) = &mut inner.pools[number]
                && owned.granted == Some(slot)
            {
                owned.granted = None;
                self.collect(&mut inner, number);
            }
        }
    }

    fn collect(&self, inner: &mut Inner, number: usize) {
        let (Ok(owner), Some(owned)) = (self.owner(), &inner.pools[number]) else {
            return;
        };
        let (pool, object) = (&owned.pool, owned.object);
        let destroyed = self.is_destroyed(object);
        // A scan of one pool to which nobody refers; when it cannot be read, it is not needed.
        let empty = || pool.stats().is_ok_and(|stats| stats.blocks == 0);
        if !destroyed && (owned.granted.is_some() || !empty()) {
            return;
        }
        if owner.give_pool_up(pool.tag(), object, destroyed) {
            // Whoever has it mapped does not use it: all memory returns.
            let _ = pool.release_all();
            inner.pools[number] = None;
            inner.generations[number] = inner.generations[number].wrapping_add(1);
        }
    }

    fn is_destroyed(&self, object: ObjectId) -> bool {
        let owner = self.owner();
        owner.is_ok_and(|owner| match owner.control().entry(object) {
            Ok(entry) => entry.read().0 == State::Destroyed,
            Err(_) => true,
        })
    }

    // A thread that panicked left the table consistent: each change is a single assignment.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What members need of a table of their own process: for examples, tests and measurements.
#[derive(Clone, Debug)]
pub struct InProcess(pub Arc<PoolTable>);

impl Hooks for InProcess {
    fn commit(&self, pool: u32, bytes: u64) -> Result<()> {
        self.0.commit(pool, bytes)
    }

    fn notify(&self, _: ObjectId) {}

    fn pool(&self, tag: PoolTag) -> Result<(Pool, ObjectId)> {
        self.0.find(tag)
    }

    fn create_pool(&self, options: &PoolOptions, slot: SlotId) -> Result<(Pool, ObjectId)> {
        self.0.create(options, slot)
    }

    fn trim(&self) -> Result<u64> {
        self.0.trim()
    }

    fn numbered_pool(&self, number: u32) -> Option<Pool> {
        self.0.numbered(number)
    }

    fn pool_released(&self, object: ObjectId) {
        self.0.released(object);
    }
}

impl Inner {
    fn next_tag(&self) -> Result<PoolTag> {
        let numbers = 1..MAX_POOLS;
        let count = numbers.len();
        let mut behind = numbers.map(|n| (self.last + n - 1) % count + 1);
        let free = behind.find(|number| !matches!(self.pools.get(*number), Some(Some(_))));
        free.and_then(|number| self.tag(number))
            .ok_or(Error::TableFull {
                table: "pools",
                size: low(MAX_POOLS as u64),
            })
    }

    fn tag(&self, number: usize) -> Option<PoolTag> {
        let generation = self.generations.get(number)?;
        PoolTag::new(low(number as u64), *generation)
    }

    fn number_of(&self, object: ObjectId) -> Option<usize> {
        let is_it =
            |slot: &Option<Owned>| slot.as_ref().is_some_and(|owned| owned.object == object);
        self.pools.iter().position(is_it)
    }
}
