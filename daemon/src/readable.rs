//! Waiting in the event loop for a descriptor that is none of tokio's own kinds.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for `fd` to become readable.
///
/// # Errors
/// When the kernel cannot wait for this kind of descriptor, for example a regular file.
#[expect(
    unsafe_code,
    reason = "tokio cannot know that a type always returns the same descriptor"
)]
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd returns the same descriptor for as long as it lives, and AsyncFd owns it from here on.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Waits for the end of a process.
///
/// # Errors
/// When there is no such process (any more).
pub fn end_of(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    readable(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}
