//! Streams as file descriptors, for programs that read and write: a pump, a thread that carries bytes between a conversation
//! and a pipe.
//!
//! The end of the file is the end of the conversation and the other way round. Nothing polls: the pump sleeps in `read`, in
//! `write`, or in the wait for its conversation, and each of these ends when the other side does.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

use dragon_shmem::Deadline;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use super::{StreamReceiver, StreamSender};
use crate::error::{Error, Result};

/// Bytes that the pump carries at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// The thread behind a file descriptor.
///
/// ```
/// use std::io::{Read, Write};
///
/// use dragon_channels::local::LocalNode;
/// use dragon_channels::{Deadline, Endpoint, EndpointOptions};
///
/// let node = LocalNode::new()?;
/// let endpoint = Endpoint::create(&node.member()?, &EndpointOptions::default())?;
/// let (writing, sending) = endpoint.open_send(Deadline::Never)?.into_fd()?;
/// let (reading, receiving) = endpoint.accept(Deadline::Never)?.into_fd()?;
/// let mut file = std::fs::File::from(writing);
/// file.write_all(b"for programs that know files only")?;
/// drop(file);
/// let mut text = String::new();
/// std::fs::File::from(reading).read_to_string(&mut text)?;
/// assert_eq!(text.len() as u64, sending.join()?);
/// assert_eq!(text.len() as u64, receiving.join()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
/// Dropping it leaves the thread at work; [`Pump::join`] waits for its end.
#[derive(Debug)]
pub struct Pump {
    thread: JoinHandle<Result<u64>>,
}

impl Pump {
    fn start(work: impl FnOnce() -> Result<u64> + Send + 'static) -> Result<Self> {
        let thread = thread::Builder::new()
            .name("dragon-stream".to_owned())
            .spawn(work)
            .map_err(|error| system("clone", &error))?;
        Ok(Self { thread })
    }

    /// Waits until the conversation has ended or the descriptor is closed; returns how many bytes were carried.
    ///
    /// # Errors
    /// What ended the pump before the end: [`Error::PeerDied`], [`Error::PeerClosed`], [`Error::Destroyed`], or a call of the
    /// system that failed, such as writing to a pipe that nobody reads any more.
    pub fn join(self) -> Result<u64> {
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Whether the pump has ended, so that [`Pump::join`] would not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

impl StreamSender {
    /// Makes a descriptor of the sender: what is written to it is sent, in chunks as they come, with argument 0. When the
    /// last copy of it is closed, the conversation ends. The descriptor is closed on exec; give it to a child as its standard
    /// output.
    ///
    /// # Errors
    /// When the kernel refuses a pipe or a thread.
    pub fn into_fd(mut self) -> Result<(OwnedFd, Pump)> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|errno| of_errno("pipe2", errno))?;
        let pump = Pump::start(move || {
            let carried = self.carry(read.into());
            match &carried {
                Ok(_) => self.close(Deadline::Never)?,
                // What was sent is not the whole.
                Err(_) => self.abort()?,
            }
            carried
        })?;
        Ok((write, pump))
    }

    fn carry(&mut self, mut from: File) -> Result<u64> {
        let mut buffer = vec![0; CHUNK];
        let mut carried = 0;
        loop {
            let length = match from.read(&mut buffer) {
                Ok(0) => return Ok(carried),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(system("read", &error)),
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            while let Err(error) = self.send(bytes, 0, Deadline::Never) {
                if error != Error::Interrupted {
                    return Err(error);
                }
            }
            carried += length as u64;
        }
    }
}

impl StreamReceiver {
    /// Makes a descriptor of the receiver: what comes can be read from it, up to the end of the conversation. The arguments
    /// of chunks are dropped. The descriptor (a socket) is closed on exec; give it to a child as its standard input. A
    /// conversation that breaks off looks like one that ends to the reader; [`Pump::join`] tells.
    ///
    /// # Errors
    /// When the kernel refuses sockets or a thread.
    pub fn into_fd(mut self) -> Result<(OwnedFd, Pump)> {
        // Sockets, not a pipe: the pump must not be hit by SIGPIPE in a process that knows nothing of it.
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| of_errno("socketpair", errno))?;
        rustix::net::shutdown(&ours, Shutdown::Read)
            .map_err(|errno| of_errno("shutdown", errno))?;
        let pump = Pump::start(move || self.carry(&ours))?;
        Ok((theirs, pump))
    }

    fn carry(&mut self, to: &OwnedFd) -> Result<u64> {
        let mut buffer = vec![0; CHUNK];
        let mut carried = 0;
        loop {
            let part = match self.receive_into(&mut buffer, Deadline::Never) {
                Ok(part) => part,
                Err(Error::Interrupted) => continue,
                Err(Error::EndOfStream(_)) => return Ok(carried),
                Err(error) => return Err(error),
            };
            let mut left = buffer.get(..part.length).unwrap_or_default();
            while !left.is_empty() {
                match rustix::net::send(to, left, SendFlags::NOSIGNAL) {
                    Ok(sent) => left = left.get(sent..).unwrap_or_default(),
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(of_errno("send", errno)),
                }
            }
            carried += part.length as u64;
        }
    }
}

fn of_errno(call: &'static str, errno: Errno) -> Error {
    dragon_shmem::Error::System { call, errno }.into()
}

fn system(call: &'static str, error: &io::Error) -> Error {
    of_errno(call, Errno::from_io_error(error).unwrap_or(Errno::IO))
}
