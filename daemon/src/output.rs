//! Output of the node's processes: whole lines, in order, without unbounded memory.
//!
//! Each process's pipe is read by a task of its own, which hands complete lines on: to a thread that writes them to the
//! daemon's own output, or up the tree. Both have a bounded queue: when the terminal or the network is slow, the pipe
//! fills and the process waits, as it would at a pipe of the shell. Only those who write wait: what daemons tell each other
//! has a queue of its own ([`crate::link`]).

mod lines;

use std::cell::RefCell;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::thread;

use dragon_transport::descriptors::Frees;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::lines::Lines;
use crate::link::Link;

/// Pieces of output that may wait for a slow reader.
const QUEUE: usize = 16;
/// As much as is read from a pipe at once: what a pipe holds.
const READ: usize = 64 << 10;

/// What the writing thread gets.
#[derive(Debug)]
pub enum Piece {
    /// Bytes for standard output, or with `true` for standard error.
    Bytes(bool, Vec<u8>),
    /// To be answered when everything before it is written.
    Flush(oneshot::Sender<()>),
}

/// What stands before each line of a process.
#[derive(Clone, Debug)]
pub enum Label {
    /// Nothing.
    None,
    /// A text.
    Text(String),
    /// A text, and the pid of the process, which comes as soon as it is known.
    Process(String, watch::Receiver<u32>),
}

impl Label {
    /// Waits until it is known. `None` when there is no label.
    async fn text(self) -> Option<Vec<u8>> {
        match self {
            Self::None => None,
            Self::Text(text) => Some(format!("{text}: ").into_bytes()),
            Self::Process(text, mut pid) => {
                // Without a process there is no output either.
                let pid = pid.wait_for(|pid| *pid != 0).await.map_or(0, |pid| *pid);
                Some(format!("{text}:{pid}: ").into_bytes())
            }
        }
    }
}

/// Where the output of this node's processes goes.
#[derive(Clone, Debug)]
pub enum Sink {
    /// To the daemon's own standard output and error.
    Own(mpsc::Sender<Piece>),
    /// Up the tree, to the first node.
    Parent(Link),
}

impl Sink {
    /// A sink to the daemon's own output. Its thread ends when the last clone is dropped.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn own() -> io::Result<Self> {
        let (queue, mut pieces) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("output".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                while let Some(piece) = pieces.blocking_recv() {
                    // A reader that went away takes its output with it; the program learns of it by its own writes.
                    let _ = match piece {
                        Piece::Bytes(true, bytes) => io::stderr().lock().write_all(&bytes),
                        Piece::Bytes(false, bytes) => write_out(&bytes),
                        Piece::Flush(done) => {
                            let _ = done.send(());
                            Ok(())
                        }
                    };
                }
            })?;
        Ok(Self::Own(queue))
    }

    /// Passes bytes on, waiting while the queue is full.
    pub async fn write(&self, is_error: bool, bytes: Vec<u8>) {
        match self {
            Self::Own(queue) => drop(queue.send(Piece::Bytes(is_error, bytes)).await),
            Self::Parent(link) => link.send_output(is_error, bytes).await,
        }
    }

    /// Waits until everything is written, or passed on up the tree.
    pub async fn flush(&self) {
        match self {
            Self::Own(queue) => {
                let (done, written) = oneshot::channel();
                if queue.send(Piece::Flush(done)).await.is_ok() {
                    let _ = written.await;
                }
            }
            Self::Parent(link) => link.output_passed_on().await,
        }
    }

    /// Reads one end of a process's pipe until the other ends are closed.
    ///
    /// # Errors
    /// When the descriptor is no pipe.
    pub fn follow(&self, is_error: bool, label: Label, end: OwnedFd) -> io::Result<JoinHandle<()>> {
        let end = pipe::Receiver::from_owned_fd(end)?;
        let sink = self.clone();
        Ok(tokio::spawn(async move {
            let _frees = Frees;
            let end = end;
            let mut lines = Lines::new(label.text().await);
            while let Some(pieces) = next(&end, &mut lines).await {
                for piece in pieces {
                    sink.write(is_error, piece).await;
                }
            }
            if let Some(rest) = lines.end() {
                sink.write(is_error, rest).await;
            }
        }))
    }
}

/// The next lines of a pipe; `None` at its end. Nothing is held for a pipe that says nothing.
async fn next(end: &pipe::Receiver, lines: &mut Lines) -> Option<Vec<Vec<u8>>> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
    }
    loop {
        end.readable().await.ok()?;
        let read = BUFFER.with_borrow_mut(|buffer| match end.try_read(buffer) {
            Ok(0) => Ok(None),
            Ok(read) => Ok(Some(lines.push(&buffer[..read]))),
            Err(error) => Err(error),
        });
        match read {
            Ok(pieces) => return pieces,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

fn write_out(piece: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(piece)?;
    out.flush()
}
