//! `dragon doctor`: what a runtime needs of this machine, looked at and tried out, and what to change where it lacks.
//!
//! Each check tells what it found. What can be tried is tried, in the way in which the daemon does it: a check that only
//! hopes is worse than none.

mod limits;
mod network;
mod pbs;
mod programs;
mod system;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::table::{Table, print};
use super::tools::Doctor;
use crate::config::Config;
use crate::config::keys::{self, Key};

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// In order.
    Ok,
    /// A runtime works, but not everything does, or not well.
    Warn,
    /// No runtime works like that.
    Fail,
}

/// One look at the machine.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: &'static str,
    /// What it came to.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to change; empty when all is well.
    pub change: String,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            found: found.into(),
            change: String::new(),
        }
    }

    fn warn(check: &'static str, found: impl Into<String>, change: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Warn,
            found: found.into(),
            change: change.into(),
        }
    }

    fn fail(check: &'static str, found: impl Into<String>, change: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(check, found, change)
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When nothing can be printed.
pub fn run(arguments: &Doctor) -> Result<u8> {
    let given = arguments
        .interface
        .iter()
        .map(|i| (&keys::INTERFACE, i.clone()));
    let (config, settings) = settings(&given.collect::<Vec<_>>());
    let checks = [
        settings,
        system::kernel(),
        system::calls(),
        system::namespaces(),
        system::tracing(),
        limits::open_files(),
        limits::processes(),
        limits::locked_memory(),
        limits::shared_memory(),
        limits::group_memory(),
        limits::huge_pages(),
        network::attach_socket(),
        network::interfaces(config.text(&keys::INTERFACE)),
        network::ports(config.ports()),
        network::libfabric(),
        programs::daemon(),
        programs::python(),
        workload_manager(),
    ];
    let count = |verdict| checks.iter().filter(|c| c.verdict == verdict).count();
    let (failed, warned) = (count(Verdict::Fail), count(Verdict::Warn));
    if arguments.json {
        let all = json!({ "checks": checks, "failed": failed, "warned": warned });
        print(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
    } else {
        print(&text(&checks))?;
        print(&format!(
            "\n{} checks, {warned} warnings, {failed} failures\n",
            checks.len()
        ))?;
    }
    Ok(u8::from(failed > 0))
}

/// The workload manager: that of the job around this command, else what this machine has.
fn workload_manager() -> Check {
    let slurm_first = !pbs::inside() && programs::is_slurm();
    let other = if slurm_first { None } else { pbs::check() };
    other.unwrap_or_else(programs::workload_manager)
}

/// The settings that a job would have.
fn settings(given: &[(&'static Key, String)]) -> (Config, Check) {
    const NAME: &str = "settings";
    match Config::load(given) {
        Ok(config) => {
            let set: Vec<_> = config
                .pairs()
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let found = match set.as_slice() {
                [] => "all as they are by default".to_owned(),
                some => some.join(", "),
            };
            (config, Check::ok(NAME, found))
        }
        Err(error) => {
            let change = "correct it; dragon config shows where each setting comes from";
            (
                Config::default(),
                Check::fail(NAME, format!("{error:#}"), change),
            )
        }
    }
}

fn text(checks: &[Check]) -> String {
    let mut table = Table::new(&["<VERDICT", "<CHECK", "<FOUND"]);
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        let cell = |text: &str| text.to_owned();
        table.row(vec![cell(verdict), cell(check.check), check.found.clone()]);
        if !check.change.is_empty() {
            table.row(vec![cell(""), cell(""), format!("→ {}", check.change)]);
        }
    }
    table.text()
}
