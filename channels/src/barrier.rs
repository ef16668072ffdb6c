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
        within("parties of a barrier", parties, 1, MOST_PARTIES)?;
        let size = size(parties);
        let fill = |block| memory::zero(member, block, size);
        let init = |entry: &ObjectEntry| {
            entry.body[PARTIES].store(parties.into(), Ordering::Relaxed);
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
        let (member, id) = (self.handle.member(), self.handle.id());
        let Some(entry) = self.handle.local()? else {
            return match self.handle.call(Op::BarrierWait, [0, 0], deadline) {
                Ok([number, _]) => Ok(low(number)),
                Err(Error::Broken { .. }) => Err(self.why()),
                Err(error) => Err(error),
            };
        };
        let local = Local::open(member, entry, id)?;
        let slot = member.slot().index;
        let arrive = || {
            alive(entry, id)?;
            local.arrive(slot)
        };
        let (room, done) = (local.words.room, local.words.done);
        let none = || false;
        let op = Op::BarrierWait;
        let at = self
            .handle
            .wait_at(room, mark::SECOND, op, deadline, arrive, none)?;
        test_point(TestPoint::Arrived);
        let look = || {
            alive(entry, id)?;
            local.look(at)
        };
        // The phase is for all who wait, and all are woken: nothing is left to pass on.
        let waited = self
            .handle
            .wait_at(done, mark::FIRST, op, deadline, look, none);
        local.end(at, waited)
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
/// Body word that holds the number of parties.
const PARTIES: usize = 2;
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
        let parties = low(entry.body[PARTIES].load(Ordering::Relaxed)).clamp(1, MOST_PARTIES);
        let map = memory::map(member, entry.block.load(Ordering::Acquire), size(parties))?;
        let words = Words {
            word: &entry.body[WORD],
            hint: &entry.body[HINT],
            done: wait_word(entry),
            room: second_wait_word(entry),
            places: map.words(0, 2 * parties)?,
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

    /// The party's number, when all are there.
    fn look(&self, at: Place) -> Result<Option<u32>> {
        match self.words.look(at) {
            Look::Waiting => Ok(None),
            Look::Passed(number) => Ok(Some(number)),
            Look::Broken(why) => Err(self.broken(why)),
        }
    }

    /// Leaves a place after a wait that ended in this way.
    fn end(&self, at: Place, waited: Result<u32>) -> Result<u32> {
        let waited = match waited {
            Err(Error::Timeout) if self.words.break_at(at, Breakage::Timeout) => {
                self.changed();
                Err(Error::Timeout)
            }
            // All were there in this very moment, or somebody else broke it.
            Err(Error::Timeout) => self.look(at).and_then(|n| n.ok_or(Error::Timeout)),
            Ok(_) | Err(Error::Broken { .. }) => waited,
            // Nothing has happened.
            Err(error) => match self.words.withdraw(at) {
                None => {
                    self.words.wake_room();
                    notify_watcher(self.member, self.entry, self.id);
                    return Err(error);
                }
                Some(_) => self.look(at).and_then(|n| n.ok_or(error)),
            },
        };
        self.leave(at);
        waited
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

/// One try to wait, for a process of another node, which has the place from its first try that found one.
pub(crate) fn try_wait(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    slot: u32,
    at: &mut Option<Place>,
) -> Result<Option<u32>> {
    let local = Local::open(member, entry, id)?;
    let mine = match *at {
        Some(at) => at,
        None => match local.arrive(slot)? {
            Some(mine) => *at.insert(mine),
            None => return Ok(None),
        },
    };
    let looked = local.look(mine);
    if !matches!(looked, Ok(None)) {
        local.leave(mine);
        *at = None;
    }
    looked
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
            if local.words.break_at(at, Breakage::Died) {
                local.changed();
            }
            local.leave(at);
            return Ok(Attempt::NotYet);
        }
    };
    match waited {
        Ok(number) => Ok(Attempt::done(number.into(), 0)),
        Err(Error::Timeout | Error::Interrupted) => Ok(Attempt::NotYet),
        Err(error) => Ok(Attempt::failed(error.code())),
    }
}

pub(crate) fn abort(member: &Arc<Member>, entry: &ObjectEntry, id: ObjectId) -> Result<()> {
    let local = Local::open(member, entry, id)?;
    if local.words.abort() {
        local.changed();
    }
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
