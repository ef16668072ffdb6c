//! What happens in a job of three nodes after each fault: how long until its sentence is said, and until nothing is left.
//!
//! With namespaces the nodes have networks of their own; without, they are on this machine, and what needs a network is left out.

use std::io::BufRead;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dragon::names::{self, Lasts, Value};
use dragon::{Deadline, NodeIndex, Session, Spawn};
use dragon_tests::job::{Job, send};
use dragon_tests::local::{dragon, pause, run};
use dragon_tests::netns::{Netns, address};
use rustix::process::Signal;

use super::LIMIT;

const NODES: u32 = 3;
/// The node to which it happens where any will do.
const VICTIM: u32 = NODES - 1;

/// What happens, the names that it goes by, and how the job answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    DaemonKilled,
    HostLost,
    Cut,
    CutOneWay,
    DaemonStopped,
    FirstKilled,
    FirstHostLost,
    LauncherKilled,
    HeadKilled,
}

const FAULTS: [(&str, Fault); 9] = [
    ("daemon-killed", Fault::DaemonKilled),
    ("host-lost", Fault::HostLost),
    ("cut", Fault::Cut),
    ("cut-one-way", Fault::CutOneWay),
    ("daemon-stopped", Fault::DaemonStopped),
    ("first-killed", Fault::FirstKilled),
    ("first-host-lost", Fault::FirstHostLost),
    ("launcher-killed", Fault::LauncherKilled),
    ("head-killed", Fault::HeadKilled),
];

/// Each of them once: a line of JSON each.
pub(super) fn all() -> Result<()> {
    for (name, fault) in FAULTS {
        match strike(fault) {
            Ok(times) => println!("{}", times.line(name)),
            Err(why) => println!(
                "{{\"fault\": \"{name}\", \"skipped\": {:?}}}",
                why.to_string()
            ),
        }
    }
    Ok(())
}

/// One of them, so many times: three columns in seconds, until its sentence, until nothing was left, and the limit for the
/// sentence.
pub(super) fn one(name: &str, runs: &str) -> Result<()> {
    let fault = FAULTS.iter().find(|(known, _)| *known == name);
    let (_, fault) = fault.with_context(|| format!("there is no fault {name}"))?;
    let (mut said, mut over, mut limits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs.parse::<u32>()? {
        let times = strike(*fault)?;
        said.push(times.said.as_secs_f64());
        over.push(times.over.as_secs_f64());
        limits.push(times.limit.as_secs_f64());
    }
    println!("{{\"columns\": [{said:?}, {over:?}, {limits:?}]}}");
    Ok(())
}

/// All from the fault on.
#[derive(Debug)]
struct Times {
    /// To the sentence that tells of it; where global services are replaced, to the answer of the new ones; where it is for nobody
    /// to tell, until all daemons end.
    said: Duration,
    /// Until nothing was left, on any node.
    over: Duration,
    /// How long the sentence may take.
    limit: Duration,
}

impl Times {
    fn line(&self, name: &str) -> String {
        let Self { said, over, limit } = self;
        format!(
            "{{\"fault\": {name:?}, \"sentence_s\": {:.3}, \"limit_s\": {}, \"nothing_left_s\": {:.3}}}",
            said.as_secs_f64(),
            limit.as_secs_f64(),
            over.as_secs_f64()
        )
    }
}

/// Runs a job to which it happens.
fn strike(fault: Fault) -> Result<Times> {
    let limit = node_limit()?;
    let netns = Netns::up(NODES);
    let network = || {
        let netns = netns.as_ref();
        netns.map_err(|why| anyhow::anyhow!("no network of their own for the nodes: {why}"))
    };
    let mut job = start(fault, netns.as_ref().ok())?;
    let daemon = |node| {
        let pid = job.in_state(node, "RUNNING", LIMIT);
        pid.with_context(|| format!("no daemon of node {node}"))
    };
    let at = match fault {
        Fault::DaemonKilled => signal(daemon(VICTIM)?, Signal::KILL)?,
        Fault::DaemonStopped => signal(daemon(VICTIM)?, Signal::STOP)?,
        Fault::FirstKilled => signal(daemon(0)?, Signal::KILL)?,
        Fault::LauncherKilled => signal(job.launcher(), Signal::KILL)?,
        Fault::HeadKilled => signal(head(&job)?, Signal::KILL)?,
        Fault::HostLost => timed(|| network()?.lose(VICTIM).map_err(anyhow::Error::msg))?,
        Fault::FirstHostLost => timed(|| network()?.lose(0).map_err(anyhow::Error::msg))?,
        Fault::Cut => timed(|| network()?.cut(VICTIM).map_err(anyhow::Error::msg))?,
        Fault::CutOneWay => timed(|| network()?.cut_way(VICTIM, 0).map_err(anyhow::Error::msg))?,
    };
    let of =
        |nodes: Range<u32>, what: &str| nodes.map(|node| format!("node {node} {what}")).collect();
    let sentences: Vec<String> = match fault {
        Fault::FirstKilled | Fault::FirstHostLost => of(1..NODES, "is answered by node 1"),
        Fault::LauncherKilled | Fault::HeadKilled => of(0..NODES, "is ENDING"),
        _ if netns.is_ok() => of(VICTIM..NODES, &format!("({}) is lost", address(VICTIM))),
        _ => of(VICTIM..NODES, "(127.0.0.1) is lost"),
    };
    let said = all_said(&job, &sentences);
    let ended = job.end(LIMIT);
    let said = said.with_context(|| format!("{ended:?}"))?;
    ensure!(ended.code.is_some(), "it did not end: {ended:?}");
    let left = job.left();
    let over = at.elapsed();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(Times {
        said: said - at,
        over,
        limit,
    })
}

/// When the last of these was said.
fn all_said(job: &Job, sentences: &[String]) -> Result<Instant> {
    let heard = sentences.iter().map(|sentence| {
        let heard = job.heard(sentence, LIMIT).map(|(at, _)| at);
        heard.with_context(|| format!("nobody said '{sentence}'"))
    });
    let heard = heard.collect::<Result<Vec<_>>>()?;
    heard.into_iter().max().context("nothing is to be said")
}

fn start(fault: Fault, netns: Option<&Netns>) -> Result<Job> {
    let program = std::env::current_exe()?;
    let program = program.to_str().context("a path that is text")?;
    let replaced = matches!(fault, Fault::FirstKilled | Fault::FirstHostLost);
    let words: &[&str] = if replaced {
        &["--on-node-failure", "continue", program, "asked"]
    } else {
        &[program, "sleepers"]
    };
    let count = NODES.to_string();
    let mut command = match netns {
        Some(netns) if matches!(fault, Fault::HostLost | Fault::FirstHostLost) => {
            netns.dragon_far(NODES, words)
        }
        Some(netns) => netns.dragon(NODES, words),
        None => dragon(["-N", &count, "--local-nodes"].iter().chain(words)),
    };
    let mut job = Job::start(&mut command)?;
    if let Some(netns) = netns {
        job = job.in_namespaces(netns.holders());
    }
    if !job.has_printed("up ", LIMIT) {
        bail!("the job did not come up: {:?}", job.end(Duration::ZERO));
    }
    Ok(job)
}

/// The node limit that is in force for a job which says nothing of it.
pub(super) fn node_limit() -> Result<Duration> {
    let done = run(&mut dragon(["config", "--json"]));
    let settings: serde_json::Value = serde_json::from_str(&done.out)?;
    let value = settings["node_limit"]["value"].as_str();
    let seconds = value.context("no node_limit in dragon config")?.parse()?;
    Ok(Duration::from_secs(seconds))
}

fn timed(act: impl FnOnce() -> Result<()>) -> Result<Instant> {
    let at = Instant::now();
    act()?;
    Ok(at)
}

fn signal(pid: u32, signal: Signal) -> Result<Instant> {
    timed(|| {
        ensure!(send(pid, signal), "there is no process {pid}");
        Ok(())
    })
}

/// The head's pid, which it printed.
fn head(job: &Job) -> Result<u32> {
    let (_, line) = job.heard("up ", LIMIT).context("no head")?;
    Ok(line.trim().trim_start_matches("up ").parse()?)
}

/// The head: there are processes on all nodes, and nothing to do.
pub(super) fn sleepers() -> Result<()> {
    let session = Session::attach()?;
    for info in session.nodes()?.nodes {
        Spawn::program("sleep")
            .arg("100000")
            .node(info.node)
            .start()?;
    }
    println!("up {}", std::process::id());
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// The head: other nodes ask for a name that it has published.
pub(super) fn asked() -> Result<()> {
    let session = Session::attach()?;
    let value = Value::Bytes(b"value".to_vec());
    names::publish("known", value, Lasts::UntilUnpublished)?;
    let program = std::env::current_exe()?;
    for info in session.nodes()?.nodes.iter().skip(1) {
        Spawn::program(&program)
            .arg("asker")
            .node(info.node)
            .start()?;
        names::wait_for(&format!("asker {}", info.node), Deadline::Never)?;
    }
    println!("up {}", std::process::id());
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// Asks for the name until others than the first node's services answer.
pub(super) fn asker() -> Result<()> {
    let session = Session::attach()?;
    let me = session.node();
    let value = Value::Bytes(Vec::new());
    names::publish(&format!("asker {me}"), value, Lasts::WithPublisher)?;
    loop {
        let first = session.nodes()?.global_services;
        names::look_up("known")?;
        if first != NodeIndex::FIRST {
            println!("node {me} is answered by node {first}");
            return Ok(());
        }
        pause(Duration::from_millis(5));
    }
}
