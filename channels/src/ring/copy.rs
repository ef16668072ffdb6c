//! Copying bytes into cells and out of them. Who does not have a cell yet may be reading it while it is written, so small
//! messages go word by word, by atomics.

use std::io::IoSlice;
use std::ptr::NonNull;

use dragon_shmem::copy::copy;
use dragon_shmem::sync::{AtomicU64, Ordering};

use super::{COPIED_FIRST, to_usize};

/// Writes the parts of a message one after the other, `length` bytes at most: small ones by way of a buffer, so that the
/// words of a cell are written as words.
#[cold]
pub(super) fn write_parts(to: NonNull<u8>, parts: &[IoSlice<'_>], length: u64) {
    let mut left = to_usize(length);
    let mut buffer = [0_u8; to_usize(COPIED_FIRST)];
    let target = if length <= COPIED_FIRST {
        buffer.as_mut_ptr()
    } else {
        to.as_ptr()
    };
    let mut at = 0;
    for part in parts {
        let count = part.len().min(left);
        // SAFETY: `at` is at most the length, for which there is room in the cell, or in the buffer when it is small.
        let to = unsafe { target.add(at) };
        // SAFETY: as above; the claim makes the cell ours; the source is private memory.
        unsafe { copy(part.as_ptr(), to, count) };
        left -= count;
        at += count;
    }
    if length <= COPIED_FIRST {
        // SAFETY: the cell has room for `at` bytes, which is at most `length`.
        unsafe { store_words(buffer.as_ptr(), to, at) };
    }
}

/// Copies bytes into a claimed cell: small ones by atomic words, since who does not have them yet may be reading there.
///
/// # Safety
/// As [`store_words`].
#[inline]
pub(super) unsafe fn store(from: *const u8, to: NonNull<u8>, length: usize) {
    if length as u64 <= COPIED_FIRST {
        // SAFETY: the caller vouches for both.
        unsafe { store_words(from, to, length) };
    } else {
        // SAFETY: as above.
        unsafe { copy(from, to.as_ptr(), length) };
    }
}

/// Copies bytes into a cell by atomic words: others may be reading them.
///
/// # Safety
/// `length` bytes are readable at `from`; at `to`, which is aligned to 8, there is room for them, rounded up to words.
#[inline]
pub(super) unsafe fn store_words(from: *const u8, to: NonNull<u8>, length: usize) {
    let to = to.cast::<AtomicU64>();
    let store = |n: usize, word: u64| {
        // SAFETY: the caller vouches for the room.
        let place = unsafe { to.add(n) };
        // SAFETY: as above; it is aligned, and atomics accept every content.
        unsafe { place.as_ref() }.store(word, Ordering::Relaxed);
    };
    let words = length / 8;
    for n in 0..words {
        // SAFETY: the word lies within the source.
        let place = unsafe { from.cast::<u64>().add(n) };
        // SAFETY: as above.
        store(n, unsafe { place.read_unaligned() });
    }
    let rest = length % 8;
    if rest != 0 {
        let mut word = [0; 8];
        // SAFETY: the rest lies within the source.
        let from = unsafe { from.add(words * 8) };
        // SAFETY: as above; a word has room for fewer than 8 bytes.
        unsafe { std::ptr::copy_nonoverlapping(from, word.as_mut_ptr(), rest) };
        store(words, u64::from_ne_bytes(word));
    }
}

/// The inverse of [`store_words`].
///
/// # Safety
/// `length` bytes, rounded up to words, are mapped at `from`, which is aligned to 8; there is room for `length` at `to`.
#[inline]
pub(super) unsafe fn load_words(from: NonNull<u8>, to: *mut u8, length: usize) {
    let from = from.cast::<AtomicU64>();
    let load = |n: usize| {
        // SAFETY: the caller vouches for the source.
        let place = unsafe { from.add(n) };
        // SAFETY: as above; it is aligned, and atomics accept every content.
        unsafe { place.as_ref() }.load(Ordering::Relaxed)
    };
    let words = length / 8;
    for n in 0..words {
        // SAFETY: the word lies within the target.
        let place = unsafe { to.cast::<u64>().add(n) };
        // SAFETY: as above.
        unsafe { place.write_unaligned(load(n)) };
    }
    let rest = length % 8;
    if rest != 0 {
        let word = load(words).to_ne_bytes();
        // SAFETY: the rest lies within the target.
        let to = unsafe { to.add(words * 8) };
        // SAFETY: as above; the source is a local word.
        unsafe { std::ptr::copy_nonoverlapping(word.as_ptr(), to, rest) };
    }
}
