//! Running the `dragon` command on this machine, with a watchdog, and looking for what it left behind.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// After this time a test's command is killed and the test fails: nothing that is tested here takes seconds.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// A binary of the product, built in the profile in which the tests are built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    // target/PROFILE/deps/TEST, or target/PROFILE/PROGRAM.
    let mut folders = test.ancestors().skip(1);
    let folder = folders.find(|folder| !folder.ends_with("deps"));
    let folder = folder.expect("it lies in a folder");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: build the workspace first (cargo xtask build)",
        path.display()
    );
    path
}

/// The `dragon` command with arguments, its output captured.
pub fn dragon<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(binary("dragon"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a finished command did.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// Runs a command to its end; a command that hangs is killed and fails the test.
///
/// # Panics
/// When the command does not start, or does not end in time.
pub fn run(command: &mut Command) -> Finished {
    finish(command.spawn().expect("the command starts"))
}

/// Runs a command with the given standard input.
///
/// # Panics
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Finished {
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let input = input.to_vec();
    // A thread, since the command may not read all of it.
    thread::spawn(move || stdin.write_all(&input));
    finish(child)
}

/// Waits for the end of a command that was started before.
///
/// # Panics
/// When it does not end in time.
#[must_use]
pub fn finish(child: Child) -> Finished {
    let pid = child.id();
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = result.recv_timeout(WATCHDOG) else {
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        let partial = result
            .recv_timeout(Duration::from_secs(5))
            .ok()
            .and_then(Result::ok);
        panic!(
            "the command did not end within {WATCHDOG:?}; it said: {:?}",
            partial.map(finished)
        );
    };
    finished(output.expect("the output is read"))
}

fn finished(output: Output) -> Finished {
    Finished {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// What a runtime could leave behind on a machine: processes, abstract sockets, files in `/dev/shm` and `/tmp`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Looks around now, for traces of the runtimes that the process `launcher` started.
    #[must_use]
    pub fn of(launcher: u32) -> Self {
        let mut found = BTreeSet::new();
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let job = format!("/{launcher}/");
        found.extend(
            sockets
                .lines()
                .filter(|line| line.contains("@dragon/") && line.contains(&job))
                .map(str::to_owned),
        );
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let mark = "DRAGON_RUNTIME=dragon/";
            let belongs = environment.split(|b| *b == 0).any(|variable| {
                let variable = String::from_utf8_lossy(variable);
                variable.starts_with(mark) && variable.contains(&job)
            });
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if belongs || command.contains(&format!("/proc/{launcher}/fd/")) {
                found.insert(format!(
                    "{} {}",
                    entry.file_name().display(),
                    command.replace('\0', " ")
                ));
            }
        }
        for folder in ["/dev/shm", "/tmp"] {
            let names = fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned());
            found.extend(names.filter(|name| {
                name.starts_with("dragon-") && name.contains(&launcher.to_string())
            }));
        }
        Self(found)
    }

    /// Fails the test when something is left. What was killed a moment ago may still be on its way out, so this looks
    /// again until the watchdog's time is over.
    ///
    /// # Panics
    /// When something is left.
    pub fn assert_none(launcher: u32) {
        eventually_empty("this machine", || {
            Self::of(launcher)
                .0
                .into_iter()
                .collect::<Vec<_>>()
                .join("\n")
        });
    }
}

/// Fails the test unless `look` finds nothing before the watchdog's time is over.
///
/// # Panics
/// When it still finds something then.
pub fn eventually_empty(place: &str, look: impl Fn() -> String) {
    let begin = Instant::now();
    loop {
        let left = look();
        if left.is_empty() {
            return;
        }
        assert!(begin.elapsed() < WATCHDOG, "left on {place}:\n{left}");
        pause(Duration::from_millis(25));
    }
}

/// Lets time pass, in a test that waits for something that tells nobody.
#[expect(
    clippy::disallowed_methods,
    reason = "what is watched here is the process table, which has no event"
)]
pub fn pause(time: Duration) {
    thread::sleep(time);
}

/// Compiles a C program of the client's tests into a folder, where it finds the library under the name that it has when it is
/// installed.
#[must_use]
pub fn c_program(folder: &Path, name: &str) -> PathBuf {
    let program = folder.join(name);
    let library = binary("libdragon.so");
    std::os::unix::fs::symlink(&library, folder.join("libdragon.so.1"))
        .expect("the folder can be written");
    let client = repository().join("client");
    let compiled = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(client.join("c"))
        .arg(client.join("tests/programs").join(name).with_extension("c"))
        .arg(&library)
        .arg(format!("-Wl,-rpath,{}", folder.display()))
        .arg("-o")
        .arg(&program)
        .status();
    assert!(compiled.expect("there is a C compiler").success());
    program
}

/// The repository's root, where the examples are.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the repository")
}
