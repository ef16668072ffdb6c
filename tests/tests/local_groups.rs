//! Groups of processes over three nodes on this machine that treat each other as remote, and who is asked for what.
//!
//! The test runs itself again as the programs inside the runtime (`child`).

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dragon::{
    Code, Deadline, Descriptor, Group, Lives, MemberInfo, MemberState, NodeIndex, Policy,
    RestartWhen, Session, Spawn, Stdio,
};
use dragon_tests::child;
use dragon_tests::local::{Traces, dragon, eventually_empty, finish, run};
use serde_json::Value;

const ROLE: &str = "DRAGON_TEST_GROUPS";
const WHAT: &str = "DRAGON_TEST_WHAT";
const NODES: u32 = 3;
const KILL: i32 = 9;
const TERM: i32 = 15;

/// Runs this test as the head of a runtime of three nodes.
fn head(role: &str) {
    let options = ["-N", &NODES.to_string(), "--local-nodes"];
    let child = child::head(&options).env(ROLE, role).spawn().unwrap();
    let launcher = child.id();
    let done = finish(child);
    let expected = if role == "daemon killed" {
        None
    } else {
        Some(0)
    };
    assert!(expected.is_none() || done.code == expected, "{done:?}");
    Traces::assert_none(launcher);
}

#[test]
fn members_know_their_place() {
    head("places");
}

#[test]
fn members_are_restarted_as_often_as_they_may() {
    head("restarts");
}

#[test]
fn members_are_added_removed_and_signalled_from_any_node() {
    head("orders");
}

#[test]
fn a_group_ends_with_its_creator_or_lives_on() {
    head("creator killed");
}

#[test]
fn what_cannot_be_started_leaves_nobody() {
    head("refused");
}

#[test]
fn a_killed_daemon_takes_all_members_with_it() {
    head("daemon killed");
}

#[test]
fn members_are_listed_with_group_and_rank() {
    head("listed");
}

#[test]
fn who_waits_for_cpus_does_so_no_longer_than_the_group_lives() {
    head("waiting");
}

#[test]
fn the_first_node_is_not_asked_for_processes_of_others() {
    head("counts");
}

/// A program in the runtime; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "places" => places(),
        "restarts" => restarts(),
        "orders" => orders(),
        "far orders" => far_orders(),
        "creator killed" => creator_killed(),
        "creator" => creator(),
        "refused" => refused(),
        "daemon killed" => daemon_killed(),
        "counts" => counts(),
        "far creator" => far_creator(),
        "listed" => listed(),
        "waiting" => waiting(),
        "waiting creator" => waiting_creator(),
        other => panic!("{other}"),
    }
}

fn sh(script: &str) -> Spawn {
    Spawn::program("sh").arg("-c").arg(script)
}

/// This test in another role, on a node.
fn other(role: &str, what: &str, node: u32) -> Spawn {
    let other = child::spawn().env(ROLE, role).env(WHAT, what);
    other.node(NodeIndex::new(node).unwrap())
}

fn what() -> String {
    std::env::var(WHAT).unwrap()
}

fn lines(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("out")).unwrap_or_default();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn pids(group: &Group) -> Vec<u32> {
    let pid = |member: &MemberInfo| match member.state {
        MemberState::Running { pid, .. } => Some(pid),
        _ => None,
    };
    group.members().unwrap().iter().filter_map(pid).collect()
}

fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn gone(pids: &[u32]) {
    eventually_empty("this machine", || {
        let left = pids.iter().filter(|pid| is_running(**pid));
        left.map(|pid| format!("process {pid} ")).collect()
    });
}

fn stats() -> HashMap<String, u64> {
    let stats = Session::attach().unwrap().stats().unwrap();
    stats.into_iter().collect()
}

fn places() {
    let folder = tempfile::tempdir().unwrap();
    let member = sh("echo $DRAGON_RANK $DRAGON_LOCAL_RANK $DRAGON_GROUP_SIZE $OWN >> out")
        .directory(folder.path())
        .policy(Policy::Block);
    let own = |rank: u32| vec![(b"OWN".to_vec(), format!("own{rank}").into_bytes())];
    let group = Group::of(member)
        .environments((0..7).map(own).collect())
        .start(7)
        .unwrap();
    assert_eq!(group.wait(Deadline::Never).unwrap(), 0);
    assert_eq!(
        lines(folder.path()),
        [
            "0 0 7 own0",
            "1 1 7 own1",
            "2 2 7 own2",
            "3 0 7 own3",
            "4 1 7 own4",
            "5 0 7 own5",
            "6 1 7 own6"
        ]
    );
    let members = group.members().unwrap();
    let nodes: Vec<u32> = members.iter().map(|member| member.node.get()).collect();
    assert_eq!(nodes, [0, 0, 0, 1, 1, 2, 2]);
    assert!(
        members
            .iter()
            .all(|member| member.state == MemberState::Ended(0))
    );
    // The status of the group is that of the first one that failed.
    let group = Group::of(sh("exit $DRAGON_RANK")).start(4).unwrap();
    assert_eq!(group.wait(Deadline::Never).unwrap(), 1 << 8);
}

/// What `dragon ps` tells of them.
fn listed() {
    let group = Group::of(sh("sleep 1000")).start(4).unwrap();
    let name = group.descriptor().object.to_string();
    let done = run(&mut dragon(["ps", "--all-nodes", "--json"]));
    assert_eq!(done.code, Some(0), "{done:?}");
    let listed: Value = serde_json::from_str(&done.out).unwrap();
    let rows = listed["processes"].as_array().unwrap().iter();
    // The head has no group.
    let (members, others): (Vec<_>, Vec<_>) = rows.partition(|row| row["group"] == name);
    assert!(
        matches!(others[..], [head] if head["group"] == "" && head["rank"].is_null()),
        "{done:?}"
    );
    let place = |member: MemberInfo| (member.rank, member.node.get());
    let expected = group.members().unwrap().into_iter().map(place);
    let told = members.iter().map(|row| {
        let number = |name: &str| u32::try_from(row[name].as_u64().unwrap()).unwrap();
        (number("rank"), number("node"))
    });
    let (expected, told): (BTreeSet<_>, BTreeSet<_>) = (expected.collect(), told.collect());
    assert_eq!(told, expected, "{done:?}");
    assert_eq!(told.len(), 4, "{done:?}");
    group.kill().unwrap();
}

fn restarts() {
    let folder = tempfile::tempdir().unwrap();
    // Each member succeeds at its third start, but for one, which never does.
    let script = "echo >> $DRAGON_RANK; test $(wc -l < $DRAGON_RANK) -ge 3 -a $DRAGON_RANK != 2";
    let member = sh(script).directory(folder.path());
    let group = Group::of(member)
        .restart(RestartWhen::OnFailure, 4)
        .back_off(Duration::from_millis(5), Duration::from_millis(20))
        .start(4)
        .unwrap();
    assert_eq!(group.wait(Deadline::Never).unwrap(), 1 << 8);
    let ended = |member: &MemberInfo| (member.state.clone(), member.restarts);
    let ended: Vec<_> = group.members().unwrap().iter().map(ended).collect();
    let (good, bad) = ((MemberState::Ended(0), 2), (MemberState::Ended(1 << 8), 4));
    assert_eq!(ended, [good.clone(), good.clone(), bad, good]);

    // One that is always started again ends at its walltime.
    let group = Group::of(sh("echo >> again").directory(folder.path()))
        .restart(RestartWhen::Always, u32::MAX)
        .back_off(Duration::from_millis(2), Duration::from_millis(2))
        .walltime(Duration::from_millis(200))
        .start(1)
        .unwrap();
    group.wait(Deadline::Never).unwrap();
    let again = fs::read_to_string(folder.path().join("again")).unwrap();
    assert!(again.lines().count() > 2, "{again:?}");
    // One that does not mind SIGTERM is killed, with what it started.
    let group = Group::of(sh("trap '' TERM; sleep 1000 & wait; wait; sleep 1000"))
        .walltime(Duration::from_millis(50))
        .start(2)
        .unwrap();
    assert_eq!(group.wait(Deadline::Never).unwrap(), KILL);
}

fn orders() {
    let group = Group::of(sh("sleep 1000 & wait")).start(6).unwrap();
    let before = pids(&group);
    assert_eq!(before.len(), 6);
    group.add(3).unwrap();
    assert_eq!(pids(&group).len(), 9);
    group.remove(&[1, 7]).unwrap();
    let state = |rank: usize| group.members().unwrap()[rank].state.clone();
    eventually_empty("the group", || match (state(1), state(7)) {
        (MemberState::Ended(KILL), MemberState::Ended(KILL)) => String::new(),
        other => format!("{other:?}"),
    });
    assert_eq!(pids(&group).len(), 7);
    // From a node that is not the group's, and by a process that did not make it.
    let name = group.descriptor().to_string();
    let far = other("far orders", &name, 2).start().unwrap();
    assert_eq!(far.process.wait(Deadline::Never).unwrap(), 0);
    assert_eq!(group.wait(Deadline::Never).unwrap(), TERM);
    gone(&before);
    assert_eq!(group.add(1).unwrap_err().code(), Code::NoSuchObject);
    assert_eq!(
        group.signal(4711).unwrap_err().code(),
        Code::InvalidArgument
    );
    // A member is killed by somebody else: the group knows.
    let group = Group::of(sh("sleep 1000")).start(2).unwrap();
    let victim = pids(&group)[1].to_string();
    assert!(
        Command::new("kill")
            .args(["-9", &victim])
            .status()
            .unwrap()
            .success()
    );
    group.signal_tree(TERM).unwrap();
    assert_eq!(group.wait(Deadline::Never).unwrap(), TERM);
    let ended: Vec<_> = group
        .members()
        .unwrap()
        .into_iter()
        .map(|member| member.state)
        .collect();
    assert_eq!(ended, [MemberState::Ended(TERM), MemberState::Ended(KILL)]);
}

fn far_orders() {
    let name: Descriptor = what().parse().unwrap();
    let group = Group::attach(name, false).unwrap();
    assert_eq!(group.members().unwrap().len(), 9);
    assert_eq!(
        group.wait(Deadline::after(1_000_000)).unwrap_err().code(),
        Code::Timeout
    );
    group.signal_tree(TERM).unwrap();
    assert_eq!(group.wait(Deadline::Never).unwrap(), TERM);
}

fn creator_killed() {
    let mut creator = other("creator", "", 1)
        .stdout(Stdio::Piped)
        .start()
        .unwrap();
    let pids = child::ready(&mut creator);
    let (bound, free) = pids.split_at(3);
    assert!(pids.iter().all(|pid| is_running(*pid)), "{pids:?}");
    creator.process.signal(KILL).unwrap();
    assert_eq!(creator.process.wait(Deadline::Never).unwrap(), KILL);
    gone(bound);
    assert!(free.iter().all(|pid| is_running(*pid)));
}

fn creator() {
    let bound = Group::of(sh("sleep 1000")).start(3).unwrap();
    let free = Group::of(sh("sleep 1000"))
        .lives(Lives::UntilTheEnd)
        .start(3)
        .unwrap();
    let all = [pids(&bound), pids(&free)].concat();
    let words: Vec<String> = all.iter().map(u32::to_string).collect();
    println!("{} ready", words.join(" "));
    let _ = bound.wait(Deadline::Never);
}

fn refused() {
    let folder = tempfile::tempdir().unwrap();
    // The program of one member is missing: on one node only.
    let member = Spawn::program("./there").directory(folder.path());
    let error = Group::of(member).start(3).unwrap_err();
    assert_eq!(error.code(), Code::SpawnFailed);
    let text = error.to_string();
    assert!(
        text.contains(
            "member 0 of the group: ./there: no such file (2 others were not started either)"
        ),
        "{text}"
    );
    // CPUs for all but one.
    let all = u32::try_from(stats()["cpus_granted"]).unwrap();
    let member = sh("sleep 1000").cpus(1).policy(Policy::Local);
    let error = Group::of(member.clone()).start(all + 1).unwrap_err();
    assert_eq!(error.code(), Code::Full, "{error}");
    eventually_empty("this node", || match stats()["cpus_free"] {
        free if free == u64::from(all) => String::new(),
        free => format!("{free} CPUs are free"),
    });
    let group = Group::of(member).start(all).unwrap();
    assert_eq!(stats()["cpus_free"], 0);
    group.kill().unwrap();
    assert_eq!(group.wait(Deadline::Never).unwrap(), KILL);
    let piped = Group::of(sh("true").stdout(Stdio::Piped))
        .start(1)
        .unwrap_err();
    assert!(piped.to_string().contains("share no pipe"), "{piped}");
    assert!(
        Group::of(sh("true"))
            .start(0)
            .unwrap_err()
            .to_string()
            .contains("0 members")
    );
}

/// One that waits for a CPU of this node, and would leave a file.
fn waits_for_a_cpu(folder: &str) -> Spawn {
    let member = sh("echo >> started").directory(Path::new(folder)).cpus(1);
    let member = member.policy(Policy::Local);
    member.wait_for_resources(Duration::from_secs(3600))
}

fn waiting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let all = u32::try_from(stats()["cpus_granted"]).unwrap();
    let holder = sh("sleep 1000").cpus(all).policy(Policy::Local);
    let holder = holder.start().unwrap();
    // The walltime is over before the first one is served.
    let late = Group::of(waits_for_a_cpu(path)).walltime(Duration::from_millis(50));
    let late = late.start(2).unwrap_err();
    assert_eq!(late.code(), Code::Cancelled, "{late}");
    let text = "member 0 of the group: sh: was called off while it waited";
    assert!(late.to_string().contains(text), "{late}");

    let creator = other("waiting creator", path, 0).start().unwrap();
    let why_not = || {
        let spawn = sh("true").cpus(1).policy(Policy::Local);
        spawn.start().map(drop).unwrap_err().to_string()
    };
    let queued = || why_not().contains("3 others wait for CPUs");
    eventually_empty("the way to the queue", || match queued() {
        true => String::new(),
        false => why_not(),
    });
    creator.process.signal(KILL).unwrap();
    eventually_empty("the queue", || match why_not() {
        text if text.contains("others wait") => text,
        _ => String::new(),
    });
    holder.process.signal_tree(KILL).unwrap();
    holder.process.wait(Deadline::Never).unwrap();
    let next = sh("true").cpus(all).policy(Policy::Local).start().unwrap();
    assert_eq!(next.process.wait(Deadline::Never).unwrap(), 0);
    assert!(!folder.path().join("started").exists());
}

fn waiting_creator() {
    Group::of(waits_for_a_cpu(&what())).start(3).unwrap();
}

fn daemon_killed() {
    let group = Group::of(sh("sleep 1000 & sleep 1000"))
        .lives(Lives::UntilTheEnd)
        .start(9)
        .unwrap();
    let daemon = parent_id().to_string();
    assert!(
        Command::new("kill")
            .args(["-9", &daemon])
            .status()
            .unwrap()
            .success()
    );
    let _ = group.wait(Deadline::Never);
}

fn counts() {
    let before = stats()["control_requests"];
    let far = other("far creator", "", 1).start().unwrap();
    assert_eq!(far.process.wait(Deadline::Never).unwrap(), 0);
    let asked = stats()["control_requests"] - before;
    eprintln!(
        "requests to the first node while another one started and joined 50 processes: {}",
        asked - 2
    );
    // The start of the program that did it, and the question itself.
    assert_eq!(asked, 2);
}

fn far_creator() {
    let node = NodeIndex::new(2).unwrap();
    for _ in 0..50 {
        let child = Spawn::program("true").node(node).start().unwrap();
        assert_eq!(child.process.wait(Deadline::Never).unwrap(), 0);
    }
}
