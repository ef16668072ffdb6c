//! Several connections between two nodes: opened for large payloads, used together, closed when nothing needs them, and lost
//! in any way without a frame lost or doubled.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "rig/victim.rs"]
mod victim;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dragon_protocol::Code;
use dragon_protocol::wire::{
    APART, FRAME_HEADER, FrameHeader, FrameKind, MAX_PAYLOAD, PIECE, SPLIT,
};
use dragon_transport::Body;
use dragon_transport::fabric::{Fabric, Frame, Link, PeerAddress};
use rustix::net::sockopt;
use victim::{Raw, Victim, WATCHDOG, accepted, answer, header, node, open};
use zerocopy::{FromBytes, IntoBytes};

/// Passes bytes on between a node and another one's port, one connection after the other has come; each can be cut.
struct Relay {
    port: u16,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    /// Bytes that were passed on.
    bytes: Arc<AtomicU64>,
    /// Nothing is passed on to that port for now.
    holds: Arc<AtomicBool>,
    /// How often something came that was held.
    held: Arc<AtomicU64>,
}

impl Relay {
    fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        small_buffers(&listener);
        let port = listener.local_addr().unwrap().port();
        let streams: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let bytes: Arc<AtomicU64> = Arc::default();
        let (known, count) = (Arc::clone(&streams), Arc::clone(&bytes));
        let (holds, held) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (hold, holding) = (Arc::clone(&holds), Arc::clone(&held));
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else {
                    continue;
                };
                small_buffers(&far);
                for (from, to, there) in [(&near, &far, true), (&far, &near, false)] {
                    to.set_nodelay(true).unwrap();
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let count = Arc::clone(&count);
                    let (hold, held) = (Arc::clone(&hold), Arc::clone(&holding));
                    std::thread::spawn(move || {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(n) = from.read(&mut buffer) {
                            if there && hold.load(Ordering::Acquire) {
                                held.fetch_add(1, Ordering::Release);
                                until("it goes on", || !hold.load(Ordering::Acquire));
                            }
                            if n == 0 {
                                break;
                            }
                            count.fetch_add(n as u64, Ordering::Relaxed);
                            if to.write_all(&buffer[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                known.lock().unwrap().push(near);
            }
        });
        Self {
            port,
            streams,
            bytes,
            holds,
            held,
        }
    }

    /// Cuts the connection that came as the `n`-th of those that are left.
    fn cut(&self, n: usize) {
        let mut streams = self.streams.lock().unwrap();
        if n < streams.len() {
            let _ = streams.remove(n).shutdown(Shutdown::Both);
        }
    }
}

/// So that little fills a connection; accepted ones have those of the listener.
fn small_buffers(socket: impl AsFd) {
    sockopt::set_socket_recv_buffer_size(&socket, 64 << 10).unwrap();
    sockopt::set_socket_send_buffer_size(&socket, 64 << 10).unwrap();
}

#[expect(
    clippy::disallowed_methods,
    reason = "a fabric tells nobody how many connections it has, and who spins keeps the nodes from the cores"
)]
fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WATCHDOG, "never: {what}");
        // The nodes are to have the cores meanwhile.
        pause(1);
    }
}

fn pair(encrypt: bool, connections: usize) -> [Victim; 2] {
    [0, 1].map(|n| {
        Victim::start(|config| {
            config.node = node(n);
            config.encrypt = encrypt;
            config.connections = connections;
        })
    })
}

fn link(from: &Victim, to: u32, port: u16) -> Arc<dyn Link> {
    from.fabric.set_peers(vec![PeerAddress {
        node: node(to),
        addresses: vec![(Ipv4Addr::LOCALHOST, port).into()],
    }]);
    let link = from.fabric.link(node(to)).unwrap();
    from.wait_for("a link", |seen| seen.up >= 1);
    link
}

fn bytes(number: u64) -> Vec<u8> {
    let piece = usize::try_from(PIECE).unwrap();
    let sizes = [3 * piece + 7, 0, 100, 9000, 2 * piece, 4096, 4 * piece, 33];
    let size = sizes[usize::try_from(number % 8).unwrap()];
    let mut bytes = vec![u8::try_from(number % 251).unwrap(); size];
    for (n, byte) in bytes.iter_mut().enumerate().step_by(1000) {
        *byte = u8::try_from((n as u64 ^ number) % 256).unwrap();
    }
    bytes
}

fn submit(link: &Arc<dyn Link>, kind: FrameKind, number: u64) {
    let body = bytes(number);
    let header = FrameHeader {
        payload: (body.len() as u64).into(),
        ..header(kind, number)
    };
    let body = Body::Bytes(body);
    link.submit(Frame { header, body }).unwrap();
}

/// Submits until the connections take no more, while the other side reads nothing.
fn fill(link: &Arc<dyn Link>, kind: FrameKind, sent: &mut u64, to: &Victim) {
    let _held = to.seen();
    while link.queued() < 2 << 20 {
        submit(link, kind, *sent);
        *sent += 1;
    }
}

/// All frames of these numbers, in their order, each once.
fn came(to: &Victim, what: &str, count: u64) {
    to.wait_for(what, |seen| seen.frames.len() as u64 >= count);
    let seen = to.seen();
    for (n, (number, payload)) in seen.frames.iter().enumerate() {
        assert_eq!(*number, n as u64, "{what}");
        assert!(*payload == bytes(*number), "{what}: frame {number}");
    }
    assert_eq!(seen.frames.len() as u64, count, "{what}");
    assert!(seen.lost.is_empty(), "{what}: {:?}", seen.lost);
}

#[test]
fn large_payloads_get_more_connections_which_go_when_they_are_idle() {
    for encrypt in [false, true] {
        let [near, far] = pair(encrypt, 3);
        let relay = Relay::to(far.port());
        let link = link(&near, 1, relay.port);
        // What is small needs none.
        submit(&link, FrameKind::Request, 0);
        for number in 1..4 {
            submit(&link, FrameKind::Request, number);
        }
        far.wait_for("four", |seen| seen.frames.len() == 4);
        assert_eq!(near.fabric.connections(node(1)), 1);
        let (mut sent, most) = (4, AtomicU64::new(0));
        until("three connections at both ends", || {
            let there = [(&near, 1), (&far, 0)].map(|(v, n)| v.fabric.connections(node(n)));
            most.fetch_max(there[0].max(there[1]) as u64, Ordering::Relaxed);
            if there != [3, 3] && link.queued() == 0 {
                fill(&link, FrameKind::Request, &mut sent, &far);
            }
            there == [3, 3]
        });
        let before = near.fabric.stats();
        for _ in 0..24 {
            submit(&link, FrameKind::Request, sent);
            sent += 1;
        }
        came(&far, "all of it", sent);
        assert_eq!(most.into_inner(), 3);
        // Nothing broke on the way.
        assert_eq!((before.reconnects, before.retries), (0, 0));
        until("the first connection alone", || {
            near.fabric.connections(node(1)) == 1 && far.fabric.connections(node(0)) == 1
        });
        assert_eq!(near.fabric.stats().reconnects, 0);
        // And again.
        for _ in 0..8 {
            submit(&link, FrameKind::Request, sent);
            sent += 1;
        }
        came(&far, "all of it again", sent);
    }
}

#[test]
fn the_side_that_accepted_a_link_gets_more_connections_too() {
    for encrypt in [false, true] {
        let [near, far] = pair(encrypt, 2);
        let relay = Relay::to(far.port());
        let _link = link(&near, 1, relay.port);
        far.wait_for("the link", |seen| seen.up == 1);
        let back = Arc::clone(&far.seen().links[0]);
        let mut sent = 0;
        until("two connections", || {
            let there = far.fabric.connections(node(0)) == 2;
            if !there && back.queued() == 0 {
                fill(&back, FrameKind::Reply, &mut sent, &near);
            }
            there
        });
        for _ in 0..24 {
            submit(&back, FrameKind::Reply, sent);
            sent += 1;
        }
        came(&near, "all replies", sent);
        assert_eq!(far.fabric.stats().retries, 0);
    }
}

#[test]
fn one_connection_is_all_that_is_had_where_no_more_are_asked_for() {
    let [near, far] = pair(false, 1);
    let link = link(&near, 1, far.port());
    for number in 0..64 {
        submit(&link, FrameKind::Request, number);
    }
    came(&far, "all of it", 64);
    let there = [(&near, 1), (&far, 0)].map(|(v, n)| v.fabric.connections(node(n)));
    assert_eq!(there, [1, 1]);
}

/// Cuts now this and now that connection, again and again, and all of them, under a load in both directions.
#[test]
fn connections_that_break_in_any_way_lose_and_double_nothing() {
    for (encrypt, rounds, seed) in [(false, 6, 1_u64), (true, 4, 3)] {
        let [near, far] = pair(encrypt, 3);
        let relay = Relay::to(far.port());
        let there = link(&near, 1, relay.port);
        far.wait_for("the link", |seen| seen.up == 1);
        let back = Arc::clone(&far.seen().links[0]);
        let (mut random, mut sent, mut lanes) = (seed, [0; 2], 0);
        for round in 0..rounds {
            // Some load passes, every second time with as many connections as there may be.
            let until_bytes = relay.bytes.load(Ordering::Relaxed) + random % (4 << 20);
            until("some load", || {
                let now = near.fabric.connections(node(1));
                lanes = lanes.max(now);
                if there.queued() + back.queued() == 0 {
                    fill(&there, FrameKind::Request, &mut sent[0], &far);
                    fill(&back, FrameKind::Reply, &mut sent[1], &near);
                }
                let passed = relay.bytes.load(Ordering::Relaxed) >= until_bytes;
                if passed && now < 3 {
                    // A lane that broke is not tried again at once.
                    pause(20);
                }
                passed && (now == 3 || round % 2 == 0)
            });
            random = random
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(seed);
            let left = relay.streams.lock().unwrap().len();
            match random >> 62 {
                0 => (0..left).for_each(|_| relay.cut(0)),
                // One of the newest.
                _ => relay.cut(left - 1 - usize::try_from(random >> 32).unwrap() % left.min(3)),
            }
        }
        came(&far, "all requests", sent[0]);
        came(&near, "all replies", sent[1]);
        assert_eq!(lanes, 3, "seed {seed}");
        let stats = near.fabric.stats();
        assert!(stats.reconnects >= 2, "seed {seed}: {stats:?}");
    }
}

/// The number that the opener of a link gives its connection, and then its lane.
fn numbered(open: FrameHeader, lane: bool) -> FrameHeader {
    FrameHeader {
        deadline: 77.into(),
        arg1: if lane { 2.into() } else { open.arg1 },
        ..open
    }
}

fn piece(number: u64, at: u64, length: u64) -> FrameHeader {
    FrameHeader {
        arg0: at.into(),
        payload: length.into(),
        ..header(FrameKind::Piece, number)
    }
}

/// The header of a frame that comes in pieces.
fn divided(request: u64, length: u64) -> FrameHeader {
    FrameHeader {
        kind: FrameKind::Request as u8 | APART,
        payload: length.into(),
        ..header(FrameKind::Request, request)
    }
}

/// A link of the third node with two lanes.
fn two_lanes(victim: &Victim, number: u64) -> [Raw; 2] {
    [false, true].map(|lane| {
        let (raw, answer) = victim.raw(3, numbered(open(number), lane));
        assert_eq!(answer.status.get(), 0, "lane: {lane}");
        raw
    })
}

/// The largest message that one record takes.
const RECORD: usize = 40_000;

fn say(raw: &mut Raw, parts: &[&[u8]]) {
    for part in parts.concat().chunks(RECORD) {
        raw.send_last_part(part);
    }
}

#[test]
fn pieces_of_any_lane_in_any_order_are_a_frame() {
    for encrypt in [false, true] {
        let victim = Victim::start(|config| config.encrypt = encrypt);
        let [mut first, mut lane] = two_lanes(&victim, 5);
        let length = 2 * PIECE + 10;
        let body: Vec<u8> = (0..length)
            .map(|n| u8::try_from(n % 253).unwrap())
            .collect();
        let part = |n: usize| {
            let piece = usize::try_from(PIECE).unwrap();
            &body[n * piece..body.len().min((n + 1) * piece)]
        };
        let of = divided(1, length);
        let head = |n: usize| piece(0, n as u64 * PIECE, part(n).len() as u64);
        // The last piece comes before the first lane has said that there is such a frame.
        say(&mut lane, &[head(2).as_bytes(), of.as_bytes(), part(2)]);
        say(
            &mut lane,
            &[head(0).as_bytes(), of.as_bytes(), &part(0)[..1000]],
        );
        say(&mut first, &[of.as_bytes()]);
        // What follows it waits.
        let small = FrameHeader {
            payload: 4.into(),
            ..header(FrameKind::Request, 2)
        };
        say(&mut first, &[small.as_bytes(), b"next"]);
        say(&mut first, &[head(1).as_bytes(), of.as_bytes(), part(1)]);
        say(&mut lane, &[&part(0)[1000..]]);
        victim.wait_for("both", |seen| seen.frames.len() == 2);
        let seen = victim.seen();
        assert!(seen.frames[0] == (1, body.clone()), "{encrypt}");
        assert_eq!(seen.frames[1], (2, b"next".to_vec()));
    }
}

type Wrong = (&'static str, fn(&mut Raw, &mut Raw));

#[test]
fn every_wrong_piece_ends_its_link() {
    const WHOLE: u64 = 2 * PIECE;
    fn of() -> FrameHeader {
        divided(1, WHOLE)
    }
    fn head(lane: &mut Raw, piece: FrameHeader, of: FrameHeader) {
        say(lane, &[piece.as_bytes(), of.as_bytes()]);
    }
    let wrong: [Wrong; 13] = [
        ("is unknown", |_, lane| {
            head(lane, piece(8192, 0, PIECE), of());
        }),
        ("is unknown", |first, _| {
            say(first, &[header(FrameKind::Request, 1).as_bytes()]);
            say(first, &[header(FrameKind::Request, 2).as_bytes()]);
            let zeros = vec![0; usize::try_from(PIECE).unwrap()];
            say(
                first,
                &[piece(0, 0, PIECE).as_bytes(), of().as_bytes(), &zeros],
            );
        }),
        ("is beyond its end", |_, lane| {
            head(lane, piece(0, WHOLE, PIECE), of());
        }),
        ("is beyond its end", |_, lane| {
            head(lane, piece(0, u64::MAX - 1, 2), of());
        }),
        ("is beyond its end", |_, lane| {
            head(lane, piece(0, PIECE, PIECE + 1), of());
        }),
        ("overlaps others", |_, lane| {
            head(lane, piece(0, 1, PIECE), of());
        }),
        ("overlaps others", |_, lane| {
            head(lane, piece(0, 0, 2 * PIECE), of());
        }),
        ("overlaps others", |_, lane| {
            head(lane, piece(0, 0, 0), of());
        }),
        ("has come before", |first, _| {
            let zeros = vec![0; usize::try_from(PIECE).unwrap()];
            say(first, &[of().as_bytes()]);
            for _ in 0..2 {
                say(
                    first,
                    &[piece(0, 0, PIECE).as_bytes(), of().as_bytes(), &zeros],
                );
            }
        }),
        ("two different headers", |first, _| {
            say(first, &[of().as_bytes()]);
            head(first, piece(0, 0, PIECE), divided(2, WHOLE));
        }),
        ("comes in pieces and has", |first, _| {
            say(first, &[divided(1, SPLIT - 1).as_bytes()]);
        }),
        ("on a lane that is not the first", |_, lane| {
            say(lane, &[header(FrameKind::Request, 1).as_bytes()]);
        }),
        ("limit is", |first, _| {
            for n in 0..3 {
                say(first, &[divided(n, MAX_PAYLOAD).as_bytes()]);
            }
        }),
    ];
    for encrypt in [false, true] {
        let victim = Victim::start(|config| config.encrypt = encrypt);
        for ((what, spoil), n) in wrong.into_iter().zip(1..) {
            let [mut first, mut lane] = two_lanes(&victim, n);
            spoil(&mut first, &mut lane);
            victim.wait_for(what, |seen| seen.lost.len() as u64 == n);
            let last = victim.seen().lost.last().cloned().unwrap();
            assert!(
                last.contains("malformed frame") && last.contains(what),
                "{what}: {last}"
            );
            first.closed();
            lane.closed();
        }
    }
}

#[test]
fn what_follows_a_divided_frame_is_bounded() {
    let victim = Victim::start(|_| {});
    let [mut first, _lane] = two_lanes(&victim, 1);
    say(&mut first, &[divided(1, SPLIT).as_bytes()]);
    let body = [0; 4000];
    let small = FrameHeader {
        payload: (body.len() as u64).into(),
        ..header(FrameKind::Request, 2)
    };
    // As much as an agent sends, and more.
    for _ in 0..(64 << 10) / 4080 + 2 {
        first.send_last_part(&[small.as_bytes(), &body].concat());
    }
    victim.wait_for("the end", |seen| seen.lost.len() == 1);
    let lost = victim.seen().lost[0].clone();
    assert!(lost.contains("behind one that comes in pieces"), "{lost}");
}

/// Where a link ends with its connection, one that breaks would be lost.
#[test]
fn a_lane_is_closed_when_what_was_begun_on_it_has_arrived() {
    let victim = Victim::start(|config| config.reconnect_s = 0);
    let [mut first, mut lane] = two_lanes(&victim, 1);
    let back = Arc::clone(&victim.seen().links[0]);
    // Pieces are under way on both when this side says the last on one of them.
    let pieces = 64;
    let body = Body::Bytes(vec![7; usize::try_from(pieces * PIECE).unwrap()]);
    let request = FrameHeader {
        payload: (pieces * PIECE).into(),
        ..header(FrameKind::Reply, 1)
    };
    let frame = Frame {
        header: request,
        body,
    };
    back.submit(frame).unwrap();
    lane.send(header(FrameKind::End, 0).as_bytes());
    let count = |raw: &Raw| {
        let mut stream = raw.stream.try_clone().unwrap();
        let pieces = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&pieces);
        let thread = std::thread::spawn(move || {
            let mut head = [0; FRAME_HEADER];
            let mut piece = vec![0; FRAME_HEADER + usize::try_from(PIECE).unwrap()];
            while stream.read_exact(&mut head).is_ok() {
                if FrameHeader::read_from_bytes(&head).unwrap().kind == FrameKind::Piece as u8 {
                    stream.read_exact(&mut piece).unwrap();
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        (pieces, thread)
    };
    let (on_first, _) = count(&first);
    let (on_lane, closed) = count(&lane);
    let now = || [&on_first, &on_lane].map(|n| n.load(Ordering::Relaxed));
    until("all of it", || now().iter().sum::<u64>() == pieces);
    assert!(now().iter().all(|pieces| *pieces > 0), "{:?}", now());
    // It has not been said that it is here.
    assert_eq!(victim.fabric.connections(node(3)), 2);
    first.send(
        FrameHeader {
            acknowledged: 1.into(),
            ..header(FrameKind::Acknowledge, 0)
        }
        .as_bytes(),
    );
    closed.join().unwrap();
    until("one connection", || victim.fabric.connections(node(3)) == 1);
    first.send(header(FrameKind::Request, 2).as_bytes());
    victim.wait_for("a frame", |seen| seen.frames.len() == 1);
    assert!(victim.seen().lost.is_empty());
    assert_eq!(victim.fabric.stats().reconnects, 0);
}

/// What the acceptor begins while the word of the opener is on its way.
#[test]
fn a_lane_that_the_other_side_has_just_begun_to_use_is_not_lost() {
    let [near, far] = [0, 1].map(|n| {
        Victim::start(|config| {
            config.node = node(n);
            config.connections = 2;
            config.reconnect_s = 0;
        })
    });
    let relay = Relay::to(far.port());
    let there = link(&near, 1, relay.port);
    far.wait_for("the link", |seen| seen.up == 1);
    let back = Arc::clone(&far.seen().links[0]);
    let mut sent = 0;
    while relay.held.load(Ordering::Acquire) == 0 {
        relay.holds.store(false, Ordering::Release);
        until("two connections", || {
            let two = [(&near, 1), (&far, 0)].map(|(v, n)| v.fabric.connections(node(n))) == [2, 2];
            if !two && there.queued() == 0 {
                fill(&there, FrameKind::Request, &mut sent, &far);
            }
            two
        });
        came(&far, "all of it", sent);
        // The next that this side says is that it needs no lane any more; unless it was quicker than this.
        relay.holds.store(true, Ordering::Release);
        until("the last word", || {
            relay.held.load(Ordering::Acquire) > 0 || near.fabric.connections(node(1)) == 1
        });
    }
    for number in 0..32 {
        submit(&back, FrameKind::Reply, number);
    }
    came(&near, "all replies", 32);
    relay.holds.store(false, Ordering::Release);
    until("one connection", || {
        [(&near, 1), (&far, 0)].map(|(v, n)| v.fabric.connections(node(n))) == [1, 1]
    });
    submit(&there, FrameKind::Request, sent);
    came(&far, "one more", sent + 1);
    assert!(near.seen().lost.is_empty());
}

/// As by a node that has just lost the connection of which it was to be one.
#[test]
fn a_lane_that_is_refused_is_asked_for_again() {
    let near = Victim::start(|config| config.connections = 2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    small_buffers(&listener);
    let port = listener.local_addr().unwrap().port();
    let (there, opened) = channel();
    std::thread::spawn(move || {
        loop {
            there.send(accepted(&listener, node(1))).unwrap_or(());
        }
    });
    near.fabric.set_peers(vec![PeerAddress {
        node: node(1),
        addresses: vec![(Ipv4Addr::LOCALHOST, port).into()],
    }]);
    let link = near.fabric.link(node(1)).unwrap();
    let (mut first, open) = opened.recv().unwrap();
    answer(&mut first, &open, Code::Ok, 0);
    // Reads two frames at a time, and says so, as long as they come as a whole: so the socket is full again and again.
    let (go_on, may) = channel();
    std::thread::spawn(move || {
        let mut frame = vec![0; FRAME_HEADER + bytes(0).len()];
        for count in 1_u16.. {
            let read = may.recv().is_ok() && first.read_exact(&mut frame).is_ok();
            if !read || frame[0] & APART != 0 {
                return;
            }
            let told = FrameHeader {
                acknowledged: count.into(),
                ..header(FrameKind::Acknowledge, 0)
            };
            let _ = first.write_all(told.as_bytes());
        }
    });
    for code in [Code::Unreachable, Code::Unreachable, Code::Ok] {
        let mut lane = None;
        until("a lane is asked for", || {
            if link.queued() < 8 << 20 {
                while link.queued() < 8 << 20 {
                    submit(&link, FrameKind::Request, 0);
                }
                for _ in 0..2 {
                    go_on.send(()).unwrap_or(());
                }
            }
            lane = opened.try_recv().ok();
            lane.is_some()
        });
        let (mut lane, open) = lane.unwrap();
        assert_eq!(open.arg1.get(), 2);
        answer(&mut lane, &open, code, 0);
        if code == Code::Ok {
            until("two connections", || near.fabric.connections(node(1)) == 2);
        } else {
            Raw::from(lane).closed();
            assert_eq!(near.fabric.connections(node(1)), 1);
        }
    }
    // The link is none the worse for it.
    assert!(near.seen().lost.is_empty());
    assert_eq!(near.fabric.stats().reconnects, 0);
}

/// Nothing passes for a while, since the other side reads nothing; and pieces are under way all the same.
#[test]
fn a_lane_with_pieces_under_way_is_not_idle() {
    let (near, far, link, mut sent) = two_in_use(60, 0);
    {
        let _held = far.seen();
        more(&link, &mut sent);
        // Links are looked at once a second, and idle ones give up their lanes with the second look.
        pause(3500);
    }
    came(&far, "all of it", sent);
    assert!(near.seen().lost.is_empty());
    assert_eq!(near.fabric.stats().reconnects, 0);
}

/// A stopped node takes nothing, and its lanes count as cut sooner than the first does. It has as much time as without them.
#[test]
fn a_node_that_is_stopped_for_longer_than_a_lane_may_be_silent_is_not_lost() {
    let broke = (0..20).any(|_| {
        let (near, far, link, mut sent) = two_in_use(12, 1);
        came(&far, "what filled them", sent);
        let mut left = 2;
        {
            let _held = far.seen();
            more(&link, &mut sent);
            until("the lane breaks, and the connection with it", || {
                left = near.fabric.connections(node(1));
                left < 2
            });
            // Longer than a link is tried to be gone on with when its first lane breaks.
            pause(if left == 0 { 2000 } else { 0 });
        }
        came(&far, "all of it", sent);
        assert!(near.seen().lost.is_empty());
        // The lane may have been idle just then, and so given up.
        left == 0 && near.fabric.stats().reconnects > 0
    });
    assert!(broke, "no lane ever broke");
}

/// Two nodes and a link whose two connections are in use, and how many frames were submitted.
fn two_in_use(silence: u32, reconnect: u64) -> (Victim, Victim, Arc<dyn Link>, u64) {
    let [near, far] = [0, 1].map(|n| {
        Victim::start(|config| {
            config.node = node(n);
            config.connections = 2;
            config.silence_s = silence;
            config.reconnect_s = reconnect;
        })
    });
    let relay = Relay::to(far.port());
    let link = link(&near, 1, relay.port);
    let mut sent = 0;
    until("two connections", || {
        let there = [(&near, 1), (&far, 0)].map(|(v, n)| v.fabric.connections(node(n)));
        if there != [2, 2] && link.queued() == 0 {
            fill(&link, FrameKind::Request, &mut sent, &far);
        }
        there == [2, 2]
    });
    (near, far, link, sent)
}

/// Submits more than the connections take.
fn more(link: &Arc<dyn Link>, sent: &mut u64) {
    while link.queued() < 8 << 20 {
        submit(link, FrameKind::Request, *sent);
        *sent += 1;
    }
}

#[test]
fn a_lane_of_no_connection_is_none() {
    let victim = Victim::start(|_| {});
    // Of no link, of another connection of the link, and the ninth.
    let (raw, answer) = victim.raw(3, numbered(open(1), true));
    assert_ne!(answer.status.get(), 0);
    raw.closed();
    let mut lanes: Vec<Raw> = two_lanes(&victim, 1).into();
    let other = FrameHeader {
        deadline: 78.into(),
        ..numbered(open(1), true)
    };
    let (raw, answer) = victim.raw(3, other);
    assert_ne!(answer.status.get(), 0);
    raw.closed();
    for n in 3..=9 {
        let (raw, answer) = victim.raw(3, numbered(open(1), true));
        assert_eq!(answer.status.get() == 0, n <= 8, "{n}");
        if n <= 8 {
            lanes.push(raw);
        }
    }
    assert_eq!(victim.fabric.connections(node(3)), 8);
    // The link is none the worse for it.
    lanes[0].send(header(FrameKind::Request, 4).as_bytes());
    victim.wait_for("a frame", |seen| seen.frames.len() == 1);
    assert!(victim.seen().lost.is_empty());
    // And with the connection go its lanes.
    lanes.remove(0).closed_from_here();
    lanes.into_iter().for_each(Raw::closed);
}
