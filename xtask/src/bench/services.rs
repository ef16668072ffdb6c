//! Group `services`: bring-up, tear-down and idling of runtimes of one and of many nodes; processes; faults.

mod faults;
mod processes;

use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row, row};
use crate::bench::sample::{Measured, Sample, captured, reported, reported_beside, wall_times};
use crate::bench::upstream::{self, Upstream};
use crate::repo::Repo;

const RUNS: u32 = 21;
const UPSTREAM_RUNS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(120);
const TRUE: &str = "/bin/true";

pub(super) fn measure(repo: &Repo, upstream: Option<&Upstream>, print: &mut impl FnMut(Row)) {
    one_node(repo, upstream, print);
    many_nodes(repo, print);
    processes::rates(repo, print);
    output(repo, print);
    idle(repo, print);
    faults::measure(repo, print);
}

/// What takes long and needs much: as many processes as there are to be on a node.
pub(super) fn scale(repo: &Repo, print: &mut impl FnMut(Row)) {
    processes::scale(repo, print);
}

/// How a job answers faults.
pub(super) fn faults(repo: &Repo, print: &mut impl FnMut(Row)) {
    faults::measure(repo, print);
}

fn one_node(repo: &Repo, upstream: Option<&Upstream>, print: &mut impl FnMut(Row)) {
    let [ours, plain] = wall_times(RUNS, LIMIT, "", [dragon(repo, &[TRUE]), Command::new(TRUE)]);
    let alone = Some(plain);
    print(row(
        "dragon /bin/true",
        "ms",
        ours.clone(),
        "/bin/true alone",
        alone,
        Goal::Value(20.0),
    ));
    // Never at the same moment: its pollers disturb.
    let (name, theirs) = match upstream {
        Some(upstream) => {
            let mut command = upstream.launcher(repo);
            command.arg(TRUE);
            let [theirs] = wall_times(UPSTREAM_RUNS, upstream::LIMIT, "", [command]);
            (upstream::NAME, theirs)
        }
        None => (upstream::KEPT, upstream::bring_up()),
    };
    print(row(
        "dragon /bin/true",
        "ms",
        ours,
        name,
        Some(theirs),
        Goal::Ratio(0.01),
    ));

    let Some(python) = python(repo) else { return };
    let words = [python.as_str(), "-c", "pass"];
    let mut bare = Command::new(&python);
    bare.args(["-c", "pass"]);
    let [ours, bare] = wall_times(RUNS, LIMIT, "", [dragon(repo, &words), bare]);
    let difference = match (&ours, &bare) {
        (Ok(ours), Ok(bare)) => {
            let pairs = ours.values.iter().zip(&bare.values);
            Ok(Sample {
                values: pairs.map(|(ours, bare)| ours - bare).collect(),
                ..Sample::default()
            })
        }
        (Err(why), _) | (_, Err(why)) => Err(why.clone()),
    };
    print(row(
        "dragon python -c pass − python",
        "ms",
        difference,
        "-",
        None,
        Goal::Value(20.0),
    ));
    print(row(
        "dragon python -c pass",
        "ms",
        ours,
        "python -c pass alone",
        Some(bare),
        Goal::None,
    ));
}

fn many_nodes(repo: &Repo, print: &mut impl FnMut(Row)) {
    for (name, place, nodes, runs, goals) in [
        (
            "8 nodes in namespaces",
            "apart",
            "8",
            "11",
            [Goal::Value(150.0), Goal::None],
        ),
        (
            "8 daemons on this machine",
            "here",
            "8",
            "11",
            [Goal::None, Goal::None],
        ),
        (
            "256 daemons on this machine",
            "here",
            "256",
            "5",
            [Goal::Value(5000.0), Goal::Value(2000.0)],
        ),
    ] {
        let mut command = program(repo, &["up-and-down", place, nodes, runs]);
        let measured: [Measured; 2] = reported_beside(&mut command, LIMIT);
        for ((what, measured), goal) in ["up", "down"].into_iter().zip(measured).zip(goals) {
            print(row(
                &format!("{name}, {what}"),
                "ms",
                measured,
                "-",
                None,
                goal,
            ));
        }
    }
    // The most that a full tree can have: 16 nodes below, one above, five messages with each.
    for nodes in ["8", "64", "256"] {
        let measured = reported(&mut program(repo, &["messages", nodes]), LIMIT);
        let name = format!("messages of a node, the most of {nodes}");
        print(row(&name, "", measured, "-", None, Goal::Value(85.0)));
    }
    let measured = reported(&mut program(repo, &["requests", "8"]), LIMIT);
    let name = "first node's requests per process, 8 nodes";
    print(row(name, "", measured, "-", None, Goal::Value(0.0)));
}

/// Lines of a process on another node, read from the launcher.
fn output(repo: &Repo, print: &mut impl FnMut(Row)) {
    let gigabyte = (1 << 30).to_string();
    let mut command = program(repo, &["output", &gigabyte, "5"]);
    let [ours, bare, growth] = reported_beside(&mut command, LIMIT);
    let name = "1 GiB of output of another node";
    let half = Goal::RatioAtLeast(0.5);
    print(row(name, "MB/s", ours, "cat", Some(bare), half));
    let name = "the same, growth of a daemon";
    print(row(name, "MiB", growth, "-", None, Goal::Value(4.0)));
}

fn idle(repo: &Repo, print: &mut impl FnMut(Row)) {
    let memory = reported(&mut program(repo, &["memory"]), LIMIT);
    print(row(
        "dragond, idle, resident of its own",
        "MiB",
        memory,
        "-",
        None,
        Goal::Value(10.0),
    ));
    let wake_ups = reported(&mut program(repo, &["wake-ups"]), LIMIT);
    print(row(
        "dragond, idle, wake-ups",
        "/s",
        wake_ups,
        "-",
        None,
        Goal::Value(0.0),
    ));
    let measured: [Measured; 4] = reported_beside(&mut program(repo, &["wake-ups", "3"]), LIMIT);
    let [first, other, needed_by_first, needed] = measured;
    // Heartbeats times neighbours, as the setting has it that was in force; the first one has its timer besides.
    for (name, measured, needed) in [
        ("first of 3, idle, wake-ups", first, needed_by_first),
        ("another of 3, idle, wake-ups", other, needed),
    ] {
        let goal = needed.map_or(Goal::None, |needed| Goal::Value(needed.median()));
        print(row(name, "/s", measured, "-", None, goal));
    }
}

/// The program that measures from outside.
fn program(repo: &Repo, words: &[&str]) -> Command {
    let mut command = Command::new(repo.release("dragon-services-bench"));
    command.args(words);
    command
}

/// The interpreter of the virtual environment itself: the link to it would be resolved again at each start.
fn python(repo: &Repo) -> Option<String> {
    let mut python = repo.in_venv(repo.venv_bin("python"));
    python.args(["-c", "import sys; print(sys.executable)"]);
    let (_, path) = captured(&mut python, LIMIT).ok()?;
    Some(path.trim().to_owned())
}

fn dragon(repo: &Repo, words: &[&str]) -> Command {
    let mut command = repo.in_venv(repo.release("dragon"));
    command.args(words);
    command
}
