//! The `dragon` command in surroundings that are not as one would wish: signals that somebody blocked or ignored, readers that have
//! gone, full disks, narrow limits, remote shells that run nothing, and a launcher that is killed at any moment of its start.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use dragon_tests::job::{Job, send};
use dragon_tests::local::{Finished, binary, dragon, pause, run};
use rustix::process::Signal;

/// Runs words of the shell in which `$DRAGON` is the command.
fn shell(script: &str) -> Finished {
    let mut sh = Command::new("sh");
    sh.args(["-c", script])
        .env("DRAGON", binary("dragon"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    run(&mut sh)
}

/// Starts of daemons and of their head take a few milliseconds: the kills are spread over them.
#[test]
fn a_launcher_that_is_killed_while_it_starts_leaves_nothing() {
    for (options, steps, step) in [
        (&[][..], 50, Duration::from_micros(400)),
        (
            &["-N3", "--local-nodes", "--bring-up-limit", "3600"],
            40,
            Duration::from_millis(1),
        ),
    ] {
        for number in 0..steps {
            let words = options.iter().copied().chain(["sh", "-c", "sleep 1000"]);
            let mut job = Job::start(&mut dragon(words)).unwrap();
            pause(step * number);
            assert!(send(job.launcher(), Signal::KILL));
            let ended = job.ends();
            assert_eq!(ended.code, Some(128 + 9), "{options:?} {number}: {ended:?}");
        }
    }
}

#[test]
fn output_that_cannot_be_written_is_told_and_no_success() {
    let done = shell("\"$DRAGON\" --label full echo hi >/dev/full");
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(
        done.err.contains("output of the job is lost") && done.err.contains("No space left"),
        "{done:?}"
    );
    // The head's own is its own business, as it is without us.
    let done = shell("\"$DRAGON\" sh -c 'echo hi || exit 3' >/dev/full");
    assert_eq!(done.code, Some(3), "{done:?}");
}

#[test]
fn who_writes_for_a_reader_that_has_gone_ends() {
    for options in ["--label full", "-N2 --local-nodes --label node"] {
        // Where the shell has no PIPESTATUS a file says how the command ended.
        let done = shell(&format!(
            "{{ \"$DRAGON\" {options} yes; echo $? >&2; }} | head -n 1 >/dev/null"
        ));
        assert_eq!(done.err.trim(), "141", "{options}: {done:?}");
    }
}

#[test]
fn a_pipe_that_does_not_block_loses_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut command = dragon(["--label", "full", "seq", "1", "100000"]);
    let mut child = command.stdout(writer).spawn().unwrap();
    drop(command);
    let count = std::io::BufRead::lines(std::io::BufReader::new(reader)).count();
    assert_eq!(count, 100_000);
    assert!(child.wait().unwrap().success());
}

#[test]
fn signals_that_the_starter_blocked_are_heard() {
    let done = shell("env --block-signal=CHLD,TERM,USR1 \"$DRAGON\" sh -c 'exit 7'");
    assert_eq!(done.code, Some(7), "{done:?}");
}

#[test]
fn signals_that_the_starter_ignored_stay_ignored() {
    // As `nohup` does it, and a shell for what it runs in the background.
    let ignored = "grep SigIgn /proc/self/status";
    let done = shell(&format!("trap '' HUP INT QUIT; exec \"$DRAGON\" {ignored}"));
    let mask = done.out.trim().rsplit('\t').next().unwrap();
    let mask = u64::from_str_radix(mask, 16).unwrap();
    assert_eq!(mask & 0b111, 0b111, "{done:?}");
    let done = shell(
        "trap '' HUP; \"$DRAGON\" sh -c 'echo up; sleep 1' >/dev/null & sleep 0.5; kill -HUP $!; wait $!",
    );
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[test]
fn a_first_host_on_which_nothing_was_started_is_an_error() {
    let done = run(&mut dragon(["--hostlist", "a", "--rsh", "true", "true"]));
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(
        done.err
            .contains("the daemon of node 0 (a) was not started"),
        "{done:?}"
    );
}

#[test]
fn a_daemon_in_a_folder_with_blanks_is_found_behind_a_remote_shell() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("it's a bin");
    fs::create_dir(&bin).unwrap();
    for name in ["dragon", "dragond"] {
        fs::copy(binary(name), bin.join(name)).unwrap();
    }
    let shell = folder.path().join("rsh");
    fs::write(&shell, "#!/bin/sh\nshift; exec sh -c \"$*\"\n").unwrap();
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(bin.join("dragon"));
    command
        .args(["--hostlist", "localhost", "--rsh"])
        .arg(&shell)
        .args(["echo", "hi"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let done = run(&mut command);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "hi\n"),
        "{done:?}"
    );
}

#[test]
fn many_daemons_need_no_higher_limit_of_open_files_than_one_has() {
    let done = shell("ulimit -Sn 40; \"$DRAGON\" -N64 --local-nodes sh -c 'ulimit -Sn'");
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "40\n"),
        "{done:?}"
    );
}

#[test]
fn files_that_may_not_be_as_large_as_a_pool_are_told() {
    let done = shell("ulimit -f 100; \"$DRAGON\" true");
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(done.err.contains("ulimit -f"), "{done:?}");
}

#[test]
fn the_interpreter_of_the_settings_runs_the_head() {
    let folder = tempfile::tempdir().unwrap();
    let fake = folder.path().join("python");
    fs::write(&fake, "#!/bin/sh\necho chosen\n").unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("plain.py");
    fs::write(&program, "print('plain')\n").unwrap();
    let mut command = dragon(["--python"]);
    command.arg(&fake).arg(&program).env_remove("DRAGON_PYTHON");
    let done = run(&mut command);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "chosen\n"),
        "{done:?}"
    );
}

#[test]
fn a_range_of_as_many_ports_as_nodes_is_enough() {
    for first in [23_110, 23_210, 23_310] {
        let ports = format!("{first}-{}", first + 3);
        let done = run(&mut dragon([
            "-N4",
            "--local-nodes",
            "--ports",
            &ports,
            "true",
        ]));
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}
