//! Blocks of pools of any node.
//!
//! One of this node is memory of this process. One of another node is reached through the agents: its owner's agent holds it
//! for this process, in the held table of the process's proxy slot there, so that it is freed when this process dies, and
//! nobody else can name it. What is copied goes in pieces of [`PIECE`] bytes, each a request of its own, so that a large copy
//! holds nobody up for long and takes a bounded amount of memory on the way.

use std::cmp::Ordering;
use std::fmt;
use std::io::IoSlice;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{NodeIndex, ObjectId};
use dragon_shmem::thread::ReplyPayload;
use dragon_shmem::{Block, Deadline, Member, Pin};

use crate::error::{Error, Result};
use crate::message::Message;
use crate::object::Handle;
use crate::remote;

/// Most bytes that one request between two nodes copies.
pub const PIECE: u64 = 4 << 20;

/// A block of a pool of any node, which belongs to this process until it is sent, and is freed when it is dropped.
///
/// ```
/// use dragon_channels::{PoolHandle, PoolOptions};
///
/// let node = dragon_channels::local::LocalNode::new()?;
/// let member = node.member()?;
/// let pool = PoolHandle::create(&member, &PoolOptions::default())?;
/// let mut first = pool.alloc_block(1 << 20)?;
/// let mut second = pool.alloc_block(1 << 20)?;
/// first.fill(0, 1 << 20, 7)?;
/// second.copy_from(0, &first, 0, 1 << 20)?;
/// assert_eq!(second.hash(0, 1 << 20)?, first.hash(0, 1 << 20)?);
/// # Ok::<(), dragon_channels::Error>(())
/// ```
pub struct PoolBlock(Place);

enum Place {
    Here {
        member: Arc<Member>,
        block: Block,
        start: NonNull<u8>,
        /// The pool stays mapped as long as the block is used.
        pin: ManuallyDrop<Pin>,
    },
    There(There),
}

// SAFETY: the pointer is to memory that only the owner of this value uses, mapped as long as the pin is held.
unsafe impl Send for PoolBlock {}
// SAFETY: shared access only reads.
unsafe impl Sync for PoolBlock {}

impl fmt::Debug for PoolBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Here { block, .. } => block.fmt(f),
            Place::There(there) => f
                .debug_struct("PoolBlock")
                .field("pool", &there.id())
                .field("length", &there.length)
                .finish_non_exhaustive(),
        }
    }
}

impl PoolBlock {
    /// A block that this process has just allocated on its node.
    pub(super) fn here(member: &Arc<Member>, block: Block) -> Result<Self> {
        let pin = member.pin(block.offset)?;
        let start = match member.bytes(block.offset, block.length) {
            Ok(start) => start,
            Err(error) => {
                member.unpin(pin);
                return Err(error.into());
            }
        };
        Ok(Self(Place::Here {
            member: Arc::clone(member),
            block,
            start,
            pin: ManuallyDrop::new(pin),
        }))
    }

    /// Allocates a block in a pool of another node.
    pub(super) fn there(pool: &Arc<Handle>, length: u64) -> Result<Self> {
        let failed = |error: Error| error.elsewhere("allocating", pool.id(), length, 0);
        let [address, length] = pool
            .call(Op::BlockAllocate, [length, 0], Deadline::Never)
            .map_err(failed)?;
        Ok(Self(Place::There(There {
            pool: Arc::clone(pool),
            address,
            length,
        })))
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.0 {
            Place::Here { block, .. } => block.length,
            Place::There(there) => there.length,
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The node in whose memory it lies.
    #[must_use]
    pub fn node(&self) -> NodeIndex {
        match &self.0 {
            Place::Here { member, .. } => member.control().node(),
            Place::There(there) => there.id().node,
        }
    }

    /// The block, when it lies on this node.
    #[must_use]
    pub fn local(&self) -> Option<Block> {
        match &self.0 {
            Place::Here { block, .. } => Some(*block),
            Place::There(_) => None,
        }
    }

    /// Where its bytes lie, as long as it lives; null when that is on another node.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.0 {
            Place::Here { start, .. } => start.as_ptr(),
            Place::There(_) => ptr::null_mut(),
        }
    }

    /// Copies bytes into it, from `at` on.
    ///
    /// # Errors
    /// When they do not fit; [`Error::Elsewhere`] tells how far it came on another node.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.within(at, bytes.len() as u64)?;
        match &self.0 {
            Place::Here { member, block, .. } => Ok(member.write(block.offset, at, bytes)?),
            Place::There(there) => there.write(at, bytes),
        }
    }

    /// Copies bytes out of it, from `at` on.
    ///
    /// # Errors
    /// When it is shorter; [`Error::Elsewhere`] tells how far it came on another node.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.within(at, bytes.len() as u64)?;
        match &self.0 {
            Place::Here { member, block, .. } => Ok(member.read(block.offset, at, bytes)?),
            Place::There(there) => {
                let length = bytes.len() as u64;
                there.pieces("reading", length, |done, piece| {
                    let message = there.fetch(at + done, piece)?;
                    let to = usize::try_from(done).unwrap_or(usize::MAX);
                    message.copy_to(0, bytes.get_mut(to..).unwrap_or_default());
                    Ok(())
                })
            }
        }
    }

    /// Copies `length` bytes of another block into this one. Each of them may lie on any node.
    ///
    /// # Errors
    /// When a block is shorter; [`Error::Elsewhere`] tells how far it came between two nodes.
    pub fn copy_from(&mut self, at: u64, from: &Self, from_at: u64, length: u64) -> Result<()> {
        self.within(at, length)?;
        from.within(from_at, length)?;
        match (&from.0, &self.0) {
            (Place::Here { member, block, .. }, Place::Here { block: into, .. }) => {
                let (from, to) = ((block.offset, from_at), (into.offset, at));
                Ok(member.copy(from, to, length)?)
            }
            (Place::Here { block, .. }, Place::There(there)) => {
                there.pieces("copying", length, |done, piece| {
                    there.put(at + done, block.offset, from_at + done, piece)
                })
            }
            (Place::There(there), Place::Here { member, block, .. }) => {
                there.pieces("copying", length, |done, piece| {
                    let message = there.fetch(from_at + done, piece)?;
                    match message.block() {
                        Some(came) => {
                            let to = (block.offset, at + done);
                            Ok(member.copy((came, 0), to, piece)?)
                        }
                        None => Ok(member.write(block.offset, at + done, &message.into_vec())?),
                    }
                })
            }
            (Place::There(there), Place::There(into)) => {
                into.pieces("copying", length, |done, piece| {
                    let message = there.fetch(from_at + done, piece)?;
                    into.put_message(at + done, message)
                })
            }
        }
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
        self.within(at, length)?;
        self.within(from_at, length)?;
        match &self.0 {
            Place::Here { member, block, .. } => {
                let (from, to) = ((block.offset, from_at), (block.offset, at));
                Ok(member.copy(from, to, length)?)
            }
            Place::There(there) => there.pieces("copying", length, |done, piece| {
                // Upwards from the end, so that nothing is written over before it was read.
                let done = if at > from_at {
                    length - done - piece
                } else {
                    done
                };
                let message = there.fetch(from_at + done, piece)?;
                there.put_message(at + done, message)
            }),
        }
    }

    /// Fills `length` bytes from `at` on with a value.
    ///
    /// # Errors
    /// When it is shorter, or its node cannot be reached.
    pub fn fill(&mut self, at: u64, length: u64, value: u8) -> Result<()> {
        self.within(at, length)?;
        match &self.0 {
            Place::Here { member, block, .. } => {
                Ok(member.fill(block.offset, at, length, value)?)
            }
            Place::There(there) => there.fill(at, length, value),
        }
    }

    /// The BLAKE3 hash of `length` bytes from `at` on, computed where they lie.
    ///
    /// # Errors
    /// When it is shorter, or its node cannot be reached.
    pub fn hash(&self, at: u64, length: u64) -> Result<[u8; 32]> {
        self.within(at, length)?;
        match &self.0 {
            Place::Here { member, block, .. } => Ok(member.hash(block.offset, at, length)?),
            Place::There(there) => there.hash(at, length),
        }
    }

    /// Compares `length` bytes with as many of another block, as [`Ord`] does for slices of bytes. What lies on another node
    /// is fetched, up to the first piece that differs.
    ///
    /// # Errors
    /// When a block is shorter, or a node cannot be reached.
    pub fn compare(&self, at: u64, other: &Self, other_at: u64, length: u64) -> Result<Ordering> {
        self.within(at, length)?;
        other.within(other_at, length)?;
        if let (Place::Here { member, block, .. }, Some(theirs)) = (&self.0, other.local()) {
            let (a, b) = ((block.offset, at), (theirs.offset, other_at));
            return Ok(member.compare(a, b, length)?);
        }
        let mut pieces = [Vec::new(), Vec::new()];
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(PIECE);
            let [a, b] = &mut pieces;
            for (bytes, block, at) in [(&mut *a, self, at), (&mut *b, other, other_at)] {
                bytes.resize(usize::try_from(piece).unwrap_or(0), 0);
                block.read(at + done, bytes)?;
            }
            match a.cmp(&b) {
                Ordering::Equal => done += piece,
                order => return Ok(order),
            }
        }
        Ok(Ordering::Equal)
    }

    /// Gives the block away by `send`, whoever gets it frees it; it comes back when that fails. A block of another node is
    /// brought here first, into the default pool: its owner frees it when the copy is sent.
    ///
    /// # Errors
    /// What `send` fails with; [`Error::Elsewhere`] when the owner of the bytes cannot be reached, or no memory for the copy.
    pub fn hand_over<E: From<Error>>(
        self: Box<Self>,
        send: impl FnOnce(Block) -> Result<(), E>,
    ) -> Result<(), (E, Box<Self>)> {
        let sent = match &self.0 {
            Place::Here { block, .. } => send(*block),
            Place::There(there) => match self.copy_here(there.member()) {
                Ok(near) => Box::new(near).hand_over(send).map_err(|(error, _)| error),
                Err(error) => Err(error.into()),
            },
        };
        match sent {
            Ok(()) => {
                // Of one that lay here only the pin was left to give back; the other goes with its copy.
                let _ = (*self).into_local();
                Ok(())
            }
            Err(error) => Err((error, self)),
        }
    }

    /// A copy in the default pool of this node.
    fn copy_here(&self, member: &Arc<Member>) -> Result<Self> {
        let length = self.len();
        let mut near = Self::here(member, member.alloc(length)?)?;
        near.copy_from(0, self, 0, length)?;
        Ok(near)
    }

    /// The block itself, to be sent. Whoever gets it frees it.
    ///
    /// # Errors
    /// The block comes back when it lies on another node: copy it to one of this node, and send that.
    pub fn into_local(self) -> Result<Block, Self> {
        let Some(block) = self.local() else {
            return Err(self);
        };
        let mut this = ManuallyDrop::new(self);
        if let Place::Here { member, pin, .. } = &mut this.0 {
            // SAFETY: `this` is never dropped, and its pin not used again.
            let pin = unsafe { ManuallyDrop::take(pin) };
            member.unpin(pin);
            // SAFETY: `this` is never used or dropped again, so the member is moved out exactly once.
            drop(unsafe { ptr::read(member) });
        }
        Ok(block)
    }

    fn within(&self, at: u64, length: u64) -> Result<()> {
        let most = self.len();
        match at.checked_add(length) {
            Some(end) if end <= most => Ok(()),
            end => Err(Error::InvalidArgument {
                what: "end of a range of bytes in a block",
                value: end.unwrap_or(u64::MAX),
                least: 0,
                most,
            }),
        }
    }
}

impl Drop for PoolBlock {
    fn drop(&mut self) {
        if let Place::Here {
            member, block, pin, ..
        } = &mut self.0
        {
            // A forked child has a copy of the handle, not of the block.
            if !member.is_forked() {
                // It fails only on memory that was scribbled over.
                let _ = member.free(block.offset);
                // SAFETY: taken here once, and not used afterwards.
                let pin = unsafe { ManuallyDrop::take(pin) };
                member.unpin(pin);
            }
        }
    }
}

/// A block of another node, which holds it for this process.
struct There {
    /// The pool stays as long as the block.
    pool: Arc<Handle>,
    address: u64,
    length: u64,
}

impl There {
    fn id(&self) -> ObjectId {
        self.pool.id()
    }

    fn member(&self) -> &Arc<Member> {
        self.pool.member()
    }

    /// Calls `copy` for one piece after the other, with what was done and how much is next.
    fn pieces(
        &self,
        what: &'static str,
        length: u64,
        mut copy: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(PIECE);
            let copied = copy(done, piece);
            copied.map_err(|error| error.elsewhere(what, self.id(), length, done))?;
            done += piece;
        }
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut left = bytes;
        self.pieces("writing", bytes.len() as u64, |done, piece| {
            let piece = usize::try_from(piece).unwrap_or(usize::MAX);
            let (now, rest) = left.split_at(piece.min(left.len()));
            left = rest;
            let (to, parts) = ([self.address, at + done], [IoSlice::new(now)]);
            self.call_with(Op::CopyIn, to, &parts).map(drop)
        })
    }

    /// Copies bytes of a block of this node, straight from where they lie.
    fn put(&self, at: u64, block: u64, block_at: u64, length: u64) -> Result<()> {
        let to = [self.address, at];
        remote::copy_in(self.member(), self.id(), to, (block, block_at), length)
    }

    fn put_message(&self, at: u64, message: Message) -> Result<()> {
        match message.block() {
            Some(block) => self.put(at, block, 0, message.len() as u64),
            None => self.write(at, &message.into_vec()),
        }
    }

    /// A copy of some bytes.
    fn fetch(&self, at: u64, length: u64) -> Result<Message> {
        let message = remote::copy_out(self.member(), self.id(), [self.address, at], length)?;
        if message.len() as u64 == length {
            Ok(message)
        } else {
            let what = "length of what another node sent";
            let value = message.len() as u64;
            Err(dragon_shmem::Error::Corrupt { what, value }.into())
        }
    }

    fn fill(&self, at: u64, length: u64, value: u8) -> Result<()> {
        let words = [length.to_le_bytes(), u64::from(value).to_le_bytes()];
        let parts = [IoSlice::new(words.as_flattened())];
        let filled = self.call_with(Op::BlockFill, [self.address, at], &parts);
        filled
            .map(drop)
            .map_err(|error| error.elsewhere("filling", self.id(), length, 0))
    }

    fn hash(&self, at: u64, length: u64) -> Result<[u8; 32]> {
        let failed = |error: Error| error.elsewhere("hashing", self.id(), length, 0);
        let parts = length.to_le_bytes();
        let parts = [IoSlice::new(&parts)];
        let payload = self
            .call_with(Op::BlockHash, [self.address, at], &parts)
            .map_err(failed)?;
        match payload {
            ReplyPayload::Inline(bytes) => bytes.try_into().map_err(|bytes: Vec<u8>| {
                let what = "length of a hash of another node";
                let value = bytes.len() as u64;
                dragon_shmem::Error::Corrupt { what, value }.into()
            }),
            ReplyPayload::Block { .. } => Err(dragon_shmem::Error::Corrupt {
                what: "length of a hash of another node",
                value: 0,
            }
            .into()),
        }
    }

    fn call_with(
        &self,
        op: Op,
        arguments: [u64; 2],
        parts: &[IoSlice<'_>],
    ) -> Result<ReplyPayload> {
        let (member, id) = (self.member(), self.id());
        let reply = remote::call_with(member, op, id, arguments, parts, Deadline::Never)?;
        Ok(reply.payload)
    }
}

impl Drop for There {
    fn drop(&mut self) {
        // A forked child has a copy of the handle, not of the block.
        if !self.member().is_forked() {
            // It fails when there is no agent any more: then the owner frees it with all that this process had there.
            let _ = remote::free_block(self.member(), self.id(), self.address);
        }
    }
}
