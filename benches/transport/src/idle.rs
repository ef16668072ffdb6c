//! An agent that many others are connected with and that has nothing to do.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use dragon_channels::{Deadline, remote};
use dragon_protocol::op::Op;
use dragon_protocol::wire::{FrameHeader, FrameKind};
use dragon_protocol::{NodeIndex, ObjectId, ObjectKind};
use dragon_raw::memory::Shared;
use dragon_transport::Body;
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::fabric::{Fabric, Frame, Handler, Incoming, Link, LinkError, PeerAddress};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zerocopy::FromZeros;

use crate::Measured;
use crate::crew::{Crew, Place, now, pause, until};
use crate::net::{Net, address};
use crate::node::{Lines, Node, info, key, stay};

/// What is asked of an idle agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// How often its threads woke up in a second.
    WakeUps,
    /// KiB for each peer.
    Memory,
}

/// Each peer and the agent have asked each other something, so that there are two links with each.
pub(crate) fn idle(peers: usize, what: What) -> Result<Measured> {
    let net = Net::new()?;
    let mut crew = Crew::new(&net, Place::Free)?;
    let node = Node::new(0, 64 << 20)?;
    let words = Words::new(peers)?;
    let agent = crew.fork(0, || {
        let agent = node.agent(0, Lines::default())?;
        let port = agent.local_address().context("no address")?.port();
        words.show(0, port);
        let ports = (1..=peers).map(|n| words.port(n));
        let ports = ports.collect::<Result<Vec<u16>>>()?;
        let infos = (1..).zip(ports).map(|(n, port)| info(index(n), 1, port));
        agent.set_peers(&infos.collect::<Vec<_>>());
        words.add(READY);
        stay()
    })?;
    crew.fork(1, || {
        with_all_descriptors()?;
        let fabrics = (1..=peers).map(|n| peer(n, &words));
        for fabric in fabrics.collect::<Result<Vec<_>>>()? {
            let words = words.clone();
            let thread = std::thread::Builder::new().stack_size(256 << 10);
            thread.spawn(move || work(&fabric, words))?;
        }
        stay()
    })?;
    let (client, _) = crew.worker(0, || {
        words.wait("the agent works", READY, 1)?;
        let member = node.client()?;
        Ok(move |_| {
            for n in 1..=peers {
                remote::call(&member, Op::Attach, object(n), [0, 0], Deadline::Never)?;
            }
            Ok(0)
        })
    })?;
    crew.ready()?;
    let before = resident(agent)?;
    crew.together(&[client], 0)?;
    words.add(GO);
    words.wait("all peers have got an answer", ANSWERED, peers as u64)?;
    let (unit, values) = match what {
        What::Memory => {
            let each = (resident(agent)? - before) / peers as f64;
            ("KiB", vec![each])
        }
        What::WakeUps => ("/s", wake_ups(agent)?),
    };
    let note = format!("{peers} peers, a link in each direction with each");
    Ok((unit, values, note))
}

/// Of seconds without work.
fn wake_ups(process: libc::pid_t) -> Result<Vec<f64>> {
    pause(Duration::from_millis(500));
    let mut values = Vec::new();
    for _ in 0..5 {
        let before = switches(process)?;
        pause(Duration::from_secs(1));
        values.push((switches(process)? - before) as f64);
    }
    Ok(values)
}

/// How often all threads of a process left the processor.
fn switches(process: libc::pid_t) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        for line in status.lines().filter(|line| line.contains("ctxt_switches")) {
            let number = line.split_whitespace().last().context("a status line")?;
            sum += number.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// KiB of resident memory, with what of shared memory the process has touched.
fn resident(process: libc::pid_t) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}

/// A peer's links, without a node behind them.
fn peer(n: usize, words: &Words) -> Result<TcpFabric> {
    let mut config = TcpConfig::new(index(n), key());
    config.listen = vec![address(1).into()];
    let fabric = TcpFabric::bind(config)?;
    let port = fabric.local_address().context("no address")?.port();
    words.show(n, port);
    fabric.set_peers(vec![PeerAddress {
        node: index(0),
        addresses: vec![(address(0), words.port(0)?).into()],
    }]);
    Ok(fabric)
}

/// Once told to, asks the agent something; answers what it asks.
fn work(fabric: &TcpFabric, words: Words) -> Result<()> {
    let mut answers = Answers(words);
    let mut asked = false;
    loop {
        if !asked && answers.0.get(GO) > 0 {
            asked = true;
            let link = fabric.link(index(0))?;
            let header = FrameHeader {
                kind: FrameKind::Request as u8,
                op: Op::Attributes as u8,
                request: 1.into(),
                target: object(0).into(),
                ..FrameHeader::new_zeroed()
            };
            // Whether it was sent shows when the answer comes.
            let _ = link.submit(Frame {
                header,
                body: Body::empty(),
            });
        }
        // Until it is told to, it looks now and then.
        let next = if asked { u64::MAX } else { now() + 20_000_000 };
        fabric.progress(&mut answers, next)?;
    }
}

struct Answers(Words);

impl Handler for Answers {
    fn land(&mut self, _: &Arc<dyn Link>, _: &FrameHeader) -> Option<Body> {
        None
    }

    fn frame(&mut self, link: &Arc<dyn Link>, header: &FrameHeader, _: Incoming<'_>) {
        if header.kind != FrameKind::Request as u8 {
            return self.0.add(ANSWERED);
        }
        let header = FrameHeader {
            kind: FrameKind::Reply as u8,
            payload: 0.into(),
            ..*header
        };
        // A link that is lost shows by the answer that never comes.
        let _ = link.submit(Frame {
            header,
            body: Body::empty(),
        });
    }

    fn up(&mut self, _: &Arc<dyn Link>) {}

    fn lost(&mut self, _: &Arc<dyn Link>, _: bool, _: &LinkError, _: Vec<Frame>) {}
}

/// What the processes tell each other: how far they are, and the ports of all nodes.
#[derive(Clone)]
struct Words(Shared);

const READY: usize = 0;
const GO: usize = 1;
const ANSWERED: usize = 2;
const PORTS: usize = 3;

impl Words {
    fn new(peers: usize) -> Result<Self> {
        Ok(Self(Shared::new((PORTS + peers + 1) * 8)?))
    }

    fn get(&self, n: usize) -> u64 {
        self.0.word(n).load(Ordering::Acquire)
    }

    fn add(&self, n: usize) {
        self.0.word(n).fetch_add(1, Ordering::AcqRel);
    }

    fn wait(&self, what: &str, n: usize, count: u64) -> Result<()> {
        until(what, || self.get(n) >= count)
    }

    fn show(&self, node: usize, port: u16) {
        self.0
            .word(PORTS + node)
            .store(port.into(), Ordering::Release);
    }

    fn port(&self, node: usize) -> Result<u16> {
        self.wait("a node listens", PORTS + node, 1)?;
        Ok(u16::try_from(self.get(PORTS + node))?)
    }
}

fn index(n: usize) -> NodeIndex {
    // A few hundred at most.
    u32::try_from(n)
        .ok()
        .and_then(NodeIndex::new)
        .unwrap_or(NodeIndex::FIRST)
}

/// Any object of a node: the peers answer for each, and the agent's answer may be an error.
fn object(node: usize) -> ObjectId {
    ObjectId {
        node: index(node),
        kind: ObjectKind::Channel,
        index: 1,
        generation: 1,
    }
}

fn with_all_descriptors() -> Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}
