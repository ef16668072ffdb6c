//! What is done about a process that died: by the daemon, for the process's slot, or for the proxy slot of a process of
//! another node. It reads the slot's thread records and its held table, and never scans the node.

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Code, ObjectId, ObjectKind, SlotId};
use dragon_shmem::Member;
use dragon_shmem::object::State as ObjectState;
use dragon_shmem::recover::{
    Found, forget_held, held, recover_lengths, recover_memory, reset_threads,
};
use dragon_shmem::sync::{Ordering, fence};
use dragon_shmem::thread::{Intended, ReplyPayload, Untaken};

use crate::channel::{Local, Ticket, open};
use crate::error::Result;
use crate::lock;
use crate::object::{discard, second_wait_word, wait_word, wake_everyone};
use crate::ring::Ring;
use crate::semaphore;
use crate::wait::{forget_spinner, mark};
use crate::{barrier, broadcast, cell, condition};

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Objects of other nodes to which the process had references: their agents must be told that the slot is gone.
    pub remote: Vec<ObjectId>,
    /// Locks that were handed on.
    pub locks: u32,
    /// Units of semaphores that were given back.
    pub units: u32,
    /// Cells that the process had claimed.
    pub cells: u32,
    /// Blocks of messages and replies that it had received and not freed.
    pub blocks: u32,
    /// Whether the process had asked the agent for anything: if not, the agent knows nothing of it.
    pub asked: bool,
    /// What came from other nodes and found the process dead: the agent gives it back. Blocks in it are the caller's.
    pub untaken: Vec<Untaken>,
}

/// Recovers everything that the dead process of `slot` had on this node, and gives the slot back at the end. The caller is
/// the daemon, and the process is dead: nothing of it runs any more. If the daemon itself dies in the middle, the node's
/// runtime ends with it.
///
/// # Errors
/// When shared memory was scribbled over so that the slot cannot be recovered; it then stays taken.
pub fn recover(member: &Arc<Member>, slot: SlotId) -> Result<Recovered> {
    let control = member.control();
    let mut recovered = Recovered {
        asked: control.slot(slot.index)?.has_asked(),
        ..Recovered::default()
    };
    recover_lengths(control, &**member, slot)?;
    let held = held(control, slot)?;
    let mut leases: Vec<u64> = held
        .iter()
        .filter_map(|found| match found {
            Found::Block(block) => Some(*block),
            _ => None,
        })
        .collect();
    let records = control.threads(slot.index)?.iter();
    for record in records.take_while(|record| record.is_touched()) {
        if let Some(intended) = record.intent.read() {
            finish(member, slot, &intended, &mut leases, &mut recovered);
        }
    }
    let mut pools = Vec::new();
    for found in held {
        match found {
            // Needed until what the process had in it is recovered.
            Found::Object(id) if id.kind == ObjectKind::Pool => pools.push(id),
            found => give_up(member, slot, found, &mut leases, &mut recovered),
        }
    }
    for untaken in reset_threads(control, slot)? {
        sort_out(untaken, &mut leases, &mut recovered);
    }
    for block in leases {
        // It fails when the process died between recording the block and taking it, or scribbled; then it is not ours.
        if member.free(block).is_ok() {
            recovered.blocks += 1;
        }
    }
    recover_memory(control, &**member, slot)?;
    for pool in pools {
        // The last process that used a destroyed pool: the daemon is told, and takes it back.
        let left = member.give_directly(pool, |_| {}).is_ok()
            && control.object(pool.index)?.references() <= 1;
        if left {
            member.hooks().pool_released(pool);
        }
    }
    forget_held(control, slot)?;
    member.forget_proxy(slot);
    control
        .words()
        .counters
        .recoveries
        .fetch_add(1, Ordering::Relaxed);
    control.release_slot(slot)?;
    Ok(recovered)
}

/// A reply that the process did not take: what it brought belongs to others, unless it went with the process. Its block may
/// stand in the held table, too: it is one block.
fn sort_out(untaken: Untaken, leases: &mut Vec<u64>, recovered: &mut Recovered) {
    let done = untaken.reply.status == Code::Ok.to_i32();
    let kept = match untaken.asked {
        Some((Op::Receive, object)) => done && object.kind == ObjectKind::Channel,
        Some((Op::Pop | Op::SemaphoreAcquire, _)) => done,
        _ => false,
    };
    if let ReplyPayload::Block { offset, .. } = untaken.reply.payload {
        leases.retain(|block| *block != offset);
        if !kept {
            leases.push(offset);
        }
    }
    if kept {
        recovered.untaken.push(untaken);
    }
}

/// Finishes or undoes what a thread was doing. Whatever it names is looked at as possibly scribbled over: errors mean that
/// there is nothing to be done.
fn finish(
    member: &Arc<Member>,
    slot: SlotId,
    intended: &Intended,
    leases: &mut Vec<u64>,
    recovered: &mut Recovered,
) {
    if intended.step & mark::SPINNER != 0 {
        forget_spinner(member.control().words());
    }
    let Some(id) = object_of(member, intended) else {
        return;
    };
    let Ok(entry) = member.control().object(id.index) else {
        return;
    };
    match intended.op {
        _ if matches!(
            id.kind,
            ObjectKind::Channel | ObjectKind::Stream | ObjectKind::PriorityQueue
        ) && !matches!(intended.op, Op::StreamOpen | Op::StreamAccept) =>
        {
            let ring = match id.kind {
                ObjectKind::Stream => crate::stream::ring_of(member, entry, intended),
                ObjectKind::PriorityQueue => crate::priority::ring_of(member, entry, intended),
                _ => open(member, entry).ok(),
            };
            if let Some(ring) = ring {
                let local = Local {
                    member,
                    id,
                    entry,
                    ring: &ring,
                    opened: None,
                    row: None,
                };
                finish_on_channel(&local, slot, intended, leases, recovered);
            }
        }
        Op::EventWait | Op::SemaphoreAcquire | Op::ProcessWait
            if intended.step & mark::FIRST != 0 =>
        {
            wait_word(entry).forget_waiter();
        }
        Op::BroadcastTrigger | Op::BarrierWait => {
            if intended.step & mark::FIRST != 0 {
                wait_word(entry).forget_waiter();
            }
            if intended.step & mark::SECOND != 0 {
                second_wait_word(entry).forget_waiter();
            }
        }
        Op::SemaphoreWaitZero if intended.step & mark::SECOND != 0 => {
            second_wait_word(entry).forget_waiter();
        }
        Op::StreamOpen | Op::StreamAccept if id.kind == ObjectKind::Stream => {
            crate::stream::finish(member, entry, intended);
        }
        Op::Subscribe | Op::Unsubscribe | Op::SetWait if id.kind == ObjectKind::Set => {
            // It fails only on memory that was scribbled over.
            let _ = crate::set::finish(member, slot.index, id, entry, intended);
        }
        _ => {}
    }
    // It may have taken a wake-up that was another's.
    wake_all(member, id);
}

/// Makes everyone who waits on an object look again, also the agent: the dead process may have taken the agent's mark away,
/// and not have come to telling it.
fn wake_all(member: &Arc<Member>, id: ObjectId) {
    // It fails only on memory that was scribbled over.
    let _ = wake_everyone(member, id);
    member.hooks().notify(id);
}

fn object_of(member: &Member, intended: &Intended) -> Option<ObjectId> {
    let (state, kind, generation, _) = member.control().object(intended.index).ok()?.read();
    let in_use = matches!(state, ObjectState::Alive | ObjectState::Destroyed);
    (in_use && generation == intended.generation).then_some(ObjectId {
        node: member.control().node(),
        kind: ObjectKind::from_u8(kind)?,
        index: intended.index,
        generation,
    })
}

fn finish_on_channel(
    channel: &Local<'_>,
    slot: SlotId,
    intended: &Intended,
    leases: &mut Vec<u64>,
    recovered: &mut Recovered,
) {
    let ring = channel.ring;
    let places = [
        (mark::FIRST, ring.readable()),
        (mark::SECOND, ring.writable()),
        (mark::THIRD, ring.closing()),
    ];
    for (_, word) in places
        .iter()
        .filter(|(place, _)| intended.step & place != 0)
    {
        if intended.step & mark::WATCHER == 0 {
            word.forget_waiter();
        } else {
            word.forget_watcher();
        }
    }
    let [first, block, ..] = intended.arguments;
    if intended.op == Op::Grow {
        return channel.undo_growth(first, block);
    }
    let Some(ticket) = Ticket::unpack(first) else {
        return;
    };
    let Ok(ring) = channel.ring_of(ticket) else {
        return;
    };
    match intended.op {
        Op::Send => undo_send(channel, &ring, slot, ticket.position, block, recovered),
        Op::Receive => finish_receive(channel, &ring, slot, ticket.position, leases, recovered),
        _ => {}
    }
}

/// A sender died. If its claim stands, nothing was sent: the cell is dead, and a block that was to travel is freed. If
/// the claim does not stand, the message was published, or the block is still private and goes with the others.
fn undo_send(
    channel: &Local<'_>,
    ring: &Ring,
    slot: SlotId,
    position: u64,
    block: u64,
    recovered: &mut Recovered,
) {
    if !cell::left_writing(ring, position, slot.index) {
        return;
    }
    if block != 0 {
        // It fails for a block that is still private: recovery of the memory frees that.
        let _ = channel.member.free(block);
    }
    cell::abandon(ring, position);
    recovered.cells += 1;
    channel.readable_changed(1);
    channel.writable_changed(u32::MAX);
}

/// A receiver died. If its claim stands, the message is lost with it, and its block, unless that is among the leases already.
fn finish_receive(
    channel: &Local<'_>,
    ring: &Ring,
    slot: SlotId,
    position: u64,
    leases: &mut Vec<u64>,
    recovered: &mut Recovered,
) {
    if !cell::left_reading(ring, position, slot.index) {
        return;
    }
    if ring.content(position).by_reference {
        let block = ring.block(position);
        if !leases.contains(&block) {
            leases.push(block);
        }
    }
    cell::release(ring, position);
    recovered.cells += 1;
    channel.writable_changed(u32::MAX);
}

/// Gives a reference up, and with it what the process could hold only through it. What fails here was scribbled over.
fn give_up(
    member: &Arc<Member>,
    slot: SlotId,
    found: Found,
    leases: &mut Vec<u64>,
    recovered: &mut Recovered,
) {
    let _ = match found {
        Found::Remote(object) => {
            recovered.remote.push(object);
            return;
        }
        // Those with the leases.
        Found::Block(_) => return,
        // One that is still private goes with the others.
        Found::Made(block) => member.free(block),
        Found::Exported(object) => {
            member.drop_directly(object, |entry| discard(member, object, entry))
        }
        Found::Last(object) => member.dispose(object, |entry| discard(member, object, entry)),
        Found::Object(object) => {
            let Ok(entry) = member.control().entry(object) else {
                return;
            };
            match object.kind {
                ObjectKind::Lock => {
                    recovered.locks += u32::from(lock::words(entry).hand_on(slot.index));
                }
                ObjectKind::Semaphore => {
                    recovered.units += semaphore::recover(member, entry, object, slot.index);
                }
                ObjectKind::Stream => crate::stream::give_up(member, slot.index, object, entry),
                ObjectKind::Barrier => barrier::recover(member, entry, object, slot.index),
                ObjectKind::Condition => condition::recover(member, entry, slot.index),
                ObjectKind::Broadcast => {
                    let lost = |block| {
                        if !leases.contains(&block) {
                            leases.push(block);
                        }
                    };
                    broadcast::recover(member, entry, object, slot.index, lost);
                }
                _ => {}
            }
            fence(Ordering::SeqCst);
            // It may have taken a wake-up that was another's, or held what others wait for; or it ended the object, and died
            // before it woke those who wait.
            wake_all(member, object);
            member.give_directly(object, |entry| discard(member, object, entry))
        }
    };
}
