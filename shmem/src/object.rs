//! The object table: channels, locks, events, semaphores and processes of a node, and who refers to them.
//!
//! An object lives as long as somebody refers to it: an attached process (recorded in its held table), or a descriptor in
//! transit (one that was put into a message and not attached yet). `destroy` only ends its operations; its memory goes with
//! the last reference, so no operation ever runs on memory that was given away.

use dragon_protocol::{ObjectId, ObjectKind, SlotId};

use crate::control::{Control, MAX_OBJECTS};
use crate::error::{Error, Result};
use crate::region::Shared;
use crate::sync::{AtomicU32, AtomicU64, Ordering, high, low};

/// An entry. 128 bytes: the first half is common, the second belongs to the object.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct ObjectEntry {
    /// generation 32 bits | creator's slot 20 | unused 4 | kind 4 | state 4, from the high end.
    word: AtomicU64,
    /// low bits of the generation 16 | in transit 24 | references 24, from the high end; what is in transit is among the
    /// references. The generation makes each change exact: one that comes late never meets the entry's next object.
    references: AtomicU64,
    /// Bit 0: an agent has requests parked on this object and must hear of its next change. Bit 1: the object is in sets.
    pub watch: AtomicU32,
    /// Where further subscribers are: number of a node plus 1; 0 for none.
    pub more_subscribers: AtomicU32,
    /// The number that the user chose.
    pub user: AtomicU64,
    /// The object's block in the default pool, 0 when it has none.
    pub block: AtomicU64,
    /// The first sets that the object is in; 0 for none.
    pub subscribers: [AtomicU64; 2],
    reserved: AtomicU64,
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

const COUNT: u64 = (1 << 24) - 1;
const TRANSIT: u64 = 1 << 24;

/// The references word of a new object: its creator's one.
fn first_reference(generation: u32) -> u64 {
    u64::from(generation & 0xffff) << 48 | 1
}

fn encode(generation: u32, slot: u32, kind: u8, state: State) -> u64 {
    u64::from(generation) << 32
        | u64::from(slot & 0xf_ffff) << 12
        | u64::from(kind & 0xf) << 4
        | state as u64
}

impl ObjectEntry {
    /// State, kind, generation and creator's slot.
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
        low(self.references.load(Ordering::Acquire) & COUNT)
    }

    /// References in transit.
    #[must_use]
    pub fn in_transit(&self) -> u32 {
        low((self.references.load(Ordering::Acquire) / TRANSIT) & COUNT)
    }

    /// Changes the counts (in transit, references) of the object of this generation, as long as it has references. Returns
    /// the number of references after the change.
    fn change(
        &self,
        generation: u32,
        change: impl Fn(u64, u64) -> Option<(u64, u64)>,
    ) -> Option<u64> {
        let mut word = self.references.load(Ordering::Acquire);
        loop {
            let (transit, references) = ((word / TRANSIT) & COUNT, word & COUNT);
            if word >> 48 != u64::from(generation & 0xffff) || references == 0 {
                return None;
            }
            let (transit, references) = change(transit, references)?;
            if transit > COUNT || references > COUNT {
                return None;
            }
            let to = (word >> 48 << 48) | (transit * TRANSIT) | references;
            match self.references.compare_exchange_weak(
                word,
                to,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(references),
                Err(other) => word = other,
            }
        }
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

    /// Claims an entry for a new object. It is invisible until [`Control::publish`]; recovery frees it if the creator dies
    /// before that. `record` is called with the id before the entry is claimed, to put it into the held table; it may be
    /// called several times.
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
                entry
                    .references
                    .store(first_reference(generation), Ordering::Relaxed);
                entry.watch.store(0, Ordering::Relaxed);
                entry.more_subscribers.store(0, Ordering::Relaxed);
                for subscriber in &entry.subscribers {
                    subscriber.store(0, Ordering::Relaxed);
                }
                entry.user.store(0, Ordering::Relaxed);
                entry.block.store(0, Ordering::Relaxed);
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

    /// Takes a reference, or adopts one that is in transit when `adopt` is set and there is one.
    ///
    /// # Errors
    /// When there is no such object (any more).
    pub fn take_reference(&self, id: ObjectId, adopt: bool) -> Result<()> {
        let entry = self.entry(id)?;
        entry
            .change(id.generation, |transit, references| {
                if adopt && transit > 0 {
                    Some((transit - 1, references))
                } else {
                    Some((transit, references + 1))
                }
            })
            .map(drop)
            .ok_or(Error::NoSuchObject(id))
    }

    /// Counts one more reference in transit.
    ///
    /// # Errors
    /// When there is no such object (any more).
    pub fn export_reference(&self, id: ObjectId) -> Result<()> {
        self.entry(id)?
            .change(id.generation, |transit, references| {
                Some((transit + 1, references + 1))
            })
            .map(drop)
            .ok_or(Error::NoSuchObject(id))
    }

    /// Drops a reference in transit, when there is one. Returns the block to free when it was the last reference.
    ///
    /// # Errors
    /// When there is no such object (any more).
    pub fn drop_transit(&self, id: ObjectId) -> Result<Option<u64>> {
        let entry = self.entry(id)?;
        let left = entry.change(id.generation, |transit, references| {
            Some((transit.checked_sub(1)?, references - 1))
        });
        Ok(left
            .filter(|left| *left == 0)
            .map(|_| self.free_entry(entry, id)))
    }

    /// Gives a reference back. Returns the block to free when it was the last one (0: it had none).
    ///
    /// # Errors
    /// When there is no such object (any more).
    pub fn give_reference(&self, id: ObjectId) -> Result<Option<u64>> {
        let entry = self.entry(id)?;
        // One that is in transit is not anybody's to give back.
        let left = entry.change(id.generation, |transit, references| {
            (references > transit).then_some((transit, references - 1))
        });
        Ok(left
            .filter(|left| *left == 0)
            .map(|_| self.free_entry(entry, id)))
    }

    fn free_entry(&self, entry: &ObjectEntry, id: ObjectId) -> u64 {
        let block = entry.block.swap(0, Ordering::AcqRel);
        entry
            .word
            .store(encode(id.generation, 0, 0, State::Free), Ordering::Release);
        // The lowest free entry is used next: the table is sparse, and pages that were never touched cost nothing.
        self.words()
            .object_hint
            .fetch_min(id.index, Ordering::Relaxed);
        block
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

    /// Undoes the claim of a creator that died, or gave up, before it published.
    ///
    /// # Errors
    /// When the index is beyond the table.
    pub fn unclaim_object(&self, id: ObjectId, creator: SlotId) -> Result<bool> {
        let entry = self.object(id.index)?;
        let from = encode(id.generation, creator.index, id.kind as u8, State::Creating);
        let to = encode(id.generation, 0, 0, State::Free);
        Ok(entry
            .word
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok())
    }
}
