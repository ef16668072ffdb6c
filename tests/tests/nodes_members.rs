//! Jobs whose network is cut: each node has a network of its own, and the one side without majority must end itself. This
//! program is also the program that runs on the nodes.

#![allow(clippy::unwrap_used)]

mod members;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode};

use dragon_tests::local::{binary, dragon, eventually_empty, repository};
use dragon_tests::nodes::Nodes;
use dragon_tests::suite;
use members::Job;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let Some(code) = members::program(&words) {
        return code;
    }
    suite::run(
        || Nodes::up(3),
        &[
            (
                "one_way_to_another_node_is_cut",
                one_way_to_another_node_is_cut,
            ),
            ("the_first_node_is_cut_off", the_first_node_is_cut_off),
            (
                "who_attaches_to_a_node_elsewhere_is_told_where_it_is",
                who_attaches_to_a_node_elsewhere_is_told_where_it_is,
            ),
        ],
    )
}

/// Starts a job on the three nodes, through the rig in the place of a remote shell.
fn start(nodes: &Nodes) -> Job {
    let folder = nodes.folder();
    for name in ["dragon", "dragond"] {
        let place = folder.join(name);
        if !place.exists() {
            std::fs::copy(binary(name), place).unwrap();
        }
    }
    let shell = folder.join("shell");
    let rig = repository().join("tests/rig/cluster");
    let script = format!(
        "#!/bin/sh\nRIG_RUN={} exec {} exec \"$1\" -u root \"$2\" \"$3\" \"$4\"\n",
        folder.display(),
        rig.display()
    );
    std::fs::write(&shell, script).unwrap();
    std::fs::set_permissions(&shell, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (shell, program) = (shell.display().to_string(), nodes.program());
    let mut command = dragon([
        "--hostlist",
        "n[1-3]",
        "--rsh",
        &shell,
        "--node-limit",
        "2",
        "--on-node-failure",
        "continue",
        "--cwd",
        "/",
        "--",
        program.to_str().unwrap(),
        "head",
        "3",
    ]);
    let mut beside = std::process::Command::new(folder.join("dragon"));
    beside.args(command.get_args());
    beside
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    command = beside;
    Job::start(&mut command)
}

fn nothing_left(nodes: &Nodes) {
    for node in ["n1", "n2", "n3"] {
        let look = "ps -eo pid,args | grep -E 'dragond|program (head|worker)' | grep -v grep; grep @dragon /proc/net/unix; true";
        eventually_empty(node, || nodes.on(node, &["sh", "-c", look]).out);
    }
}

/// What the second node sends to the first gets lost, and nothing else: the two agree with the third on who has to go.
fn one_way_to_another_node_is_cut(nodes: &Nodes) {
    let job = start(nodes);
    let route = |what| {
        let words = ["ip", "route", what, "blackhole", "10.77.0.1/32"];
        let done = nodes.on("n2", &words);
        assert_eq!(done.code, Some(0), "{}", done.err);
    };
    route("add");
    let done = job.end();
    route("del");
    let story = format!("{}\n{}", done.out, done.err);
    assert!(done.out.contains("2 nodes are left"), "{story}");
    assert!(done.out.contains("worker 2 was told to end"), "{story}");
    assert!(done.err.contains("node 1 (n2) is lost"), "{story}");
    let ends = ["the others went on without it", "reaches no majority"];
    assert!(ends.iter().any(|end| done.err.contains(end)), "{story}");
    assert_eq!(done.code, Some(7), "{story}");
    nothing_left(nodes);
}

/// There is no way there but the one that the user has.
fn who_attaches_to_a_node_elsewhere_is_told_where_it_is(nodes: &Nodes) {
    let job = start(nodes);
    let command = nodes.folder().join("dragon");
    let attach = [command.to_str().unwrap(), "attach", "--node"];
    let done = nodes.on("n1", &[&attach[..], &["1", "true"]].concat());
    assert_eq!(done.code, Some(125), "{}", done.err);
    for text in ["is on n2, and not on this machine", "--node 1"] {
        assert!(done.err.contains(text), "{}", done.err);
    }
    let there = nodes.on("n2", &[&attach[..], &["1", "true"]].concat());
    assert_eq!(there.code, Some(0), "{}", there.err);
    let launcher = job.launcher.id().to_string();
    let ended = Command::new("kill").args(["-TERM", &launcher]).status();
    assert!(ended.unwrap().success());
    assert_eq!(job.end().code, Some(128 + 15));
    nothing_left(nodes);
}

/// The first node, with the head and global services, is alone; the others go on.
fn the_first_node_is_cut_off(nodes: &Nodes) {
    let job = start(nodes);
    let wire = |what| {
        let done = dragon_tests::local::run(&mut nodes.rig(&[what, "n1"]));
        assert_eq!(done.code, Some(0), "{}", done.err);
    };
    wire("cut");
    let done = job.end();
    wire("join");
    let story = format!("{}\n{}", done.out, done.err);
    for node in [1, 2] {
        let line = format!("worker {node} goes on with 2 nodes, node 1 first");
        assert!(done.out.contains(&line), "{story}");
    }
    assert!(
        done.err.contains("node 0 (n1) reaches no majority"),
        "{story}"
    );
    assert_eq!(done.code, Some(125), "{story}");
    nothing_left(nodes);
}
