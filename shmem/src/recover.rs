//! Recovery of a dead process's memory. Locks, cells and references are recovered before, by the crates that own them.

use dragon_protocol::op::Op;
use dragon_protocol::{ObjectId, SlotId};

use crate::control::Control;
use crate::error::Result;
use crate::held::{Entry, State};
use crate::object;
use crate::pool::{Pool, extent, resize, slab};
use crate::slot::Slot;
use crate::sync::Ordering;
use crate::thread::{ThreadRecord, Untaken};

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

/// What an entry of a dead process's held table says, after a change that it was making was brought to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It had a reference to an object of this node: to be given back.
    Object(ObjectId),
    /// It gave the last reference back, and the object is to be disposed of.
    Last(ObjectId),
    /// It counted a reference in transit and told nobody: to be dropped.
    Exported(ObjectId),
    /// It had, took or gave a reference to an object of another node.
    Remote(ObjectId),
    /// It was reading a shared block: to be freed.
    Block(u64),
    /// It was creating an object; the entry is free again, and this is its block: to be freed if it was shared already.
    Made(u64),
}

/// Reads what a dead process used of its held table, and clears nothing: [`forget_held`] does.
///
/// # Errors
/// When the slot is beyond the table.
pub fn held(control: &Control, slot: SlotId) -> Result<Vec<Found>> {
    let entries = control.held(slot.index)?.iter();
    Ok(entries
        .filter_map(|entry| found(control, slot, entry))
        .collect())
}

fn found(control: &Control, slot: SlotId, entry: &Entry) -> Option<Found> {
    if let Some(block) = entry.block() {
        return Some(Found::Block(block));
    }
    let (id, state) = entry.get(control.node())?;
    if state == State::Remote {
        return Some(Found::Remote(id));
    }
    control.settle(id.index);
    let (id, state) = entry.get(control.node())?;
    match state {
        State::Held | State::Giving => Some(Found::Object(id)),
        State::Last => Some(Found::Last(id)),
        State::Exported => Some(Found::Exported(id)),
        State::Creating => {
            let (state, _, generation, _) = control.object(id.index).ok()?.read();
            let published = matches!(state, object::State::Alive | object::State::Destroyed)
                && generation == id.generation;
            if published {
                return Some(Found::Object(id));
            }
            unclaimed(control, slot, id)
        }
        // It did not come to publish anything: an object that is alive under this id is that of whoever was quicker.
        State::Claiming => unclaimed(control, slot, id),
        // Nothing was done, or nothing is left of it.
        _ => None,
    }
}

/// Frees the entry of an object that the process was creating.
fn unclaimed(control: &Control, slot: SlotId, id: ObjectId) -> Option<Found> {
    let block = control.unclaim_object(id, slot).ok()??;
    (block != 0).then_some(Found::Made(block))
}

/// Clears the held table of a dead process.
///
/// # Errors
/// When the slot is beyond the table.
pub fn forget_held(control: &Control, slot: SlotId) -> Result<()> {
    control.held(slot.index)?.iter().for_each(Entry::clear);
    Ok(())
}

/// Frees what the dead process of `slot` had allocated and not shared, finishes or undoes what its threads were doing to
/// the pools, and empties its thread records. Reads the slot's lists and its thread records, nothing else. The last step
/// before the slot is released.
///
/// # Errors
/// When shared memory is corrupt.
pub fn recover_memory(control: &Control, pools: &impl Pools, slot: SlotId) -> Result<()> {
    let entry = control.slot(slot.index)?;
    recover_lengths(control, pools, slot)?;
    // Lists first: what they name is recovered by them, and intents deal with what is in no list.
    for number in used_pools(entry) {
        if let Some(pool) = pools.numbered(number) {
            extent::recover(&pool, entry, slot)?;
            slab::recover(&pool, entry, slot)?;
            pool.room()?.freed();
        }
    }
    let records = used(control, slot)?;
    for record in &records {
        if let Some(intended) = record.intent.read()
            && let Some(pool) = pools.numbered(intended.index)
        {
            extent::recover_intent(&pool, slot, &intended)?;
            pool.room()?.freed();
        }
    }
    // Only now: what is cleared is not found again.
    for record in records {
        record.clear();
    }
    entry.pools.store(0, Ordering::Relaxed);
    Ok(())
}

/// Finishes or undoes the changes of a block's length that a dead process was making. Comes before any of its blocks is
/// freed: these must have one length.
///
/// # Errors
/// When shared memory is corrupt.
pub fn recover_lengths(control: &Control, pools: &impl Pools, slot: SlotId) -> Result<()> {
    for record in used(control, slot)? {
        if let Some(intended) = record.intent.read()
            && intended.op == Op::Resize
        {
            if let Some(pool) = pools.numbered(intended.index) {
                resize::recover(&pool, slot, &intended)?;
            }
            record.intent.end();
        }
    }
    Ok(())
}

/// The pools whose lists the process may have used: the default one, and those that it noted.
fn used_pools(slot: &Slot) -> impl Iterator<Item = u32> {
    let noted = slot.pools.load(Ordering::Acquire) | 1;
    (0..u64::BITS).filter(move |number| noted >> number & 1 != 0)
}

/// Empties the reply cells of a dead process; returns the replies that it did not take. What its threads were doing
/// to the pool stays recorded for [`recover_memory`].
///
/// # Errors
/// When shared memory is corrupt.
pub fn reset_threads(control: &Control, slot: SlotId) -> Result<Vec<Untaken>> {
    let records = used(control, slot)?;
    for record in &records {
        let memory = |op| matches!(op, Op::Allocate | Op::Free | Op::Resize);
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
