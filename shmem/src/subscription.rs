//! What subscriptions have in the control region: the flags of sets, and lists of subscribers that did not fit into their
//! object's entry.
//!
//! Both lie here and not in blocks of a pool because whoever changes an object writes them without a reference to the set:
//! this memory is never given away, so a write that comes late flags a member of some later set, which looks at it once too
//! often and is none the worse. A record or node belongs to the object that its `owner` names, as long as that exists; when
//! that is gone it is free, without anybody having to say so. Nothing is lost here when a process dies.

use dragon_protocol::ObjectId;

use crate::control::Control;
use crate::error::{Error, Result};
use crate::object::State;
use crate::region::Shared;
use crate::sync::{AtomicU32, AtomicU64, Ordering, high, low};

/// Sets of a node.
pub const MAX_SETS: u32 = 8192;
/// Members that one set can have.
pub const MAX_MEMBERS: u32 = 65536;
/// Nodes for the subscribers of objects that are in many sets.
pub const MAX_NODES: u32 = 65536;
/// Words of flags.
pub const FLAG_WORDS: usize = MAX_MEMBERS as usize / 64;
/// Words that say which words of flags are not 0.
pub const SUMMARY_WORDS: usize = FLAG_WORDS / 64;
/// Subscribers in one node.
pub const NODE_CELLS: usize = 14;

/// The part of a set that those write who change its members.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct SetRecord {
    /// The set that has the record: see [`owner_word`]; 0 for none.
    pub owner: AtomicU64,
    /// How often the record was given out.
    pub generation: AtomicU32,
    /// Where the next wait starts to look: a hint.
    pub cursor: AtomicU32,
    pad: [AtomicU64; 14],
    /// Where waiters sleep.
    pub wait: AtomicU64,
    pad2: [AtomicU64; 15],
    /// Bit n: word n of the flags has had a flag since the record was claimed, and may be other than 0.
    pub summary: [AtomicU64; SUMMARY_WORDS],
    /// Bit n: member n may have changed.
    pub flags: [AtomicU64; FLAG_WORDS],
}

/// Further subscribers of an object.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct SubscriberNode {
    /// The object: see [`owner_word`]; 0 for none.
    pub owner: AtomicU64,
    /// Number of the next node plus 1; 0 for none.
    pub next: AtomicU32,
    reserved: AtomicU32,
    /// Subscribers; 0 for none. The words are those of the crate that owns sets.
    pub cells: [AtomicU64; NODE_CELLS],
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for SetRecord {}
// SAFETY: as above.
unsafe impl Shared for SubscriberNode {}
#[cfg(not(loom))]
const _: () = assert!(
    size_of::<SetRecord>() == 384 + FLAG_WORDS * 8
        && size_of::<SubscriberNode>() == 128
        && std::mem::offset_of!(SetRecord, wait) == 128
        && std::mem::offset_of!(SetRecord, summary) == 256
);

/// An object of this node as one word: generation 32 | index 32.
#[must_use]
pub fn owner_word(id: ObjectId) -> u64 {
    u64::from(id.generation) << 32 | u64::from(id.index)
}

impl Control {
    /// Whether the object that a word names exists: it is being made, in use, or destroyed and still referred to.
    #[must_use]
    pub fn exists(&self, owner: u64) -> bool {
        owner != 0
            && self.object(low(owner)).is_ok_and(|entry| {
                let (state, _, generation, _) = entry.read();
                state != State::Free && generation == high(owner)
            })
    }

    /// Gives a free record to a set that is being made; returns its number.
    ///
    /// # Errors
    /// When all are in use.
    pub fn claim_set_record(&self, id: ObjectId) -> Result<u32> {
        let hint = &self.words().set_hint;
        let record = |n| Ok(&self.set_record(n)?.owner);
        let number = self.claim_owned(hint, MAX_SETS, "sets", id, record)?;
        let record = self.set_record(number)?;
        // Who flags members of the record's last set finds out that it is another's now.
        record.generation.fetch_add(1, Ordering::AcqRel);
        record.cursor.store(0, Ordering::Relaxed);
        record.wait.store(0, Ordering::Relaxed);
        for (n, summary) in record.summary.iter().enumerate() {
            let mut left = summary.swap(0, Ordering::AcqRel);
            while left != 0 {
                let word = n * 64 + left.trailing_zeros() as usize;
                record.flags[word].store(0, Ordering::Relaxed);
                left &= left - 1;
            }
        }
        Ok(number)
    }

    /// Gives a free node to an object; returns its number. It is not in the object's list yet.
    ///
    /// # Errors
    /// When all are in use.
    pub fn claim_subscriber_node(&self, id: ObjectId) -> Result<u32> {
        let hint = &self.words().node_hint;
        let node = |n| Ok(&self.subscriber_node(n)?.owner);
        let what = "nodes for subscribers";
        let number = self.claim_owned(hint, MAX_NODES, what, id, node)?;
        let node = self.subscriber_node(number)?;
        node.next.store(0, Ordering::Relaxed);
        for cell in &node.cells {
            cell.store(0, Ordering::Relaxed);
        }
        Ok(number)
    }

    /// A record is about to be free: the next search starts there, so that few pages of the table are ever touched.
    pub fn lower_set_hint(&self, number: u32) {
        self.words().set_hint.fetch_min(number, Ordering::Relaxed);
    }

    /// The same for a node.
    pub fn lower_node_hint(&self, number: u32) {
        self.words().node_hint.fetch_min(number, Ordering::Relaxed);
    }

    fn claim_owned<'a>(
        &'a self,
        hint: &AtomicU32,
        size: u32,
        table: &'static str,
        id: ObjectId,
        owner: impl Fn(u32) -> Result<&'a AtomicU64>,
    ) -> Result<u32> {
        let start = hint.load(Ordering::Relaxed);
        for number in (0..size).map(|n| start.wrapping_add(n) % size) {
            let word = owner(number)?;
            let last = word.load(Ordering::Acquire);
            if !self.exists(last)
                && word
                    .compare_exchange(last, owner_word(id), Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                hint.store(number.wrapping_add(1), Ordering::Relaxed);
                return Ok(number);
            }
        }
        Err(Error::TableFull { table, size })
    }
}
