//! Group `python`: the objects of multiprocessing, one program each in benches/python, under each start method.

mod scenarios;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::bench::python::scenarios::{SCENARIOS, Scenario};
use crate::bench::row::{Goal, Row, row};
use crate::bench::sample::{Measured, in_turn, reported, wall_times};
use crate::bench::upstream::{self, Upstream};
use crate::python::ensure_beside;
use crate::repo::Repo;

/// The standard library's start methods; goals of rows are in this order.
const METHODS: [&str; 3] = ["fork", "forkserver", "spawn"];
const LIMIT: Duration = Duration::from_secs(180);

pub(super) fn measure(repo: &Repo, upstream: Option<&Upstream>, print: &mut impl FnMut(Row)) {
    let programs = Programs::new(repo, upstream);
    whole_program(&programs, print);
    for scenario in &SCENARIOS {
        let mut commands = programs.all(scenario.words);
        for command in &mut commands {
            command.args(["--runs", scenario.runs]);
        }
        let measured = in_turn(scenario.turns, LIMIT, commands.map(Ok));
        let beside = programs.upstream(scenario.words).map(|mut launcher| {
            reported(launcher.args(scenario.upstream_options), upstream::LIMIT)
        });
        print_rows(scenario, measured, beside, print);
    }
}

/// Timed from the command line to the exit, starts of interpreters and of the runtime included.
fn whole_program(programs: &Programs<'_>, print: &mut impl FnMut(Row)) {
    const RUNS: u32 = 21;
    const UPSTREAM_RUNS: u32 = 3;
    const PRINTED: &str = "[0, 1, 4, 9]";
    let scenario = Scenario {
        name: "hello world, Pool(cpu_count())",
        words: &["hello_pool.py"],
        unit: "ms",
        stdlib: [Goal::Ratio(1.5), Goal::Ratio(1.0), Goal::None],
        upstream: Goal::Ratio(0.02),
        ..Scenario::EACH
    };
    let measured = wall_times(RUNS, LIMIT, PRINTED, programs.all(scenario.words));
    let beside = programs.upstream(scenario.words).map(|launcher| {
        let [theirs] = wall_times(UPSTREAM_RUNS, upstream::LIMIT, PRINTED, [launcher]);
        theirs
    });
    print_rows(&scenario, measured, beside, print);
}

/// A row for each of [`METHODS`], and one for upstream.
fn print_rows(
    scenario: &Scenario,
    [ours, stdlib @ ..]: [Measured; 4],
    beside: Option<Measured>,
    print: &mut impl FnMut(Row),
) {
    let Scenario { name, unit, .. } = *scenario;
    let ours = ours.map(|mut sample| {
        scenario.note.clone_into(&mut sample.note);
        sample
    });
    for ((method, peer), goal) in METHODS.into_iter().zip(stdlib).zip(scenario.stdlib) {
        let peer_name = format!("stdlib {method}");
        print(row(name, unit, ours.clone(), &peer_name, Some(peer), goal));
    }
    if beside.is_some() {
        print(row(
            name,
            unit,
            ours,
            upstream::NAME,
            beside,
            scenario.upstream,
        ));
    }
}

/// How the programs in benches/python are run.
struct Programs<'a> {
    repo: &'a Repo,
    upstream: Option<&'a Upstream>,
    /// Where NumPy is, for ours and for the peers alike. It belongs to no virtual environment: what is measured must not
    /// depend on what tests have installed there.
    packages: PathBuf,
}

impl<'a> Programs<'a> {
    fn new(repo: &'a Repo, upstream: Option<&'a Upstream>) -> Self {
        let packages = repo.target("python-packages/numpy");
        // Rows that need it say so, too.
        if let Err(error) = ensure_beside(repo, &packages, "numpy", "numpy>=2,<3") {
            eprintln!("{error:#}");
        }
        Self {
            repo,
            upstream,
            packages,
        }
    }

    /// The same under our start method and under [`METHODS`].
    fn all(&self, words: &[&str]) -> [Command; 4] {
        let ours = self.repo.in_venv(self.repo.venv_bin("dragon"));
        let [fork, forkserver, spawn] = METHODS.map(|method| {
            let python = self.repo.in_venv(self.repo.venv_bin("python"));
            self.program(python, words, method)
        });
        [self.program(ours, words, "dragon"), fork, forkserver, spawn]
    }

    fn upstream(&self, words: &[&str]) -> Option<Command> {
        let launcher = self.upstream?.launcher(self.repo);
        Some(self.program(launcher, words, "dragon"))
    }

    fn program(&self, mut launcher: Command, words: &[&str], method: &str) -> Command {
        launcher.current_dir(self.repo.path("benches/python"));
        launcher.env("PYTHONPATH", &self.packages);
        launcher.args(words).args(["--method", method]);
        launcher
    }
}
