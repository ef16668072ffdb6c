//! Ping-pong of two processes over shared memory, both spinning: microseconds one way.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Result;
use dragon_raw::spin::{END, answer, ask};
use dragon_raw::{
    Options, Page, Watched, cores, end_with_parent, pin, report, report_skipped, second_process,
};

const NAME: &str = "raw-spin";
const ROUNDS: u32 = 200_000;

fn main() -> Result<()> {
    let options = Options::parse()?;
    let (first, second) = match cores(false) {
        Ok(cores) => cores,
        Err(error) => {
            report_skipped(NAME, &error.to_string());
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
            turn = ask(turns, turn);
        }
        if run > 0 {
            values.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds) / 2.0);
        }
    }
    child.done();
    turns.ping.0.store(END, Ordering::Release);
    child.join();
    report(
        NAME,
        "us",
        &values,
        &format!("one way, pinned to cores {first} and {second}"),
    );
    Ok(())
}

fn echo(page: &Page) -> Result<()> {
    let turns = page.turns();
    let mut seen = 0;
    while seen != END {
        seen = answer(turns, seen);
    }
    Ok(())
}
