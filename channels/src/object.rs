//! What all handles have in common: which object, where it lies, and the reference that this process has to it.

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::Member;
use dragon_shmem::object::{ObjectEntry, State};
use dragon_shmem::region::Pinned;
use dragon_shmem::slot;
use dragon_shmem::sync::{AtomicU32, AtomicU64, Ordering, fence};

use crate::error::{Error, Result};
use crate::remote;
use crate::set::subscribers::{self, AGENT, SUBSCRIBED, WATCHED};
use crate::set::{Interest, Set};
use crate::wait::{self, Spin, WaitWord};
use crate::{Barrier, Broadcast, Condition, PriorityQueue, SharedMemory};
use crate::{Channel, Deadline, Endpoint, Event, Lock, PoolHandle, ProcessObject, Semaphore};

/// A handle on an object of any kind.
#[derive(Debug)]
#[non_exhaustive]
pub enum Object {
    /// A channel.
    Channel(Channel),
    /// A lock.
    Lock(Lock),
    /// An event.
    Event(Event),
    /// A semaphore.
    Semaphore(Semaphore),
    /// A process.
    Process(ProcessObject),
    /// A set.
    Set(Set),
    /// A pool.
    Pool(PoolHandle),
    /// An endpoint of streams.
    Stream(Endpoint),
    /// A barrier.
    Barrier(Barrier),
    /// A condition.
    Condition(Condition),
    /// A broadcast.
    Broadcast(Broadcast),
    /// Shared memory.
    Memory(SharedMemory),
    /// A queue with priorities.
    PriorityQueue(PriorityQueue),
}

impl Object {
    /// Attaches to whatever the descriptor names; see [`Channel::attach`].
    ///
    /// # Errors
    /// As [`Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        Ok(match descriptor.object.kind {
            ObjectKind::Channel => Self::Channel(Channel::attach(member, descriptor, adopt)?),
            ObjectKind::Lock => Self::Lock(Lock::attach(member, descriptor, adopt)?),
            ObjectKind::Event => Self::Event(Event::attach(member, descriptor, adopt)?),
            ObjectKind::Semaphore => Self::Semaphore(Semaphore::attach(member, descriptor, adopt)?),
            ObjectKind::Process => Self::Process(ProcessObject::attach(member, descriptor, adopt)?),
            ObjectKind::Set => Self::Set(Set::attach(member, descriptor, adopt)?),
            ObjectKind::Pool => Self::Pool(PoolHandle::attach(member, descriptor, adopt)?),
            ObjectKind::Stream => Self::Stream(Endpoint::attach(member, descriptor, adopt)?),
            ObjectKind::Broadcast => Self::Broadcast(Broadcast::attach(member, descriptor, adopt)?),
            ObjectKind::Barrier => Self::Barrier(Barrier::attach(member, descriptor, adopt)?),
            ObjectKind::Condition => Self::Condition(Condition::attach(member, descriptor, adopt)?),
            ObjectKind::Memory => Self::Memory(SharedMemory::attach(member, descriptor, adopt)?),
            ObjectKind::PriorityQueue => {
                Self::PriorityQueue(PriorityQueue::attach(member, descriptor, adopt)?)
            }
        })
    }
}

/// One handle of this process on an object; the last one gives the process's reference back when it is dropped.
#[derive(Debug)]
pub(crate) struct Handle {
    member: Arc<Member>,
    id: ObjectId,
    /// Its entry, when it lies on this node.
    entry: Option<Pinned<ObjectEntry>>,
    user: u64,
    kept: bool,
    keep_if_held: bool,
    pub(crate) spin: Spin,
}

impl Handle {
    /// A handle on an object that this process has just created.
    pub(crate) fn created(member: &Arc<Member>, id: ObjectId, user: u64) -> Self {
        let local = is_local(member, id);
        Self {
            member: Arc::clone(member),
            id,
            // Invariant: an object that was created or attached to has an entry.
            entry: local
                .then(|| member.control().pin_object(id.index).ok())
                .flatten(),
            user,
            kept: false,
            keep_if_held: false,
            spin: Spin::default(),
        }
    }

    /// Takes a reference, or adopts the one that is in transit with the descriptor.
    pub(crate) fn attach(
        member: &Arc<Member>,
        descriptor: &Descriptor,
        kind: ObjectKind,
        adopt: bool,
    ) -> Result<Self> {
        let id = descriptor.object;
        if member.is_forked() {
            return Err(Error::Forked);
        }
        let expected = member.control().runtime();
        if descriptor.runtime != expected {
            return Err(Error::OtherRuntime {
                expected,
                found: descriptor.runtime,
            });
        }
        if id.kind != kind {
            return Err(dragon_shmem::Error::WrongKind(id).into());
        }
        if is_local(member, id) {
            member.attach(id, adopt)?;
        } else {
            let give = || remote::detach(member, id, false);
            let take = |first| match (first, adopt) {
                (true, _) => {
                    let arguments = [adopt.into(), 0];
                    remote::call(member, Op::Attach, id, arguments, Deadline::Never).map(drop)
                }
                (false, true) => remote::detach(member, id, true),
                (false, false) => Ok(()),
            };
            member.hold(id, take, give)?;
        }
        Ok(Self::created(member, id, descriptor.user))
    }

    pub(crate) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    #[inline]
    pub(crate) fn id_ref(&self) -> &ObjectId {
        &self.id
    }

    /// The entry, when the object lies on this node and may be used: [`Handle::local`] without the reasons.
    #[inline]
    pub(crate) fn entry(&self) -> Option<&ObjectEntry> {
        if self.member.is_forked() {
            return None;
        }
        self.entry.as_deref()
    }

    /// The entry, when the object lies on this node.
    #[inline]
    pub(crate) fn local(&self) -> Result<Option<&ObjectEntry>> {
        if self.member.is_forked() {
            return Err(Error::Forked);
        }
        Ok(self.entry.as_deref())
    }

    /// Asks the owner's node; waits there until the deadline.
    pub(crate) fn call(&self, op: Op, arguments: [u64; 2], deadline: Deadline) -> Result<[u64; 2]> {
        let reply = remote::call(&self.member, op, self.id, arguments, deadline)?;
        Ok([reply.arg0, reply.arg1])
    }

    /// Asks the owner's node for what needs no waiting there, and lets no signal keep it from that: what must not be left undone.
    pub(crate) fn call_surely(&self, op: Op, arguments: [u64; 2]) -> Result<[u64; 2]> {
        loop {
            match self.call(op, arguments, Deadline::Now) {
                Err(Error::Interrupted) => {}
                called => return called,
            }
        }
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor {
            runtime: self.member.control().runtime(),
            object: self.id,
            user: self.user,
        }
    }

    pub(crate) fn export(&self) -> Result<Descriptor> {
        if self.local()?.is_some() {
            self.member.export(self.id)?;
        } else {
            self.call(Op::Export, [0, 0], Deadline::Never)?;
        }
        Ok(self.descriptor())
    }

    pub(crate) fn destroy(&self) -> Result<()> {
        if self.local()?.is_some() {
            destroy(&self.member, self.id)
        } else {
            self.call(Op::Destroy, [0, 0], Deadline::Never).map(drop)
        }
    }
}

impl Handle {
    /// Waits for something on an object with a wait word of its own; `attempt` and `more` as in [`wait::sleep_until`].
    pub(crate) fn wait<T>(
        &self,
        entry: &ObjectEntry,
        op: Op,
        deadline: Deadline,
        attempt: impl Fn() -> Result<Option<T>>,
        more: impl FnOnce() -> bool,
    ) -> Result<T> {
        let (word, count) = (wait_word(entry), wait::mark::FIRST);
        self.wait_at(word, count, op, deadline, attempt, more)
    }

    /// Waits at one of an object's wait words; `count` is the mark for it.
    pub(crate) fn wait_at<T>(
        &self,
        word: &WaitWord,
        count: u32,
        op: Op,
        deadline: Deadline,
        attempt: impl Fn() -> Result<Option<T>>,
        more: impl FnOnce() -> bool,
    ) -> Result<T> {
        if let Some(value) = attempt()? {
            return Ok(value);
        }
        if deadline == Deadline::Now {
            return Err(Error::Empty);
        }
        let thread = self.member.thread()?;
        let (index, generation) = (self.id.index, self.id.generation);
        thread.intent.begin(op, index, generation, [0, 0]);
        // The attempt succeeded, or failed for good, inside the spin: its result is kept for here.
        let mut result = None;
        let words = self.member.control().words();
        self.spin.until(words, &thread.intent, deadline, || {
            result = attempt().transpose();
            result.is_some()
        });
        if let Some(result) = result {
            return result;
        }
        let counted = |yes| thread.intent.step(if yes { count } else { 0 });
        wait::sleep_until(word, deadline, counted, attempt, more)
    }

    /// The reference stays for the rest of this process's life.
    pub(crate) fn keep_reference(&mut self) {
        self.kept = true;
    }

    /// So does that to an object of another node, if this process holds the object when the handle is dropped.
    pub(crate) fn keep_if_held(&mut self) {
        self.keep_if_held = true;
    }
}

/// Creates an object that needs no memory but its entry.
pub(crate) fn create(
    member: &Member,
    kind: ObjectKind,
    user: u64,
    init: impl FnOnce(&ObjectEntry),
) -> Result<ObjectId> {
    if member.is_forked() {
        return Err(Error::Forked);
    }
    Ok(member.create(kind, |entry, _| {
        entry.user.store(user, Ordering::Relaxed);
        init(entry);
        Ok(())
    })?)
}

/// What all handles offer.
macro_rules! common_methods {
    () => {
        /// Ends the object: every operation on it fails from now on, also those that wait.
        ///
        /// # Errors
        /// When it is gone, or its node cannot be reached.
        pub fn destroy(&self) -> crate::Result<()> {
            self.handle.destroy()
        }

        /// The descriptor, to be put into a message: one reference is counted for it, which whoever attaches with `adopt`
        /// takes over.
        ///
        /// # Errors
        /// When the object is gone, or its node cannot be reached.
        pub fn export(&self) -> crate::Result<dragon_protocol::Descriptor> {
            self.handle.export()
        }

        /// The descriptor. It keeps nothing alive.
        #[must_use]
        pub fn descriptor(&self) -> dragon_protocol::Descriptor {
            self.handle.descriptor()
        }

        /// How this handle waits; [`crate::WaitMode::Adaptive`] unless it was set.
        #[must_use]
        pub fn wait_mode(&self) -> crate::WaitMode {
            self.handle.spin.mode()
        }

        /// Sets how this handle waits on an object of its own node, from the next wait on. A wait for another node sleeps.
        pub fn set_wait_mode(&self, mode: crate::WaitMode) {
            self.handle.spin.set_mode(mode);
        }

        /// The object.
        #[must_use]
        pub fn id(&self) -> dragon_protocol::ObjectId {
            self.handle.id()
        }
    };
}
pub(crate) use common_methods;

impl Drop for Handle {
    fn drop(&mut self) {
        // A forked child has a copy of the handle, not of the reference.
        if self.kept || self.member.is_forked() {
            return;
        }
        // Both fail only when the object or its node is gone already, or memory was scribbled over: nothing to give back.
        let _ = if is_local(&self.member, self.id) {
            detach(&self.member, self.id)
        } else if self.keep_if_held {
            let give = || remote::detach_unless_held(&self.member, self.id);
            self.member.unhold_unless(self.id, give)
        } else {
            self.member
                .unhold(self.id, || remote::detach(&self.member, self.id, false))
        };
    }
}

#[inline]
pub(crate) fn is_local(member: &Member, id: ObjectId) -> bool {
    member.control().node() == id.node
}

/// Fails unless the object is in use.
#[inline]
pub(crate) fn alive(entry: &ObjectEntry, id: ObjectId) -> Result<()> {
    match entry.read() {
        (State::Alive, _, generation, _) if generation == id.generation => Ok(()),
        (State::Destroyed, _, generation, _) if generation == id.generation => {
            Err(Error::Destroyed(id))
        }
        _ => Err(dragon_shmem::Error::NoSuchObject(id).into()),
    }
}

#[inline]
pub(crate) fn is_alive(entry: &ObjectEntry, id: ObjectId) -> bool {
    matches!(entry.read(), (State::Alive, _, generation, _) if generation == id.generation)
}

/// Tells the agent of a change if it has requests parked on the object. A SeqCst fence comes before, between the change and
/// this look; the agent has one between arming the watch and looking at the object again.
#[inline]
pub(crate) fn notify_watcher(member: &Arc<Member>, entry: &ObjectEntry, id: ObjectId) {
    notify_watcher_of(member, entry, id, Interest::READABLE | Interest::WRITABLE);
}

/// As [`notify_watcher`], for changes that concern only some of the sets that the object is in.
#[inline]
pub(crate) fn notify_watcher_of(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    change: Interest,
) {
    if entry.watch.load(Ordering::Relaxed) & WATCHED != 0 {
        notify(member, entry, id, change, false);
    }
}

#[cold]
fn notify(
    member: &Arc<Member>,
    entry: &ObjectEntry,
    id: ObjectId,
    change: Interest,
    thorough: bool,
) {
    let watch = entry.watch.load(Ordering::Acquire);
    if watch & SUBSCRIBED != 0 {
        subscribers::changed(member.control(), entry, id, change, thorough);
    }
    if watch & AGENT != 0 {
        tell_agent(member, entry, id);
    }
}

/// Tells the agent of a change, unless another has: whoever takes its mark away does.
fn tell_agent(member: &Arc<Member>, entry: &ObjectEntry, id: ObjectId) {
    let watched = entry.watch.fetch_and(!AGENT, Ordering::AcqRel) & AGENT != 0;
    if watched && (member.slot() == slot::DAEMON || remote::notify(member, id).is_err()) {
        member.hooks().notify(id);
    }
}

/// Ends an object of this node and wakes everyone who waits on it.
pub(crate) fn destroy(member: &Arc<Member>, id: ObjectId) -> Result<()> {
    member.control().mark_destroyed(id)?;
    wake_everyone(member, id)
}

/// Gives the reference of one handle back; with the last one the object's memory goes, and that of the messages in it.
fn detach(member: &Arc<Member>, id: ObjectId) -> Result<()> {
    Ok(member.detach_with(id, |entry| discard(member, id, entry))?)
}

/// Frees what the memory of an object names, before that memory itself goes: nobody refers to the object any more. If the
/// process dies in here, the daemon does it once more.
pub(crate) fn discard(member: &Arc<Member>, id: ObjectId, entry: &ObjectEntry) {
    let control = member.control();
    let subscribers = subscribers::farewell(control, entry, id);
    if !subscribers.is_empty() {
        // The sets that it is in must see that it has ended. It fails for one that was destroyed before.
        let _ = control.mark_destroyed(id);
        for subscriber in &subscribers {
            subscribers::tell(control, subscriber, true);
        }
    }
    subscribers::give_back(control, entry, id);
    if entry.watch.load(Ordering::Acquire) & AGENT != 0 {
        // So must those of other nodes.
        let _ = control.mark_destroyed(id);
        fence(Ordering::SeqCst);
        tell_agent(member, entry, id);
    }
    match id.kind {
        ObjectKind::Channel => crate::channel::discard(member, id, entry),
        ObjectKind::Set => crate::set::discard(member, id, entry),
        ObjectKind::Stream => crate::stream::discard(member, id, entry),
        ObjectKind::Broadcast => crate::broadcast::discard(member, entry),
        ObjectKind::PriorityQueue => crate::priority::discard(member, id, entry),
        _ => {}
    }
}

/// Drops a reference that is in transit, for the daemon.
pub(crate) fn drop_transit(member: &Arc<Member>, id: ObjectId) -> Result<()> {
    Ok(member.drop_directly(id, |entry| discard(member, id, entry))?)
}

/// Makes everyone who waits on an object of this node look again.
pub(crate) fn wake_everyone(member: &Arc<Member>, id: ObjectId) -> Result<()> {
    let entry = member.control().object(id.index)?;
    fence(Ordering::SeqCst);
    match id.kind {
        ObjectKind::Channel => crate::channel::wake_everyone(member, entry, id)?,
        ObjectKind::Lock => crate::lock::words(entry).wake_everyone(is_alive(entry, id)),
        ObjectKind::Event | ObjectKind::Process => wait_word(entry).wake(u32::MAX),
        ObjectKind::Semaphore | ObjectKind::Barrier => {
            wait_word(entry).wake(u32::MAX);
            second_wait_word(entry).wake(u32::MAX);
        }
        ObjectKind::Set => crate::set::wake_everyone(member, entry, id)?,
        ObjectKind::Stream => crate::stream::wake_everyone(member, entry)?,
        ObjectKind::PriorityQueue => crate::priority::wake_everyone(member, entry)?,
        // The dead do not keep others from being woken here; only the end of the condition concerns all.
        ObjectKind::Condition if !is_alive(entry, id) => crate::condition::end(member, entry)?,
        ObjectKind::Broadcast => {
            wait_word(entry).wake(u32::MAX);
            second_wait_word(entry).wake(u32::MAX);
            if !is_alive(entry, id) {
                crate::broadcast::end(member, entry, id)?;
            }
        }
        _ => {}
    }
    if entry.watch.load(Ordering::Relaxed) & WATCHED != 0 {
        notify(
            member,
            entry,
            id,
            Interest::READABLE | Interest::WRITABLE,
            true,
        );
    }
    Ok(())
}

/// Body word 0 as 32 bits: the word of a lock, event, semaphore or process.
#[inline]
pub(crate) fn word(entry: &ObjectEntry) -> &AtomicU32 {
    // SAFETY: an AtomicU64 is as large and aligned as needed for the AtomicU32 in its lower half (little-endian machines);
    // after the object was published nobody uses the whole.
    unsafe { &*std::ptr::from_ref::<AtomicU64>(&entry.body[0]).cast::<AtomicU32>() }
}

/// Body word 1: where those sleep who wait for an event, semaphore or process.
#[inline]
pub(crate) fn wait_word(entry: &ObjectEntry) -> &WaitWord {
    wait_word_at(entry, 1)
}

/// Body word 3: where those sleep who wait for a semaphore's last unit to be taken.
#[inline]
pub(crate) fn second_wait_word(entry: &ObjectEntry) -> &WaitWord {
    wait_word_at(entry, 3)
}

#[inline]
fn wait_word_at(entry: &ObjectEntry, n: usize) -> &WaitWord {
    // SAFETY: as in `word`: a WaitWord is two AtomicU32. (In a model it is larger; models have no entries.)
    unsafe { &*std::ptr::from_ref::<AtomicU64>(&entry.body[n]).cast::<WaitWord>() }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<WaitWord>() == 8 && cfg!(target_endian = "little"));
