//! A user program that writes where it has no business: operations on shared memory of which parts were overwritten must give
//! an error, or go wrong within what was overwritten.

use std::sync::Arc;

use dragon_channels::{
    Barrier, Broadcast, BroadcastOptions, Channel, ChannelOptions, Condition, ConditionOptions,
    Deadline, Endpoint, EndpointOptions, Event, Interest, Lock, Message, Object, Poll,
    PriorityQueue, PriorityQueueOptions, Semaphore, Set, SharedMemory, Trigger, create_channel,
};
use dragon_protocol::{NodeIndex, ObjectId, RuntimeId, SlotId};
use dragon_shmem::sync::low;
use dragon_shmem::{Block, Control, Error, Hooks, Member, Pool, Region};

const RUNTIME: RuntimeId = RuntimeId(3);
const LIMIT: u64 = 4 << 20;
/// Where the metadata of so small a pool ends; beyond lie pages that nobody used.
const META: u64 = 64 << 10;
/// Words, slots and the first objects.
const CONTROL: u64 = 16 << 10;

/// The input is a program: each byte chooses a step, the next ones are its arguments.
pub(crate) fn scribble(data: &[u8]) {
    // Without memory there is nothing to be seen.
    let Ok(mut node) = Node::new() else { return };
    let mut input = Input(data);
    while let Some(step) = input.byte() {
        node.step(step, &mut input);
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next bytes as a number; zeros behind the end.
    fn number(&mut self, bytes: usize) -> u64 {
        let (now, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        let mut number = [0; 8];
        number[..now.len()].copy_from_slice(now);
        u64::from_le_bytes(number)
    }
}

struct Node {
    control: Control,
    daemon: Arc<Member>,
    member: Arc<Member>,
    slot: SlotId,
    channel: Channel,
    lock: Lock,
    event: Event,
    semaphore: Semaphore,
    set: Set,
    /// A channel that grows.
    growing: Channel,
    barrier: Barrier,
    condition: Condition,
    broadcast: Broadcast,
    endpoint: Endpoint,
    queue: PriorityQueue,
    memory: Vec<SharedMemory>,
    messages: Vec<Message>,
    blocks: Vec<u64>,
    recovered: bool,
}

impl Node {
    fn new() -> dragon_channels::Result<Self> {
        let control = Control::create(RUNTIME, NodeIndex::FIRST, 1)?;
        let pool = Pool::create(RUNTIME, NodeIndex::FIRST, 0, LIMIT)?;
        pool.commit(LIMIT)?;
        let member = |slot| {
            let hooks = Box::new(NoMore(pool.clone()));
            Member::new(control.clone(), pool.clone(), slot, hooks)
        };
        let daemon = member(control.claim_daemon_slot()?)?;
        let slot = control.claim_slot(1)?;
        let member = member(slot)?;
        let options = ChannelOptions {
            capacity: 4,
            block: 64,
            ..ChannelOptions::default()
        };
        let channel = create_channel(&member, &options)?;
        let set = Set::create(&member, 8, 0)?;
        set.add(channel.id(), Interest::READABLE, 1)?;
        let growing = ChannelOptions {
            capacity: 1,
            unbounded: Some(16),
            ..options
        };
        let levels = PriorityQueueOptions {
            levels: 3,
            capacity: 2,
            block: 16,
            user: 0,
        };
        let queue = PriorityQueue::create(&member, &levels)?;
        set.add(queue.id(), Interest::READABLE, 2)?;
        Ok(Self {
            queue,
            growing: create_channel(&member, &growing)?,
            barrier: Barrier::create(&member, 2, 0)?,
            condition: Condition::create(&member, &ConditionOptions::default())?,
            broadcast: Broadcast::create(&member, &BroadcastOptions::default())?,
            endpoint: Endpoint::create(&member, &EndpointOptions::default())?,
            memory: Vec::new(),
            lock: Lock::create(&member, 0)?,
            event: Event::create(&member, 0)?,
            semaphore: Semaphore::create(&member, 1, 2, 0)?,
            set,
            channel,
            control,
            daemon,
            member,
            slot,
            messages: Vec::new(),
            blocks: Vec::new(),
            recovered: false,
        })
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) {
        // Results do not matter: what matters is that there is one.
        match step {
            0..236 => {}
            236..240 => return self.step_of_queue(step - 236, input),
            _ => return self.further_step(step - 240, input),
        }
        match step % 20 {
            0..=2 => write(self.member.pool().meta(), META, input),
            3..=4 => write(self.control.region(), CONTROL, input),
            5 => write(self.member.pool().data(), LIMIT, input),
            6 => {
                let _ = self.channel.send(b"12345678", 1, Deadline::Now);
            }
            7 => {
                let _ = self.channel.send(&[7; 300], 2, Deadline::Now);
            }
            8 => self.messages.extend(self.channel.receive(Deadline::Now)),
            9 => self.messages.clear(),
            10 => {
                let block = self.member.try_alloc(input.number(3));
                self.blocks
                    .extend(block.ok().flatten().map(|block| block.offset));
            }
            11 => {
                let _ = self.blocks.pop().map(|block| self.member.free(block));
            }
            12 => {
                let _ = self.member.free(input.number(8));
            }
            13 => {
                let _ = self.blocks.last().map(|block| self.member.share(*block));
            }
            14 => {
                let mut descriptor = self.channel.descriptor();
                descriptor.object.index = u32::from(input.byte().unwrap_or(0));
                let _ = Object::attach(&self.member, &descriptor, true);
            }
            15 => {
                let _ = self.lock.acquire(Deadline::Now);
                let _ = self.lock.release(false);
            }
            16 => {
                let _ = self.event.set();
                let _ = self.semaphore.acquire(Deadline::Now);
                let _ = self.semaphore.release(1);
                let _ = self.event.clear();
            }
            17 => {
                let _ = self.set.poll();
                let _ = self.channel.poll(Deadline::Now);
                let _ = self.channel.attributes();
            }
            18 => {
                let _ = self.member.pool().stats();
                let _ = self.control.totals();
            }
            _ => {
                if !std::mem::replace(&mut self.recovered, true) {
                    let _ = dragon_channels::recover(&self.daemon, self.slot);
                }
            }
        }
    }
}

impl Node {
    /// Of the queue with priorities. Levels that it does not have are among those that are asked for.
    fn step_of_queue(&mut self, step: u8, input: &mut Input<'_>) {
        let queue = &self.queue;
        match step {
            0 => {
                let level = input.number(1) % 5;
                let bytes = &[9; 40][..usize::from(input.byte().unwrap_or(0)) % 40];
                let _ = queue.send(low(level), bytes, level, Deadline::Now);
            }
            1 => {
                if let Some(block) = self.blocks.pop() {
                    let block = Block {
                        offset: block,
                        length: input.number(2),
                    };
                    let _ = queue.send_block(1, block, 5, Deadline::Now);
                }
            }
            2 => {
                let received = queue.receive(Deadline::Now);
                self.messages.extend(received.map(|(_, message)| message));
            }
            _ => {
                let _ = queue
                    .peek(Deadline::Now)
                    .map(|(_, message)| message.into_vec());
                let _ = queue.poll(Deadline::Now);
                let _ = queue.state();
                let _ = self.set.poll();
            }
        }
    }

    fn further_step(&mut self, step: u8, input: &mut Input<'_>) {
        match step {
            0..=2 => {
                let _ = self.growing.send(b"1234", 1, Deadline::Now);
            }
            3 => {
                let batch: [(&[u8], u64); 3] = [(b"1", 1), (&[2; 300], 2), (b"3", 3)];
                let _ = self.growing.send_many(&batch, Deadline::Now);
            }
            4..=5 => {
                let _ = self.growing.receive_many(2, Deadline::Now);
            }
            6 => {
                let _ = self.growing.peek(Deadline::Now);
                let _ = self.growing.attributes();
                let _ = self.growing.poll_for(Poll::Full, Deadline::Now);
                let _ = self.growing.poll(Deadline::Now);
            }
            7 => {
                let number = input.number(1);
                let made = SharedMemory::create(&self.member, Default::default(), number, &[1; 80]);
                self.memory.extend(made);
            }
            8 => {
                let number = input.number(1);
                let found = SharedMemory::find(&self.member, Default::default(), number);
                self.memory.extend(found);
                let mut bytes = [0; 8];
                let _ = self.memory.last().map(|memory| memory.read(3, &mut bytes));
            }
            9 => self.memory.clear(),
            10 => {
                let _ = self.barrier.wait(Deadline::Now);
                let _ = self.barrier.state();
            }
            11 => {
                let _ = self.barrier.abort();
                let _ = self.barrier.reset();
            }
            12 => {
                let _ = self
                    .broadcast
                    .trigger(Trigger::ALL, &[7; 300], Deadline::Now);
                let _ = self.broadcast.wait(Deadline::Now);
                let _ = self.broadcast.waiting();
            }
            13 => {
                let _ = self.lock.acquire(Deadline::Now);
                let _ = self.condition.wait(&self.lock, Deadline::Now);
                let _ = self.condition.notify_all();
                let _ = self.lock.release(false);
            }
            14 => {
                if let Ok(mut sender) = self.endpoint.open_send(Deadline::Now) {
                    let _ = sender.send(&[7; 300], 1, Deadline::Now);
                    let _ = sender.close(Deadline::Now);
                }
                if let Ok(mut receiver) = self.endpoint.accept(Deadline::Now) {
                    let _ = receiver.receive(Deadline::Now);
                }
            }
            _ => {
                let length = input.number(3);
                let block = self.blocks.last();
                let _ = block.map(|block| self.member.resize(*block, length));
            }
        }
    }
}

/// Overwrites a word somewhere in the first `length` bytes of a region.
fn write(region: &Region, length: u64, input: &mut Input<'_>) {
    let place = input.number(3) * 8 % length;
    let value = input.number(8).to_le_bytes();
    // The place lies inside.
    let _ = region.copy_in(place, &value);
}

struct NoMore(Pool);

impl Hooks for NoMore {
    fn commit(&self, _: u32, bytes: u64) -> Result<(), Error> {
        Err(self.0.out_of_memory(bytes))
    }

    fn notify(&self, _: ObjectId) {}
}
