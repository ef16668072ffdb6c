//! The operations that are tortured: for each what the survivor does, and what the victim does between its two markers.

mod alloc;
mod barrier;
mod batches;
mod channel;
mod elsewhere;
mod groups;
mod growth;
mod memory;
mod objects;
mod pools;
mod priority;
mod sets;
mod streams;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use dragon_channels::{Channel, Deadline, Message};
use dragon_protocol::Descriptor;
use dragon_shmem::Member;

use crate::survivor::{Maker, Survivor};

/// One row of the table.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    /// What to give to `--operation`.
    pub(crate) name: &'static str,
    /// The other process's part.
    pub(crate) survivor: Maker,
    /// Prepares the operation in the victim's process; what it returns is run between the markers.
    pub(crate) victim: fn(&Arc<Member>, &Words) -> Result<Act>,
    /// CPUs granted to the node: with one nobody spins.
    pub(crate) cpus: u32,
    /// Bytes of the pool.
    pub(crate) pool: u64,
}

/// What a victim does between its markers. What it owns is dropped in there too.
pub(crate) type Act = Box<dyn FnOnce() -> Result<()>>;

/// What a survivor tells a victim.
pub(crate) struct Words(pub(crate) Vec<String>);

impl Words {
    fn descriptor(&self, n: usize) -> Result<Descriptor> {
        let word = self.0.get(n).context("a word is missing")?;
        Ok(word.parse()?)
    }

    fn number(&self, n: usize) -> Result<u64> {
        Ok(self.0.get(n).context("a word is missing")?.parse()?)
    }
}

const POOL: u64 = 32 << 20;

/// An operation with the usual pool.
const fn operation(
    name: &'static str,
    survivor: fn(&Arc<Member>) -> Result<Box<dyn Survivor>>,
    victim: fn(&Arc<Member>, &Words) -> Result<Act>,
) -> Operation {
    Operation {
        name,
        survivor: Maker::Here(survivor),
        victim,
        cpus: 2,
        pool: POOL,
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Operation> {
    [
        channel::OPERATIONS,
        batches::OPERATIONS,
        growth::OPERATIONS,
        memory::OPERATIONS,
        objects::OPERATIONS,
        groups::OPERATIONS,
        barrier::OPERATIONS,
        priority::OPERATIONS,
        sets::OPERATIONS,
        streams::OPERATIONS,
        alloc::OPERATIONS,
        pools::OPERATIONS,
        elsewhere::OPERATIONS,
    ]
    .concat()
}

/// A survivor's wait: it ends well before the supervisor takes it for a hang. A thread that sleeps while the victim is stepped
/// waits without a deadline: how long that takes is the machine's business, and one that nobody wakes is a hang at the check.
fn soon() -> Deadline {
    Deadline::after(10_000_000_000)
}

/// Bytes of a message that travels by reference.
const LARGE: usize = 300;
/// Bytes of a message whose block is an extent of its own.
const HUGE: usize = 70_000;

/// The bytes of message `hint`.
pub(crate) fn bytes_of(hint: u64, length: usize) -> Vec<u8> {
    vec![hint.to_le_bytes()[0] ^ 0x5a; length]
}

fn send(channel: &Channel, hint: u64, length: usize) -> Result<()> {
    Ok(channel.send(&bytes_of(hint, length), hint, soon())?)
}

/// The hint of a message whose bytes are as they must be.
pub(crate) fn checked(message: Message) -> Result<u64> {
    let hint = message.hint();
    let length = message.len();
    ensure!(
        message.into_vec() == bytes_of(hint, length),
        "message {hint} of {length} bytes has other bytes than were sent"
    );
    Ok(hint)
}
