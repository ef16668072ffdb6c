//! Connections to a listener that are in their handshake, in the event loop.

use std::net::SocketAddr;

use anyhow::{Result, anyhow};
use dragon_protocol::handshake::HandshakeError;
use dragon_transport::strangers::{HALF_OPEN, HalfOpen, Refusals};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use crate::link;

/// Connections in their handshake; one that has proved itself is a `T`.
#[derive(Debug)]
pub struct Strangers<T> {
    /// What they are, for the log.
    name: &'static str,
    handshakes: JoinSet<Result<T>>,
    half_open: HalfOpen<AbortHandle>,
    /// Who is none any more.
    proved: Vec<T>,
    refusals: Refusals,
}

/// How a handshake ended.
pub type Shaken<T> = Result<(Id, Result<T>), JoinError>;

impl<T: Send + 'static> Strangers<T> {
    /// None yet. `name`: what they are, for the log.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            handshakes: JoinSet::new(),
            half_open: HalfOpen::new(HALF_OPEN),
            proved: Vec::new(),
            refusals: Refusals::default(),
        }
    }

    /// The end of a handshake, for [`Self::leave`]; `None` when there is none under way.
    pub async fn shaken(&mut self) -> Option<Shaken<T>> {
        self.handshakes.join_next_with_id().await
    }

    /// Those that have proved themselves since this was called last.
    pub fn proved(&mut self) -> Vec<T> {
        std::mem::take(&mut self.proved)
    }

    /// A connection came. The proof has a deadline of its own.
    pub async fn enter(
        &mut self,
        proof: impl Future<Output = Result<T>> + Send + 'static,
        from: SocketAddr,
    ) {
        let task = self.handshakes.spawn(proof);
        self.half_open.enter(task, from, u64::MAX);
        if self.half_open.len() > self.half_open.share() {
            // Whose proof has arrived already is not among those who may have to go.
            tokio::task::yield_now().await;
            while let Some(shaken) = self.handshakes.try_join_next_with_id() {
                self.leave(shaken);
            }
        }
        while let Some(stranger) = self.half_open.surplus() {
            stranger.connection.abort();
            let why = anyhow!("too many connections are in their handshake at once");
            self.refuse(stranger.from, &why);
        }
    }

    /// A handshake has ended.
    pub fn leave(&mut self, shaken: Shaken<T>) {
        let id = match &shaken {
            Ok((id, _)) => *id,
            Err(aborted) => aborted.id(),
        };
        let stranger = self.half_open.leave(|task| task.id() == id);
        match (shaken, stranger) {
            (Ok((_, Ok(proved))), _) => self.proved.push(proved),
            // Whoever looks for a node tries several ports, and on one machine those of its neighbours are among them now and then.
            (Ok((_, Err(error))), Some(stranger)) if means_another(&error) => {
                tracing::debug!(from = %stranger.from, "a {} was for another node: {error:#}", self.name);
            }
            (Ok((_, Err(error))), Some(stranger)) => self.refuse(stranger.from, &error),
            // It had to go, and was refused then.
            _ => {}
        }
    }

    /// A connection is refused: that is logged, though not each time.
    pub fn refuse(&mut self, from: SocketAddr, why: &anyhow::Error) {
        if let Some(untold) = self.refusals.tell(from, link::now()) {
            tracing::warn!(%from, untold, "refused a {}: {why:#}", self.name);
        }
    }
}

fn means_another(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(HandshakeError::WrongPeer { .. }))
}
