//! Batches, receipts, and looking at a message that stays.

use std::io::IoSlice;
use std::sync::Arc;

use anyhow::{Result, ensure};
use dragon_channels::{Deadline, Returns, SendOptions};
use dragon_shmem::Member;

use crate::operations::channel::{
    MINE, Release, Rig, Sleeper, THEIRS, act, attached, empty, filled, full, polled, rig, untouched,
};
use crate::operations::{Act, LARGE, Operation, Words, bytes_of, checked, operation, soon};
use crate::survivor::Survivor;

pub(super) const OPERATIONS: &[Operation] = &[
    operation("send-many", with_room, |m, w| sends_many(m, w, [8; 3])),
    operation("send-many-mixed", with_room, |m, w| {
        sends_many(m, w, [8, LARGE, 8])
    }),
    Operation {
        cpus: 1,
        ..operation("send-many-sleeps", half_full, |m, w| {
            sends_many(m, w, [8; 3])
        })
    },
    operation("receive-many", |m| taken(m, 8), receives_many),
    operation(
        "receive-many-references",
        |m| taken(m, LARGE),
        receives_many,
    ),
    operation("peek", |m| untouched(m, 8), peeks),
    operation("peek-reference", |m| untouched(m, LARGE), peeks),
    Operation {
        cpus: 1,
        ..operation("peek-sleeps", polled, peeks)
    },
    operation("send-immediately", empty, |m, w| {
        sends_with(m, w, Returns::Immediately)
    }),
    operation("send-buffered", empty, |m, w| {
        sends_with(m, w, Returns::Buffered)
    }),
    operation("send-traced", empty, sends_traced),
    Operation {
        cpus: 1,
        ..operation("receipt-sleeps", received_later, |m, w| {
            sends_with(m, w, Returns::Received)
        })
    },
    operation("receipt-is-given", awaited, receives),
    operation("receive-into-place", |m| filled(m, 8), receives_into_place),
    operation("send-many-to-full", full, sends_many_now),
];

fn with_room(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    let [a, b, c] = [THEIRS, THEIRS + 1, THEIRS + 2];
    let outcomes: &[&[u64]] = &[&[], &[a], &[a, b], &[a, b, c]];
    Ok(Box::new(rig(member, outcomes)?))
}

/// Two of three messages have room at first.
fn half_full(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    let [a, b, c] = [THEIRS, THEIRS + 1, THEIRS + 2];
    let outcomes: &[&[u64]] = &[&[0, 1], &[0, 1, a], &[0, 1, a, b], &[0, 1, a, b, c]];
    Ok(Box::new(Rig {
        filled: vec![8; 2],
        release: Release::Receive,
        ..rig(member, outcomes)?
    }))
}

fn taken(member: &Arc<Member>, length: usize) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        filled: vec![length; 3],
        ..rig(member, &[&[0, 1, 2], &[1, 2], &[2], &[]])?
    }))
}

/// The survivor receives what the victim has sent when that waits for the receipt.
fn received_later(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        release: Release::Receive,
        ..rig(member, &[&[], &[THEIRS]])?
    }))
}

/// A thread of the survivor waits for the receipt that the victim gives by receiving.
fn awaited(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        sleeper: Some(Sleeper::Receipt),
        ..rig(member, &[&[], &[MINE]])?
    }))
}

fn sends_many(member: &Arc<Member>, words: &Words, lengths: [usize; 3]) -> Result<Act> {
    let messages: Vec<_> = (THEIRS..)
        .zip(lengths)
        .map(|(hint, length)| (bytes_of(hint, length), hint))
        .collect();
    act(attached(member, words)?, move |channel| {
        let batch: Vec<_> = messages.iter().map(|(b, hint)| (&b[..], *hint)).collect();
        let sent = channel.send_many(&batch, Deadline::Never)?;
        ensure!(sent == 3, "{sent} of 3 messages were sent");
        Ok(())
    })
}

fn sends_many_now(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(attached(member, words)?, |channel| {
        let sent = channel.send_many(&[(b"", 1), (b"", 2)], Deadline::Now);
        ensure!(sent.is_err(), "{sent:?} messages went into a full channel");
        Ok(())
    })
}

fn receives_many(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(attached(member, words)?, |channel| {
        let messages = channel.receive_many(8, Deadline::Never)?;
        ensure!(messages.len() == 3, "{} of 3 messages came", messages.len());
        Ok(())
    })
}

fn receives(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(attached(member, words)?, |channel| {
        drop(channel.receive(Deadline::Never)?);
        Ok(())
    })
}

fn receives_into_place(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let mut buffer = [0; 8];
    act(attached(member, words)?, move |channel| {
        let received = channel.receive_into(&mut buffer, Deadline::Never)?;
        ensure!(received.length == 8, "{received:?}");
        Ok(())
    })
}

fn peeks(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(attached(member, words)?, |channel| {
        checked(channel.peek(Deadline::Never)?)?;
        Ok(())
    })
}

fn sends_with(member: &Arc<Member>, words: &Words, returns: Returns) -> Result<Act> {
    sends_as(
        member,
        words,
        SendOptions {
            returns,
            ..SendOptions::default()
        },
    )
}

fn sends_traced(member: &Arc<Member>, words: &Words) -> Result<Act> {
    sends_as(
        member,
        words,
        SendOptions {
            trace: Some([7; 16]),
            ..SendOptions::default()
        },
    )
}

fn sends_as(member: &Arc<Member>, words: &Words, options: SendOptions) -> Result<Act> {
    let bytes = bytes_of(THEIRS, LARGE);
    let options = SendOptions {
        hint: THEIRS,
        deadline: if options.returns == Returns::Received {
            Deadline::Never
        } else {
            soon()
        },
        ..options
    };
    act(attached(member, words)?, move |channel| {
        Ok(channel.send_with(&[IoSlice::new(&bytes)], &options)?)
    })
}
