//! Slots: one for every attached process of the node, and one (a *proxy*) for every process of another node that holds
//! something here. Only the daemon gives them out and takes them back.

use dragon_protocol::{NodeIndex, SlotId};

use crate::control::{Control, MAX_SLOTS};
use crate::error::{Error, Result};
use crate::region::Shared;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Pools that a slot can own pages of.
pub const MAX_POOLS: usize = 8;

/// A slot. 256 bytes.
#[derive(Debug)]
#[repr(C, align(256))]
pub struct Slot {
    /// [`FREE`], [`PROCESS`] or [`PROXY`]; written by the daemon.
    state: AtomicU32,
    /// How often the slot has been given out.
    generation: AtomicU32,
    /// The process's pid, or the slot number on its own node for a proxy.
    pid: AtomicU32,
    /// A proxy's node.
    node: AtomicU32,
    /// A proxy's generation on its own node.
    remote_generation: AtomicU32,
    reserved: [AtomicU32; 3],
    /// Per pool: the first page of the list of slabs that the process owns, plus 1. Written by the process.
    pub(crate) slabs: [AtomicU64; MAX_POOLS],
    /// Per pool: the same for its private extents.
    pub(crate) extents: [AtomicU64; MAX_POOLS],
    /// What the process counted; written by it without the cost of shared atomics.
    pub counters: SlotCounters,
}

/// Counters of a process.
#[derive(Debug, Default)]
#[repr(C)]
pub struct SlotCounters {
    /// Messages sent to channels of this node.
    pub sends: AtomicU64,
    /// Messages received from channels of this node.
    pub receives: AtomicU64,
    /// Requests to other nodes.
    pub remote: AtomicU64,
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Slot {}
const _: () = assert!(size_of::<Slot>() == 256);

/// Nobody's.
pub const FREE: u32 = 0;
/// A process of this node.
pub const PROCESS: u32 = 1;
/// A process of another node.
pub const PROXY: u32 = 2;

impl Slot {
    /// [`FREE`], [`PROCESS`] or [`PROXY`].
    #[must_use]
    pub fn state(&self) -> u32 {
        self.state.load(Ordering::Acquire)
    }

    /// The pid of the process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// The process of another node for which this is the proxy.
    #[must_use]
    pub fn remote(&self) -> Option<(NodeIndex, SlotId)> {
        let id = SlotId {
            index: self.pid(),
            generation: self.remote_generation.load(Ordering::Relaxed),
        };
        (self.state() == PROXY).then_some((NodeIndex::new(self.node.load(Ordering::Relaxed))?, id))
    }
}

/// The daemon's own slot.
pub const DAEMON: SlotId = SlotId {
    index: 0,
    generation: 1,
};

impl Control {
    /// Gives out a slot to a process. For the daemon only.
    ///
    /// # Errors
    /// When all are in use.
    pub fn claim_slot(&self, pid: u32) -> Result<SlotId> {
        self.claim(PROCESS, pid, 0, 0)
    }

    /// Gives out a proxy slot for a process of another node. For the agent only.
    ///
    /// # Errors
    /// When all are in use.
    pub fn claim_proxy(&self, node: NodeIndex, of: SlotId) -> Result<SlotId> {
        self.claim(PROXY, of.index, node.get(), of.generation)
    }

    /// Takes the daemon's slot.
    ///
    /// # Errors
    /// When the region is corrupt.
    pub fn claim_daemon_slot(&self) -> Result<SlotId> {
        let slot = self.slot(DAEMON.index)?;
        slot.pid.store(std::process::id(), Ordering::Relaxed);
        slot.generation.store(DAEMON.generation, Ordering::Relaxed);
        slot.state.store(PROCESS, Ordering::Release);
        Ok(DAEMON)
    }

    fn claim(&self, state: u32, pid: u32, node: u32, remote_generation: u32) -> Result<SlotId> {
        for index in 1..MAX_SLOTS {
            let slot = self.slot(index)?;
            // Two threads of the daemon claim slots: the control loop and the agent.
            if slot
                .state
                .compare_exchange(FREE, state, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                slot.pid.store(pid, Ordering::Relaxed);
                slot.node.store(node, Ordering::Relaxed);
                slot.remote_generation
                    .store(remote_generation, Ordering::Relaxed);
                let generation = slot
                    .generation
                    .fetch_add(1, Ordering::AcqRel)
                    .wrapping_add(1);
                return Ok(SlotId { index, generation });
            }
        }
        Err(Error::TableFull {
            table: "slots for processes",
            size: MAX_SLOTS,
        })
    }

    /// Takes a slot back, after its recovery has ended.
    ///
    /// # Errors
    /// When the number is beyond the table.
    pub fn release_slot(&self, id: SlotId) -> Result<()> {
        self.slot(id.index)?.state.store(FREE, Ordering::Release);
        Ok(())
    }

    /// Whether the slot is still the one of this generation.
    #[must_use]
    pub fn slot_is(&self, id: SlotId) -> bool {
        self.slot(id.index).is_ok_and(|slot| {
            slot.state() != FREE && slot.generation.load(Ordering::Acquire) == id.generation
        })
    }
}
