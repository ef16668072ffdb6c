//! Bring-up and tear-down, state by state: hosts on which something goes wrong, and processes that are killed, told to end or
//! stopped while the nodes are in a state that their log shows. Each time the command ends with the right code, says which node it
//! was and why, and leaves nothing behind.

#![allow(clippy::unwrap_used)]

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use dragon_tests::hosts::Hosts;
use dragon_tests::job::{Ended, Job, send, voluntary_switches};
use dragon_tests::local::{WATCHDOG, binary, dragon, pause, run};
use rustix::process::{Pid, Signal};

/// A limit for the bring-up that no test waits for: what ends before has not waited for it.
const NEVER: &str = "3600";
/// Runs until its input ends.
const HEAD: &[&str] = &["sh", "-c", "echo up; read line; exit 3"];

fn start(command: &mut Command) -> Job {
    // A process group of its own stands for the terminal's foreground group.
    Job::start(command.process_group(0)).unwrap()
}

/// The bring-up fails: with this limit, and these words said.
fn fails(hosts: &Hosts, limit: &str, said: &[&str]) -> Ended {
    let mut job = start(&mut hosts.dragon(&[&["--bring-up-limit", limit], HEAD].concat()));
    let ended = job.ends();
    assert_eq!(ended.code, Some(125), "{ended:?}");
    assert!(!ended.out.contains("up"), "the head ran: {ended:?}");
    for words in said {
        assert!(ended.err.contains(words), "'{words}' is missing: {ended:?}");
    }
    ended
}

#[test]
fn a_host_that_hangs_is_named_at_the_limit() {
    fails(
        &Hosts::new(3).hanging(1),
        "1",
        &["not up within 1s", "node 1 (127.0.0.2)"],
    );
    fails(
        &Hosts::new(3).hanging(0),
        "1",
        &["node 0 (127.0.0.1) was not reached within 1s"],
    );
}

#[test]
fn a_host_deep_in_the_tree_is_named_too() {
    // Node 17 is below node 1.
    let ended = fails(
        &Hosts::new(18).hanging(17),
        "10",
        &["not up within 10s", "node 17 (127.0.0.18)"],
    );
    assert!(!ended.err.contains("node 1 ("), "{ended:?}");
}

#[test]
fn a_host_that_comes_late_is_waited_for() {
    let hosts = Hosts::new(3).with(2, "sleep 0.5").with(0, "sleep 0.2");
    let mut job = start(&mut hosts.dragon(HEAD));
    job.tell("go\n");
    assert_eq!(job.ends().code, Some(3));
}

#[test]
fn a_host_without_the_daemon_ends_the_bring_up_at_once() {
    let missing = "set -- /no/such/dragond";
    fails(
        &Hosts::new(3).with(1, missing),
        NEVER,
        &["node 1 (127.0.0.2) cannot be started", "installed"],
    );
    let hosts = Hosts::new(2).with(0, missing);
    let mut job = start(&mut hosts.dragon(HEAD));
    let ended = job.ends();
    assert_eq!(ended.code, Some(125), "{ended:?}");
    let sentence =
        "node 0 (127.0.0.1) was not started: the remote shell ended with exit status: 127";
    assert!(ended.err.contains(sentence), "{ended:?}");
}

#[test]
fn a_host_that_the_shell_does_not_reach_ends_the_bring_up_at_once() {
    let refused = "echo 'connect to host: Connection refused' >&2; exit 255";
    fails(
        &Hosts::new(3).with(2, refused),
        NEVER,
        &["Connection refused", "node 2 (127.0.0.3) cannot be reached"],
    );
}

#[test]
fn another_release_is_named_at_once() {
    let older = r#"for word; do shift; case $word in --from=*) word=--from=0.0.1/65535/${word##*/} ;; esac; set -- "$@" "$word"; done"#;
    for node in 0..2 {
        fails(
            &Hosts::new(2).with(node, older),
            NEVER,
            &[
                &format!("node {node}"),
                "0.0.1",
                "protocol 65535",
                env!("CARGO_PKG_VERSION"),
            ],
        );
    }
}

#[test]
fn a_node_with_another_key_is_missed() {
    // The fifth byte of the launch message is the first of the key.
    let patched = "{ dd bs=1 count=4; dd bs=1 count=1 of=/dev/null; printf X; exec cat; } 2>/dev/null | \"$@\"; exit $?";
    fails(
        &Hosts::new(2).with(1, patched),
        "1",
        // It looks for the others on the ports of its own key, and meets nobody.
        &["node 1 (127.0.0.2)"],
    );
}

#[test]
fn a_node_without_memory_says_so_at_once() {
    for node in 0..3 {
        let text = format!("node {node} (127.0.0.{})", node + 1);
        let hosts = Hosts::new(3).with(node, "ulimit -v 300000");
        let mut said = vec!["cannot create the", "Cannot allocate memory"];
        if node != 0 {
            said.push(&text);
        }
        fails(&hosts, NEVER, &said);
    }
}

#[test]
fn a_range_without_a_free_port_is_named_at_once() {
    let ports = ["--ports", "31997-31998", "--bring-up-limit", NEVER];
    let nodes = ["-N", "6", "--local-nodes"];
    let mut job = start(&mut dragon(nodes.iter().chain(&ports).chain(HEAD)));
    let ended = job.ends();
    assert_eq!(ended.code, Some(125), "{ended:?}");
    let said = "no free port for the bring-up between 31997 and 31998";
    assert!(ended.err.contains(said), "{ended:?}");
}

/// What is done to a job in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    KillLauncher,
    TerminateLauncher,
    HangUpLauncher,
    /// What a terminal does at Ctrl-C; twice.
    Interrupt,
    KillDaemon(u32),
    TerminateDaemon(u32),
    /// Until it is gone: what a terminal does, where this daemon hears it before the others do.
    InterruptDaemon(u32),
}

const ACTIONS: [Action; 9] = [
    Action::KillLauncher,
    Action::TerminateLauncher,
    Action::HangUpLauncher,
    Action::Interrupt,
    Action::KillDaemon(0),
    Action::KillDaemon(2),
    Action::TerminateDaemon(0),
    Action::TerminateDaemon(2),
    Action::InterruptDaemon(2),
];

impl Action {
    fn on(self, job: &Job) {
        let send = |pid, signal| assert!(send(pid, signal), "{self:?}: there is no process {pid}");
        let daemon = |node: u32| job.daemons().get(&node).map(|seen| seen.pid);
        match self {
            Self::KillLauncher => send(job.launcher(), Signal::KILL),
            Self::TerminateLauncher => send(job.launcher(), Signal::TERM),
            Self::HangUpLauncher => send(job.launcher(), Signal::HUP),
            Self::Interrupt => {
                let group = Pid::from_raw(job.launcher().cast_signed()).unwrap();
                rustix::process::kill_process_group(group, Signal::INT).unwrap();
                // The group is gone when the first one was enough.
                let _ = rustix::process::kill_process_group(group, Signal::INT);
            }
            Self::KillDaemon(node) => send(daemon(node).unwrap(), Signal::KILL),
            Self::TerminateDaemon(node) => send(daemon(node).unwrap(), Signal::TERM),
            Self::InterruptDaemon(node) => {
                let pid = daemon(node).unwrap();
                let sent = (0..100).take_while(|_| self::send(pid, Signal::INT));
                // Two that come at once are one.
                sent.for_each(|_| pause(Duration::from_millis(10)));
            }
        }
    }

    /// Exit codes that a user may see.
    fn codes(self) -> &'static [i32] {
        match self {
            Self::KillLauncher => &[137],
            Self::TerminateLauncher | Self::TerminateDaemon(0) => &[143],
            Self::HangUpLauncher => &[129],
            Self::Interrupt => &[130],
            Self::KillDaemon(0) => &[137],
            Self::KillDaemon(_) => &[125],
            // While it comes up that is a node that does not; later on whoever told it ends the job.
            Self::TerminateDaemon(_) => &[125, 143],
            Self::InterruptDaemon(_) => &[125, 130],
        }
    }
}

/// Does everything to a job that stays in a state: the nodes named are in it.
fn in_state(state: &str, nodes: &[u32], make: impl Fn() -> (Option<Hosts>, Command)) {
    for action in ACTIONS {
        if let Action::KillDaemon(node)
        | Action::TerminateDaemon(node)
        | Action::InterruptDaemon(node) = action
            && !nodes.contains(&node)
        {
            continue;
        }
        let (_hosts, mut command) = make();
        let mut job = start(&mut command);
        for node in nodes {
            let there = job.in_state(*node, state, WATCHDOG);
            assert!(there.is_some(), "{action:?}: node {node} is not {state}");
        }
        action.on(&job);
        let ended = job.end(WATCHDOG);
        let code = ended
            .code
            .unwrap_or_else(|| panic!("{action:?} while {state}: it hangs: {ended:?}"));
        assert!(
            action.codes().contains(&code),
            "{action:?} while {state}: {ended:?}"
        );
        if let Action::KillDaemon(node) = action {
            assert!(
                ended.err.contains(&format!("node {node}")),
                "{action:?} while {state}: {ended:?}"
            );
        }
        let left = job.left();
        assert!(
            left.is_empty(),
            "{action:?} while {state}: left behind: {left:#?}\n{ended:?}"
        );
    }
}

fn hanging(node: u32, limit: &str) -> (Option<Hosts>, Command) {
    let hosts = Hosts::new(4).hanging(node);
    let command = hosts.dragon(&[&["--bring-up-limit", limit], HEAD].concat());
    (Some(hosts), command)
}

#[test]
fn whatever_happens_while_nodes_connect() {
    in_state("CONNECTING", &[1, 2], || hanging(0, NEVER));
}

#[test]
fn whatever_happens_while_the_first_node_gathers() {
    in_state("GATHERING", &[0, 2], || hanging(1, NEVER));
}

#[test]
fn whatever_happens_while_nodes_are_ready() {
    in_state("READY", &[2, 3], || hanging(1, NEVER));
}

#[test]
fn whatever_happens_while_the_head_runs() {
    in_state("RUNNING", &[0, 1, 2], || {
        let local = ["-N", "3", "--local-nodes"];
        (None, dragon(local.iter().chain(HEAD)))
    });
}

#[test]
fn whatever_happens_while_the_job_ends() {
    // The head has told its daemon to end, but stays for a while.
    let head = "trap '' TERM; kill -TERM $PPID; exec sleep 100000";
    for action in ACTIONS {
        let mut job = start(&mut dragon(["-N", "3", "--local-nodes", "sh", "-c", head]));
        for node in 0..3 {
            assert!(
                job.in_state(node, "ENDING", WATCHDOG).is_some(),
                "{action:?}"
            );
        }
        // Those without processes may be gone already.
        match action {
            Action::KillDaemon(2) | Action::TerminateDaemon(2) | Action::InterruptDaemon(2) => {
                continue;
            }
            _ => action.on(&job),
        }
        let ended = job.end(WATCHDOG);
        let code = ended
            .code
            .unwrap_or_else(|| panic!("{action:?}: it hangs: {ended:?}"));
        let codes = [action.codes(), &[143]].concat();
        assert!(codes.contains(&code), "{action:?}: {ended:?}");
        let left = job.left();
        assert!(
            left.is_empty(),
            "{action:?}: left behind: {left:#?}\n{ended:?}"
        );
    }
}

#[test]
fn a_stopped_daemon_does_not_keep_the_others() {
    let local = ["-N", "3", "--local-nodes"];
    let mut job = start(&mut dragon(local.iter().chain(HEAD)));
    assert!(job.has_printed("up", WATCHDOG));
    let pid = job.in_state(2, "RUNNING", WATCHDOG).unwrap();
    assert!(send(pid, Signal::STOP));
    assert!(send(job.launcher(), Signal::TERM));
    let ended = job.ends();
    assert_eq!(ended.code, Some(143), "{ended:?}");
    assert!(ended.err.contains("node 2"), "{ended:?}");
}

#[test]
fn messages_of_a_node_do_not_grow_with_the_number_of_nodes() {
    let mut most = Vec::new();
    for nodes in [8, 64, 256] {
        let mut job = start(&mut dragon([
            "-N",
            &nodes.to_string(),
            "--local-nodes",
            "--pool",
            "4M",
            "true",
        ]));
        let ended = job.ends();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.err, "", "{ended:?}");
        let daemons = job.daemons();
        assert_eq!(daemons.len(), nodes);
        let messages = daemons.values().map(|seen| {
            let (state, sent, received) = seen.states.last().unwrap();
            assert_eq!(state, "GONE", "{seen:?}");
            sent + received
        });
        let messages: Vec<_> = messages.collect();
        // Each link of the tree carries ready, up, shutdown, stopped and ended, and is counted at both ends.
        assert_eq!(messages.iter().sum::<u64>(), 10 * (nodes as u64 - 1));
        most.push(*messages.iter().max().unwrap());
    }
    // The fan-out is 16; a node of a full tree has that many below and one above.
    assert_eq!(most, [5 * 7, 5 * 17, 5 * 17]);
}

#[test]
fn processes_of_other_nodes_ask_nothing_of_the_first() {
    let mut command = Command::new(binary("dragon-services-bench"));
    let command = command.args(["requests", "8"]).stdout(Stdio::piped());
    let done = run(command.stderr(Stdio::piped()));
    assert_eq!(done.out, "{\"values\": [0]}\n", "{}", done.err);
}

#[test]
fn an_idle_daemon_does_not_wake_up() {
    let words = ["sh", "-c", "echo up; read line"];
    let mut job = start(&mut dragon(words));
    assert!(job.has_printed("up", WATCHDOG));
    let pid = job.in_state(0, "RUNNING", WATCHDOG).unwrap();
    dragon_tests::local::pause(Duration::from_millis(300));
    let before = voluntary_switches(pid);
    dragon_tests::local::pause(Duration::from_secs(2));
    assert_eq!(voluntary_switches(pid), before);
    job.stdin = None;
    job.ends();
}
