//! Starts that wait for CPUs, of processes and of groups: other threads of their process go on, and a signal ends the wait, on
//! this node and on another.
//!
//! The test runs itself again as the programs inside the runtime (`child`).

#![allow(clippy::unwrap_used)]

use std::os::unix::thread::JoinHandleExt;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dragon::names::{self, Lasts, Value};
use dragon::{
    Child, Code, Deadline, Error, Group, MemberState, NodeIndex, Pool, PoolOptions, Session, Spawn,
};
use dragon_tests::child;
use dragon_tests::local::{finish, pause};

const ROLE: &str = "DRAGON_TEST_WAITS";
const KILL: i32 = 9;
/// Longer than the test.
const LONG: Duration = Duration::from_secs(1000);

#[test]
fn a_start_that_waits_keeps_no_other_thread_waiting_and_ends_with_a_signal() {
    let mut head: Command = child::head(&["-N", "2", "--local-nodes"]);
    let done = finish(head.env(ROLE, "head").spawn().unwrap());
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// A program in the runtime; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    match std::env::var(ROLE).as_deref() {
        Ok("head") => head(),
        Ok("waits elsewhere") => waits_elsewhere(),
        Ok("adds elsewhere") => adds_elsewhere(),
        _ => {}
    }
}

fn stat(name: &str) -> u64 {
    let stats = Session::attach().unwrap().stats().unwrap();
    stats
        .into_iter()
        .find(|(known, _)| known == name)
        .unwrap()
        .1
}

/// Waits until so many starts wait on this node.
fn until_waiting(starts: u64) {
    while stat("starts_waiting") != starts {
        pause(Duration::from_millis(2));
    }
}

/// A program that takes all CPUs of the first node.
fn takes_all(program: &str) -> Spawn {
    let all = Session::attach().unwrap().nodes().unwrap().nodes[0].cpus;
    Spawn::program(program).node(NodeIndex::FIRST).cpus(all)
}

fn waiting() -> JoinHandle<Result<Child, Error>> {
    let spawn = takes_all("true").wait_for_resources(LONG);
    std::thread::spawn(|| spawn.start())
}

/// Ends the wait of a thread by a signal.
fn interrupt<T: std::fmt::Debug>(waiting: JoinHandle<Result<T, Error>>) {
    while !waiting.is_finished() {
        // A signal that comes before the thread sleeps is too early: hence again and again.
        // SAFETY: the thread is not joined.
        unsafe { libc::pthread_kill(waiting.as_pthread_t(), libc::SIGUSR1) };
        pause(Duration::from_millis(1));
    }
    let error = waiting.join().unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Interrupted);
    assert!(
        error.to_string().contains("a signal ended the wait"),
        "{error}"
    );
}

/// Signals are to end waits.
fn take_signals() {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: all zeros is an action without flags, so that waits are not taken up again.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
    // SAFETY: the handler does nothing, and nobody wants the old one.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
}

fn head() {
    take_signals();
    let holder = takes_all("sleep").arg("1000").wait_for_resources(LONG);
    let holder = Arc::new(Group::of(holder).start(1).unwrap());

    let interrupted = waiting();
    until_waiting(1);
    let value = Value::Bytes(b"x".to_vec());
    names::publish("name", value.clone(), Lasts::UntilUnpublished).unwrap();
    assert_eq!(names::look_up("name").unwrap(), value);
    let pool = Pool::create(&PoolOptions {
        limit: 64 << 20,
        ..PoolOptions::default()
    });
    // The pool has to commit that first.
    drop(pool.unwrap().alloc(32 << 20).unwrap());
    interrupt(interrupted);
    until_waiting(0);

    let elsewhere = child::spawn().env(ROLE, "waits elsewhere");
    let elsewhere = elsewhere.node(NodeIndex::new(1).unwrap()).start().unwrap();
    until_waiting(1);
    names::publish("it waits", value, Lasts::UntilUnpublished).unwrap();
    assert_eq!(elsewhere.process.wait(Deadline::Never).unwrap(), 0);
    until_waiting(0);

    groups_wait();
    members_wait(&holder);

    let served = waiting();
    until_waiting(1);
    holder.kill().unwrap();
    assert_eq!(holder.wait(Deadline::Never).unwrap(), KILL);
    let served = served.join().unwrap().unwrap();
    assert_eq!(served.process.wait(Deadline::Never).unwrap(), 0);
}

/// A new group waits, and so do more members of one that there is, asked for by this node or by another.
fn groups_wait() {
    let group = Group::of(takes_all("true").wait_for_resources(LONG));
    let new = std::thread::spawn(|| group.start(2));
    until_waiting(2);
    interrupt(new);
    until_waiting(0);
}

/// More members of a group whose only one has all CPUs.
fn members_wait(group: &Arc<Group>) {
    let more = adding(Arc::clone(group));
    until_waiting(1);
    interrupt(more);
    until_waiting(0);

    let name = Value::Object(group.descriptor());
    names::publish("group", name, Lasts::UntilUnpublished).unwrap();
    let elsewhere = child::spawn().env(ROLE, "adds elsewhere");
    let elsewhere = elsewhere.node(NodeIndex::new(1).unwrap()).start().unwrap();
    until_waiting(1);
    names::publish(
        "members wait",
        Value::Bytes(Vec::new()),
        Lasts::UntilUnpublished,
    )
    .unwrap();
    assert_eq!(elsewhere.process.wait(Deadline::Never).unwrap(), 0);
    until_waiting(0);

    let states = group.members().unwrap().into_iter();
    let called_off = states.filter(|member| {
        matches!(
            member.state,
            MemberState::NotStarted(Code::Cancelled | Code::Interrupted, _)
        )
    });
    assert_eq!(called_off.count(), 2);
}

fn adding(group: Arc<Group>) -> JoinHandle<Result<(), Error>> {
    std::thread::spawn(move || group.add(1))
}

/// On the second node, members of a group of the first.
fn adds_elsewhere() {
    take_signals();
    let Value::Object(group) = names::look_up("group").unwrap() else {
        panic!("a group has another name");
    };
    let more = adding(Arc::new(Group::attach(group, false).unwrap()));
    names::wait_for("members wait", Deadline::Never).unwrap();
    interrupt(more);
}

/// On the second node, for the CPUs of the first.
fn waits_elsewhere() {
    take_signals();
    let waiting = waiting();
    names::wait_for("it waits", Deadline::Never).unwrap();
    interrupt(waiting);
}
