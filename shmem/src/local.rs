//! A node in one process, without a daemon: for examples, tests and measurements. Nothing of it is visible outside the
//! process, and nothing outlives it.

use std::sync::Arc;

use dragon_protocol::{NodeIndex, RuntimeId};

use crate::error::Result;
use crate::pool::table::{InProcess, PoolTable, Unlimited};
use crate::{Control, Member, Pool};

/// A node of a runtime that consists of nothing else.
#[derive(Debug)]
pub struct Node {
    /// Its control region.
    pub control: Control,
    /// Its default pool.
    pub pool: Pool,
    /// Its pools.
    pub pools: Arc<PoolTable>,
    /// The membership of its daemon.
    pub daemon: Arc<Member>,
}

impl Node {
    /// Makes the regions of a node, with a pool of 256 MiB.
    ///
    /// # Errors
    /// When the kernel refuses memory.
    pub fn new() -> Result<Self> {
        Self::with_limit(256 << 20)
    }

    /// As [`Node::new`], with a pool of another size.
    ///
    /// # Errors
    /// When the kernel refuses memory.
    pub fn with_limit(limit: u64) -> Result<Self> {
        const RUNTIME: RuntimeId = RuntimeId(2);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        let control = Control::create(RUNTIME, NodeIndex::FIRST, cpus)?;
        let pool = Pool::create(RUNTIME, NodeIndex::FIRST, 0, limit)?;
        let slot = control.claim_daemon_slot()?;
        let pools = PoolTable::new(pool.clone(), Box::new(Unlimited));
        let hooks = Box::new(InProcess(Arc::clone(&pools)));
        let daemon = Member::new(control.clone(), pool.clone(), slot, hooks)?;
        pools.set_owner(&daemon);
        Ok(Self {
            control,
            pool,
            pools,
            daemon,
        })
    }

    /// One more member, as a process of the node would be.
    ///
    /// # Errors
    /// When all slots are taken.
    pub fn member(&self) -> Result<Arc<Member>> {
        let slot = self.control.claim_slot(std::process::id())?;
        let hooks = Box::new(InProcess(Arc::clone(&self.pools)));
        Member::new(self.control.clone(), self.pool.clone(), slot, hooks)
    }
}
