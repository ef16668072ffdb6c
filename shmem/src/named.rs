//! Memory that several processes read, found by a number of the user's choice.
//!
//! A memory object is a block with an entry in the object table: it is referred to like a channel, and goes with the last
//! reference. It is found by pool and number through an index in the control region: a hash table whose buckets hold
//! (generation, index) of objects. A word whose object is gone means nothing, and is used again; so nothing is taken out, and
//! a death leaves nothing that must be mended.
//!
//! A number is given once. Two creators of the same one meet in the bucket's `pending` word: who wants to enter an object
//! announces it there, and whoever finds one announced brings that to its end before he announces his own (as
//! [`crate::reference`] does): he looks through the bucket, puts the object's word into a free place, and writes the verdict
//! into the object's entry, where the first verdict stays. The verdict takes the place of a word that names the object, in a
//! word of the entry that no other kind of object uses: so a helper who was stopped and comes back when the entry has gone to
//! another object changes nothing there.

use dragon_protocol::{ObjectId, ObjectKind};

use crate::control::{Control, MAX_OBJECTS};
use crate::error::{Error, Result};
use crate::member::Member;
use crate::object::{ObjectEntry, State};
use crate::pool::tag::PoolTag;
use crate::region::Shared;
use crate::sync::{AtomicU64, Ordering, high, low};

/// Buckets of the index.
pub const BUCKETS: u32 = if cfg!(miri) { 16 } else { 32768 };
/// Objects in one bucket.
pub const PLACES: u32 = 15;

/// A bucket. 128 bytes.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Bucket {
    /// The object that is being entered: generation << 32 | index + 1; 0 for none.
    pending: AtomicU64,
    /// Objects, in the same form; 0 for a place that was never used.
    places: [AtomicU64; PLACES as usize],
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Bucket {}

/// Where an entry's body says whether its number is its own: a word that no other kind of object uses.
const VERDICT: usize = 7;
/// Where it says how long the memory is.
const LENGTH: usize = 2;
const ACCEPTED: u64 = 1;
const TAKEN: u64 = 2;
const FULL: u64 = 3;
/// There is none yet.
const OPEN: u64 = 4;

/// A verdict on the object of this generation: one that comes late says nothing of the entry's next object.
fn verdict(id: ObjectId, verdict: u64) -> u64 {
    u64::from(id.generation) << 32 | verdict
}

fn word(id: ObjectId) -> u64 {
    u64::from(id.generation) << 32 | (u64::from(id.index) + 1)
}

impl Control {
    /// The entry that a word of the index names, if the object exists, or is being created.
    fn named(&self, word: u64) -> Option<(ObjectId, &ObjectEntry)> {
        let index = low(word).checked_sub(1)?;
        let entry = self.object(index).ok()?;
        let (state, kind, generation, _) = entry.read();
        let id = ObjectId {
            node: self.node(),
            kind: ObjectKind::Memory,
            index,
            generation,
        };
        (generation == high(word) && kind == ObjectKind::Memory as u8 && state != State::Free)
            .then_some((id, entry))
    }

    /// The object with a number whose verdict stands.
    fn find_in(&self, bucket: &Bucket, pool: PoolTag, user: u64) -> Option<ObjectId> {
        let mut words = bucket
            .places
            .iter()
            .map(|place| place.load(Ordering::Acquire));
        words.find_map(|word| {
            let (id, entry) = self.named(word)?;
            let mine = entry.body[VERDICT].load(Ordering::Acquire) == verdict(id, ACCEPTED)
                && key(entry) == (pool, user)
                && entry.read().0 != State::Destroyed;
            mine.then_some(id)
        })
    }

    /// Enters an object that is being created, and whose number and block are in its entry.
    fn enter(&self, id: ObjectId, pool: PoolTag, user: u64) -> Result<()> {
        let bucket = self.bucket_of(pool, user)?;
        let mine = word(id);
        // Release by way of the announcement: who finds it finds this.
        self.object(id.index)?.body[VERDICT].store(verdict(id, OPEN), Ordering::Relaxed);
        loop {
            let pending = bucket.pending.load(Ordering::Acquire);
            if pending != 0 {
                self.help_enter(bucket, pending);
                continue;
            }
            if bucket
                .pending
                .compare_exchange(0, mine, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                break;
            }
        }
        self.help_enter(bucket, mine);
        match self.object(id.index)?.body[VERDICT].load(Ordering::Acquire) {
            now if now == verdict(id, ACCEPTED) => Ok(()),
            now if now == verdict(id, TAKEN) => Err(Error::AlreadyExists {
                pool: pool.number(),
                id: user,
            }),
            _ => Err(Error::TableFull {
                table: "places in this part of the index of named memory",
                size: PLACES,
            }),
        }
    }

    /// Brings the entering of an object to its end.
    fn help_enter(&self, bucket: &Bucket, pending: u64) {
        if let Some((entry, id, reached)) = self.judge(bucket, pending) {
            give(entry, id, reached);
        }
        let _ = bucket
            .pending
            .compare_exchange(pending, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// What is to be said of an object that is being entered; `None` when somebody has said it, or the object is gone.
    fn judge(&self, bucket: &Bucket, pending: u64) -> Option<(&ObjectEntry, ObjectId, u64)> {
        let (id, entry) = self.named(pending)?;
        if entry.body[VERDICT].load(Ordering::Acquire) != verdict(id, OPEN) {
            return None;
        }
        let (pool, user) = key(entry);
        let reached = match self.find_in(bucket, pool, user) {
            Some(other) if other != id => TAKEN,
            _ if self.put(bucket, pending) => ACCEPTED,
            _ => FULL,
        };
        Some((entry, id, reached))
    }

    /// Puts a word into a place that is free, or whose object is gone.
    fn put(&self, bucket: &Bucket, word: u64) -> bool {
        let is = |place: &AtomicU64| place.load(Ordering::Acquire) == word;
        bucket.places.iter().any(is)
            || bucket.places.iter().any(|place| {
                let now = place.load(Ordering::Acquire);
                now == word
                    || self.named(now).is_none()
                        && place
                            .compare_exchange(now, word, Ordering::AcqRel, Ordering::Relaxed)
                            .is_ok()
            })
    }

    fn bucket_of(&self, pool: PoolTag, user: u64) -> Result<&Bucket> {
        // Fibonacci hashing: the high bits of a product with an odd number that has no pattern.
        let mixed = (user ^ u64::from(pool.to_u16()) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.bucket(high(mixed) % BUCKETS)
    }
}

/// Gives a verdict; the first one stays. It may come when the entry is another object's already.
fn give(entry: &ObjectEntry, id: ObjectId, reached: u64) {
    let _ = entry.body[VERDICT].compare_exchange(
        verdict(id, OPEN),
        verdict(id, reached),
        Ordering::AcqRel,
        Ordering::Relaxed,
    );
}

/// Pool and number of a memory object.
fn key(entry: &ObjectEntry) -> (PoolTag, u64) {
    let block = entry.block.load(Ordering::Acquire);
    (PoolTag::of(block), entry.user.load(Ordering::Relaxed))
}

const _: () = assert!(BUCKETS.is_power_of_two() && MAX_OBJECTS <= BUCKETS * PLACES);

impl Member {
    /// Creates memory of `length` bytes in a pool, which other processes find by pool and number, or by its descriptor, and
    /// which lives until the last of them has given it back. `init` is called with the address before anybody sees it.
    ///
    /// ```
    /// # let node = dragon_shmem::local::Node::new()?;
    /// # let (member, other) = (node.member()?, node.member()?);
    /// use dragon_shmem::pool::tag::PoolTag;
    /// let made = member.create_memory(PoolTag::DEFAULT, 7, 100, |at| member.write(at, 0, b"hello"))?;
    /// let found = other.find_memory(PoolTag::DEFAULT, 7)?;
    /// let (address, length) = other.memory(found)?;
    /// assert_eq!((found, length), (made, 100));
    /// # other.detach(found)?;
    /// # member.detach(made)?;
    /// # Ok::<(), dragon_shmem::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the number is taken in that pool, or there is no room for block or object, or `init` fails.
    pub fn create_memory(
        &self,
        pool: PoolTag,
        user: u64,
        length: u64,
        init: impl FnOnce(u64) -> Result<()>,
    ) -> Result<ObjectId> {
        let block = self.alloc_in(pool, length)?.offset;
        let made = init(block).and_then(|()| {
            self.create(ObjectKind::Memory, |entry, id| {
                entry.user.store(user, Ordering::Relaxed);
                entry.body[LENGTH].store(length, Ordering::Relaxed);
                // Recovery of an object that was not published frees the block that it names.
                entry.block.store(block, Ordering::Release);
                self.control().enter(id, pool, user)?;
                // Last: when the number is taken, the block goes with the private memory if this process dies.
                self.share(block)
            })
        });
        if made.is_err() {
            // Nobody has seen it. If it cannot be freed, the first error is still the one to tell.
            let _ = self.free(block);
        }
        made
    }

    /// Attaches to the memory with a number; given back by [`Member::detach`].
    ///
    /// # Errors
    /// When there is none, or the held table is full.
    pub fn find_memory(&self, pool: PoolTag, user: u64) -> Result<ObjectId> {
        let none = Error::NoSuchMemory {
            pool: pool.number(),
            id: user,
        };
        let bucket = self.control().bucket_of(pool, user)?;
        let found = self.control().find_in(bucket, pool, user);
        let id = found.ok_or_else(|| none.clone())?;
        match self.attach(id, false) {
            Err(Error::NoSuchObject(_)) => Err(none),
            other => other.map(|()| id),
        }
    }

    /// Address and length of memory that this process is attached to. For reading only, unless all who use it agree.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn memory(&self, id: ObjectId) -> Result<(u64, u64)> {
        let entry = self.control().entry(id)?;
        let block = entry.block.load(Ordering::Acquire);
        let length = entry.body[LENGTH].load(Ordering::Relaxed);
        self.check(block, length)?;
        Ok((block, length))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
