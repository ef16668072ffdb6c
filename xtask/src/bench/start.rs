//! Group `start`: how long a runtime takes to come up and go, and how large it is.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row};
use crate::bench::sample::{Measured, Sample, captured, wall_times};
use crate::bench::upstream::{self, Upstream};
use crate::repo::Repo;

const RUNS: u32 = 21;
const UPSTREAM_RUNS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(30);
const TRUE: &str = "/bin/true";

pub(super) fn measure(repo: &Repo, upstream: Option<&Upstream>, print: &mut impl FnMut(Row)) {
    bring_up(repo, upstream, print);
    hello_world(repo, upstream, print);
    print(row(
        "dragond, resident",
        "MiB",
        resident(repo),
        "-",
        None,
        Goal::Value(10.0),
    ));
}

fn bring_up(repo: &Repo, upstream: Option<&Upstream>, print: &mut impl FnMut(Row)) {
    let [ours, plain] = wall_times(RUNS, LIMIT, "", [dragon(repo, &[TRUE]), Command::new(TRUE)]);
    print(row(
        "dragon /bin/true",
        "ms",
        ours.clone(),
        "/bin/true alone",
        Some(plain),
        Goal::Value(20.0),
    ));
    if let Some(upstream) = upstream {
        let command = upstream.launcher(repo, Path::new(TRUE));
        let [theirs] = wall_times(UPSTREAM_RUNS, upstream::LIMIT, "", [command]);
        print(row(
            "dragon /bin/true",
            "ms",
            ours,
            upstream::NAME,
            Some(theirs),
            Goal::Ratio(0.01),
        ));
    }
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

/// Resident memory of `dragond` of its own, shared memory apart: the head program is its child and reads it.
fn resident(repo: &Repo) -> Measured {
    let mut command = dragon(repo, &["/bin/sh", "-c", "exec cat /proc/$PPID/status"]);
    let (_, status) = captured(&mut command, LIMIT)?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
            .ok_or_else(|| format!("no {name} in its status"))
    };
    let name = field("Name:")?;
    if name != "dragond" {
        return Err(format!("the head's parent is {name}, not dragond"));
    }
    let kib = |name: &str| {
        let text = field(name)?;
        text.trim_end_matches(" kB")
            .parse::<f64>()
            .map_err(|_| format!("{name} {text} is not a number"))
    };
    let own = kib("RssAnon:")? + kib("RssFile:")?;
    Ok(Sample {
        values: vec![own / 1024.0],
        ..Sample::default()
    })
}

fn dragon(repo: &Repo, words: &[&str]) -> Command {
    let mut command = repo.in_venv(repo.venv_bin("dragon"));
    command.args(words);
    command
}

fn row(
    name: &str,
    unit: &'static str,
    ours: Measured,
    peer_name: &str,
    peer: Option<Measured>,
    goal: Goal,
) -> Row {
    Row {
        group: "start",
        name: name.to_owned(),
        unit,
        ours,
        peer_name: peer_name.to_owned(),
        peer,
        goal,
    }
}
