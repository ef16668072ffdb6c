//! The object table: channels, locks, events, semaphores and processes of a node, and who refers to them.
//!
//! An object lives as long as somebody refers to it: an attached process (recorded in its held table), or a descriptor in
//! transit (one that was put into a message and not attached yet). `destroy` only ends its operations; its memory goes when
//! the last process has given its reference back, so no operation ever runs on memory that was given away. Descriptors in
//! transit keep an object until it is destroyed: they may be lost, with the process that had them in its hands.

use dragon_protocol::{ObjectId, ObjectKind, SlotId};

use crate::control::{Control, MAX_OBJECTS};
use crate::error::{Error, Result};
use crate::held;
use crate::reference::{Change, Counts, Outcome, Pending, at_limit};
use crate::region::Shared;
use crate::sync::{AtomicU32, AtomicU64, Ordering, high, low};

/// An entry. 128 bytes: the first half is common, the second belongs to the object.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct ObjectEntry {
    /// generation 32 bits | creator's slot 20 | unused 4 | kind 4 | state 4, from the high end.
    word: AtomicU64,
    /// Who refers to the object. One that comes late with a change never meets the entry's next object.
    pub(crate) counts: Counts,
    /// Bit 0: an agent has requests parked on this object and must hear of its next change. Bit 1: the object is in sets.
    pub watch: AtomicU32,
    /// Where further subscribers are: number of a node plus 1; 0 for none.
    pub more_subscribers: AtomicU32,
    /// The number that the user chose.
    pub user: AtomicU64,
    /// The address of the object's block, 0 when it has none; always 0 in a free entry.
    pub block: AtomicU64,
    /// The first sets that the object is in; 0 for none.
    pub subscribers: [AtomicU64; 2],
    /// The object's own words.
    pub body: [AtomicU64; 8],
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for ObjectEntry {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<ObjectEntry>() == 128);

/// State of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nobody's.
    Free = 0,
    /// Its creator is at work.
    Creating = 1,
    /// In use.
    Alive = 2,
    /// Ended by `destroy`; its memory waits for the last reference.
    Destroyed = 3,
}

fn encode(generation: u32, slot: u32, kind: u8, state: State) -> u64 {
    u64::from(generation) << 32
        | u64::from(slot & 0xf_ffff) << 12
        | u64::from(kind & 0xf) << 4
        | state as u64
}

impl ObjectEntry {
    /// State, kind, generation and creator's slot.
    #[inline]
    #[must_use]
    pub fn read(&self) -> (State, u8, u32, u32) {
        let word = self.word.load(Ordering::Acquire);
        let state = match word & 0xf {
            1 => State::Creating,
            2 => State::Alive,
            3 => State::Destroyed,
            _ => State::Free,
        };
        (
            state,
            word.to_le_bytes()[0] >> 4,
            high(word),
            low(word >> 12) & 0xf_ffff,
        )
    }

    /// References, those in transit among them.
    #[must_use]
    pub fn references(&self) -> u32 {
        let (transit, attached) = self.counts.read();
        transit + attached
    }

    /// References in transit.
    #[must_use]
    pub fn in_transit(&self) -> u32 {
        self.counts.read().0
    }

    fn is_destroyed(&self) -> bool {
        self.read().0 == State::Destroyed
    }

    fn is(&self, id: ObjectId) -> bool {
        let (state, kind, generation, _) = self.read();
        generation == id.generation
            && kind == id.kind as u8
            && matches!(state, State::Alive | State::Destroyed)
    }
}

impl Control {
    /// The entry of an object of this node, alive or destroyed.
    ///
    /// # Errors
    /// When there is no such object (any more), or it is of another kind.
    #[inline]
    pub fn entry(&self, id: ObjectId) -> Result<&ObjectEntry> {
        let entry = self.object(id.index)?;
        let (state, kind, generation, _) = entry.read();
        if generation != id.generation || matches!(state, State::Free | State::Creating) {
            return Err(Error::NoSuchObject(id));
        }
        if kind != id.kind as u8 {
            return Err(Error::WrongKind(id));
        }
        Ok(entry)
    }

    /// The objects of this node, alive or destroyed, for listing. They may change meanwhile. Parts of the table that were
    /// never used are not looked at: that would cost memory.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectId, &ObjectEntry)> {
        let numbers = self.used_objects().into_iter().flatten();
        numbers.filter_map(|index| {
            let entry = self.object(index).ok()?;
            let (state, kind, generation, _) = entry.read();
            let id = ObjectId {
                node: self.node(),
                kind: ObjectKind::from_u8(kind)?,
                index,
                generation,
            };
            matches!(state, State::Alive | State::Destroyed).then_some((id, entry))
        })
    }

    /// Claims an entry for a new object. It is invisible until [`Control::publish`]; recovery frees it if the creator dies
    /// before that. `record` is called with the id before the entry is claimed, to put it into the held table; it may be
    /// called several times. The creator's reference is taken with [`Change::Create`].
    ///
    /// # Errors
    /// When the table is full.
    pub fn claim_object(
        &self,
        kind: ObjectKind,
        creator: SlotId,
        mut record: impl FnMut(ObjectId),
    ) -> Result<ObjectId> {
        let hint = &self.words().object_hint;
        let start = hint.load(Ordering::Relaxed);
        for index in (0..MAX_OBJECTS).map(|n| start.wrapping_add(n) % MAX_OBJECTS) {
            let entry = self.object(index)?;
            let word = entry.word.load(Ordering::Acquire);
            if word & 0xf != State::Free as u64 {
                continue;
            }
            // Generation 0 is never used: a descriptor of zeros names nothing.
            let generation = (high(word).wrapping_add(1)).max(1);
            let id = ObjectId {
                node: self.node(),
                kind,
                index,
                generation,
            };
            record(id);
            let claimed = encode(generation, creator.index, kind as u8, State::Creating);
            if entry
                .word
                .compare_exchange(word, claimed, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                entry.watch.store(0, Ordering::Relaxed);
                entry.more_subscribers.store(0, Ordering::Relaxed);
                for subscriber in &entry.subscribers {
                    subscriber.store(0, Ordering::Relaxed);
                }
                entry.user.store(0, Ordering::Relaxed);
                for word in &entry.body {
                    word.store(0, Ordering::Relaxed);
                }
                hint.store(index.wrapping_add(1), Ordering::Relaxed);
                return Ok(id);
            }
        }
        Err(Error::TableFull {
            table: "objects",
            size: MAX_OBJECTS,
        })
    }

    /// Makes a claimed object visible. Its creator has the first reference.
    ///
    /// # Errors
    /// When the entry is not the creator's any more.
    pub fn publish(&self, id: ObjectId, creator: SlotId) -> Result<()> {
        let entry = self.object(id.index)?;
        let from = encode(id.generation, creator.index, id.kind as u8, State::Creating);
        let to = encode(id.generation, creator.index, id.kind as u8, State::Alive);
        // Release: who sees the object alive sees its initial contents.
        entry
            .word
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .map_err(|word| Error::Corrupt {
                what: "object word",
                value: word,
            })?;
        Ok(())
    }

    /// Makes a change of who refers to an object, recorded at `place` of the slot's held table: if the process dies in here,
    /// recovery finds there whether the change was made. Returns what the entry says in the end.
    ///
    /// # Errors
    /// When there is no such object (any more); the entry is cleared then.
    pub fn change(
        &self,
        slot: SlotId,
        place: u32,
        id: ObjectId,
        change: Change,
    ) -> Result<held::State> {
        // More rounds than contention can cause: the entry was scribbled over.
        const ROUNDS: u32 = 1 << 20;
        let entry = self.object(id.index)?;
        let held = self.held_entry(slot.index, place)?;
        for _ in 0..ROUNDS {
            let number = match entry.counts.next_number() {
                Ok(number) => number,
                Err(pending) => {
                    self.help(entry, id.index, pending);
                    continue;
                }
            };
            // After the number was read: so the change meets this object or none.
            if !entry.is(id) && change != Change::Create {
                held.clear();
                // It may be of another kind.
                return Err(self.entry(id).err().unwrap_or(Error::NoSuchObject(id)));
            }
            held.set(id, number, held::State::before(change));
            let pending = Pending {
                number,
                slot: slot.index,
                place,
                change,
            };
            if entry.counts.announce(pending) {
                self.help(entry, id.index, pending);
                return match held.get(id.node) {
                    Some((_, held::State::Refused)) => {
                        held.clear();
                        Err(refused(entry, id, change))
                    }
                    Some((_, state)) => Ok(state),
                    None => Err(Error::Corrupt {
                        what: "entry of a held table",
                        value: place.into(),
                    }),
                };
            }
        }
        held.clear();
        Err(Error::Corrupt {
            what: "references of an object",
            value: id.index.into(),
        })
    }

    /// Brings a change to its end that somebody announced, perhaps before he died.
    fn help(&self, entry: &ObjectEntry, index: u32, pending: Pending) {
        entry.counts.help(
            pending,
            || entry.is_destroyed(),
            |outcome| {
                // A place beyond the table was scribbled there: nobody waits for the mark.
                if let Ok(held) = self.held_entry(pending.slot, pending.place) {
                    held.mark(index, pending.number, pending.change, outcome);
                }
            },
        );
    }

    /// As [`Control::change`], without a trace: for the daemon, whose death nobody survives.
    ///
    /// # Errors
    /// When there is no such object (any more), or no such reference.
    pub fn change_directly(&self, id: ObjectId, change: Change) -> Result<Outcome> {
        let entry = self.object(id.index)?;
        let outcome = entry
            .counts
            .direct(change, || entry.is(id), || entry.is_destroyed());
        match outcome {
            Outcome::Refused => Err(refused(entry, id, change)),
            outcome => Ok(outcome),
        }
    }

    /// Brings whatever is pending on an entry to its end: for recovery, before it believes the held table.
    pub(crate) fn settle(&self, index: u32) {
        if let Ok(entry) = self.object(index)
            && let Err(pending) = entry.counts.next_number()
        {
            self.help(entry, index, pending);
        }
    }

    /// Gives the entry of an object back to which nobody refers, and whose block is freed.
    ///
    /// # Errors
    /// When the index is beyond the table.
    pub(crate) fn free_entry(&self, id: ObjectId) -> Result<()> {
        let entry = self.object(id.index)?;
        let word = entry.word.load(Ordering::Acquire);
        if high(word) != id.generation {
            return Ok(());
        }
        let to = encode(id.generation, 0, 0, State::Free);
        let freed = entry
            .word
            .compare_exchange(word, to, Ordering::AcqRel, Ordering::Relaxed);
        if freed.is_ok() {
            // The lowest free entry is used next: the table is sparse, and pages that were never touched cost nothing.
            self.words()
                .object_hint
                .fetch_min(id.index, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends an object: its operations fail from now on. False when somebody else did.
    ///
    /// # Errors
    /// When there is no such object (any more).
    pub fn mark_destroyed(&self, id: ObjectId) -> Result<bool> {
        let entry = self.entry(id)?;
        let (state, kind, generation, slot) = entry.read();
        let from = encode(generation, slot, kind, State::Alive);
        let to = encode(generation, slot, kind, State::Destroyed);
        let won = entry
            .word
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        Ok(won && state == State::Alive)
    }

    /// Undoes the claim of a creator that died, or gave up, before it published. Returns the block that the entry named (0:
    /// none); `None` when it was published, or is not the creator's.
    ///
    /// # Errors
    /// When the index is beyond the table.
    pub fn unclaim_object(&self, id: ObjectId, creator: SlotId) -> Result<Option<u64>> {
        let entry = self.object(id.index)?;
        let from = encode(id.generation, creator.index, id.kind as u8, State::Creating);
        let to = encode(id.generation, 0, 0, State::Free);
        if entry.word.load(Ordering::Acquire) != from {
            return Ok(None);
        }
        // Nobody else touches an entry that is being created.
        let block = entry.block.swap(0, Ordering::AcqRel);
        let undone = entry
            .word
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
        Ok(undone.ok().map(|_| block))
    }
}

/// Why a change was refused. Others may have changed the counts meanwhile.
fn refused(entry: &ObjectEntry, id: ObjectId, change: Change) -> Error {
    match at_limit(change, entry.counts.read()).filter(|_| entry.is(id)) {
        Some((kind, limit)) => Error::TooManyReferences {
            object: id,
            kind,
            limit,
        },
        None => Error::NoSuchObject(id),
    }
}
