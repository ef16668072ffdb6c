//! Memory that processes share, as programs use it.

use std::ptr::NonNull;
use std::sync::Arc;

use dragon_channels as channels;
use dragon_protocol::Descriptor;
use dragon_shmem::{Member, PoolTag};

use crate::error::Result;
use crate::handle::{Handle, Object};
use crate::objects::{destroy, names};

impl Object for channels::SharedMemory {
    fn attach(member: &Arc<Member>, descriptor: Descriptor, adopt: bool) -> Result<Self> {
        Ok(Self::attach(member, &descriptor, adopt)?)
    }

    fn descriptor(&self) -> Descriptor {
        self.descriptor()
    }
}

destroy!(Memory);
names!(Memory, "memory");

/// Memory of a fixed length in a node's default pool. It lives until the last handle of all processes is dropped. Processes of
/// its node have it mapped; those of other nodes read and write it piece by piece, straight between the pools.
///
/// Nothing orders what several processes do with it: use a [`Lock`](crate::Lock) beside it.
///
/// ```no_run
/// use dragon::Memory;
///
/// let memory = Memory::create(7, b"a long table")?;
/// memory.write(2, b"wide")?;
/// // In any process of the runtime, which got the descriptor:
/// let same = Memory::attach(memory.descriptor(), false)?;
/// let mut bytes = [0; 4];
/// same.read(2, &mut bytes)?;
/// assert_eq!(&bytes, b"wide");
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Memory(Handle<channels::SharedMemory>);

impl Memory {
    /// Makes memory with contents on this node. `user`: a number of the caller's choice that no other memory of the node has,
    /// by which processes of the node find it.
    ///
    /// # Errors
    /// When the number is taken, or there is no room.
    pub fn create(user: u64, contents: &[u8]) -> Result<Self> {
        Handle::create(|member| {
            Ok(channels::SharedMemory::create(
                member,
                PoolTag::DEFAULT,
                user,
                contents,
            )?)
        })
        .map(Self)
    }

    /// As [`Memory::create`], with `length` zeros.
    ///
    /// # Errors
    /// As [`Memory::create`].
    pub fn create_zeroed(user: u64, length: u64) -> Result<Self> {
        Handle::create(|member| {
            Ok(channels::SharedMemory::create_zeroed(
                member,
                PoolTag::DEFAULT,
                user,
                length,
            )?)
        })
        .map(Self)
    }

    /// Bytes of the memory.
    ///
    /// # Errors
    /// In a forked child that cannot attach.
    pub fn length(&self) -> Result<u64> {
        Ok(self.0.get()?.len())
    }

    /// Where its bytes lie, as long as this handle lives; `None` when that is on another node. Others may write them at any
    /// time: use raw copies and atomics.
    ///
    /// # Errors
    /// In a forked child that cannot attach.
    pub fn bytes(&self) -> Result<Option<NonNull<u8>>> {
        Ok(self.0.get()?.bytes()?)
    }

    /// Copies bytes out, from `at` on.
    ///
    /// # Errors
    /// When the memory is shorter. When its node cannot be reached, the error says how far it came.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        Ok(self.0.get()?.read(at, bytes)?)
    }

    /// Copies bytes in, from `at` on.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.0.get()?.write(at, bytes)?)
    }
}
