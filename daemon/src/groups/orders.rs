//! Orders for members: away along the tree, applied where members are, gathered on the way back. One that is open when the
//! tree becomes another is sent again along that one; each node applies it once.

use std::collections::{BTreeMap, BTreeSet};

use dragon_protocol::group::{GroupMessage, GroupTask, MemberInfo, MemberState, Order};
use dragon_protocol::{NodeIndex, ObjectId};

use super::{Action, BatchKey, Groups, SIGKILL};

/// Orders of this node, and those of others as far as this node is on their way.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// Number of the last one of this node.
    last: u64,
    /// Those of this node that are not answered by all.
    own: BTreeMap<u64, Own>,
    /// Those whose answers are gathered here along the tree as it is, by the group's node and number.
    gathers: BTreeMap<(NodeIndex, u64), Gather>,
    /// Those that were applied here and may come again, by the group's node.
    applied: BTreeMap<NodeIndex, BTreeSet<u64>>,
}

/// An order of this node.
#[derive(Debug)]
struct Own {
    group: ObjectId,
    task: GroupTask,
    nodes: Vec<NodeIndex>,
    /// The number of the request that it came from.
    request: Option<u64>,
}

/// An order whose answers are gathered.
#[derive(Debug)]
struct Gather {
    /// The neighbour that it came from; `None` on the group's node.
    from: Option<NodeIndex>,
    waiting: BTreeSet<NodeIndex>,
    members: Vec<MemberInfo>,
}

/// An order on its way: what a message says.
pub(super) struct Passed {
    pub(super) group: ObjectId,
    pub(super) number: u64,
    pub(super) oldest: u64,
    pub(super) task: GroupTask,
    pub(super) nodes: Vec<NodeIndex>,
}

impl Groups {
    /// An order of a client for the members of a group of this node.
    pub fn order(&mut self, group: ObjectId, order: Order, request: Option<u64>) -> Vec<Action> {
        let Some((size, nodes)) = self.note_order(group, &order) else {
            return Vec::new();
        };
        self.send_out(group, GroupTask::Order(order, size), nodes, request)
    }

    /// Sends an order of this node on its way.
    pub(super) fn send_out(
        &mut self,
        group: ObjectId,
        task: GroupTask,
        nodes: Vec<NodeIndex>,
        request: Option<u64>,
    ) -> Vec<Action> {
        self.orders.last += 1;
        let number = self.orders.last;
        let own = Own {
            group,
            task,
            nodes,
            request,
        };
        self.orders.own.insert(number, own);
        self.send_own(number)
    }

    fn send_own(&mut self, number: u64) -> Vec<Action> {
        let oldest = self.orders.own.keys().next().copied().unwrap_or(number);
        let Some(own) = self.orders.own.get(&number) else {
            return Vec::new();
        };
        let passed = Passed {
            group: own.group,
            number,
            oldest,
            task: own.task.clone(),
            nodes: own.nodes.clone(),
        };
        self.pass_order(None, passed)
    }

    /// The tree is a new one: what was gathered along the old one is void, and what is open is sent again.
    pub(super) fn order_anew(&mut self, lost: &[NodeIndex], actions: &mut Vec<Action>) {
        let orders = &mut self.orders;
        orders.gathers.clear();
        orders.applied.retain(|node, _| !lost.contains(node));
        for own in orders.own.values_mut() {
            own.nodes.retain(|node| !lost.contains(node));
        }
        let numbers: Vec<u64> = orders.own.keys().copied().collect();
        for number in numbers {
            actions.extend(self.send_own(number));
        }
    }

    /// Applies an order here, and passes it on.
    pub(super) fn pass_order(&mut self, from: Option<NodeIndex>, passed: Passed) -> Vec<Action> {
        let Passed {
            group,
            number,
            oldest,
            task,
            nodes,
        } = passed;
        let mut actions = Vec::new();
        let mut onwards: BTreeMap<NodeIndex, Vec<NodeIndex>> = BTreeMap::new();
        let mut here = false;
        for node in nodes {
            if node == self.me {
                here = true;
            } else if let Some(hop) = self.towards(node) {
                onwards.entry(hop).or_default().push(node);
            }
        }
        let gather = Gather {
            from,
            waiting: onwards.keys().copied().collect(),
            members: Vec::new(),
        };
        for (hop, nodes) in onwards {
            let message = GroupMessage::Order {
                group,
                number,
                oldest,
                task: task.clone(),
                nodes,
            };
            actions.push(self.tell(hop, message));
        }
        self.orders.gathers.insert((group.node, number), gather);
        let applied = self.orders.applied.entry(group.node).or_default();
        *applied = applied.split_off(&oldest);
        let is_new = here && applied.insert(number);
        let members = match &task {
            GroupTask::Order(order, size) if here => {
                let meant = |rank: u32| rank < *size && order.is_about(rank);
                // What they are now: the end of the last one may take the whole start with it.
                let members = self.infos(group, meant);
                if is_new {
                    self.apply(group, order, meant, &mut actions);
                }
                members
            }
            GroupTask::Forget(batch) if here => {
                self.forget(BatchKey::new(group, *batch), &mut actions);
                Vec::new()
            }
            _ => Vec::new(),
        };
        actions.extend(self.gathered(group, number, None, members));
        actions
    }

    /// Applies an order to the members that are here.
    fn apply(
        &mut self,
        group: ObjectId,
        order: &Order,
        meant: impl Fn(u32) -> bool,
        actions: &mut Vec<Action>,
    ) {
        match order {
            Order::Signal(signal, reach) => {
                let running = self.infos(group, meant).into_iter();
                let signals = running.filter_map(|info| match info.state {
                    MemberState::Running { process, .. } => {
                        Some(Action::Signal(process, *signal, *reach))
                    }
                    _ => None,
                });
                actions.extend(signals);
            }
            Order::Remove(_) => {
                for key in self.batches_of(group) {
                    self.stop(key, &meant, SIGKILL, actions);
                }
            }
            _ => {}
        }
    }

    /// An answer to an order has come, from this node itself or from a neighbour.
    pub(super) fn gathered(
        &mut self,
        group: ObjectId,
        number: u64,
        from: Option<NodeIndex>,
        members: Vec<MemberInfo>,
    ) -> Vec<Action> {
        let key = (group.node, number);
        let Some(gather) = self.orders.gathers.get_mut(&key) else {
            return Vec::new();
        };
        if from.is_some_and(|from| !gather.waiting.remove(&from)) {
            return Vec::new();
        }
        gather.members.extend(members);
        if !gather.waiting.is_empty() {
            return Vec::new();
        }
        let Some(gather) = self.orders.gathers.remove(&key) else {
            return Vec::new();
        };
        let members = gather.members;
        match gather.from {
            Some(node) => {
                let answer = GroupMessage::Ordered {
                    group,
                    number,
                    members,
                };
                vec![self.tell(node, answer)]
            }
            None => self.answered(number, members),
        }
    }

    /// All nodes have answered an order of this one.
    fn answered(&mut self, number: u64, mut members: Vec<MemberInfo>) -> Vec<Action> {
        let Some(own) = self.orders.own.remove(&number) else {
            return Vec::new();
        };
        let (GroupTask::Order(order, size), Some(request)) = (own.task, own.request) else {
            self.let_go(own.group);
            return Vec::new();
        };
        let group = self.home.groups.get(&own.group);
        let ended = group.into_iter().flat_map(|group| group.ended.values());
        let known: BTreeSet<u32> = members.iter().map(|member| member.rank).collect();
        let others = ended.filter(|info| {
            info.rank < size && order.is_about(info.rank) && !known.contains(&info.rank)
        });
        members.extend(others.cloned());
        members.sort_by_key(|member| member.rank);
        self.let_go(own.group);
        vec![Action::Members(request, members)]
    }

    /// Whether there are orders for a group of this node that are not answered by all.
    pub(super) fn has_orders(&self, group: ObjectId) -> bool {
        self.orders.own.values().any(|own| own.group == group)
    }

    /// Nothing is on its way.
    #[cfg(test)]
    pub(super) fn no_orders(&self) -> bool {
        self.orders.own.is_empty() && self.orders.gathers.is_empty()
    }
}
