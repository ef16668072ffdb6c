//! Standard input and output of processes by channels of whoever started them.
//!
//! A thread for each: it waits in the kernel for the process and in shared memory (or, for a channel of another node, for the
//! agent) for the other side, and nothing lies in between. So a process waits when the channel is full, as at a pipe of the
//! shell, and gets SIGPIPE when the channel is gone. A thread ends with its process's end of the pipe, or with the channel;
//! [`super::Daemon::creator_left`] sees to it that the channel goes with whoever made it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use dragon_channels::{Channel, Error};
use dragon_protocol::{Descriptor, ObjectId};
use dragon_shmem::{Deadline, Member};

/// The longest piece that is passed on.
const PIECE: usize = 16 << 10;
const STACK: usize = 256 << 10;

/// Sends what is read from `end` to a channel, and an empty message at the end.
pub(super) fn drain(member: Arc<Member>, channel: ObjectId, end: OwnedFd) -> io::Result<()> {
    run("drain", move || {
        let channel = attach(&member, channel)?;
        let mut end = File::from(end);
        let mut piece = vec![0; PIECE];
        loop {
            // The other end is not to be made to wait for a full piece.
            let read = match end.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.unwrap_or(0),
            };
            again(|| channel.send(&piece[..read], 0, Deadline::Never))?;
            if read == 0 {
                return Ok(());
            }
        }
    })
}

/// Writes what comes by a channel to `end`, until an empty message.
pub(super) fn feed(member: Arc<Member>, channel: ObjectId, end: OwnedFd) -> io::Result<()> {
    run("feed", move || {
        let channel = attach(&member, channel)?;
        let mut end = File::from(end);
        let mut piece = Vec::new();
        loop {
            let message = again(|| channel.receive(Deadline::Never))?;
            piece.resize(message.len(), 0);
            message.copy_to(0, &mut piece);
            drop(message);
            if piece.is_empty() {
                return Ok(());
            }
            if end.write_all(&piece).is_err() {
                // Nobody reads any more: whoever writes next is to learn it.
                return channel.destroy();
            }
        }
    })
}

fn run(
    name: &str,
    work: impl FnOnce() -> dragon_channels::Result<()> + Send + 'static,
) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    let thread = thread.stack_size(STACK).spawn(move || {
        if let Err(error) = work() {
            tracing::debug!("a pipe of a process ended: {error}");
        }
    });
    thread.map(drop)
}

fn attach(member: &Arc<Member>, object: ObjectId) -> dragon_channels::Result<Channel> {
    let runtime = member.control().runtime();
    let descriptor = Descriptor {
        runtime,
        object,
        user: 0,
    };
    Channel::attach(member, &descriptor, false)
}

/// Signals of the daemon are not meant for these threads.
fn again<T>(
    mut operation: impl FnMut() -> dragon_channels::Result<T>,
) -> dragon_channels::Result<T> {
    loop {
        match operation() {
            Err(Error::Interrupted) => {}
            done => return done,
        }
    }
}
