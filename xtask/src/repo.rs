//! Where things lie in the checkout, and how commands are run in it.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The checkout that this program was built from.
#[derive(Debug)]
pub(crate) struct Repo {
    root: PathBuf,
    target: PathBuf,
}

impl Repo {
    pub(crate) fn find() -> Result<Self> {
        let manifest_dir =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = PathBuf::from(manifest_dir)
            .parent()
            .context("the xtask crate does not lie in a workspace")?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => env::current_dir()?.join(dir),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// A path below the root of the checkout.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// A path below cargo's target directory.
    pub(crate) fn target(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.target.join(relative)
    }

    /// A file that `cargo build --release` makes.
    pub(crate) fn release(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    pub(crate) fn venv(&self) -> PathBuf {
        self.path(".venv")
    }

    pub(crate) fn venv_bin(&self, name: &str) -> PathBuf {
        self.path(".venv/bin").join(name)
    }

    /// Cargo, run in the root of the checkout.
    pub(crate) fn cargo(&self) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(&self.root);
        command
    }

    /// A program with the environment of an activated `.venv`, without what cargo added to this one.
    pub(crate) fn in_venv(&self, program: impl AsRef<Path>) -> Command {
        self.in_some_venv(&self.venv(), program)
    }

    pub(crate) fn in_some_venv(&self, venv: &Path, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        for (key, _) in env::vars_os() {
            let name = key.to_string_lossy();
            if name == "CARGO"
                || name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
            {
                command.env_remove(&key);
            }
        }
        match self.library_path_without_cargo() {
            Some(path) => command.env("LD_LIBRARY_PATH", path),
            None => command.env_remove("LD_LIBRARY_PATH"),
        };
        let mut path = OsString::from(venv.join("bin"));
        if let Some(rest) = env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        command.env("PATH", path);
        command.env("VIRTUAL_ENV", venv);
        command.env_remove("PYTHONHOME");
        command
    }

    /// `cargo run` puts its own directories in front of `LD_LIBRARY_PATH`; a user's program must not see them.
    fn library_path_without_cargo(&self) -> Option<OsString> {
        let path = env::var_os("LD_LIBRARY_PATH")?;
        let kept: Vec<_> = env::split_paths(&path)
            .filter(|dir| !dir.starts_with(&self.target))
            .filter(|dir| {
                !dir.iter()
                    .any(|part| part == "rustlib" || part == "toolchains")
            })
            .collect();
        if kept.is_empty() {
            return None;
        }
        env::join_paths(kept).ok()
    }
}

/// Runs a command to its end, its output on our stderr; an error names the command and how it ended.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(io::stderr());
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and returns its stdout.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        bail!("`{}` ended with {}", shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let mut text = name.to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}
