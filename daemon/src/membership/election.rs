//! The next view: candidates, votes, and what a quorum is.

use std::collections::{BTreeMap, BTreeSet};

use dragon_protocol::NodeIndex;
use dragon_protocol::membership::{MemberMessage, View};

use super::{Members, Time, Why};

/// A vote that was given for the next view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promised {
    pub(super) epoch: u64,
    pub(super) to: NodeIndex,
    at: Time,
}

/// This node's attempt to have the next view decided.
#[derive(Debug)]
pub(super) struct Candidacy {
    epoch: u64,
    since: Time,
    /// Who has promised, and what they had agreed to before.
    promises: BTreeMap<NodeIndex, Option<(u64, View)>>,
    /// Who has refused.
    denials: BTreeSet<NodeIndex>,
    proposal: Option<View>,
    votes: BTreeSet<NodeIndex>,
}

impl Members {
    /// Stands for election where that is due: the first of the view to leave somebody out, the others when the first is lost.
    pub(super) fn check_candidacy(&mut self, now: Time) {
        let limit = self.limits.candidacy();
        if let Some(standing) = &self.standing {
            let (answers, end) = (
                standing.since + self.limits.patience(),
                standing.since + limit,
            );
            if now < answers {
                return self.by(answers);
            }
            if now < end {
                self.by(end);
                return self.advance(now);
            }
            self.standing = None;
        }
        let turn = if self.is_first() {
            if self.to_leave_out(now).is_empty() {
                return;
            }
            now
        } else {
            let Some(orphaned) = self.orphaned else {
                return;
            };
            if self.view.members.len() == 2 && self.manager.is_none() {
                // Half of the view without its first: no quorum, ever, unless somebody says that the first is dead.
                return self.end(Why::NoMajority);
            }
            // Whoever it is bound to may still answer; then one after the other, so that they do not take each other's votes.
            let free = if self.declared.contains(&self.view.global_services()) {
                0
            } else {
                self.bound_until
            };
            orphaned.max(free) + self.limits.beat * self.place().saturating_sub(1)
        };
        // Whoever has this node's vote has its time.
        let after_vote = self.promised.as_ref().map_or(0, |promised| {
            let own = promised.to == self.me;
            promised.at + if own { 0 } else { limit }
        });
        let turn = turn.max(after_vote).max(self.not_before);
        if now < turn {
            return self.by(turn);
        }
        self.stand(now);
    }

    /// This node's place in the order of ranks.
    fn place(&self) -> u64 {
        self.view.position(self.me).unwrap_or(0) as u64
    }

    /// Asks all members for their votes in a new epoch.
    pub(super) fn stand(&mut self, now: Time) {
        self.seen += 1;
        let epoch = self.seen;
        self.voted = epoch;
        self.promised = Some(Promised {
            epoch,
            to: self.me,
            at: now,
        });
        self.standing = Some(Candidacy {
            epoch,
            since: now,
            promises: [(self.me, self.accepted.clone())].into(),
            denials: BTreeSet::new(),
            proposal: None,
            votes: BTreeSet::new(),
        });
        self.by(now + self.limits.patience());
        let view = self.view.clone();
        for node in self.others() {
            let view = view.clone();
            self.send(node, MemberMessage::Ask { epoch, view });
            self.expect_answer(now, node);
        }
        self.advance(now);
    }

    /// Another asks for this node's vote.
    pub(super) fn asked(&mut self, now: Time, from: NodeIndex, epoch: u64, view: View) {
        self.seen = self.seen.max(epoch);
        self.adopt(now, view.clone());
        if self.over {
            return;
        }
        let again = self
            .promised
            .is_some_and(|last| last.epoch == epoch && last.to == from);
        let spent = epoch <= self.voted && !again;
        #[cfg(test)]
        let spent = spent && !(self.broken.two_votes && epoch == self.voted);
        let bound = from != self.view.global_services()
            && now < self.bound_until
            && !self.declared.contains(&self.view.global_services());
        #[cfg(test)]
        let bound = bound && !self.broken.no_lease;
        if from < self.me && self.standing.take().is_some() {
            // The earlier one has its time first.
            self.not_before = now + self.limits.patience();
        }
        if view.index < self.view.index || !self.view.contains(from) || spent || bound {
            return self.deny(from);
        }
        self.standing = None;
        self.voted = epoch;
        self.promised = Some(Promised {
            epoch,
            to: from,
            at: now,
        });
        let (index, accepted) = (self.view.index, self.accepted.clone());
        let promise = MemberMessage::Promise {
            epoch,
            index,
            accepted,
        };
        self.send(from, promise);
    }

    fn deny(&mut self, to: NodeIndex) {
        let (epoch, view) = (self.seen.max(self.voted), self.view.clone());
        self.send(to, MemberMessage::Deny { epoch, view });
    }

    pub(super) fn denied(&mut self, now: Time, from: NodeIndex, epoch: u64, view: View) {
        self.seen = self.seen.max(epoch);
        self.heard(now, from);
        if let Some(standing) = &mut self.standing {
            standing.denials.insert(from);
            let denials = &standing.denials;
            let open = self.view.members.iter().copied();
            let open = open.filter(|node| !denials.contains(node)).collect();
            if !self.is_quorum(&open) {
                self.standing = None;
                self.not_before = now + self.limits.beat * (1 + self.place());
            }
        }
        if view.index < self.view.index {
            let view = self.view.clone();
            self.send(from, MemberMessage::Commit(view));
        } else {
            self.adopt(now, view);
        }
    }

    pub(super) fn promised_by(
        &mut self,
        now: Time,
        from: NodeIndex,
        epoch: u64,
        index: u64,
        accepted: Option<(u64, View)>,
    ) {
        if index != self.view.index {
            return;
        }
        self.heard(now, from);
        if let Some(standing) = &mut self.standing
            && standing.epoch == epoch
        {
            standing.promises.insert(from, accepted);
        }
        self.advance(now);
    }

    /// Proposes the next view when a quorum has promised.
    pub(super) fn advance(&mut self, now: Time) {
        let Some(standing) = &self.standing else {
            return;
        };
        if standing.proposal.is_some() {
            return self.decide(now);
        }
        let promises: BTreeSet<_> = standing.promises.keys().copied().collect();
        if !self.is_quorum(&promises) {
            return;
        }
        self.good = now;
        // The next view is to have a first that lives.
        let silent = self.others().into_iter().filter(|node| {
            *node < self.me && !promises.contains(node) && !standing.denials.contains(node)
        });
        let silent: BTreeSet<_> = silent.collect();
        if !silent.is_empty() && now < standing.since + self.limits.patience() / 2 {
            return;
        }
        let epoch = standing.epoch;
        let agreed = standing.promises.values().flatten();
        let agreed = agreed.max_by_key(|(epoch, _)| *epoch).cloned();
        let view = match agreed {
            // It may be decided already, and nobody else may be next.
            Some((_, view)) => view,
            None => {
                let out = self.to_leave_out(now);
                let members = self.view.members.iter().copied();
                View {
                    index: self.view.index + 1,
                    epoch,
                    members: members
                        .filter(|node| !out.contains(node) && !silent.contains(node))
                        .collect(),
                }
            }
        };
        if let Some(standing) = &mut self.standing {
            standing.proposal = Some(view.clone());
            standing.votes.insert(self.me);
        }
        self.accepted = Some((epoch, view.clone()));
        for node in self.others() {
            let view = view.clone();
            self.send(node, MemberMessage::Propose { epoch, view });
        }
        self.decide(now);
    }

    /// A candidate with a quorum's promises proposes a view.
    pub(super) fn proposed(&mut self, now: Time, from: NodeIndex, epoch: u64, view: View) {
        self.seen = self.seen.max(epoch);
        let later =
            |last: &Promised| last.epoch > epoch || (last.epoch == epoch && last.to != from);
        let spent = self.promised.as_ref().is_some_and(later);
        #[cfg(test)]
        let spent = spent && !self.broken.two_votes;
        if view.index <= self.view.index || spent {
            return self.deny(from);
        }
        if view.index > self.view.index + 1 {
            let index = self.view.index;
            return self.send(from, MemberMessage::Ping { index });
        }
        // Its sender has heard of a majority.
        self.good = now;
        self.voted = self.voted.max(epoch);
        if self.promised.is_none_or(|last| last.epoch < epoch) {
            self.standing = None;
            self.promised = Some(Promised {
                epoch,
                to: from,
                at: now,
            });
        }
        let index = view.index;
        self.accepted = Some((epoch, view));
        self.send(from, MemberMessage::Vote { epoch, index });
    }

    pub(super) fn voted_by(&mut self, now: Time, from: NodeIndex, epoch: u64, index: u64) {
        if let Some(standing) = &mut self.standing
            && standing.epoch == epoch
            && standing
                .proposal
                .as_ref()
                .is_some_and(|view| view.index == index)
        {
            standing.votes.insert(from);
            self.decide(now);
        }
    }

    fn decide(&mut self, now: Time) {
        let Some(standing) = &self.standing else {
            return;
        };
        let Some(view) = standing.proposal.clone() else {
            return;
        };
        if !self.is_quorum(&standing.votes) {
            return;
        }
        // Also to those who are left out.
        for node in self.view.members.clone() {
            let view = view.clone();
            self.send(node, MemberMessage::Commit(view));
        }
        self.adopt(now, view);
    }

    /// More than half of the view, or half with its first, or all that are not declared dead.
    pub(super) fn is_quorum(&self, nodes: &BTreeSet<NodeIndex>) -> bool {
        let all = self.view.members.len();
        let count = nodes
            .iter()
            .filter(|node| self.view.contains(**node))
            .count();
        let mut living = self.view.members.iter();
        count * 2 > all
            || count * 2 == all && nodes.contains(&self.view.global_services())
            || living.all(|node| nodes.contains(node) || self.declared.contains(node))
    }

    /// The other members that are not lost.
    fn others(&self) -> Vec<NodeIndex> {
        let members = self.view.members.iter().copied();
        members
            .filter(|node| *node != self.me && !self.is_gone(*node))
            .collect()
    }
}
