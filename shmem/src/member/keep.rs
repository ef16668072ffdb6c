//! Records that threads keep from one operation to the next.
//!
//! Claiming a record, and giving it back, is a locked instruction. So a thread keeps the first one that it claims: the record
//! stays marked as in use, with an empty intent between operations, and whether the thread is inside an operation is a word of
//! its own. An operation inside another one claims a second record in the ordinary way. When the thread ends, its record goes
//! to whichever thread of the process next wants to keep one.
//!
//! Which records are kept is in the process's own memory alone: a thread may end when the shared memory is no longer mapped,
//! and recovery needs no more than the intents.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::fork::ForkMark;
use crate::control::{MAX_THREADS, SPARE_THREADS};
use crate::sync::low;

/// Records of a process that threads can keep. The others are for threads beyond these, and for operations inside others.
pub(super) const MOST: u32 = (MAX_THREADS - SPARE_THREADS) / 2;

thread_local! {
    /// The record that this thread keeps while it does not use it, else [`Name::NONE`].
    static AT_HAND: Cell<Name> = const { Cell::new(Name::NONE) };
    /// The record that this thread keeps. Looked at when it has none at hand, and when the thread ends.
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// A record of a member, and whether its thread keeps it: `number of the member 48 | kept 1 | index 15`. One word, so that a
/// guard is a pair of registers: in memory it would be written in parts, and read as a whole at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name(u64);

const KEPT_BIT: u64 = 1 << 15;
const _: () = assert!(MAX_THREADS as u64 <= KEPT_BIT);

impl Name {
    /// No member has the number 0.
    pub(super) const NONE: Self = Self(0);

    /// One that is given back after its use.
    #[inline]
    pub(super) fn new(member: u64, index: u32) -> Self {
        Self(member << 16 | u64::from(index))
    }

    fn kept(member: u64, index: u32) -> Self {
        Self(Self::new(member, index).0 | KEPT_BIT)
    }

    #[inline]
    pub(super) fn is_kept(self) -> bool {
        self.0 & KEPT_BIT != 0
    }

    #[inline]
    pub(super) fn is_of(self, member: u64) -> bool {
        self.0 >> 16 == member
    }

    #[inline]
    pub(super) fn index(self) -> u32 {
        low(self.0 & (KEPT_BIT - 1))
    }
}

/// The record at hand, if it is one of this member: it is in use from here on.
#[inline]
pub(super) fn take(member: u64) -> Option<Name> {
    AT_HAND.with(|at_hand| {
        let name = at_hand.get();
        name.is_of(member).then(|| {
            at_hand.set(Name::NONE);
            name
        })
    })
}

/// The thread uses its record no longer.
#[inline]
pub(super) fn put_back(name: Name) {
    // `LocalKey::set` is not as short.
    AT_HAND.with(|at_hand| at_hand.set(name));
}

/// What a member knows about the records that its threads keep.
#[derive(Debug)]
pub(super) struct Keeping {
    /// The member's own, among all that this process and those that it was forked from ever had.
    number: u64,
    records: Arc<Mutex<Records>>,
}

#[derive(Debug, Default)]
struct Records {
    /// How many are kept, those of ended threads included.
    kept: u32,
    /// Those of ended threads.
    left: Vec<u32>,
}

impl Keeping {
    pub(super) fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self {
            number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            records: Arc::default(),
        }
    }

    #[inline]
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Has this thread keep a record, in use from here on: that of an ended thread, or the one that `claim` finds.
    ///
    /// `None`: it keeps one already, of this member or of another that there still is, or there are enough.
    pub(super) fn keep(&self, fork: ForkMark, claim: impl FnOnce() -> Option<u32>) -> Option<Name> {
        if cfg!(loom) {
            // A model's threads are one thread to the system, and so have one `AT_HAND`. What threads do to each other's
            // records is the ordinary claim alone, or goes through a lock.
            return None;
        }
        // There is none in a thread that has begun to end.
        let keep = KEPT.try_with(|kept| {
            let mut kept = kept.try_borrow_mut().ok()?;
            if kept.as_ref().is_some_and(Kept::is_good) {
                return None;
            }
            let mut records = lock(&self.records);
            let index = match records.left.pop() {
                Some(index) => index,
                None if records.kept == MOST => return None,
                None => {
                    let index = claim()?;
                    records.kept += 1;
                    index
                }
            };
            drop(records);
            let name = Name::kept(self.number, index);
            // One of before is that of a member that is gone, or of the process that this one was forked from.
            AT_HAND.set(Name::NONE);
            *kept = Some(Kept {
                name,
                fork,
                records: Arc::downgrade(&self.records),
            });
            Some(name)
        });
        keep.ok().flatten()
    }

    /// A record of an ended thread, which is kept no longer.
    pub(super) fn left(&self) -> Option<u32> {
        let mut records = lock(&self.records);
        let index = records.left.pop()?;
        records.kept -= 1;
        Some(index)
    }
}

/// The record that a thread keeps.
struct Kept {
    name: Name,
    fork: ForkMark,
    records: Weak<Mutex<Records>>,
}

impl Kept {
    /// Whether its member is one of this process, and still there.
    fn is_good(&self) -> bool {
        !self.fork.is_forked() && self.records.strong_count() > 0
    }
}

/// When the thread ends, or when it keeps another.
impl Drop for Kept {
    fn drop(&mut self) {
        // Not while a guard is left that uses it. A forked child may have inherited the lock in the hand of a thread that it
        // has not.
        if AT_HAND.get() != self.name || self.fork.is_forked() {
            return;
        }
        AT_HAND.set(Name::NONE);
        if let Some(records) = self.records.upgrade() {
            lock(&records).left.push(self.name.index());
        }
    }
}

// A thread that panicked left it consistent: each change is a single step, or two that cannot fail.
fn lock(records: &Mutex<Records>) -> MutexGuard<'_, Records> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
