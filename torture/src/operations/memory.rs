//! Memory that is found by a number.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use dragon_channels::{Error, SharedMemory};
use dragon_shmem::Member;
use dragon_shmem::pool::tag::PoolTag;

use crate::operations::{Act, Operation, Words, bytes_of, operation};
use crate::survivor::Survivor;
use crate::world::SECOND;

const DEFAULT: PoolTag = PoolTag::DEFAULT;
const NUMBER: u64 = 5;
const LENGTH: usize = 300;

pub(super) const OPERATIONS: &[Operation] = &[
    operation(
        "memory-create",
        |m| rig(m, DEFAULT, false),
        |m, _| creates(m, DEFAULT),
    ),
    operation(
        "memory-create-drop",
        |m| rig(m, DEFAULT, false),
        |m, _| creates_and_drops(m, DEFAULT),
    ),
    operation(
        "memory-create-taken",
        |m| rig(m, DEFAULT, true),
        |m, _| finds_it_taken(m, DEFAULT),
    ),
    operation(
        "memory-find",
        |m| rig(m, DEFAULT, true),
        |m, _| finds(m, DEFAULT),
    ),
    operation("memory-attach", |m| rig(m, DEFAULT, true), attaches),
    operation("memory-destroy", destroyed, destroys),
    operation(
        "memory-create-in-pool",
        |m| rig(m, SECOND, false),
        |m, _| creates(m, SECOND),
    ),
    operation(
        "memory-create-drop-in-pool",
        |m| rig(m, SECOND, false),
        |m, _| creates_and_drops(m, SECOND),
    ),
    operation(
        "memory-create-taken-in-pool",
        |m| rig(m, SECOND, true),
        |m, _| finds_it_taken(m, SECOND),
    ),
    operation(
        "memory-find-in-pool",
        |m| rig(m, SECOND, true),
        |m, _| finds(m, SECOND),
    ),
];

struct Rig {
    member: Arc<Member>,
    pool: PoolTag,
    /// The number is taken at the start.
    taken: bool,
    /// The victim destroys it.
    goes: bool,
    memory: Option<SharedMemory>,
}

fn rig(member: &Arc<Member>, pool: PoolTag, taken: bool) -> Result<Box<dyn Survivor>> {
    if pool != DEFAULT {
        // Never given back: its recovery does that.
        let _pin = std::mem::ManuallyDrop::new(member.pin(pool.address(0))?);
    }
    Ok(Box::new(Rig {
        member: Arc::clone(member),
        pool,
        taken,
        goes: false,
        memory: None,
    }))
}

fn destroyed(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        member: Arc::clone(member),
        pool: DEFAULT,
        taken: true,
        goes: true,
        memory: None,
    }))
}

impl Survivor for Rig {
    fn arm(&mut self) -> Result<Vec<String>> {
        if !self.taken {
            return Ok(Vec::new());
        }
        let memory = create(&self.member, self.pool)?;
        let words = vec![memory.descriptor().to_string()];
        self.memory = Some(memory);
        Ok(words)
    }

    fn check(&mut self) -> Result<()> {
        if let Some(memory) = self.memory.take() {
            is_whole(&memory)?;
            match SharedMemory::find(&self.member, self.pool, NUMBER) {
                Ok(found) => ensure!(found.id() == memory.id(), "another one is found"),
                Err(_) if self.goes => {}
                Err(error) => return Err(error).context("it is not found"),
            }
        }
        // With the last reference the number is free again, and found no more.
        if SharedMemory::find(&self.member, self.pool, NUMBER).is_ok() {
            bail!("memory is found that is nobody's");
        }
        let memory = create(&self.member, self.pool).context("the number is lost")?;
        is_whole(&memory)?;
        is_whole(&SharedMemory::find(&self.member, self.pool, NUMBER)?)
    }
}

fn create(member: &Arc<Member>, pool: PoolTag) -> Result<SharedMemory> {
    let contents = bytes_of(NUMBER, LENGTH);
    Ok(SharedMemory::create(member, pool, NUMBER, &contents)?)
}

fn is_whole(memory: &SharedMemory) -> Result<()> {
    let mut bytes = vec![0; LENGTH];
    memory.read(0, &mut bytes)?;
    ensure!(
        bytes == bytes_of(NUMBER, LENGTH),
        "the memory has other bytes than were written"
    );
    Ok(())
}

/// The victim uses the pool already, so the operation is not about entering it.
fn enter(member: &Arc<Member>, pool: PoolTag) -> Result<()> {
    if pool != DEFAULT {
        let _pin = std::mem::ManuallyDrop::new(member.pin(pool.address(0))?);
    }
    Ok(())
}

fn creates(member: &Arc<Member>, pool: PoolTag) -> Result<Act> {
    enter(member, pool)?;
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        Box::leak(Box::new(create(&member, pool)?));
        Ok(())
    }))
}

fn creates_and_drops(member: &Arc<Member>, pool: PoolTag) -> Result<Act> {
    enter(member, pool)?;
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        drop(create(&member, pool)?);
        Ok(())
    }))
}

fn finds_it_taken(member: &Arc<Member>, pool: PoolTag) -> Result<Act> {
    enter(member, pool)?;
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        let made = SharedMemory::create(&member, pool, NUMBER, &[1; LENGTH]);
        let taken = dragon_shmem::Error::AlreadyExists {
            pool: pool.number(),
            id: NUMBER,
        };
        ensure!(
            matches!(&made, Err(Error::Memory(error)) if *error == taken),
            "{made:?} in place of a number that is taken"
        );
        Ok(())
    }))
}

/// It enters the pool, where it is another one.
fn finds(member: &Arc<Member>, pool: PoolTag) -> Result<Act> {
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        let memory = SharedMemory::find(&member, pool, NUMBER)?;
        is_whole(&memory)?;
        Box::leak(Box::new(memory));
        Ok(())
    }))
}

fn attaches(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (member, descriptor) = (Arc::clone(member), words.descriptor(0)?);
    Ok(Box::new(move || {
        drop(SharedMemory::attach(&member, &descriptor, false)?);
        Ok(())
    }))
}

fn destroys(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let memory = SharedMemory::attach(member, &words.descriptor(0)?, false)?;
    let memory: &'static SharedMemory = Box::leak(Box::new(memory));
    Ok(Box::new(move || Ok(memory.destroy()?)))
}
