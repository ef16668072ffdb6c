//! Output of the node's processes: whole lines, in order, without unbounded memory.
//!
//! Each process's pipe is read by a task of its own, which hands complete lines on: to a thread that writes them to the
//! daemon's own output, or up the tree. Both have a bounded queue: when the terminal or the network is slow, the pipe
//! fills and the process waits, as it would at a pipe of the shell.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::thread;

use dragon_protocol::control::PeerMessage;
use dragon_transport::descriptors::Frees;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::link::Link;

/// The longest line that is kept whole; a longer one is passed on in pieces.
const LONGEST_LINE: usize = 64 << 10;
/// Pieces of output that may wait for a slow reader.
const QUEUE: usize = 64;

/// What the writing thread gets.
#[derive(Debug)]
pub enum Piece {
    /// Bytes for standard output, or with `true` for standard error.
    Bytes(bool, Vec<u8>),
    /// To be answered when everything before it is written.
    Flush(oneshot::Sender<()>),
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
            Self::Parent(link) => link.send(PeerMessage::Output(is_error, bytes)).await,
        }
    }

    /// Waits until everything is written, or on its way up the tree.
    pub async fn flush(&self) {
        if let Self::Own(queue) = self {
            let (done, written) = oneshot::channel();
            if queue.send(Piece::Flush(done)).await.is_ok() {
                let _ = written.await;
            }
        }
    }

    /// Reads one end of a process's pipe until the other ends are closed.
    ///
    /// # Errors
    /// When the descriptor is no pipe.
    pub fn follow(&self, is_error: bool, end: OwnedFd) -> io::Result<JoinHandle<()>> {
        let end = pipe::Receiver::from_owned_fd(end)?;
        let sink = self.clone();
        Ok(tokio::spawn(async move {
            let _frees = Frees;
            let mut end = end;
            let mut line = Vec::with_capacity(4096);
            loop {
                let read = end.read_buf(&mut line).await.unwrap_or(0);
                let whole = match line.iter().rposition(|byte| *byte == b'\n') {
                    _ if read == 0 || line.len() >= LONGEST_LINE => line.len(),
                    last => last.map_or(0, |at| at + 1),
                };
                if whole > 0 {
                    let rest = line.split_off(whole);
                    sink.write(is_error, std::mem::replace(&mut line, rest))
                        .await;
                }
                if read == 0 {
                    return;
                }
            }
        }))
    }
}

fn write_out(piece: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(piece)?;
    out.flush()
}
