//! Several connections between two nodes: over two networks, and where one connection alone is limited.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;

use crate::Beside;
use crate::crew::{Crew, Place, Seat, pause};
use crate::net::{Net, address, rail_address};
use crate::node::{Lines, Pair};
use crate::stream::{self, How};

/// What each network carries, in Mbit/s.
const NETWORK: u32 = 2000;
/// What each connection carries, in bytes a second.
const CONNECTION: u32 = 125_000_000;
const BYTES: usize = 4 << 20;
const SLICES: usize = 7;
/// Nanoseconds of a slice.
const WINDOW: u64 = 600_000_000;

/// GB/s over two networks of the same rate, and over one of them. The note says what bare streams do.
pub(crate) fn networks() -> Result<Beside> {
    let net = Net::new()?;
    net.second()?;
    net.limit(NETWORK)?;
    let mut crew = Crew::new(&net, Place::Free)?;
    let both = Lines {
        rails: true,
        ..Lines::default()
    };
    let two = sender(&mut crew, both)?;
    let one = sender(&mut crew, Lines::default())?;
    let bare = |crew: &mut Crew<'_>, at: fn(usize) -> Ipv4Addr| stream::bare(crew, at(1), BYTES);
    let raw = [bare(&mut crew, address)?, bare(&mut crew, rail_address)?];
    crew.ready()?;
    let values = stream::windows(&crew, [&[two], &[one]], SLICES, WINDOW, BYTES)?;
    let beside = stream::windows(&crew, [&raw, &raw[..1]], SLICES / 2, WINDOW, BYTES)?;
    let [raw_two, raw_one] = beside.map(median);
    let note = format!(
        "two veth pairs of {NETWORK} Mbit/s each (tc tbf at both ends); bare TCP: {raw_two:.3} GB/s by two streams, {raw_one:.3} by one; {}",
        crew.note()?
    );
    Ok(("GB/s", values, note))
}

/// GB/s of so many connections, and of one, where each is limited.
pub(crate) fn connections(count: usize) -> Result<Beside> {
    let net = Net::new()?;
    let mut crew = Crew::new(&net, Place::Free)?;
    let lines = |connections| Lines {
        connections,
        paced: true,
        ..Lines::default()
    };
    let several = sender(&mut crew, lines(count))?;
    let one = sender(&mut crew, lines(1))?;
    crew.ready()?;
    let values = stream::windows(&crew, [&[several], &[one]], SLICES, WINDOW, BYTES)?;
    let note = format!(
        "one veth pair; SO_MAX_PACING_RATE of {} MB/s on each socket stands in for a network that limits each connection; {}",
        CONNECTION / 1_000_000,
        crew.note()?
    );
    Ok(("GB/s", values, note))
}

fn sender(crew: &mut Crew<'_>, lines: Lines) -> Result<Seat> {
    let pair = Rc::new(Pair::start_with(crew, 256 << 20, lines)?);
    Ok(stream::link(crew, &pair, 0, BYTES, How::Block, 3)?.sender)
}

/// Limits every connection of this process, also those to come.
pub(crate) fn limit_connections() {
    std::thread::spawn(|| {
        loop {
            // Descriptors are few; what is no socket refuses.
            (3..512).for_each(limit_connection);
            pause(Duration::from_millis(2));
        }
    });
}

fn limit_connection(socket: RawFd) {
    let rate = CONNECTION;
    // SAFETY: the kernel reads four bytes; a descriptor that is none of a socket is refused.
    unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            4,
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
