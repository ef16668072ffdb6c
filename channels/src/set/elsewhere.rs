//! Members of a set that are objects of other nodes.
//!
//! A look cannot read such an object. So the set *asks* its node, through the agent: tell once when it is ready. The request
//! waits at the owner like any other; the answer is written into the member's place by this node's agent, which then flags
//! the member and wakes a waiter, as a change of an object of this node does. Which way it is with a member stands in the
//! second half of its place's word `about`:
//!
//! ```text
//! ask 26 | found 4 | phase 2 | node 24 | kind 8
//!
//! UNKNOWN ─waiter: CAS, then the request→ ASKED(n) ─agent: CAS→ KNOWN(n, found) ─waiter: CAS, reports it→ UNKNOWN
//! ```
//!
//! An answer tells what was found when it was given. A waiter that slept until then reports it as it is; one that finds it
//! lying there asks the owner once more before it does, with a request that does not wait, and so does every try form, for all
//! members of other nodes. So a member that is reported was ready after the wait began, as one of this node.
//!
//! The request belongs to the set, not to the process that asked: the agent drops it when the member is taken out, or the
//! set goes, by its last reference or by the death of those who used it. A place that says ASKED while nobody asks can only
//! be left by a process that died in between: its intent names the member, and recovery has it asked again.

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::wire;
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{Ordering, fence, high, low};
use dragon_shmem::{Deadline, Member, ThreadGuard, slot};

use super::table::{Phase, Place, PlaceState, Table};
use super::{Interest, Local, NO_MEMBER, READY, Ready, SetMember, flags, record_of};
use crate::attempt::with_reference;
use crate::error::{Error, Result};
use crate::object::alive;
use crate::remote;

/// The word of a set's entry that says whether it has ever had members of other nodes.
const EVER: usize = 3;

/// How a waiter looks at members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Without waiting: what is not known is asked for at once.
    Now,
    /// Before it sleeps: an answer that lies there may be old.
    First,
    /// After it slept: an answer that lies there came meanwhile.
    Woken,
}

/// The request of a set to be told when a member of another node is ready, as the agents name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The set, which lies on this node.
    pub set: ObjectId,
    /// The member's place, and how often it had been given out before.
    pub place: u32,
    /// See `place`.
    pub version: u32,
    /// Number of the question at this place.
    pub ask: u32,
}

impl Subscription {
    /// From the payload of a request of a process of this node.
    #[must_use]
    pub fn of_request(node: NodeIndex, request: &wire::Subscription) -> Self {
        Self {
            set: ObjectId {
                node,
                kind: ObjectKind::Set,
                index: request.set.get(),
                generation: request.generation.get(),
            },
            place: request.place.get(),
            version: request.version.get(),
            ask: request.ask.get(),
        }
    }

    /// As the payload of a request.
    #[must_use]
    pub fn to_request(self) -> wire::Subscription {
        wire::Subscription {
            set: self.set.index.into(),
            generation: self.set.generation.into(),
            place: self.place.into(),
            version: self.version.into(),
            ask: self.ask.into(),
        }
    }

    /// The place, as long as the member is in it that asks.
    fn place_in(self, table: &Table) -> Option<&Place> {
        let place = table.place(self.place)?;
        let state = PlaceState(place.state.load(Ordering::Acquire));
        let is_it = state.phase() == Some(Phase::Member) && state.version() == self.version;
        is_it.then_some(place)
    }
}

/// How it is with a member of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Knowledge {
    Unknown = 0,
    Asked = 1,
    Known = 2,
}

/// The word `about` of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About(u64);

impl About {
    /// Of a new member. The number of the last question stays, so that no late answer is taken for one to the next.
    pub(super) fn new(object: ObjectId, before: u64) -> Self {
        let of_object = u64::from(object.node.get()) << 8 | object.kind as u64;
        Self(of_object).with(Knowledge::Unknown, Self(before).ask(), Interest(0))
    }

    pub(super) fn of(place: &Place) -> Self {
        Self(place.about.load(Ordering::Acquire))
    }

    pub(super) fn word(self) -> u64 {
        self.0
    }

    /// The object of a place, to go by the other word of the place.
    pub(super) fn object(self, object: u64) -> Option<ObjectId> {
        let [kind, ..] = self.0.to_le_bytes();
        Some(ObjectId {
            node: NodeIndex::new(low(self.0) >> 8)?,
            kind: ObjectKind::from_u8(kind)?,
            index: low(object),
            generation: high(object),
        })
    }

    fn knowledge(self) -> Knowledge {
        match high(self.0) & 3 {
            1 => Knowledge::Asked,
            2 => Knowledge::Known,
            _ => Knowledge::Unknown,
        }
    }

    fn found(self) -> Interest {
        Interest::from_bits(high(self.0) >> 2 & 0xf)
    }

    fn ask(self) -> u32 {
        high(self.0) >> 6
    }

    fn with(self, knowledge: Knowledge, ask: u32, found: Interest) -> Self {
        let about = (ask & 0x3ff_ffff) << 6 | (found.0 & 0xf) << 2 | knowledge as u32;
        Self(u64::from(about) << 32 | u64::from(low(self.0)))
    }

    /// Changes a place's word; false when it was changed meanwhile.
    fn change(self, place: &Place, to: Self) -> bool {
        place
            .about
            .compare_exchange(self.0, to.0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl Local<'_> {
    /// Notes that the set has members of other nodes, before it has the first.
    pub(super) fn has_elsewhere(&self) {
        self.entry.body[EVER].store(1, Ordering::Release);
    }

    /// Flags all members of other nodes, so that a try form looks at each.
    pub(super) fn flag_elsewhere(&self) {
        if self.entry.body[EVER].load(Ordering::Acquire) == 0 {
            return;
        }
        let here = self.control().node();
        for n in 0..self.table.used() {
            let Some(place) = self.table.place(n) else {
                return;
            };
            let object = About::of(place).object(place.object.load(Ordering::Relaxed));
            if object.is_some_and(|object| object.node != here) {
                flags::raise(&self.record, n, false);
            }
        }
    }

    /// The member of another node in a place; `None`: there is none, or one of this node.
    pub(super) fn elsewhere(&self, n: u32) -> Option<Elsewhere<'_>> {
        let place = self.table.place(n)?;
        let state = PlaceState(place.state.load(Ordering::Acquire));
        let token = place.token.load(Ordering::Relaxed);
        let object = About::of(place).object(place.object.load(Ordering::Relaxed))?;
        fence(Ordering::Acquire);
        // The place may have been given to another member meanwhile: its add flags it anew.
        let is_it = state.phase() == Some(Phase::Member)
            && place.state.load(Ordering::Relaxed) == state.0
            && object.node != self.control().node();
        is_it.then_some(Elsewhere {
            set: self,
            n,
            place,
            state,
            object,
            token,
        })
    }
}

/// A member of another node.
#[derive(Debug)]
pub(super) struct Elsewhere<'a> {
    set: &'a Local<'a>,
    n: u32,
    place: &'a Place,
    state: PlaceState,
    object: ObjectId,
    token: u64,
}

impl Elsewhere<'_> {
    /// Looks at the member, which is flagged; lowers its flag when nothing is to be done before its node answers. `left` as
    /// in [`flags::look`].
    pub(super) fn look(
        &self,
        thread: &ThreadGuard<'_>,
        mut look: Look,
        left: impl Fn(),
    ) -> Result<Option<Ready>> {
        loop {
            let now = About::of(self.place);
            let unknown = now.with(Knowledge::Unknown, now.ask(), Interest(0));
            match (now.knowledge(), look) {
                (Knowledge::Known, Look::Woken) => {
                    if now.change(self.place, unknown) {
                        return Ok(Some(self.ready(now.found())));
                    }
                }
                // The flag stays up, and so does what is known: that is for those who wait, and do not only try.
                (_, Look::Now) => return self.check(),
                (Knowledge::Known, Look::First) => {
                    let found = self.check()?;
                    // If it was changed meanwhile, there is a later answer, or a question.
                    if now.change(self.place, unknown) && found.is_some() {
                        return Ok(found);
                    }
                }
                (Knowledge::Unknown, _) => {
                    let asked = now.with(Knowledge::Asked, now.ask() + 1, Interest(0));
                    // If this process dies before the request is made, recovery has the member asked again.
                    thread.intent.set(0, self.n.into());
                    if !now.change(self.place, asked) {
                        continue;
                    }
                    if let Err(error) = self.request(asked) {
                        let lost = matches!(error, Error::NoGateway(..));
                        let back = if lost {
                            asked.with(Knowledge::Known, asked.ask(), Interest::LOST)
                        } else {
                            asked.with(Knowledge::Unknown, asked.ask(), Interest(0))
                        };
                        asked.change(self.place, back);
                        // Another waiter may have found it asked for, and lowered the flag: now it is to ask.
                        fence(Ordering::SeqCst);
                        flags::raise(&self.set.record, self.n, false);
                        left();
                        if !lost {
                            return Err(error);
                        }
                    }
                    look = Look::Woken;
                }
                (Knowledge::Asked, _) => {
                    thread.intent.set(0, self.n.into());
                    flags::lower(&self.set.record, self.n);
                    // Pairs with the fence between an answer and the look at the flag.
                    fence(Ordering::SeqCst);
                    if About::of(self.place) == now {
                        thread.intent.set(0, NO_MEMBER);
                        return Ok(None);
                    }
                    flags::raise(&self.set.record, self.n, false);
                    left();
                    thread.intent.set(0, NO_MEMBER);
                    look = Look::Woken;
                }
            }
        }
    }

    /// What the owner says at this moment.
    fn check(&self) -> Result<Option<Ready>> {
        let member = self.set.member;
        let found = match ready_now(member, self.object, self.state.interest()) {
            Ok(found) => found,
            Err(error) => Interest::of_answer(&error).ok_or(error)?,
        };
        Ok((found != Interest(0)).then(|| self.ready(found)))
    }

    fn request(&self, asked: About) -> Result<()> {
        let subscription = Subscription {
            set: self.set.id,
            place: self.n,
            version: self.state.version(),
            ask: asked.ask(),
        };
        let interest = self.state.interest();
        remote::subscribe(self.set.member, self.object, interest.0, subscription)
    }

    fn ready(&self, found: Interest) -> Ready {
        Ready {
            token: self.token,
            ready: found,
            member: SetMember::new(self.n, self.state.version()),
        }
    }
}

impl Interest {
    /// What an error says about a member; `None`: nothing, the question did not get as far as its node.
    fn of_answer(error: &Error) -> Option<Self> {
        use dragon_shmem::Error::{NoSuchObject, WrongKind};
        let is_answer = matches!(
            error,
            Error::Remote(..)
                | Error::NodeDown(_)
                | Error::NoGateway(..)
                | Error::Destroyed(_)
                | Error::Memory(NoSuchObject(_) | WrongKind(_))
        );
        is_answer.then(|| Self::of_failure(error.code()))
    }

    /// What is told of a member whose node did not answer, or answered with an error.
    fn of_failure(code: Code) -> Self {
        match code {
            Code::Destroyed | Code::NoSuchObject | Code::WrongKind => Self::GONE,
            _ => Self::LOST,
        }
    }
}

/// What an object of another node is ready for now.
pub(super) fn ready_now(
    member: &Arc<Member>,
    object: ObjectId,
    interest: Interest,
) -> Result<Interest> {
    let arguments = [interest.0.into(), 0];
    match remote::call(member, Op::Subscribe, object, arguments, Deadline::Now) {
        Ok(reply) => Ok(Interest::from_bits(low(reply.arg0) & READY)),
        Err(Error::Empty) => Ok(Interest(0)),
        Err(error) => Err(error),
    }
}

/// What an object of this node is ready for, of what a set of another node asks for; `None` when for nothing.
pub(crate) fn asked_for(
    member: &Member,
    entry: &ObjectEntry,
    id: ObjectId,
    interest: u64,
) -> Result<Option<u64>> {
    alive(entry, id)?;
    let found = super::ready_for(member, entry, id).0 & low(interest) & READY;
    Ok((found != 0).then_some(found.into()))
}

/// Hands the answer to a subscription to its set, if it is still waited for: for the agent.
pub fn answer(member: &Arc<Member>, subscription: Subscription, code: Code, found: u64) {
    let found = match code {
        Code::Ok => Interest::from_bits(low(found) & READY),
        code => Interest::of_failure(code),
    };
    // It fails when the set is gone.
    let _ = with_reference(member, subscription.set, |entry| {
        let table = Table::open(member, entry.block.load(Ordering::Acquire))?;
        let Some(place) = subscription.place_in(&table) else {
            return Ok(());
        };
        let now = About::of(place);
        let waits = now.knowledge() == Knowledge::Asked && now.ask() == subscription.ask;
        let known = now.with(Knowledge::Known, now.ask(), found);
        if waits && now.change(place, known) {
            let (_, record) = record_of(member.control(), entry)?;
            fence(Ordering::SeqCst);
            flags::announce(&record, subscription.place, false);
        }
        Ok(())
    });
}

/// Whether the answer to a subscription is still waited for: for the agent.
#[must_use]
pub fn is_wanted(member: &Arc<Member>, subscription: Subscription) -> bool {
    let wanted = with_reference(member, subscription.set, |entry| {
        alive(entry, subscription.set)?;
        let table = Table::open(member, entry.block.load(Ordering::Acquire))?;
        let about = subscription.place_in(&table).map(About::of);
        Ok(about.is_some_and(|about| about.ask() == subscription.ask))
    });
    // Of a set that is gone nobody waits for anything.
    wanted.unwrap_or(false)
}

/// The set asks for less than it did, for the member in a place or for any: the agent is to look what is still wanted.
pub(super) fn withdraw(
    member: &Arc<Member>,
    set: ObjectId,
    entry: &ObjectEntry,
    place: Option<u32>,
) {
    if entry.body[EVER].load(Ordering::Acquire) == 0 {
        return;
    }
    if member.slot() == slot::DAEMON || remote::ask_for_less(member, set, place).is_err() {
        member.hooks().notify(set);
    }
}

/// A process died while it looked at a member of another node: whether it came to asking for it shows nowhere, so that the
/// next waiter asks.
pub(super) fn forget_question(place: &Place) {
    let now = About::of(place);
    if now.knowledge() == Knowledge::Asked {
        // When an answer came meanwhile, nobody has to ask.
        now.change(place, now.with(Knowledge::Unknown, now.ask(), Interest(0)));
    }
}
