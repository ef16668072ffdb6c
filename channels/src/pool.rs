//! Pools as objects: made by the daemon on request, named by descriptors, gone when nobody needs them.

mod block;

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, NodeIndex, ObjectId, ObjectKind, PoolOptions};
use dragon_shmem::pool::{Pool, Stats};
use dragon_shmem::{Block, Deadline, Member, Pin, PoolTag};

use crate::error::{Error, Result};
use crate::object::{Handle, is_local};
use crate::remote;

pub use block::{PIECE, PoolBlock};

/// A handle on a pool of any node.
///
/// What a process allocated in a pool and did not share goes with its last handle on it. The pool itself goes when nobody
/// has a handle on it, or a message in it, and it either was destroyed or holds no block: shared blocks outlive their makers.
///
/// ```
/// use dragon_channels::{PoolHandle, PoolOptions};
///
/// let node = dragon_channels::local::LocalNode::new()?;
/// let member = node.member()?;
/// let options = PoolOptions { limit: 64 << 20, name: "images".to_owned(), ..PoolOptions::default() };
/// let pool = PoolHandle::create(&member, &options)?;
/// let block = pool.alloc(1 << 20)?;
/// member.write(block.offset, 0, b"first bytes")?;
/// assert_eq!(pool.stats()?.blocks, 1);
///
/// // Any process of the node attaches by the descriptor, for example from an environment variable.
/// let text = pool.descriptor().to_string();
/// let same = PoolHandle::attach(&member, &text.parse().unwrap(), false)?;
/// assert_eq!(same.name(), "images");
/// # Ok::<(), dragon_channels::Error>(())
/// ```
pub struct PoolHandle {
    // Given back before the pin, which tells the daemon when it was the last one.
    handle: Arc<Handle>,
    /// When it lies on this node.
    here: Option<Here>,
}

/// A pool of this node.
struct Here {
    _pin: Pinned,
    tag: PoolTag,
}

/// The pool stays mapped as long as it lives.
struct Pinned {
    member: Arc<Member>,
    pin: ManuallyDrop<Pin>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A forked child has a copy of the handle, not of the use.
        if !self.member.is_forked() {
            // SAFETY: taken here once, and not used afterwards.
            let pin = unsafe { ManuallyDrop::take(&mut self.pin) };
            self.member.unpin(pin);
        }
    }
}

impl fmt::Debug for PoolHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolHandle")
            .field("id", &self.handle.id())
            .field("tag", &self.here.as_ref().map(|here| here.tag))
            .finish_non_exhaustive()
    }
}

impl PoolHandle {
    /// Asks the node's daemon for a new pool.
    ///
    /// # Errors
    /// When an option is out of its range, the node has as many pools as it can, or there is no memory.
    pub fn create(member: &Arc<Member>, options: &PoolOptions) -> Result<Self> {
        if member.is_forked() {
            return Err(Error::Forked);
        }
        let (tag, id, pin) = member.create_pool(options)?;
        let pin = Pinned {
            member: Arc::clone(member),
            pin: ManuallyDrop::new(pin),
        };
        let descriptor = Descriptor {
            runtime: member.control().runtime(),
            object: id,
            user: options.user,
        };
        let handle = Handle::attach(member, &descriptor, ObjectKind::Pool, false)?;
        Ok(Self {
            handle: Arc::new(handle),
            here: Some(Here { _pin: pin, tag }),
        })
    }

    /// Attaches to the pool that a descriptor names. `adopt`: take over the reference that was counted when the descriptor
    /// was exported.
    ///
    /// # Errors
    /// When the descriptor is of another runtime or kind, the pool was destroyed, or its node cannot be reached.
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let id = descriptor.object;
        let handle = Arc::new(Handle::attach(member, descriptor, ObjectKind::Pool, adopt)?);
        if !is_local(member, id) {
            return Ok(Self { handle, here: None });
        }
        let (tag, pin) = member.pin_object(id)?;
        let pin = Pinned {
            member: Arc::clone(member),
            pin: ManuallyDrop::new(pin),
        };
        let here = Some(Here { _pin: pin, tag });
        Ok(Self { handle, here })
    }

    /// What stands for the pool in the addresses of its blocks; for the operations of [`Member`] that take it.
    ///
    /// # Errors
    /// When it lies on another node.
    pub fn tag(&self) -> Result<PoolTag> {
        let here = self.here.as_ref().ok_or(Error::NotHere(self.id()))?;
        Ok(here.tag)
    }

    /// The node in whose memory it lies.
    #[must_use]
    pub fn node(&self) -> NodeIndex {
        self.id().node
    }

    /// Allocates a block, which is private to this process until it is sent, and freed when it is dropped. The pool may be
    /// of any node; what lies on another one is freed there when this process dies.
    ///
    /// # Errors
    /// When the pool or the job's memory limit leaves no room, the pool was destroyed, or its node cannot be reached.
    pub fn alloc_block(&self, length: u64) -> Result<PoolBlock> {
        if self.here.is_some() {
            PoolBlock::here(self.member(), self.alloc(length)?)
        } else {
            self.usable()?;
            PoolBlock::there(&self.handle, length)
        }
    }

    /// Allocates a block, which is private to this process until it is shared or sent. It is freed, written, read and
    /// shared by its address: see [`Member`].
    ///
    /// # Errors
    /// When the pool or the job's memory limit leaves no room, the pool was destroyed, or it lies on another node.
    pub fn alloc(&self, length: u64) -> Result<Block> {
        self.usable()?;
        Ok(self.member().alloc_in(self.tag()?, length)?)
    }

    /// As [`PoolHandle::alloc`], from the memory that is committed already; `None` when that has no room.
    ///
    /// # Errors
    /// As [`PoolHandle::alloc`].
    pub fn try_alloc(&self, length: u64) -> Result<Option<Block>> {
        self.usable()?;
        Ok(self.member().try_alloc_in(self.tag()?, length)?)
    }

    /// How full it is.
    ///
    /// # Errors
    /// When shared memory is corrupt, or the pool's node cannot be reached.
    pub fn stats(&self) -> Result<Stats> {
        match self.here {
            Some(_) => self.look(Pool::stats),
            None => Ok(self.ask()?.0),
        }
    }

    /// How full a pool of another node is, and its name.
    fn ask(&self) -> Result<(Stats, String)> {
        self.usable()?;
        let (member, id) = (self.member(), self.id());
        let arguments = [0, 0];
        let deadline = Deadline::Never;
        let (answer, _) =
            remote::call_for_message(member, Op::Attributes, id, arguments, deadline)?;
        let bytes = answer.into_vec();
        let (words, _) = bytes.as_chunks::<8>();
        let Some([limit, committed, used, blocks]) = words.first_chunk().copied() else {
            let what = "length of what another node says of a pool";
            let value = bytes.len() as u64;
            return Err(dragon_shmem::Error::Corrupt { what, value }.into());
        };
        let [limit, committed, used, blocks] =
            [limit, committed, used, blocks].map(u64::from_le_bytes);
        let stats = Stats {
            limit,
            committed,
            used,
            blocks,
        };
        Ok((stats, String::from_utf8_lossy(&bytes[32..]).into_owned()))
    }

    /// Its limit in bytes.
    ///
    /// # Errors
    /// In a forked child; when the pool's node cannot be reached.
    pub fn limit(&self) -> Result<u64> {
        match self.here {
            Some(_) => self.look(|pool| Ok(pool.limit())),
            None => Ok(self.ask()?.0.limit),
        }
    }

    /// The name that it was given; empty when its node cannot be reached.
    #[must_use]
    pub fn name(&self) -> String {
        match self.here {
            Some(_) => self.look(|pool| Ok(pool.label().name.into())),
            None => self.ask().map(|(_, name)| name),
        }
        .unwrap_or_default()
    }

    /// Bytes of this process's mapping that lie in huge pages: what was obtained of them, not what was asked for; 0 for a pool
    /// of another node. It takes the kernel's time.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn huge_bytes(&self) -> Result<u64> {
        match self.here {
            Some(_) => self.look(|pool| pool.data().huge_bytes()),
            None => Ok(0),
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Pool) -> dragon_shmem::Result<T>) -> Result<T> {
        self.usable()?;
        let address = self.tag()?.address(0);
        Ok(self.member().with_pool(address, |pool, _| look(pool))?)
    }

    fn usable(&self) -> Result<()> {
        self.handle.local().map(drop)
    }

    fn member(&self) -> &Arc<Member> {
        self.handle.member()
    }

    /// Ends the pool: nothing is allocated in it, and nobody attaches to it, from now on; who waits for memory in it gets
    /// [`dragon_shmem::Error::Destroyed`]. Blocks stay readable for those who have it; its memory goes with the last of them.
    ///
    /// # Errors
    /// When it is gone.
    pub fn destroy(&self) -> Result<()> {
        self.handle.destroy()?;
        if self.here.is_none() {
            return Ok(());
        }
        // If this process dies in between, recovery wakes them.
        self.look(|pool| {
            pool.wake_waiters();
            Ok(())
        })
    }

    /// The descriptor, to be put into a message: one reference is counted for it, which whoever attaches with `adopt` takes
    /// over.
    ///
    /// # Errors
    /// When the pool is gone.
    pub fn export(&self) -> Result<Descriptor> {
        self.handle.export()
    }

    /// The descriptor, for people and logs: it keeps nothing alive.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor {
        self.handle.descriptor()
    }

    /// The object.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.handle.id()
    }
}
