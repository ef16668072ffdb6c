//! What a node asks global services for its clients, and what its clients have published.

use std::collections::{BTreeMap, HashSet};

use dragon_protocol::names::{Entries, Entry, NameMessage, NameOp, Origin, Outcome};
use dragon_protocol::{ObjectId, SlotId};

use super::{Names, Output};

/// A request without an answer.
#[derive(Debug)]
struct Asked {
    op: NameOp,
    /// The process that it was for is gone.
    orphan: bool,
    /// Nobody waits for the answer.
    silent: bool,
}

/// The asking side of a node.
#[derive(Debug, Default)]
pub(super) struct Asking {
    last: u64,
    asked: BTreeMap<u64, Asked>,
    /// Channels to be woken when a name appears.
    waits: BTreeMap<String, HashSet<ObjectId>>,
    /// What this node's processes have published: the authority when all copies are lost.
    published: BTreeMap<String, Entry>,
}

impl Asking {
    /// A name is no more.
    pub(super) fn gone(&mut self, name: &str, origin: Origin) {
        if self
            .published
            .get(name)
            .is_some_and(|entry| entry.origin == origin)
        {
            self.published.remove(name);
        }
    }

    pub(super) fn published(&self) -> Entries {
        let published = self.published.iter();
        published
            .map(|(name, entry)| (name.clone(), entry.clone()))
            .collect()
    }
}

impl Names {
    /// Asks global services for a client; returns the number under which the answer comes. `wake` is the channel of one who
    /// waits for the name that is looked up.
    pub fn ask(&mut self, op: NameOp, wake: Option<ObjectId>, answers: bool) -> u64 {
        if let (NameOp::LookUp(name, _), Some(channel)) = (&op, wake) {
            self.asking
                .waits
                .entry(name.clone())
                .or_default()
                .insert(channel);
        }
        let request = self.begin_asking(op, false);
        self.flush(answers);
        request
    }

    /// Nobody waits at a channel any more.
    pub fn forget(&mut self, channel: ObjectId) {
        self.asking.waits.retain(|_, channels| {
            channels.remove(&channel);
            !channels.is_empty()
        });
    }

    /// A process of this node is gone: the names that last with it go, too.
    pub fn slot_gone(&mut self, slot: SlotId, answers: bool) {
        let published = self.asking.published.iter();
        let its = published.filter(|(_, entry)| entry.publisher == Some(slot));
        let its: Vec<_> = its
            .map(|(name, entry)| (name.clone(), entry.origin))
            .collect();
        for (name, origin) in its {
            self.begin_asking(NameOp::Unpublish(name, Some(origin)), true);
        }
        for asked in self.asking.asked.values_mut() {
            let NameOp::Publish(_, _, publisher) = &asked.op else {
                continue;
            };
            asked.orphan |= *publisher == Some(slot);
        }
        self.flush(answers);
    }

    fn begin_asking(&mut self, op: NameOp, silent: bool) -> u64 {
        self.asking.last += 1;
        let request = self.asking.last;
        let asked = Asked {
            op: op.clone(),
            orphan: false,
            silent,
        };
        self.asking.asked.insert(request, asked);
        let first = self.view.global_services();
        let again = false;
        self.send(first, NameMessage::Ask { request, again, op });
        request
    }

    /// Asks everything again that has no answer, since it or its answer may be lost.
    pub(super) fn ask_again(&mut self) {
        let first = self.view.global_services();
        let asked = self.asking.asked.iter();
        let asked: Vec<_> = asked
            .map(|(request, asked)| (*request, asked.op.clone()))
            .collect();
        for (request, op) in asked {
            let again = true;
            self.send(first, NameMessage::Ask { request, again, op });
        }
        for name in self.asking.waits.keys().cloned().collect::<Vec<_>>() {
            self.begin_asking(NameOp::LookUp(name, true), true);
        }
    }

    pub(super) fn answered(&mut self, request: u64, outcome: Outcome) {
        let Some(asked) = self.asking.asked.remove(&request) else {
            return;
        };
        match (&asked.op, &outcome) {
            (NameOp::Publish(name, value, publisher), Outcome::Done(_)) => {
                let origin = (self.me, request);
                let entry = Entry {
                    value: value.clone(),
                    origin,
                    publisher: *publisher,
                };
                self.asking.published.insert(name.clone(), entry);
                if asked.orphan {
                    let op = NameOp::Unpublish(name.clone(), Some(origin));
                    self.begin_asking(op, true);
                }
            }
            // It has appeared.
            (NameOp::LookUp(name, true), Outcome::Done(Some(_))) => self.appeared(name),
            _ => {}
        }
        if !asked.silent {
            self.outputs.push(Output::Answer(request, outcome));
        }
    }

    /// A name stands for something now.
    pub(super) fn appeared(&mut self, name: &str) {
        for channel in self.asking.waits.remove(name).unwrap_or_default() {
            self.outputs.push(Output::Wake(channel));
        }
    }
}
