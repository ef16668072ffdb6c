//! The transport agent: the same call on every node.

mod body;
mod clock;
pub mod fabric;

pub use body::Body;
