//! Unbounded channels: rings are added, gone through, and go with the channel.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use dragon_channels::{Channel, ChannelOptions, Deadline, Error, create_channel};
use dragon_shmem::Member;

use crate::operations::channel::Nothing;
use crate::operations::{Act, LARGE, Operation, Words, bytes_of, checked, operation, send, soon};
use crate::survivor::Survivor;

/// Cells of the first ring.
const CAPACITY: u32 = 2;
const LIMIT: u32 = 20;
/// Hint of the victim's first message.
const THEIRS: u64 = 50;

pub(super) const OPERATIONS: &[Operation] = &[
    operation("grow", |m| rig(m, 2, 0, LIMIT), |m, w| sends(m, w, 8)),
    operation(
        "grow-reference",
        |m| rig(m, 2, 0, LIMIT),
        |m, w| sends(m, w, LARGE),
    ),
    operation(
        "grow-further",
        |m| rig(m, 6, 0, LIMIT),
        |m, w| sends(m, w, 8),
    ),
    operation("grow-many", |m| rig(m, 1, 0, LIMIT), sends_many),
    operation("grow-limit", |m| rig(m, 2, 0, 2), sends_at_the_limit),
    Operation {
        cpus: 1,
        ..operation(
            "grow-limit-sleeps",
            |m| rig(m, 2, 0, 2),
            |m, w| sends(m, w, 8),
        )
    },
    operation(
        "grown-receive",
        |m| rig(m, 7, 3, LIMIT),
        |m, w| receives(m, w, 3),
    ),
    operation("grown-receive-many", |m| rig(m, 7, 5, LIMIT), receives_many),
    operation("grown-peek", drained, peeks),
    operation("grown-drop-last", |_| Ok(Box::new(Nothing)), drops_the_last),
];

/// Has an unbounded channel, a new one each time: its rings stay as long as it does.
struct Rig {
    member: Arc<Member>,
    /// Messages that are in the channel at the start: 0, 1, …
    filled: u64,
    /// How many of them the survivor receives before the victim comes.
    first: u64,
    /// How many of them the survivor has received.
    received: u64,
    /// How many the victim may receive.
    taken: u64,
    limit: u32,
    channel: Option<Channel>,
}

fn rig(member: &Arc<Member>, filled: u64, taken: u64, limit: u32) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        member: Arc::clone(member),
        filled,
        first: 0,
        received: 0,
        taken,
        limit,
        channel: None,
    }))
}

/// The first ring is drained, and nobody has gone on to the next one yet.
fn drained(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        member: Arc::clone(member),
        filled: 3,
        first: 2,
        received: 0,
        taken: 0,
        limit: LIMIT,
        channel: None,
    }))
}

fn made(member: &Arc<Member>, limit: u32) -> Result<Channel> {
    let options = ChannelOptions {
        capacity: CAPACITY,
        block: 64,
        unbounded: Some(limit),
        ..ChannelOptions::default()
    };
    Ok(create_channel(member, &options)?)
}

/// Every third message is large.
fn length_of(hint: u64) -> usize {
    if hint % 3 == 1 { LARGE } else { 8 }
}

impl Survivor for Rig {
    fn arm(&mut self) -> Result<Vec<String>> {
        let channel = made(&self.member, self.limit)?;
        for hint in 0..self.filled {
            send(&channel, hint, length_of(hint))?;
        }
        for hint in 0..self.first {
            let found = checked(channel.receive(Deadline::Now)?)?;
            ensure!(found == hint, "message {found} came in place of {hint}");
        }
        self.received = self.first;
        let words = vec![channel.descriptor().to_string()];
        self.channel = Some(channel);
        Ok(words)
    }

    fn release(&mut self) -> Result<()> {
        let channel = self.channel.as_ref().context("armed")?;
        let hint = checked(channel.receive(Deadline::Now)?)?;
        ensure!(hint == self.received, "message {hint} came too early");
        self.received += 1;
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        let channel = self.channel.take().context("armed")?;
        let mut got = Vec::new();
        loop {
            match channel.receive(Deadline::Now) {
                Ok(message) => got.push(checked(message)?),
                Err(Error::Empty) => break,
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
        // The victim received some of the first, or sent some after the last.
        let theirs = got.iter().filter(|hint| **hint >= THEIRS).count();
        let (mine, theirs) = got.split_at(got.len() - theirs);
        let first = self.filled - mine.len() as u64;
        let lost = first.saturating_sub(self.received);
        ensure!(lost <= self.taken, "{lost} messages are missing");
        let in_order = mine.iter().copied().eq(first..self.filled)
            && theirs
                .iter()
                .copied()
                .eq(THEIRS..THEIRS + theirs.len() as u64);
        ensure!(in_order, "messages {got:?} are in the channel");
        // It holds as many as its limit says, over all its rings, and not one more.
        for hint in 0..self.limit.into() {
            channel
                .send(&bytes_of(hint, length_of(hint)), hint, Deadline::Now)
                .with_context(|| format!("message {hint} of {}", self.limit))?;
        }
        let more = channel.send(b"", 0, Deadline::Now);
        ensure!(
            matches!(more, Err(Error::AtLimit { .. })),
            "{more:?} beyond the limit"
        );
        for hint in 0..self.limit.into() {
            let found = checked(channel.receive(Deadline::Now).context("empty too early")?)?;
            ensure!(found == hint, "message {found} came in place of {hint}");
        }
        Ok(())
    }
}

fn attached(member: &Arc<Member>, words: &Words) -> Result<&'static Channel> {
    let channel = Channel::attach(member, &words.descriptor(0)?, false)?;
    Ok(Box::leak(Box::new(channel)))
}

fn sends(member: &Arc<Member>, words: &Words, length: usize) -> Result<Act> {
    let channel = attached(member, words)?;
    let bytes = bytes_of(THEIRS, length);
    Ok(Box::new(move || {
        Ok(channel.send(&bytes, THEIRS, Deadline::Never)?)
    }))
}

/// A batch for which the channel grows.
fn sends_many(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = attached(member, words)?;
    let hints = THEIRS..THEIRS + 4;
    let messages: Vec<_> = hints.map(|hint| (bytes_of(hint, 8), hint)).collect();
    Ok(Box::new(move || {
        let batch: Vec<_> = messages.iter().map(|(b, hint)| (&b[..], *hint)).collect();
        let sent = channel.send_many(&batch, Deadline::Never)?;
        ensure!(sent == batch.len(), "{sent} messages were sent");
        Ok(())
    }))
}

fn sends_at_the_limit(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = attached(member, words)?;
    Ok(Box::new(move || {
        match channel.send(b"", THEIRS, Deadline::Now) {
            Err(Error::AtLimit { .. }) => Ok(()),
            other => bail!("{other:?} at the limit"),
        }
    }))
}

fn receives(member: &Arc<Member>, words: &Words, count: u32) -> Result<Act> {
    let channel = attached(member, words)?;
    Ok(Box::new(move || {
        for _ in 0..count {
            drop(channel.receive(Deadline::Never)?);
        }
        Ok(())
    }))
}

fn receives_many(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = attached(member, words)?;
    Ok(Box::new(move || {
        let messages = channel.receive_many(5, Deadline::Never)?;
        ensure!(messages.len() == 5, "{} messages came", messages.len());
        Ok(())
    }))
}

fn peeks(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = attached(member, words)?;
    Ok(Box::new(move || {
        let hint = checked(channel.peek(soon())?)?;
        ensure!(hint == 2, "message {hint} was seen in place of 2");
        Ok(())
    }))
}

/// A channel of three rings, with messages in all of them, goes.
fn drops_the_last(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let channel = made(member, LIMIT)?;
    for hint in 0..8 {
        send(&channel, hint, length_of(hint))?;
    }
    ensure!(channel.attributes()?.segments == 3, "three rings");
    Ok(Box::new(move || {
        drop(channel);
        Ok(())
    }))
}
