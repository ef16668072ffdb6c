//! A channel's words and cells in the block of the pool that holds them.
//!
//! ```text
//! 0      Head: constants, tail, head, readable, writable, each on 128 bytes of its own; segments
//! 896    sender words, 8 bytes each, to a multiple of 128
//!        receiver words, likewise
//!        cells, `stride` bytes each: CellHead (24 bytes), then the bytes of an inline message
//! ```
//! An unbounded channel is a chain of such rings; the words that do not belong to one ring are those of the first. A queue
//! with priorities is a *bank* of them: equal rings one behind the other in one block, with one place for all who wait to
//! receive.

mod copy;

use std::io::IoSlice;
use std::ptr::NonNull;

use dragon_shmem::pool::Pool;
use dragon_shmem::region::Shared;
use dragon_shmem::sync::{AtomicU32, AtomicU64, Ordering};

use crate::cell::{Capacity, Cells, Spot, unused};
use crate::error::Result;
use crate::wait::WaitWord;
use copy::{load_words, store, store_words, write_parts};

/// Words alone on their cache lines (two: processors fetch them in pairs).
#[derive(Debug)]
#[repr(C, align(128))]
struct Line<T>(T);

#[derive(Debug)]
#[repr(C, align(128))]
struct Constants {
    magic: AtomicU32,
    capacity: AtomicU32,
    /// Bytes of a message that may lie in a cell.
    inline: AtomicU32,
    reserved: AtomicU32,
    /// Most messages of an unbounded channel; 0 for a bounded one.
    limit: AtomicU64,
    /// See [`Cells::end`]. Written once.
    end: AtomicU64,
    /// Where those sleep who wait for the channel's end.
    closing: WaitWord,
    done: Done,
}

/// See [`Cells::done`]. Written now and then, and read by senders that wait for room, who must not take the line of the
/// receivers' own hint away from them at each look.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Done(AtomicU64);

/// The hints of one side: a position, and the ring of the chain that the side uses.
#[derive(Debug)]
#[repr(C)]
struct Hint {
    position: AtomicU64,
    segment: AtomicU64,
}

#[derive(Debug)]
#[repr(C)]
struct Tail {
    hint: Hint,
    /// See [`Cells::free`].
    free: AtomicU64,
}

#[derive(Debug)]
#[repr(C)]
struct Head {
    constants: Constants,
    tail: Line<Tail>,
    head: Line<Hint>,
    readable: Line<WaitWord>,
    writable: Line<WaitWord>,
    /// The further rings of an unbounded channel: their blocks.
    segments: Line<[AtomicU64; MAX_SEGMENTS]>,
}

/// What stands before the bytes of each cell.
#[derive(Debug)]
#[repr(C)]
struct CellHead {
    published: AtomicU64,
    hint: AtomicU64,
    /// Bytes of the message, and what else there is: see [`Content`].
    length: AtomicU64,
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for Head {}
// SAFETY: as above.
unsafe impl Shared for CellHead {}

const MAGIC: u32 = u32::from_le_bytes(*b"CHN2");
/// In a cell's length: the message lies in a block, whose address stands where its bytes would.
const BY_REFERENCE: u64 = 1 << 63;
/// In a cell's length: a trace id of 16 bytes stands before the bytes, or behind the address of the block.
const TRACED: u64 = 1 << 62;
const LENGTH: u64 = TRACED - 1;
/// Bytes of a trace id.
const TRACE: u64 = 16;
const WORDS: u64 = size_of::<Head>() as u64;
const CELL_HEAD: u64 = size_of::<CellHead>() as u64;
/// Bytes of two cache lines, which processors fetch in pairs.
const LINE: u64 = 128;
/// Least room in a cell: an address and a trace id.
const LEAST_ROOM: u32 = 24;
#[cfg(not(loom))]
const _: () = assert!(WORDS == 896 && CELL_HEAD == 24);

/// Most cells of a channel.
pub(crate) const MAX_CAPACITY: u32 = 1 << 24;
/// Most bytes of an inline message.
pub(crate) const MAX_INLINE: u32 = 1 << 20;
/// Most rings of an unbounded channel beside the first: each is at least twice as large as the one before it.
pub(crate) const MAX_SEGMENTS: usize = 24;
/// Inline messages up to so many bytes are copied before they are claimed, word by word.
const COPIED_FIRST: u64 = 256;

/// A ring, as this process has it mapped. The constants were checked when it was opened and are never read again, so a
/// scribbler cannot lead anybody out of the block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    base: NonNull<u8>,
    sleepers: Sleepers,
    /// Where the receiver words begin.
    receivers: NonNull<u8>,
    /// Where the cells begin.
    cells: NonNull<u8>,
    capacity: Capacity,
    stride: u64,
    inline: u64,
    /// Most bytes of a plain message.
    plain: u64,
    limit: u64,
}

/// Where those sleep who wait for a change of a ring: in its own head, unless the ring belongs to something larger.
#[derive(Clone, Copy, Debug)]
struct Sleepers {
    readable: NonNull<WaitWord>,
    writable: NonNull<WaitWord>,
    closing: NonNull<WaitWord>,
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
    pub(crate) traced: bool,
    pub(crate) by_reference: bool,
}

/// A message that can be taken in one step: see [`Ring::plain`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain {
    pub(crate) hint: u64,
    pub(crate) length: u64,
}

impl From<Plain> for Content {
    fn from(Plain { hint, length }: Plain) -> Self {
        Self {
            hint,
            length,
            traced: false,
            by_reference: false,
        }
    }
}

/// What is written before a message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Label {
    pub(crate) hint: u64,
    pub(crate) trace: Option<[u8; 16]>,
}

impl Ring {
    /// Bytes that a ring needs.
    pub(crate) fn size(capacity: u32, inline: u32) -> u64 {
        cells_at(capacity) + u64::from(capacity) * stride(inline)
    }

    /// Writes an empty ring into a block that has room for it.
    pub(crate) fn init(
        pool: &Pool,
        offset: u64,
        capacity: u32,
        inline: u32,
        limit: u64,
    ) -> Result<()> {
        Self::at(pool, offset, capacity, inline, limit)?.clear(capacity, inline);
        Ok(())
    }

    /// Writes an empty ring.
    fn clear(&self, capacity: u32, inline: u32) {
        let head = self.words();
        let Constants {
            magic,
            capacity: cells,
            inline: bytes,
            reserved,
            limit: most,
            end,
            closing,
            done,
        } = &head.constants;
        cells.store(capacity, Ordering::Relaxed);
        bytes.store(inline, Ordering::Relaxed);
        reserved.store(0, Ordering::Relaxed);
        most.store(self.limit, Ordering::Relaxed);
        end.store(0, Ordering::Relaxed);
        closing.reset();
        done.0.store(0, Ordering::Relaxed);
        head.tail.0.free.store(0, Ordering::Relaxed);
        for hint in [&head.tail.0.hint, &head.head.0] {
            hint.position.store(0, Ordering::Relaxed);
            hint.segment.store(0, Ordering::Relaxed);
        }
        head.readable.0.reset();
        head.writable.0.reset();
        for segment in &head.segments.0 {
            segment.store(0, Ordering::Relaxed);
        }
        let [sender, published, receiver] = unused(0);
        for cell in 0..u64::from(capacity) {
            self.sender(cell).store(sender, Ordering::Relaxed);
            self.published(cell).store(published, Ordering::Relaxed);
            self.receiver(cell).store(receiver, Ordering::Relaxed);
        }
        magic.store(MAGIC, Ordering::Release);
    }

    /// The ring in the block at `offset`. It may be used as long as the block is allocated and the pool mapped.
    pub(crate) fn open(pool: &Pool, offset: u64) -> Result<Self> {
        let corrupt = |what, value: u32| {
            Err(dragon_shmem::Error::Corrupt {
                what,
                value: value.into(),
            }
            .into())
        };
        pool.check(offset, WORDS)?;
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
        let limit = constants.limit.load(Ordering::Relaxed);
        Self::at(pool, offset, capacity, inline, limit)
    }

    fn at(pool: &Pool, offset: u64, capacity: u32, inline: u32, limit: u64) -> Result<Self> {
        let size = Self::size(capacity, inline);
        pool.check(offset, size)?;
        let base = pool.data().bytes(offset, size)?;
        Ok(Self {
            base,
            // SAFETY: the block, whose size was just checked, has room for the head.
            sleepers: unsafe { Self::sleepers_in(base) },
            // SAFETY: the receiver words begin inside the block, whose size was just checked.
            receivers: unsafe { base.add(to_usize(WORDS + array(capacity.into()))) },
            // SAFETY: the cells begin inside the block, whose size was just checked.
            cells: unsafe { base.add(to_usize(cells_at(capacity))) },
            capacity: Capacity::new(capacity),
            stride: stride(inline),
            inline: inline.into(),
            plain: COPIED_FIRST.min(stride(inline) - CELL_HEAD),
            limit,
        })
    }

    /// # Safety
    /// A ring's head lies at `base`, mapped and aligned.
    unsafe fn sleepers_in(base: NonNull<u8>) -> Sleepers {
        // SAFETY: the caller vouches for it; Head is Shared, so every content is valid.
        let head = unsafe { base.cast::<Head>().as_ref() };
        Sleepers {
            readable: NonNull::from(&head.readable.0),
            writable: NonNull::from(&head.writable.0),
            closing: NonNull::from(&head.constants.closing),
        }
    }

    /// The ring whose users sleep elsewhere: in memory that outlives the ring's block.
    ///
    /// # Safety
    /// The words lie in shared memory that stays mapped as long as the ring is used.
    pub(crate) unsafe fn sleeping_at(
        self,
        readable: &WaitWord,
        writable: &WaitWord,
        closing: &WaitWord,
    ) -> Self {
        let [readable, writable, closing] = [readable, writable, closing].map(NonNull::from);
        Self {
            sleepers: Sleepers {
                readable,
                writable,
                closing,
            },
            ..self
        }
    }

    /// Bytes of a message that fit into a cell.
    #[inline]
    pub(crate) fn inline(&self) -> u64 {
        self.inline
    }

    /// Most messages of an unbounded channel; 0 for a bounded one.
    #[inline]
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes of its block.
    pub(crate) fn bytes(&self) -> u64 {
        let capacity = self.capacity.cells();
        2 * array(capacity) + WORDS + capacity * self.stride
    }

    /// Whether a message may travel inline.
    #[inline]
    pub(crate) fn fits(&self, length: u64, traced: bool) -> bool {
        length <= self.inline && (!traced || length + TRACE <= self.room())
    }

    /// Bytes of a cell behind its head.
    #[inline]
    fn room(&self) -> u64 {
        self.stride - CELL_HEAD
    }

    #[inline]
    fn words(&self) -> &Head {
        // SAFETY: `at` checked that the block, which is aligned to at least 64 KiB or its power-of-two class, has room for
        // the head, and `with_its_bank` that it has room for all; Head is Shared, so every content is valid.
        unsafe { self.base.cast::<Head>().as_ref() }
    }

    /// The word of a cell in an array that begins at `array`.
    #[inline]
    fn word(&self, array: NonNull<u8>, index: u64) -> &AtomicU64 {
        debug_assert!(index < self.capacity.cells());
        // SAFETY: callers pass an index below the capacity, so the word lies inside the block that `at` checked.
        let word = unsafe { array.cast::<AtomicU64>().add(to_usize(index)) };
        // SAFETY: the arrays are aligned, and hold atomics only.
        unsafe { word.as_ref() }
    }

    #[inline]
    fn cell(&self, index: u64) -> NonNull<u8> {
        debug_assert!(index < self.capacity.cells());
        // SAFETY: callers pass an index below the capacity, so the cell lies inside the block that `at` checked. The
        // block is smaller than the address space, so the cast loses nothing.
        unsafe { self.cells.add(to_usize(index * self.stride)) }
    }

    #[inline]
    fn cell_head(&self, index: u64) -> &CellHead {
        // SAFETY: as in `cell`; strides are multiples of 64, so it is aligned; CellHead is Shared.
        unsafe { self.cell(index).cast::<CellHead>().as_ref() }
    }

    /// Where the bytes of a cell lie: `room()` of them.
    #[inline]
    fn bytes_of(&self, position: u64) -> NonNull<u8> {
        let (_, index) = self.capacity.place(position);
        self.bytes_at(index)
    }

    /// [`Ring::bytes_of`], by the cell.
    #[inline]
    fn bytes_at(&self, index: u64) -> NonNull<u8> {
        // SAFETY: the head of a cell lies inside the cell.
        unsafe { self.cell(index).add(to_usize(CELL_HEAD)) }
    }

    /// Where sleeping receivers sleep.
    #[inline]
    pub(crate) fn readable(&self) -> &WaitWord {
        // SAFETY: it lies in the head, or the caller of `sleeping_at` vouched for it.
        unsafe { self.sleepers.readable.as_ref() }
    }

    /// Where sleeping senders sleep.
    #[inline]
    pub(crate) fn writable(&self) -> &WaitWord {
        // SAFETY: as in `readable`.
        unsafe { self.sleepers.writable.as_ref() }
    }

    /// Where those sleep who wait for the channel's end.
    pub(crate) fn closing(&self) -> &WaitWord {
        // SAFETY: as in `readable`.
        unsafe { self.sleepers.closing.as_ref() }
    }

    /// Writes an inline message into a claimed cell. `length` is the sum of the parts, and fits.
    #[inline]
    pub(crate) fn write_inline(
        &self,
        position: u64,
        label: &Label,
        parts: &[IoSlice<'_>],
        length: u64,
    ) {
        let (_, index) = self.capacity.place(position);
        let head = self.cell_head(index);
        let mut to = self.bytes_of(position);
        let mut room = self.room();
        let mut flags = 0;
        if let Some(trace) = &label.trace {
            // SAFETY: each cell has room for more than a trace id.
            unsafe { store_words(trace.as_ptr(), to, to_usize(TRACE)) };
            // SAFETY: as above.
            to = unsafe { to.add(to_usize(TRACE)) };
            room -= TRACE;
            flags = TRACED;
        }
        let length = length.min(room);
        match parts {
            // SAFETY: the cell has `room` bytes here; the claim makes them ours; the source is private memory, and as long.
            [part] if length <= COPIED_FIRST => unsafe {
                store_words(part.as_ptr(), to, to_usize(length));
            },
            _ => write_parts(to, parts, length),
        }
        head.hint.store(label.hint, Ordering::Relaxed);
        head.length.store(length | flags, Ordering::Relaxed);
    }

    /// [`Ring::write_inline`] for one part that fits, and no trace id.
    #[inline]
    pub(crate) fn write_part(&self, spot: Spot, hint: u64, part: &[u8]) {
        let head = self.cell_head(spot.index);
        let to = self.bytes_at(spot.index);
        let length = (part.len() as u64).min(self.room());
        // SAFETY: the cell has room for `length` bytes, rounded up to words; the claim makes them ours; the source is
        // private memory, and as long.
        unsafe { store(part.as_ptr(), to, to_usize(length)) };
        head.hint.store(hint, Ordering::Relaxed);
        head.length.store(length, Ordering::Relaxed);
    }

    /// Writes a message by reference into a claimed cell.
    #[inline]
    pub(crate) fn write_reference(&self, position: u64, label: &Label, block: u64, length: u64) {
        let (_, index) = self.capacity.place(position);
        let head = self.cell_head(index);
        let to = self.bytes_of(position);
        let mut flags = BY_REFERENCE;
        // SAFETY: each cell has room for an address and a trace id.
        unsafe { to.cast::<AtomicU64>().as_ref() }.store(block, Ordering::Relaxed);
        if let Some(trace) = &label.trace {
            // SAFETY: as above.
            let to = unsafe { to.add(8) };
            // SAFETY: as above.
            unsafe { store_words(trace.as_ptr(), to, to_usize(TRACE)) };
            flags |= TRACED;
        }
        head.hint.store(label.hint, Ordering::Relaxed);
        head.length
            .store(length & LENGTH | flags, Ordering::Relaxed);
    }

    /// What a published cell holds. The length of an inline message is cut to what fits into a cell.
    #[inline]
    pub(crate) fn content(&self, position: u64) -> Content {
        let (_, index) = self.capacity.place(position);
        let head = self.cell_head(index);
        let word = head.length.load(Ordering::Relaxed);
        let hint = head.hint.load(Ordering::Relaxed);
        let traced = word & TRACED != 0;
        let by_reference = word & BY_REFERENCE != 0;
        let mut length = word & LENGTH;
        if !by_reference {
            length = length.min(self.room() - if traced { TRACE } else { 0 });
        }
        Content {
            hint,
            length,
            traced,
            by_reference,
        }
    }

    /// The message in a published cell, if it is a plain one: inline, small enough to be copied before it is claimed, and
    /// without a trace id.
    #[inline]
    pub(crate) fn plain(&self, spot: Spot) -> Option<Plain> {
        let head = self.cell_head(spot.index);
        // What else there is stands in bits above the length.
        let length = head.length.load(Ordering::Relaxed);
        let hint = head.hint.load(Ordering::Relaxed);
        (length <= self.plain).then_some(Plain { hint, length })
    }

    /// Copies the bytes of a plain message: what others write meanwhile may be among them.
    ///
    /// # Safety
    /// There is room for them at `to`.
    #[inline]
    pub(crate) unsafe fn copy_plain(&self, spot: Spot, message: Plain, to: *mut u8) {
        // SAFETY: `plain` saw to it that the cell has so many bytes; the caller vouches for the target.
        unsafe { load_words(self.bytes_at(spot.index), to, to_usize(message.length)) };
    }

    /// Whether the bytes of a message may be copied before the message is claimed.
    #[inline]
    pub(crate) fn copied_first(content: &Content) -> bool {
        !content.by_reference && content.length <= COPIED_FIRST
    }

    /// The block of a message by reference.
    #[inline]
    pub(crate) fn block(&self, position: u64) -> u64 {
        // SAFETY: each cell has room for an address behind its head, and is aligned.
        unsafe { self.bytes_of(position).cast::<AtomicU64>().as_ref() }.load(Ordering::Relaxed)
    }

    /// The trace id of a message.
    pub(crate) fn trace(&self, position: u64, content: &Content) -> Option<[u8; 16]> {
        let at = if content.by_reference { 8 } else { 0 };
        content.traced.then(|| {
            let mut trace = [0; 16];
            // SAFETY: each cell has room for an address and a trace id.
            let from = unsafe { self.bytes_of(position).add(at) };
            // SAFETY: as above.
            unsafe { load_words(from, trace.as_mut_ptr(), trace.len()) };
            trace
        })
    }

    /// Copies the bytes of an inline message that is not claimed: what others write meanwhile may be among them.
    pub(crate) fn copy_unclaimed(&self, position: u64, content: &Content, to: &mut [u8]) {
        let mut from = self.bytes_of(position);
        if content.traced {
            // SAFETY: each cell has room for a trace id.
            from = unsafe { from.add(to_usize(TRACE)) };
        }
        let length = to.len().min(to_usize(content.length));
        // SAFETY: `content` cut the length to what the cell has; the target is as long.
        unsafe { load_words(from, to.as_mut_ptr(), length) };
    }

    /// Copies the bytes of an inline message, `content.length` of them.
    ///
    /// # Safety
    /// There is room for them at `to`. Unless they may be copied first, the cell is claimed.
    #[inline]
    pub(crate) unsafe fn copy_out(&self, position: u64, content: &Content, to: *mut u8) {
        let mut from = self.bytes_of(position);
        if content.traced {
            // SAFETY: each cell has room for a trace id.
            from = unsafe { from.add(to_usize(TRACE)) };
        }
        let length = to_usize(content.length);
        if Self::copied_first(content) {
            // SAFETY: `content` cut the length to what the cell has; the caller vouches for the target.
            unsafe { load_words(from, to, length) };
        } else {
            // SAFETY: as above; who behaves does not write a claimed cell.
            unsafe { dragon_shmem::copy::copy(from.as_ptr(), to, length) };
        }
    }
}

/// What belongs to a bank.
impl Ring {
    /// Bytes from one ring of a bank to the next. An odd number of lines, so that the same words of several rings do not
    /// compete for the same places of a processor's cache.
    fn pitch(size: u64) -> u64 {
        (size.div_ceil(LINE) | 1) * LINE
    }

    /// Bytes that a bank of `count` rings needs.
    pub(crate) fn bank_size(count: u32, capacity: u32, inline: u32) -> u64 {
        u64::from(count) * Self::pitch(Self::size(capacity, inline))
    }

    /// Writes a bank of empty rings into a block that has room for it.
    pub(crate) fn init_bank(
        pool: &Pool,
        offset: u64,
        count: u32,
        capacity: u32,
        inline: u32,
    ) -> Result<()> {
        let first = Self::at(pool, offset, capacity, inline, 0)?;
        for ring in first.with_its_bank(pool, offset, count)? {
            ring.clear(capacity, inline);
        }
        Ok(())
    }

    /// The rings of the bank in the block at `offset`. They may be used as [`Ring::open`] says.
    pub(crate) fn open_bank(
        pool: &Pool,
        offset: u64,
        count: u32,
    ) -> Result<impl Iterator<Item = Self> + use<>> {
        // Its shape is that of all, whatever the others say.
        let first = Self {
            limit: 0,
            ..Self::open(pool, offset)?
        };
        first.with_its_bank(pool, offset, count)
    }

    fn with_its_bank(
        self,
        pool: &Pool,
        offset: u64,
        count: u32,
    ) -> Result<impl Iterator<Item = Self> + use<>> {
        let pitch = Self::pitch(self.bytes());
        pool.check(offset, pitch.saturating_mul(count.into()))?;
        let moved = move |place: NonNull<u8>, n: u32| {
            // SAFETY: the block has room for so many rings, as was just checked.
            unsafe { place.add(to_usize(pitch * u64::from(n))) }
        };
        Ok((0..count).map(move |n| {
            let base = moved(self.base, n);
            Self {
                base,
                sleepers: Sleepers {
                    readable: self.sleepers.readable,
                    // SAFETY: the block has room for the head there, as was just checked.
                    ..unsafe { Self::sleepers_in(base) }
                },
                receivers: moved(self.receivers, n),
                cells: moved(self.cells, n),
                ..self
            }
        }))
    }
}

/// What belongs to the chain of an unbounded channel.
impl Ring {
    /// The block of a further ring; 0 while there is none.
    pub(crate) fn segment(&self, n: usize) -> Option<&AtomicU64> {
        self.words().segments.0.get(n.checked_sub(1)?)
    }

    /// Hint: the ring that senders use.
    pub(crate) fn sending(&self) -> &AtomicU64 {
        &self.words().tail.0.hint.segment
    }

    /// Hint: the ring that receivers use.
    pub(crate) fn receiving(&self) -> &AtomicU64 {
        &self.words().head.0.segment
    }
}

impl Cells for Ring {
    #[inline]
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    #[inline]
    fn tail(&self) -> &AtomicU64 {
        &self.words().tail.0.hint.position
    }

    #[inline]
    fn head(&self) -> &AtomicU64 {
        &self.words().head.0.position
    }

    #[inline]
    fn free(&self) -> &AtomicU64 {
        &self.words().tail.0.free
    }

    #[inline]
    fn done(&self) -> &AtomicU64 {
        &self.words().constants.done.0
    }

    #[inline]
    fn end(&self) -> &AtomicU64 {
        &self.words().constants.end
    }

    #[inline]
    fn sender(&self, index: u64) -> &AtomicU64 {
        // SAFETY: the sender words begin inside the block that `at` checked.
        self.word(unsafe { self.base.add(to_usize(WORDS)) }, index)
    }

    #[inline]
    fn published(&self, index: u64) -> &AtomicU64 {
        &self.cell_head(index).published
    }

    #[inline]
    fn receiver(&self, index: u64) -> &AtomicU64 {
        self.word(self.receivers, index)
    }

    #[inline]
    fn will_write(&self, index: u64) {
        let cell = self.cell(index).as_ptr();
        // The first two lines: what is longer than that takes its time anyway.
        // SAFETY: a hint, which changes nothing but caches. Processors of this architecture that lack it skip it.
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        unsafe {
            std::arch::asm!(
                "prefetchw [{cell}]",
                "prefetchw [{cell} + 64]",
                cell = in(reg) cell,
                options(nostack, preserves_flags)
            );
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = cell;
    }
}

/// An offset or length in mapped memory, which fits an address.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the machines that this runs on have 64-bit addresses"
)]
pub(crate) const fn to_usize(n: u64) -> usize {
    n as usize
}

/// Bytes of an array of one word for each cell.
#[inline]
const fn array(capacity: u64) -> u64 {
    (capacity * 8).next_multiple_of(128)
}

fn cells_at(capacity: u32) -> u64 {
    WORDS + 2 * array(capacity.into())
}

fn stride(inline: u32) -> u64 {
    (CELL_HEAD + u64::from(inline.max(LEAST_ROOM))).next_multiple_of(64)
}
