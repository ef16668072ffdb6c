//! The membership of many nodes over a network that delays, resets, cuts (also one way only), stops, suspends and kills.
//!
//! One seed is one history. What must hold is checked at every step; `DRAGON_SIMULATION_SEEDS` says how many seeds to try.

mod plan;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use dragon_protocol::NodeIndex;
use dragon_protocol::membership::{MemberMessage, View};

use dragon_protocol::names::{NameMessage, NameOp, Outcome};

use crate::names::{self, Names};

use super::{Input, Limits, Members, Output, Time, Why};

/// Rules that a simulation does without, to see that it finds what they prevent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Broken {
    /// A node votes for everyone who asks in its last epoch.
    pub(super) two_votes: bool,
    /// Global services answer until they hear of a later view, and nobody is bound to them.
    pub(super) no_lease: bool,
}

const MS: Time = 1_000_000;
const LIMITS: Limits = Limits {
    beat: 100 * MS,
    lease: 300 * MS,
    silence: 1000 * MS,
};
/// How long the kernel tries to deliver before it gives a connection up.
const USER_TIMEOUT: Time = 700 * MS;
/// How long the kernel tries to connect.
const CONNECT_TIMEOUT: Time = 500 * MS;
/// How long faults happen.
const TROUBLE: Time = 20_000 * MS;
/// How long the survivors have to agree when the faults have ended.
const CALM: Time = 6 * LIMITS.silence;
/// Where the clocks begin.
const BEGIN: Time = 1_000_000 * MS;

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All of it.
    Everything,
    /// Fewer than half of the nodes are killed, and nothing else: all others survive.
    Kills,
    /// Resets, and stops and cuts that are shorter than the limits: everybody survives.
    Nuisances,
    /// Stops and cuts of any length.
    Cuts,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill { node: usize, host: bool },
    Stop { node: usize },
    Resume { node: usize },
    Block { from: usize, to: usize },
    Unblock { from: usize, to: usize },
    Reset { one: usize, other: usize },
}

/// What daemons send each other.
#[derive(Clone)]
enum Wire {
    Member(MemberMessage),
    Name(NameMessage),
}

/// What comes to a daemon.
enum Came {
    Members(Input),
    Name(NodeIndex, NameMessage),
    /// A client asks something.
    Client(NameOp),
}

enum Event {
    Fault(Fault),
    Client {
        node: usize,
        op: NameOp,
    },
    Deliver {
        from: usize,
        to: usize,
        link: u64,
        message: Wire,
    },
    LinkLost {
        at: usize,
        other: usize,
    },
    /// The kernel gives a blocked connection up, if it still is one.
    GiveUp {
        from: usize,
        to: usize,
        link: u64,
        block: u64,
    },
    /// The end of an attempt to connect.
    Connected {
        from: usize,
        to: usize,
        message: Wire,
    },
    /// The workload manager's answer.
    Declare {
        at: usize,
        nodes: Vec<usize>,
    },
    Timer {
        node: usize,
        number: u64,
    },
}

struct Node {
    members: Members,
    names: Names,
    /// What its clients have asked.
    asked: HashMap<u64, NameOp>,
    /// Where its clock began, and by how many thousandths it is fast.
    clock: (Time, u64),
    alive: bool,
    host_alive: bool,
    stopped: bool,
    ended: Option<Why>,
    inbox: VecDeque<Came>,
    timer: u64,
}

impl Node {
    fn local(&self, now: Time) -> Time {
        now + self.clock.0 + now / 1000 * self.clock.1
    }

    fn global(&self, local: Time) -> Time {
        let since = local.saturating_sub(self.clock.0);
        // At or after the moment at which the local clock shows that time.
        since / (1000 + self.clock.1) * 1000 + 2000
    }

    fn runs(&self) -> bool {
        self.alive && !self.stopped && self.ended.is_none()
    }

    fn lives(&self) -> bool {
        self.alive && self.ended.is_none()
    }
}

#[derive(Default)]
struct Link {
    number: u64,
    up: bool,
    /// When the last message of each direction arrives.
    last: [Time; 2],
    held: [VecDeque<Wire>; 2],
}

struct World {
    seed: u64,
    random: u64,
    now: Time,
    nodes: Vec<Node>,
    links: HashMap<(usize, usize), Link>,
    blocks: BTreeMap<(usize, usize), u64>,
    events: BinaryHeap<Reverse<(Time, u64)>>,
    pending: HashMap<u64, Event>,
    last: u64,
    views: BTreeMap<u64, View>,
    /// Names whose publication was acknowledged, and by which node.
    acknowledged: BTreeMap<String, usize>,
    /// Names that were taken back, as was acknowledged.
    taken_back: BTreeSet<String>,
    /// Names that are to be taken back, and those of them that were not acknowledged yet when that was asked.
    asked_back: BTreeSet<String>,
    early: BTreeSet<String>,
    /// Whether there is a workload manager.
    declares: bool,
    /// The workload manager has said that somebody is dead: who goes on by that need not know what the dead decided last.
    forgotten: bool,
    log: Vec<String>,
    failed: Option<String>,
}

fn index(node: usize) -> NodeIndex {
    NodeIndex::new(u32::try_from(node).unwrap()).unwrap()
}

fn pair(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}

impl World {
    fn new(seed: u64, broken: Broken) -> (Self, Kind) {
        let mut world = Self {
            seed,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: BEGIN,
            nodes: Vec::new(),
            links: HashMap::new(),
            blocks: BTreeMap::new(),
            events: BinaryHeap::new(),
            pending: HashMap::new(),
            last: 0,
            views: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            taken_back: BTreeSet::new(),
            asked_back: BTreeSet::new(),
            early: BTreeSet::new(),
            declares: seed.is_multiple_of(3),
            forgotten: false,
            log: Vec::new(),
            failed: None,
        };
        let count = 2 + world.below(8);
        let fanout = 1 + u32::try_from(world.below(4)).unwrap();
        for node in 0..count {
            let clock = (world.below(1000) * MS, world.below(6));
            let local = world.now + clock.0 + world.now / 1000 * clock.1;
            let nodes = u32::try_from(count).unwrap();
            let mut members = Members::new(
                index(usize::try_from(node).unwrap()),
                nodes,
                fanout,
                LIMITS,
                local,
            );
            members.broken = broken;
            if world.declares {
                members.ask_manager_for(Duration::from_nanos(CALM / 2));
            }
            let names = Names::new(
                index(usize::try_from(node).unwrap()),
                members.view().clone(),
            );
            world.nodes.push(Node {
                members,
                names,
                asked: HashMap::new(),
                clock,
                alive: true,
                host_alive: true,
                stopped: false,
                ended: None,
                inbox: VecDeque::new(),
                timer: 0,
            });
        }
        let kind = match seed % 5 {
            0 => Kind::Kills,
            1 => Kind::Nuisances,
            2 => Kind::Cuts,
            _ => Kind::Everything,
        };
        world.views.insert(0, world.nodes[0].members.view().clone());
        world.plan(kind);
        world.plan_clients();
        for node in 0..world.nodes.len() {
            world.feed(node, Input::Time);
        }
        (world, kind)
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random() % limit.max(1)
    }

    fn any_node(&mut self) -> usize {
        let count = self.nodes.len() as u64;
        // Those with low ranks are the interesting ones.
        let limit = if self.below(2) == 0 {
            count.min(3)
        } else {
            count
        };
        usize::try_from(self.below(limit)).unwrap()
    }

    fn at(&mut self, time: Time, event: Event) {
        self.last += 1;
        self.pending.insert(self.last, event);
        self.events.push(Reverse((time, self.last)));
    }

    fn delay(&mut self) -> Time {
        let most = if self.below(50) == 0 { 80 * MS } else { 3 * MS };
        MS / 10 + self.below(most)
    }

    fn send(&mut self, from: usize, to: usize, message: Wire) {
        let delay = self.delay();
        let now = self.now;
        let link = self.links.entry(pair(from, to)).or_default();
        if link.up {
            let way = usize::from(from > to);
            let time = (now + delay).max(link.last[way] + 1);
            link.last[way] = time;
            let link = link.number;
            return self.at(
                time,
                Event::Deliver {
                    from,
                    to,
                    link,
                    message,
                },
            );
        }
        let there = self.nodes[to].host_alive;
        let blocked = self.is_blocked(from, to) || self.is_blocked(to, from);
        let time = if blocked || !there {
            CONNECT_TIMEOUT
        } else {
            delay
        };
        self.at(now + time, Event::Connected { from, to, message });
    }

    fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocks.contains_key(&(from, to))
    }

    fn reset(&mut self, one: usize, other: usize) {
        let link = self.links.entry(pair(one, other)).or_default();
        if !std::mem::take(&mut link.up) {
            return;
        }
        link.number += 1;
        link.held = Default::default();
        for (at, other) in [(one, other), (other, one)] {
            let time = self.now + self.delay();
            self.at(time, Event::LinkLost { at, other });
        }
    }

    fn fault(&mut self, fault: Fault) {
        if self.log.len() < 200 {
            self.log
                .push(format!("{:>6} ms {fault:?}", (self.now - BEGIN) / MS));
        }
        match fault {
            Fault::Kill { node, host } => self.kill(node, host),
            Fault::Stop { node } => self.nodes[node].stopped = true,
            Fault::Resume { node } => {
                self.nodes[node].stopped = false;
                while let Some(came) = self.nodes[node].inbox.pop_front() {
                    self.came(node, came);
                }
                self.feed(node, Input::Time);
            }
            Fault::Block { from, to } => {
                self.last += 1;
                let block = self.last;
                self.blocks.insert((from, to), block);
                let link = self.links.entry(pair(from, to)).or_default().number;
                let time = self.now + USER_TIMEOUT;
                self.at(
                    time,
                    Event::GiveUp {
                        from,
                        to,
                        link,
                        block,
                    },
                );
            }
            Fault::Unblock { from, to } => {
                self.blocks.remove(&(from, to));
                let way = usize::from(from > to);
                let link = self.links.entry(pair(from, to)).or_default();
                let held = std::mem::take(&mut link.held[way]);
                let (number, mut time) = (link.number, link.last[way].max(self.now));
                for message in held {
                    time += MS / 10;
                    let link = number;
                    self.at(
                        time,
                        Event::Deliver {
                            from,
                            to,
                            link,
                            message,
                        },
                    );
                }
                self.links.entry(pair(from, to)).or_default().last[way] = time;
            }
            Fault::Reset { one, other } => self.reset(one, other),
        }
    }

    fn kill(&mut self, node: usize, host: bool) {
        if !self.nodes[node].alive {
            return;
        }
        self.nodes[node].alive = false;
        if host {
            self.nodes[node].host_alive = false;
        }
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let blocked = self.is_blocked(other, node) || self.is_blocked(node, other);
            let link = self.links.entry(pair(node, other)).or_default();
            let was_up = std::mem::take(&mut link.up);
            link.number += 1;
            let time = if host || blocked {
                USER_TIMEOUT
            } else {
                self.delay()
            };
            if was_up {
                self.at(
                    self.now + time,
                    Event::LinkLost {
                        at: other,
                        other: node,
                    },
                );
            }
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Fault(fault) => self.fault(fault),
            Event::Deliver {
                from,
                to,
                link,
                message,
            } => {
                let blocked = self.is_blocked(from, to);
                let known = self.links.entry(pair(from, to)).or_default();
                if known.number != link {
                    return;
                }
                let held = &mut known.held[usize::from(from > to)];
                if blocked || !held.is_empty() {
                    return held.push_back(message);
                }
                let from = index(from);
                match message {
                    Wire::Member(message) => self.feed(to, Input::Message(from, message)),
                    Wire::Name(message) => self.came(to, Came::Name(from, message)),
                }
            }
            Event::LinkLost { at, other } => {
                let (node, silent) = (index(other), !self.nodes[other].host_alive);
                self.feed(at, Input::LinkLost { node, silent });
            }
            Event::GiveUp {
                from,
                to,
                link,
                block,
            } => {
                let same = self.links.entry(pair(from, to)).or_default().number == link;
                if same && self.blocks.get(&(from, to)) == Some(&block) {
                    self.reset(from, to);
                }
            }
            Event::Connected { from, to, message } => {
                let blocked = self.is_blocked(from, to) || self.is_blocked(to, from);
                let node = index(to);
                if blocked || !self.nodes[to].host_alive {
                    return self.feed(from, Input::Unreachable { node, gone: false });
                }
                if !self.nodes[to].lives() {
                    return self.feed(from, Input::Unreachable { node, gone: true });
                }
                let link = self.links.entry(pair(from, to)).or_default();
                link.up = true;
                self.send(from, to, message);
            }
            Event::Client { node, op } => self.came(node, Came::Client(op)),
            Event::Declare { at, nodes } => {
                // It notices late, and what it says of a node is true.
                let dead = nodes
                    .into_iter()
                    .filter(|node| !self.nodes[*node].host_alive);
                let dead: Vec<_> = dead.map(index).collect();
                self.forgotten |= !dead.is_empty();
                self.feed(at, Input::Declared(dead));
            }
            Event::Timer { node, number } => {
                if self.nodes[node].timer == number {
                    self.feed(node, Input::Time);
                }
            }
        }
    }

    fn feed(&mut self, node: usize, input: Input) {
        self.came(node, Came::Members(input));
    }

    fn came(&mut self, node: usize, came: Came) {
        let it = &mut self.nodes[node];
        if !it.lives() {
            return;
        }
        if it.stopped {
            return it.inbox.push_back(came);
        }
        let now = it.local(self.now);
        if let Came::Members(Input::Message(_, message)) = &came
            && message.is_heartbeat()
        {
            it.names.retry(it.members.answers(now));
        }
        match came {
            Came::Members(input) => {
                match input {
                    Input::LinkLost { node, .. } => {
                        it.names.link_lost(node, it.members.answers(now));
                    }
                    Input::Unreachable { node, .. } => it.names.unreachable(node),
                    _ => {}
                }
                it.members.handle(now, input);
            }
            Came::Name(from, message) => it.names.says(from, message, it.members.answers(now)),
            Came::Client(op) => {
                let asked = op.clone();
                let request = it.names.ask(op, None, it.members.answers(now));
                it.asked.insert(request, asked.clone());
                // Taken back before it was acknowledged, it may be there again: its publisher asks again.
                if let NameOp::Unpublish(name, _) = asked
                    && !self.acknowledged.contains_key(&name)
                {
                    self.early.insert(name);
                }
            }
        }
        let outputs = it.members.take();
        let due = it.members.due();
        for output in outputs {
            self.act(node, output);
        }
        let it = &mut self.nodes[node];
        if it.lives() {
            let now = it.local(self.now);
            it.names.flush(it.members.answers(now));
            for output in it.names.take() {
                self.act_on_names(node, output);
            }
        }
        if due < Time::MAX && self.nodes[node].lives() {
            let time = self.nodes[node].global(due).max(self.now + 1);
            self.nodes[node].timer += 1;
            let number = self.nodes[node].timer;
            self.at(time, Event::Timer { node, number });
        }
    }

    fn act_on_names(&mut self, node: usize, output: names::Output) {
        match output {
            names::Output::Send(to, message) => {
                self.send(node, to.get() as usize, Wire::Name(message));
            }
            names::Output::Answer(request, outcome) => {
                let op = self.nodes[node].asked.remove(&request);
                match (op, outcome) {
                    (Some(NameOp::Publish(name, ..)), Outcome::Done(_)) => {
                        self.acknowledged.insert(name, node);
                    }
                    (Some(NameOp::Unpublish(name, _)), Outcome::Done(Some(_)))
                        if !self.early.contains(&name) =>
                    {
                        self.taken_back.insert(name);
                    }
                    (Some(NameOp::Unpublish(..)), _) => {}
                    (op, outcome) => self.fail(&format!("{op:?} led to {outcome:?}")),
                }
            }
            names::Output::Wake(_) => {}
        }
    }

    fn act(&mut self, node: usize, output: Output) {
        match output {
            Output::Send(to, message) => {
                self.send(node, to.get() as usize, Wire::Member(message));
            }
            Output::Lost(..) => {}
            Output::Ask(nodes) => {
                let nodes = nodes.iter().map(|node| node.get() as usize).collect();
                let time = self.now + self.below(2000 * MS);
                self.at(time, Event::Declare { at: node, nodes });
            }
            Output::Changed { view, lost } => {
                let it = &mut self.nodes[node];
                let answers = it.members.answers(it.local(self.now));
                it.names.changed(view.clone(), &lost, answers);
                if self.log.len() < 200 {
                    let members: Vec<_> = view.members.iter().map(|node| node.get()).collect();
                    let (time, index) = ((self.now - BEGIN) / MS, view.index);
                    self.log.push(format!(
                        "{time:>6} ms node {node}: view {index} of {members:?}"
                    ));
                }
                let index = view.index;
                let before = self.views.insert(index, view.clone());
                if let Some(before) = before.filter(|before| *before != view) {
                    let mut members = before.members.iter();
                    if members.any(|node| self.nodes[node.get() as usize].host_alive) {
                        self.fail(&format!("two views {index}: {before:?} {view:?}"));
                    }
                }
            }
            Output::End(why) => {
                if self.log.len() < 200 {
                    self.log.push(format!(
                        "{:>6} ms node {node}: ends, {why:?}",
                        (self.now - BEGIN) / MS
                    ));
                }
                let time = self.now;
                self.nodes[node].ended = Some(why);
                for other in (0..self.nodes.len()).filter(|other| *other != node) {
                    self.reset(node, other);
                }
                debug_assert_eq!(time, self.now);
            }
        }
    }

    fn fail(&mut self, what: &str) {
        let (seed, log) = (self.seed, self.log.join("\n"));
        self.failed
            .get_or_insert_with(|| format!("seed {seed}: {what}\n{log}"));
    }

    /// Never two who answer.
    fn check(&mut self) {
        let answers = |node: &&Node| node.runs() && node.members.answers(node.local(self.now));
        let who: Vec<_> = self.nodes.iter().filter(answers).collect();
        let epochs: Vec<_> = who.iter().map(|node| node.members.view().epoch).collect();
        if who.len() > 1 {
            let time = (self.now - BEGIN) / MS;
            self.fail(&format!("two answer at {time} ms, in epochs {epochs:?}"));
        }
    }

    fn run(&mut self, until: Time) {
        while let Some(Reverse((time, number))) = self.events.peek().copied() {
            if time > until || self.failed.is_some() {
                break;
            }
            self.events.pop();
            self.now = self.now.max(time);
            if let Some(event) = self.pending.remove(&number) {
                self.step(event);
            }
            self.check();
        }
        self.now = until;
    }

    /// The survivors agree.
    fn agreed(&mut self, kind: Kind) {
        let living = (0..self.nodes.len()).filter(|node| self.nodes[*node].lives());
        let living: Vec<_> = living.collect();
        let killed = self.nodes.iter().filter(|node| !node.alive).count();
        let members: Vec<_> = living.iter().copied().map(index).collect();
        for node in &living {
            let view = self.nodes[*node].members.view().clone();
            if view.members != members {
                self.fail(&format!("node {node} has {view:?}, living are {living:?}"));
            }
        }
        if let Some(first) = living.first() {
            let first = &self.nodes[*first];
            if !first.members.answers(first.local(self.now)) {
                self.fail("nobody answers");
            }
        }
        if let Some(first) = living.first() {
            self.names_are_there(*first);
        }
        let survive = match kind {
            Kind::Kills => self.nodes.len() - killed,
            Kind::Nuisances => self.nodes.len(),
            _ => 0,
        };
        if living.len() < survive {
            self.fail(&format!("only {living:?} survived"));
        }
    }
}

impl World {
    /// What was acknowledged is there, and what was taken back is not.
    fn names_are_there(&mut self, first: usize) {
        // With up to six nodes any quorum has one of the three copies; else the publisher's node knows its own.
        let few = self.nodes.len() <= 6;
        let there = |name: &String| self.nodes[first].names.stands_for(name).is_some();
        let kept = |name: &String, node: usize| {
            !self.asked_back.contains(name) && (few || self.nodes[node].lives())
        };
        let mut acknowledged = self.acknowledged.iter();
        let forgotten = self.forgotten;
        let lost =
            acknowledged.find(|(name, node)| !forgotten && kept(name, **node) && !there(name));
        let mut taken_back = self.taken_back.iter();
        let back = taken_back.find(|name| !forgotten && few && there(name));
        let lost = lost.map(|(name, node)| format!("{name} of node {node} is lost"));
        let back = back.map(|name| format!("{name} is back"));
        if let Some(what) = lost.or(back) {
            self.fail(&what);
        }
        let pending = (0..self.nodes.len())
            .find(|node| self.nodes[*node].lives() && !self.nodes[*node].asked.is_empty());
        if let Some(node) = pending {
            let asked = format!("{:?}", self.nodes[node].asked);
            self.fail(&format!("node {node} has no answer to {asked}"));
        }
    }
}

/// One history: how many views there were, or what went wrong.
fn simulate(seed: u64, broken: Broken) -> Result<usize, String> {
    let (mut world, kind) = World::new(seed, broken);
    world.run(BEGIN + TROUBLE + 1000 * MS + CALM);
    world.agreed(kind);
    world.failed.map_or(Ok(world.views.len()), Err)
}

/// A number from the environment, so that more seeds can be tried than in every run of the tests.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn the_rules_hold_whatever_the_network_does() {
    let first = number("DRAGON_SIMULATION_FIRST", 0);
    let seeds = number("DRAGON_SIMULATION_SEEDS", 300);
    let mut views = 0;
    for seed in first..first + seeds {
        views += simulate(seed, Broken::default()).unwrap_or_else(|story| panic!("{story}"));
    }
    println!("{seeds} seeds, {views} views");
    assert!(views as u64 > seeds, "the faults must matter");
}

#[test]
fn two_votes_in_an_epoch_are_found() {
    let broken = Broken {
        two_votes: true,
        ..Broken::default()
    };
    assert!((0..5000).any(|seed| simulate(seed, broken).is_err()));
}

#[test]
fn answers_without_a_lease_are_found() {
    let broken = Broken {
        no_lease: true,
        ..Broken::default()
    };
    assert!((0..5000).any(|seed| simulate(seed, broken).is_err()));
}
