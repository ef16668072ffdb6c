//! `dragon PROGRAM` in the shell of `salloc --dragon`, where that is on the login node: Slurm lets a plugin start nothing there, and
//! the nodes of the allocation are others. The command becomes an srun, whose step has the runtime.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::anyhow;

use super::inside::names_a_place;
use super::launcher::{Failure, environment};
use super::{Arguments, RUNTIME_FAILED};
use crate::adapter::allocation::is_option;
use crate::config::keys::Reach;

/// What stands behind `--dragon=` of an allocation that has asked for a runtime and has none, where nothing else is meant.
pub fn wanted(arguments: &Arguments) -> Option<String> {
    let set = |name: &str| std::env::var_os(name).is_some();
    if names_a_place(arguments) || !set("SLURM_JOB_ID") || set("SLURM_STEP_ID") {
        return None;
    }
    let (_, option) = std::env::vars_os().find(|(name, _)| is_option(name))?;
    let option = option.into_string().ok()?;
    match option.as_str() {
        // It was left out.
        "" | "(null)" => Some("head".to_owned()),
        "off" => None,
        _ => Some(option),
    }
}

/// Becomes an srun over the nodes of the allocation; returns only when that fails.
///
/// # Errors
/// When the command line makes no sense here, or there is no srun.
pub fn become_srun(arguments: &Arguments, option: &str) -> Result<u8, Failure> {
    let usage = |error| Failure { error, code: 2 };
    if arguments.program.is_empty() {
        return Err(usage(anyhow!("no program given; type dragon --help")));
    }
    let mut typed = arguments.habits.settings().map_err(usage)?;
    typed.extend(arguments.settings.0.iter().cloned());
    let mut option = format!("--dragon={option}");
    for (key, value) in &typed {
        if key.reach == Reach::Launcher {
            return Err(usage(anyhow!(
                "--{} {value}: in an allocation of Slurm srun starts the daemons; leave it out, or add -s for a runtime on this machine alone",
                key.option()
            )));
        }
        option += &format!(",{}={value}", key.name);
    }
    let mut srun = Command::new("srun");
    srun.arg(option);
    if let Some(nodes) = arguments.nodes.filter(|nodes| *nodes > 0) {
        srun.arg(format!("--nodes={nodes}"));
    }
    if let Some(folder) = &arguments.cwd {
        srun.arg("--chdir").arg(folder);
    }
    if let Some(file) = &arguments.output {
        srun.arg("--output").arg(file);
    }
    for (name, value) in environment(&arguments.env).map_err(usage)? {
        srun.env(OsString::from_vec(name), OsString::from_vec(value));
    }
    let error = srun.arg("--").args(&arguments.program).exec();
    Err(Failure {
        error: anyhow!("srun, which starts the runtime of this allocation: {error}"),
        code: RUNTIME_FAILED,
    })
}
