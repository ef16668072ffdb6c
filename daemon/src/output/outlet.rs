//! The daemon's own standard output and error: a thread that writes what the processes of the job say.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use crate::journal::say;
use crate::services::Event;

/// Pieces of output that may wait for a slow reader.
const QUEUE: usize = 16;

/// What the writing thread gets.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes for standard output, or with `true` for standard error.
    Bytes(bool, Vec<u8>),
    /// To be answered when everything before it is written.
    Flush(oneshot::Sender<()>),
}

/// The way to that thread, which ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Outlet {
    queue: mpsc::Sender<Piece>,
    lost: Arc<AtomicBool>,
}

impl Outlet {
    /// Starts the thread. It tells by [`Event::OutputRefused`] when a reader has gone.
    pub(super) fn start(events: mpsc::Sender<Event>) -> io::Result<Self> {
        let (queue, pieces) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicBool::new(false));
        let mut writer = Writer {
            refused: [false; 2],
            lost: lost.clone(),
            events,
        };
        thread::Builder::new()
            .name("output".to_owned())
            .stack_size(256 << 10)
            .spawn(move || writer.run(pieces))?;
        Ok(Self { queue, lost })
    }

    /// Passes a piece on, waiting while the queue is full.
    pub(super) async fn pass(&self, piece: Piece) -> Result<(), mpsc::error::SendError<Piece>> {
        self.queue.send(piece).await
    }

    /// Whether something could not be written that somebody wanted to read.
    pub(super) fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

struct Writer {
    /// Of standard output and of standard error: its reader has gone.
    refused: [bool; 2],
    lost: Arc<AtomicBool>,
    events: mpsc::Sender<Event>,
}

impl Writer {
    fn run(&mut self, mut pieces: mpsc::Receiver<Piece>) {
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                Piece::Bytes(is_error, bytes) => self.write(is_error, &bytes),
                Piece::Flush(done) => drop(done.send(())),
            }
        }
    }

    fn write(&mut self, is_error: bool, bytes: &[u8]) {
        if self.refused[usize::from(is_error)] {
            return;
        }
        match write_all(is_error, bytes) {
            Ok(()) => {}
            // A reader that went away wants no more. The programs learn of it by their own writes, as in a pipe of the shell.
            Err(Errno::PIPE) => {
                self.refused[usize::from(is_error)] = true;
                let _ = self.events.blocking_send(Event::OutputRefused(is_error));
            }
            // A full disk may have room again later: what is said then is written.
            Err(error) if !self.lost.swap(true, Ordering::AcqRel) => say(&format!(
                "output of the job is lost: it cannot be written: {}",
                io::Error::from(error)
            )),
            Err(_) => {}
        }
    }
}

/// Writes all of it, also to a pipe or terminal that does not block.
fn write_all(is_error: bool, bytes: &[u8]) -> Result<(), Errno> {
    // Between pieces of others that write to the same.
    let (out, error) = (io::stdout(), io::stderr());
    let _out = (!is_error).then(|| out.lock());
    let _error = is_error.then(|| error.lock());
    let fd = if is_error {
        rustix::stdio::stderr()
    } else {
        rustix::stdio::stdout()
    };
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(fd, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for_room(fd)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Without a limit: a slow reader may be. It is the thread of this alone that waits, and it ends with the process.
fn wait_for_room(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut room = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    match rustix::event::poll(&mut room, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}
