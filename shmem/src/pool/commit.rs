//! Memory behind a pool: committed and released by its owner, the daemon, alone.
//!
//! What lies below the watermark is committed, except chunks that were released: the owner claims each free page of a chunk
//! by compare-and-swap to RESERVED, and gives the chunk's memory back to the system when it has all of them; so no process
//! can be in a chunk that goes. To commit it again it allocates the memory first and makes the pages FREE then.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::page::{PAGE, PageWord, Tag};
use super::{CHUNK, Pool, spare};
use crate::error::{Error, Result};
use crate::slot::DAEMON;
use crate::sync::Ordering;

/// Pages of a chunk.
#[expect(clippy::cast_possible_truncation, reason = "it is 32")]
const CHUNK_PAGES: u32 = (CHUNK / PAGE) as u32;
/// Committed between two looks at the budget, when more is wanted: others may take memory meanwhile.
const STEP: u64 = 8 * CHUNK;

/// What is committed, as the process that does it knows it: it does not believe what others could have overwritten.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth(Arc<Mutex<Committed>>);

#[derive(Debug, Default)]
struct Committed {
    /// Bytes below the watermark.
    bytes: u64,
    /// Chunks below it that were released.
    released: BTreeSet<u32>,
}

impl Truth {
    // Each change is complete before the next step that can fail.
    fn lock(&self) -> MutexGuard<'_, Committed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page of a chunk that was released.
fn released() -> PageWord {
    PageWord::new(Tag::Reserved, None, 0, 2)
}

impl Pool {
    /// Commits memory so that `bytes` more can be allocated, as far as the limit allows. For the daemon only.
    ///
    /// # Errors
    /// When the limit is reached, or there is no memory.
    pub fn commit(&self, bytes: u64) -> Result<()> {
        self.commit_within(bytes, |_| Ok(()))
    }

    /// As [`Pool::commit`], when `allow` agrees to take so many bytes from the system. It is asked again before each of
    /// several steps; when it refuses in between, what was taken is given back.
    ///
    /// # Errors
    /// As [`Pool::commit`], and what `allow` fails with.
    pub fn commit_within(&self, bytes: u64, allow: impl Fn(u64) -> Result<()>) -> Result<()> {
        let Some(truth) = &self.truth else {
            return self.commit_untold(bytes);
        };
        let mut truth = truth.lock();
        if bytes > self.limit {
            return Err(self.out_of_memory(bytes));
        }
        if let Some(chunks) = self.released_run(&truth.released, bytes)? {
            return self.commit_again(&mut truth, &chunks, allow);
        }
        let start = truth.bytes;
        let more = self.more(start, bytes)?;
        self.take(start, more, allow)?;
        truth.bytes = start + more;
        let word = &self.words()?.committed;
        word.store(start + more, Ordering::Release);
        Ok(())
    }

    /// What is to be committed beyond the watermark.
    fn more(&self, start: u64, bytes: u64) -> Result<u64> {
        let more = bytes
            .max(1)
            .checked_next_multiple_of(CHUNK)
            .unwrap_or(u64::MAX)
            .min(self.limit - start);
        if more == 0 || bytes > self.limit {
            return Err(self.out_of_memory(bytes));
        }
        Ok(more)
    }

    /// Commits where there is no daemon: the processes of a test do it themselves.
    fn commit_untold(&self, bytes: u64) -> Result<()> {
        let start = self.committed();
        let more = self.more(start, bytes)?;
        self.data.commit(start, more)?;
        let word = &self.words()?.committed;
        word.fetch_max(start + more, Ordering::Release);
        Ok(())
    }

    /// Takes memory from the system, all or nothing.
    fn take(&self, start: u64, bytes: u64, allow: impl Fn(u64) -> Result<()>) -> Result<()> {
        let mut done = 0;
        while done < bytes {
            let step = STEP.min(bytes - done);
            let taken = allow(bytes - done).and_then(|()| self.data.commit(start + done, step));
            if let Err(error) = taken {
                // What the failed step got is given back with the rest.
                let _ = self.data.release(start, (done + step).min(bytes));
                return Err(error);
            }
            done += step;
        }
        Ok(())
    }

    fn commit_again(
        &self,
        truth: &mut Committed,
        chunks: &[u32],
        allow: impl Fn(u64) -> Result<()>,
    ) -> Result<()> {
        for (done, chunk) in chunks.iter().enumerate() {
            let left = (chunks.len() - done) as u64 * CHUNK;
            self.take(u64::from(*chunk) * CHUNK, CHUNK, |_| allow(left))?;
            truth.released.remove(chunk);
            self.note_released(truth)?;
            for page in pages(*chunk) {
                self.page(page)?.store(PageWord::FREE);
            }
            self.lower_hint(chunk * CHUNK_PAGES)?;
        }
        Ok(())
    }

    /// The released chunks of the first run that would be long enough if they were committed again.
    fn released_run(&self, gone: &BTreeSet<u32>, bytes: u64) -> Result<Option<Vec<u32>>> {
        if gone.is_empty() {
            return Ok(None);
        }
        let wanted = u32::try_from(bytes.div_ceil(PAGE).max(1)).unwrap_or(u32::MAX);
        let (mut run, mut chunks) = (0, Vec::new());
        for page in 0..self.committed_pages() {
            let chunk = page / CHUNK_PAGES;
            let usable = gone.contains(&chunk) || self.page(page)?.load() == PageWord::FREE;
            if !usable {
                (run, chunks) = (0, Vec::new());
                continue;
            }
            run += 1;
            if gone.contains(&chunk) && chunks.last() != Some(&chunk) {
                chunks.push(chunk);
            }
            // A run of pages that are free already was there before, or others take it: it does not help.
            if run >= wanted && !chunks.is_empty() {
                return Ok(Some(chunks));
            }
        }
        Ok(None)
    }

    /// Gives the memory of chunks without blocks back to the system; returns how many bytes. For the daemon only.
    ///
    /// # Errors
    /// When the kernel refuses, or shared memory is corrupt.
    pub fn release_free(&self) -> Result<u64> {
        let Some(truth) = &self.truth else {
            return Err(Error::NotTheOwner(self.label()));
        };
        let mut truth = truth.lock();
        spare::trim(self, DAEMON, None)?;
        let chunks = u32::try_from(truth.bytes / CHUNK).unwrap_or(u32::MAX);
        let mut bytes = 0;
        for chunk in 0..chunks {
            if truth.released.contains(&chunk) || !self.claim_chunk(chunk)? {
                continue;
            }
            if let Err(error) = self.data.release(u64::from(chunk) * CHUNK, CHUNK) {
                for page in pages(chunk) {
                    self.page(page)?.store(PageWord::FREE);
                }
                return Err(error);
            }
            truth.released.insert(chunk);
            bytes += CHUNK;
        }
        self.note_released(&truth)?;
        Ok(bytes)
    }

    fn claim_chunk(&self, chunk: u32) -> Result<bool> {
        for page in pages(chunk) {
            if !self.page(page)?.replace(PageWord::FREE, released()) {
                for mine in pages(chunk).take_while(|mine| *mine < page) {
                    self.page(mine)?.store(PageWord::FREE);
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn note_released(&self, truth: &Committed) -> Result<()> {
        let bytes = truth.released.len() as u64 * CHUNK;
        self.label_words()?.released.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Gives all memory back, whoever has the pool mapped: nobody refers to it any more. For the daemon only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release_all(&self) -> Result<()> {
        self.data.release(0, self.data.size())?;
        self.meta.release(0, self.meta.size())
    }
}

fn pages(chunk: u32) -> std::ops::Range<u32> {
    chunk * CHUNK_PAGES..(chunk + 1) * CHUNK_PAGES
}
