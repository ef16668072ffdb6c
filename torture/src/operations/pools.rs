//! A second pool of the node: entered, used and left, by processes that map it on the way.

use std::sync::Arc;

use anyhow::{Result, ensure};
use dragon_channels::{Channel, ChannelOptions, Deadline, create_channel};
use dragon_shmem::{Block, Member};

use crate::operations::{Act, Operation, Words, operation};
use crate::scratch;
use crate::survivor::Survivor;
use crate::world::SECOND;

const SMALL: u64 = 100;
const EXTENT: u64 = 200_000;

pub(super) const OPERATIONS: &[Operation] = &[
    operation("pool-enter", user, enters),
    operation("pool-alloc", user, |m, _| allocates(m, SMALL)),
    operation("pool-alloc-extent", user, |m, _| allocates(m, EXTENT)),
    operation("pool-leave", user, leaves),
    operation("pool-free-others", |m| owner(m, SMALL), frees_others),
    operation(
        "pool-free-others-extent",
        |m| owner(m, EXTENT),
        frees_others,
    ),
    operation("pool-send", line, sends),
    operation("pool-receive", |m| sender(m, SMALL), receives),
    operation("pool-receive-extent", |m| sender(m, EXTENT), receives),
];

/// Uses the pool for as long as it lives, and frees what the victim shared.
struct User(Arc<Member>);

fn user(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    // Never given back: its recovery does that.
    let _pin = std::mem::ManuallyDrop::new(member.pin(SECOND.address(0))?);
    Ok(Box::new(User(Arc::clone(member))))
}

impl Survivor for User {
    fn arm(&mut self) -> Result<Vec<String>> {
        scratch::put(0);
        Ok(Vec::new())
    }

    fn check(&mut self) -> Result<()> {
        let block = scratch::get();
        // Nobody else allocates meanwhile: what is at the place is the block, or nothing.
        if block != 0 && self.0.block_room(block).is_ok() {
            ensure!(self.0.is_shared(block)?, "a private block is left");
            self.0.free(block)?;
        }
        Ok(())
    }
}

/// Has a shared block that the victim frees, or dies before it.
struct Owner {
    user: Box<dyn Survivor>,
    member: Arc<Member>,
    length: u64,
}

fn owner(member: &Arc<Member>, length: u64) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Owner {
        user: user(member)?,
        member: Arc::clone(member),
        length,
    }))
}

impl Survivor for Owner {
    fn arm(&mut self) -> Result<Vec<String>> {
        let block = shared(&self.member, self.length)?.offset;
        scratch::put(block);
        Ok(vec![block.to_string()])
    }

    fn check(&mut self) -> Result<()> {
        self.user.check()
    }
}

fn shared(member: &Member, length: u64) -> Result<Block> {
    let block = member.alloc_in(SECOND, length)?;
    member.share(block.offset)?;
    Ok(block)
}

/// A channel through which blocks of the pool go.
struct Line {
    channel: Channel,
    member: Arc<Member>,
    /// What is sent before the victim comes; 0: nothing.
    length: u64,
}

fn line(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    sender(member, 0)
}

fn sender(member: &Arc<Member>, length: u64) -> Result<Box<dyn Survivor>> {
    user(member)?;
    Ok(Box::new(Line {
        channel: create_channel(member, &ChannelOptions::default())?,
        member: Arc::clone(member),
        length,
    }))
}

impl Survivor for Line {
    fn arm(&mut self) -> Result<Vec<String>> {
        if self.length != 0 {
            let block = self.member.alloc_in(SECOND, self.length)?;
            self.channel.send_block(block, 0, Deadline::Now)?;
        }
        Ok(vec![self.channel.descriptor().to_string()])
    }

    fn check(&mut self) -> Result<()> {
        // What the victim sent, or did not receive; freed with the message.
        while self.channel.receive(Deadline::Now).is_ok() {}
        Ok(())
    }
}

fn enters(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        let pin = member.pin(SECOND.address(0))?;
        member.unpin(pin);
        Ok(())
    }))
}

fn allocates(member: &Arc<Member>, length: u64) -> Result<Act> {
    let pin = member.pin(SECOND.address(0))?;
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        let block = member.alloc_in(SECOND, length)?;
        member.free(block.offset)?;
        member.alloc_in(SECOND, length)?;
        drop(pin);
        Ok(())
    }))
}

/// The victim has slabs, extents and a shared block in the pool, and leaves it.
fn leaves(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let pin = member.pin(SECOND.address(0))?;
    for length in [SMALL, EXTENT, 3 * SMALL, EXTENT] {
        member.alloc_in(SECOND, length)?;
    }
    scratch::put(shared(member, SMALL)?.offset);
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        member.unpin(pin);
        Ok(())
    }))
}

fn frees_others(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (member, block) = (Arc::clone(member), words.number(0)?);
    Ok(Box::new(move || Ok(member.free(block)?)))
}

fn sends(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = Channel::attach(member, &words.descriptor(0)?, false)?;
    let pin = member.pin(SECOND.address(0))?;
    let block = member.alloc_in(SECOND, SMALL)?;
    Ok(Box::new(move || {
        channel.send_block(block, 0, Deadline::Now)?;
        drop(pin);
        Ok(())
    }))
}

fn receives(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let channel = Channel::attach(member, &words.descriptor(0)?, false)?;
    Ok(Box::new(move || {
        drop(channel.receive(Deadline::Now)?);
        Ok(())
    }))
}
