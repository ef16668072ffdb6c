//! Into a job of PBS: by the remote shell to one of its hosts, and there by `pbs_attach`, so that what runs is accounted to
//! the job and ends with it.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use dragon_protocol::frame;
use serde::{Deserialize, Serialize};

use crate::adapter::pbs::server;
use crate::config::{Config, keys};
use crate::program::NOT_EXECUTABLE;

/// The word, in the place of a command, by which this command arrives on the host.
pub(in crate::cli) const WORD: &str = "pbs-arrive";

/// What is to be done on the host.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Errand {
    /// The job, by its whole name.
    job: String,
    /// Where the user is; entered where there is such a directory.
    directory: Vec<u8>,
    /// The words of the command, without its name.
    words: Vec<Vec<u8>>,
}

/// The remote shell to a host of the job.
///
/// # Errors
/// When the job does not run.
pub(super) fn task(
    job: &str,
    host: Option<&str>,
    dragon: &Path,
    words: Vec<OsString>,
    terminal: bool,
) -> Result<Command> {
    let described = server::describe(of_server(job))?;
    let id = described.id;
    let first = described.chunks.first().map(|chunk| &*chunk.host);
    let Some(first) = first.filter(|_| described.state == "R") else {
        bail!(
            "job {id} of PBS does not run: its state is {}; qstat -f {id} says more",
            described.state
        );
    };
    let host = host.unwrap_or(first);
    ensure!(!host.starts_with('-'), "'{host}' is no name of a host");
    let config = Config::load(&[])?;
    let mut shell = config.text(&keys::RSH).split_whitespace();
    let program = shell.next().context("--rsh is empty")?;
    let errand = Errand {
        job: id,
        directory: std::env::current_dir()
            .unwrap_or_default()
            .into_os_string()
            .into_vec(),
        words: words.into_iter().map(OsString::into_vec).collect(),
    };
    let mut command = Command::new(program);
    command.args(shell);
    if terminal && Path::new(program).file_name() == Some(OsStr::new("ssh")) {
        command.arg("-t");
    }
    command.arg(host).arg(dragon).arg(WORD).arg(errand.pack()?);
    Ok(command)
}

/// The job as the server knows it, from the name of a runtime, which ends with the number of a process.
fn of_server(job: &str) -> &str {
    match job.rsplit_once('.') {
        Some((job, last)) if super::is_number(last) => job,
        _ => job,
    }
}

/// On the host: becomes the command, as a process of the job. Returns the exit code when that fails.
#[must_use]
pub(in crate::cli) fn arrive(mut arguments: impl Iterator<Item = OsString>) -> u8 {
    let errand = arguments.next().unwrap_or_default();
    let errand = match Errand::unpack(errand.to_str().unwrap_or_default()) {
        Ok(errand) => errand,
        Err(error) => {
            crate::journal::say(&format!("{WORD}: {error:#}; use one release on all hosts"));
            return super::super::RUNTIME_FAILED;
        }
    };
    // Not every directory is on every host.
    let _ = std::env::set_current_dir(OsStr::from_bytes(&errand.directory));
    let attach = server::command("pbs_attach");
    let mut command = Command::new(&attach);
    command.args(["-j", &errand.job]);
    command.arg(std::env::current_exe().unwrap_or_else(|_| "dragon".into()));
    command.args(errand.words.into_iter().map(OsString::from_vec));
    let error = command.exec();
    crate::journal::say(&format!(
        "{}, the way into job {}, cannot be run: {error}",
        attach.display(),
        errand.job
    ));
    NOT_EXECUTABLE
}

impl Errand {
    /// In hexadecimal digits: one word, whatever a remote shell on the way takes for its own.
    fn pack(&self) -> Result<String> {
        let mut bytes = Vec::new();
        frame::encode(self, &mut bytes)?;
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Ok(text)
    }

    fn unpack(text: &str) -> Result<Self> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = |pair: &[u8]| match *pair {
            [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        let bytes = bytes.context("hexadecimal digits are wanted")?;
        let head = bytes.first_chunk().context("it is too short")?;
        let length = frame::body_length(*head)?;
        let body = bytes.get(4..).filter(|body| body.len() == length);
        Ok(frame::decode(body.context("it is not whole")?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errand_arrives_as_it_was() {
        let errand = Errand {
            job: "12[3].pbs.site".to_owned(),
            directory: b"/a b\xff".to_vec(),
            words: vec![b"attach".to_vec(), b"it's $HOME\n".to_vec(), Vec::new()],
        };
        let packed = errand.pack().unwrap();
        assert!(packed.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(Errand::unpack(&packed).unwrap(), errand);
        for end in 0..packed.len() {
            assert!(Errand::unpack(&packed[..end]).is_err(), "{end}");
        }
        for wrong in ["", "xy", "zz00", "é"] {
            assert!(Errand::unpack(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_server_knows_nothing_of_runtimes() {
        for (job, known) in [
            ("12.pbs", "12.pbs"),
            ("12.pbs.4711", "12.pbs"),
            ("12[3].pbs.4711", "12[3].pbs"),
            ("12.pbs.site", "12.pbs.site"),
            ("12", "12"),
        ] {
            assert_eq!(of_server(job), known);
        }
    }
}
