//! Forks a process whose parent is this one's parent.
//!
//! It is `os.fork` but for the flag `CLONE_PARENT`, which the C library does not offer. What the C library's own fork does
//! in a process of one thread is done here too: the child's thread id goes where the library keeps it, and the list of
//! robust mutexes is registered again. Handlers of `pthread_atfork` do not run.

use std::ffi::{c_int, c_long, c_void};
use std::io;

use pyo3::prelude::*;

unsafe extern "C" {
    fn PyOS_BeforeFork();
    fn PyOS_AfterFork_Parent();
    fn PyOS_AfterFork_Child();
}

/// Forks; the child's pid, or 0 in the child. Only for processes of one thread.
#[pyfunction]
pub(crate) fn fork_sibling() -> PyResult<i32> {
    let robust = RobustList::of_this_thread();
    // SAFETY: the interpreter lock is held, and one of the two calls below follows.
    unsafe { PyOS_BeforeFork() };
    let child = clone();
    if child == 0 {
        robust.register();
        // SAFETY: this is the child of the fork that was announced.
        unsafe { PyOS_AfterFork_Child() };
    } else {
        // Read before the interpreter can change it.
        let error = io::Error::last_os_error();
        // SAFETY: this is the parent, also when the fork failed.
        unsafe { PyOS_AfterFork_Parent() };
        if child < 0 {
            return Err(error.into());
        }
    }
    Ok(c_int::try_from(child).unwrap_or(-1))
}

fn clone() -> c_long {
    let (flags, place) = match thread_id_place() {
        Some(place) => (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID, place),
        None => (0, std::ptr::null_mut()),
    };
    let flags = c_long::from(flags | libc::CLONE_PARENT | libc::SIGCHLD);
    let nothing: *mut c_void = std::ptr::null_mut();
    // The order of the last two differs between machines.
    #[cfg(target_arch = "x86_64")]
    let (fourth, fifth) = (place.cast::<c_void>(), nothing);
    #[cfg(not(target_arch = "x86_64"))]
    let (fourth, fifth) = (nothing, place.cast::<c_void>());
    // SAFETY: without CLONE_VM this is a fork: the child goes on with a copy of everything, on a copy of this stack. The
    // process has one thread, so no lock in that copy is held by a thread that is not there.
    unsafe { libc::syscall(libc::SYS_clone, flags, nothing, nothing, fourth, fifth) }
}

/// Where the C library keeps this thread's id, as it told the kernel when the process started.
fn thread_id_place() -> Option<*mut c_int> {
    let mut place: *mut c_int = std::ptr::null_mut();
    // SAFETY: the result is writable.
    let code = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut place) };
    if code != 0 || place.is_null() {
        return None;
    }
    // SAFETY: the address was registered to be written to at the thread's end, so it is mapped as long as the thread lives.
    let known = unsafe { *place };
    // SAFETY: it has no preconditions.
    let true_id = unsafe { libc::gettid() };
    (known == true_id).then_some(place)
}

/// Where the kernel finds the robust mutexes of a thread.
#[derive(Debug)]
struct RobustList {
    head: *mut c_void,
    length: usize,
}

impl RobustList {
    fn of_this_thread() -> Self {
        let mut list = Self {
            head: std::ptr::null_mut(),
            length: 0,
        };
        // SAFETY: both results are writable; 0 is the calling thread. Where it fails, the list stays empty.
        unsafe {
            libc::syscall(
                libc::SYS_get_robust_list,
                0,
                &raw mut list.head,
                &raw mut list.length,
            )
        };
        list
    }

    fn register(&self) {
        if !self.head.is_null() {
            // SAFETY: the list was registered by this thread before the fork, and lies at the same address after it.
            unsafe { libc::syscall(libc::SYS_set_robust_list, self.head, self.length) };
        }
    }
}
