//! Ends this process when recovery itself hangs: everything else is waited for with a limit.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Ticks of the timer without progress.
static TICKS: AtomicU32 = AtomicU32::new(0);
/// What is going on: `operation k`, written by [`watch`] and read by the signal handler.
static TEXT: [AtomicUsize; 16] = [const { AtomicUsize::new(0) }; 16];

/// Of [`crate::tracer::TICK`] each: two minutes.
const LIMIT: u32 = 60_000;

/// The next kill begins.
pub(crate) fn watch(operation: &str, k: usize) {
    let mut bytes = format!("{operation} --at {k}").into_bytes();
    bytes.resize(TEXT.len() * 8, 0);
    for (word, chunk) in TEXT.iter().zip(bytes.chunks_exact(8)) {
        let chunk: [u8; 8] = chunk.try_into().unwrap_or_default();
        word.store(usize::from_le_bytes(chunk), Ordering::Relaxed);
    }
    TICKS.store(0, Ordering::Relaxed);
}

/// Called by the signal handler: only what is safe there.
pub(crate) fn tick() {
    if TICKS.fetch_add(1, Ordering::Relaxed) < LIMIT {
        return;
    }
    let mut bytes = [b' '; 16 * 8];
    for (word, chunk) in TEXT.iter().zip(bytes.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    for text in [
        b"HANG of the supervisor, in recovery or in a count: --operation ".as_slice(),
        &bytes,
        b"\nkills 0, hangs 1, leaks 0\n",
    ] {
        // SAFETY: the bytes are there; write is safe in a signal handler.
        unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
    }
    // SAFETY: ends this process; its victims end with it.
    unsafe { libc::_exit(1) };
}
