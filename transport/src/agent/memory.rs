//! What processes of other nodes do with pools and memory of this one: they allocate and free blocks, and copy to and from
//! them and memory.
//!
//! A block is held, by its address, in the held table of the process's proxy slot, and only that process can name it. So it is
//! freed when the process dies, and what it sends late reaches no memory that is another's by then.

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Code, ObjectKind, SlotId, wire};
use dragon_shmem::member::not_allocated;
use dragon_shmem::object::State;
use dragon_shmem::pool::table;
use dragon_shmem::{Error, Member, PoolTag, Result};

use super::local::{self, Outcome};
use super::owner::Job;
use crate::body::{Body, PoolBlock};
use crate::fabric::SMALL;

/// Does an operation on a pool or on a block of it; `None` when it is none. The payload is `small`, or else `body`, which is
/// taken.
pub(super) fn attempt(
    member: &Arc<Member>,
    job: &Job,
    on_behalf: SlotId,
    small: &[u8],
    body: &mut Body,
) -> Option<Outcome> {
    let of_pools = matches!(
        job.op,
        Op::BlockAllocate
            | Op::BlockFree
            | Op::BlockFill
            | Op::BlockHash
            | Op::CopyIn
            | Op::CopyOut
    ) || job.op == Op::Attributes
        && matches!(job.object.kind, ObjectKind::Pool | ObjectKind::Memory);
    if !of_pools {
        return None;
    }
    let body = core::mem::replace(body, Body::empty());
    let call = Call {
        member,
        job,
        on_behalf,
        small,
    };
    Some(match call.execute(&body) {
        Ok(([arg0, arg1], body)) => Outcome::Done(local::Done {
            arg0,
            arg1,
            body,
            ..local::Done::with(Code::Ok)
        }),
        Err(error) => {
            tracing::debug!(op = ?job.op, pool = %job.object, %error, "refused to another node's process");
            Outcome::Done(local::Done::with(error.code()))
        }
    })
}

struct Call<'a> {
    member: &'a Arc<Member>,
    job: &'a Job,
    on_behalf: SlotId,
    small: &'a [u8],
}

type Done = ([u64; 2], Body);

const DONE: Done = ([0, 0], Body::empty());

impl Call<'_> {
    fn execute(&self, body: &Body) -> Result<Done> {
        let &Self {
            member,
            job,
            on_behalf,
            ..
        } = self;
        let (address, at) = (job.arg0, job.arg1);
        match job.op {
            Op::BlockAllocate => self.allocate(job.arg0),
            Op::BlockFree => {
                self.is_held(address)?;
                member.free_block_for(on_behalf, address)?;
                Ok(DONE)
            }
            Op::BlockFill => {
                let [length, value] = self.words(body)?;
                self.is_held(address)?;
                member.fill(address, at, length, value.to_le_bytes()[0])?;
                Ok(DONE)
            }
            Op::BlockHash => {
                let [length] = self.words(body)?;
                self.is_held(address)?;
                let hash = member.hash(address, at, length)?;
                Ok(([0, 0], Body::Bytes(hash.to_vec())))
            }
            Op::CopyIn => {
                let length = match body {
                    body if body.is_empty() => self.small.len() as u64,
                    body => body.len(),
                };
                let address = self.place(address, at, length)?;
                match body {
                    Body::Block(block) => {
                        let came = block.block();
                        member.copy((came.offset, 0), (address, at), came.length)?;
                    }
                    body if body.is_empty() => member.write(address, at, self.small)?,
                    body => member.write(address, at, &body.to_vec())?,
                }
                Ok(DONE)
            }
            Op::CopyOut => {
                let [length] = self.words(body)?;
                let address = self.place(address, at, length)?;
                Ok(([0, 0], self.bytes(address, at, length)?))
            }
            _ if job.object.kind == ObjectKind::Memory => {
                Ok(([self.memory()?.1, 0], Body::empty()))
            }
            _ => self.attributes(),
        }
    }

    fn allocate(&self, length: u64) -> Result<Done> {
        let &Self {
            member,
            job,
            on_behalf,
            ..
        } = self;
        let (tag, pin) = member.pin_object(job.object)?;
        let held = member.alloc_in(tag, length).and_then(|block| {
            // It survives the daemon's own use of the pool, and goes with the process that asked.
            let held = member
                .share(block.offset)
                .and_then(|()| member.hold_block_for(on_behalf, block.offset));
            if held.is_err() {
                // It fails only on memory that was scribbled over.
                let _ = member.free(block.offset);
            }
            held.map(|()| block)
        });
        member.unpin(pin);
        let block = held?;
        Ok(([block.offset, block.length], Body::empty()))
    }

    /// Bytes of a block: large ones are sent from where they lie.
    fn bytes(&self, address: u64, at: u64, length: u64) -> Result<Body> {
        if length > wire::MAX_PAYLOAD {
            let what = "length of a copy between nodes";
            let value = length;
            return Err(Error::Corrupt { what, value });
        }
        if length > SMALL {
            return Ok(Body::Block(PoolBlock::lend(
                self.member,
                address,
                at,
                length,
            )?));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.member.read(address, at, &mut bytes)?;
        Ok(Body::Bytes(bytes))
    }

    /// Limit, committed and used bytes, blocks, then the name.
    fn attributes(&self) -> Result<Done> {
        let &Self { member, job, .. } = self;
        let entry = member.control().entry(job.object)?;
        if entry.read().0 != State::Alive {
            return Err(Error::Destroyed(job.object));
        }
        let bytes = member.with_pool(self.tag()?.address(0), |pool, _| {
            let stats = pool.stats()?;
            let words = [stats.limit, stats.committed, stats.used, stats.blocks];
            let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
            bytes.extend_from_slice(pool.label().name.as_bytes());
            Ok(bytes)
        })?;
        Ok(([0, 0], Body::Bytes(bytes)))
    }

    /// The tag of the pool that the request is for.
    fn tag(&self) -> Result<PoolTag> {
        let object = self.job.object;
        if object.kind != ObjectKind::Pool {
            return Err(Error::WrongKind(object));
        }
        let entry = self.member.control().entry(object)?;
        table::tag_of(entry).ok_or(Error::NoSuchObject(object))
    }

    /// The address of the block to copy to or from, where so many bytes may be copied.
    fn place(&self, address: u64, at: u64, length: u64) -> Result<u64> {
        if self.job.object.kind != ObjectKind::Memory {
            self.is_held(address)?;
            return Ok(address);
        }
        let (address, size) = self.memory()?;
        match at.checked_add(length) {
            Some(end) if end <= size => Ok(address),
            _ => Err(Error::Corrupt {
                what: "place in memory of another node",
                value: at,
            }),
        }
    }

    /// Address and length of the memory that the request is for. The process has a reference, which keeps it.
    fn memory(&self) -> Result<(u64, u64)> {
        let object = self.job.object;
        if !self.member.holds_for(self.on_behalf, object) {
            return Err(Error::NoSuchObject(object));
        }
        if self.member.control().entry(object)?.read().0 != State::Alive {
            return Err(Error::Destroyed(object));
        }
        self.member.memory(object)
    }

    /// Fails unless the address is that of a block of this pool which the process holds.
    fn is_held(&self, address: u64) -> Result<()> {
        let held = PoolTag::of(address) == self.tag()?
            && self.member.holds_block_for(self.on_behalf, address);
        if held {
            Ok(())
        } else {
            Err(not_allocated(address))
        }
    }

    /// The payload as numbers.
    fn words<const N: usize>(&self, body: &Body) -> Result<[u64; N]> {
        let bytes = if body.is_empty() {
            self.small.to_vec()
        } else {
            body.to_vec()
        };
        let (words, rest) = bytes.as_chunks::<8>();
        let words: Vec<u64> = words.iter().copied().map(u64::from_le_bytes).collect();
        let what = "length of the arguments of a request";
        let value = bytes.len() as u64;
        let corrupt = Error::Corrupt { what, value };
        match words.try_into() {
            Ok(words) if rest.is_empty() => Ok(words),
            _ => Err(corrupt),
        }
    }
}
