//! The block of an object that needs more words than its entry has.

use std::marker::PhantomData;
use std::ptr::NonNull;

use dragon_protocol::{ObjectId, ObjectKind};
use dragon_shmem::Member;
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::region::Shared;
use dragon_shmem::sync::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// A block, as this process has it mapped: `size` bytes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map<'a> {
    base: NonNull<u8>,
    size: u64,
    member: PhantomData<&'a Member>,
}

/// Maps a block of which `size` bytes are used. It may be used as long as it is allocated: as long as the caller has a
/// reference to its object.
pub(crate) fn map(member: &Member, block: u64, size: u64) -> Result<Map<'_>> {
    member.pool().check(block, size)?;
    Ok(Map {
        base: member.pool().data().bytes(block, size)?,
        size,
        member: PhantomData,
    })
}

/// Fills a block that nobody else has seen with zeros.
pub(crate) fn zero(member: &Member, block: u64, size: u64) -> Result<()> {
    let map = map(member, block, size)?;
    let length = map.bytes(0, size)?.1;
    // SAFETY: the map has so many bytes, and nobody else uses them yet.
    unsafe { map.base.write_bytes(0, length) };
    Ok(())
}

impl<'a> Map<'a> {
    /// What lies at `at`.
    pub(crate) fn at<T: Shared>(&self, at: u64) -> Result<&'a T> {
        Ok(&self.many::<T>(at, 1)?[0])
    }

    /// `count` of what lies from `at` on.
    pub(crate) fn many<T: Shared>(&self, at: u64, count: u32) -> Result<&'a [T]> {
        let size = (size_of::<T>() as u64).saturating_mul(count.into());
        let (first, _) = self.bytes(at, size)?;
        let first = first.cast::<T>();
        if !first.is_aligned() {
            return Err(corrupt(at));
        }
        // SAFETY: inside the map and aligned; T is Shared, so every content is valid, and it is only changed by atomics. A u32
        // fits an address.
        Ok(unsafe { std::slice::from_raw_parts(first.as_ptr(), count as usize) })
    }

    /// `count` words from `at` on.
    pub(crate) fn words(&self, at: u64, count: u32) -> Result<&'a [AtomicU64]> {
        let size = (size_of::<AtomicU64>() as u64).saturating_mul(count.into());
        let (first, _) = self.bytes(at, size)?;
        let first = first.cast::<AtomicU64>();
        if !first.is_aligned() {
            return Err(corrupt(at));
        }
        // SAFETY: as in `many`.
        Ok(unsafe { std::slice::from_raw_parts(first.as_ptr(), count as usize) })
    }

    /// Where `length` bytes from `at` on lie, and the length as a size.
    pub(crate) fn bytes(&self, at: u64, length: u64) -> Result<(NonNull<u8>, usize)> {
        let inside = at.checked_add(length).is_some_and(|end| end <= self.size);
        let (Ok(start), Ok(size), true) = (usize::try_from(at), usize::try_from(length), inside)
        else {
            return Err(corrupt(at));
        };
        // SAFETY: inside the map.
        Ok((unsafe { self.base.add(start) }, size))
    }
}

fn corrupt(at: u64) -> Error {
    dragon_shmem::Error::Corrupt {
        what: "place in the block of an object",
        value: at,
    }
    .into()
}

/// Creates an object with a block of `size` bytes, which `fill` makes ready, as `init` does with the entry.
pub(crate) fn create(
    member: &Member,
    kind: ObjectKind,
    user: u64,
    size: u64,
    fill: impl FnOnce(u64) -> Result<()>,
    init: impl FnOnce(&ObjectEntry),
) -> Result<ObjectId> {
    if member.is_forked() {
        return Err(Error::Forked);
    }
    let block = member.alloc(size)?.offset;
    let made = fill(block).and_then(|()| {
        Ok(member.create(kind, |entry, _| {
            entry.user.store(user, Ordering::Relaxed);
            init(entry);
            // The block is named before it is shared: recovery of an unpublished object frees the block that it names.
            entry.block.store(block, Ordering::Release);
            member.share(block)
        })?)
    });
    if made.is_err() {
        // Nobody else has seen the block. If it cannot be freed, the first error is still the one to tell.
        let _ = member.free(block);
    }
    made
}
