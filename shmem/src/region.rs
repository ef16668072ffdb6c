//! Regions: sealed memory that processes map.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use dragon_protocol::RuntimeId;
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::error::{Error, Result, io, system};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// `DRGNREG1` in ASCII.
const MAGIC: u64 = u64::from_le_bytes(*b"DRGNREG1");
/// Version of the layout of all regions. Raised with every change of any structure in shared memory.
const LAYOUT: u32 = 2;

/// The first bytes of every region.
#[derive(Debug)]
#[repr(C)]
struct Header {
    magic: AtomicU64,
    layout: AtomicU32,
    kind: AtomicU32,
    size: AtomicU64,
    runtime: AtomicU64,
    reserved: [AtomicU64; 4],
}

/// Bytes at the start of a region that the header takes, and that a region's own structures must leave alone.
pub const HEADER: u64 = 64;

/// What may lie in shared memory and be referred to.
///
/// # Safety
/// The type is `repr(C)`, consists of atomics only (or arrays and structures of them), and every bit pattern is valid.
pub unsafe trait Shared: Sized {}
// SAFETY: atomics accept every bit pattern and may be written by others at any time.
unsafe impl Shared for AtomicU32 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU64 {}
// SAFETY: only atomics, repr(C).
unsafe impl Shared for Header {}

/// A mapped region; clones share the mapping.
#[derive(Clone, Debug)]
pub struct Region {
    inner: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    map: MmapRaw,
    fd: OwnedFd,
    size: u64,
}

impl Region {
    /// Creates a region of zeros. It is sealed at its size: nobody can truncate it under the others. Only touched pages
    /// cost memory.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(name: &str, kind: u32, runtime: RuntimeId, size: u64) -> Result<Self> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(system("memfd_create"))?;
        rustix::fs::ftruncate(&fd, size).map_err(system("ftruncate"))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(system("fcntl(F_ADD_SEALS)"))?;
        let region = Self::of(fd, size)?;
        let header: &Header = region.view(0)?;
        header.layout.store(LAYOUT, Ordering::Relaxed);
        header.kind.store(kind, Ordering::Relaxed);
        header.size.store(size, Ordering::Relaxed);
        header.runtime.store(runtime.0, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(region)
    }

    /// Maps a region that another process created.
    ///
    /// # Errors
    /// When size, seals, magic, layout, kind or runtime are not as expected; the error names both values.
    pub fn map(fd: OwnedFd, size: u64, kind: u32, runtime: RuntimeId) -> Result<Self> {
        let differs = |what, expected, found| {
            Err(Error::Region {
                what,
                expected,
                found,
            })
        };
        let real = rustix::fs::fstat(&fd)
            .map_err(system("fstat"))?
            .st_size
            .cast_unsigned();
        if real != size || size < HEADER {
            return differs("size", size, real);
        }
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(system("fcntl(F_GET_SEALS)"))?;
        if !seals.contains(SEALS) {
            return differs("seals", SEALS.bits().into(), seals.bits().into());
        }
        let region = Self::of(fd, size)?;
        let header: &Header = region.view(0)?;
        let magic = header.magic.load(Ordering::Acquire);
        if magic != MAGIC {
            return differs("magic", MAGIC, magic);
        }
        let layout = header.layout.load(Ordering::Relaxed);
        if layout != LAYOUT {
            return differs("layout version", LAYOUT.into(), layout.into());
        }
        let found = header.kind.load(Ordering::Relaxed);
        if found != kind {
            return differs("kind", kind.into(), found.into());
        }
        let found = RuntimeId(header.runtime.load(Ordering::Relaxed));
        if found != runtime {
            return Err(Error::OtherRuntime {
                expected: runtime,
                found,
            });
        }
        Ok(region)
    }

    fn of(fd: OwnedFd, size: u64) -> Result<Self> {
        let length = usize::try_from(size).map_err(|_| Error::Corrupt {
            what: "region size",
            value: size,
        })?;
        let file = File::from(fd);
        let map = MmapOptions::new()
            .len(length)
            .map_raw(&file)
            .map_err(io("mmap"))?;
        // A crashing program with core dumps on would otherwise fill the whole sparse region.
        map.advise(Advice::DontDump)
            .map_err(io("madvise(MADV_DONTDUMP)"))?;
        Ok(Self {
            inner: Arc::new(Mapping {
                map,
                fd: file.into(),
                size,
            }),
        })
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// Its descriptor, to be sent to another process.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }

    /// The structure at `offset`.
    ///
    /// # Errors
    /// When it does not lie inside the region, or is not aligned.
    pub fn view<T: Shared>(&self, offset: u64) -> Result<&T> {
        let pointer = self.aligned::<T>(offset, 1)?;
        // SAFETY: `aligned` checked bounds and alignment; T accepts every bit pattern and concurrent writes; the mapping
        // lives as long as self.
        Ok(unsafe { pointer.as_ref() })
    }

    /// `count` structures at `offset`.
    ///
    /// # Errors
    /// When they do not lie inside the region, or are not aligned.
    pub fn slice<T: Shared>(&self, offset: u64, count: usize) -> Result<&[T]> {
        let pointer = self.aligned::<T>(offset, count)?;
        // SAFETY: as in `view`, for all of them.
        Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), count) })
    }

    fn aligned<T>(&self, offset: u64, count: usize) -> Result<NonNull<T>> {
        let length = (size_of::<T>() as u64).checked_mul(count as u64);
        let pointer = self.bytes(
            offset,
            length.ok_or(Error::Corrupt {
                what: "count",
                value: count as u64,
            })?,
        )?;
        if !pointer.addr().get().is_multiple_of(align_of::<T>()) {
            return Err(Error::Corrupt {
                what: "offset",
                value: offset,
            });
        }
        Ok(pointer.cast())
    }

    /// Where `length` bytes at `offset` are mapped. Others may write them at any time: copy, never refer.
    ///
    /// # Errors
    /// When they do not lie inside the region.
    #[inline]
    pub fn bytes(&self, offset: u64, length: u64) -> Result<NonNull<u8>> {
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.inner.size);
        let at = usize::try_from(offset)
            .ok()
            .filter(|_| inside)
            .ok_or(Error::Corrupt {
                what: "offset",
                value: offset,
            })?;
        // SAFETY: the offset lies inside the mapping, whose size was checked against the file's and is sealed.
        let pointer = unsafe { self.inner.map.as_mut_ptr().add(at) };
        NonNull::new(pointer).ok_or(Error::Corrupt {
            what: "mapping",
            value: 0,
        })
    }

    /// Copies bytes into the region.
    ///
    /// # Errors
    /// When they do not fit at `offset`.
    #[inline]
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let to = self.bytes(offset, bytes.len() as u64)?;
        // SAFETY: the target lies inside the mapping; the source is private memory, so they cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies bytes out of the region.
    ///
    /// # Errors
    /// When the range does not lie inside the region.
    #[inline]
    pub fn copy_out(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let from = self.bytes(offset, bytes.len() as u64)?;
        // SAFETY: as in `copy_in`, the other way.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Allocates the memory behind a range, so that touching it cannot fail later. For the daemon only.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn commit(&self, offset: u64, length: u64) -> Result<()> {
        rustix::fs::fallocate(
            &self.inner.fd,
            rustix::fs::FallocateFlags::empty(),
            offset,
            length,
        )
        .map_err(system("fallocate"))
    }
}

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

// SAFETY: the mapping is plain memory; all access to it goes through atomics or raw copies.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
