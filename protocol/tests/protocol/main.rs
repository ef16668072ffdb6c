//! What two processes of a runtime agree on, and what they refuse.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod codes;
mod descriptor;
mod frame;
mod handshake;
mod hostlist;
mod key;
mod layout;
