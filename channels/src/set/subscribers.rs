//! Who must hear of an object's changes: the sets that it is in.
//!
//! Two places are in the object's entry; further ones in nodes of the control region. A place holds the number of a set's
//! record, the record's generation, the number of the member and its interests, in one word, which is claimed and cleared
//! by compare-and-swap with that word. A word whose set is gone means nobody, and is cleared by whoever meets it; so a set
//! goes without looking for the places where it stands.

use std::ops::ControlFlow;

use dragon_protocol::{ObjectId, ObjectKind};
use dragon_shmem::Control;
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::subscription::owner_word;
use dragon_shmem::sync::{AtomicU32, AtomicU64, Ordering, low};

use super::flags;
use super::record::record;
use super::{Interest, READY};
use crate::error::Result;

/// In an object's watch word: an agent has requests parked on it.
pub(crate) const AGENT: u32 = 1;
/// In an object's watch word: it is in sets.
pub(crate) const SUBSCRIBED: u32 = 2;
/// In an object's watch word: somebody must hear of its changes. The bits above count how often a subscriber entered.
pub(crate) const WATCHED: u32 = AGENT | SUBSCRIBED;
/// One subscriber more has entered, in an object's watch word.
const ENTERED: u32 = 4;

/// A member of a set, as the objects' places have it: generation of the record 32 bits | member 16 | record 13 |
/// interests 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subscriber {
    pub(crate) record: u32,
    pub(crate) generation: u32,
    pub(crate) member: u32,
    pub(crate) interest: Interest,
}

impl Subscriber {
    pub(crate) fn word(self) -> u64 {
        u64::from(self.generation) << 32
            | u64::from(self.member & 0xffff) << 16
            | u64::from(self.record & 0x1fff) << 3
            | u64::from(self.interest.0 & READY)
    }

    fn of(word: u64) -> Option<Self> {
        (word != 0).then_some(Self {
            record: low(word >> 3) & 0x1fff,
            generation: low(word >> 32),
            member: low(word >> 16) & 0xffff,
            interest: Interest(low(word) & READY),
        })
    }
}

/// Where the words of an object's subscribers lie.
pub(crate) trait Places {
    /// The object's watch word.
    fn watch(&self) -> &AtomicU32;
    /// Shows the places, one after the other.
    fn each<B>(&self, visit: impl FnMut(&AtomicU64) -> ControlFlow<B>) -> Option<B>;
    /// Adds further places with `word` in the first of them.
    fn grow(&self, word: u64) -> Result<()>;
}

/// Enters a subscriber. Changes from now on are announced to it; the caller flags it for those that were before.
pub(crate) fn enter(places: &impl Places, word: u64, gone: impl Fn(u64) -> bool) -> Result<()> {
    let entered = places.each(|place| {
        let now = place.load(Ordering::Acquire);
        if now != 0 && !gone(now) {
            return ControlFlow::Continue(());
        }
        match place.compare_exchange(now, word, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => ControlFlow::Break(()),
            Err(_) => ControlFlow::Continue(()),
        }
    });
    if entered.is_none() {
        places.grow(word)?;
    }
    // After the word, and counted before it is marked: whoever found no word takes the mark away only if the count is what it
    // was before he looked.
    places.watch().fetch_add(ENTERED, Ordering::AcqRel);
    places.watch().fetch_or(SUBSCRIBED, Ordering::AcqRel);
    Ok(())
}

/// Takes a subscriber out, wherever it stands.
pub(crate) fn leave(places: &impl Places, word: u64) {
    let _ = places.each(|place| {
        if place.load(Ordering::Relaxed) == word {
            let _ = place.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        ControlFlow::<()>::Continue(())
    });
    unmark_when_empty(places);
}

/// Takes the mark away when nobody is left. It is never away while somebody is there whose [`enter`] has returned: a change
/// in such a moment would be told to nobody.
fn unmark_when_empty(places: &impl Places) {
    let seen = places.watch().load(Ordering::Acquire);
    let found = places.each(|place| match place.load(Ordering::Acquire) {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    if found.is_none() && seen & SUBSCRIBED != 0 {
        // It fails when somebody has entered since, or the agent's mark has changed: then the mark stays, and whoever tells
        // nobody next tries again.
        let _ = places.watch().compare_exchange(
            seen,
            seen & !SUBSCRIBED,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }
}

/// Shows each subscriber to `tell`, which answers whether its set exists; places of sets that do not are cleared.
pub(crate) fn tell_each(places: &impl Places, mut tell: impl FnMut(Subscriber) -> bool) {
    let mut any = false;
    let _ = places.each(|place| {
        let word = place.load(Ordering::Acquire);
        if let Some(subscriber) = Subscriber::of(word) {
            if tell(subscriber) {
                any = true;
            } else {
                let _ = place.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        ControlFlow::<()>::Continue(())
    });
    if !any {
        unmark_when_empty(places);
    }
}

/// The places of an object of this node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfEntry<'a> {
    pub(crate) control: &'a Control,
    pub(crate) entry: &'a ObjectEntry,
    pub(crate) id: ObjectId,
}

impl OfEntry<'_> {
    /// The node that `link` leads to, unless it is another object's by now.
    fn node(&self, link: &AtomicU32) -> Option<&dragon_shmem::subscription::SubscriberNode> {
        let number = link.load(Ordering::Acquire).checked_sub(1)?;
        let node = self.control.subscriber_node(number).ok()?;
        (node.owner.load(Ordering::Acquire) == owner_word(self.id)).then_some(node)
    }
}

/// More nodes than one object can have: a link was scribbled over.
const MOST_NODES: u32 = 1 << 14;

impl Places for OfEntry<'_> {
    fn watch(&self) -> &AtomicU32 {
        &self.entry.watch
    }

    fn each<B>(&self, mut visit: impl FnMut(&AtomicU64) -> ControlFlow<B>) -> Option<B> {
        for place in &self.entry.subscribers {
            if let ControlFlow::Break(value) = visit(place) {
                return Some(value);
            }
        }
        let mut link = &self.entry.more_subscribers;
        for _ in 0..MOST_NODES {
            let node = self.node(link)?;
            for place in &node.cells {
                if let ControlFlow::Break(value) = visit(place) {
                    return Some(value);
                }
            }
            link = &node.next;
        }
        None
    }

    fn grow(&self, word: u64) -> Result<()> {
        // A node that is not linked when its claimer dies is free again when the object is gone.
        let number = self.control.claim_subscriber_node(self.id)?;
        let new = self.control.subscriber_node(number)?;
        new.cells[0].store(word, Ordering::Relaxed);
        let mut link = &self.entry.more_subscribers;
        for _ in 0..MOST_NODES {
            let now = link.load(Ordering::Acquire);
            if let Some(node) = self.node(link) {
                link = &node.next;
                continue;
            }
            // Release: who follows the link sees the word.
            if link
                .compare_exchange(now, number + 1, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                return Ok(());
            }
        }
        Err(dragon_shmem::Error::Corrupt {
            what: "list of the sets that an object is in",
            value: self.id.index.into(),
        }
        .into())
    }
}

/// Flags an object in the sets that it is in, and wakes one waiter of each. Behind the change and a SeqCst fence.
pub(crate) fn changed(
    control: &Control,
    entry: &ObjectEntry,
    id: ObjectId,
    what: Interest,
    thorough: bool,
) {
    let places = OfEntry { control, entry, id };
    tell_each(&places, |subscriber| {
        // Of no concern to it; whether its set still exists, a change that is will find out.
        subscriber.interest.0 & what.0 == 0 || tell(control, &subscriber, thorough)
    });
}

/// Whether the word in an object's place names a set that does not exist any more.
pub(crate) fn is_gone(control: &Control, word: u64) -> bool {
    Subscriber::of(word).is_some_and(|subscriber| record(control, &subscriber).is_none())
}

/// Flags one member. False when its set is gone.
pub(crate) fn tell(control: &Control, subscriber: &Subscriber, thorough: bool) -> bool {
    let Some(record) = record(control, subscriber) else {
        return false;
    };
    flags::announce(&record, subscriber.member, thorough);
    true
}

/// The subscribers of an object that its last user may be about to give back; empty for nearly all objects.
pub(crate) fn farewell(control: &Control, entry: &ObjectEntry, id: ObjectId) -> Vec<Subscriber> {
    let mut all = Vec::new();
    if id.kind != ObjectKind::Set && entry.watch.load(Ordering::Acquire) & SUBSCRIBED != 0 {
        let _ = OfEntry { control, entry, id }.each(|place| {
            all.extend(Subscriber::of(place.load(Ordering::Acquire)));
            ControlFlow::<()>::Continue(())
        });
    }
    all
}

/// The nodes of an object that goes are the next ones to be used.
pub(crate) fn give_back(control: &Control, entry: &ObjectEntry, id: ObjectId) {
    let places = OfEntry { control, entry, id };
    let mut link = &entry.more_subscribers;
    for _ in 0..MOST_NODES {
        let number = link.load(Ordering::Acquire);
        let Some(node) = places.node(link) else {
            return;
        };
        control.lower_node_hint(number.saturating_sub(1));
        link = &node.next;
    }
}
