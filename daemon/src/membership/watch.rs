//! Who is watched, doubted, and lost.
//!
//! A node watches its neighbours in the tree and the first of the view, by what they send anyway. Who was silent for half
//! of the limit is asked; who does not answer for the other half is lost. The first of the view asks whom others complain
//! about itself, before it leaves anybody out.

use std::collections::BTreeSet;

use dragon_protocol::NodeIndex;
use dragon_protocol::membership::MemberMessage;

use super::{Cause, Members, Output, Time};

/// Another node that is watched.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    heard: Time,
    /// Since when it is asked.
    asked: Option<Time>,
    /// When it is to be asked again, because it could not be reached.
    again: Option<Time>,
    /// A connection to it ended since its host did not answer.
    host_silent: bool,
    /// It is lost, and by what.
    pub(super) gone: Option<Cause>,
    /// When the first of the view was told that it is lost.
    told: Time,
}

impl Peer {
    fn new(now: Time) -> Self {
        Self {
            heard: now,
            asked: None,
            again: None,
            host_silent: false,
            gone: None,
            told: 0,
        }
    }
}

impl Members {
    /// Watches whom this node is to watch in its view. Who is lost stays lost.
    pub(super) fn watch_neighbours(&mut self, now: Time) {
        let mut known = std::mem::take(&mut self.peers);
        let first = self.view.global_services();
        let parent = self.view.parent(self.me, self.fanout);
        let children = self.view.children(self.me, self.fanout);
        let neighbours = children.iter().copied().chain(parent).chain([first]);
        for node in neighbours.filter(|node| *node != self.me) {
            self.peers.insert(node, Peer::new(now));
        }
        known.retain(|node, peer| peer.gone.is_some() && self.view.contains(*node));
        for (node, mut peer) in known {
            peer.told = 0;
            self.peers.insert(node, peer);
            self.lost(now, node);
        }
    }

    /// A node said something.
    pub(super) fn heard(&mut self, now: Time, node: NodeIndex) {
        if let Some(peer) = self.peers.get_mut(&node) {
            let told = peer.told;
            *peer = Peer {
                told,
                ..Peer::new(now)
            };
            if node == self.view.global_services() {
                self.orphaned = None;
                self.good = self.good.max(now);
            }
        }
    }

    /// A connection to a node ended: whether its host was silent.
    pub(super) fn host_is_silent(&mut self, node: NodeIndex, silent: bool) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.host_silent = silent;
        }
    }

    /// Something speaks against a node that is watched: it is asked. One that was asked is asked again a moment later: it may
    /// end each connection at once.
    pub(super) fn doubt(&mut self, now: Time, node: NodeIndex) {
        let beat = self.limits.beat;
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.gone.is_none()) else {
            return;
        };
        if peer.asked.is_some() {
            peer.again.get_or_insert(now + beat);
            return;
        }
        peer.asked = Some(now);
        let index = self.view.index;
        self.send(node, MemberMessage::Ping { index });
    }

    /// A node was asked for its vote: it is watched until it answers.
    pub(super) fn expect_answer(&mut self, now: Time, node: NodeIndex) {
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        peer.asked.get_or_insert(now);
    }

    /// Whether enough members are left for a quorum, as far as this node can see.
    pub(super) fn sees_quorum(&self) -> bool {
        let members = self.view.members.iter().copied();
        self.is_quorum(&members.filter(|node| !self.is_gone(*node)).collect())
    }

    /// The workload manager says that a node is down. That counts of one that says nothing itself.
    pub(super) fn declare(&mut self, now: Time, node: NodeIndex) {
        if self.is_gone(node) {
            self.declared.insert(node);
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.gone = Some(Cause::Declared);
            }
            self.lost(now, node);
        }
    }

    /// A node cannot be reached; `gone`: and never will be.
    pub(super) fn unreachable(&mut self, now: Time, node: NodeIndex, gone: Option<Cause>) {
        if !self.view.contains(node) || node == self.me {
            return;
        }
        let needed = self.is_first() || self.standing.is_some() || self.peers.contains_key(&node);
        if !needed {
            return;
        }
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        if peer.gone.is_some() {
            return;
        }
        if gone.is_some() {
            peer.gone = gone;
            self.lost(now, node);
        } else {
            // The network may be away for a moment.
            peer.asked.get_or_insert(now);
            peer.again = Some(now + self.limits.beat);
        }
    }

    /// A node is lost, as far as this one can see.
    fn lost(&mut self, now: Time, node: NodeIndex) {
        let cause = self.peers.get(&node).and_then(|peer| peer.gone);
        let cause = cause.unwrap_or(Cause::Silent);
        self.outputs.push(Output::Lost(node, cause));
        let first = self.view.global_services();
        if node == first {
            self.orphaned.get_or_insert(now);
        } else if first != self.me {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.told = now;
            }
            let index = self.view.index;
            self.send(first, MemberMessage::Complain { index, about: node });
        }
    }

    /// The first of the view hears that a member cannot reach another.
    pub(super) fn complained(&mut self, now: Time, from: NodeIndex, about: NodeIndex) {
        if !self.is_first() || !self.view.contains(about) || about == self.me {
            return;
        }
        self.complaints.entry((from, about)).or_insert(now);
        let silent = now.saturating_sub(self.limits.patience());
        self.peers.entry(about).or_insert_with(|| Peer::new(silent));
        self.doubt(now, about);
    }

    /// Whom the next view leaves out. Of two members that cannot reach each other, but both this node, one has to go: as few
    /// as possible, and the later ones.
    pub(super) fn to_leave_out(&self, now: Time) -> BTreeSet<NodeIndex> {
        let members = self.view.members.iter().copied();
        let is_gone = |node: &NodeIndex| self.declared.contains(node) || self.is_gone(*node);
        let mut out: BTreeSet<_> = members.filter(is_gone).collect();
        let answered = |node: &NodeIndex, since: Time| {
            let peer = self.peers.get(node);
            peer.is_some_and(|peer| peer.heard > since && peer.asked.is_none())
        };
        let mut pairs: BTreeSet<_> = self
            .complaints
            .iter()
            .filter(|((_, about), at)| {
                now >= at.saturating_add(self.limits.beat) && answered(about, **at)
            })
            .map(|((from, about), _)| (*from.min(about), *from.max(about)))
            .filter(|(one, other)| !out.contains(one) && !out.contains(other))
            .collect();
        while let Some(most) = most_blamed(&pairs, self.me) {
            pairs.retain(|(one, other)| *one != most && *other != most);
            out.insert(most);
        }
        out
    }

    /// Asks whom it is time to ask, and loses whom it is time to lose.
    pub(super) fn check_peers(&mut self, now: Time) {
        let patience = self.limits.patience();
        let (index, first, me) = (self.view.index, self.view.global_services(), self.me);
        let nodes: Vec<_> = self.peers.keys().copied().collect();
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node) else {
                continue;
            };
            if peer.gone.is_some() {
                if node == first || first == me {
                    continue;
                }
                // The first of the view may have changed, or not have heard it.
                let due = peer.told + patience;
                if now >= due {
                    self.lost(now, node);
                }
                self.by(if now >= due { now + patience } else { due });
                continue;
            }
            let asked = match peer.asked {
                None if now >= peer.heard + patience => {
                    peer.asked = Some(now);
                    self.send(node, MemberMessage::Ping { index });
                    now
                }
                None => {
                    let due = peer.heard + patience;
                    self.by(due);
                    continue;
                }
                Some(asked) => asked,
            };
            if now >= asked + patience {
                if let Some(peer) = self.peers.get_mut(&node) {
                    let silent = peer.host_silent;
                    peer.gone = Some(if silent {
                        Cause::HostSilent
                    } else {
                        Cause::Silent
                    });
                }
                self.lost(now, node);
                continue;
            }
            self.by(asked + patience);
            let again = self.peers.get(&node).and_then(|peer| peer.again);
            if again.is_some_and(|again| now >= again) {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.again = None;
                }
                self.send(node, MemberMessage::Ping { index });
            } else if let Some(again) = again {
                self.by(again);
            }
        }
        if self.is_first() {
            let settled = self.complaints.values().map(|at| at + self.limits.beat);
            if let Some(settled) = settled.filter(|at| *at > now).min() {
                self.by(settled);
            }
        }
    }

    /// This process did not run for a while: whom it has not heard is not to blame. It asks.
    pub(super) fn was_stopped(&mut self, now: Time) {
        self.good = now;
        self.complaints.clear();
        self.standing = None;
        self.orphaned = None;
        let index = self.view.index;
        let nodes: Vec<_> = self.peers.keys().copied().collect();
        for node in nodes {
            let mut peer = Peer::new(now);
            peer.asked = Some(now);
            self.peers.insert(node, peer);
            self.send(node, MemberMessage::Ping { index });
        }
    }
}

/// Who is in most of the pairs; of several, the last.
fn most_blamed(pairs: &BTreeSet<(NodeIndex, NodeIndex)>, me: NodeIndex) -> Option<NodeIndex> {
    let nodes: BTreeSet<_> = pairs
        .iter()
        .flat_map(|(one, other)| [*one, *other])
        .collect();
    let blamed = |node: &NodeIndex| {
        let of = |pair: &&(NodeIndex, NodeIndex)| pair.0 == *node || pair.1 == *node;
        pairs.iter().filter(of).count()
    };
    let others = nodes.into_iter().filter(|node| *node != me);
    others.max_by_key(|node| (blamed(node), *node))
}
