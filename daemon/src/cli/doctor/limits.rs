//! Limits: of the shell, of the control group, of the machine.

use std::fs;
use std::path::Path;

use dragon_protocol::{NodeIndex, RuntimeId};
use dragon_shmem::Pool;
use rustix::process::{Resource, getrlimit};

use super::Check;
use crate::cli::table::bytes;
use crate::resources;

/// Descriptors that a daemon needs for each process: its connection and pidfd, and pipes for input, output and errors.
const FILES_PER_PROCESS: u64 = 6;

/// Descriptors.
pub(super) fn open_files() -> Check {
    const NAME: &str = "open files";
    let limit = getrlimit(Resource::Nofile).maximum;
    let (found, room) = match limit {
        None => ("unlimited".to_owned(), u64::MAX),
        Some(limit) => {
            let room = limit.saturating_sub(64) / FILES_PER_PROCESS;
            (
                format!("at most {limit} (hard limit), for some {room} processes a node"),
                room,
            )
        }
    };
    let change = "raise the hard limit: ulimit -Hn, LimitNOFILE of the slurmd service, or nofile in /etc/security/limits.conf";
    match room {
        0..16 => Check::fail(NAME, found, change),
        16..2500 => Check::warn(NAME, found, change),
        _ => Check::ok(NAME, found),
    }
}

/// Processes and threads.
pub(super) fn processes() -> Check {
    const NAME: &str = "processes";
    let number = |file: &str| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    // The kernel does not hold root to it.
    let own = getrlimit(Resource::Nproc)
        .maximum
        .filter(|_| !rustix::process::getuid().is_root());
    let limits = [
        (own, "of this user's processes (ulimit -u)"),
        (group_tasks(), "of this control group's tasks (pids.max)"),
        (
            number("/proc/sys/kernel/pid_max"),
            "of process ids (kernel.pid_max)",
        ),
        (
            number("/proc/sys/kernel/threads-max"),
            "of threads (kernel.threads-max)",
        ),
    ];
    let known = limits
        .into_iter()
        .filter_map(|(limit, what)| Some((limit?, what)));
    let Some((limit, what)) = known.min() else {
        return Check::ok(NAME, "no limit");
    };
    let found = format!("at most {limit}, the limit {what}");
    let change =
        "each process is one, and so is each of its threads: raise it for what the job shall start";
    match limit {
        0..64 => Check::fail(NAME, found, change),
        64..2048 => Check::warn(NAME, found, change),
        _ => Check::ok(NAME, found),
    }
}

/// The least number of tasks that a control group above this process allows, in either hierarchy.
fn group_tasks() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limit = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup").to_owned(),
            "pids" => Path::new("/sys/fs/cgroup/pids").to_owned(),
            _ => return None,
        };
        let group = root.join(path.trim_start_matches('/'));
        let above = group
            .ancestors()
            .take_while(|folder| folder.starts_with(&root));
        let read = |folder: &Path| {
            let text = fs::read_to_string(folder.join("pids.max")).ok()?;
            text.trim().parse::<u64>().ok()
        };
        above.filter_map(read).min()
    };
    own.lines().filter_map(limit).min()
}

/// Memory that adapters may lock.
pub(super) fn locked_memory() -> Check {
    const NAME: &str = "locked memory";
    let limit = getrlimit(Resource::Memlock).maximum;
    let adapters = adapters();
    match (limit, adapters.as_slice()) {
        (None, _) => Check::ok(NAME, "unlimited"),
        (Some(limit), []) => Check::ok(
            NAME,
            format!(
                "at most {}; nothing needs it without an RDMA adapter",
                bytes(limit)
            ),
        ),
        (Some(limit), some) => Check::warn(
            NAME,
            format!(
                "at most {}, and there are RDMA adapters: {}",
                bytes(limit),
                some.join(", ")
            ),
            "libraries that use them directly (MPI, NCCL) need ulimit -l unlimited; this runtime does not",
        ),
    }
}

/// Names of RDMA adapters.
pub(super) fn adapters() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/infiniband")
        .into_iter()
        .flatten()
        .flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A pool as the daemon makes it, tried out. `/dev/shm` is not needed, whatever its size.
pub(super) fn shared_memory() -> Check {
    const NAME: &str = "shared memory";
    let limit = resources::granted().memory / 2;
    let pool = Pool::create(RuntimeId(0), NodeIndex::FIRST, 0, limit);
    match pool.and_then(|pool| pool.commit(2 << 20)) {
        Ok(()) => Check::ok(
            NAME,
            format!(
                "a pool of {} can be made; /dev/shm is not used",
                bytes(limit)
            ),
        ),
        Err(error) => Check::fail(
            NAME,
            format!("a pool of {} cannot be made: {error}", bytes(limit)),
            "free memory or raise the job's limit; a smaller pool is asked for with --pool",
        ),
    }
}

/// What the job was granted.
pub(super) fn group_memory() -> Check {
    const NAME: &str = "memory limit";
    let Some(limit) = resources::tightest() else {
        let memory = bytes(resources::granted().memory);
        return Check::ok(
            NAME,
            format!("none by control groups; the machine has {memory}"),
        );
    };
    let left = limit.bytes.saturating_sub(limit.used);
    let found = format!(
        "control group {} allows {}, of which {} are left",
        limit.group.display(),
        bytes(limit.bytes),
        bytes(left)
    );
    let change = "ask the workload manager for more memory (--mem), or end what uses it";
    match left >> 20 {
        0..64 => Check::fail(NAME, found, change),
        64..512 => Check::warn(NAME, found, change),
        _ => Check::ok(NAME, found),
    }
}

/// Huge pages for pools that ask for them.
pub(super) fn huge_pages() -> Check {
    const NAME: &str = "huge pages";
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let text = fs::read_to_string(FILE).unwrap_or_default();
    let chosen = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    let chosen = chosen.map(|(chosen, _)| chosen);
    match chosen {
        Some(way @ ("always" | "within_size" | "advise" | "force")) => {
            Check::ok(NAME, format!("for shared memory: {way}"))
        }
        Some(way) => Check::warn(
            NAME,
            format!("for shared memory: {way}"),
            format!("pools that ask for huge pages get none: echo advise > {FILE}, as root"),
        ),
        None => Check::warn(
            NAME,
            "this kernel has none for shared memory",
            "pools that ask for huge pages get none; nothing else changes",
        ),
    }
}
