//! The one thread that starts processes.
//!
//! `PR_SET_PDEATHSIG` is bound to the *thread* that forked: a child would die with a short-lived thread of ours while the
//! daemon lives. So a dedicated thread, which ends only with the daemon, starts everything. It also does what may take time
//! when a file system is slow: it looks programs up and opens files, for which the event loop must not wait.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use dragon_protocol::process::{Limit, LimitKind, Settings};
use dragon_transport::descriptors;
use rustix::fs::OFlags;
use rustix::process::{Resource, Rlimit};
use rustix::thread::CpuSet;
use tokio::sync::{mpsc as mpsc_events, oneshot};

use crate::exec::{Failed, Image, Starter, Step};
use crate::inherited::Inherited;
use crate::program;
use crate::services::Event;

/// What to start.
#[derive(Debug)]
pub struct Fork {
    /// The words as they were typed.
    pub words: Vec<OsString>,
    /// Whether the first word is to be looked up as a shell does, in the PATH of the environment below; otherwise it is the
    /// path of an executable.
    pub look_up: bool,
    /// The whole environment.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory; `None`: the daemon's.
    pub directory: Option<PathBuf>,
    /// Standard input, output and error.
    pub stdio: [Source; 3],
    /// Whether it leads a process group of its own: workers do, so that a Ctrl-C at the terminal reaches the head alone.
    pub own_group: bool,
    /// What else it starts with.
    pub settings: Settings,
    /// The CPUs that it is bound to; none: those of the daemon.
    pub cpus: Vec<u32>,
    /// What else it is given, under the same numbers.
    pub inherited: Inherited,
}

/// Where one of standard input, output and error comes from.
#[derive(Debug)]
pub enum Source {
    /// The daemon's own.
    Inherit,
    /// `/dev/null`.
    Null,
    /// This one.
    Fd(OwnedFd),
    /// What standard output is.
    LikeOutput,
    /// A file; a relative path begins at the working directory of the process.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether output is added at its end.
        append: bool,
    },
}

/// Something to be done by the thread.
#[derive(Debug)]
enum Order {
    /// Start a process; with a number, the loop hears of it by [`Event::Started`].
    Fork(Option<u64>, Box<Fork>),
    /// Open what another is going to start a process with.
    Open(
        [Source; 3],
        PathBuf,
        oneshot::Sender<Result<[OwnedFd; 3], String>>,
    ),
}

/// Handle of the forking thread.
#[derive(Clone, Debug)]
pub struct Forker {
    orders: mpsc::Sender<Order>,
}

impl Forker {
    /// Starts the thread. From here on the limit of open files is raised to the hard limit, for the daemon itself.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(events: mpsc_events::Sender<Event>) -> io::Result<Self> {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
            tracing::warn!(
                "the limit of open files stays at {:?}: {error}",
                limit.current
            );
        }
        let null = null()?;
        let (orders, inbox) = mpsc::channel();
        thread::Builder::new()
            .name("forker".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                let mut starter = Starter::new();
                for order in inbox {
                    match order {
                        Order::Fork(number, fork) => {
                            let started = start(&mut starter, &fork, limit, &null);
                            // Pipes, and what the process has instead of them.
                            drop(fork);
                            descriptors::freed();
                            match (number, started) {
                                (Some(number), started) => {
                                    let _ = events.blocking_send(Event::Started(number, started));
                                }
                                (None, Err(text)) => tracing::warn!("{text}"),
                                (None, Ok(_)) => {}
                            }
                        }
                        Order::Open(sources, directory, reply) => {
                            // The requester may be gone.
                            let _ = reply.send(open_all(sources, &directory, &null));
                        }
                    }
                }
            })?;
        Ok(Self { orders })
    }

    /// Starts a process. With a number, [`Event::Started`] tells its pid, or why there is none.
    pub fn start_process(&self, number: Option<u64>, fork: Fork) {
        // The thread ends only when the last handle is dropped.
        let _ = self.orders.send(Order::Fork(number, Box::new(fork)));
    }

    /// Opens what a process is to be started with.
    #[must_use]
    pub fn open(
        &self,
        sources: [Source; 3],
        directory: PathBuf,
    ) -> oneshot::Receiver<Result<[OwnedFd; 3], String>> {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Open(sources, directory, reply));
        answer
    }
}

/// Starts a process; its pid, or a sentence.
fn start(starter: &mut Starter, fork: &Fork, files: Rlimit, null: &OwnedFd) -> Result<u32, String> {
    let resolved;
    let words = if fork.look_up {
        let path = fork
            .environment
            .iter()
            .find(|(name, _)| name == b"PATH")
            .map(|(_, value)| OsStr::from_bytes(value));
        let found = program::resolve_in(&fork.words, path, fork.directory.as_deref());
        resolved = found.map_err(|no| no.text)?.words;
        &resolved
    } else {
        &fork.words
    };
    let name = words
        .first()
        .map(|word| word.to_string_lossy().into_owned())
        .unwrap_or_default();
    let wrong = |what: &[u8]| format!("{name}: a NUL byte in '{}'", what.escape_ascii());
    let string = |bytes: &[u8]| CString::new(bytes).map_err(|_| wrong(bytes));
    let arguments = words
        .iter()
        .map(|word| string(word.as_bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    let path = arguments.first().ok_or("no program to start")?;
    let environment = fork
        .environment
        .iter()
        .map(|(name, value)| string(&[name, b"=".as_slice(), value].concat()))
        .collect::<Result<Vec<_>, _>>()?;
    let directory = fork
        .directory
        .as_ref()
        .map(|directory| string(directory.as_os_str().as_bytes()))
        .transpose()?;
    let mut limits = vec![(Resource::Nofile, files)];
    limits.extend(fork.settings.limits.iter().map(limit));
    let cpus = cpu_set(&fork.cpus);
    let here = PathBuf::new();
    let opened = open_files(&fork.stdio, fork.directory.as_ref().unwrap_or(&here))?;
    let of = |place: usize| -> Option<BorrowedFd<'_>> {
        match (&fork.stdio[place], &opened[place]) {
            (_, Some(file)) => Some(file.as_fd()),
            (Source::Fd(fd), None) => Some(fd.as_fd()),
            (Source::Null, None) => Some(null.as_fd()),
            _ => None,
        }
    };
    let error = match fork.stdio[2] {
        // Without a descriptor of its own, standard output is the daemon's.
        Source::LikeOutput => of(1).or(Some(rustix::stdio::stdout())),
        _ => of(2),
    };
    let inherited: Vec<_> = fork.inherited.all().collect();
    let image = Image {
        path,
        arguments: &arguments,
        environment: &environment,
        directory: directory.as_deref(),
        stdio: [of(0), of(1), error],
        inherited: &inherited,
        own_group: fork.own_group,
        umask: fork.settings.umask,
        nice: fork.settings.nice,
        limits: &limits,
        cpus: (!fork.cpus.is_empty()).then_some(&cpus),
    };
    starter
        .start(&image)
        .map_err(|failed| sentence(&name, fork, &failed))
}

/// Why something that needs descriptors was not made.
#[must_use]
pub fn not_made(what: &str, error: &io::Error) -> String {
    let none_left = error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error());
    match rustix::process::getrlimit(Resource::Nofile).current {
        Some(limit) if none_left => format!(
            "{what}: the daemon of this node has all the {limit} files open that it may; start fewer processes, give them files or nothing for output and errors, or raise the hard limit (ulimit -Hn; dragon doctor says where)"
        ),
        _ => format!("{what}: {error}"),
    }
}

/// Why a process was not started.
fn sentence(name: &str, fork: &Fork, failed: &Failed) -> String {
    let error = &failed.error;
    match failed.step {
        Step::Directory => {
            let directory = fork.directory.as_deref().unwrap_or(Path::new(""));
            format!("{name}: working directory {}: {error}", directory.display())
        }
        Step::Clone if error.kind() == io::ErrorKind::WouldBlock => format!(
            "{name}: the limit of processes is reached ({error}); see ulimit -u, and pids.max of the job's control group"
        ),
        Step::Nice => format!(
            "{name}: nice {}: {error}; only an administrator may lower it",
            fork.settings.nice.unwrap_or_default()
        ),
        Step::Limits => format!(
            "{name}: resource limits {:?}: {error}; a hard limit can only be lowered, and the soft one is at most that",
            fork.settings.limits
        ),
        Step::Cpus => format!("{name}: CPUs {:?}: {error}", fork.cpus),
        Step::Execute if error.raw_os_error() == Some(rustix::io::Errno::TOOBIG.raw_os_error()) => {
            format!(
                "{name}: arguments and environment exceed the system's limit; pass long data by a file"
            )
        }
        Step::Clone | Step::Parent | Step::Group | Step::Stdio | Step::Execute => {
            format!("{name}: {error}")
        }
    }
}

/// A limit as the kernel has it.
#[must_use]
pub fn limit(limit: &Limit) -> (Resource, Rlimit) {
    let resource = match limit.kind {
        LimitKind::Cpu => Resource::Cpu,
        LimitKind::FileSize => Resource::Fsize,
        LimitKind::Data => Resource::Data,
        LimitKind::Stack => Resource::Stack,
        LimitKind::Core => Resource::Core,
        LimitKind::Processes => Resource::Nproc,
        LimitKind::OpenFiles => Resource::Nofile,
        LimitKind::LockedMemory => Resource::Memlock,
        LimitKind::AddressSpace | _ => Resource::As,
    };
    let limits = Rlimit {
        current: limit.soft,
        maximum: limit.hard,
    };
    (resource, limits)
}

fn cpu_set(cpus: &[u32]) -> CpuSet {
    let mut set = CpuSet::new();
    for cpu in cpus.iter().map(|cpu| *cpu as usize) {
        if cpu < CpuSet::MAX_CPU {
            set.set(cpu);
        }
    }
    set
}

/// The files among the sources.
fn open_files(sources: &[Source; 3], directory: &Path) -> Result<[Option<OwnedFd>; 3], String> {
    let mut opened = [None, None, None];
    for (place, source) in sources.iter().enumerate() {
        if let Source::File { path, append } = source {
            opened[place] = Some(open_file(path, *append, place == 0, directory)?);
        }
    }
    Ok(opened)
}

fn open_file(
    path: &Path,
    append: bool,
    is_input: bool,
    directory: &Path,
) -> Result<OwnedFd, String> {
    let path = directory.join(path);
    let mut options = File::options();
    if is_input {
        options.read(true);
    } else {
        options.create(true).write(true).append(append);
        options.truncate(!append);
    }
    // A named pipe without a process at its other end must not hold up all other starts.
    options.custom_flags(OFlags::NONBLOCK.union(OFlags::NOCTTY).bits().cast_signed());
    let stream = ["standard output or error", "standard input"][usize::from(is_input)];
    let failed = |error: io::Error| format!("{} as {stream}: {error}", path.display());
    let file = OwnedFd::from(options.open(&path).map_err(failed)?);
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| failed(error.into()))?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)
        .map_err(|error| failed(error.into()))?;
    Ok(file)
}

/// All three as descriptors, for a process that somebody else starts.
fn open_all(
    sources: [Source; 3],
    directory: &Path,
    null: &OwnedFd,
) -> Result<[OwnedFd; 3], String> {
    let own = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    let copy = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(|error| format!("standard input, output or error: {error}"))
    };
    let [input, output, error] = sources;
    let open = |place: usize, source| match source {
        Source::Inherit | Source::LikeOutput => copy(own[place]),
        Source::Null => copy(null.as_fd()),
        Source::Fd(fd) => Ok(fd),
        Source::File { path, append } => open_file(&path, append, place == 0, directory),
    };
    let (input, output) = (open(0, input)?, open(1, output)?);
    let error = match error {
        Source::LikeOutput => copy(output.as_fd())?,
        error => open(2, error)?,
    };
    Ok([input, output, error])
}

/// `/dev/null`, for processes that get no input.
///
/// # Errors
/// When it cannot be opened.
pub fn null() -> io::Result<OwnedFd> {
    Ok(File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?
        .into())
}

/// A path of bytes.
#[must_use]
pub fn path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}
