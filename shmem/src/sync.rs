//! The one place that names an atomic type: the standard ones, or loom's when a model is checked.

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// The lower half of a word.
#[inline]
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the upper half is what is cut off"
)]
pub const fn low(word: u64) -> u32 {
    word as u32
}

/// The upper half of a word.
#[inline]
#[must_use]
pub const fn high(word: u64) -> u32 {
    low(word >> 32)
}

/// Tells the processor that this is a spin loop.
#[inline]
pub fn spin_loop() {
    #[cfg(not(loom))]
    std::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}
