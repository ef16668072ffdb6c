//! What the launcher says through a remote shell while the job runs: the head's input, and signals.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use dragon_protocol::launch::FromLauncher;
use dragon_protocol::{NodeIndex, frame};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use crate::readable::readable;

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

/// Does what the launcher says. Returns when it is gone.
async fn obey(mut line: Line, mut input: Option<pipe::Sender>) -> Result<()> {
    while let Some(message) = line.next().await? {
        match message {
            FromLauncher::Input(bytes) if bytes.is_empty() => input = None,
            FromLauncher::Input(bytes) => {
                if let Some(pipe) = &mut input
                    && pipe.write_all(&bytes).await.is_err()
                {
                    // The head reads no more.
                    input = None;
                }
            }
            // As if it had been sent here.
            FromLauncher::Signal(number) => match Signal::from_named_raw(number) {
                Some(signal) => rustix::process::kill_process(rustix::process::getpid(), signal)?,
                None => bail!("{number} is not a signal's number"),
            },
        }
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
