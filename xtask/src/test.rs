//! `cargo xtask test`: installs what the tests need, runs the groups, ends with one line of totals.

mod cpython;
mod other_slurm;
mod totals;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::repo::{self, Repo, shown};
use crate::test::other_slurm::OtherSlurm;
use crate::test::totals::{CargoTest, Counts, Outcome, Pytest};
use crate::{build_cmd, children, python, setup};

/// A group that takes longer than this hangs; it is ended and counted as a failure.
const GROUP_LIMIT: Duration = Duration::from_secs(20 * 60);

const AS_ROOT: &str =
    "it makes namespaces, which needs root; type: sudo -E env PATH=\"$PATH\" cargo xtask test";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Unit, integration and documentation tests of all crates
    Rust,
    /// tests/python, run by pytest in .venv
    Python,
    /// Several nodes on this machine, each in namespaces of its own
    Nodes,
    /// A real Slurm of several nodes
    Slurm,
    /// A real OpenPBS of several nodes, where one is installed in /opt/pbs
    Pbs,
    /// CPython's own tests of multiprocessing under the start method "dragon", on one node and with every child on another
    Cpython,
}

impl Group {
    /// What runs when nothing is named.
    const DEFAULT: [Self; 6] = [
        Self::Rust,
        Self::Python,
        Self::Cpython,
        Self::Nodes,
        Self::Slurm,
        Self::Pbs,
    ];

    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Rust => &["libslurm-dev"],
            Self::Python => &["strace"],
            // What it needs depends on the Python that is found.
            Self::Cpython => &[],
            Self::Nodes | Self::Pbs => &[
                "iproute2",
                "util-linux",
                "procps",
                "openssh-client",
                "openssh-server",
            ],
            Self::Slurm => &setup::DEBIAN_PACKAGES,
        }
    }
}

pub(crate) fn test(
    repo: &Repo,
    groups: &[Group],
    slow: bool,
    release: Option<&str>,
) -> Result<ExitCode> {
    let other = match release {
        Some(_) if groups != [Group::Slurm] => {
            bail!("--release is for the group slurm alone: cargo xtask test slurm --release 24.11")
        }
        Some(release) => Some(OtherSlurm::of_release(repo, release)?),
        None => None,
    };
    let options = Options {
        slow,
        other: other.as_ref(),
    };
    let groups = if groups.is_empty() {
        &Group::DEFAULT[..]
    } else {
        groups
    };
    children::adopt_orphans()?;
    let mut total = Outcome::default();
    for group in prepared(groups, &mut total.counts)? {
        eprintln!("== {group:?}");
        // A group that cannot run is a failure, but no reason to leave out the others.
        match run_group(repo, group, &options) {
            Ok(outcome) => total.add(outcome),
            Err(error) => {
                eprintln!("error: {error:#}");
                total.fail(format!("{group:?}: {error:#}"));
            }
        }
    }
    // Hours of output may stand between a failure and the end.
    if !total.failures.is_empty() {
        println!("== What failed\n{}", total.failures.join("\n"));
    }
    println!("{}", total.counts);
    Ok(if total.counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// How tests are run.
struct Options<'a> {
    /// Also those that take long.
    slow: bool,
    /// Not with the Slurm that is installed here.
    other: Option<&'a OtherSlurm>,
}

/// Installs what the groups need; drops those that cannot run here, and says so.
fn prepared(groups: &[Group], totals: &mut Counts) -> Result<Vec<Group>> {
    let needed: Vec<&str> = groups
        .iter()
        .flat_map(|group| group.packages())
        .copied()
        .collect();
    let missing = setup::missing(&needed);
    if setup::can_install() {
        setup::install(&missing)?;
        return Ok(groups.to_vec());
    }
    let mut left = Vec::new();
    for &group in groups {
        let (runs, remedy) = match group {
            Group::Nodes if !setup::is_root() => (true, Some(AS_ROOT.to_owned())),
            Group::Slurm | Group::Pbs if !setup::is_root() => (false, Some(AS_ROOT.to_owned())),
            Group::Nodes | Group::Slurm | Group::Pbs if !missing.is_empty() => {
                (false, Some(setup::how_to_install(&missing)))
            }
            _ => (true, None),
        };
        if runs {
            left.push(group);
        }
        if let Some(remedy) = remedy {
            let part = if runs { "in part" } else { "whole" };
            println!("SKIPPED group {group:?}, {part}: {remedy}");
            totals.skipped += 1;
        }
    }
    Ok(left)
}

fn run_group(repo: &Repo, group: Group, options: &Options<'_>) -> Result<Outcome> {
    match group {
        Group::Rust => rust(repo),
        Group::Python => pytest(repo),
        Group::Cpython => cpython::run(repo),
        Group::Nodes if setup::is_root() => {
            let other = |name: &str| !name.starts_with("slurm") && !name.starts_with("pbs");
            system(repo, other, options)
        }
        // Daemons side by side on one machine need no namespaces.
        Group::Nodes => system(repo, |name| name.starts_with("local"), options),
        Group::Slurm => system(repo, |name| name.starts_with("slurm"), options),
        Group::Pbs => system(repo, |name| name.starts_with("pbs"), options),
    }
}

fn rust(repo: &Repo) -> Result<Outcome> {
    let mut cargo = repo.cargo();
    // The native Python module links only as part of an interpreter; group `python` tests it.
    cargo.args([
        "test",
        "--workspace",
        "--exclude",
        "dragon-tests",
        "--exclude",
        "dragon-python",
        "--exclude",
        "dragon-torture",
    ]);
    let plugin_left_out = !build_cmd::slurm_release_known();
    if plugin_left_out {
        println!(
            "SKIPPED dragon-spank: no Slurm is installed; type: {}",
            setup::how_to_install(&["libslurm-dev"])
        );
        cargo.args(["--exclude", "dragon-spank"]);
    }
    let mut outcome = cargo_test(&mut cargo)?;
    outcome.counts.skipped += u64::from(plugin_left_out);
    // What is killed there are the release libraries, as they ship.
    outcome.add(cargo_test(repo.cargo().args([
        "test",
        "--release",
        "-p",
        "dragon-torture",
    ]))?);
    Ok(outcome)
}

/// The tests in `tests/tests` whose name is wanted. They drive the release binaries.
fn system(repo: &Repo, wanted: impl Fn(&str) -> bool, options: &Options<'_>) -> Result<Outcome> {
    let targets: Vec<String> = test_targets(repo)?
        .into_iter()
        .filter(|name| wanted(name))
        .collect();
    if targets.is_empty() {
        eprintln!("no such tests yet");
        return Ok(Outcome::default());
    }
    build_cmd::build(repo)?;
    let mut cargo = repo.cargo();
    cargo.args(["test", "-p", "dragon-tests", "--release"]);
    for target in &targets {
        cargo.args(["--test", target]);
    }
    if let Some(other) = options.other {
        other.run_in(repo, &mut cargo);
    }
    let slow: &[&str] = if options.slow {
        &["--include-ignored"]
    } else {
        &[]
    };
    cargo_test_with(&mut cargo, slow)
}

fn test_targets(repo: &Repo) -> Result<Vec<String>> {
    let metadata = repo::read(repo.cargo().args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version=1",
    ]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context("cannot read cargo's metadata")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    Ok(packages
        .filter(|package| package["name"] == "dragon-tests")
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"][0] == "test")
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}

fn cargo_test(cargo: &mut Command) -> Result<Outcome> {
    cargo_test_with(cargo, &[])
}

fn cargo_test_with(cargo: &mut Command, options: &[&str]) -> Result<Outcome> {
    cargo
        .args(["--no-fail-fast", "--", "--show-output"])
        .args(options);
    let mut reader = CargoTest::default();
    let ended = children::run_lines(cargo, GROUP_LIMIT, |line| {
        println!("{line}");
        reader.line(line);
    })?;
    Ok(closed(cargo, reader.outcome(), &ended))
}

fn pytest(repo: &Repo) -> Result<Outcome> {
    let tests = repo.path("tests/python");
    if !tests.exists() {
        eprintln!("no such tests yet");
        return Ok(Outcome::default());
    }
    build_cmd::build(repo)?;
    python::ensure_module(repo, &repo.venv(), "pytest", "pytest>=8,<10")?;
    python::ensure_module(repo, &repo.venv(), "numpy", "numpy>=2,<3")?;
    run_pytest(repo, &tests)
}

fn run_pytest(repo: &Repo, tests: &Path) -> Result<Outcome> {
    let packages = repo.target("python-packages");
    for (name, requirement) in [
        ("cloudpickle", "cloudpickle>=3,<4"),
        ("IPython", "ipython>=9,<10"),
        ("joblib", "joblib>=1.4,<2"),
        ("tqdm", "tqdm>=4.66,<5"),
    ] {
        python::ensure_beside(repo, &packages.join(name), name, requirement)?;
    }
    let mut command = repo.in_venv(repo.venv_bin("python"));
    command
        .env("DRAGON_TEST_PACKAGES", packages)
        .args([
            "-m",
            "pytest",
            "-ra",
            "--color=no",
            "-o",
            "faulthandler_timeout=120",
        ])
        .arg(tests);
    command.current_dir(repo.path(""));
    let mut reader = Pytest::default();
    let ended = children::run_lines(&mut command, GROUP_LIMIT, |line| {
        println!("{line}");
        reader.line(line);
    })?;
    /// What pytest says when a directory holds no test.
    const NOTHING_COLLECTED: Option<i32> = Some(5);
    if ended.status.code() == NOTHING_COLLECTED {
        return Ok(Outcome::default());
    }
    Ok(closed(&command, reader.outcome(), &ended))
}

/// A run that did not end well without naming a failed test (a broken build, a crash, the time limit) counts as one failure.
fn closed(command: &Command, mut outcome: Outcome, ended: &children::Ended) -> Outcome {
    let command = shown(command);
    if ended.timed_out {
        let minutes = GROUP_LIMIT.as_secs() / 60;
        outcome.fail(format!(
            "`{command}` took longer than {minutes} minutes and was ended"
        ));
    } else if !ended.status.success() && outcome.counts.failed == 0 {
        outcome.fail(format!("`{command}` ended with {}", ended.status));
    }
    outcome
}
