//! Sets: one wait for thousands of objects.
//!
//! A set consists of a table of members in a block of the pool, and a record in the control region: a bitmap that says
//! which members may have changed since somebody looked, and the word on which waiters sleep. Each object in a set names
//! the member in its own list of subscribers (`subscribers`); whoever changes it looks at the object's watch word, behind
//! the fence that every change has, and flags the member there. A waiter looks at flagged members only: what a wait costs
//! depends on how many have changed, not on how many there are.
//!
//! A member that is ready keeps its flag and is reported again by the next wait (level-triggered). One that is not ready
//! loses it, and is looked at once more afterwards: a change either comes before that second look, or finds the flag
//! lowered and raises it.
//!
//! Members are not kept alive by the set. One whose object was destroyed, or has gone with its last reference, is reported
//! as [`Interest::GONE`] until it is removed.
//!
//! Members of other nodes cannot be looked at; how the set hears of them is told in [`elsewhere`].

pub mod elsewhere;
pub mod flags;
#[cfg(all(test, loom))]
mod model;
mod record;
pub(crate) mod subscribers;
mod table;

use std::cell::Cell;
use std::fmt;
use std::ops::BitOr;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::{ObjectEntry, State};
use dragon_shmem::subscription::{MAX_MEMBERS, owner_word};
use dragon_shmem::sync::{Ordering, fence, high, low};
use dragon_shmem::thread::Intended;
use dragon_shmem::{Control, Deadline, Member, ThreadGuard};

use crate::channel::{TestPoint, test_point};
use crate::error::{Error, Result};
use crate::object::{Handle, alive, is_alive, is_local, word};
use crate::wait::{self, mark};
use elsewhere::{About, Look};
use flags::Flags as _;
pub(crate) use record::record_of;
use record::{RECORD, Record};
use subscribers::{OfEntry, Subscriber};
use table::{Phase, PlaceState, Table};

/// What one waits for, and what was found. Values can be joined by `|`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest(pub(crate) u32);

/// Interests that a subscription can have.
const READY: u32 = 0b11;

impl Interest {
    /// Something can be taken: a message, a set event, a unit of a semaphore, the status of a process that has ended, a
    /// conversation to be accepted.
    pub const READABLE: Self = Self(1);
    /// A channel has room; an endpoint of streams can open a conversation.
    pub const WRITABLE: Self = Self(2);
    /// The object was destroyed, or has gone. Always reported.
    pub const GONE: Self = Self(4);
    /// The object's node is down, or cannot be reached: an operation on the object says which. Always reported.
    pub const LOST: Self = Self(8);

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// As a number: readable 1, writable 2, gone 4, lost 8.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The inverse of [`Interest::bits`]; other bits are dropped.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & 15)
    }

    pub(crate) const fn when(self, ready: bool) -> Self {
        if ready { self } else { Self(0) }
    }
}

impl BitOr for Interest {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["readable", "writable", "gone", "lost"];
        let set = names
            .iter()
            .enumerate()
            .filter(|(n, _)| self.0 >> n & 1 != 0);
        f.debug_set().entries(set.map(|(_, name)| name)).finish()
    }
}

/// A place in a set, as [`Set::add`] gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetMember(u64);

impl SetMember {
    /// As a number, for other languages.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The inverse of [`SetMember::to_u64`].
    #[must_use]
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    fn new(place: u32, version: u32) -> Self {
        Self(u64::from(version) << 32 | u64::from(place))
    }
}

/// A member that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The number that [`Set::add`] was given.
    pub token: u64,
    /// What was found of what was asked for, [`Interest::GONE`] and [`Interest::LOST`].
    pub ready: Interest,
    /// Its place, for [`Set::remove`].
    pub member: SetMember,
}

/// A set of objects that are waited for together, by any number of threads and processes of one node. The objects may lie on
/// any node.
///
/// ```
/// use dragon_channels::local::LocalNode;
/// use dragon_channels::{ChannelOptions, Deadline, Event, Interest, Set, create_channel};
///
/// let node = LocalNode::new()?;
/// let member = node.member()?;
/// let channel = create_channel(&member, &ChannelOptions::default())?;
/// let event = Event::create(&member, 0)?;
/// let set = Set::create(&member, 100, 0)?;
/// set.add(channel.id(), Interest::READABLE, 1)?;
/// set.add(event.id(), Interest::READABLE, 2)?;
/// assert!(set.poll()?.is_empty());
///
/// channel.send(b"hello", 0, Deadline::Never)?;
/// let ready = set.wait(Deadline::Never)?;
/// assert_eq!((ready.len(), ready[0].token), (1, 1));
/// # Ok::<(), dragon_channels::Error>(())
/// ```
#[derive(Debug)]
pub struct Set {
    handle: Handle,
    /// The set's memory, kept by the handle's reference.
    table: Table,
}

/// Most members that [`Set::wait`] and [`Set::poll`] report at once.
pub const BATCH: usize = 256;

impl Set {
    /// Creates an empty set on this node that can have `capacity` members.
    ///
    /// # Errors
    /// When the capacity is out of its range, or there is no memory or no place in a table.
    pub fn create(member: &Arc<Member>, capacity: u32, user: u64) -> Result<Self> {
        if member.is_forked() {
            return Err(Error::Forked);
        }
        if capacity == 0 || capacity > MAX_MEMBERS {
            return Err(Error::InvalidArgument {
                what: "capacity of a set",
                value: capacity.into(),
                least: 1,
                most: MAX_MEMBERS.into(),
            });
        }
        let block = member.alloc(Table::size(capacity))?.offset;
        let made = Table::init(member.pool(), block, capacity).and_then(|()| {
            let id = member.create(ObjectKind::Set, |entry, id| {
                entry.user.store(user, Ordering::Relaxed);
                let record = member.control().claim_set_record(id)?;
                entry.body[RECORD].store(record.into(), Ordering::Relaxed);
                // The block is named before it is shared, as that of a channel.
                entry.block.store(block, Ordering::Release);
                member.share(block)
            })?;
            Ok((id, Table::open(member, block)?))
        });
        let (id, table) = match made {
            Ok(made) => made,
            Err(error) => {
                // Nobody else has seen the block. If it cannot be freed, the first error is still the one to tell.
                let _ = member.free(block);
                return Err(error);
            }
        };
        Ok(Self {
            handle: Handle::created(member, id, user),
            table,
        })
    }

    /// Attaches to the set that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`]; [`Error::Unsupported`] for a set of another node: make one on this node, and add the
    /// objects to it, whichever node they lie on.
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let id = descriptor.object;
        if id.kind == ObjectKind::Set
            && descriptor.runtime == member.control().runtime()
            && !is_local(member, id)
        {
            return Err(not_here(id));
        }
        let handle = Handle::attach(member, descriptor, ObjectKind::Set, adopt)?;
        let entry = handle.local()?.ok_or(not_here(id))?;
        let table = Table::open(member, entry.block.load(Ordering::Acquire))?;
        Ok(Self { handle, table })
    }

    /// Adds an object of any node. `token` comes back when it is ready for one of the interests. One object may be in many
    /// sets, and several times in one. [`Interest::LOST`] alone, for an object of another node: nothing but its loss is told.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an object of a kind that has no such state; [`Error::SetFull`]; when object or set are gone,
    /// or the object's node cannot be reached.
    pub fn add(&self, object: ObjectId, interest: Interest, token: u64) -> Result<SetMember> {
        self.local()?.add(object, interest, token)
    }

    /// Takes a member out.
    ///
    /// # Errors
    /// [`Error::NoSuchMember`] when it is not in the set (any more).
    pub fn remove(&self, membership: SetMember) -> Result<()> {
        self.local()?.remove(membership)
    }

    /// Waits until members are ready, and returns them: all, or [`BATCH`] of them; the next wait starts behind the last one.
    /// A try form asks the owner of each member of another node; one that waits hears of them without asking again.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form), [`Error::Timeout`], [`Error::Interrupted`], [`Error::Destroyed`].
    pub fn wait(&self, deadline: Deadline) -> Result<Vec<Ready>> {
        let mut ready = Vec::new();
        self.wait_into(&mut ready, BATCH, deadline)?;
        Ok(ready)
    }

    /// As [`Set::wait`], into a vector of the caller's, at most `most` of them; returns how many.
    ///
    /// # Errors
    /// As [`Set::wait`].
    pub fn wait_into(
        &self,
        ready: &mut Vec<Ready>,
        most: usize,
        deadline: Deadline,
    ) -> Result<usize> {
        self.local()?.wait(&self.handle, ready, most, deadline)
    }

    /// The members that are ready now.
    ///
    /// # Errors
    /// [`Error::Destroyed`].
    pub fn poll(&self) -> Result<Vec<Ready>> {
        match self.wait(Deadline::Now) {
            Err(Error::Empty) => Ok(Vec::new()),
            other => other,
        }
    }

    /// How many members there are, and how many there can be. Counts them one by one.
    ///
    /// # Errors
    /// [`Error::Destroyed`].
    pub fn attributes(&self) -> Result<(u32, u32)> {
        let local = self.local()?;
        alive(local.entry, local.id)?;
        Ok((local.table.count(), local.table.capacity()))
    }

    crate::object::common_methods!();

    fn local(&self) -> Result<Local<'_>> {
        let (member, id) = (self.handle.member(), self.handle.id());
        let entry = self.handle.local()?.ok_or(not_here(id))?;
        Local::new(member, id, entry, self.table)
    }
}

/// The error of a set of another node.
const fn not_here(set: ObjectId) -> Error {
    Error::Unsupported {
        what: "a set can be used on its own node only, since its waiters sleep in that node's memory; make a set on this node, and add the objects to it: they may lie on any node",
        object: set,
    }
}

/// No member, in an intent.
const NO_MEMBER: u64 = u64::MAX;

/// A set of this node, for one operation.
#[derive(Clone, Copy, Debug)]
struct Local<'a> {
    member: &'a Arc<Member>,
    id: ObjectId,
    entry: &'a ObjectEntry,
    table: Table,
    number: u32,
    record: Record<'a>,
}

impl<'a> Local<'a> {
    fn new(
        member: &'a Arc<Member>,
        id: ObjectId,
        entry: &'a ObjectEntry,
        table: Table,
    ) -> Result<Self> {
        let (number, record) = record_of(member.control(), entry)?;
        Ok(Self {
            member,
            id,
            entry,
            table,
            number,
            record,
        })
    }

    fn control(&self) -> &'a Control {
        self.member.control()
    }

    fn subscriber(&self, place: u32, interest: Interest) -> Subscriber {
        Subscriber {
            record: self.number,
            generation: self.record.0.generation.load(Ordering::Acquire),
            member: place,
            interest,
        }
    }

    fn begin(&self, thread: &ThreadGuard<'_>, op: Op) {
        let (index, generation) = (self.id.index, self.id.generation);
        thread.intent.begin(op, index, generation, [NO_MEMBER, 0]);
    }

    fn add(&self, object: ObjectId, interest: Interest, token: u64) -> Result<SetMember> {
        alive(self.entry, self.id)?;
        if interest != Interest::LOST || is_local(self.member, object) {
            check(object, interest)?;
        }
        let entry = if is_local(self.member, object) {
            let entry = self.control().entry(object)?;
            alive(entry, object)?;
            Some(entry)
        } else {
            // Whether there is such an object, its node knows.
            elsewhere::ready_now(self.member, object, interest)?;
            self.has_elsewhere();
            None
        };
        let thread = self.member.thread()?;
        self.begin(&thread, Op::Subscribe);
        let slot = self.member.slot().index;
        let announce = |place, version| thread.intent.set(0, SetMember::new(place, version).0);
        let claimed = self.table.claim(slot, interest, announce);
        let (n, place, version) = claimed.ok_or(Error::SetFull {
            set: self.id,
            capacity: self.table.capacity(),
        })?;
        test_point(TestPoint::Subscribing);
        place.object.store(owner_word(object), Ordering::Relaxed);
        place.token.store(token, Ordering::Relaxed);
        let about = About::new(object, place.about.load(Ordering::Relaxed));
        place.about.store(about.word(), Ordering::Relaxed);
        let state = PlaceState::new(version, slot, interest, Phase::Member);
        // Release: who sees the member sees its object.
        place.state.store(state.0, Ordering::Release);
        test_point(TestPoint::Subscribed);
        if let Some(entry) = entry {
            let places = OfEntry {
                control: self.control(),
                entry,
                id: object,
            };
            let word = self.subscriber(n, interest).word();
            let gone = |word| subscribers::is_gone(self.control(), word);
            if let Err(error) = subscribers::enter(&places, word, gone) {
                self.table.free(n, place, version);
                return Err(error);
            }
        }
        // For changes before this.
        fence(Ordering::SeqCst);
        flags::announce(&self.record, n, false);
        Ok(SetMember::new(n, version))
    }

    fn remove(&self, membership: SetMember) -> Result<()> {
        alive(self.entry, self.id)?;
        let thread = self.member.thread()?;
        self.begin(&thread, Op::Unsubscribe);
        thread.intent.set(0, membership.0);
        self.take_out(membership, self.member.slot().index)
    }

    /// Takes a member out, for a process that may be dead.
    fn take_out(&self, membership: SetMember, slot: u32) -> Result<()> {
        let none = || Error::NoSuchMember {
            set: self.id,
            membership,
        };
        let (n, version) = (low(membership.0), high(membership.0));
        let place = self.table.place(n).ok_or_else(none)?;
        let now = PlaceState(place.state.load(Ordering::Acquire));
        if now.phase() != Some(Phase::Member) || now.version() != version {
            return Err(none());
        }
        let leaving = PlaceState::new(version, slot, now.interest(), Phase::Leaving);
        place
            .state
            .compare_exchange(now.0, leaving.0, Ordering::AcqRel, Ordering::Relaxed)
            .map_err(|_| none())?;
        test_point(TestPoint::Unsubscribing);
        self.finish_leaving(n, place, leaving);
        Ok(())
    }

    /// The second part of a removal; can be repeated.
    fn finish_leaving(&self, n: u32, place: &table::Place, state: PlaceState) {
        let object = About::of(place).object(place.object.load(Ordering::Acquire));
        let is_here = |id: &ObjectId| is_local(self.member, *id);
        if let Some(id) = object.filter(is_here)
            && let Ok(entry) = self.control().object(id.index)
        {
            let places = OfEntry {
                control: self.control(),
                entry,
                id,
            };
            subscribers::leave(&places, self.subscriber(n, state.interest()).word());
        }
        self.table.free(n, place, state.version());
        if object.is_some_and(|id| !is_here(&id)) {
            elsewhere::withdraw(self.member, self.id, self.entry, Some(n));
        }
    }

    fn wait(
        &self,
        handle: &Handle,
        ready: &mut Vec<Ready>,
        most: usize,
        deadline: Deadline,
    ) -> Result<usize> {
        let most = most.clamp(1, MAX_MEMBERS as usize);
        let thread = self.member.thread()?;
        self.begin(&thread, Op::SetWait);
        let left = Cell::new(false);
        let look = Cell::new(match deadline {
            Deadline::Now => Look::Now,
            _ => Look::First,
        });
        if look.get() == Look::Now {
            self.flag_elsewhere();
        }
        let mut attempt = || {
            let found = self.collect(&thread, ready, most, look.get(), &left)?;
            look.set(Look::Woken);
            Ok((found != 0).then_some(found))
        };
        let found = match attempt() {
            Ok(Some(found)) => Ok(found),
            Ok(None) if deadline == Deadline::Now => Err(Error::Empty),
            Ok(None) => self.sleep(handle, &thread, deadline, attempt),
            Err(error) => Err(error),
        };
        // A member that was reported stays ready for the others, who sleep; so may one be for which this waiter was woken.
        let may_be_ready = match &found {
            Ok(_) => true,
            Err(Error::Empty) => false,
            Err(_) => flags::any(&self.record),
        };
        if left.get() || may_be_ready {
            fence(Ordering::SeqCst);
            self.record.wait().wake_sleepers(1);
        }
        found
    }

    fn sleep(
        &self,
        handle: &Handle,
        thread: &ThreadGuard<'_>,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Result<Option<usize>>,
    ) -> Result<usize> {
        let flagged = || flags::any(&self.record) || !is_alive(self.entry, self.id);
        let words = self.control().words();
        while handle.spin.until(words, &thread.intent, deadline, flagged) {
            if let Some(found) = attempt()? {
                return Ok(found);
            }
            if deadline.passed() {
                return Err(Error::Timeout);
            }
        }
        let counted = |yes| thread.intent.step(if yes { mark::FIRST } else { 0 });
        // What this waiter leaves to others, it tells them when it has left.
        wait::sleep_until(self.record.wait(), deadline, counted, attempt, || false)
    }

    /// Reports members that are ready. `left` is set when others may be, or a flag was raised again.
    fn collect(
        &self,
        thread: &ThreadGuard<'_>,
        ready: &mut Vec<Ready>,
        most: usize,
        look: Look,
        left: &Cell<bool>,
    ) -> Result<usize> {
        alive(self.entry, self.id)?;
        let capacity = self.table.capacity();
        let start = self.record.0.cursor.load(Ordering::Relaxed) % capacity;
        let mut found = 0;
        // Also flags beyond the members: one that was raised for the record's last set is taken away.
        for (from, to) in [(start, u32::MAX), (0, start)] {
            let mut at = from;
            while let Some(n) = flags::next(&self.record, at).filter(|n| *n < to) {
                at = n + 1;
                let member = match self.look(thread, n, look, left) {
                    Ok(Some(member)) => member,
                    Ok(None) => continue,
                    // What was found before is reported; the flag is up, and the next wait meets the error.
                    Err(_) if found != 0 => {
                        left.set(true);
                        return Ok(found);
                    }
                    Err(error) => return Err(error),
                };
                ready.push(member);
                found += 1;
                if found == most {
                    self.record.0.cursor.store(at, Ordering::Relaxed);
                    left.set(true);
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    /// Looks at a flagged member; lowers its flag when it is not ready.
    fn look(
        &self,
        thread: &ThreadGuard<'_>,
        n: u32,
        look: Look,
        left: &Cell<bool>,
    ) -> Result<Option<Ready>> {
        if let Some(member) = self.elsewhere(n) {
            return member.look(thread, look, || left.set(true));
        }
        // Recovery raises the flag again if this process dies between the two looks.
        let lowering = |yes| thread.intent.set(0, if yes { n.into() } else { NO_MEMBER });
        Ok(flags::look(
            &self.record,
            n,
            || self.state_of(n),
            lowering,
            || left.set(true),
        ))
    }

    /// What a member of this node is ready for.
    fn state_of(&self, n: u32) -> Option<Ready> {
        let place = self.table.place(n)?;
        let state = PlaceState(place.state.load(Ordering::Acquire));
        if state.phase() != Some(Phase::Member) {
            return None;
        }
        let id = About::of(place).object(place.object.load(Ordering::Relaxed))?;
        let token = place.token.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        // The place may have been given to another member meanwhile: its add flags it anew.
        if place.state.load(Ordering::Relaxed) != state.0 {
            return None;
        }
        let found = self.readiness(id);
        let ready = Interest(found.0 & (state.interest().0 | Interest::GONE.0));
        (ready != Interest(0)).then_some(Ready {
            token,
            ready,
            member: SetMember::new(n, state.version()),
        })
    }

    /// What an object is ready for. It is only read: nobody here has a reference to it, so what was read is believed only
    /// when the object still exists afterwards.
    fn readiness(&self, id: ObjectId) -> Interest {
        let Ok(entry) = self.control().object(id.index) else {
            return Interest::GONE;
        };
        let exists = || matches!(entry.read(), (State::Alive, _, generation, _) if generation == id.generation);
        if !exists() {
            return Interest::GONE;
        }
        let found = ready_for(self.member, entry, id);
        fence(Ordering::Acquire);
        if exists() { found } else { Interest::GONE }
    }
}

/// What an object is ready for at this moment, by reading alone.
fn ready_for(member: &Member, entry: &ObjectEntry, id: ObjectId) -> Interest {
    let word_is =
        |test: fn(u32) -> bool| Interest::READABLE.when(test(word(entry).load(Ordering::Acquire)));
    match id.kind {
        ObjectKind::Channel => match crate::channel::readiness(member, entry) {
            Ok((readable, writable)) => {
                Interest::READABLE.when(readable) | Interest::WRITABLE.when(writable)
            }
            // The caller looks whether the object exists.
            Err(_) => Interest::READABLE | Interest::WRITABLE,
        },
        ObjectKind::Stream => crate::stream::readiness(member, entry)
            .unwrap_or(Interest::READABLE | Interest::WRITABLE),
        ObjectKind::Event => word_is(|word| word & 1 != 0),
        ObjectKind::Semaphore => {
            let units = crate::semaphore::value(member, entry, id);
            Interest::READABLE.when(units.is_ok_and(|(units, _)| units != 0))
        }
        ObjectKind::Process => word_is(|word| word != 0),
        ObjectKind::PriorityQueue => {
            // The caller looks whether the object exists.
            Interest::READABLE.when(crate::priority::is_readable(member, entry).unwrap_or(true))
        }
        _ => Interest(0),
    }
}

/// Fails unless an object can be a member with these interests.
fn check(object: ObjectId, interest: Interest) -> Result<()> {
    let possible = match object.kind {
        ObjectKind::Channel | ObjectKind::Stream => Interest::READABLE | Interest::WRITABLE,
        // Which of its levels would have to have room, nobody could say.
        ObjectKind::PriorityQueue
        | ObjectKind::Event
        | ObjectKind::Semaphore
        | ObjectKind::Process => Interest::READABLE,
        _ => {
            let what = "objects of this kind cannot be in a set";
            return Err(Error::Unsupported { what, object });
        }
    };
    if interest == Interest(0) || !possible.contains(interest) {
        return Err(Error::InvalidArgument {
            what: "interest in a member of a set (readable 1, writable 2)",
            value: interest.0.into(),
            least: 1,
            most: possible.0.into(),
        });
    }
    Ok(())
}

/// The record of a set that goes is the next one to be used.
pub(crate) fn discard(member: &Arc<Member>, id: ObjectId, entry: &ObjectEntry) {
    elsewhere::withdraw(member, id, entry, None);
    let number = low(entry.body[RECORD].load(Ordering::Relaxed));
    member.control().lower_set_hint(number);
}

/// Wakes all who wait for the set.
pub(crate) fn wake_everyone(member: &Arc<Member>, entry: &ObjectEntry, id: ObjectId) -> Result<()> {
    record_of(member.control(), entry)?.1.wait().wake(u32::MAX);
    if !is_alive(entry, id) {
        elsewhere::withdraw(member, id, entry, None);
    }
    Ok(())
}

/// Finishes or undoes what a dead process was doing to a set.
pub(crate) fn finish(
    member: &Arc<Member>,
    slot: u32,
    id: ObjectId,
    entry: &ObjectEntry,
    intended: &Intended,
) -> Result<()> {
    let table = Table::open(member, entry.block.load(Ordering::Acquire))?;
    let set = Local::new(member, id, entry, table)?;
    let number = intended.arguments[0];
    if intended.op == Op::SetWait {
        if intended.step & mark::FIRST != 0 {
            set.record.wait().forget_waiter();
        }
        if number < u64::from(table.capacity()) {
            if let Some(place) = table.place(low(number)) {
                elsewhere::forget_question(place);
            }
            flags::raise(&set.record, low(number), true);
        }
        return Ok(());
    }
    let (n, version) = (low(number), high(number));
    let Some(place) = table.place(n) else {
        return Ok(());
    };
    let state = PlaceState(place.state.load(Ordering::Acquire));
    if state.version() != version || state.slot() != slot {
        return Ok(());
    }
    match state.phase() {
        Some(Phase::Claimed) if intended.op == Op::Subscribe => table.free(n, place, version),
        Some(Phase::Member) if intended.op == Op::Subscribe => {
            set.take_out(SetMember(number), slot)?;
        }
        Some(Phase::Leaving) => set.finish_leaving(n, place, state),
        _ => {}
    }
    Ok(())
}
