//! Test programs that run themselves: a test starts its own file with nothing but the test `child`, which does what a
//! variable of its environment tells it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use dragon::{Child, Deadline, Spawn};

use crate::local;

/// What makes a test program run nothing else.
pub const ALONE: [&str; 4] = ["--exact", "child", "--nocapture", "--quiet"];

fn program() -> PathBuf {
    std::env::current_exe().expect("a running test has a path")
}

/// As the program of `dragon` with these options, the output captured.
#[must_use]
pub fn head(options: &[&str]) -> Command {
    let program = program();
    let options = options.iter().map(OsStr::new);
    let head = ALONE.iter().map(OsStr::new);
    local::dragon(options.chain([program.as_os_str()]).chain(head))
}

/// As a program of its own.
#[must_use]
pub fn command() -> Command {
    let mut command = Command::new(program());
    command.args(ALONE);
    command
}

/// As a process of the runtime that this process belongs to.
#[must_use]
pub fn spawn() -> Spawn {
    ALONE.iter().fold(Spawn::program(program()), Spawn::arg)
}

/// The numbers in the first line with the word `ready` of a process whose output is piped.
///
/// # Panics
/// When it ends before it says that.
pub fn ready(process: &mut Child) -> Vec<u32> {
    let out = process.stdout.as_mut().expect("its output is piped");
    let mut text = String::new();
    loop {
        let mut lines = text.split_inclusive('\n');
        let whole = |line: &&str| line.contains("ready") && line.ends_with('\n');
        if let Some(line) = lines.find(whole) {
            let words = line.split_whitespace();
            return words.filter_map(|word| word.parse().ok()).collect();
        }
        let piece = out.receive(Deadline::Never).expect("it can be read");
        let piece = piece.unwrap_or_else(|| panic!("it ended after {text:?}"));
        text.push_str(&String::from_utf8_lossy(&piece.to_vec()));
    }
}
