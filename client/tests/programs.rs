//! C programs inside a runtime.

#![allow(
    clippy::unwrap_used,
    reason = "a failure here is the failure of a test"
)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use support::{SmallRuntime, compile, crate_dir, run, stdout};

/// Runs a program of `tests/programs`; returns its standard output.
fn program(runtime: &SmallRuntime, name: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &crate_dir().join("tests/programs").join(name));
    stdout(&mut runtime.command(&program))
}

/// Runs a program after which the pool must be empty, whoever was killed in it.
fn leaves_nothing(name: &str) {
    let runtime = SmallRuntime::start();
    program(&runtime, name);
    assert_eq!(runtime.blocks(), 0);
}

#[test]
fn ping() {
    let runtime = SmallRuntime::start();
    let dir = tempfile::tempdir().unwrap();
    let ping = compile(dir.path(), &crate_dir().join("c/examples/ping.c"));
    let said = stdout(&mut runtime.command(&ping));
    assert!(
        said.ends_with("ping, hint 7\nthen: the channel is empty\n"),
        "{said}"
    );
}

#[test]
fn objects() {
    let runtime = SmallRuntime::start();
    let asked = program(&runtime, "objects.c");
    let value = |bytes: &[u8]| format!("{bytes:?}");
    assert!(asked.contains(&value(b"b=c")), "{asked}");
    assert!(asked.contains(&value(b"/tmp")), "{asked}");
    assert!(asked.contains("place: Default"), "{asked}");
    assert_eq!(runtime.blocks(), 0);
}

#[test]
fn who_has_left_keeps_nothing() {
    leaves_nothing("attach.c");
}

#[test]
fn forked_children_use_inherited_handles() {
    program(&SmallRuntime::start(), "fork.c");
}

#[test]
fn pools() {
    let runtime = SmallRuntime::start();
    program(&runtime, "pools.c");
    assert_eq!(runtime.pools(), 0);
    assert_eq!(runtime.blocks(), 0);
}

#[test]
fn memory() {
    leaves_nothing("memory.c");
}

#[test]
fn sets_and_streams() {
    leaves_nothing("streams.c");
}

#[test]
fn channels() {
    leaves_nothing("channels.c");
}

#[test]
fn barriers() {
    leaves_nothing("barriers.c");
}

#[test]
fn locks_conditions_and_semaphores() {
    leaves_nothing("locks.c");
}

#[test]
fn queues_with_priorities() {
    leaves_nothing("priorities.c");
}

#[test]
fn broadcasts() {
    leaves_nothing("broadcasts.c");
}

#[test]
fn a_signal_interrupts_a_wait() {
    let runtime = SmallRuntime::start();
    let dir = tempfile::tempdir().unwrap();
    let wait = compile(dir.path(), &crate_dir().join("tests/programs/wait.c"));
    stdout(runtime.command(&wait).arg("interrupt"));
}

#[test]
fn the_end_of_the_daemon_ends_the_process() {
    let runtime = SmallRuntime::start();
    let dir = tempfile::tempdir().unwrap();
    let wait = compile(dir.path(), &crate_dir().join("tests/programs/wait.c"));
    let mut command = runtime.command(&wait);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "waiting\n");
    runtime.hang_up();
    let mut last_words = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut last_words)
        .unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
    assert!(last_words.starts_with("dragon: the runtime of this process has ended"));
    assert_eq!(last_words.lines().count(), 1, "{last_words}");
}

#[test]
fn ping_without_a_runtime_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let ping = compile(dir.path(), &crate_dir().join("c/examples/ping.c"));
    let refused = |name: &str, code: &str, hint: &str| {
        // Nor is there a daemon that could start one.
        let output = run(std::process::Command::new(&ping)
            .env("DRAGON_RUNTIME", name)
            .env("DRAGON_DAEMON", "/no/such/daemon"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(code) && errors.contains(hint), "{errors}");
    };
    refused("", "code 16", "dragon prog");
    refused(
        "dragon-client-test/nobody",
        "code 16",
        "@dragon-client-test/nobody",
    );
}
