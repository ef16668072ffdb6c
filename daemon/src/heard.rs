//! Signals that this process hears, unless whoever started it had them ignored: `nohup`, or a shell that runs it in the background.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exec::is_ignored;

/// A kind of signal, as it comes; never, where it was ignored when this process began to listen.
#[derive(Debug)]
pub(crate) struct Heard(Option<Signal>);

impl Heard {
    /// Listens from now on. A signal that is ignored stays so, and programs that are started inherit that.
    pub(crate) fn new(kind: SignalKind) -> io::Result<Self> {
        if is_ignored(kind.as_raw_value()) {
            return Ok(Self(None));
        }
        signal(kind).map(|signal| Self(Some(signal)))
    }

    /// The next one.
    pub(crate) async fn recv(&mut self) {
        if let Some(signal) = &mut self.0
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}
