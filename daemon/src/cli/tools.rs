//! `dragon COMMAND` for a runtime that is running: enter it, and look at it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use dragon_protocol::NodeIndex;
use dragon_protocol::inspect::{LogLevel, MOST_ROWS, PATIENCE_MS, Scope};

use super::{attach, doctor, objects, top};

/// What stands below the help of a command that asks a runtime.
macro_rules! teach {
    ($($line:literal),* $(,)?) => {
        concat!(
            "Examples:\n",
            $($line, "\n",)*
            "\nWithout --job it is the runtime that DRAGON_RUNTIME names, else that of the job which this shell is in, else the only one of yours on this \
            machine.\n\n\
            Exit codes: 0; 1 when there is no runtime, it refuses, or not all nodes answered; 2 for a bad command line."
        )
    };
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Run a program, or a shell, in a runtime that is running.
    ///
    /// The program finds the runtime in its environment (DRAGON_RUNTIME) and can attach to it as if the runtime had started
    /// it. Without a program your shell is started. The exit code is the program's.
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(Attach),
    /// What a runtime is, its nodes, and how much passed between them.
    #[command(after_help = teach!(
        "  dragon status                        of the one runtime of yours on this machine",
        "  dragon status --all-nodes            every node, and the connections between them",
        "  dragon status --job 4711 --json      for programs",
    ))]
    Status(Ask),
    /// The processes of a node.
    #[command(after_help = teach!(
        "  dragon ps                            of this node",
        "  dragon ps --all-nodes --limit 100    the first hundred of all nodes",
        "  dragon ps --node 2 --json            for programs",
    ))]
    Ps(Ask),
    /// The channels of a node, and how full they are.
    #[command(after_help = teach!(
        "  dragon channels                      of this node: messages, room, and who waits",
        "  dragon channels --all-nodes --json   for programs",
    ))]
    Channels(Ask),
    /// The memory pools of a node, and how full they are.
    #[command(after_help = teach!(
        "  dragon pools                         of this node, with the largest owners of blocks",
        "  dragon pools --all-nodes --json      for programs",
    ))]
    Pools(Ask),
    /// What the daemons have logged.
    #[command(after_help = teach!(
        "  dragon logs                          the last lines of this node's daemon",
        "  dragon logs -f --all-nodes           of all nodes, as they come, until Ctrl-C",
        "  dragon logs --level warn --json      for programs",
    ))]
    Logs(Logs),
    /// Nodes, processors, memory and messages on one screen, again and again.
    ///
    /// Keys: q ends; c, m, e and p sort by processor time, memory, messages and pid.
    #[command(after_help = teach!(
        "  dragon top                           every second",
        "  dragon top --delay 5 --sort memory",
        "  dragon top --once --json             for programs",
    ))]
    Top(Top),
    /// Check this machine: what a runtime needs, what is in its way, and what to change.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(Doctor),
}

const DOCTOR_EXAMPLES: &str = "\
Examples:
  dragon doctor                        every check, with what to change
  dragon doctor --interface ib0,ib1    whether a job could use these
  dragon doctor --json                 for programs

Exit codes: 0; 1 when a check fails; 2 for a bad command line.";

const ATTACH_EXAMPLES: &str = "\
Examples:
  dragon attach                        a shell in the one runtime of yours on this machine
  dragon attach prog.py --its-option   a program
  dragon attach --job 4711 prog.py     of several runtimes; or in Slurm's job 4711, from outside
  dragon attach --job 12.server        in PBS's job 12, from outside (by DRAGON_RSH, which is ssh by default)
  dragon attach --job 4711 --node 2    a shell on another node of it (srun --overlap takes you there)

The runtime is the one that DRAGON_RUNTIME names, else that of the job of Slurm or PBS which this shell is in, else the only one of
yours on this machine.

Exit codes: the program's; 128 + n when signal n ended it; 125 when there is no runtime; 126 when the program cannot be
executed; 127 when it does not exist; 2 for a bad command line.";

/// Which runtime.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// The runtime of this job: a name that `dragon status` prints, or a job of the workload manager.
    #[arg(short, long, value_name = "JOB")]
    pub job: Option<String>,

    /// Set when this command was started inside the job by itself.
    #[arg(long, hide = true)]
    pub inside: bool,
}

/// `dragon attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// Which runtime.
    #[command(flatten)]
    pub which: Which,

    /// On this node of the runtime: on this machine, or anywhere in a job of Slurm.
    #[arg(short, long, value_name = "N", value_parser = node)]
    pub node: Option<NodeIndex>,

    /// The program and its arguments.
    #[arg(value_name = "PROGRAM", trailing_var_arg = true)]
    pub program: Vec<OsString>,
}

/// What is asked of whom.
#[derive(Args, Clone, Debug)]
pub struct Ask {
    /// Which runtime.
    #[command(flatten)]
    pub which: Which,

    /// Of all nodes of the runtime. Default: of this one.
    #[arg(short, long)]
    pub all_nodes: bool,

    /// Of this node.
    #[arg(short, long, value_name = "N", value_parser = node, conflicts_with = "all_nodes")]
    pub node: Option<NodeIndex>,

    /// Print JSON; docs/inspection.md lists the fields.
    #[arg(long)]
    pub json: bool,

    /// Most rows, of all nodes together.
    #[arg(long, value_name = "ROWS", default_value_t = MOST_ROWS, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_ROWS)))]
    pub limit: u32,

    /// For how many milliseconds other nodes are waited for.
    #[arg(long, value_name = "MS", default_value_t = PATIENCE_MS, value_parser = clap::value_parser!(u32).range(50..=60_000))]
    pub patience: u32,
}

/// `dragon logs`.
#[derive(Args, Debug)]
pub struct Logs {
    /// What is asked of whom.
    #[command(flatten)]
    pub ask: Ask,

    /// Go on with what comes, until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,

    /// Lines of this level and more important ones: error, warn, info or debug.
    #[arg(short, long, default_value = "info", value_parser = level)]
    pub level: LogLevel,
}

/// `dragon top`.
#[derive(Args, Debug)]
pub struct Top {
    /// Which runtime.
    #[command(flatten)]
    pub which: Which,

    /// Print one screen as text, and end.
    #[arg(long)]
    pub once: bool,

    /// Print what is on it as JSON; docs/inspection.md lists the fields.
    #[arg(long, requires = "once")]
    pub json: bool,

    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub delay: f64,

    /// What the processes are sorted by: cpu, memory, messages or pid.
    #[arg(short, long, value_name = "COLUMN", default_value = "cpu")]
    pub sort: top::Sort,
}

/// `dragon doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,

    /// The interfaces that --interface would name.
    #[arg(long, value_name = "INTERFACES")]
    pub interface: Option<String>,
}

/// Runs a command.
#[must_use]
pub fn run(tool: &Tool) -> ExitCode {
    let done = match tool {
        Tool::Attach(arguments) => return attach::run(arguments),
        Tool::Status(ask) => objects::status(ask),
        Tool::Ps(ask) => objects::processes(ask),
        Tool::Channels(ask) => objects::channels(ask),
        Tool::Pools(ask) => objects::pools(ask),
        Tool::Logs(arguments) => objects::logs(arguments),
        Tool::Top(arguments) => top::run(arguments),
        Tool::Doctor(arguments) => doctor::run(arguments),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("dragon: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Ask {
    /// Which nodes are asked.
    #[must_use]
    pub fn scope(&self) -> Scope {
        if self.all_nodes {
            Scope::All
        } else {
            Scope::One(self.node)
        }
    }
}

fn node(text: &str) -> Result<NodeIndex, String> {
    let number = text.parse().ok().and_then(NodeIndex::new);
    number.ok_or_else(|| {
        format!(
            "'{text}' is no number of a node, which is from 0 to {}",
            NodeIndex::MAX
        )
    })
}

fn level(text: &str) -> Result<LogLevel, String> {
    Ok(match text {
        "error" => LogLevel::Error,
        "warn" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        _ => return Err(format!("'{text}' is none of error, warn, info and debug")),
    })
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n| (0.1..=3600.0).contains(n));
    number.ok_or_else(|| format!("'{text}' is no number of seconds from 0.1 to 3600"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::commands::{Command, CommandLine};
    use super::*;

    #[test]
    fn options_behind_the_program_are_the_programs() {
        let words = ["dragon", "attach", "--job", "7", "prog", "--job", "8", "-n"];
        let Command::Tool(Tool::Attach(attach)) = CommandLine::parse_from(words).command else {
            panic!("not attach");
        };
        assert_eq!(attach.which.job.as_deref(), Some("7"));
        assert_eq!(attach.program, ["prog", "--job", "8", "-n"]);
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_range() {
        for (words, sentence) in [
            (["logs", "--level", "loud"], "error, warn, info and debug"),
            (["ps", "--node", "-1"], ""),
            (["ps", "--node", "16777216"], "from 0 to 16777215"),
            (["ps", "--limit", "10001"], "1..=10000"),
        ] {
            let words = [&["dragon"], &words[..]].concat();
            let error = CommandLine::try_parse_from(words).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }
}
