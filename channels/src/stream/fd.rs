//! Streams as file descriptors, for programs that read and write: a pump, a thread that carries bytes between a conversation
//! and a pipe.
//!
//! The end of the file is the end of the conversation and the other way round. Nothing polls at intervals: the pump sleeps until
//! its descriptor is ready, or in the wait for its conversation. A sender's pump has a second thread, its *lookout*, which sleeps
//! until the receiver has ended and then makes an eventfd ready: so the pump notices while its descriptor is silent. A
//! receiver's pump notices that nobody reads any more with the next chunk.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use dragon_shmem::Deadline;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use super::sender::Peer;
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
        let thread = spawn("dragon-stream", work)?;
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
    /// last copy of it is closed, the conversation ends. When the receiver ends first, [`Pump::join`] says so, and who writes
    /// to the descriptor gets `EPIPE`. The descriptor is closed on exec; give it to a child as its standard output.
    ///
    /// # Errors
    /// When the kernel refuses a pipe or a thread. When it refuses what is needed to notice the receiver's end, the
    /// conversation is broken off, and [`Pump::join`] says why.
    pub fn into_fd(self) -> Result<(OwnedFd, Pump)> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|errno| of_errno("pipe2", errno))?;
        let sending = Sending {
            sender: self,
            from: read.into(),
        };
        Ok((write, Pump::start(move || sending.run())?))
    }
}

/// What the pump of a sender has.
#[derive(Debug)]
struct Sending {
    sender: StreamSender,
    from: File,
}

impl Sending {
    fn run(mut self) -> Result<u64> {
        // Here and not where the pump is started: should that fail, nobody would wait for the lookout. It goes before the
        // sender, in whose conversation it sleeps.
        let mut lookout = None;
        let carried = match self.sender.peer().map(Lookout::start).transpose() {
            Ok(started) => {
                lookout = started;
                self.carry(lookout.as_ref())
            }
            Err(error) => Err(error),
        };
        if let Some(lookout) = &mut lookout {
            lookout.stop();
        }
        let ended = match &carried {
            Ok(_) => self.close(),
            // What was sent is not the whole.
            Err(_) => self.sender.abort(),
        };
        if let Some(lookout) = &mut lookout {
            lookout.join();
        }
        // Whatever ended it is told before what failed afterwards.
        carried.and_then(|carried| ended.map(|()| carried))
    }

    fn close(&mut self) -> Result<()> {
        loop {
            match self.sender.close(Deadline::Never) {
                Err(Error::Interrupted) => {}
                other => return other,
            }
        }
    }

    fn carry(&mut self, lookout: Option<&Lookout>) -> Result<u64> {
        let mut buffer = vec![0; CHUNK];
        let mut carried = 0;
        loop {
            if let Some(lookout) = lookout {
                lookout.wait_readable(&self.from)?;
            }
            let length = match self.from.read(&mut buffer) {
                Ok(0) => return Ok(carried),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(system("read", &error)),
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            while let Err(error) = self.sender.send(bytes, 0, Deadline::Never) {
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

/// Who waits for the receiver's end while a pump waits for its descriptor.
#[derive(Debug)]
struct Lookout {
    seen: Arc<Seen>,
    /// `None` once it was waited for.
    thread: Option<JoinHandle<()>>,
}

/// What a lookout shares with its pump.
#[derive(Debug)]
struct Seen {
    peer: Peer,
    /// An eventfd: ready when there is a reason.
    ready: OwnedFd,
    /// Why the sender cannot go on.
    reason: OnceLock<Error>,
}

impl Lookout {
    fn start(peer: Peer) -> Result<Self> {
        let ready = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|errno| of_errno("eventfd", errno))?;
        let seen = Arc::new(Seen {
            peer,
            ready,
            reason: OnceLock::new(),
        });
        let theirs = Arc::clone(&seen);
        let thread = spawn("dragon-lookout", move || theirs.look())?;
        Ok(Self {
            seen,
            thread: Some(thread),
        })
    }

    /// Waits until there is something to read, or the end of the file.
    fn wait_readable(&self, from: &File) -> Result<()> {
        loop {
            let mut both = [from.as_fd(), self.seen.ready.as_fd()]
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match rustix::event::poll(&mut both, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(of_errno("poll", errno)),
            }
            // The descriptor first: what is there up to its end was written in good order.
            if !both[0].revents().is_empty() {
                return Ok(());
            }
            if let Some(reason) = self.seen.reason.get() {
                return Err(reason.clone());
            }
        }
    }

    /// The sender is about to end.
    fn stop(&mut self) {
        if self.seen.peer.stop() {
            self.join();
        }
    }

    /// The sender has ended.
    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic there was reported, and concerns nobody here.
            let _ = thread.join();
        }
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        // Once it was waited for the conversation may be over, and its memory another's.
        if self.thread.is_some() {
            self.stop();
        }
    }
}

impl Seen {
    fn look(&self) {
        // Whatever else keeps it from waiting says nothing of the receiver: the sender finds its end with the next chunk.
        if let Err(reason) = self.peer.watch()
            && ends_the_conversation(&reason)
        {
            // Before the descriptor: who finds it ready finds the reason.
            let _ = self.reason.set(reason);
            // It cannot fail: the counter is far from its limit.
            let _ = rustix::io::write(&self.ready, &1_u64.to_ne_bytes());
        }
    }
}

/// Whether a sender cannot go on for this reason.
fn ends_the_conversation(reason: &Error) -> bool {
    matches!(
        reason,
        Error::PeerClosed(_)
            | Error::PeerDied(_)
            | Error::Destroyed(_)
            | Error::NodeDown(_)
            | Error::Memory(dragon_shmem::Error::NoSuchObject(_))
    )
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(work).map_err(|error| system("clone", &error))
}

fn of_errno(call: &'static str, errno: Errno) -> Error {
    dragon_shmem::Error::System { call, errno }.into()
}

fn system(call: &'static str, error: &io::Error) -> Error {
    of_errno(call, Errno::from_io_error(error).unwrap_or(Errno::IO))
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use dragon_protocol::Code;

    use super::*;
    use crate::fixture::{Filled, Node};
    use crate::{Endpoint, EndpointOptions};

    #[test]
    fn only_what_ends_a_conversation_ends_its_pump() {
        let node = Node::new();
        let endpoint = Endpoint::create(&node.member(), &EndpointOptions::default()).unwrap();
        let id = endpoint.id();
        for (reason, ends) in [
            (Error::PeerClosed(id), true),
            (Error::PeerDied(id), true),
            (Error::Destroyed(id), true),
            (Error::NodeDown(id), true),
            (dragon_shmem::Error::NoSuchObject(id).into(), true),
            (Error::NoGateway(id.node, id), false),
            (Error::Remote(Code::TableFull, id), false),
            (Error::Remote(Code::Unreachable, id), false),
            (Error::Interrupted, false),
        ] {
            assert_eq!(ends_the_conversation(&reason), ends, "{reason}");
        }
    }

    /// What the pump does when the receiver has closed, with another who takes the conversation's memory in between.
    #[test]
    fn a_lookout_leaves_the_memory_of_a_conversation_that_is_over_alone() {
        let node = Node::new();
        let options = EndpointOptions {
            streams: 1,
            kept: 0,
            ..EndpointOptions::default()
        };
        let member = node.member();
        let endpoint = Endpoint::create(&member, &options).unwrap();
        let before = node.used();
        let sender = endpoint.open_send(Deadline::Now).unwrap();
        let channel = node.used() - before;
        let receiver = endpoint.accept(Deadline::Now).unwrap();
        let mut lookout = Lookout::start(sender.peer().unwrap()).unwrap();
        receiver.close().unwrap();
        lookout.stop();
        sender.abort().unwrap();
        assert_eq!(node.used(), before, "the stream channel was given back");
        let others: Vec<_> = (0..16).map(|_| Filled::new(&member, channel)).collect();
        drop(lookout);
        assert!(others.iter().all(Filled::is_unchanged));
    }
}
