//! Nodes without a daemon: a process that runs the agent, and clients, all forked from the process that made the regions.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};

use anyhow::{Context, Result};
use dragon_channels::remote::{GATEWAY_BLOCK, GATEWAY_CAPACITY};
use dragon_channels::{Channel, ChannelOptions, create_channel};
use dragon_protocol::key::JobKey;
use dragon_protocol::launch::NodeInfo;
use dragon_protocol::{Descriptor, NodeIndex, ObjectId, RuntimeId};
use dragon_raw::memory::Shared;
use dragon_shmem::{Control, Error, Hooks, Member, Pool};
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::interface::Rail;
use dragon_transport::{Agent, AgentConfig};

use crate::crew::{Crew, until};
use crate::lines::limit_connections;
use crate::net::{Side, address, rail_address};

const RUNTIME: RuntimeId = RuntimeId(0xbe9d);

/// The regions of a node.
pub(crate) struct Node {
    index: NodeIndex,
    control: Control,
    pool: Pool,
}

impl Node {
    /// A node with a pool of so many bytes, all committed, and one CPU granted, so that nobody spins unasked.
    pub(crate) fn new(index: usize, limit: u64) -> Result<Self> {
        let index = NodeIndex::new(u32::try_from(index)?).context("a node's index")?;
        let control = Control::create(RUNTIME, index, 1)?;
        let pool = Pool::create(RUNTIME, index, 0, limit)?;
        pool.commit(limit)?;
        Ok(Self {
            index,
            control,
            pool,
        })
    }

    /// In a process of the node: its membership.
    pub(crate) fn client(&self) -> Result<Arc<Member>> {
        let slot = self.control.claim_slot(std::process::id())?;
        let hooks = Box::new(ClientHooks(self.pool.as_guest()));
        Ok(Member::new(
            self.control.clone(),
            self.pool.as_guest(),
            slot,
            hooks,
        )?)
    }

    /// In the process that is to run the agent.
    pub(crate) fn agent(&self, side: Side, lines: Lines) -> Result<Arc<Agent>> {
        let slot = self.control.claim_daemon_slot()?;
        let known = Arc::new(OnceLock::new());
        let hooks = DaemonHooks {
            pool: self.pool.clone(),
            agent: Arc::clone(&known),
        };
        let pool = self.pool.clone();
        let member = Member::new(self.control.clone(), pool, slot, Box::new(hooks))?;
        let options = ChannelOptions {
            capacity: GATEWAY_CAPACITY,
            block: GATEWAY_BLOCK,
            ..ChannelOptions::default()
        };
        let gateway = create_channel(&member, &options)?;
        self.control.set_gateway(gateway.id());
        let mut config = TcpConfig::new(self.index, key());
        config.listen = vec![address(side).into()];
        config.encrypt = lines.encrypt;
        config.connections = lines.connections;
        if lines.rails {
            config.listen.push(rail_address(side).into());
            let rail = |address: IpAddr| Rail { address, bits: 24 };
            config.rails = config.listen.iter().copied().map(rail).collect();
        }
        if lines.paced {
            limit_connections();
        }
        let agent = Agent::start(AgentConfig {
            member,
            node: self.index,
            fabric: Arc::new(TcpFabric::bind(config)?),
            gateway,
        })?;
        let agent = Arc::new(agent);
        // Nobody else has set it.
        let _ = known.set(Arc::downgrade(&agent));
        Ok(agent)
    }
}

/// How two nodes are connected.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lines {
    pub(crate) encrypt: bool,
    /// Over both networks.
    pub(crate) rails: bool,
    /// How many connections, where that is not left to the networks.
    pub(crate) connections: usize,
    /// Each connection is limited, see [`limit_connections`].
    pub(crate) paced: bool,
}

/// What others have to know of a node.
pub(crate) fn info(node: NodeIndex, side: Side, port: u16) -> NodeInfo {
    NodeInfo {
        node,
        host: format!("node{node}"),
        address: address(side).to_string(),
        control_port: 0,
        data_port: port,
        data: Vec::new(),
        cpus: 1,
        memory: 1 << 30,
        pid: std::process::id(),
    }
}

/// The key of the job.
pub(crate) fn key() -> JobKey {
    JobKey::new([7; 32])
}

/// Two nodes, with their agents.
pub(crate) struct Pair {
    nodes: [Node; 2],
    board: Board,
}

impl Pair {
    pub(crate) fn start(crew: &mut Crew<'_>, pool: u64, encrypt: bool) -> Result<Self> {
        let lines = Lines {
            encrypt,
            ..Lines::default()
        };
        Self::start_with(crew, pool, lines)
    }

    pub(crate) fn start_with(crew: &mut Crew<'_>, pool: u64, lines: Lines) -> Result<Self> {
        let nodes = [Node::new(0, pool)?, Node::new(1, pool)?];
        let board = Board::new()?;
        for side in [0, 1] {
            crew.fork(side, || {
                let agent = nodes[side].agent(side, lines)?;
                // The second network's port first: who sees the other reads both.
                for (network, at) in agent.local_addresses().iter().enumerate().rev() {
                    board.show_port(side, network, at.port());
                }
                let infos = [0, 1].map(|n| {
                    let mut info = info(nodes[n].index, n, board.port(n, 0)?);
                    if lines.rails {
                        let rail = (rail_address(n), board.port(n, 1)?);
                        info.data = vec![(address(n), info.data_port).into(), rail.into()];
                    }
                    Ok::<_, anyhow::Error>(info)
                });
                let [first, second] = infos;
                agent.set_peers(&[first?, second?]);
                board.show_ready(side);
                stay()
            })?;
        }
        Ok(Self { nodes, board })
    }

    /// In a process of a node: its membership, once both agents work.
    pub(crate) fn client(&self, side: Side) -> Result<Arc<Member>> {
        self.board.ready()?;
        self.nodes[side].client()
    }

    /// Creates a channel on the client's node, as number `n`.
    pub(crate) fn create(
        &self,
        member: &Arc<Member>,
        n: usize,
        options: &ChannelOptions,
    ) -> Result<Channel> {
        let channel = create_channel(member, options)?;
        self.board.show(n, &channel.descriptor());
        Ok(channel)
    }

    /// Attaches to the channel with number `n`, once it is there.
    pub(crate) fn attach(&self, member: &Arc<Member>, n: usize) -> Result<Channel> {
        let descriptor = self.board.descriptor(n)?;
        Ok(Channel::attach(member, &descriptor, false)?)
    }
}

/// What processes tell each other before anything is measured.
#[derive(Clone)]
pub(crate) struct Board(Shared);

/// Words: 0 and 1 ports, 2 and 3 readiness, 4 and 5 ports on the second network; from 8 on, eight for each descriptor: whether it is there, and its bytes.
const FIRST: usize = 8;
const DESCRIPTORS: usize = 1024;

impl Board {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Shared::new((FIRST + 8 * DESCRIPTORS) * 8)?))
    }

    fn show_port(&self, side: Side, network: usize, port: u16) {
        let word = self.0.word(4 * network + side);
        word.store(port.into(), Ordering::Release);
    }

    fn port(&self, side: Side, network: usize) -> Result<u16> {
        let port = || self.0.word(4 * network + side).load(Ordering::Acquire);
        until("the other agent listens", || port() != 0)?;
        Ok(u16::try_from(port())?)
    }

    fn show_ready(&self, side: Side) {
        self.0.word(2 + side).store(1, Ordering::Release);
    }

    fn ready(&self) -> Result<()> {
        let ready = |side: Side| self.0.word(2 + side).load(Ordering::Acquire) == 1;
        until("both agents work", || ready(0) && ready(1))
    }

    pub(crate) fn show(&self, n: usize, descriptor: &Descriptor) {
        let bytes = descriptor.to_bytes();
        let (words, _) = bytes.as_chunks::<8>();
        let place = FIRST + 8 * n;
        for (at, word) in words.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            self.0.word(place + 1 + at).store(word, Ordering::Relaxed);
        }
        self.0.word(place).store(1, Ordering::Release);
    }

    pub(crate) fn descriptor(&self, n: usize) -> Result<Descriptor> {
        let place = FIRST + 8 * n;
        let shown = || self.0.word(place).load(Ordering::Acquire) == 1;
        until("the channel is there", shown)?;
        let words = (1..=4).map(|at| self.0.word(place + at).load(Ordering::Relaxed));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        Ok(Descriptor::from_bytes(&bytes)?)
    }
}

/// Leaves everything to other threads, until the process is ended.
pub(crate) fn stay() -> ! {
    loop {
        std::thread::park();
    }
}

struct DaemonHooks {
    pool: Pool,
    agent: Arc<OnceLock<Weak<Agent>>>,
}

impl Hooks for DaemonHooks {
    fn commit(&self, _: u32, bytes: u64) -> Result<(), Error> {
        self.pool.commit(bytes)
    }

    fn notify(&self, object: ObjectId) {
        if let Some(agent) = self.agent.get().and_then(Weak::upgrade) {
            agent.notify(object);
        }
    }
}

/// All memory is committed from the beginning.
struct ClientHooks(Pool);

impl Hooks for ClientHooks {
    fn commit(&self, _: u32, bytes: u64) -> Result<(), Error> {
        Err(self.0.out_of_memory(bytes))
    }

    fn notify(&self, _: ObjectId) {}
}
