//! The line between the keeper of an allocation and the first daemon of its runtime: an abstract socket of their node.
//!
//! ```text
//! daemon → keeper   '+', the name of the attach socket, newline: the runtime is up
//! daemon → keeper   't': the runtime ends, because its daemons were told to
//! daemon → keeper   'o': it has ended, not in order: what is left does not end by itself
//! keeper → daemon   'x': the script has ended
//! ```
//!
//! The end of file says that the other one is gone. The keeper's socket has a random name that only the daemons of its step
//! are told; but everybody can list names, so both look who the other is.

use std::cell::Cell;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::socket_peercred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::services::Event;

/// The longest name of an attach socket, with what stands before and behind it.
const LONGEST: usize = 128;

/// What a daemon says of the end, a byte each.
const TOLD: u8 = b't';
const OUT_OF_REACH: u8 = b'o';

/// Where the first daemon comes to the keeper.
pub(super) struct Door {
    name: String,
    listener: UnixListener,
}

impl Door {
    pub(super) fn open() -> Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).context("no random numbers from the kernel")?;
        let name = format!(
            "dragon/{}/keeper/{:016x}",
            rustix::process::getuid().as_raw(),
            u64::from_ne_bytes(random)
        );
        let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)
            .with_context(|| format!("cannot listen on @{name}"))?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        Ok(Self { name, listener })
    }

    /// The name, without the leading NUL.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits for a daemon of this user.
    pub(super) async fn accept(&self) -> Result<Line> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            if is_own(&stream) {
                return Ok(Line {
                    stream,
                    said: Cell::default(),
                });
            }
        }
    }
}

/// Whether the other end is a process of this user.
fn is_own(stream: &impl AsFd) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid == rustix::process::getuid())
}

/// The keeper's end.
pub(super) struct Line {
    stream: UnixStream,
    said: Cell<Last>,
}

/// What a runtime has said of its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Last {
    /// Its daemons were told to end.
    pub(super) told: bool,
    /// It has not ended in order: what has not ended by now is out of its reach.
    pub(super) out_of_reach: bool,
}

impl Line {
    /// Waits until the runtime is up; the name of its attach socket. `None`: its daemon is gone.
    pub(super) async fn runtime(&self) -> Result<Option<OsString>> {
        let mut said = Vec::new();
        loop {
            if let Some((b'+', name)) = said.split_first()
                && let Some((b'\n', name)) = name.split_last()
            {
                return Ok(Some(OsString::from_vec(name.to_vec())));
            }
            ensure!(said.len() < LONGEST, "the daemon's answer is too long");
            // What comes behind the line is for [`Line::ended`].
            let mut byte = [0; 1];
            match self.read(&mut byte).await {
                0 => return Ok(None),
                _ => said.extend(byte),
            }
        }
    }

    /// Waits until the daemon is gone. Who stops waiting hears the same the next time.
    pub(super) async fn ended(&self) -> Last {
        let mut byte = [0; 1];
        while self.read(&mut byte).await > 0 {
            let said = &self.said;
            let mut last = said.get();
            match byte {
                [TOLD] => last.told = true,
                _ => last.out_of_reach = true,
            }
            said.set(last);
        }
        self.said.get()
    }

    /// Tells the daemon that the script has ended.
    pub(super) fn say_end(&self) {
        // There is room for one byte, unless it is gone.
        let _ = self.stream.try_write(b"x");
    }

    /// A connection that broke has ended.
    async fn read(&self, bytes: &mut [u8]) -> usize {
        loop {
            if self.stream.readable().await.is_err() {
                return 0;
            }
            match self.stream.try_read(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read.unwrap_or(0),
            }
        }
    }
}

/// The first daemon's end.
#[derive(Debug)]
pub struct Keeper(StdStream);

/// Connects the first daemon to the keeper.
///
/// # Errors
/// When the keeper is gone, is on another node, or is another user's.
pub fn connect(name: &str) -> Result<Keeper> {
    let address = SocketAddr::from_abstract_name(name)?;
    let stream = StdStream::connect_addr(&address).with_context(|| {
        format!("nobody listens on @{name}: the script or shell of this job has ended, or its first node is another one")
    })?;
    ensure!(is_own(&stream), "@{name} is another user's");
    Ok(Keeper(stream))
}

impl Keeper {
    /// Tells it where the runtime listens, and has the loop learn when its script has ended, or it is gone.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn follow(mut self, socket: &str, events: &mpsc::Sender<Event>) -> io::Result<Followed> {
        // One that is gone is noticed below.
        let _ = self.0.write_all(format!("+{socket}\n").as_bytes());
        self.0.set_nonblocking(true)?;
        let stream = Arc::new(UnixStream::from_std(self.0)?);
        let (followed, events) = (Followed(stream.clone()), events.clone());
        tokio::spawn(async move {
            // It says nothing but that.
            let _ = stream.readable().await;
            let _ = events.send(Event::OwnerLeft).await;
            // Open until the daemon has ended.
            std::future::pending::<()>().await;
            drop(stream);
        });
        Ok(followed)
    }
}

/// The line of a runtime that is up.
#[derive(Debug)]
pub struct Followed(Arc<UnixStream>);

impl Followed {
    /// Tells the keeper that the end that comes was asked for.
    pub fn say_told(&self) {
        // There is room for one byte, unless it is gone.
        let _ = self.0.try_write(&[TOLD]);
    }

    /// Tells the keeper that what is left of the runtime now is out of this daemon's reach.
    pub fn say_out_of_reach(&self) {
        let _ = self.0.try_write(&[OUT_OF_REACH]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_keeper_hears_where_the_runtime_is_and_a_daemon_that_the_script_has_ended() {
        let door = Door::open().unwrap();
        let keeper = connect(door.name()).unwrap();
        let line = door.accept().await.unwrap();
        let (events, mut loop_) = mpsc::channel(1);
        keeper.follow("dragon/1/4.0/0/ab", &events).unwrap();
        let runtime = line.runtime().await.unwrap();
        assert_eq!(runtime, Some("dragon/1/4.0/0/ab".into()));
        line.say_end();
        assert!(matches!(loop_.recv().await, Some(Event::OwnerLeft)));
    }

    #[tokio::test]
    async fn a_keeper_hears_of_the_end_what_the_daemon_knows() {
        let door = Door::open().unwrap();
        let keeper = connect(door.name()).unwrap();
        let line = door.accept().await.unwrap();
        let (events, _loop) = mpsc::channel(1);
        let ends = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let ended = std::thread::spawn(move || {
            ends.block_on(async {
                let followed = keeper.follow("dragon/1/4.0/0/ab", &events).unwrap();
                // As in the daemon, which has waited for events before.
                followed.0.writable().await.unwrap();
                followed.say_told();
                followed.say_out_of_reach();
            });
        });
        line.runtime().await.unwrap();
        ended.join().unwrap();
        let all = Last {
            told: true,
            out_of_reach: true,
        };
        assert_eq!(line.ended().await, all);
        // Also who asks again.
        assert_eq!(line.ended().await, all);
    }

    #[tokio::test]
    async fn either_learns_that_the_other_is_gone() {
        let door = Door::open().unwrap();
        let keeper = connect(door.name()).unwrap();
        let line = door.accept().await.unwrap();
        drop(keeper);
        assert_eq!(line.runtime().await.unwrap(), None);
        assert_eq!(line.ended().await, Last::default());

        let keeper = connect(door.name()).unwrap();
        drop(door.accept().await.unwrap());
        let (events, mut loop_) = mpsc::channel(1);
        keeper.follow("dragon/1/4.0/0/ab", &events).unwrap();
        assert!(matches!(loop_.recv().await, Some(Event::OwnerLeft)));

        let name = door.name().to_owned();
        drop(door);
        let error = connect(&name).unwrap_err().to_string();
        assert!(error.contains("the script or shell of this job has ended"));
    }
}
