mod simulation;

use std::collections::BTreeSet;

use dragon_protocol::ObjectKind;
use dragon_protocol::control::{Program, Spawned};
use dragon_protocol::group::{GroupSpec, MemberState, Order, Restart, RestartWhen};
use dragon_protocol::process::{Lives, Rank};

use super::batch::back_off;
use super::*;

fn node(index: u32) -> NodeIndex {
    NodeIndex::new(index).unwrap()
}

fn object(on: u32, index: u32) -> ObjectId {
    ObjectId {
        node: node(on),
        kind: ObjectKind::Process,
        index,
        generation: 1,
    }
}

const CREATOR: SlotId = SlotId {
    index: 7,
    generation: 1,
};

fn spec(restart: Restart, walltime_ms: Option<u64>) -> Box<GroupSpec> {
    Box::new(GroupSpec {
        member: SpawnRequest::new(Program::Executable(vec![b"a".to_vec()])),
        per_rank: Vec::new(),
        restart,
        walltime_ms,
        lives: Lives::WithCreator,
    })
}

/// Nodes whose messages arrive one after the other, and whose processes start at once.
struct Nodes {
    nodes: Vec<Groups>,
    open: std::collections::VecDeque<(NodeIndex, NodeIndex, GroupLetter, u32)>,
    sent: Vec<u32>,
    /// How many edges the message that came farthest had behind it.
    steps: u32,
    running: BTreeMap<(NodeIndex, u32), MemberKey>,
    later: Vec<(NodeIndex, Due)>,
    /// Number of the request, and who was not started.
    started: Vec<(u64, Vec<Failed>)>,
    members: Vec<Vec<MemberInfo>>,
    finished: Vec<i32>,
    next: u32,
    fails: BTreeSet<u32>,
}

impl Nodes {
    fn new(count: u32, fanout: u32) -> Self {
        Self {
            nodes: (0..count)
                .map(|n| Groups::new(node(n), fanout, View::first(count)))
                .collect(),
            open: std::collections::VecDeque::new(),
            sent: vec![0; count as usize],
            steps: 0,
            running: BTreeMap::new(),
            later: Vec::new(),
            started: Vec::new(),
            members: Vec::new(),
            finished: Vec::new(),
            next: 0,
            fails: BTreeSet::new(),
        }
    }

    fn at(&mut self, on: u32, what: impl FnOnce(&mut Groups) -> Vec<Action>) {
        let actions = what(&mut self.nodes[on as usize]);
        self.act(node(on), actions, 0);
        while let Some((from, to, message, steps)) = self.open.pop_front() {
            self.steps = self.steps.max(steps);
            let actions = self.nodes[to.get() as usize].hear(from, message);
            self.act(to, actions, steps);
        }
    }

    fn act(&mut self, on: NodeIndex, actions: Vec<Action>, steps: u32) {
        for action in actions {
            match action {
                Action::Tell(to, message) => {
                    self.sent[on.get() as usize] += 1;
                    self.open.push_back((on, to, message, steps + 1));
                }
                Action::Spawn(key, request, _) => {
                    let rank = request.rank.unwrap();
                    let result = if self.fails.contains(&rank.rank) {
                        Err((Code::SpawnFailed, "no".to_owned()))
                    } else {
                        self.next += 1;
                        self.running.insert((on, self.next), key);
                        Ok(Spawned {
                            process: object(on.get(), self.next),
                            pid: self.next,
                        })
                    };
                    let more = self.nodes[on.get() as usize].started(key, result);
                    self.act(on, more, steps);
                }
                Action::Signal(process, signal, _) => {
                    if signal == SIGKILL {
                        self.end(process, signal, steps);
                    }
                }
                // Nobody waits for CPUs here.
                Action::Cancel(_) => {}
                Action::Later(_, due) => self.later.push((on, due)),
                Action::NoLonger(due) => self.later.retain(|later| *later != (on, due)),
                Action::Finished(_, status) => self.finished.push(status),
                Action::Started(request, _, failed) => self.started.push((request, failed)),
                Action::Members(_, members) => self.members.push(members),
            }
        }
    }

    fn end(&mut self, process: ObjectId, status: i32, steps: u32) {
        if let Some(key) = self.running.remove(&(process.node, process.index)) {
            let actions = self.nodes[process.node.get() as usize].ended(key, status);
            self.act(process.node, actions, steps);
        }
    }

    /// All that run end with this status.
    fn end_all(&mut self, status: i32) {
        for (on, index) in self.running.keys().copied().collect::<Vec<_>>() {
            let key = self.running.remove(&(on, index)).unwrap();
            self.at(on.get(), |groups| groups.ended(key, status));
        }
    }

    /// What is due now.
    fn pass_time(&mut self) {
        for (on, due) in std::mem::take(&mut self.later) {
            self.at(on.get(), |groups| groups.due(due));
        }
    }

    fn is_clean(&self) -> bool {
        let empty = |groups: &Groups| groups.batches.is_empty() && groups.no_orders();
        self.nodes.iter().all(empty) && self.running.is_empty() && self.later.is_empty()
    }
}

fn each(count: u32) -> Vec<NodeIndex> {
    (0..count).map(node).collect()
}

#[test]
fn a_thousand_nodes_cost_a_few_messages_each_and_a_few_steps() {
    // A group in the middle of the tree, not at its root.
    const HOME: u32 = 700;
    let mut nodes = Nodes::new(1000, 16);
    let group = object(HOME, 1);
    let places = each(1000);
    nodes.at(HOME, |groups| {
        groups.start(group, CREATOR, spec(Restart::default(), None), &places, 1)
    });
    assert_eq!(nodes.started, [(1, vec![])]);
    assert_eq!(nodes.running.len(), 1000);
    // A start goes to each neighbour once and comes back once.
    assert!(
        nodes.sent.iter().all(|sent| *sent <= 17),
        "{:?}",
        nodes.sent
    );
    // Three levels up, three down, and the way back.
    assert!(nodes.steps <= 2 * 6, "{}", nodes.steps);
    let total: u32 = nodes.sent.iter().sum();
    assert_eq!(total, 2 * 999);

    nodes.sent.fill(0);
    nodes.at(HOME, |groups| groups.order(group, Order::Look, Some(2)));
    assert_eq!(nodes.members[0].len(), 1000);
    assert!(nodes.sent.iter().all(|sent| *sent <= 17));
    assert_eq!(nodes.sent.iter().sum::<u32>(), 2 * 999);

    // What has ended beyond a node that is not done is not forgotten.
    let own = nodes
        .running
        .keys()
        .copied()
        .find(|(on, _)| on.get() == 999)
        .unwrap();
    let key = nodes.running.remove(&own).unwrap();
    nodes.at(999, |groups| groups.ended(key, 0));
    nodes.at(HOME, |groups| groups.order(group, Order::Look, Some(3)));
    let members = nodes.members.pop().unwrap();
    assert_eq!(members.len(), 1000);
    assert_eq!(members[999].state, MemberState::Ended(0));

    nodes.sent.fill(0);
    nodes.end_all(0);
    assert_eq!(nodes.finished, [0]);
    // One message from each node when all beyond it have ended; then all learn that nobody needs to know any more.
    assert!(nodes.sent.iter().all(|sent| *sent <= 1 + 17));
    // The last node has told its end before.
    assert_eq!(nodes.sent.iter().sum::<u32>(), 3 * 999 - 1);
    assert!(nodes.is_clean());
}

#[test]
fn ranks_are_counted_over_all_and_by_node() {
    let mut nodes = Nodes::new(3, 2);
    let group = object(1, 1);
    let places: Vec<_> = [0, 1, 1, 2, 1].map(node).into();
    let mut ranks = Vec::new();
    let actions = nodes.nodes[1].start(group, CREATOR, spec(Restart::default(), None), &places, 1);
    for action in &actions {
        if let Action::Spawn(_, request, _) = action {
            ranks.push(request.rank.unwrap());
        }
    }
    let rank = |rank, local| Rank {
        rank,
        local,
        size: 5,
    };
    assert_eq!(ranks, [rank(1, 0), rank(2, 1), rank(4, 2)]);
    // More come behind them.
    let actions = nodes.nodes[1].start_more(group, &[node(1)], 2);
    let Action::Spawn(_, request, _) = &actions[0] else {
        panic!("{actions:?}");
    };
    let more = Rank {
        rank: 5,
        local: 3,
        size: 6,
    };
    assert_eq!(request.rank, Some(more));
}

#[test]
fn one_that_cannot_be_started_ends_the_others() {
    let mut nodes = Nodes::new(20, 3);
    nodes.fails.insert(13);
    let group = object(4, 1);
    let places = each(20);
    nodes.at(4, |groups| {
        groups.start(group, CREATOR, spec(Restart::default(), None), &places, 1)
    });
    let (request, failed) = &nodes.started[0];
    assert_eq!((*request, failed[0].0, failed.len()), (1, 13, 1));
    assert_eq!(nodes.finished, [SIGKILL]);
    assert!(nodes.is_clean());
}

#[test]
fn members_are_started_again_as_often_as_they_may() {
    let restart = Restart {
        when: RestartWhen::OnFailure,
        most: 2,
        back_off_ms: 10,
        back_off_most_ms: 15,
    };
    assert_eq!(back_off(&restart, 1, 0), Some(Duration::from_millis(10)));
    assert_eq!(back_off(&restart, 1, 1), Some(Duration::from_millis(15)));
    assert_eq!(back_off(&restart, 1, 2), None);
    assert_eq!(back_off(&restart, 0, 0), None);
    let always = Restart {
        when: RestartWhen::Always,
        ..restart
    };
    assert_eq!(back_off(&always, 0, 0), Some(Duration::from_millis(10)));

    let mut nodes = Nodes::new(2, 2);
    let group = object(0, 1);
    nodes.at(0, |groups| {
        groups.start(group, CREATOR, spec(restart, None), &each(2), 1)
    });
    for _ in 0..2 {
        nodes.end_all(1 << 8);
        assert!(nodes.finished.is_empty());
        nodes.at(0, |groups| groups.order(group, Order::Look, Some(2)));
        let waiting = MemberState::BackingOff(1 << 8);
        assert!(
            nodes
                .members
                .pop()
                .unwrap()
                .iter()
                .all(|member| member.state == waiting)
        );
        nodes.pass_time();
        assert_eq!(nodes.running.len(), 2);
    }
    // One succeeds, one fails for the last time.
    let key = nodes
        .running
        .remove(&(node(0), 5))
        .or(nodes.running.remove(&(node(0), 6)));
    nodes.at(0, |groups| groups.ended(key.unwrap(), 0));
    nodes.end_all(3 << 8);
    assert_eq!(nodes.finished, [3 << 8]);
    nodes.at(0, |groups| groups.order(group, Order::Look, Some(3)));
    let members = nodes.members.pop().unwrap();
    assert_eq!(members[0].state, MemberState::Ended(0));
    assert_eq!(
        (members[1].state.clone(), members[1].restarts),
        (MemberState::Ended(3 << 8), 2)
    );
    assert!(nodes.is_clean());
}

#[test]
fn removed_ones_stay_away_and_the_walltime_ends_the_rest() {
    let always = Restart {
        when: RestartWhen::Always,
        most: u32::MAX,
        ..Restart::default()
    };
    let mut nodes = Nodes::new(5, 2);
    let group = object(3, 1);
    nodes.at(3, |groups| {
        groups.start(group, CREATOR, spec(always, Some(1000)), &each(5), 1)
    });
    nodes.at(3, |groups| {
        groups.order(group, Order::Remove(Some(vec![0, 4])), Some(2))
    });
    assert_eq!(nodes.members.pop().unwrap().len(), 2);
    assert_eq!(nodes.running.len(), 3);
    assert!(nodes.finished.is_empty());
    // SIGTERM, which these do not mind, and SIGKILL.
    nodes.pass_time();
    assert_eq!(nodes.running.len(), 3);
    nodes.pass_time();
    assert_eq!(nodes.finished, [SIGKILL]);
    assert!(nodes.is_clean());
}

#[test]
fn a_group_ends_with_its_creator() {
    let mut nodes = Nodes::new(9, 2);
    let group = object(8, 1);
    nodes.at(8, |groups| {
        groups.start(group, CREATOR, spec(Restart::default(), None), &each(9), 1)
    });
    let other = SlotId {
        index: 8,
        generation: 1,
    };
    nodes.at(8, |groups| groups.creator_left(other));
    assert_eq!(nodes.running.len(), 9);
    nodes.at(8, |groups| groups.creator_left(CREATOR));
    assert!(nodes.is_clean());
    assert!(!nodes.nodes[8].knows(group));
}

#[test]
fn only_the_members_of_a_lost_node_are_lost() {
    let mut nodes = Nodes::new(7, 2);
    let group = object(0, 1);
    nodes.at(0, |groups| {
        groups.start(group, CREATOR, spec(Restart::default(), None), &each(7), 1)
    });
    // Nodes 3 and 4 were below node 1, and the order that comes first finds it lost.
    let mut view = View::first(7);
    (view.index, view.epoch) = (1, 1);
    view.members.retain(|member| *member != node(1));
    nodes.running.retain(|(on, _), _| on.get() != 1);
    for survivor in [0, 2, 3, 4, 5, 6] {
        nodes.at(survivor, |groups| groups.view_changed(&view));
    }
    assert_eq!(nodes.running.len(), 6);
    nodes.at(0, |groups| groups.order(group, Order::Look, Some(2)));
    let members = nodes.members.pop().unwrap();
    let lost = members
        .iter()
        .filter(|member| member.state == MemberState::Lost);
    let lost: Vec<u32> = lost.map(|member| member.rank).collect();
    assert_eq!((members.len(), lost), (7, vec![1]));
    nodes.end_all(0);
    assert_eq!(nodes.finished, [SIGKILL]);
    nodes.nodes.remove(1);
    assert!(nodes.is_clean());
}

#[test]
fn members_end_with_the_node_of_their_group() {
    let mut nodes = Nodes::new(3, 2);
    nodes.at(1, |groups| {
        let spec = spec(Restart::default(), Some(1000));
        groups.start(object(1, 1), CREATOR, spec, &each(3), 1)
    });
    let mut view = View::first(3);
    view.index = 1;
    view.members.remove(1);
    nodes.running.retain(|(on, _), _| on.get() != 1);
    for survivor in [0, 2] {
        nodes.at(survivor, |groups| groups.view_changed(&view));
    }
    nodes.nodes.remove(1);
    nodes.later.retain(|(on, _)| on.get() != 1);
    assert!(nodes.is_clean());
}

#[test]
fn the_way_to_a_member_leads_over_neighbours_of_the_view() {
    let mut view = View::first(200);
    view.members
        .retain(|member| ![0, 3, 17, 18, 64].contains(&member.get()));
    for fanout in [1, 2, 16] {
        for from in &view.members {
            for to in view.members.iter().filter(|to| *to != from) {
                let (mut here, mut steps) = (*from, 0);
                while here != *to {
                    let next = next_hop(&view, here, *to, fanout).unwrap();
                    let up = view.parent(here, fanout) == Some(next);
                    assert!(up || view.parent(next, fanout) == Some(here));
                    (here, steps) = (next, steps + 1);
                    assert!(steps <= 200, "from {from} to {to}");
                }
            }
            assert_eq!(next_hop(&view, *from, node(3), fanout), None);
        }
    }
}

#[test]
fn a_group_that_nobody_can_ask_about_is_forgotten() {
    let mut nodes = Nodes::new(1, 2);
    nodes.fails.insert(0);
    for number in 0..200 {
        let group = object(0, number);
        nodes.at(0, |groups| {
            groups.prune(|_| false);
            groups.start(group, CREATOR, spec(Restart::default(), None), &each(1), 1)
        });
        assert!(!nodes.nodes[0].knows(group), "it was refused");
    }
    nodes.fails.clear();
    let long = object(0, 1000);
    nodes.at(0, |groups| {
        groups.start(long, CREATOR, spec(Restart::default(), None), &each(1), 1)
    });
    let own = nodes.running.pop_first().unwrap();
    for number in 0..1000 {
        let group = object(0, 2000 + number);
        nodes.at(0, |groups| {
            groups.prune(|group| group.index >= 2990);
            groups.start(group, CREATOR, spec(Restart::default(), None), &each(1), 1)
        });
        nodes.end_all(0);
        assert!(nodes.nodes[0].knows(group) && nodes.nodes[0].spec(group).is_none());
        assert!(nodes.nodes[0].counts().0 <= 130);
    }
    assert!(nodes.nodes[0].spec(long).is_some());
    nodes.running.extend([own]);
}
