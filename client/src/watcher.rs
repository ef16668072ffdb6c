//! A thread that sleeps until the daemon is gone, and then ends the process: whatever the program would do next with
//! memory that nobody looks after any more is worse than its end.
//!
//! It never reads: replies on the same socket belong to whoever asked. What it does first is to wait for the kernel where
//! that takes long, so that no other thread has to.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use dragon_shmem::Member;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::connection::{Connection, Ended};
use crate::error::{Error, Result};

const LAST_WORDS: &[u8] =
    b"dragon: the runtime of this process has ended unexpectedly (its daemon closed the connection); the process ends too\n";

/// It polls and writes one line.
const STACK: usize = 64 << 10;

/// The thread that watches a connection.
#[derive(Debug)]
pub(crate) struct Watcher(JoinHandle<()>);

impl Watcher {
    /// Starts watching `connection`.
    pub(crate) fn start(connection: Arc<Connection>) -> Result<Self> {
        let before = block_signals()?;
        let started = thread::Builder::new()
            .name("dragon-watcher".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                Member::prepare();
                watch(&connection);
            });
        restore_signals(&before);
        started
            .map(Self)
            .map_err(|source| Error::system("starting the watcher thread", source))
    }

    /// Waits for the end of the thread, which comes when the process leaves.
    pub(crate) fn join(self) {
        // It does not panic; and if it did, it has ended.
        let _ = self.0.join();
    }
}

fn watch(connection: &Connection) {
    let Some(socket) = connection.socket() else {
        return;
    };
    loop {
        // A hang-up is reported whether asked for or not.
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
        let ended = poll(&mut fds, None);
        if matches!(ended, Ok(events) if events > 0) {
            break;
        }
    }
    if !connection.is_ours(socket) {
        // The program has closed its descriptors: that says nothing about the daemon.
        return;
    }
    match connection.ended() {
        Ended::Refused => {}
        Ended::Left => connection.close_unused(),
        Ended::Unexpectedly => {
            say_last_words();
            // It cannot fail: the process is this one.
            let own = rustix::process::getpid();
            let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        }
    }
}

/// Writes to standard error unless that would block: nobody may read it any more.
fn say_last_words() {
    let stderr = rustix::stdio::stderr();
    let mut fds = [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT) {
        let _ = rustix::io::write(stderr, LAST_WORDS);
    }
}

/// Blocks all signals for this thread, and so for the threads that it starts: handlers belong to the program's threads.
fn block_signals() -> Result<libc::sigset_t> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` initialises the set that it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the first set is initialised, the second is filled by the call.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    if error != 0 {
        return Err(Error::system(
            "pthread_sigmask",
            io::Error::from_raw_os_error(error),
        ));
    }
    // SAFETY: the call succeeded and filled it.
    Ok(unsafe { before.assume_init() })
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: the set came from `pthread_sigmask`; a null third argument is allowed.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
}
