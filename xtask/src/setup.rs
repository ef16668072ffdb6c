//! Installs Debian packages, without letting their daemons start.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::repo;

/// What the tests with a real Slurm and with several nodes need, and the plugin's build.
pub(crate) const DEBIAN_PACKAGES: [&str; 9] = [
    "slurmctld",
    "slurmd",
    "slurm-client",
    "libslurm-dev",
    "munge",
    "iproute2",
    "util-linux",
    "procps",
    "valgrind",
];

/// What the tests of nodes behind ssh need besides.
pub(crate) const SSH_PACKAGES: [&str; 2] = ["openssh-client", "openssh-server"];

/// Installs those of `packages` that are missing.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    if !can_install() {
        bail!(
            "these packages are missing and only root can install them: {}",
            how_to_install(&missing)
        );
    }
    eprintln!("installing {}", missing.join(" "));
    let _policy = PolicyRc::deny()?;
    // The lists of a fresh image are empty or old; fetching them takes a while, so only then.
    if apt_install(&missing).is_err() {
        repo::run(apt_get().arg("update"))?;
        apt_install(&missing)?;
    }
    Ok(())
}

/// The packages of `packages` that are not installed, each once.
pub(crate) fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let mut missing = Vec::new();
    for package in packages {
        if !missing.contains(package) && !is_installed(package) {
            missing.push(*package);
        }
    }
    missing
}

/// What to type to install `packages`.
pub(crate) fn how_to_install(packages: &[&str]) -> String {
    format!("sudo apt-get install {}", packages.join(" "))
}

pub(crate) fn can_install() -> bool {
    is_root() && Path::new("/usr/bin/apt-get").exists()
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let mut apt = apt_get();
    apt.args(["install", "--yes", "--no-install-recommends"])
        .args(packages);
    repo::run(&mut apt)
}

fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.args([
        "--quiet",
        "-o",
        "DPkg::Lock::Timeout=300",
        "-o",
        "Dpkg::Use-Pty=0",
    ]);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

/// While it lives, packages start no daemons: `policy-rc.d` answers 101, "not allowed".
struct PolicyRc {
    ours: bool,
}

impl PolicyRc {
    const PATH: &str = "/usr/sbin/policy-rc.d";

    fn deny() -> Result<Self> {
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(Self::PATH);
        match opened {
            Ok(mut file) => {
                let policy = Self { ours: true };
                file.write_all(b"#!/bin/sh\nexit 101\n")?;
                Ok(policy)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self { ours: false }),
            Err(error) => Err(error).context(format!("cannot create {}", Self::PATH)),
        }
    }
}

impl Drop for PolicyRc {
    fn drop(&mut self) {
        if self.ours {
            // A policy that stays behind would keep the machine's services from starting.
            if let Err(error) = fs::remove_file(Self::PATH) {
                eprintln!("cannot remove {}: {error}; remove it by hand", Self::PATH);
            }
        }
    }
}
