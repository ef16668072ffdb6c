//! Operations on objects, with one number each: in the intent record of a thread, in a request to the gateway, on the
//! wire, and in the log of what a dead process was doing.

/// An operation. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Op {
    /// Send a message to a channel. Argument 0: the hint. Trace ids of messages travel beside the arguments, see
    /// [`crate::wire::TRACED`].
    Send = 1,
    /// Receive a message from a channel. Argument 0: 0, or one more than the most bytes that it may have; a longer one stays in
    /// the channel (`TooLarge`; reply argument 0: its length). The reply carries hint and payload.
    Receive = 2,
    /// Wait until a channel is readable. The reply's argument 0: messages in it.
    PollReadable = 3,
    /// How many messages a channel holds and can hold: reply arguments 0 and 1. Of memory: how many bytes it has.
    Attributes = 4,
    /// Mark the object destroyed and wake everyone who waits on it.
    Destroy = 5,
    /// Take a reference. Argument 0: 1 to adopt one that is in transit, when there is one.
    Attach = 6,
    /// Give a reference back.
    Detach = 7,
    /// Count one reference as in transit: the descriptor was put into a message.
    Export = 8,
    /// Acquire a lock.
    LockAcquire = 9,
    /// Release a lock. Argument 0: 1 to release it whoever holds it.
    LockRelease = 10,
    /// Set an event.
    EventSet = 11,
    /// Clear an event.
    EventClear = 12,
    /// Wait for an event.
    EventWait = 13,
    /// Is the event set? Reply argument 0.
    EventIsSet = 14,
    /// Wait for a process to end. Reply argument 0: its status as `waitpid` gives it.
    ProcessWait = 15,
    /// Take one unit of a semaphore.
    SemaphoreAcquire = 16,
    /// Give `argument 0` units to a semaphore.
    SemaphoreRelease = 17,
    /// The value of a semaphore: reply argument 0.
    SemaphoreValue = 18,
    /// Something changed on an object that the agent watches, or a set of this node asks for less (local gateway only, never
    /// on the wire).
    Notify = 19,
    /// Create an object on the target's node. See `create` in `dragon-channels`. The reply's arguments: its id.
    Create = 20,
    /// Look at the oldest message without receiving it.
    Peek = 21,
    /// Wait until a channel has room.
    PollWritable = 22,
    /// Wait until a channel is empty.
    PollEmpty = 23,
    /// Wait until a channel is full.
    PollFull = 24,
    /// Wait until a semaphore has no units.
    SemaphoreWaitZero = 25,
    /// Arrive at a barrier and wait for the other parties.
    BarrierWait = 26,
    /// Reset a barrier: who waits gets an error, and it is whole again.
    BarrierReset = 27,
    /// Break a barrier.
    BarrierAbort = 28,
    /// Parties, those waiting, and whether the barrier is broken.
    BarrierAttributes = 29,
    /// Wake one, some or all who wait for a broadcast.
    BroadcastTrigger = 30,
    /// Wait for a broadcast.
    BroadcastWait = 31,
    /// Give a lock up, wait for a condition, and take the lock again.
    ConditionWait = 32,
    /// Wake one, some or all who wait for a condition.
    ConditionNotify = 33,
    /// Send a message to a queue with priorities. Argument 0: the hint; argument 1: the priority.
    Push = 34,
    /// Receive the most urgent message of a queue with priorities.
    Pop = 35,
    /// Tell once when an object is ready for what argument 0 says, as a set's members are (readable 1, writable 2): the reply's
    /// argument 0. In a request to the gateway a [`crate::wire::Subscription`] follows. In an intent: add an object to a set.
    Subscribe = 36,
    /// Take an object out of a set.
    Unsubscribe = 37,
    /// Wait for any object of a set.
    SetWait = 38,
    /// Open a stream to an endpoint. Reply argument 0: the conversation, which argument 1 of the requests to send, receive,
    /// poll and close names.
    StreamOpen = 39,
    /// Accept a stream of an endpoint. Reply as for [`Op::StreamOpen`].
    StreamAccept = 40,
    /// Close an end of a stream. Argument 0: 0 the sender's, 1 the same, breaking off, 2 the receiver's, 3 take an accepting
    /// back, 4 take an opening back. Argument 1: the conversation.
    StreamClose = 41,
    /// Write the payload into a block of a pool, or into memory. Argument 0: the block's address, 0 for memory; argument 1:
    /// where in it.
    CopyIn = 42,
    /// Read a block of a pool, or memory: the reply's payload. Arguments as for [`Op::CopyIn`]; the payload: how many bytes, u64.
    CopyOut = 43,
    /// Wait until a message was received.
    AwaitReceipt = 44,
    /// Wait until the receiver of a stream has ended: the status says how. Argument 1: the conversation. Done also when the
    /// sender has ended.
    StreamWatch = 45,
    /// Allocate a block in a pool for the calling process. Argument 0: its length. The reply's arguments: address and length.
    BlockAllocate = 46,
    /// Free a block of the calling process. Argument 0: its address.
    BlockFree = 47,
    /// Fill a block. Arguments as for [`Op::CopyIn`]; the payload: how many bytes, and the value, u64 each.
    BlockFill = 48,
    /// The BLAKE3 hash of a block: the reply's payload. Arguments and payload as for [`Op::CopyOut`].
    BlockHash = 49,

    // Only in intent records:
    /// Allocate from a pool.
    Allocate = 64,
    /// Free a block of a pool.
    Free = 65,
    /// Change the length of a block in its place.
    Resize = 66,
    /// Add cells to an unbounded channel.
    Grow = 67,
    /// Take or give a reference to an object.
    Reference = 68,
}

impl Op {
    /// The operation with this number.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        Some(match n {
            1 => Self::Send,
            2 => Self::Receive,
            3 => Self::PollReadable,
            4 => Self::Attributes,
            5 => Self::Destroy,
            6 => Self::Attach,
            7 => Self::Detach,
            8 => Self::Export,
            9 => Self::LockAcquire,
            10 => Self::LockRelease,
            11 => Self::EventSet,
            12 => Self::EventClear,
            13 => Self::EventWait,
            14 => Self::EventIsSet,
            15 => Self::ProcessWait,
            16 => Self::SemaphoreAcquire,
            17 => Self::SemaphoreRelease,
            18 => Self::SemaphoreValue,
            19 => Self::Notify,
            20 => Self::Create,
            21 => Self::Peek,
            22 => Self::PollWritable,
            23 => Self::PollEmpty,
            24 => Self::PollFull,
            25 => Self::SemaphoreWaitZero,
            26 => Self::BarrierWait,
            27 => Self::BarrierReset,
            28 => Self::BarrierAbort,
            29 => Self::BarrierAttributes,
            30 => Self::BroadcastTrigger,
            31 => Self::BroadcastWait,
            32 => Self::ConditionWait,
            33 => Self::ConditionNotify,
            34 => Self::Push,
            35 => Self::Pop,
            36 => Self::Subscribe,
            37 => Self::Unsubscribe,
            38 => Self::SetWait,
            39 => Self::StreamOpen,
            40 => Self::StreamAccept,
            41 => Self::StreamClose,
            42 => Self::CopyIn,
            43 => Self::CopyOut,
            44 => Self::AwaitReceipt,
            45 => Self::StreamWatch,
            46 => Self::BlockAllocate,
            47 => Self::BlockFree,
            48 => Self::BlockFill,
            49 => Self::BlockHash,
            64 => Self::Allocate,
            65 => Self::Free,
            66 => Self::Resize,
            67 => Self::Grow,
            68 => Self::Reference,
            _ => return None,
        })
    }
}
