//! Output of the node's processes: whole lines, in order, without unbounded memory.
//!
//! Each process's pipe is read by a task of its own, which hands complete lines on: to a thread that writes them to the
//! daemon's own output, or up the tree. Both have a bounded queue: when the terminal or the network is slow, the pipe
//! fills and the process waits, as it would at a pipe of the shell. Only those who write wait: what daemons tell each other
//! has a queue of its own ([`crate::link`]).

mod lines;
mod outlet;

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use dragon_transport::descriptors::Frees;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::lines::Lines;
use self::outlet::{Outlet, Piece};
use crate::link::Link;
use crate::services::Event;

/// As much as is read from a pipe at once: what a pipe holds.
const READ: usize = 64 << 10;

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
    Own(Outlet),
    /// Up the tree, to the first node.
    Up(watch::Receiver<Way>),
}

/// Where the output of a node goes at the moment.
#[derive(Clone, Debug)]
pub enum Way {
    /// To the node above.
    Parent(Link),
    /// The node is the first of the tree.
    Out(Sink),
    /// Nowhere: the node above is lost, and there is no other yet.
    Nowhere,
}

/// Leads the output of a node up the tree, also when the tree changes.
#[derive(Debug)]
pub struct Upward(Option<watch::Sender<Way>>);

impl Upward {
    /// Output that goes by the node above at first, and the sink for it.
    #[must_use]
    pub fn by(parent: &Link) -> (Self, Sink) {
        let (way, now) = watch::channel(Way::Parent(parent.clone()));
        (Self(Some(way)), Sink::Up(now))
    }

    /// Output that always goes out here.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Leads the output to another node above.
    pub fn lead_to(&self, parent: &Link) {
        let Some(way) = &self.0 else {
            return;
        };
        way.send_if_modified(|now| {
            let same = matches!(now, Way::Parent(link) if link.addresses == parent.addresses);
            if !same {
                *now = Way::Parent(parent.clone());
            }
            !same
        });
    }

    /// The node is the first of the tree now: its output goes to the daemon's own.
    pub fn lead_out(&self, events: &mpsc::Sender<Event>) {
        let Some(way) = self
            .0
            .as_ref()
            .filter(|way| !matches!(*way.borrow(), Way::Out(_)))
        else {
            return;
        };
        match Sink::own(events) {
            Ok(own) => drop(way.send_replace(Way::Out(own))),
            Err(error) => tracing::error!("output of processes cannot be written: {error}"),
        }
    }

    /// The node above is lost: output waits until there is another one.
    pub fn wait(&self) {
        if let Some(way) = &self.0 {
            way.send_if_modified(|now| {
                let by_parent = matches!(now, Way::Parent(_));
                if by_parent {
                    *now = Way::Nowhere;
                }
                by_parent
            });
        }
    }

    /// Nobody takes output any more.
    pub fn close(&mut self) {
        self.0 = None;
    }
}

impl Sink {
    /// A sink to the daemon's own output.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn own(events: &mpsc::Sender<Event>) -> io::Result<Self> {
        Outlet::start(events.clone()).map(Self::Own)
    }

    /// Whether output was lost here that somebody wanted to read.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        match self {
            Self::Own(outlet) => outlet.has_lost(),
            Self::Up(way) => matches!(&*way.borrow(), Way::Out(own) if own.has_lost()),
        }
    }

    /// Passes bytes on, waiting while the queue is full.
    pub async fn write(&self, is_error: bool, bytes: Vec<u8>) {
        let mut bytes = bytes;
        let mut way = match self {
            Self::Own(outlet) => {
                drop(outlet.pass(Piece::Bytes(is_error, bytes)).await);
                return;
            }
            Self::Up(way) => way.clone(),
        };
        loop {
            let now = way.borrow_and_update().clone();
            match now {
                Way::Out(own) => return Box::pin(own.write(is_error, bytes)).await,
                Way::Parent(link) => match link.send_output(is_error, bytes).await {
                    Ok(()) => return,
                    Err(back) => bytes = back,
                },
                Way::Nowhere => {}
            }
            // The node above is gone: there will be another one, or the job ends.
            if way.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until everything is written, or passed on up the tree.
    pub async fn flush(&self) {
        let way = match self {
            Self::Own(_) => None,
            Self::Up(way) => Some(way.borrow().clone()),
        };
        let own = match (self, &way) {
            (Self::Own(outlet), _) | (_, Some(Way::Out(Self::Own(outlet)))) => outlet,
            (_, Some(Way::Parent(link))) => return link.output_passed_on().await,
            _ => return,
        };
        let (done, written) = oneshot::channel();
        if own.pass(Piece::Flush(done)).await.is_ok() {
            let _ = written.await;
        }
    }

    /// Reads one end of a process's pipe until the other ends are closed, or until `refused` says that nobody reads any more:
    /// then whoever writes gets `SIGPIPE`.
    ///
    /// # Errors
    /// When the descriptor is no pipe.
    pub fn follow(
        &self,
        is_error: bool,
        label: Label,
        end: OwnedFd,
        mut refused: watch::Receiver<bool>,
    ) -> io::Result<JoinHandle<()>> {
        let end = pipe::Receiver::from_owned_fd(end)?;
        let sink = self.clone();
        Ok(tokio::spawn(async move {
            let _frees = Frees;
            let end = end;
            let mut lines = Lines::new(label.text().await);
            loop {
                let pieces = tokio::select! {
                    pieces = next(&end, &mut lines) => pieces,
                    Ok(_) = refused.wait_for(|refused| *refused) => return,
                };
                let Some(pieces) = pieces else { break };
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
