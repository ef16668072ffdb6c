//! Programs over nodes that share nothing but the network: each has its own mount, PID, IPC and network namespace.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};

use dragon_tests::cluster::Cluster;
use dragon_tests::local::{eventually_empty, finish, repository, run};
use dragon_tests::suite;

fn main() -> ExitCode {
    suite::run(
        || Cluster::plain(3),
        &[
            ("nodes_share_nothing", nodes_share_nothing),
            (
                "examples_run_on_one_and_three_nodes",
                examples_run_on_one_and_three_nodes,
            ),
            (
                "messages_cross_once_and_ask_nobody",
                messages_cross_once_and_ask_nobody,
            ),
            (
                "a_full_pool_is_an_error_that_names_it",
                a_full_pool_is_an_error_that_names_it,
            ),
            (
                "killed_senders_and_receivers_stop_nobody",
                killed_senders_and_receivers_stop_nobody,
            ),
            (
                "a_host_that_does_not_answer_is_named",
                a_host_that_does_not_answer_is_named,
            ),
            (
                "killed_launcher_ends_everything",
                killed_launcher_ends_everything,
            ),
            ("cut_network_ends_both_sides", cut_network_ends_both_sides),
            ("dead_node_ends_the_rest", dead_node_ends_the_rest),
        ],
    )
}

/// `dragon` over the first nodes of the cluster, with the rig as remote shell.
fn dragon(cluster: &Cluster, nodes: u32, words: &[&str]) -> Command {
    let rsh = format!("{} exec", repository().join("tests/rig/cluster").display());
    let mut command = cluster.rig_environment(cluster.site().root().join("bin/dragon"));
    command
        .args(["--hostlist", &format!("n[1-{nodes}]"), "--rsh", &rsh])
        .args(words);
    command
}

fn program(cluster: &Cluster, name: &str) -> String {
    let installed = cluster.site().root().join(name);
    std::fs::copy(repository().join("tests/programs").join(name), &installed).unwrap();
    installed.to_str().unwrap().to_owned()
}

fn ready(cluster: &Cluster) -> Child {
    let mut child = dragon(
        cluster,
        3,
        &["sh", "-c", "echo ready; sleep 1000 & sleep 1000"],
    )
    .spawn()
    .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn nodes_share_nothing(cluster: &Cluster) {
    for kind in ["mnt", "pid", "ipc", "net", "uts"] {
        let link = format!("/proc/self/ns/{kind}");
        let mut seen: Vec<_> = cluster
            .nodes()
            .map(|node| run(&mut cluster.on(&node, ["readlink", &link])).out)
            .collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 3, "{kind}: {seen:?}");
    }
}

fn examples_run_on_one_and_three_nodes(cluster: &Cluster) {
    for example in ["hello_world.py", "ring.py", "pipeline.py"] {
        for nodes in [1, 3] {
            let done = run(&mut dragon(
                cluster,
                nodes,
                &[&cluster.site().example(example)],
            ));
            assert_eq!(done.code, Some(0), "{example} on {nodes}: {done:?}");
            for node in cluster.nodes().take(nodes as usize) {
                assert!(
                    example == "pipeline.py" || done.out.contains(&node),
                    "{example}: nothing ran on {node}: {done:?}"
                );
            }
        }
    }
    cluster.assert_nothing_left();
}

fn messages_cross_once_and_ask_nobody(cluster: &Cluster) {
    let done = run(&mut dragon(cluster, 2, &[&program(cluster, "crossing.py")]));
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "ok\n"),
        "{}",
        done.err
    );
}

fn a_full_pool_is_an_error_that_names_it(cluster: &Cluster) {
    let program = program(cluster, "full_pool.py");
    let done = run(&mut dragon(cluster, 1, &["--pool", "16M", &program]));
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "ok\n"),
        "{}",
        done.err
    );
}

fn killed_senders_and_receivers_stop_nobody(cluster: &Cluster) {
    for nodes in [1, 3] {
        let done = run(&mut dragon(
            cluster,
            nodes,
            &[&program(cluster, "killed.py"), "5"],
        ));
        assert_eq!(done.code, Some(0), "{done:?}");
        cluster.assert_nothing_left();
    }
}

fn a_host_that_does_not_answer_is_named(cluster: &Cluster) {
    // n2 exists, but nothing is started there: its remote shell does nothing.
    let rsh = cluster.site().root().join("rsh");
    let rig = repository().join("tests/rig/cluster");
    let text = format!(
        "#!/bin/sh\n[ $1 = n2 ] && exec sleep 1000\nexec {} exec \"$@\"\n",
        rig.display()
    );
    std::fs::write(&rsh, text).unwrap();
    run(Command::new("chmod")
        .arg("+x")
        .arg(&rsh)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped()));
    let mut command = cluster.rig_environment(cluster.site().root().join("bin/dragon"));
    let words = [
        "--bring-up-limit",
        "2",
        "--hostlist",
        "n[1-3]",
        "--rsh",
        rsh.to_str().unwrap(),
        "true",
    ];
    let done = run(command.args(words));
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(done.err.contains("node 1 (n2)"), "{}", done.err);
    cluster.assert_nothing_left();
}

fn killed_launcher_ends_everything(cluster: &Cluster) {
    let mut child = ready(cluster);
    child.kill().unwrap();
    let _ = finish(child);
    cluster.assert_nothing_left();
}

fn cut_network_ends_both_sides(cluster: &Cluster) {
    let child = ready(cluster);
    run(cluster.rig().args(["cut", "n3"]));
    let done = finish(child);
    assert_eq!(done.code, Some(125), "{done:?}");
    let lost = "the host n3 does not answer: node 2 (n3) is lost";
    assert!(done.err.contains(lost), "{}", done.err);
    cluster.assert_nothing_left();
    run(cluster.rig().args(["join", "n3"]));
}

fn dead_node_ends_the_rest(cluster: &Cluster) {
    let child = ready(cluster);
    run(cluster.rig().args(["kill", "n3"]));
    let done = finish(child);
    assert_eq!(done.code, Some(125), "{done:?}");
    for node in ["n1", "n2"] {
        eventually_empty(node, || cluster.traces(node));
    }
}
