//! Files that take the place of the terminal: `--output`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where output goes.
#[derive(Debug)]
pub enum Outputs {
    /// To this command's own output.
    Own,
    /// To one file.
    One(File),
    /// To a file for each node: the parts of the name between which its number stands.
    PerNode(Vec<String>),
}

impl Outputs {
    /// Reads the name of a file, and opens it when it is one for all nodes.
    ///
    /// # Errors
    /// When it cannot be opened, or the name has a `%` that means nothing.
    pub fn new(name: Option<&Path>) -> Result<Self> {
        let Some(name) = name else {
            return Ok(Self::Own);
        };
        let Some(text) = name.to_str() else {
            return Ok(Self::One(open(name)?));
        };
        let parts = parts(text)?;
        // Where this process is now, since it may go elsewhere before the files are opened.
        let parts = match std::path::absolute(&parts[0]) {
            Ok(first) if !parts[0].is_empty() => {
                let first = first.to_string_lossy().into_owned();
                std::iter::once(first)
                    .chain(parts[1..].iter().cloned())
                    .collect()
            }
            _ => parts,
        };
        match &parts[..] {
            [one] => Ok(Self::One(open(Path::new(one))?)),
            _ => Ok(Self::PerNode(parts)),
        }
    }

    /// Whether nodes keep their output to themselves.
    #[must_use]
    pub fn one_for_each_node(&self) -> bool {
        matches!(self, Self::PerNode(_))
    }

    /// Makes them the output of a node's daemon.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn give(&self, command: &mut Command, rank: u32) -> Result<()> {
        let file = match self {
            Self::Own => return Ok(()),
            Self::One(file) => file.try_clone()?,
            Self::PerNode(parts) => open(&PathBuf::from(parts.join(&rank.to_string())))?,
        };
        command.stdout(file.try_clone()?).stderr(file);
        Ok(())
    }
}

/// The parts of a name between which the node's number stands.
fn parts(name: &str) -> Result<Vec<String>> {
    let mut parts = vec![String::new()];
    let mut rest = name.chars();
    while let Some(c) = rest.next() {
        let last = parts.len() - 1;
        match c {
            '%' => match rest.next() {
                Some('n') => parts.push(String::new()),
                Some('%') => parts[last].push('%'),
                other => bail!(
                    "--output {name}: %{} means nothing; %n stands for the node's number, %% for %",
                    other.map(String::from).unwrap_or_default()
                ),
            },
            c => parts[last].push(c),
        }
    }
    Ok(parts)
}

/// Whoever writes appends, so that the head's lines and the daemon's do not overwrite each other.
fn open(name: &Path) -> Result<File> {
    let named = || format!("--output {}", name.display());
    File::create(name).with_context(named)?;
    File::options().append(true).open(name).with_context(named)
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn the_number_of_the_node_stands_where_it_is_wanted() {
        let table: [(&str, &[&str]); 4] = [
            ("out", &["out"]),
            ("out-%n.txt", &["out-", ".txt"]),
            ("%n/%n", &["", "/", ""]),
            ("100%%", &["100%"]),
        ];
        for (name, expected) in table {
            assert_eq!(parts(name).unwrap(), expected, "{name}");
        }
        for bad in ["%t", "a%"] {
            assert!(parts(bad).unwrap_err().to_string().contains("%n"), "{bad}");
        }
    }
}
