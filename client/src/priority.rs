//! Queues with priorities, as programs use them.

use std::io::IoSlice;
use std::sync::Arc;

use dragon_channels as channels;
use dragon_channels::{PriorityQueueOptions, PriorityQueueState};
use dragon_protocol::Descriptor;
use dragon_shmem::{Deadline, Member};

use crate::error::{Error, Result};
use crate::handle::{Handle, Object};
use crate::objects::{Message, common, destroy};
use crate::pool::PoolBlock;
use crate::session::Session;

destroy!(PriorityQueue);
common!(PriorityQueue, channels::PriorityQueue, "queue");

/// A queue with levels of priority, among processes of any nodes: the most urgent message comes first, and within a level
/// the oldest. Each level has a capacity of its own, so a flood of one leaves the others their room.
///
/// ```no_run
/// use dragon::{Deadline, PriorityQueue, PriorityQueueOptions};
///
/// const URGENT: u32 = 0;
/// const ORDINARY: u32 = 1;
///
/// let options = PriorityQueueOptions { levels: 2, capacity: 1000, ..PriorityQueueOptions::default() };
/// let work = PriorityQueue::create(&options)?;
/// work.send(ORDINARY, b"the next picture", 0, Deadline::Never)?;
/// work.send(URGENT, b"stop", 0, Deadline::Never)?;
/// let (level, message) = work.receive(Deadline::Never)?;
/// assert_eq!((level, message.to_vec()), (URGENT, b"stop".to_vec()));
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct PriorityQueue(Handle<channels::PriorityQueue>);

impl PriorityQueue {
    /// Makes a queue on this node.
    ///
    /// # Errors
    /// When an option is out of range, or the pool or a table is full.
    pub fn create(options: &PriorityQueueOptions) -> Result<Self> {
        Handle::create(|member| Ok(channels::PriorityQueue::create(member, options)?)).map(Self)
    }

    /// Sends a message to a level, 0 the most urgent, with a number that the receiver gets beside it. Returns when the
    /// message is in the queue.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument) for a level that there is not;
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Full`](crate::Code::Full) when the level
    /// had no room in time; [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    #[inline]
    pub fn send(&self, level: u32, message: &[u8], hint: u64, deadline: Deadline) -> Result<()> {
        Ok(self.0.get()?.send(level, message, hint, deadline)?)
    }

    /// Sends the parts as one message.
    ///
    /// # Errors
    /// As [`PriorityQueue::send`].
    pub fn send_parts(
        &self,
        level: u32,
        parts: &[IoSlice<'_>],
        hint: u64,
        deadline: Deadline,
    ) -> Result<()> {
        Ok(self.0.get()?.send_parts(level, parts, hint, deadline)?)
    }

    /// Sends a block without copying it: with success it is the receiver's, who frees it with the message.
    ///
    /// # Errors
    /// As [`PriorityQueue::send`]; the block comes back.
    pub fn send_block(
        &self,
        level: u32,
        block: PoolBlock,
        hint: u64,
        deadline: Deadline,
    ) -> Result<(), (Error, PoolBlock)> {
        block.hand_over(|block| Ok(self.0.get()?.send_block(level, block, hint, deadline)?))
    }

    /// The queue of the layer below, and the session that it belongs to.
    pub(crate) fn below(&self) -> Result<(&channels::PriorityQueue, &'static Session)> {
        self.0.get_with_session()
    }

    /// Takes the most urgent message, and tells its level.
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Empty`](crate::Code::Empty) when none
    /// came in time; [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    #[inline]
    pub fn receive(&self, deadline: Deadline) -> Result<(u32, Message)> {
        let (queue, session) = self.below()?;
        let (level, message) = queue.receive(deadline)?;
        Ok((level, Message::new(message, session)))
    }

    /// A copy of the most urgent message, which stays in the queue, and its level.
    ///
    /// # Errors
    /// As [`PriorityQueue::receive`].
    pub fn peek(&self, deadline: Deadline) -> Result<(u32, Message)> {
        let (queue, session) = self.below()?;
        let (level, message) = queue.peek(deadline)?;
        Ok((level, Message::new(message, session)))
    }

    /// Waits until there is something to receive; how many messages. [`Deadline::Now`] always succeeds, perhaps with 0.
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) when nothing came in time.
    pub fn poll(&self, deadline: Deadline) -> Result<u64> {
        match self.0.get()?.poll(deadline) {
            Err(channels::Error::Empty) => Ok(0),
            polled => Ok(polled?),
        }
    }

    /// How many messages each level has, and what the queue is.
    ///
    /// # Errors
    /// When the queue was destroyed, or its node is down.
    pub fn state(&self) -> Result<PriorityQueueState> {
        Ok(self.0.get()?.state()?)
    }
}
