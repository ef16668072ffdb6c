//! Reads how many tests passed, failed and were skipped out of what the test programs print.

use std::fmt;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// Reads `cargo test … -- --show-output`.
///
/// A test that finds it cannot run here prints a line that starts with `SKIPPED ` and returns; libtest counts it as passed.
#[derive(Debug, Default)]
pub(crate) struct CargoTest {
    counts: Counts,
    section: Section,
    /// Tests of the current binary that passed, but said that they were skipped.
    skipped_here: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Section {
    #[default]
    Outside,
    /// The output of a test that passed and has not said yet that it was skipped.
    Passed,
    /// Output that says nothing: of a failed test, or of a skipped one that was counted.
    Other,
}

impl CargoTest {
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.result(result);
        } else if line == "successes:" {
            self.section = Section::Passed;
        } else if line == "failures:" {
            self.section = Section::Outside;
        } else if line.starts_with("---- ") && self.section == Section::Other {
            self.section = Section::Passed;
        } else if line.starts_with("SKIPPED ") && self.section == Section::Passed {
            self.skipped_here += 1;
            self.section = Section::Other;
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    fn result(&mut self, text: &str) {
        let (_, numbers) = text.split_once(". ").unwrap_or(("", text));
        for part in numbers.split(';') {
            let Some((number, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => {
                    self.counts.passed += number.saturating_sub(self.skipped_here);
                    self.counts.skipped += self.skipped_here;
                }
                "failed" => self.counts.failed += number,
                "ignored" => self.counts.skipped += number,
                _ => {}
            }
        }
        self.section = Section::Outside;
        self.skipped_here = 0;
    }
}

/// Reads a line as `Counts` are written; `None` for any other line.
pub(crate) fn own_totals(line: &str) -> Option<Counts> {
    let mut numbers = [0; 3];
    let mut parts = line.split(", ");
    for (number, what) in numbers.iter_mut().zip(["passed", "failed", "skipped"]) {
        let digits = parts.next()?.strip_suffix(what)?.strip_suffix(' ')?;
        *number = digits.parse().ok()?;
    }
    let [passed, failed, skipped] = numbers;
    parts.next().is_none().then_some(Counts {
        passed,
        failed,
        skipped,
    })
}

/// Reads pytest's closing line.
#[derive(Debug, Default)]
pub(crate) struct Pytest {
    counts: Counts,
}

impl Pytest {
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim_matches(['=', ' ']);
        let Some((numbers, time)) = line.rsplit_once(" in ") else {
            return;
        };
        if !time.starts_with(|first: char| first.is_ascii_digit()) {
            return;
        }
        let mut counts = Counts::default();
        for part in numbers.split(", ") {
            let Some((number, what)) = part.split_once(' ') else {
                return;
            };
            let Ok(number) = number.parse::<u64>() else {
                return;
            };
            match what {
                "passed" | "xpassed" => counts.passed += number,
                "failed" | "error" | "errors" => counts.failed += number,
                "skipped" | "xfailed" => counts.skipped += number,
                "warning" | "warnings" | "deselected" => {}
                _ => return,
            }
        }
        self.counts = counts;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cargo_test(text: &str) -> Counts {
        let mut reader = CargoTest::default();
        text.lines().for_each(|line| reader.line(line));
        reader.counts()
    }

    #[test]
    fn results_of_several_binaries_add_up() {
        let counts = cargo_test(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(counts.to_string(), "5 passed, 4 failed, 1 skipped");
    }

    #[test]
    fn a_passed_test_that_says_skipped_counts_as_skipped_once() {
        let counts = cargo_test(
            "successes:\n\n---- one stdout ----\nSKIPPED one: no root\nSKIPPED one: no root, really\n\n---- two stdout ----\n\
             SKIPPED two: no Slurm\n\nsuccesses:\n    one\n    two\n    three\n\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(counts.to_string(), "1 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn a_failed_test_that_says_skipped_counts_as_failed() {
        let counts = cargo_test(
            "failures:\n\n---- one stdout ----\nSKIPPED half of it\npanicked\n\nfailures:\n    one\n\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(counts.to_string(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn own_totals_are_read_and_other_lines_are_not() {
        let counts = Counts {
            passed: 190,
            failed: 2,
            skipped: 26,
        };
        assert_eq!(own_totals(&counts.to_string()), Some(counts));
        for line in [
            "",
            "190 passed, 2 failed",
            "190 passed, 2 failed, 26 skipped, 1 lost",
            "FAILED a.b: 1 passed, 2",
        ] {
            assert_eq!(own_totals(line), None, "{line}");
        }
    }

    #[test]
    fn pytest_closing_line_is_read_and_other_lines_are_not() {
        let mut reader = Pytest::default();
        reader.line("SKIPPED [1] tests/python/test_a.py:3: no network in here");
        reader.line("===== 5 passed, 1 failed, 2 skipped, 1 error, 3 warnings in 1.25s =====");
        reader.line("left 3 files in place");
        assert_eq!(reader.counts().to_string(), "5 passed, 2 failed, 2 skipped");
    }
}
