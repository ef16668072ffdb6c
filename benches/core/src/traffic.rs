//! Messages between processes.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, ensure};
use dragon_channels::{Channel, ChannelOptions, Deadline, create_channel};
use dragon_raw::memory::{Children, Shared};
use dragon_raw::{cores, pin, runs};

use crate::Measured;
use crate::node::Node;

const NEVER: Deadline = Deadline::Never;

/// 64 B; with one sender and one receiver pinned to a core each, with more left to the kernel. The processes live for all
/// runs; the time of a run is that of the slowest of them.
pub(crate) fn rate(senders: u64, receivers: u64) -> Result<Measured> {
    let total: u64 = if senders == 1 { 2_000_000 } else { 400_000 };
    let node = Node::new(64 << 20, 2)?;
    let member = node.member(node.slot()?)?;
    let channel = create_channel(&member, &ChannelOptions::default())?;
    let descriptor = channel.descriptor();
    let (first, second) = cores(false)?;
    let pinned = senders == 1 && receivers == 1;
    let words = Shared::new(4096)?;
    let mut children = Children::default();
    for n in 0..senders + receivers {
        let slot = node.slot()?;
        children.fork(|| {
            if pinned {
                pin(if n == 0 { first } else { second })?;
            }
            let member = node.member(slot)?;
            let channel = Channel::attach(&member, &descriptor, false)?;
            for run in 0..=runs() {
                words.word(0).fetch_add(1, Ordering::SeqCst);
                while words.word(0).load(Ordering::SeqCst)
                    < (run as u64 + 1) * (senders + receivers)
                {
                    std::thread::yield_now();
                }
                let start = Instant::now();
                if n < senders {
                    let payload = [n.to_le_bytes()[0]; 64];
                    for number in 0..total / senders {
                        channel.send(&payload, number, NEVER)?;
                    }
                } else {
                    let mut bytes = 0;
                    for _ in 0..total / receivers {
                        bytes += channel.receive(NEVER)?.len() as u64;
                    }
                    ensure!(bytes == total / receivers * 64, "{bytes} bytes came");
                }
                let time = u64::try_from(start.elapsed().as_nanos())?;
                words.word(8 + run).fetch_max(time, Ordering::SeqCst);
            }
            Ok(())
        })?;
    }
    children.join()?;
    // The first run warms up and is dropped.
    let rate = |run| total as f64 / words.word(8 + run).load(Ordering::SeqCst) as f64 * 1e3;
    let values = (1..=runs()).map(rate).collect();
    let how = if pinned {
        format!("pinned to cores {first} and {second}")
    } else {
        "oversubscribed, not pinned".to_owned()
    };
    Ok((
        "M/s",
        values,
        format!("64 B, {senders}:{receivers}, adaptive waits, {how}"),
    ))
}

/// One process sends and receives in turn: nobody waits, no line of memory moves between cores.
pub(crate) fn path(bytes: usize) -> Result<Measured> {
    const ROUNDS: u32 = 200_000;
    let node = Node::new(64 << 20, 2)?;
    let member = node.member(node.slot()?)?;
    let channel = create_channel(&member, &ChannelOptions::default())?;
    let payload = vec![7_u8; bytes];
    let mut buffer = vec![0_u8; bytes];
    let mut values = Vec::new();
    for run in 0..=5 * runs() {
        let start = Instant::now();
        for number in 0..ROUNDS {
            channel.send(&payload, number.into(), NEVER)?;
            channel.receive_into(&mut buffer, NEVER)?;
        }
        if run > 0 {
            values.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS));
        }
    }
    Ok(("ns", values, format!("{bytes} B, one process")))
}
