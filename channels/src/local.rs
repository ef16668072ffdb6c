//! A node in one process: regions and a membership without a daemon, for examples, tests and measurements.
//!
//! Nothing of it is visible outside the process, and nothing outlives it.

use std::sync::Arc;

use dragon_protocol::{NodeIndex, RuntimeId};
use dragon_shmem::pool::table::{InProcess, PoolTable, Unlimited};
use dragon_shmem::{Control, Member, Pool};

use crate::error::Result;

/// A node of a runtime that consists of nothing else.
///
/// ```
/// use dragon_channels::local::LocalNode;
/// use dragon_channels::{Channel, ChannelOptions, Deadline, create_channel};
///
/// let node = LocalNode::new()?;
/// let (sender, receiver) = (node.member()?, node.member()?);
/// let channel = create_channel(&sender, &ChannelOptions::default())?;
/// let theirs = Channel::attach(&receiver, &channel.export()?, true)?;
/// channel.send(b"hello", 1, Deadline::Never)?;
/// assert_eq!(theirs.receive(Deadline::Never)?.into_vec(), b"hello");
/// # Ok::<(), dragon_channels::Error>(())
/// ```
#[derive(Debug)]
pub struct LocalNode {
    control: Control,
    pool: Pool,
    pools: Arc<PoolTable>,
    daemon: Arc<Member>,
}

/// Bytes that the pool of such a node may grow to.
const LIMIT: u64 = 256 << 20;
const RUNTIME: RuntimeId = RuntimeId(1);

impl LocalNode {
    /// Makes the regions of a node.
    ///
    /// # Errors
    /// When the kernel refuses memory.
    pub fn new() -> Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        let control = Control::create(RUNTIME, NodeIndex::FIRST, cpus)?;
        let pool = Pool::create(RUNTIME, NodeIndex::FIRST, 0, LIMIT)?;
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
        Ok(Member::new(
            self.control.clone(),
            self.pool.clone(),
            slot,
            hooks,
        )?)
    }

    /// The membership of the node's daemon, which recovers the others.
    #[must_use]
    pub fn daemon(&self) -> &Arc<Member> {
        &self.daemon
    }
}

/// A member of a node of its own.
///
/// ```
/// let member = dragon_channels::local::member()?;
/// let event = dragon_channels::Event::create(&member, 0)?;
/// assert!(!event.is_set()?);
/// # Ok::<(), dragon_channels::Error>(())
/// ```
///
/// # Errors
/// When the kernel refuses memory.
pub fn member() -> Result<Arc<Member>> {
    LocalNode::new()?.member()
}
