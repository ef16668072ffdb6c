//! Group `python`: the objects of multiprocessing, one program each in benches/python, under each start method.

use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row};
use crate::bench::sample::{Measured, reported};
use crate::bench::upstream::{self, Upstream};
use crate::repo::Repo;

const LIMIT: Duration = Duration::from_secs(60);

struct Case {
    name: &'static str,
    program: &'static str,
    unit: &'static str,
    fork: Goal,
    forkserver: Goal,
    upstream: Goal,
}

const CASES: [Case; 5] = [
    Case {
        name: "Process start + join",
        program: "process.py",
        unit: "ms",
        fork: Goal::None,
        forkserver: Goal::Ratio(0.5),
        upstream: Goal::Ratio(0.02),
    },
    Case {
        name: "Pool.map, chunksize 1, per task",
        program: "pool_map.py",
        unit: "us",
        fork: Goal::Ratio(0.5),
        forkserver: Goal::None,
        upstream: Goal::None,
    },
    Case {
        name: "Pipe round trip, 1 B",
        program: "pipe.py",
        unit: "us",
        fork: Goal::Ratio(0.5),
        forkserver: Goal::Ratio(0.5),
        upstream: Goal::Ratio(1.0),
    },
    Case {
        name: "Queue round trip, small",
        program: "queue_round_trip.py",
        unit: "us",
        fork: Goal::Ratio(0.5),
        forkserver: Goal::Ratio(0.5),
        upstream: Goal::Ratio(1.0),
    },
    Case {
        name: "Lock, uncontended",
        program: "lock.py",
        unit: "us",
        fork: Goal::Ratio(2.0),
        forkserver: Goal::Ratio(2.0),
        upstream: Goal::None,
    },
];

pub(super) fn measure(repo: &Repo, upstream: Option<&Upstream>, print: &mut impl FnMut(Row)) {
    for case in CASES {
        let program = repo.path("benches/python").join(case.program);
        let run = |mut command: Command, method: &str, limit| {
            reported(command.args(["--method", method]), limit)
        };
        let stdlib = |method: &str| {
            let mut python = repo.in_venv(repo.venv_bin("python"));
            python.arg(&program);
            run(python, method, LIMIT)
        };
        let mut dragon = repo.in_venv(repo.venv_bin("dragon"));
        dragon.arg(&program);
        let ours = run(dragon, "dragon", LIMIT);
        print(row(
            &case,
            ours.clone(),
            "stdlib fork",
            stdlib("fork"),
            case.fork,
        ));
        print(row(
            &case,
            ours.clone(),
            "stdlib forkserver",
            stdlib("forkserver"),
            case.forkserver,
        ));
        if let Some(upstream) = upstream {
            let mut launcher = upstream.launcher(repo, &program);
            launcher.args(["--runs", "5"]);
            let theirs = run(launcher, "dragon", upstream::LIMIT);
            print(row(&case, ours, upstream::NAME, theirs, case.upstream));
        }
    }
}

fn row(case: &Case, ours: Measured, peer_name: &str, peer: Measured, goal: Goal) -> Row {
    Row {
        name: case.name.to_owned(),
        unit: case.unit,
        ours,
        peer_name: peer_name.to_owned(),
        peer: Some(peer),
        goal,
    }
}
