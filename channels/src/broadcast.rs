//! Broadcasts: one, some or all of those who wait at this moment are woken, and get the payload that comes with it.
//!
//! Waiters sit in seats, as those of a condition do, and a wake-up names the payload in the seat. Short payloads lie in the
//! broadcast's own memory, longer ones in a block of the pool; a payload is freed when the last of those whom it woke has read
//! it. Whoever begins to wait later does not get it.

mod payloads;

use std::io::IoSlice;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::copy::copy;
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{Ordering, fence, low};
use dragon_shmem::{Deadline, Member};

use self::payloads::{NONE, Payloads};
use crate::channel::{TestPoint, block_of, test_point};
use crate::error::{Error, Result, within};
use crate::memory::{self, Map};
use crate::message::Message;
use crate::object::{Handle, alive, notify_watcher, second_wait_word, wait_word};
use crate::remote;
use crate::seat::{ALL, Look, MOST_SEATS, Seats};
use crate::wait::mark;

/// How a broadcast is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BroadcastOptions {
    /// How many threads can wait at once.
    pub waiters: u32,
    /// Payloads up to so many bytes lie in the broadcast's own memory; longer ones get a block of the pool.
    pub inline: u32,
    /// How many payloads can be on their way at once: triggered, and not read by all yet. A trigger beyond that waits.
    pub payloads: u32,
    /// A number of the user's choice.
    pub user: u64,
}

impl Default for BroadcastOptions {
    /// 1024 waiters, 8 payloads of 128 bytes.
    fn default() -> Self {
        Self {
            waiters: 1024,
            inline: 128,
            payloads: 8,
            user: 0,
        }
    }
}

/// Whom a trigger wakes, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// At most so many, the longest waiting first.
    pub count: u32,
    /// Not before so many wait.
    pub after: u32,
}

impl Trigger {
    /// The one who waits longest.
    pub const ONE: Self = Self::some(1);
    /// All who wait.
    pub const ALL: Self = Self::some(ALL);

    /// Up to `count` of those who wait.
    #[must_use]
    pub const fn some(count: u32) -> Self {
        Self { count, after: 0 }
    }

    /// Not before `waiters` wait.
    #[must_use]
    pub const fn after(self, waiters: u32) -> Self {
        Self {
            after: waiters,
            ..self
        }
    }
}

/// A handle on a broadcast of this or another node.
///
/// ```
/// use dragon_channels::{Broadcast, BroadcastOptions, Deadline, Error, Trigger};
///
/// let member = dragon_channels::local::member()?;
/// let broadcast = Broadcast::create(&member, &BroadcastOptions::default())?;
/// assert_eq!(broadcast.trigger(Trigger::ALL, b"nobody hears", Deadline::Now)?, 0);
/// std::thread::scope(|scope| {
///     let waiters = [(); 2].map(|()| scope.spawn(|| broadcast.wait(Deadline::Never)));
///     let woken = broadcast.trigger(Trigger::ALL.after(2), b"news", Deadline::Never)?;
///     assert_eq!(woken, 2);
///     for waiter in waiters {
///         let message = waiter.join().expect("it does not panic")?;
///         assert_eq!(message.into_vec(), b"news");
///     }
///     Ok::<(), Error>(())
/// })?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Broadcast {
    handle: Handle,
}

/// Most bytes of a payload that lies in the broadcast's own memory.
const MOST_INLINE: u32 = 1 << 20;

impl Broadcast {
    /// Creates a broadcast on this node.
    ///
    /// # Errors
    /// When an option is out of its range, a table is full, or there is no memory.
    pub fn create(member: &Arc<Member>, options: &BroadcastOptions) -> Result<Self> {
        let shape = Shape {
            waiters: options.waiters,
            inline: options.inline,
            payloads: options.payloads,
        };
        within("waiters of a broadcast", shape.waiters, 1, MOST_SEATS)?;
        within("inline bytes of a broadcast", shape.inline, 0, MOST_INLINE)?;
        within("payloads of a broadcast", shape.payloads, 1, NONE.into())?;
        let size = shape.size();
        let fill = |block| memory::zero(member, block, size);
        let init = |entry: &ObjectEntry| {
            entry.body[WAITERS].store(shape.waiters.into(), Ordering::Relaxed);
            entry.body[INLINE].store(shape.inline.into(), Ordering::Relaxed);
            entry.body[PAYLOADS].store(shape.payloads.into(), Ordering::Relaxed);
        };
        let (kind, user) = (ObjectKind::Broadcast, options.user);
        let id = memory::create(member, kind, user, size, fill, init)?;
        let handle = Handle::created(member, id, user);
        Ok(Self { handle })
    }

    /// Attaches to the broadcast that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let handle = Handle::attach(member, descriptor, ObjectKind::Broadcast, adopt)?;
        Ok(Self { handle })
    }

    /// Waits for the next trigger; returns its payload.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form: a trigger is never there before), [`Error::Timeout`], [`Error::Interrupted`],
    /// [`Error::Destroyed`].
    pub fn wait(&self, deadline: Deadline) -> Result<Message> {
        let member = self.handle.member();
        let Some(entry) = self.handle.local()? else {
            let (id, op) = (self.handle.id(), Op::BroadcastWait);
            return Ok(remote::call_for_message(member, op, id, [0, 0], deadline)?.0);
        };
        let local = Local::open(member, entry, self.handle.id())?;
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        let seat = local.sit(member.slot().index)?;
        let note = {
            let thread = match member.thread() {
                Ok(thread) => thread,
                Err(error) => {
                    local.leave(seat)?;
                    return Err(error.into());
                }
            };
            let (index, generation) = (local.id.index, local.id.generation);
            thread
                .intent
                .begin(Op::BroadcastWait, index, generation, [0, 0]);
            let woken = || !matches!(local.seats.look(seat), Ok(Look::Waiting));
            let words = member.control().words();
            self.handle
                .spin
                .until(words, &thread.intent, deadline, woken);
            local
                .seats
                .wait(seat, deadline, || alive(entry, local.id))?
        };
        let bytes = local.read(note);
        local.stand(seat, note)?;
        Ok(Message::owned(0, bytes?))
    }

    /// Wakes those who wait, and gives them the payload; how many. Nobody need wait: then nothing happens.
    ///
    /// # Errors
    /// With [`Trigger::after`], while fewer wait: [`Error::Empty`] (try form), [`Error::Timeout`], [`Error::Interrupted`]. When
    /// too many payloads are on their way: [`Error::Full`] (try form), or these. [`Error::Destroyed`]; no memory for a long
    /// payload.
    pub fn trigger(&self, trigger: Trigger, payload: &[u8], deadline: Deadline) -> Result<u32> {
        let (member, id) = (self.handle.member(), self.handle.id());
        let Some(entry) = self.handle.local()? else {
            let arguments = [trigger.count.into(), trigger.after.into()];
            let parts = [IoSlice::new(payload)];
            let op = Op::BroadcastTrigger;
            let reply = remote::call_with(member, op, id, arguments, &parts, deadline)?;
            return Ok(low(reply.arg0));
        };
        let local = Local::open(member, entry, id)?;
        within(
            "waiters to trigger after",
            trigger.after,
            0,
            local.shape.waiters,
        )?;
        if trigger.after > 0 {
            let enough = || {
                alive(entry, id)?;
                Ok((local.seats.waiting() >= trigger.after).then_some(()))
            };
            // It was for all who trigger: nothing is left to pass on.
            let none = || false;
            let (word, count, op) = (wait_word(entry), mark::FIRST, Op::BroadcastTrigger);
            self.handle
                .wait_at(word, count, op, deadline, enough, none)?;
        }
        if payload.is_empty() {
            return local.give(trigger.count, NONE);
        }
        let block = local.block_for(payload)?;
        let claim = || {
            alive(entry, id)?;
            Ok(local.payloads.claim(member.slot().index))
        };
        let more = || false;
        let (word, count, op) = (second_wait_word(entry), mark::SECOND, Op::BroadcastTrigger);
        let number = match self.handle.wait_at(word, count, op, deadline, claim, more) {
            Ok(number) => number,
            Err(error) => {
                if let Some(block) = block {
                    member.free(block)?;
                }
                return Err(match error {
                    Error::Empty => Error::Full,
                    other => other,
                });
            }
        };
        local.send(number, payload, block, trigger.count)
    }

    /// How many wait at this moment.
    ///
    /// # Errors
    /// [`Error::Destroyed`], or what another node answers.
    pub fn waiting(&self) -> Result<u32> {
        let id = self.handle.id();
        match self.handle.local()? {
            Some(entry) => Ok(Local::open(self.handle.member(), entry, id)?
                .seats
                .waiting()),
            None => {
                let called = self.handle.call(Op::Attributes, [0, 0], Deadline::Now)?;
                Ok(low(called[0]))
            }
        }
    }

    crate::object::common_methods!();
}

/// Body words that hold the shape.
const WAITERS: usize = 2;
const INLINE: usize = 4;
const PAYLOADS: usize = 5;

/// How large what is.
#[derive(Clone, Copy, Debug)]
struct Shape {
    waiters: u32,
    inline: u32,
    payloads: u32,
}

impl Shape {
    fn of(entry: &ObjectEntry) -> Self {
        let word = |n: usize, most: u32| low(entry.body[n].load(Ordering::Relaxed)).min(most);
        Self {
            waiters: word(WAITERS, MOST_SEATS),
            inline: word(INLINE, MOST_INLINE),
            payloads: word(PAYLOADS, NONE.into()).max(1),
        }
    }

    /// Where the inline bytes of a payload begin: they stand behind each other, on lines of their own.
    fn bytes_at(&self, number: u8) -> u64 {
        let stride = u64::from(self.inline).next_multiple_of(64);
        Seats::size(self.waiters)
            + Payloads::size(self.payloads).next_multiple_of(64)
            + u64::from(number) * stride
    }

    fn size(&self) -> u64 {
        self.bytes_at(0) + u64::from(self.payloads) * u64::from(self.inline).next_multiple_of(64)
    }
}

/// A broadcast of this node, for one operation.
#[derive(Clone, Copy, Debug)]
struct Local<'a> {
    member: &'a Arc<Member>,
    entry: &'a ObjectEntry,
    id: ObjectId,
    shape: Shape,
    map: Map<'a>,
    seats: Seats<'a>,
    payloads: Payloads<'a>,
}

impl<'a> Local<'a> {
    fn open(member: &'a Arc<Member>, entry: &'a ObjectEntry, id: ObjectId) -> Result<Self> {
        // Before the block is opened, so that the first error tells that the broadcast was destroyed.
        alive(entry, id)?;
        Self::open_any(member, entry, id)
    }

    /// Also one that was destroyed.
    fn open_any(member: &'a Arc<Member>, entry: &'a ObjectEntry, id: ObjectId) -> Result<Self> {
        let shape = Shape::of(entry);
        let block = entry.block.load(Ordering::Acquire);
        let map = memory::map(member, block, shape.size())?;
        Ok(Self {
            member,
            entry,
            id,
            shape,
            map,
            seats: Seats::open(&map, 0, shape.waiters)?,
            payloads: Payloads::open(&map, Seats::size(shape.waiters), shape.payloads)?,
        })
    }

    /// Takes a seat, and tells those who wait for waiters.
    fn sit(&self, slot: u32) -> Result<u32> {
        let seat = self.seats.sit(slot)?;
        // Behind the fence of `sit`.
        wait_word(self.entry).wake_sleepers(u32::MAX);
        notify_watcher(self.member, self.entry, self.id);
        Ok(seat)
    }

    /// A block with a payload that is too long for the broadcast's own memory.
    fn block_for(&self, payload: &[u8]) -> Result<Option<u64>> {
        let length = payload.len() as u64;
        if length <= self.shape.inline.into() {
            return Ok(None);
        }
        let block = block_of(self.member, &[IoSlice::new(payload)], length)?;
        Ok(Some(block.offset))
    }

    /// Writes a payload into a claimed place, and gives it to those who wait.
    fn send(&self, number: u8, payload: &[u8], block: Option<u64>, count: u32) -> Result<u32> {
        let length = payload.len() as u64;
        match block {
            Some(block) => {
                self.payloads.set_block(number, block);
                // Shared only while the place names it: from there recovery knows whose the block is.
                if let Err(error) = self.member.share(block) {
                    self.payloads.abandon(number);
                    self.room();
                    return Err(error.into());
                }
            }
            None => {
                let (to, length) = self.map.bytes(self.shape.bytes_at(number), length)?;
                // SAFETY: the map has so many bytes there, of which the claim makes us the owner; the source is private.
                unsafe { copy(payload.as_ptr(), to.as_ptr(), length) };
            }
        }
        self.payloads.publish(number, length);
        test_point(TestPoint::Triggering);
        let woken = self.give(count, number);
        let slot = self.member.slot().index;
        if self
            .payloads
            .close(number, &self.seats, slot, &self.free_block())
        {
            self.room();
        }
        woken
    }

    fn give(&self, count: u32, note: u8) -> Result<u32> {
        let each = |one_more| {
            if note != NONE {
                self.payloads.count(note, one_more);
            }
        };
        let woken = self.seats.give(self.seats.limit(), count, note, each);
        if woken != 0 {
            notify_watcher(self.member, self.entry, self.id);
        }
        Ok(woken)
    }

    /// The payload that a seat was given.
    fn read(&self, note: u8) -> Result<Vec<u8>> {
        let Some((length, block)) = self.payloads.content(note) else {
            return Ok(Vec::new());
        };
        let corrupt = || dragon_shmem::Error::Corrupt {
            what: "length of a payload",
            value: length,
        };
        test_point(TestPoint::Woken);
        if let Some(block) = block {
            self.member.pool().check(block, length)?;
            let mut bytes = vec![0; usize::try_from(length).map_err(|_| corrupt())?];
            self.member.pool().data().copy_out(block, &mut bytes)?;
            return Ok(bytes);
        }
        if length > self.shape.inline.into() {
            return Err(corrupt().into());
        }
        let (from, length) = self.map.bytes(self.shape.bytes_at(note), length)?;
        let mut bytes = vec![0; length];
        // SAFETY: the map has so many bytes there; nobody who behaves writes them before this seat is left.
        unsafe { copy(from.as_ptr(), bytes.as_mut_ptr(), length) };
        Ok(bytes)
    }

    /// Leaves a seat after reading what it was given.
    fn stand(&self, seat: u32, note: u8) -> Result<()> {
        self.seats.stand(seat)?;
        if note != NONE {
            let (seats, slot) = (&self.seats, self.member.slot().index);
            if self.payloads.done(note, seats, slot, &self.free_block()) {
                self.room();
            }
        }
        Ok(())
    }

    /// Leaves a seat unread.
    fn leave(&self, seat: u32) -> Result<()> {
        match self.seats.withdraw(seat)? {
            Some(note) => self.stand(seat, note),
            None => Ok(()),
        }
    }

    /// There is a place for another payload.
    fn room(&self) {
        fence(Ordering::SeqCst);
        second_wait_word(self.entry).wake_sleepers(u32::MAX);
        notify_watcher(self.member, self.entry, self.id);
    }

    fn free_block(&self) -> impl Fn(u64, &dyn Fn()) {
        let member = Arc::clone(self.member);
        move |block, release| {
            // It fails for a block that was scribbled over.
            let _ = member.free_then(block, release);
        }
    }
}

/// One try to trigger, for another node.
pub(crate) fn try_trigger(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    trigger: Trigger,
    payload: &[u8],
) -> Result<Option<u32>> {
    let local = Local::open(member, entry, id)?;
    within(
        "waiters to trigger after",
        trigger.after,
        0,
        local.shape.waiters,
    )?;
    if trigger.after > 0 && local.seats.waiting() < trigger.after {
        return Ok(None);
    }
    if payload.is_empty() {
        return local.give(trigger.count, NONE).map(Some);
    }
    let Some(number) = local.payloads.claim(member.slot().index) else {
        return Ok(None);
    };
    match local.block_for(payload) {
        Ok(block) => local.send(number, payload, block, trigger.count).map(Some),
        Err(error) => {
            local.payloads.abandon(number);
            local.room();
            Err(error)
        }
    }
}

/// One try to wait, for a process of another node, which has the seat from its first try.
pub(crate) fn try_wait(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    slot: u32,
    seat: &mut Option<u32>,
) -> Result<Option<Message>> {
    let local = Local::open(member, entry, id)?;
    let mine = match *seat {
        Some(seat) => seat,
        None => *seat.insert(local.sit(slot)?),
    };
    match local.seats.look(mine)? {
        Look::Given(note) => {
            let bytes = local.read(note);
            local.stand(mine, note)?;
            Ok(Some(Message::owned(0, bytes?)))
        }
        Look::Waiting | Look::Ended => Ok(None),
    }
}

/// Gives a seat up; the payload when it has just been woken and `wanted`.
pub(crate) fn withdraw(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    seat: u32,
    wanted: bool,
) -> Result<Option<Message>> {
    let local = Local::open_any(member, entry, id)?;
    let Some(note) = local.seats.withdraw(seat)? else {
        return Ok(None);
    };
    let bytes = local.read(note);
    local.stand(seat, note)?;
    Ok(wanted.then_some(Message::owned(0, bytes?)))
}

/// How many wait, and can wait.
pub(crate) fn attributes(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
) -> Result<(u32, u32)> {
    let local = Local::open(member, entry, id)?;
    Ok((local.seats.waiting(), local.shape.waiters))
}

/// Frees the seats of a dead process, and what it left of payloads. Blocks that nobody names any more go to `lost`.
pub(crate) fn recover(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    slot: u32,
    lost: impl FnMut(u64),
) {
    // It fails on memory that was scribbled over.
    let Ok(local) = Local::open_any(member, entry, id) else {
        return;
    };
    local.seats.recover(slot, |_| {});
    let (seats, own) = (&local.seats, member.slot().index);
    local
        .payloads
        .recover(slot, seats, own, &local.free_block(), lost);
    local.room();
}

/// Ends all waits.
pub(crate) fn end(member: &Arc<Member>, entry: &ObjectEntry, id: ObjectId) -> Result<()> {
    Local::open_any(member, entry, id)?.seats.end();
    Ok(())
}

/// Frees the payloads of a broadcast to which nobody refers any more.
pub(crate) fn discard(member: &Member, entry: &ObjectEntry) {
    let shape = Shape::of(entry);
    let block = entry.block.load(Ordering::Acquire);
    let Ok(map) = memory::map(member, block, shape.size()) else {
        return;
    };
    if let Ok(payloads) = Payloads::open(&map, Seats::size(shape.waiters), shape.payloads) {
        payloads.discard(&|block, release| {
            // As in `free_block`.
            let _ = member.free_then(block, release);
        });
    }
}

#[cfg(test)]
mod tests;
