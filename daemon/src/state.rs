//! The states that a daemon passes through, as `docs/bring-up.md` has them.

use std::fmt;

use dragon_protocol::NodeIndex;

use crate::link;

/// A state of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It reads its job, takes its attach socket, and makes its node.
    Alone,
    /// It connects to the node above.
    Connecting,
    /// It waits for the nodes below.
    Gathering,
    /// It and all below are ready; it waits for the node above.
    Ready,
    /// All nodes are up.
    Running,
    /// It ends its processes.
    Ending,
    /// The bring-up failed.
    Failed,
    /// Nothing is left but to exit.
    Gone,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alone => "ALONE",
            Self::Connecting => "CONNECTING",
            Self::Gathering => "GATHERING",
            Self::Ready => "READY",
            Self::Running => "RUNNING",
            Self::Ending => "ENDING",
            Self::Failed => "FAILED",
            Self::Gone => "GONE",
        })
    }
}

/// Says in the log that a daemon entered a state, and what it has said to other daemons and heard from them up to then:
/// `DRAGON_LOG=dragon_daemon::state=info` shows these lines alone.
pub fn enter(node: NodeIndex, state: State) {
    let (sent, received) = link::counted();
    let pid = std::process::id();
    tracing::info!(pid, sent, received, "node {node} is {state}");
}
