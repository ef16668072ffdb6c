//! Attaching to a runtime: the first bytes on the attach socket, frozen for ever, and the list of regions that follows.
//!
//! ```text
//! client → daemon   AttachHello                                  24 bytes
//! daemon → client   AttachReply [+ file descriptors by SCM_RIGHTS] 24 bytes
//!                   then `body` bytes: postcard of Attached, or the text of the refusal
//! ```
//! Only this exchange may be spoken between two releases; everything after it needs equal versions.

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::{NodeIndex, RuntimeId, SlotId};

/// `DRGNATT1` in ASCII: the first eight bytes from the client.
pub const HELLO_MAGIC: [u8; 8] = *b"DRGNATT1";
/// The first eight bytes from the daemon.
pub const REPLY_MAGIC: [u8; 8] = *b"DRGNREP1";

/// What a client says first. Frozen.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AttachHello {
    /// [`HELLO_MAGIC`].
    pub magic: [u8; 8],
    /// [`crate::PROTOCOL_VERSION`] of the client.
    pub protocol: U16,
    /// What the client wants: [`ROLE_CLIENT`], [`ROLE_SIBLING`], [`ROLE_TASK`] or [`ROLE_INSPECT`].
    pub role: U16,
    /// Release of the client as major, minor, patch.
    pub release: [u8; 4],
    /// Reserved, 0.
    pub reserved: U64,
}

/// A process that wants a slot and the regions.
pub const ROLE_CLIENT: u16 = 1;
/// Another local task of the same step: it only waits for the end of the runtime (end of file on this socket).
/// It sends its CPU mask behind this: u32 length, then that many bytes.
pub const ROLE_SIBLING: u16 = 2;
/// Another local task of the same step, which is the program. Its CPU mask follows as with [`ROLE_SIBLING`]; the reply comes when
/// the runtime is up. The end of file on this socket means the end of the task, or of the runtime.
pub const ROLE_TASK: u16 = 4;
/// A tool that asks, and needs neither slot nor regions.
pub const ROLE_INSPECT: u16 = 3;

/// What the daemon answers. Frozen.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AttachReply {
    /// [`REPLY_MAGIC`].
    pub magic: [u8; 8],
    /// [`crate::PROTOCOL_VERSION`] of the daemon.
    pub protocol: U16,
    /// How many file descriptors came along.
    pub descriptors: U16,
    /// Release of the daemon as major, minor, patch.
    pub release: [u8; 4],
    /// A [`crate::Code`]: 0, or why the daemon refuses.
    pub status: U32,
    /// Bytes that follow: [`Attached`] when the status is 0, else UTF-8 text.
    pub body: U32,
}

/// What kind of memory a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RegionKind {
    /// The node's control region: slots, threads, objects, counters. A memfd.
    Control,
    /// The metadata of a pool. A memfd.
    PoolMeta {
        /// Which pool.
        pool: u32,
    },
    /// The blocks of a pool. A memfd.
    PoolData {
        /// Which pool.
        pool: u32,
    },
}

/// One region of the attach reply; the file descriptors come in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// What it holds.
    pub kind: RegionKind,
    /// Its size in bytes.
    pub size: u64,
}

/// The body of a successful reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The runtime.
    pub runtime: RuntimeId,
    /// This node.
    pub node: NodeIndex,
    /// The slot of the process; `None` for the roles that get none.
    pub slot: Option<SlotId>,
    /// The regions, in the order of the file descriptors.
    pub regions: Vec<Region>,
}

/// The release of this crate in the form of the frozen messages.
#[must_use]
pub fn release_bytes() -> [u8; 4] {
    let mut numbers = crate::RELEASE.split('.').map(|n| n.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    [next(), next(), next(), 0]
}

/// A release of the frozen messages as text.
#[must_use]
pub fn release_text(release: [u8; 4]) -> String {
    format!("{}.{}.{}", release[0], release[1], release[2])
}

/// What is said to the user of a client that does not speak the daemon's protocol. `client` and `runtime` are release and
/// protocol of either: between releases the protocols of two builds may differ though their releases are equal.
#[must_use]
pub fn mismatch_text(client: ([u8; 4], U16), runtime: ([u8; 4], U16)) -> String {
    let text = |(release, protocol)| format!("{} (protocol {protocol})", release_text(release));
    format!(
        "this process uses release {} of dragon, the runtime is release {}; load the environment with which the job was started, or start the job with this one",
        text(client),
        text(runtime)
    )
}
