//! The `dragon` command line.

pub mod hosts;
pub mod launcher;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

/// Exit code when the runtime itself failed: nothing is said about the program.
pub const RUNTIME_FAILED: u8 = 125;

/// Run a program in a distributed runtime.
///
/// The program is the head: any executable, or a Python file. It attaches to the runtime when it uses it, and so does
/// every process that it starts, on whichever node. The exit code is the head's; nothing is left behind.
#[derive(Debug, Parser)]
#[command(name = "dragon", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Run on this machine alone, which is the default.
    #[arg(short = 's', long = "single-node-override", conflicts_with_all = ["nodes", "local_nodes", "hostlist", "hostfile"])]
    pub single: bool,

    /// Number of nodes: of the host list's first hosts, or of daemons with --local-nodes.
    #[arg(short = 'N', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
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

    /// Command that runs another on a host: `RSH HOST COMMAND`.
    #[arg(long, value_name = "RSH", default_value = "ssh")]
    pub rsh: String,

    /// Limit of the default pool on each node, for example 8G. Default: half of the memory granted on the node.
    #[arg(long, value_name = "SIZE", env = dragon_protocol::env::POOL, value_parser = parse_size)]
    pub pool: Option<u64>,

    /// Network between the nodes: tcp. Default: the best there is.
    #[arg(long, value_name = "NAME", env = dragon_protocol::env::TRANSPORT)]
    pub transport: Option<String>,

    /// Network interfaces to use: names, regular expressions or networks, for example ib0,ib1 or ib[0-3] or 10.1.0.0/16.
    /// Default: the fastest that are up.
    #[arg(long, value_name = "INTERFACES", env = dragon_protocol::env::INTERFACE)]
    pub interface: Option<String>,

    /// Encrypt what passes between the nodes.
    #[arg(long, env = dragon_protocol::env::ENCRYPT, value_parser = clap::builder::BoolishValueParser::new(), num_args = 0)]
    pub encrypt: bool,

    /// Seconds, 0 to 300, for which a connection between nodes that broke is tried to be made again before what waits for
    /// it fails. Default: 5.
    #[arg(long, value_name = "SECONDS", env = dragon_protocol::env::RECONNECT, value_parser = crate::network::reconnect)]
    pub reconnect: Option<u32>,

    /// Seconds that the nodes may take to find each other.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub bring_up_limit: u64,

    /// Print completions for a shell and exit.
    #[arg(long, value_name = "SHELL", exclusive = true)]
    pub completions: Option<clap_complete::Shell>,

    /// The program and its arguments.
    #[arg(value_name = "PROGRAM", trailing_var_arg = true)]
    pub program: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  dragon prog.py --its-own-option      a Python program on this machine
  dragon -- ./a.out 1 2 3              any executable
  dragon -N 3 --local-nodes prog.py    three nodes on this machine
  dragon --hostlist n[1-4] prog.py     four hosts over ssh
Under Slurm: srun -N4 --dragon prog.py

Exit codes: the head's; 128 + n when signal n ended it; 125 when the runtime failed, 126 when the program cannot be
executed, 127 when it does not exist, 2 for a bad command line.";

/// Runs the command.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(shell) = arguments.completions {
        clap_complete::generate(
            shell,
            &mut Arguments::command(),
            "dragon",
            &mut std::io::stdout(),
        );
        return ExitCode::SUCCESS;
    }
    match launcher::launch(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("dragon: {:#}", failure.error);
            ExitCode::from(failure.code)
        }
    }
}

/// Reads a size: a number of bytes, or one with K, M, G or T (powers of 1024).
fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is not a size like 512M or 8G");
    let upper = text.trim().to_ascii_uppercase();
    let digits = upper.trim_end_matches('B').trim_end_matches('I');
    let shift = match digits.chars().last() {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        _ => 0,
    };
    let number = if shift == 0 {
        digits
    } else {
        &digits[..digits.len() - 1]
    };
    let bytes = number
        .parse::<u64>()
        .map_err(|_| bad())?
        .checked_mul(1 << shift)
        .ok_or_else(bad)?;
    const LEAST: u64 = 4 << 20;
    if bytes < LEAST {
        Err(format!(
            "a pool of {bytes} bytes is below the minimum of 4M"
        ))
    } else {
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_after_the_program_are_the_programs() {
        let parsed = Arguments::parse_from([
            "dragon",
            "-N",
            "2",
            "--local-nodes",
            "prog.py",
            "--nodes",
            "7",
            "-s",
        ]);
        assert_eq!(parsed.nodes, Some(2));
        assert_eq!(parsed.program, ["prog.py", "--nodes", "7", "-s"]);
        assert_eq!(
            Arguments::parse_from(["dragon", "--", "-x", "y"]).program,
            ["-x", "y"]
        );
    }

    #[test]
    fn a_time_for_connecting_again_is_refused_with_its_limits() {
        let parse = |text| Arguments::try_parse_from(["dragon", "--reconnect", text, "x"]);
        assert_eq!(parse("30").unwrap().reconnect, Some(30));
        let error = parse("400").unwrap_err().to_string();
        assert!(
            error.contains("'400'") && error.contains("to 300"),
            "{error}"
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("8G"), Ok(8 << 30));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("5000000"), Ok(5_000_000));
        for bad in ["", "G", "-1", "1K", "8GG", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
