//! What processes read and print, by channels of whoever started them.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use dragon_channels::{ChannelOptions, Interest};
use dragon_protocol::process::Stdio as Wanted;
use dragon_protocol::{Code, NodeIndex};
use dragon_shmem::Deadline;

use crate::error::{Error, Result};
use crate::objects::{Channel, Message, Process};
use crate::set::Set;

/// Pieces that wait for a slow reader before the writer has to wait too.
const PIECES: u32 = 16;
/// The longest piece that is written at once.
const PIECE: usize = 16 << 10;
const OUTPUT: u64 = 1;
const PROCESS: u64 = 2;

/// Where a process reads from, or where it prints to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stdio {
    /// Output goes to the output of the job, whole lines at a time. Input: nothing.
    Forward,
    /// Nowhere, and from nowhere.
    Null,
    /// The standard input or output of the daemon on the process's node: of a runtime on one machine, the terminal.
    Inherit,
    /// By a channel of this process: [`Child`](crate::Child) has the other end. A process that prints more than is read waits.
    /// The channel goes with this process.
    Piped,
    /// Standard error goes where standard output goes.
    Merge,
    /// A file on the process's node; a relative path begins at its working directory. What an output file held is gone.
    File(PathBuf),
    /// A file on the process's node at whose end output is added.
    Append(PathBuf),
}

impl Stdio {
    /// In the words of the protocol. A pipe is a channel that is made when the process is started.
    pub(crate) fn wanted(self) -> Wanted {
        let file = |path: PathBuf, append| Wanted::File {
            path: OsString::from(path).into_vec(),
            append,
        };
        match self {
            Self::Forward => Wanted::Forward,
            Self::Null | Self::Piped => Wanted::Null,
            Self::Inherit => Wanted::Inherit,
            Self::Merge => Wanted::Merge,
            Self::File(path) => file(path, false),
            Self::Append(path) => file(path, true),
        }
    }
}

/// A channel for what a process reads or prints.
pub(crate) fn channel() -> Result<Channel> {
    Channel::create(&ChannelOptions {
        capacity: PIECES,
        ..ChannelOptions::default()
    })
}

/// What a process prints. Dropping it is like closing a pipe: a process that goes on printing gets SIGPIPE.
#[derive(Debug)]
pub struct ChildOutput {
    channel: Channel,
    /// For a process of another node: its output, so that the loss of the node is noticed.
    far: Option<Far>,
    /// What was received and not yet read, and how much of it was.
    piece: Option<(Message, usize)>,
    ended: bool,
}

/// What is watched of a process of another node.
#[derive(Debug)]
struct Far {
    /// The channel, and the process.
    both: Set,
    /// The set does not keep it, and whoever started it may have dropped its own handle.
    _process: Process,
}

impl Far {
    /// That the process ends says nothing: its last output may be on its way, or a process that it has started goes on writing.
    fn watch(channel: &Channel, process: &Process) -> Result<Self> {
        let both = Set::create(2, 0)?;
        both.add(&channel.descriptor(), Interest::READABLE, OUTPUT)?;
        both.add(&process.descriptor(), Interest::LOST, PROCESS)?;
        Ok(Self {
            both,
            _process: Process::attach(process.descriptor(), false)?,
        })
    }
}

impl ChildOutput {
    pub(crate) fn new(channel: Channel, process: &Process, node: NodeIndex) -> Result<Self> {
        let far = process.descriptor().object.node != node;
        let watch = || Far::watch(&channel, process);
        Ok(Self {
            far: far.then(watch).transpose()?,
            channel,
            piece: None,
            ended: false,
        })
    }

    /// The next piece of what the process prints; `None` at the end.
    ///
    /// # Errors
    /// [`Code::Timeout`] when nothing came in time, [`Code::NodeDown`] when the process's node is lost.
    pub fn receive(&mut self, deadline: Deadline) -> Result<Option<Message>> {
        if self.ended {
            return Ok(None);
        }
        if let Some(far) = &self.far {
            let ready = far.both.wait(deadline)?;
            // What has come is read first.
            if ready.iter().all(|ready| ready.token == PROCESS) {
                self.ended = true;
                let text = "the node of the process is lost, and what it printed last with it";
                return Err(Error::Daemon {
                    code: Code::NodeDown,
                    text: text.to_owned(),
                });
            }
        }
        let message = self.channel.receive(deadline)?;
        self.ended = message.is_empty();
        Ok((!self.ended).then_some(message))
    }
}

impl Read for ChildOutput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_none() {
            let piece = self.receive(Deadline::Never).map_err(to_io)?;
            self.piece = piece.map(|message| (message, 0));
        }
        let Some((message, done)) = &mut self.piece else {
            return Ok(0);
        };
        let read = message.copy_to(*done, buffer);
        *done += read;
        if *done == message.len() {
            self.piece = None;
        }
        Ok(read)
    }
}

impl Drop for ChildOutput {
    fn drop(&mut self) {
        // The daemon of the process learns that nobody reads. When it is gone already there is nobody to tell.
        let _ = self.channel.destroy();
    }
}

/// What a process reads. Dropping it ends the process's input.
#[derive(Debug)]
pub struct ChildInput {
    /// `None` when the end has a thread of its own.
    channel: Option<Channel>,
}

impl ChildInput {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            channel: Some(channel),
        }
    }

    fn channel(&self) -> Result<&Channel> {
        // Only `drop` takes it.
        let gone = || Error::Defect("an input without its channel".to_owned());
        self.channel.as_ref().ok_or_else(gone)
    }

    /// Sends a piece of input; an empty one does nothing.
    ///
    /// # Errors
    /// [`Code::Timeout`] when the process did not read in time, [`Code::Destroyed`] when it reads no more.
    pub fn send(&self, piece: &[u8], deadline: Deadline) -> Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        self.channel()?.send(piece, 0, deadline)
    }

    /// Ends the input, waiting until there is room for saying so.
    ///
    /// # Errors
    /// As [`ChildInput::send`]. Dropping the input afterwards ends it all the same, without what was not sent.
    pub fn close(&self, deadline: Deadline) -> Result<()> {
        self.channel()?.send(&[], 0, deadline)
    }
}

impl Write for ChildInput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        self.send(piece, Deadline::Never).map_err(to_io)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ChildInput {
    fn drop(&mut self) {
        let full = matches!(self.close(Deadline::Now), Err(error) if error.code() == Code::Full);
        if let Some(channel) = self.channel.take().filter(|_| full) {
            // The process does not read, and the end comes behind what was written: nobody here waits for that. The thread
            // ends with the process, which takes the channel with it.
            let end = move || drop(channel.send(&[], 0, Deadline::Never));
            let _ = std::thread::Builder::new().spawn(end);
        }
    }
}

fn to_io(error: Error) -> io::Error {
    let kind = match error.code() {
        Code::Destroyed | Code::NoSuchObject => io::ErrorKind::BrokenPipe,
        Code::Timeout => io::ErrorKind::TimedOut,
        Code::Interrupted => io::ErrorKind::Interrupted,
        Code::NodeDown | Code::Unreachable => io::ErrorKind::ConnectionAborted,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
