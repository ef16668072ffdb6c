//! `raw-memory MODE`: the least that the machine allows between processes. Prints one JSON object, as the other raw programs.
//!
//! | mode | values |
//! |---|---|
//! | `ring` | million messages of 64 B a second through a Vyukov ring |
//! | `socket` | microseconds one way between two sleepers on a Unix socket |
//! | `connect` | microseconds to connect to a Unix socket and get three descriptors |

use std::io::{Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use dragon_raw::memory::{Children, Shared};
use dragon_raw::ring::Ring;
use dragon_raw::{cores, mode, pin, report, report_skipped, runs};
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

type Measured = (&'static str, Vec<f64>, String);

fn main() {
    let name = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let name = format!("raw-memory {name}");
    match mode().and_then(|words| run(&words)) {
        Ok((unit, values, note)) => report(&name, unit, &values, &note),
        Err(error) => report_skipped(&name, &format!("{error:#}").replace('"', "'")),
    }
}

fn run(words: &[String]) -> Result<Measured> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["ring"] => ring(),
        ["socket"] => socket(),
        ["connect"] => connect(),
        _ => bail!("unknown mode; see the head of raw-memory.rs"),
    }
}

/// Seconds of each run of a sender and a receiver on a core each; the first run warms up and is dropped.
fn pair(act: impl Fn(usize, bool) -> Result<()>) -> Result<Vec<f64>> {
    let (first, second) = cores(false)?;
    let times = Shared::new(4096)?;
    let mut children = Children::default();
    for sends in [true, false] {
        children.fork(|| {
            pin(if sends { first } else { second })?;
            for run in 0..=runs() {
                let start = Instant::now();
                act(run, sends)?;
                if !sends {
                    let time = u64::try_from(start.elapsed().as_nanos())?;
                    times.word(run).store(time, Ordering::SeqCst);
                }
            }
            Ok(())
        })?;
    }
    children.join()?;
    let seconds = |run| times.word(run).load(Ordering::SeqCst) as f64 / 1e9;
    Ok((1..=runs()).map(seconds).collect())
}

fn ring() -> Result<Measured> {
    const TOTAL: u64 = 2_000_000;
    let ring = Ring::new()?;
    let times = pair(|_, sends| {
        let mut payload = [7_u8; 64];
        for _ in 0..TOTAL {
            if sends {
                ring.send(&payload);
            } else {
                ring.receive(&mut payload);
            }
        }
        ensure!(payload == [7; 64], "other bytes came");
        Ok(())
    })?;
    let values = times.iter().map(|time| TOTAL as f64 / time / 1e6).collect();
    Ok((
        "M/s",
        values,
        "64 B, 1:1, 256 cells, spinning, pinned".to_owned(),
    ))
}

fn socket() -> Result<Measured> {
    const ROUNDS: u32 = 5_000;
    let (here, there) = UnixStream::pair()?;
    let times = pair(|_, first| {
        let mut stream = if first { &here } else { &there };
        let mut bytes = [1_u8; 8];
        for _ in 0..ROUNDS {
            if first {
                stream.write_all(&bytes)?;
                stream.read_exact(&mut bytes)?;
            } else {
                stream.read_exact(&mut bytes)?;
                stream.write_all(&bytes)?;
            }
        }
        Ok(())
    })?;
    let values = times
        .iter()
        .map(|time| time * 1e6 / f64::from(ROUNDS) / 2.0)
        .collect();
    Ok((
        "us",
        values,
        "8 B one way, sleeping, pinned to two cores".to_owned(),
    ))
}

fn connect() -> Result<Measured> {
    const ROUNDS: usize = 2_000;
    let name = std::env::temp_dir().join(format!("raw-connect-{}", std::process::id()));
    let listener = UnixListener::bind(&name)?;
    let mut children = Children::default();
    children.fork(|| {
        let passed = [listener.as_fd(); 3];
        for _ in 0..(runs() + 1) * ROUNDS {
            let (mut stream, _) = listener.accept()?;
            let mut hello = [0; 32];
            stream.read_exact(&mut hello)?;
            let mut space = [std::mem::MaybeUninit::uninit(); 128];
            let mut control = SendAncillaryBuffer::new(&mut space);
            ensure!(
                control.push(SendAncillaryMessage::ScmRights(&passed)),
                "no room"
            );
            let bytes = [std::io::IoSlice::new(&hello)];
            rustix::net::sendmsg(&stream, &bytes, &mut control, SendFlags::empty())?;
        }
        Ok(())
    })?;
    let mut values = Vec::new();
    for run in 0..=runs() {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            let mut stream = UnixStream::connect(&name)?;
            stream.write_all(&[1; 32])?;
            let mut reply = [0; 32];
            let mut space = [std::mem::MaybeUninit::uninit(); 128];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [std::io::IoSliceMut::new(&mut reply)];
            rustix::net::recvmsg(&stream, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            // The descriptors are closed here.
            control.drain().for_each(drop);
        }
        if run > 0 {
            values.push(start.elapsed().as_secs_f64() * 1e6 / ROUNDS as f64);
        }
    }
    children.join()?;
    std::fs::remove_file(&name)?;
    Ok((
        "us",
        values,
        "connect, 32 B there, 32 B and three descriptors back".to_owned(),
    ))
}
