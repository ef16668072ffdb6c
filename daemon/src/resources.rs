//! What the job was granted on this node: CPUs by affinity, memory by control groups; never what the machine has.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use rustix::thread::CpuSet;

use crate::reservations::Cpu;

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

/// Lets this process, and with it whatever it starts, run on the CPUs of a mask. Where it may not it stays where it is.
pub fn run_on(mask: &[u8]) {
    let mut set = CpuSet::new();
    let is_in = |cpu: &usize| {
        mask.get(cpu / 8)
            .is_some_and(|byte| byte >> (cpu % 8) & 1 != 0)
    };
    (0..CpuSet::MAX_CPU)
        .filter(is_in)
        .for_each(|cpu| set.set(cpu));
    let threads = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    for thread in threads {
        let id = thread
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Err(error) = rustix::thread::sched_setaffinity(id.and_then(Pid::from_raw), &set) {
            tracing::debug!("not all granted CPUs can be used: {error}");
        }
    }
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

/// The CPUs of a mask with their NUMA nodes, at most `most`.
#[must_use]
pub fn cpus(mask: &[u8], most: u32) -> Vec<Cpu> {
    let numa = numa_nodes(Path::new("/sys/devices/system/node"));
    let of = |id| {
        let node = numa.iter().find(|(_, cpus)| cpus.contains(&id));
        Cpu {
            id,
            numa: node.map_or(0, |(node, _)| *node),
        }
    };
    let all = cpu_numbers(mask).into_iter();
    all.take(most as usize).map(of).collect()
}

/// The numbers of the CPUs in a mask.
#[must_use]
pub fn cpu_numbers(mask: &[u8]) -> Vec<u32> {
    let set = |cpu: &u32| {
        mask.get(*cpu as usize / 8)
            .is_some_and(|byte| byte >> (cpu % 8) & 1 != 0)
    };
    // A mask has at most 1024 bytes.
    let all = 0..u32::try_from(mask.len() * 8).unwrap_or(u32::MAX);
    all.filter(set).collect()
}

/// The CPUs of each NUMA node; none where the kernel does not say.
fn numa_nodes(folder: &Path) -> Vec<(u32, Vec<u32>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let nodes = entries.filter_map(|entry| {
        let name = entry.file_name();
        let number = name.to_str()?.strip_prefix("node")?.parse().ok()?;
        let list = fs::read_to_string(entry.path().join("cpulist")).ok()?;
        Some((number, cpu_list(&list)))
    });
    nodes.collect()
}

/// `0-3,8` as the kernel writes it.
fn cpu_list(list: &str) -> Vec<u32> {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

/// Variables by which the job was told its GPUs, the most certain first: what a vendor's library reads is what programs can
/// use, whatever the workload manager counts.
const GPU_VARIABLES: [&str; 5] = [
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
];
/// As above, by Slurm, for programs that are to be told by the variables above.
const SLURM_GPU_VARIABLES: [&str; 2] = ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"];

/// The GPUs that the job was granted on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpus {
    /// Their names: numbers or unique ids.
    pub names: Vec<String>,
    /// The variables that tell a process which of them are its own.
    pub variables: Vec<&'static str>,
}

/// The GPUs that an environment names.
#[must_use]
pub fn gpus(variable: impl Fn(&str) -> Option<String>) -> Gpus {
    let read = |name: &&str| variable(name).map(|list| gpu_names(&list));
    let told = |name: &&str| read(name).is_some_and(|names| !names.is_empty());
    let own: Vec<_> = GPU_VARIABLES.into_iter().filter(told).collect();
    if let Some(names) = own.first().and_then(read) {
        return Gpus {
            names,
            variables: own,
        };
    }
    match SLURM_GPU_VARIABLES.iter().find_map(read) {
        Some(names) if !names.is_empty() => Gpus {
            names,
            variables: GPU_VARIABLES[..2].to_vec(),
        },
        _ => Gpus::default(),
    }
}

/// A list with commas; a range of numbers stands for all of them. Words that mean "none" are none.
fn gpu_names(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let words = list.split(',').map(str::trim);
    for word in words.filter(|word| !["", "NoDevFiles", "none", "void", "-1"].contains(word)) {
        let range = word.split_once('-').and_then(|(first, last)| {
            Some((first.parse::<u32>().ok()?, last.parse::<u32>().ok()?))
        });
        match range {
            Some((first, last)) if last >= first && last - first < 1024 => {
                names.extend((first..=last).map(|number| number.to_string()));
            }
            _ => names.push(word.to_owned()),
        }
    }
    names
}

/// Whether Slurm tracks the processes of this step by a control group of its own.
#[must_use]
pub fn in_step_group() -> bool {
    own_groups().lines().any(is_step_group)
}

/// The control groups of this process, a line for each hierarchy.
fn own_groups() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
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
    limits(&own_groups(), Path::new("/sys/fs/cgroup"))
}

/// The limits of groups, as `/proc/self/cgroup` names them, below the folder where the hierarchies are mounted.
fn limits(groups: &str, mount: &Path) -> impl Iterator<Item = Limit> + use<> {
    let lines = groups.lines();
    let groups: Vec<_> = lines.filter_map(|line| Group::parse(line, mount)).collect();
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

    fn limits(groups: &str, root: &tempfile::TempDir) -> Vec<(u64, u64)> {
        super::limits(groups, root.path())
            .map(|limit| (limit.bytes, limit.used))
            .collect()
    }

    /// Makes the files that were recorded; what `/proc/self/cgroup` said, and the groups' folder.
    fn recorded(text: &str) -> (String, tempfile::TempDir) {
        let mut files: Vec<(&str, String)> = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with("# ")) {
            match (line.strip_prefix("### "), files.last_mut()) {
                (Some(file), _) => {
                    let below = file.trim_start_matches("/sys/fs/cgroup/");
                    files.push((below, String::new()));
                }
                (None, Some((_, says))) => says.extend([line, "\n"]),
                (None, None) => panic!("{line} is of no file"),
            }
        }
        let (_, own) = files.remove(0);
        let files: Vec<_> = files
            .iter()
            .map(|(file, says)| (*file, says.as_str()))
            .collect();
        (own, tree(&files))
    }

    /// 200 MiB for the job, and for the step, as Slurm sets them.
    #[test]
    fn a_step_of_slurm_with_groups_of_the_first_version() {
        let (own, root) = recorded(include_str!("../fixtures/slurm-cgroup-v1.txt"));
        assert!(own.lines().any(is_step_group));
        assert_eq!(
            limits(&own, &root),
            [(200 << 20, 1_839_104), (200 << 20, 2_265_088)]
        );
    }

    #[test]
    fn a_step_of_slurm_with_unified_groups() {
        let (own, root) = recorded(include_str!("../fixtures/slurm-cgroup-v2.txt"));
        assert!(own.lines().any(is_step_group));
        assert_eq!(
            limits(&own, &root),
            [(200 << 20, 536_576), (200 << 20, 1_302_528)]
        );
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
    fn gpus_are_what_the_environment_names() {
        let of = |set: &[(&str, &str)]| {
            let found = |name: &str| set.iter().find(|(variable, _)| *variable == name);
            let gpus = gpus(|name| found(name).map(|(_, value)| (*value).to_owned()));
            (gpus.names.join(" "), gpus.variables.join(" "))
        };
        let (cuda, rocr) = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES");
        assert_eq!(of(&[]), (String::new(), String::new()));
        assert_eq!(of(&[(cuda, "0,2")]), ("0 2".into(), cuda.into()));
        assert_eq!(of(&[(cuda, "NoDevFiles")]), (String::new(), String::new()));
        let unique = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6";
        assert_eq!(of(&[(cuda, unique)]), (unique.into(), cuda.into()));
        let both = format!("{cuda} {rocr}");
        let slurm = ("SLURM_STEP_GPUS", "1-3,7");
        assert_eq!(of(&[slurm]), ("1 2 3 7".into(), both.clone()));
        // Slurm counts the devices of the machine, a vendor's library those that the job can see.
        assert_eq!(of(&[slurm, (cuda, "0,1")]), ("0 1".into(), cuda.into()));
        assert_eq!(of(&[(cuda, "0"), (rocr, "0")]), ("0".into(), both));
    }

    #[test]
    fn cpus_know_their_numa_nodes() {
        assert_eq!(cpu_list("0-2,8\n"), [0, 1, 2, 8]);
        let root = tree(&[("node1/cpulist", "4-5\n"), ("node0/cpulist", "0-3\n")]);
        let mut nodes = numa_nodes(root.path());
        nodes.sort();
        assert_eq!(nodes, [(0, vec![0, 1, 2, 3]), (1, vec![4, 5])]);
        let ids: Vec<u32> = cpus(&[0b1010, 1], 2).iter().map(|cpu| cpu.id).collect();
        assert_eq!(ids, [1, 3]);
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
        assert_eq!(limits("3:cpuset:/job", &root), []);
    }
}
