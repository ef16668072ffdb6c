//! Pools and blocks of shared memory, as programs use them.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;

use dragon_channels as channels;
use dragon_protocol::{Descriptor, PoolOptions};
use dragon_shmem::pool::Stats;
use dragon_shmem::{Block, Deadline, Member, Pin};

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

/// A pool of shared memory on this node, apart from the default one: with a limit, a name and a policy of its own.
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
    /// Bytes of this process's mapping that lie in huge pages.
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

    /// Allocates a block, which belongs to this process until it is sent.
    ///
    /// # Errors
    /// When the pool or the job's memory limit leaves no room, or the pool was destroyed.
    pub fn alloc(&self, length: u64) -> Result<PoolBlock> {
        let (pool, session) = self.0.get_with_session()?;
        let block = pool.alloc(length)?;
        PoolBlock::new(session, block)
    }

    /// How full it is. Counted page by page: for people, not for hot paths.
    ///
    /// # Errors
    /// When shared memory is corrupt.
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

/// A block of a pool that this process has for itself; freed when it is dropped.
pub struct PoolBlock {
    session: &'static Session,
    block: Block,
    start: NonNull<u8>,
    pin: ManuallyDrop<Pin>,
}

// SAFETY: the pointer is to memory that only the owner of this value uses, mapped as long as the pin is held.
unsafe impl Send for PoolBlock {}
// SAFETY: shared access only reads.
unsafe impl Sync for PoolBlock {}

impl fmt::Debug for PoolBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.block.fmt(f)
    }
}

impl PoolBlock {
    fn new(session: &'static Session, block: Block) -> Result<Self> {
        let member = session.member()?;
        let pinned = member.pin(block.offset).and_then(|pin| {
            match member.bytes(block.offset, block.length) {
                Ok(start) => Ok((pin, start)),
                Err(error) => {
                    member.unpin(pin);
                    Err(error)
                }
            }
        });
        let (pin, start) = pinned?;
        if let Err(error) = session.enter() {
            member.unpin(pin);
            return Err(error);
        }
        Ok(Self {
            session,
            block,
            start,
            pin: ManuallyDrop::new(pin),
        })
    }

    /// Bytes of the block.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.block.length
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.block.length == 0
    }

    /// Where its bytes lie, as long as it lives.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Where its bytes lie, to write to.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Copies bytes into it.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.within(at, bytes.len())?;
        Ok(self.session.member()?.write(self.block.offset, at, bytes)?)
    }

    /// Copies bytes out of it.
    ///
    /// # Errors
    /// When it is shorter.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.within(at, bytes.len())?;
        Ok(self.session.member()?.read(self.block.offset, at, bytes)?)
    }

    fn within(&self, at: u64, length: usize) -> Result<()> {
        let end = at.checked_add(length as u64);
        if end.is_some_and(|end| end <= self.block.length) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "{length} bytes at {at} do not lie inside a block of {} bytes",
            self.block.length
        )))
    }

    /// Sends the block without copying it: with success it is the receiver's, who frees it with the message.
    ///
    /// # Errors
    /// As [`Channel::send`]; the block comes back.
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
        if self.session.is_forked() {
            return Err((Error::Channels(channels::Error::Forked), self));
        }
        match send(self.block) {
            Ok(()) => {
                let mut sent = ManuallyDrop::new(self);
                sent.leave();
                Ok(())
            }
            Err(error) => Err((error, self)),
        }
    }

    /// The pool and the session are not used any more.
    fn leave(&mut self) {
        // SAFETY: called once, by the drop or instead of it; the pin is not used afterwards.
        let pin = unsafe { ManuallyDrop::take(&mut self.pin) };
        // The block keeps the process from leaving, so there is one.
        if let Ok(member) = self.session.member() {
            member.unpin(pin);
        }
        self.session.leave();
    }
}

impl Drop for PoolBlock {
    fn drop(&mut self) {
        // A forked child has a copy of the handle, not of the block.
        if !self.session.is_forked() {
            // It fails only on memory that was scribbled over.
            let _ = self
                .session
                .member()
                .and_then(|member| Ok(member.free(self.block.offset)?));
            self.leave();
        }
    }
}
