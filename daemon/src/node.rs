//! The shared state of a node, as its daemon sees it: regions, slots, process objects, and the agent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use dragon_channels::{Channel, ChannelOptions, ProcessObject, create_channel, recover};
use dragon_protocol::attach::{Region as RegionInfo, RegionKind};
use dragon_protocol::control::Membership;
use dragon_protocol::{Code, Descriptor, NodeIndex, ObjectId, PoolOptions, SlotId};
use dragon_shmem::sync::Ordering;
use dragon_shmem::{Control, Error, Hooks, Member, Pool, PoolTag, Region, clock};
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::fabric::{Fabric, mem::MemHub};
use dragon_transport::{Agent, AgentConfig};

use crate::adapter::Job;
use crate::attach::Shared;
use crate::link;
use crate::memory::{Memory, why_this_limit};
use crate::network::{self, Place};
use crate::resources::Granted;
use crate::survey::{Known, View};

/// Number of the default pool.
const DEFAULT_POOL: u32 = 0;
/// Requests of clients that may wait in the gateway; more wait in their senders.
const GATEWAY: ChannelOptions = ChannelOptions {
    capacity: 1024,
    block: 320,
    user: 0,
    unbounded: None,
};
/// Committed at start: the gateway, and what a small program needs, without asking.
const FIRST_COMMIT: u64 = 2 << 20;

/// A node.
#[derive(Debug)]
pub struct Node {
    member: Arc<Member>,
    memory: Memory,
    agent: Arc<Agent>,
    place: Place,
    processes: HashMap<ObjectId, ProcessObject>,
}

impl Node {
    /// Creates the regions of the node, and starts its agent.
    ///
    /// # Errors
    /// When the kernel refuses memory, a thread or a port.
    pub fn create(job: &Job, granted: Granted) -> Result<Self> {
        let runtime = job.key.runtime_id();
        let limit = if job.pool == 0 {
            granted.memory / 2
        } else {
            job.pool
        };
        let control = Control::create(runtime, job.node, granted.cpus)
            .context("cannot create the control region")?;
        let pool = Pool::create(runtime, job.node, DEFAULT_POOL, limit)
            .context("cannot create the default pool")?;
        pool.set_note(&why_this_limit(job.pool, granted.memory));
        let memory = Memory::new(control.clone(), pool.clone());
        memory
            .pools()
            .commit(DEFAULT_POOL, FIRST_COMMIT)
            .context("cannot commit the first memory of the default pool")?;
        let slot = control.claim_daemon_slot()?;
        // The agent needs the member and the member's hooks need the agent, which comes later.
        let later = Arc::new(OnceLock::new());
        let hooks = DaemonHooks {
            memory: memory.clone(),
            agent: later.clone(),
        };
        let member = Member::new(control.clone(), pool, slot, Box::new(hooks))?;
        memory.set_owner(&member);
        let gateway = create_channel(&member, &GATEWAY)?;
        let gateway_id = gateway.id();
        let place = if job.hosts.len() > 1 {
            network::place(job)?
        } else {
            Place::default()
        };
        let agent = start_agent(job, &place, &member, gateway)?;
        // The agent's threads end with the agent, not with the hooks that call it.
        let _ = later.set(Arc::downgrade(&agent));
        control.set_gateway(gateway_id);
        Ok(Self {
            member,
            memory,
            agent,
            place,
            processes: HashMap::new(),
        })
    }

    /// The daemon's own membership of the node.
    #[must_use]
    pub fn member(&self) -> Arc<Member> {
        self.member.clone()
    }

    /// Whether there is such a channel on this node.
    #[must_use]
    pub fn has_channel(&self, object: ObjectId) -> bool {
        self.channel(object).is_ok()
    }

    /// Whether there is such a process, or group of processes, on this node: one that lives, or that somebody has a handle on.
    #[must_use]
    pub fn has_process(&self, object: ObjectId) -> bool {
        ProcessObject::attach(&self.member, &self.descriptor(object), false).is_ok()
    }

    /// Fails every operation on a channel of this node from now on. One that is gone stays so.
    pub fn destroy_channel(&self, object: ObjectId) {
        if let Ok(channel) = self.channel(object) {
            log(channel.destroy());
        }
    }

    fn channel(&self, object: ObjectId) -> dragon_channels::Result<Channel> {
        Channel::attach(&self.member, &self.descriptor(object), false)
    }

    fn descriptor(&self, object: ObjectId) -> Descriptor {
        Descriptor {
            runtime: self.member.control().runtime(),
            object,
            user: 0,
        }
    }

    /// Where other agents reach this node's: the port that is open at any address, or else 0, and the listeners on the
    /// interfaces that were chosen.
    #[must_use]
    pub fn announces(&self) -> (u16, Vec<SocketAddr>) {
        self.place.announce(&self.agent.local_addresses())
    }

    /// Tells the agent where the other nodes are.
    pub fn set_peers(&self, membership: &Membership) {
        self.agent.set_peers(&membership.nodes);
    }

    /// What attaching processes get.
    ///
    /// # Errors
    /// When a descriptor cannot be duplicated.
    pub fn shared(&self) -> Result<Shared> {
        let (control, pool) = (self.member.control(), self.member.pool());
        let region = |kind, region: &Region| {
            let fd: BorrowedFd<'_> = region.fd()?;
            Ok::<_, anyhow::Error>((
                RegionInfo {
                    kind,
                    size: region.size(),
                },
                fd.try_clone_to_owned()?,
            ))
        };
        let regions = vec![
            region(RegionKind::Control, control.region())?,
            region(RegionKind::PoolMeta { pool: DEFAULT_POOL }, pool.meta())?,
            region(RegionKind::PoolData { pool: DEFAULT_POOL }, pool.data())?,
        ];
        Ok(Shared {
            runtime: control.runtime(),
            node: control.node(),
            regions,
            memory: self.memory.clone(),
        })
    }

    /// Gives a slot to a process.
    ///
    /// # Errors
    /// When all slots are in use.
    pub fn claim_slot(&self, pid: u32) -> Result<SlotId, (Code, String)> {
        self.member
            .control()
            .claim_slot(pid)
            .map_err(|error| (error.code(), error.to_string()))
    }

    /// Recovers what the dead process of a slot was doing and held.
    pub fn recover(&self, slot: SlotId) {
        if !self.member.control().slot_is(slot) {
            return;
        }
        match recover(&self.member, slot) {
            Ok(recovered) => {
                tracing::debug!(?slot, ?recovered, "a process is gone");
                if recovered.locks > 0 {
                    tracing::warn!(
                        "a process ended while it held {} locks; they go on to the next who want them",
                        recovered.locks
                    );
                }
                self.agent.slot_gone(slot, recovered);
                self.memory.pools().slot_gone(slot);
            }
            // The slot is not given out again.
            Err(error) => tracing::error!(?slot, "a dead process was not recovered: {error}"),
        }
    }

    /// Creates the object of a process that is about to be started.
    ///
    /// # Errors
    /// When the node's tables are full.
    pub fn create_process(&mut self) -> Result<ObjectId, (Code, String)> {
        let failed = |error: dragon_channels::Error| (error.code(), error.to_string());
        let process = ProcessObject::create(&self.member, 0, 0).map_err(failed)?;
        let id = process.id();
        // One reference is for whoever asked for the process.
        process.export().map_err(failed)?;
        self.processes.insert(id, process);
        Ok(id)
    }

    /// The process was started.
    pub fn process_started(&self, process: ObjectId, pid: u32) {
        if let Some(object) = self.processes.get(&process) {
            log(object.set_pid(pid));
        }
    }

    /// The process was not started: nobody will ask for the object.
    pub fn forget_process(&mut self, process: ObjectId) {
        self.drop_transit(process);
        self.processes.remove(&process);
    }

    /// Whoever asked for the process is gone.
    pub fn drop_transit(&self, process: ObjectId) {
        if let Err(error) = self.member.drop_transit(process) {
            tracing::error!("shared memory: {error}");
        }
    }

    /// The process has ended: everyone who waits for it learns its status.
    pub fn process_ended(&mut self, process: ObjectId, status: i32) {
        if let Some(object) = self.processes.remove(&process) {
            log(object.finish(status));
        }
    }

    /// Sends a message to a channel of any node, without waiting.
    pub fn notify(&self, channel: ObjectId, message: &[u8]) {
        self.agent.post(channel, 0, message.to_vec());
    }

    /// A node is lost.
    pub fn node_down(&self, node: NodeIndex) {
        self.agent.node_down(node);
    }

    /// Counts a request to the control plane.
    pub fn count_request(&self) {
        let counters = &self.member.control().words().counters;
        counters.control_requests.fetch_add(1, Ordering::Relaxed);
    }

    /// What a survey of this node looks at.
    #[must_use]
    pub fn view(&self, known: Arc<Known>) -> View {
        View {
            member: self.member.clone(),
            memory: self.memory.clone(),
            agent: self.agent.clone(),
            known,
        }
    }

    /// What was counted on this node.
    #[must_use]
    pub fn stats(&self) -> Vec<(String, u64)> {
        let agent = self.agent.stats();
        let node = &self.member.control().words().counters;
        let pool = self.member.pool().stats();
        let (control_sent, control_received) = link::counted();
        let mut stats = vec![
            ("control_sent", control_sent),
            ("control_received", control_received),
            (
                "control_requests",
                node.control_requests.load(Ordering::Relaxed),
            ),
            ("recoveries", node.recoveries.load(Ordering::Relaxed)),
            ("requests_sent", agent.requests_sent),
            ("requests_received", agent.requests_received),
            ("messages_sent", agent.messages_sent),
            ("messages_received", agent.messages_received),
            ("messages_returned", agent.returned),
            ("messages_lost", agent.messages_lost),
            ("requests_pending", agent.pending),
            ("requests_parked", agent.parked),
        ];
        let pools = self.memory.pools().all();
        stats.push(("pools", pools.len() as u64));
        if let Ok(pool) = pool {
            stats.extend([
                ("pool_limit", pool.limit),
                ("pool_committed", pool.committed),
                ("pool_used", pool.used),
                ("pool_blocks", pool.blocks),
            ]);
        }
        let mut stats: Vec<_> = stats
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        for peer in self.agent.peers() {
            let counted = peer.fabric;
            let values = [
                ("links", counted.links),
                ("frames_sent", counted.frames_sent),
                ("frames_received", counted.frames_received),
                ("bytes_sent", counted.bytes_sent),
                ("bytes_received", counted.bytes_received),
                ("retries", counted.retries),
                ("reconnects", counted.reconnects),
                ("queued", counted.queued),
                ("unacknowledged", counted.unacknowledged),
                ("latency_50_ns", peer.latency.percentile(50)),
                ("latency_99_ns", peer.latency.percentile(99)),
            ];
            let named = values.map(|(name, n)| (format!("peer_{}_{name}", counted.node), n));
            stats.extend(named);
        }
        stats
    }

    /// Ends the agent; what is queued for other nodes is sent within `limit`.
    pub fn shutdown(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.agent.shutdown(clock::now().saturating_add(limit));
    }
}

fn start_agent(
    job: &Job,
    place: &Place,
    member: &Arc<Member>,
    gateway: Channel,
) -> Result<Arc<Agent>> {
    // A node without others opens no port; its agent still serves the daemon's own messages.
    let fabric: Arc<dyn Fabric> = if job.hosts.len() > 1 {
        let usual = TcpConfig::new(job.node, job.key.clone());
        let reconnect_s = job.network.reconnect.map(u64::from);
        let connections = job.network.connections;
        let connections = connections.and_then(|number| usize::try_from(number).ok());
        let config = TcpConfig {
            listen: place.listen.clone(),
            encrypt: job.network.encrypt,
            connections: connections.unwrap_or(usual.connections),
            rails: place.rails.clone(),
            reconnect_s: reconnect_s.unwrap_or(usual.reconnect_s),
            ..usual
        };
        Arc::new(TcpFabric::bind(config).context("cannot listen for other nodes")?)
    } else {
        Arc::new(MemHub::new().node(job.node))
    };
    let config = AgentConfig {
        member: member.clone(),
        node: job.node,
        fabric,
        gateway,
    };
    Ok(Arc::new(Agent::start(config)?))
}

fn log(result: dragon_channels::Result<()>) {
    if let Err(error) = result {
        tracing::error!("shared memory: {error}");
    }
}

/// What the daemon's own membership needs.
#[derive(Debug)]
struct DaemonHooks {
    memory: Memory,
    agent: Arc<OnceLock<Weak<Agent>>>,
}

impl Hooks for DaemonHooks {
    fn commit(&self, pool: u32, bytes: u64) -> Result<(), Error> {
        self.memory.pools().commit(pool, bytes)
    }

    fn pool(&self, tag: PoolTag) -> Result<(Pool, ObjectId), Error> {
        self.memory.pools().find(tag)
    }

    fn create_pool(&self, options: &PoolOptions, slot: SlotId) -> Result<(Pool, ObjectId), Error> {
        self.memory.pools().create(options, slot)
    }

    fn trim(&self) -> Result<u64, Error> {
        self.memory.pools().trim()
    }

    fn numbered_pool(&self, number: u32) -> Option<Pool> {
        self.memory.pools().numbered(number)
    }

    fn pool_released(&self, object: ObjectId) {
        self.memory.pools().released(object);
    }

    fn notify(&self, object: ObjectId) {
        if let Some(agent) = self.agent.get().and_then(Weak::upgrade) {
            agent.notify(object);
        }
    }
}
