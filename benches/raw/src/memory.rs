//! Memory that forked processes share, and the processes.

use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// A mapping that children inherit; clones share it. It stays until the process ends.
#[derive(Debug, Clone)]
pub struct Shared {
    start: Arc<usize>,
    size: usize,
}

impl Shared {
    /// So many bytes of zeros.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(size: usize) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), size, access, MapFlags::SHARED) }
            .context("mmap")?;
        Ok(Self {
            start: Arc::new(start.expose_provenance()),
            size,
        })
    }

    /// Word `n` of 8 bytes.
    ///
    /// # Panics
    /// When it lies outside.
    #[must_use]
    pub fn word(&self, n: usize) -> &AtomicU64 {
        assert!((n + 1) * 8 <= self.size, "word {n} lies outside");
        // SAFETY: inside the mapping, which is never unmapped; atomics accept every bit pattern.
        unsafe { &*ptr::with_exposed_provenance::<AtomicU64>(*self.start + n * 8) }
    }

    /// Where byte `n` lies.
    ///
    /// # Panics
    /// When it lies outside.
    #[must_use]
    pub fn bytes(&self, n: usize, length: usize) -> *mut u8 {
        assert!(n + length <= self.size, "byte {n} lies outside");
        ptr::with_exposed_provenance_mut(*self.start + n)
    }
}

/// Forked processes that are waited for.
#[derive(Debug, Default)]
pub struct Children(Vec<libc::pid_t>);

impl Children {
    /// A child that runs `body` and ends. This process must have one thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn fork(&mut self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: this process has one thread, so the child's memory is consistent.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: a plain request about this process.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let code = match ended {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    eprintln!("child: {error:#}");
                    1
                }
                Err(_) => 1,
            };
            // SAFETY: ends the process without running what the parent registered for its own end.
            unsafe { libc::_exit(code) };
        }
        ensure!(pid > 0, "fork: {}", io::Error::last_os_error());
        self.0.push(pid);
        Ok(())
    }

    /// How many were forked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The process that was forked as number `n`.
    #[must_use]
    pub fn pid(&self, n: usize) -> Option<libc::pid_t> {
        self.0.get(n).copied()
    }

    /// Whether all of them still run: for those that never end by themselves.
    ///
    /// # Errors
    /// One has ended.
    pub fn check(&self) -> Result<()> {
        for pid in &self.0 {
            let mut status = 0;
            // SAFETY: our child; `status` is a place for the status.
            let found = unsafe { libc::waitpid(*pid, &raw mut status, libc::WNOHANG) };
            ensure!(found == 0, "a child ended: status {status:#x}");
        }
        Ok(())
    }

    /// Waits for the end of all.
    ///
    /// # Errors
    /// One failed.
    pub fn join(self) -> Result<()> {
        for pid in self.0 {
            let mut status = 0;
            // SAFETY: our child; `status` is a place for the status.
            let found = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if found != pid || status != 0 {
                bail!("a child failed: status {status:#x}");
            }
        }
        Ok(())
    }

    /// Processor time of all of them so far.
    ///
    /// # Errors
    /// One is gone.
    pub fn cpu(&self) -> Result<Duration> {
        let mut all = Duration::ZERO;
        for pid in &self.0 {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                // The first number: nanoseconds on a processor.
                let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
                let first = text.split(' ').next().context("schedstat")?;
                all += Duration::from_nanos(first.parse()?);
            }
        }
        Ok(all)
    }
}
