//! Another release of Slurm than the one that is installed here: that of another Debian, in a folder of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::repo::{self, Repo};
use crate::{build_cmd, setup};

/// Which Debian has which release.
const RELEASES: [(&str, &str); 2] = [("22.05", "bookworm"), ("24.11", "trixie")];
/// What the tests need of it.
const PACKAGES: &str =
    "slurmctld,slurmd,slurm-client,munge,iproute2,util-linux,procps,python3,python3-venv,binutils";
/// Where ordinary users can look and only root can write; it stays for the next time.
const FOLDER: &str = "/var/lib";

/// A Debian with a Slurm, and the plugin for that.
#[derive(Debug)]
pub(crate) struct OtherSlurm {
    root: PathBuf,
    plugin: PathBuf,
}

impl OtherSlurm {
    /// Makes it, where it is not there from the last time.
    pub(crate) fn of_release(repo: &Repo, release: &str) -> Result<Self> {
        let Some((_, suite)) = RELEASES.iter().find(|(known, _)| *known == release) else {
            let known = RELEASES.map(|(known, _)| known).join(", ");
            bail!("--release {release}: no Debian is known that has it; known are {known}");
        };
        if !setup::can_install() {
            bail!(
                "--release {release}: making a Debian in a folder needs root and apt; type: sudo -E env PATH=\"$PATH\" cargo xtask test slurm --release {release}"
            );
        }
        let root = PathBuf::from(FOLDER).join(format!("dragon-debian-{suite}"));
        let complete = root.join("etc/dragon-complete");
        if !complete.exists() {
            if root.exists() {
                fs::remove_dir_all(&root)
                    .with_context(|| format!("cannot empty {}", root.display()))?;
            }
            setup::install(&["debootstrap"])?;
            eprintln!("making a Debian ({suite}) in {}", root.display());
            let mut debootstrap = Command::new("debootstrap");
            debootstrap
                .arg("--variant=minbase")
                .arg(format!("--include={PACKAGES}"))
                .arg(suite)
                .arg(&root)
                .arg(archive()?);
            repo::run(&mut debootstrap)?;
            fs::write(&complete, "")?;
        }
        let plugin = build_cmd::build_plugin(repo, release)?;
        Ok(Self { root, plugin })
    }

    /// Has the programs that this cargo runs run in there.
    pub(crate) fn run_in(&self, repo: &Repo, cargo: &mut Command) {
        let runner = format!(
            "CARGO_TARGET_{}_LINUX_GNU_RUNNER",
            format!("{}_UNKNOWN", std::env::consts::ARCH).to_uppercase()
        );
        let shown = [repo.path(""), repo.target("")].map(|path| path.display().to_string());
        let place = repo.release("libdragon_spank.so");
        cargo
            .env(runner, repo.path("tests/rig/inside"))
            .env("RIG_DEBIAN", &self.root)
            .env("RIG_SHOWN", shown.join(" "))
            .env(
                "RIG_PLUGIN",
                format!("{} {}", self.plugin.display(), place.display()),
            );
    }
}

/// The archive that apt uses here.
fn archive() -> Result<String> {
    let mut apt = Command::new("apt-get");
    apt.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]);
    let all = repo::read(&mut apt)?;
    let is_debian = |uri: &&str| uri.trim_end_matches('/').ends_with("/debian");
    let found = all.lines().find(is_debian);
    found
        .map(str::to_owned)
        .context("apt uses no archive of Debian here that could be taken another release from")
}
