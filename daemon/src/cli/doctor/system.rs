//! The kernel, and how much of it this process can see.

use std::fs;

use dragon_protocol::{NodeIndex, RuntimeId};
use dragon_shmem::Control;
use rustix::process::{Pid, PidfdFlags};

use super::Check;

/// The oldest kernel that is promised to work.
const OLDEST: (u32, u32) = (5, 14);

/// Its version.
pub(super) fn kernel() -> Check {
    const NAME: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let (major, minor) = OLDEST;
    match version(release) {
        Some(found) if found >= OLDEST => Check::ok(NAME, format!("Linux {release}")),
        _ => Check::fail(
            NAME,
            format!("Linux {release}"),
            format!(
                "a runtime needs Linux {major}.{minor} or newer (RHEL 9, SLES 15 SP4, Debian 12)"
            ),
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What a daemon asks the kernel for, tried out: sealed memory of the size of a control region, and a pidfd.
pub(super) fn calls() -> Check {
    const NAME: &str = "kernel calls";
    let memory = Control::create(RuntimeId(0), NodeIndex::FIRST, 1);
    if let Err(error) = memory {
        return Check::fail(
            NAME,
            format!("the shared memory of a node cannot be created: {error}"),
            "it is sparse, but needs some 20 GiB of address space: raise ulimit -v, and leave vm.overcommit_memory at 0 or 1; a sandbox must allow memfd_create and mmap",
        );
    }
    let own = rustix::process::getpid();
    if let Err(error) = rustix::process::pidfd_open(own, PidfdFlags::empty()) {
        return Check::fail(
            NAME,
            format!("no pidfd of a process: {error}"),
            "the end of processes is noticed by pidfds: a sandbox or container must allow pidfd_open",
        );
    }
    Check::ok(NAME, "sealed shared memory and pidfds work")
}

/// Whether `/proc` shows the processes that this one can name.
pub(super) fn namespaces() -> Check {
    const NAME: &str = "process table";
    let own = Pid::as_raw(Some(rustix::process::getpid()));
    let shown = fs::read_link("/proc/self");
    let shown = shown
        .as_deref()
        .ok()
        .and_then(|link| link.to_str()?.parse::<i32>().ok());
    match shown {
        Some(shown) if shown == own => Check::ok(NAME, "/proc shows this PID namespace"),
        Some(shown) => Check::fail(
            NAME,
            format!(
                "this process is {own} to itself and {shown} in /proc: /proc is of another PID namespace"
            ),
            "mount /proc inside the namespace (unshare --mount-proc), or start the job outside of it",
        ),
        None => Check::fail(
            NAME,
            "/proc shows no processes",
            "mount it: mount -t proc proc /proc",
        ),
    }
}

/// Whether debuggers may look at programs.
pub(super) fn tracing() -> Check {
    const NAME: &str = "debugging";
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    match scope.as_deref().map(str::trim) {
        Ok(scope @ ("2" | "3")) => Check::warn(
            NAME,
            format!("kernel.yama.ptrace_scope is {scope}"),
            "a runtime needs no more, but debuggers and profilers cannot attach to its programs: set it to 0 or 1 where that is wanted",
        ),
        Ok(scope) => Check::ok(NAME, format!("kernel.yama.ptrace_scope is {scope}")),
        Err(_) => Check::ok(NAME, "no restrictions by Yama"),
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn releases_of_all_kinds() {
        for (release, expected) in [
            ("5.14.0-427.el9.x86_64", Some((5, 14))),
            ("6.1-rc3", Some((6, 1))),
            ("2.6.60", Some((2, 6))),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
