//! The control region: what the processes of a node share beside the pools.
//!
//! ```text
//! 0          header
//! 4 KiB      NodeWords
//! 8 KiB      slots            8192 × 3200 B
//!            objects         65536 × 128 B
//!            held tables      8192 × 65536 × 16 B
//!            thread records   8192 × 2048 × 512 B
//!            set records      8192 × 8576 B
//!            subscriber nodes 65536 × 128 B
//!            index of named memory 32768 × 128 B
//! ```
//! All of it is sparse: a page costs memory when it is first written.

use std::ops::Range;
use std::os::fd::OwnedFd;

use dragon_protocol::{NodeIndex, ObjectId, ObjectKind, RuntimeId};

use crate::error::{Error, Result};
use crate::held::Entry;
use crate::named::{BUCKETS, Bucket};
use crate::object::ObjectEntry;
use crate::region::{Pinned, Region, Shared};
use crate::slot::{Slot, SlotCounters};
use crate::subscription::{MAX_NODES, MAX_SETS, SetRecord, SubscriberNode};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::thread::ThreadRecord;

/// Kind of the control region in its header.
pub const KIND: u32 = 1;
/// Slots of a node; slot 0 is the daemon's.
pub const MAX_SLOTS: u32 = if cfg!(miri) { 16 } else { 8192 };
/// Objects of a node.
pub const MAX_OBJECTS: u32 = if cfg!(miri) { 128 } else { 65536 };
/// Objects, and blocks of messages, that one process can hold at once.
pub const MAX_HELD: u32 = if cfg!(miri) { 64 } else { 65536 };
/// Records for the threads of one process that are inside an operation, or keep a record until their next one: a part of
/// them can.
pub const MAX_THREADS: u32 = if cfg!(miri) { 8 } else { 2048 };
/// The first ones of these are kept for giving back: a process all of whose other records are in use can still free.
pub const SPARE_THREADS: u32 = 2;

const WORDS: u64 = 4096;
const SLOTS: u64 = 8192;
const OBJECTS: u64 = SLOTS + MAX_SLOTS as u64 * size_of::<Slot>() as u64;
const HELD: u64 = OBJECTS + MAX_OBJECTS as u64 * size_of::<ObjectEntry>() as u64;
const THREADS: u64 = HELD + MAX_SLOTS as u64 * MAX_HELD as u64 * size_of::<Entry>() as u64;
const SETS: u64 =
    THREADS + MAX_SLOTS as u64 * MAX_THREADS as u64 * size_of::<ThreadRecord>() as u64;
const NODES: u64 = SETS + MAX_SETS as u64 * size_of::<SetRecord>() as u64;
const INDEX: u64 = NODES + MAX_NODES as u64 * size_of::<SubscriberNode>() as u64;
const SIZE: u64 = INDEX + BUCKETS as u64 * size_of::<Bucket>() as u64;

/// Words of the node as a whole. Groups that different processes write lie on cache lines of their own.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct NodeWords {
    /// This node's index.
    pub node: AtomicU32,
    /// CPUs granted on this node.
    pub cpus: AtomicU32,
    /// Object index of the gateway channel.
    pub gateway_index: AtomicU32,
    /// Its generation; 0 in both while there is none.
    pub gateway_generation: AtomicU32,
    /// Slots up to this one have been given out.
    pub(crate) slot_top: AtomicU32,
    reserved: [AtomicU32; 11],
    /// Threads that spin at this moment.
    pub spinners: AtomicU32,
    pad: [AtomicU32; 15],
    /// The lowest object entry that may be free.
    pub object_hint: AtomicU32,
    /// The lowest set record that may be free.
    pub(crate) set_hint: AtomicU32,
    /// The lowest subscriber node that may be free.
    pub(crate) node_hint: AtomicU32,
    pad2: [AtomicU32; 13],
    /// What happened on this node.
    pub counters: Counters,
    /// What processes counted whose slots were given back.
    pub departed: SlotCounters,
}

/// Counters of a node, written by its daemon alone.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Counters {
    /// Frames of requests that left for other nodes.
    pub requests_sent: AtomicU64,
    /// Frames of requests that came from other nodes.
    pub requests_received: AtomicU64,
    /// Messages (requests to send with their payload) that left for other nodes.
    pub messages_sent: AtomicU64,
    /// Messages that came from other nodes.
    pub messages_received: AtomicU64,
    /// Bytes of frames written.
    pub bytes_sent: AtomicU64,
    /// Bytes of frames read.
    pub bytes_received: AtomicU64,
    /// Requests of clients to the daemon (the control plane).
    pub control_requests: AtomicU64,
    /// Slots recovered.
    pub recoveries: AtomicU64,
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for NodeWords {}
#[cfg(not(loom))]
const _: () = assert!(
    size_of::<NodeWords>() <= 4096
        && std::mem::offset_of!(NodeWords, spinners) == 64
        && std::mem::offset_of!(NodeWords, object_hint) == 128
        && std::mem::offset_of!(NodeWords, counters) == 192
        && SLOTS.is_multiple_of(align_of::<Slot>() as u64)
        && OBJECTS.is_multiple_of(128)
        && THREADS.is_multiple_of(512)
        && SETS.is_multiple_of(128)
        && NODES.is_multiple_of(128)
);

/// The mapped control region; clones share the mapping.
#[derive(Clone, Debug)]
pub struct Control {
    region: Region,
    runtime: RuntimeId,
    node: NodeIndex,
}

impl Control {
    /// Creates the control region of a node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(runtime: RuntimeId, node: NodeIndex, cpus: u32) -> Result<Self> {
        let region = Region::create("dragon-control", KIND, runtime, SIZE)?;
        let control = Self {
            region,
            runtime,
            node,
        };
        control.words().node.store(node.get(), Ordering::Relaxed);
        control.words().cpus.store(cpus, Ordering::Relaxed);
        Ok(control)
    }

    /// Maps the control region that the daemon created.
    ///
    /// # Errors
    /// When it is not one of this release and runtime.
    pub fn map(fd: OwnedFd, size: u64, runtime: RuntimeId) -> Result<Self> {
        if size != SIZE {
            return Err(Error::Region {
                what: "size of the control region",
                expected: SIZE,
                found: size,
            });
        }
        let region = Region::map(fd, size, KIND, runtime)?;
        let words: &NodeWords = region.view(WORDS)?;
        let number = words.node.load(Ordering::Relaxed);
        let node = NodeIndex::new(number).ok_or(Error::Corrupt {
            what: "node index",
            value: number.into(),
        })?;
        Ok(Self {
            region,
            runtime,
            node,
        })
    }

    /// The region itself.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The runtime.
    #[must_use]
    pub fn runtime(&self) -> RuntimeId {
        self.runtime
    }

    /// This node.
    #[inline]
    #[must_use]
    pub fn node(&self) -> NodeIndex {
        self.node
    }

    /// The node's words.
    #[inline]
    #[must_use]
    pub fn words(&self) -> &NodeWords {
        self.fixed(WORDS)
    }

    /// What all processes of the node have counted: those attached now, and those that were.
    #[must_use]
    pub fn totals(&self) -> SlotCounters {
        let totals = SlotCounters::default();
        let now = self.slots().map(|(_, slot)| &slot.counters);
        for from in now.chain([&self.words().departed]) {
            for (from, to) in [
                (&from.sends, &totals.sends),
                (&from.receives, &totals.receives),
                (&from.remote, &totals.remote),
            ] {
                to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        totals
    }

    /// The gateway channel, once the agent has made it.
    #[must_use]
    pub fn gateway(&self) -> Option<ObjectId> {
        let words = self.words();
        let generation = words.gateway_generation.load(Ordering::Acquire);
        let index = words.gateway_index.load(Ordering::Relaxed);
        (generation != 0).then_some(ObjectId {
            node: self.node,
            kind: ObjectKind::Channel,
            index,
            generation,
        })
    }

    /// Announces the gateway channel.
    pub fn set_gateway(&self, gateway: ObjectId) {
        self.words()
            .gateway_index
            .store(gateway.index, Ordering::Relaxed);
        // Pairs with the Acquire in `gateway`: who sees the generation sees the index.
        self.words()
            .gateway_generation
            .store(gateway.generation, Ordering::Release);
    }

    /// A slot.
    ///
    /// # Errors
    /// When the number is beyond the table.
    #[inline]
    pub fn slot(&self, index: u32) -> Result<&Slot> {
        self.region.view(slot_at(index)?)
    }

    /// A slot that is used often.
    pub(crate) fn pin_slot(&self, index: u32) -> Result<Pinned<Slot>> {
        self.region.pin(slot_at(index)?)
    }

    /// An entry of the object table, whatever it holds now.
    ///
    /// # Errors
    /// When the index is beyond the table.
    #[inline]
    pub fn object(&self, index: u32) -> Result<&ObjectEntry> {
        self.region.view(object_at(index)?)
    }

    /// An entry of the object table that is used often.
    ///
    /// # Errors
    /// As [`Control::object`].
    pub fn pin_object(&self, index: u32) -> Result<Pinned<ObjectEntry>> {
        self.region.pin(object_at(index)?)
    }

    /// The parts of the object table that were ever used.
    pub(crate) fn used_objects(&self) -> Vec<Range<u32>> {
        #[expect(clippy::cast_possible_truncation, reason = "an entry has 128 bytes")]
        const ENTRY: u32 = size_of::<ObjectEntry>() as u32;
        let number =
            |at: u64| u32::try_from(at.saturating_sub(OBJECTS)).unwrap_or(u32::MAX) / ENTRY;
        let written = self.region.written(OBJECTS, HELD);
        let parts = written
            .into_iter()
            .map(|part| number(part.start)..number(part.end + u64::from(ENTRY) - 1));
        parts.collect()
    }

    /// The entry at `place` of a slot's held table.
    ///
    /// # Errors
    /// When there is none.
    #[inline]
    pub fn held_entry(&self, slot: u32, place: u32) -> Result<&Entry> {
        let slot = within(slot, MAX_SLOTS, "slot")?;
        let place = within(place, MAX_HELD, "place in a held table")?;
        let at = u64::from(slot) * u64::from(MAX_HELD) + u64::from(place);
        self.region.view(HELD + at * size_of::<Entry>() as u64)
    }

    /// What a slot's process has used of its held table: the first entries. The rest was never touched and costs no memory,
    /// not even to look at it.
    ///
    /// # Errors
    /// When the number is beyond the table.
    pub fn held(&self, slot: u32) -> Result<&[Entry]> {
        let used = self.slot(slot)?.held_top.load(Ordering::Acquire);
        let table = u64::from(MAX_HELD) * size_of::<Entry>() as u64;
        self.region
            .slice(HELD + u64::from(slot) * table, used.min(MAX_HELD) as usize)
    }

    /// The thread records of a slot.
    ///
    /// # Errors
    /// When the number is beyond the table.
    #[inline]
    pub fn threads(&self, slot: u32) -> Result<&[ThreadRecord]> {
        self.region.slice(threads_at(slot)?, MAX_THREADS as usize)
    }

    /// The thread records of a slot that is used often.
    pub(crate) fn pin_threads(&self, slot: u32) -> Result<Pinned<[ThreadRecord]>> {
        self.region
            .pin_slice(threads_at(slot)?, MAX_THREADS as usize)
    }

    /// The record of a set.
    ///
    /// # Errors
    /// When the number is beyond the table.
    #[inline]
    pub fn set_record(&self, number: u32) -> Result<&SetRecord> {
        let number = within(number, MAX_SETS, "number of a set record")?;
        self.region
            .view(SETS + u64::from(number) * size_of::<SetRecord>() as u64)
    }

    /// A node of subscribers.
    ///
    /// # Errors
    /// When the number is beyond the table.
    pub fn subscriber_node(&self, number: u32) -> Result<&SubscriberNode> {
        let number = within(number, MAX_NODES, "number of a subscriber node")?;
        self.region
            .view(NODES + u64::from(number) * size_of::<SubscriberNode>() as u64)
    }

    /// A bucket of the index of named memory.
    ///
    /// # Errors
    /// When the number is beyond the table.
    pub(crate) fn bucket(&self, number: u32) -> Result<&Bucket> {
        let number = within(number, BUCKETS, "bucket of the index of named memory")?;
        self.region
            .view(INDEX + u64::from(number) * size_of::<Bucket>() as u64)
    }

    fn fixed<T: Shared>(&self, offset: u64) -> &T {
        // Invariant: the constants lie inside SIZE, which the region has: `create` and `map` saw to it.
        self.region
            .view(offset)
            .unwrap_or_else(|_| unreachable!("the layout's constants lie inside the region"))
    }
}

#[inline]
fn slot_at(index: u32) -> Result<u64> {
    let index = within(index, MAX_SLOTS, "slot")?;
    Ok(SLOTS + u64::from(index) * size_of::<Slot>() as u64)
}

#[inline]
fn object_at(index: u32) -> Result<u64> {
    let index = within(index, MAX_OBJECTS, "object index")?;
    Ok(OBJECTS + u64::from(index) * size_of::<ObjectEntry>() as u64)
}

#[inline]
fn threads_at(slot: u32) -> Result<u64> {
    let slot = within(slot, MAX_SLOTS, "slot")?;
    let table = u64::from(MAX_THREADS) * size_of::<ThreadRecord>() as u64;
    Ok(THREADS + u64::from(slot) * table)
}

#[inline]
fn within(index: u32, size: u32, what: &'static str) -> Result<u32> {
    if index < size {
        Ok(index)
    } else {
        Err(Error::Corrupt {
            what,
            value: index.into(),
        })
    }
}
