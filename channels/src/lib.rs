//! FIFO channels in pools, and what is built on the same waits: locks, events, semaphores, the exit of processes.
//!
//! An object lies on one node. Its handle ([`Channel`], [`Lock`], [`Event`], [`Semaphore`], [`ProcessObject`]) has the same
//! methods wherever that is: on the own node they work on shared memory, without asking anybody; otherwise they put a
//! request into the node's gateway channel and sleep until the agent has put the reply into the thread's reply cell.
//!
//! * [`cell`]: how a cell of a channel is claimed, published and given back;
//! * [`wait`]: spinning, sleeping, and waking only who sleeps;
//! * [`mod@attempt`]: the operations in their form for agents, which must never wait;
//! * [`mod@recover`]: what is done about a process that died anywhere in here.
//!
//! The algorithms, and which store pairs with which load, are described in `docs/channels.md`.

pub mod attempt;
pub mod barrier;
pub mod broadcast;
pub mod cell;
pub mod channel;
pub mod condition;
pub mod error;
pub mod event;
pub mod inspect;
#[cfg(not(loom))]
pub mod local;
pub mod lock;
mod memory;
pub mod message;
pub mod object;
pub mod pool;
pub mod priority;
pub mod process;
pub mod recover;
pub mod remote;
mod ring;
mod seat;
pub mod semaphore;
pub mod set;
pub mod shared;
mod sleep;
pub mod stream;
pub mod wait;

#[cfg(all(test, not(loom)))]
mod fixture;
#[cfg(all(test, not(loom)))]
mod tests;

pub use attempt::{Arguments, Attempt, End, Payload, Waiting, attempt, undoing, watch, withdraw};
pub use barrier::{Barrier, BarrierState, Breakage, Passed, Turn};
pub use broadcast::{Broadcast, BroadcastOptions, Trigger};
pub use channel::{
    Attributes, CREDIT, Channel, ChannelOptions, Poll, Received, Returns, SendOptions,
    create_channel,
};
pub use condition::{Condition, ConditionOptions};
pub use dragon_protocol::PoolOptions;
pub use dragon_shmem::Deadline;
pub use error::{Error, Result};
pub use event::Event;
pub use lock::{Acquired, Lock};
pub use message::Message;
pub use object::Object;
pub use pool::{PoolBlock, PoolHandle};
pub use priority::{PriorityQueue, PriorityQueueOptions, PriorityQueueState};
pub use process::ProcessObject;
pub use recover::{Recovered, recover};
pub use semaphore::{Semaphore, SemaphoreOptions};
pub use set::{Interest, Ready, Set, SetMember};
pub use shared::SharedMemory;
pub use stream::{Endpoint, EndpointOptions, Part, Pump, StreamReceiver, StreamSender};
pub use wait::WaitMode;
