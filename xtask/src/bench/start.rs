//! Group `start`: how long a first Python program takes, from the command line to its end.

use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row, row};
use crate::bench::sample::wall_times;
use crate::bench::upstream::{self, Upstream};
use crate::repo::Repo;

const RUNS: u32 = 21;
const UPSTREAM_RUNS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn measure(repo: &Repo, upstream: Option<&Upstream>, print: &mut impl FnMut(Row)) {
    hello_world(repo, upstream, print);
}

fn hello_world(repo: &Repo, upstream: Option<&Upstream>, print: &mut impl FnMut(Row)) {
    const NAME: &str = "hello world, Pool(2)";
    const PRINTED: &str = "[0, 1, 4, 9]";
    let program = repo.path("benches/python/hello_pool.py");
    let Some(text) = program.to_str() else { return };
    let stdlib = |method: &str| {
        let mut python = repo.in_venv(repo.venv_bin("python"));
        python.args([text, "--method", method]);
        python
    };
    let commands = [
        dragon(repo, &[text, "--method", "dragon"]),
        stdlib("fork"),
        stdlib("forkserver"),
    ];
    let [ours, fork, forkserver] = wall_times(RUNS, LIMIT, PRINTED, commands);
    print(row(
        NAME,
        "ms",
        ours.clone(),
        "stdlib forkserver",
        Some(forkserver),
        Goal::Ratio(1.0),
    ));
    print(row(
        NAME,
        "ms",
        ours.clone(),
        "stdlib fork",
        Some(fork),
        Goal::Ratio(1.5),
    ));
    if let Some(upstream) = upstream {
        let mut command = upstream.launcher(repo, &program);
        command.args(["--method", "dragon"]);
        let [theirs] = wall_times(UPSTREAM_RUNS, upstream::LIMIT, PRINTED, [command]);
        print(row(
            NAME,
            "ms",
            ours,
            upstream::NAME,
            Some(theirs),
            Goal::Ratio(0.02),
        ));
    }
}

fn dragon(repo: &Repo, words: &[&str]) -> Command {
    let mut command = repo.in_venv(repo.venv_bin("dragon"));
    command.args(words);
    command
}
