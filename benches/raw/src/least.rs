//! Loops of one process: the least that is done for a block of memory, and what needs no memory at all.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};

/// A bit is looked for, set by compare-and-swap and cleared again, so many times: what an allocator cannot do without.
///
/// # Errors
/// Somebody else writes to the map.
pub fn bitmap(map: &AtomicU64, rounds: u32) -> Result<()> {
    for _ in 0..rounds {
        let before = map.load(Ordering::Relaxed);
        let bit = 1_u64 << (!before).trailing_zeros();
        let set = before | bit;
        let done = Ordering::AcqRel;
        ensure!(
            map.compare_exchange(before, set, done, Ordering::Relaxed)
                .is_ok(),
            "nobody else writes here"
        );
        map.fetch_and(!bit, Ordering::AcqRel);
    }
    Ok(())
}

/// Two cores that are threads of one core of the machine share what computes: no program scales better there than this one.
pub fn registers(rounds: u32) {
    let mut values = [1_u64, 2, 3, 4, 5, 6];
    for n in 0..u64::from(rounds) {
        for (which, value) in values.iter_mut().enumerate() {
            *value = value.wrapping_mul(3).wrapping_add(n ^ which as u64);
        }
    }
    std::hint::black_box(values);
}
