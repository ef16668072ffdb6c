//! The record of a set in the control region: flags, and where its waiters sleep.

use dragon_shmem::Control;
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::subscription::{FLAG_WORDS, SetRecord};
use dragon_shmem::sync::{AtomicU64, Ordering, low};

use super::flags::Flags;
use super::subscribers::Subscriber;
use crate::wait::WaitWord;

/// The word of a set's entry that holds the number of its record.
pub(super) const RECORD: usize = 2;

/// A set's record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a>(pub(crate) &'a SetRecord);

impl Flags for Record<'_> {
    fn words(&self) -> usize {
        FLAG_WORDS
    }

    #[inline]
    fn word(&self, n: usize) -> &AtomicU64 {
        &self.0.flags[n % FLAG_WORDS]
    }

    #[inline]
    fn summary(&self, n: usize) -> &AtomicU64 {
        &self.0.summary[n % self.0.summary.len()]
    }

    #[inline]
    fn wait(&self) -> &WaitWord {
        // SAFETY: a WaitWord is two AtomicU32, as large and aligned as the AtomicU64, which nobody uses as a whole while
        // the record belongs to a set. (In a model it is larger; models have no records.)
        unsafe { &*std::ptr::from_ref::<AtomicU64>(&self.0.wait).cast::<WaitWord>() }
    }
}

/// The record of a subscriber's set, unless that is gone.
pub(crate) fn record<'a>(control: &'a Control, subscriber: &Subscriber) -> Option<Record<'a>> {
    let record = control.set_record(subscriber.record).ok()?;
    let same = record.generation.load(Ordering::Acquire) == subscriber.generation;
    (same && control.exists(record.owner.load(Ordering::Acquire))).then_some(Record(record))
}

/// The number and the record of the set in an entry.
pub(crate) fn record_of<'a>(
    control: &'a Control,
    entry: &ObjectEntry,
) -> crate::Result<(u32, Record<'a>)> {
    let number = low(entry.body[RECORD].load(Ordering::Acquire));
    Ok((number, Record(control.set_record(number)?)))
}
