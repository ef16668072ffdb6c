//! Nodes in one process: each with regions, a daemon's membership and an agent of its own, and as many clients as a test
//! wants. They share nothing but the network.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use dragon_channels::remote::{GATEWAY_BLOCK, GATEWAY_CAPACITY};
use dragon_channels::{Channel, ChannelOptions, Set, create_channel};
use dragon_protocol::key::JobKey;
use dragon_protocol::launch::NodeInfo;
use dragon_protocol::{Descriptor, NodeIndex, ObjectId, RuntimeId, SlotId};
use dragon_shmem::pool::table::{InProcess, PoolTable, Unlimited};
use dragon_shmem::{Control, Deadline, Error, Hooks, Member, Pool, PoolTag};
use dragon_transport::fabric::Fabric;
use dragon_transport::fabric::mem::MemHub;
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::{Agent, AgentConfig, AgentStats};

/// A test that hangs is ended by this; nothing is ever expected to take this long.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(120);

pub(crate) const RUNTIME: RuntimeId = RuntimeId(0xd2a6_0000_0000_0001);

pub(crate) struct Node {
    pub(crate) index: NodeIndex,
    pub(crate) control: Control,
    pub(crate) pool: Pool,
    pub(crate) pools: Arc<PoolTable>,
    pub(crate) daemon: Arc<Member>,
    pub(crate) agent: Arc<Agent>,
}

struct DaemonHooks {
    pools: InProcess,
    agent: Arc<OnceLock<Weak<Agent>>>,
}

impl Hooks for DaemonHooks {
    fn commit(&self, pool: u32, bytes: u64) -> Result<(), Error> {
        self.pools.commit(pool, bytes)
    }

    fn pool(&self, tag: PoolTag) -> Result<(Pool, ObjectId), Error> {
        self.pools.pool(tag)
    }

    fn numbered_pool(&self, number: u32) -> Option<Pool> {
        self.pools.numbered_pool(number)
    }

    fn pool_released(&self, object: ObjectId) {
        self.pools.pool_released(object);
    }

    fn notify(&self, object: ObjectId) {
        if let Some(agent) = self.agent.get().and_then(Weak::upgrade) {
            agent.notify(object);
        }
    }
}

impl Node {
    pub(crate) fn start(index: NodeIndex, fabric: Arc<dyn Fabric>, pool: u64) -> Self {
        let control = Control::create(RUNTIME, index, 2).unwrap();
        let pool = Pool::create(RUNTIME, index, 0, pool).unwrap();
        let slot = control.claim_daemon_slot().unwrap();
        let known = Arc::new(OnceLock::new());
        let pools = PoolTable::new(pool.clone(), Box::new(Unlimited));
        let hooks = DaemonHooks {
            pools: InProcess(Arc::clone(&pools)),
            agent: Arc::clone(&known),
        };
        let daemon = Member::new(control.clone(), pool.clone(), slot, Box::new(hooks)).unwrap();
        pools.set_owner(&daemon);
        let options = ChannelOptions {
            capacity: GATEWAY_CAPACITY,
            block: GATEWAY_BLOCK,
            ..ChannelOptions::default()
        };
        let gateway = create_channel(&daemon, &options).unwrap();
        control.set_gateway(gateway.id());
        let config = AgentConfig {
            member: Arc::clone(&daemon),
            node: index,
            fabric,
            gateway,
        };
        let agent = Arc::new(Agent::start(config).unwrap());
        known.set(Arc::downgrade(&agent)).unwrap();
        Self {
            index,
            control,
            pool,
            pools,
            daemon,
            agent,
        }
    }

    /// A process of this node.
    pub(crate) fn client(&self) -> Arc<Member> {
        let slot = self.control.claim_slot(std::process::id()).unwrap();
        let hooks = Box::new(InProcess(Arc::clone(&self.pools)));
        Member::new(self.control.clone(), self.pool.clone(), slot, hooks).unwrap()
    }

    /// What the daemon does when a process is gone.
    pub(crate) fn dies(&self, slot: SlotId) {
        let recovered = dragon_channels::recover(&self.daemon, slot).unwrap();
        self.agent.slot_gone(slot, recovered);
        self.pools.slot_gone(slot);
    }

    pub(crate) fn stats(&self) -> AgentStats {
        self.agent.stats()
    }

    /// Blocks of the pool in use.
    pub(crate) fn blocks(&self) -> u64 {
        self.pool.stats().unwrap().blocks
    }
}

pub(crate) fn index(n: u32) -> NodeIndex {
    NodeIndex::new(n).unwrap()
}

pub(crate) fn key() -> JobKey {
    JobKey::from_hex(&"5a".repeat(32)).unwrap()
}

pub(crate) const POOL: u64 = 256 << 20;

pub(crate) fn tcp_fabric(n: u32) -> Arc<TcpFabric> {
    with_connections(n, 0)
}

fn with_connections(n: u32, connections: usize) -> Arc<TcpFabric> {
    let config = TcpConfig {
        connections,
        ..TcpConfig::new(index(n), key())
    };
    Arc::new(TcpFabric::bind(config).unwrap())
}

pub(crate) fn info(node: NodeIndex, port: u16) -> NodeInfo {
    NodeInfo {
        node,
        host: "localhost".to_owned(),
        address: "127.0.0.1".to_owned(),
        control_port: 0,
        data_port: port,
        data: Vec::new(),
        cpus: 2,
        memory: 1 << 30,
        pid: std::process::id(),
    }
}

/// Nodes over TCP.
pub(crate) fn tcp(pools: &[u64]) -> Vec<Node> {
    acquainted(pools, 0)
}

fn acquainted(pools: &[u64], connections: usize) -> Vec<Node> {
    let nodes: Vec<Node> = (0..)
        .zip(pools)
        .map(|(n, pool)| Node::start(index(n), with_connections(n, connections), *pool))
        .collect();
    let port = |node: &Node| node.agent.local_address().unwrap().port();
    let infos: Vec<NodeInfo> = nodes.iter().map(|n| info(n.index, port(n))).collect();
    for node in &nodes {
        node.agent.set_peers(&infos);
    }
    nodes
}

/// Nodes in a hub.
pub(crate) fn mem(hub: &MemHub, pools: &[u64]) -> Vec<Node> {
    (0..)
        .zip(pools)
        .map(|(n, pool)| Node::start(index(n), Arc::new(hub.node(index(n))), *pool))
        .collect()
}

/// Runs a test on each fabric.
pub(crate) fn on_each(nodes: usize, test: impl Fn(&[Node])) {
    test(&tcp(&vec![POOL; nodes]));
    test(&acquainted(&vec![POOL; nodes], 3));
    test(&mem(&MemHub::new(), &vec![POOL; nodes]));
}

/// A channel of `member`'s node.
pub(crate) fn channel(member: &Arc<Member>, capacity: u32) -> Channel {
    let options = ChannelOptions {
        capacity,
        ..ChannelOptions::default()
    };
    create_channel(member, &options).unwrap()
}

/// The same channel as another process sees it.
pub(crate) fn seen_by(member: &Arc<Member>, descriptor: Descriptor) -> Channel {
    Channel::attach(member, &descriptor, false).unwrap()
}

/// Those who sleep until a member of a set is ready.
pub(crate) fn waits(node: &Node, set: &Set) -> u64 {
    let entry = node.control.object(set.id().index).unwrap();
    let number = u32::try_from(entry.body[2].load(Ordering::Relaxed)).unwrap();
    let record = node.control.set_record(number).unwrap();
    record.wait.load(Ordering::Relaxed) >> 32
}

/// Lets others work until the condition holds.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WATCHDOG, "never: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn soon() -> Deadline {
    Deadline::after(50_000_000)
}

/// Fails a hanging test rather than waiting for ever.
pub(crate) fn watched() -> Deadline {
    Deadline::after(u64::try_from(WATCHDOG.as_nanos()).unwrap())
}

pub(crate) fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mix = |n: usize| (n as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    (0..length).map(|n| u8::try_from(mix(n)).unwrap()).collect()
}
