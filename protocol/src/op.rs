//! Operations on objects, with one number each: in the intent record of a thread, in a request to the gateway, on the
//! wire, and in the log of what a dead process was doing.

/// An operation. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Op {
    /// Send a message to a channel. Argument 0: the hint.
    Send = 1,
    /// Receive a message from a channel. The reply carries hint and payload.
    Receive = 2,
    /// Wait until a channel is readable. The reply's argument 0: messages in it.
    PollReadable = 3,
    /// How many messages a channel holds and can hold: reply arguments 0 and 1.
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
    /// Something changed on an object that the agent watches (local gateway only, never on the wire).
    Notify = 19,
    /// Create an object on the target's node. See `create` in `dragon-channels`. The reply's arguments: its id.
    Create = 20,

    // Only in intent records:
    /// Allocate from a pool.
    Allocate = 64,
    /// Free a block of a pool.
    Free = 65,
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
            64 => Self::Allocate,
            65 => Self::Free,
            _ => return None,
        })
    }
}
