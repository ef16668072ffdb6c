//! Forty nodes on this machine: with a fan-out of 16 that is two levels of the tree. What concerns all costs each daemon a few
//! messages, output comes through the daemons between, and both go on without one of them.
//!
//! The test runs itself again as the head of the runtime (`child`).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use dragon::{
    Code, Deadline, Group, MemberInfo, MemberState, NodeIndex, Policy, RestartWhen, Session, Spawn,
};
use dragon_tests::child;
use dragon_tests::local::{Traces, WATCHDOG, dragon, eventually_empty, finish, pause, run};
use serde_json::Value;

const ROLE: &str = "DRAGON_TEST_TREE";
const FOLDER: &str = "DRAGON_TEST_FOLDER";
const NODES: u32 = 40;
const FANOUT: u32 = 16;
/// The first node that is not a neighbour of the first one.
const BEYOND: u32 = 1 + FANOUT;
/// Lines of each node beyond, of 64 bytes: more than all that lies between can hold.
const LINES: u32 = 30_000;
const KILL: i32 = 9;
const USR1: i32 = 10;
/// A signal that nobody minds.
const WINCH: i32 = 28;

fn start(role: &str, folder: &Path, options: &[&str]) -> Child {
    let nodes = NODES.to_string();
    let nodes = ["-N", &nodes, "--local-nodes", "--pool", "4M"];
    let mut command = child::head(&[&nodes[..], options].concat());
    command.env(ROLE, role).env(FOLDER, folder).spawn().unwrap()
}

/// Its end, after which nothing is left. What it counts is shown.
fn ended(job: Child) {
    let launcher = job.id();
    let done = finish(job);
    assert_eq!(done.code, Some(0), "{done:?}");
    eprintln!("{}", done.err);
    Traces::assert_none(launcher);
}

#[test]
fn what_concerns_all_costs_each_daemon_a_few_messages() {
    let folder = tempfile::tempdir().unwrap();
    ended(start("orders", folder.path(), &[]));
}

#[test]
fn output_of_nodes_far_below_is_whole_and_stops_with_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = start("output", folder.path(), &[]);
    let begin = Instant::now();
    while !folder.path().join("done").exists() {
        let lives = job.try_wait().unwrap().is_none();
        assert!(
            lives && begin.elapsed() < WATCHDOG,
            "a reader that takes nothing stops more than those who write"
        );
        pause(std::time::Duration::from_millis(10));
    }
    let last = lines_by_node(&mut job);
    ended(job);
    let expected = (BEYOND..NODES).map(|node| (node, LINES)).collect();
    assert_eq!(last, expected);
}

#[test]
fn orders_and_output_go_on_without_a_node_between() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = start("lost", folder.path(), &["--on-node-failure", "continue"]);
    let last = lines_by_node(&mut job);
    ended(job);
    let expected = (0..NODES).filter(|node| *node != 1);
    assert_eq!(last, expected.map(|node| (node, 3)).collect());
}

/// Reads all output: the number of the last line of each node, where they came in order.
fn lines_by_node(job: &mut Child) -> BTreeMap<u32, u32> {
    let out = job.stdout.take().unwrap();
    let mut last = BTreeMap::new();
    for line in BufReader::with_capacity(1 << 20, out).lines() {
        let line = line.unwrap();
        // The head's harness prints lines of its own.
        let Some((node, number)) = line
            .strip_prefix("LINE ")
            .and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        let (node, number): (u32, u32) = (node.parse().unwrap(), number.trim().parse().unwrap());
        let before = last.insert(node, number);
        assert_eq!(before.unwrap_or(0) + 1, number, "node {node}");
    }
    last
}

// In the runtime. -------------------------------------------------------------------------------------------------------

#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    match role.as_str() {
        "orders" => orders(&folder),
        "output" => output(&folder),
        "lost" => lost(&folder),
        other => panic!("{other}"),
    }
}

/// One member on each node.
fn group(script: &str) -> Group {
    let member = Spawn::program("sh").arg("-c").arg(script);
    let member = member.policy(Policy::Block);
    Group::of(member).start(NODES).unwrap()
}

/// One member on each node that waits for SIGUSR1, and does something then. All do when this returns.
fn waiting_group(folder: &Path, then: &str) -> Group {
    let script = format!(
        "trap '{then}' USR1; : > $DRAGON_RANK; while :; do sleep 1000 >/dev/null 2>&1 & wait $!; done"
    );
    let member = Spawn::program("sh").arg("-c").arg(script);
    let member = member.directory(folder).policy(Policy::Block);
    let group = Group::of(member).start(NODES).unwrap();
    eventually_empty("the way to the first line", || {
        match fs::read_dir(folder).unwrap().count() {
            count if count == NODES as usize => String::new(),
            count => format!("{count} members wait"),
        }
    });
    group
}

fn runs(member: &MemberInfo) -> bool {
    matches!(member.state, MemberState::Running { .. })
}

/// Edges of the tree that lead from a node.
fn edges(node: u32) -> u64 {
    let below = (1..NODES).filter(|other| (other - 1) / FANOUT == node);
    below.count() as u64 + u64::from(node > 0)
}

/// What each daemon has sent to others and got from them so far.
fn counts() -> Vec<u64> {
    let done = run(&mut dragon([
        "status",
        "--all-nodes",
        "--json",
        "--patience",
        "60000",
    ]));
    assert_eq!(done.code, Some(0), "{done:?}");
    let told: Value = serde_json::from_str(&done.out).unwrap();
    let mut rows = told["nodes"].as_array().unwrap().clone();
    assert_eq!(rows.len(), NODES as usize);
    rows.sort_by_key(|row| row["node"].as_u64());
    let count = |row: &Value, name: &str| row[name].as_u64().unwrap();
    let both = |row| count(row, "control_sent") + count(row, "control_received");
    rows.iter().map(both).collect()
}

/// Does something with all, for which no daemon may have more than so many messages for each of its edges.
fn costs(what: &str, most: u64, act: impl FnOnce()) {
    let before = counts();
    act();
    let after = counts();
    for (node, (after, before)) in (0..).zip(after.iter().zip(&before)) {
        let cost = after - before;
        // The question about the counts costs two messages an edge, and those of two questions may lie between the answers.
        let most = (most + 4) * edges(node);
        assert!(
            cost <= most,
            "{what}: {cost} messages at node {node}, of at most {most}"
        );
        if [0, 1, 2, NODES - 1].contains(&node) {
            eprintln!("{what}: {cost} messages at node {node}, of at most {most}");
        }
    }
}

fn orders(folder: &Path) {
    // Sent, started, ended, to be forgotten, forgotten.
    costs("5 groups from start to end", 5 * 5, || {
        for _ in 0..5 {
            let group = group("exit $((DRAGON_RANK == 39))");
            assert_eq!(group.wait(Deadline::Never).unwrap(), 1 << 8);
        }
    });
    let first = waiting_group(folder, "exit 7");
    let members = || first.members().unwrap();
    costs("10 questions about all members", 10 * 2, || {
        for _ in 0..10 {
            let there = |member: &MemberInfo| runs(member) && member.node.get() == member.rank;
            assert!(members().iter().all(there));
        }
    });
    costs("10 signals to all members", 10 * 2, || {
        for _ in 0..10 {
            first.signal(WINCH).unwrap();
        }
    });
    first.remove(&[17, 39]).unwrap();
    let killed = |member: &MemberInfo| member.state == MemberState::Ended(KILL);
    eventually_empty("the group", || {
        let members = members().into_iter().filter(killed);
        match members.map(|member| member.rank).collect::<Vec<_>>() {
            ranks if ranks == [17, 39] => String::new(),
            other => format!("only {other:?} have ended"),
        }
    });
    first.signal(USR1).unwrap();
    assert_eq!(first.wait(Deadline::Never).unwrap(), 7 << 8);
    for member in members() {
        let expected = match member.rank {
            17 | 39 => MemberState::Ended(KILL),
            _ => MemberState::Ended(7 << 8),
        };
        assert_eq!(member.state, expected, "{member:?}");
    }

    let again = Spawn::program("sleep").arg("1000").policy(Policy::Block);
    let again = Group::of(again).restart(RestartWhen::Always, 9);
    let again = again.start(NODES).unwrap();
    again.signal(KILL).unwrap();
    eventually_empty("the group", || {
        let members = again.members().unwrap().into_iter();
        let back = |member: &MemberInfo| runs(member) && member.restarts == 1;
        match members.filter(back).count() {
            count if count == NODES as usize => String::new(),
            count => format!("{count} were started again"),
        }
    });
    again.kill().unwrap();
    assert_eq!(again.wait(Deadline::Never).unwrap(), KILL);
}

fn at(node: u32) -> NodeIndex {
    NodeIndex::new(node).unwrap()
}

#[expect(
    clippy::exit,
    reason = "the harness would print a dot into the lines that are still on their way"
)]
fn output(folder: &Path) {
    let writer = |node: u32| {
        // With the end of the line 64 bytes.
        let format = format!("LINE {node} %55.0f");
        let seq = Spawn::program("seq").arg("-f").arg(format);
        let seq = seq.arg("1").arg(LINES.to_string());
        seq.node(at(node)).start().unwrap()
    };
    let writers: Vec<_> = (BEYOND..NODES).map(writer).collect();
    stand_still(&writers.iter().map(|writer| writer.pid).collect::<Vec<_>>());
    for writer in &writers {
        let waiting = writer.process.wait(Deadline::Now).unwrap_err();
        let codes = [Code::Timeout, Code::Empty];
        assert!(codes.contains(&waiting.code()), "{waiting}");
    }
    // Nobody else is held up.
    for node in [1, BEYOND, NODES - 1] {
        let other = Spawn::program("true").node(at(node)).start().unwrap();
        assert_eq!(other.process.wait(Deadline::Never).unwrap(), 0);
    }
    fs::write(folder.join("done"), "").unwrap();
    for writer in &writers {
        assert_eq!(writer.process.wait(Deadline::Never).unwrap(), 0);
    }
    std::process::exit(0);
}

/// Waits until processes have written something, and then no more for a while.
fn stand_still(pids: &[u32]) {
    let written = || {
        let io = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        pids.iter().map(io).collect::<Vec<_>>()
    };
    let (mut before, mut same) = (written(), 0);
    while same < 5 {
        pause(std::time::Duration::from_millis(100));
        let now = written();
        same = if now == before { same + 1 } else { 0 };
        before = now;
    }
}

#[expect(
    clippy::exit,
    reason = "the harness would print a dot into the lines that are still on their way"
)]
fn lost(folder: &Path) {
    let say = |line: u32| format!("echo LINE $DRAGON_RANK {line}; ");
    let group = waiting_group(folder, &format!("{}{}{}exit 0", say(1), say(2), say(3)));
    let nodes = || Session::attach().unwrap().nodes().unwrap().nodes;
    let between = nodes()[1].pid.to_string();
    let mut kill = Command::new("kill");
    assert!(kill.args(["-9", &between]).status().unwrap().success());
    // While nobody may have found out, and when it is known.
    assert_eq!(group.members().unwrap().len(), NODES as usize);
    eventually_empty("the table of nodes", || match nodes().len() {
        left if left + 1 == NODES as usize => String::new(),
        other => format!("{other} nodes"),
    });
    for member in group.members().unwrap() {
        let lost = member.state == MemberState::Lost;
        let expected = if member.rank == 1 {
            lost
        } else {
            runs(&member)
        };
        assert!(expected, "{member:?}");
    }
    group.signal(USR1).unwrap();
    assert_eq!(group.wait(Deadline::Never).unwrap(), KILL);
    let members = group.members().unwrap().into_iter();
    let well = members.filter(|member| member.state == MemberState::Ended(0));
    assert_eq!(well.count(), NODES as usize - 1);
    // Another group finds its way too.
    let more = Spawn::program("true").policy(Policy::Block);
    let more = Group::of(more).start(NODES).unwrap();
    assert_eq!(more.wait(Deadline::Never).unwrap(), 0);
    std::process::exit(0);
}
