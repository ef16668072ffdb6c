//! The client core of a process: `libdragon.so.1` for every language, and the same as a Rust library.
//!
//! A process has one [`Session`], whatever languages it mixes: one slot on its node, one mapping of the node's memory,
//! one control socket to the node's daemon. Operations on objects (channels, streams, locks, barriers, processes, …) touch
//! shared memory alone; for an object of another node they go through the node's transport agent. Only starting and
//! signalling processes, asking for the nodes, and fetching memory for a pool ask the daemon.
//!
//! ```no_run
//! use dragon::{Channel, ChannelOptions, Deadline};
//!
//! let channel = Channel::create(&ChannelOptions::default())?;
//! channel.send(b"hello", 0, Deadline::Never)?;
//! let message = channel.receive(Deadline::Never)?;
//! assert_eq!(message.to_vec(), b"hello");
//! # Ok::<(), dragon::Error>(())
//! ```
//!
//! The C interface is declared and described in `client/c/dragon.h`.

mod allocation;
mod attach;
mod connection;
mod error;
pub mod ffi;
mod group;
mod handle;
mod memory;
pub mod names;
mod objects;
mod pool;
mod priority;
mod process_lock;
mod session;
mod set;
mod spawn;
mod start;
mod stdio;
mod streams;
mod sync;
mod watcher;

pub use dragon_channels::{
    Acquired, Attributes, BarrierState, Breakage, BroadcastOptions, ChannelOptions,
    ConditionOptions, EndpointOptions, Interest, Part, Passed, Poll, PriorityQueueOptions,
    PriorityQueueState, Ready, Received, Returns, SemaphoreOptions, SendOptions, SetMember,
    Trigger, Turn, WaitMode,
};
pub use dragon_protocol::control::{ExitNotice, Membership};
pub use dragon_protocol::group::{MemberInfo, MemberState, RestartWhen};
pub use dragon_protocol::launch::NodeInfo;
pub use dragon_protocol::process::{LimitKind, Lives, Policy};
pub use dragon_protocol::{Code, Descriptor, NodeIndex, ObjectId, PoolOptions, RuntimeId, SlotId};
pub use dragon_shmem::Deadline;
pub use error::{Error, Result};
pub use group::{Group, GroupOptions};
pub use memory::Memory;
pub use objects::{Channel, Message, Process};
pub use pool::{Pool, PoolBlock, PoolStats};
pub use priority::PriorityQueue;
pub use session::Session;
pub use set::Set;
pub use spawn::{Child, Spawn, wait_all, wait_any};
pub use stdio::{ChildInput, ChildOutput, Stdio};
pub use streams::{Endpoint, Pump, StreamReceiver, StreamSender};
pub use sync::{Barrier, Broadcast, Condition, Event, Lock, Semaphore};
