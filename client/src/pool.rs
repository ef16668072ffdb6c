//! Pools and blocks of shared memory, as programs use them.

use std::cmp::Ordering;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use dragon_channels as channels;
use dragon_protocol::{Descriptor, PoolOptions};
use dragon_shmem::pool::Stats;
use dragon_shmem::{Block, Deadline, Member};

use crate::error::{Error, Result};
use crate::handle::{Handle, Object};
use crate::objects::{Channel, names};
use crate::session::Session;

impl Object for channels::PoolHandle {
    fn attach(member: &Arc<Member>, descriptor: Descriptor, adopt: bool) -> Result<Self> {
        Ok(Self::attach(member, &descriptor, adopt)?)
    }

    fn descriptor(&self) -> Descriptor {
        self.descriptor()
    }
}

names!(Pool, "pool");

/// A pool of shared memory, apart from a node's default one: with a limit, a name and a policy of its own. It is made on this
/// node; processes of other nodes can attach to it, allocate in it, and copy to and from their blocks.
///
/// It goes when nobody has a handle on it, or a message in it, and it either was destroyed or holds no block.
///
/// ```no_run
/// use dragon::{Channel, ChannelOptions, Deadline, Pool, PoolOptions};
///
/// let options = PoolOptions { limit: 8 << 30, name: "images".to_owned(), ..PoolOptions::default() };
/// let pool = Pool::create(&options)?;
/// let mut block = pool.alloc(64 << 20)?;
/// block.write(0, b"first bytes")?;
/// let channel = Channel::create(&ChannelOptions::default())?;
/// // Without a copy: the block is the receiver's from here on.
/// block.send(&channel, 0, Deadline::Never).map_err(|(error, _)| error)?;
/// println!("attach with {}", pool.descriptor());
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Pool(Handle<channels::PoolHandle>);

/// How full a pool is, and what it obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// Its limit in bytes.
    pub limit: u64,
    /// Bytes that it has taken from the system.
    pub committed: u64,
    /// Bytes in allocated blocks.
    pub used: u64,
    /// Allocated blocks.
    pub blocks: u64,
    /// Bytes of this process's mapping that lie in huge pages; 0 for a pool of another node.
    pub huge: u64,
}

impl Pool {
    /// Asks this node's daemon for a pool.
    ///
    /// # Errors
    /// When an option is out of its range, the node has as many pools as it can, or there is no memory for what is to be
    /// touched at once.
    pub fn create(options: &PoolOptions) -> Result<Self> {
        let make = |member: &Arc<Member>| Ok(channels::PoolHandle::create(member, options)?);
        Handle::create(make).map(Self)
    }

    /// Ends the pool: nothing is allocated in it, and nobody attaches to it, from now on. Its memory goes with the last
    /// process that uses it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn destroy(&self) -> Result<()> {
        Ok(self.0.get()?.destroy()?)
    }

    /// Allocates a block, which belongs to this process until it is sent, wherever the pool lies.
    ///
    /// # Errors
    /// When the pool or the job's memory limit leaves no room, the pool was destroyed, or its node cannot be reached.
    pub fn alloc(&self, length: u64) -> Result<PoolBlock> {
        let (pool, session) = self.0.get_with_session()?;
        PoolBlock::new(session, pool.alloc_block(length)?)
    }

    /// How full it is. Counted page by page: for people, not for hot paths.
    ///
    /// # Errors
    /// When shared memory is corrupt, or the pool's node cannot be reached.
    pub fn stats(&self) -> Result<PoolStats> {
        let pool = self.0.get()?;
        let Stats {
            limit,
            committed,
            used,
            blocks,
            ..
        } = pool.stats()?;
        Ok(PoolStats {
            limit,
            committed,
            used,
            blocks,
            huge: pool.huge_bytes()?,
        })
    }

    /// The name that it was given.
    ///
    /// # Errors
    /// In a forked child whose runtime is gone.
    pub fn name(&self) -> Result<String> {
        Ok(self.0.get()?.name())
    }
}

impl Session {
    /// Gives memory that no pool of this node uses back to the system; returns how many bytes. The daemon does so by itself
    /// before it refuses memory for want of it.
    ///
    /// # Errors
    /// When the runtime has ended.
    pub fn trim_pools(&self) -> Result<u64> {
        self.enter()?;
        let trimmed = self.member().and_then(|member| Ok(member.hooks().trim()?));
        self.leave();
        trimmed
    }
}

/// A block of a pool of any node that this process has for itself; freed when it is dropped, and when the process dies.
///
/// One of this node is memory of this process. What lies on another node is copied to and from, piece by piece and straight
/// between the pools:
///
/// ```no_run
/// use dragon::{Pool, PoolOptions};
///
/// // The descriptor of a pool that a process of another node made.
/// let there = Pool::attach(std::env::args().nth(1).unwrap().parse()?, false)?;
/// let here = Pool::create(&PoolOptions::default())?;
/// let mut image = here.alloc(64 << 20)?;
/// image.fill(0, image.len(), 0xff)?;
///
/// let mut copy = there.alloc(image.len())?;
/// copy.copy_from(0, &image, 0, image.len())?;
/// assert_eq!(copy.hash(0, copy.len())?, image.hash(0, image.len())?);
/// let mut first = [0; 16];
/// copy.read(0, &mut first)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PoolBlock {
    session: &'static Session,
    /// In a box: it comes back with an error when it cannot be sent.
    block: ManuallyDrop<Box<channels::PoolBlock>>,
}

impl fmt::Debug for PoolBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self.block, f)
    }
}

impl PoolBlock {
    fn new(session: &'static Session, block: channels::PoolBlock) -> Result<Self> {
        session.enter()?;
        Ok(Self {
            session,
            block: ManuallyDrop::new(Box::new(block)),
        })
    }

    /// Bytes of the block.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.block.len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }

    /// The node in whose memory it lies.
    #[must_use]
    pub fn node(&self) -> u32 {
        self.block.node().get()
    }

    /// Where its bytes lie, as long as it lives; null when that is on another node.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.block.as_ptr()
    }

    /// Where its bytes lie, to write to; null when that is on another node.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.block.as_ptr()
    }

    /// Copies bytes into it.
    ///
    /// # Errors
    /// When they do not fit. When its node cannot be reached, or has no memory, the error says how far it came.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.usable()?;
        Ok(self.block.write(at, bytes)?)
    }

    /// Copies bytes out of it.
    ///
    /// # Errors
    /// When it is shorter, and as [`PoolBlock::write`].
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.usable()?;
        Ok(self.block.read(at, bytes)?)
    }

    /// Copies `length` bytes of another block into this one. Each of them may lie on any node.
    ///
    /// # Errors
    /// When a block is shorter, and as [`PoolBlock::write`].
    pub fn copy_from(&mut self, at: u64, from: &Self, from_at: u64, length: u64) -> Result<()> {
        self.usable()?;
        from.usable()?;
        Ok(self.block.copy_from(at, &from.block, from_at, length)?)
    }

    /// Copies `length` bytes of this block into another one: [`PoolBlock::copy_from`] from the other side.
    ///
    /// # Errors
    /// As [`PoolBlock::copy_from`].
    pub fn copy_to(&self, at: u64, to: &mut Self, to_at: u64, length: u64) -> Result<()> {
        to.copy_from(to_at, self, at, length)
    }

    /// Copies `length` bytes to another place of the same block; the places may overlap.
    ///
    /// # Errors
    /// As [`PoolBlock::copy_from`].
    pub fn copy_within(&mut self, at: u64, from_at: u64, length: u64) -> Result<()> {
        self.usable()?;
        Ok(self.block.copy_within(at, from_at, length)?)
    }

    /// Fills `length` bytes from `at` on with a value.
    ///
    /// # Errors
    /// When it is shorter, or its node cannot be reached.
    pub fn fill(&mut self, at: u64, length: u64, value: u8) -> Result<()> {
        self.usable()?;
        Ok(self.block.fill(at, length, value)?)
    }

    /// The BLAKE3 hash of `length` bytes from `at` on, computed where they lie.
    ///
    /// # Errors
    /// When it is shorter, or its node cannot be reached.
    pub fn hash(&self, at: u64, length: u64) -> Result<[u8; 32]> {
        self.usable()?;
        Ok(self.block.hash(at, length)?)
    }

    /// Compares `length` bytes with as many of another block, as [`Ord`] does for slices of bytes. What lies on another node
    /// is fetched, up to the first piece that differs.
    ///
    /// # Errors
    /// When a block is shorter, or a node cannot be reached.
    pub fn compare(&self, at: u64, other: &Self, other_at: u64, length: u64) -> Result<Ordering> {
        self.usable()?;
        other.usable()?;
        Ok(self.block.compare(at, &other.block, other_at, length)?)
    }

    /// Sends the block without copying it: with success it is the receiver's, who frees it with the message. A block of
    /// another node is fetched first, however long that takes, and freed there when it is sent; so it can go to a channel of
    /// any node.
    ///
    /// # Errors
    /// As [`Channel::send`]; the block comes back. An error of a block of another node says how far it was fetched.
    pub fn send(
        self,
        channel: &Channel,
        hint: u64,
        deadline: Deadline,
    ) -> Result<(), (Error, Self)> {
        let send = |block| Ok(channel.below()?.0.send_block(block, hint, deadline)?);
        self.hand_over(send)
    }

    /// Gives the block away by `send`; it comes back when that fails.
    pub(crate) fn hand_over(
        self,
        send: impl FnOnce(Block) -> Result<()>,
    ) -> Result<(), (Error, Self)> {
        if let Err(error) = self.usable() {
            return Err((error, self));
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: taken here once; a block that comes back takes its place before it is used or dropped.
        let block = unsafe { ManuallyDrop::take(&mut this.block) };
        match block.hand_over(send) {
            Ok(()) => {
                // It is the receiver's: only this process's use of its pool ends.
                this.session.leave();
                Ok(())
            }
            Err((error, block)) => {
                this.block = ManuallyDrop::new(block);
                Err((error, ManuallyDrop::into_inner(this)))
            }
        }
    }

    /// Fails in a forked child, which has a copy of the handle, not of the block.
    fn usable(&self) -> Result<()> {
        if self.session.is_forked() {
            Err(Error::Channels(channels::Error::Forked))
        } else {
            Ok(())
        }
    }
}

impl Drop for PoolBlock {
    fn drop(&mut self) {
        if !self.session.is_forked() {
            // SAFETY: dropped here once, and not used afterwards. Before the session's count, which keeps the slot ours.
            unsafe { ManuallyDrop::drop(&mut self.block) };
            self.session.leave();
        }
    }
}
