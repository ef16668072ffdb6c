//! Received messages.

use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr::NonNull;
use std::sync::Arc;

use dragon_shmem::copy::copy;
use dragon_shmem::{Error as MemoryError, Member, Pin};

use crate::cell::Spot;
use crate::error::Result;
use crate::ring::{Content, Plain, Ring, to_usize};

/// Inline messages up to this length are kept without an allocation. Not more: a message is moved a few times on its way to
/// the caller, and moving two hundred bytes costs as much as an allocation.
const SMALL: usize = 64;

/// A received message. One that came by reference lies in shared memory until it is dropped, which frees it.
pub struct Message {
    hint: u64,
    /// Few messages have one, and each of the others is smaller for that.
    trace: Option<Box<[u8; 16]>>,
    body: Body,
}

enum Body {
    /// Words, so that they are aligned: a message is moved word by word.
    Small {
        bytes: [MaybeUninit<u64>; SMALL / 8],
        length: u64,
    },
    Owned(Vec<u8>),
    Shared(Lease),
}

impl Message {
    /// The 64-bit hint that the sender gave.
    #[inline]
    #[must_use]
    pub fn hint(&self) -> u64 {
        self.hint
    }

    /// The trace id that the sender gave.
    #[must_use]
    pub fn trace(&self) -> Option<[u8; 16]> {
        self.trace.as_deref().copied()
    }

    pub(crate) fn set_trace(&mut self, trace: Option<[u8; 16]>) {
        self.trace = trace.map(Box::new);
    }

    /// Bytes of the message.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.body {
            Body::Small { length, .. } => to_usize(*length),
            Body::Owned(bytes) => bytes.len(),
            Body::Shared(lease) => lease.length,
        }
    }

    /// Whether the message has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the bytes lie, as long as the message lives. Bytes in shared memory can be changed by a process that misbehaves:
    /// copy them, or treat them as something that may change.
    #[inline]
    #[must_use]
    pub fn bytes_ptr(&self) -> *const u8 {
        match &self.body {
            Body::Small { bytes, .. } => bytes.as_ptr().cast(),
            Body::Owned(bytes) => bytes.as_ptr(),
            Body::Shared(lease) => lease.bytes.as_ptr(),
        }
    }

    /// The address of the block that holds the bytes, for messages that came by reference.
    #[must_use]
    pub fn block(&self) -> Option<u64> {
        match &self.body {
            Body::Shared(lease) => Some(lease.offset),
            _ => None,
        }
    }

    /// Copies bytes from `at` on into `to`; returns how many.
    pub fn copy_to(&self, at: usize, to: &mut [u8]) -> usize {
        let length = self.len().saturating_sub(at).min(to.len());
        if length != 0 {
            // SAFETY: `at` lies within the message.
            let from = unsafe { self.bytes_ptr().add(at) };
            // SAFETY: `length` more bytes do too; they are mapped and initialised as long as self lives; `to` is private
            // memory, so they do not overlap.
            unsafe { copy(from, to.as_mut_ptr(), length) };
        }
        length
    }

    /// The bytes in memory of the caller.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        if let Body::Owned(bytes) = self.body {
            return bytes;
        }
        // SAFETY: the bytes are mapped and initialised as long as self lives.
        unsafe { copy_of(self.bytes_ptr(), self.len()) }
    }

    /// A message in memory of this process.
    #[must_use]
    pub fn owned(hint: u64, bytes: Vec<u8>) -> Self {
        Self {
            hint,
            trace: None,
            body: Body::Owned(bytes),
        }
    }

    /// A message without bytes.
    #[inline]
    pub(crate) fn empty() -> Self {
        Self {
            hint: 0,
            trace: None,
            body: Body::Small {
                bytes: [MaybeUninit::uninit(); SMALL / 8],
                length: 0,
            },
        }
    }

    /// Copies an inline message out of its cell, in the place of what this was.
    #[inline]
    pub(crate) fn fill(&mut self, ring: &Ring, position: u64, content: &Content) {
        let room = to_usize(content.length);
        self.hint = content.hint;
        match &mut self.body {
            Body::Small { bytes, length } if room <= SMALL => {
                // SAFETY: the target is at least as long.
                unsafe { ring.copy_out(position, content, bytes.as_mut_ptr().cast()) };
                *length = content.length;
            }
            _ => self.fill_owned(ring, position, content),
        }
        // This may have been a message that another receiver got in the end.
        self.set_trace(ring.trace(position, content));
    }

    /// [`Message::fill`] for a plain one.
    #[inline]
    pub(crate) fn fill_plain(&mut self, ring: &Ring, spot: Spot, plain: Plain) {
        match &mut self.body {
            Body::Small { bytes, length } if to_usize(plain.length) <= SMALL => {
                // SAFETY: the target is at least as long.
                unsafe { ring.copy_plain(spot, plain, bytes.as_mut_ptr().cast()) };
                *length = plain.length;
                self.hint = plain.hint;
            }
            _ => self.fill(ring, spot.position, &plain.into()),
        }
    }

    fn fill_owned(&mut self, ring: &Ring, position: u64, content: &Content) {
        let length = to_usize(content.length);
        let mut bytes = Vec::with_capacity(length);
        // SAFETY: the target has room for them.
        unsafe { ring.copy_out(position, content, bytes.as_mut_ptr()) };
        // SAFETY: the first `length` bytes were just written.
        unsafe { bytes.set_len(length) };
        self.body = Body::Owned(bytes);
    }

    /// Takes over a shared block. Recorded in the held table, so that it is freed if this process dies; when that table is
    /// full, the message is copied. `release` is called when the place that named the block before may forget it: once or
    /// not at all.
    pub(crate) fn leased(
        member: &Arc<Member>,
        hint: u64,
        offset: u64,
        length: u64,
        release: impl FnOnce(),
    ) -> Result<Self> {
        let Ok(place) = member.hold_block(offset) else {
            let room = usize::try_from(length).unwrap_or(usize::MAX);
            member.check(offset, length)?;
            let mut copy = vec![0; room];
            member.read(offset, 0, &mut copy)?;
            member.free_then(offset, release)?;
            return Ok(Self::owned(hint, copy));
        };
        Self::held(member, hint, offset, length, place)
    }

    /// Takes over a shared block that the held table names at `place` already.
    pub(crate) fn held(
        member: &Arc<Member>,
        hint: u64,
        offset: u64,
        length: u64,
        place: u32,
    ) -> Result<Self> {
        // What was scribbled over is nobody's, and so is what lies in a pool that is gone. A pool that cannot be mapped for
        // now is still there: the block stays this process's, and goes with it.
        let pin = match member.pin(offset) {
            Ok(pin) => pin,
            Err(error @ (MemoryError::NoSuchPool(_) | MemoryError::NoSuchObject(_))) => {
                member.release_block(place);
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        let bytes = match member.bytes(offset, length) {
            Ok(bytes) => bytes,
            Err(error) => {
                member.release_block(place);
                member.unpin(pin);
                return Err(error.into());
            }
        };
        // It lies inside a mapping, so it fits an address.
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let lease = Lease {
            member: Arc::clone(member),
            offset,
            bytes,
            length,
            place,
            pin: ManuallyDrop::new(pin),
        };
        Ok(Self {
            hint,
            trace: None,
            body: Body::Shared(lease),
        })
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("hint", &self.hint)
            .field("length", &self.len())
            .field("block", &self.block())
            .finish()
    }
}

/// # Safety
/// `length` bytes at `from` are mapped.
unsafe fn copy_of(from: *const u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    // SAFETY: the caller vouches for the source; the target has room for them.
    unsafe { copy(from, bytes.as_mut_ptr(), length) };
    // SAFETY: the first `length` bytes were just written.
    unsafe { bytes.set_len(length) };
    bytes
}

/// A block that this process has taken over from the sender.
struct Lease {
    member: Arc<Member>,
    offset: u64,
    bytes: NonNull<u8>,
    length: usize,
    place: u32,
    /// The pool stays mapped as long as its bytes can be read.
    pin: ManuallyDrop<Pin>,
}

// SAFETY: the pointer is to shared memory that any thread may read.
unsafe impl Send for Lease {}
// SAFETY: as above.
unsafe impl Sync for Lease {}

impl Drop for Lease {
    fn drop(&mut self) {
        // A forked child has a copy of the handle, not of the lease.
        if !self.member.is_forked() {
            // It fails only on memory that was scribbled over; then there is nothing to free.
            let _ = self.member.free_held(self.place, self.offset);
            // SAFETY: taken here once, and not used afterwards.
            self.member
                .unpin(unsafe { ManuallyDrop::take(&mut self.pin) });
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::fixture::Node;
    use crate::ring::Label;

    #[test]
    fn no_trace_stays_of_a_message_that_another_received() {
        let node = Node::new();
        let member = node.member();
        let place = member.alloc(Ring::size(2, 64)).unwrap().offset;
        Ring::init(member.pool(), place, 2, 64, 0).unwrap();
        let ring = Ring::open(member.pool(), place).unwrap();
        let parts = [IoSlice::new(b"x")];
        for (position, trace) in [(0, Some([7; 16])), (1, None)] {
            let label = Label {
                hint: position,
                trace,
            };
            ring.write_inline(position, &label, &parts, 1);
        }
        let mut message = Message::empty();
        message.fill(&ring, 0, &ring.content(0));
        assert_eq!((message.hint(), message.trace()), (0, Some([7; 16])));
        message.fill(&ring, 1, &ring.content(1));
        assert_eq!((message.hint(), message.trace()), (1, None));
    }
}
