//! Ping-pong of two processes over shared memory, both asleep in a futex until it is their turn: microseconds one way.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use dragon_raw::{
    Options, Page, Watched, cores, end_with_parent, pin, report, report_skipped, second_process,
};
use rustix::io::Errno;
use rustix::thread::futex;

const NAME: &str = "raw-futex";
const ROUNDS: u32 = 5_000;
/// The turn that tells the second process to end.
const END: u32 = u32::MAX;

fn main() -> Result<()> {
    let options = Options::parse()?;
    let name = if options.same_core {
        "raw-futex same core"
    } else {
        NAME
    };
    let (first, second) = match cores(options.same_core) {
        Ok(cores) => cores,
        Err(error) => {
            report_skipped(name, &error.to_string());
            return Ok(());
        }
    };
    if let Some(number) = &options.child {
        end_with_parent()?;
        pin(second)?;
        return echo(&Page::inherit(number)?);
    }

    let page = Page::create()?;
    let child = Watched::new(second_process(&options, &page.number())?.spawn()?);
    pin(first)?;
    let turns = page.turns();
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let mut values = Vec::new();
    let mut turn = 0u32;
    // The first run warms up and is dropped.
    for run in 0..=options.runs {
        let start = Instant::now();
        for _ in 0..rounds {
            let last = turn;
            turn = (turn + 1) % END;
            pass(&turns.ping.0, turn)?;
            wait_while(&turns.pong.0, last)?;
        }
        if run > 0 {
            values.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds) / 2.0);
        }
    }
    child.done();
    pass(&turns.ping.0, END)?;
    child.join();
    report(
        name,
        "us",
        &values,
        &format!("one way, pinned to cores {first} and {second}"),
    );
    Ok(())
}

fn echo(page: &Page) -> Result<()> {
    let turns = page.turns();
    let mut seen = 0;
    loop {
        seen = wait_while(&turns.ping.0, seen)?;
        if seen == END {
            return Ok(());
        }
        pass(&turns.pong.0, seen)?;
    }
}

fn pass(word: &AtomicU32, turn: u32) -> Result<()> {
    word.store(turn, Ordering::Release);
    futex::wake(word, futex::Flags::empty(), 1).context("futex wake")?;
    Ok(())
}

/// Sleeps while the word is `old`; returns what it is then. The other process's end is watched for by a thread or by the kernel.
fn wait_while(word: &AtomicU32, old: u32) -> Result<u32> {
    loop {
        let turn = word.load(Ordering::Acquire);
        if turn != old {
            return Ok(turn);
        }
        match futex::wait(word, futex::Flags::empty(), old, None) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).context("futex wait"),
        }
    }
}
