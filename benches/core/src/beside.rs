//! What is compared, by the same two processes in slices of about a millisecond in turn: where processors share caches more or
//! less from one moment to the next, as those of virtual machines do, only neighbouring slices can be compared.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use dragon_channels::{Channel, ChannelOptions, Deadline, create_channel};
use dragon_raw::memory::{Children, Shared};
use dragon_raw::ring::{Ring, turn};
use dragon_raw::{Page, Turns, cores, pin, sleep, spin};
use dragon_shmem::Member;

use crate::node::Node;

/// Unit; values of each thing that is compared, first ours, then the least that the machine allows; note.
pub(crate) type Columns = (&'static str, Vec<Vec<f64>>, String);

pub(crate) const NEVER: Deadline = Deadline::Never;

/// A message of 8 bytes there and one back, both spinning, beside a word there and one back.
pub(crate) fn spinning() -> Result<Columns> {
    let shape = Shape {
        rounds: 2_000,
        slices: 200,
        same_core: false,
        symmetric: true,
    };
    let step = |turns: &Turns, first, turn| {
        Ok(if first {
            spin::ask(turns, turn)
        } else {
            spin::answer(turns, turn)
        })
    };
    one_way(shape, 2, step, "8 B one way, spinning")
}

/// As [`spinning`], with both asleep in a futex until it is their turn.
pub(crate) fn sleeping(same_core: bool) -> Result<Columns> {
    let shape = Shape {
        rounds: 200,
        slices: 80,
        same_core,
        symmetric: true,
    };
    let step = |turns: &Turns, first, turn| {
        if first {
            sleep::ask(turns, turn)
        } else {
            sleep::answer(turns, turn)
        }
    };
    one_way(shape, 1, step, "8 B one way, sleeping")
}

fn one_way(
    shape: Shape,
    cpus: u32,
    step: impl Fn(&Turns, bool, u32) -> Result<u32>,
    what: &str,
) -> Result<Columns> {
    let page = Page::create()?;
    let turns = page.turns();
    let ours = |ends: &Ends, first: bool| -> Result<()> {
        let (ping, pong) = (&ends.there, &ends.back);
        let mut bytes = [7_u8; 8];
        for round in 0..shape.rounds {
            if first {
                ping.send(&bytes, round.into(), NEVER)?;
                let answer = pong.receive_into(&mut bytes, NEVER)?;
                ensure!(answer.hint == u64::from(round), "not the answer");
            } else {
                let message = ping.receive_into(&mut bytes, NEVER)?;
                pong.send(&bytes, message.hint, NEVER)?;
            }
        }
        Ok(())
    };
    let turn = Cell::new(0);
    let raw = |_: &Ends, first: bool| {
        for _ in 0..shape.rounds {
            turn.set(step(turns, first, turn.get())?);
        }
        Ok(())
    };
    let times = slices(shape, cpus, &[&ours, &raw])?;
    let one_way = |time: f64| time * 1e6 / f64::from(shape.rounds) / 2.0;
    Ok(("us", each(times, one_way), how(what, shape)?))
}

/// Messages of 64 bytes from one process to the other.
pub(crate) fn rate() -> Result<Columns> {
    let shape = Shape {
        rounds: 20_000,
        slices: 200,
        same_core: false,
        symmetric: false,
    };
    let ring = Ring::new()?;
    let ours = |ends: &Ends, first: bool| -> Result<()> {
        let mut bytes = [7_u8; 64];
        for round in 0..shape.rounds {
            if first {
                ends.there.send(&bytes, round.into(), NEVER)?;
            } else {
                ends.there.receive_into(&mut bytes, NEVER)?;
            }
        }
        Ok(())
    };
    let raw = |_: &Ends, first: bool| {
        let mut payload = [7_u8; 64];
        for _ in 0..shape.rounds {
            if first {
                ring.send(&payload);
            } else {
                ring.receive(&mut payload);
            }
        }
        Ok(())
    };
    let times = slices(shape, 2, &[&ours, &raw])?;
    let rate = |time: f64| f64::from(shape.rounds) / time / 1e6;
    let note = how("64 B, one sender, one receiver", shape)?;
    Ok(("M/s", each(times, rate), note))
}

/// Blocks of each of these lengths. The sender allocates a block and sends it, the receiver sees its length and frees it.
pub(crate) fn handover(lengths: &[usize]) -> Result<Columns> {
    let shape = Shape {
        rounds: 2_000,
        slices: 200,
        same_core: false,
        symmetric: false,
    };
    let of = |bytes: usize| {
        move |ends: &Ends, first: bool| {
            for round in 0..shape.rounds {
                if first {
                    let block = ends.member.alloc(bytes as u64)?;
                    ends.few.send_block(block, round.into(), NEVER)?;
                } else {
                    let message = ends.few.receive(NEVER)?;
                    ensure!(message.len() == bytes, "{} bytes came", message.len());
                }
            }
            Ok(())
        }
    };
    let tasks: Vec<_> = lengths.iter().map(|bytes| of(*bytes)).collect();
    let tasks: Vec<Task<'_>> = tasks.iter().map(|task| task as Task<'_>).collect();
    let times = slices(shape, 2, &tasks)?;
    let each_block = |time: f64| time * 1e6 / f64::from(shape.rounds);
    let note = how("hand-over, adaptive waits", shape)?;
    Ok(("us", each(times, each_block), note))
}

/// How slices are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Messages of a slice.
    pub(crate) rounds: u32,
    pub(crate) slices: usize,
    pub(crate) same_core: bool,
    /// Both processes end at once; otherwise the second one's times count.
    pub(crate) symmetric: bool,
}

pub(crate) fn how(what: &str, shape: Shape) -> Result<String> {
    let (first, second) = cores(shape.same_core)?;
    Ok(format!(
        "{what}, slices in turn, pinned to cores {first} and {second}"
    ))
}

/// What a process of the two works with.
pub(crate) struct Ends {
    member: Arc<Member>,
    there: Channel,
    back: Channel,
    /// A channel of few messages, so that few large blocks are under way.
    pub(crate) few: Channel,
    /// A channel of two messages.
    pub(crate) two: Channel,
}

/// What is done in a slice, by the first process and by the second.
pub(crate) type Task<'a> = &'a dyn Fn(&Ends, bool) -> Result<()>;

/// Seconds of each slice of each task.
pub(crate) fn slices(shape: Shape, cpus: u32, tasks: &[Task<'_>]) -> Result<Vec<Vec<f64>>> {
    let node = Node::new(1 << 30, cpus)?;
    let member = node.member(node.slot()?)?;
    let create = |capacity| {
        let options = ChannelOptions {
            capacity,
            ..ChannelOptions::default()
        };
        create_channel(&member, &options)
    };
    let usual = ChannelOptions::default().capacity;
    let channels = [create(usual)?, create(usual)?, create(4)?, create(2)?];
    let descriptors = channels.each_ref().map(Channel::descriptor);
    let (one, two) = cores(shape.same_core)?;
    let words = Shared::new(tasks.len() * shape.slices * 8)?;
    let arrived = Page::create()?;
    let mut children = Children::default();
    for first in [true, false] {
        let slot = node.slot()?;
        children.fork(|| {
            pin(if first { one } else { two })?;
            let member = node.member(slot)?;
            let attach = |n: usize| Channel::attach(&member, &descriptors[n], false);
            let ends = Ends {
                there: attach(0)?,
                back: attach(1)?,
                few: attach(2)?,
                two: attach(3)?,
                member: Arc::clone(&member),
            };
            for place in 0..tasks.len() * shape.slices {
                if !shape.symmetric {
                    meet(&arrived.turns().ping.0, place)?;
                }
                let start = Instant::now();
                tasks[place % tasks.len()](&ends, first)?;
                let time = u64::try_from(start.elapsed().as_nanos())?;
                if first == shape.symmetric {
                    words.word(place).store(time, Ordering::SeqCst);
                }
            }
            Ok(())
        })?;
    }
    children.join()?;
    let time = |place: usize| words.word(place).load(Ordering::SeqCst) as f64 / 1e9;
    let of = |task: usize| {
        let slices = warm(shape.slices);
        slices
            .map(|slice| time(slice * tasks.len() + task))
            .collect()
    };
    Ok((0..tasks.len()).map(of).collect())
}

/// Both begin a slice at once: otherwise the first process would be ahead by what was under way at the end of the one before.
fn meet(arrived: &AtomicU32, place: usize) -> Result<()> {
    let all = 2 * (u32::try_from(place)? + 1);
    arrived.fetch_add(1, Ordering::AcqRel);
    while arrived.load(Ordering::Acquire) < all {
        turn();
    }
    Ok(())
}

/// The slices that count: the first ones warm up.
pub(crate) fn warm(slices: usize) -> Range<usize> {
    slices / 10..slices
}

pub(crate) fn each(times: Vec<Vec<f64>>, value: impl Fn(f64) -> f64 + Copy) -> Vec<Vec<f64>> {
    let column = |times: Vec<f64>| times.into_iter().map(value).collect();
    times.into_iter().map(column).collect()
}
