//! A step of srun, or another command on a cluster, while it runs: what it says is waited for, but not for ever.

use std::io::Read;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use crate::local::{Finished, WATCHDOG, finish};

/// What comes from a stream. A thread reads it, so that a test that waits for more fails instead of hanging.
#[derive(Debug)]
pub struct Heard {
    pieces: Receiver<Vec<u8>>,
    /// What has come, and nobody has taken.
    text: Vec<u8>,
}

impl Heard {
    /// Listens from now on.
    pub fn of(mut stream: impl Read + Send + 'static) -> Self {
        let (sender, pieces) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut bytes) {
                if sender.send(bytes[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            pieces,
            text: Vec::new(),
        }
    }

    /// Waits until `take` finds what it looks for, and takes all up to the place that it returns. At the end of the stream: what
    /// is left.
    ///
    /// # Panics
    /// When neither comes in time.
    pub fn until(&mut self, what: &str, mut take: impl FnMut(&[u8]) -> Option<usize>) -> String {
        let deadline = Instant::now() + WATCHDOG;
        let taken = loop {
            if let Some(end) = take(&self.text) {
                break end;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.text.extend(piece),
                Err(RecvTimeoutError::Disconnected) => break self.text.len(),
                Err(RecvTimeoutError::Timeout) => panic!(
                    "no {what} within {WATCHDOG:?}; it said: {:?}",
                    String::from_utf8_lossy(&self.text)
                ),
            }
        };
        let text: Vec<u8> = self.text.drain(..taken).collect();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The next line, with its end.
    pub fn line(&mut self) -> String {
        self.until("line", |text| {
            let end = text.iter().position(|byte| *byte == b'\n');
            end.map(|end| end + 1)
        })
    }

    /// All up to the end of the stream.
    pub fn rest(&mut self) -> String {
        self.until("end of its output", |_| None)
    }
}

/// A command that runs.
#[derive(Debug)]
pub struct Step {
    child: Child,
    out: Heard,
}

impl Step {
    /// Starts a command whose output is a pipe.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the command starts");
        let out = child.stdout.take().expect("its output is a pipe");
        Self {
            child,
            out: Heard::of(out),
        }
    }

    /// The same, with a pipe to its input.
    ///
    /// # Panics
    /// When it does not start.
    pub fn with_input(command: &mut Command) -> (Self, ChildStdin) {
        let mut step = Self::start(command.stdin(Stdio::piped()));
        let input = step.child.stdin.take().expect("its input is a pipe");
        (step, input)
    }

    /// Waits until so many tasks have said "ready".
    ///
    /// # Panics
    /// When one says something else.
    #[must_use]
    pub fn ready(mut self, tasks: usize) -> Self {
        for _ in 0..tasks {
            let line = self.line();
            if line != "ready\n" {
                let rest = self.out.rest();
                panic!("{line:?} {rest:?} {:?}", finish(self.child));
            }
        }
        self
    }

    /// The next line, with its end.
    pub fn line(&mut self) -> String {
        self.out.line()
    }

    /// What it says.
    pub fn out(&mut self) -> &mut Heard {
        &mut self.out
    }

    /// All that it still says until it has ended, and how it ended.
    #[must_use]
    pub fn ended(mut self) -> (String, Finished) {
        (self.out.rest(), finish(self.child))
    }

    /// Kills the command, which waits for something that will not come.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
