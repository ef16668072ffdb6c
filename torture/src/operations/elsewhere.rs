//! Objects of another node: the victim's requests go by its node's agent and that of the owner, and it is killed before,
//! while and after they are under way. Nobody spins: a reply is slept for.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use dragon_channels::{
    Barrier, Broadcast, BroadcastOptions, Channel, ChannelOptions, Deadline, Endpoint,
    EndpointOptions, Error, Interest, Lock, PoolBlock, PoolHandle, PriorityQueue,
    PriorityQueueOptions, Semaphore, Set, SetMember, StreamSender, Trigger, create_channel,
};
use dragon_shmem::Member;

use crate::operations::{Act, HUGE, LARGE, Operation, POOL, Words, bytes_of, checked, send, soon};
use crate::survivor::{Maker, Sides, Survivor};

/// What the objects are like when the victim comes.
#[derive(Clone, Copy, Default)]
struct Scene {
    /// Bytes of a message that is in the channel, in the queue and in the stream.
    filled: Option<usize>,
    /// How many of them are in the channel.
    messages: u64,
    /// The survivor has the lock, and there are no units.
    held: bool,
}

const EMPTY: Scene = Scene {
    filled: None,
    messages: 1,
    held: false,
};
const SMALL: Scene = Scene {
    filled: Some(8),
    ..EMPTY
};
const SOME: Scene = Scene {
    messages: 3,
    ..SMALL
};
const BIG: Scene = Scene {
    filled: Some(HUGE),
    ..EMPTY
};
const SOME_BIG: Scene = Scene { messages: 3, ..BIG };
const HELD: Scene = Scene {
    held: true,
    ..EMPTY
};

const fn far(
    name: &'static str,
    survivor: fn(Sides) -> Result<Box<dyn Survivor>>,
    victim: fn(&Arc<Member>, &Words) -> Result<Act>,
) -> Operation {
    Operation {
        name,
        survivor: Maker::Elsewhere(survivor),
        victim,
        cpus: 1,
        pool: POOL,
    }
}

pub(super) const OPERATIONS: &[Operation] = &[
    far("far-attach", |s| rig(s, EMPTY), attaches),
    far("far-send", |s| rig(s, EMPTY), |m, w| sends(m, w, 8)),
    far(
        "far-send-block",
        |s| rig(s, EMPTY),
        |m, w| sends(m, w, HUGE),
    ),
    far("far-receive", |s| rig(s, SMALL), receives),
    far("far-receive-block", |s| rig(s, BIG), receives),
    far("far-receive-sleeps", |s| rig(s, EMPTY), receives),
    far("far-receive-into", |s| rig(s, SMALL), receives_into),
    far("far-receive-many", |s| rig(s, SOME), receives_many),
    far(
        "far-receive-many-blocks",
        |s| rig(s, SOME_BIG),
        receives_many,
    ),
    far("far-peek", |s| rig(s, BIG), peeks),
    far("far-poll-sleeps", |s| rig(s, EMPTY), polls),
    far("far-queue-send", |s| rig(s, EMPTY), queue_sends),
    far("far-queue-receive", |s| rig(s, BIG), queue_receives),
    far(
        "far-queue-receive-sleeps",
        |s| rig(s, EMPTY),
        queue_receives,
    ),
    far("far-lock", |s| rig(s, EMPTY), locks),
    far("far-lock-sleeps", |s| rig(s, HELD), locks),
    far("far-semaphore", |s| rig(s, EMPTY), acquires),
    far("far-semaphore-sleeps", |s| rig(s, HELD), acquires),
    far("far-barrier-sleeps", |s| rig(s, EMPTY), meets),
    far("far-broadcast-sleeps", |s| rig(s, EMPTY), hears),
    far("far-broadcast-trigger", |s| rig(s, EMPTY), triggers),
    far("far-stream-send", |s| rig(s, EMPTY), stream_sends),
    far("far-stream-receive", |s| rig(s, BIG), stream_receives),
    far("far-set-add", |s| rig(s, EMPTY), adds),
    far("far-set-add-drop", |s| rig(s, EMPTY), adds_and_drops),
    far("far-set-wait-sleeps", |s| rig(s, EMPTY), waits),
    far("far-set-remove", |s| rig(s, EMPTY), removes),
    far("far-set-destroy", |s| rig(s, EMPTY), destroys),
    far(
        "far-pool-alloc",
        |s| rig(s, EMPTY),
        |m, w| block(m, w, |pool, _| pool.alloc_block(LARGE as u64).map(drop)),
    ),
    far(
        "far-pool-write",
        |s| rig(s, EMPTY),
        |m, w| with_block(m, w, |far, _| far.write(3, &[7; LARGE])),
    ),
    far(
        "far-pool-read",
        |s| rig(s, EMPTY),
        |m, w| with_block(m, w, |far, _| far.read(3, &mut [0; LARGE])),
    ),
    far(
        "far-pool-copy-from",
        |s| rig(s, EMPTY),
        |m, w| with_block(m, w, |far, near| far.copy_from(1, near, 2, 8_000)),
    ),
    far(
        "far-pool-copy-to",
        |s| rig(s, EMPTY),
        |m, w| with_block(m, w, |far, near| far.copy_to(1, near, 2, 8_000)),
    ),
    far(
        "far-pool-copy-within",
        |s| rig(s, EMPTY),
        |m, w| with_block(m, w, |far, _| far.copy_within(2_000, 1, 6_000)),
    ),
    far(
        "far-pool-fill",
        |s| rig(s, EMPTY),
        |m, w| with_block(m, w, |far, _| far.fill(0, 9_000, 3)),
    ),
    far(
        "far-pool-hash",
        |s| rig(s, EMPTY),
        |m, w| with_block(m, w, |far, _| far.hash(0, 9_000).map(drop)),
    ),
    far("far-pool-free", |s| rig(s, EMPTY), frees),
];

/// One object of each kind, anew for each victim.
struct Objects {
    /// Of the other node, and the same as this node's processes have it.
    channel: [Channel; 2],
    queue: [PriorityQueue; 2],
    semaphore: [Semaphore; 2],
    lock: [Lock; 2],
    barrier: Arc<Barrier>,
    endpoint: Endpoint,
    broadcast: Broadcast,
    /// Of this node, with the channel as a member.
    set: Set,
    place: SetMember,
    /// Open when the victim is to receive.
    sender: Option<StreamSender>,
    /// The other party of the barrier.
    party: Option<JoinHandle<Result<u32, Error>>>,
    released: bool,
}

struct Rig {
    sides: Sides,
    scene: Scene,
    objects: Option<Objects>,
    /// Keeps what the other node has of the survivor as a process of this one.
    _known: [Channel; 2],
}

fn rig(sides: Sides, scene: Scene) -> Result<Box<dyn Survivor>> {
    let known = create_channel(&sides.there, &ChannelOptions::default())?;
    let seen = Channel::attach(&sides.here, &known.descriptor(), false)?;
    Ok(Box::new(Rig {
        sides,
        scene,
        objects: None,
        _known: [known, seen],
    }))
}

impl Rig {
    fn objects(&self) -> Result<Objects> {
        let Sides { here, there, .. } = &self.sides;
        let channel = create_channel(there, &ChannelOptions::default())?;
        let queue = PriorityQueue::create(there, &PriorityQueueOptions::default())?;
        let semaphore = Semaphore::create(there, 1, 9, 0)?;
        let lock = Lock::create(there, 0)?;
        let set = Set::create(here, 2, 0)?;
        let place = set.add(channel.id(), Interest::READABLE, 1)?;
        let objects = Objects {
            barrier: Arc::new(Barrier::create(there, 2, 0)?),
            endpoint: Endpoint::create(there, &EndpointOptions::default())?,
            broadcast: Broadcast::create(there, &BroadcastOptions::default())?,
            set,
            place,
            sender: None,
            party: None,
            released: !self.scene.held,
            channel: [
                Channel::attach(here, &channel.descriptor(), false)?,
                channel,
            ],
            queue: [
                PriorityQueue::attach(here, &queue.descriptor(), false)?,
                queue,
            ],
            semaphore: [
                Semaphore::attach(here, &semaphore.descriptor(), false)?,
                semaphore,
            ],
            lock: [Lock::attach(here, &lock.descriptor(), false)?, lock],
        };
        Ok(objects)
    }
}

impl Survivor for Rig {
    fn arm(&mut self) -> Result<Vec<String>> {
        let mut objects = self.objects()?;
        // The agents know of the set's member from the start.
        ensure!(objects.set.poll()?.is_empty(), "a new channel is readable");
        let asked = objects.set.wait(Deadline::after(1_000_000));
        ensure!(asked == Err(Error::Timeout), "the set: {asked:?}");
        if let Some(length) = self.scene.filled {
            for _ in 0..self.scene.messages {
                send(&objects.channel[1], 3, length)?;
            }
            objects.queue[1].send(0, &bytes_of(3, length), 3, soon())?;
            let mut sender = objects.endpoint.open_send(soon())?;
            sender.send(&bytes_of(3, length), 0, soon())?;
            objects.sender = Some(sender);
        }
        if self.scene.held {
            objects.lock[1].acquire(soon())?;
            objects.semaphore[1].acquire(soon())?;
        }
        let words = vec![
            objects.channel[1].descriptor().to_string(),
            objects.queue[1].descriptor().to_string(),
            objects.semaphore[1].descriptor().to_string(),
            objects.lock[1].descriptor().to_string(),
            objects.barrier.descriptor().to_string(),
            objects.endpoint.descriptor().to_string(),
            objects.broadcast.descriptor().to_string(),
            objects.set.descriptor().to_string(),
            objects.place.to_u64().to_string(),
            self.sides.pools[0].to_string(),
            self.sides.pools[1].to_string(),
        ];
        self.objects = Some(objects);
        Ok(words)
    }

    /// The victim sleeps: until a reply comes, which needs nothing, or until somebody does what it waits for.
    fn release(&mut self) -> Result<()> {
        let objects = self.objects.as_mut().context("armed")?;
        objects.release()?;
        if objects.party.is_none() {
            let barrier = Arc::clone(&objects.barrier);
            objects.party = Some(thread::spawn(move || barrier.wait(soon())));
            if objects.channel[1].poll(Deadline::Now).is_err() {
                send(&objects.channel[1], 4, 8)?;
                objects.queue[1].send(1, &bytes_of(4, 8), 4, soon())?;
            }
        }
        objects
            .broadcast
            .trigger(Trigger::ALL, b"news", Deadline::Now)?;
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        let mut objects = self.objects.take().context("armed")?;
        objects.release()?;
        if let Some(party) = objects.party.take() {
            objects.barrier.abort()?;
            let _ = party.join().ok().context("the other party panicked")?;
        }
        for (from, to) in [(0, 1), (1, 0)] {
            // What was on its way to the victim may come back meanwhile.
            send(&objects.channel[from], 5, LARGE)?;
            while checked(objects.channel[to].receive(soon())?)? != 5 {}
            objects.queue[from].send(1, &bytes_of(6, LARGE), 6, soon())?;
            while checked(objects.queue[to].receive(soon())?.1)? != 6 {}
            objects.lock[from].acquire(soon())?;
            objects.lock[from].release(false)?;
            objects.semaphore[from].release(1)?;
            objects.semaphore[to].acquire(soon())?;
        }
        match objects.set.poll() {
            // The same message, which comes as it may.
            Ok(_) => {}
            // The victim destroyed it.
            Err(Error::Destroyed(_)) => {}
            Err(error) => return Err(error).context("the set"),
        }
        Ok(())
    }
}

impl Objects {
    /// What the survivor held is free.
    fn release(&mut self) -> Result<()> {
        if !self.released {
            self.released = true;
            self.lock[1].release(false)?;
            self.semaphore[1].release(1)?;
        }
        Ok(())
    }
}

fn channel(member: &Arc<Member>, words: &Words) -> Result<&'static Channel> {
    let channel = Channel::attach(member, &words.descriptor(0)?, false)?;
    Ok(Box::leak(Box::new(channel)))
}

fn attaches(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (member, descriptor) = (Arc::clone(member), words.descriptor(0)?);
    Ok(Box::new(move || {
        let channel = Channel::attach(&member, &descriptor, false)?;
        channel.attributes()?;
        Ok(())
    }))
}

fn sends(member: &Arc<Member>, words: &Words, length: usize) -> Result<Act> {
    let channel = channel(member, words)?;
    Ok(Box::new(move || send(channel, 7, length)))
}

fn receives(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = channel(member, words)?;
    Ok(Box::new(move || {
        checked(channel.receive(Deadline::Never)?).map(drop)
    }))
}

/// Those that are there, each by a request of its own, and one more that finds nothing.
fn receives_many(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = channel(member, words)?;
    Ok(Box::new(move || {
        let messages = channel.receive_many(8, Deadline::Never)?;
        ensure!(messages.len() == 3, "{} of 3 messages came", messages.len());
        messages.into_iter().try_for_each(|m| checked(m).map(drop))
    }))
}

fn receives_into(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = channel(member, words)?;
    Ok(Box::new(move || {
        channel.receive_into(&mut [0; LARGE], Deadline::Never)?;
        Ok(())
    }))
}

fn peeks(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = channel(member, words)?;
    Ok(Box::new(move || {
        checked(channel.peek(Deadline::Never)?).map(drop)
    }))
}

fn polls(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = channel(member, words)?;
    Ok(Box::new(move || {
        channel.poll(Deadline::Never)?;
        Ok(())
    }))
}

fn queue(member: &Arc<Member>, words: &Words) -> Result<&'static PriorityQueue> {
    let queue = PriorityQueue::attach(member, &words.descriptor(1)?, false)?;
    Ok(Box::leak(Box::new(queue)))
}

fn queue_sends(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let queue = queue(member, words)?;
    Ok(Box::new(move || {
        Ok(queue.send(0, &bytes_of(7, HUGE), 7, soon())?)
    }))
}

fn queue_receives(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let queue = queue(member, words)?;
    Ok(Box::new(move || {
        checked(queue.receive(Deadline::Never)?.1).map(drop)
    }))
}

fn locks(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let lock = Lock::attach(member, &words.descriptor(3)?, false)?;
    let lock: &'static Lock = Box::leak(Box::new(lock));
    Ok(Box::new(move || {
        lock.acquire(Deadline::Never)?;
        Ok(lock.release(false)?)
    }))
}

fn acquires(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let semaphore = Semaphore::attach(member, &words.descriptor(2)?, false)?;
    let semaphore: &'static Semaphore = Box::leak(Box::new(semaphore));
    Ok(Box::new(move || {
        semaphore.acquire(Deadline::Never)?;
        Ok(semaphore.release(1)?)
    }))
}

fn meets(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let barrier = Barrier::attach(member, &words.descriptor(4)?, false)?;
    let barrier: &'static Barrier = Box::leak(Box::new(barrier));
    Ok(Box::new(move || {
        barrier.wait(Deadline::Never)?;
        Ok(())
    }))
}

fn broadcast(member: &Arc<Member>, words: &Words) -> Result<&'static Broadcast> {
    let broadcast = Broadcast::attach(member, &words.descriptor(6)?, false)?;
    Ok(Box::leak(Box::new(broadcast)))
}

fn hears(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let broadcast = broadcast(member, words)?;
    Ok(Box::new(move || {
        broadcast.wait(Deadline::Never)?;
        Ok(())
    }))
}

fn triggers(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let broadcast = broadcast(member, words)?;
    Ok(Box::new(move || {
        broadcast.trigger(Trigger::ALL, &bytes_of(7, LARGE), soon())?;
        Ok(())
    }))
}

fn endpoint(member: &Arc<Member>, words: &Words) -> Result<&'static Endpoint> {
    let endpoint = Endpoint::attach(member, &words.descriptor(5)?, false)?;
    Ok(Box::leak(Box::new(endpoint)))
}

fn stream_sends(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let endpoint = endpoint(member, words)?;
    Ok(Box::new(move || {
        let mut sender = endpoint.open_send(soon())?;
        sender.send(&bytes_of(7, LARGE), 0, soon())?;
        Ok(sender.close(soon())?)
    }))
}

fn stream_receives(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let endpoint = endpoint(member, words)?;
    Ok(Box::new(move || {
        let mut receiver = endpoint.accept(soon())?;
        receiver.receive(soon())?;
        Ok(receiver.close()?)
    }))
}

fn set(member: &Arc<Member>, words: &Words) -> Result<&'static Set> {
    let set = Set::attach(member, &words.descriptor(7)?, false)?;
    Ok(Box::leak(Box::new(set)))
}

/// A second time the channel that is in the set already.
fn adds(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (set, channel) = (set(member, words)?, words.descriptor(0)?.object);
    Ok(Box::new(move || {
        set.add(channel, Interest::READABLE, 2)?;
        let none = set.wait(Deadline::after(1_000_000));
        ensure!(none == Err(Error::Timeout) || none.is_ok(), "{none:?}");
        Ok(())
    }))
}

/// A set of the victim's own, which goes with it or before.
fn adds_and_drops(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (member, channel) = (Arc::clone(member), words.descriptor(0)?.object);
    Ok(Box::new(move || {
        let set = Set::create(&member, 2, 0)?;
        set.add(channel, Interest::READABLE, 2)?;
        let none = set.wait(Deadline::after(1_000_000));
        ensure!(none == Err(Error::Timeout) || none.is_ok(), "{none:?}");
        drop(set);
        Ok(())
    }))
}

fn waits(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let set = set(member, words)?;
    Ok(Box::new(move || {
        set.wait(Deadline::Never)?;
        Ok(())
    }))
}

fn removes(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (set, place) = (set(member, words)?, SetMember::from_u64(words.number(8)?));
    Ok(Box::new(move || Ok(set.remove(place)?)))
}

fn destroys(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let set = set(member, words)?;
    Ok(Box::new(move || Ok(set.destroy()?)))
}

type OnPool = fn(&PoolHandle, &PoolHandle) -> dragon_channels::Result<()>;
type OnBlock = fn(&mut PoolBlock, &mut PoolBlock) -> dragon_channels::Result<()>;

/// The pool of the other node, and that of this one.
fn pools(member: &Arc<Member>, words: &Words) -> Result<[&'static PoolHandle; 2]> {
    let attach = |word| -> Result<&'static PoolHandle> {
        let pool = PoolHandle::attach(member, &words.descriptor(word)?, false)?;
        Ok(Box::leak(Box::new(pool)))
    };
    Ok([attach(10)?, attach(9)?])
}

fn block(member: &Arc<Member>, words: &Words, act: OnPool) -> Result<Act> {
    let [far, near] = pools(member, words)?;
    Ok(Box::new(move || Ok(act(far, near)?)))
}

fn with_block(member: &Arc<Member>, words: &Words, act: OnBlock) -> Result<Act> {
    let [far, near] = pools(member, words)?;
    let (mut far, mut near) = (far.alloc_block(9_000)?, near.alloc_block(9_000)?);
    Ok(Box::new(move || Ok(act(&mut far, &mut near)?)))
}

fn frees(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let [far, _] = pools(member, words)?;
    let block = far.alloc_block(9_000)?;
    Ok(Box::new(move || {
        drop(block);
        Ok(())
    }))
}
