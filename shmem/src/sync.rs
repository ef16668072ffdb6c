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

/// Stands between a SeqCst operation and a SeqCst load of another word, where two sides do so crosswise and one of them must
/// see the other. The operations' own order is enough for that, and this is nothing; a model takes them for acquire and
/// release only, and there it is the fence that it understands.
#[inline]
pub fn crosswise() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}
