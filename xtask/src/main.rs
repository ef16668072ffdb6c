//! Developer commands: `cargo xtask build | run | test | bench | torture | chaos | setup`.
//!
//! Each command does its own set-up, so that it can be the first thing typed in a fresh clone.

mod bench;
mod build_cmd;
mod chaos;
mod checkers;
mod children;
mod python;
mod repo;
mod setup;
mod test;
mod torture;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::repo::Repo;

/// Developer commands. Each does its own set-up; none needs another one first.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build everything: binaries and libdragon.so in target/release, the Python package in .venv
    Build,
    /// Build, then run a program under the runtime: cargo xtask run examples/hello_world.py
    Run {
        /// What to give to `dragon`: its options, the program, the program's arguments
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "FILE [ARGS]"
        )]
        program: Vec<OsString>,
    },
    /// Install what the tests need, run them, end with one line of totals
    Test {
        /// Which groups to run (all when none is named)
        #[arg(value_enum)]
        groups: Vec<test::Group>,
        /// Also those that wait for what takes long: Slurm looks at its time limits every 30 s
        #[arg(long)]
        slow: bool,
        /// With the group slurm alone: the Slurm of another Debian, 24.11 say, which is made in a folder of /var/lib and stays
        /// there (as root)
        #[arg(long)]
        release: Option<String>,
    },
    /// Build the plugin for a release of Slurm that need not be installed here, and print where it lies
    BuildPlugin {
        /// The release, as 23.02 or 24.11.5: Slurm loads only a plugin of its own major and minor number
        #[arg(long)]
        slurm: String,
    },
    /// Print a table of measurements beside those of peers, taken in the same run
    Bench(bench::Args),
    /// Kill a process at every instruction of every operation on shared memory, and look at what is left
    #[command(disable_help_flag = true)]
    Torture {
        /// What to give to the program: --kills N, --seed S, --operation NAME, --list, …
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Run jobs, kill or stop something of each in a named state, and look at how it ends and what it leaves
    #[command(disable_help_flag = true)]
    Chaos {
        /// What to give to the program: --runs N, --seed S, --first N, --all
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Feed decoders, and operations on scribbled memory, with the fuzzer's inputs (nightly toolchain)
    Fuzz(checkers::Fuzz),
    /// Unit tests of protocol, shmem and channels under AddressSanitizer (nightly toolchain)
    Sanitize,
    /// Unit tests of protocol, and those of shmem and channels on heap regions, under Miri (nightly toolchain)
    Miri,
    /// Simulate the membership of many nodes over a network that fails in every way: one history a seed
    Simulate {
        /// How many seeds
        #[arg(long, default_value_t = 5000)]
        seeds: u64,
        /// The first seed
        #[arg(long, default_value_t = 0)]
        first: u64,
    },
    /// Install the Debian packages that the tests and the Slurm plugin's build need (as root)
    Setup,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    let repo = Repo::find()?;
    match task {
        Task::Build => build_cmd::build(&repo)?,
        Task::Run { program } => {
            build_cmd::build(&repo)?;
            let dragon = repo.venv_bin("dragon");
            let mut command = repo.in_venv(&dragon);
            let error = command.args(program).exec();
            return Err(error).with_context(|| format!("cannot start {}", dragon.display()));
        }
        Task::Test {
            groups,
            slow,
            release,
        } => return test::test(&repo, &groups, slow, release.as_deref()),
        Task::BuildPlugin { slurm } => {
            println!("{}", build_cmd::build_plugin(&repo, &slurm)?.display());
        }
        Task::Bench(args) => bench::bench(&repo, &args)?,
        Task::Torture { args } => return torture::torture(&repo, &args),
        Task::Chaos { args } => return chaos::chaos(&repo, &args),
        Task::Fuzz(args) => checkers::fuzz(&repo, &args)?,
        Task::Sanitize => checkers::sanitize(&repo)?,
        Task::Miri => checkers::miri(&repo)?,
        Task::Simulate { seeds, first } => checkers::simulate(&repo, seeds, first)?,
        Task::Setup => {
            setup::install(&[&setup::DEBIAN_PACKAGES[..], &setup::SSH_PACKAGES].concat())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
