//! Slots: one for every attached process of the node, and one (a *proxy*) for every process of another node that holds
//! something here. Only the daemon gives them out and takes them back.

use dragon_protocol::{NodeIndex, SlotId};

use crate::control::{Control, MAX_SLOTS};
use crate::error::{Error, Result};
use crate::region::Shared;
use crate::sync::{AtomicU32, AtomicU64, Ordering, high, low};

/// Pools that a node can have at once, and so a slot own pages of.
pub const MAX_POOLS: usize = 64;

/// Extents of one pool that a process keeps after it freed them.
pub const KEPT: usize = 8;

/// A slot. 3200 bytes.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Slot {
    /// generation 32 bits | state 32; written by the daemon.
    word: AtomicU64,
    /// The process's pid, or the slot number on its own node for a proxy.
    pid: AtomicU32,
    /// A proxy's node.
    node: AtomicU32,
    /// A proxy's generation on its own node.
    remote_generation: AtomicU32,
    /// Entries of the held table that have been used: the first ones. Written by the process.
    pub(crate) held_top: AtomicU32,
    /// Not 0: the process has asked the node's agent for something. Written by the process, before the first request.
    asked: AtomicU32,
    reserved: AtomicU32,
    /// One bit for each pool beside the default one that the process has used: of these recovery looks at the lists.
    /// Written by the process.
    pub(crate) pools: AtomicU64,
    /// Per pool: the first page of the list of slabs that the process owns, plus 1. Written by the process.
    pub(crate) slabs: [AtomicU64; MAX_POOLS],
    /// Per pool: the same for its private extents.
    pub(crate) extents: [AtomicU64; MAX_POOLS],
    /// Per pool: extents that the process freed and keeps for its next allocations; page numbers, 0 for none. An entry may
    /// be out of date: the page's word says whether it is one.
    pub(crate) kept: [[AtomicU32; KEPT]; MAX_POOLS],
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
#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 3200);

/// Nobody's.
pub const FREE: u32 = 0;
/// A process of this node.
pub const PROCESS: u32 = 1;
/// A process of another node.
pub const PROXY: u32 = 2;
/// The daemon is about to give it out.
const CLAIMED: u32 = 3;

impl Slot {
    /// [`FREE`], [`PROCESS`] or [`PROXY`]; another number for a moment while it is given out.
    #[must_use]
    pub fn state(&self) -> u32 {
        low(self.word.load(Ordering::Acquire))
    }

    /// How often the slot has been given out.
    #[must_use]
    pub fn generation(&self) -> u32 {
        high(self.word.load(Ordering::Acquire))
    }

    fn is_given_out(&self) -> bool {
        matches!(self.state(), PROCESS | PROXY)
    }

    /// The pid of the process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// The process is about to ask the agent for something.
    #[inline]
    pub fn set_asked(&self) {
        if !self.has_asked() {
            self.asked.store(1, Ordering::Relaxed);
        }
    }

    /// Whether the process has asked the agent for anything: if not, the agent knows nothing of it.
    #[must_use]
    pub fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) != 0
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
        slot.word
            .store(word(DAEMON.generation, PROCESS), Ordering::Release);
        Ok(DAEMON)
    }

    fn claim(&self, state: u32, pid: u32, node: u32, remote_generation: u32) -> Result<SlotId> {
        // The lowest free one: the table is sparse, and pages that were never touched cost nothing.
        for index in 1..MAX_SLOTS {
            let slot = self.slot(index)?;
            let free = slot.word.load(Ordering::Acquire);
            // Generation 0 is never used: zeros name no slot.
            let generation = high(free).wrapping_add(1).max(1);
            // Two threads of the daemon claim slots: the control loop and the agent.
            if low(free) == FREE
                && slot
                    .word
                    .compare_exchange(
                        free,
                        word(generation, CLAIMED),
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    )
                    .is_ok()
            {
                slot.pid.store(pid, Ordering::Relaxed);
                slot.node.store(node, Ordering::Relaxed);
                slot.remote_generation
                    .store(remote_generation, Ordering::Relaxed);
                let top = &self.words().slot_top;
                top.fetch_max(index + 1, Ordering::Relaxed);
                // Release: who sees the state sees whose slot it is.
                slot.word.store(word(generation, state), Ordering::Release);
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
    /// When the number is beyond the table, or the slot is another's by now.
    pub fn release_slot(&self, id: SlotId) -> Result<()> {
        let slot = self.slot(id.index)?;
        let now = slot.word.load(Ordering::Acquire);
        if high(now) != id.generation {
            return Err(Error::Corrupt {
                what: "generation of a slot that is given back",
                value: now,
            });
        }
        slot.held_top.store(0, Ordering::Relaxed);
        slot.asked.store(0, Ordering::Relaxed);
        // What the process counted stays in the node's totals.
        let (gone, all) = (&slot.counters, &self.words().departed);
        for (from, to) in [
            (&gone.sends, &all.sends),
            (&gone.receives, &all.receives),
            (&gone.remote, &all.remote),
        ] {
            to.fetch_add(from.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
        slot.word
            .store(word(id.generation, FREE), Ordering::Release);
        Ok(())
    }

    /// Whether the slot is still the one of this generation.
    #[must_use]
    pub fn slot_is(&self, id: SlotId) -> bool {
        self.slot(id.index)
            .is_ok_and(|slot| slot.generation() == id.generation && slot.is_given_out())
    }

    /// The pid of the process that has the slot; `None` when it is another's, or a proxy's.
    #[must_use]
    pub fn slot_pid(&self, id: SlotId) -> Option<u32> {
        let slot = self.slot(id.index).ok()?;
        let pid = slot.pid();
        (slot.word.load(Ordering::Acquire) == word(id.generation, PROCESS)).then_some(pid)
    }

    /// The slots that are given out, for listing. They may change meanwhile.
    pub fn slots(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        let top = self.words().slot_top.load(Ordering::Relaxed).max(1);
        (0..top.min(MAX_SLOTS)).filter_map(|index| {
            let slot = self.slot(index).ok()?;
            let generation = slot.generation();
            slot.is_given_out()
                .then_some((SlotId { index, generation }, slot))
        })
    }
}

const fn word(generation: u32, state: u32) -> u64 {
    (generation as u64) << 32 | state as u64
}
