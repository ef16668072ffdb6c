//! Starting processes on the nodes of the runtime.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use dragon_protocol::control::{ClientReply, ClientRequest, Output, Program, SpawnRequest};
use dragon_protocol::{Descriptor, NodeIndex};

use crate::error::{Error, Result};
use crate::objects::{Channel, Process};
use crate::session::{Session, unexpected};

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
}

/// A process that was started.
#[derive(Debug)]
pub struct Child {
    /// The process.
    pub process: Process,
    /// Its id on its node.
    pub pid: u32,
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
            payload,
        })
    }

    fn new(program: Program) -> Self {
        Self {
            request: SpawnRequest {
                node: None,
                program,
                environment: inherited_environment(),
                directory: inherited_directory(),
                output: Output::Forward,
                notify: None,
            },
        }
    }

    /// One more argument of an executable. A Python worker has none: its payload says everything.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        if let Program::Executable(words) = &mut self.request.program {
            words.push(arg.as_ref().as_bytes().to_vec());
        }
        self
    }

    /// The node to run on. Otherwise the placement policy decides: DRAGON_PLACEMENT is `roundrobin`, `local` or `remote`.
    #[must_use]
    pub fn node(mut self, node: NodeIndex) -> Self {
        self.request.node = Some(node);
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

    /// Where standard output and error go; to the output of the job, unless told otherwise.
    #[must_use]
    pub fn output(mut self, output: Output) -> Self {
        self.request.output = output;
        self
    }

    /// A channel that gets one message when the process has ended:
    /// [`ExitNotice`](dragon_protocol::control::ExitNotice).
    #[must_use]
    pub fn notify(mut self, channel: &Channel) -> Self {
        self.request.notify = Some(channel.descriptor().object);
        self
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
        let requests = spawns.into_iter().map(|spawn| spawn.request).collect();
        let results = match session.request(&ClientRequest::Spawn(requests))? {
            ClientReply::Spawned(results) if results.len() == asked => results,
            other => return Err(unexpected(&format!("{asked} processes"), &other)),
        };
        let child = |result| match result {
            Ok(dragon_protocol::control::Spawned { process, pid }) => {
                let descriptor = Descriptor {
                    runtime: session.runtime(),
                    object: process,
                    user: 0,
                };
                let process = Process::attach(descriptor, true)?;
                Ok(Child { process, pid })
            }
            Err((code, text)) => Err(Error::Daemon { code, text }),
        };
        Ok(results.into_iter().map(child).collect())
    }
}

impl Process {
    /// Sends a signal to the process. One that has ended takes no notice: that is an error that names no such object, or nothing.
    ///
    /// # Errors
    /// When the number is no signal, or the process's node is down.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let request = ClientRequest::Signal {
            process: self.descriptor().object,
            signal,
        };
        match Session::attach()?.request(&request)? {
            ClientReply::Done => Ok(()),
            other => Err(unexpected("a signal to be sent", &other)),
        }
    }
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
        assert_eq!(spawn.request.node, Some(NodeIndex::FIRST));
        assert_eq!(spawn.request.directory, inherited_directory());
        assert_eq!(spawn.request.environment, inherited_environment());

        let odd = OsString::from_vec(vec![0xff]);
        let spawn = spawn
            .environment([("X".into(), odd)])
            .directory("/")
            .output(Output::Null);
        assert_eq!(spawn.request.environment, [(b"X".to_vec(), vec![0xff])]);
        assert_eq!(spawn.request.directory, b"/");
        assert_eq!(spawn.request.output, Output::Null);
    }
}
