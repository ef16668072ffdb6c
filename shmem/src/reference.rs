//! Counted references to an object: exact wherever a process dies.
//!
//! A process that takes or gives a reference must be known to have done so or not, although its last instruction may be the
//! compare-and-swap that does it. So a change is made in steps of which each can be repeated by anybody:
//!
//! 1. The process writes into an entry of its held table what it is about to do, with the number of the next change.
//! 2. It *announces* the change: `pending` goes from `idle(n)` to `(n, slot, place, what)` by compare-and-swap.
//! 3. *Anybody* applies it: `counts` goes from number `n` to number `n + 1`, with the new counts and how the change ended.
//! 4. Anybody writes that into the held entry, by a compare-and-swap that names object and number.
//! 5. Anybody makes `pending` `idle(n + 1)`.
//!
//! Whoever finds a change pending helps it to its end before it announces its own; so a dead process holds nobody up, and
//! recovery, having helped, reads in the held table what is true. This is a recoverable compare-and-swap (Attiya, Ben-Baruch
//! and Hendler, PODC 2018) in the form of helping (Barnes 1993).
//!
//! Numbers have 22 bits: a helper would have to be stopped for exactly a multiple of four million changes to take one for
//! another. They go on when an entry is used for a new object, so a change that comes late never meets the next object.
//!
//! The daemon also changes counts directly ([`Counts::direct`]), without a number: when it dies, the runtime ends.

use crate::sync::{AtomicU64, Ordering, low};

/// Counts of references, and the change that is being made. 16 bytes.
#[derive(Debug)]
#[repr(C)]
pub struct Counts {
    /// number 22 bits | outcome of the last change 2 | in transit 24 | attached 16, from the high end.
    counts: AtomicU64,
    /// number 22 bits | slot 20 | place in its held table 16 | change 6, from the high end; the change is 0 when idle.
    pending: AtomicU64,
}

const NUMBERS: u64 = (1 << 22) - 1;
const ATTACHED: u64 = (1 << 16) - 1;
const TRANSIT: u64 = (1 << 24) - 1;
const SLOTS: u64 = (1 << 20) - 1;
const OUTCOME: u64 = 3 << 40;
/// Where the counts stand.
const COUNTS: u64 = (1 << 40) - 1;

/// A change of the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Change {
    /// The first reference, of the creator.
    Create = 1,
    /// One more process is attached.
    Take = 2,
    /// As [`Change::Take`], with a reference that was in transit when there is one.
    Adopt = 3,
    /// One process less is attached.
    Give = 4,
    /// One more reference is in transit.
    Export = 5,
    /// One less is in transit.
    Drop = 6,
}

impl Change {
    const fn from_u64(n: u64) -> Option<Self> {
        Some(match n {
            1 => Self::Create,
            2 => Self::Take,
            3 => Self::Adopt,
            4 => Self::Give,
            5 => Self::Export,
            6 => Self::Drop,
            _ => return None,
        })
    }
}

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// It was made.
    Done = 0,
    /// It was made, and nobody refers to the object any more: whoever asked for the change disposes of it.
    Last = 1,
    /// There is no such reference, or no such object any more, or a count is at its limit.
    Refused = 2,
}

/// A change that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub number: u32,
    /// The slot of the process that makes it.
    pub slot: u32,
    /// The place in that slot's held table.
    pub place: u32,
    /// What is changed.
    pub change: Change,
}

impl Pending {
    fn encode(self) -> u64 {
        idle(u64::from(self.number))
            | (u64::from(self.slot) & SLOTS) << 22
            | (u64::from(self.place) & 0xffff) << 6
            | self.change as u64
    }

    fn decode(word: u64) -> Option<Self> {
        Some(Self {
            number: number_of(word),
            slot: low((word >> 22) & SLOTS),
            place: low((word >> 6) & 0xffff),
            change: Change::from_u64(word & 0x3f)?,
        })
    }
}

fn number_of(word: u64) -> u32 {
    low(word >> 42)
}

fn idle(number: u64) -> u64 {
    (number & NUMBERS) << 42
}

fn next(number: u32) -> u64 {
    u64::from(number).wrapping_add(1) & NUMBERS
}

/// Counts (in transit, attached) after a change, and how it ended.
fn apply(
    change: Change,
    (transit, attached): (u64, u64),
    destroyed: bool,
) -> ((u64, u64), Outcome) {
    let before = (transit, attached);
    let nobody = before == (0, 0);
    let after = match change {
        Change::Create => Some((0, 1)),
        _ if nobody => None,
        Change::Adopt if transit > 0 => Some((transit - 1, attached + 1)),
        Change::Take | Change::Adopt => Some((transit, attached + 1)),
        Change::Give => attached.checked_sub(1).map(|left| (transit, left)),
        Change::Export => Some((transit + 1, attached)),
        Change::Drop => transit.checked_sub(1).map(|left| (left, attached)),
    };
    match after.filter(|(transit, attached)| *transit <= TRANSIT && *attached <= ATTACHED) {
        None => (before, Outcome::Refused),
        // Descriptors on their way do not keep what was destroyed: they may be lost.
        Some((transit, 0)) if transit == 0 || destroyed => ((0, 0), Outcome::Last),
        Some(after) => (after, Outcome::Done),
    }
}

/// Which references, and how many of them, keep a change from being made, to go by the counts (in transit, attached).
#[must_use]
pub fn at_limit(change: Change, (transit, attached): (u32, u32)) -> Option<(&'static str, u32)> {
    let most = |n: u32, limit: u64| u64::from(n) >= limit;
    match change {
        Change::Take | Change::Adopt if most(attached, ATTACHED) => {
            Some(("of processes", low(ATTACHED)))
        }
        Change::Export if most(transit, TRANSIT) && attached > 0 => {
            Some(("in transit", low(TRANSIT)))
        }
        _ => None,
    }
}

impl Counts {
    /// (in transit, attached)
    #[must_use]
    pub fn read(&self) -> (u32, u32) {
        let word = self.counts.load(Ordering::Acquire);
        let (transit, attached) = split(word);
        (low(transit), low(attached))
    }

    /// The change that is pending, or else the number of the next one.
    ///
    /// Whoever wants to make a change first reads this, then makes sure that the object is the one that it means, and then
    /// announces with this number: it fails when the object was another's by then.
    ///
    /// # Errors
    /// The change that is pending: help it first.
    pub fn next_number(&self) -> Result<u32, Pending> {
        let word = self.pending.load(Ordering::Acquire);
        match Pending::decode(word) {
            Some(pending) => Err(pending),
            None => Ok(number_of(word)),
        }
    }

    /// Announces a change; false when another was announced since its number was read. The held entry is written before.
    #[must_use]
    pub fn announce(&self, pending: Pending) -> bool {
        self.pending
            .compare_exchange(
                idle(u64::from(pending.number)),
                pending.encode(),
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_ok()
    }

    /// Brings a pending change to its end. `destroyed` says whether the object was destroyed; `mark` writes the outcome into
    /// the held entry of the process that makes the change, unless that was done before.
    pub fn help(&self, pending: Pending, destroyed: impl Fn() -> bool, mark: impl FnOnce(Outcome)) {
        let after = loop {
            let word = self.counts.load(Ordering::Acquire);
            if number_of(word) != pending.number {
                break word;
            }
            let ((transit, attached), outcome) = apply(pending.change, split(word), destroyed());
            let to = idle(next(pending.number)) | (outcome as u64) << 40 | transit << 16 | attached;
            if self
                .counts
                .compare_exchange(word, to, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                break to;
            }
        };
        // A later number: then this change came to its end long ago.
        if u64::from(number_of(after)) == next(pending.number) {
            mark(match (after & OUTCOME) >> 40 {
                0 => Outcome::Done,
                1 => Outcome::Last,
                _ => Outcome::Refused,
            });
        }
        // Release: who sees the change over sees its mark.
        let _ = self.pending.compare_exchange(
            pending.encode(),
            idle(next(pending.number)),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }

    /// Changes the counts without a trace: for the daemon, whose death nobody survives. `is_meant` says whether the entry is
    /// still that of the object which is meant; it is asked after the counts were read, so counts of another fail.
    pub fn direct(
        &self,
        change: Change,
        is_meant: impl Fn() -> bool,
        destroyed: impl Fn() -> bool,
    ) -> Outcome {
        loop {
            let word = self.counts.load(Ordering::Acquire);
            if !is_meant() {
                return Outcome::Refused;
            }
            let ((transit, attached), outcome) = apply(change, split(word), destroyed());
            if outcome == Outcome::Refused {
                return outcome;
            }
            // Number and outcome of the last change stay: its helpers read them.
            let to = word & !COUNTS | transit << 16 | attached;
            if self
                .counts
                .compare_exchange(word, to, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                return outcome;
            }
        }
    }
}

fn split(word: u64) -> (u64, u64) {
    ((word >> 16) & TRANSIT, word & ATTACHED)
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
