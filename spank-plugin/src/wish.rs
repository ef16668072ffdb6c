//! What stands behind `--dragon=`: a mode, and settings of the runtime with commas between them.
//!
//! The plugin only takes it apart. What the settings mean is known to `dragond`, which looks at them as the user, in srun, before
//! anything is submitted.

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use slurm_spank_sys as spank;

/// What a user wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// What the program is to the runtime.
    pub(crate) mode: String,
    /// `NAME=VALUE,…`, as typed.
    pub(crate) settings: String,
}

/// How long `dragond` may take to look at the settings: a shared file system may be slow.
const LIMIT_MS: i32 = 10_000;
/// Exit code of `dragond --check` for settings that make no sense.
const REFUSED: i32 = 2;

impl Wish {
    /// Reads the option's value. Without a mode it is the usual one.
    pub(crate) fn read(text: &str) -> Self {
        let (first, rest) = text.split_once(',').unwrap_or((text, ""));
        let (mode, settings) = match first {
            "" => ("head", rest),
            _ if first.contains('=') => ("head", text),
            _ => (first, rest),
        };
        Self {
            mode: mode.to_owned(),
            settings: settings.to_owned(),
        }
    }

    /// Has `dragond` look at the settings, which says itself what is wrong with them. Where it cannot be asked here, the nodes
    /// look.
    pub(crate) fn makes_sense(&self, dragond: &CStr) -> bool {
        if self.settings.is_empty() {
            return true;
        }
        let mut command = Command::new(std::ffi::OsStr::from_bytes(dragond.to_bytes()));
        command.args(["--check", &self.settings]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let Ok(mut child) = command.spawn() else {
            return true;
        };
        if !spank::ends_within(child.id(), LIMIT_MS) {
            // It may have ended in between.
            let _ = child.kill();
        }
        child
            .wait()
            .map_or(true, |status| status.code() != Some(REFUSED))
    }
}
