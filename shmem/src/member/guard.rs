//! A thread's record while it is inside an operation.

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::atomic::compiler_fence;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Member;
use super::keep::{self, Name};
use crate::control::{MAX_THREADS, SPARE_THREADS};
use crate::error::{Error, Result};
use crate::pool::{Cache, Pool, ThreadRef};
use crate::sync::Ordering;
use crate::thread::ThreadRecord;

/// A thread record in use, by this thread alone.
#[derive(Debug)]
pub struct ThreadGuard<'a> {
    record: &'a ThreadRecord,
    name: Name,
    _of_this_thread: PhantomData<*const ()>,
}

thread_local! {
    /// The record that this thread claimed last without keeping it: a hint.
    static LAST_RECORD: Cell<Name> = const { Cell::new(Name::NONE) };
}

/// Takes a record if it is free.
#[inline]
fn claim(record: &ThreadRecord, name: Name) -> Option<ThreadGuard<'_>> {
    let free = record
        .busy
        .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
        .is_ok();
    // Lazily: a guard that is made and dropped would give up the record of whoever has it.
    free.then(|| ThreadGuard::new(record, name))
}

impl<'a> ThreadGuard<'a> {
    #[inline]
    fn new(record: &'a ThreadRecord, name: Name) -> Self {
        Self {
            record,
            name,
            _of_this_thread: PhantomData,
        }
    }

    /// Its number within the slot.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.name.index()
    }
}

impl Deref for ThreadGuard<'_> {
    type Target = ThreadRecord;

    #[inline]
    fn deref(&self) -> &ThreadRecord {
        self.record
    }
}

/// A thread record for giving something back: one can be had even when all ordinary ones are in use.
#[derive(Debug)]
pub struct SpareGuard<'a> {
    // Before the turn: the record is free when the next one gets it.
    thread: ThreadGuard<'a>,
    /// Of one of the spare records.
    _turn: Option<MutexGuard<'a, ()>>,
}

impl<'a> Deref for SpareGuard<'a> {
    type Target = ThreadGuard<'a>;

    #[inline]
    fn deref(&self) -> &ThreadGuard<'a> {
        &self.thread
    }
}

/// What the spare thread records are for, one each.
#[derive(Clone, Copy)]
enum Spare {
    /// Emptying an object that goes, which frees.
    Empty = 0,
    /// Freeing.
    Free = 1,
}

/// Whose turn it is at each spare record: the threads of a process take it one after the other. The one for emptying is taken
/// before the one for freeing, and both before the lock of a pool's cache.
pub(super) type Turns = [Mutex<()>; SPARE_THREADS as usize];

impl Member {
    /// A record for an operation of this thread; normally the one that it keeps.
    ///
    /// # Errors
    /// When too many threads of the process are inside operations at once.
    #[inline]
    pub fn thread(&self) -> Result<ThreadGuard<'_>> {
        match self.thread_again() {
            Some(guard) => Ok(guard),
            None => self.other_thread(),
        }
    }

    /// The record that this thread keeps, or claimed last, if it is free; otherwise [`Member::thread`] finds one.
    #[inline]
    pub fn thread_again(&self) -> Option<ThreadGuard<'_>> {
        match keep::take(self.keeping.number()) {
            Some(name) => self.guard(name),
            None => self.thread_without_keeping(),
        }
    }

    fn thread_without_keeping(&self) -> Option<ThreadGuard<'_>> {
        let name = LAST_RECORD.get();
        if !name.is_of(self.keeping.number()) {
            return None;
        }
        claim(self.records.get(name.index() as usize)?, name)
    }

    #[cold]
    fn other_thread(&self) -> Result<ThreadGuard<'_>> {
        let claimed = || {
            self.claim_any()
                .map(|guard| ManuallyDrop::new(guard).index())
        };
        let kept = self.keeping.keep(self.fork, claimed);
        if let Some(guard) = kept.and_then(|name| self.guard(name)) {
            return Ok(guard);
        }
        let left = || self.guard(self.name(self.keeping.left()?));
        let guard = self.claim_any().or_else(left);
        let guard = guard.ok_or(Error::TableFull {
            table: "records for threads of one process",
            size: MAX_THREADS - SPARE_THREADS,
        })?;
        LAST_RECORD.set(guard.name);
        Ok(guard)
    }

    /// Claims any ordinary record.
    fn claim_any(&self) -> Option<ThreadGuard<'_>> {
        (0..).zip(self.records.iter()).find_map(|(index, record)| {
            // The spare ones too: recovery looks at the first records, up to one that was never touched.
            record.touched.store(1, Ordering::Release);
            let free = index >= SPARE_THREADS && record.busy.load(Ordering::Relaxed) == 0;
            free.then(|| claim(record, self.name(index))).flatten()
        })
    }

    /// Of a record that is this thread's.
    #[inline]
    fn guard(&self, name: Name) -> Option<ThreadGuard<'_>> {
        let record = self.records.get(name.index() as usize)?;
        Some(ThreadGuard::new(record, name))
    }

    fn name(&self, index: u32) -> Name {
        Name::new(self.keeping.number(), index)
    }

    /// A record for emptying an object that goes, also when all ordinary ones are in use. The threads of a process get that
    /// one in turn, so whoever has it waits for nobody.
    ///
    /// # Errors
    /// When shared memory is corrupt.
    pub fn thread_to_empty(&self) -> Result<SpareGuard<'_>> {
        match self.thread() {
            Ok(thread) => Ok(SpareGuard {
                thread,
                _turn: None,
            }),
            Err(_) => self.spare_thread(Spare::Empty),
        }
    }

    #[cold]
    fn spare_thread(&self, which: Spare) -> Result<SpareGuard<'_>> {
        let index = which as u32;
        let turn = self.turns[index as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // All up to it, for recovery.
        for record in self.records.iter().take(index as usize + 1) {
            record.touched.store(1, Ordering::Release);
        }
        let record = self.records.get(index as usize);
        let claimed = record.and_then(|record| claim(record, self.name(index)));
        let thread = claimed.ok_or(Error::Corrupt {
            what: "mark of use of a spare thread record",
            value: index.into(),
        })?;
        Ok(SpareGuard {
            thread,
            _turn: Some(turn),
        })
    }

    /// Frees in a pool, by a record of its own. It does not fail for want of one.
    #[inline]
    pub(super) fn free_in(
        &self,
        pool: &Pool,
        cache: &Mutex<Cache>,
        offset: u64,
        between: impl FnOnce(),
    ) -> Result<()> {
        let mut between = Some(between);
        let mut once = || {
            if let Some(between) = between.take() {
                between();
            }
        };
        let slot = &self.own;
        let thread = || self.thread().map(ThreadRef::Leased);
        match pool.free(cache, slot, self.slot, thread, offset, &mut once) {
            Ok(()) => return Ok(()),
            Err(Error::TableFull { .. }) => {}
            Err(error) => return Err(error),
        }
        // Nothing has been changed, at most `between` was called, and no lock is held.
        let spare = self.spare_thread(Spare::Free)?;
        let thread = || Ok(ThreadRef::Callers(&spare));
        pool.free(cache, slot, self.slot, thread, offset, once)
    }
}

impl Drop for ThreadGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.record.intent.end();
        if self.name.is_kept() {
            // A signal handler may use it from here on: what the operation wrote comes before.
            compiler_fence(Ordering::SeqCst);
            keep::put_back(self.name);
        } else {
            self.record.busy.store(0, Ordering::Release);
        }
    }
}
