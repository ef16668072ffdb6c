//! `cargo xtask bench`: one table of ratios, all measured in this run on this machine.
//!
//! Absolute figures move from machine to machine and from hour to hour; a ratio to a peer that ran in the same minute
//! does so less. A missed goal is printed, never an error.

mod core;
mod python;
mod row;
mod sample;
mod services;
mod slurm;
mod transport;
mod upstream;

use std::{fs, thread};

use anyhow::Result;
use clap::ValueEnum;

use crate::bench::row::Row;
use crate::bench::upstream::Upstream;
use crate::repo::{self, Repo};
use crate::{build_cmd, children};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which group to measure (all when none is named)
    #[arg(value_enum)]
    group: Option<Group>,
    /// Of group `services`: measure only this; how many processes live at a time is measured by no other run
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Print one JSON object a line in place of the table
    #[arg(long)]
    json: bool,
    /// Measure DragonHPC 0.15.0 as well, installed into target/upstream-venv; never at the same moment as ours
    #[arg(long)]
    with_upstream: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// What the runtime adds to a plain srun over three nodes of a Slurm on this machine
    Slurm,
    /// A first program from start to end and multiprocessing's objects, beside the standard library's
    Python,
    /// Pools and channels between processes, beside bare programs and peers
    Core,
    /// Bring-up, tear-down and idling of runtimes of one and of many nodes; processes, beside bare system calls
    Services,
    /// Two nodes in network namespaces, beside bare programs and Open MPI (as root)
    Transport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    /// 10 000 processes at a time; 1 000 Python workers
    Scale,
    /// How long after each fault it is told, and nothing is left
    Faults,
}

pub(crate) fn bench(repo: &Repo, args: &Args) -> Result<()> {
    let groups = match &args.group {
        Some(group) => std::slice::from_ref(group),
        None => Group::value_variants(),
    };
    build(repo, groups)?;
    children::adopt_orphans()?;
    let upstream = if args.with_upstream {
        Some(Upstream::install(repo)?)
    } else {
        None
    };
    let upstream = upstream.as_ref();
    warn_of_load();
    if !args.json {
        println!("{}", row::HEADER.trim_end());
    }
    for group in groups {
        eprintln!("measuring {group:?}");
        let name = format!("{group:?}").to_lowercase();
        // Each row is printed as soon as it is known: a whole run takes minutes.
        let mut print = |row: Row| {
            if args.json {
                println!("{}", row.json(&name));
            } else {
                println!("{}", row.text(&name).trim_end());
            }
        };
        match group {
            Group::Slurm => slurm::measure(repo, &mut print),
            Group::Python => python::measure(repo, upstream, &mut print),
            Group::Core => core::measure(repo, &mut print),
            Group::Services if args.only == Some(Only::Scale) => {
                services::scale(repo, &mut print);
            }
            Group::Services if args.only == Some(Only::Faults) => {
                services::faults(repo, &mut print);
            }
            Group::Services => services::measure(repo, upstream, &mut print),
            Group::Transport => transport::measure(repo, &mut print),
        }
    }
    Ok(())
}

/// Ratios stand a machine that is a little busy, but not one where spinning and sleeping change places.
fn warn_of_load() {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text
        .split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0.0);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if load > 0.5 * cores as f64 {
        eprintln!(
            "warning: a load of {load} on {cores} cores: where processes wait for each other these rows say little; \
             measure again when nothing else runs"
        );
    }
}

/// Builds what the groups measure: that of the transport needs none of the packages, that of Python nothing else.
fn build(repo: &Repo, groups: &[Group]) -> Result<()> {
    if groups == [Group::Python] {
        return build_cmd::build(repo);
    }
    let mut programs = vec!["dragon-transport-bench"];
    if groups != [Group::Transport] {
        build_cmd::build(repo)?;
        programs.extend([
            "dragon-raw",
            "dragon-channels",
            "dragon-bench",
            "dragon-process-bench",
            "dragon-tests",
        ]);
    }
    let programs = programs.into_iter().flat_map(|program| ["-p", program]);
    let mut cargo = repo.cargo();
    cargo.args(["build", "--release", "--bins"]).args(programs);
    repo::run(&mut cargo)
}
