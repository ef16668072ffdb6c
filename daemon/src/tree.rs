//! Signals to processes and to all that descends from them.
//!
//! The kernel lists the children of each thread. A process whose parent has ended is a child of the daemon and in nobody's
//! tree any more; it is reached by its process group, unless it left that too.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// How often a tree is looked at again for processes that were started meanwhile, before it is signalled as it is. Each look
/// finds all stopped that it found before, so that only what an unseen one started can be new.
const LOOKS: usize = 64;

/// Sends a signal to a process, and to the group that it leads.
pub fn signal(pid: u32, leads_group: bool, signal: Signal) {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else {
        return;
    };
    // It may have ended in between. A worker leads its group only a moment after its start: so both are signalled.
    let _ = kill_process(pid, signal);
    if leads_group {
        let _ = kill_process_group(pid, signal);
    }
}

/// Sends a signal to a process, to the group that it leads, and to all its descendants. A deadly one finds all of them
/// stopped: none can start another one in between.
pub fn signal_all(root: u32, leads_group: bool, what: Signal) {
    let mut seen = BTreeSet::new();
    for _ in 0..LOOKS {
        let mut new = descendants(root);
        new.retain(|pid| !seen.contains(pid));
        if new.is_empty() {
            break;
        }
        if what == Signal::KILL {
            signal(root, leads_group, Signal::STOP);
            new.iter().for_each(|pid| signal(*pid, false, Signal::STOP));
        }
        seen.extend(new);
        if what != Signal::KILL {
            break;
        }
    }
    signal(root, leads_group, what);
    seen.iter().for_each(|pid| signal(*pid, false, what));
}

/// All that descends from a process, without the process itself.
fn descendants(root: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        let children = children(pid);
        open.extend(&children);
        found.extend(children);
    }
    found
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
            pids.collect::<Vec<u32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_tree_is_killed_to_the_last_process() {
        // A child in a session of its own with a child of its own, which says when it is there.
        let script = "setsid sh -c 'sleep 1000 & echo $!; wait' & wait";
        let mut root = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(root.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        assert!(descendants(root.id()).contains(&grandchild));
        signal_all(root.id(), false, Signal::KILL);
        root.wait().unwrap();
        // The end of file comes when the last one that holds the pipe is gone.
        line.clear();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "");
    }
}
