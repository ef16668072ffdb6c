//! One task of PBS's task manager: `dragon tm-exec NODE -- PROGRAM ARGUMENTS...` starts a program on a node of the job, by its
//! number among those that the task manager knows, and ends as it does. It stands where a remote shell would.
//!
//! The interface is that of `tm(3)`, in the library that PBS has installed and that is loaded here, in this process alone: its
//! calls wait, and only one thread may make them. So a thread makes them, and the event loop hears signals:
//!
//! * SIGTERM: the task gets it too, once it runs; with the second one, or after the line to the daemon has ended, it has a
//!   few seconds left before it is killed. The terminal's signals are none of this process's business.
//! * The end of standard input says that the line to the daemon has ended. The task manager may be gone by then: it is not
//!   waited for much longer. Where it is gone earlier the job goes on, for as long as the line stands.

use std::ffi::{CString, OsStr, OsString, c_char, c_int, c_void};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libloading::{Library, Symbol};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::installation;
use crate::adapter::launcher::NOT_UP;
use crate::cli::RUNTIME_FAILED;
use crate::journal::say;
use crate::readable::readable;
use crate::signal_mask;

/// The word with which the launcher starts `dragon` for a task.
pub const WORD: &str = "tm-exec";
/// The word with which that one starts another for a signal.
const SIGNAL: &str = "--signal";

/// The exit code of a task whose program cannot be executed, as PBS has it. No daemon ends with it.
pub const NOT_STARTED: u8 = 254;

/// The library of PBS.
const LIBRARY: &str = "lib/libpbs.so.0";
/// How long a task that was told twice to end may take for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the task manager may take to say that a task has ended whose line has. It never says so when it was started anew
/// on that node meanwhile, or when the node is gone.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// The command that starts a program as a task of the job, on a node of the task manager.
///
/// # Errors
/// When this program's own file is gone.
pub fn command(node: u32, program: &std::path::Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(WORD)
        .arg(node.to_string())
        .arg("--")
        .arg(program);
    Ok(command)
}

/// Runs `dragon tm-exec` with these arguments.
#[must_use]
pub fn main(arguments: &[OsString]) -> ExitCode {
    let code = match arguments.split_first() {
        Some((first, rest)) if first == SIGNAL => pass_signal(rest).map(|()| 0),
        Some((node, rest)) => run(node, rest),
        None => Err(anyhow!(
            "the dragon command itself starts {WORD}, in a job of PBS; type dragon --help"
        )),
    };
    ExitCode::from(code.unwrap_or_else(|error| {
        say(&format!("{error:#}"));
        NOT_UP
    }))
}

fn run(node: &OsStr, words: &[OsString]) -> Result<u8> {
    let number = node.to_str().and_then(|node| node.parse().ok());
    let number: usize = number
        .with_context(|| format!("{WORD} {}: the number of a node is wanted", node.display()))?;
    let words = match words.split_first() {
        Some((dashes, words)) if dashes == "--" && !words.is_empty() => words,
        _ => bail!("{WORD} {number}: -- and a program are wanted"),
    };
    let words: Vec<_> = words
        .iter()
        .map(|word| CString::new(word.as_bytes()))
        .collect::<Result<_, _>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let for_others = [
            SignalKind::interrupt(),
            SignalKind::hangup(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        let _for_others = for_others.map(signal);
        let (told, mut events) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let ended = signal_mask::leave_to_others()
                .map_err(anyhow::Error::from)
                .and_then(|()| one_task(number, &words, &told));
            let _ = told.send(Event::Ended(ended));
        });
        let mut line = stdin();
        let mut task = Task {
            node: number,
            ..Task::default()
        };
        loop {
            let until = task.until;
            let time_is_up = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let code = tokio::select! {
                Some(event) = events.recv() => task.event(event)?,
                _ = terminate.recv() => task.terminate(),
                () = end_of(&mut line) => task.line_ended(),
                () = time_is_up => task.time_is_up(),
            };
            if let Some(code) = code {
                return Ok(code);
            }
        }
    })
}

/// What the thread that makes the task manager's calls says.
enum Event {
    /// The task runs.
    Started(u64),
    /// The task has ended with this code; or why nothing more is known of it.
    Ended(Result<u8>),
}

/// What is known of the task, and what it has been told.
#[derive(Debug, Default)]
struct Task {
    node: usize,
    number: Option<u64>,
    terminations: u32,
    line_has_ended: bool,
    /// The task manager is gone.
    lost: bool,
    killed: bool,
    /// When the task is killed, or nothing more is waited for.
    until: Option<Instant>,
}

/// Each returns the exit code when there is nothing more to wait for.
impl Task {
    fn event(&mut self, event: Event) -> Result<Option<u8>> {
        match event {
            Event::Started(number) => {
                self.number = Some(number);
                if self.terminations > 0 {
                    signal_task(self.node, number, libc::SIGTERM);
                }
            }
            Event::Ended(Ok(code)) => return Ok(Some(code)),
            Event::Ended(Err(error)) if self.number.is_none() => return Err(error),
            Event::Ended(Err(error)) => {
                tracing::debug!("{error:#}");
                self.lost = true;
            }
        }
        Ok(self.gone())
    }

    fn terminate(&mut self) -> Option<u8> {
        self.terminations += 1;
        let Some(number) = self.number else {
            // If it starts all the same it finds nobody to join.
            return Some(NOT_UP);
        };
        signal_task(self.node, number, libc::SIGTERM);
        if self.terminations > 1 {
            self.give_time(PATIENCE);
        }
        self.gone()
    }

    fn line_ended(&mut self) -> Option<u8> {
        self.line_has_ended = true;
        self.give_time(LAST_WAIT);
        self.gone()
    }

    fn time_is_up(&mut self) -> Option<u8> {
        let number = self.number.filter(|_| !self.killed);
        let Some(number) = number else {
            return Some(RUNTIME_FAILED);
        };
        signal_task(self.node, number, libc::SIGKILL);
        self.killed = true;
        self.until = Some(Instant::now() + LAST_WAIT);
        None
    }

    fn give_time(&mut self, time: Duration) {
        let until = Instant::now() + time;
        self.until = Some(self.until.map_or(until, |before| before.min(until)));
    }

    /// Nobody will say any more how the task has ended.
    fn gone(&self) -> Option<u8> {
        let over = self.lost && (self.line_has_ended || self.terminations > 0);
        over.then_some(RUNTIME_FAILED)
    }
}

/// Standard input, when it can be waited for.
fn stdin() -> Option<AsyncFd<OwnedFd>> {
    let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).ok()?;
    rustix::io::ioctl_fionbio(&stdin, true).ok()?;
    readable(stdin).ok()
}

/// Waits for the end of standard input, once.
async fn end_of(line: &mut Option<AsyncFd<OwnedFd>>) {
    if let Some(stdin) = &line {
        loop {
            let Ok(mut ready) = stdin.readable().await else {
                break;
            };
            let read = ready.try_io(|stdin| Ok(rustix::io::read(stdin, &mut [0; 64])?));
            if matches!(read, Ok(Ok(0) | Err(_))) {
                break;
            }
        }
        *line = None;
        return;
    }
    std::future::pending().await
}

/// Sends a signal to the task: by another process, since this one's calls wait for the task's end.
fn signal_task(node: usize, task: u64, signal: c_int) {
    let started = std::env::current_exe().and_then(|own| {
        Command::new(own)
            .args([WORD, SIGNAL])
            .args([node.to_string(), task.to_string(), signal.to_string()])
            .stdin(Stdio::null())
            .spawn()
    });
    match started {
        // Its end is waited for, by nobody who has anything else to do.
        Ok(mut child) => drop(std::thread::spawn(move || child.wait())),
        Err(error) => say(&format!(
            "signal {signal} does not reach a task of the job: {error}"
        )),
    }
}

fn pass_signal(arguments: &[OsString]) -> Result<()> {
    let number = |at: usize| arguments.get(at)?.to_str()?.parse::<u64>().ok();
    let (Some(node), Some(task), Some(signal)) = (number(0), number(1), number(2)) else {
        bail!(
            "{WORD} {SIGNAL}: the number of a node, that of a task and that of a signal are wanted"
        );
    };
    let mut manager = TaskManager::connect()?;
    manager.learn_tasks(usize::try_from(node)?)?;
    // It may have ended a moment ago.
    let _ = manager.signal(task, c_int::try_from(signal)?);
    manager.finish();
    Ok(())
}

/// Starts a task and waits for its end; returns its exit code as a shell has it.
fn one_task(node: usize, words: &[CString], told: &mpsc::UnboundedSender<Event>) -> Result<u8> {
    let mut manager = TaskManager::connect()?;
    let task = manager.start(node, words)?;
    let _ = told.send(Event::Started(task));
    let status = manager.end_of(task)?;
    manager.finish();
    // A task that a signal has ended has 256 and its number.
    let code = match status {
        0..256 => status,
        _ => 128 + (status & 0x7f),
    };
    Ok(u8::try_from(code).unwrap_or(RUNTIME_FAILED))
}

/// Errors of the task manager, by their numbers.
const ERRORS: [(c_int, &str); 9] = [
    (
        17000,
        "the daemon of PBS on this host, pbs_mom, cannot be reached",
    ),
    (17002, "the connection to it has ended"),
    (17004, "it cannot do that"),
    (17005, "this process is in no job of PBS"),
    (17006, "there is no such task or node"),
    (17007, "it answered what nobody had asked"),
    (17009, "the job belongs to another user"),
    (17011, "there is no such process"),
    (17012, "a hook of the site forbids it"),
];

const NO_EVENT: c_int = 0;

/// A connection to the task manager of the job.
#[derive(Debug)]
struct TaskManager {
    /// Never unloaded: it has given this thread something to do when it ends.
    library: &'static Library,
    nodes: Vec<c_int>,
}

/// How many tasks a node of a job may have had.
const MOST_TASKS: c_int = 1 << 16;

type List = unsafe extern "C" fn(c_int, *mut u64, c_int, *mut c_int, *mut c_int) -> c_int;
type Start = unsafe extern "C" fn(
    c_int,
    *mut *mut c_char,
    *mut *mut c_char,
    c_int,
    *mut u64,
    *mut c_int,
) -> c_int;

/// The calls of `tm(3)`. A task's number is an `unsigned int` in some releases and an `unsigned long` in others: it has room
/// for either, and what lies behind the shorter one is 0.
#[expect(unsafe_code, reason = "the library is one of C")]
impl TaskManager {
    fn connect() -> Result<Self> {
        for name in ["PBS_JOBID", "PBS_JOBCOOKIE"] {
            ensure!(
                std::env::var_os(name).is_some(),
                "{name} is not set: {WORD} works in a job of PBS alone"
            );
        }
        let path = library()?;
        // SAFETY: the library's constructors are those of PBS's own programs, and this process does nothing beside it.
        let library = unsafe { Library::new(&path) };
        let library = library.with_context(|| {
            format!(
                "the task manager of PBS cannot be used: {} does not load",
                path.display()
            )
        })?;
        let mut manager = Self {
            library: Box::leak(Box::new(library)),
            nodes: Vec::new(),
        };
        // Larger than what it is filled with.
        let mut roots = [0_u64; 32];
        let init =
            manager.call::<unsafe extern "C" fn(*mut c_void, *mut u64) -> c_int>(c"tm_init")?;
        // SAFETY: the first is of no use, the second has room for a `struct tm_roots`.
        let code = unsafe { init(std::ptr::null_mut(), roots.as_mut_ptr()) };
        check("does not answer", code)?;
        let mut list = std::ptr::null_mut::<c_int>();
        let mut count: c_int = 0;
        let nodes = manager
            .call::<unsafe extern "C" fn(*mut *mut c_int, *mut c_int) -> c_int>(c"tm_nodeinfo")?;
        // SAFETY: both are filled.
        let code = unsafe { nodes(&raw mut list, &raw mut count) };
        check("does not say which nodes the job has", code)?;
        let count = usize::try_from(count).unwrap_or(0);
        if !list.is_null() {
            // SAFETY: the call has said that so many numbers lie there.
            let numbers = unsafe { std::slice::from_raw_parts(list, count) };
            manager.nodes = numbers.to_vec();
            // SAFETY: it was allocated for the caller, who is to free it.
            unsafe { libc::free(list.cast()) };
        }
        Ok(manager)
    }

    /// Starts a program with this process's environment; returns the task's number.
    fn start(&mut self, node: usize, words: &[CString]) -> Result<u64> {
        let node = self.node(node)?;
        let environment = environment()?;
        let mut arguments = pointers(words);
        let mut variables = pointers(&environment);
        let (mut task, mut event) = (0_u64, NO_EVENT);
        let spawn = self.call::<Start>(c"tm_spawn")?;
        // SAFETY: both lists end with null and live until the call returns; the others live until the event has come.
        let code = unsafe {
            spawn(
                c_int::try_from(words.len())?,
                arguments.as_mut_ptr(),
                variables.as_mut_ptr(),
                node,
                &raw mut task,
                &raw mut event,
            )
        };
        let program = words.first().map(|word| word.to_string_lossy());
        let what = format!("does not start {}", program.unwrap_or_default());
        check(&what, code)?;
        self.wait_for(event, &what)?;
        Ok(task)
    }

    /// A node by its place in the list of them.
    fn node(&self, place: usize) -> Result<c_int> {
        let there = self.nodes.len();
        self.nodes.get(place).copied().with_context(|| {
            format!("the job has no node {place}: PBS's task manager knows {there}, from 0 on")
        })
    }

    /// Has the library know the tasks of a node: it passes signals on to tasks that it has started or listed alone.
    fn learn_tasks(&mut self, node: usize) -> Result<()> {
        let node = self.node(node)?;
        let mut tasks = vec![0_u64; usize::try_from(MOST_TASKS)?];
        let (mut count, mut event) = (0, NO_EVENT);
        let list = self.call::<List>(c"tm_taskinfo")?;
        let what = "does not list the tasks of a node";
        // SAFETY: there is room for so many; all live until the event has come.
        let code = unsafe {
            list(
                node,
                tasks.as_mut_ptr(),
                MOST_TASKS,
                &raw mut count,
                &raw mut event,
            )
        };
        check(what, code)?;
        self.wait_for(event, what)
    }

    /// Waits for the end of a task; returns its status.
    fn end_of(&mut self, task: u64) -> Result<c_int> {
        let (mut status, mut event) = (0, NO_EVENT);
        let obit =
            self.call::<unsafe extern "C" fn(u64, *mut c_int, *mut c_int) -> c_int>(c"tm_obit")?;
        let what = "does not say how a task has ended";
        // SAFETY: both live until the event has come.
        let code = unsafe { obit(task, &raw mut status, &raw mut event) };
        check(what, code)?;
        self.wait_for(event, what)?;
        Ok(status)
    }

    fn signal(&mut self, task: u64, signal: c_int) -> Result<()> {
        let mut event = NO_EVENT;
        let kill =
            self.call::<unsafe extern "C" fn(u64, c_int, *mut c_int) -> c_int>(c"tm_kill")?;
        let what = "does not pass on a signal";
        // SAFETY: the event lives until the call returns.
        let code = unsafe { kill(task, signal, &raw mut event) };
        check(what, code)?;
        self.wait_for(event, what)
    }

    /// Waits until an event has come.
    fn wait_for(&self, wanted: c_int, what: &str) -> Result<()> {
        let poll = self
            .call::<unsafe extern "C" fn(c_int, *mut c_int, c_int, *mut c_int) -> c_int>(
                c"tm_poll",
            )?;
        loop {
            let (mut came, mut error) = (NO_EVENT, 0);
            // SAFETY: both live until the call returns.
            let code = unsafe { poll(NO_EVENT, &raw mut came, 1, &raw mut error) };
            check(what, code)?;
            if came == wanted {
                return check(what, error);
            }
        }
    }

    fn finish(self) {
        if let Ok(finalize) = self.call::<unsafe extern "C" fn() -> c_int>(c"tm_finalize") {
            // SAFETY: nothing is under way.
            unsafe { finalize() };
        }
    }

    fn call<T>(&self, name: &std::ffi::CStr) -> Result<Symbol<'_, T>> {
        // SAFETY: every caller gives the type that `tm(3)` gives the call.
        let found = unsafe { self.library.get(name.to_bytes_with_nul()) };
        found.with_context(|| format!("the library of PBS has no {}", name.to_string_lossy()))
    }
}

fn check(what: &str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let known = ERRORS.iter().find(|(number, _)| *number == code);
    match known {
        Some((_, why)) => bail!("the task manager of PBS {what}: {why} (error {code})"),
        None => bail!("the task manager of PBS {what}: error {code}"),
    }
}

/// A list as C has it; it must not outlive the strings.
fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr().cast_mut());
    pointers.chain([std::ptr::null_mut()]).collect()
}

/// What a task finds in its environment: what is in this process's, but for what PBS itself sets for each task.
fn environment() -> Result<Vec<CString>> {
    let variables = std::env::vars_os().filter(|(name, _)| !is_of_the_task(name));
    variables
        .map(|(name, value)| {
            let mut variable = name.into_vec();
            variable.push(b'=');
            variable.extend(value.into_vec());
            Ok(CString::new(variable)?)
        })
        .collect()
}

fn is_of_the_task(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"PBS_") || [&b"TMPDIR"[..], b"HOSTNAME"].contains(&name)
}

/// The library of PBS, where it is to be.
///
/// # Errors
/// When nobody says where PBS is installed.
pub fn library() -> Result<PathBuf> {
    Ok(installation()?.join(LIBRARY))
}
