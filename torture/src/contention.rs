//! Several processes at once on the same objects, of which one after the other is killed at a random moment.
//!
//! Every message has a sender, a lane (a channel, or a level of a queue with priorities) and a number. Who receives it says so in
//! a journal beside the node's memory. When a round is over, each message that a sender says it sent was received exactly once,
//! but for at most one for each death; each receiver saw the messages of one sender in one lane in their order; the lock was never
//! had by two; and everything that can be counted is as before.

mod groups;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dragon_channels::{
    Channel, ChannelOptions, Deadline, Error, Event, Lock, Message, PriorityQueue,
    PriorityQueueOptions, Semaphore, SemaphoreOptions, create_channel,
};
use dragon_protocol::{Descriptor, SlotId};
use dragon_shmem::Member;
use libc::pid_t;

use crate::operations::{bytes_of, checked};
use crate::random::Random;
use crate::scratch;
use crate::steps::End;
use crate::survivor::HANG;
use crate::tally::{Failure, Tally};
use crate::watchdog;
use crate::world::{Counts, World, recover};
use groups::Groups;

/// What `--operation` calls it.
pub(crate) const NAME: &str = "contention";

const WORKERS: usize = 4;
/// The last one grows.
const CHANNELS: usize = 3;
/// Of the queue with priorities.
const LEVELS: u32 = 3;
/// Where messages pass: the channels, then the levels of the queue.
const LANES: usize = CHANNELS + LEVELS as usize;
const KILLS_A_ROUND: u64 = 100;
const INCARNATIONS: usize = 128;
/// Messages that one process sends through one lane at most.
const MESSAGES: usize = 1024;
const UNITS: u32 = 3;
const POOL: u64 = 32 << 20;

/// Words beside the node's memory.
struct Journal {
    /// Not 0: everybody ends.
    stop: &'static AtomicU64,
    /// Who is inside the lock, plus 1; and two numbers that change together there.
    inside: &'static AtomicU64,
    pair: [&'static AtomicU64; 2],
    /// By incarnation and lane: how many messages were sent.
    sent: &'static [AtomicU64],
    /// By incarnation, lane and number: how often the message was received.
    received: &'static [AtomicU64],
}

const HEAD: usize = 8;
const SENT: usize = INCARNATIONS * LANES;
const WORDS: usize = HEAD + SENT + SENT * MESSAGES;

impl Journal {
    fn new() -> Result<Self> {
        let words: &'static [AtomicU64; WORDS] = scratch::shared()?;
        let (head, rest) = words.split_at(HEAD);
        let (sent, received) = rest.split_at(SENT);
        Ok(Self {
            stop: &head[0],
            inside: &head[1],
            pair: [&head[2], &head[3]],
            sent,
            received,
        })
    }

    fn clear(&self) {
        for word in [self.stop, self.inside, self.pair[0], self.pair[1]] {
            word.store(0, Ordering::SeqCst);
        }
        for word in self.sent.iter().chain(self.received) {
            // Most are 0: writing them would touch every page.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    fn sent(&self, who: usize, lane: usize) -> &AtomicU64 {
        &self.sent[who * LANES + lane]
    }

    fn received(&self, who: usize, lane: usize, number: usize) -> &AtomicU64 {
        &self.received[(who * LANES + lane) * MESSAGES + number]
    }

    /// Notes a received message; fails when it was received before.
    fn note(&self, who: usize, lane: usize, number: usize) -> Result<()> {
        ensure!(
            who < INCARNATIONS && number < MESSAGES,
            "nobody sent message {number} of {who}"
        );
        let before = self
            .received(who, lane, number)
            .fetch_add(1, Ordering::SeqCst);
        ensure!(before == 0, "message {number} of {who} came twice");
        Ok(())
    }
}

/// The hint of a message.
fn hint(who: usize, lane: usize, number: usize) -> u64 {
    (who as u64) << 32 | (lane as u64) << 24 | number as u64
}

/// The lane that a level of the queue is.
fn lane_of(level: u32) -> Result<usize> {
    Ok(CHANNELS + usize::try_from(level)?)
}

fn split(hint: u64) -> (usize, usize, usize) {
    let part = |shift: u32, bits: u32| {
        usize::try_from(hint >> shift & ((1 << bits) - 1)).unwrap_or(usize::MAX)
    };
    (part(32, 32), part(24, 8), part(0, 24))
}

/// Kills so many processes.
pub(crate) fn torture(kills: u64, seed: u64, tally: &mut Tally) -> Result<()> {
    let journal = Journal::new()?;
    let mut done = 0;
    while done < kills {
        let count = (kills - done).min(KILLS_A_ROUND);
        let seed = seed.wrapping_add(done);
        watchdog::watch(NAME, usize::try_from(done).unwrap_or(0));
        journal.clear();
        if let Err(failure) = round(&journal, count, seed) {
            let number = usize::try_from(seed).unwrap_or(0);
            tally.fail(NAME, End::Kill, number, None, failure);
        }
        tally.kills += count;
        done += count;
    }
    Ok(())
}

/// A process that works, and is to be killed.
struct Worker {
    pid: pid_t,
    slot: SlotId,
}

fn round(journal: &Journal, kills: u64, seed: u64) -> Result<(), Failure> {
    let world = World::new(2, POOL).map_err(Failure::wrong)?;
    let empty = world.counts().map_err(Failure::wrong)?;
    let mut random = Random::new(seed);
    let mut keeper = Keeper::new(&world).map_err(Failure::wrong)?;
    let start = world.counts().map_err(Failure::wrong)?;
    // What it has grown by stays until it goes.
    keeper.add_growing().map_err(Failure::wrong)?;
    let mut next = 0;
    let mut spawn = |seed: u64| {
        next += 1;
        Worker::fork(&world, &keeper, journal, next - 1, seed)
    };
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(spawn(random.next()).map_err(Failure::wrong)?);
    }
    for _ in 0..kills {
        pause(random.below(1_500_000));
        let which = usize::try_from(random.below(WORKERS as u64)).unwrap_or(0);
        let victim = workers.swap_remove(which);
        victim.kill(&world).map_err(Failure::wrong)?;
        workers.push(spawn(random.next()).map_err(Failure::wrong)?);
    }
    journal.stop.store(1, Ordering::SeqCst);
    for worker in workers {
        worker.join(&world)?;
    }
    keeper.check(journal, kills).map_err(Failure::wrong)?;
    keeper.channels.truncate(CHANNELS - 1);
    leak(&world, &start)?;
    keeper.end(&world).map_err(Failure::wrong)?;
    leak(&world, &empty)?;
    if world.is_empty().map_err(Failure::wrong)? {
        Ok(())
    } else {
        Err(Failure::leak(
            "pages are not free after everybody's end".to_owned(),
        ))
    }
}

fn leak(world: &World, start: &Counts) -> Result<(), Failure> {
    let counts = world.counts().map_err(Failure::wrong)?;
    match counts.leak(start) {
        Some(leak) => Err(Failure::leak(leak)),
        None => Ok(()),
    }
}

/// Sleeps, on a word that nobody changes.
fn pause(nanoseconds: u64) {
    let never = dragon_shmem::sync::AtomicU32::new(0);
    let _ = dragon_shmem::futex::wait(&never, 0, Deadline::after(nanoseconds));
}

/// The member that made the objects and stays to the end.
struct Keeper {
    member: Arc<Member>,
    channels: Vec<Channel>,
    queue: PriorityQueue,
    lock: Lock,
    event: Event,
    semaphore: Semaphore,
    groups: Groups,
}

impl Keeper {
    fn new(world: &World) -> Result<Self> {
        let member = world.member(world.control.claim_slot(std::process::id())?)?;
        let options = ChannelOptions {
            capacity: 8,
            block: 64,
            ..ChannelOptions::default()
        };
        let units = SemaphoreOptions {
            value: UNITS,
            most: UNITS,
            owned: true,
            ..SemaphoreOptions::default()
        };
        let channels = vec![
            create_channel(&member, &options)?,
            create_channel(&member, &options)?,
        ];
        let levels = PriorityQueueOptions {
            levels: LEVELS,
            capacity: 4,
            block: 64,
            user: 0,
        };
        let queue = PriorityQueue::create(&member, &levels)?;
        Ok(Self {
            groups: Groups::new(&member, &channels, &queue)?,
            channels,
            queue,
            lock: Lock::create(&member, 0)?,
            event: Event::create(&member, 0)?,
            semaphore: Semaphore::with_options(&member, &units)?,
            member,
        })
    }

    fn add_growing(&mut self) -> Result<()> {
        let options = ChannelOptions {
            capacity: 2,
            block: 64,
            unbounded: Some(100),
            ..ChannelOptions::default()
        };
        self.channels.push(create_channel(&self.member, &options)?);
        Ok(())
    }

    fn descriptors(&self) -> [Descriptor; 7] {
        [
            self.channels[0].descriptor(),
            self.channels[1].descriptor(),
            self.channels[2].descriptor(),
            self.queue.descriptor(),
            self.lock.descriptor(),
            self.event.descriptor(),
            self.semaphore.descriptor(),
        ]
    }

    /// Everybody else is gone.
    fn check(&self, journal: &Journal, kills: u64) -> Result<()> {
        for (n, channel) in self.channels.iter().enumerate() {
            loop {
                match channel.receive(Deadline::Now) {
                    Ok(message) => {
                        let (who, of, number) = split(checked(message)?);
                        ensure!(of == n, "a message of channel {of} came out of channel {n}");
                        journal.note(who, n, number)?;
                    }
                    Err(Error::Empty) => break,
                    Err(error) => return Err(error).context("the last messages"),
                }
            }
            channel
                .send(b"", 0, Deadline::Now)
                .context("the empty channel")?;
            channel
                .receive(Deadline::Now)
                .context("the empty channel")?;
        }
        self.drain_queue(journal)?;
        let mut missing = 0;
        for who in 0..INCARNATIONS {
            for lane in 0..LANES {
                let sent = journal.sent(who, lane).load(Ordering::SeqCst);
                for number in 0..usize::try_from(sent)? {
                    let times = journal.received(who, lane, number).load(Ordering::SeqCst);
                    missing += u64::from(times == 0);
                }
            }
        }
        ensure!(
            missing <= kills,
            "{missing} messages are lost with {kills} processes"
        );
        let deadline = Deadline::after(10_000_000_000);
        self.lock.acquire(deadline).context("the lock is lost")?;
        self.lock.release(false)?;
        self.event.set()?;
        self.event.wait(Deadline::Now)?;
        let units = self.semaphore.value()?;
        ensure!(units == UNITS, "{units} of {UNITS} units are left");
        self.groups
            .check(&self.member, &self.channels[..CHANNELS - 1], &self.queue)?;
        Ok(())
    }

    /// What is left in the queue comes by its levels, and each of them works.
    fn drain_queue(&self, journal: &Journal) -> Result<()> {
        let mut last = 0;
        loop {
            let (level, message) = match self.queue.receive(Deadline::Now) {
                Ok(received) => received,
                Err(Error::Empty) => break,
                Err(error) => return Err(error).context("the last messages of the queue"),
            };
            ensure!(
                level >= last,
                "a message of level {level} came after one of level {last}"
            );
            last = level;
            let (who, of, number) = split(checked(message)?);
            let lane = lane_of(level)?;
            ensure!(
                of == lane,
                "a message of lane {of} came out of level {level}"
            );
            journal.note(who, lane, number)?;
        }
        for level in (0..LEVELS).rev() {
            self.queue
                .send(level, b"", 0, Deadline::Now)
                .context("the empty queue")?;
        }
        for level in 0..LEVELS {
            let (from, _) = self.queue.receive(Deadline::Now)?;
            ensure!(from == level, "level {from} came before level {level}");
        }
        Ok(())
    }

    fn end(self, world: &World) -> Result<()> {
        let slot = self.member.slot();
        drop(self);
        recover(world, slot)
    }
}

impl Worker {
    fn fork(
        world: &World,
        keeper: &Keeper,
        journal: &Journal,
        who: usize,
        seed: u64,
    ) -> Result<Self> {
        let slot = world.control.claim_slot(0)?;
        // SAFETY: this process has one thread, so the child's memory is consistent.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: a plain request about this process.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            // The frames above belong to the supervisor: a panic ends here.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                Work::new(world, slot, keeper, journal, who, seed).and_then(Work::run)
            }));
            let code = match ended {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    eprintln!("worker {who}: {error:#}");
                    9
                }
                Err(_) => 9,
            };
            // SAFETY: ends the process without running what the parent registered for its own end.
            unsafe { libc::_exit(code) };
        }
        ensure!(pid > 0, "fork: {}", io::Error::last_os_error());
        Ok(Self { pid, slot })
    }

    fn kill(self, world: &World) -> Result<()> {
        // SAFETY: the process is our child and not waited for, so the number is its.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        let status = self.wait(0)?.context("waited for")?;
        ensure!(
            libc::WIFSIGNALED(status) || libc::WEXITSTATUS(status) == 0,
            "a worker found something wrong"
        );
        recover(world, self.slot)
    }

    /// Waits for its end, and recovers what it leaves.
    fn join(self, world: &World) -> Result<(), Failure> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.wait(libc::WNOHANG).map_err(Failure::wrong)? {
                break status;
            }
            if start.elapsed() > HANG {
                // SAFETY: as in `kill`.
                unsafe { libc::kill(self.pid, libc::SIGKILL) };
                let _ = self.wait(0);
                return Err(Failure::of(
                    crate::survivor::Trouble::Hang,
                    "a worker does not end",
                ));
            }
            pause(Duration::from_millis(1).subsec_nanos().into());
        };
        if status != 0 {
            return Err(Failure::wrong(anyhow::anyhow!(
                "a worker found something wrong: status {status:#x}"
            )));
        }
        recover(world, self.slot).map_err(Failure::wrong)
    }

    fn wait(&self, flags: libc::c_int) -> Result<Option<libc::c_int>> {
        let mut status = 0;
        loop {
            // SAFETY: our child; `status` is a place for the status.
            match unsafe { libc::waitpid(self.pid, &raw mut status, flags) } {
                0 => return Ok(None),
                pid if pid == self.pid => return Ok(Some(status)),
                _ => {
                    let error = io::Error::last_os_error();
                    ensure!(
                        error.kind() == io::ErrorKind::Interrupted,
                        "waitpid: {error}"
                    );
                }
            }
        }
    }
}

/// What a worker does until it is killed or told to stop.
struct Work<'a> {
    member: Arc<Member>,
    journal: &'a Journal,
    who: usize,
    random: Random,
    descriptors: [Descriptor; 7],
    channels: [Channel; CHANNELS],
    queue: PriorityQueue,
    lock: Lock,
    event: Event,
    semaphore: Semaphore,
    groups: Groups,
    /// By lane: the next message's number.
    next: [usize; LANES],
    /// By lane and sender: the number after the last one received.
    last: Vec<usize>,
    blocks: Vec<u64>,
}

const MOMENT: u64 = 300_000;

impl<'a> Work<'a> {
    fn new(
        world: &World,
        slot: SlotId,
        keeper: &Keeper,
        journal: &'a Journal,
        who: usize,
        seed: u64,
    ) -> Result<Self> {
        let member = world.member(slot)?;
        let descriptors = keeper.descriptors();
        let [first, second, third, queue, lock, event, semaphore] = &descriptors;
        Ok(Self {
            groups: Groups::attach(&member, &keeper.groups.descriptors())?,
            channels: [
                Channel::attach(&member, first, false)?,
                Channel::attach(&member, second, false)?,
                Channel::attach(&member, third, false)?,
            ],
            queue: PriorityQueue::attach(&member, queue, false)?,
            lock: Lock::attach(&member, lock, false)?,
            event: Event::attach(&member, event, false)?,
            semaphore: Semaphore::attach(&member, semaphore, false)?,
            member,
            journal,
            who,
            random: Random::new(seed),
            next: [0; LANES],
            last: vec![0; LANES * INCARNATIONS],
            blocks: Vec::new(),
            descriptors,
        })
    }

    fn run(mut self) -> Result<()> {
        while self.journal.stop.load(Ordering::SeqCst) == 0 {
            match self.random.below(22) {
                0..=4 => self.send()?,
                5..=10 => self.receive()?,
                11 => self.lock()?,
                12 => self.units()?,
                13 => self.event()?,
                14 => self.blocks()?,
                15 => self.objects()?,
                _ => self.groups()?,
            }
        }
        Ok(())
    }

    fn lane(&mut self) -> Result<usize> {
        Ok(usize::try_from(self.random.below(LANES as u64))?)
    }

    fn groups(&mut self) -> Result<()> {
        let (random, channels) = (&mut self.random, &self.channels[..CHANNELS - 1]);
        match self.groups.work(&self.member, channels, random, MOMENT)? {
            Some(readable) => self.receive_from(readable, Deadline::Now),
            None => Ok(()),
        }
    }

    fn send(&mut self) -> Result<()> {
        let n = self.lane()?;
        if self.next[n] == MESSAGES {
            return Ok(());
        }
        let length = [8, 40, 64, 300, 1_000, 70_000];
        let choice = if self.random.below(20) == 0 { 6 } else { 5 };
        let length = length[usize::try_from(self.random.below(choice))?];
        let hint = hint(self.who, n, self.next[n]);
        let deadline = Deadline::after(self.random.below(2) * MOMENT);
        let bytes = bytes_of(hint, length);
        let sent = match self.channels.get(n) {
            Some(channel) => channel.send(&bytes, hint, deadline),
            None => {
                let level = u32::try_from(n - CHANNELS)?;
                self.queue.send(level, &bytes, hint, deadline)
            }
        };
        match sent {
            Ok(()) => {
                self.next[n] += 1;
                let sent = self.journal.sent(self.who, n);
                sent.store(self.next[n] as u64, Ordering::SeqCst);
                Ok(())
            }
            Err(Error::Full | Error::Timeout | Error::AtLimit { .. }) => Ok(()),
            Err(error) => Err(error).context("send"),
        }
    }

    fn receive(&mut self) -> Result<()> {
        let n = self.lane()?;
        let deadline = Deadline::after(self.random.below(2) * MOMENT);
        self.receive_from(n, deadline)
    }

    fn receive_from(&mut self, lane: usize, deadline: Deadline) -> Result<()> {
        let (n, message) = match self.take_from(lane, deadline) {
            Ok(received) => received,
            Err(Error::Empty | Error::Timeout) => return Ok(()),
            Err(error) => return Err(error).context("receive"),
        };
        let (who, of, number) = split(checked(message)?);
        ensure!(of == n, "a message of lane {of} came out of lane {n}");
        self.journal.note(who, n, number)?;
        let last = &mut self.last[n * INCARNATIONS + who];
        ensure!(
            number >= *last,
            "message {number} of {who} came after message {}",
            *last - 1
        );
        *last = number + 1;
        Ok(())
    }

    /// A message of a channel, or of the queue whatever its level; and its lane.
    fn take_from(&self, lane: usize, deadline: Deadline) -> Result<(usize, Message), Error> {
        let Some(channel) = self.channels.get(lane) else {
            let (level, message) = self.queue.receive(deadline)?;
            return Ok((lane_of(level).unwrap_or(usize::MAX), message));
        };
        Ok((lane, channel.receive(deadline)?))
    }

    fn lock(&mut self) -> Result<()> {
        let acquired = match self.lock.acquire(Deadline::after(MOMENT)) {
            Ok(acquired) => acquired,
            Err(Error::Timeout) => return Ok(()),
            Err(error) => return Err(error).context("lock"),
        };
        let journal = self.journal;
        let me = self.who as u64 + 1;
        let before = journal.inside.swap(me, Ordering::SeqCst);
        let [first, second] = journal.pair.map(|word| word.load(Ordering::SeqCst));
        if acquired.owner_died {
            // The half-done change of the dead one is finished.
            journal.pair[1].store(first, Ordering::SeqCst);
        } else {
            ensure!(before == 0, "two have the lock: {me} and {before}");
            ensure!(first == second, "a change under the lock is seen half done");
        }
        journal.pair[0].store(first + 1, Ordering::SeqCst);
        journal.pair[1].store(first + 1, Ordering::SeqCst);
        let inside = journal.inside.swap(0, Ordering::SeqCst);
        ensure!(inside == me, "two have the lock: {me} and {inside}");
        Ok(self.lock.release(false)?)
    }

    fn units(&mut self) -> Result<()> {
        match self.semaphore.acquire(Deadline::after(MOMENT)) {
            Ok(()) => Ok(self.semaphore.release(1)?),
            Err(Error::Timeout) => Ok(()),
            Err(error) => Err(error).context("semaphore"),
        }
    }

    fn event(&mut self) -> Result<()> {
        match self.random.below(3) {
            0 => Ok(self.event.set()?),
            1 => Ok(self.event.clear()?),
            _ => match self.event.wait(Deadline::after(MOMENT)) {
                Ok(()) | Err(Error::Timeout) => Ok(()),
                Err(error) => Err(error).context("event"),
            },
        }
    }

    fn blocks(&mut self) -> Result<()> {
        if self.blocks.len() < 20 && self.random.below(2) == 0 {
            let length = 1 + self.random.below(90_000);
            // The pool may be full.
            self.blocks
                .extend(self.member.try_alloc(length)?.map(|block| block.offset));
        } else if !self.blocks.is_empty() {
            let which = usize::try_from(self.random.below(self.blocks.len() as u64))?;
            self.member.free(self.blocks.swap_remove(which))?;
        }
        Ok(())
    }

    fn objects(&mut self) -> Result<()> {
        let which = usize::try_from(self.random.below(8))?;
        match self.descriptors.get(which) {
            Some(descriptor) => drop(dragon_channels::Object::attach(
                &self.member,
                descriptor,
                false,
            )?),
            None => {
                let options = ChannelOptions {
                    capacity: 4,
                    ..ChannelOptions::default()
                };
                let channel = create_channel(&self.member, &options)?;
                channel.send(&[1; 400], 0, Deadline::Now)?;
                channel.destroy()?;
            }
        }
        Ok(())
    }
}
