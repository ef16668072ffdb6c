//! Recovery of a dead process's memory. Locks, cells and references are recovered before, by the crates that own them.

use dragon_protocol::SlotId;
use dragon_protocol::op::Op;

use crate::control::Control;
use crate::error::Result;
use crate::pool::{Pool, extent, slab};

/// Frees what the dead process of `slot` had allocated and not shared, and finishes or undoes what its threads were doing to
/// the pool. Reads the slot's lists and its thread records, nothing else.
///
/// # Errors
/// When shared memory is corrupt.
pub fn recover_memory(control: &Control, pool: &Pool, slot: SlotId) -> Result<()> {
    let entry = control.slot(slot.index)?;
    let records = control.threads(slot.index)?;
    extent::recover(pool, entry, slot)?;
    slab::recover(pool, entry, slot)?;
    for record in records.iter().take_while(|record| record.is_touched()) {
        if let Some(intended) = record
            .intent
            .read()
            .filter(|intended| matches!(intended.op, Op::Allocate | Op::Free))
        {
            extent::recover_intent(pool, entry, slot, &intended)?;
        }
    }
    Ok(())
}

/// Empties the thread records of a dead process; returns the blocks of replies that nobody took.
///
/// # Errors
/// When shared memory is corrupt.
pub fn reset_threads(control: &Control, slot: SlotId) -> Result<Vec<u64>> {
    let records = control.threads(slot.index)?;
    let used = records
        .iter()
        .take_while(|record| record.is_touched())
        .collect::<Vec<_>>();
    // Clearing forgets that a record was used, so the used ones are gathered first.
    Ok(used
        .into_iter()
        .filter_map(|record| record.clear())
        .collect())
}
