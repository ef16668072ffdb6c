//! The daemon of one node and one runtime. A workload manager or the `dragon` command starts it.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use dragon_daemon::adapter::allocation::Part;
use dragon_daemon::adapter::launcher::STDIN;
use dragon_daemon::adapter::{self, Role, allocation, client, join, wishes};
use dragon_daemon::config::keys;
use dragon_daemon::exit::Exit;
use dragon_daemon::supervisor::{self, APART, SUPERVISED};
use dragon_daemon::{journal, program, services, sibling, sweep, task};
use dragon_protocol::env;
use dragon_shmem::Member;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// How long the end waits for whoever reads what was said.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    sweep::hear_of_children();
    let exit = run().unwrap_or_else(|error| {
        journal::say(&format!("{error:#}"));
        let arguments: Vec<_> = std::env::args_os().collect();
        Exit::Code(adapter::launcher::not_up(&arguments))
    });
    journal::flush(LAST_WORDS);
    exit.carry_out()
}

fn run() -> Result<Exit> {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let under_slurm = std::env::var_os(env::STEP_MODE).is_some();
    if arguments
        .first()
        .is_some_and(|first| first == client::HAND_OVER)
    {
        return client::hand_over().map(|()| Exit::Code(0));
    }
    let check = (!under_slurm
        && arguments
            .first()
            .is_some_and(|first| first == wishes::CHECK))
    .then(|| arguments.get(1).cloned().unwrap_or_default());
    if under_slurm || check.is_some() {
        prefer_the_users_release();
    }
    if let Some(settings) = check {
        return Ok(Exit::Code(wishes::check(&settings)));
    }
    if !under_slurm && arguments.first().is_some_and(|first| first == "--version") {
        println!("dragond {}", dragon_protocol::RELEASE);
        return Ok(Exit::Code(0));
    }
    match Part::of_this_process() {
        Some(Part::Keeper) => return allocation::run(&arguments),
        Some(Part::Inside) => return allocation::run_head(&arguments).map(Exit::Code),
        None => {}
    }
    let behind_a_shell = arguments.iter().any(|word| word == STDIN || word == APART)
        || join::way(&arguments).is_some();
    if !under_slurm && behind_a_shell && !arguments.iter().any(|word| word == SUPERVISED) {
        return supervisor::run(&arguments).map(Exit::Code);
    }
    let launch = (!under_slurm
        && arguments.first().is_some_and(|first| first == "--launch")
        && arguments.len() > 1)
        .then(|| arguments.swap_remove(1));
    let role = adapter::detect(launch.as_deref(), &arguments)?;
    let (Role::Daemon(job) | Role::Sibling(job)) = &role;
    program::use_interpreter(job.config.text(&keys::PYTHON));
    // Before the first thread: it would cost half of the start afterwards.
    Member::prepare();
    journal::write_by_thread().context("cannot start a thread")?;
    log(&role);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let exit = match role {
        Role::Daemon(job) => runtime.block_on(services::run(*job)),
        Role::Sibling(mut job) => match job.shape.take_task() {
            Some(task) => runtime.block_on(task::run(&job, task)),
            None => runtime.block_on(sibling::run(&job)).map(Exit::Code),
        },
    };
    // A task may still sit in a look-up of a host name: it is not waited for.
    runtime.shutdown_background();
    exit
}

fn log(role: &Role) {
    let (Role::Daemon(job) | Role::Sibling(job)) = role;
    let filter = job.config.text(&keys::LOG);
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new(keys::LOG.default));
    let heard = tracing_subscriber::fmt::layer()
        .with_writer(|| journal::Aloud)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_filter(filter);
    tracing_subscriber::registry()
        .with(heard)
        .with(journal::layer())
        .init();
}

/// A site's daemon and a user's library are rarely of one release: where the user's environment has a daemon of its own,
/// that one runs the job.
fn prefer_the_users_release() {
    let Some(venv) = std::env::var_os("VIRTUAL_ENV") else {
        return;
    };
    let theirs = PathBuf::from(venv).join("bin/dragond");
    let same = |a: &Path, b: &Path| {
        a.canonicalize()
            .ok()
            .zip(b.canonicalize().ok())
            .is_some_and(|(a, b)| a == b)
    };
    if theirs.is_file() && !std::env::current_exe().is_ok_and(|own| same(&own, &theirs)) {
        let error = Command::new(&theirs)
            .args(std::env::args_os().skip(1))
            .exec();
        journal::say(&format!(
            "{} was not started ({error}); going on with release {}",
            theirs.display(),
            dragon_protocol::RELEASE
        ));
    }
}
