//! The memory of a region, and what the kernel does for it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};

use super::{Backing, HEADER};
use crate::error::{Error, Result, io, system};

/// Nobody can truncate a memfd under the others.
pub(super) const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Alignment of private memory: that of the largest block that has one.
const ALIGN: usize = 64 << 10;

/// Mapped or private memory.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<u8>,
    size: u64,
    /// Huge pages were asked for.
    huge: AtomicBool,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The mapping is undone with it; it is reached by `start`.
    Mapped {
        map: MmapRaw,
        fd: OwnedFd,
        backing: Backing,
    },
    Heap {
        allocated: NonNull<u8>,
        layout: Layout,
    },
}

// SAFETY: the memory is plain; all access to it goes through atomics or raw copies.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// A sealed memfd of zeros.
    pub(super) fn memfd(name: &str, size: u64) -> Result<Self> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(system("memfd_create"))?;
        rustix::fs::ftruncate(&fd, size).map_err(system("ftruncate"))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(system("fcntl(F_ADD_SEALS)"))?;
        Self::map(fd, size, Backing::Memfd)
    }

    /// A new file of zeros. When it cannot be as large, it goes again.
    pub(super) fn new_file(path: &Path, size: u64) -> Result<Self> {
        let refused = |errno| Error::File {
            path: path.into(),
            errno,
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(refused)?;
        let made = rustix::fs::ftruncate(&fd, size)
            // The header is written through the mapping: where the file system is full, that is a signal and no error.
            .and_then(|()| {
                rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size.min(HEADER))
            })
            .map_err(refused)
            .and_then(|()| Self::map(fd, size, Backing::File));
        if made.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(path);
        }
        made
    }

    /// Maps a memfd or a file of that size.
    pub(super) fn map(fd: OwnedFd, size: u64, backing: Backing) -> Result<Self> {
        let file = File::from(fd);
        let map = MmapOptions::new()
            .len(length(size)?)
            .map_raw(&file)
            .map_err(io("mmap"))?;
        // A crashing program with core dumps on would otherwise fill the whole sparse region.
        map.advise(Advice::DontDump)
            .map_err(io("madvise(MADV_DONTDUMP)"))?;
        let start = NonNull::new(map.as_mut_ptr()).ok_or(Error::Corrupt {
            what: "mapping",
            value: 0,
        })?;
        Ok(Self {
            start,
            size,
            huge: AtomicBool::new(false),
            source: Source::Mapped {
                map,
                fd: file.into(),
                backing,
            },
        })
    }

    /// Memory of this process alone, zeros. What was never touched costs nothing: large allocations of zeros come from the
    /// kernel as they are, as long as no alignment is asked for.
    pub(super) fn heap(size: u64) -> Result<Self> {
        let none = |_| Error::Corrupt {
            what: "region size",
            value: size,
        };
        let room = length(size)?.saturating_add(ALIGN);
        let layout = Layout::from_size_align(room, 16).map_err(none)?;
        // SAFETY: the layout is not empty.
        let allocated = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(Error::System {
            call: "malloc",
            errno: rustix::io::Errno::NOMEM,
        })?;
        let skip = allocated.addr().get().next_multiple_of(ALIGN) - allocated.addr().get();
        Ok(Self {
            // SAFETY: less than ALIGN is skipped, which was added to the size.
            start: unsafe { allocated.add(skip) },
            size,
            huge: AtomicBool::new(false),
            source: Source::Heap { allocated, layout },
        })
    }

    #[inline]
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    #[inline]
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn backing(&self) -> Backing {
        match &self.source {
            Source::Mapped { backing, .. } => *backing,
            Source::Heap { .. } => Backing::Heap,
        }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Mapped { fd, .. } => Some(fd.as_fd()),
            Source::Heap { .. } => None,
        }
    }

    pub(super) fn commit(&self, offset: u64, length: u64) -> Result<()> {
        if self.huge.load(Ordering::Relaxed) {
            // Only a fault in an advised mapping gets a huge page: fallocate knows of no mapping.
            self.populate(offset, length)?;
        }
        match self.fd() {
            Some(fd) => rustix::fs::fallocate(fd, FallocateFlags::empty(), offset, length)
                .map_err(system("fallocate")),
            None => Ok(()),
        }
    }

    pub(super) fn release(&self, offset: u64, bytes: u64) -> Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match self.fd() {
            Some(fd) => rustix::fs::fallocate(fd, punch, offset, bytes)
                .map_err(system("fallocate(PUNCH_HOLE)")),
            None => {
                let (at, bytes) = (length(offset)?, length(bytes)?);
                // SAFETY: the caller checked that the range lies inside.
                let from = unsafe { self.start.add(at) };
                // SAFETY: as above. Nobody uses the range: the daemon has claimed its pages.
                unsafe { from.write_bytes(0, bytes) };
                Ok(())
            }
        }
    }

    pub(super) fn populate(&self, offset: u64, bytes: u64) -> Result<()> {
        if bytes == 0 || self.backing() == Backing::Heap {
            return Ok(());
        }
        self.advise(
            offset,
            bytes,
            rustix::mm::Advice::LinuxPopulateWrite,
            "madvise(MADV_POPULATE_WRITE)",
        )
    }

    pub(super) fn advise_huge(&self) -> Result<()> {
        if self.backing() == Backing::Heap {
            return Ok(());
        }
        self.advise(
            0,
            self.size,
            rustix::mm::Advice::LinuxHugepage,
            "madvise(MADV_HUGEPAGE)",
        )?;
        self.huge.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn advise(
        &self,
        offset: u64,
        bytes: u64,
        advice: rustix::mm::Advice,
        call: &'static str,
    ) -> Result<()> {
        let (at, bytes) = (length(offset)?, length(bytes)?);
        // SAFETY: the caller checked that the range lies inside.
        let from = unsafe { self.start.add(at) };
        // SAFETY: neither advice changes what the memory holds.
        unsafe { rustix::mm::madvise(from.as_ptr().cast(), bytes, advice) }.map_err(system(call))
    }

    pub(super) fn huge_bytes(&self) -> Result<u64> {
        if self.backing() == Backing::Heap {
            return Ok(0);
        }
        let maps = fs::read_to_string("/proc/self/smaps").map_err(io("read(/proc/self/smaps)"))?;
        let start = self.start.addr().get() as u64;
        Ok(huge_in(&maps, start..start.saturating_add(self.size)))
    }

    pub(super) fn bind(&self, node: u32) -> Result<()> {
        check_node(node)?;
        if self.backing() == Backing::Heap {
            return Ok(());
        }
        // One bit for each node; the kernel takes the number of bits plus one.
        let mut mask = [0_u64; MAX_NODES as usize / 64];
        mask[node as usize / 64] |= 1 << (node % 64);
        let bytes = length(self.size)?;
        // SAFETY: the range is this mapping, the mask is as long as said; the call changes only where pages come from.
        let status = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.start.as_ptr(),
                bytes,
                libc::MPOL_BIND,
                mask.as_ptr(),
                u64::from(MAX_NODES) + 1,
                0,
            )
        };
        if status == 0 {
            Ok(())
        } else {
            Err(io("mbind")(std::io::Error::last_os_error()))
        }
    }

    pub(super) fn resident(&self) -> Result<u64> {
        let Some(fd) = self.fd() else {
            return Ok(self.size);
        };
        let stat = rustix::fs::fstat(fd).map_err(system("fstat"))?;
        Ok(stat.st_blocks.cast_unsigned() * 512)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &self.source {
            // Undone by its own drop.
            Source::Mapped { map, .. } => debug_assert_eq!(map.as_mut_ptr(), self.start.as_ptr()),
            // SAFETY: allocated with this layout, and freed once.
            Source::Heap { allocated, layout } => unsafe {
                dealloc(allocated.as_ptr(), *layout);
            },
        }
    }
}

fn length(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::Corrupt {
        what: "region size",
        value: bytes,
    })
}

/// More than any machine of today has.
const MAX_NODES: u32 = 1024;

fn check_node(node: u32) -> Result<()> {
    let folder = Path::new("/sys/devices/system/node");
    if node < MAX_NODES && folder.join(format!("node{node}")).exists() {
        return Ok(());
    }
    let online = fs::read_to_string(folder.join("online")).unwrap_or_default();
    Err(Error::NoSuchNumaNode {
        node,
        online: online.trim().into(),
    })
}

/// Sums up what `/proc/self/smaps` says about huge pages in a range of addresses.
fn huge_in(maps: &str, range: std::ops::Range<u64>) -> u64 {
    let mut inside = false;
    let mut kilobytes = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((start, _)) = first.split_once('-') {
            // A mapping; the lines that follow speak of it.
            inside = u64::from_str_radix(start, 16).is_ok_and(|start| range.contains(&start));
        } else if inside && matches!(first, "ShmemPmdMapped:" | "FilePmdMapped:") {
            let value = words.next().and_then(|word| word.parse::<u64>().ok());
            kilobytes += value.unwrap_or(0);
        }
    }
    kilobytes << 10
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_read_from_the_kernels_words() {
        let maps = "7f0000000000-7f0000400000 rw-s 00000000 00:01 5 /memfd:dragon-pool0 (deleted)\n\
            Rss: 4096 kB\nShmemPmdMapped: 2048 kB\nFilePmdMapped: 0 kB\n\
            7f0000400000-7f0000800000 rw-s 00400000 00:01 5 /memfd:dragon-pool0 (deleted)\n\
            ShmemPmdMapped: 4096 kB\n\
            7f0000800000-7f0000900000 rw-p 00000000 00:00 0\n\
            ShmemPmdMapped: 8 kB\n";
        let range = 0x7f00_0000_0000..0x7f00_0080_0000;
        assert_eq!(huge_in(maps, range), 6 << 20);
        assert_eq!(huge_in("", 0..u64::MAX), 0);
    }
}
