//! Nodes with two networks between them, of which one is named: `--interface`.
//!
//! This program is also the head of the runtime and its workers.

#![allow(clippy::unwrap_used)]

use std::process::ExitCode;

use dragon::{Channel, ChannelOptions, Deadline, Descriptor, Session, Spawn};
use dragon_tests::job::Job;
use dragon_tests::local::{WATCHDOG, run};
use dragon_tests::netns::Netns;
use dragon_tests::suite;

const NODES: u32 = 3;
/// Bytes that each worker sends.
const PAYLOAD: usize = 4 << 20;
/// What a node may send and receive where it has no business but to find the others.
const CONTACT: u64 = 64 << 10;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["head"] => head(),
        ["worker", descriptor] => worker(descriptor.parse().unwrap()),
        _ => return tests(),
    }
    ExitCode::SUCCESS
}

fn tests() -> ExitCode {
    let up = || {
        let netns = Netns::up(NODES)?;
        netns.second_network()?;
        Ok(netns)
    };
    suite::run(
        up,
        &[
            (
                "all_goes_by_the_interface_that_was_named",
                all_goes_by_the_interface_that_was_named,
            ),
            (
                "a_name_that_a_node_lacks_is_refused_with_those_that_it_has",
                a_name_that_a_node_lacks_is_refused_with_those_that_it_has,
            ),
        ],
    )
}

/// When told to, starts a worker on each node and receives what it sends.
fn head() {
    let nodes = Session::attach().unwrap().nodes().unwrap().nodes;
    println!("ready");
    std::io::stdin().lines().next().unwrap().unwrap();
    let channel = Channel::create(&ChannelOptions::default()).unwrap();
    let descriptor = channel.descriptor().to_string();
    let program = std::env::current_exe().unwrap();
    let start = |node: &dragon::NodeInfo| {
        let worker = Spawn::program(&program).arg("worker").arg(&descriptor);
        worker.node(node.node).start().unwrap()
    };
    let workers: Vec<_> = nodes.iter().map(start).collect();
    for _ in &workers {
        let message = channel.receive(Deadline::Never).unwrap();
        assert_eq!(message.to_vec().len(), PAYLOAD);
    }
    for worker in &workers {
        assert_eq!(worker.process.wait(Deadline::Never).unwrap(), 0);
    }
    println!("all came");
}

fn worker(descriptor: Descriptor) {
    let node = Session::attach().unwrap().node();
    let channel = Channel::attach(descriptor, false).unwrap();
    channel.send(&vec![7; PAYLOAD], 0, Deadline::Never).unwrap();
    println!("node {node} has sent");
}

/// Bytes that an interface of a node has received and sent.
fn passed(netns: &Netns, node: u32, interface: &str) -> u64 {
    let all = run(&mut piped(netns.on(node, &["cat", "/proc/net/dev"]))).out;
    let line = all.lines().find_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == interface).then_some(numbers)
    });
    let numbers: Vec<u64> = line
        .unwrap()
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    numbers[0] + numbers[8]
}

fn piped(mut command: std::process::Command) -> std::process::Command {
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    command
}

/// The hosts are named by their addresses of the first network, which is gone as soon as the nodes are up.
fn all_goes_by_the_interface_that_was_named(netns: &Netns) {
    let own = std::env::current_exe().unwrap();
    let program = own.to_str().unwrap();
    for interface in ["eth1", "10.79.0.0/16"] {
        let interfaces = ["eth0", "eth1"];
        let count = || {
            let of = |node| interfaces.map(|interface| passed(netns, node, interface));
            (0..NODES).map(of).collect::<Vec<_>>()
        };
        let before = count();
        let words = ["--interface", interface, program, "head"];
        let mut job = Job::start(&mut netns.dragon(NODES, &words)).unwrap();
        job = job.in_namespaces(netns.holders());
        assert!(job.has_printed("ready", WATCHDOG), "{:?}", job.ends());
        netns.first_network("down").unwrap();
        job.tell("go\n");
        let ended = job.ends();
        netns.first_network("up").unwrap();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.out.contains("all came"), "{ended:?}");
        for node in 0..NODES {
            let line = format!("node {node} has sent");
            assert!(ended.out.contains(&line), "{ended:?}");
        }
        for (node, (before, after)) in before.into_iter().zip(count()).enumerate() {
            let [first, second] = [0, 1].map(|n| after[n] - before[n]);
            assert!(first < CONTACT, "node {node}: {first} bytes by eth0");
            assert!(second >= PAYLOAD as u64, "node {node}: {second} by eth1");
        }
    }
}

fn a_name_that_a_node_lacks_is_refused_with_those_that_it_has(netns: &Netns) {
    let refused = |words: &[&str]| {
        let mut job = Job::start(&mut netns.dragon(NODES, words)).unwrap();
        let ended = job.ends();
        assert_eq!(ended.code, Some(125), "{ended:?}");
        ended.err
    };
    let err = refused(&["--interface", "eth7", "true"]);
    for words in [
        "no interface for 'eth7'",
        "eth0 (up, 10.78.0.",
        "eth1 (up, 10.79.0.",
    ] {
        assert!(err.contains(words), "{words}: {err}");
    }
    // On one node alone.
    let down = |state| {
        run(&mut piped(
            netns.on(2, &["ip", "link", "set", "eth1", state]),
        ))
    };
    assert_eq!(down("down").code, Some(0));
    let err = refused(&["--interface", "eth1", "true"]);
    assert_eq!(down("up").code, Some(0));
    for words in [
        "node 2 (10.78.0.3)",
        "no interface for 'eth1'",
        "eth1 (down",
    ] {
        assert!(err.contains(words), "{words}: {err}");
    }
}
