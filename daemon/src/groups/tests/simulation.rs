//! Groups over nodes that are lost and connections that end at any step, against what must hold in the end: every request is
//! answered once, no member is left that nobody owns, none is started after its end was answered for, no order is applied twice.
//!
//! One seed is one history; `DRAGON_SIMULATION_SEEDS` says how many are tried.

use std::collections::VecDeque;

use super::*;

/// Histories in an ordinary run.
const SEEDS: u64 = 200;
/// Signals of the simulation begin here: each order has one of its own.
const SIGNALS: i32 = 1000;
/// How often a member is started again, where it is.
const AGAIN: u32 = 2;

struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % most.max(1)
    }

    fn one_in(&mut self, most: usize) -> bool {
        self.below(most) == 0
    }
}

/// A connection between two nodes.
struct Link {
    ends: [usize; 2],
    /// What is on its way from each end to the other.
    open: [VecDeque<GroupLetter>; 2],
    /// Which end has it, and has not seen its end.
    has: [bool; 2],
    accepted: bool,
    up: bool,
}

#[derive(Clone, Debug)]
struct Process {
    key: MemberKey,
    group: usize,
    rank: u32,
    /// It was killed, and ends in a moment.
    dying: Option<i32>,
    signals: BTreeSet<i32>,
}

/// A start that was ordered.
#[derive(Debug)]
struct Pending {
    node: usize,
    key: MemberKey,
    group: usize,
    rank: u32,
    /// It waits for CPUs.
    queued: bool,
}

#[derive(Debug)]
struct Known {
    id: ObjectId,
    home: usize,
    size: u32,
    finished: u32,
    refused: bool,
    /// Ranks whose end was answered for.
    removed: BTreeSet<u32>,
    /// Ranks whose end was ordered, and in which view.
    ordered: BTreeMap<u32, usize>,
}

#[derive(Debug)]
enum Asked {
    Start,
    Look(u32),
    Signal(u32, i32, Vec<(usize, u32)>),
    Remove(BTreeSet<u32>),
}

struct World {
    random: Random,
    trouble: bool,
    nodes: Vec<Option<Groups>>,
    views: Vec<View>,
    /// Which of the views each node has.
    installed: Vec<usize>,
    links: Vec<Link>,
    pending: Vec<Pending>,
    running: BTreeMap<(usize, u32), Process>,
    later: Vec<(usize, Due)>,
    groups: Vec<Known>,
    asked: BTreeMap<u64, (usize, Asked)>,
    last: u64,
    started: BTreeMap<MemberKey, u32>,
    next: u32,
}

/// What can happen next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Deliver(usize, usize),
    Accept(usize),
    Lost(usize, usize),
    Install(usize),
    Start(usize),
    End(usize, u32),
    Due(usize),
}

fn index(node: NodeIndex) -> usize {
    usize::try_from(node.get()).unwrap()
}

fn at(place: usize) -> NodeIndex {
    node(u32::try_from(place).unwrap())
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let count = 1 + random.below(12);
        let fanout = 1 + u32::try_from(random.below(3)).unwrap();
        let view = View::first(u32::try_from(count).unwrap());
        let groups = |n| Some(Groups::new(at(n), fanout, view.clone()));
        Self {
            random,
            trouble: true,
            nodes: (0..count).map(groups).collect(),
            installed: vec![0; count],
            views: vec![view.clone()],
            links: Vec::new(),
            pending: Vec::new(),
            running: BTreeMap::new(),
            later: Vec::new(),
            groups: Vec::new(),
            asked: BTreeMap::new(),
            last: 0,
            started: BTreeMap::new(),
            next: 0,
        }
    }

    fn living(&self) -> Vec<usize> {
        let places = 0..self.nodes.len();
        places.filter(|n| self.nodes[*n].is_some()).collect()
    }

    fn at(&mut self, place: usize, what: impl FnOnce(&mut Groups) -> Vec<Action>) {
        let actions = self.nodes[place].as_mut().map(what);
        for action in actions.into_iter().flatten() {
            self.act(place, action);
        }
    }

    fn act(&mut self, on: usize, action: Action) {
        match action {
            Action::Tell(to, letter) => self.tell(on, index(to), letter),
            Action::Spawn(key, request, _) => self.spawn(on, key, request.rank.unwrap().rank),
            Action::Cancel(keys) => {
                for key in keys {
                    let meant = |p: &Pending| p.queued && p.node == on && p.key == key;
                    if let Some(place) = self.pending.iter().position(meant) {
                        self.pending.remove(place);
                        let refused = Err((Code::Cancelled, "called off".to_owned()));
                        self.at(on, |groups| groups.started(key, refused));
                    }
                }
            }
            Action::Signal(process, signal, _) => {
                let Some(process) = self.running.get_mut(&(on, process.index)) else {
                    return;
                };
                match signal {
                    SIGKILL => process.dying = Some(SIGKILL),
                    SIGTERM if self.random.one_in(2) => process.dying = Some(SIGTERM),
                    SIGTERM => {}
                    other => assert!(process.signals.insert(other), "twice: {process:?}"),
                }
            }
            Action::Later(_, due) => {
                assert!(!self.later.contains(&(on, due)));
                self.later.push((on, due));
            }
            Action::NoLonger(due) => self.later.retain(|later| *later != (on, due)),
            Action::Finished(id, _) => {
                let group = self.groups.iter_mut().find(|group| group.id == id).unwrap();
                group.finished += 1;
            }
            Action::Started(request, id, failed) => {
                let (home, asked) = self.asked.remove(&request).expect("answered twice");
                assert!(home == on && matches!(asked, Asked::Start), "{asked:?}");
                let group = self.groups.iter_mut().find(|group| group.id == id).unwrap();
                group.refused |= !failed.is_empty();
            }
            Action::Members(request, members) => self.answered(on, request, &members),
        }
    }

    fn answered(&mut self, on: usize, request: u64, members: &[MemberInfo]) {
        let (home, asked) = self.asked.remove(&request).expect("answered twice");
        assert_eq!(home, on);
        let ranks: Vec<u32> = members.iter().map(|member| member.rank).collect();
        match asked {
            Asked::Start => panic!("{members:?}"),
            Asked::Look(size) => assert_eq!(ranks, Vec::from_iter(0..size)),
            Asked::Signal(size, signal, before) => {
                assert_eq!(ranks, Vec::from_iter(0..size));
                let running = before.iter().filter_map(|key| self.running.get(key));
                for process in running.filter(|process| process.dying.is_none()) {
                    assert!(process.signals.contains(&signal), "{process:?}");
                }
            }
            Asked::Remove(wanted) => {
                assert_eq!(BTreeSet::from_iter(ranks), wanted);
                let group = self.groups.iter().position(|group| {
                    // The answer does not name the group, but its request did.
                    group.id.index == u32::try_from(request >> 32).unwrap()
                });
                let group = group.unwrap();
                let meant = |of: usize, rank: u32| of == group && wanted.contains(&rank);
                for pending in &self.pending {
                    let waits = pending.queued && meant(pending.group, pending.rank);
                    assert!(!waits, "it waits on: {pending:?}");
                }
                for process in self.running.values() {
                    let lives = process.dying.is_none() && meant(process.group, process.rank);
                    assert!(!lives, "it lives on: {process:?}");
                }
                self.groups[group].removed.extend(wanted);
            }
        }
    }

    fn spawn(&mut self, on: usize, key: MemberKey, rank: u32) {
        let named = |group: &Known| key.batch.is_of(group.id);
        let group = self.groups.iter().position(named).unwrap();
        let known = &self.groups[group];
        assert!(!known.removed.contains(&rank), "{key:?} after its end");
        let view = &self.views[self.installed[on]];
        assert!(view.contains(at(known.home)), "{key:?} of a lost node");
        let times = self.started.entry(key).or_default();
        *times += 1;
        assert!(*times <= 1 + AGAIN, "{key:?} was started {times} times");
        // It may have been on its way before; with a later view it was not.
        let ordered = known.ordered.get(&rank);
        let early = *times > 1 || ordered.is_none_or(|view| *view >= self.installed[on]);
        assert!(early, "{key:?} after its end was ordered");
        self.pending.push(Pending {
            node: on,
            key,
            group,
            rank,
            queued: self.random.one_in(4),
        });
    }

    // Connections. ------------------------------------------------------------------------------------------------------

    fn tell(&mut self, from: usize, to: usize, letter: GroupLetter) {
        if !self.views[self.installed[from]].contains(at(to)) {
            return;
        }
        let place = match self.link(from, to) {
            Some(place) => place,
            None if self.nodes[to].is_none() || (self.trouble && self.random.one_in(6)) => {
                return self.at(from, |groups| {
                    groups.unreachable(at(to));
                    Vec::new()
                });
            }
            None => self.connect(from, to),
        };
        let link = &mut self.links[place];
        if link.up {
            let end = usize::from(link.ends[1] == from);
            link.open[end].push_back(letter);
        }
    }

    /// The connection by which a node reaches another.
    fn link(&self, from: usize, to: usize) -> Option<usize> {
        self.links.iter().position(|link| {
            let end = link.ends.iter().position(|end| *end == from);
            end.is_some_and(|end| link.has[end] && link.ends[1 - end] == to)
        })
    }

    fn connect(&mut self, from: usize, to: usize) -> usize {
        self.links.push(Link {
            ends: [from, to],
            open: Default::default(),
            has: [true, false],
            accepted: false,
            up: true,
        });
        let place = self.links.len() - 1;
        self.at(from, |groups| groups.connected(at(to)));
        place
    }

    /// Heartbeats find that there is no connection.
    fn beat(&mut self) {
        let living = self.living();
        for from in &living {
            for to in &living {
                if from != to && self.link(*from, *to).is_none() {
                    self.connect(*from, *to);
                }
            }
        }
    }

    /// A connection ends; what was not read yet may be lost.
    fn cut(&mut self, place: usize) {
        let link = &mut self.links[place];
        link.up = false;
        for open in &mut link.open {
            open.truncate(self.random.below(open.len() + 1));
        }
    }

    fn kill(&mut self, place: usize) {
        self.nodes[place] = None;
        for link in 0..self.links.len() {
            if self.links[link].ends.contains(&place) && self.links[link].up {
                self.cut(link);
            }
        }
        self.pending.retain(|pending| pending.node != place);
        self.running.retain(|(on, _), _| *on != place);
        self.later.retain(|(on, _)| *on != place);
        self.asked.retain(|_, (home, _)| *home != place);
        let mut view = self.views.last().unwrap().clone();
        view.index += 1;
        view.members.retain(|member| *member != at(place));
        self.views.push(view);
    }

    // Steps. ------------------------------------------------------------------------------------------------------------

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (place, link) in self.links.iter().enumerate() {
            for end in [0, 1] {
                let reader = self.nodes[link.ends[1 - end]].is_some();
                if !reader {
                    continue;
                }
                if !link.accepted {
                    if end == 0 && link.up {
                        steps.push(Step::Accept(place));
                    }
                } else if !link.open[end].is_empty() && link.has[1 - end] {
                    steps.push(Step::Deliver(place, end));
                }
                let read = link.open[end].is_empty() || !link.accepted;
                if !link.up && link.has[1 - end] && read {
                    steps.push(Step::Lost(place, 1 - end));
                }
            }
        }
        for place in self.living() {
            if self.installed[place] + 1 < self.views.len() {
                steps.push(Step::Install(place));
            }
        }
        let pending = self.pending.iter().enumerate();
        let served = pending.filter(|(_, pending)| !pending.queued || self.trouble);
        steps.extend(served.map(|(place, _)| Step::Start(place)));
        let running = self.running.iter();
        let ending = running.filter(|(_, process)| process.dying.is_some());
        steps.extend(ending.map(|((on, number), _)| Step::End(*on, *number)));
        steps
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Deliver(place, end) => {
                let link = &mut self.links[place];
                let [from, to] = [link.ends[end], link.ends[1 - end]];
                let letter = link.open[end].pop_front().unwrap();
                if self.views[self.installed[to]].contains(at(from)) {
                    self.at(to, |groups| groups.hear(at(from), letter));
                }
            }
            Step::Accept(place) => {
                let link = &mut self.links[place];
                (link.accepted, link.has[1]) = (true, true);
                let [from, to] = link.ends;
                self.at(to, |groups| groups.connected(at(from)));
            }
            Step::Lost(place, end) => {
                let link = &mut self.links[place];
                link.has[end] = false;
                let [here, there] = [link.ends[end], link.ends[1 - end]];
                self.at(here, |groups| groups.link_lost(at(there)));
            }
            Step::Install(place) => {
                let next = self.installed[place] + 1;
                let chosen = next + self.random.below(self.views.len() - next);
                self.installed[place] = chosen;
                let view = self.views[chosen].clone();
                for link in &mut self.links {
                    let end = link.ends.iter().position(|end| *end == place);
                    if let Some(end) = end
                        && !view.contains(at(link.ends[1 - end]))
                    {
                        link.has[end] = false;
                    }
                }
                self.at(place, |groups| groups.view_changed(&view));
            }
            Step::Start(place) => {
                let pending = self.pending.swap_remove(place);
                let result = match self.random.one_in(40) {
                    true => Err((Code::SpawnFailed, "no".to_owned())),
                    false => {
                        self.next += 1;
                        let process = Process {
                            key: pending.key,
                            group: pending.group,
                            rank: pending.rank,
                            dying: None,
                            signals: BTreeSet::new(),
                        };
                        self.running.insert((pending.node, self.next), process);
                        Ok(Spawned {
                            process: object(at(pending.node).get(), self.next),
                            pid: self.next,
                        })
                    }
                };
                self.at(pending.node, |groups| groups.started(pending.key, result));
            }
            Step::End(on, number) => {
                let process = self.running.remove(&(on, number)).unwrap();
                let status = process.dying.unwrap_or(0);
                self.at(on, |groups| groups.ended(process.key, status));
            }
            Step::Due(place) => {
                let (on, due) = self.later.swap_remove(place);
                self.at(on, |groups| groups.due(due));
            }
        }
    }

    /// Something breaks.
    fn fault(&mut self) {
        let living = self.living();
        if self.random.one_in(3) && living.len() > 1 {
            let victim = living[self.random.below(living.len())];
            return self.kill(victim);
        }
        let up: Vec<usize> = (0..self.links.len())
            .filter(|place| self.links[*place].up)
            .collect();
        if !up.is_empty() {
            let place = up[self.random.below(up.len())];
            self.cut(place);
        }
    }

    /// Something is asked.
    fn ask(&mut self) {
        let living = self.living();
        let open = |group: &usize| {
            let group = &self.groups[*group];
            self.nodes[group.home].is_some() && !group.refused
        };
        let open: Vec<usize> = (0..self.groups.len()).filter(open).collect();
        self.last += 1;
        if open.is_empty() || self.random.one_in(3) {
            let home = living[self.random.below(living.len())];
            let number = u32::try_from(self.groups.len()).unwrap();
            let id = object(at(home).get(), number);
            let places = self.places(home);
            let size = u32::try_from(places.len()).unwrap();
            self.groups.push(Known {
                id,
                home,
                size,
                finished: 0,
                refused: false,
                removed: BTreeSet::new(),
                ordered: BTreeMap::new(),
            });
            let restart = match self.random.below(3) {
                0 => Restart {
                    when: RestartWhen::Always,
                    most: AGAIN,
                    ..Restart::default()
                },
                _ => Restart::default(),
            };
            let walltime = self.random.one_in(4).then_some(1000);
            let request = self.last;
            self.asked.insert(request, (home, Asked::Start));
            let spec = spec(restart, walltime);
            return self.at(home, |groups| {
                groups.start(id, CREATOR, spec, &places, request)
            });
        }
        let place = open[self.random.below(open.len())];
        let (id, home, size) = {
            let group = &self.groups[place];
            (group.id, group.home, group.size)
        };
        let knows = |world: &Self| world.nodes[home].as_ref().is_some_and(|g| g.knows(id));
        if !knows(self) {
            return;
        }
        let number = u64::from(id.index) << 32 | self.last;
        match self.random.below(6) {
            0 => {
                let has_spec = |groups: &Groups| groups.spec(id).is_some();
                if self.nodes[home].as_ref().is_some_and(has_spec) {
                    let places = self.places(home);
                    self.groups[place].size += u32::try_from(places.len()).unwrap();
                    self.asked.insert(number, (home, Asked::Start));
                    self.at(home, |groups| groups.start_more(id, &places, number));
                }
            }
            1 => {
                let signal = SIGNALS + i32::try_from(self.last).unwrap();
                let mine = self.running.iter().filter(|(_, p)| p.group == place);
                let before = mine.map(|(key, _)| *key).collect();
                let asked = Asked::Signal(size, signal, before);
                self.asked.insert(number, (home, asked));
                let order = Order::Signal(signal, Reach::Process);
                self.at(home, |groups| groups.order(id, order, Some(number)));
            }
            2 => {
                let ranks: BTreeSet<u32> = (0..size).filter(|_| self.random.one_in(3)).collect();
                self.remove(place, Some(ranks.into_iter().collect()), number);
            }
            3 if self.random.one_in(2) => self.remove(place, None, number),
            _ => {
                self.asked.insert(number, (home, Asked::Look(size)));
                self.at(home, |groups| groups.order(id, Order::Look, Some(number)));
            }
        }
    }

    fn remove(&mut self, place: usize, ranks: Option<Vec<u32>>, number: u64) {
        let group = &self.groups[place];
        let (id, home) = (group.id, group.home);
        let wanted = ranks.clone().unwrap_or((0..group.size).collect());
        let view = self.installed[home];
        let group = &mut self.groups[place];
        for rank in &wanted {
            group.ordered.entry(*rank).or_insert(view);
        }
        let asked = Asked::Remove(wanted.into_iter().collect());
        self.asked.insert(number, (home, asked));
        self.at(home, |groups| {
            groups.order(id, Order::Remove(ranks), Some(number))
        });
    }

    fn places(&mut self, home: usize) -> Vec<NodeIndex> {
        let members = self.views[self.installed[home]].members.clone();
        let count = 1 + self.random.below(2 * members.len());
        let place = |_| members[self.random.below(members.len())];
        (0..count).map(place).collect()
    }

    /// Everything that is on its way comes.
    fn calm(&mut self) {
        self.trouble = false;
        loop {
            let mut steps = self.steps();
            if steps.is_empty() {
                self.beat();
                steps = self.steps();
            }
            if steps.is_empty() {
                return;
            }
            let step = steps[self.random.below(steps.len())];
            self.step(step);
        }
    }

    fn history(&mut self) {
        for _ in 0..300 {
            match self.random.below(60) {
                0..3 => self.ask(),
                3 => self.fault(),
                4 if !self.later.is_empty() => {
                    let place = self.random.below(self.later.len());
                    self.step(Step::Due(place));
                }
                5 if !self.running.is_empty() => {
                    let place = self.random.below(self.running.len());
                    let (on, number) = *self.running.keys().nth(place).unwrap();
                    self.step(Step::End(on, number));
                }
                _ => {
                    let steps = self.steps();
                    if !steps.is_empty() {
                        let step = steps[self.random.below(steps.len())];
                        self.step(step);
                    }
                }
            }
        }
    }

    /// Whatever waits does so for CPUs.
    fn check_answers(&self) {
        for (home, asked) in self.asked.values() {
            let waits = |pending: &Pending| self.groups[pending.group].home == *home;
            let excused = matches!(asked, Asked::Start) && self.pending.iter().any(waits);
            assert!(excused, "not answered: {asked:?}");
        }
    }

    /// All groups end, and nothing is left.
    fn end(&mut self) {
        for place in 0..self.groups.len() {
            let group = &self.groups[place];
            let (id, home) = (group.id, group.home);
            if self.nodes[home].as_ref().is_some_and(|g| g.knows(id)) {
                self.last += 1;
                let number = u64::from(id.index) << 32 | self.last;
                self.remove(place, None, number);
            }
        }
        self.calm();
        assert!(self.asked.is_empty(), "not answered: {:?}", self.asked);
        assert!(self.pending.is_empty(), "unowned: {:?}", self.pending);
        assert!(self.running.is_empty(), "unowned: {:?}", self.running);
        assert_eq!(self.later, []);
        for group in &self.groups {
            let expected = u32::from(self.nodes[group.home].is_some());
            let finished = group.finished.max(1 - expected);
            assert!(group.finished <= 1 && finished == 1, "{group:?}");
        }
        for groups in self.nodes.iter().flatten() {
            assert!(groups.batches.is_empty(), "{:?}", groups.batches);
            assert!(groups.no_orders() && groups.held.is_empty(), "{groups:?}");
            // The last ones of each neighbour wait for something to be confirmed by.
            let neighbours = self.nodes.len();
            assert!(groups.lines.unconfirmed() <= 8 * neighbours);
        }
    }
}

#[test]
fn whatever_is_lost_all_is_answered_and_nobody_is_left() {
    let seeds = std::env::var("DRAGON_SIMULATION_SEEDS");
    let seeds = seeds.map_or(SEEDS, |seeds| seeds.parse().unwrap());
    for seed in 1..=seeds {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.history();
            world.calm();
            world.check_answers();
            world.end();
        });
        assert!(run.is_ok(), "seed {seed}");
    }
}
