//! Copying bytes between shared memory and memory of this process.

/// Up to so many bytes, `memcpy` copies by vector registers. Longer copies may become a `rep movsb`.
const PIECE: usize = 2048;
/// Longer copies than that do not become one.
const LONGEST: usize = 4 << 20;
const PAGE: usize = 4096;
/// How far behind the source a target slows `rep movsb` down.
const NEAR: usize = 64;

/// Copies bytes that do not overlap, as [`std::ptr::copy_nonoverlapping`] does.
///
/// Where the target lies 1 to 31 bytes behind the source, modulo the size of a page, `rep movsb` runs at a twentieth of its
/// speed on processors of the Zen 3 line, and at half of it up to 63 bytes. Copies out of a block meet that all the time:
/// the block begins at a page, and large vectors of the usual allocators begin 16 bytes behind one. So these copies are done
/// in pieces that are too short for that instruction, which is as fast as any other copy.
///
/// # Safety
/// `length` bytes are readable at `from` and writable at `to`, and do not overlap.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    if length > PIECE && length <= LONGEST && is_near(from, to) {
        // SAFETY: the caller vouches for both.
        unsafe { copy_in_pieces(from, to, length) };
    } else {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from, to, length) };
    }
}

#[inline]
fn is_near(from: *const u8, to: *mut u8) -> bool {
    let behind = to.addr().wrapping_sub(from.addr()) % PAGE;
    (1..NEAR).contains(&behind)
}

/// # Safety
/// As [`copy`].
#[cold]
unsafe fn copy_in_pieces(from: *const u8, to: *mut u8, length: usize) {
    for at in (0..length).step_by(PIECE) {
        // SAFETY: it lies within the source.
        let from = unsafe { from.add(at) };
        // SAFETY: it lies within the target.
        let to = unsafe { to.add(at) };
        // SAFETY: so does the piece, in both.
        unsafe { copy_piece(from, to, PIECE.min(length - at)) };
    }
}

/// Never inlined: a loop of copies of neighbouring bytes would be compiled to one copy.
///
/// # Safety
/// As [`copy`].
#[inline(never)]
unsafe fn copy_piece(from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: the caller vouches for both.
    unsafe { std::ptr::copy_nonoverlapping(from, to, length) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_copied_and_no_other_written() {
        const ROOM: usize = 4 * PAGE;
        let source: Vec<u8> = (1..=251).cycle().take(ROOM).collect();
        let mut target = vec![0; 2 * ROOM];
        let apart = source.as_ptr().addr().wrapping_sub(target.as_ptr().addr()) % PAGE;
        let mut in_pieces = 0;
        for behind in [0, 1, 16, 31, 63, 64, PAGE - 1] {
            for length in [0, 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 7, 3 * PAGE] {
                target.fill(0);
                let at = apart + behind;
                let to = &mut target[at..at + length];
                assert_eq!(
                    is_near(source.as_ptr(), to.as_mut_ptr()),
                    (1..64).contains(&behind)
                );
                in_pieces += usize::from(length > PIECE && (1..64).contains(&behind));
                // SAFETY: both slices are as long.
                unsafe { copy(source.as_ptr(), to.as_mut_ptr(), length) };
                assert!(to == &source[..length], "{length} bytes, {behind} behind");
                assert!(target[..at].iter().all(|byte| *byte == 0), "before");
                assert!(target[at + length..].iter().all(|byte| *byte == 0), "after");
            }
        }
        assert_eq!(in_pieces, 16);
    }
}
