//! The command that people type.

use std::process::ExitCode;

fn main() -> ExitCode {
    dragon_daemon::cli::main()
}
