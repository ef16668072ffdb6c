//! Everything that two processes of a runtime must agree on as bytes.
//!
//! Identifiers and descriptors, error numbers, the messages of the control plane, the requests that pass a gateway,
//! the header of the wire, the handshake between nodes, and the names of environment variables. The crate is sans-I/O:
//! it encodes and decodes, and never reads, writes, waits or allocates shared memory.
//!
//! What lies in shared memory is described in `dragon-shmem`; what it *means* (operation numbers, states, error
//! numbers) stands here.

#![forbid(unsafe_code)]

pub mod attach;
pub mod control;
pub mod descriptor;
pub mod env;
pub mod error;
pub mod frame;
pub mod group;
pub mod handshake;
pub mod hostlist;
pub mod ids;
pub mod inspect;
pub mod key;
pub mod launch;
pub mod membership;
pub mod names;
pub mod op;
pub mod pool;
pub mod process;
pub mod wire;

pub use descriptor::Descriptor;
pub use error::Code;
pub use ids::{NodeIndex, ObjectId, ObjectKind, RuntimeId, SlotId};
pub use pool::PoolOptions;

/// Version of the control messages, the gateway requests and the wire, one number for all: daemons and clients of one
/// runtime come from one release, and whoever differs is told so at the first contact.
pub const PROTOCOL_VERSION: u16 = 3;

/// The release, as every refusal names it.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
