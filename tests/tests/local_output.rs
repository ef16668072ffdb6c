//! Output of processes on several nodes: whole, in order, in bounded memory, and in nobody's way.
//!
//! The test runs itself again as the head of a runtime (`child`), which starts processes on its nodes.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use dragon::{Deadline, Session, Spawn};
use dragon_protocol::NodeIndex;
use dragon_tests::child;
use dragon_tests::local::{Traces, WATCHDOG, finish, pause};

const ROLE: &str = "DRAGON_TEST_OUTPUT";
const FOLDER: &str = "DRAGON_TEST_FOLDER";
/// Lines of each process that pours; each is 99 bytes long.
const LINES: u64 = 200_000;

fn job(role: &str, folder: &Path) -> Command {
    let mut command = child::head(&["-N", "3", "--local-nodes"]);
    command.env(ROLE, role).env(FOLDER, folder);
    command
}

#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    match role.as_str() {
        "pours" => pours(),
        "jams" => jams(&folder),
        "binary" => binary(&folder),
        other => panic!("{other}"),
    }
}

fn shell(node: u32, script: &str) -> dragon::Child {
    let shell = Spawn::program("/bin/sh").arg("-c").arg(script);
    shell.node(NodeIndex::new(node).unwrap()).start().unwrap()
}

fn ends(child: &dragon::Child) {
    assert_eq!(child.process.wait(Deadline::Never).unwrap(), 0);
}

/// The daemons that a launcher started, and how much memory of its own each has, in KiB.
fn memory_of_daemons(launcher: u32) -> Vec<u64> {
    let list = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"));
    let own = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    };
    list.unwrap_or_default()
        .split_whitespace()
        .filter_map(own)
        .collect()
}

#[test]
fn every_line_arrives_once_and_in_order_and_the_memory_stays_flat() {
    let mut job = job("pours", Path::new("/")).spawn().unwrap();
    let launcher = job.id();
    let out = job.stdout.take().unwrap();
    let (mut last, mut most) = (HashMap::new(), 0);
    let mut looked = Instant::now();
    for line in BufReader::with_capacity(1 << 20, out).lines() {
        let line = line.unwrap();
        // The head's harness prints too, before they begin: lines of its own.
        let Some((node, number)) = line
            .strip_prefix("LINE ")
            .and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        assert_eq!(line.len(), 98, "{line}");
        let number: u64 = number.trim().parse().unwrap();
        let before = last.insert(node.to_owned(), number);
        assert_eq!(before.unwrap_or(0) + 1, number, "node {node}");
        if looked.elapsed() > Duration::from_millis(20) {
            looked = Instant::now();
            most = memory_of_daemons(launcher)
                .into_iter()
                .chain([most])
                .max()
                .unwrap();
        }
    }
    let done = finish(job);
    assert_eq!(done.code, Some(0), "{}", done.err);
    let expected = (0..3).map(|node: u32| (node.to_string(), LINES)).collect();
    assert_eq!(last, expected);
    // 60 MB went through: what a daemon holds at most is a few windows and pieces.
    assert!((1..32 << 10).contains(&most), "{most} KiB");
}

#[expect(
    clippy::exit,
    reason = "the harness would print a dot into the lines that are still on their way"
)]
fn pours() {
    // 98 characters and the end of the line.
    let script = |node: u32| format!("seq -f 'LINE {node} %91.0f' 1 {LINES}");
    let children: Vec<_> = (0..3).map(|node| shell(node, &script(node))).collect();
    children.iter().for_each(ends);
    std::process::exit(0);
}

/// Starts the job whose output nobody reads, and waits until its head says, by a file, that it has done its work.
fn jammed(folder: &Path) -> Child {
    let job = job("jams", folder).spawn().unwrap();
    let begin = Instant::now();
    while !folder.join("done").exists() {
        assert!(
            begin.elapsed() < WATCHDOG,
            "a reader that takes nothing stops more than those who write"
        );
        pause(Duration::from_millis(10));
    }
    job
}

#[test]
fn a_reader_that_takes_nothing_stops_only_those_who_write() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = jammed(folder.path());
    let mut all = Vec::new();
    job.stdout.take().unwrap().read_to_end(&mut all).unwrap();
    let done = finish(job);
    assert_eq!(done.code, Some(0), "{}", done.err);
    let bytes = all.iter().filter(|byte| **byte == b'#').count();
    assert_eq!(bytes, 2 * (64 << 20) - 2 * (64 << 20) / 128);
}

/// Two nodes write much more than anything on the way can hold; when they stand still, processes are started there.
fn jams(folder: &Path) {
    let line = format!("{}\n", "#".repeat(127));
    fs::write(folder.join("block"), line.repeat(8192)).unwrap();
    let cat = format!(
        "for i in $(seq 64); do cat {}; done",
        folder.join("block").display()
    );
    let writers = [1, 2].map(|node| shell(node, &cat));
    for writer in &writers {
        stands_still(writer.pid);
    }
    for node in [1, 2, 0, 1, 2] {
        ends(&shell(node, "exit 0"));
    }
    Session::attach().unwrap().nodes().unwrap();
    fs::write(folder.join("done"), "").unwrap();
    writers.iter().for_each(ends);
}

/// Waits until the process that a shell has started is the same one, and has written no more, for half a second: it takes
/// a moment to write what it has to where it can.
fn stands_still(pid: u32) {
    let written = || {
        let children = format!("/proc/{pid}/task/{pid}/children");
        let child = fs::read_to_string(children).unwrap_or_default();
        let io = fs::read_to_string(format!("/proc/{}/io", child.trim()));
        (child, io.unwrap_or_default())
    };
    let (mut before, mut same) = (written(), 0);
    while same < 5 {
        pause(Duration::from_millis(100));
        let now = written();
        same = if now == before && !now.1.is_empty() {
            same + 1
        } else {
            0
        };
        before = now;
    }
}

#[test]
fn bytes_and_long_lines_arrive_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut noise = Vec::new();
    fs::File::open("/dev/urandom")
        .unwrap()
        .take(1 << 20)
        .read_to_end(&mut noise)
        .unwrap();
    // A line that is longer than any that is kept whole, and no end of line at the end.
    let all = [&noise[..], &vec![b'x'; 1 << 20], b"\nlast"].concat();
    fs::write(folder.path().join("noise"), &all).unwrap();
    let mut job = job("binary", folder.path()).spawn().unwrap();
    let launcher = job.id();
    let mut err = job.stderr.take().unwrap();
    let reader = thread::spawn(move || {
        let mut came = Vec::new();
        err.read_to_end(&mut came).unwrap();
        came
    });
    assert_eq!(finish(job).code, Some(0));
    let came = reader.join().unwrap();
    assert_eq!(came.len(), all.len());
    assert!(came == all);
    Traces::assert_none(launcher);
}

fn binary(folder: &Path) {
    ends(&shell(
        2,
        &format!("cat {} >&2", folder.join("noise").display()),
    ));
}
