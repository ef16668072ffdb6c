//! What a link over TCP carries between two threads of this process, plain and encrypted: bytes a second of large frames,
//! small frames a second, and how many of them a call sends.
//!
//! `cargo run --release -p dragon-transport --example link-bench [MEGABYTES]`

#![allow(
    clippy::unwrap_used,
    reason = "a measuring program that cannot go on ends"
)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use dragon_protocol::NodeIndex;
use dragon_protocol::key::JobKey;
use dragon_protocol::wire::{FrameHeader, FrameKind};
use dragon_transport::Body;
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::fabric::{Fabric, Frame, Handler, Incoming, Link, LinkError, PeerAddress};
use zerocopy::FromZeros;

struct Counting {
    frames: Arc<AtomicU64>,
    landing: Option<Vec<u8>>,
}

impl Handler for Counting {
    fn land(&mut self, _: &Arc<dyn Link>, header: &FrameHeader) -> Option<Body> {
        let length = usize::try_from(header.payload.get()).unwrap();
        // The same memory again and again, as a pool's is.
        let mut bytes = self.landing.take().unwrap_or_default();
        bytes.resize(length, 0);
        Some(Body::Bytes(bytes))
    }

    fn frame(&mut self, _: &Arc<dyn Link>, _: &FrameHeader, payload: Incoming<'_>) {
        if let Incoming::Landed(Body::Bytes(bytes)) = payload {
            self.landing = Some(bytes);
        }
        self.frames.fetch_add(1, Ordering::Release);
    }

    fn up(&mut self, _: &Arc<dyn Link>) {}

    fn lost(&mut self, _: &Arc<dyn Link>, _: bool, reason: &LinkError, _: Vec<Frame>) {
        eprintln!("lost: {reason}");
    }
}

struct Running {
    fabric: Arc<TcpFabric>,
    frames: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(node: u32, encrypt: bool) -> Self {
        let key = JobKey::new([7; 32]);
        let mut config = TcpConfig::new(NodeIndex::new(node).unwrap(), key);
        config.listen = vec![Ipv4Addr::LOCALHOST.into()];
        config.encrypt = encrypt;
        let fabric = Arc::new(TcpFabric::bind(config).unwrap());
        let frames = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (io, end) = (Arc::clone(&fabric), Arc::clone(&stop));
        let mut handler = Counting {
            frames: Arc::clone(&frames),
            landing: None,
        };
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Acquire) {
                io.progress(&mut handler, u64::MAX).unwrap();
            }
        });
        Self {
            fabric,
            frames,
            stop,
            thread: Some(thread),
        }
    }

    fn wait_for(&self, frames: u64) {
        while self.frames.load(Ordering::Acquire) < frames {
            std::thread::yield_now();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.fabric.wake();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn frame(size: usize) -> Frame {
    let header = FrameHeader {
        kind: FrameKind::Request as u8,
        payload: (size as u64).into(),
        ..FrameHeader::new_zeroed()
    };
    let body = Body::Bytes(vec![1; size]);
    Frame { header, body }
}

/// Sends so many frames of a size; returns the seconds that it took until the last had arrived.
fn seconds(encrypt: bool, size: usize, count: u64) -> f64 {
    let (near, far) = (Running::start(0, encrypt), Running::start(1, encrypt));
    let node = NodeIndex::new(1).unwrap();
    near.fabric.set_peers(vec![PeerAddress {
        node,
        addresses: far.fabric.local_addresses(),
    }]);
    let link = near.fabric.link(node).unwrap();
    link.submit(frame(size)).unwrap();
    far.wait_for(1);
    let start = Instant::now();
    for n in 0..count {
        link.submit(frame(size)).unwrap();
        if link.queued() > 32 << 20 {
            far.wait_for(n / 2);
        }
    }
    far.wait_for(count + 1);
    start.elapsed().as_secs_f64()
}

fn main() {
    let megabytes = std::env::args().nth(1).and_then(|n| n.parse().ok());
    let megabytes: u64 = megabytes.unwrap_or(2048);
    for encrypt in [false, true] {
        let name = if encrypt { "encrypted" } else { "plain" };
        let large = megabytes as f64 / 1024.0 / seconds(encrypt, 1 << 20, megabytes);
        let count = megabytes * 256;
        let small = count as f64 / 1e6 / seconds(encrypt, 64, count);
        println!(
            "{name}: {large:.2} GiB/s in frames of 1 MiB, {small:.2} million frames of 64 bytes a second"
        );
    }
}
