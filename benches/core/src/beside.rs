//! A channel and the least that the machine allows, by the same two processes in slices of about a millisecond in turn: where
//! processors share caches more or less from one moment to the next, as those of virtual machines do, only neighbouring
//! slices can be compared.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, ensure};
use dragon_channels::{Channel, ChannelOptions, Deadline, create_channel};
use dragon_raw::memory::{Children, Shared};
use dragon_raw::ring::Ring;
use dragon_raw::{Page, Turns, cores, pin, sleep, spin};

use crate::node::Node;

/// Unit, values of the channel, those of the least, note.
pub(crate) type Beside = (&'static str, [Vec<f64>; 2], String);

const NEVER: Deadline = Deadline::Never;

/// A message of 8 bytes there and one back, both spinning, beside a word there and one back.
pub(crate) fn spinning() -> Result<Beside> {
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
pub(crate) fn sleeping(same_core: bool) -> Result<Beside> {
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
) -> Result<Beside> {
    let page = Page::create()?;
    let turns = page.turns();
    let ours = |[ping, pong]: [&Channel; 2], first: bool| -> Result<()> {
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
    let raw = |first: bool, turn: u32| {
        (0..shape.rounds).try_fold(turn, |turn, _| step(turns, first, turn))
    };
    let times = slices(shape, cpus, ours, raw)?;
    let one_way = |time: f64| time * 1e6 / f64::from(shape.rounds) / 2.0;
    let values = times.map(|times| times.into_iter().map(one_way).collect());
    Ok(("us", values, how(what, shape)?))
}

/// Messages of 64 bytes from one process to the other.
pub(crate) fn rate() -> Result<Beside> {
    let shape = Shape {
        rounds: 20_000,
        slices: 200,
        same_core: false,
        symmetric: false,
    };
    let ring = Ring::new()?;
    let ours = |[there, _]: [&Channel; 2], first: bool| -> Result<()> {
        let mut bytes = [7_u8; 64];
        for round in 0..shape.rounds {
            if first {
                there.send(&bytes, round.into(), NEVER)?;
            } else {
                there.receive_into(&mut bytes, NEVER)?;
            }
        }
        Ok(())
    };
    let raw = |first: bool, _| {
        let mut payload = [7_u8; 64];
        for _ in 0..shape.rounds {
            if first {
                ring.send(&payload);
            } else {
                ring.receive(&mut payload);
            }
        }
        Ok(0)
    };
    let times = slices(shape, 2, ours, raw)?;
    let rate = |time: f64| f64::from(shape.rounds) / time / 1e6;
    let values = times.map(|times| times.into_iter().map(rate).collect());
    Ok(("M/s", values, how("64 B, one sender, one receiver", shape)?))
}

/// How slices are cut.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Messages of a slice.
    rounds: u32,
    slices: usize,
    same_core: bool,
    /// Both processes end at once; otherwise the second one's times count.
    symmetric: bool,
}

fn how(what: &str, shape: Shape) -> Result<String> {
    let (first, second) = cores(shape.same_core)?;
    Ok(format!(
        "{what}, slices in turn, pinned to cores {first} and {second}"
    ))
}

/// Seconds of each slice: with channels, and without.
fn slices(
    shape: Shape,
    cpus: u32,
    ours: impl Fn([&Channel; 2], bool) -> Result<()>,
    raw: impl Fn(bool, u32) -> Result<u32>,
) -> Result<[Vec<f64>; 2]> {
    let node = Node::new(64 << 20, cpus)?;
    let member = node.member(node.slot()?)?;
    let create = || create_channel(&member, &ChannelOptions::default());
    let channels = [create()?, create()?];
    let descriptors = channels.each_ref().map(Channel::descriptor);
    let (one, two) = cores(shape.same_core)?;
    let words = Shared::new(2 * shape.slices * 8)?;
    let mut children = Children::default();
    for first in [true, false] {
        let slot = node.slot()?;
        children.fork(|| {
            pin(if first { one } else { two })?;
            let member = node.member(slot)?;
            let attach = |n: usize| Channel::attach(&member, &descriptors[n], false);
            let (there, back) = (attach(0)?, attach(1)?);
            let mut turn = 0;
            for slice in 0..shape.slices {
                let start = Instant::now();
                turn = raw(first, turn)?;
                let middle = Instant::now();
                ours([&there, &back], first)?;
                let times = [middle.elapsed(), middle - start];
                if first == shape.symmetric {
                    for (which, time) in times.into_iter().enumerate() {
                        let time = u64::try_from(time.as_nanos())?;
                        words.word(2 * slice + which).store(time, Ordering::SeqCst);
                    }
                }
            }
            Ok(())
        })?;
    }
    children.join()?;
    // The first slices warm up.
    let slices = shape.slices / 10..shape.slices;
    let time = |n: usize| words.word(n).load(Ordering::SeqCst) as f64 / 1e9;
    Ok([0, 1].map(|which| {
        slices
            .clone()
            .map(|slice| time(2 * slice + which))
            .collect()
    }))
}
