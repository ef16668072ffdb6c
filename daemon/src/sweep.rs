//! The end of processes that nobody knows any more.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use crate::exec::{ignore, set_default};
use crate::journal::say;
use crate::signal_mask;

/// Has the kernel report ends of children, and every other signal: whoever started this process may have wanted none of its own
/// reported, and may have blocked what it did not want to be disturbed by; both are inherited.
pub fn hear_of_children() {
    set_default(libc::SIGCHLD);
    // Where files may not be as large as a pool the call that makes it fails, and a sentence says so.
    ignore(libc::SIGXFSZ);
    if let Err(error) = signal_mask::take_all() {
        say(&format!("cannot take signals: {error}"));
    }
}

/// The children of this process, read from the kernel: also those that came to it as subreaper.
#[must_use]
pub fn own_children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Whether a process is a child of this one, ended or not.
#[must_use]
pub fn is_child(pid: u32) -> bool {
    let is_it = |child: Pid| child.as_raw_nonzero().get().cast_unsigned() == pid;
    own_children().into_iter().any(is_it)
}

/// Kills all children. Their own children come to this process when they die: call it again after reaping, until there
/// are none.
pub fn kill_children() {
    for pid in own_children() {
        // It may have ended in between.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Kills and reaps children, and theirs, until only `spared` ones are left. A process that does not die within
/// `UNKILLABLE` hangs in the kernel: it is named and left.
pub fn kill_all_but(mut spared: Vec<Pid>) {
    while let Some(pid) = own_children().into_iter().find(|pid| !spared.contains(pid)) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        if let Ok(end) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            let mut ends = [PollFd::new(&end, PollFlags::IN)];
            let _ = rustix::event::poll(&mut ends, Some(&UNKILLABLE));
        }
        if let Ok(None) | Err(_) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
            say(&format!("process {pid} does not die; it is left behind"));
            spared.push(pid);
        }
    }
}

const UNKILLABLE: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};
