//! Starting a one-node runtime for a program that was started without one.

use std::ffi::OsString;

use crate::error::{Error, Result};

/// Starts a runtime for this process and returns the name of its attach socket.
///
/// # Errors
/// Always [`Error::NoRuntime`] in this release: the daemon cannot yet serve the process that started it. What belongs
/// here: find `dragond` (DRAGON_DAEMON, the directory of the shared object, PATH), start it with a socket of ours, and
/// wait for the name that it announces there.
pub(crate) fn one_node_runtime() -> Result<OsString> {
    Err(Error::NoRuntime)
}
