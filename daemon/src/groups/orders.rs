//! Orders for members: away along the tree, applied where members are, gathered on the way back.

use std::collections::{BTreeMap, BTreeSet};

use dragon_protocol::group::{GroupMessage, MemberInfo, MemberState, Order};
use dragon_protocol::process::Reach;
use dragon_protocol::{NodeIndex, ObjectId};

use super::{Action, Batch, BatchKey, Groups, SIGKILL};

/// An order whose answers are gathered.
#[derive(Debug)]
pub(super) struct Gather {
    /// The neighbour, or the number of the request on the group's node.
    pub(super) to: Result<NodeIndex, Option<u64>>,
    pub(super) waiting: BTreeSet<NodeIndex>,
    pub(super) members: Vec<MemberInfo>,
}

impl Groups {
    /// Applies an order here, and passes it on.
    pub(super) fn pass_order(
        &mut self,
        group: ObjectId,
        number: u64,
        order: Order,
        nodes: Vec<NodeIndex>,
        to: Result<NodeIndex, Option<u64>>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut onwards: BTreeMap<NodeIndex, Vec<NodeIndex>> = BTreeMap::new();
        let mut here = false;
        for node in nodes {
            if node == self.me {
                here = true;
            } else {
                onwards.entry(self.towards(node)).or_default().push(node);
            }
        }
        let gather = Gather {
            to,
            waiting: onwards.keys().copied().collect(),
            members: Vec::new(),
        };
        for (hop, nodes) in onwards {
            let message = GroupMessage::Order {
                group,
                number,
                order: order.clone(),
                nodes,
            };
            actions.push(Action::Tell(hop, message));
        }
        self.gathers.insert((group, number), gather);
        // Beyond this node all of a start may have ended: it alone knows how, until all that is on this side has, too.
        let batches = self.batches.iter().filter(|(key, _)| key.is_of(group));
        let ended = batches.flat_map(|(_, batch)| &batch.ended);
        let ended = ended.filter(|member| order.is_about(member.rank));
        let mut members: Vec<MemberInfo> = ended.cloned().collect();
        if here {
            members.extend(self.apply(group, &order, &mut actions));
        }
        actions.extend(self.gathered(group, number, None, members));
        actions
    }

    /// Applies an order to the members that are here; those that it is about.
    fn apply(
        &mut self,
        group: ObjectId,
        order: &Order,
        actions: &mut Vec<Action>,
    ) -> Vec<MemberInfo> {
        let wanted = |rank: u32| order.is_about(rank);
        let keys = self.batches.keys().copied();
        let keys: Vec<BatchKey> = keys.filter(|key| key.is_of(group)).collect();
        let mut members = Vec::new();
        for key in keys {
            if let Order::Signal(signal, reach) = order {
                let batch = self.batches.get(&key);
                for member in batch.iter().flat_map(|batch| batch.members.values()) {
                    if let MemberState::Running { process, .. } = member.state {
                        actions.push(Action::Signal(process, *signal, *reach));
                    }
                }
            }
            let infos = |batch: &Batch| batch.infos(self.me, wanted);
            if let Order::Remove(_) = order {
                // What they are when they are stopped; the last one's end may take the whole start with it.
                if let Some(batch) = self.batches.get_mut(&key) {
                    batch.stopped |= *order == Order::Remove(None);
                }
                members.extend(self.batches.get(&key).map(infos).unwrap_or_default());
                self.stop(key, wanted, SIGKILL, actions);
            } else {
                members.extend(self.batches.get(&key).map(infos).unwrap_or_default());
            }
        }
        members
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
        for (_, member) in members.filter(|(rank, _)| wanted(**rank)) {
            member.stopped = true;
            match member.state {
                MemberState::Running { process, .. } => {
                    actions.push(Action::Signal(process, signal, Reach::Tree));
                }
                MemberState::BackingOff(status) => member.state = MemberState::Ended(status),
                _ => {}
            }
        }
        self.progress(key, actions);
    }

    /// An answer to an order has come, from this node itself or from a neighbour.
    pub(super) fn gathered(
        &mut self,
        group: ObjectId,
        number: u64,
        from: Option<NodeIndex>,
        members: Vec<MemberInfo>,
    ) -> Vec<Action> {
        let Some(gather) = self.gathers.get_mut(&(group, number)) else {
            return Vec::new();
        };
        if from.is_some_and(|from| !gather.waiting.remove(&from)) {
            return Vec::new();
        }
        gather.members.extend(members);
        if !gather.waiting.is_empty() {
            return Vec::new();
        }
        let Some(gather) = self.gathers.remove(&(group, number)) else {
            return Vec::new();
        };
        let mut members = gather.members;
        match gather.to {
            Ok(node) => {
                let answer = GroupMessage::Ordered {
                    group,
                    number,
                    members,
                };
                vec![Action::Tell(node, answer)]
            }
            Err(Some(request)) => {
                let ended = self.own.get(&group);
                let ended = ended.into_iter().flat_map(|group| group.ended.values());
                let known: BTreeSet<u32> = members.iter().map(|member| member.rank).collect();
                members.extend(
                    ended
                        .filter(|member| !known.contains(&member.rank))
                        .cloned(),
                );
                members.sort_by_key(|member| member.rank);
                vec![Action::Members(request, members)]
            }
            Err(None) => Vec::new(),
        }
    }
}
