//! Group `services`, processes: what it costs to start and join them, and how many live at a time.

use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row, row};
use crate::bench::sample::{reported, reported_beside};
use crate::repo::Repo;

const LIMIT: Duration = Duration::from_secs(300);
const BARE: &str = "posix_spawn + waitpid";

/// Rates, beside bare system calls.
pub(super) fn rates(repo: &Repo, print: &mut impl FnMut(Row)) {
    for (name, unit, mode, goal) in [
        (
            "create + join /bin/true",
            "us",
            &["create"][..],
            Goal::Ratio(1.5),
        ),
        (
            "create + join, output forwarded",
            "us",
            &["create", "forwarded"],
            Goal::None,
        ),
        ("1000 at once", "/s", &["at-once"], Goal::RatioAtLeast(0.7)),
    ] {
        let [ours, bare] = reported_beside(&mut program(repo, mode), LIMIT);
        print(row(name, unit, ours, BARE, Some(bare), goal));
    }
}

/// As many as there are to be on a node.
pub(super) fn scale(repo: &Repo, print: &mut impl FnMut(Row)) {
    let ours = reported(&mut program(repo, &["live", "10000"]), LIMIT);
    print(row(
        "live processes",
        "",
        ours,
        "-",
        None,
        Goal::AtLeast(10_000.0),
    ));
    let mut dragon = repo.in_venv(repo.venv_bin("dragon"));
    dragon.arg(repo.path("benches/python/live.py"));
    let [live, start, memory, files, daemon] =
        reported_beside(dragon.args(["--count", "1000"]), LIMIT);
    for (name, unit, measured, goal) in [
        ("live Python workers", "", live, Goal::AtLeast(1000.0)),
        ("the same, start of each", "ms", start, Goal::None),
        ("the same, memory of each (PSS)", "MiB", memory, Goal::None),
        (
            "the same, daemon's descriptors for each",
            "",
            files,
            Goal::None,
        ),
        (
            "the same, daemon's memory for each",
            "KiB",
            daemon,
            Goal::None,
        ),
    ] {
        print(row(name, unit, measured, "-", None, goal));
    }
}

fn program(repo: &Repo, mode: &[&str]) -> Command {
    let mut command = Command::new(repo.release("dragon"));
    command.arg(repo.release("process-bench")).args(mode);
    command
}
