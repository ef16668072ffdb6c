//! Slurm's compressed host lists: `n[01-04,7],login,rack[1-2]n[1-3]`.
//!
//! The grammar is the one of `scontrol show hostnames`: a comma-separated list of names, each with any number of bracketed
//! ranges; a range keeps the width of its lower bound. The expansion runs the last bracket fastest.

/// Why a host list cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostlistError {
    /// A bracket without its partner.
    #[error("host list '{0}': a bracket without its partner")]
    Bracket(String),
    /// Not `number` or `number-number` with the second not below the first.
    #[error("host list: '{0}' is not a range like 3 or 01-12")]
    Range(String),
    /// More hosts than a runtime can have nodes.
    #[error("host list names more than {} hosts", crate::ids::NodeIndex::MAX)]
    TooMany,
    /// An empty name.
    #[error("host list '{0}' has an empty name")]
    Empty(String),
}

/// All host names of `list`, in order.
///
/// # Errors
/// When the list does not follow the grammar, or names more than 2^24 − 1 hosts.
pub fn expand(list: &str) -> Result<Vec<String>, HostlistError> {
    let mut hosts = Vec::new();
    for part in split_outside_brackets(list)? {
        let part = part.trim();
        if part.is_empty() {
            return Err(HostlistError::Empty(list.to_owned()));
        }
        expand_one("", part, &mut hosts)?;
    }
    Ok(hosts)
}

fn split_outside_brackets(list: &str) -> Result<Vec<&str>, HostlistError> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, byte) in list.bytes().enumerate() {
        match byte {
            b'[' if !inside => inside = true,
            b']' if inside => inside = false,
            b'[' | b']' => return Err(HostlistError::Bracket(list.to_owned())),
            b',' if !inside => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(HostlistError::Bracket(list.to_owned()));
    }
    parts.push(&list[start..]);
    Ok(parts)
}

fn expand_one(prefix: &str, rest: &str, hosts: &mut Vec<String>) -> Result<(), HostlistError> {
    let Some((before, after)) = rest.split_once('[') else {
        if hosts.len() >= crate::ids::NodeIndex::MAX as usize {
            return Err(HostlistError::TooMany);
        }
        hosts.push(format!("{prefix}{rest}"));
        return Ok(());
    };
    let (ranges, after) = after
        .split_once(']')
        .ok_or_else(|| HostlistError::Bracket(rest.to_owned()))?;
    for range in ranges.split(',') {
        let (first, last, width) = parse_range(range)?;
        for number in first..=last {
            expand_one(&format!("{prefix}{before}{number:0width$}"), after, hosts)?;
        }
    }
    Ok(())
}

fn parse_range(range: &str) -> Result<(u64, u64, usize), HostlistError> {
    let bad = || HostlistError::Range(range.to_owned());
    let number = |text: &str| {
        let digits =
            !text.is_empty() && text.len() <= 18 && text.bytes().all(|b| b.is_ascii_digit());
        if digits {
            text.parse::<u64>().map_err(|_| bad())
        } else {
            Err(bad())
        }
    };
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (number(low)?, number(high)?);
    if first > last {
        return Err(bad());
    }
    if last - first >= u64::from(crate::ids::NodeIndex::MAX) {
        return Err(HostlistError::TooMany);
    }
    Ok((first, last, low.len()))
}
