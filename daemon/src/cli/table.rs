//! Columns of text for people.

use std::io::{self, Write};

use anyhow::{Context, Result};

/// A table whose columns are as wide as what is in them.
#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this header. A name that begins with `<` is of a column of words, others are of numbers, which end at
    /// the same place.
    #[must_use]
    pub fn new(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text; without rows, nothing.
    #[must_use]
    pub fn text(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let name = |column: usize| self.header[column].trim_start_matches('<');
        let names = (0..self.header.len()).map(name).map(str::to_owned);
        let names: Vec<_> = names.collect();
        let all = || std::iter::once(&names).chain(&self.rows);
        let width = |column: usize| {
            let cells = all().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.header.len()).map(width).collect();
        let mut text = String::new();
        for row in all() {
            let mut line = String::new();
            for ((cell, width), name) in row.iter().zip(&widths).zip(&self.header) {
                let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (before, behind) = if name.starts_with('<') {
                    ("", &*gap)
                } else {
                    (&*gap, "")
                };
                line.extend([before, cell, behind, "  "]);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Prints; that nobody reads on is no error.
///
/// # Errors
/// When standard output cannot be written to.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot print")
        }
        _ => Ok(()),
    }
}

/// A number of bytes, for people: three digits and a unit of 1024.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    if n < 1024 {
        return format!("{n}");
    }
    let mut unit = 0;
    let mut tenths = u128::from(n) * 10 / 1024;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match tenths {
        0..100 => format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit]),
        _ => format!("{}{}", tenths / 10, UNITS[unit]),
    }
}

/// A time in seconds, for people: the two largest units.
#[must_use]
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["<NAME", "N"]);
        assert_eq!(table.text(), "");
        table.row(vec!["long name".to_owned(), "7".to_owned()]);
        table.row(vec!["é".to_owned(), "1234".to_owned()]);
        let expected = "NAME          N\nlong name     7\né          1234\n";
        assert_eq!(table.text(), expected);
    }

    #[test]
    fn amounts_for_people() {
        for (n, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (10 << 10, "10K"),
            ((1 << 20) - 1, "1023K"),
            (3 << 29, "1.5G"),
            (u64::MAX, "15E"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
        for (seconds, text) in [
            (59, "59s"),
            (61, "1m01s"),
            (3661, "1h01m"),
            (90_000, "1d01h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
