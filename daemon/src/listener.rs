//! A listening socket in the event loop, also while the daemon has no descriptor left.
//!
//! tokio's own listeners stay ready then, and whoever asks them again at once spins. This one waits until a descriptor is
//! free ([`dragon_transport::descriptors`]) or another connection comes, which shows it too.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dragon_transport::descriptors::{self, Spare};
use dragon_transport::strangers::Refusals;
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::link;
use crate::readable::readable;

/// Where it is not known where a connection comes from.
pub const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    /// What it is about, for the log.
    name: &'static str,
    /// To turn connections away with; `None`: they wait.
    spare: Option<Spare>,
    /// No connection can be accepted: told when that may have changed.
    stopped: Option<Arc<Notify>>,
    told: Refusals,
}

impl Listener {
    /// Connections for which there is no descriptor wait for one.
    ///
    /// # Errors
    /// When the socket cannot be waited for.
    pub fn patient(socket: OwnedFd, name: &'static str) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket: readable(socket)?,
            name,
            spare: None,
            stopped: None,
            told: Refusals::default(),
        })
    }

    /// Connections for which there is no descriptor are closed: they may be strangers', and keep others out.
    ///
    /// # Errors
    /// When the socket cannot be waited for.
    pub fn turning_away(socket: OwnedFd, name: &'static str) -> io::Result<Self> {
        Ok(Self {
            spare: Some(Spare::take()),
            ..Self::patient(socket, name)?
        })
    }

    /// The next connection, and where it comes from. Nothing is lost when it is not waited for to the end.
    ///
    /// # Errors
    /// Those of the connection that was to be accepted; the next one may be well.
    pub async fn accept(&mut self) -> io::Result<(OwnedFd, Option<SocketAddrAny>)> {
        loop {
            match accept(&self.socket) {
                Ok(accepted) => {
                    if self.spare.as_mut().is_none_or(Spare::regain) {
                        self.stopped = None;
                    }
                    return Ok(accepted);
                }
                Err(Errno::AGAIN) => self.another().await?,
                Err(Errno::INTR) => {}
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    self.cannot(error).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until a connection comes.
    async fn another(&self) -> io::Result<()> {
        self.socket.readable().await?.clear_ready();
        Ok(())
    }

    /// A connection cannot be accepted for want of a descriptor or of memory.
    async fn cannot(&mut self, error: Errno) -> io::Result<()> {
        if let Some(stopped) = self.stopped.take() {
            // Kept while it is waited for: the wait may be given up.
            let stopped = self.stopped.insert(stopped);
            tokio::select! {
                () = stopped.notified() => self.stopped = None,
                came = self.socket.readable() => came?.clear_ready(),
            }
            return Ok(());
        }
        let mut taken = Err(error);
        let spare = self.spare.as_mut();
        let spare =
            spare.is_some_and(|spare| spare.without(|| taken = accept(&self.socket).map(drop)));
        if let Some(untold) = self.told.tell(NOWHERE, link::now()) {
            let (name, closed) = (self.name, taken.is_ok());
            tracing::warn!(
                name,
                untold,
                closed,
                %error,
                "a connection cannot be accepted: it was closed, or waits until a descriptor is free"
            );
        }
        if spare && matches!(taken, Ok(()) | Err(Errno::AGAIN)) {
            return Ok(());
        }
        let free = Arc::new(Notify::new());
        self.stopped = Some(Arc::clone(&free));
        // Then one more attempt is made: one may have been closed before.
        descriptors::when_free(move || free.notify_one());
        Ok(())
    }
}

fn accept(socket: &AsyncFd<OwnedFd>) -> Result<(OwnedFd, Option<SocketAddrAny>), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::acceptfrom_with(socket, flags)
}
