//! The one thread that starts processes.
//!
//! `PR_SET_PDEATHSIG` is bound to the *thread* that forked: a child would die with a short-lived thread of ours while the
//! daemon lives. So a dedicated thread, which ends only with the daemon, forks everything.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::thread;

use dragon_transport::descriptors;
use rustix::process::{Resource, Rlimit, Signal};
use tokio::sync::{mpsc as mpsc_events, oneshot};

use crate::parent_death::die_with_parent;
use crate::services::Event;

/// What to start.
#[derive(Debug)]
pub struct Fork {
    /// The words of `execve`.
    pub words: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory; `None`: the daemon's.
    pub directory: Option<PathBuf>,
    /// Standard input, output and error; `None`: the daemon's own.
    pub stdio: [Option<OwnedFd>; 3],
    /// Whether it leads a process group of its own: workers do, so that a Ctrl-C at the terminal reaches the head alone.
    pub own_group: bool,
}

/// Handle of the forking thread.
#[derive(Clone, Debug)]
pub struct Forker {
    /// Held while a process is being started. A start that fails ends in a child which the standard library waits for:
    /// nobody else may reap it meanwhile.
    starting: Arc<Mutex<()>>,
    orders: mpsc::Sender<(Fork, oneshot::Sender<io::Result<u32>>)>,
}

impl Forker {
    /// Starts the thread, and raises the soft limit of open files to the hard one for the daemon itself.
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
        let starting = Arc::new(Mutex::new(()));
        let held = starting.clone();
        let (orders, inbox) = mpsc::channel::<(Fork, oneshot::Sender<io::Result<u32>>)>();
        thread::Builder::new()
            .name("forker".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                for (fork, reply) in inbox {
                    let result = {
                        let _guard = held.lock().unwrap_or_else(PoisonError::into_inner);
                        start(fork, limit)
                    };
                    // Pipes, and what the process has instead of them.
                    descriptors::freed();
                    // The requester may be gone; the process is then an orphan that the next sweep ends.
                    let _ = reply.send(result);
                    // What ended meanwhile could not be reaped.
                    let _ = events.blocking_send(Event::Reap);
                }
            })?;
        Ok(Self { starting, orders })
    }

    /// The permission to reap children; `None` while one is being started: [`Event::Reap`] follows.
    #[must_use]
    pub fn may_reap(&self) -> Option<MutexGuard<'_, ()>> {
        match self.starting.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Starts a process; the answer is its pid.
    #[must_use]
    pub fn start_process(&self, fork: Fork) -> oneshot::Receiver<io::Result<u32>> {
        let (reply, answer) = oneshot::channel();
        // The thread ends only when the last handle is dropped.
        let _ = self.orders.send((fork, reply));
        answer
    }
}

fn start(fork: Fork, files: Rlimit) -> io::Result<u32> {
    let Some((program, arguments)) = fork.words.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program"));
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(fork.environment);
    if let Some(directory) = fork.directory {
        command.current_dir(directory);
    }
    if fork.own_group {
        command.process_group(0);
    }
    let [stdin, stdout, stderr] = fork.stdio;
    let inherit = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::inherit, Stdio::from);
    command
        .stdin(inherit(stdin))
        .stdout(inherit(stdout))
        .stderr(inherit(stderr));
    die_with_parent(&mut command, Signal::KILL, files);
    Ok(command.spawn()?.id())
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
