//! Queues with priorities.

use dragon_channels::{PriorityQueueOptions, PriorityQueueState};
use dragon_shmem::Deadline;

use super::channel::{DragonBytes, DragonMessage, with_slices};
use super::function::{Out, Taken, Wanted, functions, object};
use super::{check_size, many, or_default};
use crate::error::Result;
use crate::pool::PoolBlock;
use crate::priority::PriorityQueue;
use crate::session::Session;

/// `DRAGON_PRIORITY_LEVELS`.
const LEVELS: usize = 64;

/// `dragon_priority_queue_options`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonPriorityQueueOptions {
    /// Bytes of this structure, as the caller knows it.
    pub size: usize,
    /// A number of the caller's choice.
    pub user: u64,
    /// How many levels; 0: the default.
    pub levels: u32,
    /// Messages that each level holds; 0: the default.
    pub capacity: u32,
    /// Bytes of a message that travels in the queue itself; 0: the default.
    pub block: u32,
    /// 0.
    pub reserved: u32,
}

impl DragonPriorityQueueOptions {
    fn read(&self) -> Result<PriorityQueueOptions> {
        check_size::<Self>("dragon_priority_queue_options", self.size)?;
        let default = PriorityQueueOptions::default();
        Ok(PriorityQueueOptions {
            levels: or_default(self.levels, default.levels),
            capacity: or_default(self.capacity, default.capacity),
            block: or_default(self.block, default.block),
            user: self.user,
        })
    }
}

/// `dragon_priority_queue_info`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonPriorityQueueInfo {
    /// Bytes of this structure, as the caller knows it.
    pub size: usize,
    /// Messages that each level can hold.
    pub capacity: u64,
    /// Bytes of a message that travels in the queue itself.
    pub block: u64,
    /// Bytes of its own memory.
    pub bytes: u64,
    /// Senders that sleep.
    pub senders_waiting: u64,
    /// Receivers that sleep.
    pub receivers_waiting: u64,
    /// How many levels.
    pub levels: u32,
    /// 0.
    pub reserved: u32,
    /// Messages in each level.
    pub messages: [u64; LEVELS],
}

impl DragonPriorityQueueInfo {
    fn of(found: &PriorityQueueState) -> Self {
        let mut messages = [0; LEVELS];
        for (place, count) in messages.iter_mut().zip(&found.messages) {
            *place = *count;
        }
        Self {
            size: size_of::<Self>(),
            capacity: found.capacity,
            block: found.block,
            bytes: found.bytes,
            senders_waiting: found.senders_waiting,
            receivers_waiting: found.receivers_waiting,
            levels: u32::try_from(found.messages.len()).unwrap_or(u32::MAX),
            reserved: 0,
            messages,
        }
    }
}

object! {
    PriorityQueue queue {
        attach: dragon_priority_queue_attach,
        close: dragon_priority_queue_close,
        descriptor: dragon_priority_queue_descriptor,
        export: dragon_priority_queue_export,
        destroy: dragon_priority_queue_destroy,
        set_wait_mode: dragon_priority_queue_set_wait_mode,
    }
}

functions! {
    fn dragon_priority_queue_create(
        options: Option<&DragonPriorityQueueOptions>,
        queue: Out<*mut PriorityQueue>,
    ) {
        let options = options.map(DragonPriorityQueueOptions::read).transpose()?;
        queue.give(PriorityQueue::create(&options.unwrap_or_default())?);
        Ok(())
    }

    fn dragon_priority_queue_send(
        queue: &PriorityQueue,
        level: u32,
        parts: *const DragonBytes,
        count: usize,
        hint: u64,
        timeout: Deadline,
    ) {
        // SAFETY: the caller's promise.
        let parts = unsafe { many(parts, count, "parts") }?;
        with_slices(parts, |slices| queue.send_parts(level, slices, hint, timeout))
    }

    fn dragon_priority_queue_send_block(
        queue: &PriorityQueue,
        level: u32,
        block: Taken<PoolBlock>,
        hint: u64,
        timeout: Deadline,
    ) {
        block.hand_over(|block| queue.send_block(level, block, hint, timeout))
    }

    fn dragon_priority_queue_receive(
        queue: &PriorityQueue,
        timeout: Deadline,
        message: Out<DragonMessage>,
        level: Wanted<u32>,
    ) {
        let (queue, session) = queue.below()?;
        show(queue.receive(timeout), session, message, level)
    }

    fn dragon_priority_queue_peek(
        queue: &PriorityQueue,
        timeout: Deadline,
        message: Out<DragonMessage>,
        level: Wanted<u32>,
    ) {
        let (queue, session) = queue.below()?;
        show(queue.peek(timeout), session, message, level)
    }

    fn dragon_priority_queue_poll(queue: &PriorityQueue, timeout: Deadline, count: Out<u64>) {
        count.put(queue.poll(timeout)?);
        Ok(())
    }

    fn dragon_priority_queue_get_info(
        queue: &PriorityQueue,
        info: &mut DragonPriorityQueueInfo,
    ) {
        check_size::<DragonPriorityQueueInfo>("dragon_priority_queue_info", info.size)?;
        *info = DragonPriorityQueueInfo::of(&queue.state()?);
        Ok(())
    }
}

/// A message of the layer below, and its level.
type Found = dragon_channels::Result<(u32, dragon_channels::Message)>;

fn show(
    found: Found,
    session: &'static Session,
    message: Out<DragonMessage>,
    level: Wanted<u32>,
) -> Result<()> {
    let (number, found) = found?;
    level.put(number);
    DragonMessage::show(Ok(found), session, message)
}
