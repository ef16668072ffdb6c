//! What stands behind `--dragon=`: a mode, and settings of the runtime with commas between them.
//!
//! The plugin only takes it apart. What the settings mean is known to `dragond`, which looks at them as the user, in srun, before
//! anything is submitted.

use std::ffi::{CStr, OsStr, OsString};
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
        let mut command = Command::new(OsStr::from_bytes(dragond.to_bytes()));
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

/// Options of srun of one letter that take no argument, and may stand before another one in one word.
const FLAGS: &[u8] = b"EIklOQsuvXZ";

/// Whether srun was told to kill the step at the first bad exit of a task (`-K`, `--kill-on-bad-exit`), by the words of its
/// command line: nothing else says it to the tasks. `None`: nothing was said.
pub(crate) fn kills_on_bad_exit(words: &[OsString]) -> Option<bool> {
    words.iter().rev().find_map(|word| {
        let word = word.as_bytes();
        let value = match word.strip_prefix(b"--") {
            Some(long) => {
                let mut parts = long.splitn(2, |byte| *byte == b'=');
                let name = parts.next().unwrap_or_default();
                // As far as getopt lets it be abbreviated.
                let is_it = name.len() > 3 && b"kill-on-bad-exit".starts_with(name);
                is_it.then(|| parts.next().unwrap_or_default())
            }
            None => {
                let letters = word.strip_prefix(b"-")?;
                let flags = letters.iter().take_while(|byte| FLAGS.contains(byte));
                letters[flags.count()..].strip_prefix(b"K")
            }
        };
        value.map(|value| value != b"0")
    })
}

/// Why no runtime can be made of what srun was told, and the way out. `words` are all of its command line, `options` those that
/// stand before the program.
pub(crate) fn refused_shape(words: &[OsString], options: &[OsString]) -> Option<String> {
    let group = ["het-group", "pack-group"].map(|name| value_of(options, name, 5));
    let several = |group: &&[u8]| group.iter().any(|byte| b",-".contains(byte));
    if words.iter().any(|word| word == ":") || group.iter().flatten().any(several) {
        return Some(
            "--dragon: a heterogeneous step is several steps, and a runtime is one: leave out what stands behind ':', or name one --het-group; --dragon=off runs all of it without a runtime".to_owned(),
        );
    }
    let multiple = value_of(options, "multi-prog", 2).is_some()
        || std::env::var_os("SLURM_MULTI_PROG").is_some();
    multiple.then(|| {
        "--dragon: with --multi-prog Slurm starts programs out of a file, and would start them without the runtime: name one program that looks at DRAGON_RANK (--dragon=spmd), or one that starts the others (--dragon)".to_owned()
    })
}

/// The value of the last option of this name, in the same word or the next one; `shortest` letters of the name are enough.
fn value_of<'a>(options: &'a [OsString], name: &str, shortest: usize) -> Option<&'a [u8]> {
    let at = options.iter().rposition(|word| {
        let word = word.as_bytes().strip_prefix(b"--").unwrap_or_default();
        let typed = word.split(|byte| *byte == b'=').next().unwrap_or_default();
        typed.len() >= shortest && name.as_bytes().starts_with(typed)
    })?;
    let mut parts = options[at].as_bytes().splitn(2, |byte| *byte == b'=');
    let next = options.get(at + 1).map(|word| word.as_bytes());
    Some(parts.nth(1).or(next).unwrap_or_default())
}
