//! Programs that are started without a launcher: the first operation that needs a runtime starts one.
//!
//! The test runs itself again as such programs (`child`).

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::thread;

use dragon::{Channel, ChannelOptions, Deadline, Error, Session, Spawn};
use dragon_protocol::Code;
use dragon_tests::child;
use dragon_tests::local::{Finished, Traces, WATCHDOG, binary, finish};

const ROLE: &str = "DRAGON_TEST_START";

/// This test as a program without a launcher.
fn program(role: &str) -> Command {
    let mut command = child::command();
    command
        .env(ROLE, role)
        .env("DRAGON_DAEMON", binary("dragond"))
        .env_remove("DRAGON_RUNTIME")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it to its end; nothing may be left when it has ended, not even for a moment.
fn ends(command: &mut Command) -> Finished {
    let child = command.spawn().unwrap();
    let pid = child.id();
    // Its output ends with the runtime, which has it too: that the process itself has waited is looked at here.
    let ended = has_ended(pid);
    let left = Traces::of(pid);
    let done = finish(child);
    assert_eq!(left, Traces::default(), "{done:?}");
    assert!(ended, "{done:?}");
    done
}

/// Waits for the end of a child without reaping it.
fn has_ended(pid: u32) -> bool {
    let status = format!("/proc/{pid}/stat");
    let begin = std::time::Instant::now();
    while begin.elapsed() < WATCHDOG {
        let stat = std::fs::read_to_string(&status).unwrap_or_default();
        if stat
            .rsplit_once(')')
            .is_none_or(|(_, rest)| rest.starts_with(" Z"))
        {
            return true;
        }
        dragon_tests::local::pause(std::time::Duration::from_millis(2));
    }
    false
}

#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "works" => works(),
        "races" => races(),
        "lingers" => lingers(),
        "only attaches" => only_attaches(),
        "cannot start" => cannot_start(),
        "rejoins" => rejoins(),
        "is interrupted" => is_interrupted(),
        other => panic!("{other}"),
    }
}

#[test]
fn the_first_operation_starts_a_runtime_that_is_gone_with_the_program() {
    let done = ends(&mut program("works"));
    assert_eq!(done.code, Some(0), "{done:?}");
    // The processes of the runtime write where the program does.
    assert!(done.out.contains("MARK out\n"), "{done:?}");
    assert!(done.err.contains("MARK err\n"), "{done:?}");
}

fn works() {
    let channel = Channel::create(&ChannelOptions::default()).unwrap();
    channel.send(b"hello", 0, Deadline::Never).unwrap();
    let shell = Spawn::program("/bin/sh")
        .arg("-c")
        .arg("echo MARK out; echo MARK err >&2");
    let child = shell.start().unwrap();
    assert_eq!(child.process.wait(Deadline::Never).unwrap(), 0);
    let nodes = Session::attach().unwrap().nodes().unwrap();
    assert_eq!(nodes.nodes.len(), 1);
    // What was started and still runs goes with the program.
    Spawn::program("/bin/sleep").arg("1000").start().unwrap();
}

const C_PROGRAM: &str = r#"
#include <dragon.h>
#include <stdio.h>

int main(void)
{
    dragon_runtime runtime;
    if (dragon_runtime_info(&runtime) != 0) {
        fprintf(stderr, "%s\n", dragon_last_error());
        return 1;
    }
    printf("nodes %u\n", runtime.nodes);
    return 0;
}
"#;

#[test]
fn a_c_program_needs_no_launcher() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("main.c"), folder.path().join("main"));
    std::fs::write(&source, C_PROGRAM).unwrap();
    let library = binary("libdragon.so");
    let header = dragon_tests::local::repository().join("client/c");
    let compiled = Command::new("cc")
        .arg("-I")
        .arg(header)
        .arg(&source)
        .arg(&library)
        .arg("-o")
        .arg(&program)
        .status();
    assert!(compiled.unwrap().success());
    // The name by which programs know the library; the daemon lies beside the file itself.
    std::os::unix::fs::symlink(&library, folder.path().join("libdragon.so.1")).unwrap();
    let mut command = Command::new(&program);
    command
        .env("LD_LIBRARY_PATH", folder.path())
        .env_remove("DRAGON_RUNTIME")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let done = ends(&mut command);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "nodes 1\n"),
        "{done:?}"
    );
}

#[test]
fn threads_that_come_first_together_get_one_runtime() {
    let done = ends(&mut program("races"));
    assert_eq!(done.code, Some(0), "{done:?}");
}

fn races() {
    let together = Barrier::new(4);
    let attach = || {
        together.wait();
        Session::attach_or_start().unwrap().runtime()
    };
    let runtimes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(attach)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(
        runtimes.iter().all(|runtime| *runtime == runtimes[0]),
        "{runtimes:?}"
    );
}

#[test]
fn a_killed_program_leaves_nothing() {
    let mut child = program("lingers").spawn().unwrap();
    let pid = child.id();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("MARK ready")));
    assert_ne!(Traces::of(pid), Traces::default());
    child.kill().unwrap();
    let _ = finish(child);
    Traces::assert_none(pid);
}

fn lingers() {
    Spawn::program("/bin/sleep").arg("1000").start().unwrap();
    let shell = "sleep 1000 & setsid sleep 1000 & echo MARK ready; sleep 1000";
    let child = Spawn::program("/bin/sh")
        .arg("-c")
        .arg(shell)
        .start()
        .unwrap();
    child.process.wait(Deadline::Never).unwrap();
}

#[test]
fn a_killed_daemon_ends_the_program() {
    let mut child = program("lingers").spawn().unwrap();
    let pid = child.id();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("MARK ready")));
    let daemon = daemon_of(pid);
    let killed = Command::new("kill")
        .args(["-9", &daemon.to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let done = finish(child);
    assert_eq!(done.code, None);
    assert!(done.err.contains("ended unexpectedly"), "{done:?}");
}

/// The daemon that a program started.
fn daemon_of(program: u32) -> u32 {
    daemons_of(program)[0]
}

/// The daemons that a program started: they have the program's end of output.
fn daemons_of(program: u32) -> Vec<u32> {
    let output = std::fs::read_link(format!("/proc/{program}/fd/1")).unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let folder = Path::new("/proc").join(pid.to_string());
        std::fs::read_to_string(folder.join("comm")).is_ok_and(|name| name.trim() == "dragond")
            && std::fs::read_link(folder.join("fd/1")).is_ok_and(|link| link == output)
    })
    .collect()
}

#[test]
fn a_runtime_that_has_ended_gives_a_notice_and_another_is_started() {
    let done = ends(program("works").env("DRAGON_RUNTIME", "dragon/0/none/0/0"));
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(
        done.err
            .contains("@dragon/0/none/0/0, where nobody listens"),
        "{done:?}"
    );
    assert!(done.out.contains("MARK out\n"), "{done:?}");
}

#[test]
fn whoever_only_attaches_starts_nothing() {
    let done = ends(&mut program("only attaches"));
    assert_eq!(done.code, Some(0), "{done:?}");
}

fn only_attaches() {
    assert!(matches!(Session::attach(), Err(Error::NoRuntime)));
}

#[test]
fn what_keeps_a_runtime_from_starting_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "no program").unwrap();
    let cases = [
        (
            "/no/such/daemon",
            "DRAGON_DAEMON names /no/such/daemon, which is no program",
        ),
        (file.to_str().unwrap(), "which is no program"),
        ("/bin/true", "ended at once"),
    ];
    for (daemon, text) in cases {
        let done = ends(program("cannot start").env("DRAGON_DAEMON", daemon));
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.out.contains(text), "{done:?}");
    }
    std::fs::create_dir(folder.path().join("dragon")).unwrap();
    std::fs::write(folder.path().join("dragon/dragond.toml"), "pol = 1\n").unwrap();
    let done = ends(program("cannot start").env("XDG_CONFIG_HOME", folder.path()));
    assert!(done.out.contains("did you mean 'pool'"), "{done:?}");
}

fn cannot_start() {
    let error = Session::attach_or_start().unwrap_err();
    assert_eq!(error.code(), Code::NoRuntime);
    println!("{error}");
}

#[test]
fn a_program_that_leaves_its_runtime_finds_it_again() {
    let done = ends(&mut program("rejoins"));
    assert_eq!(done.code, Some(0), "{done:?}");
}

fn rejoins() {
    let first = Session::attach_or_start().unwrap().runtime();
    Session::detach().unwrap();
    assert!(Session::current().is_none());
    assert_eq!(Session::attach().unwrap().runtime(), first);
}

#[test]
fn signals_during_the_start_make_no_second_runtime() {
    let done = ends(&mut program("is interrupted"));
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// A program whose thread gets signals, as a profiler sends them: each attempt to attach is interrupted, until the daemon is
/// there.
fn is_interrupted() {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: all zeros is an action without flags, so that waits are not taken up again.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
    // SAFETY: the handler does nothing, and nobody wants the old one.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    // SAFETY: a plain number.
    let own = unsafe { libc::pthread_self() };
    let (interrupted, done) = (AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            // On a busy machine no attempt might ever be quick enough.
            while !done.load(Relaxed) && interrupted.load(Relaxed) < 20 {
                // SAFETY: the thread waits for this one.
                unsafe { libc::pthread_kill(own, libc::SIGUSR1) };
                dragon_tests::local::pause(std::time::Duration::from_micros(500));
            }
        });
        loop {
            match Session::attach_or_start() {
                Err(error) if error.code() == Code::Interrupted => {
                    interrupted.fetch_add(1, Relaxed);
                }
                attached => {
                    attached.unwrap();
                    break done.store(true, Relaxed);
                }
            }
        }
    });
    let interrupted = interrupted.into_inner();
    assert!(interrupted > 0);
    let daemons = daemons_of(std::process::id()).len();
    assert_eq!(daemons, 1, "after {interrupted} interrupts");
}
