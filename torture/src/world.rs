//! A node of a runtime for one operation: its regions, its daemon (this process, slot 0), and what can be counted in it.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use dragon_protocol::{Descriptor, NodeIndex, ObjectId, ObjectKind, RuntimeId, SlotId};
use dragon_shmem::object::State;
use dragon_shmem::pool::table::note;
use dragon_shmem::sync::Ordering;
use dragon_shmem::{Control, Error, Hooks, Member, Pool, PoolTag};

const RUNTIME: RuntimeId = RuntimeId(0x0dd_c0de);
/// Objects have the lowest free entry; no operation here makes so many.
const ENTRIES: u32 = 192;

/// A second pool of the node.
pub(crate) const SECOND: PoolTag = match PoolTag::new(1, 1) {
    Some(tag) => tag,
    None => PoolTag::DEFAULT,
};
const SECOND_LIMIT: u64 = 4 << 20;
const PAGE: u64 = 64 << 10;

/// The regions of a node, and the member that plays its daemon.
pub(crate) struct World {
    pub(crate) control: Control,
    /// As a client maps it.
    pub(crate) pool: Pool,
    pub(crate) daemon: Arc<Member>,
    second: Arc<OnceLock<(Pool, ObjectId)>>,
}

impl World {
    /// A node with `cpus` granted, and a pool of `limit` bytes, all of it committed.
    pub(crate) fn new(cpus: u32, limit: u64) -> Result<Self> {
        Self::on(NodeIndex::FIRST, cpus, limit)
    }

    /// The same as another node of the runtime.
    pub(crate) fn on(node: NodeIndex, cpus: u32, limit: u64) -> Result<Self> {
        let control = Control::create(RUNTIME, node, cpus)?;
        let made = Pool::create(RUNTIME, node, 0, limit)?;
        made.commit(limit)?;
        let pool = made.as_guest();
        let slot = control.claim_daemon_slot()?;
        let second = Arc::default();
        let hooks = Box::new(NoMore(pool.clone(), Arc::clone(&second)));
        let daemon = Member::new(control.clone(), made, slot, hooks)?;
        let other = Pool::create_tagged(RUNTIME, node, SECOND, SECOND_LIMIT)?;
        other.commit(SECOND_LIMIT)?;
        let object = daemon.create(ObjectKind::Pool, |entry, _| {
            note(entry, &other);
            Ok(())
        })?;
        let _ = second.set((other.as_guest(), object));
        Ok(Self {
            control,
            pool,
            daemon,
            second,
        })
    }

    /// A member for this process with a slot that the daemon gave out.
    pub(crate) fn member(&self, slot: SlotId) -> Result<Arc<Member>> {
        self.member_with(slot, Box::new(self.hooks()))
    }

    /// The same with hooks of its own.
    pub(crate) fn member_with(&self, slot: SlotId, hooks: Box<dyn Hooks>) -> Result<Arc<Member>> {
        let (control, pool) = (self.control.clone(), self.pool.clone());
        Ok(Member::new(control, pool, slot, hooks)?)
    }

    /// The usual hooks.
    pub(crate) fn hooks(&self) -> NoMore {
        NoMore(self.pool.clone(), Arc::clone(&self.second))
    }

    /// The second pool as an object.
    pub(crate) fn second_pool(&self) -> Result<Descriptor> {
        let (_, object) = self.second.get().context("no second pool")?;
        Ok(Descriptor {
            runtime: RUNTIME,
            object: *object,
            user: 0,
        })
    }

    /// The daemon's member once more, for a child of this process.
    pub(crate) fn daemon_again(&self) -> Result<Arc<Member>> {
        self.member(self.daemon.slot())
    }

    /// Everything that must come back to its start value.
    pub(crate) fn counts(&self) -> Result<Counts> {
        let stats = self.daemon.pool().stats()?;
        let second = self.second()?.stats()?;
        let mut objects = Vec::new();
        for index in 0..ENTRIES {
            let entry = self.control.object(index)?;
            let (state, kind, _, _) = entry.read();
            if state != State::Free {
                objects.push(Counted {
                    index,
                    state,
                    kind,
                    references: entry.references(),
                    in_transit: entry.in_transit(),
                });
            }
        }
        Ok(Counts {
            used: stats.used + second.used,
            blocks: stats.blocks + second.blocks,
            objects,
            slots: self.control.slots().count(),
            spinners: self.control.words().spinners.load(Ordering::Relaxed),
        })
    }

    /// Whether every page is free: one block fits over all of them.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        let pin = self.daemon.pin(SECOND.address(0))?;
        let all = [
            self.daemon.try_alloc(self.pool.limit() - PAGE)?,
            self.daemon.try_alloc_in(SECOND, SECOND_LIMIT - PAGE)?,
        ];
        for block in all.iter().flatten() {
            self.daemon.free(block.offset)?;
        }
        self.daemon.unpin(pin);
        Ok(all.iter().all(Option::is_some))
    }

    fn second(&self) -> Result<&Pool> {
        let (pool, _) = self.second.get().context("no second pool")?;
        Ok(pool)
    }
}

/// What is in use on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    used: u64,
    blocks: u64,
    objects: Vec<Counted>,
    slots: usize,
    spinners: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    index: u32,
    state: State,
    kind: u8,
    references: u32,
    in_transit: u32,
}

impl Counts {
    /// In what this differs from how it was before; `None` when in nothing.
    pub(crate) fn leak(&self, before: &Self) -> Option<String> {
        if self == before {
            return None;
        }
        let mut text = String::new();
        let mut number = |what: &str, was: u64, is: u64| {
            if was != is {
                // Writing to a String does not fail.
                let _ = write!(text, "{what} {was} before, {is} after; ");
            }
        };
        number("used bytes", before.used, self.used);
        number("blocks", before.blocks, self.blocks);
        number("slots", before.slots as u64, self.slots as u64);
        number("spinners", before.spinners.into(), self.spinners.into());
        for (from, to, word) in [(before, self, "gone"), (self, before, "left")] {
            for object in &from.objects {
                if !to.objects.contains(object) {
                    let _ = write!(text, "{word}: {object:?}; ");
                }
            }
        }
        Some(text.trim_end_matches("; ").to_owned())
    }
}

/// Everything is committed from the start, as if the daemon had reached the pool's limit.
pub(crate) struct NoMore(Pool, Arc<OnceLock<(Pool, ObjectId)>>);

impl Hooks for NoMore {
    fn commit(&self, _: u32, bytes: u64) -> Result<(), Error> {
        Err(self.0.out_of_memory(bytes))
    }

    fn notify(&self, _: ObjectId) {}

    fn pool(&self, tag: PoolTag) -> Result<(Pool, ObjectId), Error> {
        let second = self.1.get().filter(|(pool, _)| pool.tag() == tag);
        second.cloned().ok_or(Error::NoSuchPool(tag))
    }

    fn numbered_pool(&self, number: u32) -> Option<Pool> {
        let second = self.1.get().filter(|(pool, _)| pool.number() == number);
        second.map(|(pool, _)| pool.clone())
    }
}

/// Recovers a dead process, as the daemon does.
pub(crate) fn recover(world: &World, slot: SlotId) -> Result<()> {
    dragon_channels::recover(&world.daemon, slot)
        .map(drop)
        .context("recovery failed")
}
