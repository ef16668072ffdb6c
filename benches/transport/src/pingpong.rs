//! There and back: ours, the bare chain, and TCP alone.

use std::io::{IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use dragon_channels::{ChannelOptions, Deadline, Returns, SendOptions, WaitMode};
use dragon_raw::chain::{self, Wait};
use dragon_raw::memory::Shared;
use dragon_raw::{Page, Turns};

use crate::Beside;
use crate::crew::{Crew, Place, Seat, until};
use crate::net::{Net, address};
use crate::node::{Pair, stay};

const NEVER: Deadline = Deadline::Never;
/// Messages of a slice, there and back.
const ROUNDS: u64 = 200;
const SLICES: usize = 60;

/// What a channel's round trip stands beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Chain,
    Tcp,
}

/// Microseconds there and back for 8 B.
pub(crate) fn beside(place: Place, wait: Wait, returns: Returns, peer: Peer) -> Result<Beside> {
    let net = Net::new()?;
    let mut crew = Crew::new(&net, place)?;
    let pair = Rc::new(Pair::start(&mut crew, 32 << 20, false)?);
    let ours = channels(&mut crew, &pair, wait, returns)?;
    let theirs = match peer {
        Peer::Chain => bare(&mut crew, wait)?,
        Peer::Tcp => tcp(&mut crew, wait)?,
    };
    crew.ready()?;
    let mut values = [Vec::new(), Vec::new()];
    for slice in 0..SLICES {
        for (which, seats) in [ours, theirs].iter().enumerate() {
            let time = crew.together(seats, ROUNDS)?[0].seconds();
            // The first slices warm up.
            if slice >= SLICES / 10 {
                values[which].push(time * 1e6 / ROUNDS as f64);
            }
        }
    }
    let waits = match wait {
        Wait::Sleep => "all sleeping",
        Wait::Spin => "clients spinning",
    };
    let note = format!(
        "8 B, {}, {waits}, sends return {returns:?}, slices in turn",
        crew.note()?
    );
    Ok(("us", values, note))
}

/// Two clients and a channel of each.
fn channels(
    crew: &mut Crew<'_>,
    pair: &Rc<Pair>,
    wait: Wait,
    returns: Returns,
) -> Result<[Seat; 2]> {
    let mut seats = Vec::new();
    for side in [0, 1] {
        let (seat, _) = crew.worker(side, || {
            let member = pair.client(side)?;
            let inbox = pair.create(&member, side, &ChannelOptions::default())?;
            let outbox = pair.attach(&member, 1 - side)?;
            inbox.set_wait_mode(match wait {
                Wait::Sleep => WaitMode::Sleep,
                Wait::Spin => WaitMode::Spin,
            });
            let mut bytes = [7_u8; 8];
            Ok(move |rounds| {
                for round in 0..rounds {
                    if side == 1 {
                        inbox.receive_into(&mut bytes, NEVER)?;
                    }
                    let options = SendOptions {
                        hint: round,
                        returns,
                        ..SendOptions::default()
                    };
                    outbox.send_with(&[IoSlice::new(&bytes)], &options)?;
                    if side == 0 {
                        let answer = inbox.receive_into(&mut bytes, NEVER)?;
                        ensure!(answer.hint == round, "not the answer");
                    }
                }
                Ok(rounds)
            })
        })?;
        seats.push(seat);
    }
    Ok([seats[0], seats[1]])
}

/// The bare chain: an agent and a client on each node.
fn bare(crew: &mut Crew<'_>, wait: Wait) -> Result<[Seat; 2]> {
    let pages = [Page::create()?, Page::create()?];
    let turns = pages.each_ref().map(Page::turns);
    let port = Shared::new(4096)?;
    let mut seats = Vec::new();
    for side in [0, 1] {
        let words: &'static Turns = turns[side];
        crew.fork(side, || {
            let stream = connected(side, &port)?;
            let reader = stream.try_clone()?;
            std::thread::spawn(move || chain::carry_in(words, &reader, wait));
            chain::carry_out(words, &stream)?;
            stay()
        })?;
        let (seat, _) = crew.worker(side, || {
            let mut turn = 0;
            Ok(move |rounds| {
                for _ in 0..rounds {
                    turn = match side {
                        0 => chain::ask(words, turn, wait)?,
                        _ => chain::answer(words, turn, wait)?,
                    };
                }
                Ok(rounds)
            })
        })?;
        seats.push(seat);
    }
    Ok([seats[0], seats[1]])
}

/// One byte there and back, without agents.
fn tcp(crew: &mut Crew<'_>, wait: Wait) -> Result<[Seat; 2]> {
    let port = Shared::new(4096)?;
    let mut seats = Vec::new();
    for side in [0, 1] {
        let port = port.clone();
        let (seat, _) = crew.worker(side, || {
            let mut stream = connected(side, &port)?;
            stream.set_nonblocking(wait == Wait::Spin)?;
            Ok(move |rounds| {
                let mut byte = [0_u8];
                for _ in 0..rounds {
                    if side == 0 {
                        stream.write_all(&byte)?;
                    }
                    while let Err(error) = stream.read_exact(&mut byte) {
                        ensure!(error.kind() == std::io::ErrorKind::WouldBlock, "{error}");
                        std::thread::yield_now();
                    }
                    if side == 1 {
                        stream.write_all(&byte)?;
                    }
                }
                Ok(rounds)
            })
        })?;
        seats.push(seat);
    }
    Ok([seats[0], seats[1]])
}

/// A connection between the nodes: the second one listens, and says where in a word that both share.
pub(crate) fn connected(side: usize, port: &Shared) -> Result<TcpStream> {
    connected_at(side, address(1), port)
}

/// The same over the network with this address of the second node.
pub(crate) fn connected_at(side: usize, at: Ipv4Addr, port: &Shared) -> Result<TcpStream> {
    let word = port.word(0);
    let stream = if side == 1 {
        let listener = TcpListener::bind((at, 0)).context("listen")?;
        word.store(listener.local_addr()?.port().into(), Ordering::Release);
        listener.accept()?.0
    } else {
        until("the peer listens", || word.load(Ordering::Acquire) != 0)?;
        let port = u16::try_from(word.load(Ordering::Acquire))?;
        TcpStream::connect(SocketAddr::from((at, port))).context("connect")?
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}
