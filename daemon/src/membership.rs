//! Who is a member of the runtime, and who runs global services: a state machine without clock, network or threads.
//!
//! Messages, ends of connections and the time go in, messages and decisions come out; `services/members.rs` connects it to
//! the event loop, and `membership/simulation.rs` to a network that loses, delays, cuts, stops and kills. `docs/bring-up.md`
//! has the limits.
//!
//! # Rules
//! 1. There is one *view* for each index, and the next one is decided by the members of the one before: a candidate asks
//!    for votes in an *epoch*, and proposes the next view when a quorum has promised. A member gives one vote per epoch. What
//!    a member has agreed to before, it tells with its promise, and the candidate proposes that again: so there are never two
//!    views with one index, whoever is cut off, stopped or late; but who goes on since all others are dead knows nothing of what
//!    they decided last, and it is lost with them.
//! 2. A quorum is more than half of the view; or half of it with the first; or all whom the workload manager has not
//!    declared dead. (To count the dead as votes of whoever asks would let two parts of a cut network both have a majority.)
//! 3. The first of a view runs global services. It sends a heartbeat down the tree, and answers for the time of the *lease*
//!    from the sending of one that a quorum has acknowledged. Who acknowledges one promises nobody else a vote for longer
//!    than that. So nobody answers any more when another can be elected.
//! 4. Who is silent is asked; who does not answer for long, or whose daemon is gone, is left out of the next view. A gap in
//!    one's own time (SIGSTOP, suspend) restarts one's limits: who was stopped asks before it blames. Who was left out ends.
//! 5. Who hears of no majority for long ends. Where a workload manager can be asked, it is, and one waits for its word first.

mod election;
mod watch;

#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use dragon_protocol::NodeIndex;
use dragon_protocol::membership::{MemberMessage, View};

use self::election::{Candidacy, Promised};
use self::watch::Peer;

/// Nanoseconds of a clock that goes on while the machine is suspended.
pub type Time = u64;

/// How long what may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time between two heartbeats.
    pub beat: Time,
    /// How long a heartbeat that a quorum has acknowledged lets global services answer.
    pub lease: Time,
    /// Who was silent for so long, and was asked meanwhile, is lost.
    pub silence: Time,
}

impl Limits {
    /// The limits that follow from the silence after which a node is lost: ten heartbeats.
    #[must_use]
    pub fn of(silence: Duration) -> Self {
        let silence = u64::try_from(silence.as_nanos()).unwrap_or(u64::MAX);
        Self {
            beat: silence / 10,
            lease: silence / 10 * 3,
            silence,
        }
    }

    /// How long who acknowledged a heartbeat votes for nobody else: longer than the lease, since clocks differ.
    fn bound(self) -> Time {
        self.lease + self.lease / 8
    }

    /// Half of the silence: then one is asked, and has as long to answer.
    fn patience(self) -> Time {
        self.silence / 2
    }

    /// How long a candidate has.
    fn candidacy(self) -> Time {
        self.patience() + self.patience() / 2
    }

    /// A timer that is late by more than this was not late: the process was stopped.
    fn gap(self) -> Time {
        (self.silence / 4).max(self.beat)
    }

    /// How long one goes on without hearing of a majority.
    fn alone(self) -> Time {
        self.silence.saturating_mul(3)
    }
}

/// What happens to a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Time,
    /// Another daemon says something.
    Message(NodeIndex, MemberMessage),
    /// The connection to a daemon ended.
    LinkLost {
        /// Whose.
        node: NodeIndex,
        /// Whether its host answered no more.
        silent: bool,
    },
    /// A connection to a daemon could not be made. `gone`: its host says that nobody listens there.
    Unreachable {
        /// Whose.
        node: NodeIndex,
        /// Whether that proves that the daemon has ended.
        gone: bool,
    },
    /// The workload manager has answered, and says that these nodes are down.
    Declared(Vec<NodeIndex>),
}

/// What a daemon is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message, over a connection that is made when there is none.
    Send(NodeIndex, MemberMessage),
    /// This node has lost another, and by what. Nothing follows from it before a majority agrees.
    Lost(NodeIndex, Cause),
    /// So many are lost that the others are no quorum: the workload manager is to be asked about them.
    Ask(Vec<NodeIndex>),
    /// There is a new view.
    Changed {
        /// The view.
        view: View,
        /// Who is no member any more.
        lost: Vec<NodeIndex>,
    },
    /// This daemon and its processes must end.
    End(Why),
}

/// By what another node is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its daemon does not answer, but its host does.
    Silent,
    /// Its host does not answer.
    HostSilent,
    /// Its host says that the daemon has ended.
    Ended,
    /// It said so: whoever started it is gone.
    Left,
    /// The workload manager says so.
    Declared,
}

/// Why a daemon must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The others went on without it.
    Expelled,
    /// It hears of no majority.
    NoMajority,
}

/// A heartbeat on its way, and who below has answered.
#[derive(Debug)]
struct Wave {
    number: u64,
    begun: Time,
    /// Whether this node stands by it.
    own: bool,
    /// By child: nodes and processes.
    acks: BTreeMap<NodeIndex, (u32, u32)>,
    /// Whether it was passed on upwards.
    told: bool,
}

/// The membership as one node knows it.
#[derive(Debug)]
pub struct Members {
    me: NodeIndex,
    fanout: u32,
    limits: Limits,
    view: View,
    /// The highest epoch that was heard of.
    seen: u64,
    /// The highest epoch in which this node has voted.
    voted: u64,
    /// Who has this node's vote for the next view.
    promised: Option<Promised>,
    /// The view that this node has agreed to last, and in which epoch.
    accepted: Option<(u64, View)>,
    standing: Option<Candidacy>,
    /// Until when this node votes for nobody but the first of its view.
    bound_until: Time,
    /// Until when this node may answer as global services.
    lease_until: Time,
    next_beat: Time,
    waves: VecDeque<Wave>,
    peers: BTreeMap<NodeIndex, Peer>,
    /// Who cannot reach whom, as it was told to the first of the view, and since when.
    complaints: BTreeMap<(NodeIndex, NodeIndex), Time>,
    declared: BTreeSet<NodeIndex>,
    /// Since when the first of the view is lost.
    orphaned: Option<Time>,
    /// When this node may stand for election again.
    not_before: Time,
    /// Since when too few members are left for a quorum.
    hopeless: Option<Time>,
    /// Where there is a workload manager that can be asked: how long one waits for its word that others are down.
    manager: Option<Time>,
    /// When the workload manager is asked, and when it answered last.
    manager_asked: Time,
    manager_heard: Time,
    /// When a majority was heard of last.
    good: Time,
    processes: u32,
    total_processes: Option<u32>,
    due: Time,
    over: bool,
    outputs: Vec<Output>,
    #[cfg(test)]
    broken: simulation::Broken,
}

/// Heartbeats of which late answers still count.
const WAVES: usize = 4;

impl Members {
    /// A member of the first view, in which all nodes are up.
    #[must_use]
    pub fn new(me: NodeIndex, nodes: u32, fanout: u32, limits: Limits, now: Time) -> Self {
        let mut members = Self {
            me,
            fanout,
            limits,
            view: View::first(nodes),
            seen: 0,
            voted: 0,
            promised: None,
            accepted: None,
            standing: None,
            bound_until: 0,
            lease_until: 0,
            next_beat: now,
            waves: VecDeque::new(),
            peers: BTreeMap::new(),
            complaints: BTreeMap::new(),
            declared: BTreeSet::new(),
            orphaned: None,
            not_before: 0,
            hopeless: None,
            manager: None,
            manager_asked: 0,
            manager_heard: 0,
            good: now,
            processes: 0,
            total_processes: None,
            due: now,
            over: false,
            outputs: Vec::new(),
            #[cfg(test)]
            broken: simulation::Broken::default(),
        };
        members.watch_neighbours(now);
        members
    }

    /// There is a workload manager. Who sees no quorum waits for its word so long, as long as it answers at all.
    pub fn ask_manager_for(&mut self, limit: Duration) {
        self.manager = Some(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Something happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        if self.over {
            return;
        }
        if now > self.due.saturating_add(self.limits.gap()) {
            self.was_stopped(now);
        }
        match input {
            Input::Time => {}
            Input::Message(from, message) => self.says(now, from, message),
            Input::LinkLost { node, silent } => {
                self.host_is_silent(node, silent);
                self.doubt(now, node);
            }
            Input::Unreachable { node, gone } => {
                self.unreachable(now, node, gone.then_some(Cause::Ended));
            }
            Input::Declared(nodes) => {
                self.manager_heard = now;
                for node in nodes {
                    self.declare(now, node);
                }
                self.advance(now);
            }
        }
        self.check(now);
    }

    /// What is to be done, in order.
    pub fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// When [`Input::Time`] is wanted next.
    #[must_use]
    pub fn due(&self) -> Time {
        if self.over { Time::MAX } else { self.due }
    }

    /// The view.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether this node runs global services.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.view.global_services() == self.me
    }

    /// Whether this node may answer as global services now.
    #[must_use]
    pub fn answers(&self, now: Time) -> bool {
        let leased = self.view.members.len() == 1 || now < self.lease_until;
        #[cfg(test)]
        let leased = leased || self.broken.no_lease;
        !self.over && self.is_first() && leased
    }

    /// How many processes live on this node: told with the next heartbeat.
    pub fn set_processes(&mut self, processes: u32) {
        self.processes = processes;
    }

    /// How many processes lived on all nodes at the last heartbeat that all of them answered: known to the first of the view.
    #[must_use]
    pub fn total_processes(&self) -> Option<u32> {
        if self.view.members.len() == 1 {
            return Some(self.processes);
        }
        self.total_processes.filter(|_| self.is_first())
    }

    fn says(&mut self, now: Time, from: NodeIndex, message: MemberMessage) {
        // Whoever speaks lives, whatever was said about it.
        self.declared.remove(&from);
        match message {
            MemberMessage::Leave => self.unreachable(now, from, Some(Cause::Left)),
            MemberMessage::Commit(view) => self.adopt(now, view),
            MemberMessage::Ask { epoch, view } => self.asked(now, from, epoch, view),
            MemberMessage::Promise {
                epoch,
                index,
                accepted,
            } => self.promised_by(now, from, epoch, index, accepted),
            MemberMessage::Propose { epoch, view } => self.proposed(now, from, epoch, view),
            MemberMessage::Vote { epoch, index } => self.voted_by(now, from, epoch, index),
            MemberMessage::Deny { epoch, view } => self.denied(now, from, epoch, view),
            MemberMessage::Beat { index, .. }
            | MemberMessage::Ack { index, .. }
            | MemberMessage::Ping { index }
            | MemberMessage::Pong { index }
            | MemberMessage::Complain { index, .. }
                if index != self.view.index =>
            {
                self.of_another_view(from, index, &message);
            }
            MemberMessage::Beat { wave, .. } => self.beat(now, from, wave),
            MemberMessage::Ack {
                wave,
                nodes,
                processes,
                ..
            } => self.acknowledged(now, from, wave, (nodes, processes)),
            MemberMessage::Ping { index } => {
                self.heard(now, from);
                self.send(from, MemberMessage::Pong { index });
            }
            MemberMessage::Complain { about, .. } => {
                self.heard(now, from);
                self.complained(now, from, about);
            }
            MemberMessage::Promised(epoch) => {
                self.seen = self.seen.max(epoch);
                // Who has promised another stands by this view no more: another view is needed for all to stand by one again.
                if self.is_first() && self.standing.is_none() {
                    self.stand(now);
                }
            }
            _ => self.heard(now, from),
        }
    }

    /// Who is behind is told the view; who is ahead is asked for it.
    fn of_another_view(&mut self, from: NodeIndex, index: u64, message: &MemberMessage) {
        if index < self.view.index {
            let view = self.view.clone();
            return self.send(from, MemberMessage::Commit(view));
        }
        let ping = matches!(message, MemberMessage::Ping { .. });
        let index = self.view.index;
        if ping {
            self.send(from, MemberMessage::Pong { index });
        } else {
            self.send(from, MemberMessage::Ping { index });
        }
    }

    /// A heartbeat came down the tree.
    fn beat(&mut self, now: Time, from: NodeIndex, wave: u64) {
        self.heard(now, from);
        if self.is_first() || self.waves.back().is_some_and(|last| last.number >= wave) {
            return;
        }
        let first = self.view.global_services();
        self.heard(now, first);
        self.good = now;
        // Whoever has this node's vote may be elected at any moment: the heartbeat is passed on, but not acknowledged.
        let own = self.promised.is_none();
        if own {
            self.bound_until = now + self.limits.bound();
        } else if let Some(promised) = &self.promised {
            let epoch = promised.epoch;
            self.send(first, MemberMessage::Promised(epoch));
        }
        self.pass_on(now, wave, own);
    }

    /// Begins a heartbeat, or passes one on.
    fn pass_on(&mut self, now: Time, wave: u64, own: bool) {
        if let Some(last) = self.waves.back().filter(|last| !last.told) {
            let number = last.number;
            self.tell_wave(number);
        }
        if self.waves.len() == WAVES {
            self.waves.pop_front();
        }
        self.waves.push_back(Wave {
            number: wave,
            begun: now,
            own,
            acks: BTreeMap::new(),
            told: false,
        });
        let index = self.view.index;
        for child in self.view.children(self.me, self.fanout).to_vec() {
            self.send(child, MemberMessage::Beat { index, wave });
        }
        self.wave_answered(wave);
    }

    fn acknowledged(&mut self, now: Time, from: NodeIndex, wave: u64, counts: (u32, u32)) {
        self.heard(now, from);
        if !self.view.children(self.me, self.fanout).contains(&from) {
            return;
        }
        let Some(found) = self.waves.iter_mut().find(|known| known.number == wave) else {
            return;
        };
        let ack = found.acks.entry(from).or_default();
        if counts.0 >= ack.0 {
            *ack = counts;
        }
        self.wave_answered(wave);
    }

    /// Tells the node above, or counts, when enough below have answered.
    fn wave_answered(&mut self, number: u64) {
        let children = self.view.children(self.me, self.fanout);
        let is_gone = |node: &NodeIndex| self.is_gone(*node);
        let Some(wave) = self.waves.iter().find(|wave| wave.number == number) else {
            return;
        };
        let all = children
            .iter()
            .all(|child| wave.acks.contains_key(child) || is_gone(child));
        if self.is_first() {
            self.count_wave(number);
        } else if all || wave.told {
            self.tell_wave(number);
        }
    }

    fn tell_wave(&mut self, number: u64) {
        let Some(parent) = self.view.parent(self.me, self.fanout) else {
            return;
        };
        let (processes, index) = (self.processes, self.view.index);
        let Some(wave) = self.waves.iter_mut().find(|wave| wave.number == number) else {
            return;
        };
        wave.told = true;
        let (nodes, processes) = wave.sum(processes);
        let ack = MemberMessage::Ack {
            index,
            wave: number,
            nodes,
            processes,
        };
        self.send(parent, ack);
    }

    /// The first of the view: a quorum's answers renew the lease, from the time at which the heartbeat was sent.
    fn count_wave(&mut self, number: u64) {
        let Some(wave) = self.waves.iter().find(|wave| wave.number == number) else {
            return;
        };
        let (nodes, processes) = wave.sum(self.processes);
        let (nodes, all) = (nodes as usize, self.view.members.len());
        let dead = self.view.members.iter();
        let dead = dead.filter(|node| self.declared.contains(node)).count();
        let begun = wave.begun;
        // The first itself is among them.
        if wave.own && (nodes * 2 >= all || nodes + dead >= all) {
            self.lease_until = self.lease_until.max(begun + self.limits.lease);
            self.good = self.good.max(begun);
        }
        if nodes == all {
            self.total_processes = Some(processes);
        }
    }

    /// Acts on what is due, and finds out what is due next.
    fn check(&mut self, now: Time) {
        self.due = Time::MAX;
        if self.view.members.len() == 1 {
            return;
        }
        self.check_peers(now);
        if !self.over {
            self.check_candidacy(now);
        }
        if !self.over && self.is_first() {
            if now >= self.next_beat {
                self.next_beat = now + self.limits.beat;
                let wave = self.waves.back().map_or(1, |last| last.number + 1);
                let own = self
                    .promised
                    .as_ref()
                    .is_none_or(|promised| promised.to == self.me);
                if own {
                    self.bound_until = now + self.limits.bound();
                }
                self.pass_on(now, wave, own);
            }
            self.by(self.next_beat);
        }
        let mut last = self.good.saturating_add(self.limits.alone());
        if self.peers.values().any(|peer| peer.gone.is_some()) && !self.sees_quorum() {
            let since = *self.hopeless.get_or_insert(now);
            last = match self.manager {
                None => last.min(since + self.limits.patience()),
                Some(limit) => {
                    self.ask_manager(now);
                    let silent = self.manager_heard.max(since) + self.limits.alone();
                    silent.min(since.saturating_add(limit))
                }
            };
        } else {
            self.hopeless = None;
        }
        if now >= last {
            self.end(Why::NoMajority);
        }
        self.by(last);
    }

    /// Asks the workload manager about those who are lost, once in the time of a candidacy.
    fn ask_manager(&mut self, now: Time) {
        let next = self.manager_asked + self.limits.candidacy();
        if self.manager_asked != 0 && now < next {
            return self.by(next);
        }
        self.manager_asked = now;
        self.by(now + self.limits.candidacy());
        let open = |node: &NodeIndex| !self.declared.contains(node);
        let lost = self.view.members.iter().copied();
        let lost = lost.filter(|node| self.is_gone(*node) && open(node));
        let lost = lost.collect();
        self.outputs.push(Output::Ask(lost));
    }

    /// Whether a node is lost, as far as this one can see.
    fn is_gone(&self, node: NodeIndex) -> bool {
        self.peers
            .get(&node)
            .is_some_and(|peer| peer.gone.is_some())
    }

    fn by(&mut self, time: Time) {
        self.due = self.due.min(time);
    }

    /// The next view is known.
    fn adopt(&mut self, now: Time, view: View) {
        if view.index <= self.view.index || self.over {
            return;
        }
        self.seen = self.seen.max(view.epoch);
        if !view.contains(self.me) {
            return self.end(Why::Expelled);
        }
        let before = std::mem::replace(&mut self.view, view.clone());
        let lost = before.members.into_iter();
        let lost = lost.filter(|node| !view.contains(*node)).collect();
        self.promised = None;
        self.accepted = None;
        self.standing = None;
        self.bound_until = 0;
        self.lease_until = 0;
        self.waves.clear();
        self.complaints.clear();
        self.orphaned = None;
        self.not_before = 0;
        self.hopeless = None;
        self.total_processes = None;
        self.good = now;
        self.next_beat = now;
        self.outputs.push(Output::Changed { view, lost });
        self.watch_neighbours(now);
    }

    fn end(&mut self, why: Why) {
        if !self.over {
            self.over = true;
            self.outputs.push(Output::End(why));
        }
    }

    fn send(&mut self, to: NodeIndex, message: MemberMessage) {
        if to != self.me {
            self.outputs.push(Output::Send(to, message));
        }
    }
}

impl Wave {
    /// Nodes and processes that stand behind it.
    fn sum(&self, processes: u32) -> (u32, u32) {
        let own = (u32::from(self.own), processes);
        self.acks.values().fold(own, |sum, ack| {
            (sum.0.saturating_add(ack.0), sum.1.saturating_add(ack.1))
        })
    }
}
