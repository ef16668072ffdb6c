//! CPython's own tests of `multiprocessing`, those of the interpreter in `.venv`, under the start method "dragon": all on one
//! node, and again with every child on the other of two.

use anyhow::{Context, Result};

use crate::repo::{self, Repo};
use crate::test::closed;
use crate::test::totals::{self, Outcome};
use crate::{build_cmd, children, setup};

/// Classes that run at a time, each in a runtime of its own. They sleep more than they compute, on two CPUs too.
const JOBS: &str = "2";

pub(crate) fn run(repo: &Repo) -> Result<Outcome> {
    build_cmd::build(repo)?;
    ensure_tests(repo)?;
    let mut both = Outcome::default();
    for placement in ["local", "remote"] {
        println!("== CPython's tests, children placed: {placement}");
        both.add(run_placed(repo, placement)?);
    }
    Ok(both)
}

fn run_placed(repo: &Repo, placement: &str) -> Result<Outcome> {
    let mut command = repo.in_venv(repo.venv_bin("python"));
    command
        .env("DRAGON_PLACEMENT", placement)
        .arg(repo.path("tests/python/cpython/suite.py"))
        .args(["--jobs", JOBS, "--logs"])
        .arg(repo.target("cpython").join(placement));
    command.current_dir(repo.path(""));
    let mut outcome = Outcome::default();
    let ended = children::run_lines(&mut command, super::GROUP_LIMIT, |line| {
        println!("{line}");
        if let Some(totals) = totals::own_totals(line) {
            outcome.counts = totals;
        } else if line.starts_with("FAILED ") {
            outcome
                .failures
                .push(format!("{line} (children: {placement})"));
        }
    })?;
    Ok(closed(&command, outcome, &ended))
}

/// Debian has the tests in a package of their own; other Pythons have them beside the library.
fn ensure_tests(repo: &Repo) -> Result<()> {
    const FIND: &str = "import importlib.util, sys\n\
        try: found = importlib.util.find_spec('test._test_multiprocessing')\n\
        except ModuleNotFoundError: found = None\n\
        print('' if found else 'libpython{}.{}-testsuite'.format(*sys.version_info))";
    let mut python = repo.in_venv(repo.venv_bin("python"));
    let missing = repo::read(python.args(["-c", FIND]))?;
    match missing.trim() {
        "" => Ok(()),
        package => setup::install(&[package]).context(
            "the Python in .venv lacks its own tests (the module test._test_multiprocessing)",
        ),
    }
}
