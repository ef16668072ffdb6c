//! Errors of starting an agent. What happens to requests is told to their callers as a [`dragon_protocol::Code`].

/// Why an agent cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refuses a thread.
    #[error("cannot start the thread {name}: {source}; look at the limit of processes (ulimit -u)")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        source: std::io::Error,
    },
}
