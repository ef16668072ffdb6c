//! Queues with priorities.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use dragon_channels::{Deadline, Error, PriorityQueue, PriorityQueueOptions};
use dragon_shmem::Member;

use crate::operations::channel::{Nothing, wait_until_asleep};
use crate::operations::{Act, LARGE, Operation, Words, bytes_of, checked, operation};
use crate::survivor::Survivor;

const CAPACITY: u32 = 2;
/// Hint of the victim's message, and of the survivor's; the others count from 0.
const THEIRS: u64 = 7;
const MINE: u64 = 99;

pub(super) const OPERATIONS: &[Operation] = &[
    operation("priority-send", empty, |m, w| sends(m, w, 8)),
    operation("priority-send-reference", empty, |m, w| sends(m, w, LARGE)),
    operation("priority-send-to-sleeper", sleeping, |m, w| sends(m, w, 8)),
    operation("priority-send-waits", full, |m, w| sends(m, w, 8)),
    Operation {
        cpus: 1,
        ..operation("priority-send-sleeps", full, |m, w| sends(m, w, LARGE))
    },
    operation("priority-receive", |m| filled(m, 8), receives),
    operation("priority-receive-middle", |m| filled(m, 60), receives),
    operation("priority-receive-reference", |m| filled(m, LARGE), receives),
    operation("priority-receive-frees-place", full_with_sender, receives),
    operation("priority-receive-waits", sends_later, receives),
    Operation {
        cpus: 1,
        ..operation("priority-receive-sleeps", sends_later, receives)
    },
    operation("priority-peek", |m| untouched(m, LARGE), peeks),
    operation("priority-poll", |m| untouched(m, 8), polls),
    Operation {
        cpus: 1,
        ..operation("priority-poll-sleeps", polled, polls)
    },
    operation("priority-state", |m| untouched(m, 8), states),
    operation("priority-create", |_| Ok(Box::new(Nothing)), creates),
    operation(
        "priority-drop-with-messages",
        |_| Ok(Box::new(Nothing)),
        drops_the_last,
    ),
    operation("priority-attach", |m| untouched(m, LARGE), attaches),
    operation("priority-destroy-wakes", destroyed, destroys),
];

/// Survivor with one queue.
struct Rig {
    member: Arc<Member>,
    queue: Arc<PriorityQueue>,
    /// A new queue each time, since the victim destroys it.
    renewed: bool,
    /// Levels of messages 0, 1, … that are in the queue at the start, and their length.
    filled: &'static [u32],
    length: usize,
    /// A thread sleeps in `receive` or `send` while the victim works.
    sleeper: Option<Sleeper>,
    asleep: Option<JoinHandle<Result<Option<u64>, Error>>>,
    /// What the victim waits for.
    release: Option<Release>,
    released: bool,
    /// What can be received afterwards, in that order.
    outcomes: &'static [&'static [u64]],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sleeper {
    Receiver,
    /// Waits for room in the most urgent level.
    Sender,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Release {
    Send,
    Receive,
}

fn made(member: &Arc<Member>) -> Result<PriorityQueue> {
    let options = PriorityQueueOptions {
        levels: 3,
        capacity: CAPACITY,
        block: 64,
        user: 0,
    };
    Ok(PriorityQueue::create(member, &options)?)
}

fn rig(member: &Arc<Member>, outcomes: &'static [&'static [u64]]) -> Result<Rig> {
    Ok(Rig {
        member: Arc::clone(member),
        queue: Arc::new(made(member)?),
        renewed: false,
        filled: &[],
        length: 8,
        sleeper: None,
        asleep: None,
        release: None,
        released: false,
        outcomes,
    })
}

fn empty(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(rig(member, &[&[], &[THEIRS]])?))
}

fn sleeping(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        sleeper: Some(Sleeper::Receiver),
        ..rig(member, &[&[MINE], &[THEIRS, MINE]])?
    }))
}

/// The victim's level is full; a less urgent one is not.
fn full(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        filled: &[1, 1, 2],
        release: Some(Release::Receive),
        ..rig(member, &[&[0, 1, 2], &[0, 1, THEIRS, 2]])?
    }))
}

/// The most urgent message came last.
fn filled(member: &Arc<Member>, length: usize) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        filled: &[2, 1, 0],
        length,
        ..rig(member, &[&[2, 1, 0], &[1, 0]])?
    }))
}

fn untouched(member: &Arc<Member>, length: usize) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        filled: &[2, 1, 1],
        length,
        ..rig(member, &[&[1, 2, 0]])?
    }))
}

fn full_with_sender(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        filled: &[2, 0, 0],
        sleeper: Some(Sleeper::Sender),
        ..rig(member, &[&[1, 2, MINE, 0], &[2, MINE, 0]])?
    }))
}

fn sends_later(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        release: Some(Release::Send),
        ..rig(member, &[&[], &[MINE]])?
    }))
}

fn polled(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        release: Some(Release::Send),
        ..rig(member, &[&[], &[MINE]])?
    }))
}

fn destroyed(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        renewed: true,
        sleeper: Some(Sleeper::Receiver),
        ..rig(member, &[])?
    }))
}

impl Rig {
    fn send(&self, level: u32, hint: u64, length: usize) -> Result<()> {
        let bytes = bytes_of(hint, length);
        Ok(self.queue.send(level, &bytes, hint, Deadline::Now)?)
    }

    fn receive(&self) -> Result<Option<u64>> {
        match self.queue.receive(Deadline::Now) {
            Ok((_, message)) => Ok(Some(checked(message)?)),
            Err(Error::Empty) => Ok(None),
            Err(error) => Err(error).context("cannot receive"),
        }
    }

    /// Every level holds what it must, and the urgent ones come first.
    fn works(&self) -> Result<()> {
        for level in [2, 1, 0] {
            for n in 0..CAPACITY {
                let hint = u64::from(level * CAPACITY + n);
                let length = if n == 0 { LARGE } else { 8 };
                self.send(level, hint, length)
                    .with_context(|| format!("message {n} of level {level} does not fit"))?;
            }
            let more = self.queue.send(level, b"", 0, Deadline::Now);
            ensure!(
                more == Err(Error::Full),
                "level {level} holds more than its capacity"
            );
        }
        for expected in 0..u64::from(3 * CAPACITY) {
            let found = self.receive()?;
            ensure!(
                found == Some(expected),
                "message {found:?} came in place of {expected}"
            );
        }
        Ok(())
    }

    fn check_destroyed(&mut self) -> Result<()> {
        match self.queue.send(1, b"", MINE, Deadline::Now) {
            Ok(()) | Err(Error::Destroyed(_)) => {}
            Err(error) => return Err(error).context("neither destroyed nor alive"),
        }
        if let Some(asleep) = self.asleep.take() {
            match asleep.join().ok().context("the sleeping thread panicked")? {
                Ok(Some(MINE)) | Err(Error::Destroyed(_)) => {}
                other => bail!("the sleeping thread got {other:?}"),
            }
        }
        let queue = std::mem::replace(&mut self.queue, Arc::new(made(&self.member)?));
        drop(Arc::into_inner(queue).context("the queue is still in use")?);
        Ok(())
    }
}

impl Survivor for Rig {
    fn arm(&mut self) -> Result<Vec<String>> {
        if self.renewed {
            self.queue = Arc::new(made(&self.member)?);
        }
        for (hint, level) in (0..).zip(self.filled) {
            self.send(*level, hint, self.length)?;
        }
        if let Some(sleeper) = self.sleeper {
            let queue = Arc::clone(&self.queue);
            self.asleep = Some(thread::spawn(move || match sleeper {
                Sleeper::Receiver => queue
                    .receive(Deadline::Never)
                    .map(|(_, message)| Some(message.hint())),
                Sleeper::Sender => queue
                    .send(0, &bytes_of(MINE, 8), MINE, Deadline::Never)
                    .map(|()| None),
            }));
            wait_until_asleep(&self.member)?;
        }
        self.released = false;
        Ok(vec![self.queue.descriptor().to_string()])
    }

    fn release(&mut self) -> Result<()> {
        match self.release {
            Some(Release::Send) if !self.released => self.send(2, MINE, 8)?,
            Some(Release::Receive) if !self.released => {
                let hint = self.receive()?;
                ensure!(hint == Some(0), "message {hint:?} came before message 0");
            }
            _ => bail!("the victim sleeps, and nothing is to wake it"),
        }
        self.released = true;
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        if self.renewed {
            return self.check_destroyed();
        }
        let mut got = Vec::new();
        if self.released && self.release == Some(Release::Receive) {
            got.push(0);
        }
        if let Some(asleep) = self.asleep.take() {
            match self.sleeper {
                Some(Sleeper::Receiver) => self.send(1, MINE, 8)?,
                // Room for it, if the victim made none.
                _ if self.queue.state()?.messages[0] == u64::from(CAPACITY) => {
                    got.extend(self.receive()?);
                }
                _ => {}
            }
            let joined = asleep.join().ok().context("the sleeping thread panicked")?;
            got.extend(joined.context("the sleeping thread")?);
        }
        while let Some(hint) = self.receive()? {
            got.push(hint);
        }
        ensure!(
            self.outcomes.contains(&got.as_slice()),
            "messages {got:?} were in the queue"
        );
        self.works()
    }
}

/// The queue outlives the operation: it is not given back between the markers.
fn act(
    member: &Arc<Member>,
    words: &Words,
    act: impl FnOnce(&PriorityQueue) -> Result<()> + 'static,
) -> Result<Act> {
    let queue = PriorityQueue::attach(member, &words.descriptor(0)?, false)?;
    let queue: &'static PriorityQueue = Box::leak(Box::new(queue));
    Ok(Box::new(move || act(queue)))
}

fn sends(member: &Arc<Member>, words: &Words, length: usize) -> Result<Act> {
    let bytes = bytes_of(THEIRS, length);
    act(member, words, move |queue| {
        Ok(queue.send(1, &bytes, THEIRS, Deadline::Never)?)
    })
}

fn receives(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |queue| {
        drop(queue.receive(Deadline::Never)?);
        Ok(())
    })
}

fn peeks(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |queue| {
        let (level, message) = queue.peek(Deadline::Never)?;
        ensure!((level, message.hint()) == (1, 1), "another message");
        Ok(())
    })
}

fn polls(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |queue| {
        queue.poll(Deadline::Never)?;
        Ok(())
    })
}

fn states(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |queue| {
        queue.state()?;
        Ok(())
    })
}

fn creates(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        Box::leak(Box::new(made(&member)?));
        Ok(())
    }))
}

fn drops_the_last(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let queue = made(member)?;
    for (hint, level) in (0..).zip([2, 0, 1, 0]) {
        let length = if hint == 1 { 8 } else { LARGE };
        queue.send(level, &bytes_of(hint, length), hint, Deadline::Now)?;
    }
    Ok(Box::new(move || {
        drop(queue);
        Ok(())
    }))
}

fn attaches(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (member, descriptor) = (Arc::clone(member), words.descriptor(0)?);
    Ok(Box::new(move || {
        let queue = PriorityQueue::attach(&member, &descriptor, false)?;
        Box::leak(Box::new(queue));
        Ok(())
    }))
}

fn destroys(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |queue| Ok(queue.destroy()?))
}
