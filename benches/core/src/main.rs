//! `core-bench MODE`: what pools and channels do between processes. Prints one JSON object: `{"values": [one per run], "note"}`,
//! or `{"columns": [values of each thing that is measured in turn], "note"}`.
//!
//! | mode | values |
//! |---|---|
//! | `beside spinning`, `sleeping`, `sleeping-same-core` | microseconds one way for 8 B, and those of bare words, in turn |
//! | `beside rate` | million messages of 64 B a second, and those of a bare ring, in turn |
//! | `rate SENDERS RECEIVERS` | million messages of 64 B a second |
//! | `path BYTES` | nanoseconds of a send and its receive by one process: what the operations cost without a partner |
//! | `bandwidth BYTES` | GB/s with copy in and copy out, bare copies, malloc's memory, a pipe, a socket in turn |
//! | `handover BYTES…` | microseconds to hand a block of each length over, allocation and free included |
//! | `alloc BYTES…` | nanoseconds of an allocation and its free, of each length, and those of a bit of a bitmap |
//! | `scaling` | how much more two processes do than one: allocations of 64 B, bits of bitmaps, and arithmetic |
//! | `recovery OTHERS` | microseconds to recover a process that held 400 blocks, beside so many other allocations in the pool |
//! | `idle` | CPU milliseconds a second with 10 000 channels and 1 000 waiters |
//! | `attach` | microseconds to attach to the runtime; the time of the detach between two is left out |
//! | `attach-detach` | microseconds to attach to the runtime and detach |
//! | `channel-memory`, `pool-memory` | an empty channel's memory over that of its blocks; KiB of an empty pool |

mod bandwidth;
mod beside;
mod memory;
mod node;
mod traffic;

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dragon_channels::{ChannelOptions, Deadline, Event, create_channel};
use dragon_raw::memory::{Children, Shared};
use dragon_raw::{mode, report, report_beside, report_skipped, runs};

use crate::node::Node;

fn main() -> ExitCode {
    let name = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let name = format!("core-bench {name}");
    let words = match mode() {
        Ok(words) => words,
        Err(error) => {
            report_skipped(&name, &format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let printed = match columns(&words) {
        Some(measured) => {
            measured.map(|(unit, columns, note)| report_beside(&name, unit, &columns, &note))
        }
        None => run(&words).map(|(unit, values, note)| report(&name, unit, &values, &note)),
    };
    match printed {
        Ok(()) => {}
        Err(error) => report_skipped(&name, &format!("{error:#}").replace('"', "'")),
    }
    ExitCode::SUCCESS
}

type Measured = (&'static str, Vec<f64>, String);

/// The modes that measure several things in turn.
fn columns(words: &[&str]) -> Option<Result<beside::Columns>> {
    Some(match *words {
        ["beside", "spinning"] => beside::spinning(),
        ["beside", "sleeping"] => beside::sleeping(false),
        ["beside", "sleeping-same-core"] => beside::sleeping(true),
        ["beside", "rate"] => beside::rate(),
        ["bandwidth", bytes] => number(bytes).and_then(bandwidth::bandwidth),
        ["handover", ref lengths @ ..] => numbers(lengths).and_then(|of| beside::handover(&of)),
        ["alloc", ref lengths @ ..] => numbers(lengths).and_then(|of| memory::alloc(&of)),
        ["scaling"] => memory::scaling(),
        _ => return None,
    })
}

fn numbers<T>(words: &[&str]) -> Result<Vec<T>>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    words.iter().map(|word| number(word)).collect()
}

fn number<T>(word: &str) -> Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    word.parse().with_context(|| format!("{word}: no number"))
}

fn run(words: &[&str]) -> Result<Measured> {
    match *words {
        ["rate", senders, receivers] => traffic::rate(senders.parse()?, receivers.parse()?),
        ["path", bytes] => traffic::path(bytes.parse()?),
        ["recovery", others] => recovery(others.parse()?),
        ["idle"] => idle(),
        ["attach"] => attach(false),
        ["attach-detach"] => attach(true),
        ["channel-memory"] => channel_memory(),
        ["pool-memory"] => pool_memory(),
        _ => bail!("unknown mode; see the head of benches/core/src/main.rs"),
    }
}

/// The dead process had slabs, extents and blocks that it shared; the shared ones stay, and are freed between two runs.
fn recovery(others: usize) -> Result<Measured> {
    const BLOCKS: usize = 400;
    let node = Node::new(1 << 30, 2)?;
    let other = node.member(node.slot()?)?;
    for n in 0..others {
        let length = if n % 50 == 0 { 60_000 } else { 64 << (n % 5) };
        let block = other.alloc(length)?;
        if n % 3 == 0 {
            other.share(block.offset)?;
        }
    }
    let mut values = Vec::new();
    for run in 0..=runs() {
        let slot = node.slot()?;
        let dead = node.member(slot)?;
        let mut shared = Vec::new();
        for n in 0..BLOCKS {
            let block = dead.alloc(100 + n as u64 * 499)?.offset;
            if n % 4 == 0 {
                dead.share(block)?;
                shared.push(block);
            }
        }
        let start = Instant::now();
        node.recover(slot)?;
        let time = start.elapsed();
        for block in shared {
            other.free(block)?;
        }
        if run > 0 {
            values.push(time.as_secs_f64() * 1e6);
        }
    }
    let note = format!("{BLOCKS} blocks of the dead process, {others} of others");
    Ok(("us", values, note))
}

/// Waiters are threads of ten processes, each on an event of its own.
fn idle() -> Result<Measured> {
    const CHANNELS: usize = 10_000;
    const WAITERS: usize = 1_000;
    const PROCESSES: usize = 10;
    let node = Node::new(2 << 30, 2)?;
    let member = node.member(node.slot()?)?;
    let small = ChannelOptions {
        capacity: 16,
        ..ChannelOptions::default()
    };
    let mut channels = Vec::new();
    for _ in 0..CHANNELS {
        channels.push(create_channel(&member, &small)?);
    }
    let event = Event::create(&member, 0)?;
    let descriptor = event.descriptor();
    let words = Shared::new(4096)?;
    let mut children = Children::default();
    for _ in 0..PROCESSES {
        let slot = node.slot()?;
        children.fork(|| {
            let member = node.member(slot)?;
            let event = Arc::new(Event::attach(&member, &descriptor, false)?);
            let threads: Vec<_> = (0..WAITERS / PROCESSES)
                .map(|_| {
                    let (event, words) = (Arc::clone(&event), words.clone());
                    std::thread::spawn(move || {
                        words.word(0).fetch_add(1, Ordering::SeqCst);
                        event.wait(Deadline::Never)
                    })
                })
                .collect();
            for thread in threads {
                thread.join().ok().context("a waiter panicked")??;
            }
            Ok(())
        })?;
    }
    while words.word(0).load(Ordering::SeqCst) < WAITERS as u64 {
        std::thread::yield_now();
    }
    node::pause(Duration::from_millis(500));
    let mut values = Vec::new();
    for _ in 0..runs() {
        let before = children.cpu()?;
        node::pause(Duration::from_millis(500));
        values.push((children.cpu()? - before).as_secs_f64() * 2e3);
    }
    event.set()?;
    children.join()?;
    let note = format!("{CHANNELS} idle channels, {WAITERS} waiters in {PROCESSES} processes");
    Ok(("ms/s", values, note))
}

/// Inside a runtime: `dragon core-bench attach`.
fn attach(and_detach: bool) -> Result<Measured> {
    const ROUNDS: u32 = 200;
    let failed = |error: dragon::Error| anyhow::anyhow!("{error}");
    let mut values = Vec::new();
    for run in 0..=runs() {
        let mut time = Duration::ZERO;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            dragon::Session::attach().map_err(failed)?;
            let attached = start.elapsed();
            dragon::Session::detach().map_err(failed)?;
            time += if and_detach {
                start.elapsed()
            } else {
                attached
            };
        }
        if run > 0 {
            values.push(time.as_secs_f64() * 1e6 / f64::from(ROUNDS));
        }
    }
    let what = if and_detach {
        "attach and detach"
    } else {
        "attach alone"
    };
    Ok((
        "us",
        values,
        format!("{what}, one process, again and again"),
    ))
}

/// Memory that the node's regions take more for a channel, over the bytes of its cells.
fn channel_memory() -> Result<Measured> {
    const CHANNELS: u64 = 1_000;
    let node = Node::new(1 << 30, 2)?;
    let member = node.member(node.slot()?)?;
    let options = ChannelOptions::default();
    let first = create_channel(&member, &options)?;
    let before = node.resident()?;
    let mut channels = vec![first];
    for _ in 0..CHANNELS {
        channels.push(create_channel(&member, &options)?);
    }
    let taken = node.resident()? - before;
    let blocks = u64::from(options.capacity) * u64::from(options.block);
    let each = taken as f64 / CHANNELS as f64;
    let note = format!(
        "{each:.0} B for {} blocks of {} B, touched",
        options.capacity, options.block
    );
    Ok(("x", vec![each / blocks as f64], note))
}

fn pool_memory() -> Result<Measured> {
    let node = Node::uncommitted(1 << 30, 2)?;
    let pool = node.pool_resident()? as f64 / 1024.0;
    Ok((
        "KiB",
        vec![pool],
        "metadata and data of an empty pool of 1 GiB".to_owned(),
    ))
}
