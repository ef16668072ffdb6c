//! Groups of processes: who is where, who is started again, who has ended.
//!
//! No I/O and no clock: what happens comes in by methods, what is to be done goes out as [`Action`]s, so that a thousand nodes
//! can be simulated in a test. Each node knows the members of its own; restarts, back-off and walltime are its own business.
//! The group's node hears of members once when all of a start are started, once when all of them have ended, and when it asks.
//!
//! What can be lost on the way is kept where it cannot: between two neighbours each message arrives once and in order
//! (`lines.rs`); members stay with their node until the group's node knows how they have ended (`batch.rs`); what that one
//! began and has no answer to (`home.rs`, `orders.rs`) it begins anew whenever the tree becomes another. What is gathered on
//! the way between is of one view, and is dropped with it.

mod batch;
mod home;
mod lines;
mod orders;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dragon_protocol::control::SpawnRequest;
use dragon_protocol::group::{GroupLetter, GroupMessage, MemberInfo};
use dragon_protocol::membership::View;
use dragon_protocol::process::Reach;
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind, SlotId};

use batch::{Batch, Start};
use home::Home;
use lines::Lines;
use orders::{Orders, Passed};

/// Between SIGTERM and SIGKILL at the end of the walltime.
const GRACE: Duration = Duration::from_secs(2);
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// A member of a group, as its node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberKey {
    /// Which start of which group.
    pub batch: BatchKey,
    /// Its number in the group.
    pub rank: u32,
}

/// The ranks and local ranks of a node.
type Part = (NodeIndex, Vec<(u32, u32)>);

/// A rank that was not started, and why.
type Failed = (u32, Code, String);

/// One start of members of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchKey {
    node: NodeIndex,
    group: (u32, u32),
    number: u32,
}

impl BatchKey {
    fn new(group: ObjectId, number: u32) -> Self {
        Self {
            node: group.node,
            group: (group.index, group.generation),
            number,
        }
    }

    /// The node of the group.
    #[must_use]
    pub fn node(self) -> NodeIndex {
        self.node
    }

    /// How the group is called where people see it: by its object.
    #[must_use]
    pub fn group_name(self) -> String {
        let (index, generation) = self.group;
        let group = ObjectId {
            node: self.node,
            kind: ObjectKind::Process,
            index,
            generation,
        };
        group.to_string()
    }

    fn is_of(self, group: ObjectId) -> bool {
        self.node == group.node && self.group == (group.index, group.generation)
    }

    fn number(self) -> u32 {
        self.number
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to a neighbour.
    Tell(NodeIndex, GroupLetter),
    /// Start a member on this node; [`Groups::started`] is told.
    Spawn(MemberKey, Box<SpawnRequest>, SlotId),
    /// Members that wait for CPUs or GPUs do so no longer; [`Groups::started`] is told.
    Cancel(Vec<MemberKey>),
    /// Send a signal to a process of this node.
    Signal(ObjectId, i32, Reach),
    /// Call [`Groups::due`] after this time.
    Later(Duration, Due),
    /// No more.
    NoLonger(Due),
    /// Everybody who waits for the group learns its status.
    Finished(ObjectId, i32),
    /// The group with this number of a request was started, or not.
    Started(u64, ObjectId, Vec<(u32, Code, String)>),
    /// The members, for the request with this number.
    Members(u64, Vec<MemberInfo>),
}

/// What is due at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Due {
    /// A member is started again.
    Restart(MemberKey),
    /// The walltime is over.
    Walltime(BatchKey),
    /// The time between SIGTERM and SIGKILL is over.
    Kill(BatchKey),
}

/// The groups of a node: those that live on it, and the members that it has of others.
#[derive(Debug)]
pub struct Groups {
    me: NodeIndex,
    fanout: u32,
    view: View,
    home: Home,
    batches: BTreeMap<BatchKey, Batch>,
    orders: Orders,
    lines: Lines,
    /// Messages of views that this node does not have yet: by whom, and of which.
    held: Vec<(NodeIndex, u64, GroupMessage)>,
    /// The runtime ends: nobody is started again.
    closed: bool,
}

impl Groups {
    /// The groups of a node in a tree of this fan-out.
    #[must_use]
    pub fn new(me: NodeIndex, fanout: u32, view: View) -> Self {
        Self {
            me,
            fanout: fanout.max(1),
            view,
            home: Home::default(),
            batches: BTreeMap::new(),
            orders: Orders::default(),
            lines: Lines::default(),
            held: Vec::new(),
            closed: false,
        }
    }

    /// How many groups live here, and how many starts have members here or beyond.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.home.groups.len(), self.batches.len())
    }

    /// The runtime ends: nobody is started again.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// A neighbour says something.
    pub fn hear(&mut self, from: NodeIndex, letter: GroupLetter) -> Vec<Action> {
        let (came, confirmed) = self.lines.take(from, letter);
        let mut actions = Vec::from_iter(confirmed);
        for (view, message) in came {
            match view.cmp(&self.view.index) {
                Ordering::Less => {}
                Ordering::Equal => actions.extend(self.handle(from, message)),
                Ordering::Greater => self.held.push((from, view, message)),
            }
        }
        actions
    }

    /// Who is a member has changed, and with that the tree.
    pub fn view_changed(&mut self, view: &View) -> Vec<Action> {
        let before = std::mem::replace(&mut self.view, view.clone());
        let mut lost = before.members;
        lost.retain(|node| !view.contains(*node));
        for node in &lost {
            self.lines.forget(*node);
        }
        let mut actions = Vec::new();
        self.leave_ways(&mut actions);
        self.begin_anew(&lost, &mut actions);
        self.order_anew(&lost, &mut actions);
        for (from, index, message) in std::mem::take(&mut self.held) {
            match index.cmp(&view.index) {
                Ordering::Less => {}
                Ordering::Equal => actions.extend(self.handle(from, message)),
                Ordering::Greater => self.held.push((from, index, message)),
            }
        }
        actions
    }

    /// A connection with a node has ended: what it has not confirmed may be lost with it.
    pub fn link_lost(&mut self, node: NodeIndex) -> Vec<Action> {
        self.lines.again(node)
    }

    /// A node could not be reached: what was said meanwhile is lost.
    pub fn unreachable(&mut self, node: NodeIndex) {
        self.lines.cut(node);
    }

    /// A connection with a node stands.
    pub fn connected(&mut self, node: NodeIndex) -> Vec<Action> {
        self.lines.connected(node)
    }

    fn handle(&mut self, from: NodeIndex, message: GroupMessage) -> Vec<Action> {
        match message {
            GroupMessage::Start {
                group,
                creator,
                batch,
                spec,
                size,
                parts,
                removed,
            } => {
                let start = Start {
                    group,
                    creator,
                    batch,
                    spec: Arc::from(spec),
                    size,
                    parts,
                    removed,
                };
                self.take_start(Some(from), start)
            }
            GroupMessage::Started {
                group,
                batch,
                failed,
            } => self.below_said(from, BatchKey::new(group, batch), failed, None),
            GroupMessage::Done {
                group,
                batch,
                members,
            } => {
                let key = BatchKey::new(group, batch);
                self.below_said(from, key, Vec::new(), Some(members))
            }
            GroupMessage::Order {
                group,
                number,
                oldest,
                task,
                nodes,
            } => {
                let passed = Passed {
                    group,
                    number,
                    oldest,
                    task,
                    nodes,
                };
                self.pass_order(Some(from), passed)
            }
            GroupMessage::Ordered {
                group,
                number,
                members,
            } => self.gathered(group, number, Some(from), members),
            _ => Vec::new(),
        }
    }

    /// The neighbour on the way to another node; `None` when that one is lost.
    fn towards(&self, node: NodeIndex) -> Option<NodeIndex> {
        next_hop(&self.view, self.me, node, self.fanout)
    }

    fn tell(&mut self, to: NodeIndex, message: GroupMessage) -> Action {
        self.lines.tell(to, self.view.index, message)
    }
}

/// The neighbour on the way from one member to another in the tree of a view.
fn next_hop(view: &View, me: NodeIndex, to: NodeIndex, fanout: u32) -> Option<NodeIndex> {
    let here = view.position(me)?;
    let mut node = to;
    while view.position(node)? > here {
        let above = view.parent(node, fanout)?;
        if above == me {
            return Some(node);
        }
        node = above;
    }
    view.parent(me, fanout)
}

#[cfg(test)]
mod tests;
