//! Starting processes on the nodes of the runtime.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use dragon_channels::Interest;
use dragon_protocol::control::{ClientReply, ClientRequest, Program, Reach, SpawnRequest};
use dragon_protocol::process::{
    Cpus, Gpus, Limit, LimitKind, Lives, Place, Policy, Stdio as Wanted,
};
use dragon_protocol::{Descriptor, NodeIndex};
use dragon_shmem::Deadline;

use crate::allocation;
use crate::error::{Error, Result};
use crate::objects::{Channel, Process};
use crate::session::{Session, unexpected};
use crate::set::Set;
use crate::stdio::{self, ChildInput, ChildOutput, Stdio};

/// How a process is to be started.
///
/// ```no_run
/// use dragon::Spawn;
///
/// let child = Spawn::program("hostname").arg("-f").start()?;
/// let status = child.process.wait(dragon::Deadline::Never)?;
/// println!("status {status}, as waitpid gives it");
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Spawn {
    request: SpawnRequest,
    /// Standard input, output and error that become channels when it starts.
    piped: [bool; 3],
}

/// A process that was started.
#[derive(Debug)]
pub struct Child {
    /// The process.
    pub process: Process,
    /// Its id on its node.
    pub pid: u32,
    /// Where to write what it reads, when it was started with [`Stdio::Piped`] for standard input. Dropping it ends the input.
    pub stdin: Option<ChildInput>,
    /// Where to read what it prints, when it was started with [`Stdio::Piped`] for standard output.
    pub stdout: Option<ChildOutput>,
    /// Where to read its errors, when it was started with [`Stdio::Piped`] for standard error.
    pub stderr: Option<ChildOutput>,
}

impl Spawn {
    /// An executable, looked up in the PATH of the child's environment. The child gets the caller's environment and
    /// working directory, unless told otherwise.
    #[must_use]
    pub fn program(program: impl AsRef<OsStr>) -> Self {
        Self::new(Program::Executable(vec![
            program.as_ref().as_bytes().to_vec(),
        ]))
    }

    /// A Python worker from the warm interpreter of its node. It unpickles `payload` and runs what that is.
    #[must_use]
    pub fn python(interpreter: impl AsRef<OsStr>, payload: Vec<u8>) -> Self {
        Self::new(Program::Python {
            interpreter: interpreter.as_ref().as_bytes().to_vec(),
            options: Vec::new(),
            preload: Vec::new(),
            payload,
        })
    }

    fn new(program: Program) -> Self {
        let mut request = SpawnRequest {
            environment: inherited_environment(),
            directory: inherited_directory(),
            ..SpawnRequest::new(program)
        };
        if allocation::is_head() {
            request.settings.lives = Lives::WithCreator;
        }
        Self {
            request,
            piped: [false; 3],
        }
    }

    /// One more argument of an executable, or one more option of a Python worker's interpreter, as `-O`.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        if let Program::Executable(words) | Program::Python { options: words, .. } =
            &mut self.request.program
        {
            words.push(arg.as_ref().as_bytes().to_vec());
        }
        self
    }

    /// What the interpreter of a Python worker imports once, before it forks this worker and others that ask for the same, as
    /// the package `dragon` writes it. An executable imports nothing.
    #[must_use]
    pub fn preload(mut self, wanted: Vec<u8>) -> Self {
        if let Program::Python { preload, .. } = &mut self.request.program {
            *preload = wanted;
        }
        self
    }

    /// The node to run on. Otherwise the placement policy decides: DRAGON_PLACEMENT is `roundrobin`, `block`, `packed`,
    /// `local` or `remote`.
    #[must_use]
    pub fn node(mut self, node: NodeIndex) -> Self {
        self.request.place = Place::Node(node);
        self
    }

    /// The host to run on, by the name under which the table of nodes has it.
    #[must_use]
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.request.place = Place::Host(name.into());
        self
    }

    /// How it is placed among the nodes.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.request.place = Place::Policy(policy);
        self
    }

    /// Reserves so many CPUs of the node for the process, which is bound to them: of one NUMA node where one has them.
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.request.reservation.cpus = Cpus::Count(count);
        self
    }

    /// Reserves these CPUs of the node for the process, by the kernel's numbers, and binds it to them.
    #[must_use]
    pub fn cpu_set(mut self, ids: impl IntoIterator<Item = u32>) -> Self {
        self.request.reservation.cpus = Cpus::These(ids.into_iter().collect());
        self
    }

    /// Reserves so many CPUs of a NUMA node, 0: all that the job was granted of it.
    #[must_use]
    pub fn numa_node(mut self, node: u32, count: u32) -> Self {
        self.request.reservation.cpus = Cpus::Numa { node, count };
        self
    }

    /// Reserves so many GPUs of the node for the process. Its environment names them (CUDA_VISIBLE_DEVICES and the like).
    #[must_use]
    pub fn gpus(mut self, count: u32) -> Self {
        self.request.reservation.gpus = Gpus::Count(count);
        self
    }

    /// Reserves these GPUs of the node for the process, by the names under which the job was granted them.
    #[must_use]
    pub fn gpu_set(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let names = names.into_iter().map(Into::into);
        self.request.reservation.gpus = Gpus::These(names.collect());
        self
    }

    /// How long the start may wait until the CPUs and GPUs that it reserves are free. Without it, it is refused when they are
    /// not. Other threads go on all the while; a signal ends the wait with [`Code::Interrupted`](crate::Code::Interrupted).
    #[must_use]
    pub fn wait_for_resources(mut self, limit: Duration) -> Self {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.request.reservation.wait_ms = Some(limit);
        self
    }

    /// The file mode creation mask, in the place of the daemon's.
    #[must_use]
    pub fn umask(mut self, mask: u32) -> Self {
        self.request.settings.umask = Some(mask);
        self
    }

    /// Adds to its nice value.
    #[must_use]
    pub fn nice(mut self, increment: i32) -> Self {
        self.request.settings.nice = Some(increment);
        self
    }

    /// A resource limit: the one that counts, and how far the process may raise it. `None`: unlimited.
    #[must_use]
    pub fn limit(mut self, kind: LimitKind, soft: Option<u64>, hard: Option<u64>) -> Self {
        let limit = Limit { kind, soft, hard };
        self.request.settings.limits.push(limit);
        self
    }

    /// When it ends without being told; with the runtime, unless told otherwise. What a head starts in a runtime that goes on
    /// after it (`dragon prog` in a job of `sbatch --dragon`) ends with the head.
    #[must_use]
    pub fn lives(mut self, lives: Lives) -> Self {
        self.request.settings.lives = lives;
        self
    }

    /// One more variable of the environment, in the place of one with the same name.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let name = name.as_ref().as_bytes();
        let environment = &mut self.request.environment;
        environment.retain(|(other, _)| other != name);
        environment.push((name.to_vec(), value.as_ref().as_bytes().to_vec()));
        self
    }

    /// The whole environment, in the place of the caller's.
    #[must_use]
    pub fn environment(
        mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        self.request.environment = bytes_of(variables);
        self
    }

    /// The working directory.
    #[must_use]
    pub fn directory(mut self, directory: impl AsRef<OsStr>) -> Self {
        self.request.directory = directory.as_ref().as_bytes().to_vec();
        self
    }

    /// What it reads; nothing, unless told otherwise.
    #[must_use]
    pub fn stdin(self, from: Stdio) -> Self {
        self.stream(0, from)
    }

    /// Where its standard output goes; to the output of the job, unless told otherwise.
    #[must_use]
    pub fn stdout(self, to: Stdio) -> Self {
        self.stream(1, to)
    }

    /// Where its standard error goes; to that of the job, unless told otherwise.
    #[must_use]
    pub fn stderr(self, to: Stdio) -> Self {
        self.stream(2, to)
    }

    fn stream(mut self, place: usize, stdio: Stdio) -> Self {
        let piped = stdio == Stdio::Piped;
        self.piped[place] = piped;
        self.request.stdio[place] = stdio.wanted();
        self
    }

    /// A channel that gets one message when the process has ended:
    /// [`ExitNotice`](dragon_protocol::control::ExitNotice).
    #[must_use]
    pub fn notify(mut self, channel: &Channel) -> Self {
        self.request.notify = Some(channel.descriptor().object);
        self
    }

    /// The request alone, for many processes of one kind.
    pub(crate) fn into_request(self) -> Result<SpawnRequest, &'static str> {
        if self.piped.contains(&true) {
            return Err(
                "the members of a group share no pipe: forward their output, or name a file",
            );
        }
        Ok(self.request)
    }

    /// Starts the process.
    ///
    /// # Errors
    /// When there is no runtime, or the program cannot be started; the text says which and why.
    pub fn start(self) -> Result<Child> {
        let mut results = Self::start_all(vec![self])?;
        // `start_all` gives one result for each request.
        results
            .pop()
            .unwrap_or_else(|| Err(Error::Defect("no result".to_owned())))
    }

    /// Starts processes, all on their way with one request. One result each, in order.
    ///
    /// # Errors
    /// When the request as a whole failed.
    pub fn start_all(spawns: Vec<Self>) -> Result<Vec<Result<Child>>> {
        let session = Session::attach_or_start()?;
        let asked = spawns.len();
        let mut requests = Vec::with_capacity(asked);
        let mut pipes = Vec::with_capacity(asked);
        for Self { mut request, piped } in spawns {
            let mut channels = [None, None, None];
            for place in (0..3).filter(|place| piped[*place]) {
                let channel = stdio::channel()?;
                request.stdio[place] = Wanted::Channel(channel.descriptor().object);
                channels[place] = Some(channel);
            }
            requests.push(request);
            pipes.push(channels);
        }
        // Without a wait it is soon told, and an answer for some of them would be no help.
        let results = match session.request_until_signal(&ClientRequest::Spawn(requests))? {
            ClientReply::Spawned(results) if results.len() == asked => results,
            other => return Err(unexpected(&format!("{asked} processes"), &other)),
        };
        let child = |(result, channels): (_, [Option<Channel>; 3])| match result {
            Ok(dragon_protocol::control::Spawned { process, pid }) => {
                let descriptor = Descriptor {
                    runtime: session.runtime(),
                    object: process,
                    user: 0,
                };
                let process = Process::attach(descriptor, true)?;
                let [input, output, error] = channels;
                let read = |channel: Option<Channel>| {
                    let read = |channel| ChildOutput::new(channel, &process, session.node());
                    channel.map(read).transpose()
                };
                Ok(Child {
                    pid,
                    stdin: input.map(ChildInput::new),
                    stdout: read(output)?,
                    stderr: read(error)?,
                    process,
                })
            }
            Err((code, text)) => Err(Error::Daemon { code, text }),
        };
        Ok(results.into_iter().zip(pipes).map(child).collect())
    }
}

impl Process {
    /// Sends a signal to the process. One that has ended takes no notice: that is an error that names no such object, or nothing.
    ///
    /// # Errors
    /// When the number is no signal, or the process's node is down.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.send_signal(signal, Reach::Process)
    }

    /// Sends a signal to the process, to its process group, and to every process that descends from it. SIGKILL finds all of
    /// them stopped, so that none starts another one in between. One that has left the group and lost its parent is not found:
    /// it ends with the runtime.
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn signal_tree(&self, signal: i32) -> Result<()> {
        self.send_signal(signal, Reach::Tree)
    }

    fn send_signal(&self, signal: i32, reach: Reach) -> Result<()> {
        let request = ClientRequest::Signal {
            process: self.descriptor().object,
            signal,
            reach,
        };
        match Session::attach()?.request(&request)? {
            ClientReply::Done => Ok(()),
            other => Err(unexpected("a signal to be sent", &other)),
        }
    }
}

/// Waits until one of the processes has ended, of any node; its place and its status as `waitpid` gives it. Of several that
/// have ended, it is the first in the list.
///
/// ```no_run
/// use dragon::{Deadline, Spawn, wait_any};
///
/// let children = Spawn::start_all(vec![Spawn::program("first"), Spawn::program("second")])?;
/// let children = children.into_iter().collect::<Result<Vec<_>, _>>()?;
/// let processes: Vec<_> = children.iter().map(|child| &child.process).collect();
/// let (place, status) = wait_any(&processes, Deadline::Never)?;
/// println!("number {place} ended with {status}");
/// # Ok::<(), dragon::Error>(())
/// ```
///
/// # Errors
/// As [`Process::wait`]; [`Code::InvalidArgument`](crate::Code::InvalidArgument) for an empty list.
pub fn wait_any(processes: &[&Process], deadline: Deadline) -> Result<(usize, i32)> {
    let count = u32::try_from(processes.len()).unwrap_or(u32::MAX);
    if let [only] = processes {
        return Ok((0, only.wait(deadline)?));
    }
    if count == 0 {
        return Err(Error::InvalidArgument(
            "no process to wait for: the list is empty".to_owned(),
        ));
    }
    let set = Set::create(count, 0)?;
    for (token, process) in (0..).zip(processes) {
        set.add(&process.descriptor(), Interest::READABLE, token)?;
    }
    let ready = set.wait(deadline)?;
    let first = ready.iter().map(|ready| ready.token).min();
    let place = first
        .and_then(|token| usize::try_from(token).ok())
        .filter(|place| *place < processes.len())
        .ok_or_else(|| Error::Defect("a set without members is ready".to_owned()))?;
    // One whose node is lost says so here.
    Ok((place, processes[place].wait(Deadline::Now)?))
}

/// Waits until all the processes have ended; their statuses as `waitpid` gives them.
///
/// # Errors
/// As [`Process::wait`]; processes that have ended can be waited for again.
pub fn wait_all(processes: &[&Process], deadline: Deadline) -> Result<Vec<i32>> {
    processes
        .iter()
        .map(|process| process.wait(deadline))
        .collect()
}

fn inherited_environment() -> Vec<(Vec<u8>, Vec<u8>)> {
    bytes_of(env::vars_os())
}

fn bytes_of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    variables
        .into_iter()
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .collect()
}

/// The working directory, or empty (the daemon's) when it was removed.
fn inherited_directory() -> Vec<u8> {
    env::current_dir()
        .map(|directory| directory.into_os_string().into_vec())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_inherits_and_overrides() {
        let spawn = Spawn::program("a").arg("b").node(NodeIndex::FIRST);
        assert_eq!(
            spawn.request.program,
            Program::Executable(vec![b"a".to_vec(), b"b".to_vec()])
        );
        assert_eq!(spawn.request.place, Place::Node(NodeIndex::FIRST));
        assert_eq!(spawn.request.directory, inherited_directory());
        assert_eq!(spawn.request.environment, inherited_environment());

        let odd = OsString::from_vec(vec![0xff]);
        let spawn = spawn
            .environment([("X".into(), odd)])
            .directory("/")
            .stdout(Stdio::Null);
        assert_eq!(spawn.request.environment, [(b"X".to_vec(), vec![0xff])]);
        assert_eq!(spawn.request.directory, b"/");
        assert_eq!(spawn.request.stdio[1], Wanted::Null);
    }
}
