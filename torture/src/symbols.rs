//! Names for the addresses of this program's instructions.

use std::fmt;
use std::fs;
use std::process::Command;

/// Where a victim was. It was forked from here, so its addresses are ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(pub(crate) u64);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(address) = *self;
        match mapped(address) {
            Some((file, offset)) => match symbol(&file, offset) {
                Some(name) => write!(f, "{offset:#x} in {name}"),
                None => write!(f, "{offset:#x} of {file}"),
            },
            None => write!(f, "{address:#x}"),
        }
    }
}

/// The file that is mapped at an address, and the address in it as its symbols count.
fn mapped(address: u64) -> Option<(String, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mut base = None;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let from = u64::from_str_radix(from, 16).ok()?;
        let to = u64::from_str_radix(to, 16).ok()?;
        let file = words.nth(4).unwrap_or_default();
        // The first mapping of a file is where it was loaded; a position-independent one counts from there.
        if base.as_ref().is_none_or(|(name, _)| name != file) {
            base = Some((file.to_owned(), from));
        }
        if (from..to).contains(&address) {
            let (file, start) = base?;
            return Some((file, address - start));
        }
    }
    None
}

/// By addr2line, which is there where a linker is.
fn symbol(file: &str, offset: u64) -> Option<String> {
    let output = Command::new("addr2line")
        .args(["-Cfe", file, &format!("{offset:#x}")])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let name = text.lines().next()?.trim();
    (!name.is_empty() && name != "??").then(|| name.to_owned())
}
