//! A program that runs on the nodes of a job, and the job: for the tests of jobs that go on without a node.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use dragon::names::{self, Lasts, Value};
use dragon::{Channel, ChannelOptions, Code, Deadline, Lives, NodeIndex, Session, Spawn};
use dragon_tests::local::{Finished, WATCHDOG, pause};

/// Does what the first argument says, where this program runs on a node.
pub(crate) fn program(words: &[&str]) -> Option<ExitCode> {
    match *words {
        ["head", nodes] => Some(head(nodes.parse().unwrap())),
        ["asks"] => Some(asks()),
        ["creator", node, nodes] => Some(creator(node, nodes)),
        ["ticks", ..] => Some(ticks()),
        ["holds", nodes] => Some(holds(nodes.parse().unwrap())),
        ["survivor", me, nodes] => Some(survivor(me.parse().unwrap(), nodes.parse().unwrap())),
        ["worker", me, _] => Some(worker(me.parse().unwrap())),
        _ => None,
    }
}

pub(crate) fn bytes(text: &str) -> Value {
    Value::Bytes(text.as_bytes().to_vec())
}

/// Starts this program on a node.
fn start(role: &str, node: u32, nodes: u32) -> dragon::Child {
    let own = std::env::current_exe().unwrap();
    let spawn = Spawn::program(&own).arg(role);
    let spawn = spawn.arg(node.to_string()).arg(nodes.to_string());
    let node = NodeIndex::new(node).unwrap();
    spawn.node(node).start().unwrap()
}

/// Says which daemons there are.
fn say_daemons() {
    let membership = Session::attach().unwrap().nodes().unwrap();
    let daemons: Vec<_> = membership
        .nodes
        .iter()
        .map(|info| info.pid.to_string())
        .collect();
    println!("daemons {}", daemons.join(" "));
}

/// Has another process start one on the second node that goes with it, and outlives both.
fn asks() -> ExitCode {
    say_daemons();
    let creator = start("creator", 0, 3);
    println!(
        "creator ended with {}",
        creator.process.wait(Deadline::Never).unwrap()
    );
    loop {
        pause(WATCHDOG);
    }
}

/// Starts a process on the second node that goes with this one.
fn creator(_: &str, _: &str) -> ExitCode {
    let own = std::env::current_exe().unwrap();
    let spawn = Spawn::program(&own).arg("ticks").lives(Lives::WithCreator);
    let ticks = spawn.node(NodeIndex::new(1).unwrap()).start().unwrap();
    println!("creator {}", std::process::id());
    let _ = ticks.process.wait(Deadline::Never);
    ExitCode::FAILURE
}

/// Writes a line now and then.
fn ticks() -> ExitCode {
    for number in 0.. {
        println!("tick {number}");
        pause(Duration::from_millis(25));
    }
    ExitCode::SUCCESS
}

/// Starts a process on each other node that outlives this one.
fn holds(nodes: u32) -> ExitCode {
    let survivors: Vec<_> = (1..nodes)
        .map(|node| start("survivor", node, nodes))
        .collect();
    for node in 1..nodes {
        names::wait_for(&format!("survivor {node}"), Deadline::Never).unwrap();
    }
    say_daemons();
    for survivor in survivors {
        let _ = survivor.process.wait(Deadline::Never);
    }
    ExitCode::from(7)
}

/// Says how many nodes are left whenever one is lost, as soon as global services answer again; ends when it is alone.
fn survivor(me: u32, nodes: u32) -> ExitCode {
    names::publish(&format!("survivor {me}"), bytes("up"), Lasts::WithPublisher).unwrap();
    let known = || Session::attach().unwrap().nodes().unwrap();
    let mut left = nodes as usize;
    while left > 1 {
        while known().nodes.len() == left {
            pause(Duration::from_millis(25));
        }
        let now = known();
        left = now.nodes.len();
        let name = format!("{left} left for {me}");
        names::publish(&name, bytes("x"), Lasts::UntilUnpublished).unwrap();
        println!(
            "survivor {me}: {left} left, node {} first",
            now.global_services
        );
    }
    ExitCode::SUCCESS
}

/// Starts a worker on each other node, publishes a channel that nobody sends to, and waits for the workers.
fn head(nodes: u32) -> ExitCode {
    let line = Channel::create(&ChannelOptions::default()).unwrap();
    let value = Value::Object(line.descriptor());
    names::publish("line", value, Lasts::UntilUnpublished).unwrap();
    names::publish("head", bytes("known"), Lasts::UntilUnpublished).unwrap();
    names::publish("fleeting", bytes("head"), Lasts::WithPublisher).unwrap();
    let workers: Vec<_> = (1..nodes)
        .map(|node| start("worker", node, nodes))
        .collect();
    for node in 1..nodes {
        names::wait_for(&format!("worker {node}"), Deadline::Never).unwrap();
    }
    say_daemons();
    for (node, worker) in (1..).zip(&workers) {
        match worker.process.wait(Deadline::Never) {
            Ok(status) => println!("worker {node} ended with {status}"),
            Err(error) => {
                println!("worker {node}: {:?}", error.code());
                // The connection is lost a moment before a majority has agreed on what that means.
                let left = || Session::attach().unwrap().nodes().unwrap().nodes.len();
                while left() == nodes as usize {
                    pause(Duration::from_millis(25));
                }
                println!("{} nodes are left", left());
                // Now the others are to end.
                for _ in 2..nodes {
                    line.send(b"end", 0, Deadline::Never).unwrap();
                }
            }
        }
    }
    ExitCode::from(7)
}

/// Waits for a message of the head, or for its node to be lost. Then whoever is left must know what was published, and each
/// other.
fn worker(me: u32) -> ExitCode {
    let value = bytes(&std::process::id().to_string());
    names::publish(&format!("worker {me}"), value, Lasts::WithPublisher).unwrap();
    let Value::Object(line) = names::look_up("line").unwrap() else {
        panic!("no channel");
    };
    let end = match Channel::attach(line, false) {
        Ok(line) => line.receive(Deadline::Never).map(drop),
        Err(error) => Err(error),
    };
    let Err(error) = end else {
        println!("worker {me} was told to end");
        return ExitCode::SUCCESS;
    };
    // Which of them depends on who notices first: the daemons, or the agent that cannot connect any more.
    let codes = [Code::NodeDown, Code::Unreachable];
    assert!(codes.contains(&error.code()), "{error}");
    // Who answers that is the first of those who are left.
    assert_eq!(names::look_up("head").unwrap(), bytes("known"));
    let membership = Session::attach().unwrap().nodes().unwrap();
    let (left, first) = (membership.nodes.len(), membership.global_services);
    let others = || membership.nodes.iter().map(|info| info.node);
    let fleeting = names::look_up("fleeting").unwrap_err();
    assert_eq!(fleeting.code(), Code::NoSuchName);
    for other in others() {
        names::look_up(&format!("worker {other}")).unwrap();
    }
    names::publish(&format!("after {me}"), bytes("x"), Lasts::UntilUnpublished).unwrap();
    for other in others() {
        names::wait_for(&format!("after {other}"), Deadline::Never).unwrap();
    }
    println!("worker {me} goes on with {left} nodes, node {first} first");
    // Nobody's name may go before all have seen it.
    names::publish(&format!("done {me}"), bytes("x"), Lasts::UntilUnpublished).unwrap();
    for other in others() {
        names::wait_for(&format!("done {other}"), Deadline::Never).unwrap();
    }
    ExitCode::SUCCESS
}

/// A job with a head and its workers.
pub(crate) struct Job {
    pub(crate) launcher: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
    /// What it has said so far.
    said: Vec<String>,
    pub(crate) daemons: Vec<u32>,
}

impl Job {
    /// Starts it; all workers are up.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut launcher = command.spawn().unwrap();
        let lines = lines_of(launcher.stdout.take().unwrap());
        let errors = lines_of(launcher.stderr.take().unwrap());
        let mut job = Self {
            launcher,
            lines,
            errors,
            said: Vec::new(),
            daemons: Vec::new(),
        };
        let line = job.line("daemons ");
        let pids = line.split_whitespace().skip(1);
        job.daemons = pids.map(|pid| pid.parse().unwrap()).collect();
        job
    }

    /// Waits for a line that begins so.
    pub(crate) fn line(&mut self, begin: &str) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(WATCHDOG) else {
                let errors: Vec<_> = self.errors.try_iter().collect();
                panic!("no line begins with '{begin}': {:?}\n{errors:?}", self.said);
            };
            self.said.push(line.clone());
            if line.starts_with(begin) {
                return line;
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Finished {
        let id = self.launcher.id();
        let (sender, ended) = channel();
        std::thread::spawn(move || sender.send(self.launcher.wait()));
        let Ok(status) = ended.recv_timeout(WATCHDOG) else {
            let errors: Vec<_> = self.errors.try_iter().collect();
            let _ = Command::new("kill").args(["-9", &id.to_string()]).status();
            panic!(
                "the job did not end: {:?}\n{}",
                self.said,
                errors.join("\n")
            );
        };
        self.said.extend(self.lines.iter());
        let err = self.errors.iter().collect::<Vec<_>>().join("\n");
        Finished {
            code: status.unwrap().code(),
            out: self.said.join("\n"),
            err,
        }
    }
}

fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
