//! One page of memory that two processes map.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::Turns;

const SIZE: usize = 4096;
const _: () = assert!(size_of::<Turns>() <= SIZE);

/// A memfd of one page and its mapping, which stays until the process ends.
#[derive(Debug)]
pub struct Page {
    fd: OwnedFd,
    turns: &'static Turns,
}

impl Page {
    /// A fresh page, zeroed. Its descriptor is inherited by children.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create() -> Result<Self> {
        let fd = memfd_create(c"raw", MemfdFlags::empty()).context("cannot create a memfd")?;
        ftruncate(&fd, SIZE as u64).context("cannot size the memfd")?;
        Self::map(fd)
    }

    /// The page that the first process passed on, by the number of its descriptor.
    ///
    /// # Errors
    /// Not a descriptor of an open memfd.
    pub fn inherit(number: &str) -> Result<Self> {
        let number: RawFd = number
            .parse()
            .with_context(|| format!("--child {number}: not a descriptor"))?;
        // SAFETY: the first process left this descriptor to us, and nothing else in this process uses it.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        Self::map(fd)
    }

    /// What to give to [`Page::inherit`].
    #[must_use]
    pub fn number(&self) -> String {
        self.fd.as_fd().as_raw_fd().to_string()
    }

    /// The words in it.
    #[must_use]
    pub fn turns(&self) -> &'static Turns {
        self.turns
    }

    fn map(fd: OwnedFd) -> Result<Self> {
        let turns = map_turns(fd.as_fd())?;
        Ok(Self { fd, turns })
    }
}

fn map_turns(fd: BorrowedFd<'_>) -> Result<&'static Turns> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
    let start = unsafe { mmap(ptr::null_mut(), SIZE, access, MapFlags::SHARED, fd, 0) }
        .context("cannot map the memfd")?;
    // SAFETY: the mapping is page-aligned, large enough (asserted above), never unmapped, and made of atomics only, for
    // which every bit pattern is valid and which others may write.
    Ok(unsafe { &*start.cast::<Turns>() })
}
