//! A node of the job whose agent says what it likes: frames at the agent of this one.

use std::sync::Arc;

use dragon_channels::{
    Barrier, Broadcast, BroadcastOptions, ChannelOptions, Condition, ConditionOptions, Endpoint,
    EndpointOptions, Event, Lock, PriorityQueue, PriorityQueueOptions, Semaphore, create_channel,
};
use dragon_protocol::wire::{FRAME_HEADER, FrameHeader};
use dragon_protocol::{NodeIndex, ObjectId, RuntimeId};
use dragon_shmem::{Control, Error, Hooks, Member, Pool};
use dragon_transport::fabric::Side;
use dragon_transport::hostile::Victim;
use zerocopy::{FromBytes, IntoBytes};

const LIMIT: u64 = 4 << 20;

struct NoMore(Pool);

impl Hooks for NoMore {
    fn commit(&self, _: u32, bytes: u64) -> Result<(), Error> {
        self.0.commit(bytes)
    }

    fn notify(&self, _: ObjectId) {}
}

/// The input is frames, each after a byte that says what it is about: the number of an object, which takes the place of the
/// target; whether it comes on the link that this node opened; whether this node has asked for it.
pub(crate) fn peer(data: &[u8]) {
    // Without memory there is nothing to be seen.
    let _ = run(data);
}

fn run(mut data: &[u8]) -> dragon_channels::Result<()> {
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
    let victim = Victim::new(Arc::clone(&member), gateway);
    while let Some((about, rest)) = data.split_first() {
        let Some((head, rest)) = rest.split_at_checked(FRAME_HEADER) else {
            break;
        };
        let Ok(mut header) = FrameHeader::read_from_bytes(head) else {
            break;
        };
        if let Some(object) = objects.get(usize::from(about & 15)) {
            header.target = (*object).into();
        }
        let side = if about & 16 == 0 {
            Side::Accepted
        } else {
            header.target.node = 1.into();
            Side::Opened
        };
        if about & 32 != 0 {
            victim.ask(header);
        }
        let payload = rest
            .len()
            .min(usize::try_from(header.payload.get()).unwrap_or(0));
        let (payload, rest) = rest.split_at(payload);
        victim.hear(side, &[header.as_bytes(), payload].concat());
        data = rest;
    }
    assert_eq!(victim.end(), 0, "requests are kept");
    Ok(())
}
