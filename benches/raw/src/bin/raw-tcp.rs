//! TCP between two processes: `pingpong` (round trip of one byte, microseconds) or `stream` (1 MiB writes, GB/s).
//!
//! `raw-tcp MODE` runs both ends over loopback. `raw-tcp serve ADDRESS` answers one measurement of `raw-tcp MODE ADDRESS`,
//! which may run on another machine or in another network namespace.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use dragon_raw::{Options, cores, end_with_parent, pin, report, second_process};

const ROUNDS: u32 = 5_000;
const BLOCK: usize = 1 << 20;
const BLOCKS: u32 = 256;

fn main() -> Result<()> {
    let options = Options::parse()?;
    // Two cores where there are two; the kernel's choice otherwise.
    let cores = cores(options.same_core).ok();
    if let Some(address) = &options.child {
        end_with_parent()?;
        if let Some((_, second)) = cores {
            pin(second)?;
        }
        return serve(
            TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?,
            options.spin,
        );
    }
    match options
        .words
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["serve", address] => {
            let listener = TcpListener::bind(address)
                .with_context(|| format!("cannot listen on {address}"))?;
            serve(listener.accept()?.0, options.spin)
        }
        [mode @ ("pingpong" | "stream"), address] => {
            let stream = TcpStream::connect(address)
                .with_context(|| format!("cannot connect to {address}"))?;
            measure(mode, stream, &options, "not pinned")
        }
        [mode @ ("pingpong" | "stream")] => {
            let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
            let mut child =
                second_process(&options, &listener.local_addr()?.to_string())?.spawn()?;
            let stream = listener.accept()?.0;
            let note = match cores {
                Some((first, second)) => {
                    pin(first)?;
                    format!("loopback, pinned to cores {first} and {second}")
                }
                None => "loopback, not pinned".to_owned(),
            };
            measure(mode, stream, &options, &note)?;
            child.wait()?;
            Ok(())
        }
        _ => bail!("usage: raw-tcp pingpong|stream [ADDRESS], or raw-tcp serve ADDRESS"),
    }
}

fn measure(mode: &str, mut stream: TcpStream, options: &Options, note: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    // The other end answers what ends in a 1.
    let (rounds, block) = match mode {
        "stream" => (options.rounds.unwrap_or(BLOCKS), vec![0u8; BLOCK]),
        _ => (options.rounds.unwrap_or(ROUNDS), vec![1u8]),
    };
    stream.set_nonblocking(options.spin && mode == "pingpong")?;
    let mut values = Vec::new();
    // The first run warms up and is dropped.
    for run in 0..=options.runs {
        let start = Instant::now();
        for round in 1..=rounds {
            if mode == "stream" {
                stream.write_all(&block)?;
                if round == rounds {
                    stream.write_all(&[1])?;
                    read_byte(&mut stream)?;
                }
            } else {
                stream.write_all(&block)?;
                read_byte(&mut stream)?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        if run > 0 {
            values.push(match mode {
                "stream" => f64::from(rounds) * BLOCK as f64 / seconds / 1e9,
                _ => seconds * 1e6 / f64::from(rounds),
            });
        }
    }
    let unit = if mode == "stream" { "GB/s" } else { "us" };
    let spinning = if options.spin { " spinning" } else { "" };
    report(&format!("raw-tcp {mode}{spinning}"), unit, &values, note);
    Ok(())
}

/// Reads to the end of the connection; answers whatever ends in a 1.
fn serve(mut stream: TcpStream, spin: bool) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(spin)?;
    let mut buffer = vec![0u8; BLOCK];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        if buffer[length - 1] == 1 {
            stream.write_all(&[1])?;
        }
    }
}

fn read_byte(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0u8];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => bail!("the other end closed the connection"),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
}
