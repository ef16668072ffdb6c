//! The launcher: where no workload manager does it, it starts the daemons, waits for them and sweeps up behind them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use dragon_protocol::frame;
use dragon_protocol::key::{PORT_FIRST, PORT_LAST};
use dragon_protocol::launch::{LaunchSpec, Network};
use rustix::process::{Pid, Resource, Signal};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use super::hosts::{Place, place};
use super::{Arguments, RUNTIME_FAILED};
use crate::adapter::launcher::STDIN;
use crate::network;
use crate::parent_death::die_with_parent;
use crate::program;
use crate::readable::end_of;
use crate::sweep;

/// Children of a node in the tree of daemons.
const FANOUT: u32 = 16;
/// How long the other daemons may take to end after the first one has.
const LAST_WAIT: Duration = Duration::from_secs(10);

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
    let place = place(arguments).map_err(usage)?;
    if arguments.program.is_empty() {
        return Err(usage(anyhow!("no program given; type dragon --help")));
    }
    // On another machine the file may exist that does not exist here: there its daemon says so.
    if let Place::Here(_) = place {
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
    let code = runtime.block_on(run(arguments, &place)).map_err(failed);
    sweep::kill_all_but(inherited);
    code
}

async fn run(arguments: &Arguments, place: &Place) -> Result<u8> {
    let mut signals = Signals::new()?;
    let mut daemons = start_all(arguments, place)?;
    let mut code = None;
    // Ends when the first daemon has ended and the others have, or have had their time.
    let mut last_wait = None;
    while !daemons.is_empty() {
        let time_is_up = async {
            match last_wait {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = next_end(&daemons) => {
                let rank = ended?;
                let Some(mut daemon) = daemons.remove(&rank) else { continue };
                let status = daemon.child.wait()?;
                if rank == 0 {
                    code = Some(exit_code(status));
                    last_wait = Some(tokio::time::Instant::now() + LAST_WAIT);
                } else if code.is_none() && !status.success() {
                    eprintln!("dragon: the daemon of node {rank} ({}) ended: {status}", daemon.host);
                }
            }
            signal = signals.next() => {
                // The first daemon ends the others; it is the one that lives longest.
                if let Some(first) = daemons.values().next() {
                    let _ = rustix::process::pidfd_send_signal(&first.pidfd, signal);
                }
            }
            () = time_is_up => {
                for (rank, daemon) in &daemons {
                    eprintln!("dragon: the daemon of node {rank} ({}) did not end within {LAST_WAIT:?} and is killed", daemon.host);
                    let _ = rustix::process::pidfd_send_signal(&daemon.pidfd, Signal::KILL);
                }
                last_wait = None;
            }
        }
    }
    Ok(code.unwrap_or(RUNTIME_FAILED))
}

/// A daemon, or the remote shell that runs it.
struct Daemon {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
    host: String,
    /// Open for as long as this process lives: through a remote shell, its end tells the daemon that the launcher is gone.
    _lifeline: Option<std::process::ChildStdin>,
    /// The launch message of a local daemon, which opens it by its path below `/proc`.
    _message: Option<io::PipeReader>,
}

fn start_all(arguments: &Arguments, place: &Place) -> Result<BTreeMap<u32, Daemon>> {
    let hosts = match place {
        Place::Here(nodes) => vec!["127.0.0.1".to_owned(); *nodes as usize],
        Place::Hosts(hosts) => hosts.clone(),
    };
    let mut key = [0; 32];
    getrandom::fill(&mut key).context("no random numbers from the kernel")?;
    let mut spec = LaunchSpec {
        key,
        job: std::process::id().to_string(),
        rank: 0,
        hosts,
        ports: (PORT_FIRST, PORT_LAST),
        fanout: FANOUT,
        bring_up_ms: arguments.bring_up_limit * 1000,
        program: arguments
            .program
            .iter()
            .map(|word| word.clone().into_vec())
            .collect(),
        pool: arguments.pool.unwrap_or(0),
        forward_output: true,
        network: network_of(arguments)?,
    };
    let dragond = dragond()?;
    let mut daemons = BTreeMap::new();
    for (rank, host) in (0..).zip(spec.hosts.clone()) {
        spec.rank = rank;
        let daemon = match place {
            Place::Here(nodes) => start_here(
                &dragond,
                &LaunchSpec {
                    pool: local_pool(spec.pool, *nodes),
                    ..spec.clone()
                },
            ),
            Place::Hosts(_) => start_on_host(&arguments.rsh, &host, &dragond, &spec),
        };
        daemons.insert(
            rank,
            daemon.with_context(|| format!("cannot start the daemon of node {rank} ({host})"))?,
        );
    }
    Ok(daemons)
}

fn network_of(arguments: &Arguments) -> Result<Network> {
    let network = Network {
        transport: arguments.transport.clone().unwrap_or_default(),
        interface: arguments.interface.clone().unwrap_or_default(),
        encrypt: arguments.encrypt,
        reconnect: arguments.reconnect,
    };
    network::check(&network)?;
    Ok(network)
}

/// Daemons that share a machine share its memory.
fn local_pool(asked: u64, nodes: u32) -> u64 {
    if asked == 0 && nodes > 1 {
        (crate::resources::granted().memory / 2 / u64::from(nodes)).max(4 << 20)
    } else {
        asked
    }
}

fn start_here(dragond: &PathBuf, spec: &LaunchSpec) -> Result<Daemon> {
    let (reader, mut writer) = io::pipe()?;
    let message = encode(spec)?;
    // Larger than what a pipe holds: written by a thread, which ends with the daemon's end of the pipe.
    std::thread::spawn(move || writer.write_all(&message));
    let source = format!("/proc/{}/fd/{}", std::process::id(), reader.as_raw_fd());
    let mut command = Command::new(dragond);
    command.arg("--launch").arg(source);
    if spec.rank != 0 {
        command.stdin(Stdio::null());
    }
    watch(command.spawn()?, "this machine".to_owned(), Some(reader))
}

fn start_on_host(rsh: &str, host: &str, dragond: &PathBuf, spec: &LaunchSpec) -> Result<Daemon> {
    let mut words = rsh.split_whitespace();
    let mut command = Command::new(words.next().context("--rsh is empty")?);
    command
        .args(words)
        .arg(host)
        .arg(dragond)
        .arg("--launch")
        .arg(STDIN)
        .stdin(Stdio::piped());
    // When this process is killed the remote shell ends, and what it runs learns of it as of any lost connection.
    let files = rustix::process::getrlimit(Resource::Nofile);
    die_with_parent(&mut command, Signal::TERM, files);
    let mut child = command.spawn().with_context(|| format!("--rsh {rsh}"))?;
    let message = encode(spec)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&message)?;
        if spec.rank == 0 {
            // What this process reads is the head's.
            std::thread::spawn(move || io::copy(&mut io::stdin().lock(), &mut stdin));
        } else {
            child.stdin = Some(stdin);
        }
    }
    watch(child, host.to_owned(), None)
}

fn watch(mut child: Child, host: String, message: Option<io::PipeReader>) -> Result<Daemon> {
    let pidfd = end_of(child.id())?;
    Ok(Daemon {
        pidfd,
        host,
        _lifeline: child.stdin.take(),
        _message: message,
        child,
    })
}

fn encode(spec: &LaunchSpec) -> Result<Vec<u8>> {
    let mut message = Vec::new();
    frame::encode(spec, &mut message)?;
    Ok(message)
}

/// The daemon beside this command, so that both are of one release; else the one on PATH.
fn dragond() -> Result<PathBuf> {
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

fn exit_code(status: std::process::ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(RUNTIME_FAILED)
}

/// Signals for the job: the first daemon ends it, or passes them on to the head. An interrupt from the terminal reaches
/// the head and the daemons without this process.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Signal {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Signal::TERM,
                _ = self.hang_up.recv() => return Signal::HUP,
                _ = self.user1.recv() => return Signal::USR1,
                _ = self.user2.recv() => return Signal::USR2,
                _ = self.interrupt.recv() => {}
            }
        }
    }
}
