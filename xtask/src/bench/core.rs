//! Group `core`: pools and channels between processes, beside the least that the machine allows and beside peers.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row};
use crate::bench::sample::{Measured, Sample, reported};
use crate::repo::{self, Repo};

const LIMIT: Duration = Duration::from_secs(120);
const PEERS: &str = "benches/peers/Cargo.toml";

pub(super) fn measure(repo: &Repo, print: &mut impl FnMut(Row)) {
    let programs = Programs::new(repo);
    latency(&programs, print);
    rates(&programs, print);
    bandwidth(&programs, print);
    memory(&programs, print);
}

fn latency(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    let ours = |words: &[&str]| programs.ours("channel-pingpong", words);
    let raw = |name: &str, words: &[&str]| programs.ours(name, words);
    let spinning = ours(&["--spin"]);
    let spun = spinning.clone();
    print(row(
        "one way 8 B, spinning",
        "us",
        spun,
        "raw atomics",
        raw("raw-spin", &[]),
        Goal::Ratio(2.0),
    ));
    let peer = programs.peer("iceoryx2");
    print(row(
        "one way 8 B, spinning",
        "us",
        spinning.clone(),
        "iceoryx2",
        peer,
        Goal::Ratio(0.5),
    ));
    let peer = programs.peer("crossbeam");
    print(row(
        "one way 8 B, spinning",
        "us",
        spinning,
        "crossbeam (threads)",
        peer,
        Goal::None,
    ));
    let sleeping = ours(&[]);
    for (name, peer, goal) in [
        ("raw futex", raw("raw-futex", &[]), Goal::Ratio(1.2)),
        ("raw pipe", raw("raw-pipe", &[]), Goal::None),
        (
            "raw Unix socket",
            raw("raw-memory", &["socket"]),
            Goal::None,
        ),
    ] {
        print(row(
            "one way 8 B, sleeping",
            "us",
            sleeping.clone(),
            name,
            peer,
            goal,
        ));
    }
    let same = ours(&["--same-core"]);
    let peer = raw("raw-futex", &["--same-core"]);
    print(row(
        "one way 8 B, sleeping, same core",
        "us",
        same,
        "raw futex",
        peer,
        Goal::Ratio(1.2),
    ));
}

fn rates(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    let one = programs.core(&["rate", "1", "1"]);
    let ring = programs.raw(&["ring"]);
    print(row(
        "rate 64 B, 1:1",
        "M/s",
        one.clone(),
        "raw Vyukov ring",
        ring,
        Goal::RatioAtLeast(0.6),
    ));
    let peer = programs.peer("crossbeam-rate");
    print(row(
        "rate 64 B, 1:1",
        "M/s",
        one,
        "crossbeam (threads)",
        peer,
        Goal::None,
    ));
    let four = programs.core(&["rate", "4", "4"]);
    print(alone(
        "rate 64 B, 4:4, oversubscribed",
        "M/s",
        four,
        Goal::AtLeast(2.0),
    ));
}

fn bandwidth(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    for (name, bytes) in [
        ("64 KiB", "65536"),
        ("1 MiB", "1048576"),
        ("16 MiB", "16777216"),
        ("64 MiB", "67108864"),
    ] {
        let what = format!("bandwidth {name}");
        let ours = programs.core(&["bandwidth", bytes]);
        for (peer_name, mode, goal) in [
            ("raw two copies", "copies", Goal::RatioAtLeast(0.9)),
            ("raw pipe", "pipe-bandwidth", Goal::RatioAtLeast(3.0)),
            ("raw Unix socket", "socket-bandwidth", Goal::None),
        ] {
            let peer = programs.raw(&[mode, bytes]);
            print(row(&what, "GB/s", ours.clone(), peer_name, peer, goal));
        }
    }
    let large = programs.core(&["handover", "67108864"]);
    let small = programs.core(&["handover", "65536"]);
    print(row(
        "hand-over 64 MiB",
        "us",
        large,
        "hand-over 64 KiB",
        small,
        Goal::Ratio(1.2),
    ));
}

fn memory(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    let bare = [programs.raw(&["bitmap"]), programs.raw(&["bitmap", "2"])];
    let mut two = None;
    for (name, bytes) in [
        ("64 B", "64"),
        ("1 KiB", "1024"),
        ("32 KiB", "32768"),
        ("256 KiB", "262144"),
        ("1 MiB", "1048576"),
    ] {
        let one = programs.core(&["alloc", bytes]);
        let what = format!("alloc + free {name}");
        print(row(
            &what,
            "ns",
            one.clone(),
            "raw bitmap",
            bare[0].clone(),
            Goal::Value(60.0),
        ));
        if bytes == "64" {
            two = Some((one, programs.core(&["alloc", bytes, "2"])));
        }
    }
    if let Some((one, both)) = two {
        let [alone, together] = bare;
        let (ours, peer) = (scaling(&one, &both), scaling(&alone, &together));
        print(row(
            "alloc + free 64 B, 2 processes",
            "x",
            ours.clone(),
            "raw bitmap's scaling",
            peer,
            Goal::RatioAtLeast(0.8),
        ));
        let registers = [&["registers"][..], &["registers", "2"]].map(|mode| programs.raw(mode));
        print(row(
            "alloc + free 64 B, 2 processes",
            "x",
            ours,
            "scaling of bare arithmetic",
            scaling(&registers[0], &registers[1]),
            Goal::None,
        ));
    }
    print(row(
        "recovery, 100000 other allocations",
        "us",
        programs.core(&["recovery", "100000"]),
        "without others",
        programs.core(&["recovery", "0"]),
        Goal::Ratio(1.2),
    ));
    let idle = programs.core(&["idle"]);
    print(alone(
        "10000 idle channels, 1000 waiters",
        "ms/s",
        idle,
        Goal::Value(0.5),
    ));
    let connect = programs.raw(&["connect"]);
    for (name, mode, goal) in [
        ("attach to a runtime", "attach", Goal::Ratio(3.0)),
        ("attach and detach", "attach-detach", Goal::None),
    ] {
        print(row(
            name,
            "us",
            programs.inside(mode),
            "raw connect + 3 fds",
            connect.clone(),
            goal,
        ));
    }
    let channel = programs.core(&["channel-memory"]);
    print(alone(
        "memory of an empty channel",
        "x",
        channel,
        Goal::Value(1.1),
    ));
    let pool = programs.core(&["pool-memory"]);
    print(alone(
        "memory of an empty pool",
        "KiB",
        pool,
        Goal::Value(64.0),
    ));
}

/// How much more two processes do than one: twice the time of one over that of two.
fn scaling(one: &Measured, two: &Measured) -> Measured {
    let (one, two) = (one.clone()?, two.clone()?);
    let alone = one.median();
    Ok(Sample {
        values: two.values.iter().map(|time| 2.0 * alone / time).collect(),
        ..two
    })
}

struct Programs<'a> {
    repo: &'a Repo,
    /// The peers, or why there are none.
    peers: Result<PathBuf, String>,
}

impl<'a> Programs<'a> {
    fn new(repo: &'a Repo) -> Self {
        Self {
            repo,
            peers: peers(repo),
        }
    }

    fn ours(&self, name: &str, words: &[&str]) -> Measured {
        let program = self.repo.release(name);
        if !program.exists() {
            return Err("not built".to_owned());
        }
        reported(Command::new(program).args(words), LIMIT)
    }

    fn core(&self, words: &[&str]) -> Measured {
        self.ours("core-bench", words)
    }

    fn raw(&self, words: &[&str]) -> Measured {
        self.ours("raw-memory", words)
    }

    fn peer(&self, name: &str) -> Measured {
        let program = self.peers.clone()?;
        reported(Command::new(program).arg(name), LIMIT)
    }

    /// Inside a runtime.
    fn inside(&self, mode: &str) -> Measured {
        let mut command = self.repo.in_venv(self.repo.venv_bin("dragon"));
        command.arg(self.repo.release("core-bench")).arg(mode);
        reported(&mut command, LIMIT)
    }
}

/// Builds the peers, which have a lock file of their own and are no part of the workspace.
fn peers(repo: &Repo) -> Result<PathBuf, String> {
    let folder = repo.target("peers");
    let built = repo::run(
        repo.cargo()
            .args(["build", "--release", "--locked", "--manifest-path"])
            .arg(repo.path(PEERS))
            .arg("--target-dir")
            .arg(&folder),
    );
    match built {
        Ok(()) => Ok(folder.join("release/peers")),
        Err(error) => Err(format!("{error:#}")),
    }
}

fn row(
    name: &str,
    unit: &'static str,
    ours: Measured,
    peer_name: &str,
    peer: Measured,
    goal: Goal,
) -> Row {
    Row {
        group: "core",
        name: name.to_owned(),
        unit,
        ours,
        peer_name: peer_name.to_owned(),
        peer: Some(peer),
        goal,
    }
}

fn alone(name: &str, unit: &'static str, ours: Measured, goal: Goal) -> Row {
    Row {
        peer: None,
        ..row(name, unit, ours, "", Err(String::new()), goal)
    }
}
