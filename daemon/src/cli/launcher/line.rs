//! What the launcher says to a daemon on another host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use dragon_protocol::launch::{FromLauncher, LaunchSpec};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FileType;
use rustix::process::Signal;

use super::encode;

/// Bytes that fit into a new pipe in any case.
const ROOM_IN_PIPE: usize = 16 << 10;

/// What the launcher says to a daemon on another host: standard input of a remote shell, or a line by which it has joined.
#[derive(Clone)]
pub(super) struct Line(Arc<Mutex<Said>>);

struct Said {
    pipe: File,
    /// Bytes that the pipe has taken.
    count: u64,
}

impl Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pipe.write_all(bytes)?;
        self.count += bytes.len() as u64;
        Ok(())
    }
}

impl Line {
    /// Begins with the launch message. What follows for the first daemon is what this process reads: the head's.
    pub(super) fn saying(pipe: OwnedFd, spec: &LaunchSpec) -> Result<Self> {
        let said = Said {
            pipe: pipe.into(),
            count: 0,
        };
        let line = Self(Arc::new(Mutex::new(said)));
        let (message, first) = (encode(spec)?, spec.rank == 0);
        let (writer, input) = (line.clone(), line.clone());
        let message_fits = message.len() <= ROOM_IN_PIPE;
        // One that ended at once says why itself.
        let write = move || writer.write(&message).is_ok();
        if message_fits && write() {
            if first {
                // What this process reads is the head's.
                std::thread::spawn(move || input.pass_on_input());
            }
        } else if !message_fits {
            // More than a pipe holds waits for a shell that may hang.
            std::thread::spawn(move || {
                if write() && first {
                    input.pass_on_input();
                }
            });
        }
        Ok(line)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    /// Whether whoever was to read it has taken nothing at all. A line by which a daemon has joined is no pipe: it was read.
    pub(super) fn is_untouched(&self) -> bool {
        // Somebody who writes for longer than the other end has lived waits for room: nothing was taken.
        let Ok(said) = self.0.try_lock() else {
            return true;
        };
        let is_pipe = rustix::fs::fstat(&said.pipe)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        is_pipe && rustix::io::ioctl_fionread(&said.pipe).is_ok_and(|left| left >= said.count)
    }

    /// Says that a signal came. False when there is no room for it now, or nobody to hear it.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        let (Ok(mut said), Ok(message)) = (
            self.0.try_lock(),
            encode(&FromLauncher::Signal(signal.as_raw())),
        ) else {
            return false;
        };
        // Room in a pipe is room for as much as is written at once; this message is far shorter.
        let mut room = [PollFd::new(&said.pipe, PollFlags::OUT)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(rustix::event::poll(&mut room, Some(&at_once)), Ok(1))
            && room[0].revents().contains(PollFlags::OUT)
            && said.write(&message).is_ok()
    }

    /// Passes standard input on until it ends, or the other end does.
    fn pass_on_input(&self) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = match io::stdin().lock().read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            let passed = encode(&FromLauncher::Input(buffer[..read].to_vec()))
                .map_err(io::Error::other)
                .and_then(|message| self.write(&message));
            if read == 0 || passed.is_err() {
                return;
            }
        }
    }
}
