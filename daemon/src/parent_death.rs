//! Children that do not outlive the thread that started them.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, Signal};

/// Has the kernel send `signal` to the child when the calling thread ends, and gives it its own limit of open files.
///
/// For the launcher's daemons; the daemon starts its own children by `exec`. It runs between fork and exec, in the child.
#[expect(
    unsafe_code,
    reason = "pre_exec is the only place between fork and exec"
)]
pub fn die_with_parent(command: &mut Command, signal: Signal, files: Rlimit) {
    let parent = rustix::process::getpid();
    let child = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have died before the line above took effect.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        rustix::process::setrlimit(Resource::Nofile, files)?;
        // Before the first instruction of the program. Where /proc is not mounted it stays as it is.
        let _ = raise_badness();
        Ok(())
    };
    // SAFETY: the closure makes system calls only, and neither allocates nor takes a lock, which is all that is allowed
    // after a fork in a process with threads.
    unsafe { command.pre_exec(child) };
}

/// Gives the child its own limit of open files.
#[expect(
    unsafe_code,
    reason = "pre_exec is the only place between fork and exec"
)]
pub(crate) fn with_files(command: &mut Command, files: Rlimit) {
    let child = move || Ok(rustix::process::setrlimit(Resource::Nofile, files)?);
    // SAFETY: the closure makes one system call, and neither allocates nor takes a lock, which is all that is allowed after a fork
    // in a process with threads.
    unsafe { command.pre_exec(child) };
}

/// Added to the badness of every child, so that the kernel's victim is never the daemon.
const OOM_SCORE: &[u8] = b"500";

/// Makes this process a likelier victim of the kernel than the daemon.
pub(crate) fn raise_badness() -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
    rustix::io::write(file, OOM_SCORE).map(drop)
}
