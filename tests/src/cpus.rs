//! CPUs as the kernel lists them.

use std::collections::BTreeSet;

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
