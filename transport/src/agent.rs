//! The agent of a node: it makes a request to an object of another node the same call as one to an object of this node.
//!
//! Two threads. The *gateway thread* sleeps on the gateway channel, into which this node's processes write their requests;
//! it writes the frames to the sockets itself. The *I/O thread* sleeps in the fabric; it executes what other nodes ask,
//! writes the replies itself, and puts replies to this node's requests into the callers' reply cells. `docs/wire.md` tells
//! who wakes whom, and what happens when somebody dies.

mod core;
mod gateway;
mod io;
mod late;
mod latency;
mod local;
mod memory;
mod outbox;
mod owner;
mod requests;
mod stats;

use ::core::fmt;
use ::core::sync::atomic::Ordering;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use dragon_channels::{Channel, Recovered};
use dragon_protocol::launch::NodeInfo;
use dragon_protocol::op::Op;
use dragon_protocol::wire::{FrameHeader, FrameKind};
use dragon_protocol::{NodeIndex, ObjectId, ObjectKind, SlotId};
use dragon_shmem::Member;

use self::core::{Command, Core, lock};
pub use self::latency::Histogram;
pub use self::stats::{AgentStats, PeerReport};
use crate::body::Body;
use crate::clock;
use crate::error::Error;
use crate::fabric::{Fabric, Handler, PeerAddress};

/// What an agent needs.
#[derive(Debug)]
pub struct AgentConfig {
    /// The daemon's own membership of the node: slot 0.
    pub member: Arc<Member>,
    /// This node.
    pub node: NodeIndex,
    /// The network. It knows the job key where it needs one.
    pub fabric: Arc<dyn Fabric>,
    /// The channel into which this node's processes write their requests.
    pub gateway: Channel,
}

/// A running agent. Dropping it closes it at once.
pub struct Agent {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("node", &self.core.node)
            .field("fabric", &self.core.fabric)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// Starts the agent's threads.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(config: AgentConfig) -> Result<Self, Error> {
        let AgentConfig {
            member,
            node,
            fabric,
            gateway,
        } = config;
        let core = Arc::new(Core::new(member, node, fabric, gateway));
        let agent = Self {
            core,
            threads: Mutex::default(),
        };
        agent.spawn("dragon-gateway", gateway::run)?;
        agent.spawn("dragon-io", io::run)?;
        Ok(agent)
    }

    /// Where the agent listens for others; empty for a fabric without addresses.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.core.fabric.local_addresses()
    }

    /// The first of [`Agent::local_addresses`].
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.core.fabric.local_address()
    }

    /// Tells where the other nodes are.
    pub fn set_peers(&self, nodes: &[NodeInfo]) {
        let others = nodes.iter().filter(|info| info.node != self.core.node);
        let peers = others.map(|info| PeerAddress {
            node: info.node,
            addresses: info.data_addresses(),
        });
        self.core.fabric.set_peers(peers.collect());
    }

    /// An object of this node that other nodes' requests wait for may have changed: what the hook
    /// [`dragon_shmem::Hooks::notify`] of the daemon's own member calls. Never blocks.
    pub fn notify(&self, object: ObjectId) {
        // What a set asks for is the gateway thread's business alone: whoever works on objects looks at no set.
        if object.kind == ObjectKind::Set || !local::defer(object) {
            self.core.command(Command::Changed(object));
        }
    }

    /// Sends a message of the daemon's own to a channel of any node, without waiting for it: to a full channel it is sent
    /// when there is room. Never blocks.
    pub fn post(&self, channel: ObjectId, hint: u64, payload: Vec<u8>) {
        self.core.command(Command::Post(channel, hint, payload));
    }

    /// A process of this node is gone and recovered: its requests are cancelled, what other nodes sent to it and it did not
    /// live to take goes back, and they recover what it held there. To be called before the slot is given out again.
    pub fn slot_gone(&self, slot: SlotId, recovered: Recovered) {
        let Recovered {
            remote,
            untaken,
            asked,
            ..
        } = recovered;
        if !asked && remote.is_empty() && untaken.is_empty() {
            // The agent has nothing of the process: its thread sleeps on.
            return;
        }
        self.core.command(Command::SlotGone(slot, remote, untaken));
    }

    /// A node is down for good: requests to it end with `NodeDown`, and what its processes held here is recovered.
    pub fn node_down(&self, node: NodeIndex) {
        self.core.command(Command::NodeDown(node));
    }

    /// What the agent has counted.
    #[must_use]
    pub fn stats(&self) -> AgentStats {
        self.core.stats()
    }

    /// What was counted with each other node.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerReport> {
        self.core.peers()
    }

    /// Ends: requests under way end with `RuntimeGone`, what is queued for other nodes is sent, at the longest until
    /// `deadline` (CLOCK_MONOTONIC nanoseconds), and the other nodes are told. Returns when the threads have ended.
    pub fn shutdown(&self, deadline: u64) {
        let threads = ::core::mem::take(&mut *lock(&self.threads));
        if threads.is_empty() {
            return;
        }
        self.core.close_by.store(deadline, Ordering::Release);
        self.core.command(Command::Close);
        for thread in threads {
            // The last owner of an agent may be its own thread, inside the daemon's hook: it ends by itself.
            if thread.thread().id() == std::thread::current().id() {
                continue;
            }
            if thread.join().is_err() {
                tracing::error!("a thread of the agent ended by a panic");
            }
        }
    }

    fn spawn(&self, name: &'static str, run: fn(&Core)) -> Result<(), Error> {
        let core = Arc::clone(&self.core);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&core))
            .map_err(|source| Error::Thread { name, source })?;
        lock(&self.threads).push(thread);
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shutdown(clock::now());
    }
}

/// An agent without its threads, for [`crate::hostile`].
#[derive(Debug)]
pub(crate) struct Harness {
    core: Core,
}

impl Harness {
    pub(crate) fn new(member: Arc<Member>, fabric: Arc<dyn Fabric>, gateway: Channel) -> Self {
        let node = member.control().node();
        Self {
            core: Core::new(member, node, fabric, gateway),
        }
    }

    /// Begins a request of the daemon's own first thread.
    pub(crate) fn ask(&self, header: FrameHeader) {
        let caller = requests::Caller::Thread {
            slot: self.core.member.slot(),
            thread: 0,
            ticket: 1,
        };
        let header = FrameHeader {
            kind: FrameKind::Request as u8,
            payload: 0.into(),
            ..header
        };
        if let Some(op) = Op::from_u8(header.op) {
            self.core.request(caller, header, op, Body::empty());
        }
    }

    /// Has the handler of the I/O thread do something.
    pub(crate) fn with_events(&self, work: impl FnOnce(&mut dyn Handler)) {
        work(&mut io::Events::new(&self.core));
    }

    /// Requests that wait here or elsewhere, but for messages that came back and wait for room in their channels: they are of
    /// no link.
    pub(crate) fn kept(&self) -> u64 {
        let stats = self.core.stats();
        stats.pending + stats.parked.saturating_sub(stats.returned)
    }
}
