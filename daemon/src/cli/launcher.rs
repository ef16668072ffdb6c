//! The launcher: where no workload manager does it, it starts the daemons, waits for them and sweeps up behind them.

mod line;
mod signals;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use dragon_protocol::env;
use dragon_protocol::frame::{self, FrameError};
use dragon_protocol::launch::LaunchSpec;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::line::Line;
pub(crate) use self::signals::END_LIMIT;
use self::signals::{Interrupts, Signals, is_for_head};
use super::hosts::{Place, place};
use super::inside;
use super::outputs::Outputs;
use super::step;
use super::{Arguments, RUNTIME_FAILED, TIME_IS_UP};
use crate::adapter::client::is_stopped;
use crate::adapter::host_limit;
use crate::adapter::join::Door;
use crate::adapter::launcher::{self, BRING_UP, NOT_UP, STDIN};
use crate::adapter::pbs::{Allocation, tm};
use crate::config::{Config, keys};
use crate::journal::{self, say};
use crate::parent_death::{die_with_parent, with_files};
use crate::program;
use crate::readable::end_of;
use crate::supervisor::APART;
use crate::sweep;

/// Children of a node in the tree of daemons.
const FANOUT: u32 = 16;
/// Files that the launcher has open for each daemon at most, and beside them.
const FILES_OF_DAEMON: u64 = 3;
const FILES: u64 = 64;
/// How long daemons may take to end after SIGTERM.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// How long the first daemon may take to say why the job does not come up.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// How long the other daemons may take to end when they are told that the first one has.
pub(crate) const HINT_WAIT: Duration = Duration::from_secs(1);
/// Exit code of ssh for its own errors.
const SHELL_FAILED: u8 = 255;
/// Exit code of what SIGKILL ended.
const KILLED: u8 = 128 + 9;

/// Why nothing was run, and the exit code for that.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong.
    pub error: anyhow::Error,
    /// The exit code.
    pub code: u8,
}

/// Runs a program in a runtime of its own; returns the exit code.
///
/// # Errors
/// When the program or the command line makes no sense, or no daemon can be started.
pub fn launch(arguments: &Arguments) -> Result<u8, Failure> {
    let usage = |error| Failure { error, code: 2 };
    let failed = |error| Failure {
        error,
        code: RUNTIME_FAILED,
    };
    if inside::is_meant(arguments).map_err(usage)? {
        return inside::become_head(arguments);
    }
    if let Some(option) = step::wanted(arguments) {
        return step::become_srun(arguments, &option);
    }
    let place = place(arguments).map_err(usage)?;
    arguments.habits.check(&place).map_err(usage)?;
    let config = arguments.config().map_err(usage)?;
    if arguments.program.is_empty() {
        return Err(usage(anyhow!("no program given; type dragon --help")));
    }
    let environment = environment(&arguments.env).map_err(usage)?;
    let outputs = Outputs::new(arguments.output.as_deref()).map_err(usage)?;
    let directory = enter(arguments.cwd.as_deref()).map_err(usage)?;
    program::use_interpreter(config.text(&keys::PYTHON));
    // On another machine the file may exist that does not exist here: there its daemon says so.
    if let Place::Here(_) | Place::Pbs(_) = place {
        program::resolve(&arguments.program).map_err(|no| Failure {
            error: anyhow!(no.text),
            code: no.code,
        })?;
    }
    // A shell that became this command by exec may have left it children, which are none of ours.
    let inherited = sweep::own_children();
    // Orphans of a killed daemon become children of this process, which ends them.
    rustix::process::set_child_subreaper(Pid::from_raw(1))
        .context("cannot become subreaper")
        .map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime
        .context("cannot start the event loop")
        .map_err(failed)?;
    let start = Start {
        program: &arguments.program,
        place,
        config,
        environment,
        outputs,
        directory,
        directory_needed: arguments.cwd.is_some(),
    };
    // Whoever reads standard error may be slow; the daemons and the signals for them do not wait for that.
    journal::write_by_thread()
        .context("cannot start a thread")
        .map_err(failed)?;
    let code = runtime.block_on(run(&start)).map_err(failed);
    sweep::kill_all_but(inherited);
    code
}

/// What is to be started.
struct Start<'a> {
    program: &'a [OsString],
    place: Place,
    config: Config,
    environment: Vec<(Vec<u8>, Vec<u8>)>,
    outputs: Outputs,
    /// Where programs run; this process is there already.
    directory: PathBuf,
    directory_needed: bool,
}

async fn run(start: &Start<'_>) -> Result<u8> {
    let mut signals = Signals::new()?;
    let (mut daemons, door) = start_all(start)?;
    let mut door = door.map(|door| {
        let limit = start.config.number(&keys::BRING_UP_LIMIT);
        let limit = limit.map_or(BRING_UP, Duration::from_secs);
        tokio::spawn(door.admit(Instant::now() + limit))
    });
    let mut code = None;
    // Of those who ended by themselves, whom the job was left to.
    let mut others_code = 0;
    let goes_on = start.config.text(&keys::ON_NODE_FAILURE) == "continue";
    let mut interrupts = Interrupts::default();
    // The last signal that may end the job.
    let mut asked = None;
    // The first daemon was ended from here: its exit code is none of its own.
    let mut terminated = false;
    // What is done, and when, with daemons that do not end by themselves.
    let mut next: Option<(Instant, Last)> = None;
    while !daemons.is_empty() {
        let time_is_up = async {
            match next {
                Some((at, last)) => {
                    tokio::time::sleep_until(at).await;
                    last
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = next_end(&daemons) => {
                let rank = ended?;
                let Some(mut daemon) = daemons.remove(&rank) else { continue };
                let status = daemon.child.wait()?;
                if status.code().is_some() {
                    others_code = exit_code(status).max(others_code);
                }
                let never_began = rank == 0 && daemon.line.as_ref().is_some_and(Line::is_untouched);
                if code.is_none() && asked.is_none() && !terminated {
                    if never_began {
                        say(&format!(
                            "the daemon of node 0 ({}) was not started: the remote shell ended with {status} before it had passed on what is to be done; does {} reach that host, and run what it is given?",
                            daemon.host,
                            start.config.text(&keys::RSH)
                        ));
                    } else {
                        complain(rank, &daemon.host, status);
                    }
                }
                if goes_on && !terminated && goes_on_without(rank, status) {
                    // Daemons that are told to end succeed: now those that do not hear anything have their time.
                    if status.success() {
                        next = Some(at_latest(next, LAST_WAIT));
                    }
                } else if rank == 0 {
                    let by_signal = asked.map_or(RUNTIME_FAILED, code_of_signal);
                    // Its peers may have ended before it had heard the signal itself, or of an interrupt that was the head's
                    // where the first one was up already, and was the end of the bring-up where they were not.
                    let told = match asked {
                        Some(Signal::TERM | Signal::HUP) => true,
                        Some(Signal::INT) => interrupts.just_came(),
                        _ => false,
                    };
                    code = Some(match exit_code(status) {
                        RUNTIME_FAILED if told => by_signal,
                        _ if terminated => by_signal,
                        _ if never_began => RUNTIME_FAILED,
                        code => code,
                    });
                    let wait = if goes_on {
                        // Who was left behind finds out, and says so.
                        LAST_WAIT
                    } else {
                        // Whoever still looks for the others learns it by this alone.
                        daemons.values().for_each(|other| other.signal(Signal::TERM));
                        HINT_WAIT
                    };
                    next = Some((Instant::now() + wait, Last::Terminate));
                } else if code.is_none() && (never_up(status) || was_killed(status)) {
                    // The first one has heard of it by now, says why and ends, unless it is not up itself.
                    next = Some(at_latest(next, FIRST_WAIT));
                }
            }
            refused = intruder(&mut door) => {
                say(&format!("{refused:#}"));
                next = Some((Instant::now(), Last::Terminate));
            }
            signal = signals.next() => {
                let limit = match signal {
                    Signal::INT => interrupts.limit(),
                    Signal::TERM | Signal::HUP => Some(END_LIMIT),
                    _ => None,
                };
                if !is_for_head(signal) {
                    asked = Some(signal);
                }
                if let Some(limit) = limit {
                    next = Some(at_latest(next, limit));
                }
                pass_on(signal, &daemons);
            }
            last = time_is_up => next = match last {
                Last::Terminate => {
                    terminated = code.is_none();
                    terminate(&daemons);
                    kill_stopped(&daemons);
                    Some((Instant::now() + LAST_WAIT, Last::Kill))
                }
                Last::Kill => {
                    for (rank, daemon) in &daemons {
                        say(&format!("the daemon of node {rank} ({}) did not end in time and is killed", daemon.host));
                        daemon.kill();
                    }
                    None
                }
            }
        }
    }
    let others_code = Some(others_code).filter(|code| *code != 0);
    Ok(code.or(others_code).unwrap_or(RUNTIME_FAILED))
}

/// Waits until somebody joins the job who is none of its daemons.
async fn intruder(door: &mut Option<JoinHandle<Result<()>>>) -> anyhow::Error {
    if let Some(admitting) = door {
        let admitted = admitting.await;
        *door = None;
        if let Ok(Err(refused)) = admitted {
            return refused;
        }
    }
    std::future::pending().await
}

/// Passes a signal on. The first daemon ends the others; it is the one that lives longest. Where its remote shell hangs the
/// others end by themselves.
fn pass_on(signal: Signal, daemons: &BTreeMap<u32, Daemon>) {
    let mut in_order = daemons.values();
    if let Some(first) = in_order.next() {
        first.signal(signal);
    }
    if !is_for_head(signal) {
        let remote = in_order.filter(|daemon| daemon.line.is_some());
        remote.for_each(|daemon| daemon.signal(signal));
    }
}

/// What is done next, at the latest after a time.
fn at_latest(next: Option<(Instant, Last)>, limit: Duration) -> (Instant, Last) {
    let at = Instant::now() + limit;
    next.map_or((at, Last::Terminate), |(other, last)| (other.min(at), last))
}

/// What is done with daemons that are left.
#[derive(Clone, Copy)]
enum Last {
    Terminate,
    Kill,
}

/// Ends daemons, and remote shells that may hang: what runs behind one ends when the shell does.
fn terminate(daemons: &BTreeMap<u32, Daemon>) {
    for daemon in daemons.values() {
        daemon.send(Signal::TERM);
    }
}

/// Kills daemons of this machine that are stopped: they hear no other signal.
fn kill_stopped(daemons: &BTreeMap<u32, Daemon>) {
    let here = daemons.iter().filter(|(_, daemon)| daemon.line.is_none());
    for (rank, daemon) in here.filter(|(_, daemon)| is_stopped(daemon.child.id())) {
        say(&format!(
            "the daemon of node {rank} ({}) is stopped and is killed",
            daemon.host
        ));
        daemon.kill();
    }
}

/// A daemon, or what runs it on its host: the remote shell, or a task of the workload manager.
struct Daemon {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
    host: String,
    /// Open for as long as this process lives: through a remote shell, its end tells the daemon that the launcher is gone.
    line: Option<Line>,
    /// Whether it is a task of the workload manager.
    task: bool,
    /// The launch message of a local daemon, which opens it by its path below `/proc`.
    _message: Option<io::PipeReader>,
}

impl Daemon {
    /// Sends a signal to the daemon. Through a remote shell it is told; where that is jammed by input that the head does
    /// not read, the shell is ended, and the daemon ends the job since its launcher is gone.
    fn signal(&self, signal: Signal) {
        let sent = match &self.line {
            Some(line) => line.signal(signal),
            // The terminal's interrupt has reached it already.
            None => signal == Signal::INT || self.send(signal),
        };
        if !sent {
            self.send(Signal::TERM);
        }
    }

    /// Kills it. What stands for a task does that when it is told once more.
    fn kill(&self) {
        self.send(if self.task {
            Signal::TERM
        } else {
            Signal::KILL
        });
    }

    fn send(&self, signal: Signal) -> bool {
        rustix::process::pidfd_send_signal(&self.pidfd, signal).is_ok()
    }
}

fn start_all(start: &Start<'_>) -> Result<(BTreeMap<u32, Daemon>, Option<Door>)> {
    let hosts = match &start.place {
        Place::Here(nodes) => vec!["127.0.0.1".to_owned(); *nodes as usize],
        Place::Hosts(hosts) => hosts.clone(),
        Place::Pbs(allocation) => names_of(allocation),
    };
    let mut key = [0; 32];
    getrandom::fill(&mut key).context("no random numbers from the kernel")?;
    let mut spec = LaunchSpec {
        key,
        job: match &start.place {
            Place::Pbs(allocation) => allocation.name(),
            _ => std::process::id().to_string(),
        },
        rank: 0,
        hosts,
        fanout: FANOUT,
        program: start
            .program
            .iter()
            .map(|word| word.clone().into_vec())
            .collect(),
        settings: start.config.pairs(),
        environment: start.environment.clone(),
        directory: start.directory.clone().into_os_string().into_vec(),
        directory_needed: start.directory_needed,
        forward_output: !start.outputs.one_for_each_node(),
        cpus: None,
    };
    if let Place::Here(nodes @ 2..) = start.place
        && start.config.number(&keys::POOL).is_none()
    {
        spec.settings
            .push((keys::POOL.name.to_owned(), local_pool(nodes).to_string()));
    }
    let dragond = dragond()?;
    let files = room_for_daemons(spec.hosts.len());
    let mut daemons = BTreeMap::new();
    let mut door = match &start.place {
        Place::Pbs(allocation) if allocation.hosts.len() > 1 => {
            ensure!(
                !start.outputs.one_for_each_node(),
                "--output with %n: the nodes of a job of PBS have no output of their own; leave %n out"
            );
            Some(Door::open(spec.hosts.clone(), host_limit(&start.config))?)
        }
        _ => None,
    };
    for (rank, host) in (0..).zip(spec.hosts.clone()) {
        spec.rank = rank;
        let granted = match &start.place {
            Place::Pbs(allocation) => allocation.hosts.get(rank as usize),
            _ => None,
        };
        spec.cpus = granted.and_then(|host| host.cpus);
        let mut command = match (&start.place, granted) {
            (Place::Hosts(_), _) => remote_shell(start.config.text(&keys::RSH), &host, &dragond)?,
            (_, Some(host)) if rank != 0 => tm::command(host.tm_index, &dragond)?,
            _ => Command::new(&dragond),
        };
        start.outputs.give(&mut command, rank)?;
        let daemon = match (&start.place, &mut door) {
            (Place::Hosts(_), _) => start_on_host(command, &host, &spec, files),
            (Place::Pbs(_), Some(door)) if rank != 0 => {
                start_by_tm(command, &host, &spec, door, files)
            }
            (place, _) => {
                let apart = matches!(place, Place::Pbs(_));
                start_here(command, &spec, apart, files)
            }
        };
        daemons.insert(
            rank,
            daemon.with_context(|| format!("cannot start the daemon of node {rank} ({host})"))?,
        );
    }
    Ok((daemons, door))
}

fn names_of(allocation: &Allocation) -> Vec<String> {
    let hosts = allocation.hosts.iter();
    hosts.map(|host| host.name.clone()).collect()
}

/// Daemons that share a machine share its memory.
fn local_pool(nodes: u32) -> u64 {
    (crate::resources::granted().memory / 2 / u64::from(nodes)).max(keys::LEAST_POOL)
}

/// Raises the limit of open files as far as so many daemons need it; returns the one that they are to have.
fn room_for_daemons(count: usize) -> Rlimit {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = FILES + FILES_OF_DAEMON * count as u64;
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
            tracing::debug!("the limit of open files stays: {error}");
        }
    }
    limit
}

fn start_here(
    mut command: Command,
    spec: &LaunchSpec,
    apart: bool,
    files: Rlimit,
) -> Result<Daemon> {
    let (reader, mut writer) = io::pipe()?;
    let message = encode(spec)?;
    // Larger than what a pipe holds: written by a thread, which ends with the daemon's end of the pipe.
    std::thread::spawn(move || writer.write_all(&message));
    let source = format!("/proc/{}/fd/{}", std::process::id(), reader.as_raw_fd());
    command
        .arg("--launch")
        .arg(source)
        .arg(launcher::from(spec.rank));
    if apart {
        command.arg(APART);
    }
    if spec.rank != 0 {
        command.stdin(Stdio::null());
    }
    if rustix::process::getrlimit(Resource::Nofile) != files {
        with_files(&mut command, files);
    }
    let child = command.spawn()?;
    watch(child, "this machine".to_owned(), None, Some(reader))
}

/// The remote shell. An interrupt from the terminal is not for it: this process passes it on.
fn remote_shell(rsh: &str, host: &str, dragond: &Path) -> Result<Command> {
    let words: Vec<_> = rsh.split_whitespace().collect();
    ensure!(!words.is_empty(), "--rsh is empty");
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "trap '' INT; exec \"$@\"", "dragon"])
        .args(words)
        .arg(host)
        .arg(quoted(dragond))
        .arg("--launch")
        .arg(STDIN)
        .stdin(Stdio::piped());
    Ok(command)
}

/// A path as one word of the shell on the other side, which gets all words as one line. Words without anything that a shell
/// minds stay as they are: not every remote shell has a shell behind it.
fn quoted(path: &Path) -> OsString {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(byte);
    let bytes = path.as_os_str().as_bytes();
    if bytes.iter().all(plain) {
        return path.as_os_str().to_owned();
    }
    let mut word = vec![b'\''];
    for byte in bytes {
        match byte {
            b'\'' => word.extend(b"'\\''"),
            other => word.push(*other),
        }
    }
    word.push(b'\'');
    OsString::from_vec(word)
}

fn start_on_host(
    mut command: Command,
    host: &str,
    spec: &LaunchSpec,
    files: Rlimit,
) -> Result<Daemon> {
    command.arg(launcher::from(spec.rank));
    // When this process is killed the remote shell ends, and what it runs learns of it as of any lost connection.
    die_with_parent(&mut command, Signal::TERM, files);
    let mut child = command.spawn()?;
    let stdin = child.stdin.take().context("no pipe to the remote shell")?;
    let line = Line::saying(OwnedFd::from(stdin), spec)?;
    watch(child, host.to_owned(), Some(line), None)
}

/// A task on a host of a job of PBS. The daemon there joins this process, and hears what it would hear behind a remote shell.
fn start_by_tm(
    mut command: Command,
    host: &str,
    spec: &LaunchSpec,
    door: &mut Door,
    files: Rlimit,
) -> Result<Daemon> {
    let (says, ended) = door.expect(spec.rank)?;
    command
        .args(["--launch", &door.way()])
        .arg(launcher::from(spec.rank))
        .env(env::JOIN_KEY, door.key())
        .stdin(ended);
    // When this process is killed the task is ended, which learns of it by the end of its line, too.
    die_with_parent(&mut command, Signal::TERM, files);
    let child = command.spawn()?;
    let line = Line::saying(OwnedFd::from(says), spec)?;
    let daemon = watch(child, host.to_owned(), Some(line), None)?;
    Ok(Daemon {
        task: true,
        ..daemon
    })
}

fn watch(
    child: Child,
    host: String,
    line: Option<Line>,
    message: Option<io::PipeReader>,
) -> Result<Daemon> {
    Ok(Daemon {
        pidfd: end_of(child.id())?,
        host,
        line,
        task: false,
        _message: message,
        child,
    })
}

fn encode(message: &impl serde::Serialize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes)?;
    Ok(bytes)
}

/// The variables of `--env`.
pub(super) fn environment(words: &[OsString]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let variable = |word: &OsString| {
        let bytes = word.as_bytes();
        let equals = bytes.iter().position(|byte| *byte == b'=');
        let name = &bytes[..equals.unwrap_or(bytes.len())];
        ensure!(
            !name.is_empty(),
            "--env {}: NAME=VALUE or NAME is wanted",
            word.display()
        );
        let value = match equals {
            Some(at) => bytes[at + 1..].to_vec(),
            None => std::env::var_os(word)
                .with_context(|| {
                    format!(
                        "--env {}: there is no such variable here; give it a value",
                        word.display()
                    )
                })?
                .into_vec(),
        };
        Ok((name.to_vec(), value))
    };
    words.iter().map(variable).collect()
}

/// Goes to the directory of `--cwd`; returns where this process is then.
pub(super) fn enter(directory: Option<&Path>) -> Result<PathBuf> {
    if let Some(directory) = directory {
        std::env::set_current_dir(directory)
            .with_context(|| format!("--cwd {}", directory.display()))?;
    }
    // One that was deleted under this process has no name; the daemons stay where they are started then.
    Ok(std::env::current_dir().unwrap_or_default())
}

/// The daemon beside this command, so that both are of one release; else the one on PATH.
pub(super) fn dragond() -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("dragond");
    if beside.exists() {
        return Ok(beside);
    }
    let found = program::resolve(&[OsString::from("dragond")])
        .map_err(|no| anyhow!("{}; it belongs beside the dragon command", no.text))?;
    Ok(found
        .words
        .into_iter()
        .next()
        .map(PathBuf::from)
        .unwrap_or_default())
}

/// Says that a daemon ended, where no daemon says so.
fn complain(rank: u32, host: &str, status: std::process::ExitStatus) {
    let what = match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("was ended by signal {signal}"),
        // The first one ends with the exit code of the head.
        (Some(code), _) if rank != 0 => match code.try_into() {
            Ok(0 | NOT_UP | RUNTIME_FAILED | TIME_IS_UP) => return,
            Ok(program::NOT_FOUND | program::NOT_EXECUTABLE | tm::NOT_STARTED) => format!(
                "cannot be started there (exit code {code}); Dragon must be installed in the same place on all hosts"
            ),
            Ok(SHELL_FAILED) => format!(
                "cannot be reached any more, or never could (exit code {code} of the remote shell)"
            ),
            // Where a signal ended it, its supervisor said so.
            Ok(129..) => return,
            _ => format!("ended with exit code {code}"),
        },
        _ => return,
    };
    say(&format!("the daemon of node {rank} ({host}) {what}"));
}

/// Whether a job that outlives its nodes is left to the others. A first node that is lost leaves it to them, and the first
/// of them has its exit code.
fn goes_on_without(rank: u32, status: std::process::ExitStatus) -> bool {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    // Behind a remote shell a daemon that was killed has its supervisor's exit code. It is the first one's too when the head
    // was killed, but then the others were told to end.
    let lost = matches!(code, None | Some(RUNTIME_FAILED | SHELL_FAILED | KILLED));
    lost || rank != 0 && !never_up(status)
}

/// Whether a daemon other than the first has ended without having come up, so that the others wait for it in vain.
fn never_up(status: std::process::ExitStatus) -> bool {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    // A remote shell that loses its connection later on loses the node too.
    matches!(
        code,
        Some(
            NOT_UP | program::NOT_FOUND | program::NOT_EXECUTABLE | tm::NOT_STARTED | SHELL_FAILED
        )
    )
}

/// Whether a signal ended the daemon, here or behind a remote shell.
fn was_killed(status: std::process::ExitStatus) -> bool {
    status.code().is_none_or(|code| code > 128)
}

async fn next_end(daemons: &BTreeMap<u32, Daemon>) -> Result<u32> {
    let waits: Vec<_> = daemons
        .iter()
        .map(|(rank, daemon)| Box::pin(async { daemon.pidfd.readable().await.map(|_| *rank) }))
        .collect();
    first_of(waits).await.map_err(Into::into)
}

/// Completes with the first of several futures. A runtime has few daemons per launcher, so a scan is enough.
async fn first_of<F: Future + Unpin>(mut futures: Vec<F>) -> F::Output {
    std::future::poll_fn(|context| {
        let mut pins = futures
            .iter_mut()
            .map(|future| std::pin::Pin::new(future).poll(context));
        pins.find(std::task::Poll::is_ready)
            .unwrap_or(std::task::Poll::Pending)
    })
    .await
}

fn code_of_signal(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(RUNTIME_FAILED)
}

fn exit_code(status: std::process::ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(RUNTIME_FAILED)
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        for path in ["/usr/bin/dragond", "/a b/ü/dragond", "/it's/$HOME/`x`"] {
            let word = quoted(Path::new(path));
            let line = format!("printf %s {}", word.display());
            let said = Command::new("sh").args(["-c", &line]).output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), path);
        }
        assert_eq!(
            quoted(Path::new("/opt/x-1.0/dragond")),
            "/opt/x-1.0/dragond"
        );
    }

    #[test]
    fn a_first_daemon_that_was_killed_leaves_the_job_to_the_others() {
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        for lost in [ExitStatus::from_raw(9), code(137), code(125), code(255)] {
            assert!(goes_on_without(0, lost), "{lost}");
        }
        for end in [code(0), code(7), code(143)] {
            assert!(!goes_on_without(0, end), "{end}");
        }
    }
}
