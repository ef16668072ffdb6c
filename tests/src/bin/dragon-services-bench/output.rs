//! How fast the output of a process on another node reaches the reader of the job, and what the daemons keep of it.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dragon::{Deadline, NodeIndex, Session, Spawn};
use dragon_tests::job::own_memory;
use dragon_tests::local::dragon;

/// A line of 80 bytes with its end.
const LINE: &str =
    "a line of output, as long as those of a program that has something to say: 0123";
/// How often the memory of the daemons is looked at: once in so many bytes.
const LOOK: u64 = 64 << 20;

/// So many bytes of lines, by the tree and through `cat`, in turn. Prints three columns: MB/s of both, and by how many MiB
/// the memory of a daemon grew at most from the first byte on.
pub(super) fn through_the_tree(bytes: &str, runs: &str) -> Result<()> {
    let (bytes, runs): (u64, u32) = (bytes.parse()?, runs.parse()?);
    let program = std::env::current_exe()?;
    let program = program.to_str().context("a path that is text")?;
    let (mut ours, mut bare, mut growth) = (Vec::new(), Vec::new(), Vec::new());
    // The first run warms the page cache and is dropped.
    for run in 0..=runs {
        let local = ["-N", "2", "--local-nodes", program, "writer"];
        let script = script(bytes);
        let mut command = dragon(local.into_iter().chain([script.as_str()]));
        let (rate, grown) = read(&mut command, bytes)?;
        let mut command = Command::new("sh");
        command.args(["-c", &format!("({script}) | cat")]);
        let (cat, _) = read(command.stdout(Stdio::piped()), bytes)?;
        if run > 0 {
            ours.push(rate);
            bare.push(cat);
            growth.push(grown);
        }
    }
    println!("{{\"columns\": [{ours:?}, {bare:?}, {growth:?}]}}");
    Ok(())
}

fn script(bytes: u64) -> String {
    format!("yes '{LINE}' | head -c {bytes}")
}

/// The head: another node writes.
pub(super) fn writer(script: &str) -> Result<()> {
    let session = Session::attach()?;
    let nodes = session.nodes()?.nodes;
    let other = nodes.last().context("a node")?.node;
    ensure!(other != NodeIndex::FIRST, "there is no other node");
    let writer = Spawn::program("sh").arg("-c").arg(script).node(other);
    let status = writer.start()?.process.wait(Deadline::Never)?;
    ensure!(status == 0, "the writer ended with {status}");
    Ok(())
}

/// MB/s from the first byte to the end of the command, and by how many MiB a child of its grew at most.
fn read(command: &mut Command, bytes: u64) -> Result<(f64, f64)> {
    let mut child = command.stderr(Stdio::inherit()).spawn()?;
    let mut out = child.stdout.take().context("its output")?;
    let mut buffer = vec![0; 1 << 20];
    let mut count = out.read(&mut buffer)? as u64;
    let begin = Instant::now();
    let before = largest(&child);
    let (mut most, mut next) = (before, LOOK);
    loop {
        let read = out.read(&mut buffer)? as u64;
        count += read;
        if read == 0 {
            break;
        }
        if count >= next {
            most = most.max(largest(&child));
            next += LOOK;
        }
    }
    let rate = count as f64 / begin.elapsed().as_secs_f64() / 1e6;
    let status = child.wait()?;
    ensure!(
        status.success() && count == bytes,
        "{count} of {bytes} bytes came, then {status}"
    );
    let grown = most.saturating_sub(before);
    Ok((rate, grown as f64 / f64::from(1 << 20)))
}

/// The memory of that child of a process that has the most.
fn largest(process: &Child) -> u64 {
    let pid = process.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let pids = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    pids.filter_map(own_memory).max().unwrap_or(0)
}
