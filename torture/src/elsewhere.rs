//! A second node beside that of the victims, and the agents of both, for operations on objects of another node.
//!
//! The agents have threads, and whoever forks must have one. So they live in a process of their own, which does for both
//! nodes what their daemons do.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use dragon_channels::remote::{GATEWAY_BLOCK, GATEWAY_CAPACITY};
use dragon_channels::{ChannelOptions, create_channel};
use dragon_protocol::key::JobKey;
use dragon_protocol::launch::NodeInfo;
use dragon_protocol::{NodeIndex, ObjectId, SlotId};
use dragon_shmem::{Error, Hooks, Member, Pool, PoolTag};
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::{Agent, AgentConfig};
use libc::pid_t;

use crate::operations::Operation;
use crate::survivor::HANG;
use crate::world::{Counts, NoMore, World};

/// The other node, seen from the supervisor.
pub(crate) struct Elsewhere {
    pub(crate) world: World,
    /// What was in use on both nodes before there were agents, and on this one when the victims began to come.
    empty: [Counts; 2],
    start: Option<Counts>,
    pid: pid_t,
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Elsewhere {
    /// Makes the node, and starts both agents. This process must have one thread.
    pub(crate) fn beside(here: &World, operation: &Operation) -> Result<Self> {
        let node = NodeIndex::new(1).context("a node's number")?;
        let world = World::on(node, operation.cpus, operation.pool)?;
        let empty = [here.counts()?, world.counts()?];
        let (ours, theirs) = UnixStream::pair()?;
        // SAFETY: this process has one thread, so the child's memory is consistent.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            drop(ours);
            let ended = serve([here, &world], theirs);
            if let Err(error) = &ended {
                eprintln!("agents: {error:#}");
            }
            // SAFETY: ends the process without running what the parent registered for its own end.
            unsafe { libc::_exit(i32::from(ended.is_err())) };
        }
        ensure!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        ours.set_read_timeout(Some(HANG))?;
        let reader = BufReader::new(ours.try_clone()?);
        let mut elsewhere = Self {
            world,
            empty,
            start: None,
            pid,
            stream: ours,
            reader,
        };
        elsewhere.ask("hello")?;
        Ok(elsewhere)
    }

    /// What is in use now is how it must be after each death.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.start = Some(self.world.counts()?);
        Ok(())
    }

    /// A process of the victims' node is dead.
    pub(crate) fn dies(&mut self, slot: SlotId) -> Result<()> {
        self.ask(&format!("gone 0 {} {}", slot.index, slot.generation))
            .map(drop)
    }

    /// In what the nodes differ from how they were at the start, when the agents have come to rest.
    pub(crate) fn leak(&mut self, here: &World, start: &Counts) -> Result<Option<String>> {
        let begun = Instant::now();
        loop {
            let far = self.start.as_ref().context("not begun")?;
            let far = self.world.counts()?.leak(far);
            let leaks = [
                here.counts()?.leak(start),
                far.map(|leak| format!("at the other node: {leak}")),
                Some(self.ask("rest")?).filter(|left| !left.is_empty()),
            ];
            let Some(leak) = leaks
                .into_iter()
                .flatten()
                .reduce(|all, one| all + "; " + &one)
            else {
                return Ok(None);
            };
            if begun.elapsed() > HANG / 2 {
                return Ok(Some(leak));
            }
            std::thread::yield_now();
        }
    }

    /// The survivor has ended; then the agents do, and nothing may be left.
    pub(crate) fn end(
        mut self,
        here: &World,
        slot: SlotId,
        elsewhere: Option<SlotId>,
    ) -> Result<()> {
        self.dies(slot)?;
        if let Some(SlotId { index, generation }) = elsewhere {
            self.ask(&format!("gone 1 {index} {generation}"))?;
        }
        self.ask("end")?;
        self.reap();
        for (world, empty) in [here, &self.world].into_iter().zip(&self.empty) {
            if let Some(leak) = world.counts()?.leak(empty) {
                bail!("after everybody's end: {leak}");
            }
        }
        Ok(())
    }

    /// Kills the agents. The nodes are given up with them.
    pub(crate) fn kill(self) {
        // SAFETY: our child, not waited for yet.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.reap();
    }

    fn reap(&self) {
        let mut status = 0;
        // SAFETY: our child; `status` is a place for the status.
        while unsafe { libc::waitpid(self.pid, &raw mut status, 0) } < 0
            && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
        {}
    }

    fn ask(&mut self, what: &str) -> Result<String> {
        writeln!(self.stream, "{what}")?;
        let mut line = String::new();
        while let Err(error) = self.reader.read_line(&mut line) {
            // Our timer ticks.
            if error.kind() != std::io::ErrorKind::Interrupted {
                return Err(error).with_context(|| format!("the agents do not answer to {what}"));
            }
        }
        match line.trim_end().split_once(' ') {
            Some(("ok", rest)) => Ok(rest.to_owned()),
            _ if line.starts_with("ok") => Ok(String::new()),
            _ => bail!("the agents: {what}: {}", line.trim_end()),
        }
    }
}

/// A node in the process of the agents.
struct Node {
    daemon: Arc<Member>,
    agent: Arc<Agent>,
}

fn serve(worlds: [&World; 2], stream: UnixStream) -> Result<()> {
    // SAFETY: a plain request about this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let nodes = [Node::start(worlds[0])?, Node::start(worlds[1])?];
    let infos = [nodes[0].info()?, nodes[1].info()?];
    for node in &nodes {
        node.agent.set_peers(&infos);
    }
    let mut answers = stream.try_clone()?;
    for command in BufReader::new(stream).lines() {
        let command = command?;
        let words: Vec<&str> = command.split(' ').collect();
        let done = match words[..] {
            ["hello"] => Ok(String::new()),
            ["gone", node, index, generation] => {
                let slot = SlotId {
                    index: index.parse()?,
                    generation: generation.parse()?,
                };
                nodes[node.parse::<usize>()?].gone(slot)
            }
            ["rest"] => Ok(nodes.iter().map(Node::under_way).collect()),
            ["end"] => {
                drop(nodes);
                writeln!(answers, "ok ")?;
                return Ok(());
            }
            _ => bail!("{command}: no such command"),
        };
        match done {
            Ok(words) => writeln!(answers, "ok {words}")?,
            Err(error) => writeln!(answers, "wrong {}", format!("{error:#}").replace('\n', " "))?,
        }
    }
    Ok(())
}

impl Node {
    fn start(world: &World) -> Result<Self> {
        let agent = Arc::new(OnceLock::new());
        let hooks = DaemonHooks {
            usual: world.hooks(),
            agent: Arc::clone(&agent),
        };
        let daemon = world.member_with(world.daemon.slot(), Box::new(hooks))?;
        let options = ChannelOptions {
            capacity: GATEWAY_CAPACITY,
            block: GATEWAY_BLOCK,
            ..ChannelOptions::default()
        };
        let gateway = create_channel(&daemon, &options)?;
        world.control.set_gateway(gateway.id());
        let node = world.control.node();
        let mut key = [0; 32];
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut key)?;
        let key = KEY.get_or_init(|| JobKey::new(key));
        let fabric = Arc::new(TcpFabric::bind(TcpConfig::new(node, key.clone()))?);
        let member = Arc::clone(&daemon);
        let started = Arc::new(Agent::start(AgentConfig {
            member,
            node,
            fabric,
            gateway,
        })?);
        let _ = agent.set(Arc::downgrade(&started));
        Ok(Self {
            daemon,
            agent: started,
        })
    }

    fn info(&self) -> Result<NodeInfo> {
        let address = self.agent.local_address().context("no address")?;
        Ok(NodeInfo {
            node: self.daemon.control().node(),
            host: "localhost".to_owned(),
            address: "127.0.0.1".to_owned(),
            control_port: 0,
            data_port: address.port(),
            data: Vec::new(),
            cpus: 1,
            memory: 0,
            pid: 0,
        })
    }

    /// What a daemon does when a process is gone.
    fn gone(&self, slot: SlotId) -> Result<String> {
        let recovered = dragon_channels::recover(&self.daemon, slot).context("recovery failed")?;
        self.agent.slot_gone(slot, recovered);
        Ok(String::new())
    }

    /// Requests that nobody can wait for any more.
    fn under_way(&self) -> String {
        let stats = self.agent.stats();
        if stats.pending == 0 && stats.parked == 0 {
            return String::new();
        }
        let node = self.daemon.control().node();
        let (pending, parked) = (stats.pending, stats.parked);
        format!("node {node}: {pending} requests under way, {parked} parked. ")
    }
}

static KEY: OnceLock<JobKey> = OnceLock::new();

/// The usual hooks, and the agent is told.
struct DaemonHooks {
    usual: NoMore,
    agent: Arc<OnceLock<Weak<Agent>>>,
}

impl Hooks for DaemonHooks {
    fn commit(&self, pool: u32, bytes: u64) -> Result<(), Error> {
        self.usual.commit(pool, bytes)
    }

    fn notify(&self, object: ObjectId) {
        if let Some(agent) = self.agent.get().and_then(Weak::upgrade) {
            agent.notify(object);
        }
    }

    fn pool(&self, tag: PoolTag) -> Result<(Pool, ObjectId), Error> {
        self.usual.pool(tag)
    }

    fn numbered_pool(&self, number: u32) -> Option<Pool> {
        self.usual.numbered_pool(number)
    }
}
