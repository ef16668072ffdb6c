//! What is done about a process that died in a conversation, and about an endpoint that goes.

use std::sync::Arc;

use dragon_protocol::ObjectId;
use dragon_protocol::op::Op;
use dragon_shmem::Member;
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::Ordering;
use dragon_shmem::thread::Intended;

use super::local::{End, How, Local};
use super::rows::{Phase, State, flag};
use super::{Conversation, Form, sleepers};
use crate::channel::{self, ROW_ARGUMENT};
use crate::error::Result;
use crate::ring::Ring;
use crate::set::Interest;

fn form(member: &Member, entry: &ObjectEntry) -> Result<Form> {
    Form::open(member, entry.block.load(Ordering::Acquire))
}

/// The channel that an intent to send or receive is about.
pub(crate) fn ring_of(member: &Member, entry: &ObjectEntry, intended: &Intended) -> Option<Ring> {
    match form(member, entry).ok()? {
        Form::Buffered(ring) => Some(ring),
        Form::Streamed(rows) => {
            let row = rows.row(u32::try_from(intended.arguments[ROW_ARGUMENT]).ok()?)?;
            row.ring(member.pool()).ok()
        }
        Form::Remote { .. } => None,
    }
}

/// Finishes or undoes the opening or accepting that a dead process was in, as far as its intent alone says; the rows follow
/// in [`give_up`].
pub(crate) fn finish(member: &Member, entry: &ObjectEntry, intended: &Intended) {
    let Ok(Form::Streamed(rows)) = form(member, entry) else {
        return;
    };
    let (word, mark) = sleepers(&rows, intended.op);
    if intended.step & mark != 0 {
        word.forget_waiter();
    }
    let [row, block, ..] = intended.arguments;
    let row = u32::try_from(row).ok().and_then(|n| rows.row(n));
    if intended.op == Op::StreamOpen
        && block != 0
        && row.is_none_or(|row| row.block.load(Ordering::Acquire) != block)
    {
        // It fails for one that is still private: recovery of the memory frees that.
        let _ = member.free(block);
    }
}

/// Ends what the dead process of `slot` had in the rows of an endpoint to which it had a reference. Its intents are dealt with
/// before.
pub(crate) fn give_up(member: &Arc<Member>, slot: u32, id: ObjectId, entry: &ObjectEntry) {
    let Ok(Form::Streamed(rows)) = form(member, entry) else {
        return;
    };
    let local = Local {
        member,
        id,
        entry,
        rows,
    };
    for (n, row) in rows.used() {
        let state = State(row.state.load(Ordering::Acquire));
        let conversation = Conversation {
            row: n,
            version: state.version(),
        };
        match state.phase() {
            Phase::Opening if state.sender() == slot => local.free_row(row, state.version()),
            Phase::Closing if state.sender() == slot => local.finish_closing(n, row),
            Phase::Open => {
                let offered = state.has(flag::OFFERED);
                if state.sender() == slot {
                    if offered {
                        // It may have died before it showed the row.
                        local.show(n);
                    }
                    // It fails when that end had ended before: then only the waking is to be done again.
                    if local
                        .close(conversation, End::Sender, How::Died, slot)
                        .is_err()
                    {
                        local.wake_row(row);
                    }
                }
                // After the sender's end the row may be the next conversation's.
                if !offered
                    && state.receiver() == slot
                    && local
                        .close(conversation, End::Receiver, How::Died, slot)
                        .is_err()
                {
                    local.wake_row(row);
                }
            }
            _ => {}
        }
    }
}

/// Makes everyone who waits at an endpoint, or in one of its conversations, look again.
pub(crate) fn wake_everyone(member: &Member, entry: &ObjectEntry) -> Result<()> {
    match form(member, entry)? {
        Form::Buffered(ring) => {
            ring.readable().wake(u32::MAX);
            ring.writable().wake(u32::MAX);
            ring.closing().wake(u32::MAX);
        }
        Form::Streamed(rows) => {
            rows.acceptable().wake(u32::MAX);
            rows.openable().wake(u32::MAX);
            for (_, row) in rows.used() {
                // A row without a channel has nobody who waits.
                if row.block.load(Ordering::Acquire) != 0 {
                    row.wake_everyone();
                }
            }
        }
        Form::Remote { .. } => {}
    }
    Ok(())
}

/// What an endpoint is ready for, found out by reading alone.
pub(crate) fn readiness(member: &Member, entry: &ObjectEntry) -> Result<Interest> {
    Ok(match form(member, entry)? {
        Form::Buffered(ring) => {
            Interest::READABLE.when(crate::cell::is_readable(&ring))
                | Interest::WRITABLE.when(crate::cell::is_writable(&ring))
        }
        Form::Streamed(rows) => {
            Interest::READABLE.when(rows.oldest_offer().is_some())
                | Interest::WRITABLE.when(rows.any_free())
        }
        Form::Remote { .. } => Interest::default(),
    })
}

/// Frees the stream channels of an endpoint to which nobody refers any more, and what was not received. If the process dies
/// in here, this is done once more.
pub(crate) fn discard(member: &Member, id: ObjectId, entry: &ObjectEntry) {
    match form(member, entry) {
        Ok(Form::Buffered(ring)) => {
            channel::empty(member, id, &ring, 0);
        }
        Ok(Form::Streamed(rows)) => {
            for (n, row) in rows.used() {
                let block = row.block.load(Ordering::Acquire);
                if let Ok(ring) = row.ring(member.pool()) {
                    channel::empty(member, id, &ring, n);
                }
                if block != 0 {
                    // It fails only on memory that was scribbled over.
                    let forget = || row.block.store(0, Ordering::Release);
                    let _ = member.free_then(block, forget);
                    forget();
                }
            }
        }
        _ => {}
    }
}
