//! What happens to a job: how long until its sentence is said, and until nothing is left of it.

use std::time::Duration;

use super::program;
use crate::bench::row::{Goal, Row, row};
use crate::bench::sample::{Measured, reported_beside};
use crate::repo::Repo;

const RUNS: &str = "3";
/// Of all runs of a fault.
const LIMIT: Duration = Duration::from_secs(300);

/// What the program calls them, and what they are.
const FAULTS: [(&str, &str); 9] = [
    ("daemon-killed", "daemon killed"),
    ("host-lost", "host vanishes"),
    ("cut", "node is cut off"),
    ("cut-one-way", "node can only hear"),
    ("daemon-stopped", "daemon stopped"),
    ("first-killed", "first daemon killed, names again"),
    ("first-host-lost", "first host vanishes, names again"),
    ("launcher-killed", "launcher killed, all are ending"),
    ("head-killed", "head killed, all are ending"),
];

pub(super) fn measure(repo: &Repo, print: &mut impl FnMut(Row)) {
    for (key, name) in FAULTS {
        let measured: [Measured; 3] =
            reported_beside(&mut program(repo, &["faults", key, RUNS]), LIMIT);
        let [said, over, limit] = measured;
        // The limit is the setting that was in force.
        let goal = limit.map_or(Goal::None, |limit| Goal::Value(limit.median()));
        print(row(name, "s", said, "-", None, goal));
        let name = format!("{name}, nothing left");
        print(row(&name, "s", over, "-", None, Goal::None));
    }
}
