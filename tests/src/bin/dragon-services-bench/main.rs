//! What bring-up, tear-down and idling of a runtime cost, and how it answers faults (`cargo xtask bench services`). Prints
//! one JSON object.

mod faults;
mod output;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dragon::{Channel, ChannelOptions, Deadline, Descriptor, NodeIndex, Session, Spawn};
use dragon_tests::job::{Job, own_memory, voluntary_switches};
use dragon_tests::local::{dragon, pause};
use dragon_tests::netns::Netns;

const LIMIT: Duration = Duration::from_secs(60);
/// Processes that each node but the first starts on the next one.
const STARTS: usize = 50;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["up-and-down", place, nodes, runs] => up_and_down(place, nodes, runs),
        ["messages", nodes] => messages(nodes),
        ["memory"] => memory(),
        ["wake-ups"] => wake_ups(),
        ["wake-ups", nodes] => wake_ups_of(nodes),
        ["faults"] => faults::all(),
        ["faults", fault, runs] => faults::one(fault, runs),
        ["sleepers"] => faults::sleepers(),
        ["asked"] => faults::asked(),
        ["asker"] => faults::asker(),
        ["requests", nodes] => requests(nodes),
        ["head-requests"] => head_requests(),
        ["output", bytes, runs] => output::through_the_tree(bytes, runs),
        ["writer", script] => output::writer(script),
        ["starter", ready, go] => starter(ready, go),
        _ => Err(anyhow::anyhow!("what is to be measured?")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{{\"skipped\": {:?}}}", format!("{error:#}"));
            ExitCode::SUCCESS
        }
    }
}

/// From the start of the command to the first word of the head, and from the head's end to that of the command, in turn.
fn up_and_down(place: &str, nodes: &str, runs: &str) -> Result<()> {
    let (count, runs): (u32, u32) = (nodes.parse()?, runs.parse()?);
    let head = ["sh", "-c", "echo up; read line"];
    let netns = match place {
        "apart" => Some(Netns::up(count).map_err(anyhow::Error::msg)?),
        _ => None,
    };
    let (mut up, mut down) = (Vec::new(), Vec::new());
    // The first run warms the page cache and is dropped.
    for run in 0..=runs {
        let mut command = match &netns {
            Some(netns) => netns.dragon(count, &head),
            None => dragon(["-N", nodes, "--local-nodes"].iter().chain(&head)),
        };
        let mut job = Job::start(&mut command)?;
        ensure!(
            job.has_printed("up", LIMIT),
            "{nodes} nodes did not come up within {LIMIT:?}"
        );
        let is_up = job.age();
        let end = Instant::now();
        job.tell("end\n");
        let ended = job.end(LIMIT);
        ensure!(ended.code == Some(0), "{nodes} nodes: {ended:?}");
        if run > 0 {
            up.push(is_up.as_secs_f64() * 1e3);
            down.push(end.elapsed().as_secs_f64() * 1e3);
        }
    }
    println!("{{\"columns\": [{up:?}, {down:?}]}}");
    Ok(())
}

/// The most messages that one node sends and receives from bring-up to end.
fn messages(nodes: &str) -> Result<()> {
    let mut job = Job::start(&mut dragon(["-N", nodes, "--local-nodes", "true"]))?;
    let ended = job.end(LIMIT);
    ensure!(ended.code == Some(0), "{ended:?}");
    let daemons = job.daemons();
    let counted = daemons.values().filter_map(|seen| seen.states.last());
    let most = counted.map(|(_, sent, received)| sent + received).max();
    println!(
        "{{\"values\": [{}]}}",
        most.context("no daemon showed itself")?
    );
    Ok(())
}

fn idle(measure: impl Fn(u32) -> Result<f64>) -> Result<()> {
    let mut job = Job::start(&mut dragon(["sh", "-c", "echo up; read line"]))?;
    ensure!(job.has_printed("up", LIMIT), "the job did not come up");
    let daemon = job.in_state(0, "RUNNING", LIMIT);
    // What follows the bring-up is over by then.
    pause(Duration::from_secs(1));
    let value = measure(daemon.context("no daemon showed itself")?)?;
    job.stdin = None;
    let ended = job.end(LIMIT);
    ensure!(ended.code == Some(1), "{ended:?}");
    println!("{{\"values\": [{value}]}}");
    Ok(())
}

fn memory() -> Result<()> {
    idle(|pid| Ok(own_memory(pid).context("no memory of it")? as f64 / f64::from(1 << 20)))
}

/// How long wake-ups are counted.
const SECONDS: u64 = 5;

fn wake_ups() -> Result<()> {
    idle(|pid| {
        let before = voluntary_switches(pid);
        pause(Duration::from_secs(SECONDS));
        Ok((voluntary_switches(pid) - before) as f64 / SECONDS as f64)
    })
}

/// Wake-ups in a second of the first daemon of several, and of that of the others which has most; behind them what the
/// protocol needs. A heartbeat, ten in the node limit, wakes each daemon for each neighbour in the tree, which brings it
/// or answers it, and the first one by its timer.
fn wake_ups_of(nodes: &str) -> Result<()> {
    let count: u32 = nodes.parse()?;
    ensure!((2..=17).contains(&count), "the tree is to have one level");
    let words = [
        "-N",
        nodes,
        "--local-nodes",
        "sh",
        "-c",
        "echo up; read line",
    ];
    let mut job = Job::start(&mut dragon(words))?;
    ensure!(job.has_printed("up", LIMIT), "the job did not come up");
    let daemon = |node| job.in_state(node, "RUNNING", LIMIT);
    let daemons: Option<Vec<u32>> = (0..count).map(daemon).collect();
    let daemons = daemons.context("not all daemons showed themselves")?;
    // What follows the bring-up is over by then.
    pause(Duration::from_secs(1));
    let counted = || daemons.iter().map(|pid| voluntary_switches(*pid));
    let before: Vec<u64> = counted().collect();
    pause(Duration::from_secs(SECONDS));
    let rates = counted().zip(before);
    let rates: Vec<f64> = rates
        .map(|(after, before)| (after - before) as f64 / SECONDS as f64)
        .collect();
    job.stdin = None;
    let ended = job.end(LIMIT);
    ensure!(ended.code == Some(1), "{ended:?}");
    let beats = 10.0 / faults::node_limit()?.as_secs_f64();
    let (first, others) = rates.split_first().context("no daemon")?;
    let most = others.iter().copied().fold(0.0, f64::max);
    let (needed, needed_by_first) = (beats, beats * f64::from(count));
    println!("{{\"columns\": [[{first}], [{most}], [{needed_by_first}], [{needed}]]}}");
    Ok(())
}

/// Requests and messages that the first node handles for each process that other nodes start on others.
fn requests(nodes: &str) -> Result<()> {
    let program = std::env::current_exe()?;
    let program = program.to_str().context("a path that is text")?;
    let mut job = Job::start(&mut dragon([
        "-N",
        nodes,
        "--local-nodes",
        program,
        "head-requests",
    ]))?;
    let ended = job.end(LIMIT);
    ensure!(ended.code == Some(0), "{ended:?}");
    print!("{}", ended.out);
    Ok(())
}

fn head_requests() -> Result<()> {
    let session = Session::attach()?;
    let others: Vec<_> = session
        .nodes()?
        .nodes
        .iter()
        .map(|info| info.node)
        .skip(1)
        .collect();
    let options = ChannelOptions::default();
    let (ready, go) = (Channel::create(&options)?, Channel::create(&options)?);
    let program = std::env::current_exe()?;
    for node in &others {
        let words = [ready.descriptor().to_string(), go.descriptor().to_string()];
        let spawn = Spawn::program(&program).arg("starter");
        spawn.arg(&words[0]).arg(&words[1]).node(*node).start()?;
    }
    let all_ready = || -> Result<()> {
        for _ in &others {
            ready.receive(Deadline::Never)?;
        }
        Ok(())
    };
    all_ready()?;
    let before = handled(session)?;
    for _ in &others {
        go.send(b"go", 0, Deadline::Never)?;
    }
    all_ready()?;
    // The question itself is one.
    let handled = handled(session)? - before - 1;
    for _ in &others {
        go.send(b"end", 0, Deadline::Never)?;
    }
    let each = handled as f64 / (STARTS * others.len()) as f64;
    println!("{{\"values\": [{each}]}}");
    Ok(())
}

/// What this node's daemon was asked by its processes and by other daemons.
fn handled(session: &Session) -> Result<u64> {
    let stats = session.stats()?;
    let value = |name| {
        stats
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| *value)
    };
    match (value("control_requests"), value("control_received")) {
        (Some(asked), Some(received)) => Ok(asked + received),
        _ => bail!("the daemon does not count"),
    }
}

/// Starts processes on the next node, when told to.
fn starter(ready: &str, go: &str) -> Result<()> {
    let session = Session::attach()?;
    let channel = |text: &str| -> Result<Channel> {
        let descriptor: Descriptor = text.parse().ok().context("no descriptor")?;
        Ok(Channel::attach(descriptor, false)?)
    };
    let (ready, go) = (channel(ready)?, channel(go)?);
    let nodes = u32::try_from(session.nodes()?.nodes.len())?;
    let next = session.node().get() % (nodes - 1) + 1;
    let next = NodeIndex::new(next).context("no such node")?;
    ready.send(b"ready", 0, Deadline::Never)?;
    go.receive(Deadline::Never)?;
    for _ in 0..STARTS {
        let child = Spawn::program("true").node(next).start()?;
        ensure!(child.process.wait(Deadline::Never)? == 0, "true failed");
    }
    ready.send(b"done", 0, Deadline::Never)?;
    go.receive(Deadline::Never)?;
    Ok(())
}
