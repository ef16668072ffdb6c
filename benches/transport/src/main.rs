//! `transport-bench MODE`: what the transport does between two network namespaces joined by veth, which it makes and which
//! end with it; needs root. Prints one JSON object: `{"values": [one per run], "note"}`, or `{"columns": [values of each], "note"}`
//! where contestants worked in turn.
//!
//! | mode | values |
//! |---|---|
//! | `beside round-trip PLACE WAIT RETURNS PEER` | microseconds there and back for 8 B between two clients, and those of `chain` or `tcp`; PLACE `pinned`, `free`; WAIT `sleeping`, `spinning`; RETURNS `immediately`, `deposited` |
//! | `beside bandwidth BYTES HOW THREADS` | GB/s, and those of a bare stream; HOW `copy`, `block` |
//! | `beside encrypted BYTES` | GB/s encrypted, and plain |
//! | `beside pairs N BYTES` | GB/s of N pairs, and of one |
//! | `beside slowest N BYTES` | GB/s of the slowest of N pairs, and of the mean |
//! | `beside stopped BYTES` | GB/s, or million messages a second, of three pairs while the receiver of a fourth is stopped, and while that pair rests |
//! | `beside networks` | GB/s over two networks of the same rate, and over one of them |
//! | `beside connections N` | GB/s of N connections, and of one, where each is limited |
//! | `round-trip …`, `bandwidth …` | ours alone of those above |
//! | `rate THREADS RETURNS PLACE` | million messages of 64 B a second |
//! | `idle-wake-ups PEERS`, `idle-memory PEERS` | how often an idle agent wakes up in a second; KiB for each peer |
//! | `mpi PROGRAM MODE` | what an MPI program prints that has a rank in each namespace |

mod crew;
mod idle;
mod lines;
mod mpi;
mod net;
mod node;
mod pingpong;
mod stream;

use std::process::ExitCode;

use anyhow::{Result, bail};
use dragon_channels::Returns;
use dragon_raw::chain::Wait;
use dragon_raw::{mode, report, report_beside, report_skipped};

use crate::crew::Place;
use crate::idle::What;
use crate::pingpong::Peer;
use crate::stream::How;

fn main() -> ExitCode {
    // Its words are a command of somebody else's.
    let words: Vec<String> = std::env::args().skip(1).collect();
    let name = format!("transport-bench {}", words.join(" "));
    let done = match words.first().map(String::as_str) {
        Some("mpi-shell") => mpi::shell(&words[1..].iter().map(String::as_str).collect::<Vec<_>>()),
        _ => mode().and_then(|words| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            measure(&name, &words)
        }),
    };
    if let Err(error) = done {
        report_skipped(&name, &format!("{error:#}").replace('"', "'"));
    }
    ExitCode::SUCCESS
}

/// Unit, values, note.
type Measured = (&'static str, Vec<f64>, String);
/// Unit, values of ours and of what stands beside it, note.
type Beside = (&'static str, [Vec<f64>; 2], String);

fn measure(name: &str, words: &[&str]) -> Result<()> {
    match words {
        ["mpi", program, mode] => mpi::run(program, mode)?,
        ["beside", words @ ..] => {
            let (unit, values, note) = beside(words)?;
            report_beside(name, unit, &values, &note);
        }
        _ => {
            let (unit, values, note) = alone(words)?;
            report(name, unit, &values, &note);
        }
    }
    Ok(())
}

fn beside(words: &[&str]) -> Result<Beside> {
    match *words {
        ["round-trip", place, wait, returns, peer] => {
            let wait = one_of(wait, &[("sleeping", Wait::Sleep), ("spinning", Wait::Spin)])?;
            let peer = one_of(peer, &[("chain", Peer::Chain), ("tcp", Peer::Tcp)])?;
            pingpong::beside(place_of(place)?, wait, returns_of(returns)?, peer)
        }
        ["bandwidth", bytes, how, threads] => {
            let how = one_of(how, &[("copy", How::Copy), ("block", How::Block)])?;
            stream::bandwidth(bytes.parse()?, how, threads.parse()?)
        }
        ["encrypted", bytes] => stream::encrypted(bytes.parse()?),
        ["pairs", count, bytes] => stream::pairs(count.parse()?, bytes.parse()?, false),
        ["slowest", count, bytes] => stream::pairs(count.parse()?, bytes.parse()?, true),
        ["networks"] => lines::networks(),
        ["connections", count] => lines::connections(count.parse()?),
        ["stopped", bytes] => stream::stopped(bytes.parse()?),
        _ => bail!("unknown mode; see the head of benches/transport/src/main.rs"),
    }
}

fn alone(words: &[&str]) -> Result<Measured> {
    match *words {
        ["round-trip" | "bandwidth", ..] => {
            let (unit, [ours, _], note) = beside(words)?;
            Ok((unit, ours, note))
        }
        ["rate", threads, returns, place] => {
            stream::rate(threads.parse()?, returns_of(returns)?, place_of(place)?)
        }
        ["idle-wake-ups", peers] => idle::idle(peers.parse()?, What::WakeUps),
        ["idle-memory", peers] => idle::idle(peers.parse()?, What::Memory),
        _ => bail!("unknown mode; see the head of benches/transport/src/main.rs"),
    }
}

fn place_of(word: &str) -> Result<Place> {
    one_of(word, &[("pinned", Place::Pinned), ("free", Place::Free)])
}

fn returns_of(word: &str) -> Result<Returns> {
    let all = [
        ("immediately", Returns::Immediately),
        ("deposited", Returns::Deposited),
    ];
    one_of(word, &all)
}

fn one_of<T: Copy>(word: &str, all: &[(&str, T)]) -> Result<T> {
    let Some((_, found)) = all.iter().find(|(name, _)| *name == word) else {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        bail!("'{word}' is none of {}", names.join(", "));
    };
    Ok(*found)
}
