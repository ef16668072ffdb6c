//! `raw-memory MODE`: the least that the machine allows between processes. Prints one JSON object, as the other raw programs.
//!
//! | mode | values |
//! |---|---|
//! | `ring` | million messages of 64 B a second through a Vyukov ring |
//! | `copies BYTES` | GB/s with one copy in and one copy out, and two atomics |
//! | `pipe-bandwidth BYTES`, `socket-bandwidth BYTES` | GB/s through a pipe, a Unix socket |
//! | `socket` | microseconds one way between two sleepers on a Unix socket |
//! | `connect` | microseconds to connect to a Unix socket and get three descriptors |

use std::io::{Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use dragon_raw::memory::{Children, Shared};
use dragon_raw::ring::{Ring, turn};
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
        ["copies", bytes] => copies(bytes.parse()?),
        ["pipe-bandwidth", bytes] => {
            let (reader, writer) = std::io::pipe()?;
            stream(bytes.parse()?, reader, writer)
        }
        ["socket-bandwidth", bytes] => {
            let (reader, writer) = UnixStream::pair()?;
            stream(bytes.parse()?, reader, writer)
        }
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

/// Two buffers in turn, so that one is filled while the other is emptied.
fn copies(bytes: usize) -> Result<Measured> {
    const DATA: usize = 4096;
    let rounds = (256 << 20) / bytes as u64;
    let rounds = rounds.clamp(8, 2_000);
    let shared = Shared::new(DATA + 2 * bytes)?;
    let wait = |word: &AtomicU64, until: u64| {
        while word.load(Ordering::Acquire) < until {
            turn();
        }
    };
    let times = pair(|run, sends| {
        let mut own = vec![u8::from(sends); bytes];
        let (filled, emptied) = (shared.word(0), shared.word(16));
        for n in run as u64 * rounds..(run as u64 + 1) * rounds {
            let buffer = shared.bytes(DATA + (n % 2) as usize * bytes, bytes);
            if sends {
                wait(emptied, (n + 1).saturating_sub(2));
                // SAFETY: the receiver has emptied the buffer, and waits for us.
                unsafe { std::ptr::copy_nonoverlapping(own.as_ptr(), buffer, bytes) };
                filled.store(n + 1, Ordering::Release);
            } else {
                wait(filled, n + 1);
                // SAFETY: the sender has filled the buffer, and waits for us.
                unsafe { std::ptr::copy_nonoverlapping(buffer, own.as_mut_ptr(), bytes) };
                emptied.store(n + 1, Ordering::Release);
            }
        }
        ensure!(own[bytes - 1] == 1, "other bytes came");
        Ok(())
    })?;
    let volume = bytes as f64 * rounds as f64 / 1e9;
    let values = times.iter().map(|time| volume / time).collect();
    Ok((
        "GB/s",
        values,
        format!("{bytes} B, two copies, two buffers, spinning, pinned"),
    ))
}

/// One turn of a loop that waits. The other process may not run while others use its core: then this one yields.
fn stream(bytes: usize, reader: impl Read, writer: impl Write) -> Result<Measured> {
    let rounds = ((128 << 20) / bytes as u64).clamp(4, 1_000);
    let (reader, writer) = (
        std::cell::RefCell::new(reader),
        std::cell::RefCell::new(writer),
    );
    let times = pair(|_, sends| {
        let mut own = vec![u8::from(sends); bytes];
        for _ in 0..rounds {
            if sends {
                writer.borrow_mut().write_all(&own)?;
            } else {
                reader.borrow_mut().read_exact(&mut own)?;
            }
        }
        Ok(())
    })?;
    let volume = bytes as f64 * rounds as f64 / 1e9;
    let values = times.iter().map(|time| volume / time).collect();
    Ok(("GB/s", values, format!("{bytes} B, pinned")))
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
