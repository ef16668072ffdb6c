//! Settings of one step, in the option of its command line: `--dragon=spmd,pool=8G,interface=ib0,ib1`.

use std::ffi::OsStr;

use anyhow::{Result, anyhow, bail};

use crate::config::keys::{KEYS, Key, LOG, Reach, find, nearest};
use crate::journal;

/// First argument of `dragond` when Slurm's plugin asks, as the user, whether settings make sense; they are the second one.
pub const CHECK: &str = "--check";
/// Exit code when they do not. Any other means that nobody has looked.
const REFUSED: u8 = 2;

/// Looks at settings before a job is submitted, and says what is wrong with them; the exit code for the plugin.
#[must_use]
pub fn check(settings: &OsStr) -> u8 {
    let settings = settings.to_str().ok_or_else(|| anyhow!("is no UTF-8 text"));
    match settings.and_then(parse) {
        Ok(_) => 0,
        Err(why) => {
            journal::say(&format!("--dragon: {why:#}"));
            REFUSED
        }
    }
}

/// Reads what stands behind the mode: settings by the names that they have in files, with commas between them. A piece without
/// an equals sign belongs to the value before it, which is a list then.
///
/// # Errors
/// A sentence that names the setting, its limits, and the nearest one that there is.
pub fn parse(text: &str) -> Result<Vec<(&'static Key, String)>> {
    let mut wishes: Vec<(&'static Key, String)> = Vec::new();
    for piece in text.split(',').filter(|piece| !piece.is_empty()) {
        match (piece.split_once('='), wishes.last_mut()) {
            (Some((name, _)), Some((last, list))) if last.name == LOG.name && is_target(name) => {
                *list += &format!(",{piece}");
            }
            (Some((name, value)), _) => wishes.push((key(name)?, value.to_owned())),
            (None, Some((_, list))) => *list += &format!(",{piece}"),
            (None, None) => bail!(
                "'{piece}' is no setting; they are written as --dragon=MODE,SETTING=VALUE, for example --dragon=head,pool=8G"
            ),
        }
    }
    for (key, value) in &wishes {
        let checked = key.kind.parse(value);
        checked.map_err(|why| anyhow!("{}={value}: {why}", key.name))?;
    }
    Ok(wishes)
}

/// Whether a word is a part of the daemon in a filter of logs, which has commas and equals signs of its own.
fn is_target(name: &str) -> bool {
    name.starts_with("dragon_")
}

fn key(name: &str) -> Result<&'static Key> {
    // As options of the command have them, too.
    let name = name.replace('-', "_");
    let here = || KEYS.iter().filter(|key| key.reach != Reach::Launcher);
    match find(&name) {
        Some(key) if key.reach == Reach::Launcher => {
            bail!("{name}: this setting is for the command dragon; Slurm starts the daemons itself")
        }
        Some(key) => Ok(key),
        None => {
            let like = nearest(&name, here().map(|key| key.name));
            let like = like.map(|like| format!("did you mean {like}? "));
            bail!(
                "there is no setting '{name}'; {}dragon config --sample explains all",
                like.unwrap_or_default()
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(&'static str, String)>, String> {
        let wishes = parse(text).map_err(|error| format!("{error:#}"))?;
        Ok(wishes
            .into_iter()
            .map(|(key, value)| (key.name, value))
            .collect())
    }

    #[test]
    fn settings_are_read_in_every_form() {
        assert_eq!(read(""), Ok(Vec::new()));
        let some = read("pool=8G,interface=ib0,ib1,node-limit=5").unwrap();
        let expected = [
            ("pool", "8G"),
            ("interface", "ib0,ib1"),
            ("node_limit", "5"),
        ];
        assert_eq!(some, expected.map(|(name, value)| (name, value.to_owned())));
        let some = read("log=warn,dragon_daemon=debug,pool=8G").unwrap();
        let expected = [("log", "warn,dragon_daemon=debug"), ("pool", "8G")];
        assert_eq!(some, expected.map(|(name, value)| (name, value.to_owned())));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_way_out() {
        for (text, parts) in [
            ("pol=8G", &["no setting 'pol'", "did you mean pool?"][..]),
            ("zzz=1", &["no setting 'zzz'; dragon config --sample"]),
            ("pool=1K", &["pool=1K", "minimum of 4M"]),
            ("8G", &["'8G' is no setting", "--dragon=head,pool=8G"]),
            ("rsh=ssh", &["rsh", "for the command dragon"]),
            (
                "encrypt=maybe",
                &["encrypt=maybe", "neither true nor false"],
            ),
        ] {
            let why = read(text).unwrap_err();
            for part in parts {
                assert!(why.contains(part), "{text}: {why}");
            }
        }
    }
}
