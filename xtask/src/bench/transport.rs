//! Group `transport`: two nodes in network namespaces joined by veth, beside bare programs in the same namespaces, and beside
//! Open MPI over TCP.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row};
use crate::bench::sample::{Measured, in_turn, reported, reported_beside};
use crate::bench::upstream;
use crate::repo::{self, Repo};
use crate::setup;

const LIMIT: Duration = Duration::from_secs(120);
/// How often programs that are compared run, in turn.
const TURNS: u32 = 3;
const OPEN_MPI: [&str; 2] = ["openmpi-bin", "libopenmpi-dev"];

pub(super) fn measure(repo: &Repo, print: &mut impl FnMut(Row)) {
    let programs = Programs {
        repo,
        mpi: open_mpi(repo),
    };
    round_trips(&programs, print);
    bandwidth(&programs, print);
    rates(&programs, print);
    beside_open_mpi(&programs, print);
    many(&programs, print);
    lines(&programs, print);
    idle(&programs, print);
}

fn round_trips(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    for (name, mode, goal) in [
        ("pinned", "pinned sleeping immediately", Goal::Ratio(1.5)),
        (
            "acknowledged",
            "pinned sleeping deposited",
            Goal::Ratio(1.5),
        ),
        ("unpinned", "free sleeping immediately", Goal::None),
        ("spinning clients", "free spinning immediately", Goal::None),
    ] {
        let name = format!("round trip 8 B, {name}");
        programs.beside(
            &name,
            "us",
            &format!("round-trip {mode} chain"),
            "bare chain",
            goal,
            print,
        );
    }
    let name = "round trip 8 B, pinned";
    let mode = "round-trip pinned sleeping immediately tcp";
    programs.beside(name, "us", mode, "raw TCP", Goal::None, print);
}

fn bandwidth(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    for (name, mode, goal) in [
        ("1 MiB", "1048576 block 2", Goal::RatioAtLeast(0.8)),
        ("1 MiB, copied", "1048576 copy 2", Goal::RatioAtLeast(0.8)),
        ("1 MiB, one thread", "1048576 block 1", Goal::None),
        ("16 MiB", "16777216 block 2", Goal::RatioAtLeast(0.8)),
        ("16 MiB, copied", "16777216 copy 2", Goal::RatioAtLeast(0.8)),
    ] {
        let name = format!("bandwidth {name}");
        programs.beside(
            &name,
            "GB/s",
            &format!("bandwidth {mode}"),
            "raw TCP stream",
            goal,
            print,
        );
    }
    let goal = Goal::RatioAtLeast(0.4);
    let mode = "encrypted 1048576";
    programs.beside(
        "bandwidth 1 MiB, encrypted",
        "GB/s",
        mode,
        "plain",
        goal,
        print,
    );
}

fn rates(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    for (name, mode, goal) in [
        ("at once", "1 immediately free", Goal::AtLeast(0.5)),
        ("at once, 4 threads", "4 immediately free", Goal::None),
        ("16 threads", "16 deposited free", Goal::None),
    ] {
        let name = format!("rate 64 B, {name}");
        let ours = programs.run(&format!("rate {mode}"));
        print(row(&name, "M/s", ours, None, goal));
    }
}

fn beside_open_mpi(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    for (name, unit, ours, theirs) in [
        (
            "round trip 8 B, unpinned",
            "us",
            "round-trip free sleeping immediately chain",
            "round-trip",
        ),
        (
            "bandwidth 1 MiB",
            "GB/s",
            "bandwidth 1048576 block 2",
            "bandwidth",
        ),
        (
            "rate 64 B, at once",
            "M/s",
            "rate 1 immediately free",
            "rate",
        ),
    ] {
        let commands = [programs.command(ours), programs.mpi(theirs)];
        let [ours, theirs] = in_turn(TURNS, LIMIT, commands);
        print(row(
            name,
            unit,
            ours,
            Some(("Open MPI over TCP", theirs)),
            Goal::None,
        ));
    }
    let name = "round trip 8 B, unpinned";
    let ours = programs.run("round-trip free sleeping immediately chain");
    let theirs = upstream::across_nodes();
    print(row(
        name,
        "us",
        ours,
        Some((upstream::KEPT, theirs)),
        Goal::Ratio(0.01),
    ));
}

fn many(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    for (name, unit, mode, peer, goal) in [
        (
            "64 pairs, 1 MiB, sum",
            "GB/s",
            "pairs 64 1048576",
            "one pair",
            Goal::RatioAtLeast(0.9),
        ),
        (
            "64 pairs, 1 MiB, slowest",
            "GB/s",
            "slowest 64 1048576",
            "its fair share",
            Goal::RatioAtLeast(0.333),
        ),
        (
            "receiver stopped, 1 MiB",
            "GB/s",
            "stopped 1048576",
            "nobody stopped",
            Goal::RatioAtLeast(0.9),
        ),
        (
            "receiver stopped, 64 B",
            "M/s",
            "stopped 64",
            "nobody stopped",
            Goal::RatioAtLeast(0.9),
        ),
    ] {
        programs.beside(name, unit, mode, peer, goal, print);
    }
}

fn lines(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    for (name, mode, peer, goal) in [
        (
            "bandwidth 4 MiB, two networks",
            "networks",
            "one network",
            Goal::RatioAtLeast(1.8),
        ),
        (
            "bandwidth 4 MiB, 4 limited connections",
            "connections 4",
            "one connection",
            Goal::RatioAtLeast(3.0),
        ),
    ] {
        programs.beside(name, "GB/s", mode, peer, goal, print);
    }
}

fn idle(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    for (name, unit, mode, goal) in [
        ("wake-ups", "/s", "idle-wake-ups 256", Goal::Value(1.0)),
        ("memory each", "KiB", "idle-memory 256", Goal::Value(20.0)),
    ] {
        let name = format!("256 idle peers: {name}");
        print(row(&name, unit, programs.run(mode), None, goal));
    }
}

struct Programs<'a> {
    repo: &'a Repo,
    /// The MPI program, or why there is none.
    mpi: Result<PathBuf, String>,
}

impl Programs<'_> {
    fn command(&self, mode: &str) -> Result<Command, String> {
        let program = self.repo.release("transport-bench");
        if !program.exists() {
            return Err("not built".to_owned());
        }
        let mut command = Command::new(program);
        command.args(mode.split(' '));
        Ok(command)
    }

    fn mpi(&self, mode: &str) -> Result<Command, String> {
        let program = self.mpi.clone()?;
        let mut command = self.command("mpi")?;
        command.arg(program).arg(mode);
        Ok(command)
    }

    fn run(&self, mode: &str) -> Measured {
        reported(&mut self.command(mode)?, LIMIT)
    }

    fn beside(
        &self,
        name: &str,
        unit: &'static str,
        mode: &str,
        peer_name: &str,
        goal: Goal,
        print: &mut impl FnMut(Row),
    ) {
        let [ours, peer] = match self.command(&format!("beside {mode}")) {
            Ok(mut command) => reported_beside(&mut command, LIMIT),
            Err(why) => [Err(why.clone()), Err(why)],
        };
        print(row(name, unit, ours, Some((peer_name, peer)), goal));
    }
}

/// Builds our MPI program; installs Open MPI first where it is missing and may be installed.
fn open_mpi(repo: &Repo) -> Result<PathBuf, String> {
    let built = setup::install(&OPEN_MPI).and_then(|()| {
        let program = repo.target("mpi");
        let mut compiler = Command::new("mpicc");
        compiler.args(["-O2", "-o"]).arg(&program);
        repo::run(compiler.arg(repo.path("benches/peers/mpi.c")))?;
        Ok(program)
    });
    built.map_err(|error| format!("no Open MPI: {error:#}"))
}

fn row(
    name: &str,
    unit: &'static str,
    ours: Measured,
    peer: Option<(&str, Measured)>,
    goal: Goal,
) -> Row {
    let (peer_name, peer) = peer.unzip();
    Row {
        name: name.to_owned(),
        unit,
        ours,
        peer_name: peer_name.unwrap_or_default().to_owned(),
        peer,
        goal,
    }
}
