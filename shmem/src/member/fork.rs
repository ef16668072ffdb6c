//! Whether this process is a child that inherited its memory by fork.

use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use memmap2::MmapMut;
use rustix::mm::Advice;

use crate::error::{Result, io, system};

/// The word that the kernel clears in a forked child, in a page of its own: made at the first use, and never given back.
static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
/// The highest number that any process of this line of forks has had, this one included.
static LAST: AtomicU64 = AtomicU64::new(0);

/// The process that made it, as far as forks tell processes apart. A copy in a forked child still means the parent.
#[derive(Clone, Copy, Debug)]
pub struct ForkMark {
    /// Under Miri nothing forks.
    word: Option<&'static AtomicU64>,
    process: u64,
}

impl ForkMark {
    /// The mark of this process.
    ///
    /// # Errors
    /// When the kernel refuses memory.
    pub(super) fn new() -> Result<Self> {
        if cfg!(miri) {
            return Ok(Self {
                word: None,
                process: 0,
            });
        }
        let word = word()?;
        // Counted before the word is written: a fork in between leaves the child no number to use twice.
        let new = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let numbered = word.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed);
        Ok(Self {
            word: Some(word),
            process: numbered.map_or_else(|earlier| earlier, |_| new),
        })
    }

    /// Whether this process is a forked child of the one that made the mark.
    #[inline]
    #[must_use]
    pub fn is_forked(self) -> bool {
        self.word
            .is_some_and(|word| word.load(Ordering::Relaxed) != self.process)
    }
}

fn word() -> Result<&'static AtomicU64> {
    let mut word = WORD.load(Ordering::Acquire);
    if word.is_null() {
        let mut page = ManuallyDrop::new(MmapMut::map_anon(4096).map_err(io("mmap"))?);
        let made = page.as_mut_ptr();
        // SAFETY: the range is exactly the mapping that `page` owns; the advice changes nothing in this process.
        let advised =
            unsafe { rustix::mm::madvise(made.cast(), page.len(), Advice::LinuxWipeOnFork) };
        let made: *mut AtomicU64 = made.cast();
        let (done, not) = (Ordering::AcqRel, Ordering::Acquire);
        let published = advised
            .map_err(system("madvise(MADV_WIPEONFORK)"))
            .map(|()| WORD.compare_exchange(ptr::null_mut(), made, done, not));
        word = match published {
            Ok(Ok(_)) => made,
            other => {
                // Nobody else knows this page: another thread was quicker, or the kernel refused.
                drop(ManuallyDrop::into_inner(page));
                other?.unwrap_or_else(|first| first)
            }
        };
    }
    // SAFETY: not null; the page is aligned, zeroed at first and mapped until the process ends, and it is used as this atomic
    // alone.
    Ok(unsafe { &*word })
}
