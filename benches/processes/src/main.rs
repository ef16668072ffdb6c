//! Measures processes of a runtime from within: `dragon process-bench MODE`. Prints one JSON object:
//! `{"columns": [ours, bare system calls], "note"}`, or `{"values": [one per run], "note"}`.
//!
//! | mode | |
//! |---|---|
//! | `create` | create and join of `/bin/true`, one after the other: microseconds |
//! | `create forwarded` | the same with the output forwarded to the job |
//! | `at-once` | 1000 of them with one request: how many a second |
//! | `live N` | so many `sleep` at a time: how many live; what the daemon has of descriptors and memory for them |

use std::fs;
use std::os::unix::process::parent_id;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use dragon::{Child, Deadline, Policy, Spawn, Stdio};
use dragon_raw::{report, report_beside, report_skipped, spawn as raw};

const RUNS: u32 = 15;
const ONE_BY_ONE: u32 = 40;
const AT_ONCE: u32 = 1000;
/// Processes that are asked for with one request.
const REQUEST: u32 = 1000;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["create"] => create("create", plain),
        ["create", "forwarded"] => create("create forwarded", forwarded),
        ["at-once"] => at_once(),
        ["live", count] => live(count.parse().context("a number of processes")?),
        _ => bail!("create [forwarded], at-once or live N"),
    }
}

fn forwarded() -> Spawn {
    Spawn::program(raw::PROGRAM).policy(Policy::Local)
}

/// With the output of the daemon, as the bare program has that of its parent.
fn plain() -> Spawn {
    forwarded().stdout(Stdio::Inherit).stderr(Stdio::Inherit)
}

fn join(child: &Child) -> Result<()> {
    let status = child.process.wait(Deadline::Never)?;
    ensure!(status == 0, "{} ended with {status}", raw::PROGRAM);
    Ok(())
}

fn create(name: &str, spawn: fn() -> Spawn) -> Result<()> {
    let mut columns = [Vec::new(), Vec::new()];
    // The first run warms up and is dropped.
    for run in 0..=RUNS {
        let begin = Instant::now();
        for _ in 0..ONE_BY_ONE {
            join(&spawn().start()?)?;
        }
        let ours = begin.elapsed().as_secs_f64() * 1e6 / f64::from(ONE_BY_ONE);
        let bare = raw::one_by_one(ONE_BY_ONE)?;
        if run > 0 {
            columns[0].push(ours);
            columns[1].push(bare);
        }
    }
    report_beside(name, "us", &columns, "in turn, unpinned");
    Ok(())
}

fn at_once() -> Result<()> {
    let mut columns = [Vec::new(), Vec::new()];
    for run in 0..=RUNS / 3 {
        let begin = Instant::now();
        let spawns = (0..AT_ONCE).map(|_| plain()).collect();
        for child in Spawn::start_all(spawns)? {
            join(&child?)?;
        }
        let ours = f64::from(AT_ONCE) / begin.elapsed().as_secs_f64();
        let bare = raw::at_once(AT_ONCE)?;
        if run > 0 {
            columns[0].push(ours);
            columns[1].push(bare);
        }
    }
    report_beside("at-once", "/s", &columns, "in turn, unpinned");
    Ok(())
}

fn live(wanted: u32) -> Result<()> {
    let begin = daemon()?;
    let mut children = Vec::new();
    let mut missing = None;
    while children.len() < wanted as usize && missing.is_none() {
        let more = REQUEST.min(wanted - u32::try_from(children.len())?);
        let sleep = || {
            let sleep = Spawn::program("sleep").arg("100000").policy(Policy::Local);
            sleep.stdout(Stdio::Null).stderr(Stdio::Null)
        };
        for child in Spawn::start_all((0..more).map(|_| sleep()).collect())? {
            match child {
                Ok(child) => children.push(child),
                Err(error) => missing = Some(error.to_string()),
            }
        }
    }
    let end = daemon()?;
    let count = children.len();
    for child in &children {
        child.process.signal(9)?;
    }
    for child in &children {
        child.process.wait(Deadline::Never)?;
    }
    if count == 0 {
        report_skipped("live", &missing.unwrap_or_default());
        return Ok(());
    }
    let limits = fs::read_to_string("/proc/self/limits")?;
    let processes = limits
        .lines()
        .find(|line| line.starts_with("Max processes"));
    let note = format!(
        "the daemon's descriptors {} to {}, its anonymous memory {} to {} KiB; {}{}",
        begin.0,
        end.0,
        begin.1,
        end.1,
        processes
            .unwrap_or("no limit of processes")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        missing
            .map(|why| format!("; then: {why}"))
            .unwrap_or_default()
    );
    report("live", "", &[count as f64], &note);
    Ok(())
}

/// Open descriptors of the daemon, and KiB of its anonymous memory.
fn daemon() -> Result<(usize, u64)> {
    let folder = format!("/proc/{}", parent_id());
    let status = fs::read_to_string(format!("{folder}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let words = line.context("no RssAnon in the daemon's status")?;
    let number = words.trim().trim_end_matches(" kB").parse()?;
    Ok((fs::read_dir(format!("{folder}/fd"))?.count(), number))
}
