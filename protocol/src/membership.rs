//! What daemons tell each other about who is a member: heartbeats, votes, and the views that come of them.
//!
//! ```text
//! heartbeat   first of the view ── Beat ──▶ children ── Beat ──▶ …      down the tree, once an interval
//!                               ◀── Ack ───          ◀── Ack ───        up, when all below have answered
//! election    candidate ── Ask ──▶ every member        "vote for me in this epoch?"
//!                       ◀── Promise | Deny ──
//!             candidate ── Propose ──▶ every member    "this is the next view"
//!                       ◀── Vote | Deny ──
//!             candidate ── Commit ──▶ every member     a majority has voted: it is
//! ```

use serde::{Deserialize, Serialize};

use crate::ids::NodeIndex;

/// Who is a member from one change to the next. For each index there is one view, which a majority of the view before it
/// agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// How many views were before this one.
    pub index: u64,
    /// The epoch in which it was proposed. A global service answers under it.
    pub epoch: u64,
    /// The members by rank. The first runs global services.
    pub members: Vec<NodeIndex>,
}

impl View {
    /// The view that the bring-up ends with.
    #[must_use]
    pub fn first(nodes: u32) -> Self {
        Self {
            index: 0,
            epoch: 0,
            members: (0..nodes).filter_map(NodeIndex::new).collect(),
        }
    }

    /// The member that runs global services: the one with the lowest rank.
    #[must_use]
    pub fn global_services(&self) -> NodeIndex {
        self.members.first().copied().unwrap_or(NodeIndex::FIRST)
    }

    /// Whether a node is a member.
    #[must_use]
    pub fn contains(&self, node: NodeIndex) -> bool {
        self.position(node).is_some()
    }

    /// A member's place in the order of ranks.
    #[must_use]
    pub fn position(&self, node: NodeIndex) -> Option<usize> {
        self.members.binary_search(&node).ok()
    }

    /// The member above another one in the tree of this view.
    #[must_use]
    pub fn parent(&self, node: NodeIndex, fanout: u32) -> Option<NodeIndex> {
        let above = self.position(node)?.checked_sub(1)? / (fanout.max(1) as usize);
        self.members.get(above).copied()
    }

    /// The members below another one in the tree of this view.
    #[must_use]
    pub fn children(&self, node: NodeIndex, fanout: u32) -> &[NodeIndex] {
        let Some(position) = self.position(node) else {
            return &[];
        };
        let fanout = fanout.max(1) as usize;
        let count = self.members.len();
        let first = position.saturating_mul(fanout).saturating_add(1).min(count);
        &self.members[first..first.saturating_add(fanout).min(count)]
    }
}

/// What daemons tell each other about membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MemberMessage {
    /// Down the tree: the first of the view with this index lives.
    Beat {
        /// The sender's view.
        index: u64,
        /// Number of the heartbeat within the view.
        wave: u64,
    },
    /// Up the tree: so many nodes, the sender and all below it, have got the heartbeat and stand by the view.
    Ack {
        /// The sender's view.
        index: u64,
        /// Number of the heartbeat.
        wave: u64,
        /// How many nodes.
        nodes: u32,
        /// How many processes of the job live on the nodes that have answered.
        processes: u32,
    },
    /// Are you there?
    Ping {
        /// The sender's view.
        index: u64,
    },
    /// I am.
    Pong {
        /// The sender's view.
        index: u64,
    },
    /// To the first of the view: the sender cannot reach a member.
    Complain {
        /// The sender's view.
        index: u64,
        /// Who is not reached.
        about: NodeIndex,
    },
    /// To the first of the view: the sender has promised a later epoch to another, and stands by nobody else.
    Promised(u64),
    /// Vote for the sender in this epoch.
    Ask {
        /// The epoch.
        epoch: u64,
        /// The sender's view, which is to be followed by another.
        view: View,
    },
    /// The vote. It is for the view after the one with this index.
    Promise {
        /// The epoch.
        epoch: u64,
        /// The view that is to be followed by another.
        index: u64,
        /// What the sender has voted for already, and in which epoch.
        accepted: Option<(u64, View)>,
    },
    /// No vote.
    Deny {
        /// The highest epoch that the sender knows of.
        epoch: u64,
        /// The sender's view.
        view: View,
    },
    /// The next view.
    Propose {
        /// The epoch in which the sender was voted for.
        epoch: u64,
        /// The view.
        view: View,
    },
    /// The sender agrees to the view.
    Vote {
        /// The epoch.
        epoch: u64,
        /// Index of the view.
        index: u64,
    },
    /// A majority has agreed to this view.
    Commit(View),
    /// To the neighbours and the first of the view: the sender ends, since whoever started it is gone.
    Leave,
}

impl MemberMessage {
    /// Whether it is a heartbeat, or the answer to one.
    #[must_use]
    pub const fn is_heartbeat(&self) -> bool {
        matches!(self, Self::Beat { .. } | Self::Ack { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(members: &[u32]) -> View {
        View {
            index: 3,
            epoch: 9,
            members: members.iter().filter_map(|n| NodeIndex::new(*n)).collect(),
        }
    }

    #[test]
    fn the_tree_of_a_view_reaches_every_member_once() {
        let view = view(&[1, 4, 5, 9, 10, 12, 13, 20]);
        for fanout in 1..5 {
            let mut below: Vec<_> = view
                .members
                .iter()
                .flat_map(|node| view.children(*node, fanout))
                .copied()
                .collect();
            below.sort_unstable();
            assert_eq!(below, view.members[1..], "fan-out {fanout}");
            for node in &view.members[1..] {
                let parent = view.parent(*node, fanout).unwrap();
                assert!(view.children(parent, fanout).contains(node));
            }
        }
        assert_eq!(view.parent(view.members[0], 2), None);
        assert_eq!(view.children(NodeIndex::FIRST, 2), []);
        assert_eq!(view.global_services().get(), 1);
    }
}
