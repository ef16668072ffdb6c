//! The flags of a set's members: a bitmap with a summary, raised by whoever changes a member and lowered by waiters.
//!
//! The summary only ever grows while a set has the record: it tells which words have had a flag. If [`lower`] took its bit
//! away when a word became 0, another flag of that word could be raised at this moment, and would be hidden for as long as
//! the one who lowers is stopped there. So a wait looks at each word that was ever used, of which there are at most 128.
//!
//! | Release | Acquire | carries |
//! |---|---|---|
//! | [`raise`]: the bit | [`next`]: load of the word | what the flag announces |

use dragon_shmem::sync::{AtomicU64, Ordering, fence};

use crate::channel::{TestPoint, test_point};
use crate::wait::WaitWord;

/// Where the words of the flags lie.
pub trait Flags {
    /// How many words of flags there are.
    fn words(&self) -> usize;
    /// Word `n` of the flags.
    fn word(&self, n: usize) -> &AtomicU64;
    /// Word `n` of the summary: its bit `b` says that word `64 n + b` has had a flag.
    fn summary(&self, n: usize) -> &AtomicU64;
    /// Where waiters sleep.
    fn wait(&self) -> &WaitWord;
}

/// Flags a member and wakes one waiter. The change that this announces, and a SeqCst fence, come before.
pub fn announce(flags: &impl Flags, member: u32, thorough: bool) {
    raise(flags, member, thorough);
    // Pairs with the fence of `sleep_until`: either the waiter sees the flag, or the waiter is seen here.
    fence(Ordering::SeqCst);
    flags.wait().wake_sleepers(1);
}

/// A flagged member as `state` tells; its flag is lowered when that gives nothing. `lowering` is told before and after: if
/// the waiter dies in between, recovery raises the flag again. `left` is told when the flag was not to be seen for a moment, so
/// that another waiter who has come by meanwhile must look once more.
pub fn look<T>(
    flags: &impl Flags,
    member: u32,
    state: impl Fn() -> Option<T>,
    lowering: impl Fn(bool),
    left: impl Fn(),
) -> Option<T> {
    if let Some(found) = state() {
        return Some(found);
    }
    lowering(true);
    lower(flags, member);
    test_point(TestPoint::Lowered);
    // Pairs with the fence between a change and the look at the flag.
    fence(Ordering::SeqCst);
    let again = state();
    if again.is_some() {
        raise(flags, member, false);
        left();
    }
    lowering(false);
    again
}

/// Flags a member. The change that it announces, and a SeqCst fence, come before.
///
/// `thorough`: for recovery, also when the bit is set already: whoever set it may have died before the summary.
pub fn raise(flags: &impl Flags, member: u32, thorough: bool) {
    let (word, bit) = place(member);
    let (summary, of_word) = (word / 64, 1 << (word % 64));
    // A bit that is set stays set until somebody lowers it, who looks at the member afterwards: nothing to do. The load
    // comes after the fence behind the change, the look after the fence behind the lowering.
    let raised = thorough || flags.word(word).load(Ordering::Relaxed) & bit == 0;
    if raised {
        flags.word(word).fetch_or(bit, Ordering::AcqRel);
    }
    // Whoever set the bit may not have come to the summary yet, and be stopped there for long.
    if raised || flags.summary(summary).load(Ordering::Relaxed) & of_word == 0 {
        flags.summary(summary).fetch_or(of_word, Ordering::AcqRel);
    }
}

/// Takes a member's flag away. A SeqCst fence, and another look at the member, come after.
pub fn lower(flags: &impl Flags, member: u32) {
    let (word, bit) = place(member);
    flags.word(word).fetch_and(!bit, Ordering::AcqRel);
}

/// The first flagged member from `from` on.
pub fn next(flags: &impl Flags, from: u32) -> Option<u32> {
    let (first, bit) = place(from);
    if first >= flags.words() {
        return None;
    }
    let here = flags.word(first).load(Ordering::Acquire) & !(bit - 1);
    if here != 0 {
        return Some(member(first, here));
    }
    let mut word = first + 1;
    while word < flags.words() {
        let left = flags.summary(word / 64).load(Ordering::Acquire) >> (word % 64);
        if left == 0 {
            word = (word / 64 + 1) * 64;
            continue;
        }
        word += left.trailing_zeros() as usize;
        if word >= flags.words() {
            break;
        }
        let bits = flags.word(word).load(Ordering::Acquire);
        if bits != 0 {
            return Some(member(word, bits));
        }
        word += 1;
    }
    None
}

/// Whether any member is flagged. Cheap: for spinning.
pub fn any(flags: &impl Flags) -> bool {
    (0..flags.words().div_ceil(64)).any(|n| {
        let mut left = flags.summary(n).load(Ordering::Relaxed);
        while left != 0 {
            let word = n * 64 + left.trailing_zeros() as usize;
            if word < flags.words() && flags.word(word).load(Ordering::Relaxed) != 0 {
                return true;
            }
            left &= left - 1;
        }
        false
    })
}

const fn place(member: u32) -> (usize, u64) {
    ((member / 64) as usize, 1 << (member % 64))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "words are counted from numbers of 32 bits"
)]
const fn member(word: usize, bits: u64) -> u32 {
    word as u32 * 64 + bits.trailing_zeros()
}
