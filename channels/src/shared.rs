//! Memory that several processes read: a block with a number, a descriptor and a count of those who refer to it.

use std::sync::Arc;

use dragon_protocol::{Descriptor, ObjectKind};
use dragon_shmem::Member;
use dragon_shmem::pool::tag::PoolTag;

use crate::error::{Error, Result};
use crate::object::Handle;

/// A handle on memory of this node. The memory is freed when the last handle of all processes is dropped.
///
/// Whoever creates it writes it before anybody else can see it. Later writes are seen by all; nothing orders them but what
/// the processes agree on.
///
/// ```
/// use dragon_channels::SharedMemory;
///
/// let node = dragon_channels::local::LocalNode::new()?;
/// let (writer, reader) = (node.member()?, node.member()?);
/// let made = SharedMemory::create(&writer, Default::default(), 7, b"a long table")?;
/// let found = SharedMemory::find(&reader, Default::default(), 7)?;
/// let mut bytes = [0; 4];
/// found.read(2, &mut bytes)?;
/// assert_eq!(&bytes, b"long");
/// # drop(made);
/// # Ok::<(), dragon_channels::Error>(())
/// ```
#[derive(Debug)]
pub struct SharedMemory {
    handle: Handle,
    address: u64,
    length: u64,
}

impl SharedMemory {
    /// Creates memory with contents, and with a number that no other memory of the pool has.
    ///
    /// # Errors
    /// When the number is taken, or there is no room.
    pub fn create(member: &Arc<Member>, pool: PoolTag, user: u64, contents: &[u8]) -> Result<Self> {
        if member.is_forked() {
            return Err(Error::Forked);
        }
        let fill = |address| member.write(address, 0, contents);
        let id = member.create_memory(pool, user, contents.len() as u64, fill)?;
        Self::of(Handle::created(member, id, user))
    }

    /// Finds memory of this node by its pool and its number.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(member: &Arc<Member>, pool: PoolTag, user: u64) -> Result<Self> {
        if member.is_forked() {
            return Err(Error::Forked);
        }
        let id = member.find_memory(pool, user)?;
        Self::of(Handle::created(member, id, user))
    }

    /// Attaches to the memory that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`]; [`Error::InvalidArgument`] for memory of another node, which cannot be mapped here.
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        if descriptor.object.node != member.control().node() {
            return Err(Error::InvalidArgument {
                what: "node of memory to attach to (only memory of the own node can be mapped)",
                value: descriptor.object.node.get().into(),
                least: member.control().node().get().into(),
                most: member.control().node().get().into(),
            });
        }
        Self::of(Handle::attach(
            member,
            descriptor,
            ObjectKind::Memory,
            adopt,
        )?)
    }

    fn of(handle: Handle) -> Result<Self> {
        let (address, length) = handle.member().memory(handle.id())?;
        Ok(Self {
            handle,
            address,
            length,
        })
    }

    /// Bytes of the memory.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The block's address, for [`Member::bytes`] and the like.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Copies bytes out, from `at` on.
    ///
    /// # Errors
    /// When the memory is shorter.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.within(at, bytes.len() as u64)?;
        Ok(self.handle.member().read(self.address, at, bytes)?)
    }

    /// Copies bytes in, from `at` on.
    ///
    /// # Errors
    /// When the memory is shorter.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.within(at, bytes.len() as u64)?;
        Ok(self.handle.member().write(self.address, at, bytes)?)
    }

    fn within(&self, at: u64, length: u64) -> Result<()> {
        match at.checked_add(length) {
            Some(end) if end <= self.length => Ok(()),
            _ => Err(Error::InvalidArgument {
                what: "end of the bytes in shared memory",
                value: at.saturating_add(length),
                least: 0,
                most: self.length,
            }),
        }
    }

    crate::object::common_methods!();
}
