//! Payloads and the memory that they lie in.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use std::sync::Arc;

use dragon_channels::Message;
use dragon_shmem::{Block, Member, Pin};

/// The payload of a frame.
#[derive(Debug)]
pub enum Body {
    /// Bytes of this process.
    Bytes(Vec<u8>),
    /// A block of the node's pool: registered memory, from which and into which the network works without a copy.
    Block(PoolBlock),
    /// A message that was received from a channel by reference. Its block is freed with it.
    Message(Box<Message>),
}

/// A block of a pool of the node that this process holds alone. It is freed when it is dropped.
pub struct PoolBlock {
    member: Arc<Member>,
    block: Block,
    start: NonNull<u8>,
    shared: bool,
    /// It is another's, and is only read.
    lent: bool,
    /// The pool stays mapped as long as the bytes are used.
    pin: ManuallyDrop<Pin>,
}

// SAFETY: the pointer leads into a mapping that the member keeps; the block is an offset into it, and all access to the
// memory goes through raw copies.
unsafe impl Send for PoolBlock {}

impl fmt::Debug for PoolBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.block.fmt(f)
    }
}

impl PoolBlock {
    /// Takes over a shared block that somebody handed to this process, after checking that there is one.
    ///
    /// # Errors
    /// When offset and length do not name an allocated block of the pool.
    pub fn adopt(member: &Arc<Member>, block: Block) -> dragon_shmem::Result<Self> {
        let pin = member.pin(block.offset)?;
        let start = match member.bytes(block.offset, block.length) {
            Ok(start) => start,
            Err(error) => {
                member.unpin(pin);
                return Err(error);
            }
        };
        Ok(Self {
            member: Arc::clone(member),
            block,
            start,
            shared: true,
            lent: false,
            pin: ManuallyDrop::new(pin),
        })
    }

    /// Bytes of a block that stays whose it is, to be read: its owner waits until that has been done, or has died. In the
    /// second case they may be another's bytes by then, for somebody who is dead as well.
    ///
    /// # Errors
    /// When they do not lie inside an allocated block.
    pub fn lend(
        member: &Arc<Member>,
        address: u64,
        at: u64,
        length: u64,
    ) -> dragon_shmem::Result<Self> {
        let what = "place in a block";
        let corrupt = dragon_shmem::Error::Corrupt { what, value: at };
        let end = at.checked_add(length).ok_or(corrupt)?;
        let offset = address;
        let mut lent = Self::adopt(
            member,
            Block {
                offset,
                length: end,
            },
        )?;
        lent.lent = true;
        lent.block.length = length;
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        // SAFETY: the block has `end` bytes, of which `at` is no more than the end.
        lent.start = unsafe { lent.start.add(at) };
        Ok(lent)
    }

    /// Allocates a block.
    ///
    /// # Errors
    /// When the pool or the job's memory limit leaves no room.
    pub fn allocate(member: &Arc<Member>, length: u64) -> dragon_shmem::Result<Self> {
        let block = member.alloc(length)?;
        // In the default pool, which is always there.
        let start = member.bytes(block.offset, length)?;
        Ok(Self {
            member: Arc::clone(member),
            block,
            start,
            shared: false,
            lent: false,
            pin: ManuallyDrop::new(member.pin(block.offset)?),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn block(&self) -> Block {
        self.block
    }

    /// Whether it survives this process.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Makes it one that survives this process, so that it can be handed to another.
    ///
    /// # Errors
    /// When the pool's memory was scribbled over.
    pub fn share(&mut self) -> dragon_shmem::Result<()> {
        if !self.shared {
            self.member.share(self.block.offset)?;
            self.shared = true;
        }
        Ok(())
    }

    /// The same block with fewer bytes in use.
    #[must_use]
    pub(crate) fn cut(mut self, length: u64) -> Self {
        self.block.length = self.block.length.min(length);
        self
    }

    /// The block itself. Whoever gets it frees it.
    #[must_use]
    pub fn into_block(self) -> Block {
        let block = self.block;
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, and its pin not used again.
        let pin = unsafe { ManuallyDrop::take(&mut this.pin) };
        this.member.unpin(pin);
        // SAFETY: `this` is never used or dropped again, so the member is moved out exactly once.
        drop(unsafe { core::ptr::read(&raw const this.member) });
        block
    }
}

impl Drop for PoolBlock {
    fn drop(&mut self) {
        if !self.lent
            && let Err(error) = self.member.free(self.block.offset)
        {
            tracing::warn!(%error, "a payload's block cannot be freed");
        }
        // SAFETY: taken here once, and not used afterwards.
        let pin = unsafe { ManuallyDrop::take(&mut self.pin) };
        self.member.unpin(pin);
    }
}

impl Body {
    /// No bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self::Bytes(Vec::new())
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Block(block) => block.block.length,
            Self::Message(message) => message.len() as u64,
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it begins. Valid while the body lives; a pool's memory may be written by others at any time.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        match self {
            Self::Bytes(bytes) => NonNull::from(bytes.as_slice()).cast(),
            Self::Block(block) => block.start,
            Self::Message(message) => address(message),
        }
    }

    /// The same, to write to.
    #[must_use]
    pub fn start_mut(&mut self) -> NonNull<u8> {
        match self {
            Self::Bytes(bytes) => NonNull::from(bytes.as_mut_slice()).cast(),
            Self::Block(block) => block.start,
            // Only messages that came by reference are kept as such: their bytes are in shared memory.
            Self::Message(message) => address(message),
        }
    }

    /// Copies bytes out, starting at `at`; returns how many there were.
    pub fn read_at(&self, at: u64, into: &mut [u8]) -> usize {
        let left = usize::try_from(self.len().saturating_sub(at)).unwrap_or(usize::MAX);
        let count = into.len().min(left);
        let at = usize::try_from(at.min(self.len())).unwrap_or(0);
        // SAFETY: `at` is at most the length of the body.
        let from = unsafe { self.start().add(at) };
        // SAFETY: at + count is at most the length of the body; `into` is memory of this process, apart from the body.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), count) };
        count
    }

    /// Copies bytes in, starting at `at`; what does not fit is left out.
    pub fn write_at(&mut self, at: u64, from: &[u8]) {
        let left = usize::try_from(self.len().saturating_sub(at)).unwrap_or(usize::MAX);
        let count = from.len().min(left);
        let at = usize::try_from(at.min(self.len())).unwrap_or(0);
        // SAFETY: `at` is at most the length of the body.
        let to = unsafe { self.start_mut().add(at) };
        // SAFETY: at + count is at most the length of the body; `from` is memory of this process, apart from the body.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), count) };
    }

    /// A copy of all bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(self.len()).unwrap_or(0)];
        self.read_at(0, &mut all);
        all
    }

    /// Copies all that fits.
    pub fn copy_into(&self, to: &mut Self) {
        let length = usize::try_from(self.len().min(to.len())).unwrap_or(usize::MAX);
        // SAFETY: both have so many bytes, and two bodies never share memory.
        unsafe {
            core::ptr::copy_nonoverlapping(self.start().as_ptr(), to.start_mut().as_ptr(), length);
        }
    }

    /// A received message as a body.
    #[must_use]
    pub fn from_message(message: Message) -> Self {
        if message.block().is_some() {
            Self::Message(Box::new(message))
        } else {
            Self::Bytes(message.into_vec())
        }
    }
}

fn address(message: &Message) -> NonNull<u8> {
    // The address of a message's bytes is never null: it is that of a mapping or of an allocation.
    NonNull::new(message.bytes_ptr().cast_mut()).unwrap_or(NonNull::dangling())
}
