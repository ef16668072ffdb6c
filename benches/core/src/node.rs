//! A node without a daemon: this process owns its pool, and children are forked from it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use dragon_protocol::{NodeIndex, ObjectId, RuntimeId, SlotId};
use dragon_shmem::{Control, Deadline, Error, Hooks, Member, Pool, futex};

const RUNTIME: RuntimeId = RuntimeId(0xbe9c);

pub(crate) struct Node {
    control: Control,
    pool: Pool,
    daemon: Arc<Member>,
}

impl Node {
    /// A node with a pool of so many bytes, all committed, and so many CPUs granted.
    pub(crate) fn new(limit: u64, cpus: u32) -> Result<Self> {
        let node = Self::uncommitted(limit, cpus)?;
        node.daemon.pool().commit(limit)?;
        Ok(node)
    }

    pub(crate) fn uncommitted(limit: u64, cpus: u32) -> Result<Self> {
        let control = Control::create(RUNTIME, NodeIndex::FIRST, cpus)?;
        let made = Pool::create(RUNTIME, NodeIndex::FIRST, 0, limit)?;
        let pool = made.as_guest();
        let hooks = Box::new(NoMore(pool.clone()));
        let daemon = Member::new(control.clone(), made, control.claim_daemon_slot()?, hooks)?;
        Ok(Self {
            control,
            pool,
            daemon,
        })
    }

    /// A slot for a process.
    pub(crate) fn slot(&self) -> Result<SlotId> {
        Ok(self.control.claim_slot(0)?)
    }

    pub(crate) fn member(&self, slot: SlotId) -> Result<Arc<Member>> {
        let hooks = Box::new(NoMore(self.pool.clone()));
        Ok(Member::new(
            self.control.clone(),
            self.pool.clone(),
            slot,
            hooks,
        )?)
    }

    /// The process of one slot has ended.
    pub(crate) fn recover(&self, slot: SlotId) -> Result<()> {
        dragon_channels::recover(&self.daemon, slot)?;
        Ok(())
    }

    /// Bytes of memory behind all regions, but for what was only committed.
    pub(crate) fn resident(&self) -> Result<u64> {
        let used = self.daemon.pool().stats()?.used;
        Ok(self.control.region().resident()? + self.pool.meta().resident()? + used)
    }

    pub(crate) fn pool_resident(&self) -> Result<u64> {
        Ok(self.pool.meta().resident()? + self.pool.data().resident()?)
    }
}

/// Sleeps, on a word that nobody changes.
pub(crate) fn pause(time: Duration) {
    let never = dragon_shmem::sync::AtomicU32::new(0);
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let _ = futex::wait(&never, 0, Deadline::after(nanoseconds));
}

struct NoMore(Pool);

impl Hooks for NoMore {
    fn commit(&self, _: u32, bytes: u64) -> Result<(), Error> {
        Err(self.0.out_of_memory(bytes))
    }

    fn notify(&self, _: ObjectId) {}
}
