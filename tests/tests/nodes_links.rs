//! Agents whose nodes share nothing but the network, which is cut, healed, slowed down and lost under them. Each node has its
//! own mount, PID, IPC and network namespace; an agent and its clients are one process there, which this program is, too.

#![allow(clippy::unwrap_used)]

#[path = "../../transport/tests/rig/mod.rs"]
mod rig;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dragon_channels::{Channel, Error};
use dragon_protocol::launch::NodeInfo;
use dragon_shmem::{Deadline, Member};
use dragon_tests::local::pause;
use dragon_tests::nodes::Nodes;
use dragon_tests::suite;
use dragon_transport::fabric::Fabric;
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};

/// The first argument of this program where it is an agent.
const AGENT: &str = "agent";
/// The hint of a message that says that none follows.
const END: u64 = u64::MAX;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == AGENT) {
        agent(&words[1..]);
        return ExitCode::SUCCESS;
    }
    suite::run(
        || Nodes::up(2),
        &[
            (
                "a_cut_that_heals_is_not_noticed",
                a_cut_that_heals_is_not_noticed,
            ),
            (
                "a_cut_that_lasts_ends_what_waits",
                a_cut_that_lasts_ends_what_waits,
            ),
            (
                "a_reset_connection_is_not_noticed",
                a_reset_connection_is_not_noticed,
            ),
            (
                "an_address_that_goes_and_comes_is_not_noticed",
                an_address_that_goes_and_comes_is_not_noticed,
            ),
            (
                "a_silent_agent_ends_what_has_a_deadline",
                a_silent_agent_ends_what_has_a_deadline,
            ),
            (
                "delay_and_loss_change_nothing",
                delay_and_loss_change_nothing,
            ),
            (
                "a_killed_agent_and_its_next_life",
                a_killed_agent_and_its_next_life,
            ),
        ],
    )
}

/// An agent with its clients: NODE ADDRESS SILENCE RECONNECT, then a command a line.
fn agent(words: &[String]) {
    let [node, address, silence, reconnect] = words else {
        panic!("{words:?}")
    };
    let address: IpAddr = address.parse().unwrap();
    let index = rig::index(node.parse().unwrap());
    let config = TcpConfig {
        listen: vec![address],
        silence_s: silence.parse().unwrap(),
        reconnect_s: reconnect.parse().unwrap(),
        ..TcpConfig::new(index, rig::key())
    };
    let fabric = Arc::new(TcpFabric::bind(config).unwrap());
    let port = fabric.local_address().unwrap().port();
    let node = Arc::new(rig::Node::start(index, fabric, rig::POOL));
    say(&format!("ready {port} {}", std::process::id()));
    let clients = Clients {
        member: node.client(),
        channels: Mutex::default(),
        attached: Mutex::default(),
        stop: Arc::default(),
        progress: Arc::default(),
    };
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["peer", other, at] => {
                let other = rig::index(other.parse().unwrap());
                let data = vec![at.parse::<SocketAddr>().unwrap()];
                let info = NodeInfo {
                    data,
                    ..rig::info(other, 0)
                };
                node.agent.set_peers(&[info]);
                say("ok");
            }
            ["stats"] => {
                let stats = node.stats();
                let fabric = stats.fabric;
                let (opened, reconnects) = (fabric.opened, fabric.reconnects);
                let progress = clients.progress.load(Ordering::Acquire);
                let (pending, parked) = (stats.pending, stats.parked);
                say(&format!(
                    "stats {progress} {opened} {reconnects} {pending} {parked}"
                ));
            }
            _ => clients.obey(&words),
        }
    }
}

/// A line for the test, whole whoever else says something.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

struct Clients {
    member: Arc<Member>,
    /// Those that were created here.
    channels: Mutex<Vec<Channel>>,
    /// By their descriptors.
    attached: Mutex<HashMap<String, Arc<Channel>>>,
    stop: Arc<AtomicBool>,
    /// Messages that were received.
    progress: Arc<AtomicU64>,
}

impl Clients {
    fn obey(&self, words: &[&str]) {
        let attached = |text: &str| {
            let mut attached = self.attached.lock().unwrap();
            let channel = attached
                .entry(text.to_owned())
                .or_insert_with(|| Arc::new(rig::seen_by(&self.member, text.parse().unwrap())));
            Arc::clone(channel)
        };
        match *words {
            ["attach", to] => {
                attached(to);
                say("ok");
            }
            ["create", capacity] => {
                let created = rig::channel(&self.member, capacity.parse().unwrap());
                say(&format!("channel {}", created.descriptor()));
                self.channels.lock().unwrap().push(created);
            }
            // Numbered messages of many sizes until it is told to stop.
            ["send", to] => {
                let (to, stop) = (attached(to), Arc::clone(&self.stop));
                stop.store(false, Ordering::Release);
                std::thread::spawn(move || {
                    let mut sent = 0;
                    let end = loop {
                        let last = stop.load(Ordering::Acquire);
                        let hint = if last { END } else { sent };
                        let size = [10, 700, 5000, 100_000][usize::try_from(sent % 4).unwrap()];
                        let bytes = rig::pattern(size, sent);
                        match to.send(&bytes, hint, Deadline::Never) {
                            Ok(()) if last => break "Ok".to_owned(),
                            Ok(()) => sent += 1,
                            Err(error) => break code(&error),
                        }
                    };
                    say(&format!("sent {sent} {end}"));
                });
            }
            ["stop"] => self.stop.store(true, Ordering::Release),
            // All of them, in their order, to the last.
            ["receive", from] => {
                let (from, progress) = (attached(from), Arc::clone(&self.progress));
                std::thread::spawn(move || {
                    let mut received = 0;
                    let end = loop {
                        match from.receive(Deadline::Never) {
                            Ok(message) if message.hint() == END => break "Ok".to_owned(),
                            Ok(message) if message.hint() != received => {
                                break format!("{}-came-for-{received}", message.hint());
                            }
                            Ok(message) => {
                                let length = message.len();
                                if message.into_vec() != rig::pattern(length, received) {
                                    break "other-bytes".to_owned();
                                }
                                received += 1;
                                progress.fetch_add(1, Ordering::Release);
                            }
                            Err(error) => break code(&error),
                        }
                    };
                    say(&format!("received {received} {end}"));
                });
            }
            // One message, for so many seconds or for ever.
            ["wait", from, seconds] => {
                let from = attached(from);
                let deadline = seconds
                    .parse()
                    .map_or(Deadline::Never, |n: u64| Deadline::after(n * 1_000_000_000));
                std::thread::spawn(move || {
                    let end = from.receive(deadline).map(drop);
                    say(&format!(
                        "waited {}",
                        end.map_or_else(|e| code(&e), |()| "Ok".into())
                    ));
                });
            }
            // One message, which may fail.
            ["post", to] => {
                let to = Channel::attach(&self.member, &to.parse().unwrap(), false);
                let sent = to.and_then(|to| to.send(b"one", 0, rig::watched()));
                say(&format!(
                    "posted {}",
                    sent.map_or_else(|e| code(&e), |()| "Ok".into())
                ));
            }
            _ => panic!("{words:?}"),
        }
    }
}

fn code(error: &Error) -> String {
    format!("{:?}", error.code())
}

/// An agent on a node, as the test sees it.
struct Remote<'a> {
    nodes: &'a Nodes,
    place: String,
    child: Child,
    lines: Receiver<String>,
    /// Its number in its PID namespace.
    pid: String,
    address: String,
    heard: Vec<String>,
}

impl<'a> Remote<'a> {
    fn start(nodes: &'a Nodes, n: u32, silence: u32, reconnect: u32) -> Self {
        let place = format!("n{}", n + 1);
        let ip = format!("10.77.0.{}", n + 1);
        let words = [
            n.to_string(),
            ip.clone(),
            silence.to_string(),
            reconnect.to_string(),
        ];
        let words: Vec<&str> = [AGENT]
            .into_iter()
            .chain(words.iter().map(String::as_str))
            .collect();
        let mut child = nodes.start(&place, &words);
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|l| tell.send(l))
        });
        let mut agent = Self {
            nodes,
            place,
            child,
            lines,
            pid: String::new(),
            address: String::new(),
            heard: Vec::new(),
        };
        let ready = agent.hears("ready ");
        let (port, pid) = ready.split_once(' ').unwrap();
        (agent.pid, agent.address) = (pid.to_owned(), format!("{ip}:{port}"));
        agent
    }

    fn says(&mut self, words: &str) {
        writeln!(self.child.stdin.as_ref().unwrap(), "{words}").unwrap();
    }

    /// The next line that begins so; others are kept for later.
    fn hears(&mut self, prefix: &str) -> String {
        loop {
            let found = self.heard.iter().position(|line| line.starts_with(prefix));
            if let Some(at) = found {
                return self.heard.remove(at)[prefix.len()..].to_owned();
            }
            let line = self.lines.recv_timeout(rig::WATCHDOG);
            let line = line.unwrap_or_else(|_| panic!("{}: never '{prefix}'", self.place));
            self.heard.push(line);
        }
    }

    /// Received messages, links opened, connections made again, requests under way and requests that wait there.
    fn stats(&mut self) -> [u64; 5] {
        self.says("stats");
        let stats = self.hears("stats ");
        let numbers: Vec<u64> = stats.split(' ').map(|n| n.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }

    /// Waits until it has received more.
    fn goes_on(&mut self) {
        let before = self.stats()[0];
        self.until("it receives more", |stats| stats[0] > before + 20);
    }

    fn until(&mut self, what: &str, there: impl Fn(&[u64; 5]) -> bool) {
        let begin = std::time::Instant::now();
        loop {
            let stats = self.stats();
            if there(&stats) {
                return;
            }
            assert!(
                begin.elapsed() < rig::WATCHDOG,
                "{}: never {what}: {stats:?}",
                self.place
            );
            pause(Duration::from_millis(20));
        }
    }

    fn signal(&self, name: &str) {
        let done = self.nodes.on(&self.place, &["kill", name, &self.pid]);
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}

impl Drop for Remote<'_> {
    fn drop(&mut self) {
        // It ends with its input; what does not is ended by the node's own end.
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two agents that know each other.
fn two(nodes: &Nodes, silence: u32, reconnect: u32) -> [Remote<'_>; 2] {
    let mut both = [0, 1].map(|n| Remote::start(nodes, n, silence, reconnect));
    acquaint(&mut both);
    both
}

fn acquaint([near, far]: &mut [Remote<'_>; 2]) {
    near.says(&format!("peer 1 {}", far.address));
    far.says(&format!("peer 0 {}", near.address));
    near.hears("ok");
    far.hears("ok");
}

fn created(agent: &mut Remote<'_>) -> String {
    agent.says("create 16");
    agent.hears("channel ")
}

/// Traffic through two channels of the second node, one in each direction, while something happens: nothing is lost, doubled
/// or out of its order. Returns how often connections were made again.
fn undisturbed(
    nodes: &Nodes,
    silence: u32,
    reconnect: u32,
    happens: impl FnOnce(&mut Remote<'_>),
) -> u64 {
    let [mut near, mut far] = two(nodes, silence, reconnect);
    let (there, back) = (created(&mut far), created(&mut far));
    far.says(&format!("receive {there}"));
    near.says(&format!("receive {back}"));
    near.says(&format!("send {there}"));
    far.says(&format!("send {back}"));
    near.goes_on();
    far.goes_on();
    happens(&mut near);
    near.goes_on();
    far.goes_on();
    near.says("stop");
    far.says("stop");
    for (from, to) in [(0, 1), (1, 0)] {
        let both = [&mut near, &mut far];
        let sent = both[from].hears("sent ");
        assert!(sent.ends_with(" Ok"), "{sent}");
        assert_eq!(both[to].hears("received "), sent);
    }
    let stats = near.stats();
    assert_eq!(stats[1], 1, "one link is opened");
    stats[2]
}

fn cut(nodes: &Nodes, node: &str, what: &str) {
    let done = dragon_tests::local::run(&mut nodes.rig(&[what, node]));
    assert_eq!(done.code, Some(0), "{done:?}");
}

fn a_cut_that_heals_is_not_noticed(nodes: &Nodes) {
    let again = undisturbed(nodes, 3, 60, |_| {
        cut(nodes, "n2", "cut");
        // Longer than a silence may last, so that the connection is given up and made again.
        pause(Duration::from_secs(6));
        cut(nodes, "n2", "join");
    });
    assert!(again >= 1, "the connection was never made again");
}

fn a_cut_that_lasts_ends_what_waits(nodes: &Nodes) {
    let mut both = two(nodes, 3, 1);
    let [near, far] = &mut both;
    let (empty, full) = (created(far), created(far));
    near.says(&format!("wait {empty} never"));
    near.says(&format!("send {full}"));
    near.until("both wait", |stats| stats[3] == 2);
    far.until("both are parked", |stats| stats[4] == 2);
    cut(nodes, "n2", "cut");
    assert_eq!(near.hears("waited "), "Unreachable");
    assert!(near.hears("sent ").ends_with(" Unreachable"));
    // The owner forgets them, too.
    far.until("nothing is parked", |stats| stats[4] == 0);
    cut(nodes, "n2", "join");
    // The next request opens another link, as soon as there is a way.
    let begin = std::time::Instant::now();
    loop {
        near.says(&format!("post {empty}"));
        match near.hears("posted ").as_str() {
            "Ok" => break,
            "Unreachable" => assert!(begin.elapsed() < rig::WATCHDOG),
            other => panic!("{other}"),
        }
    }
}

fn a_reset_connection_is_not_noticed(nodes: &Nodes) {
    let mut killed = 0;
    let again = undisturbed(nodes, 10, 60, |near| {
        for _ in 0..3 {
            for node in ["n1", "n2"] {
                // Of the connections between the agents, those that can be ended by force.
                let done = nodes.on(node, &["ss", "-K", "-H", "-t", "dst", "10.77.0.0/24"]);
                killed += done.out.lines().count() as u64;
                near.goes_on();
            }
        }
    });
    if killed == 0 {
        println!(
            "SKIPPED a reset connection: the kernel ends no sockets for ss -K (CONFIG_INET_DIAG_DESTROY)"
        );
    } else {
        assert!(again >= 1, "{killed} were reset, and none was made again");
    }
}

fn an_address_that_goes_and_comes_is_not_noticed(nodes: &Nodes) {
    let address = |what| {
        let done = nodes.on(
            "n2",
            &["ip", "address", what, "10.77.0.2/24", "dev", "eth0"],
        );
        assert_eq!(done.code, Some(0), "{done:?}");
    };
    let again = undisturbed(nodes, 3, 60, |_| {
        address("del");
        // One side knows at once, the other hears nothing.
        pause(Duration::from_secs(5));
        address("add");
    });
    assert!(again >= 1, "the connection was never made again");
}

fn a_silent_agent_ends_what_has_a_deadline(nodes: &Nodes) {
    let [mut near, mut far] = two(nodes, 3, 1);
    let (empty, other) = (created(&mut far), created(&mut far));
    near.says(&format!("attach {empty}"));
    near.hears("ok");
    near.says(&format!("wait {other} never"));
    far.until("it is parked", |stats| stats[4] == 1);
    // The kernel there goes on answering; only the agent says nothing.
    far.signal("-STOP");
    near.says(&format!("wait {empty} 1"));
    assert_eq!(near.hears("waited "), "Unreachable");
    // What has no deadline waits on: stopped is not dead.
    near.stats();
    assert_eq!(near.heard, Vec::<String>::new());
    far.signal("-CONT");
    far.says(&format!("post {other}"));
    assert_eq!(near.hears("waited "), "Ok");
    near.until("nothing is under way", |stats| stats[3] == 0);
}

fn delay_and_loss_change_nothing(nodes: &Nodes) {
    let shaped = |words: &[&str]| {
        let begin = ["tc", "qdisc", "replace", "dev", "eth0", "root"];
        nodes.on("n2", &[&begin[..], words].concat())
    };
    let done = shaped(&["netem", "delay", "5ms", "2ms", "loss", "3%"]);
    if done.code != Some(0) {
        println!(
            "SKIPPED delay and loss by netem: this kernel has none ({})",
            done.err.trim()
        );
        // A narrow way with a short queue delays, and loses what does not fit.
        let done = shaped(&["tbf", "rate", "20mbit", "burst", "8kb", "limit", "12kb"]);
        if done.code != Some(0) {
            println!(
                "SKIPPED delay and loss by tbf: this kernel has none ({})",
                done.err.trim()
            );
            return;
        }
    }
    undisturbed(nodes, 10, 5, |near| {
        near.goes_on();
        near.goes_on();
    });
    let lost = nodes
        .on("n2", &["tc", "-s", "qdisc", "show", "dev", "eth0"])
        .out;
    assert!(!lost.contains("(dropped 0,"), "nothing was lost: {lost}");
    let done = nodes.on("n2", &["tc", "qdisc", "del", "dev", "eth0", "root"]);
    assert_eq!(done.code, Some(0), "{done:?}");
}

fn a_killed_agent_and_its_next_life(nodes: &Nodes) {
    let mut both = two(nodes, 10, 60);
    let [near, far] = &mut both;
    let (empty, full) = (created(far), created(far));
    far.says(&format!("receive {full}"));
    near.says(&format!("wait {empty} never"));
    near.says(&format!("send {full}"));
    far.goes_on();
    // In the middle of traffic.
    far.signal("-KILL");
    assert_eq!(near.hears("waited "), "Unreachable");
    assert!(near.hears("sent ").ends_with(" Unreachable"));
    assert_eq!(near.stats()[3], 0);
    both[1] = Remote::start(nodes, 1, 10, 60);
    acquaint(&mut both);
    let [near, far] = &mut both;
    let anew = created(far);
    far.says(&format!("wait {anew} never"));
    near.says(&format!("post {anew}"));
    assert_eq!(
        (near.hears("posted "), far.hears("waited ")),
        ("Ok".to_owned(), "Ok".to_owned())
    );
    // The whole node goes, and comes back.
    near.says(&format!("wait {anew} never"));
    far.until("it is parked", |stats| stats[4] == 1);
    cut(nodes, "n2", "kill");
    cut(nodes, "n2", "start");
    assert_eq!(near.hears("waited "), "Unreachable");
}
