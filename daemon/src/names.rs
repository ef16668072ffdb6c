//! Names: a state machine without network and clock. `services/names.rs` connects it to the event loop.
//!
//! On every node it asks global services for its clients, and asks again whenever an answer may have been lost. On the
//! first node of the view it is the table of names. The next one or two ranks have copies.
//!
//! # Rules
//! 1. Nothing is answered before the copies have all that it follows from, and before the node is sure to be global
//!    services still (the lease of `membership.rs`).
//! 2. Whoever had a complete copy once, has one for ever: the first of a view answers nothing before the next ranks have its
//!    table, and the next ranks of a view are among the next ranks of the one before, as members only leave. So the new
//!    first goes on with its copy.
//! 3. Only where the first and all that had copies are lost at once, all members are asked: the newest copy counts, and where
//!    there is none, what each node's own processes have published.

mod asking;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dragon_protocol::membership::View;
use dragon_protocol::names::{
    COUNT_LIMIT, Entries, Entry, NAMES_LIMIT, NameMessage, NameOp, Origin, Outcome, Value, Version,
};
use dragon_protocol::{Code, NodeIndex, ObjectId};

use self::asking::Asking;

/// How many nodes have the table: the first of the view, and the next ranks.
const COPIES: usize = 3;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message to another daemon.
    Send(NodeIndex, NameMessage),
    /// A request of this node is answered.
    Answer(u64, Outcome),
    /// A channel of this node gets a message: the name that somebody waits for is there.
    Wake(ObjectId),
}

/// An answer that waits for the copies.
#[derive(Debug)]
struct Waiting {
    after: u64,
    to: NodeIndex,
    message: NameMessage,
}

/// What was told while no complete copy was known.
#[derive(Debug, Default)]
struct Rebuild {
    missing: BTreeSet<NodeIndex>,
    best: Option<(Version, Entries)>,
    published: Entries,
}

/// Names as one node knows them.
#[derive(Debug)]
pub struct Names {
    me: NodeIndex,
    view: View,
    /// The table, on the first node of the view and on the next ranks.
    table: BTreeMap<String, Entry>,
    /// What the table takes of [`NAMES_LIMIT`].
    cost: usize,
    version: Version,
    /// The table is complete.
    complete: bool,
    /// What the next ranks have; `None`: not even the table.
    copies: BTreeMap<NodeIndex, Option<u64>>,
    waiting: VecDeque<Waiting>,
    rebuild: Option<Rebuild>,
    /// Requests that came before this node ran global services, or during the rebuild.
    held: Vec<(NodeIndex, NameMessage)>,
    /// Nodes that want to know when a name appears.
    watchers: BTreeMap<String, BTreeSet<NodeIndex>>,
    asking: Asking,
    /// Nodes to which something may not have arrived.
    stale: BTreeSet<NodeIndex>,
    outputs: Vec<Output>,
}

impl Names {
    /// The names of a runtime that has just come up: there are none.
    #[must_use]
    pub fn new(me: NodeIndex, view: View) -> Self {
        let complete = view.position(me).is_some_and(|position| position < COPIES);
        let copies = copies_of(&view).map(|node| (node, Some(0))).collect();
        Self {
            me,
            version: (view.index, 0),
            view,
            table: BTreeMap::new(),
            cost: 0,
            complete,
            copies,
            waiting: VecDeque::new(),
            rebuild: None,
            held: Vec::new(),
            watchers: BTreeMap::new(),
            asking: Asking::default(),
            stale: BTreeSet::new(),
            outputs: Vec::new(),
        }
    }

    /// What is to be done, in order.
    pub fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// What a name stands for, as far as this node has the table.
    #[must_use]
    pub fn stands_for(&self, name: &str) -> Option<&Value> {
        self.table.get(name).map(|entry| &entry.value)
    }

    /// Another daemon says something. `answers`: this node may answer as global services now.
    pub fn says(&mut self, from: NodeIndex, message: NameMessage, answers: bool) {
        match message {
            // The asker may know of the next view already.
            NameMessage::Ask { .. } if !self.is_first() || !self.complete => {
                self.held.push((from, message));
            }
            NameMessage::Ask { request, again, op } => self.asked(from, request, again, op),
            // What another than the first of the view says may be of the past: the question is on its way again.
            NameMessage::Answer { request, outcome } if from == self.view.global_services() => {
                self.answered(request, outcome);
            }
            NameMessage::Appeared(name) => self.appeared(&name),
            NameMessage::Gone(name, origin) => self.asking.gone(&name, origin),
            NameMessage::Copy(version, entries) => {
                let newer = !self.complete || version >= self.version;
                if newer && version.0 >= self.view.index {
                    self.take_table(entries);
                    self.version = version;
                    self.complete = true;
                    self.send(from, NameMessage::Copied(version));
                }
            }
            NameMessage::Change(version, name, entry) => {
                let (index, number) = self.version;
                if version.0 < self.view.index || self.complete && version <= self.version {
                    // Of the past.
                } else if self.complete && version == (index, number + 1) {
                    self.apply(name, entry);
                    self.version = version;
                    self.send(from, NameMessage::Copied(version));
                } else {
                    self.send(from, NameMessage::Behind);
                }
            }
            NameMessage::Behind if self.complete && self.copies.contains_key(&from) => {
                self.send_table(from);
            }
            NameMessage::Copied((index, number)) => {
                if let Some(copy) = self.copies.get_mut(&from)
                    && index == self.version.0
                {
                    *copy = Some(copy.map_or(number, |before| before.max(number)));
                }
            }
            NameMessage::Tell(index) => {
                let copy = self.complete.then(|| (self.version, self.entries()));
                let own = self.asking.published();
                self.send(from, NameMessage::Told(index, copy, own));
            }
            NameMessage::Told(index, copy, published) if index == self.view.index => {
                self.told(from, copy, published);
            }
            _ => {}
        }
        self.flush(answers);
    }

    /// There is a new view; the nodes that are `lost` are members no more.
    pub fn changed(&mut self, view: View, lost: &[NodeIndex], answers: bool) {
        let first_before = self.view.global_services();
        self.view = view;
        let first = self.view.global_services();
        for node in lost {
            self.stale.remove(node);
            self.watchers.values_mut().for_each(|nodes| {
                nodes.remove(node);
            });
        }
        if self.is_first() {
            self.begin();
            if self.complete {
                self.drop_lost();
                self.ask_held();
            }
        } else {
            self.held.clear();
        }
        if first != first_before {
            self.ask_again();
        }
        self.flush(answers);
    }

    /// What was sent to a node may not have arrived.
    pub fn link_lost(&mut self, node: NodeIndex, answers: bool) {
        if self.copies.contains_key(&node) && self.is_first() && self.complete {
            self.send_table(node);
        }
        if self
            .rebuild
            .as_ref()
            .is_some_and(|rebuild| rebuild.missing.contains(&node))
        {
            self.send(node, NameMessage::Tell(self.view.index));
        }
        if node == self.view.global_services() {
            self.ask_again();
        }
        self.flush(answers);
    }

    /// A node cannot be reached at the moment.
    pub fn unreachable(&mut self, node: NodeIndex) {
        self.stale.insert(node);
    }

    /// A heartbeat came: the nodes that could not be reached are tried again.
    pub fn retry(&mut self, answers: bool) {
        for node in std::mem::take(&mut self.stale) {
            self.link_lost(node, answers);
        }
    }

    /// Sends the answers for which the copies have everything. To be called when the lease was renewed, too.
    pub fn flush(&mut self, answers: bool) {
        if !answers || !self.complete || !self.is_first() {
            return;
        }
        let copied = self.copies.values().map(|copy| copy.map_or(-1, i128::from));
        let copied = copied.min().unwrap_or(i128::MAX);
        while self
            .waiting
            .front()
            .is_some_and(|waiting| i128::from(waiting.after) <= copied)
        {
            if let Some(Waiting { to, message, .. }) = self.waiting.pop_front() {
                self.send(to, message);
            }
        }
    }

    fn is_first(&self) -> bool {
        self.view.global_services() == self.me
    }

    /// This node runs global services in a new view.
    fn begin(&mut self) {
        self.copies = copies_of(&self.view).map(|node| (node, None)).collect();
        if self.complete {
            self.version.0 = self.view.index;
            for node in self.copies.keys().copied().collect::<Vec<_>>() {
                self.send_table(node);
            }
            return;
        }
        let mut rebuild = self.rebuild.take().unwrap_or_default();
        let others = self.view.members.iter().copied();
        rebuild.missing = others.filter(|node| *node != self.me).collect();
        rebuild.published = self.asking.published();
        for node in rebuild.missing.clone() {
            self.send(node, NameMessage::Tell(self.view.index));
        }
        self.rebuild = Some(rebuild);
        self.rebuilt();
    }

    fn told(&mut self, from: NodeIndex, copy: Option<(Version, Entries)>, published: Entries) {
        let Some(rebuild) = &mut self.rebuild else {
            return;
        };
        if !rebuild.missing.remove(&from) {
            return;
        }
        let newer = |copy: &(Version, Entries)| {
            let best = rebuild.best.as_ref();
            best.is_none_or(|best| best.0 < copy.0)
        };
        if let Some(copy) = copy.filter(newer) {
            rebuild.best = Some(copy);
        }
        rebuild.published.extend(published);
        self.rebuilt();
    }

    fn rebuilt(&mut self) {
        let Some(rebuild) = self.rebuild.take_if(|rebuild| rebuild.missing.is_empty()) else {
            return;
        };
        let (version, entries) = rebuild.best.unwrap_or((self.version, rebuild.published));
        self.take_table(entries);
        self.version = (self.view.index, version.1);
        self.complete = true;
        for node in self.copies.keys().copied().collect::<Vec<_>>() {
            self.send_table(node);
        }
        self.drop_lost();
        self.ask_held();
    }

    fn ask_held(&mut self) {
        for (from, message) in std::mem::take(&mut self.held) {
            if let NameMessage::Ask { request, again, op } = message {
                self.asked(from, request, again, op);
            }
        }
    }

    /// The names that last with processes of nodes that are lost go with them.
    fn drop_lost(&mut self) {
        let lost = self
            .table
            .iter()
            .filter(|(_, entry)| entry.publisher.is_some() && !self.view.contains(entry.origin.0));
        let lost: Vec<_> = lost.map(|(name, _)| name.clone()).collect();
        for name in lost {
            self.change(name, None);
        }
    }

    fn send_table(&mut self, node: NodeIndex) {
        let message = NameMessage::Copy(self.version, self.entries());
        self.send(node, message);
    }

    fn entries(&self) -> Entries {
        let entries = self.table.iter();
        entries
            .map(|(name, entry)| (name.clone(), entry.clone()))
            .collect()
    }

    /// A node asks something of global services, which this node runs.
    fn asked(&mut self, from: NodeIndex, request: u64, again: bool, op: NameOp) {
        let outcome = match op {
            NameOp::Publish(name, value, publisher) => {
                let origin = (from, request);
                self.publish(
                    name,
                    Entry {
                        value,
                        origin,
                        publisher,
                    },
                )
            }
            NameOp::LookUp(name, watch) => {
                let value = self.table.get(&name).map(|entry| entry.value.clone());
                if watch && value.is_none() {
                    self.watchers.entry(name).or_default().insert(from);
                }
                Outcome::Done(value)
            }
            NameOp::Unpublish(name, only) => self.unpublish(name, only, again),
            NameOp::List(begin) => {
                let names = self.table.range(begin.clone()..).map(|(name, _)| name);
                let names = names.take_while(|name| name.starts_with(&begin));
                Outcome::Names(names.cloned().collect())
            }
        };
        self.later(from, NameMessage::Answer { request, outcome });
    }

    fn publish(&mut self, name: String, entry: Entry) -> Outcome {
        let count = self.table.len();
        match self.table.get(&name) {
            // It was asked before, and the answer was lost.
            Some(known) if known.origin == entry.origin => {}
            Some(known) => {
                let text = format!(
                    "'{name}' stands for {} already; take it back first (unpublish), or choose another name",
                    shown(&known.value)
                );
                return Outcome::Failed(Code::NameTaken, text);
            }
            None if count >= COUNT_LIMIT => {
                let text = format!(
                    "'{name}' would be name {} of the runtime, the limit is {COUNT_LIMIT}",
                    count + 1
                );
                return Outcome::Failed(Code::TableFull, text);
            }
            None if self.cost + entry.cost(&name) > NAMES_LIMIT => {
                let text = format!(
                    "'{name}' takes {} bytes, and the {count} names of the runtime take {} of {NAMES_LIMIT}; take names back that nobody needs, and put large data into a block of a pool or a channel, and publish that",
                    entry.cost(&name),
                    self.cost
                );
                return Outcome::Failed(Code::TableFull, text);
            }
            None => {
                self.change(name.clone(), Some(entry));
                for node in self.watchers.remove(&name).unwrap_or_default() {
                    self.later(node, NameMessage::Appeared(name.clone()));
                }
            }
        }
        Outcome::Done(None)
    }

    fn unpublish(&mut self, name: String, only: Option<Origin>, again: bool) -> Outcome {
        let known = self.table.get(&name).cloned();
        let known = known.filter(|entry| only.is_none_or(|only| only == entry.origin));
        match known {
            Some(entry) => {
                self.change(name.clone(), None);
                self.later(entry.origin.0, NameMessage::Gone(name, entry.origin));
                Outcome::Done(Some(entry.value))
            }
            None if again || only.is_some() => Outcome::Done(None),
            None => Outcome::Failed(
                Code::NoSuchName,
                format!("nothing is published as '{name}'"),
            ),
        }
    }

    /// Changes the table, and tells the next ranks.
    fn change(&mut self, name: String, entry: Option<Entry>) {
        self.version.1 += 1;
        let message = NameMessage::Change(self.version, name.clone(), entry.clone());
        for node in self.copies.keys().copied().collect::<Vec<_>>() {
            self.send(node, message.clone());
        }
        self.apply(name, entry);
    }

    fn apply(&mut self, name: String, entry: Option<Entry>) {
        if let Some(before) = self.table.remove(&name) {
            self.cost -= before.cost(&name);
        }
        if let Some(entry) = entry {
            self.cost += entry.cost(&name);
            self.table.insert(name, entry);
        }
    }

    /// In the place of the table that there was.
    fn take_table(&mut self, entries: Entries) {
        self.table = entries.into_iter().collect();
        let table = self.table.iter();
        self.cost = table.map(|(name, entry)| entry.cost(name)).sum();
    }

    /// Says something when the copies have the table as it is now.
    fn later(&mut self, to: NodeIndex, message: NameMessage) {
        self.waiting.push_back(Waiting {
            after: self.version.1,
            to,
            message,
        });
    }

    fn send(&mut self, to: NodeIndex, message: NameMessage) {
        if to != self.me {
            return self.outputs.push(Output::Send(to, message));
        }
        match message {
            NameMessage::Answer { request, outcome } => self.answered(request, outcome),
            NameMessage::Appeared(name) => self.appeared(&name),
            NameMessage::Gone(name, origin) => self.asking.gone(&name, origin),
            NameMessage::Ask { .. } if !self.complete => self.held.push((to, message)),
            NameMessage::Ask { request, again, op } => self.asked(to, request, again, op),
            _ => {}
        }
    }
}

/// Who has copies beside the first of a view.
fn copies_of(view: &View) -> impl Iterator<Item = NodeIndex> + use<> {
    let next: Vec<_> = view.members.iter().copied().take(COPIES).skip(1).collect();
    next.into_iter()
}

/// A value in an error's text.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(object, _) => object.to_string(),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
    }
}

#[cfg(test)]
mod tests;
