//! A word that supervisor, survivor and victim share beside the node's memory: what a victim did that nobody else knows.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

static PAGE: OnceLock<&'static [AtomicU64; WORDS]> = OnceLock::new();
const WORDS: usize = 512;

/// Called once, before the first fork.
pub(crate) fn map() -> Result<()> {
    let _ = PAGE.set(shared()?);
    Ok(())
}

/// Words of zero that all processes share which are forked from here on. They stay mapped.
pub(crate) fn shared<const N: usize>() -> Result<&'static [AtomicU64; N]> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), N * 8, access, MapFlags::SHARED) }
        .context("mmap")?;
    // SAFETY: the mapping has the size, is aligned to a page, never unmapped, and atomics accept every bit pattern.
    Ok(unsafe { &*start.cast::<[AtomicU64; N]>() })
}

/// Remembers a number.
pub(crate) fn put(number: u64) {
    if let Some(page) = PAGE.get() {
        page[0].store(number, Ordering::SeqCst);
    }
}

/// The number.
pub(crate) fn get() -> u64 {
    PAGE.get().map_or(0, |page| page[0].load(Ordering::SeqCst))
}
