//! CPUs as the kernel lists them, and steps whose tasks are bound to one each.

use std::collections::BTreeSet;

/// Has a shell tell which CPUs it may use.
pub const SHOW: &str = "grep Cpus_allowed_list: /proc/self/status";

/// Options of an srun with some tasks on one node, each bound to one of the CPUs that this process has; and how many that are.
///
/// # Panics
/// When the kernel does not say which this process has.
#[must_use]
pub fn bound_tasks() -> (Vec<String>, usize) {
    let own = std::fs::read_to_string("/proc/self/status").expect("the kernel lists CPUs");
    let some: Vec<_> = allowed(&own).iter().take(4).map(u32::to_string).collect();
    let tasks = format!("-n{}", some.len());
    let bind = format!("--cpu-bind=map_cpu:{}", some.join(","));
    let fixed = ["-N1", "-c1"].map(str::to_owned);
    ([&fixed[..], &[tasks, bind]].concat(), some.len())
}

/// The CPUs that processes may use, from what `/proc/PID/status` says of them: of all, where there are several.
#[must_use]
pub fn allowed(status: &str) -> BTreeSet<u32> {
    let lines = status.lines();
    let lists = lines.filter_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    lists.flat_map(list).collect()
}

/// `0-3,8`.
///
/// # Panics
/// When it is no such list.
#[must_use]
pub fn list(text: &str) -> BTreeSet<u32> {
    let ranges = text.trim().split(',').filter(|range| !range.is_empty());
    let ends = ranges.map(|range| range.split_once('-').unwrap_or((range, range)));
    let number = |text: &str| text.parse::<u32>().expect("the number of a CPU");
    ends.flat_map(|(first, last)| number(first)..=number(last))
        .collect()
}
