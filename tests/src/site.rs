//! The product as a site would have it installed: a folder that every user of every node can read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::local::{binary, repository};

/// An installed product.
#[derive(Debug)]
pub struct Site {
    root: PathBuf,
}

impl Site {
    /// Installs the daemon, the command, the plugin, the examples and a virtual environment with the wheel into `root`.
    ///
    /// # Errors
    /// When something was not built.
    pub fn install(root: &Path) -> Result<Self, String> {
        let text =
            |error: std::io::Error| format!("cannot install into {}: {error}", root.display());
        for folder in ["bin", "lib", "examples"] {
            fs::create_dir_all(root.join(folder)).map_err(text)?;
        }
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(text)?;
        for name in ["dragon", "dragond"] {
            fs::copy(binary(name), root.join("bin").join(name)).map_err(text)?;
        }
        for entry in fs::read_dir(repository().join("examples"))
            .map_err(text)?
            .flatten()
        {
            if entry.path().is_file() {
                fs::copy(entry.path(), root.join("examples").join(entry.file_name()))
                    .map_err(text)?;
            }
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// Installs the plugin too.
    ///
    /// # Errors
    /// When it was not built.
    pub fn with_plugin(self) -> Result<Self, String> {
        let built = binary("dragond").with_file_name("libdragon_spank.so");
        fs::copy(&built, self.plugin()).map_err(|error| {
            format!(
                "{}: {error}; build it with cargo xtask build",
                built.display()
            )
        })?;
        Ok(self)
    }

    /// Installs a virtual environment with the wheel too.
    ///
    /// # Errors
    /// When there is no wheel, or no interpreter that every user can run.
    pub fn with_python(self) -> Result<Self, String> {
        let wheels = binary("dragond").with_file_name("").join("../wheels");
        let wheel = fs::read_dir(&wheels)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let wheel = wheel
            .filter(|path| path.extension().is_some_and(|end| end == "whl"))
            .max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok());
        let wheel = wheel.ok_or_else(|| {
            format!(
                "no wheel in {}; build it with cargo xtask build",
                wheels.display()
            )
        })?;
        let venv = self.venv();
        // An interpreter below /root, as pyenv makes them, is hidden from ordinary users.
        done(
            Command::new("/usr/bin/python3")
                .args(["-m", "venv", "--without-pip"])
                .arg(&venv),
        )?;
        let packages = fs::read_dir(venv.join("lib"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("site-packages"));
        let packages = packages
            .into_iter()
            .find(|path| path.is_dir())
            .ok_or("the virtual environment has no site-packages")?;
        done(
            Command::new("/usr/bin/python3")
                .args(["-m", "zipfile", "-e"])
                .arg(&wheel)
                .arg(&packages),
        )?;
        for name in ["dragon", "dragond"] {
            fs::copy(
                self.root.join("bin").join(name),
                venv.join("bin").join(name),
            )
            .map_err(|error| error.to_string())?;
        }
        Ok(self)
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The plugin.
    #[must_use]
    pub fn plugin(&self) -> PathBuf {
        self.root.join("lib/libdragon_spank.so")
    }

    /// The daemon that the plugin names.
    #[must_use]
    pub fn dragond(&self) -> PathBuf {
        self.root.join("bin/dragond")
    }

    /// The virtual environment.
    #[must_use]
    pub fn venv(&self) -> PathBuf {
        self.root.join("venv")
    }

    /// An example program.
    #[must_use]
    pub fn example(&self, name: &str) -> String {
        self.root
            .join("examples")
            .join(name)
            .to_string_lossy()
            .into_owned()
    }
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}
