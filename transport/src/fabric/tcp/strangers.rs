//! Log lines about connections that did not prove the key, and the descriptor that is kept for refusing them.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::clock;
use crate::fabric::LinkError;

/// At most one line a second, with the number of those that were not told.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    last: u64,
    untold: u64,
}

impl Refusals {
    pub(super) fn log(&mut self, socket: &OwnedFd, reason: &LinkError) {
        let now = clock::now();
        if self.last != 0 && now.saturating_sub(self.last) < super::seconds(1) {
            self.untold += 1;
            return;
        }
        let from = rustix::net::getpeername(socket).ok().flatten();
        let from = from.and_then(|a| SocketAddr::try_from(a).ok());
        let from = from.map_or_else(|| "a closed socket".to_owned(), |a| a.to_string());
        let untold = core::mem::take(&mut self.untold);
        tracing::warn!(%from, %reason, untold, "refused a connection to the data port");
        self.last = now;
    }
}

pub(super) fn spare() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}
