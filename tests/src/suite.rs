//! A test program whose cases share something that is expensive or exists once: a cluster.
//!
//! It prints what the standard harness prints, and takes the name of a case, or a part of it, as filter.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// A case: its name, and what it does with what all cases share.
pub type Case<T> = (&'static str, fn(&T));

/// What cases share.
pub trait Shared {
    /// Ends what a case that failed has left, so that the next one fails only for reasons of its own.
    fn tidy(&self) {}
}

impl Shared for () {}

/// Runs the cases one after the other. `shared` is made once, when a case wants to run; its error skips them all.
pub fn run<T: Shared>(shared: impl FnOnce() -> Result<T, String>, cases: &[Case<T>]) -> ExitCode {
    run_with_slow(shared, cases, &[])
}

/// The same with cases that take long, each with the reason: only `--include-ignored` runs them.
pub fn run_with_slow<T: Shared>(
    shared: impl FnOnce() -> Result<T, String>,
    cases: &[Case<T>],
    slow: &[(Case<T>, &str)],
) -> ExitCode {
    let filters: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let given = |option: &str| std::env::args().any(|word| word == option);
    let slow: Vec<_> = slow.iter().filter(|((name, _), _)| wanted(name)).collect();
    let mut chosen: Vec<_> = cases.iter().filter(|(name, _)| wanted(name)).collect();
    let others = cases.len() - chosen.len();
    let mut ignored = 0;
    if given("--include-ignored") {
        chosen.extend(slow.iter().map(|(case, _)| case));
    } else {
        for ((name, _), reason) in &slow {
            println!("test {name} ... ignored, {reason}");
        }
        ignored = slow.len();
    }
    if given("--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let begin = Instant::now();
    let shared = match shared() {
        Ok(shared) => shared,
        Err(reason) => {
            chosen
                .iter()
                .for_each(|(name, _)| println!("SKIPPED {name}: {reason}"));
            println!(
                "\ntest result: ok. 0 passed; 0 failed; {ignored} ignored; 0 measured; {} filtered out",
                cases.len()
            );
            return ExitCode::SUCCESS;
        }
    };
    let mut failed = Vec::new();
    for (name, case) in &chosen {
        let ok = catch_unwind(AssertUnwindSafe(|| case(&shared))).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        if !ok {
            failed.push(*name);
            // It says itself what it cannot do.
            let _ = catch_unwind(AssertUnwindSafe(|| shared.tidy()));
        }
    }
    drop(shared);
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; {ignored} ignored; 0 measured; {others} filtered out; finished in {:.2}s",
        chosen.len() - failed.len(),
        failed.len(),
        begin.elapsed().as_secs_f64()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
