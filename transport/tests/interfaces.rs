//! Interfaces of network namespaces that the test makes: which are chosen, and that frames pass over them.
//!
//! The test runs itself again in a user and network namespace of its own; where the machine allows none it says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dragon_protocol::NodeIndex;
use dragon_protocol::key::JobKey;
use dragon_protocol::wire::{FrameHeader, FrameKind};
use dragon_transport::Body;
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use dragon_transport::fabric::{Fabric, Frame, Handler, Incoming, Link, LinkError, PeerAddress};
use dragon_transport::interface::{Chosen, InterfaceError, choose, list, rails};
use zerocopy::FromZeros;

const WATCHDOG: Duration = Duration::from_secs(120);

/// Runs the ignored test `name` in namespaces of its own.
fn inside(name: &str) {
    let possible = Command::new("unshare")
        .args(["-Urn", "ip", "link"])
        .output();
    if !possible.is_ok_and(|done| done.status.success()) {
        println!(
            "SKIPPED {name}: this machine allows no network namespace, or has no unshare and ip"
        );
        return;
    }
    let this = std::env::current_exe().unwrap();
    let done = Command::new("unshare")
        .arg("-Urn")
        .arg(this)
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&done.stdout);
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{out}{err}");
    assert!(out.contains("1 passed"), "{out}{err}");
}

#[test]
fn interfaces_are_chosen_in_a_namespace() {
    inside("chosen_in_a_namespace");
}

#[test]
fn frames_pass_over_the_chosen_interfaces() {
    inside("frames_in_namespaces");
}

#[test]
fn two_networks_are_used_together_and_each_alone_when_the_other_is_cut() {
    inside("rails_in_namespaces");
}

fn ip(words: &str) {
    let done = Command::new("ip").args(words.split_whitespace()).output();
    let done = done.unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {words}: {err}");
}

fn chosen(wanted: &str) -> Result<Vec<Chosen>, InterfaceError> {
    choose(&list()?, &wanted.parse()?)
}

fn names(wanted: &str) -> Vec<String> {
    let chosen = chosen(wanted).unwrap().into_iter();
    chosen.map(|c| c.name).collect()
}

#[test]
#[ignore = "runs in namespaces that another test makes"]
fn chosen_in_a_namespace() {
    // Nothing is up, not even the loopback interface.
    let error = chosen("").unwrap_err().to_string();
    assert!(error.contains("lo (down"), "{error}");
    ip("link set lo up");
    assert_eq!(names(""), ["lo"]);
    // What a container engine leaves behind: a bridge with one end of a pair in it.
    ip("link add docker0 type bridge");
    ip("link add veth1 type veth peer name inner");
    ip("link set veth1 master docker0");
    ip("addr add 172.17.0.1/16 dev docker0");
    for device in ["docker0", "veth1", "inner"] {
        ip(&format!("link set {device} up"));
    }
    wait_until_up("docker0");
    assert_eq!(names(""), ["docker0"]);
    // What leads out, in both families; and one whose other end is down.
    ip("link add eth0 type veth peer name far0");
    ip("link add eth1 type veth peer name far1");
    ip("link add eth2 type veth peer name far2");
    ip("addr add 10.20.0.1/24 dev eth0");
    ip("addr add fd00:20::1/64 dev eth1 nodad");
    ip("addr add 10.22.0.1/24 dev eth2");
    for device in ["eth0", "eth1", "eth2", "far0", "far1"] {
        ip(&format!("link set {device} up"));
    }
    wait_until_up("eth0");
    wait_until_up("eth1");
    assert_eq!(names(""), ["eth0", "eth1"]);
    assert_eq!(names("eth1"), ["eth1"]);
    assert_eq!(names("fd00::/16"), ["eth1"]);
    assert_eq!(names("10.0.0.0/8"), ["eth0"]);
    assert_eq!(names("docker0"), ["docker0"]);
    let error = chosen("eth2").unwrap_err().to_string();
    assert!(
        error.contains("'eth2'") && error.contains("eth2 (down, 10.22.0.1"),
        "{error}"
    );
    let error = chosen("192.168.0.0/16").unwrap_err().to_string();
    assert!(error.contains("eth0 (up, 10.20.0.1"), "{error}");
}

/// The carrier comes a moment after the link is set up.
fn wait_until_up(name: &str) {
    let start = std::time::Instant::now();
    while !list().unwrap().iter().any(|i| i.name == name && i.up) {
        assert!(start.elapsed() < WATCHDOG, "{name} does not come up");
        std::thread::yield_now();
    }
}

#[derive(Default)]
struct Seen(Mutex<Vec<u64>>);

impl Handler for &Seen {
    fn land(&mut self, _: &Arc<dyn Link>, header: &FrameHeader) -> Option<Body> {
        let length = usize::try_from(header.payload.get()).unwrap();
        Some(Body::Bytes(vec![0; length]))
    }

    fn frame(&mut self, _: &Arc<dyn Link>, header: &FrameHeader, _: Incoming<'_>) {
        self.0.lock().unwrap().push(header.request.get());
    }

    fn up(&mut self, _: &Arc<dyn Link>) {}

    fn lost(&mut self, _: &Arc<dyn Link>, _: bool, reason: &LinkError, _: Vec<Frame>) {
        eprintln!("lost: {reason}");
    }
}

fn fabric(node: u32) -> TcpFabric {
    let key = JobKey::from_hex(&"5a".repeat(32)).unwrap();
    let mut config = TcpConfig::new(NodeIndex::new(node).unwrap(), key);
    config.listen = chosen("rail.").unwrap().iter().map(|c| c.address).collect();
    TcpFabric::bind(config).unwrap()
}

/// Two nodes with two networks between them, one of each family; the first network of the receiver then goes away.
#[test]
#[ignore = "runs in namespaces that another test makes"]
fn frames_in_namespaces() {
    ip("link set lo up");
    let (ready, other) = channel();
    let (listens, there) = channel();
    let (go, wait) = channel::<()>();
    let receiver = std::thread::spawn(move || {
        // SAFETY: gives this thread a network namespace of its own, and nothing else.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        // SAFETY: no memory is involved.
        ready.send(unsafe { libc::gettid() }).unwrap();
        wait.recv().unwrap();
        ip("link set lo up");
        ip("addr add 10.30.0.2/24 dev rail0");
        ip("addr add fd00:31::2/64 dev rail1 nodad");
        ip("link set rail0 up");
        ip("link set rail1 up");
        wait_until_up("rail0");
        wait_until_up("rail1");
        let fabric = fabric(1);
        listens.send(fabric.local_addresses()).unwrap();
        let seen = Seen::default();
        while seen.0.lock().unwrap().len() < 2 {
            fabric.progress(&mut &seen, u64::MAX).unwrap();
        }
        seen.0.into_inner().unwrap()
    });
    let thread = other.recv().unwrap();
    for rail in ["rail0", "rail1"] {
        let process = std::process::id();
        ip(&format!("link add {rail} type veth peer name far"));
        ip(&format!(
            "link set far netns /proc/{process}/task/{thread}/ns/net name {rail}"
        ));
    }
    ip("addr add 10.30.0.1/24 dev rail0");
    ip("addr add fd00:31::1/64 dev rail1 nodad");
    ip("link set rail0 up");
    ip("link set rail1 up");
    go.send(()).unwrap();
    wait_until_up("rail0");
    wait_until_up("rail1");
    let addresses = there.recv().unwrap();
    let at: Vec<IpAddr> = addresses.iter().map(std::net::SocketAddr::ip).collect();
    let expected: Vec<IpAddr> = ["10.30.0.2", "fd00:31::2"]
        .map(|a| a.parse().unwrap())
        .into();
    assert_eq!(at, expected);
    let sender = fabric(0);
    let seen = Seen::default();
    // Over each of the two networks alone, as when the other is not to be reached.
    for (n, address) in addresses.into_iter().enumerate() {
        let node = NodeIndex::new(1).unwrap();
        sender.set_peers(vec![PeerAddress {
            node,
            addresses: vec![address],
        }]);
        let link = sender.link(node).unwrap();
        let header = FrameHeader {
            kind: FrameKind::Request as u8,
            request: (n as u64 + 1).into(),
            ..FrameHeader::new_zeroed()
        };
        let body = Body::empty();
        link.submit(Frame { header, body }).unwrap();
        while sender.stats().frames_sent < n as u64 + 1 {
            sender.progress(&mut &seen, u64::MAX).unwrap();
        }
        link.close();
        while sender.stats().links > 0 {
            sender.progress(&mut &seen, u64::MAX).unwrap();
        }
    }
    assert_eq!(receiver.join().unwrap(), [1, 2]);
}

/// Frames that came, in their order.
#[derive(Default)]
struct Counted(AtomicU64);

/// Bytes of each frame, which begins with its number.
const LARGE: usize = 1 << 20;

impl Handler for &Counted {
    fn land(&mut self, _: &Arc<dyn Link>, header: &FrameHeader) -> Option<Body> {
        let length = usize::try_from(header.payload.get()).unwrap();
        Some(Body::Bytes(vec![0; length]))
    }

    fn frame(&mut self, _: &Arc<dyn Link>, header: &FrameHeader, payload: Incoming<'_>) {
        let Incoming::Landed(body) = payload else {
            panic!("{payload:?}")
        };
        let number = self.0.load(Ordering::Relaxed);
        assert_eq!(header.request.get(), number);
        assert!(body.to_vec() == large(number), "frame {number}");
        self.0.store(number + 1, Ordering::Release);
    }

    fn up(&mut self, _: &Arc<dyn Link>) {}

    fn lost(&mut self, _: &Arc<dyn Link>, _: bool, reason: &LinkError, _: Vec<Frame>) {
        eprintln!("lost: {reason}");
    }
}

fn large(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(LARGE / 8)
}

fn with_rails(node: u32) -> TcpFabric {
    let key = JobKey::from_hex(&"5a".repeat(32)).unwrap();
    let mut config = TcpConfig::new(NodeIndex::new(node).unwrap(), key);
    let chosen = chosen("rail.").unwrap();
    config.listen = chosen.iter().map(|c| c.address).collect();
    config.rails = rails(&list().unwrap(), &chosen);
    assert_eq!(config.rails.len(), 2);
    config.silence_s = 3;
    config.reconnect_s = 60;
    TcpFabric::bind(config).unwrap()
}

/// Bytes that an interface of this thread's namespace has sent.
fn sent_over(rail: &str) -> u64 {
    let all = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = all
        .lines()
        .find_map(|line| line.trim().strip_prefix(rail)?.strip_prefix(':'));
    line.unwrap()
        .split_whitespace()
        .nth(8)
        .unwrap()
        .parse()
        .unwrap()
}

/// Two nodes with two networks of the same rate between them, of which now one and now the other is cut under a load.
#[test]
#[ignore = "runs in namespaces that another test makes"]
fn rails_in_namespaces() {
    ip("link set lo up");
    let (ready, other) = channel();
    let (listens, there) = channel();
    let (go, wait) = channel::<()>();
    let came: &Counted = Box::leak(Box::default());
    std::thread::spawn(move || {
        // SAFETY: gives this thread a network namespace of its own, and nothing else.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        // SAFETY: no memory is involved.
        ready.send(unsafe { libc::gettid() }).unwrap();
        wait.recv().unwrap();
        ip("link set lo up");
        set_up(2);
        let fabric = with_rails(1);
        listens.send(fabric.local_addresses()).unwrap();
        loop {
            fabric.progress(&mut &*came, u64::MAX).unwrap();
        }
    });
    let thread = other.recv().unwrap();
    for rail in ["rail0", "rail1"] {
        let process = std::process::id();
        ip(&format!("link add {rail} type veth peer name far"));
        ip(&format!(
            "link set far netns /proc/{process}/task/{thread}/ns/net name {rail}"
        ));
    }
    go.send(()).unwrap();
    set_up(1);
    let addresses = there.recv().unwrap();
    let sender: &TcpFabric = Box::leak(Box::new(with_rails(0)));
    let node = NodeIndex::new(1).unwrap();
    sender.set_peers(vec![PeerAddress { node, addresses }]);
    std::thread::spawn(move || {
        loop {
            sender.progress(&mut &Seen::default(), u64::MAX).unwrap();
        }
    });
    let link = sender.link(node).unwrap();
    let mut submitted = 0;
    let mut load = |what: &str, enough: &dyn Fn() -> bool| {
        let start = std::time::Instant::now();
        while !enough() {
            assert!(start.elapsed() < WATCHDOG, "never: {what}");
            if link.queued() > 8 << 20 {
                std::thread::yield_now();
                continue;
            }
            let header = FrameHeader {
                kind: FrameKind::Request as u8,
                request: submitted.into(),
                payload: (LARGE as u64).into(),
                ..FrameHeader::new_zeroed()
            };
            let body = Body::Bytes(large(submitted));
            link.submit(Frame { header, body }).unwrap();
            submitted += 1;
        }
    };
    // So much more than what a socket may hold that it can only have come.
    let more = |rails: &[&'static str]| {
        let before: Vec<_> = rails.iter().map(|rail| (*rail, sent_over(rail))).collect();
        move || {
            let much = |(rail, bytes): &(&str, u64)| sent_over(rail) > bytes + (32 << 20);
            before.iter().all(much)
        }
    };
    load("both are used", &more(&["rail0", "rail1"]));
    for (cut, left) in [("rail1", "rail0"), ("rail0", "rail1")] {
        ip(&format!("link set {cut} down"));
        let frames = came.0.load(Ordering::Acquire);
        let over = more(&[left]);
        load("all goes over the one that is left", &|| {
            over() && came.0.load(Ordering::Acquire) > frames + 32
        });
        ip(&format!("link set {cut} up"));
        load("both are used again", &more(&["rail0", "rail1"]));
    }
    let start = std::time::Instant::now();
    while came.0.load(Ordering::Acquire) < submitted {
        assert!(start.elapsed() < WATCHDOG, "frames are missing");
        std::thread::yield_now();
    }
    let stats = sender.stats();
    assert_eq!(stats.opened, 1);
    assert!(stats.reconnects >= 1, "{stats:?}");
}

/// The second number of the addresses is that of the network.
fn set_up(host: u32) {
    for n in [0, 1] {
        ip(&format!("addr add 10.4{n}.0.{host}/24 dev rail{n}"));
        ip(&format!("link set rail{n} up"));
        wait_until_up(&format!("rail{n}"));
        let limit = format!("qdisc add dev rail{n} root tbf rate 1gbit burst 512kb latency 20ms");
        let done = Command::new("tc").args(limit.split_whitespace()).output();
        // Without it one of them might carry it all.
        let done = done.unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}
