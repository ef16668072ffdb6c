//! Ping-pong of two processes over shared memory, both asleep in a futex until it is their turn: microseconds one way.

use std::time::Instant;

use anyhow::Result;
use dragon_raw::sleep::{END, answer, ask, end};
use dragon_raw::{
    Options, Page, Watched, cores, end_with_parent, pin, report, report_skipped, second_process,
};

const NAME: &str = "raw-futex";
const ROUNDS: u32 = 5_000;

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
            turn = ask(turns, turn)?;
        }
        if run > 0 {
            values.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds) / 2.0);
        }
    }
    child.done();
    end(turns)?;
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
    while seen != END {
        seen = answer(turns, seen)?;
    }
    Ok(())
}
