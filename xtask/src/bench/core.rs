//! Group `core`: pools and channels between processes, beside the least that the machine allows and beside peers.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row};
use crate::bench::sample::{Measured, in_turn, reported, reported_beside};
use crate::repo::{self, Repo};

const LIMIT: Duration = Duration::from_secs(120);
/// How often programs that are compared run, in turn.
const TURNS: u32 = 5;
const PEERS: &str = "benches/peers/Cargo.toml";

pub(super) fn measure(repo: &Repo, print: &mut impl FnMut(Row)) {
    let programs = Programs::new(repo);
    latency(&programs, print);
    rates(&programs, print);
    bandwidth(&programs, print);
    memory(&programs, print);
}

fn latency(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    for (name, mode, peer_name, goal) in [
        ("one way 8 B, spinning", "spinning", "raw atomics", 2.0),
        ("one way 8 B, sleeping", "sleeping", "raw futex", 1.2),
        (
            "one way 8 B, sleeping, same core",
            "sleeping-same-core",
            "raw futex",
            1.2,
        ),
    ] {
        let [ours, peer] = programs.columns(&["beside", mode]);
        print(row(name, "us", ours, peer_name, peer, Goal::Ratio(goal)));
    }
    let commands = [
        programs.ours("channel-pingpong", &["--spin", "--runs", "4"]),
        programs.peer(&["iceoryx2", "--runs", "3"]),
        programs.peer(&["crossbeam", "--runs", "3"]),
    ];
    let [ours, iceoryx2, crossbeam] = in_turn(TURNS, LIMIT, commands);
    for (peer_name, peer, goal) in [
        ("iceoryx2", iceoryx2, Goal::Ratio(0.5)),
        ("crossbeam (threads)", crossbeam, Goal::None),
    ] {
        let name = "one way 8 B, spinning";
        print(row(name, "us", ours.clone(), peer_name, peer, goal));
    }
    let commands = [
        programs.ours("channel-pingpong", &["--runs", "2", "--rounds", "2000"]),
        programs.ours("raw-pipe", &["--runs", "2", "--rounds", "2000"]),
        programs.raw(&["socket", "--runs", "2"]),
    ];
    let [ours, pipe, socket] = in_turn(TURNS, LIMIT, commands);
    for (peer_name, peer) in [("raw pipe", pipe), ("raw Unix socket", socket)] {
        let name = "one way 8 B, sleeping";
        print(row(name, "us", ours.clone(), peer_name, peer, Goal::None));
    }
}

fn rates(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    let [ours, ring] = programs.columns(&["beside", "rate"]);
    print(row(
        "rate 64 B, 1:1",
        "M/s",
        ours,
        "raw Vyukov ring",
        ring,
        Goal::RatioAtLeast(0.6),
    ));
    let commands = [
        programs.core(&["rate", "1", "1", "--runs", "3"]),
        programs.peer(&["crossbeam-rate", "--runs", "3"]),
    ];
    let [ours, peer] = in_turn(TURNS, LIMIT, commands);
    print(row(
        "rate 64 B, 1:1",
        "M/s",
        ours,
        "crossbeam (threads)",
        peer,
        Goal::None,
    ));
    let four = programs.run(programs.core(&["rate", "4", "4"]));
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
        let [ours, copies, malloc, pipe, socket] = programs.columns(&["bandwidth", bytes]);
        print(row(
            &format!("{what}, memory as from malloc"),
            "GB/s",
            malloc,
            "raw two copies",
            copies.clone(),
            Goal::RatioAtLeast(0.9),
        ));
        for (peer_name, peer, goal) in [
            ("raw two copies", copies, Goal::RatioAtLeast(0.9)),
            ("raw pipe", pipe, Goal::RatioAtLeast(3.0)),
            ("raw Unix socket", socket, Goal::None),
        ] {
            print(row(&what, "GB/s", ours.clone(), peer_name, peer, goal));
        }
    }
    let [large, small] = programs.columns(&["handover", "67108864", "65536"]);
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
    let mode = ["alloc", "64", "1024", "32768", "262144", "1048576"];
    let [small, page, slab, extent, large, bitmap] = programs.columns(&mode);
    for (name, ours) in [
        ("64 B", small),
        ("1 KiB", page),
        ("32 KiB", slab),
        ("256 KiB", extent),
        ("1 MiB", large),
    ] {
        let what = format!("alloc + free {name}");
        let bare = bitmap.clone();
        print(row(
            &what,
            "ns",
            ours,
            "raw bitmap",
            bare,
            Goal::Value(60.0),
        ));
    }
    let [ours, bitmap, registers] = programs.columns(&["scaling"]);
    for (peer_name, peer, goal) in [
        ("raw bitmap's scaling", bitmap, Goal::RatioAtLeast(0.8)),
        ("scaling of bare arithmetic", registers, Goal::None),
    ] {
        let name = "alloc + free 64 B, 2 processes";
        print(row(name, "x", ours.clone(), peer_name, peer, goal));
    }
    print(row(
        "recovery, 100000 other allocations",
        "us",
        programs.run(programs.core(&["recovery", "100000"])),
        "without others",
        programs.run(programs.core(&["recovery", "0"])),
        Goal::Ratio(1.2),
    ));
    let idle = programs.run(programs.core(&["idle"]));
    print(alone(
        "10000 idle channels, 1000 waiters",
        "ms/s",
        idle,
        Goal::Value(0.5),
    ));
    let connect = programs.run(programs.raw(&["connect"]));
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
    let channel = programs.run(programs.core(&["channel-memory"]));
    print(alone(
        "memory of an empty channel",
        "x",
        channel,
        Goal::Value(1.1),
    ));
    let pool = programs.run(programs.core(&["pool-memory"]));
    print(alone(
        "memory of an empty pool",
        "KiB",
        pool,
        Goal::Value(64.0),
    ));
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

    fn ours(&self, name: &str, words: &[&str]) -> Result<Command, String> {
        let program = self.repo.release(name);
        if !program.exists() {
            return Err("not built".to_owned());
        }
        let mut command = Command::new(program);
        command.args(words);
        Ok(command)
    }

    fn core(&self, words: &[&str]) -> Result<Command, String> {
        self.ours("core-bench", words)
    }

    fn raw(&self, words: &[&str]) -> Result<Command, String> {
        self.ours("raw-memory", words)
    }

    fn peer(&self, words: &[&str]) -> Result<Command, String> {
        let mut command = Command::new(self.peers.clone()?);
        command.args(words);
        Ok(command)
    }

    fn run(&self, command: Result<Command, String>) -> Measured {
        reported(&mut command?, LIMIT)
    }

    /// What one program measures in turn.
    fn columns<const N: usize>(&self, words: &[&str]) -> [Measured; N] {
        match self.core(words) {
            Ok(mut command) => reported_beside(&mut command, LIMIT),
            Err(why) => std::array::from_fn(|_| Err(why.clone())),
        }
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
