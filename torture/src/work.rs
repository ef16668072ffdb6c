//! How much recovery does: the instructions of `recover`, counted by single steps, are the same whatever else the pool holds.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use dragon_channels::{Channel, ChannelOptions, Deadline, Lock, create_channel};
use dragon_protocol::SlotId;
use dragon_shmem::Member;

use crate::tracer::{Marker, Stop, Victim};
use crate::watchdog;
use crate::world::World;

/// What `--operation` calls it.
pub(crate) const NAME: &str = "recovery-work";

const POOL: u64 = 256 << 20;
/// Allocations of others, for comparison with none.
const OTHERS: u64 = 100_000;

/// Compares recovery beside no other allocations with recovery beside 100 000.
pub(crate) fn check() -> Result<()> {
    watchdog::watch(NAME, 0);
    let alone = steps_of_recovery(0)?;
    let beside = steps_of_recovery(OTHERS)?;
    println!("{NAME}: {alone} instructions beside no other block, {beside} beside {OTHERS}");
    ensure!(
        alone == beside,
        "recovery executed {alone} instructions beside no other block, and {beside} beside {OTHERS}"
    );
    Ok(())
}

fn steps_of_recovery(others: u64) -> Result<u64> {
    let world = World::new(2, POOL)?;
    let other = world.member(world.control.claim_slot(std::process::id())?)?;
    let channel = create_channel(&other, &ChannelOptions::default())?;
    let lock = Lock::create(&other, 0)?;
    for n in 0..others {
        let block = other.alloc(64 + n % 1_000)?;
        if n % 2 == 0 {
            other.share(block.offset)?;
        }
    }
    let slot = world.control.claim_slot(0)?;
    let dead = Victim::fork(|| {
        let work = world
            .member(slot)
            .and_then(|member| work(&member, &channel, &lock));
        if let Err(error) = work {
            eprintln!("{NAME}: {error:#}");
        }
    })?;
    to_marker(&dead)?;
    drop(dead);
    let daemon = Victim::fork(|| {
        if let Err(error) = recover(&world, slot) {
            eprintln!("{NAME}: {error:#}");
        }
    })?;
    to_marker(&daemon)?;
    let mut count = 0;
    loop {
        match daemon.step()? {
            Stop::Step => count += 1,
            Stop::Marker(Marker::Edge) => return Ok(count),
            Stop::Signal(_) | Stop::Asleep => {}
            other => bail!("recovery ended with {other:?}"),
        }
    }
}

/// What the dead process leaves: blocks of all kinds, references, a lock, a claimed message.
fn work(member: &Arc<Member>, channel: &Channel, lock: &Lock) -> Result<()> {
    let channel = Channel::attach(member, &channel.descriptor(), false)?;
    let lock = Lock::attach(member, &lock.descriptor(), false)?;
    for n in 0..40 {
        member.alloc(100 << (n % 8))?;
    }
    for _ in 0..5 {
        member.alloc(100_000)?;
    }
    channel.send(&[1; 1_000], 0, Deadline::Now)?;
    let _message = channel.receive(Deadline::Now)?;
    lock.acquire(Deadline::Now)?;
    Marker::Edge.raise();
    Ok(())
}

fn recover(world: &World, slot: SlotId) -> Result<()> {
    let daemon = world.daemon_again()?;
    // What is loaded lazily is loaded now.
    Marker::Edge.raise();
    let recovered = dragon_channels::recover(&daemon, slot);
    Marker::Edge.raise();
    let recovered = recovered.context("recovery failed")?;
    ensure!(recovered.locks == 1, "{recovered:?}");
    Ok(())
}

fn to_marker(victim: &Victim) -> Result<()> {
    loop {
        match victim.run()? {
            Stop::Marker(Marker::Edge) => return Ok(()),
            Stop::Signal(_) => {}
            other => bail!("{NAME}: {other:?}"),
        }
    }
}
