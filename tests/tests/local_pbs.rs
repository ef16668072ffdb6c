//! `dragon` in a job of PBS, whose task manager is a stand-in (`tests/programs/fake_tm.c`): three nodes on this machine that
//! treat each other as remote. `pbs_head.rs` does the same with a PBS that is installed.
//!
//! The test runs itself again as the head of a job (`child`).

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use dragon::{Deadline, Group, Policy, Spawn};
use dragon_tests::child;
use dragon_tests::job::{Job, Process, send};
use dragon_tests::local::{Finished, WATCHDOG, binary, dragon, eventually_empty, repository, run};
use rustix::process::Signal;
use tempfile::TempDir;

const NODES: u32 = 3;
const ROLE: &str = "DRAGON_TEST_PBS";
/// Has a grandchild in a session of its own, and runs until its input ends.
const HEAD: [&str; 3] = [
    "sh",
    "-c",
    "setsid sleep 100000 >/dev/null 2>&1 & echo up; read line; exit 3",
];

/// What the server says about every job.
const QSTAT: &str = r#"#!/bin/sh
echo '{"Jobs": {"1.fake": {"job_state": "R", "exec_host": "127.0.0.1/0+127.0.0.2/0+127.0.0.3/0",
    "exec_vnode": "(127.0.0.1:ncpus=1)+(127.0.0.2:ncpus=1)+(127.0.0.3:ncpus=1)"}}}'
"#;

/// Where PBS seems to be installed.
static PBS: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("lib")).unwrap();
    let compiled = Command::new("cc")
        .args([
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
        ])
        .arg(repository().join("tests/programs/fake_tm.c"))
        .arg("-o")
        .arg(folder.path().join("lib/libpbs.so.0"))
        .status();
    assert!(compiled.unwrap().success());
    let qstat = folder.path().join("bin/qstat");
    fs::create_dir(qstat.parent().unwrap()).unwrap();
    fs::write(&qstat, QSTAT).unwrap();
    fs::set_permissions(&qstat, fs::Permissions::from_mode(0o755)).unwrap();
    folder
});

/// A job of PBS.
struct InPbs {
    name: String,
    folder: TempDir,
}

impl InPbs {
    fn new() -> Self {
        static JOBS: AtomicU32 = AtomicU32::new(0);
        let number = JOBS.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::tempdir().unwrap();
        // A line for each of the tasks that may run there.
        let hosts = "127.0.0.1\n127.0.0.2\n127.0.0.3\n";
        fs::write(folder.path().join("nodes"), hosts).unwrap();
        Self {
            name: format!("{}{number}.fake", std::process::id()),
            folder,
        }
    }

    /// A command in the job's script.
    fn script(&self, command: &mut Command) {
        command
            .env("PBS_EXEC", PBS.path())
            .env("PBS_ENVIRONMENT", "PBS_BATCH")
            .env("PBS_JOBID", format!("{}.site.org", self.name))
            .env("PBS_JOBCOOKIE", "cookie")
            .env("PBS_TASKNUM", "1")
            .env("WHERE", "here")
            .env("PBS_NODEFILE", self.folder.path().join("nodes"))
            .env("DRAGON_TEST_TM_NODES", NODES.to_string());
    }

    fn start(&self, words: &[&str]) -> Job {
        let mut command = dragon(words);
        self.script(&mut command);
        // An interrupt is sent to all of the group, as a terminal does.
        command.process_group(0);
        Job::start(&mut command).unwrap()
    }

    /// A job whose head is at work.
    fn at_work(&self) -> Job {
        let job = self.start(&HEAD);
        assert!(job.has_printed("up", WATCHDOG), "{:?}", job.daemons());
        job
    }

    fn leaves_nothing(&self) {
        let name = format!("/{}.", self.name);
        eventually_empty("this machine", || {
            let sockets = fs::read_to_string("/proc/net/unix").unwrap();
            let ours = sockets.lines().filter(|line| line.contains(&name));
            ours.collect()
        });
    }

    /// `dragon tm-exec` in the job.
    fn task(&self, words: &[&str]) -> Command {
        let mut command = dragon([&["tm-exec"], words].concat());
        self.script(&mut command);
        command
    }
}

/// What stands for a task of the job here.
fn tm_exec(job: &Job, node: &str) -> Process {
    let processes = job.processes();
    let found = processes.iter().find(|process| {
        let words: Vec<_> = process.words.iter().map(String::as_str).collect();
        matches!(words[..], [_, "tm-exec", of, ..] if of == node)
    });
    found
        .unwrap_or_else(|| panic!("none for node {node} among {processes:?}"))
        .clone()
}

#[test]
fn programs_run_on_all_nodes() {
    let pbs = InPbs::new();
    let mut command = child::head(&[]);
    pbs.script(command.env(ROLE, "places"));
    let done = run(&mut command);
    assert_eq!(done.code, Some(0), "{done:?}");
    let mut lines: Vec<_> = done
        .out
        .lines()
        .filter(|line| line.contains(" of "))
        .collect();
    lines.sort_unstable();
    // What PBS itself sets for a task is not handed on, all else is.
    let expected = ["rank 0 of 3 here", "rank 1 of 3 here", "rank 2 of 3 here"];
    assert_eq!(lines, expected, "{done:?}");
    pbs.leaves_nothing();
}

/// A program in the runtime; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    if std::env::var(ROLE).is_err() {
        return;
    }
    let script = "echo rank $DRAGON_RANK of $DRAGON_GROUP_SIZE $WHERE$DRAGON_JOIN";
    let member = Spawn::program("sh").arg("-c").arg(script);
    let member = member.policy(Policy::Block);
    let group = Group::of(member).start(3).unwrap();
    assert_eq!(group.wait(Deadline::Never).unwrap(), 0);
    let members = group.members().unwrap();
    let nodes: Vec<u32> = members.iter().map(|member| member.node.get()).collect();
    assert_eq!(nodes, [0, 1, 2]);
}

#[test]
fn the_head_reads_its_input_and_its_exit_code_counts() {
    let pbs = InPbs::new();
    let mut job = pbs.start(&["sh", "-c", "echo up; cat; exit 3"]);
    job.tell("what the head reads\n");
    job.stdin = None;
    let ended = job.ends();
    let expected = (Some(3), "up\nwhat the head reads\n");
    assert_eq!((ended.code, &*ended.out), expected, "{ended:?}");
    assert_eq!(ended.err, "", "{ended:?}");
    let states = job.daemons();
    assert_eq!(states.len(), NODES as usize, "{states:?}");
    pbs.leaves_nothing();
}

#[test]
fn so_many_nodes_as_are_asked_for() {
    let pbs = InPbs::new();
    let mut job = pbs.start(&["-N", "2", "true"]);
    assert_eq!(job.ends().code, Some(0));
    assert_eq!(job.daemons().len(), 2);
    let ended = pbs.start(&["-N", "4", "true"]).ends();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("has only 3 hosts"), "{ended:?}");
}

#[test]
fn killed_daemons_leave_nothing() {
    for node in 0..NODES {
        let pbs = InPbs::new();
        let mut job = pbs.at_work();
        let pid = job.in_state(node, "RUNNING", WATCHDOG).unwrap();
        assert!(send(pid, Signal::KILL));
        let ended = job.ends();
        let code = if node == 0 { 137 } else { 125 };
        assert_eq!(ended.code, Some(code), "node {node}: {ended:?}");
        assert!(ended.err.contains("was ended by signal 9"), "{ended:?}");
        pbs.leaves_nothing();
    }
}

#[test]
fn killed_tasks_leave_nothing() {
    let pbs = InPbs::new();
    let mut job = pbs.at_work();
    assert!(send(tm_exec(&job, "1").pid, Signal::KILL));
    let ended = job.ends();
    // Its daemon is told to end.
    assert_eq!(ended.code, Some(143), "{ended:?}");
    pbs.leaves_nothing();
}

#[test]
fn a_task_that_is_terminated_ends_the_job() {
    let pbs = InPbs::new();
    let mut job = pbs.at_work();
    assert!(send(tm_exec(&job, "2").pid, Signal::TERM));
    let ended = job.ends();
    assert_eq!(ended.code, Some(143), "{ended:?}");
    pbs.leaves_nothing();
}

#[test]
fn a_killed_launcher_leaves_nothing() {
    let pbs = InPbs::new();
    let mut job = pbs.at_work();
    assert!(send(job.launcher(), Signal::KILL));
    assert_eq!(job.ends().code, Some(137));
    pbs.leaves_nothing();
}

#[test]
fn an_interrupt_reaches_the_head() {
    let pbs = InPbs::new();
    let mut job = pbs.at_work();
    let group = i32::try_from(job.launcher()).ok();
    let group = group.and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process_group(group, Signal::INT).unwrap();
    assert_eq!(job.ends().code, Some(130));
    pbs.leaves_nothing();
}

#[test]
fn a_signal_for_the_job_ends_it() {
    let pbs = InPbs::new();
    let mut job = pbs.at_work();
    assert!(send(job.launcher(), Signal::TERM));
    assert_eq!(job.ends().code, Some(143));
    pbs.leaves_nothing();
}

/// A job that does not come up as long as its last node is held.
struct Held {
    pbs: InPbs,
    job: Job,
    fifo: PathBuf,
    /// Where the others have joined.
    way: String,
    key: String,
    from: String,
}

impl Held {
    fn new() -> Self {
        let pbs = InPbs::new();
        let fifo = pbs.folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        let mut command = dragon(HEAD);
        pbs.script(command.env("DRAGON_TEST_TM_HOLD", &fifo));
        let job = Job::start(&mut command).unwrap();
        // It has joined when it looks for the first node.
        assert!(job.in_state(1, "CONNECTING", WATCHDOG).is_some());
        let first = tm_exec(&job, "1");
        let after = |word: &str| {
            let at = first.words.iter().position(|other| other == word).unwrap();
            first.words[at + 1].clone()
        };
        let environment = fs::read(format!("/proc/{}/environ", first.pid)).unwrap();
        let variables = String::from_utf8(environment).unwrap();
        let mut variables = variables.split('\0');
        let key = variables.find_map(|variable| variable.strip_prefix("DRAGON_JOIN="));
        let from = first.words.iter().find(|word| word.starts_with("--from="));
        Self {
            way: after("--launch"),
            key: key.unwrap().to_owned(),
            from: from.unwrap().clone(),
            pbs,
            job,
            fifo,
        }
    }

    /// Somebody else joins.
    fn intruder(&self, from: &str, key: &str) -> Finished {
        let mut dragond = Command::new(binary("dragond"));
        dragond
            .args(["--launch", &self.way, from])
            .env("DRAGON_JOIN", key)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        run(&mut dragond)
    }

    /// The last node may join.
    fn release(&self) {
        drop(fs::File::options().write(true).open(&self.fifo).unwrap());
    }

    fn address(&self) -> &str {
        self.way.strip_prefix("tcp:").unwrap()
    }
}

#[test]
fn who_does_not_know_the_key_does_not_join() {
    let mut held = Held::new();
    let wrong = "5a".repeat(32);
    let done = held.intruder(&held.from, &wrong);
    assert_eq!(done.code, Some(121), "{done:?}");
    assert!(done.err.contains("does not prove the job key"), "{done:?}");
    let done = held.intruder(&held.from, "none");
    assert!(done.err.contains("not 64 hexadecimal digits"), "{done:?}");
    // Noise, and somebody who says nothing.
    let mut noise = TcpStream::connect(held.address()).unwrap();
    noise.set_read_timeout(Some(WATCHDOG)).unwrap();
    let _ = noise.write_all(&[0xa5; 4096]);
    let mut rest = Vec::new();
    // Closed or reset: both are the end.
    let _ = noise.read_to_end(&mut rest);
    assert!(rest.is_empty(), "a stranger was answered: {rest:?}");
    let silent = TcpStream::connect(held.address()).unwrap();
    held.release();
    assert!(held.job.has_printed("up", WATCHDOG));
    drop(silent);
    // All have joined: now nobody listens, and the key is worth nothing.
    let done = held.intruder(&held.from, &held.key);
    assert_eq!(done.code, Some(121), "{done:?}");
    assert!(done.err.contains("cannot join its starter"), "{done:?}");
    held.job.tell("end\n");
    let ended = held.job.ends();
    assert_eq!((ended.code, &*ended.err), (Some(3), ""), "{ended:?}");
    held.pbs.leaves_nothing();
}

#[test]
fn who_joins_as_a_node_that_has_joined_ends_the_job() {
    let held = Held::new();
    let done = held.intruder(&held.from, &held.key);
    assert_eq!(done.code, Some(121), "{done:?}");
    ends_for_an_intruder(
        held,
        "joins as node 1 (127.0.0.2), which has joined already",
    );
}

#[test]
fn who_joins_as_a_node_that_does_not_exist_ends_the_job() {
    let held = Held::new();
    let from = held.from.trim_end_matches('1');
    let done = held.intruder(&format!("{from}7"), &held.key);
    assert_eq!(done.code, Some(121), "{done:?}");
    ends_for_an_intruder(held, "joins as node 7 of a job of 3 nodes");
}

fn ends_for_an_intruder(mut held: Held, why: &str) {
    let ended = held.job.ends();
    assert_eq!(ended.code, Some(125), "{ended:?}");
    assert!(ended.err.contains(why), "{ended:?}");
    assert!(!ended.out.contains("up"), "{ended:?}");
    held.pbs.leaves_nothing();
}

#[test]
fn a_task_ends_as_its_program() {
    let pbs = InPbs::new();
    let exit = |script: &str| run(&mut pbs.task(&["1", "--", "/bin/sh", "-c", script])).code;
    assert_eq!(exit("exit 7"), Some(7));
    assert_eq!(exit("kill -9 $$"), Some(137));
}

#[test]
fn what_the_task_manager_cannot_do_is_said() {
    let pbs = InPbs::new();
    let refused = |command: &mut Command, text: &str| {
        let done = run(command);
        assert_eq!(done.code, Some(121), "{done:?}");
        assert!(done.err.contains(text), "{text}: {done:?}");
    };
    let task = || pbs.task(&["1", "--", "/bin/true"]);
    refused(task().env_remove("PBS_JOBID"), "PBS_JOBID is not set");
    refused(
        task().env("PBS_EXEC", "/none"),
        "/none/lib/libpbs.so.0 does not load",
    );
    let conf = Path::new("/none/pbs.conf");
    let mut without = task();
    without.env_remove("PBS_EXEC").env("PBS_CONF_FILE", conf);
    refused(
        &mut without,
        "/none/pbs.conf is to say where PBS is installed",
    );
    refused(
        task().env_remove("PBS_TASKNUM"),
        "does not answer: this process is in no job of PBS (error 17005)",
    );
    refused(&mut pbs.task(&["3", "--", "/bin/true"]), "has no node 3");
    refused(&mut pbs.task(&["x", "--", "/bin/true"]), "tm-exec x");
    refused(
        &mut pbs.task(&["1", "/bin/true"]),
        "-- and a program are wanted",
    );
    refused(&mut pbs.task(&[]), "type dragon --help");
}
