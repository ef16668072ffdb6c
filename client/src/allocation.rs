//! The runtime that the environment names, also on another node than the one whose socket it names.
//!
//! The script of a job of Slurm has the name of its own node's attach socket in its environment, and every step that it
//! starts inherits that. On other nodes nobody listens there; but the runtime has a daemon on each node of the job, which
//! listens under the same name but for the last two parts. `/proc/net/unix` lists them. Anybody may listen under such a
//! name, so those of other users are passed over.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::OwnedFd;

use dragon_protocol::env::{HEAD, JOB_RUNTIME, RUNTIME, is_of_job};

use crate::attach;
use crate::error::{Error, Result};

/// The name of an attach socket in the environment. One that is set and empty says that there is to be none.
pub(crate) fn named() -> Option<OsString> {
    let job = env::var("SLURM_JOB_ID").unwrap_or_default();
    let here = env::var_os(RUNTIME).filter(|name| !is_of_another_job(name, &job));
    let of_job = || env::var_os(JOB_RUNTIME).filter(|name| !is_of_another_job(name, &job));
    here.or_else(of_job).filter(|name| !name.is_empty())
}

/// Whether a name came with the environment of the job that has submitted this one.
fn is_of_another_job(name: &OsStr, job: &str) -> bool {
    let name = name.to_string_lossy();
    let of_slurm = name
        .split('/')
        .nth(2)
        .and_then(|runtime| runtime.split_once('.'))
        .is_some_and(|(job, step)| job.parse::<u32>().is_ok() && step.parse::<u32>().is_ok());
    of_slurm && !job.is_empty() && !is_of_job(&name, job)
}

/// Whether this process is a head in a runtime that goes on after it.
pub(crate) fn is_head() -> bool {
    // A process that a head has started inherits the variable, and has another number.
    env::var(HEAD).is_ok_and(|pid| pid == std::process::id().to_string())
}

/// Connects to the daemon whose attach socket has this name, or to that of the same runtime on this node.
pub(crate) fn call(name: OsString) -> Result<(OsString, OwnedFd)> {
    let nobody = match attach::call(&name) {
        Err(nobody @ Error::NobodyListens { .. }) => nobody,
        called => return Ok((name, called?)),
    };
    let job = env::var("SLURM_JOB_ID").unwrap_or_default();
    let Some(runtime) = name.to_str().and_then(|name| runtime_of_job(name, &job)) else {
        return Err(nobody);
    };
    // Where the system does not tell, there is nobody else to ask.
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    for other in listening(&String::from_utf8_lossy(&table), runtime) {
        match attach::call(OsStr::new(other)) {
            Err(Error::NobodyListens { .. } | Error::Stranger { .. }) => {}
            called => return Ok((other.into(), called?)),
        }
    }
    Err(nobody)
}

/// What all attach sockets of a runtime begin with, `dragon/UID/JOB.STEP/`, where it is one of this job.
fn runtime_of_job<'a>(name: &'a str, job: &str) -> Option<&'a str> {
    let node_and_rest = name.splitn(4, '/').nth(3)?;
    let length = name.len() - node_and_rest.len();
    is_of_job(name, job).then(|| &name[..length])
}

/// The sockets that listen under names that begin so.
fn listening<'a>(table: &'a str, runtime: &str) -> impl Iterator<Item = &'a str> {
    /// The flag of a socket that listens.
    const LISTENS: u32 = 0x1_0000;
    table.lines().filter_map(move |line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
        let name = fields.get(7)?.strip_prefix('@')?;
        (flags & LISTENS != 0 && name.starts_with(runtime)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_runtime_of_the_job_is_looked_for_elsewhere() {
        let name = "dragon/1000/4711.0/0/00fe";
        assert_eq!(runtime_of_job(name, "4711"), Some("dragon/1000/4711.0/"));
        for (name, job) in [
            (name, ""),
            (name, "471"),
            ("dragon/1000/4711/0/00fe", "4711"),
            ("dragon/1000/4711.0", "4711"),
            ("x", ""),
        ] {
            assert_eq!(runtime_of_job(name, job), None, "{name} {job}");
        }
    }

    #[test]
    fn a_runtime_of_the_job_that_submitted_this_one_does_not_count() {
        for (name, job, other) in [
            ("dragon/1000/4711.0/0/00fe", "4711", false),
            ("dragon/1000/4711.0/0/00fe", "4712", true),
            ("dragon/1000/4711.0/0/00fe", "", false),
            ("dragon/1000/8231/0/00fe", "4712", false),
            ("dragon/1000/12.server/0/00fe", "4712", false),
            ("", "4712", false),
        ] {
            assert_eq!(
                is_of_another_job(OsStr::new(name), job),
                other,
                "{name} {job}"
            );
        }
    }

    #[test]
    fn the_daemon_of_this_node_is_found() {
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
            0: 2 0 00010000 0001 01 1 @dragon/1000/4711.0/2/00ff\n\
            0: 3 0 00000000 0001 03 2 @dragon/1000/4711.0/2/00ff\n\
            0: 2 0 00010000 0001 01 3 @dragon/1000/4711.01/2/00fd\n\
            0: 2 0 00010000 0001 01 4 /run/dragon/1000/4711.0/2/x\n\
            0: 2 0 00010000 0001 01 5\n";
        let found: Vec<_> = listening(table, "dragon/1000/4711.0/").collect();
        assert_eq!(found, ["dragon/1000/4711.0/2/00ff"]);
    }
}
