//! A thread's record while it is inside an operation.

use std::cell::Cell;
use std::ops::Deref;

use crate::sync::Ordering;
use crate::thread::ThreadRecord;

/// A thread record in use.
#[derive(Debug)]
pub struct ThreadGuard<'a> {
    pub(super) record: &'a ThreadRecord,
    pub(super) index: u32,
}

thread_local! {
    /// The index of the record that this thread used last: a hint.
    pub(super) static LAST_RECORD: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// Takes a record if it is free.
#[inline]
pub(super) fn claim(record: &ThreadRecord, index: u32) -> Option<ThreadGuard<'_>> {
    let free = record
        .busy
        .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
        .is_ok();
    // Lazily: a guard that is made and dropped would give up the record of whoever has it.
    free.then(|| ThreadGuard { record, index })
}

impl ThreadGuard<'_> {
    /// Its number within the slot.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Deref for ThreadGuard<'_> {
    type Target = ThreadRecord;

    #[inline]
    fn deref(&self) -> &ThreadRecord {
        self.record
    }
}

impl Drop for ThreadGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.record.intent.end();
        self.record.busy.store(0, Ordering::Release);
    }
}
