//! What the launcher says through a remote shell while the job runs: the head's input, and signals.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use dragon_protocol::launch::FromLauncher;
use dragon_protocol::{NodeIndex, frame};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use crate::readable::readable;

/// Bytes of input that are kept for a head that does not read. Beyond that nothing of the launcher is read any more: it
/// notices when there is no room, and ends the remote shell instead of sending a signal.
const UNREAD: usize = 16 << 20;

/// Follows the launcher until it is gone, which `gone` is told. On the first node the result is what the head is to read.
///
/// # Errors
/// When standard input cannot be waited for.
pub fn follow(node: NodeIndex, gone: &Arc<Notify>) -> Result<Option<OwnedFd>> {
    let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::io::ioctl_fionbio(&stdin, true)?;
    let line = Line {
        from: readable(stdin).context("standard input is no pipe of a remote shell")?,
        came: Vec::new(),
    };
    let (input, for_head) = if node == NodeIndex::FIRST {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (Some(pipe::Sender::from_owned_fd(write)?), Some(read))
    } else {
        (None, None)
    };
    let gone = gone.clone();
    tokio::spawn(async move {
        if let Err(error) = obey(line, input).await {
            tracing::debug!("the launcher: {error:#}");
        }
        gone.notify_one();
    });
    Ok(for_head)
}

/// Does what the launcher says. Returns when it is gone. What the head does not read yet is kept, up to a bound, so that
/// signals behind it are heard.
async fn obey(mut line: Line, mut input: Option<pipe::Sender>) -> Result<()> {
    let mut unread = VecDeque::new();
    let mut ended = false;
    loop {
        let message = tokio::select! {
            message = line.next(), if unread.len() < UNREAD => message?,
            written = write_some(&input, &mut unread) => {
                // At an error the head reads no more.
                if written.is_err() || ended && unread.is_empty() {
                    input = None;
                    unread = VecDeque::new();
                }
                continue;
            }
        };
        match message {
            None => return Ok(()),
            Some(FromLauncher::Input(bytes)) if bytes.is_empty() => {
                ended = true;
                if unread.is_empty() {
                    input = None;
                }
            }
            Some(FromLauncher::Input(bytes)) => {
                if input.is_some() {
                    unread.extend(bytes);
                }
            }
            // As if it had been sent here.
            Some(FromLauncher::Signal(number)) => match Signal::from_named_raw(number) {
                Some(signal) => rustix::process::kill_process(rustix::process::getpid(), signal)?,
                None => bail!("{number} is not a signal's number"),
            },
        }
    }
}

/// Writes what a pipe has room for, waiting until it has some.
async fn write_some(input: &Option<pipe::Sender>, unread: &mut VecDeque<u8>) -> io::Result<()> {
    let Some(pipe) = input.as_ref().filter(|_| !unread.is_empty()) else {
        return std::future::pending().await;
    };
    pipe.writable().await?;
    match pipe.try_write(unread.as_slices().0) {
        Ok(written) => drop(unread.drain(..written)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Standard input.
struct Line {
    from: AsyncFd<OwnedFd>,
    came: Vec<u8>,
}

impl Line {
    /// The next message; `None` at the end.
    async fn next(&mut self) -> Result<Option<FromLauncher>> {
        loop {
            if let Some(head) = self.came.first_chunk() {
                let length = frame::body_length(*head)? + 4;
                if self.came.len() >= length {
                    let rest = self.came.split_off(length);
                    let frame = std::mem::replace(&mut self.came, rest);
                    return Ok(Some(frame::decode(&frame[4..])?));
                }
            }
            let mut more = [0; 4096];
            let mut ready = self.from.readable().await?;
            match ready.try_io(|stdin| Ok(rustix::io::read(stdin, &mut more)?)) {
                Ok(Ok(0)) => return Ok(None),
                Ok(Ok(read)) => self.came.extend_from_slice(&more[..read]),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error.into()),
                // Not ready after all.
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::signal::unix::{SignalKind, signal};
    use tokio::time::timeout;

    use super::*;

    const WATCHDOG: Duration = Duration::from_secs(60);

    fn frames(messages: &[FromLauncher]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            frame::encode(message, &mut bytes).unwrap();
        }
        bytes
    }

    #[tokio::test]
    async fn a_signal_is_heard_behind_input_that_nobody_reads() {
        let mut heard = signal(SignalKind::window_change()).unwrap();
        let (from, mut launcher) = io::pipe().unwrap();
        let (head, to_head) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&from, true).unwrap();
        let to_head = OwnedFd::from(to_head);
        rustix::io::ioctl_fionbio(&to_head, true).unwrap();
        let line = Line {
            from: readable(from.into()).unwrap(),
            came: Vec::new(),
        };
        let to_head = pipe::Sender::from_owned_fd(to_head).unwrap();
        let obeyed = tokio::spawn(obey(line, Some(to_head)));
        // More than the two pipes hold.
        let text: Vec<u8> = (0..1_u32 << 20).map(|n| (n % 251) as u8).collect();
        let mut said: Vec<_> = text
            .chunks(16 << 10)
            .map(|part| FromLauncher::Input(part.to_vec()))
            .collect();
        said.push(FromLauncher::Signal(Signal::WINCH.as_raw()));
        said.push(FromLauncher::Input(Vec::new()));
        let said = frames(&said);
        let writer = std::thread::spawn(move || {
            launcher.write_all(&said).unwrap();
            launcher
        });
        timeout(WATCHDOG, heard.recv())
            .await
            .expect("the signal is behind the input");
        // Nothing of it is lost.
        let head = OwnedFd::from(head);
        rustix::io::ioctl_fionbio(&head, true).unwrap();
        let mut head = pipe::Receiver::from_owned_fd(head).unwrap();
        let mut read = Vec::new();
        timeout(WATCHDOG, head.read_to_end(&mut read))
            .await
            .expect("the input ends")
            .unwrap();
        assert!(read == text, "{} bytes", read.len());
        drop(writer.join().unwrap());
        timeout(WATCHDOG, obeyed).await.unwrap().unwrap().unwrap();
    }
}
