//! A thread's record while it is inside an operation.

use std::ops::Deref;

use crate::sync::Ordering;
use crate::thread::ThreadRecord;

/// A thread record in use.
#[derive(Debug)]
pub struct ThreadGuard<'a> {
    pub(super) record: &'a ThreadRecord,
    pub(super) index: u32,
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
