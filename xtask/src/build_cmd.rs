//! `cargo xtask build`: release binaries, then the Python package in `.venv`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};

use crate::python;
use crate::repo::{self, Repo};

/// What goes into the wheel beside the Python sources: name in target/release, place in client/python, mode.
const STAGED: [(&str, &str, u32); 3] = [
    ("libdragon.so", "dragon/libdragon.so.1", 0o644),
    ("dragond", "dragon.data/scripts/dragond", 0o755),
    ("dragon", "dragon.data/scripts/dragon", 0o755),
];

pub(crate) fn build(repo: &Repo) -> Result<()> {
    compile(repo)?;
    python::ensure_venv(&repo.venv())?;
    stage(repo)?;
    let state = package_state(repo)?;
    let stamp = repo.path(".venv/.built-from");
    if fs::read_to_string(&stamp).is_ok_and(|built_from| built_from == state) {
        return Ok(());
    }
    install_package(repo)?;
    fs::write(&stamp, state).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Whether the Slurm plugin can be built here: its build must know for which release of Slurm.
pub(crate) fn slurm_release_known() -> bool {
    std::env::var_os("DRAGON_SLURM_VERSION").is_some_and(|version| !version.is_empty())
        || Path::new("/usr/include/slurm/slurm.h").exists()
}

/// Builds the plugin for another release of Slurm; returns where it lies.
pub(crate) fn build_plugin(repo: &Repo, slurm: &str) -> Result<PathBuf> {
    // The build of the release that is installed here is left alone.
    let target = repo.target(format!("slurm-{slurm}"));
    let mut cargo = repo.cargo();
    cargo
        .args(["build", "--release", "-p", "dragon-spank", "--target-dir"])
        .arg(&target)
        .env("DRAGON_SLURM_VERSION", slurm);
    repo::run(&mut cargo)?;
    Ok(target.join("release/libdragon_spank.so"))
}

fn compile(repo: &Repo) -> Result<()> {
    let mut cargo = repo.cargo();
    cargo.args([
        "build",
        "--release",
        "-p",
        "dragon-daemon",
        "-p",
        "dragon-client",
    ]);
    if slurm_release_known() {
        cargo.args(["-p", "dragon-spank"]);
    } else {
        eprintln!(
            "leaving out the Slurm plugin: no Slurm is installed; set DRAGON_SLURM_VERSION (22.05, say) or install libslurm-dev"
        );
    }
    repo::run(&mut cargo)
}

/// Copies the binaries to where maturin takes them from.
fn stage(repo: &Repo) -> Result<()> {
    for (name, place, mode) in STAGED {
        let from = repo.release(name);
        let to = repo.path("client/python").join(place);
        copy_if_newer(&from, &to, mode)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

fn copy_if_newer(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let source = fs::metadata(from)?;
    let modified = source.modified()?;
    if let Ok(present) = fs::metadata(to)
        && present.len() == source.len()
        && present.modified()? == modified
    {
        return Ok(());
    }
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    let partial = to.with_extension("partial");
    fs::copy(from, &partial)?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(mode))?;
    File::options()
        .write(true)
        .open(&partial)?
        .set_modified(modified)?;
    fs::rename(&partial, to)?;
    Ok(())
}

/// Name, size and time of each file that the wheel is made of.
fn package_state(repo: &Repo) -> Result<String> {
    let mut files = vec![repo.path("Cargo.toml"), repo.path("Cargo.lock")];
    collect(&repo.path("client/python"), &mut files)?;
    files.sort();
    let mut state = String::new();
    for file in files {
        let metadata = fs::metadata(&file)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
        writeln!(state, "{} {} {modified}", file.display(), metadata.len())?;
    }
    Ok(state)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || name == "__pycache__" || name.ends_with(".partial") {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn install_package(repo: &Repo) -> Result<()> {
    let venv = repo.venv();
    python::ensure_module(repo, &venv, "maturin", "maturin>=1.9,<2")?;
    // Only this build's wheel may lie there, so that it is the one that gets installed.
    let wheels = repo.target("wheels");
    if wheels.exists() {
        fs::remove_dir_all(&wheels)
            .with_context(|| format!("cannot empty {}", wheels.display()))?;
    }
    let mut maturin = repo.in_venv(repo.venv_bin("maturin"));
    maturin.args([
        "build",
        "--release",
        "--auditwheel",
        "skip",
        "--manifest-path",
    ]);
    maturin.arg(repo.path("client/python/Cargo.toml"));
    maturin.arg("--interpreter").arg(repo.venv_bin("python"));
    maturin.arg("--out").arg(&wheels);
    repo::run(&mut maturin)?;
    let wheel = only_wheel(&wheels)?;
    let wheel = wheel
        .to_str()
        .context("the path of the checkout is not valid UTF-8, which pip needs")?;
    python::pip_install(repo, &venv, &["--force-reinstall", "--no-deps", wheel])
}

fn only_wheel(dir: &Path) -> Result<PathBuf> {
    let mut wheels: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| format!("maturin made no {}", dir.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    wheels.retain(|path| path.extension().is_some_and(|extension| extension == "whl"));
    match wheels.pop() {
        Some(wheel) if wheels.is_empty() => Ok(wheel),
        _ => bail!("expected one wheel in {}", dir.display()),
    }
}
