//! One start of members, as far as they are on this node or beyond it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dragon_protocol::control::{SpawnResult, Spawned};
use dragon_protocol::group::{
    GroupMessage, GroupSpec, MemberInfo, MemberState, Restart, RestartWhen,
};
use dragon_protocol::process::{Lives, Rank, Reach};
use dragon_protocol::{Code, NodeIndex, ObjectId, SlotId};

use super::{Action, BatchKey, Due, Failed, GRACE, Groups, MemberKey, Part, SIGKILL, SIGTERM};

/// Members that were asked for together. Those of this node stay until the group's node knows how all have ended.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) group: ObjectId,
    creator: SlotId,
    spec: Arc<GroupSpec>,
    size: u32,
    /// Those of this node.
    members: BTreeMap<u32, Member>,
    /// The way between the group's node and those beyond; `None` while the tree is a new one and the group's node has not
    /// said which way that is.
    pub(super) way: Option<Way>,
    /// The group's node is lost.
    orphaned: bool,
    /// What it waits for that has a time.
    timer: Option<Due>,
    /// Members that were not started (again).
    refused: u32,
}

/// So many members of a node that were not started say why at length.
const REASONS: u32 = 100;

/// What is gathered of a start in the tree of one view.
#[derive(Debug)]
pub(super) struct Way {
    /// The neighbour that it came from; `None` on the group's node.
    from: Option<NodeIndex>,
    below: BTreeMap<NodeIndex, Below>,
    /// Members below that were not started.
    failed: Vec<Failed>,
    /// Members below that have ended for good.
    ended: Vec<MemberInfo>,
    told_started: bool,
    told_done: bool,
}

/// A neighbour that members were sent on to.
#[derive(Debug, Default)]
struct Below {
    started: bool,
    done: bool,
}

#[derive(Debug)]
struct Member {
    local: u32,
    state: MemberState,
    restarts: u32,
    /// It is not started any more.
    stopped: bool,
}

/// Members to be started: what a message says.
pub(super) struct Start {
    pub(super) group: ObjectId,
    pub(super) creator: SlotId,
    pub(super) batch: u32,
    pub(super) spec: Arc<GroupSpec>,
    pub(super) size: u32,
    pub(super) parts: Vec<Part>,
    pub(super) removed: Vec<u32>,
}

impl Groups {
    /// Starts members here unless they are there, and sends the others on. From now on answers go to where this came from.
    pub(super) fn take_start(&mut self, from: Option<NodeIndex>, start: Start) -> Vec<Action> {
        let Start {
            group,
            creator,
            batch: number,
            spec,
            size,
            parts,
            removed,
        } = start;
        let key = BatchKey::new(group, number);
        let mut mine = Vec::new();
        let mut onwards: BTreeMap<NodeIndex, Vec<Part>> = BTreeMap::new();
        for (node, ranks) in parts {
            if node == self.me {
                mine = ranks;
            } else if let Some(hop) = self.towards(node) {
                onwards.entry(hop).or_default().push((node, ranks));
            }
        }
        let way = Way {
            from,
            below: onwards.keys().map(|hop| (*hop, Below::default())).collect(),
            failed: Vec::new(),
            ended: Vec::new(),
            told_started: false,
            told_done: false,
        };
        let mut actions = Vec::new();
        for (hop, parts) in onwards {
            let message = GroupMessage::Start {
                group,
                creator,
                batch: number,
                spec: Box::new((*spec).clone()),
                size,
                parts,
                removed: removed.clone(),
            };
            actions.push(self.tell(hop, message));
        }
        match self.batches.get_mut(&key) {
            Some(batch) => batch.way = Some(way),
            None => {
                let removed = BTreeSet::from_iter(removed);
                let mut batch = Batch {
                    group,
                    creator,
                    spec,
                    size,
                    members: BTreeMap::new(),
                    way: Some(way),
                    orphaned: false,
                    timer: None,
                    refused: 0,
                };
                batch.add(key, mine, &removed, &mut actions);
                self.batches.insert(key, batch);
            }
        }
        self.progress(key, &mut actions);
        actions
    }

    /// A neighbour below has started all members that it has, or all have ended.
    pub(super) fn below_said(
        &mut self,
        from: NodeIndex,
        key: BatchKey,
        failed: Vec<Failed>,
        done: Option<Vec<MemberInfo>>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let way = self.batches.get_mut(&key);
        let Some(way) = way.and_then(|batch| batch.way.as_mut()) else {
            return actions;
        };
        let Some(below) = way.below.get_mut(&from) else {
            return actions;
        };
        below.started = true;
        below.done |= done.is_some();
        way.failed.extend(failed);
        way.ended.extend(done.into_iter().flatten());
        self.progress(key, &mut actions);
        actions
    }

    /// A member was started, or not.
    pub fn started(&mut self, key: MemberKey, result: SpawnResult) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(member) = self.member(key) else {
            return actions;
        };
        match result {
            Ok(Spawned { process, pid }) => {
                member.state = MemberState::Running { process, pid };
                if member.stopped {
                    actions.push(Action::Signal(process, SIGKILL, Reach::Tree));
                }
            }
            Err((code, text)) => {
                member.state = MemberState::NotStarted(code, text);
                self.shorten(key);
            }
        }
        self.progress(key.batch, &mut actions);
        actions
    }

    /// The process of a member has ended.
    pub fn ended(&mut self, key: MemberKey, status: i32) -> Vec<Action> {
        let mut actions = Vec::new();
        let closed = self.closed;
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return actions;
        };
        let Some(member) = batch.members.get_mut(&key.rank) else {
            return actions;
        };
        let stopped = member.stopped || closed;
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
                if let Some(batch) = self.batches.get_mut(&key) {
                    batch.timer = Some(Due::Kill(key));
                    actions.push(Action::Later(GRACE, Due::Kill(key)));
                }
                self.stop(key, |_| true, SIGTERM, &mut actions);
            }
            Due::Kill(key) => {
                if let Some(batch) = self.batches.get_mut(&key) {
                    batch.timer = None;
                }
                self.stop(key, |_| true, SIGKILL, &mut actions);
            }
        }
        actions
    }

    /// Members of a start are not started again, and get a signal where they run.
    pub(super) fn stop(
        &mut self,
        key: BatchKey,
        wanted: impl Fn(u32) -> bool,
        signal: i32,
        actions: &mut Vec<Action>,
    ) {
        let members = self.batches.get_mut(&key);
        let members = members.into_iter().flat_map(|batch| &mut batch.members);
        let mut waiting = Vec::new();
        for (rank, member) in members.filter(|(rank, _)| wanted(**rank)) {
            member.stopped = true;
            let key = MemberKey {
                batch: key,
                rank: *rank,
            };
            match member.state {
                MemberState::Running { process, .. } => {
                    actions.push(Action::Signal(process, signal, Reach::Tree));
                }
                MemberState::BackingOff(status) => {
                    member.state = MemberState::Ended(status);
                    actions.push(Action::NoLonger(Due::Restart(key)));
                }
                MemberState::Starting => waiting.push(key),
                _ => {}
            }
        }
        if !waiting.is_empty() {
            actions.push(Action::Cancel(waiting));
        }
        self.progress(key, actions);
    }

    /// The tree is a new one: what was gathered along the old one is void, and members of a group whose node is lost end.
    pub(super) fn leave_ways(&mut self, actions: &mut Vec<Action>) {
        let keys: Vec<BatchKey> = self.batches.keys().copied().collect();
        for key in keys {
            let Some(batch) = self.batches.get_mut(&key) else {
                continue;
            };
            batch.way = None;
            if batch.members.is_empty() && key.node() != self.me {
                self.batches.remove(&key);
            } else if !self.view.contains(key.node()) {
                batch.orphaned = true;
                self.stop(key, |_| true, SIGKILL, actions);
            }
        }
    }

    /// The group's node knows how the members of a start have ended.
    pub(super) fn forget(&mut self, key: BatchKey, actions: &mut Vec<Action>) {
        let timer = self.batches.remove(&key).and_then(|batch| batch.timer);
        actions.extend(timer.map(Action::NoLonger));
    }

    /// The members of a group that are here.
    pub(super) fn infos(&self, group: ObjectId, wanted: impl Fn(u32) -> bool) -> Vec<MemberInfo> {
        let batches = self.batches.iter().filter(|(key, _)| key.is_of(group));
        let infos = batches.flat_map(|(_, batch)| batch.infos(self.me));
        infos.filter(|info| wanted(info.rank)).collect()
    }

    /// The starts of a group that have members here or beyond.
    pub(super) fn batches_of(&self, group: ObjectId) -> Vec<BatchKey> {
        let keys = self.batches.keys().copied();
        keys.filter(|key| key.is_of(group)).collect()
    }

    /// A node says of so many members of a start only why they were not started: a message about all of them has a limit.
    fn shorten(&mut self, key: MemberKey) {
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return;
        };
        batch.refused += 1;
        let refused = batch.refused;
        if refused > REASONS
            && let Some(MemberState::NotStarted(_, text)) = batch
                .members
                .get_mut(&key.rank)
                .map(|member| &mut member.state)
        {
            *text = "as others of its node".to_owned();
        }
    }

    fn member(&mut self, key: MemberKey) -> Option<&mut Member> {
        self.batches.get_mut(&key.batch)?.members.get_mut(&key.rank)
    }

    /// Tells the way back what is complete now.
    fn progress(&mut self, key: BatchKey, actions: &mut Vec<Action>) {
        let (me, view) = (self.me, self.view.index);
        let Some(batch) = self.batches.get_mut(&key) else {
            return;
        };
        let ended_here = batch.is_ended();
        if ended_here && let Some(timer) = batch.timer.take() {
            actions.push(Action::NoLonger(timer));
        }
        if batch.orphaned && ended_here {
            self.batches.remove(&key);
            return;
        }
        let started_here = batch.is_started();
        let (group, number) = (batch.group, key.number());
        let Some(way) = &mut batch.way else {
            return;
        };
        let from = way.from;
        if !way.told_started && started_here && way.below.values().all(|below| below.started) {
            way.told_started = true;
            let mut failed = std::mem::take(&mut way.failed);
            failed.extend(batch.failed());
            match from {
                Some(node) => {
                    let message = GroupMessage::Started {
                        group,
                        batch: number,
                        failed,
                    };
                    actions.push(self.lines.tell(node, view, message));
                }
                None => self.home_started(group, number, failed, actions),
            }
        }
        let Some(batch) = self.batches.get_mut(&key) else {
            return;
        };
        let Some(way) = &mut batch.way else {
            return;
        };
        let done = ended_here && way.told_started && way.below.values().all(|below| below.done);
        if way.told_done || !done {
            return;
        }
        way.told_done = true;
        let mut members = std::mem::take(&mut way.ended);
        members.extend(batch.infos(me));
        if batch.members.is_empty() || from.is_none() {
            self.forget(key, actions);
        }
        match from {
            Some(node) => {
                let message = GroupMessage::Done {
                    group,
                    batch: number,
                    members,
                };
                actions.push(self.lines.tell(node, view, message));
            }
            None => self.home_done(group, number, members, actions),
        }
    }
}

impl Batch {
    /// Members that were not here before.
    fn add(
        &mut self,
        key: BatchKey,
        ranks: Vec<(u32, u32)>,
        removed: &BTreeSet<u32>,
        actions: &mut Vec<Action>,
    ) {
        let wanted = |(rank, _): &(u32, u32)| !removed.contains(rank);
        if let Some(limit) = self.spec.walltime_ms.filter(|_| ranks.iter().any(wanted)) {
            let due = Due::Walltime(key);
            self.timer = Some(due);
            actions.push(Action::Later(Duration::from_millis(limit), due));
        }
        for (rank, local) in ranks {
            let stopped = removed.contains(&rank);
            let state = match stopped {
                true => {
                    let text = format!("member {rank} was removed before it was started");
                    MemberState::NotStarted(Code::Cancelled, text)
                }
                false => MemberState::Starting,
            };
            let member = Member {
                local,
                state,
                restarts: 0,
                stopped,
            };
            self.members.insert(rank, member);
            if !stopped {
                actions.push(self.spawn(MemberKey { batch: key, rank }, local));
            }
        }
    }

    /// Whether all members of this node were started once, or cannot be.
    fn is_started(&self) -> bool {
        let starting =
            |member: &Member| member.state == MemberState::Starting && member.restarts == 0;
        !self.members.values().any(starting)
    }

    /// Whether all members of this node have ended for good.
    fn is_ended(&self) -> bool {
        let ended = |member: &Member| {
            matches!(
                member.state,
                MemberState::Ended(_) | MemberState::NotStarted(..)
            )
        };
        self.members.values().all(ended)
    }

    /// The members of this node that never ran.
    fn failed(&self) -> Vec<Failed> {
        let failed = self.members.iter().filter_map(|(rank, member)| {
            let MemberState::NotStarted(code, text) = &member.state else {
                return None;
            };
            (member.restarts == 0).then(|| (*rank, *code, text.clone()))
        });
        failed.collect()
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

    fn infos(&self, node: NodeIndex) -> impl Iterator<Item = MemberInfo> + '_ {
        self.members.iter().map(move |(rank, member)| MemberInfo {
            rank: *rank,
            node,
            state: member.state.clone(),
            restarts: member.restarts,
        })
    }
}

/// How long to wait before a member is started again; `None`: it is not.
pub(super) fn back_off(restart: &Restart, status: i32, restarts: u32) -> Option<Duration> {
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
