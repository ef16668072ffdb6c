//! Barriers: a fixed number of parties wait for each other.
//!
//! A party that gives up or dies breaks the barrier: the others get an error that says why, until somebody resets it. See
//! [`Breakage`].

mod words;

use std::fmt;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{AtomicU64, Ordering, low};
use dragon_shmem::{Deadline, Member};

pub(crate) use self::words::Place;
use self::words::{Arrival, Look, Words};
use crate::attempt::Attempt;
use crate::channel::{TestPoint, test_point};
use crate::error::{Error, Result, within};
use crate::memory;
use crate::object::{Handle, alive, notify_watcher, second_wait_word, wait_word};
use crate::wait::mark;

/// Why a barrier is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Breakage {
    /// Another node said so, without a reason.
    Unknown = 0,
    /// A party's time was up.
    Timeout = 1,
    /// Somebody broke it.
    Aborted = 2,
    /// A party died while it waited.
    Died = 3,
    /// It was reset while parties waited.
    Reset = 4,
}

impl Breakage {
    const fn number(self) -> u64 {
        self as u64
    }

    const fn from_number(n: u64) -> Self {
        match n {
            1 => Self::Timeout,
            2 => Self::Aborted,
            3 => Self::Died,
            4 => Self::Reset,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Breakage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "a party gave up or died",
            Self::Timeout => "the time of a party was up before all were there",
            Self::Aborted => "it was aborted",
            Self::Died => "a process died while it waited there",
            Self::Reset => "it was reset",
        })
    }
}

/// How a barrier stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierState {
    /// How many parties it is for.
    pub parties: u32,
    /// How many wait.
    pub waiting: u32,
    /// Why it is broken, if it is.
    pub broken: Option<Breakage>,
}

/// How a party came out of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Each party has another one, from 0 on.
    pub number: u32,
    /// It is this party's turn to act before the others go on; see [`Barrier::acted`].
    pub turn: Option<Turn>,
}

/// The turn to act, of one party of a barrier with an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

impl Turn {
    /// As a number that is not 0, to keep it elsewhere.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0 + 1
    }

    /// The inverse of [`Turn::number`]. A number that is no turn is refused by [`Barrier::acted`].
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number.wrapping_sub(1))
    }
}

/// A handle on a barrier of this or another node.
///
/// ```
/// use dragon_channels::{Barrier, Deadline, Error};
///
/// let barrier = Barrier::create(&dragon_channels::local::member()?, 3, 0)?;
/// std::thread::scope(|scope| {
///     let others = [(); 2].map(|()| scope.spawn(|| barrier.wait(Deadline::Never)));
///     let mut numbers = vec![barrier.wait(Deadline::Never)?];
///     for other in others {
///         numbers.push(other.join().expect("it does not panic")?);
///     }
///     numbers.sort();
///     assert_eq!(numbers, [0, 1, 2]);
///     Ok::<(), Error>(())
/// })?;
/// barrier.abort()?;
/// assert!(barrier.wait(Deadline::Never).unwrap_err().to_string().ends_with("is broken: it was aborted"));
/// barrier.reset()?;
/// assert_eq!(barrier.state()?.broken, None);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Barrier {
    handle: Handle,
}

/// Most parties of a barrier.
const MOST_PARTIES: u32 = 1 << 16;

impl Barrier {
    /// Creates a barrier on this node for so many parties.
    ///
    /// # Errors
    /// When there are none or too many, a table is full, or there is no memory.
    pub fn create(member: &Arc<Member>, parties: u32, user: u64) -> Result<Self> {
        Self::make(member, parties, user, false)
    }

    /// As [`Barrier::create`], of a barrier at which one of the parties acts before all go on; see
    /// [`Barrier::wait_through_signals`].
    ///
    /// # Errors
    /// As [`Barrier::create`].
    pub fn create_with_action(member: &Arc<Member>, parties: u32, user: u64) -> Result<Self> {
        Self::make(member, parties, user, true)
    }

    fn make(member: &Arc<Member>, parties: u32, user: u64, acts: bool) -> Result<Self> {
        within("parties of a barrier", parties, 1, MOST_PARTIES)?;
        let size = size(parties);
        let fill = |block| memory::zero(member, block, size);
        let init = |entry: &ObjectEntry| {
            let acts = if acts { ACTS } else { 0 };
            entry.body[PARTIES].store(acts | u64::from(parties), Ordering::Relaxed);
        };
        let id = memory::create(member, ObjectKind::Barrier, user, size, fill, init)?;
        let handle = Handle::created(member, id, user);
        Ok(Self { handle })
    }

    /// Attaches to the barrier that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let handle = Handle::attach(member, descriptor, ObjectKind::Barrier, adopt)?;
        Ok(Self { handle })
    }

    /// Arrives, and waits until all parties are there. Each gets another number from 0 on: who has to do something for all
    /// can be told by it.
    ///
    /// # Errors
    /// [`Error::Broken`]. [`Error::Timeout`]: this party's time was up, and that has broken the barrier for the others. Without
    /// any effect: [`Error::Empty`] (try form: others are missing), [`Error::Interrupted`]. [`Error::Destroyed`].
    pub fn wait(&self, deadline: Deadline) -> Result<u32> {
        let passed = self.wait_through_signals(deadline, || false)?;
        if let Some(turn) = passed.turn {
            self.acted(turn, true)?;
        }
        Ok(passed.number)
    }

    /// As [`Barrier::wait`], but a signal alone does not end the wait: `on_signal` is called in the middle of it and says
    /// whether it goes on.
    ///
    /// Of a barrier with an action, one party comes back before the others, with a [`Turn`]: the others go on when it says
    /// that it has [acted](Barrier::acted), or get [`Error::Broken`] when it dies before. The deadline is for the others to
    /// come, and not for the action.
    ///
    /// # Errors
    /// As [`Barrier::wait`]; [`Error::Interrupted`] when `on_signal` says so.
    pub fn wait_through_signals(
        &self,
        deadline: Deadline,
        mut on_signal: impl FnMut() -> bool,
    ) -> Result<Passed> {
        match self.handle.local()? {
            Some(entry) => self.wait_here(entry, deadline, &mut on_signal),
            None => self.wait_there(deadline, &mut on_signal),
        }
    }

    fn wait_here(
        &self,
        entry: &ObjectEntry,
        mut deadline: Deadline,
        on_signal: &mut dyn FnMut() -> bool,
    ) -> Result<Passed> {
        let (member, id) = (self.handle.member(), self.handle.id());
        let local = Local::open(member, entry, id)?;
        let slot = member.slot().index;
        let arrive = || {
            alive(entry, id)?;
            local.arrive(slot)
        };
        let (room, done) = (local.words.room, local.words.done);
        let none = || false;
        let op = Op::BarrierWait;
        let at = loop {
            let arrived = self
                .handle
                .wait_at(room, mark::SECOND, op, deadline, arrive, none);
            match arrived {
                Err(Error::Interrupted) if on_signal() => {}
                Err(Error::Timeout) => {
                    local.break_any(Breakage::Timeout);
                    return Err(Error::Timeout);
                }
                arrived => break arrived?,
            }
        };
        test_point(TestPoint::Arrived);
        let look = || {
            alive(entry, id)?;
            local.look(at)
        };
        loop {
            // The phase is for all who wait, and all are woken: nothing is left to pass on.
            let waited = self
                .handle
                .wait_at(done, mark::FIRST, op, deadline, look, none);
            if let Err(Error::Interrupted) = waited
                && on_signal()
            {
                continue;
            }
            match local.end(at, waited)? {
                Ended::Passed(passed) => return Ok(passed),
                // All are there: its time is not up any more, and if it does not want to wait, the others do not need it.
                Ended::Held(Error::Timeout | Error::Empty) => deadline = Deadline::Never,
                Ended::Held(error) => {
                    local.leave(at);
                    return Err(error);
                }
            }
        }
    }

    fn wait_there(
        &self,
        mut deadline: Deadline,
        on_signal: &mut dyn FnMut() -> bool,
    ) -> Result<Passed> {
        let tries = deadline == Deadline::Now;
        let mut ask = [request::ARRIVE, 0];
        loop {
            match self.handle.call(Op::BarrierWait, ask, deadline) {
                Ok([number, request::PASSED]) => {
                    let (number, turn) = (low(number), None);
                    return Ok(Passed { number, turn });
                }
                Ok([place, request::ACTS]) => {
                    let (number, turn) = (low(place) & 0xff_ffff, Some(Turn(place)));
                    return Ok(Passed { number, turn });
                }
                // All are there, and another party acts: the place is kept.
                Ok([place, why]) => {
                    ask = [request::STAY, place];
                    deadline = Deadline::Never;
                    // Who does not want to wait is held like that, too.
                    if why == request::HELD_BY_SIGNAL && !tries && !on_signal() {
                        self.handle
                            .call_surely(Op::BarrierWait, [request::LEAVE, place])?;
                        return Err(Error::Interrupted);
                    }
                }
                // Without any effect.
                Err(Error::Interrupted) if on_signal() => {}
                Err(Error::Broken { .. }) => return Err(self.why()),
                Err(error) => {
                    if let [request::STAY, place] = ask {
                        // The place may be this party's still; where it is not, or nobody can be asked, nothing is to be done.
                        let _ = self
                            .handle
                            .call_surely(Op::BarrierWait, [request::LEAVE, place]);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Says that the party whose turn it was has acted: all go on; or that it failed: the barrier is broken for all.
    ///
    /// # Errors
    /// [`Error::Broken`] when it was broken while the party acted; [`Error::NotOwner`] when it was not this process's turn.
    pub fn acted(&self, turn: Turn, done: bool) -> Result<()> {
        let member = self.handle.member();
        match self.handle.local()? {
            Some(entry) => acted(
                member,
                entry,
                self.handle.id(),
                member.slot().index,
                turn.0,
                done,
            ),
            None => {
                let what = if done {
                    request::ACTED
                } else {
                    request::FAILED
                };
                match self.handle.call_surely(Op::BarrierWait, [what, turn.0]) {
                    Ok(_) => Ok(()),
                    Err(Error::Broken { .. }) => Err(self.why()),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Breaks the barrier: who waits, and who comes, gets [`Error::Broken`], until it is reset.
    ///
    /// # Errors
    /// [`Error::Destroyed`], or what another node answers.
    pub fn abort(&self) -> Result<()> {
        match self.handle.local()? {
            Some(entry) => abort(self.handle.member(), entry, self.handle.id()),
            None => self
                .handle
                .call(Op::BarrierAbort, [0, 0], Deadline::Now)
                .map(drop),
        }
    }

    /// Makes the barrier whole again. Who waits at this moment gets [`Error::Broken`]; who comes meanwhile waits until they have
    /// left.
    ///
    /// # Errors
    /// As [`Barrier::abort`].
    pub fn reset(&self) -> Result<()> {
        match self.handle.local()? {
            Some(entry) => reset(self.handle.member(), entry, self.handle.id()),
            None => self
                .handle
                .call(Op::BarrierReset, [0, 0], Deadline::Now)
                .map(drop),
        }
    }

    /// How the barrier stands.
    ///
    /// # Errors
    /// As [`Barrier::abort`].
    pub fn state(&self) -> Result<BarrierState> {
        let [parties, broken] = match self.handle.local()? {
            Some(entry) => attributes(self.handle.member(), entry, self.handle.id())?,
            None => self
                .handle
                .call(Op::BarrierAttributes, [0, 0], Deadline::Now)?,
        };
        Ok(BarrierState {
            parties: low(parties),
            waiting: low(parties >> 32),
            broken: broken.checked_sub(1).map(Breakage::from_number),
        })
    }

    /// Why a wait at another node found the barrier broken.
    fn why(&self) -> Error {
        match self.state() {
            Ok(state) => Error::Broken {
                barrier: self.handle.id(),
                // It is whole again.
                why: state.broken.unwrap_or(Breakage::Reset),
            },
            Err(error) => error,
        }
    }

    crate::object::common_methods!();
}

/// Body word that holds the barrier's word.
const WORD: usize = 0;
/// Body word that holds the number of parties, and [`ACTS`].
const PARTIES: usize = 2;
/// One party acts before all go on.
const ACTS: u64 = 1 << 32;
/// Body word that holds the hint.
const HINT: usize = 4;

/// Bytes of the places: two rows.
const fn size(parties: u32) -> u64 {
    2 * parties as u64 * size_of::<AtomicU64>() as u64
}

/// A barrier of this node, for one operation.
struct Local<'a> {
    member: &'a Arc<Member>,
    entry: &'a ObjectEntry,
    id: ObjectId,
    words: Words<'a>,
}

impl<'a> Local<'a> {
    fn open(member: &'a Arc<Member>, entry: &'a ObjectEntry, id: ObjectId) -> Result<Self> {
        // Before the block is opened, so that the first error tells that the barrier was destroyed.
        alive(entry, id)?;
        Self::open_any(member, entry, id)
    }

    /// Also one that was destroyed.
    fn open_any(member: &'a Arc<Member>, entry: &'a ObjectEntry, id: ObjectId) -> Result<Self> {
        let shape = entry.body[PARTIES].load(Ordering::Relaxed);
        let parties = low(shape).clamp(1, MOST_PARTIES);
        let map = memory::map(member, entry.block.load(Ordering::Acquire), size(parties))?;
        let words = Words {
            word: &entry.body[WORD],
            hint: &entry.body[HINT],
            done: wait_word(entry),
            room: second_wait_word(entry),
            places: map.words(0, 2 * parties)?,
            acts: shape & ACTS != 0,
        };
        Ok(Self {
            member,
            entry,
            id,
            words,
        })
    }

    fn broken(&self, why: Breakage) -> Error {
        let barrier = self.id;
        Error::Broken { barrier, why }
    }

    /// Takes a place; `None`: there is none yet.
    fn arrive(&self, slot: u32) -> Result<Option<Place>> {
        let (arrival, completed) = self.words.arrive(slot);
        if completed {
            self.changed();
        }
        match arrival {
            Arrival::At(at) => Ok(Some(at)),
            Arrival::Later => Ok(None),
            Arrival::Broken(why) => Err(self.broken(why)),
        }
    }

    /// How a party comes out, when all are there and nobody else acts.
    fn look(&self, at: Place) -> Result<Option<Passed>> {
        let (number, turn) = match self.words.look(at) {
            Look::Waiting | Look::Held => return Ok(None),
            Look::Passed(number) => (number, None),
            Look::Acts(number) => (number, Some(Turn(at.number()))),
            Look::Broken(why) => return Err(self.broken(why)),
        };
        Ok(Some(Passed { number, turn }))
    }

    /// Leaves a place after a wait that ended in this way, unless the party has still to act, or another acts.
    fn end(&self, at: Place, waited: Result<Passed>) -> Result<Ended> {
        let looked = match waited {
            Err(Error::Timeout) if self.words.break_at(at, Breakage::Timeout) => {
                self.changed();
                self.leave(at);
                return Err(Error::Timeout);
            }
            Ok(passed) => Ok(Ok(passed)),
            Err(Error::Broken { .. }) => waited.map(Ok),
            // All were there in this very moment, or somebody else broke it.
            Err(Error::Timeout) => self.look(at).map(|passed| passed.ok_or(Error::Timeout)),
            // Nothing has happened.
            Err(error) => {
                if self.words.withdraw(at).is_none() {
                    self.words.wake_room();
                    notify_watcher(self.member, self.entry, self.id);
                    return Err(error);
                }
                self.look(at).map(|passed| passed.ok_or(error))
            }
        };
        match looked {
            Ok(Err(error)) => return Ok(Ended::Held(error)),
            Ok(Ok(passed)) if passed.turn.is_some() => {}
            _ => self.leave(at),
        }
        looked.map(|passed| passed.map_or_else(Ended::Held, Ended::Passed))
    }

    /// Breaks the barrier in whatever phase it is.
    fn break_any(&self, why: Breakage) {
        if self.words.break_any(why) {
            self.changed();
        }
    }

    /// The place with this number, if it is that of a party of the process with this slot.
    fn place_of(&self, slot: u32, number: u64) -> Result<Place> {
        let at = Place::from_number(number);
        if self.words.is_of(at, slot) {
            Ok(at)
        } else {
            Err(Error::NotOwner(self.id))
        }
    }

    fn leave(&self, at: Place) {
        let whole_again = self.words.leave(at);
        self.words.wake_room();
        if whole_again {
            self.changed();
        } else {
            // Agents wait for places too.
            notify_watcher(self.member, self.entry, self.id);
        }
    }

    /// The barrier's word has changed.
    fn changed(&self) {
        self.words.wake();
        notify_watcher(self.member, self.entry, self.id);
    }
}

/// How a wait ended that did not fail.
enum Ended {
    Passed(Passed),
    /// All are there, and another party acts: the place is kept. Why the party did not want to wait any more.
    Held(Error),
}

/// What a request to wait asks for, its argument 0; and how the reply's second result says what came of it.
pub(crate) mod request {
    /// To arrive, and wait.
    pub(crate) const ARRIVE: u64 = 0;
    /// To wait in the place that is argument 1.
    pub(crate) const STAY: u64 = 1;
    /// To leave that place, while another party acts.
    pub(crate) const LEAVE: u64 = 2;
    /// To say that the party in that place has acted.
    pub(crate) const ACTED: u64 = 3;
    /// To say that it failed.
    pub(crate) const FAILED: u64 = 4;

    /// The first result is the party's number.
    pub(crate) const PASSED: u64 = 0;
    /// It is the party's turn; the first result is its place.
    pub(crate) const ACTS: u64 = 1;
    /// Another party acts; the first result is the place.
    pub(crate) const HELD: u64 = 2;
    /// The same, when a signal has come.
    pub(crate) const HELD_BY_SIGNAL: u64 = 3;
}

fn reply(at: Place, passed: Passed) -> [u64; 2] {
    match passed.turn {
        Some(_) => [at.number(), request::ACTS],
        None => [passed.number.into(), request::PASSED],
    }
}

/// One try at what a process of another node asks for. One that waits has its place from its first try that found one.
pub(crate) fn try_wait(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    slot: u32,
    [what, place]: [u64; 2],
    at: &mut Option<Place>,
) -> Result<Option<[u64; 2]>> {
    if let request::ACTED | request::FAILED = what {
        acted(member, entry, id, slot, place, what == request::ACTED)?;
        return Ok(Some([0, 0]));
    }
    let local = Local::open(member, entry, id)?;
    let mine = match *at {
        Some(at) => at,
        None if what == request::ARRIVE => match local.arrive(slot)? {
            Some(mine) => *at.insert(mine),
            None => return Ok(None),
        },
        None => *at.insert(local.place_of(slot, place)?),
    };
    if what == request::LEAVE {
        local.leave(mine);
        return Ok(Some([0, 0]));
    }
    let looked = local.look(mine);
    match looked {
        Ok(None) => return Ok(None),
        Ok(Some(Passed { turn: Some(_), .. })) => {}
        _ => local.leave(mine),
    }
    *at = None;
    Ok(looked?.map(|passed| reply(mine, passed)))
}

/// See [`Barrier::acted`].
fn acted(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    slot: u32,
    place: u64,
    done: bool,
) -> Result<()> {
    let local = Local::open(member, entry, id)?;
    let at = local.place_of(slot, place)?;
    let is_first = local.words.acted(at, done);
    if is_first {
        local.changed();
    }
    let looked = local.look(at);
    if !is_first && looked.is_ok() {
        // Its party waits, or goes on by itself.
        return Err(Error::NotOwner(id));
    }
    local.leave(at);
    match looked {
        Err(_) if !done => Ok(()),
        looked => looked.map(drop),
    }
}

/// Ends a wait of another node's process: as its time is up, or because it does not want to wait any more, or because it is
/// gone. What it comes to when it was over at this very moment.
pub(crate) fn give_up(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    at: Place,
    end: crate::End,
) -> Result<Attempt> {
    let local = Local::open_any(member, entry, id)?;
    let waited = match end {
        crate::End::Timeout => local.end(at, Err(Error::Timeout)),
        crate::End::Cancelled => local.end(at, Err(Error::Interrupted)),
        crate::End::Lost => {
            local.words.break_for(at, Breakage::Died);
            local.changed();
            local.leave(at);
            return Ok(Attempt::NotYet);
        }
    };
    match waited {
        Ok(Ended::Passed(passed)) => {
            let [first, second] = reply(at, passed);
            Ok(Attempt::done(first, second))
        }
        Ok(Ended::Held(Error::Interrupted)) => {
            Ok(Attempt::done(at.number(), request::HELD_BY_SIGNAL))
        }
        Ok(Ended::Held(_)) => Ok(Attempt::done(at.number(), request::HELD)),
        Err(Error::Timeout | Error::Interrupted) => Ok(Attempt::NotYet),
        Err(error) => Ok(Attempt::failed(error.code())),
    }
}

/// The same of one that has not found a place, and whose time is up.
pub(crate) fn give_up_outside(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
) -> Result<()> {
    Local::open(member, entry, id)?.break_any(Breakage::Timeout);
    Ok(())
}

pub(crate) fn abort(member: &Arc<Member>, entry: &ObjectEntry, id: ObjectId) -> Result<()> {
    Local::open(member, entry, id)?.break_any(Breakage::Aborted);
    Ok(())
}

pub(crate) fn reset(member: &Arc<Member>, entry: &ObjectEntry, id: ObjectId) -> Result<()> {
    let local = Local::open(member, entry, id)?;
    local.words.reset();
    local.changed();
    Ok(())
}

/// The arguments of a reply about how a barrier stands: waiting << 32 | parties, and why it is broken + 1.
pub(crate) fn attributes(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
) -> Result<[u64; 2]> {
    let local = Local::open(member, entry, id)?;
    let (waiting, broken) = local.words.attributes();
    let parties = (local.words.places.len() / 2) as u64;
    let broken = broken.map_or(0, |why| why.number() + 1);
    Ok([u64::from(waiting) << 32 | parties, broken])
}

/// What the parties of a dead process leave. Whoever calls it wakes everyone.
pub(crate) fn recover(member: &Arc<Member>, entry: &ObjectEntry, id: ObjectId, slot: u32) {
    // It fails on memory that was scribbled over.
    if let Ok(local) = Local::open_any(member, entry, id) {
        local.words.recover(slot);
    }
}

#[cfg(test)]
mod tests;
