//! Recovery of a dead process's memory. Locks, cells and references are recovered before, by the crates that own them.

use dragon_protocol::SlotId;
use dragon_protocol::op::Op;

use crate::control::Control;
use crate::error::Result;
use crate::pool::{Pool, extent, slab};
use crate::slot::Slot;
use crate::sync::Ordering;
use crate::thread::ThreadRecord;

/// Where recovery finds the pools of the node.
pub trait Pools {
    /// The pool with a number; `None` when there is none.
    fn numbered(&self, number: u32) -> Option<Pool>;
}

impl Pools for Pool {
    fn numbered(&self, number: u32) -> Option<Pool> {
        (self.number() == number).then(|| self.clone())
    }
}

/// Frees what the dead process of `slot` had allocated and not shared, finishes or undoes what its threads were doing to
/// the pools, and empties its thread records. Reads the slot's lists and its thread records, nothing else. The last step
/// before the slot is released.
///
/// # Errors
/// When shared memory is corrupt.
pub fn recover_memory(control: &Control, pools: &impl Pools, slot: SlotId) -> Result<()> {
    let entry = control.slot(slot.index)?;
    // Lists first: what they name is recovered by them, and intents deal with what is in no list.
    for number in used_pools(entry) {
        if let Some(pool) = pools.numbered(number) {
            extent::recover(&pool, entry, slot)?;
            slab::recover(&pool, entry, slot)?;
        }
    }
    let records = used(control, slot)?;
    for record in &records {
        if let Some(intended) = record.intent.read()
            && let Some(pool) = pools.numbered(intended.index)
        {
            extent::recover_intent(&pool, slot, &intended)?;
        }
    }
    // Only now: what is cleared is not found again.
    for record in records {
        record.clear();
    }
    entry.pools.store(0, Ordering::Relaxed);
    Ok(())
}

/// The pools whose lists the process may have used: the default one, and those that it noted.
fn used_pools(slot: &Slot) -> impl Iterator<Item = u32> {
    let noted = slot.pools.load(Ordering::Acquire) | 1;
    (0..u64::BITS).filter(move |number| noted >> number & 1 != 0)
}

/// Empties the reply cells of a dead process; returns the blocks of replies that nobody took. What its threads were doing
/// to the pool stays recorded for [`recover_memory`].
///
/// # Errors
/// When shared memory is corrupt.
pub fn reset_threads(control: &Control, slot: SlotId) -> Result<Vec<u64>> {
    let records = used(control, slot)?;
    for record in &records {
        let memory = |op| matches!(op, Op::Allocate | Op::Free);
        if !record
            .intent
            .read()
            .is_some_and(|intended| memory(intended.op))
        {
            record.intent.end();
        }
    }
    Ok(records
        .into_iter()
        .filter_map(|record| record.reply.reset())
        .collect())
}

/// The records that the process used: the first ones.
fn used(control: &Control, slot: SlotId) -> Result<Vec<&ThreadRecord>> {
    let records = control.threads(slot.index)?.iter();
    Ok(records.take_while(|record| record.is_touched()).collect())
}
