//! Regions: memory that processes map, of one of three kinds.
//!
//! | backing | made by | for |
//! |---|---|---|
//! | memfd, sealed | [`Region::create`] | what a node shares, as a rule |
//! | file | [`Region::create_in_file`] | a pool on a file system of the user's choice (tmpfs, DAX, a disk) |
//! | heap | [`Region::create_private`] | one process alone: examples, tests, models, and Miri, which knows no mappings |
//!
//! Everything above a region is the same code for all of them.

mod memory;
mod pinned;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use dragon_protocol::RuntimeId;
use rustix::fs::SeekFrom;

use crate::copy::copy;
use crate::error::{Error, Result, system};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use memory::Memory;
pub use pinned::Pinned;

/// `DRGNREG1` in ASCII.
const MAGIC: u64 = u64::from_le_bytes(*b"DRGNREG1");
/// Version of the layout of all regions. Raised with every change of any structure in shared memory.
const LAYOUT: u32 = 6;

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

/// What memory a region consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A memfd, sealed at its size.
    Memfd,
    /// A file.
    File,
    /// Memory of this process alone.
    Heap,
}

/// A mapped region; clones share the mapping.
#[derive(Clone, Debug)]
pub struct Region {
    inner: Arc<Memory>,
}

impl Region {
    /// Creates a region of zeros. It is sealed at its size: nobody can truncate it under the others. Only touched pages
    /// cost memory. Under Miri it is a private one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(name: &str, kind: u32, runtime: RuntimeId, size: u64) -> Result<Self> {
        if cfg!(miri) {
            return Self::create_private(kind, runtime, size);
        }
        Ok(Self::of(Memory::memfd(name, size)?, kind, runtime))
    }

    /// Creates a region in a new file, which nobody may have made before. Whoever can open the file can cut it off: then
    /// those who touch it are killed by the kernel.
    ///
    /// # Errors
    /// When the file exists, or the kernel refuses.
    pub fn create_in_file(path: &Path, kind: u32, runtime: RuntimeId, size: u64) -> Result<Self> {
        Ok(Self::of(Memory::new_file(path, size)?, kind, runtime))
    }

    /// Creates a region in memory of this process alone; its clones are its only users.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn create_private(kind: u32, runtime: RuntimeId, size: u64) -> Result<Self> {
        Ok(Self::of(Memory::heap(size)?, kind, runtime))
    }

    fn of(memory: Memory, kind: u32, runtime: RuntimeId) -> Self {
        let size = memory.size();
        let region = Self {
            inner: Arc::new(memory),
        };
        if let Ok(header) = region.view::<Header>(0) {
            header.layout.store(LAYOUT, Ordering::Relaxed);
            header.kind.store(kind, Ordering::Relaxed);
            header.size.store(size, Ordering::Relaxed);
            header.runtime.store(runtime.0, Ordering::Relaxed);
            header.magic.store(MAGIC, Ordering::Release);
        }
        region
    }

    /// Maps a region that another process created as a memfd.
    ///
    /// # Errors
    /// When size, seals, magic, layout, kind or runtime are not as expected; the error names both values.
    pub fn map(fd: OwnedFd, size: u64, kind: u32, runtime: RuntimeId) -> Result<Self> {
        check_size(&fd, size)?;
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(system("fcntl(F_GET_SEALS)"))?;
        if !seals.contains(memory::SEALS) {
            return differs("seals", memory::SEALS.bits().into(), seals.bits().into());
        }
        Self::checked(Memory::map(fd, size, Backing::Memfd)?, kind, runtime)
    }

    /// Maps a region that another process created in a file.
    ///
    /// # Errors
    /// When size, magic, layout, kind or runtime are not as expected; the error names both values.
    pub fn map_file(fd: OwnedFd, size: u64, kind: u32, runtime: RuntimeId) -> Result<Self> {
        check_size(&fd, size)?;
        Self::checked(Memory::map(fd, size, Backing::File)?, kind, runtime)
    }

    fn checked(memory: Memory, kind: u32, runtime: RuntimeId) -> Result<Self> {
        let region = Self {
            inner: Arc::new(memory),
        };
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

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.size()
    }

    /// What memory it consists of.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.inner.backing()
    }

    /// Its descriptor, to be sent to another process.
    ///
    /// # Errors
    /// [`Error::PrivateRegion`] for memory of this process alone.
    pub fn fd(&self) -> Result<BorrowedFd<'_>> {
        self.inner.fd().ok_or(Error::PrivateRegion)
    }

    /// The structure at `offset`.
    ///
    /// # Errors
    /// When it does not lie inside the region, or is not aligned.
    #[inline]
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
    #[inline]
    pub fn slice<T: Shared>(&self, offset: u64, count: usize) -> Result<&[T]> {
        let pointer = self.aligned::<T>(offset, count)?;
        // SAFETY: as in `view`, for all of them.
        Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), count) })
    }

    #[inline]
    fn aligned<T>(&self, offset: u64, count: usize) -> Result<NonNull<T>> {
        let Some(length) = (size_of::<T>() as u64).checked_mul(count as u64) else {
            return Err(corrupt("count", count as u64));
        };
        let pointer = self.bytes(offset, length)?;
        if !pointer.addr().get().is_multiple_of(align_of::<T>()) {
            return Err(corrupt("offset", offset));
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
            .is_some_and(|end| end <= self.inner.size());
        let (true, Ok(at)) = (inside, usize::try_from(offset)) else {
            return Err(corrupt("offset", offset));
        };
        // SAFETY: the offset lies inside the mapping, whose size was checked against the file's.
        Ok(unsafe { self.inner.start().add(at) })
    }

    /// Copies bytes into the region.
    ///
    /// # Errors
    /// When they do not fit at `offset`.
    #[inline]
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let to = self.bytes(offset, bytes.len() as u64)?;
        // SAFETY: the target lies inside the mapping; the source is private memory, so they cannot overlap.
        unsafe { copy(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
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
        unsafe { copy(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Allocates the memory behind a range, so that touching it cannot fail later. For the daemon only.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn commit(&self, offset: u64, length: u64) -> Result<()> {
        self.bytes(offset, length)?;
        self.inner.commit(offset, length)
    }

    /// Gives the memory behind a range back to the system; it reads as zeros from now on. For the daemon only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(&self, offset: u64, length: u64) -> Result<()> {
        self.bytes(offset, length)?;
        self.inner.release(offset, length)
    }

    /// Touches every page of a range that is committed, so that no later access stops for a fault of this process.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn populate(&self, offset: u64, length: u64) -> Result<()> {
        self.bytes(offset, length)?;
        self.inner.populate(offset, length)
    }

    /// Asks for huge pages. What was obtained is told by [`Region::huge_bytes`].
    ///
    /// # Errors
    /// When this kernel knows none.
    pub fn advise_huge(&self) -> Result<()> {
        self.inner.advise_huge()
    }

    /// Bytes of this process's mapping that lie in huge pages. The kernel's answer takes time: not for hot paths.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn huge_bytes(&self) -> Result<u64> {
        self.inner.huge_bytes()
    }

    /// Takes memory that is committed from now on from one NUMA node alone.
    ///
    /// # Errors
    /// When there is no such node, or the kernel refuses.
    pub fn bind(&self, node: u32) -> Result<()> {
        self.inner.bind(node)
    }

    /// Bytes of memory that the region takes at the moment, whoever touched them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resident(&self) -> Result<u64> {
        self.inner.resident()
    }

    /// The parts between two offsets that have been written at some time, in pages of the system: looking at others would
    /// cost memory. Where the system does not tell, everything.
    #[must_use]
    pub fn written(&self, from: u64, to: u64) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        let mut at = from;
        let Some(fd) = self.inner.fd() else {
            return std::iter::once(from..to).collect();
        };
        while at < to {
            let begin = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
                Ok(begin) if begin < to => begin,
                // Nothing follows.
                Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                Err(_) => {
                    parts.push(at..to);
                    break;
                }
            };
            let end = rustix::fs::seek(fd, SeekFrom::Hole(begin)).unwrap_or(to);
            parts.push(begin..end.clamp(begin + 1, to));
            at = end.max(begin + 1);
        }
        parts
    }
}

fn check_size(fd: &OwnedFd, size: u64) -> Result<()> {
    let real = rustix::fs::fstat(fd)
        .map_err(system("fstat"))?
        .st_size
        .cast_unsigned();
    if real != size || size < HEADER {
        return differs("size", size, real);
    }
    Ok(())
}

/// Apart from what is called all the time: an error is large, and most calls need none.
#[cold]
fn corrupt(what: &'static str, value: u64) -> Error {
    Error::Corrupt { what, value }
}

fn differs<T>(what: &'static str, expected: u64, found: u64) -> Result<T> {
    Err(Error::Region {
        what,
        expected,
        found,
    })
}
