//! The requests of other nodes' processes for objects of this node: executed at once where they can be, parked where they
//! have to wait.
//!
//! Waiting costs nothing: a parked request lies in the list of its object, the object's watch word is armed, and whoever
//! changes the object tells the agent, which then tries them, oldest first. Requests for the same thing that take something
//! stand in a line, of which only the first that cannot proceed is tried: so the order of arrival is kept among them, and it
//! does not matter how many there are.
//!
//! A request whose answer nobody waits for (a message that is sent without waiting for its arrival, or one that comes back) is
//! bounded by nothing but [`UNASKED`]: what comes when so much waits is dropped.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use dragon_channels::{End, Waiting};
use dragon_protocol::op::Op;
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind, SlotId, wire};
use dragon_shmem::Member;

use super::local::{self, Done, Outcome};
use super::requests::leaves_something;
use crate::body::Body;
use crate::fabric::Link;

/// Where a request came from, and where its answer goes.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// The link for the answer; `None`: nobody waits for one.
    pub(super) link: Option<Arc<dyn Link>>,
    /// Number of the request on that link; 0: nobody waits for an answer.
    pub(super) request: u64,
    /// The caller's node.
    pub(super) node: NodeIndex,
    /// The caller's process on its node.
    pub(super) slot: SlotId,
}

/// A request as it arrives.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) origin: Origin,
    pub(super) op: Op,
    pub(super) object: ObjectId,
    pub(super) arg0: u64,
    pub(super) arg1: u64,
    /// The trace id of a message for a channel.
    pub(super) trace: Option<[u8; 16]>,
    /// On this node's clock.
    pub(super) deadline: u64,
}

/// The end of a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) origin: Origin,
    pub(super) op: Op,
    pub(super) object: ObjectId,
    pub(super) done: Done,
}

#[derive(Debug)]
struct Parked {
    job: Job,
    body: Body,
    waiting: Waiting,
    /// What it counts for when nobody waits for the answer, in bytes.
    cost: u64,
}

/// What waits for one object, each in the order of arrival.
#[derive(Debug, Default)]
struct Waiters {
    /// Those that go on one after the other: a line for each thing that they wait for.
    lines: Vec<(WaitsFor, VecDeque<u64>)>,
    /// Those of which each is tried at each change.
    others: VecDeque<u64>,
}

/// What requests for an object wait for, see [`Job::waits_for`].
type WaitsFor = (Op, u64);

/// Bytes that may wait here for one link with nobody waiting for the answer: whoever sends keeps far below it
/// ([`dragon_channels::CREDIT`]), unless it does so through very many handles at once. As many may wait for all that comes
/// back and for the daemon's own messages together; blocks of the pool, which has its own limit, are not counted there.
pub(super) const UNASKED: u64 = 64 << 20;
/// Parked requests for which there is always room.
const FEW: usize = 64;
/// What a parked request costs beside its payload.
const COST: u64 = 512;

#[derive(Debug, Default)]
pub(super) struct Owner {
    last: u64,
    parked: HashMap<u64, Parked>,
    by_object: HashMap<ObjectId, Waiters>,
    by_request: HashMap<(u64, u64), u64>,
    deadlines: BTreeSet<(u64, u64)>,
    proxies: HashMap<(NodeIndex, SlotId), SlotId>,
    /// For each link what waits here with nobody waiting for the answer, in bytes; without a link: what came back, and what
    /// the daemon sends.
    unasked: HashMap<Option<u64>, u64>,
    /// How often something was tried.
    #[cfg(test)]
    pub(super) attempts: u64,
}

impl Owner {
    /// Executes a request, or parks it. `small`: the payload when it lies in memory of the caller.
    pub(super) fn execute(
        &mut self,
        member: &Arc<Member>,
        job: Job,
        small: &[u8],
        mut body: Body,
        answers: &mut Vec<Answer>,
    ) {
        // Requests that wait for the same thing go first.
        let waits_behind = self.waits_behind(&job);
        let mut waiting = Waiting::default();
        if !waits_behind {
            match self.attempt(member, &job, small, &mut body, &mut waiting) {
                Outcome::Done(done) => {
                    let (changes, object) = (job.op != Op::Subscribe, job.object);
                    answers.push(job.end(done));
                    if changes {
                        self.changed(member, object, answers);
                    }
                    return;
                }
                Outcome::NotYet if job.deadline == wire::NOW => {
                    let code = would_block(job.op);
                    let parked = Parked::new(job, body, waiting);
                    answers.push(self.give_up(member, parked, End::Cancelled, code));
                    return;
                }
                Outcome::NotYet => {}
            }
        }
        if body.is_empty() && !small.is_empty() {
            body = Body::Bytes(small.to_vec());
        }
        body = local::settled(member, body);
        let parked = Parked::new(job, body, waiting);
        if !self.has_room(&parked) {
            answers.push(self.give_up(member, parked, End::Lost, Code::Full));
            return;
        }
        let object = parked.job.object;
        let number = self.park(parked);
        if !waits_behind {
            // As in `retry`, this one is tried once more. Those that came before were tried with the watch armed, and there may
            // be thousands: whoever has changed something since then has taken its mark, and tells of it.
            local::watch(member, object);
            self.retry_one(member, number, answers);
        }
    }

    /// Tries what waits for an object that may have changed.
    pub(super) fn changed(
        &mut self,
        member: &Arc<Member>,
        object: ObjectId,
        answers: &mut Vec<Answer>,
    ) {
        if self.by_object.contains_key(&object) {
            self.retry(member, object, answers);
        }
    }

    /// Ends what is past its deadline.
    pub(super) fn expire(&mut self, member: &Arc<Member>, now: u64, answers: &mut Vec<Answer>) {
        while let Some(&(deadline, number)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            self.deadlines.pop_first();
            if let Some(parked) = self.unpark(number) {
                answers.push(self.give_up(member, parked, End::Timeout, Code::Timeout));
            }
        }
    }

    /// The next deadline.
    pub(super) fn next_deadline(&self) -> u64 {
        self.deadlines.first().map_or(wire::NEVER, |(at, _)| *at)
    }

    /// Forgets a parked request. The caller gets an answer when `answer` says so.
    pub(super) fn cancel(
        &mut self,
        member: &Arc<Member>,
        link: u64,
        request: u64,
        answer: bool,
        answers: &mut Vec<Answer>,
    ) {
        let Some(number) = self.by_request.get(&(link, request)).copied() else {
            return;
        };
        let end = if answer { End::Cancelled } else { End::Lost };
        if let Some(parked) = self.unpark(number) {
            let last = self.give_up(member, parked, end, Code::Cancelled);
            answers.extend(answer.then_some(last));
        }
    }

    /// A link is lost: nobody waits for answers on it any more.
    pub(super) fn link_lost(&mut self, member: &Arc<Member>, link: u64) {
        self.unpark_where(member, |p| {
            p.job.origin.link.as_ref().is_some_and(|l| l.id() == link)
        });
    }

    /// A process of another node is gone: what it held here is recovered.
    pub(super) fn slot_down(
        &mut self,
        member: &Arc<Member>,
        node: NodeIndex,
        slot: SlotId,
        answers: &mut Vec<Answer>,
    ) {
        self.unpark_where(member, |p| {
            p.job.origin.node == node && p.job.origin.slot == slot
        });
        if let Some(proxy) = self.proxies.remove(&(node, slot)) {
            local::recover(member, proxy);
        }
        self.notified(member, answers);
    }

    /// A node is down: what its processes held here is recovered.
    pub(super) fn node_down(
        &mut self,
        member: &Arc<Member>,
        node: NodeIndex,
        answers: &mut Vec<Answer>,
    ) {
        self.unpark_where(member, |p| {
            p.job.origin.node == node && p.job.origin.link.is_some()
        });
        let proxies: Vec<_> = self.proxies.keys().filter(|(n, _)| *n == node).collect();
        let slots: Vec<SlotId> = proxies.into_iter().map(|(_, slot)| *slot).collect();
        for slot in slots {
            self.slot_down(member, node, slot, answers);
        }
    }

    /// Tries what waits for the objects that this thread's own doings have changed.
    pub(super) fn notified(&mut self, member: &Arc<Member>, answers: &mut Vec<Answer>) {
        loop {
            let objects = local::take_notified();
            if objects.is_empty() {
                return;
            }
            for object in objects {
                self.changed(member, object, answers);
            }
        }
    }

    /// Whether a process of another node may hold something here.
    pub(super) fn knows(&self, origin: &Origin) -> bool {
        self.proxies.contains_key(&(origin.node, origin.slot))
    }

    /// Requests that wait here.
    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Processes of other nodes that may hold something here.
    pub(super) fn proxies(&self) -> usize {
        self.proxies.len()
    }

    fn waits_behind(&self, job: &Job) -> bool {
        if job.deadline == wire::NOW || !in_order(job.op) {
            return false;
        }
        let Some(waiters) = self.by_object.get(&job.object) else {
            return false;
        };
        let waits_for = job.waits_for();
        waiters.lines.iter().any(|(what, _)| *what == waits_for)
    }

    /// Whether a request may wait here. What nobody waits for has no other bound than this.
    fn has_room(&self, parked: &Parked) -> bool {
        let Some(account) = parked.job.account() else {
            return true;
        };
        let there = self.unasked.get(&account).copied().unwrap_or(0);
        there + parked.cost <= UNASKED
    }

    fn park(&mut self, parked: Parked) -> u64 {
        let job = &parked.job;
        self.last += 1;
        let number = self.last;
        if job.deadline != wire::NEVER {
            self.deadlines.insert((job.deadline, number));
        }
        if let Some(link) = job.origin.link.as_ref().filter(|_| job.origin.request != 0) {
            let key = (link.id(), job.origin.request);
            self.by_request.insert(key, number);
        }
        if let Some(account) = job.account() {
            *self.unasked.entry(account).or_default() += parked.cost;
        }
        self.by_object
            .entry(job.object)
            .or_default()
            .line(job)
            .push_back(number);
        self.parked.insert(number, parked);
        number
    }

    fn unpark(&mut self, number: u64) -> Option<Parked> {
        let parked = self.parked.remove(&number)?;
        // Many may have waited once: their memory is given back.
        let few = self.parked.len() * 8;
        if self.parked.capacity() > FEW.max(few) {
            self.parked.shrink_to(FEW.max(few) / 2);
        }
        let job = &parked.job;
        self.deadlines.remove(&(job.deadline, number));
        if let Some(link) = &job.origin.link {
            self.by_request.remove(&(link.id(), job.origin.request));
        }
        if let Some(waiters) = self.by_object.get_mut(&job.object) {
            waiters.remove(job, number);
            if waiters.is_empty() {
                self.by_object.remove(&job.object);
            }
        }
        if let Some(account) = job.account()
            && let Some(there) = self.unasked.get_mut(&account)
        {
            *there = there.saturating_sub(parked.cost);
            if *there == 0 {
                self.unasked.remove(&account);
            }
        }
        Some(parked)
    }

    fn unpark_where(&mut self, member: &Arc<Member>, condition: impl Fn(&Parked) -> bool) {
        let numbers = self.parked.iter().filter(|(_, p)| condition(p));
        let numbers: Vec<u64> = numbers.map(|(number, _)| *number).collect();
        for number in numbers {
            if let Some(parked) = self.unpark(number) {
                self.give_up(member, parked, End::Lost, Code::Cancelled);
            }
        }
    }

    /// Ends a request that was not done: with `code`, or as it was done at this very moment.
    fn give_up(&mut self, member: &Arc<Member>, parked: Parked, end: End, code: Code) -> Answer {
        let Parked { job, waiting, .. } = parked;
        match self
            .proxy(member, &job)
            .map(|slot| local::withdraw(member, &job, slot, waiting, end))
        {
            Ok(Outcome::Done(done)) => job.end(done),
            Ok(Outcome::NotYet) | Err(_) => job.end(Done::with(code)),
        }
    }

    /// Tries an object's list until a whole pass over it, made while the watch is armed, changes nothing.
    fn retry(&mut self, member: &Arc<Member>, object: ObjectId, answers: &mut Vec<Answer>) {
        loop {
            while self.pass(member, object, answers) {}
            if !self.by_object.contains_key(&object) {
                return;
            }
            // A change between the pass above and this would tell nobody: so once more.
            local::watch(member, object);
            if !self.pass(member, object, answers) {
                return;
            }
        }
    }

    /// One pass over what waits for an object; true when something went on.
    fn pass(&mut self, member: &Arc<Member>, object: ObjectId, answers: &mut Vec<Answer>) -> bool {
        let Some(waiters) = self.by_object.get(&object) else {
            return false;
        };
        let lines = waiters.lines.iter();
        let firsts = lines.filter_map(|(what, line)| Some((*line.front()?, Some(*what))));
        let others = waiters.others.iter().map(|number| (*number, None));
        let mut tried: Vec<_> = firsts.chain(others).collect();
        tried.sort_unstable_by_key(|(number, _)| *number);
        let mut progress = false;
        for (number, line) in tried {
            let mut next = Some(number);
            while let Some(number) = next
                && self.retry_one(member, number, answers)
            {
                progress = true;
                next = line.and_then(|what| self.first(object, what));
            }
        }
        progress
    }

    /// The first of a line.
    fn first(&self, object: ObjectId, what: WaitsFor) -> Option<u64> {
        let waiters = self.by_object.get(&object)?;
        let (_, line) = waiters.lines.iter().find(|(w, _)| *w == what)?;
        line.front().copied()
    }

    /// Tries a parked request once more; true when it is done.
    fn retry_one(&mut self, member: &Arc<Member>, number: u64, answers: &mut Vec<Answer>) -> bool {
        let Some(mut parked) = self.parked.remove(&number) else {
            return false;
        };
        let Parked {
            job, body, waiting, ..
        } = &mut parked;
        let outcome = self.attempt(member, job, &[], body, waiting);
        self.parked.insert(number, parked);
        let Outcome::Done(done) = outcome else {
            return false;
        };
        if let Some(parked) = self.unpark(number) {
            answers.push(parked.job.end(done));
        }
        true
    }

    fn attempt(
        &mut self,
        member: &Arc<Member>,
        job: &Job,
        small: &[u8],
        body: &mut Body,
        waiting: &mut Waiting,
    ) -> Outcome {
        #[cfg(test)]
        {
            self.attempts += 1;
        }
        let on_behalf = match self.proxy(member, job) {
            Ok(slot) => slot,
            Err(code) => return Outcome::Done(Done::with(code)),
        };
        local::attempt(member, job, on_behalf, small, body, waiting)
    }

    /// The slot in whose name an operation is done: a process of another node gets one when it first obtains something.
    fn proxy(&mut self, member: &Arc<Member>, job: &Job) -> Result<SlotId, Code> {
        if job.origin.link.is_none() {
            return Ok(member.slot());
        }
        let key = (job.origin.node, job.origin.slot);
        if let Some(proxy) = self.proxies.get(&key) {
            return Ok(*proxy);
        }
        if !leaves_something(job.op) {
            // Without a proxy it has no reference here that it could give back.
            let holds_nothing = job.op == Op::Detach && job.arg0 == 0;
            return if holds_nothing {
                Err(Code::NoSuchObject)
            } else {
                Ok(member.slot())
            };
        }
        let claimed = member.control().claim_proxy(key.0, key.1);
        let proxy = claimed.map_err(|e| e.code())?;
        self.proxies.insert(key, proxy);
        Ok(proxy)
    }
}

impl Parked {
    fn new(job: Job, body: Body, waiting: Waiting) -> Self {
        // What comes back lies in the pool already, and must not be lost for its length.
        let counts = job.origin.link.is_some() || !matches!(body, Body::Block(_));
        let cost = COST + if counts { body.len() } else { 0 };
        Self {
            job,
            body,
            waiting,
            cost,
        }
    }
}

impl Waiters {
    /// Where a request stands.
    fn line(&mut self, job: &Job) -> &mut VecDeque<u64> {
        if !in_order(job.op) {
            return &mut self.others;
        }
        let what = job.waits_for();
        let at = self.lines.iter().position(|(w, _)| *w == what);
        let at = at.unwrap_or_else(|| {
            self.lines.push((what, VecDeque::new()));
            self.lines.len() - 1
        });
        &mut self.lines[at].1
    }

    fn remove(&mut self, job: &Job, number: u64) {
        let line = self.line(job);
        // Most often it is the first.
        if let Some(at) = line.iter().position(|n| *n == number) {
            line.remove(at);
        }
        self.lines.retain(|(_, line)| !line.is_empty());
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.others.is_empty()
    }
}

impl Job {
    /// Where a request counts whose answer nobody waits for.
    fn account(&self) -> Option<Option<u64>> {
        let link = self.origin.link.as_ref().map(|link| link.id());
        (self.origin.request == 0).then_some(link)
    }

    /// Requests for one object that have this in common wait for the same thing. At an endpoint of streams each conversation,
    /// and in a queue with priorities each level, named by the second argument, is a thing of its own.
    fn waits_for(&self) -> WaitsFor {
        match self.object.kind {
            ObjectKind::Stream | ObjectKind::PriorityQueue => (self.op, self.arg1),
            _ => (self.op, 0),
        }
    }

    fn end(self, done: Done) -> Answer {
        Answer {
            origin: self.origin,
            op: self.op,
            object: self.object,
            done,
        }
    }
}

/// Whether requests of this kind go on one after the other. The others wait for something that is for all: each is tried,
/// at once and at each change, so that it knows what has happened since it came.
fn in_order(op: Op) -> bool {
    !matches!(
        op,
        Op::EventWait
            | Op::ProcessWait
            | Op::SemaphoreWaitZero
            | Op::ConditionWait
            | Op::BarrierWait
            | Op::BroadcastWait
            | Op::PollReadable
            | Op::PollWritable
            | Op::PollEmpty
            | Op::PollFull
            | Op::Peek
            | Op::AwaitReceipt
            | Op::StreamWatch
            | Op::Subscribe
    )
}

/// How a try form ends that would have to wait: as it does on the own node.
fn would_block(op: Op) -> Code {
    match op {
        Op::Send | Op::Push | Op::StreamOpen => Code::Full,
        _ => Code::Empty,
    }
}
