//! The end of processes that nobody knows any more.

use rustix::process::{Pid, Signal};

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

/// Kills all children. Their own children come to this process when they die: call it again after reaping, until there
/// are none.
pub fn kill_children() {
    for pid in own_children() {
        // It may have ended in between.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}
