//! What the job was granted on this node: CPUs by affinity, memory by control groups; never what the machine has.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::thread::CpuSet;

/// Granted resources of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
}

/// The CPUs that this process may run on, one bit each.
#[must_use]
pub fn own_mask() -> Vec<u8> {
    let mut mask = Vec::new();
    if let Ok(set) = rustix::thread::sched_getaffinity(None) {
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)) {
            mask.resize(mask.len().max(cpu / 8 + 1), 0);
            mask[cpu / 8] |= 1 << (cpu % 8);
        }
    }
    mask
}

/// Adds the CPUs of another mask.
pub fn union(mask: &mut Vec<u8>, other: &[u8]) {
    mask.resize(mask.len().max(other.len()), 0);
    for (byte, more) in mask.iter_mut().zip(other) {
        *byte |= more;
    }
}

/// The number of CPUs in a mask.
#[must_use]
pub fn count(mask: &[u8]) -> u32 {
    mask.iter().map(|byte| byte.count_ones()).sum()
}

/// Whether Slurm tracks the processes of this step by a control group of its own.
#[must_use]
pub fn in_step_group() -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    own.lines().any(is_step_group)
}

/// Slurm tracks by the freezer of the first hierarchy, or by the unified one.
fn is_step_group(line: &str) -> bool {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (
        fields.next().unwrap_or_default(),
        fields.next().unwrap_or_default(),
    );
    (controllers.is_empty() || controllers == "freezer") && path.contains("/step_")
}

/// Reads what this process was granted.
#[must_use]
pub fn granted() -> Granted {
    let cpus = count(&own_mask()).max(1);
    let machine = machine_memory().unwrap_or(1 << 30);
    Granted {
        cpus,
        memory: own_limits()
            .map(|limit| limit.bytes)
            .fold(machine, u64::min),
    }
}

/// A memory limit above this process, and what is used of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The control group.
    pub group: PathBuf,
    /// Its limit in bytes.
    pub bytes: u64,
    /// Bytes used, clean file cache not counted.
    pub used: u64,
}

/// The tightest control group above this process: the one with the least room. `None` when there is no limit.
#[must_use]
pub fn tightest() -> Option<Limit> {
    own_limits().min_by_key(|limit| limit.bytes.saturating_sub(limit.used))
}

/// The control group above this process with the smallest limit.
#[must_use]
pub fn smallest() -> Option<Limit> {
    own_limits().min_by_key(|limit| limit.bytes)
}

fn own_limits() -> impl Iterator<Item = Limit> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups: Vec<_> = own
        .lines()
        .filter_map(|line| Group::parse(line, Path::new("/sys/fs/cgroup")))
        .collect();
    groups.into_iter().flat_map(Group::limits)
}

/// The memory group of a process, in one of the two hierarchies.
struct Group {
    root: PathBuf,
    path: PathBuf,
    limit: &'static str,
    usage: &'static str,
}

impl Group {
    /// Reads a line of `/proc/self/cgroup`: `ID:CONTROLLERS:PATH`, with no controllers for the unified hierarchy.
    fn parse(line: &str, mount: &Path) -> Option<Self> {
        let mut fields = line.splitn(3, ':');
        let (controllers, path) = (fields.nth(1)?, fields.next()?);
        let (root, limit, usage) = if controllers.is_empty() {
            (mount.to_owned(), "memory.max", "memory.current")
        } else if controllers.split(',').any(|name| name == "memory") {
            (
                mount.join("memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        } else {
            return None;
        };
        let path = root.join(path.trim_start_matches('/'));
        Some(Self {
            root,
            path,
            limit,
            usage,
        })
    }

    /// The limits of the group and of every group above it.
    fn limits(self) -> impl Iterator<Item = Limit> {
        let above: Vec<_> = self
            .path
            .ancestors()
            .take_while(|folder| folder.starts_with(&self.root))
            .map(Path::to_owned)
            .collect();
        above.into_iter().filter_map(move |group| {
            // "max", and the huge number that the first hierarchy gives, mean that there is none.
            let bytes = number(&group.join(self.limit)).filter(|limit| *limit < 1 << 60)?;
            let used = number(&group.join(self.usage))
                .unwrap_or(0)
                .saturating_sub(clean_cache(&group));
            Some(Limit { group, bytes, used })
        })
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// File cache that the kernel can drop before it kills.
fn clean_cache(group: &Path) -> u64 {
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let line = |name: &str| {
        stat.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(' ')?
                .parse::<u64>()
                .ok()
        })
    };
    // In the first hierarchy the plain numbers leave out the groups below, whose usage is counted.
    let value = |name: &str| line(&format!("total_{name}")).or_else(|| line(name));
    let files = ["inactive_file", "active_file"]
        .iter()
        .filter_map(|name| value(name))
        .sum::<u64>();
    let dirty = ["file_dirty", "dirty", "file_writeback", "writeback"]
        .iter()
        .filter_map(|name| value(name))
        .sum::<u64>();
    files.saturating_sub(dirty)
}

fn machine_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        root
    }

    fn limits(line: &str, root: &tempfile::TempDir) -> Vec<(u64, u64)> {
        Group::parse(line, root.path())
            .unwrap()
            .limits()
            .map(|limit| (limit.bytes, limit.used))
            .collect()
    }

    #[test]
    fn unified_hierarchy_reads_every_ancestor() {
        let root = tree(&[
            ("job/step/memory.max", "max\n"),
            ("job/step/memory.current", "500\n"),
            ("job/memory.max", "1000\n"),
            ("job/memory.current", "700\n"),
            (
                "job/memory.stat",
                "anon 100\nactive_file 200\ninactive_file 100\nfile_dirty 50\n",
            ),
        ]);
        assert_eq!(limits("0::/job/step", &root), [(1000, 450)]);
    }

    #[test]
    fn file_cache_of_the_groups_below_can_be_dropped_too() {
        let root = tree(&[
            ("memory/job/memory.limit_in_bytes", "2000\n"),
            ("memory/job/memory.usage_in_bytes", "1500\n"),
            (
                "memory/job/memory.stat",
                "inactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200\ntotal_dirty 50\n",
            ),
        ]);
        assert_eq!(limits("4:memory:/job", &root), [(2000, 1050)]);
    }

    #[test]
    fn step_groups_of_both_hierarchies() {
        for (line, tracked) in [
            ("6:freezer:/slurm_n1/uid_2001/job_21/step_0", true),
            (
                "0::/system.slice/slurmstepd.scope/job_21/step_0/user/task_0",
                true,
            ),
            ("4:memory:/slurm/uid_2001/job_21/step_0", false),
            ("0::/user.slice", false),
            ("", false),
        ] {
            assert_eq!(is_step_group(line), tracked, "{line}");
        }
    }

    #[test]
    fn first_hierarchy_knows_no_limit_by_a_huge_number() {
        let root = tree(&[
            ("memory/job/memory.limit_in_bytes", "2000\n"),
            ("memory/job/memory.usage_in_bytes", "1500\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(limits("4:memory:/job", &root), [(2000, 1500)]);
        assert!(Group::parse("3:cpuset:/job", root.path()).is_none());
    }
}
