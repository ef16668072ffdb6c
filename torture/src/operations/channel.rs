//! Channels.

use std::io::IoSlice;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use dragon_channels::wait::mark;
use dragon_channels::{
    Channel, ChannelOptions, Deadline, Error, Message, Returns, SendOptions, create_channel,
};
use dragon_shmem::Member;

use crate::operations::{
    Act, HUGE, LARGE, Operation, Words, bytes_of, checked, operation, send, soon,
};
use crate::survivor::Survivor;

const CAPACITY: u64 = 4;
const INLINE: u32 = 64;
/// Hint of the victim's message, and of the survivor's.
pub(super) const THEIRS: u64 = 7;
pub(super) const MINE: u64 = 99;

pub(super) const OPERATIONS: &[Operation] = &[
    operation("send", empty, |m, w| sends(m, w, 8)),
    operation("send-full-block", empty, |m, w| sends(m, w, 64)),
    operation("send-reference", empty, |m, w| sends(m, w, LARGE)),
    operation("send-extent", empty, |m, w| sends(m, w, HUGE)),
    operation("send-block", empty, |m, w| sends_block(m, w, LARGE)),
    operation("send-block-extent", empty, |m, w| sends_block(m, w, HUGE)),
    operation("send-to-sleeper", sleeping, |m, w| sends(m, w, 8)),
    operation("send-reference-to-sleeper", sleeping, |m, w| {
        sends(m, w, LARGE)
    }),
    operation("send-to-full", full, |m, w| {
        sends_now(m, w, Err(Error::Full))
    }),
    operation("send-waits", full, |m, w| sends(m, w, 8)),
    Operation {
        cpus: 1,
        ..operation("send-sleeps", full, |m, w| sends(m, w, LARGE))
    },
    operation("receive", |m| filled(m, 8), receives),
    operation("receive-middle", |m| filled(m, 60), receives),
    operation("receive-reference", |m| filled(m, LARGE), receives),
    operation("receive-extent", |m| filled(m, HUGE), receives),
    operation("receive-into", |m| filled(m, LARGE), receives_into),
    operation("receive-frees-place", full_with_sender, receives),
    operation("receive-empty", empty, receives_nothing),
    operation("receive-waits", sends_later, receives),
    Operation {
        cpus: 1,
        ..operation("receive-sleeps", sends_later, receives)
    },
    operation("poll", |m| untouched(m, 8), polls),
    operation("poll-sleeps", polled, polls),
    operation("attributes", |m| untouched(m, 8), attributes),
    operation("create-channel", |_| Ok(Box::new(Nothing)), creates),
    operation(
        "create-and-drop-channel",
        |_| Ok(Box::new(Nothing)),
        creates_and_drops,
    ),
    operation(
        "drop-last-with-messages",
        |_| Ok(Box::new(Nothing)),
        drops_the_last,
    ),
    operation("attach", |m| untouched(m, LARGE), attaches),
    operation("attach-adopting", exporting, attaches_adopting),
    operation("detach", |m| untouched(m, LARGE), detaches),
    operation("export", exported, exports),
    operation("destroy", |m| destroyed(m, false), destroys),
    operation("destroy-wakes", |m| destroyed(m, true), destroys),
];

/// Survivor with one channel.
pub(super) struct Rig {
    pub(super) member: Arc<Member>,
    pub(super) channel: Arc<Channel>,
    /// A new channel each time, since the victim may destroy it.
    pub(super) renewed: bool,
    /// Lengths of messages 0, 1, … that are in the channel at the start.
    pub(super) filled: Vec<usize>,
    /// A thread sleeps in `receive` or `send` while the victim works.
    pub(super) sleeper: Option<Sleeper>,
    pub(super) asleep: Option<JoinHandle<Result<Option<u64>, Error>>>,
    /// What `release` does.
    pub(super) release: Release,
    pub(super) released: bool,
    /// What it has received.
    pub(super) early: Option<u64>,
    /// One more reference in transit at the start; what is in transit at the end is adopted.
    pub(super) exports: bool,
    pub(super) transit: bool,
    /// What can be in the channel afterwards.
    pub(super) outcomes: Vec<Vec<u64>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sleeper {
    Receiver,
    Sender,
    Receipt,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Release {
    Refused,
    Send,
    Receive,
}

fn made(member: &Arc<Member>) -> Result<Arc<Channel>> {
    let options = ChannelOptions {
        capacity: u32::try_from(CAPACITY)?,
        block: INLINE,
        ..ChannelOptions::default()
    };
    Ok(Arc::new(create_channel(member, &options)?))
}

pub(super) fn rig(member: &Arc<Member>, outcomes: &[&[u64]]) -> Result<Rig> {
    Ok(Rig {
        member: Arc::clone(member),
        channel: made(member)?,
        renewed: false,
        filled: Vec::new(),
        sleeper: None,
        asleep: None,
        release: Release::Refused,
        released: false,
        early: None,
        exports: false,
        transit: false,
        outcomes: outcomes.iter().map(|list| list.to_vec()).collect(),
    })
}

pub(super) fn empty(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(rig(member, &[&[], &[THEIRS]])?))
}

fn sleeping(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        sleeper: Some(Sleeper::Receiver),
        ..rig(member, &[&[MINE], &[THEIRS, MINE]])?
    }))
}

pub(super) fn full(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        filled: vec![8; 4],
        release: Release::Receive,
        ..rig(member, &[&[0, 1, 2, 3], &[0, 1, 2, 3, THEIRS]])?
    }))
}

pub(super) fn filled(member: &Arc<Member>, length: usize) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        filled: vec![length; 3],
        ..rig(member, &[&[0, 1, 2], &[1, 2]])?
    }))
}

pub(super) fn untouched(member: &Arc<Member>, length: usize) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        filled: vec![length; 3],
        ..rig(member, &[&[0, 1, 2]])?
    }))
}

fn full_with_sender(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        filled: vec![8; 4],
        sleeper: Some(Sleeper::Sender),
        ..rig(member, &[&[0, 1, 2, 3, MINE], &[1, 2, 3, MINE]])?
    }))
}

fn sends_later(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        release: Release::Send,
        ..rig(member, &[&[], &[MINE]])?
    }))
}

pub(super) fn polled(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        release: Release::Send,
        ..rig(member, &[&[MINE]])?
    }))
}

fn exporting(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        exports: true,
        transit: true,
        ..rig(member, &[&[]])?
    }))
}

fn exported(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        transit: true,
        ..rig(member, &[&[]])?
    }))
}

fn destroyed(member: &Arc<Member>, wakes: bool) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        renewed: true,
        sleeper: wakes.then_some(Sleeper::Receiver),
        ..rig(member, &[])?
    }))
}

impl Survivor for Rig {
    fn arm(&mut self) -> Result<Vec<String>> {
        if self.renewed {
            self.channel = made(&self.member)?;
        }
        for (hint, length) in (0..).zip(&self.filled) {
            send(&self.channel, hint, *length)?;
        }
        if let Some(sleeper) = self.sleeper {
            let channel = Arc::clone(&self.channel);
            self.asleep = Some(thread::spawn(move || match sleeper {
                Sleeper::Receiver => channel
                    .receive(Deadline::Never)
                    .map(|message| Some(checked(message).unwrap_or(u64::MAX))),
                Sleeper::Sender => channel
                    .send(&bytes_of(MINE, 8), MINE, Deadline::Never)
                    .map(|()| None),
                Sleeper::Receipt => {
                    let options = SendOptions {
                        hint: MINE,
                        deadline: Deadline::Never,
                        returns: Returns::Received,
                        ..SendOptions::default()
                    };
                    let bytes = bytes_of(MINE, 8);
                    let sent = channel.send_with(&[IoSlice::new(&bytes)], &options);
                    sent.map(|()| None)
                }
            }));
            wait_until_asleep(&self.member)?;
        }
        if self.exports {
            self.channel.export()?;
        }
        self.released = false;
        Ok(vec![self.channel.descriptor().to_string()])
    }

    fn release(&mut self) -> Result<()> {
        match self.release {
            Release::Refused => bail!("the victim sleeps, and nothing is to wake it"),
            Release::Send if !self.released => send(&self.channel, MINE, 8)?,
            Release::Receive if !self.released => {
                self.early = Some(checked(self.channel.receive(Deadline::Now)?)?);
            }
            Release::Send | Release::Receive => bail!("the victim sleeps on after its wake-up"),
        }
        self.released = true;
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        if self.renewed {
            return self.check_destroyed();
        }
        let mut got = Vec::new();
        got.extend(self.early.take());
        if let Some(asleep) = self.asleep.take() {
            let messages = self.channel.attributes()?.messages;
            match self.sleeper {
                Some(Sleeper::Receiver) => send(&self.channel, MINE, 8)?,
                // Nothing was received: room for the sender that sleeps, or the receipt for which it sleeps.
                Some(Sleeper::Sender) if messages < CAPACITY => {}
                Some(Sleeper::Receipt) if messages == 0 => {}
                _ => got.push(checked(self.channel.receive(soon())?)?),
            }
            let joined = asleep.join().ok().context("the sleeping thread panicked")?;
            got.extend(joined.context("the sleeping thread")?);
        }
        loop {
            match self.channel.receive(Deadline::Now) {
                Ok(message) => got.push(checked(message)?),
                Err(Error::Empty) => break,
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
        let possible = self.outcomes.contains(&got)
            || self.release == Release::Send && !self.released && got.is_empty();
        ensure!(possible, "messages {got:?} are in the channel");
        self.works()?;
        if self.transit {
            self.adopt()?;
        }
        Ok(())
    }
}

impl Rig {
    /// A whole lap through the channel.
    fn works(&self) -> Result<()> {
        for hint in 0..CAPACITY {
            let length = if hint == 1 { LARGE } else { 8 };
            self.channel
                .send(&bytes_of(hint, length), hint, Deadline::Now)
                .with_context(|| format!("message {hint} of {CAPACITY} does not fit"))?;
        }
        ensure!(
            self.channel.send(b"", 0, Deadline::Now) == Err(Error::Full),
            "the channel holds more than its capacity"
        );
        for hint in 0..CAPACITY {
            let found = checked(
                self.channel
                    .receive(Deadline::Now)
                    .context("empty too early")?,
            )?;
            ensure!(found == hint, "message {found} came in place of {hint}");
        }
        Ok(())
    }

    /// Takes over what the victim left in transit, as the receiver of its message would.
    fn adopt(&self) -> Result<()> {
        let id = self.channel.id();
        while self.member.control().entry(id)?.in_transit() > 0 {
            drop(Channel::attach(
                &self.member,
                &self.channel.descriptor(),
                true,
            )?);
        }
        Ok(())
    }

    fn check_destroyed(&mut self) -> Result<()> {
        match self.channel.send(&bytes_of(MINE, 8), MINE, Deadline::Now) {
            Ok(()) | Err(Error::Destroyed(_)) => {}
            Err(error) => return Err(error).context("neither destroyed nor alive"),
        }
        if let Some(asleep) = self.asleep.take() {
            match asleep.join().ok().context("the sleeping thread panicked")? {
                Ok(Some(MINE)) | Err(Error::Destroyed(_)) => {}
                other => bail!("the sleeping thread got {other:?}"),
            }
        }
        let channel = Arc::into_inner(std::mem::replace(&mut self.channel, made(&self.member)?));
        drop(channel.context("the channel is still in use")?);
        Ok(())
    }
}

/// Waits until the thread of this process that was just started sleeps inside an operation.
pub(super) fn wait_until_asleep(member: &Member) -> Result<()> {
    loop {
        for record in member.control().threads(member.slot().index)? {
            if !record.is_touched() {
                break;
            }
            // Counted among the waiters.
            const COUNTED: u32 = mark::FIRST | mark::SECOND | mark::THIRD;
            if record
                .intent
                .read()
                .is_some_and(|now| now.step & COUNTED != 0)
            {
                return Ok(());
            }
        }
        thread::yield_now();
    }
}

/// Operations that concern nobody else.
pub(super) struct Nothing;

impl Survivor for Nothing {
    fn arm(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn check(&mut self) -> Result<()> {
        Ok(())
    }
}

pub(super) fn attached(member: &Arc<Member>, words: &Words) -> Result<Channel> {
    Ok(Channel::attach(member, &words.descriptor(0)?, false)?)
}

/// The channel outlives the operation: it is not given back between the markers.
pub(super) fn act(
    channel: Channel,
    act: impl FnOnce(&Channel) -> Result<()> + 'static,
) -> Result<Act> {
    let channel: &'static Channel = Box::leak(Box::new(channel));
    Ok(Box::new(move || act(channel)))
}

fn sends(member: &Arc<Member>, words: &Words, length: usize) -> Result<Act> {
    let bytes = bytes_of(THEIRS, length);
    act(attached(member, words)?, move |channel| {
        Ok(channel.send(&bytes, THEIRS, Deadline::Never)?)
    })
}

fn sends_now(member: &Arc<Member>, words: &Words, expected: Result<(), Error>) -> Result<Act> {
    act(attached(member, words)?, move |channel| {
        let sent = channel.send(b"", THEIRS, Deadline::Now);
        ensure!(sent == expected, "{sent:?} in place of {expected:?}");
        Ok(())
    })
}

fn sends_block(member: &Arc<Member>, words: &Words, length: usize) -> Result<Act> {
    let block = member.alloc(length as u64)?;
    member
        .pool()
        .write(block.offset, 0, &bytes_of(THEIRS, length))?;
    act(attached(member, words)?, move |channel| {
        Ok(channel.send_block(block, THEIRS, Deadline::Never)?)
    })
}

fn receives(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(attached(member, words)?, |channel| {
        drop(channel.receive(Deadline::Never)?);
        Ok(())
    })
}

fn receives_into(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let mut buffer = vec![0; LARGE];
    act(attached(member, words)?, move |channel| {
        let message: Message = channel.receive(Deadline::Never)?;
        ensure!(message.copy_to(0, &mut buffer) == LARGE, "too short");
        Ok(())
    })
}

fn receives_nothing(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(attached(member, words)?, |channel| {
        match channel.receive(Deadline::Now) {
            Err(Error::Empty) => Ok(()),
            other => bail!("{other:?} in place of an empty channel"),
        }
    })
}

fn polls(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(attached(member, words)?, |channel| {
        channel.poll(Deadline::Never)?;
        Ok(())
    })
}

fn attributes(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(attached(member, words)?, |channel| {
        channel.attributes()?;
        Ok(())
    })
}

fn creates(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        Box::leak(Box::new(create_channel(
            &member,
            &ChannelOptions::default(),
        )?));
        Ok(())
    }))
}

fn creates_and_drops(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        let channel = create_channel(&member, &ChannelOptions::default())?;
        channel.destroy()?;
        drop(channel);
        Ok(())
    }))
}

fn drops_the_last(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let channel = Arc::into_inner(made(member)?).context("just made")?;
    for hint in 0..3 {
        send(&channel, hint, if hint == 1 { 8 } else { LARGE })?;
    }
    Ok(Box::new(move || {
        drop(channel);
        Ok(())
    }))
}

fn attaches(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (member, descriptor) = (Arc::clone(member), words.descriptor(0)?);
    Ok(Box::new(move || {
        Box::leak(Box::new(Channel::attach(&member, &descriptor, false)?));
        Ok(())
    }))
}

fn attaches_adopting(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (member, descriptor) = (Arc::clone(member), words.descriptor(0)?);
    Ok(Box::new(move || {
        Box::leak(Box::new(Channel::attach(&member, &descriptor, true)?));
        Ok(())
    }))
}

fn detaches(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = attached(member, words)?;
    Ok(Box::new(move || {
        drop(channel);
        Ok(())
    }))
}

fn exports(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(attached(member, words)?, |channel| {
        channel.export()?;
        Ok(())
    })
}

fn destroys(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(attached(member, words)?, |channel| Ok(channel.destroy()?))
}
