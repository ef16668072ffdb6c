//! Group `channel`: one message between two processes, one way, beside bare atomics and bare futexes.

use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row};
use crate::bench::sample::{Measured, reported};
use crate::repo::Repo;

const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn measure(repo: &Repo, print: &mut impl FnMut(Row)) {
    let ours = |words: &[&str]| run(repo, "channel-pingpong", words);
    let raw = |name: &str, words: &[&str]| Some(run(repo, name, words));
    print(row(
        "one way, spinning",
        ours(&["--spin"]),
        "raw atomics, spinning",
        raw("raw-spin", &[]),
        Goal::Ratio(2.0),
    ));
    let sleeping = ours(&[]);
    print(row(
        "one way, sleeping",
        sleeping.clone(),
        "raw futex",
        raw("raw-futex", &[]),
        Goal::Ratio(1.2),
    ));
    print(row(
        "one way, sleeping",
        sleeping,
        "raw pipe",
        raw("raw-pipe", &[]),
        Goal::None,
    ));
    print(row(
        "one way, sleeping, same core",
        ours(&["--same-core"]),
        "raw futex, same core",
        raw("raw-futex", &["--same-core"]),
        Goal::Ratio(1.2),
    ));
}

fn run(repo: &Repo, name: &str, words: &[&str]) -> Measured {
    let program = repo.release(name);
    if !program.exists() {
        return Err("not built".to_owned());
    }
    reported(Command::new(program).args(words), LIMIT)
}

fn row(name: &str, ours: Measured, peer_name: &str, peer: Option<Measured>, goal: Goal) -> Row {
    Row {
        group: "channel",
        name: name.to_owned(),
        unit: "us",
        ours,
        peer_name: peer_name.to_owned(),
        peer,
        goal,
    }
}
