//! Groups of processes: who is where, who is started again, who has ended.
//!
//! No I/O and no clock: what happens comes in by methods, what is to be done goes out as [`Action`]s, so that a thousand nodes
//! can be simulated in a test. Each node knows the members of its own and, while they live, over which neighbours of the tree
//! it sent a start on; restarts, back-off and walltime are its own business. The group's node hears of members once when all
//! of a start are started, once when all of them have ended, and when it asks.

mod orders;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use dragon_protocol::control::{SpawnRequest, SpawnResult, Spawned};
use dragon_protocol::group::{
    GroupMessage, GroupSpec, MemberInfo, MemberState, Order, Restart, RestartWhen,
};
use dragon_protocol::process::{Lives, Rank, Reach};
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind, SlotId};

use orders::Gather;

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
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to a neighbour.
    Tell(NodeIndex, GroupMessage),
    /// Start a member on this node; [`Groups::started`] is told.
    Spawn(MemberKey, Box<SpawnRequest>, SlotId),
    /// Send a signal to a process of this node.
    Signal(ObjectId, i32, Reach),
    /// Call [`Groups::due`] after this time.
    Later(Duration, Due),
    /// Everybody who waits for the group learns its status.
    Finished(ObjectId, i32),
    /// The group with this number of a request was started, or not.
    Started(u64, ObjectId, Vec<(u32, Code, String)>),
    /// The members, for the request with this number.
    Members(u64, Vec<MemberInfo>),
}

/// What is due at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    own: HashMap<ObjectId, Group>,
    batches: BTreeMap<BatchKey, Batch>,
    gathers: HashMap<(ObjectId, u64), Gather>,
    last_order: u64,
    /// The runtime ends: nobody is started again.
    closed: bool,
}

/// A group that lives on this node.
#[derive(Debug)]
struct Group {
    creator: SlotId,
    spec: Box<GroupSpec>,
    size: u32,
    last_batch: u32,
    /// Starts that are not done, each with the number of the request that waits for it to be started.
    open: BTreeMap<u32, Option<u64>>,
    /// Local ranks that were given out, by node.
    locals: BTreeMap<NodeIndex, u32>,
    /// Those that have ended for good.
    ended: BTreeMap<u32, MemberInfo>,
    creator_left: bool,
}

/// Members that were asked for together, as far as they are on this node or beyond it.
#[derive(Debug)]
struct Batch {
    group: ObjectId,
    creator: SlotId,
    spec: Box<GroupSpec>,
    size: u32,
    /// The neighbour that it came from; `None` on the group's node.
    from: Option<NodeIndex>,
    members: BTreeMap<u32, Member>,
    below: BTreeMap<NodeIndex, Below>,
    failed: Vec<(u32, Code, String)>,
    /// Members below that have ended for good.
    ended: Vec<MemberInfo>,
    told_started: bool,
    stopped: bool,
}

/// A neighbour that members were sent on to.
#[derive(Debug)]
struct Below {
    members: Vec<(NodeIndex, u32)>,
    started: bool,
    done: bool,
}

#[derive(Debug)]
struct Member {
    local: u32,
    state: MemberState,
    restarts: u32,
    stopped: bool,
}

impl Groups {
    /// The groups of a node in a tree of this fan-out.
    #[must_use]
    pub fn new(me: NodeIndex, fanout: u32) -> Self {
        Self {
            me,
            fanout: fanout.max(1),
            own: HashMap::new(),
            batches: BTreeMap::new(),
            gathers: HashMap::new(),
            last_order: 0,
            closed: false,
        }
    }

    /// How many groups live here, and how many starts have members here or beyond.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.own.len(), self.batches.len())
    }

    /// The runtime ends: nobody is started again.
    pub fn close(&mut self) {
        self.closed = true;
    }

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
            spec,
            size: 0,
            last_batch: 0,
            open: BTreeMap::new(),
            locals: BTreeMap::new(),
            ended: BTreeMap::new(),
            creator_left: false,
        };
        self.own.insert(group, new);
        self.start_more(group, places, request)
    }

    /// What members of a group of this node are, as long as it has not ended.
    #[must_use]
    pub fn spec(&self, group: ObjectId) -> Option<&GroupSpec> {
        let group = self.own.get(&group)?;
        (!group.open.is_empty()).then_some(&group.spec)
    }

    /// More members of a group of this node.
    pub fn start_more(&mut self, id: ObjectId, places: &[NodeIndex], request: u64) -> Vec<Action> {
        let Some(group) = self.own.get_mut(&id) else {
            return Vec::new();
        };
        let mut parts: BTreeMap<NodeIndex, Vec<(u32, u32)>> = BTreeMap::new();
        for node in places {
            let local = group.locals.entry(*node).or_default();
            parts.entry(*node).or_default().push((group.size, *local));
            group.size += 1;
            *local += 1;
        }
        group.last_batch += 1;
        group.open.insert(group.last_batch, Some(request));
        let message = GroupMessage::Start {
            group: id,
            creator: group.creator,
            batch: group.last_batch,
            spec: group.spec.clone(),
            size: group.size,
            parts: parts.into_iter().collect(),
        };
        self.hear(None, message)
    }

    /// An order of a client for the members of a group of this node.
    pub fn order(&mut self, group: ObjectId, order: Order, request: Option<u64>) -> Vec<Action> {
        let Some(own) = self.own.get(&group) else {
            return Vec::new();
        };
        let nodes = if own.open.is_empty() {
            Vec::new()
        } else {
            own.locals.keys().copied().collect()
        };
        self.last_order += 1;
        let number = self.last_order;
        self.pass_order(group, number, order, nodes, Err(request))
    }

    /// Whether a group lives here.
    #[must_use]
    pub fn knows(&self, group: ObjectId) -> bool {
        self.own.contains_key(&group)
    }

    /// A process of this node is gone: its groups end, unless they are to live on.
    pub fn creator_left(&mut self, slot: SlotId) -> Vec<Action> {
        let mut ending = Vec::new();
        self.own.retain(|id, group| {
            if group.creator == slot {
                group.creator_left = true;
                if group.spec.lives == Lives::WithCreator {
                    ending.push(*id);
                }
            }
            !(group.creator_left && group.open.is_empty())
        });
        let orders = ending.into_iter();
        orders
            .flat_map(|id| self.order(id, Order::Remove(None), None))
            .collect()
    }

    /// A neighbour says something; `None`: this node itself.
    pub fn hear(&mut self, from: Option<NodeIndex>, message: GroupMessage) -> Vec<Action> {
        match message {
            GroupMessage::Start {
                group,
                creator,
                batch,
                spec,
                size,
                parts,
            } => self.take_batch(from, group, creator, batch, spec, size, parts),
            GroupMessage::Started {
                group,
                batch,
                failed,
            } => {
                let key = BatchKey::new(group, batch);
                self.below_changed(key, from, |batch, below| {
                    batch.failed.extend(failed);
                    below.started = true;
                })
            }
            GroupMessage::Done {
                group,
                batch,
                members,
            } => {
                let key = BatchKey::new(group, batch);
                self.below_changed(key, from, |batch, below| {
                    batch.ended.extend(members);
                    (below.started, below.done) = (true, true);
                })
            }
            GroupMessage::Order {
                group,
                number,
                order,
                nodes,
            } => {
                let to = from.ok_or(None);
                self.pass_order(group, number, order, nodes, to)
            }
            GroupMessage::Ordered {
                group,
                number,
                members,
            } => self.gathered(group, number, from, members),
            _ => Vec::new(),
        }
    }

    /// A member was started, or not.
    pub fn started(&mut self, key: MemberKey, result: SpawnResult) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return actions;
        };
        let Some(member) = batch.members.get_mut(&key.rank) else {
            return actions;
        };
        match result {
            Ok(Spawned { process, pid }) => {
                member.state = MemberState::Running { process, pid };
                if member.stopped || batch.stopped {
                    actions.push(Action::Signal(process, SIGKILL, Reach::Tree));
                }
            }
            Err((code, text)) => {
                if !batch.told_started {
                    batch.failed.push((key.rank, code, text.clone()));
                }
                member.state = MemberState::NotStarted(code, text);
            }
        }
        self.progress(key.batch, &mut actions);
        actions
    }

    /// The process of a member has ended.
    pub fn ended(&mut self, key: MemberKey, status: i32) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return actions;
        };
        let Some(member) = batch.members.get_mut(&key.rank) else {
            return actions;
        };
        let stopped = member.stopped || batch.stopped || self.closed;
        match back_off(&batch.spec.restart, status, member.restarts).filter(|_| !stopped) {
            Some(wait) => {
                member.state = MemberState::BackingOff(status);
                actions.push(Action::Later(wait, Due::Restart(key)));
            }
            None => member.state = MemberState::Ended(status),
        }
        self.progress(key.batch, &mut actions);
        actions
    }

    /// A time has come.
    pub fn due(&mut self, due: Due) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.closed {
            return actions;
        }
        match due {
            Due::Restart(key) => {
                let Some(batch) = self.batches.get_mut(&key.batch) else {
                    return actions;
                };
                let Some(member) = batch.members.get_mut(&key.rank) else {
                    return actions;
                };
                if let MemberState::BackingOff(_) = member.state {
                    member.state = MemberState::Starting;
                    member.restarts += 1;
                    let local = member.local;
                    actions.push(batch.spawn(key, local));
                }
            }
            Due::Walltime(key) => {
                self.stop(key, |_| true, SIGTERM, &mut actions);
                if self.batches.contains_key(&key) {
                    actions.push(Action::Later(GRACE, Due::Kill(key)));
                }
            }
            Due::Kill(key) => self.stop(key, |_| true, SIGKILL, &mut actions),
        }
        actions
    }

    /// A node is lost: what was sent on to it is, and what came from it ends.
    pub fn node_down(&mut self, node: NodeIndex) -> Vec<Action> {
        let mut actions = Vec::new();
        let keys: Vec<BatchKey> = self.batches.keys().copied().collect();
        for key in keys {
            let orphaned = self
                .batches
                .get(&key)
                .is_some_and(|batch| batch.from == Some(node) || batch.group.node == node);
            if orphaned {
                self.stop(key, |_| true, SIGKILL, &mut actions);
            }
            let lost = |batch: &mut Batch, below: &mut Below| {
                if below.done {
                    return;
                }
                let lost = below.members.iter().map(|(node, rank)| MemberInfo {
                    rank: *rank,
                    node: *node,
                    state: MemberState::Lost,
                    restarts: 0,
                });
                batch.ended.extend(lost);
                if !below.started {
                    let why = |(_, rank): &(NodeIndex, u32)| {
                        (*rank, Code::NodeDown, format!("node {node} is lost"))
                    };
                    batch.failed.extend(below.members.iter().map(why));
                }
                (below.started, below.done) = (true, true);
            };
            actions.extend(self.below_changed(key, Some(node), lost));
        }
        let waiting: Vec<_> = self.gathers.keys().copied().collect();
        for (group, number) in waiting {
            actions.extend(self.gathered(group, number, Some(node), Vec::new()));
        }
        actions
    }

    /// The neighbour on the way to a node.
    fn towards(&self, to: NodeIndex) -> NodeIndex {
        next_hop(self.me, to, self.fanout)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    fn take_batch(
        &mut self,
        from: Option<NodeIndex>,
        group: ObjectId,
        creator: SlotId,
        number: u32,
        spec: Box<GroupSpec>,
        size: u32,
        parts: Vec<Part>,
    ) -> Vec<Action> {
        let key = BatchKey::new(group, number);
        let mut members = BTreeMap::new();
        let mut onwards: BTreeMap<NodeIndex, Vec<Part>> = BTreeMap::new();
        for (node, ranks) in parts {
            if node == self.me {
                let starting = |(rank, local)| {
                    let member = Member {
                        local,
                        state: MemberState::Starting,
                        restarts: 0,
                        stopped: false,
                    };
                    (rank, member)
                };
                members.extend(ranks.into_iter().map(starting));
            } else {
                let hop = self.towards(node);
                onwards.entry(hop).or_default().push((node, ranks));
            }
        }
        let mut actions = Vec::new();
        let mut below = BTreeMap::new();
        for (hop, parts) in onwards {
            let all = parts.iter();
            let all = all.flat_map(|(node, ranks)| ranks.iter().map(|(rank, _)| (*node, *rank)));
            let sent = Below {
                members: all.collect(),
                started: false,
                done: false,
            };
            below.insert(hop, sent);
            let message = GroupMessage::Start {
                group,
                creator,
                batch: number,
                spec: spec.clone(),
                size,
                parts,
            };
            actions.push(Action::Tell(hop, message));
        }
        let batch = Batch {
            group,
            creator,
            spec,
            size,
            from,
            members,
            below,
            failed: Vec::new(),
            ended: Vec::new(),
            told_started: false,
            stopped: false,
        };
        let ranks = batch.members.iter();
        actions.extend(ranks.map(|(rank, member)| {
            let key = MemberKey {
                batch: key,
                rank: *rank,
            };
            batch.spawn(key, member.local)
        }));
        if let Some(limit) = batch.spec.walltime_ms.filter(|_| !batch.members.is_empty()) {
            let limit = Duration::from_millis(limit);
            actions.push(Action::Later(limit, Due::Walltime(key)));
        }
        self.batches.insert(key, batch);
        self.progress(key, &mut actions);
        actions
    }

    fn below_changed(
        &mut self,
        key: BatchKey,
        from: Option<NodeIndex>,
        change: impl FnOnce(&mut Batch, &mut Below),
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(batch) = self.batches.get_mut(&key) else {
            return actions;
        };
        let Some((node, mut below)) = from.and_then(|from| batch.below.remove_entry(&from)) else {
            return actions;
        };
        change(batch, &mut below);
        batch.below.insert(node, below);
        self.progress(key, &mut actions);
        actions
    }

    /// Tells the way back what is complete now.
    fn progress(&mut self, key: BatchKey, actions: &mut Vec<Action>) {
        let Some(batch) = self.batches.get_mut(&key) else {
            return;
        };
        let (group, number) = (batch.group, key.number);
        if !batch.told_started && batch.is_started() {
            batch.told_started = true;
            let failed = std::mem::take(&mut batch.failed);
            match batch.from {
                Some(node) => actions.push(Action::Tell(
                    node,
                    GroupMessage::Started {
                        group,
                        batch: number,
                        failed,
                    },
                )),
                None => self.own_started(group, number, failed, actions),
            }
        }
        let done = self.batches.get(&key);
        if !done.is_some_and(|batch| batch.told_started && batch.is_done()) {
            return;
        }
        let Some(batch) = self.batches.remove(&key) else {
            return;
        };
        let mut members = batch.infos(self.me, |_| true);
        members.extend(batch.ended);
        match batch.from {
            Some(node) => actions.push(Action::Tell(
                node,
                GroupMessage::Done {
                    group,
                    batch: number,
                    members,
                },
            )),
            None => self.own_done(group, number, members, actions),
        }
    }

    /// All members of a start of a group of this node are started, or not: then none is left of the group's first one.
    fn own_started(
        &mut self,
        id: ObjectId,
        number: u32,
        failed: Vec<(u32, Code, String)>,
        actions: &mut Vec<Action>,
    ) {
        let Some(group) = self.own.get_mut(&id) else {
            return;
        };
        let request = group.open.get_mut(&number).and_then(Option::take);
        let undo = !failed.is_empty() && number == 1;
        if let Some(request) = request {
            actions.push(Action::Started(request, id, failed));
        }
        if undo {
            actions.extend(self.order(id, Order::Remove(None), None));
        }
    }

    /// All members of a start of a group of this node have ended for good.
    fn own_done(
        &mut self,
        id: ObjectId,
        number: u32,
        members: Vec<MemberInfo>,
        actions: &mut Vec<Action>,
    ) {
        let Some(group) = self.own.get_mut(&id) else {
            return;
        };
        let ended = members.into_iter().map(|member| (member.rank, member));
        group.ended.extend(ended);
        group.open.remove(&number);
        if group.open.is_empty() {
            actions.push(Action::Finished(id, status_of(group.ended.values())));
            if group.creator_left {
                self.own.remove(&id);
            }
        }
    }
}

impl Batch {
    fn is_started(&self) -> bool {
        let starting = |member: &Member| member.state == MemberState::Starting;
        !self.members.values().any(starting) && self.below.values().all(|below| below.started)
    }

    fn is_done(&self) -> bool {
        let ended = |member: &Member| {
            matches!(
                member.state,
                MemberState::Ended(_) | MemberState::NotStarted(..)
            )
        };
        self.members.values().all(ended) && self.below.values().all(|below| below.done)
    }

    /// The start of a member of this node.
    fn spawn(&self, key: MemberKey, local: u32) -> Action {
        let mut request = self.spec.member.clone();
        request.rank = Some(Rank {
            rank: key.rank,
            local,
            size: self.size,
        });
        request.settings.lives = Lives::UntilTheEnd;
        if let Some(own) = self.spec.per_rank.get(key.rank as usize) {
            let named = |name: &[u8]| own.iter().any(|(other, _)| other == name);
            request.environment.retain(|(name, _)| !named(name));
            request.environment.extend(own.iter().cloned());
        }
        Action::Spawn(key, Box::new(request), self.creator)
    }

    fn infos(&self, node: NodeIndex, wanted: impl Fn(u32) -> bool) -> Vec<MemberInfo> {
        let members = self.members.iter().filter(|(rank, _)| wanted(**rank));
        members
            .map(|(rank, member)| MemberInfo {
                rank: *rank,
                node,
                state: member.state.clone(),
                restarts: member.restarts,
            })
            .collect()
    }
}

/// How long to wait before a member is started again; `None`: it is not.
fn back_off(restart: &Restart, status: i32, restarts: u32) -> Option<Duration> {
    let wanted = match restart.when {
        RestartWhen::OnFailure => status != 0,
        RestartWhen::Always => true,
        _ => false,
    };
    if !wanted || restarts >= restart.most {
        return None;
    }
    let doubled = restart
        .back_off_ms
        .saturating_mul(1_u64.checked_shl(restarts).unwrap_or(u64::MAX));
    let wait = doubled.min(restart.back_off_most_ms.max(restart.back_off_ms));
    Some(Duration::from_millis(wait))
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

/// The neighbour on the way from one node to another in a tree where the parent of node n is (n − 1) / fan-out.
fn next_hop(me: NodeIndex, to: NodeIndex, fanout: u32) -> NodeIndex {
    let parent = |node: u32| (node.saturating_sub(1)) / fanout;
    let mut below = to.get();
    while below > me.get() {
        let above = parent(below);
        if above == me.get() {
            return NodeIndex::new(below).unwrap_or(to);
        }
        below = above;
    }
    NodeIndex::new(parent(me.get())).unwrap_or(to)
}

#[cfg(test)]
mod tests;
