//! One way: bytes and messages a second.

use std::io::{IoSlice, Read, Write};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use dragon_channels::{Channel, ChannelOptions, Deadline, Returns, SendOptions};
use dragon_raw::memory::Shared;
use dragon_shmem::Member;

use crate::crew::{Crew, Place, Seat, Work, now, pause};
use crate::net::{Net, address};
use crate::node::Pair;
use crate::pingpong::connected_at;
use crate::{Beside, Measured};

const NEVER: Deadline = Deadline::Never;
/// Nanoseconds of a slice.
const WINDOW: u64 = 150_000_000;
const SLICES: usize = 12;

/// How a payload is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// From the sender's own memory: it is copied into the pool.
    Copy,
    /// As a block of the pool.
    Block,
}

/// GB/s of payloads, beside a bare stream that writes and reads as much at once.
pub(crate) fn bandwidth(bytes: usize, how: How, threads: usize) -> Result<Beside> {
    let net = Net::new()?;
    let mut crew = Crew::new(&net, Place::Free)?;
    let pair = Rc::new(Pair::start(&mut crew, 512 << 20, false)?);
    let ours = link(&mut crew, &pair, 0, bytes, how, threads)?;
    let theirs = bare(&mut crew, address(1), bytes)?;
    crew.ready()?;
    let values = windows(&crew, [&[ours.sender], &[theirs]], SLICES, WINDOW, bytes)?;
    let note = format!(
        "{how:?}, {threads} threads whose sends return Deposited, {}, slices in turn",
        crew.note()?
    );
    Ok(("GB/s", values, note))
}

/// GB/s encrypted, beside plain.
pub(crate) fn encrypted(bytes: usize) -> Result<Beside> {
    let net = Net::new()?;
    let mut crew = Crew::new(&net, Place::Free)?;
    let pairs = [true, false].map(|encrypt| Pair::start(&mut crew, 128 << 20, encrypt));
    let mut senders = Vec::new();
    for pair in pairs {
        let pair = Rc::new(pair?);
        senders.push(link(&mut crew, &pair, 0, bytes, How::Block, 2)?.sender);
    }
    crew.ready()?;
    let values = windows(&crew, [&senders[..1], &senders[1..]], SLICES, WINDOW, bytes)?;
    let note = format!("blocks, 2 threads, {}, slices in turn", crew.note()?);
    Ok(("GB/s", values, note))
}

/// GB/s of many pairs at once and of one alone; or the slowest of the pairs, and what would be its fair share.
pub(crate) fn pairs(count: usize, bytes: usize, slowest: bool) -> Result<Beside> {
    let net = Net::new()?;
    let mut crew = Crew::new(&net, Place::Free)?;
    let pair = Rc::new(Pair::start(&mut crew, 1 << 30, false)?);
    let link = |crew: &mut Crew<'_>, n| Ok(link(crew, &pair, n, bytes, How::Block, 1)?.sender);
    let one = link(&mut crew, count)?;
    let all = (0..count).map(|n| link(&mut crew, n));
    let all = all.collect::<Result<Vec<Seat>>>()?;
    crew.ready()?;
    let what = format!(
        "{count} pairs of processes, {bytes} B in blocks, {}",
        crew.note()?
    );
    if !slowest {
        let values = windows(&crew, [&all, &[one]], 8, 2 * WINDOW, bytes)?;
        return Ok((
            "GB/s",
            values,
            format!("{what}, in turn with one pair alone"),
        ));
    }
    let mut values = [Vec::new(), Vec::new()];
    for slice in 0..5 {
        let rates = window(&crew, &all, 6 * WINDOW, bytes)?;
        if slice > 0 {
            values[0].push(rates.iter().copied().fold(f64::INFINITY, f64::min));
            values[1].push(rates.iter().sum::<f64>() / count as f64);
        }
    }
    Ok(("GB/s", values, what))
}

/// What three pairs do while the receiver of a fourth is stopped, beside what they do while that pair rests: GB/s for large
/// messages, million messages a second for small ones.
pub(crate) fn stopped(bytes: usize) -> Result<Beside> {
    const OTHERS: usize = 3;
    let net = Net::new()?;
    let mut crew = Crew::new(&net, Place::Free)?;
    let pair = Rc::new(Pair::start(&mut crew, 512 << 20, false)?);
    let mut others = Vec::new();
    for n in 0..OTHERS {
        others.push(link(&mut crew, &pair, n, bytes, How::Copy, 2)?.sender);
    }
    let fourth = link(&mut crew, &pair, OTHERS, bytes, How::Copy, 2)?;
    crew.ready()?;
    let small = bytes < 4096;
    let unit = if small { bytes as f64 / 1e3 } else { 1.0 };
    let mut values = [Vec::new(), Vec::new()];
    for slice in 0..SLICES {
        for which in [0, 1] {
            if which == 0 {
                signal(fourth.receiver, libc::SIGSTOP)?;
                crew.order(fourth.sender, now() + 2 * WINDOW);
                // Its channel fills up meanwhile.
                pause(Duration::from_millis(100));
            }
            let rates = window(&crew, &others, WINDOW, bytes)?;
            if which == 0 {
                signal(fourth.receiver, libc::SIGCONT)?;
                crew.work(fourth.sender)?;
            }
            if slice > 0 {
                values[which].push(rates.iter().sum::<f64>() / unit);
            }
        }
    }
    let note = format!(
        "{OTHERS} pairs with {bytes} B, 2 threads each, {}",
        crew.note()?
    );
    Ok((if small { "M/s" } else { "GB/s" }, values, note))
}

/// Million messages of 64 B a second, from one process to one.
pub(crate) fn rate(threads: usize, returns: Returns, place: Place) -> Result<Measured> {
    const MESSAGES: u64 = 100_000;
    let net = Net::new()?;
    let mut crew = Crew::new(&net, place)?;
    let pair = Rc::new(Pair::start(&mut crew, 128 << 20, false)?);
    let options = ChannelOptions {
        capacity: 1024,
        block: 128,
        ..ChannelOptions::default()
    };
    let (receiver, _) = crew.worker(1, || {
        let member = pair.client(1)?;
        let inbox = pair.create(&member, 0, &options)?;
        let mut bytes = [0_u8; 64];
        Ok(move |messages| {
            for _ in 0..messages {
                inbox.receive_into(&mut bytes, NEVER)?;
            }
            Ok(messages)
        })
    })?;
    let (sender, _) = crew.worker(0, || {
        let member = pair.client(0)?;
        let outbox = pair.attach(&member, 0)?;
        Ok(move |messages: u64| {
            let each = messages / threads as u64;
            in_threads(threads, |_| burst(&outbox, each, returns))?;
            Ok(messages)
        })
    })?;
    crew.ready()?;
    let mut values = Vec::new();
    for slice in 0..SLICES {
        let messages = MESSAGES / threads as u64 * threads as u64;
        let work = crew.together(&[sender, receiver], messages)?;
        if slice > 0 {
            let time = (work[1].ended - work[0].began) as f64 / 1e9;
            values.push(messages as f64 / time / 1e6);
        }
    }
    let note = format!(
        "64 B, {threads} threads, sends return {returns:?}, one of 512 Deposited, {}",
        crew.note()?
    );
    Ok(("M/s", values, note))
}

/// Sends so many messages. One of 512 waits until it is in the channel, and with it those before it: so no more than those
/// are ever on their way.
fn burst(outbox: &Channel, messages: u64, returns: Returns) -> Result<()> {
    let bytes = [7_u8; 64];
    for n in 1..=messages {
        let returns = if n % 512 == 0 {
            Returns::Deposited
        } else {
            returns
        };
        let options = SendOptions {
            hint: n,
            returns,
            ..SendOptions::default()
        };
        outbox.send_with(&[IoSlice::new(&bytes)], &options)?;
    }
    Ok(())
}

/// A sender on the first node, a receiver on the second.
pub(crate) struct Link {
    pub(crate) sender: Seat,
    receiver: libc::pid_t,
}

/// The sender sends until the time that it is given as an order, by so many threads, and counts what arrived in the channel.
pub(crate) fn link(
    crew: &mut Crew<'_>,
    pair: &Rc<Pair>,
    n: usize,
    bytes: usize,
    how: How,
    threads: usize,
) -> Result<Link> {
    let options = ChannelOptions {
        capacity: 16,
        ..ChannelOptions::default()
    };
    let receiver = crew.fork(1, || {
        let member = pair.client(1)?;
        let inbox = pair.create(&member, n, &options)?;
        loop {
            drop(inbox.receive(NEVER)?);
        }
    })?;
    let (sender, _) = crew.worker(0, || {
        let member = pair.client(0)?;
        let outbox = pair.attach(&member, n)?;
        let payload = vec![7_u8; bytes];
        Ok(move |until| {
            let sent = AtomicU64::new(0);
            in_threads(threads, |_| {
                while now() < until {
                    send(&member, &outbox, &payload, how)?;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })?;
            Ok(sent.into_inner())
        })
    })?;
    Ok(Link { sender, receiver })
}

fn send(member: &Arc<Member>, outbox: &Channel, payload: &[u8], how: How) -> Result<()> {
    match how {
        How::Copy => outbox.send(payload, 0, NEVER)?,
        How::Block => {
            let block = member.alloc(payload.len() as u64)?;
            outbox.send_block(block, 0, NEVER)?;
        }
    }
    Ok(())
}

/// A bare stream to this address, written and read in pieces of so many bytes; what was written counts when it has been read.
pub(crate) fn bare(crew: &mut Crew<'_>, to: Ipv4Addr, bytes: usize) -> Result<Seat> {
    let port = Shared::new(4096)?;
    crew.fork(1, || {
        let mut stream = connected_at(1, to, &port)?;
        let mut buffer = vec![0_u8; bytes];
        loop {
            let length = stream.read(&mut buffer)?;
            match buffer[..length] {
                [] => bail!("the other end closed the connection"),
                [.., 1] => stream.write_all(&[1])?,
                _ => {}
            }
        }
    })?;
    let (sender, _) = crew.worker(0, || {
        let mut stream = connected_at(0, to, &port)?;
        let payload = vec![0_u8; bytes];
        Ok(move |until| {
            let mut sent = 0;
            while now() < until {
                stream.write_all(&payload)?;
                sent += 1;
            }
            stream.write_all(&[1])?;
            stream.read_exact(&mut [0])?;
            Ok(sent)
        })
    })?;
    Ok(sender)
}

/// GB/s of two groups of senders, in turn.
pub(crate) fn windows(
    crew: &Crew<'_>,
    groups: [&[Seat]; 2],
    slices: usize,
    length: u64,
    bytes: usize,
) -> Result<[Vec<f64>; 2]> {
    let mut values = [Vec::new(), Vec::new()];
    for slice in 0..slices {
        for (senders, values) in groups.iter().zip(&mut values) {
            let rates = window(crew, senders, length, bytes)?;
            if slice > 0 {
                values.push(rates.iter().sum());
            }
        }
    }
    Ok(values)
}

/// GB/s of each of some senders that all send for a while.
fn window(crew: &Crew<'_>, senders: &[Seat], length: u64, bytes: usize) -> Result<Vec<f64>> {
    let until = now() + length;
    let works = crew.together(senders, until)?;
    let rate = |work: Work| work.count as f64 * bytes as f64 / work.seconds() / 1e9;
    Ok(works.into_iter().map(rate).collect())
}

fn in_threads(threads: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    if threads == 1 {
        return work(0);
    }
    std::thread::scope(|scope| {
        let work = &work;
        let all: Vec<_> = (0..threads).map(|n| scope.spawn(move || work(n))).collect();
        all.into_iter().try_for_each(|thread| {
            let ended = thread.join();
            ended.map_err(|_| anyhow!("a thread panicked"))?
        })
    })
}

fn signal(pid: libc::pid_t, signal: libc::c_int) -> Result<()> {
    // SAFETY: our child, which has not been waited for.
    if unsafe { libc::kill(pid, signal) } != 0 {
        bail!("kill: {}", std::io::Error::last_os_error());
    }
    Ok(())
}
