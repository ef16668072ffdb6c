//! Kills processes at every instruction of every operation, and looks at what is left.
//!
//! Three processes: the *supervisor* (this one) plays the daemon of a node and traces; the *survivor* has a slot and uses
//! the object; *victims* are forked one after the other, get a slot each, and are stepped with ptrace through one operation
//! up to instruction k, where they are killed. Then the supervisor recovers the slot, the survivor shows that the object
//! works, and everything that can be counted must be as before. The operations are those of the ordinary release libraries:
//! nothing in them knows of this.
//!
//! How to read a failure is described in `docs/testing.md`.

mod contention;
mod elsewhere;
mod operations;
mod proxy;
mod random;
mod scratch;
mod steps;
mod survivor;
mod symbols;
mod tally;
mod tracer;
mod watchdog;
mod work;
mod world;

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::operations::Operation;
use crate::steps::{End, Trace};
use crate::tally::{Failure, Tally};
use crate::tracer::Ticks;

#[derive(Debug, Parser)]
#[command(name = "dragon-torture", bin_name = "cargo xtask torture")]
struct Args {
    /// How many kills in all; without it every instruction of every operation
    #[arg(long)]
    kills: Option<u64>,
    /// Where the choice of operations and instructions begins when there are fewer kills than instructions
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Only this operation (see --list)
    #[arg(long)]
    operation: Option<String>,
    /// Only this instruction of it
    #[arg(long, requires = "operation")]
    at: Option<usize>,
    /// Every round of loops that wait, clear or copy, too
    #[arg(long)]
    every: bool,
    /// Victims become another program in place of being killed
    #[arg(long)]
    exec: bool,
    /// Name the operations and how many instructions they have
    #[arg(long)]
    list: bool,
    /// For this program's own use: what a victim becomes
    #[arg(long, hide = true)]
    wait_to_be_killed: bool,
}

/// What is shown beside the kills.
const CHECKS: &[(&str, Check)] = &[(work::NAME, work::check), (proxy::NAME, proxy::check)];

type Check = fn() -> Result<()>;

/// An operation gets at least so many kills, or none.
const KILLS_WORTH_A_TRACE: u64 = 20;
/// Random kills under contention when no number is given.
const CONTENDED: u64 = 10_000;

impl Args {
    /// How many kills are at a chosen instruction; `None`: as many as there are.
    fn stepped(&self) -> Option<u64> {
        self.kills.map(|kills| kills - self.contended())
    }

    /// How many kills are random, under contention: one in three.
    fn contended(&self) -> u64 {
        match (self.operation.as_deref(), self.kills) {
            (Some(contention::NAME), kills) => kills.unwrap_or(CONTENDED),
            (Some(_), _) => 0,
            (None, Some(kills)) => kills / 3,
            (None, None) => CONTENDED,
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    if args.wait_to_be_killed {
        loop {
            std::thread::park();
        }
    }
    scratch::map()?;
    let program = this_program()?;
    let operations = chosen(args)?;
    let _ticks = Ticks::every(tracer::TICK)?;
    let mut tally = Tally::default();
    let end = if args.exec { End::Exec } else { End::Kill };
    let traced = traced(&operations, args, &mut tally);
    if args.list {
        for (operation, trace, points) in &traced {
            let (all, points) = (trace.len(), points.len());
            println!(
                "{:<28} {all:>6} instructions, {points:>6} points",
                operation.name
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    for (operation, trace, points) in &traced {
        let before = tally.kills;
        let points = args.at.as_ref().map_or(&points[..], std::slice::from_ref);
        if let Err(error) = steps::torture(operation, end, trace, points, program, &mut tally) {
            tally.fail(operation.name, end, 0, None, Failure::wrong(error));
        }
        tally.close();
        let (all, kills) = (trace.len(), tally.kills - before);
        println!(
            "{:<28} {all:>6} instructions, {kills:>6} kills",
            operation.name
        );
    }
    for (name, check) in CHECKS {
        if args
            .operation
            .as_deref()
            .is_none_or(|wanted| wanted == *name)
        {
            if let Err(error) = check() {
                tally.fail(name, End::Kill, 0, None, Failure::wrong(error));
            }
            tally.close();
        }
    }
    let contended = args.contended();
    if contended > 0 {
        let before = tally.kills;
        if let Err(error) = contention::torture(contended, args.seed, &mut tally) {
            tally.fail(contention::NAME, End::Kill, 0, None, Failure::wrong(error));
        }
        tally.close();
        let kills = tally.kills - before;
        println!("{:<28} {kills:>26} kills", contention::NAME);
    }
    println!("{tally}");
    Ok(if tally.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Each operation with its instructions, and with those at which it is killed.
fn traced<'a>(
    operations: &'a [Operation],
    args: &Args,
    tally: &mut Tally,
) -> Vec<(&'a Operation, Trace, Vec<usize>)> {
    let mut traced = Vec::new();
    for operation in operations {
        match Trace::record(operation) {
            Ok(trace) => {
                let points = trace.points(args.every);
                traced.push((operation, trace, points));
            }
            Err(error) => {
                tally.fail(operation.name, End::Kill, 0, None, Failure::wrong(error));
                tally.close();
            }
        }
    }
    let all: usize = traced.iter().map(|(_, _, points)| points.len()).sum();
    if let Some(kills) = args.stepped().and_then(|kills| usize::try_from(kills).ok())
        && args.at.is_none()
    {
        let mut number = usize::try_from(args.seed).unwrap_or(0);
        for (_, _, points) in &mut traced {
            // Evenly over all of them: point n is chosen when n times the share passes a whole number.
            points.retain(|_| {
                number += 1;
                number * kills / all.max(1) != (number - 1) * kills / all.max(1)
            });
        }
    }
    traced
}

fn chosen(args: &Args) -> Result<Vec<Operation>> {
    let all = operations::all();
    let Some(name) = &args.operation else {
        return Ok(some(all, args));
    };
    if name == contention::NAME || CHECKS.iter().any(|(known, _)| name == known) {
        return Ok(Vec::new());
    }
    let found: Vec<Operation> = all
        .into_iter()
        .filter(|operation| operation.name == name)
        .collect();
    if found.is_empty() {
        bail!("there is no operation {name}; --list names them");
    }
    Ok(found)
}

/// Most of the time of a short run would go into stepping operations once to see how long they are. So it takes fewer of
/// them, evenly chosen from the seed on, of which each gets some kills.
fn some(all: Vec<Operation>, args: &Args) -> Vec<Operation> {
    let Some(kills) = args.stepped() else {
        return all;
    };
    let few = usize::try_from(kills / KILLS_WORTH_A_TRACE).unwrap_or(usize::MAX);
    let (count, few) = (all.len(), few.max(1));
    let first = usize::try_from(args.seed).unwrap_or(0);
    let numbered = (first..).zip(all);
    numbered
        .filter(|(n, _)| few >= count || n * few % count < few)
        .map(|(_, operation)| operation)
        .collect()
}

fn this_program() -> Result<&'static CStr> {
    let path = std::env::current_exe().context("cannot find this program")?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    Ok(Box::leak(path.into_boxed_c_str()))
}
