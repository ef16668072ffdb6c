//! Blocks of the pool.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use dragon_shmem::Member;

use crate::operations::channel::Nothing;
use crate::operations::{Act, Operation, Words, operation};
use crate::scratch;
use crate::survivor::Survivor;
use crate::tracer::Marker;

const SMALL: u64 = 100;
/// Two of these fill a slab.
const HALF: u64 = 32 << 10;
const EXTENT: u64 = 200_000;
/// Such blocks stay together when they are freed, for whoever wants the next; those of more than 4 MiB always.
const LONG: u64 = 600_000;
const LONGER: u64 = 5 << 20;
/// More different lengths than a pool remembers spare extents.
const LENGTHS: u64 = 16;
const PAGE: u64 = 64 << 10;

pub(super) const OPERATIONS: &[Operation] = &[
    operation("alloc-first", nothing, |m, _| allocates(m, SMALL, 0)),
    operation("alloc", nothing, |m, _| allocates(m, SMALL, 1)),
    operation("alloc-new-slab", nothing, |m, _| allocates(m, HALF, 2)),
    operation("alloc-extent", nothing, |m, _| allocates(m, EXTENT, 0)),
    operation("alloc-second-extent", nothing, |m, _| {
        allocates(m, EXTENT, 1)
    }),
    operation("alloc-collects-freed", lender, allocates_collected),
    Operation {
        pool: 4 << 20,
        ..operation("alloc-trims", nothing, allocates_trimming)
    },
    Operation {
        pool: 4 << 20,
        ..operation("alloc-fails", nothing, allocates_too_much)
    },
    operation("resize-shrink", nothing, |m, _| resizes(m, EXTENT, HALF)),
    operation("resize-grow", nothing, |m, _| {
        resizes(m, EXTENT, 2 * EXTENT)
    }),
    operation("free", nothing, |m, _| frees(m, SMALL, false)),
    operation("free-shared", finder, |m, _| frees(m, SMALL, true)),
    operation("free-extent", nothing, |m, _| frees(m, EXTENT, false)),
    operation("free-shared-extent", finder, |m, _| frees(m, EXTENT, true)),
    operation("free-others", |m| owner(m, SMALL), frees_others),
    operation("free-others-extent", |m| owner(m, EXTENT), frees_others),
    operation("free-held", |m| owner(m, SMALL), frees_held),
    operation("free-held-extent", |m| owner(m, EXTENT), frees_held),
    operation("alloc-spare", nothing, allocates_spare),
    operation("alloc-evicts-spare", nothing, allocates_evicting),
    Operation {
        pool: 4 << 20,
        ..operation("alloc-trims-spares", nothing, allocates_trimming_spares)
    },
    operation("free-spare", finder, |m, _| frees(m, LONG, true)),
    operation("free-longer", nothing, |m, _| frees(m, LONGER, false)),
    operation("free-others-spare", |m| owner(m, LONG), frees_others),
    operation("free-held-spare", |m| owner(m, LONG), frees_held),
    operation("share", finder, |m, _| shares(m, SMALL)),
    operation("share-extent", finder, |m, _| shares(m, EXTENT)),
];

fn nothing(_: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Nothing))
}

/// Frees the block that the victim shared, when it has not freed it itself.
struct Finder(Arc<Member>);

fn finder(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Finder(Arc::clone(member))))
}

impl Survivor for Finder {
    fn arm(&mut self) -> Result<Vec<String>> {
        scratch::put(0);
        Ok(Vec::new())
    }

    fn check(&mut self) -> Result<()> {
        let block = scratch::get();
        // Nobody else allocates meanwhile: what is at the place is the block, or nothing.
        if block != 0 && self.0.pool().block_room(block).is_ok() {
            ensure!(self.0.pool().is_shared(block)?, "a private block is left");
            self.0.free(block)?;
        }
        Ok(())
    }
}

/// Has a shared block that the victim frees, or dies before it.
struct Owner {
    member: Arc<Member>,
    length: u64,
    block: u64,
}

fn owner(member: &Arc<Member>, length: u64) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Owner {
        member: Arc::clone(member),
        length,
        block: 0,
    }))
}

impl Survivor for Owner {
    fn arm(&mut self) -> Result<Vec<String>> {
        self.block = self.member.alloc(self.length)?.offset;
        self.member.share(self.block)?;
        Ok(vec![self.block.to_string()])
    }

    fn check(&mut self) -> Result<()> {
        // Nobody else allocates meanwhile: what is at the place is the block, or nothing.
        if self.member.pool().block_room(self.block).is_ok() {
            self.member.free(self.block)?;
        }
        let block = self.member.alloc(self.length)?;
        Ok(self.member.free(block.offset)?)
    }
}

/// Frees blocks of the victim's slab when asked.
struct Lender {
    member: Arc<Member>,
    channel: dragon_channels::Channel,
}

fn lender(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    let options = dragon_channels::ChannelOptions::default();
    Ok(Box::new(Lender {
        member: Arc::clone(member),
        channel: dragon_channels::create_channel(member, &options)?,
    }))
}

impl Survivor for Lender {
    fn arm(&mut self) -> Result<Vec<String>> {
        Ok(vec![self.channel.descriptor().to_string()])
    }

    fn release(&mut self) -> Result<()> {
        // The blocks are freed with their messages.
        while self.channel.receive(dragon_channels::Deadline::Now).is_ok() {}
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.release()?;
        let block = self.member.alloc(HALF)?;
        Ok(self.member.free(block.offset)?)
    }
}

fn allocates(member: &Arc<Member>, length: u64, before: u32) -> Result<Act> {
    for _ in 0..before {
        member.alloc(length)?;
    }
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        member.alloc(length)?;
        Ok(())
    }))
}

fn allocates_collected(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = dragon_channels::Channel::attach(member, &words.descriptor(0)?, false)?;
    for _ in 0..2 {
        let block = member.alloc(HALF)?;
        channel.send_block(block, 0, dragon_channels::Deadline::Now)?;
    }
    drop(channel);
    Marker::Release.raise();
    allocates(member, HALF, 0)
}

/// The victim has an empty slab, and the pool has no other page left.
fn allocates_trimming(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let small = member.alloc(SMALL)?;
    let other = member.alloc(2 * SMALL)?;
    while member.try_alloc(HALF + 1)?.is_some() {}
    member.free(small.offset)?;
    member.free(other.offset)?;
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        member.alloc(HALF)?;
        Ok(())
    }))
}

/// Leaves a spare extent.
fn spares(member: &Member, length: u64) -> Result<()> {
    let block = member.alloc(length)?;
    member.share(block.offset)?;
    Ok(member.free(block.offset)?)
}

fn allocates_spare(member: &Arc<Member>, _: &Words) -> Result<Act> {
    spares(member, LONG)?;
    allocates(member, LONG, 0)
}

/// There is no place for another spare extent, and none has the right length.
fn allocates_evicting(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let mut blocks = Vec::new();
    for n in 0..LENGTHS {
        blocks.push(member.alloc(LONG + n * PAGE)?.offset);
    }
    for block in blocks {
        member.share(block)?;
        member.free(block)?;
    }
    allocates(member, LONG + LENGTHS * PAGE, 0)
}

/// The pool has no room but in spare extents.
fn allocates_trimming_spares(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let long = [member.alloc(LONG)?, member.alloc(2 * LONG)?];
    while member.try_alloc(EXTENT)?.is_some() {}
    for block in long {
        member.share(block.offset)?;
        member.free(block.offset)?;
    }
    allocates(member, EXTENT, 0)
}

fn allocates_too_much(member: &Arc<Member>, _: &Words) -> Result<Act> {
    while member.try_alloc(EXTENT)?.is_some() {}
    let member = Arc::clone(member);
    Ok(Box::new(move || match member.try_alloc(EXTENT)? {
        None => Ok(()),
        Some(_) => bail!("the pool was full"),
    }))
}

fn resizes(member: &Arc<Member>, from: u64, to: u64) -> Result<Act> {
    let block = member.alloc(from)?;
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        // It may not be able to grow; that is an answer too.
        let _ = member.resize(block.offset, to);
        Ok(())
    }))
}

fn frees(member: &Arc<Member>, length: u64, shared: bool) -> Result<Act> {
    member.alloc(length)?;
    let block = member.alloc(length)?;
    if shared {
        member.share(block.offset)?;
        scratch::put(block.offset);
    }
    let member = Arc::clone(member);
    Ok(Box::new(move || Ok(member.free(block.offset)?)))
}

fn frees_others(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (member, block) = (Arc::clone(member), words.number(0)?);
    Ok(Box::new(move || Ok(member.free(block)?)))
}

fn frees_held(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (member, block) = (Arc::clone(member), words.number(0)?);
    let place = member.hold_block(block)?;
    Ok(Box::new(move || Ok(member.free_held(place, block)?)))
}

fn shares(member: &Arc<Member>, length: u64) -> Result<Act> {
    let block = member.alloc(length)?;
    scratch::put(block.offset);
    ensure!(!member.pool().is_shared(block.offset)?, "shared already");
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        member.share(block.offset).context("share")?;
        Ok(())
    }))
}
