//! Processes by `posix_spawn` and `waitpid`, one after the other and many at once.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};

/// What is started: it does nothing.
pub const PROGRAM: &str = "/bin/true";

fn start() -> Result<Child> {
    // Without a directory, a user or a hook of its own the standard library uses posix_spawn.
    Ok(Command::new(PROGRAM).stdin(Stdio::null()).spawn()?)
}

/// Starts and joins so many, one after the other: microseconds each.
///
/// # Errors
/// When one cannot be started, or fails.
pub fn one_by_one(count: u32) -> Result<f64> {
    let begin = Instant::now();
    for _ in 0..count {
        ensure!(start()?.wait()?.success(), "{PROGRAM} failed");
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(count))
}

/// Starts so many, then joins them: how many a second.
///
/// # Errors
/// As [`one_by_one`].
pub fn at_once(count: u32) -> Result<f64> {
    let begin = Instant::now();
    let started: Vec<Child> = (0..count).map(|_| start()).collect::<Result<_>>()?;
    for mut child in started {
        ensure!(child.wait()?.success(), "{PROGRAM} failed");
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}
