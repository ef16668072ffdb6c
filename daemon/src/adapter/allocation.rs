//! The runtime of an allocation of Slurm: `sbatch --dragon`, `#SBATCH --dragon`, `salloc --dragon`.
//!
//! The plugin puts this program in front of the batch script, or of the interactive shell. It becomes the *keeper*:
//!
//! ```text
//! slurmstepd ─▶ keeper ─┬─▶ srun: a step of the job, one daemon a node, the first of which connects to the keeper
//!                       └─▶ the script or shell, once the runtime is up
//! ```
//!
//! The daemons are wired as those of `srun --dragon` are: key and mode stand in the step's environment, the list of nodes is
//! the step's, and they find each other by the key. So Slurm gives each its control group, its affinity and its part of the
//! output, and there is one way into a step of Slurm, not two. (The joining of PBS's tasks, `adapter/join.rs`, gives daemons
//! a line to a launcher because they have neither environment nor list of hosts; here they have both.)
//!
//! The line between keeper and first daemon is the life of the runtime: whichever way the keeper ends, the line does.

mod head;
mod line;
mod step;

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dragon_protocol::env;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::time::{Instant, sleep, timeout};

pub use self::head::run as run_head;
use self::line::{Door, Line};
pub use self::line::{Followed, connect};
use self::step::Step;
pub use self::step::is_option;
use super::{is_secret, slurm, wishes};
use crate::cli::RUNTIME_FAILED;
use crate::config::{Config, keys};
use crate::exit::Exit;
use crate::journal::say;
use crate::passed::{self, FOR_PROGRAMS, Passed, STOPPING};
use crate::program::{NOT_EXECUTABLE, NOT_FOUND};
use crate::readable::end_of;

/// The mode of the keeper: what the plugin says in front of a script or shell.
const KEEPER: &str = "allocation";
/// The mode of the daemons that the keeper starts.
pub const NODE: &str = "node";
/// The mode of a head in a runtime that runs.
const INSIDE: &str = "inside";

/// How much longer than the daemons themselves the keeper waits for them: they say why they do not come up.
const MARGIN: Duration = Duration::from_secs(10);
/// How long a runtime may take to end with its script, that of a slow reader of the job's output included.
const END: Duration = Duration::from_secs(75);
/// How long a signal that ends both the runtime and the script may take from the one to the other.
const TOGETHER: Duration = Duration::from_secs(1);
/// How long a runtime may take to end that was told to with its script.
const ENDING: Duration = Duration::from_secs(20);
/// How long a script may take to end after its runtime has ended.
const GRACE: Duration = Duration::from_secs(10);

/// What the plugin makes of this process instead of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The keeper of a script or shell.
    Keeper,
    /// A task of a step whose head runs in the runtime that is there.
    Inside,
}

impl Part {
    /// What the mode in this process's environment says.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        match std::env::var(env::STEP_MODE).ok()?.as_str() {
            KEEPER => Some(Self::Keeper),
            INSIDE => Some(Self::Inside),
            _ => None,
        }
    }
}

/// Brings the runtime up, runs the script with these arguments in it, and ends the runtime; returns the script's exit code.
/// A script that a signal ended ends this process by the same signal, so that Slurm sees what it would see without it.
///
/// # Errors
/// When the runtime does not come up.
pub fn run(arguments: &[OsString]) -> Result<Exit> {
    let script = std::env::var_os(env::STEP_PROGRAM)
        .with_context(|| format!("{} is not set", env::STEP_PROGRAM))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(keep(&script, arguments))
}

async fn keep(script: &OsStr, arguments: &[OsString]) -> Result<Exit> {
    let mut signals = Passed::take(&[&passed::ENDING, &FOR_PROGRAMS, &STOPPING])?;
    // The daemons read the same: what makes no sense is said once, and here.
    let settings = std::env::var(env::STEP_SETTINGS).unwrap_or_default();
    let config = Config::load(&wishes::parse(&settings).context("--dragon")?)?;
    if let Some(groups) = heterogeneous() {
        bail!(
            "this job is a heterogeneous one of {groups} groups of nodes, and a runtime has one: leave --dragon out of sbatch or salloc, and type srun --het-group=0 --dragon PROGRAM in the job"
        );
    }
    let door = Door::open()?;
    let mut step = Step::start(door.name(), &settings, &config).await?;
    let (line, runtime) = tokio::select! {
        up = come_up(&door, &step, &config) => match up {
            Ok(up) => up,
            Err(why) => {
                step.stop().await;
                return Err(why);
            }
        },
        signal = ending(&mut signals) => {
            step.stop().await;
            let code = u8::try_from(128 + signal.as_raw());
            return Ok(Exit::Code(code.unwrap_or(RUNTIME_FAILED)));
        }
    };
    drop(door);
    let mut command = script_in(&runtime, script, arguments);
    let ended = match command.spawn() {
        Ok(child) => run_script(child, &line, &mut signals).await,
        Err(error) => {
            say(&format!("{}: {error}", script.display()));
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            Ok(Exit::Code(if missing { NOT_FOUND } else { NOT_EXECUTABLE }))
        }
    };
    line.say_end();
    // Of daemons that know of each other the first ends last; of others nobody waits for output.
    let last = timeout(END, line.ended()).await;
    let out_of_reach = last.is_ok_and(|last| last.out_of_reach);
    step.ends(&runtime, out_of_reach).await;
    ended
}

/// Of how many groups of nodes the job is, where it is of several.
fn heterogeneous() -> Option<u32> {
    let groups: u32 = std::env::var("SLURM_HET_SIZE").ok()?.parse().ok()?;
    (groups > 1).then_some(groups)
}

/// Waits until the runtime is up, and its first daemon says where it listens.
async fn come_up(door: &Door, step: &Step, config: &Config) -> Result<(Line, OsString)> {
    let job = std::env::var("SLURM_JOB_ID").unwrap_or_default();
    let limit = config.number(&keys::BRING_UP_LIMIT);
    let limit = limit.map_or(slurm::BRING_UP, Duration::from_secs) + MARGIN;
    let connected = async {
        let line = door.accept().await?;
        let runtime = line.runtime().await?;
        anyhow::Ok((line, runtime))
    };
    tokio::select! {
        up = connected => match up? {
            (line, Some(runtime)) => Ok((line, runtime)),
            (_, None) => bail!("the runtime of job {job} did not come up, and its script was not started; the daemons have said why"),
        },
        ended = step.ended() => {
            ended?;
            bail!("the runtime of job {job} did not come up, and its script was not started: the step of its daemons has ended, and has said why")
        }
        () = sleep(limit) => bail!(
            "the runtime of job {job} did not come up within {limit:?}, and its script was not started: node 0 ({}) has said nothing since",
            std::env::var("SLURMD_NODENAME").unwrap_or_default()
        ),
    }
}

/// The script in its runtime. It does not hand the option on to the steps that it starts: those attach, and
/// `srun --dragon` in it is one that somebody typed.
fn script_in(runtime: &OsStr, script: &OsStr, arguments: &[OsString]) -> Command {
    let mut command = Command::new(script);
    command
        .args(arguments)
        .env(env::RUNTIME, runtime)
        .env(env::JOB_RUNTIME, runtime);
    for (name, _) in std::env::vars_os() {
        if is_secret(&name) || is_option(&name) {
            command.env_remove(name);
        }
    }
    command
}

/// Waits for the end of the script, and passes on what comes for it.
async fn run_script(mut child: Child, line: &Line, signals: &mut Passed) -> Result<Exit> {
    let end = end_of(child.id())?;
    let script = end.get_ref();
    // Whoever ends the job tells the script as well as the runtime, and gives the script the time that it has. One of the two may
    // also be told alone.
    let told = Cell::new(None::<Instant>);
    let job_ends = || told.get().is_some_and(|at| at.elapsed() < ENDING);
    let signals = async {
        loop {
            let signal = signals.next().await;
            // What is typed at a terminal reaches the foreground by itself.
            if is_shell() && matches!(signal, Signal::INT | Signal::QUIT | Signal::TSTP) {
                continue;
            }
            if signal == Signal::TERM {
                told.set(Some(Instant::now()));
            }
            // Slurm signals the first process of a script alone, or all of them, who then hears it twice. It may have ended.
            let _ = pidfd_send_signal(script, signal);
        }
    };
    let lost = async {
        if line.ended().await.told {
            sleep(TOGETHER).await;
            if job_ends() {
                return std::future::pending().await;
            }
        }
        if is_shell() {
            say("the runtime of this allocation has ended; the shell goes on without it");
            std::future::pending().await
        }
    };
    // Without its slurmstepd nobody would end the script any more, nor hear how it ended.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    let parent = parent.map(end_of).transpose()?;
    let orphaned = async {
        match &parent {
            Some(parent) => drop(parent.readable().await),
            None => std::future::pending().await,
        }
        end_own_group();
        "slurmstepd has ended"
    };
    let why = async {
        tokio::select! {
            () = lost => "the runtime of this job has ended",
            why = orphaned => why,
        }
    };
    tokio::select! {
        ended = end.readable() => drop(ended?),
        () = signals => {}
        why = why => {
            say(&format!("{why}, and the job ends with it"));
            let _ = pidfd_send_signal(script, Signal::TERM);
            if timeout(GRACE, end.readable()).await.is_err() {
                let _ = pidfd_send_signal(script, Signal::KILL);
            }
            child.wait()?;
            return Ok(Exit::Code(RUNTIME_FAILED));
        }
    }
    Ok(Exit::Like(child.wait()?.into_raw()))
}

/// Ends what the script has started, which Slurm's containers would do otherwise. This process hears it, and goes on.
fn end_own_group() {
    let own = rustix::process::getpid();
    if rustix::process::getpgrp() == own {
        let _ = rustix::process::kill_process_group(own, Signal::TERM);
    }
}

/// Whether somebody types into it.
fn is_shell() -> bool {
    std::io::stdin().is_terminal()
}

/// Waits for a signal that ends the job. There is no script yet that others could be for.
async fn ending(signals: &mut Passed) -> Signal {
    loop {
        let signal = signals.next().await;
        if passed::ENDING.contains(&signal) {
            return signal;
        }
    }
}
