//! A channel's words and cells in the block of the pool that holds them.
//!
//! ```text
//! 0      Head: constants, tail, head, readable, writable, each on 128 bytes of its own
//! 640    cells, `stride` bytes each: CellHead (48 bytes), then the bytes of an inline message
//! ```

use std::io::IoSlice;
use std::ptr::NonNull;

use dragon_shmem::pool::Pool;
use dragon_shmem::region::Shared;
use dragon_shmem::sync::{AtomicU32, AtomicU64, Ordering};

use crate::cell::{Capacity, Cells, State, Tag};
use crate::error::Result;
use crate::wait::WaitWord;

/// A word alone on its cache lines (two: processors fetch them in pairs).
#[derive(Debug)]
#[repr(C, align(128))]
struct Line<T>(T);

#[derive(Debug)]
#[repr(C, align(128))]
struct Constants {
    magic: AtomicU32,
    capacity: AtomicU32,
    stride: AtomicU32,
    inline: AtomicU32,
}

#[derive(Debug)]
#[repr(C)]
struct Head {
    constants: Constants,
    tail: Line<AtomicU64>,
    head: Line<AtomicU64>,
    readable: Line<WaitWord>,
    writable: Line<WaitWord>,
}

/// What stands before the bytes of each cell.
#[derive(Debug)]
#[repr(C)]
struct CellHead {
    state: AtomicU64,
    hint: AtomicU64,
    /// Bytes of the message, below [`BY_REFERENCE`].
    length: AtomicU64,
    /// Offset of the message's block when the length says so.
    block: AtomicU64,
    /// Room for a trace id.
    trace: [AtomicU64; 2],
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Head {}
// SAFETY: as above.
unsafe impl Shared for CellHead {}

const MAGIC: u32 = u32::from_le_bytes(*b"CHN1");
/// In a cell's length: the message lies in a block.
const BY_REFERENCE: u64 = 1 << 63;
const CELLS: u64 = size_of::<Head>() as u64;
const CELL_HEAD: u64 = size_of::<CellHead>() as u64;
#[cfg(not(loom))]
const _: () = assert!(CELLS == 640 && CELL_HEAD == 48);

/// Most cells of a channel.
pub(crate) const MAX_CAPACITY: u32 = 1 << 24;
/// Most bytes of an inline message.
pub(crate) const MAX_INLINE: u32 = 1 << 20;

/// A channel's memory, as this process has it mapped. The constants were checked when it was opened and are never read
/// again, so a scribbler cannot lead anybody out of the block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    base: NonNull<u8>,
    capacity: Capacity,
    stride: u64,
    inline: u64,
}

// SAFETY: a Ring only points to shared memory, which it accesses by atomics and by copies of claimed cells.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

/// What a cell holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    pub(crate) hint: u64,
    pub(crate) length: u64,
    /// The block, for messages by reference.
    pub(crate) block: Option<u64>,
}

impl Ring {
    /// Bytes that a channel needs.
    pub(crate) fn size(capacity: u32, inline: u32) -> u64 {
        CELLS + u64::from(capacity) * stride(inline)
    }

    /// Writes an empty channel into a block that has room for it.
    pub(crate) fn init(pool: &Pool, offset: u64, capacity: u32, inline: u32) -> Result<()> {
        let size = Self::size(capacity, inline);
        pool.check(offset, size)?;
        let head: &Head = pool.data().view(offset)?;
        // Checked above: a stride fits 32 bits, since the inline bytes have a limit.
        let stride_word = u32::try_from(stride(inline)).unwrap_or(u32::MAX);
        head.constants.capacity.store(capacity, Ordering::Relaxed);
        head.constants.stride.store(stride_word, Ordering::Relaxed);
        head.constants.inline.store(inline, Ordering::Relaxed);
        head.tail.0.store(0, Ordering::Relaxed);
        head.head.0.store(0, Ordering::Relaxed);
        head.readable.0.reset();
        head.writable.0.reset();
        for cell in 0..u64::from(capacity) {
            let cell: &CellHead = pool.data().view(offset + CELLS + cell * stride(inline))?;
            cell.state
                .store(State::new(0, 0, Tag::Free).0, Ordering::Relaxed);
        }
        head.constants.magic.store(MAGIC, Ordering::Release);
        Ok(())
    }

    /// The channel in the block at `offset`. It may be used as long as the block is allocated and the pool mapped.
    pub(crate) fn open(pool: &Pool, offset: u64) -> Result<Self> {
        let corrupt = |what, value: u32| {
            Err(dragon_shmem::Error::Corrupt {
                what,
                value: value.into(),
            }
            .into())
        };
        pool.check(offset, CELLS)?;
        let constants: &Constants = {
            let head: &Head = pool.data().view(offset)?;
            &head.constants
        };
        let magic = constants.magic.load(Ordering::Acquire);
        if magic != MAGIC {
            return corrupt("magic of a channel", magic);
        }
        let capacity = constants.capacity.load(Ordering::Relaxed);
        let inline = constants.inline.load(Ordering::Relaxed);
        if capacity == 0 || capacity > MAX_CAPACITY {
            return corrupt("capacity of a channel", capacity);
        }
        if inline > MAX_INLINE {
            return corrupt("block size of a channel", inline);
        }
        let size = Self::size(capacity, inline);
        pool.check(offset, size)?;
        Ok(Self {
            base: pool.data().bytes(offset, size)?,
            capacity: Capacity::new(capacity),
            stride: stride(inline),
            inline: inline.into(),
        })
    }

    /// Bytes of a message that fit into a cell.
    #[inline]
    pub(crate) fn inline(&self) -> u64 {
        self.inline
    }

    #[inline]
    fn head_words(&self) -> &Head {
        // SAFETY: `open` checked that the block, which is aligned to at least 64 KiB or its power-of-two class, has room
        // for the head; Head is Shared, so every content is valid.
        unsafe { self.base.cast::<Head>().as_ref() }
    }

    #[inline]
    fn cell(&self, index: u64) -> NonNull<u8> {
        debug_assert!(index < self.capacity.cells());
        let at = CELLS + index * self.stride;
        // SAFETY: callers pass an index below the capacity, so the cell lies inside the block that `open` checked. The
        // block is smaller than the address space, so the cast loses nothing.
        unsafe { self.base.add(to_usize(at)) }
    }

    #[inline]
    fn cell_head(&self, index: u64) -> &CellHead {
        // SAFETY: as in `cell`; strides are multiples of 64, so it is aligned; CellHead is Shared.
        unsafe { self.cell(index).cast::<CellHead>().as_ref() }
    }

    /// Where sleeping receivers sleep.
    #[inline]
    pub(crate) fn readable(&self) -> &WaitWord {
        &self.head_words().readable.0
    }

    /// Where sleeping senders sleep.
    #[inline]
    pub(crate) fn writable(&self) -> &WaitWord {
        &self.head_words().writable.0
    }

    /// Writes an inline message into a claimed cell. `length` is the sum of the parts.
    #[inline]
    pub(crate) fn write_inline(&self, position: u64, hint: u64, parts: &[IoSlice<'_>]) {
        let (_, index) = self.capacity.place(position);
        let head = self.cell_head(index);
        let mut room = self.inline;
        let mut at = CELL_HEAD;
        for part in parts {
            let length = (part.len() as u64).min(room);
            // SAFETY: `at` is at most the stride, so this stays inside the cell.
            let to = unsafe { self.cell(index).add(to_usize(at)) };
            // SAFETY: the cell has `inline` bytes behind its head, of which `room` are left; the claim makes them ours; the
            // source is private memory.
            unsafe { crate::message::copy(part.as_ptr(), to.as_ptr(), to_usize(length)) };
            room -= length;
            at += length;
        }
        head.hint.store(hint, Ordering::Relaxed);
        head.length.store(at - CELL_HEAD, Ordering::Relaxed);
    }

    /// Writes a message by reference into a claimed cell.
    #[inline]
    pub(crate) fn write_reference(&self, position: u64, hint: u64, block: u64, length: u64) {
        let (_, index) = self.capacity.place(position);
        let head = self.cell_head(index);
        head.hint.store(hint, Ordering::Relaxed);
        head.block.store(block, Ordering::Relaxed);
        head.length.store(length | BY_REFERENCE, Ordering::Relaxed);
    }

    /// What a claimed cell holds. The length of an inline message is cut to what fits into a cell.
    #[inline]
    pub(crate) fn content(&self, position: u64) -> Content {
        let (_, index) = self.capacity.place(position);
        let head = self.cell_head(index);
        let length = head.length.load(Ordering::Relaxed);
        let hint = head.hint.load(Ordering::Relaxed);
        if length & BY_REFERENCE == 0 {
            Content {
                hint,
                length: length.min(self.inline),
                block: None,
            }
        } else {
            Content {
                hint,
                length: length & !BY_REFERENCE,
                block: Some(head.block.load(Ordering::Relaxed)),
            }
        }
    }

    /// Where the bytes of an inline message lie: `inline()` of them.
    #[inline]
    pub(crate) fn inline_bytes(&self, position: u64) -> NonNull<u8> {
        let (_, index) = self.capacity.place(position);
        // SAFETY: the head of a cell lies inside the cell.
        unsafe { self.cell(index).add(to_usize(CELL_HEAD)) }
    }
}

impl Cells for Ring {
    #[inline]
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    #[inline]
    fn tail(&self) -> &AtomicU64 {
        &self.head_words().tail.0
    }

    #[inline]
    fn head(&self) -> &AtomicU64 {
        &self.head_words().head.0
    }

    #[inline]
    fn state(&self, index: u64) -> &AtomicU64 {
        &self.cell_head(index).state
    }
}

/// An offset or length in mapped memory, which fits an address.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the machines that this runs on have 64-bit addresses"
)]
const fn to_usize(n: u64) -> usize {
    n as usize
}

fn stride(inline: u32) -> u64 {
    (CELL_HEAD + u64::from(inline)).next_multiple_of(64)
}
