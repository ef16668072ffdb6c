//! Jobs whose network is cut: each node has a network of its own, and the one side without majority must end itself. This
//! program is also the program that runs on the nodes.

#![allow(clippy::unwrap_used)]

mod members;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode, Stdio};

use dragon::{Deadline, Spawn};
use dragon_tests::job;
use dragon_tests::local::{WATCHDOG, binary, eventually_empty, repository, run};
use dragon_tests::netns::{Netns, address};
use dragon_tests::nodes::Nodes;
use dragon_tests::suite;
use members::Job;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let Some(code) = members::program(&words) {
        return code;
    }
    if words == ["placed"] {
        return placed();
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
                "connections_that_break_are_made_again",
                connections_that_break_are_made_again,
            ),
            (
                "two_of_five_are_cut_off_from_the_others",
                two_of_five_are_cut_off_from_the_others,
            ),
            (
                "processes_go_to_the_host_that_is_named",
                processes_go_to_the_host_that_is_named,
            ),
            (
                "who_attaches_to_a_node_elsewhere_is_told_where_it_is",
                who_attaches_to_a_node_elsewhere_is_told_where_it_is,
            ),
        ],
    )
}

/// Starts a job on the three nodes.
fn start(nodes: &Nodes) -> Job {
    start_with(nodes, &["--node-limit", "2"], &["head", "3"])
}

fn start_with(nodes: &Nodes, options: &[&str], words: &[&str]) -> Job {
    Job::start(&mut command(nodes, options, words))
}

/// `dragon` with this program on the three nodes, through the rig in the place of a remote shell.
fn command(nodes: &Nodes, options: &[&str], words: &[&str]) -> Command {
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
    let places = [
        "--hostlist",
        "n[1-3]",
        "--rsh",
        &shell,
        "--on-node-failure",
        "continue",
        "--cwd",
        "/",
    ];
    let mut command = Command::new(folder.join("dragon"));
    command
        .args(places)
        .args(options)
        .arg("--")
        .arg(program)
        .args(words);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The head: starts a process on each host by its name.
fn placed() -> ExitCode {
    for host in ["n2", "n3", "n1"] {
        let script = format!("echo {host}: $(hostname)");
        let spawn = Spawn::program("sh").arg("-c").arg(script).host(host);
        let status = spawn.start().unwrap().process.wait(Deadline::Never);
        assert_eq!(status.unwrap(), 0);
    }
    ExitCode::SUCCESS
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
        let done = run(&mut nodes.rig(&[what, "n1"]));
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

/// The connections between the first two nodes break, and the second hears nothing of it: it has two for as long as its own
/// seems to stand. What goes by the tree finds its way then, and what was said into a broken one is said again. Takes twice
/// eight tenths of the limit, since the kernel does.
fn connections_that_break_are_made_again(nodes: &Nodes) {
    let mut job = start_with(nodes, &["--node-limit", "3"], &["asks"]);
    let creator = job.line("creator ");
    let number = |line: &str| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    let broken = break_connections(nodes, &|| ());
    if broken == 0 {
        println!(
            "SKIPPED broken connections: the kernel ends no sockets for ss -K (CONFIG_INET_DIAG_DESTROY)"
        );
    }
    let last = number(&job.line("tick "));
    while number(&job.line("tick ")) < last + 150 {}
    break_connections(nodes, &|| {
        let pid = creator.split(' ').nth(1).unwrap();
        let killed = nodes.on("n1", &["kill", "-9", pid]);
        assert_eq!(killed.code, Some(0), "{killed:?}");
    });
    job.line("creator ended with ");
    let look = "ps -eo args | grep 'program ticks' | grep -v grep; true";
    eventually_empty("n2", || nodes.on("n2", &["sh", "-c", look]).out);
    let launcher = job.launcher.id().to_string();
    let ended = Command::new("kill").args(["-TERM", &launcher]).status();
    assert!(ended.unwrap().success());
    let done = job.end();
    assert_eq!(done.code, Some(128 + 15), "{}", done.err);
    assert!(!done.err.contains("is lost"), "{}", done.err);
    nothing_left(nodes);
}

/// Ends the connections of the first node to the second: from then on, and for good, nothing of them reaches the second, not
/// even their end. Returns how many there were.
fn break_connections(nodes: &Nodes, meanwhile: &dyn Fn()) -> usize {
    let on_first = |words: &[&str]| {
        let done = nodes.on("n1", words);
        assert_eq!(done.code, Some(0), "{done:?}");
        done.out
    };
    let to_second = ["-H", "-t", "-n", "dst", "10.77.0.2"];
    let all = on_first(&[&["ss"], &to_second[..]].concat());
    let port = |address: &str| address.rsplit(':').next().unwrap().to_owned();
    for connection in all.lines() {
        let mut addresses = connection.split_whitespace().skip(3);
        let (from, to) = (addresses.next().unwrap(), addresses.next().unwrap());
        let ports = ["sport", &port(from), "dport", &port(to)];
        on_first(
            &[
                &["ip", "rule", "add", "ipproto", "tcp"],
                &ports[..],
                &["blackhole"],
            ]
            .concat(),
        );
    }
    meanwhile();
    on_first(&[&["ss", "-K"], &to_second[..]].concat())
        .lines()
        .count()
}

/// The first node and another are alone, the other three go on. Some seconds: who is cut off with the first node hears of it
/// until that one ends, and only then finds out that it is alone.
fn two_of_five_are_cut_off_from_the_others(_: &Nodes) {
    let netns = Netns::up(5).unwrap();
    let own = std::env::current_exe().unwrap();
    let policy = ["--node-limit", "2", "--on-node-failure", "continue"];
    let program = ["--", own.to_str().unwrap(), "head", "5"];
    let job = job::Job::start(&mut netns.dragon(5, &[&policy[..], &program].concat()));
    let mut job = job.unwrap().in_namespaces(netns.holders());
    assert!(job.has_printed("daemons ", WATCHDOG));
    netns.split(&[0, 1]).unwrap();
    let ended = job.ends();
    for node in 2..5 {
        let line = format!("worker {node} goes on with 3 nodes, node 2 first");
        assert!(ended.out.contains(&line), "{ended:?}");
    }
    // Node 1 speaks through node 0, which may have ended by then.
    let line = format!("node 0 ({}) reaches no majority", address(0));
    assert!(ended.err.contains(&line), "{ended:?}");
    assert_eq!(ended.code, Some(125), "{ended:?}");
}

fn processes_go_to_the_host_that_is_named(nodes: &Nodes) {
    let done = run(&mut command(nodes, &[], &["placed"]));
    let mut lines: Vec<_> = done.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["n1: n1", "n2: n2", "n3: n3"], "{}", done.err);
    assert_eq!(done.code, Some(0), "{}", done.err);
    nothing_left(nodes);
}
