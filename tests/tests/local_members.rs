//! Jobs that go on when a node is lost: daemons that are killed and stopped, names that stay, processes that go on. This
//! program is also the program that runs on the nodes.

#![allow(clippy::unwrap_used)]

mod members;

use std::process::{Command, ExitCode};
use std::time::Duration;

use dragon::names::{self, Lasts, Value, store};
use dragon::{
    Barrier, Channel, ChannelOptions, Code, Condition, ConditionOptions, Deadline, Lock, NodeIndex,
    Session, Spawn, Stdio,
};
use dragon_tests::job::{self, send};
use dragon_tests::local::{Finished, Traces, WATCHDOG, dragon, pause, run};
use dragon_tests::suite;
use members::{Job, bytes};
use rustix::process::Signal;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["names"] => return names_of_one_process(),
        ["reads", _nodes] => return reads_from_a_node_that_is_lost(),
        ["waits", _nodes] => return waits_for_a_node_that_is_lost(),
        ["waiter", last] => return waits_and_acts(last == "last"),
        _ => {
            if let Some(code) = members::program(&words) {
                return code;
            }
        }
    }
    suite::run(
        || Ok(()),
        &[
            ("names_and_store", names_and_store),
            ("first_of_three_killed", |()| {
                the_first_node_is_killed(3);
            }),
            ("first_of_five_killed", |()| {
                the_first_node_is_killed(5);
            }),
            ("another_is_killed", another_is_killed),
            ("output_of_a_lost_node_ends", output_of_a_lost_node_ends),
            (
                "who_waits_on_a_lost_node_holds_nobody_up",
                who_waits_on_a_lost_node_holds_nobody_up,
            ),
            (
                "by_default_the_job_ends_with_a_stopped_node",
                by_default_the_job_ends_with_a_stopped_node,
            ),
            (
                "a_stopped_first_node_is_replaced",
                a_stopped_first_node_is_replaced,
            ),
            ("with_two_the_first_is_needed", with_two_the_first_is_needed),
            ("a_short_stop_loses_nobody", a_short_stop_loses_nobody),
            (
                "the_time_limit_outlives_the_first_node",
                the_time_limit_outlives_the_first_node,
            ),
        ],
    )
}

fn names_of_one_process() -> ExitCode {
    let code = |error: dragon::Error| error.code();
    names::publish("a", bytes("one"), Lasts::UntilUnpublished).unwrap();
    let taken = names::publish("a", bytes("two"), Lasts::UntilUnpublished).unwrap_err();
    assert!(taken.to_string().contains("'a'"), "{taken}");
    assert_eq!(taken.code(), Code::NameTaken);
    assert_eq!(names::look_up("b").map_err(code), Err(Code::NoSuchName));
    assert_eq!(names::look_up("").map_err(code), Err(Code::InvalidArgument));
    let long = names::look_up(&"n".repeat(256)).unwrap_err().to_string();
    assert!(long.contains("256") && long.contains("255"), "{long}");
    let large = Value::Bytes(vec![0; (64 << 10) + 1]);
    let large = names::publish("b", large, Lasts::UntilUnpublished);
    assert_eq!(large.map_err(code), Err(Code::TooLarge));
    let late = names::wait_for("b", Deadline::after(10_000_000));
    assert_eq!(late.map_err(code), Err(Code::Timeout));
    let waiter = std::thread::spawn(|| names::wait_for("b", Deadline::Never).unwrap());
    let channel = Channel::create(&ChannelOptions::default()).unwrap();
    let object = Value::Object(channel.export().unwrap());
    names::publish("b", object.clone(), Lasts::UntilUnpublished).unwrap();
    assert_eq!(waiter.join().unwrap(), object);
    assert_eq!(names::list("").unwrap(), ["a", "b"]);
    drop(channel);
    // What was exported for the name lives on.
    let Value::Object(descriptor) = names::unpublish("b").unwrap() else {
        panic!("no object");
    };
    Channel::attach(descriptor, true).unwrap();
    assert_eq!(names::unpublish("b").map_err(code), Err(Code::NoSuchName));

    store::put(b"k", b"v").unwrap();
    assert_eq!(store::get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    let waiter = std::thread::spawn(|| store::wait_for(b"later", Deadline::Never).unwrap());
    store::compare_and_set(b"later", None, Some(b"now")).unwrap();
    assert_eq!(waiter.join().unwrap(), b"now");
    let changed = store::compare_and_set(b"later", None, Some(b"again"));
    assert_eq!(changed.map_err(code), Err(Code::Changed));
    assert_eq!(store::list(b"").unwrap(), [&b"k"[..], b"later"]);
    assert_eq!(store::delete(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    println!("all of it");
    ExitCode::SUCCESS
}

/// Reads what a process of the second node prints, which has ended and left another one with its output.
fn reads_from_a_node_that_is_lost() -> ExitCode {
    let spawn = Spawn::program("sh")
        .arg("-c")
        .arg("echo first; sleep 1000 &");
    let spawn = spawn.node(NodeIndex::new(1).unwrap()).stdout(Stdio::Piped);
    let child = spawn.start().unwrap();
    assert_eq!(child.process.wait(Deadline::Never).unwrap(), 0);
    drop(child.process);
    let mut output = child.stdout.unwrap();
    let piece = output.receive(Deadline::Never).unwrap().unwrap();
    assert_eq!(piece.to_vec(), b"first\n");
    let late = output.receive(Deadline::after(1_000_000)).unwrap_err();
    assert_eq!(late.code(), Code::Timeout);
    let daemons = Session::attach().unwrap().nodes().unwrap().nodes;
    let daemons: Vec<_> = daemons.iter().map(|info| info.pid.to_string()).collect();
    println!("daemons {}", daemons.join(" "));
    let lost = output.receive(Deadline::Never).unwrap_err();
    assert_eq!(lost.code(), Code::NodeDown);
    println!("{lost}");
    ExitCode::from(7)
}

/// What the processes of all nodes wait at.
struct Meeting {
    lock: Lock,
    condition: Condition,
    /// Never are all there.
    gathers: Barrier,
    /// The last one acts, and never is done.
    acts: Barrier,
}

impl Meeting {
    fn create() -> Self {
        let options = ConditionOptions::default();
        let meeting = Self {
            lock: Lock::create(0).unwrap(),
            condition: Condition::create(&options).unwrap(),
            gathers: Barrier::create(3, 0).unwrap(),
            acts: Barrier::create_with_action(2, 0).unwrap(),
        };
        let publish = |name, object| {
            names::publish(name, Value::Object(object), Lasts::UntilUnpublished).unwrap();
        };
        publish("lock", meeting.lock.export().unwrap());
        publish("condition", meeting.condition.export().unwrap());
        publish("gathers", meeting.gathers.export().unwrap());
        publish("acts", meeting.acts.export().unwrap());
        meeting
    }

    fn join() -> Self {
        let find = |name| match names::wait_for(name, Deadline::Never).unwrap() {
            Value::Object(descriptor) => descriptor,
            other => panic!("{other:?}"),
        };
        Self {
            lock: Lock::attach(find("lock"), false).unwrap(),
            condition: Condition::attach(find("condition"), false).unwrap(),
            gathers: Barrier::attach(find("gathers"), false).unwrap(),
            acts: Barrier::attach(find("acts"), false).unwrap(),
        }
    }
}

fn when(there: impl Fn() -> bool) {
    while !there() {
        pause(Duration::from_millis(1));
    }
}

/// A process of the second node waits at a condition, where it has just been notified, and at a barrier, and acts at another.
/// One of the third node waits behind it.
fn waits_for_a_node_that_is_lost() -> ExitCode {
    let meeting = Meeting::create();
    let Meeting {
        lock,
        condition,
        gathers,
        acts,
    } = &meeting;
    let own = std::env::current_exe().unwrap();
    let start = |node, word: &str| {
        let spawn = Spawn::program(&own).arg("waiter").arg(word);
        let child = spawn.node(NodeIndex::new(node).unwrap()).start().unwrap();
        child.process
    };
    std::thread::scope(|scope| {
        let broken = [gathers, acts]
            .map(|barrier| scope.spawn(|| barrier.wait(Deadline::Never).unwrap_err().to_string()));
        when(|| acts.state().unwrap().waiting == 1);
        let _lost = start(1, "first");
        when(|| condition.waiting().unwrap() == 1 && acts.state().unwrap().waiting == 2);
        when(|| gathers.state().unwrap().waiting == 2);
        let next = start(2, "last");
        when(|| condition.waiting().unwrap() == 2);
        lock.acquire(Deadline::Never).unwrap();
        assert_eq!(condition.notify_one().unwrap(), 1);
        let daemons = Session::attach().unwrap().nodes().unwrap().nodes;
        let daemons: Vec<_> = daemons.iter().map(|info| info.pid.to_string()).collect();
        println!("daemons {}", daemons.join(" "));
        for waiter in broken {
            println!("{}", waiter.join().unwrap());
        }
        lock.release(false).unwrap();
        assert_eq!(next.wait(Deadline::Never).unwrap(), 0);
        println!("the next was woken");
    });
    ExitCode::from(7)
}

fn waits_and_acts(last: bool) -> ExitCode {
    let meeting = Meeting::join();
    std::thread::scope(|scope| {
        if !last {
            scope.spawn(|| meeting.gathers.wait(Deadline::Never));
            let turn = meeting.acts.wait_through_signals(Deadline::Never, || true);
            assert!(turn.unwrap().turn.is_some());
        }
        meeting.lock.acquire(Deadline::Never).unwrap();
        let woken = meeting.condition.wait(&meeting.lock, Deadline::Never);
        // Nobody has died who held the lock.
        assert!(!woken.unwrap().owner_died);
    });
    ExitCode::SUCCESS
}

// The tests. ------------------------------------------------------------------------------------------------------------

/// Starts a job on nodes of this machine.
fn start(nodes: u32, options: &[&str]) -> Job {
    start_with("head", nodes, options)
}

fn start_with(head: &str, nodes: u32, options: &[&str]) -> Job {
    let own = std::env::current_exe().unwrap();
    let (own, count) = (own.to_str().unwrap(), nodes.to_string());
    let places = ["-N", &count, "--local-nodes", "--node-limit", "2"];
    let program = ["--", own, head, &count];
    Job::start(&mut dragon([&places[..], options, &program].concat()))
}

/// Sends a signal to the daemon of a node.
fn kill(job: &Job, node: usize, signal: &str) {
    let pid = job.daemons[node].to_string();
    let done = Command::new("kill").args([signal, &pid]).status().unwrap();
    assert!(done.success());
}

/// Waits for the end, after which nothing may be left.
fn ended(job: Job) -> Finished {
    let launcher = job.launcher.id();
    let done = job.end();
    Traces::assert_none(launcher);
    done
}

fn names_and_store(_: &()) {
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    for nodes in [&["-s"][..], &["-N", "3", "--local-nodes"]] {
        let done = run(&mut dragon([nodes, &["--", own, "names"]].concat()));
        assert_eq!(done.out, "all of it\n", "{}", done.err);
        assert_eq!(done.code, Some(0));
    }
}

/// The survivors have an answer from new global services, and go on to their end.
fn they_go_on(done: &Finished, nodes: u32) {
    let left = nodes - 1;
    for node in 1..nodes {
        let line = format!("worker {node} goes on with {left} nodes, node 1 first");
        assert!(done.out.contains(&line), "{}\n{}", done.out, done.err);
    }
    let lost = format!("node 0 (127.0.0.1) is lost; the job goes on with {left} nodes");
    assert!(done.err.contains(&lost), "{}", done.err);
    assert!(
        done.err.contains("was lost with the program"),
        "{}",
        done.err
    );
    assert_eq!(done.code, Some(125));
}

fn the_first_node_is_killed(nodes: u32) {
    let job = start(nodes, &["--on-node-failure", "continue"]);
    kill(&job, 0, "-9");
    they_go_on(&ended(job), nodes);
}

fn another_is_killed(_: &()) {
    let job = start(4, &["--on-node-failure", "continue"]);
    kill(&job, 1, "-9");
    let done = ended(job);
    // Which of them depends on who notices first.
    let lost = ["worker 1: NodeDown", "worker 1: Unreachable"];
    let told = lost.iter().any(|line| done.out.contains(line));
    assert!(told, "{}\n{}", done.out, done.err);
    assert!(done.out.contains("3 nodes are left"), "{}", done.out);
    let lost = "the daemon on 127.0.0.1 has ended: node 1 (127.0.0.1) is lost";
    assert!(done.err.contains(lost), "{}", done.err);
    for node in [2, 3] {
        assert!(
            done.out.contains(&format!("worker {node} was told to end")),
            "{}",
            done.out
        );
    }
    assert_eq!(done.code, Some(7), "{}", done.err);
}

/// Of a job of three nodes with this head, the second is killed; the job goes on to its end.
fn without_the_second(head: &str) -> Finished {
    let job = start_with(head, 3, &["--on-node-failure", "continue"]);
    kill(&job, 1, "-9");
    ended(job)
}

fn output_of_a_lost_node_ends(_: &()) {
    let done = without_the_second("reads");
    assert!(
        done.out.contains("the node of the process is lost"),
        "{done:?}"
    );
    assert_eq!(done.code, Some(7), "{done:?}");
}

fn who_waits_on_a_lost_node_holds_nobody_up(_: &()) {
    let done = without_the_second("waits");
    let died = "a process died while it waited there";
    assert_eq!(done.out.matches(died).count(), 2, "{done:?}");
    assert!(done.out.contains("the next was woken"), "{done:?}");
    assert_eq!(done.code, Some(7), "{done:?}");
}

fn by_default_the_job_ends_with_a_stopped_node(_: &()) {
    let job = start(3, &[]);
    kill(&job, 1, "-STOP");
    let done = ended(job);
    assert_eq!(done.code, Some(125), "{}", done.err);
    assert!(
        done.err
            .contains("the daemon on 127.0.0.1 does not answer: node 1 (127.0.0.1) is lost"),
        "{}",
        done.err
    );
}

fn a_stopped_first_node_is_replaced(_: &()) {
    let mut job = start(3, &["--on-node-failure", "continue"]);
    kill(&job, 0, "-STOP");
    for _ in 1..3 {
        job.line("worker ");
    }
    // It learns that the others went on, and ends with its processes.
    kill(&job, 0, "-CONT");
    let done = ended(job);
    they_go_on(&done, 3);
    assert!(
        done.err.contains("the others went on without it"),
        "{}",
        done.err
    );
}

fn with_two_the_first_is_needed(_: &()) {
    let job = start(2, &["--on-node-failure", "continue"]);
    kill(&job, 0, "-9");
    let done = ended(job);
    assert_eq!(done.code, Some(125), "{}", done.err);
    assert!(done.err.contains("reaches no majority"), "{}", done.err);
}

/// Six tenths of the limit are no silence. Takes three seconds: a limit of fewer than five could pass on a busy machine.
fn a_short_stop_loses_nobody(_: &()) {
    let job = |policy: &str, node: u32| {
        let places = ["-N", "3", "--local-nodes", "--node-limit", "5"];
        let options = ["--on-node-failure", policy];
        let program = ["--", "sh", "-c", "echo up; read line; exit 3"];
        let mut command = dragon([&places[..], &options, &program].concat());
        let job = job::Job::start(&mut command).unwrap();
        assert!(job.has_printed("up", WATCHDOG));
        let pid = job.in_state(node, "RUNNING", WATCHDOG).unwrap();
        assert!(send(pid, Signal::STOP));
        (job, pid)
    };
    let jobs = [job("abort", 1), job("continue", 0), job("continue", 2)];
    pause(Duration::from_secs(3));
    for (mut job, pid) in jobs {
        assert!(send(pid, Signal::CONT));
        job.tell("end\n");
        let ended = job.ends();
        assert_eq!((ended.code, ended.err.as_str()), (Some(3), ""));
    }
}

/// Takes as long as the limit: the job must be up by then, on a busy machine too.
fn the_time_limit_outlives_the_first_node(_: &()) {
    let options = ["--on-node-failure", "continue", "--time-limit", "5"];
    let job = start_with("holds", 3, &options);
    kill(&job, 0, "-9");
    let done = ended(job);
    assert_eq!(done.code, Some(124), "{}", done.err);
    let over = "the time limit of 5s is over";
    assert!(
        done.err.contains("the job goes on with 2 nodes"),
        "{}",
        done.err
    );
    assert!(done.err.contains(over), "{}", done.err);
}
