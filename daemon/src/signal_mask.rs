//! Which signals a thread takes: whoever starts a process decides that for it, and not all of them think of it.

use std::io;

/// Takes all signals from now on. Scripts that a workload manager runs as its hooks leave some blocked in what they start.
///
/// # Errors
/// Never, as far as is known.
pub fn take_all() -> io::Result<()> {
    set(false)
}

/// Leaves all signals to the other threads of this process, also while this one is in a library that knows nothing of
/// interrupted calls.
///
/// # Errors
/// Never, as far as is known.
pub fn leave_to_others() -> io::Result<()> {
    set(true)
}

#[expect(unsafe_code, reason = "rustix leaves the signal mask to the C library")]
fn set(blocked: bool) -> io::Result<()> {
    let mut signals = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    if blocked {
        // SAFETY: it is given room for a set, and fills it.
        unsafe { libc::sigfillset(signals.as_mut_ptr()) };
    } else {
        // SAFETY: likewise.
        unsafe { libc::sigemptyset(signals.as_mut_ptr()) };
    }
    // SAFETY: the set has just been filled; where the old one would go is null, which is allowed.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, signals.as_ptr(), std::ptr::null_mut()) };
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    }

    #[test]
    fn signals_are_left_and_taken() {
        leave_to_others().unwrap();
        assert_eq!(blocked() >> (libc::SIGTERM - 1) & 1, 1);
        take_all().unwrap();
        assert_eq!(blocked(), 0);
    }
}
