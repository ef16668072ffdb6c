//! Descriptors that whoever started this process left open for the program: pipes of a shell, the line to a server of PMI.
//!
//! The program of a task gets them under their own numbers, and nobody else does: a second process with the line to a server
//! of PMI would answer in the place of the task.

#![expect(
    unsafe_code,
    reason = "a descriptor that this process was started with is known by its number alone"
)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// The descriptors above standard error that this process was given. They close when the last copy is dropped.
#[derive(Clone, Debug, Default)]
pub struct Inherited(Arc<Vec<OwnedFd>>);

impl Inherited {
    /// Takes them: from here on programs get them only by [`crate::forker::Fork`]. To be called before anything else opens
    /// descriptors that programs inherit; nothing of this crate does.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn take() -> io::Result<Self> {
        let entries = fs::read_dir("/proc/self/fd")?;
        let numbers = entries.flatten().filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse::<RawFd>().ok()?;
            (number > 2 && is_inheritable(number)).then_some(number)
        });
        let numbers: Vec<_> = numbers.collect();
        numbers
            .into_iter()
            .map(|number| {
                keep_from_programs(number)?;
                // SAFETY: the descriptor is open and would be inherited, so nothing of this process opened it: it came with
                // the start of the process, and nobody here owns it.
                Ok(unsafe { OwnedFd::from_raw_fd(number) })
            })
            .collect::<io::Result<_>>()
            .map(|all| Self(Arc::new(all)))
    }

    /// Each of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }
}

/// Closes a descriptor in every program that this process starts.
///
/// # Errors
/// When there is no such descriptor.
pub fn keep_from_programs(number: RawFd) -> io::Result<()> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: not -1. It is used for one system call alone, which refuses a number that is not open.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(fcntl_setfd(descriptor, FdFlags::CLOEXEC)?)
}

fn is_inheritable(number: RawFd) -> bool {
    // SAFETY: as above.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(descriptor).is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_kept_from_programs() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&reader);
        assert!(is_inheritable(number));
        keep_from_programs(number).unwrap();
        assert!(!is_inheritable(number));
        assert!(keep_from_programs(-1).is_err());
        assert!(keep_from_programs(RawFd::MAX).is_err());
    }
}
