//! Groups that live on this node: who is a member, who waits for what, who has ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use dragon_protocol::group::{GroupSpec, GroupTask, MemberInfo, MemberState, Order};
use dragon_protocol::process::Lives;
use dragon_protocol::{Code, NodeIndex, ObjectId, SlotId};

use super::batch::Start;
use super::{Action, Failed, Groups, SIGKILL};

/// At so many groups those that nobody can ask about any more are looked for.
const PRUNE: usize = 64;

/// The groups of this node.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) groups: HashMap<ObjectId, Group>,
    prune_at: usize,
}

/// A group that lives on this node.
#[derive(Debug)]
pub(super) struct Group {
    creator: SlotId,
    lives: Lives,
    /// What its members are; `None` once all have ended.
    spec: Option<Arc<GroupSpec>>,
    size: u32,
    last_batch: u32,
    /// Starts that are not done.
    open: BTreeMap<u32, Plan>,
    /// Local ranks that were given out, by node.
    locals: BTreeMap<NodeIndex, u32>,
    /// Those that have ended for good.
    pub(super) ended: BTreeMap<u32, MemberInfo>,
    /// Nobody has a handle any more, or ever had one.
    unwanted: bool,
}

/// One start of members, from its order to the last one's end.
#[derive(Debug)]
struct Plan {
    /// The number of the request that waits for it.
    request: Option<u64>,
    started: bool,
    ranks: Range<u32>,
    /// Members of the group when they were asked for, these included.
    size: u32,
    parts: BTreeMap<NodeIndex, Vec<(u32, u32)>>,
    /// Those that are not to be started any more.
    removed: BTreeSet<u32>,
    /// Those whose nodes were lost before they could say that they were started.
    lost: Vec<Failed>,
}

impl Default for Home {
    fn default() -> Self {
        Self {
            groups: HashMap::new(),
            prune_at: PRUNE,
        }
    }
}

impl Groups {
    /// A new group on this node; `places` are the nodes of its members.
    pub fn start(
        &mut self,
        group: ObjectId,
        creator: SlotId,
        spec: Box<GroupSpec>,
        places: &[NodeIndex],
        request: u64,
    ) -> Vec<Action> {
        let new = Group {
            creator,
            lives: spec.lives,
            spec: Some(Arc::from(spec)),
            size: 0,
            last_batch: 0,
            open: BTreeMap::new(),
            locals: BTreeMap::new(),
            ended: BTreeMap::new(),
            unwanted: false,
        };
        self.home.groups.insert(group, new);
        self.start_more(group, places, request)
    }

    /// What members of a group of this node are, as long as it has not ended.
    #[must_use]
    pub fn spec(&self, group: ObjectId) -> Option<&GroupSpec> {
        self.home.groups.get(&group)?.spec.as_deref()
    }

    /// More members of a group of this node.
    pub fn start_more(&mut self, id: ObjectId, places: &[NodeIndex], request: u64) -> Vec<Action> {
        let Some(group) = self.home.groups.get_mut(&id) else {
            return Vec::new();
        };
        let first = group.size;
        let mut parts: BTreeMap<NodeIndex, Vec<(u32, u32)>> = BTreeMap::new();
        for node in places {
            let local = group.locals.entry(*node).or_default();
            parts.entry(*node).or_default().push((group.size, *local));
            group.size += 1;
            *local += 1;
        }
        group.last_batch += 1;
        let plan = Plan {
            request: Some(request),
            started: false,
            ranks: first..group.size,
            size: group.size,
            parts,
            removed: BTreeSet::new(),
            lost: Vec::new(),
        };
        let number = group.last_batch;
        group.open.insert(number, plan);
        self.send_start(id, number)
    }

    /// Whoever asked for members by the request with this number wants them no more: those that wait are called off, those that
    /// run are killed. The answer comes as ever.
    pub fn call_off(&mut self, request: u64) -> Vec<Action> {
        let asked = |plan: &&Plan| plan.request == Some(request);
        let mut groups = self.home.groups.iter();
        let found = groups.find_map(|(id, group)| {
            let plan = group.open.values().find(asked)?;
            Some((*id, plan.ranks.clone().collect()))
        });
        found.map_or_else(Vec::new, |(id, ranks)| {
            self.order(id, Order::Remove(Some(ranks)), None)
        })
    }

    /// Whether a group lives here.
    #[must_use]
    pub fn knows(&self, group: ObjectId) -> bool {
        self.home.groups.contains_key(&group)
    }

    /// Now and then: forgets groups that have ended and that nobody has a handle on.
    pub fn prune(&mut self, exists: impl Fn(ObjectId) -> bool) {
        let groups = &mut self.home.groups;
        if groups.len() >= self.home.prune_at {
            groups.retain(|id, group| !group.open.is_empty() || exists(*id));
            self.home.prune_at = 2 * groups.len().max(PRUNE);
        }
    }

    /// A process of this node is gone: its groups end, unless they are to live on.
    pub fn creator_left(&mut self, slot: SlotId) -> Vec<Action> {
        let mut left = Vec::new();
        for (id, group) in &mut self.home.groups {
            if group.creator == slot {
                group.unwanted = true;
                left.push((*id, group.lives == Lives::WithCreator));
            }
        }
        let mut actions = Vec::new();
        for (id, ends) in left {
            if ends {
                actions.extend(self.order(id, Order::Remove(None), None));
            }
            self.let_go(id);
        }
        actions
    }

    /// Notes whom an order removes, and says how many members there are and which nodes it goes to: those with members that
    /// may not have ended.
    pub(super) fn note_order(
        &mut self,
        id: ObjectId,
        order: &Order,
    ) -> Option<(u32, Vec<NodeIndex>)> {
        let group = self.home.groups.get_mut(&id)?;
        let mut nodes = BTreeSet::new();
        for plan in group.open.values_mut() {
            match order {
                Order::Remove(None) => plan.removed.extend(plan.ranks.clone()),
                Order::Remove(Some(ranks)) => {
                    let ranks = ranks.iter().filter(|rank| plan.ranks.contains(rank));
                    plan.removed.extend(ranks);
                }
                _ => {}
            }
            nodes.extend(plan.parts.keys());
        }
        nodes.retain(|node| self.view.contains(*node));
        Some((group.size, nodes.into_iter().collect()))
    }

    /// The tree is a new one: members on lost nodes are lost, and all that is open begins anew along this tree.
    pub(super) fn begin_anew(&mut self, lost: &[NodeIndex], actions: &mut Vec<Action>) {
        let mut open = Vec::new();
        for (id, group) in &mut self.home.groups {
            for (number, plan) in &mut group.open {
                for node in lost {
                    plan.lose(*node, &mut group.ended);
                }
                open.push((*id, *number));
            }
        }
        open.sort_by_key(|(id, number)| (id.index, id.generation, *number));
        for (id, number) in open {
            actions.extend(self.send_start(id, number));
        }
    }

    /// Sends those members of a start on their way of which no end is known.
    fn send_start(&mut self, id: ObjectId, number: u32) -> Vec<Action> {
        let Some(group) = self.home.groups.get(&id) else {
            return Vec::new();
        };
        let (Some(plan), Some(spec)) = (group.open.get(&number), &group.spec) else {
            return Vec::new();
        };
        let open = |(rank, _): &(u32, u32)| !group.ended.contains_key(rank);
        let parts = plan.parts.iter();
        let parts =
            parts.map(|(node, ranks)| (*node, ranks.iter().copied().filter(open).collect()));
        let parts = parts.filter(|(_, ranks): &(_, Vec<_>)| !ranks.is_empty());
        let start = Start {
            group: id,
            creator: group.creator,
            batch: number,
            spec: spec.clone(),
            size: plan.size,
            parts: parts.collect(),
            removed: plan.removed.iter().copied().collect(),
        };
        self.take_start(None, start)
    }

    /// All members of a start are started, or not: then none is left of the group's first one.
    pub(super) fn home_started(
        &mut self,
        id: ObjectId,
        number: u32,
        mut failed: Vec<Failed>,
        actions: &mut Vec<Action>,
    ) {
        let Some(group) = self.home.groups.get_mut(&id) else {
            return;
        };
        let Some(plan) = group.open.get_mut(&number).filter(|plan| !plan.started) else {
            return;
        };
        plan.started = true;
        failed.append(&mut plan.lost);
        let undo = !failed.is_empty() && number == 1;
        group.unwanted |= undo;
        if let Some(request) = plan.request.take() {
            actions.push(Action::Started(request, id, failed));
        }
        if undo {
            actions.extend(self.order(id, Order::Remove(None), None));
        }
    }

    /// All members of a start have ended for good: whoever had some may forget them.
    pub(super) fn home_done(
        &mut self,
        id: ObjectId,
        number: u32,
        members: Vec<MemberInfo>,
        actions: &mut Vec<Action>,
    ) {
        let Some(group) = self.home.groups.get_mut(&id) else {
            return;
        };
        for member in members {
            group.ended.entry(member.rank).or_insert(member);
        }
        let plan = group.open.remove(&number);
        if group.open.is_empty() {
            group.spec = None;
            actions.push(Action::Finished(id, status_of(group.ended.values())));
        }
        let nodes = plan.into_iter().flat_map(|plan| plan.parts.into_keys());
        let nodes = nodes.filter(|node| *node != self.me && self.view.contains(*node));
        let nodes: Vec<NodeIndex> = nodes.collect();
        if !nodes.is_empty() {
            actions.extend(self.send_out(id, GroupTask::Forget(number), nodes, None));
        }
        self.let_go(id);
    }

    /// Forgets a group that has ended, when nobody can ask about it any more and nobody waits for an answer.
    pub(super) fn let_go(&mut self, id: ObjectId) {
        let over = |group: &Group| group.unwanted && group.open.is_empty();
        if self.home.groups.get(&id).is_some_and(over) && !self.has_orders(id) {
            self.home.groups.remove(&id);
        }
    }
}

impl Plan {
    /// A node is lost: so are those of its members that were not known to have ended.
    fn lose(&mut self, node: NodeIndex, ended: &mut BTreeMap<u32, MemberInfo>) {
        for (rank, _) in self.parts.remove(&node).into_iter().flatten() {
            ended.entry(rank).or_insert_with(|| {
                if !self.started {
                    let why = format!("node {node} is lost");
                    self.lost.push((rank, Code::NodeDown, why));
                }
                MemberInfo {
                    rank,
                    node,
                    state: MemberState::Lost,
                    restarts: 0,
                }
            });
        }
    }
}

/// The status of a group: that of its first member, by rank, that did not end with 0; one that never ran counts as 127.
fn status_of<'a>(members: impl Iterator<Item = &'a MemberInfo>) -> i32 {
    let mut statuses = members.map(|member| match member.state {
        MemberState::Ended(status) => status,
        MemberState::Lost => SIGKILL,
        _ => 127 << 8,
    });
    statuses.find(|status| *status != 0).unwrap_or(0)
}
