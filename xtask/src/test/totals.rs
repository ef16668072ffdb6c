//! Reads how many tests passed, failed and were skipped out of what the test programs print, and what the failed ones said.

use std::fmt;

/// What is read of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    /// The lines that tell why something failed, to be said again at the end of all groups.
    pub(crate) failures: Vec<String>,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: Self) {
        self.counts.add(other.counts);
        self.failures.extend(other.failures);
    }

    /// Something failed that no test stands for.
    pub(crate) fn fail(&mut self, why: String) {
        self.counts.failed += 1;
        self.failures.push(why);
    }
}

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
    outcome: Outcome,
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
    /// The rest of the output of a test that said that it was skipped.
    Skipped,
    /// The output of failed tests, and then their names.
    Failed,
}

impl CargoTest {
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.result(result);
        } else if line == "successes:" {
            self.section = Section::Passed;
        } else if line == "failures:" {
            self.section = Section::Failed;
        } else if line.starts_with("---- ") && self.section == Section::Skipped {
            self.section = Section::Passed;
        } else if line.starts_with("SKIPPED ") && self.section == Section::Passed {
            self.skipped_here += 1;
            self.section = Section::Skipped;
        } else if self.section == Section::Failed {
            self.outcome.failures.push(line.to_owned());
        }
    }

    pub(crate) fn outcome(self) -> Outcome {
        self.outcome
    }

    fn result(&mut self, text: &str) {
        let counts = &mut self.outcome.counts;
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
                    counts.passed += number.saturating_sub(self.skipped_here);
                    counts.skipped += self.skipped_here;
                }
                "failed" => counts.failed += number,
                "ignored" => counts.skipped += number,
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

/// Reads pytest's reports of what failed, and its closing line.
#[derive(Debug, Default)]
pub(crate) struct Pytest {
    outcome: Outcome,
    /// Among the reports of what failed.
    reports: bool,
}

impl Pytest {
    pub(crate) fn line(&mut self, line: &str) {
        if line.starts_with("====") {
            self.reports = [" FAILURES ", " ERRORS "]
                .iter()
                .any(|of| line.contains(of));
        } else if self.reports {
            self.outcome.failures.push(line.to_owned());
        }
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
        self.outcome.counts = counts;
    }

    pub(crate) fn outcome(self) -> Outcome {
        self.outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cargo_test(text: &str) -> Counts {
        let mut reader = CargoTest::default();
        text.lines().for_each(|line| reader.line(line));
        reader.outcome().counts
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
        let outcome = reader.outcome();
        assert_eq!(outcome.counts.to_string(), "5 passed, 2 failed, 2 skipped");
        assert!(outcome.failures.is_empty());
    }

    #[test]
    fn what_failed_is_kept_and_what_passed_is_not() {
        let mut cargo = CargoTest::default();
        let mut pytest = Pytest::default();
        for line in [
            "successes:",
            "",
            "---- one stdout ----",
            "good",
            "failures:",
            "---- two stdout ----",
            "bad",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "     Running tests/other.rs",
        ] {
            cargo.line(line);
        }
        for line in [
            "tests/python/test_a.py .F",
            "===== FAILURES =====",
            "____ test_two ____",
            "E   bad",
            "===== short test summary info =====",
            "FAILED tests/python/test_a.py::test_two - bad",
        ] {
            pytest.line(line);
        }
        assert_eq!(cargo.outcome().failures, ["---- two stdout ----", "bad"]);
        assert_eq!(pytest.outcome().failures, ["____ test_two ____", "E   bad"]);
    }
}
