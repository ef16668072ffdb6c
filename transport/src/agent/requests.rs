//! The requests that this node's processes have under way at other nodes. Data only: nothing here sends or wakes.

use std::collections::{BTreeSet, HashMap, HashSet};

use dragon_channels::set::elsewhere::Subscription;
use dragon_protocol::op::Op;
use dragon_protocol::{Code, NodeIndex, ObjectId, SlotId, wire};

use super::late::{Chunk, Late, Receiver};

/// How long after its deadline a request waits at least for the owner's word before it ends with `Unreachable`, in
/// nanoseconds. It is never less than a cut connection may take to be given up, so this is for a peer whose machine answers
/// and whose daemon does not.
const GRACE: u64 = 15_000_000_000;
/// First delay before a message about a dead process is sent again to a node that could not be reached; it doubles.
const RETRY_FIRST: u64 = 1_000_000_000;
/// The longest such delay.
const RETRY_LAST: u64 = 30_000_000_000;
/// How often a link is opened in a row without coming up before the frames that wait for it fail.
const ATTEMPTS: u32 = 2;

/// Who waits for the end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// A thread of a process of this node.
    Thread {
        /// Its process.
        slot: SlotId,
        /// Its record within the slot.
        thread: u32,
        /// The ticket that its reply cell takes.
        ticket: u64,
    },
    /// The agent itself: the node must hear that this process is gone.
    Gone(SlotId),
    /// A set of this node, for one of its members.
    Member(Subscription),
}

impl Caller {
    /// The process that waits.
    pub(super) fn slot(self) -> Option<SlotId> {
        match self {
            Self::Thread { slot, .. } => Some(slot),
            Self::Gone(_) | Self::Member(_) => None,
        }
    }
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) node: NodeIndex,
    pub(super) caller: Caller,
    pub(super) target: ObjectId,
    /// Of what conversation it wants a chunk, or wants to know whether there is one.
    pub(super) wants: Option<(Op, u64)>,
    /// The receiver of a stream that it ends.
    ends: Option<Receiver>,
    /// When it was taken from the caller.
    pub(super) begun: u64,
    /// The link that it was given to.
    link: u64,
    /// When the agent gives up on the owner's word.
    until: u64,
    /// The caller was told that the owner does not answer. A late reply has to be undone.
    pub(super) expired: bool,
    /// The caller waits no longer.
    cancelled: bool,
}

#[derive(Debug)]
pub(super) struct Requests {
    last: u64,
    /// How long after its deadline a request waits for the owner's word.
    grace: u64,
    pending: HashMap<u64, Pending>,
    by_caller: HashMap<(u32, u32), u64>,
    /// What sets of this node asked for, by the places of their members.
    by_set: HashMap<ObjectId, HashMap<u32, u64>>,
    until: BTreeSet<(u64, u64)>,
    nodes: HashMap<NodeIndex, NodeState>,
    /// For each slot number the last generation that is known to be gone.
    gone: HashMap<u32, u32>,
    /// What came for a receiver of this node that could not take it.
    pub(super) late: Late,
    /// Until when the I/O thread sleeps.
    sleeps_until: u64,
    /// When it wakes up for a request that may have ended.
    planned: u64,
    /// Callers that wait no longer and have no request here: its end may be on its way to them.
    cancelled: Vec<Caller>,
    /// The I/O thread has ended.
    is_over: bool,
}

#[derive(Debug, Default)]
struct NodeState {
    /// Why nothing is sent to the node any more.
    down: Option<Code>,
    /// Links in a row that did not come up.
    failures: u32,
    /// Processes of this node that may hold something there.
    holders: HashSet<SlotId>,
    /// Dead processes that the node has not heard of.
    owed: HashSet<SlotId>,
    retry_at: u64,
    retry_delay: u64,
}

/// What [`Requests::begin`] found.
#[derive(Debug)]
pub(super) struct Begun {
    /// Number of the request.
    pub(super) number: u64,
    /// The request of the same thread that this one displaces, and its node.
    pub(super) displaced: Option<(u64, NodeIndex)>,
    /// The I/O thread sleeps longer than this request may take.
    pub(super) wake: bool,
}

/// What has to happen after a process's end.
#[derive(Debug, Default)]
pub(super) struct SlotEnd {
    /// Requests to cancel: number and node.
    pub(super) cancel: Vec<(u64, NodeIndex)>,
    /// Nodes that must hear of it.
    pub(super) tell: Vec<NodeIndex>,
}

/// What has to happen because time has passed.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Callers whose owner does not answer.
    pub(super) callers: Vec<Caller>,
    /// Callers that wait no longer, and have got what was on its way to them.
    pub(super) cancelled: Vec<Caller>,
    /// Nodes that are owed a message about dead processes.
    pub(super) retry: Vec<NodeIndex>,
}

impl Requests {
    /// Without any. `silence`: how long a link may be silent before it is given up, in nanoseconds.
    pub(super) fn new(silence: u64) -> Self {
        Self {
            last: 0,
            grace: silence.max(GRACE),
            pending: HashMap::new(),
            by_caller: HashMap::new(),
            by_set: HashMap::new(),
            until: BTreeSet::new(),
            nodes: HashMap::new(),
            gone: HashMap::new(),
            late: Late::default(),
            sleeps_until: 0,
            planned: 0,
            cancelled: Vec::new(),
            is_over: false,
        }
    }

    /// Enters a request.
    ///
    /// # Errors
    /// The code that the caller gets at once: the node is down, or the caller itself is gone.
    pub(super) fn begin(
        &mut self,
        caller: Caller,
        op: Op,
        target: ObjectId,
        deadline: u64,
        now: u64,
    ) -> Result<Begun, Code> {
        let node = self.nodes.entry(target.node).or_default();
        if let Some(code) = node.down {
            return Err(code);
        }
        let mut displaced = None;
        let number = self.last + 1;
        if let Caller::Thread { slot, thread, .. } = caller {
            if is_gone(&self.gone, slot) {
                return Err(Code::Cancelled);
            }
            if leaves_something(op) {
                node.holders.insert(slot);
            }
            let old = self.by_caller.insert((slot.index, thread), number);
            displaced = old.and_then(|old| Some((old, self.forget(old)?.node)));
        } else if let Caller::Member(subscription) = caller {
            let places = self.by_set.entry(subscription.set).or_default();
            let old = places.insert(subscription.place, number);
            displaced = old.and_then(|old| Some((old, self.forget(old)?.node)));
        }
        self.last = number;
        let until = match deadline {
            wire::NEVER => wire::NEVER,
            wire::NOW => now.saturating_add(self.grace),
            at => at.max(now).saturating_add(self.grace),
        };
        let pending = Pending {
            node: target.node,
            caller,
            target,
            wants: None,
            ends: None,
            begun: now,
            link: 0,
            until,
            expired: false,
            cancelled: false,
        };
        self.pending.insert(number, pending);
        if until != wire::NEVER {
            self.until.insert((until, number));
        }
        Ok(Begun {
            number,
            displaced,
            wake: until < self.sleeps_until,
        })
    }

    /// Notes which link the request is given to; false when it has ended meanwhile.
    pub(super) fn set_link(&mut self, number: u64, link: u64) -> bool {
        let Some(pending) = self.pending.get_mut(&number) else {
            return false;
        };
        pending.link = link;
        true
    }

    /// Notes that a request is about a chunk of a conversation.
    pub(super) fn wants_chunk(&mut self, number: u64, op: Op, conversation: u64) {
        if let Some(pending) = self.pending.get_mut(&number) {
            pending.wants = Some((op, conversation));
        }
    }

    /// Notes that a request ends a receiver: what came for it is dropped, and what still comes, before the owner's answer.
    pub(super) fn ends_receiver(&mut self, number: u64, receiver: Receiver) {
        if let Some(pending) = self.pending.get_mut(&number) {
            pending.ends = Some(receiver);
        }
    }

    /// Keeps a chunk that comes behind others; without any it comes back.
    pub(super) fn keep_behind(&mut self, receiver: Receiver, chunk: Chunk) -> Result<(), Chunk> {
        if !self.late.has(&receiver) {
            return Err(chunk);
        }
        self.late.push(receiver, chunk);
        Ok(())
    }

    /// Keeps a chunk that came too late. If its receiver waits by now, with another request, that one ends with it: it is
    /// returned, with its number.
    pub(super) fn keep_late(
        &mut self,
        receiver: Receiver,
        chunk: Chunk,
        first: bool,
    ) -> Option<(u64, Pending)> {
        if self.nobody_comes(&receiver) {
            return None;
        }
        if first {
            self.late.push_first(receiver, chunk);
        } else {
            self.late.push(receiver, chunk);
        }
        let waits = |p: &&Pending| {
            !p.expired
                && p.wants.is_some_and(|(_, of)| of == receiver.conversation)
                && p.target == receiver.endpoint
                && p.caller.slot() == Some(receiver.slot)
        };
        let mut pending = self.pending.iter();
        let number = pending.find_map(|(n, p)| Some(p).filter(waits).map(|_| *n))?;
        self.forget(number).map(|pending| (number, pending))
    }

    /// Whether no request for a chunk follows: the receiver's process or the owner is gone, or the receiver ends.
    fn nobody_comes(&self, receiver: &Receiver) -> bool {
        let owner = self.nodes.get(&receiver.endpoint.node);
        self.is_gone(receiver.slot)
            || owner.is_some_and(|node| node.down.is_some())
            || self.pending.values().any(|p| p.ends == Some(*receiver))
    }

    /// The end of a request.
    pub(super) fn finish(&mut self, number: u64) -> Option<Pending> {
        self.forget(number)
    }

    /// The request that a thread has under way with this ticket.
    pub(super) fn of_caller(&self, caller: Caller) -> Option<(u64, NodeIndex)> {
        let Caller::Thread { slot, thread, .. } = caller else {
            return None;
        };
        let number = *self.by_caller.get(&(slot.index, thread))?;
        let pending = self.pending.get(&number)?;
        (pending.caller == caller).then_some((number, pending.node))
    }

    /// The same, for a thread that waits no longer.
    pub(super) fn cancel(&mut self, caller: Caller) -> Option<(u64, NodeIndex)> {
        let found = self.of_caller(caller)?;
        if let Some(pending) = self.pending.get_mut(&found.0) {
            pending.cancelled = true;
        }
        Some(found)
    }

    /// Those of these requests for which nobody waits any longer.
    pub(super) fn cancelled(&self, mut numbers: Vec<u64>) -> Vec<u64> {
        numbers.retain(|number| self.pending.get(number).is_some_and(|p| p.cancelled));
        numbers
    }

    /// Has the I/O thread end the wait of a thread that has no request here: whatever that thread has taken from here has arrived
    /// by then, and is what the caller gets. False: there is no such thread any more.
    pub(super) fn cancel_later(&mut self, caller: Caller) -> bool {
        if !self.is_over {
            self.cancelled.push(caller);
        }
        !self.is_over
    }

    /// What one set of this node, or all, asked for, for the member in a place or for any: numbers of the requests, and for
    /// whom they are.
    pub(super) fn subscriptions(
        &self,
        set: Option<ObjectId>,
        place: Option<u32>,
    ) -> Vec<(u64, Subscription)> {
        let of_set = |wanted: ObjectId| self.by_set.get(&wanted).into_iter().collect();
        let sets: Vec<_> = set.map_or_else(|| self.by_set.values().collect(), of_set);
        let of_place = |places: &'_ HashMap<u32, u64>| -> Vec<u64> {
            match place {
                Some(place) => places.get(&place).copied().into_iter().collect(),
                None => places.values().copied().collect(),
            }
        };
        let numbers = sets.into_iter().flat_map(of_place);
        let found = numbers.filter_map(|number| match self.pending.get(&number)?.caller {
            Caller::Member(subscription) => Some((number, subscription)),
            _ => None,
        });
        found.collect()
    }

    /// A link is up: what it failed before is forgotten.
    pub(super) fn link_up(&mut self, node: NodeIndex) {
        self.nodes.entry(node).or_default().failures = 0;
    }

    /// A link is lost. Returns the requests that end with it: all that were given to it, except `unsent` ones when they
    /// shall be tried again, which the second value says.
    pub(super) fn link_lost(
        &mut self,
        node: NodeIndex,
        link: u64,
        was_up: bool,
        unsent: &HashSet<u64>,
    ) -> (Vec<Pending>, bool) {
        let state = self.nodes.entry(node).or_default();
        state.failures = if was_up { 0 } else { state.failures + 1 };
        let again = state.failures < ATTEMPTS && state.down.is_none();
        if !again {
            state.failures = 0;
        }
        let lost = self
            .pending
            .iter()
            .filter(|(number, p)| p.link == link && !(again && unsent.contains(number)));
        let lost: Vec<u64> = lost.map(|(number, _)| *number).collect();
        (self.forget_all(&lost), again)
    }

    /// Nothing is sent to the node any more: its requests end with `code`.
    pub(super) fn node_gone(&mut self, node: NodeIndex, code: Code) -> Vec<Pending> {
        let state = self.nodes.entry(node).or_default();
        state.down = Some(code);
        state.holders.clear();
        state.owed.clear();
        state.retry_at = 0;
        self.late.node_gone(node);
        let lost = self.pending.iter().filter(|(_, p)| p.node == node);
        let lost: Vec<u64> = lost.map(|(number, _)| *number).collect();
        self.forget_all(&lost)
    }

    /// The I/O thread ends: those whose waits it was to end.
    pub(super) fn io_ends(&mut self) -> Vec<Caller> {
        self.is_over = true;
        core::mem::take(&mut self.cancelled)
    }

    /// Everything ends.
    pub(super) fn end(&mut self) -> Vec<Pending> {
        let all: Vec<u64> = self.pending.keys().copied().collect();
        self.forget_all(&all)
    }

    /// A process of this node is gone; `held` names nodes of objects that it held.
    pub(super) fn slot_gone(
        &mut self,
        slot: SlotId,
        held: impl Iterator<Item = NodeIndex>,
    ) -> SlotEnd {
        self.gone.insert(slot.index, slot.generation);
        self.late.slot_gone(slot);
        let of_slot = |p: &Pending| matches!(p.caller, Caller::Thread { slot: s, .. } if s == slot);
        let numbers = self.pending.iter().filter(|(_, p)| of_slot(p));
        let numbers: Vec<u64> = numbers.map(|(number, _)| *number).collect();
        let ended = self.forget_all(&numbers);
        let cancel = numbers.into_iter().zip(ended.iter().map(|p| p.node));
        for node in held {
            self.nodes.entry(node).or_default().holders.insert(slot);
        }
        let mut tell = Vec::new();
        for (node, state) in &mut self.nodes {
            if state.holders.remove(&slot) && state.down.is_none() {
                state.owed.insert(slot);
                tell.push(*node);
            }
        }
        SlotEnd {
            cancel: cancel.collect(),
            tell,
        }
    }

    /// The dead processes that a node has to be told of now. Each stays owed until [`Requests::told`].
    pub(super) fn owed(&mut self, node: NodeIndex) -> Vec<SlotId> {
        let under_way = |slot: &SlotId| {
            let told = Caller::Gone(*slot);
            let same = |p: &Pending| p.node == node && p.caller == told;
            self.pending.values().any(same)
        };
        let Some(state) = self.nodes.get(&node) else {
            return Vec::new();
        };
        if state.owed.is_empty() {
            return Vec::new();
        }
        state
            .owed
            .iter()
            .copied()
            .filter(|s| !under_way(s))
            .collect()
    }

    /// A node has heard of a dead process.
    pub(super) fn told(&mut self, node: NodeIndex, slot: SlotId) {
        if let Some(state) = self.nodes.get_mut(&node) {
            state.owed.remove(&slot);
            state.retry_at = 0;
            state.retry_delay = 0;
        }
    }

    /// Telling failed: try again later. Returns whether the I/O thread sleeps longer than that.
    pub(super) fn tell_later(&mut self, node: NodeIndex, now: u64) -> bool {
        let state = self.nodes.entry(node).or_default();
        if state.down.is_some() || state.owed.is_empty() {
            return false;
        }
        state.retry_delay = (state.retry_delay * 2).clamp(RETRY_FIRST, RETRY_LAST);
        state.retry_at = now.saturating_add(state.retry_delay);
        state.retry_at < self.sleeps_until
    }

    /// What is due.
    pub(super) fn due(&mut self, now: u64) -> Due {
        let mut due = Due {
            cancelled: core::mem::take(&mut self.cancelled),
            ..Due::default()
        };
        while let Some(&(until, number)) = self.until.first() {
            if until > now {
                break;
            }
            self.until.pop_first();
            if let Some(pending) = self.pending.get_mut(&number) {
                pending.expired = true;
                due.callers.push(pending.caller);
            }
        }
        for (node, state) in &mut self.nodes {
            if state.retry_at != 0 && state.retry_at <= now {
                state.retry_at = 0;
                due.retry.push(*node);
            }
        }
        due
    }

    /// The I/O thread goes to sleep until `deadline` or the next thing that is due here; returns the earlier one.
    ///
    /// A wake-up that was planned for a request stays planned when the request has ended: else each of many short requests
    /// would have to wake the thread to plan its own. So the thread wakes up for nothing once in a while, at most every
    /// grace.
    pub(super) fn sleep(&mut self, deadline: u64, now: u64) -> u64 {
        let first = self.until.first().map_or(wire::NEVER, |(until, _)| *until);
        self.planned = if self.planned > now {
            self.planned.min(first)
        } else {
            first
        };
        let retries = self.nodes.values().map(|n| n.retry_at);
        let retry = retries.filter(|at| *at != 0).min().unwrap_or(wire::NEVER);
        self.sleeps_until = deadline.min(self.planned).min(retry);
        self.sleeps_until
    }

    /// Whether a process of this node is known to be gone.
    pub(super) fn is_gone(&self, slot: SlotId) -> bool {
        is_gone(&self.gone, slot)
    }

    /// Requests under way.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    fn forget(&mut self, number: u64) -> Option<Pending> {
        let pending = self.pending.remove(&number)?;
        self.until.remove(&(pending.until, number));
        if let Caller::Thread { slot, thread, .. } = pending.caller {
            let key = (slot.index, thread);
            if self.by_caller.get(&key) == Some(&number) {
                self.by_caller.remove(&key);
            }
        } else if let Caller::Member(subscription) = pending.caller
            && let Some(places) = self.by_set.get_mut(&subscription.set)
        {
            if places.get(&subscription.place) == Some(&number) {
                places.remove(&subscription.place);
            }
            if places.is_empty() {
                self.by_set.remove(&subscription.set);
            }
        }
        Some(pending)
    }

    fn forget_all(&mut self, numbers: &[u64]) -> Vec<Pending> {
        numbers.iter().filter_map(|n| self.forget(*n)).collect()
    }
}

fn is_gone(gone: &HashMap<u32, u32>, slot: SlotId) -> bool {
    let last = gone.get(&slot.index);
    // Generations count up and wrap: whatever is not ahead of the last one that went is gone.
    last.is_some_and(|last| slot.generation.wrapping_sub(*last).cast_signed() <= 0)
}

/// Whether the caller holds something at the owner after this operation, which has to be recovered when it dies.
pub(super) fn leaves_something(op: Op) -> bool {
    matches!(
        op,
        Op::Attach
            | Op::Create
            | Op::LockAcquire
            | Op::StreamOpen
            | Op::StreamAccept
            | Op::BlockAllocate
    )
}

#[cfg(test)]
mod tests;
