//! The `dragon` command line.

pub mod attach;
pub mod commands;
pub mod doctor;
pub mod enter;
pub mod habits;
pub mod hosts;
pub mod inside;
pub mod launcher;
pub mod objects;
pub mod outputs;
pub mod runtime;
pub mod settings;
pub mod step;
pub mod table;
pub mod tools;
pub mod top;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};

use self::habits::Habits;
use self::settings::Settings;
use crate::adapter::pbs::tm;
use crate::config::Config;
use crate::config::keys;
use crate::{journal, sweep};

/// Exit code when the runtime itself failed: nothing is said about the program.
pub const RUNTIME_FAILED: u8 = 125;
/// Exit code when the time limit was over, as the command `timeout` has it.
pub const TIME_IS_UP: u8 = 124;

/// Run a program in a distributed runtime.
///
/// The program is the head: any executable, or a Python file. It attaches to the runtime when it uses it, and so does
/// every process that it starts, on whichever node. The exit code is the head's; nothing is left behind.
#[derive(Debug, Parser)]
#[command(name = "dragon", version, override_usage = USAGE)]
pub struct Arguments {
    /// Run on this machine alone, which is the default outside of a job of PBS.
    #[arg(short = 's', long = "single-node-override", conflicts_with_all = ["nodes", "local_nodes", "hostlist", "hostfile"])]
    pub single: bool,

    /// Number of nodes: of the first hosts of the host list or of the job of PBS (0: all, the default), or of daemons with
    /// --local-nodes.
    #[arg(short = 'N', long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub nodes: Option<u32>,

    /// Run all nodes on this machine, as daemons that treat each other as remote.
    #[arg(long, requires = "nodes", conflicts_with_all = ["hostlist", "hostfile"])]
    pub local_nodes: bool,

    /// Hosts to run on, for example n[01-04],login. The head runs on the first.
    #[arg(long, value_name = "HOSTS", conflicts_with = "hostfile")]
    pub hostlist: Option<String>,

    /// File with one host a line; empty lines and lines that begin with # are skipped.
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<PathBuf>,

    /// Write output and errors to a file in place of the terminal. %n in its name stands for the node's number: then each
    /// node has a file of its own; %% stands for %.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Set a variable in the environment of the program on all nodes; without a value, as it is here.
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,

    /// Directory to run in, on all nodes. Default: this one; on hosts that lack it, that in which the remote shell begins.
    #[arg(long, value_name = "DIRECTORY")]
    pub cwd: Option<PathBuf>,

    /// Say what the daemons do; twice: in detail.
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "log")]
    pub verbose: u8,

    /// Settings.
    #[command(flatten)]
    pub settings: Settings,

    /// Habits.
    #[command(flatten)]
    pub habits: Habits,

    /// The program and its arguments.
    #[arg(value_name = "PROGRAM", trailing_var_arg = true)]
    pub program: Vec<OsString>,
}

const USAGE: &str = "dragon [OPTIONS] [--] PROGRAM [ARGUMENTS]...\n       dragon COMMAND [OPTIONS]";

const EXAMPLES: &str = "\
Examples:
  dragon prog.py --its-own-option      a Python program on this machine
  dragon -- ./a.out 1 2 3              any executable
  dragon -N 3 --local-nodes prog.py    three nodes on this machine
  dragon --hostlist n[1-4] prog.py     four hosts over ssh
  dragon --label node --output out.txt --time-limit 1h30m prog.py
  dragon config --pool 8G              the settings in force, and where each came from
  dragon attach                        a shell in the runtime that is running
  dragon ps --all-nodes                the processes of all its nodes
Under Slurm: srun -N4 --dragon prog.py, or dragon prog.py in the script of sbatch --dragon
Under PBS: dragon prog.py in the script that qsub gets, over all hosts of the job

Ctrl-C goes to the program; twice within a second it ends the job.

Exit codes: the program's; 128 + n when signal n ended it; 124 when the time limit was over; 125 when the
runtime failed; 126 when the program cannot be executed; 127 when it does not exist; 2 for a bad command line.";

/// How long the end waits for whoever reads what was said.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs the command.
#[must_use]
pub fn main() -> ExitCode {
    sweep::hear_of_children();
    let first = std::env::args_os().nth(1);
    if first.as_ref().is_some_and(|word| word == enter::PBS_WORD) {
        return ExitCode::from(enter::arrive(std::env::args_os().skip(2)));
    }
    if first.as_ref().is_some_and(|word| word == tm::WORD) {
        let arguments: Vec<_> = std::env::args_os().skip(2).collect();
        return tm::main(&arguments);
    }
    if first.is_some_and(|word| word.to_str().is_some_and(commands::is_command)) {
        let line = commands::CommandLine::parse();
        if let commands::Command::Tool(tool) = &line.command {
            return tools::run(tool);
        }
        return match commands::run(&line.command) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                eprintln!("dragon: {error:#}");
                ExitCode::from(2)
            }
        };
    }
    let matches = Arguments::described().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let code = launcher::launch(&arguments).unwrap_or_else(|failure| {
        journal::say(&format!("{:#}", failure.error));
        failure.code
    });
    journal::flush(LAST_WORDS);
    ExitCode::from(code)
}

impl Arguments {
    /// The command line with the help that teaches.
    fn described() -> clap::Command {
        Self::command().after_help(format!("Commands:\n{}\n{EXAMPLES}", commands::list()))
    }

    /// The settings in force.
    ///
    /// # Errors
    /// When a file, a variable or an option makes no sense.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut options = self.habits.settings()?;
        let level = ["info", "debug"].get(usize::from(self.verbose).wrapping_sub(1));
        let level = level.or((self.verbose > 2).then_some(&"trace"));
        options.extend(level.map(|level| (&keys::LOG, (*level).to_owned())));
        options.extend(self.settings.0.iter().cloned());
        Config::load(&options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from([&["dragon"], words].concat())
    }

    #[test]
    fn command_line_is_consistent() {
        Arguments::described().debug_assert();
        commands::CommandLine::command().debug_assert();
    }

    #[test]
    fn options_after_the_program_are_the_programs() {
        let parsed = parse(&["-N", "2", "--local-nodes", "prog.py", "--nodes", "7", "-s"]).unwrap();
        assert_eq!(parsed.nodes, Some(2));
        assert_eq!(parsed.program, ["prog.py", "--nodes", "7", "-s"]);
        assert_eq!(parse(&["--", "-x", "y"]).unwrap().program, ["-x", "y"]);
        let parsed = parse(&["--encrypt", "prog", "--encrypt=false"]).unwrap();
        assert_eq!(parsed.program, ["prog", "--encrypt=false"]);
        assert_eq!(parsed.settings.0[0].1, "true");
    }

    #[test]
    fn a_setting_out_of_its_limits_is_refused() {
        assert_eq!(
            parse(&["--reconnect", "30", "x"]).unwrap().settings.0[0].1,
            "30"
        );
        let error = parse(&["--reconnect", "400", "x"]).unwrap_err().to_string();
        assert!(
            error.contains("'400'") && error.contains("to 300"),
            "{error}"
        );
    }

    #[test]
    fn every_setting_has_an_option() {
        for key in keys::KEYS {
            let option = format!("--{}={}", key.option(), key.example());
            let parsed = parse(&[&option, "x"]).unwrap();
            assert_eq!(parsed.settings.0.len(), 1, "{}", key.name);
            assert_eq!(parsed.settings.0[0].0.name, key.name);
        }
    }
}
