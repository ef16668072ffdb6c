//! Ping-pong of two processes over a pair of pipes, one byte: microseconds one way.

use std::io::{self, Read, Write};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};
use dragon_raw::{Options, cores, end_with_parent, pin, report, report_skipped, second_process};

const ROUNDS: u32 = 5_000;

fn main() -> Result<()> {
    let options = Options::parse()?;
    let name = if options.same_core {
        "raw-pipe same core"
    } else {
        "raw-pipe"
    };
    let (first, second) = match cores(options.same_core) {
        Ok(cores) => cores,
        Err(error) => {
            report_skipped(name, &error.to_string());
            return Ok(());
        }
    };
    if options.child.is_some() {
        end_with_parent()?;
        pin(second)?;
        return echo();
    }

    let mut command = second_process(&options, "pipe")?;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut there = child
        .stdin
        .take()
        .context("no pipe to the second process")?;
    let mut back = child
        .stdout
        .take()
        .context("no pipe from the second process")?;
    pin(first)?;
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let mut values = Vec::new();
    let mut byte = [1u8];
    // The first run warms up and is dropped.
    for run in 0..=options.runs {
        let start = Instant::now();
        for _ in 0..rounds {
            there.write_all(&byte)?;
            back.read_exact(&mut byte)?;
        }
        if run > 0 {
            values.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds) / 2.0);
        }
    }
    drop(there);
    child.wait()?;
    report(
        name,
        "us",
        &values,
        &format!("one way, pinned to cores {first} and {second}"),
    );
    Ok(())
}

fn echo() -> Result<()> {
    let mut input = io::stdin().lock();
    // Unbuffered: Rust's own stdout would hold the byte back.
    let output = io::stdout();
    let mut byte = [0u8];
    while input.read(&mut byte)? == 1 {
        rustix::io::write(&output, &byte)?;
    }
    Ok(())
}
