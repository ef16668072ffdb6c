//! Whether this process is a child that inherited its memory by fork.

use memmap2::MmapMut;
use rustix::mm::Advice;

use crate::error::{Result, io, system};

/// A byte that the kernel clears in a forked child. Under Miri nothing forks.
pub(super) struct ForkMark(Option<MmapMut>);

impl ForkMark {
    pub(super) fn new() -> Result<Self> {
        if cfg!(miri) {
            return Ok(Self(None));
        }
        let mut page = MmapMut::map_anon(4096).map_err(io("mmap"))?;
        // SAFETY: the range is exactly the mapping that `page` owns; the advice changes nothing in this process.
        unsafe {
            rustix::mm::madvise(
                page.as_mut_ptr().cast(),
                page.len(),
                Advice::LinuxWipeOnFork,
            )
        }
        .map_err(system("madvise(MADV_WIPEONFORK)"))?;
        page[0] = 1;
        Ok(Self(Some(page)))
    }

    #[inline]
    pub(super) fn is_forked(&self) -> bool {
        // SAFETY: the page is mapped as long as self lives. Volatile, since the kernel changes it behind the compiler.
        let wiped = |page: &MmapMut| unsafe { page.as_ptr().read_volatile() == 0 };
        self.0.as_ref().is_some_and(wiped)
    }
}
