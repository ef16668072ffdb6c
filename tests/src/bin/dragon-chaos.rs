//! Jobs to which something happens in a named state (`cargo xtask chaos`), and the head programs of those jobs.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use dragon::{
    Channel, ChannelOptions, Code, Deadline, Descriptor, Lives, NodeIndex, Session, Spawn,
};
use dragon_tests::chaos::{self, HEAD, NODES, Place};
use dragon_tests::netns::Netns;

/// Run jobs, kill or stop something of each in a named state, and look at how it ends and what it leaves.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos", bin_name = "cargo xtask chaos")]
struct Arguments {
    /// How many jobs
    #[arg(long, default_value_t = 25)]
    runs: u32,
    /// Which ones: the same seed makes the same jobs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first job
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// Say of every job what happened, not only of those that failed
    #[arg(long)]
    all: bool,
    /// A Python interpreter that has the package; without one no Python program is among the jobs
    #[arg(long)]
    python: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["head", role, ref rest @ ..] => head(role, rest),
        _ => run(&Arguments::parse()),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dragon-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const PYTHON: &str = "\
import multiprocessing, sys, threading, time
import dragon

def work(n):
    return n * n

if __name__ == '__main__':
    multiprocessing.set_start_method('dragon')
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
    with multiprocessing.Pool(4) as pool:
        assert pool.map(work, range(8)) == [n * n for n in range(8)]
        print('up', flush=True)
        while not over.is_set():
            pool.map(work, range(32))
    sys.exit(7)
";

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let netns = Netns::up(NODES)
        .map_err(|why| eprintln!("no namespaces, so no links are cut: {why}"))
        .ok();
    let folder = tempfile::tempdir()?;
    let python = match &arguments.python {
        None => None,
        Some(interpreter) => {
            let has_it = Command::new(interpreter)
                .args(["-c", "import dragon"])
                .status();
            ensure!(
                has_it.is_ok_and(|status| status.success()),
                "{} cannot import dragon",
                interpreter.display()
            );
            let program = folder.path().join("pool.py");
            std::fs::write(&program, PYTHON)?;
            Some((interpreter.clone(), program))
        }
    };
    let place = Place {
        netns,
        heads: std::env::current_exe()?,
        python,
    };
    let Arguments {
        seed,
        first,
        runs,
        all,
        ..
    } = *arguments;
    println!("seed {seed}");
    let totals = chaos::run(&place, seed, first, runs, all);
    println!("{totals}");
    Ok(if totals.good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A program of a job. Heads print "up" when they are at work, and end when a line comes.
fn head(role: &str, words: &[&str]) -> Result<ExitCode> {
    let session = Session::attach()?;
    let nodes = session.nodes()?.nodes;
    let nodes: Vec<NodeIndex> = nodes.iter().map(|info| info.node).collect();
    match (role, words) {
        ("spawns", [policy]) => spawns(&nodes, *policy == "continue"),
        ("messages", [policy]) => messages(&nodes, *policy == "continue"),
        ("echo", [from, to]) => echo(from, to),
        _ => bail!("there is no program '{role}' with {} words", words.len()),
    }
}

/// What is left of a result where nodes may be lost: nothing, when one was.
fn unless_lost<T>(result: dragon::Result<T>, goes_on: bool) -> dragon::Result<Option<T>> {
    match result {
        Err(error) if goes_on && matches!(error.code(), Code::NodeDown | Code::Unreachable) => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Becomes true when a line comes on standard input, or its end.
fn a_line() -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::stdin().lock().read_line(&mut line);
        told.store(true, Ordering::Release);
    });
    over
}

fn spawns(nodes: &[NodeIndex], goes_on: bool) -> Result<ExitCode> {
    let mut sleepers = Vec::new();
    // A job whose head is lost lasts as long as they do.
    let lives = if goes_on {
        Lives::WithCreator
    } else {
        Lives::UntilTheEnd
    };
    for node in nodes {
        let sleeper = Spawn::program("sleep").arg("100000").lives(lives);
        sleepers.extend(unless_lost(sleeper.node(*node).start(), goes_on)?);
    }
    println!("up");
    let over = a_line();
    for node in nodes.iter().cycle() {
        if over.load(Ordering::Acquire) {
            break;
        }
        let Some(child) = unless_lost(Spawn::program("true").node(*node).start(), goes_on)? else {
            continue;
        };
        let status = unless_lost(child.process.wait(Deadline::Never), goes_on)?;
        ensure!(
            status.is_none_or(|status| status == 0),
            "true on node {node} ended with status {status:?}"
        );
    }
    drop(sleepers);
    Ok(ExitCode::from(HEAD))
}

fn messages(nodes: &[NodeIndex], goes_on: bool) -> Result<ExitCode> {
    let options = ChannelOptions::default();
    let (there, back) = (Channel::create(&options)?, Channel::create(&options)?);
    let program = std::env::current_exe()?;
    let mut children = Vec::new();
    for node in nodes {
        let words = [
            there.descriptor().to_string(),
            back.descriptor().to_string(),
        ];
        let spawn = Spawn::program(&program).arg("head").arg("echo");
        let spawn = spawn.arg(&words[0]).arg(&words[1]).node(*node);
        children.extend(unless_lost(spawn.start(), goes_on)?);
    }
    let mut message = vec![0; 64];
    let over = a_line();
    for round in 0_u64.. {
        if round == 20 {
            println!("up");
        }
        if over.load(Ordering::Acquire) {
            break;
        }
        message[..8].copy_from_slice(&round.to_le_bytes());
        loop {
            there.send(&message, round, Deadline::Never)?;
            if is_answered(&back, round, goes_on)? || over.load(Ordering::Acquire) {
                break;
            }
        }
        // From inline to a block of the pool, and back.
        message.resize(64 << (round % 12), 1);
    }
    Ok(ExitCode::from(HEAD))
}

/// Waits for an answer. In a job that goes on without a node a message may be lost with who had it, and be sent again, and
/// answered twice.
fn is_answered(back: &Channel, round: u64, goes_on: bool) -> Result<bool> {
    const PATIENCE: u64 = 200_000_000;
    loop {
        let deadline = if goes_on {
            Deadline::after(PATIENCE)
        } else {
            Deadline::Never
        };
        match back.receive(deadline) {
            Ok(answer) if answer.hint() == round => return Ok(true),
            Ok(answer) if goes_on && answer.hint() < round => {}
            Ok(answer) => bail!("answer {} to {round}", answer.hint()),
            Err(error) if error.code() == Code::Timeout => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

fn echo(from: &str, to: &str) -> Result<ExitCode> {
    let channel = |text: &str| -> Result<Channel> {
        let descriptor: Descriptor = text
            .parse()
            .map_err(|error| anyhow!("{text} is no descriptor: {error:?}"))?;
        Channel::attach(descriptor, false).context("no channel")
    };
    let (from, to) = (channel(from)?, channel(to)?);
    loop {
        let message = from.receive(Deadline::Never)?;
        to.send(&message.to_vec(), message.hint(), Deadline::Never)?;
    }
}
