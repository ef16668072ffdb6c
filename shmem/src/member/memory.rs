//! What a process does with blocks: waits for one, changes its length, copies, compares, hashes and fills it.

use std::cmp::Ordering as Order;
use std::marker::PhantomData;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Member, Pin};
use crate::error::{Error, Result};
use crate::futex::{Deadline, WaitResult};
use crate::pool::tag::PoolTag;
use crate::pool::{Block, Pool, ThreadRef};

/// Bytes that are copied at once out of memory that others may write.
const PIECE: usize = 16 << 10;

impl Member {
    /// Allocates a block, waiting until the deadline for other processes to free memory when there is no room.
    ///
    /// ```
    /// use dragon_shmem::{Deadline, pool::tag::PoolTag};
    /// # let node = dragon_shmem::local::Node::new()?;
    /// # let member = node.member()?;
    /// let block = member.alloc_until(PoolTag::DEFAULT, 4096, Deadline::after(1_000_000))?;
    /// member.free(block.offset)?;
    /// # Ok::<(), dragon_shmem::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the deadline passes: what [`Member::alloc`] fails with then. At once, when the block is larger than the pool.
    /// [`Error::Interrupted`] after a signal.
    pub fn alloc_until(&self, pool: PoolTag, length: u64, deadline: Deadline) -> Result<Block> {
        loop {
            let error = match self.alloc_in(pool, length) {
                Err(error) if is_for_now(&error, length) && deadline != Deadline::Now => error,
                done => return done,
            };
            // The pool may be one of those that are mapped only while they are used.
            let woken = self.with_pool(pool.address(0), |pool, _| {
                let sequence = pool.room()?.want()?;
                Ok((sequence, pool.clone()))
            });
            let (sequence, mapped) = woken?;
            match self.alloc_in(pool, length) {
                Err(error) if is_for_now(&error, length) => {}
                done => return done,
            }
            match mapped.room()?.wait(sequence, deadline) {
                WaitResult::Woken | WaitResult::Changed => {}
                WaitResult::TimedOut => return Err(error),
                WaitResult::Interrupted => return Err(Error::Interrupted),
            }
        }
    }

    /// Gives a block room for `length` bytes where it lies: less, or more if the memory behind it is free. The block is
    /// private to this process, or shared and used by nobody else. Its contents stay as far as it reaches.
    ///
    /// # Errors
    /// [`Error::CannotGrow`] says how much room there could be.
    pub fn resize(&self, address: u64, length: u64) -> Result<Block> {
        let resized = self.resize_once(address, length);
        if let Err(Error::CannotGrow { room, .. }) = resized
            && let Some(more) = self.with_pool(address, |pool, offset| {
                // It ends where the committed memory ends: more of that may help.
                let at_the_end =
                    offset + room == pool.committed() && offset + length <= pool.limit();
                Ok((at_the_end && room < length).then(|| pool.clone()))
            })?
            && self.hooks.commit(more.number(), length - room).is_ok()
        {
            return self.resize_once(address, length);
        }
        resized
    }

    fn resize_once(&self, address: u64, length: u64) -> Result<Block> {
        let thread = || self.thread().map(ThreadRef::Leased);
        self.with_cache(address, |pool, cache, offset| {
            pool.resize(cache, self.slot, thread, offset, length)?;
            pool.room()?.freed();
            Ok(())
        })?;
        Ok(Block {
            offset: address,
            length,
        })
    }

    /// Copies `length` bytes from one place to another: a block's address, and where in it. The blocks may be of different
    /// pools, and the places may overlap.
    ///
    /// # Errors
    /// When they do not lie inside allocated blocks.
    pub fn copy(&self, from: (u64, u64), to: (u64, u64), length: u64) -> Result<()> {
        let (from, to) = (self.pinned(from, length)?, self.pinned(to, length)?);
        // SAFETY: both ranges lie inside mappings, which the pins keep; `copy` allows them to overlap. Others may write them
        // meanwhile, and then the copy has some of either: no reference is made to them.
        unsafe { std::ptr::copy(from.pointer, to.pointer, from.length) };
        Ok(())
    }

    /// Compares `length` bytes at two places, as [`Ord`] does for slices of bytes.
    ///
    /// # Errors
    /// When they do not lie inside allocated blocks.
    pub fn compare(&self, a: (u64, u64), b: (u64, u64), length: u64) -> Result<Order> {
        let (a, b) = (self.pinned(a, length)?, self.pinned(b, length)?);
        let mut pieces = [vec![0; PIECE], vec![0; PIECE]];
        for at in (0..a.length).step_by(PIECE) {
            let [left, right] = &mut pieces;
            let order = a.piece(at, left).cmp(b.piece(at, right));
            if order != Order::Equal {
                return Ok(order);
            }
        }
        Ok(Order::Equal)
    }

    /// The BLAKE3 hash of `length` bytes of a block, from `at` on. The first eight bytes are a good 64-bit hash.
    ///
    /// # Errors
    /// When they do not lie inside an allocated block.
    pub fn hash(&self, address: u64, at: u64, length: u64) -> Result<[u8; 32]> {
        let bytes = self.pinned((address, at), length)?;
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; PIECE];
        for at in (0..bytes.length).step_by(PIECE) {
            hasher.update(bytes.piece(at, &mut piece));
        }
        Ok(hasher.finalize().into())
    }

    /// Fills `length` bytes of a block, from `at` on, with a value.
    ///
    /// # Errors
    /// When they do not lie inside an allocated block.
    pub fn fill(&self, address: u64, at: u64, length: u64, value: u8) -> Result<()> {
        let bytes = self.pinned((address, at), length)?;
        // SAFETY: the range lies inside a mapping, which the pin keeps; no reference is made to it.
        unsafe { bytes.pointer.write_bytes(value, bytes.length) };
        Ok(())
    }

    /// Fills a whole block with zeros.
    ///
    /// # Errors
    /// When there is no such block.
    pub fn clear(&self, address: u64) -> Result<()> {
        self.fill(address, 0, self.block_room(address)?, 0)
    }

    /// Allocates a block for a value of plain data, and puts the value into it.
    ///
    /// ```
    /// # let node = dragon_shmem::local::Node::new()?;
    /// # let member = node.member()?;
    /// let point = member.alloc_value([1.5_f64, 2.5])?;
    /// point.write([3.0, 4.0])?;
    /// assert_eq!(point.read()?, [3.0, 4.0]);
    /// # Ok::<(), dragon_shmem::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Member::alloc`].
    pub fn alloc_value<T>(self: &Arc<Self>, value: T) -> Result<Value<T>>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        let block = self.alloc(size_of::<T>() as u64)?;
        let made = Value {
            member: Arc::clone(self),
            address: block.offset,
            kind: PhantomData,
        };
        made.write(value)?;
        Ok(made)
    }

    fn pinned(&self, (address, at): (u64, u64), length: u64) -> Result<Pinned<'_>> {
        let pin = self.pin(address)?;
        // Dropped on every way out.
        let mut pinned = Pinned {
            member: self,
            pin: Some(pin),
            pointer: std::ptr::null_mut(),
            length: 0,
        };
        let corrupt = |_| Error::Corrupt {
            what: "length",
            value: length,
        };
        let end = at.checked_add(length).ok_or(Error::Corrupt {
            what: "offset",
            value: at,
        })?;
        let (skip, length) = (usize::try_from(at), usize::try_from(length));
        let start = self.bytes(address, end)?.as_ptr();
        // SAFETY: the block has `end` bytes, of which `at` is no more than the end.
        pinned.pointer = unsafe { start.add(skip.map_err(corrupt)?) };
        pinned.length = length.map_err(corrupt)?;
        Ok(pinned)
    }
}

/// Whether room may come when others free memory.
fn is_for_now(error: &Error, length: u64) -> bool {
    use dragon_protocol::Code;
    match error {
        Error::OutOfMemory { limit, .. } => length <= Pool::largest(*limit),
        Error::CannotGrow { .. } => false,
        other => matches!(other.code(), Code::OutOfMemory | Code::OutOfCgroupMemory),
    }
}

/// Bytes of a block in a pool that stays mapped.
struct Pinned<'a> {
    member: &'a Member,
    pin: Option<Pin>,
    pointer: *mut u8,
    length: usize,
}

impl Pinned<'_> {
    /// Copies the bytes from `at` on, as far as there are any and `to` has room.
    fn piece<'b>(&self, at: usize, to: &'b mut [u8]) -> &'b [u8] {
        let length = self.length.saturating_sub(at).min(to.len());
        // SAFETY: `at` lies inside the range.
        let from = unsafe { self.pointer.add(at.min(self.length)) };
        // SAFETY: so do `length` more bytes; the target is private memory and has room for them.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), length) };
        &to[..length]
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            self.member.unpin(pin);
        }
    }
}

/// A value of plain data in a block of the default pool. Dropping it frees the block.
///
/// Reads and writes copy the value as a whole. Where another process writes it meanwhile, a read may give some bytes of
/// either value; which is a value, too, as every pattern of bytes is one of `T`.
#[derive(Debug)]
pub struct Value<T> {
    member: Arc<Member>,
    address: u64,
    kind: PhantomData<fn(T) -> T>,
}

impl<T> Value<T> {
    /// The block's address.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl<T: FromBytes + IntoBytes + Immutable> Value<T> {
    /// Takes over a block with a value that somebody else allocated: a shared one that was handed over.
    ///
    /// # Errors
    /// When there is no such block, or it is too small.
    pub fn adopt(member: &Arc<Member>, address: u64) -> Result<Self> {
        member.check(address, size_of::<T>() as u64)?;
        Ok(Self {
            member: Arc::clone(member),
            address,
            kind: PhantomData,
        })
    }

    /// Shares the block and hands it over: it lives until whoever adopts it frees it.
    ///
    /// # Errors
    /// When shared memory is corrupt.
    pub fn hand_over(self) -> Result<Block> {
        if !self.member.is_shared(self.address)? {
            self.member.share(self.address)?;
        }
        let block = Block {
            offset: self.address,
            length: size_of::<T>() as u64,
        };
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not used again, and not dropped.
        drop(unsafe { std::ptr::read(&raw const this.member) });
        Ok(block)
    }

    /// A copy of the value.
    ///
    /// # Errors
    /// When the block is gone.
    pub fn read(&self) -> Result<T> {
        let mut value = T::new_zeroed();
        self.member.read(self.address, 0, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes the value.
    ///
    /// # Errors
    /// When the block is gone.
    pub fn write(&self, value: T) -> Result<()> {
        self.member.write(self.address, 0, value.as_bytes())
    }
}

impl<T> Drop for Value<T> {
    fn drop(&mut self) {
        // A forked child has a copy of the handle, not of the block. It fails only on memory that was scribbled over.
        if !self.member.is_forked() {
            let _ = self.member.free(self.address);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
