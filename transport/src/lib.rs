//! The transport agent: the same call on every node.
//!
//! * [`fabric`]: what carries frames between two nodes, over TCP or within one process;
//! * [`agent`]: what executes the requests of other nodes and makes those of this one;
//! * [`interface`]: which network interfaces are used;
//! * [`strangers`]: what connections may cost that have not proved the job key;
//! * [`descriptors`]: what listeners do while the process has no descriptor left;
//! * [`Body`]: payloads, in memory of this process or in a block of the pool.
//!
//! The bytes are described in `docs/wire.md`.

pub mod agent;
mod body;
use dragon_shmem::clock;
pub mod descriptors;
mod error;
pub mod fabric;
#[doc(hidden)]
pub mod hostile;
pub mod interface;
pub mod strangers;

pub use agent::{Agent, AgentConfig, AgentStats, Histogram, PeerReport};
pub use body::{Body, PoolBlock};
pub use error::Error;
