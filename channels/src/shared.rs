//! Memory that several processes share: a block with a number, a descriptor and a count of those who refer to it.
//!
//! Processes of its node have it mapped. Those of other nodes copy to and from it, in pieces of [`PIECE`] bytes.

use std::io::IoSlice;
use std::ptr::NonNull;
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectKind};
use dragon_shmem::pool::tag::PoolTag;
use dragon_shmem::{Deadline, Member};

use crate::error::{Error, Result};
use crate::object::{Handle, is_local};
use crate::pool::PIECE;
use crate::remote;

/// A handle on memory of this or another node. The memory is freed when the last handle of all processes is dropped.
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
    /// Where it lies, when that is on this node.
    here: Option<u64>,
    length: u64,
}

impl SharedMemory {
    /// Creates memory with contents, and with a number that no other memory of the pool has.
    ///
    /// # Errors
    /// When the number is taken, or there is no room.
    pub fn create(member: &Arc<Member>, pool: PoolTag, user: u64, contents: &[u8]) -> Result<Self> {
        let fill = |address| member.write(address, 0, contents);
        Self::create_with(member, pool, user, contents.len() as u64, fill)
    }

    /// As [`SharedMemory::create`], with `length` zeros.
    ///
    /// # Errors
    /// As [`SharedMemory::create`].
    pub fn create_zeroed(
        member: &Arc<Member>,
        pool: PoolTag,
        user: u64,
        length: u64,
    ) -> Result<Self> {
        let fill = |address| member.fill(address, 0, length, 0);
        Self::create_with(member, pool, user, length, fill)
    }

    fn create_with(
        member: &Arc<Member>,
        pool: PoolTag,
        user: u64,
        length: u64,
        fill: impl FnOnce(u64) -> dragon_shmem::Result<()>,
    ) -> Result<Self> {
        if member.is_forked() {
            return Err(Error::Forked);
        }
        let id = member.create_memory(pool, user, length, fill)?;
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
    /// As [`crate::Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let handle = Handle::attach(member, descriptor, ObjectKind::Memory, adopt)?;
        Self::of(handle)
    }

    fn of(handle: Handle) -> Result<Self> {
        if is_local(handle.member(), handle.id()) {
            let (address, length) = handle.member().memory(handle.id())?;
            return Ok(Self {
                handle,
                here: Some(address),
                length,
            });
        }
        let [length, _] = handle.call(Op::Attributes, [0, 0], Deadline::Never)?;
        Ok(Self {
            handle,
            here: None,
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

    /// Where its bytes lie, as long as this handle lives; `None` when that is on another node.
    ///
    /// # Errors
    /// In a forked child; when shared memory is corrupt.
    pub fn bytes(&self) -> Result<Option<NonNull<u8>>> {
        self.handle.local()?;
        let bytes = |address| Ok(self.handle.member().bytes(address, self.length)?);
        self.here.map(bytes).transpose()
    }

    /// Copies bytes out, from `at` on.
    ///
    /// # Errors
    /// When the memory is shorter; [`Error::Elsewhere`] tells how far it came on another node.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let length = bytes.len() as u64;
        self.within(at, length)?;
        self.handle.local()?;
        let (member, id) = (self.handle.member(), self.handle.id());
        if let Some(address) = self.here {
            return Ok(member.read(address, at, bytes)?);
        }
        let pieces = bytes.chunks_mut(usize::try_from(PIECE).unwrap_or(usize::MAX));
        let mut done = 0;
        for piece in pieces {
            let expected = piece.len() as u64;
            let came = remote::copy_out(member, id, [0, at + done], expected)
                .map_err(|error| error.elsewhere("reading", id, length, done))?;
            if came.len() as u64 != expected {
                return Err(dragon_shmem::Error::Corrupt {
                    what: "length of what another node sent",
                    value: came.len() as u64,
                }
                .into());
            }
            came.copy_to(0, piece);
            done += expected;
        }
        Ok(())
    }

    /// Copies bytes in, from `at` on.
    ///
    /// # Errors
    /// When the memory is shorter; [`Error::Elsewhere`] tells how far it came on another node.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        self.within(at, length)?;
        self.handle.local()?;
        let (member, id) = (self.handle.member(), self.handle.id());
        if let Some(address) = self.here {
            return Ok(member.write(address, at, bytes)?);
        }
        let mut done = 0;
        for piece in bytes.chunks(usize::try_from(PIECE).unwrap_or(usize::MAX)) {
            let parts = [IoSlice::new(piece)];
            let to = [0, at + done];
            remote::call_with(member, Op::CopyIn, id, to, &parts, Deadline::Never)
                .map_err(|error| error.elsewhere("writing", id, length, done))?;
            done += piece.len() as u64;
        }
        Ok(())
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
