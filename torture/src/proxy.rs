//! The death of a process of another node: the agent has done its operations here for it, in the name of a proxy slot.

use anyhow::{Result, bail, ensure};
use dragon_channels::{
    Attempt, ChannelOptions, Deadline, Lock, Payload, Waiting, attempt, create_channel,
};
use dragon_protocol::op::Op;
use dragon_protocol::{Code, NodeIndex, ObjectId, SlotId};

use crate::world::{World, recover};

/// What `--operation` calls it.
pub(crate) const NAME: &str = "proxy";

/// A process of another node attaches to a channel, sends and receives there, and takes a lock; then its node is gone.
pub(crate) fn check() -> Result<()> {
    let world = World::new(2, 32 << 20)?;
    let empty = world.counts()?;
    let member = world.member(world.control.claim_slot(std::process::id())?)?;
    let channel = create_channel(&member, &ChannelOptions::default())?;
    let lock = Lock::create(&member, 0)?;
    let start = world.counts()?;
    for round in 0..100 {
        let far = SlotId {
            index: 5,
            generation: round + 1,
        };
        let node = NodeIndex::new(2).unwrap_or(NodeIndex::FIRST);
        let proxy = world.control.claim_proxy(node, far)?;
        let act = |op, object: ObjectId, arguments, payload: Payload<'_>| -> Result<()> {
            match attempt(
                &world.daemon,
                op,
                object,
                proxy,
                arguments,
                payload,
                &mut Waiting::default(),
            ) {
                Attempt::Done {
                    status: Code::Ok, ..
                } => Ok(()),
                other => bail!("{op:?}: {other:?}"),
            }
        };
        act(Op::Attach, channel.id(), [0, 0], Payload::EMPTY)?;
        act(Op::Send, channel.id(), [7, 0], Payload::Inline(b"far"))?;
        if round % 2 == 0 {
            act(Op::Attach, lock.id(), [0, 0], Payload::EMPTY)?;
            act(Op::LockAcquire, lock.id(), [0, 0], Payload::EMPTY)?;
        }
        recover(&world, proxy)?;
        ensure!(
            channel.receive(Deadline::Now)?.into_vec() == b"far",
            "what it sent before is there"
        );
        let acquired = lock.acquire(Deadline::Now)?;
        ensure!(
            acquired.owner_died == (round % 2 == 0),
            "the next owner is told"
        );
        lock.release(false)?;
        let counts = world.counts()?;
        if let Some(leak) = counts.leak(&start) {
            bail!("round {round}: {leak}");
        }
    }
    let slot = member.slot();
    drop((channel, lock, member));
    recover(&world, slot)?;
    match world.counts()?.leak(&empty) {
        Some(leak) => bail!("at the end: {leak}"),
        None => Ok(()),
    }
}
