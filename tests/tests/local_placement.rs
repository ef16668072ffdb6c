//! Where processes go, and which CPUs a job is granted: real processes on three nodes of this machine.
//!
//! The test runs itself again as the programs inside the runtime (`child`).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use dragon::{Deadline, NodeIndex, Policy, Session, Spawn, Stdio};
use dragon_tests::child;
use dragon_tests::cpus::{self, allowed};
use dragon_tests::local::{Traces, finish};

const ROLE: &str = "DRAGON_TEST_PLACEMENT";
const NODES: usize = 3;
/// Who reserves waits for those before him to have ended.
const PATIENCE: Duration = Duration::from_secs(50);

/// Runs this test as the head of a runtime of three nodes.
fn head(role: &str) {
    succeeds(child::head(&["-N", &NODES.to_string(), "--local-nodes"]).env(ROLE, role));
}

fn succeeds(command: &mut Command) {
    let child = command.spawn().unwrap();
    let launcher = child.id();
    let done = finish(child);
    assert_eq!(done.code, Some(0), "{done:?}");
    Traces::assert_none(launcher);
}

#[test]
fn each_policy_chooses_its_nodes() {
    head("policies");
}

#[test]
fn a_process_runs_on_the_numa_node_that_it_asks_for() {
    head("numa");
}

#[test]
fn a_job_is_granted_the_cpus_that_its_launcher_may_use() {
    let cpu = *own().first().unwrap();
    let dragon = child::head(&["-s"]);
    let mut command = Command::new("taskset");
    command
        .args(["-c", &cpu.to_string()])
        .arg(dragon.get_program());
    command.args(dragon.get_args());
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    succeeds(command.env(ROLE, format!("granted {cpu}")));
}

/// A program in the runtime; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<_> = role.split(' ').collect();
    match words[..] {
        ["policies"] => policies(),
        ["elsewhere"] => elsewhere(),
        ["numa"] => numa(),
        ["granted", cpu] => granted(cpu.parse().unwrap()),
        _ => panic!("{role}"),
    }
}

/// The node of each process of a request: its parent is that node's daemon.
fn nodes_of(spawns: Vec<Spawn>) -> Vec<usize> {
    let daemons = Session::attach().unwrap().nodes().unwrap().nodes;
    let started = Spawn::start_all(spawns).unwrap();
    let node = |child: dragon::Result<dragon::Child>| {
        let parent = read(child.unwrap());
        let parent: u32 = parent.trim().parse().unwrap();
        daemons.iter().position(|info| info.pid == parent).unwrap()
    };
    started.into_iter().map(node).collect()
}

/// What a process with piped output says until it ends.
fn read(mut child: dragon::Child) -> String {
    let mut text = Vec::new();
    let out = child.stdout.as_mut().unwrap();
    while let Some(piece) = out.receive(Deadline::Never).unwrap() {
        text.extend(piece.to_vec());
    }
    assert_eq!(child.process.wait(Deadline::Never).unwrap(), 0);
    String::from_utf8(text).unwrap()
}

fn sh(script: &str) -> Spawn {
    Spawn::program("sh")
        .arg("-c")
        .arg(script)
        .stdout(Stdio::Piped)
}

fn parent(policy: Policy) -> Spawn {
    sh("echo $PPID").policy(policy)
}

fn policies() {
    let all = |policy, count| nodes_of(vec![parent(policy); count]);
    let follows = |nodes: &[usize]| nodes.windows(2).all(|two| two[1] == (two[0] + 1) % NODES);
    let in_turn = all(Policy::RoundRobin, 4);
    assert!(follows(&in_turn), "{in_turn:?}");
    // The turn goes on with the next request.
    let next = all(Policy::RoundRobin, 1);
    assert!(follows(&[in_turn[3], next[0]]), "{in_turn:?} {next:?}");

    assert_eq!(all(Policy::Block, 7), [0, 0, 0, 1, 1, 2, 2]);
    assert_eq!(all(Policy::Local, 2), [0, 0]);
    let by_environment = sh("echo $PPID").env("DRAGON_PLACEMENT", "local");
    assert_eq!(nodes_of(vec![by_environment; 2]), [0, 0]);
    let remote = all(Policy::Remote, 4);
    assert!(
        remote == [1, 2, 1, 2] || remote == [2, 1, 2, 1],
        "{remote:?}"
    );

    // All of them have the CPUs of this machine: the first node is full when that many are reserved.
    let cpus = Session::attach().unwrap().nodes().unwrap().nodes[0].cpus;
    let packed = |count| {
        parent(Policy::Packed)
            .cpus(count)
            .wait_for_resources(PATIENCE)
    };
    let (sizes, places) = match cpus {
        1 => (vec![1, 1, 1], vec![0, 1, 2]),
        _ => (vec![cpus - 1, 1, cpus, 1], vec![0, 0, 1, 2]),
    };
    let nodes = nodes_of(sizes.into_iter().map(packed).collect());
    let first = nodes[0];
    let expected: Vec<_> = places.iter().map(|place| (first + place) % NODES).collect();
    assert_eq!(nodes, expected);

    // What is near and far depends on who asks.
    let there = child::spawn().env(ROLE, "elsewhere");
    let there = there.node(NodeIndex::new(1).unwrap()).start().unwrap();
    assert_eq!(there.process.wait(Deadline::Never).unwrap(), 0);
}

fn elsewhere() {
    assert_eq!(nodes_of(vec![parent(Policy::Local); 2]), [1, 1]);
    let remote = nodes_of(vec![parent(Policy::Remote); 4]);
    assert!(
        remote == [0, 2, 0, 2] || remote == [2, 0, 2, 0],
        "{remote:?}"
    );
}

fn numa() {
    let granted = own();
    // Where the kernel tells of no nodes, there is one.
    let mut node = (0, granted.clone());
    for number in 0..64 {
        let list = format!("/sys/devices/system/node/node{number}/cpulist");
        let list = fs::read_to_string(list).unwrap_or_default();
        let here: BTreeSet<_> = cpus::list(&list).intersection(&granted).copied().collect();
        if !here.is_empty() {
            node = (number, here);
        }
    }
    let (number, here) = node;
    let mask = |count| {
        let spawn = sh("cat /proc/self/status").numa_node(number, count);
        let status = read(spawn.wait_for_resources(PATIENCE).start().unwrap());
        allowed(&status)
    };
    let one = mask(1);
    assert!(one.len() == 1 && one.is_subset(&here), "{one:?} {here:?}");
    // All of it.
    assert_eq!(mask(0), here);
}

fn granted(cpu: u32) {
    let stats = Session::attach().unwrap().stats().unwrap();
    let granted = stats.iter().find(|(name, _)| name == "cpus_granted");
    assert_eq!(granted.unwrap().1, 1, "{stats:?}");
    let status = read(sh("cat /proc/self/status").cpus(1).start().unwrap());
    assert_eq!(allowed(&status), [cpu].into());
    let error = sh("true").cpus(2).start().unwrap_err().to_string();
    assert!(
        error.contains("2 CPUs wanted, the job was granted"),
        "{error}"
    );
}

/// The CPUs that this process may use.
fn own() -> BTreeSet<u32> {
    allowed(&fs::read_to_string("/proc/self/status").unwrap())
}
