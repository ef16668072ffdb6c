//! Finds a Python, and makes the virtual environments that builds, tests and benchmarks use.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::repo::{self, Repo};
use crate::setup;

/// The `.venv` of the checkout, made when it is missing or broken.
pub(crate) fn ensure_venv(venv: &Path) -> Result<()> {
    if is_new_enough(&venv.join("bin/python")) {
        return Ok(());
    }
    let python = find_python()?;
    eprintln!("making {} with {}", venv.display(), python.display());
    repo::run(
        Command::new(&python)
            .args(["-m", "venv", "--clear"])
            .arg(venv),
    )
}

/// Installs packages into a virtual environment unless `module` can be imported there already.
pub(crate) fn ensure_module(
    repo: &Repo,
    venv: &Path,
    module: &str,
    requirement: &str,
) -> Result<()> {
    let python = venv.join("bin/python");
    if answers(Command::new(&python).args(["-c", &format!("import {module}")])) {
        return Ok(());
    }
    pip_install(repo, venv, &[requirement])
        .with_context(|| format!("cannot install {requirement} into {}", venv.display()))
}

/// Installs a package into a folder of its own, where only those see it that look there, unless it is there already.
pub(crate) fn ensure_beside(
    repo: &Repo,
    folder: &Path,
    module: &str,
    requirement: &str,
) -> Result<()> {
    if folder.join(module).exists() {
        return Ok(());
    }
    let args = [
        "--target".as_ref(),
        folder.as_os_str(),
        requirement.as_ref(),
    ];
    pip_install(repo, &repo.venv(), &args)
        .with_context(|| format!("cannot install {requirement} into {}", folder.display()))
}

/// `pip install ARGS…` in a virtual environment.
pub(crate) fn pip_install(repo: &Repo, venv: &Path, args: &[impl AsRef<OsStr>]) -> Result<()> {
    let mut pip = repo.in_some_venv(venv, venv.join("bin/python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]);
    repo::run(pip.args(args))
}

/// The system's Python where it will do, since it is the one that other users on the machine can read too; else the one on PATH.
fn find_python() -> Result<PathBuf> {
    let candidates = [Path::new("/usr/bin/python3"), Path::new("python3")];
    if let Some(found) = usable(&candidates) {
        return Ok(found);
    }
    if setup::can_install() {
        setup::install(&["python3", "python3-venv"])?;
        if let Some(found) = usable(&candidates) {
            return Ok(found);
        }
    }
    bail!(
        "no Python of version 3.11 or newer with the modules venv and ensurepip was found \
         (looked at /usr/bin/python3 and at python3 on PATH); on Debian: apt-get install python3 python3-venv"
    )
}

fn usable(candidates: &[&Path]) -> Option<PathBuf> {
    candidates
        .iter()
        .find(|python| {
            is_new_enough(python)
                && answers(Command::new(python).args(["-c", "import venv, ensurepip"]))
        })
        .map(|python| python.to_path_buf())
}

fn is_new_enough(python: &Path) -> bool {
    answers(Command::new(python).args(["-c", "import sys; sys.exit(sys.version_info < (3, 11))"]))
}

fn answers(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
