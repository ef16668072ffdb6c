//! A node whose agent hears what a test says in the name of another node: with little memory, and a small object of each kind.

use std::any::Any;
use std::sync::Arc;

use dragon_channels::{
    Barrier, Broadcast, BroadcastOptions, ChannelOptions, Condition, ConditionOptions, Endpoint,
    EndpointOptions, Event, Lock, PriorityQueue, PriorityQueueOptions, Result, Semaphore,
    create_channel,
};
use dragon_protocol::{NodeIndex, ObjectId, RuntimeId};
use dragon_shmem::{Control, Error, Hooks, Member, Pool};
use dragon_transport::hostile::Victim;

const LIMIT: u64 = 4 << 20;

struct NoMore(Pool);

impl Hooks for NoMore {
    fn commit(&self, _: u32, bytes: u64) -> core::result::Result<(), Error> {
        self.0.commit(bytes)
    }

    fn notify(&self, _: ObjectId) {}
}

/// The node. What is dropped first stands first.
pub(crate) struct Hearing {
    pub(crate) victim: Victim,
    /// What a frame may be about.
    pub(crate) objects: [ObjectId; 10],
    _handles: Box<dyn Any>,
    #[allow(dead_code, reason = "the fuzzer does not look at it")]
    pub(crate) member: Arc<Member>,
}

impl Hearing {
    pub(crate) fn new() -> Result<Self> {
        let control = Control::create(RuntimeId(3), NodeIndex::FIRST, 1)?;
        let pool = Pool::create(RuntimeId(3), NodeIndex::FIRST, 0, LIMIT)?;
        let hooks = Box::new(NoMore(pool.clone()));
        let slot = control.claim_daemon_slot()?;
        let member = Member::new(control, pool, slot, hooks)?;
        let small = ChannelOptions {
            capacity: 2,
            block: 64,
            ..ChannelOptions::default()
        };
        let levels = PriorityQueueOptions {
            levels: 3,
            capacity: 2,
            block: 16,
            user: 0,
        };
        let gateway = create_channel(&member, &small)?;
        let channel = create_channel(&member, &small)?;
        let queue = PriorityQueue::create(&member, &levels)?;
        let lock = Lock::create(&member, 0)?;
        let event = Event::create(&member, 0)?;
        let semaphore = Semaphore::create(&member, 1, 2, 0)?;
        let endpoint = Endpoint::create(&member, &EndpointOptions::default())?;
        let barrier = Barrier::create(&member, 2, 0)?;
        let condition = Condition::create(&member, &ConditionOptions::default())?;
        let broadcast = Broadcast::create(&member, &BroadcastOptions::default())?;
        // The committed inputs of the fuzzer go by this order.
        let objects = [
            channel.id(),
            queue.id(),
            lock.id(),
            event.id(),
            semaphore.id(),
            endpoint.id(),
            barrier.id(),
            condition.id(),
            broadcast.id(),
            gateway.id(),
        ];
        let waits = (barrier, condition, broadcast);
        let handles = (channel, queue, lock, event, semaphore, endpoint, waits);
        Ok(Self {
            victim: Victim::new(Arc::clone(&member), gateway),
            objects,
            _handles: Box::new(handles),
            member,
        })
    }
}
