//! Bytes that are wrong in one place, at every place: in the handshake of a stranger, and from a peer that has proved the key.
//! They cost their own connection and one line in the log; other links are not disturbed. Plain and encrypted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;
#[path = "rig/victim.rs"]
mod victim;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use dragon_protocol::handshake::{ANSWER, Acceptor, HELLO, PROOF, Role};
use dragon_protocol::op::Op;
use dragon_protocol::wire::{FRAME_HEADER, FrameHeader, FrameKind, MAX_PAYLOAD, Target};
use dragon_protocol::{Code, ObjectId, ObjectKind};
use dragon_transport::fabric::{Fabric, Frame, Link, PeerAddress};
use dragon_transport::{Body, fabric::tcp::TcpConfig};
use rig::{POOL, channel, seen_by, watched};
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber, dispatcher, span};
use zerocopy::{FromBytes, IntoBytes};

use victim::{Greeted, Raw, Victim, answer, closed, header, hello, key, node, open, open_again};

/// What is wrong with a header, and how it becomes so.
type Spoilt = (&'static str, fn(&mut FrameHeader));
/// The same for what is sent in records.
type SpoiltRecord = (&'static str, fn(&mut Raw) -> Vec<u8>);

/// The lines of a log, warnings and worse.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// The lines that name this.
    fn about(&self, name: &str) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        let about = lines.iter().filter(|line| line.contains(name));
        about.cloned().collect()
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

/// A victim with a friend whose link has to go on whatever happens.
struct Beside {
    victim: Victim,
    friend: Victim,
    link: Arc<dyn Link>,
    sent: u64,
    log: Log,
}

impl Beside {
    fn start(encrypt: bool) -> Self {
        let setting = move |config: &mut TcpConfig| config.encrypt = encrypt;
        let log = Log::default();
        let dispatch = Dispatch::new(log.clone());
        let victim = dispatcher::with_default(&dispatch, || Victim::start(setting));
        let friend = Victim::start(|config| {
            setting(config);
            config.node = node(2);
        });
        let link = friend.link_to(&victim);
        victim.wait_for("the friend", |seen| seen.up == 1);
        Self {
            victim,
            friend,
            link,
            sent: 0,
            log,
        }
    }

    /// The friend's link carries a frame, and has never been lost.
    fn is_well(&mut self) {
        self.sent += 1;
        let number = FRIEND + self.sent;
        let frame = Frame {
            header: header(FrameKind::Request, number),
            body: Body::empty(),
        };
        self.link.submit(frame).unwrap();
        self.victim.wait_for("the friend's frame", |seen| {
            seen.frames.iter().any(|(n, _)| *n == number)
        });
        assert!(self.friend.seen().lost.is_empty());
        let stats = self.friend.fabric.stats();
        assert_eq!((stats.opened, stats.reconnects), (1, 0));
    }

    /// Frames of others than the friend.
    fn others(&self) -> Vec<(u64, Vec<u8>)> {
        let seen = self.victim.seen();
        let others = seen.frames.iter().filter(|(n, _)| *n < FRIEND);
        others.cloned().collect()
    }
}

/// Numbers of the friend's frames begin here.
const FRIEND: u64 = 1 << 40;

/// Says these bytes to a victim of its own, and expects it to close, to count and to log one refusal.
fn is_refused(encrypt: bool, what: &str, say: impl FnOnce(&Victim) -> TcpStream) {
    let mut beside = Beside::start(encrypt);
    let stream = say(&beside.victim);
    let port = stream.local_addr().unwrap().port();
    closed(stream);
    beside.is_well();
    assert_eq!(beside.victim.fabric.stats().refused, 1, "{what}");
    assert_eq!(beside.victim.fabric.stats().half_open, 0, "{what}");
    let stats = beside.victim.fabric.stats();
    assert_eq!(stats.accepted, beside.victim.seen().up, "{what}");
    let lines = beside.log.about("");
    assert_eq!(lines.len(), 1, "{what}: {lines:?}");
    let from = format!("from=127.0.0.1:{port} ");
    assert!(
        lines[0].contains(&from) && lines[0].contains("refused"),
        "{lines:?}"
    );
}

fn greeting(encrypt: bool) -> [u8; HELLO] {
    hello(&key()).encrypted(encrypt).hello()
}

#[test]
fn every_wrong_field_of_a_hello_is_refused() {
    for encrypt in [false, true] {
        let wrong: [(&str, usize, u8); 9] = [
            ("the magic", 0, 1),
            ("the magic", 7, 0x80),
            ("the protocol", 8, 1),
            ("the protocol", 9, 0x80),
            ("the role", 10, 3),
            ("the node", 15, 0xff),
            ("another node is meant", 16, 1),
            ("encryption", 64, 1),
            ("encryption", 71, 0x80),
        ];
        for (what, at, bits) in wrong {
            is_refused(encrypt, what, |victim| {
                let mut hello = greeting(encrypt);
                hello[at] ^= bits;
                let mut stream = victim.connect();
                stream.write_all(&hello).unwrap();
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                // Whoever speaks the protocol is told who is here, without a proof; nobody else hears a word.
                assert!(answer.len() <= HELLO, "{what}: {} bytes", answer.len());
                assert!(at >= 8 || answer.is_empty(), "{what}");
                stream
            });
        }
    }
}

#[test]
fn every_wrong_bit_of_a_proof_is_refused() {
    for encrypt in [false, true] {
        // Changed, the acceptor's own proof sent back, and none.
        for at in [0, PROOF / 2, PROOF - 1] {
            is_refused(encrypt, "a changed proof", |victim| {
                let mut greeted = Greeted::new(victim.port(), 1, encrypt);
                greeted.proof[at] ^= 1;
                prove(greeted, &open(7))
            });
        }
        is_refused(encrypt, "the acceptor's proof", |victim| {
            let connector = hello(&key()).encrypted(encrypt);
            let mut stream = victim.connect();
            stream.write_all(&connector.hello()).unwrap();
            let mut answer = [0; ANSWER];
            stream.read_exact(&mut answer).unwrap();
            stream.write_all(&answer[HELLO..]).unwrap();
            stream.write_all(&[0; FRAME_HEADER + 48]).unwrap_or(());
            stream
        });
    }
}

fn prove(mut greeted: Greeted, open: &FrameHeader) -> TcpStream {
    let message = greeted.message(open);
    greeted.stream.write_all(&message).unwrap();
    greeted.stream
}

#[test]
fn a_recorded_exchange_is_refused_at_each_step() {
    for encrypt in [false, true] {
        is_refused(encrypt, "a replay", |victim| {
            // What another connection of the same moment said, to the last byte.
            let mut greeted = Greeted::new(victim.port(), 1, encrypt);
            let message = greeted.message(&open(7));
            let mut stream = victim.connect();
            stream.write_all(&greeting(encrypt)).unwrap();
            let mut answer = [0; ANSWER];
            stream.read_exact(&mut answer).unwrap();
            stream.write_all(&message).unwrap();
            closed(stream.try_clone().unwrap());
            // The first one goes on; it is not the one that counts here.
            greeted.stream.write_all(&message).unwrap();
            let (raw, answer) = greeted.answered();
            assert_eq!(answer.status.get(), 0);
            drop(raw);
            victim.wait_for("the first one", |seen| seen.up == 2);
            stream
        });
    }
}

/// The same towards the side that connects: who has recorded what a node answered once cannot be taken for it later.
#[test]
fn a_recorded_answer_is_refused() {
    let victim = Victim::start(|_| {});
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    victim.fabric.set_peers(vec![PeerAddress {
        node: node(1),
        addresses: vec![(Ipv4Addr::LOCALHOST, port).into()],
    }]);
    let connects = || {
        let link = victim.fabric.link(node(1)).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = [0; HELLO];
        stream.read_exact(&mut hello).unwrap();
        (link, stream, hello)
    };
    let (link, mut stream, hello) = connects();
    let accepted = Acceptor::new(&key(), Role::Data, node(1), &hello, 1, [3; 32]);
    let recorded = accepted.unwrap().1;
    stream.write_all(&recorded).unwrap();
    let mut message = [0; PROOF + FRAME_HEADER];
    stream.read_exact(&mut message).unwrap();
    let open = FrameHeader::read_from_bytes(&message[PROOF..]).unwrap();
    answer(&mut stream, &open, Code::Ok, 0);
    victim.wait_for("a link", |seen| seen.up == 1);
    link.close();
    victim.wait_for("its end", |seen| seen.lost.len() == 1);
    let mut hellos = vec![hello];
    for lost in 2..=3 {
        let (_, mut stream, hello) = connects();
        hellos.push(hello);
        stream.write_all(&recorded).unwrap();
        assert_eq!(closed(stream), b"", "nothing is said to a replay");
        victim.wait_for("the end", |seen| seen.lost.len() == lost);
        let reason = victim.seen().lost[lost - 1].clone();
        assert!(reason.contains("does not prove the job key"), "{reason}");
    }
    for (n, hello) in hellos.iter().enumerate() {
        let same = |other: &[u8; HELLO]| other[32..64] == hello[32..64];
        assert_eq!(
            hellos.iter().position(same),
            Some(n),
            "a challenge comes twice"
        );
    }
}

#[test]
fn every_wrong_field_of_an_opening_is_refused() {
    let spoilt: [Spoilt; 6] = [
        ("no kind", |h| h.kind = 0),
        ("another kind", |h| h.kind = FrameKind::Request as u8),
        ("an unknown kind", |h| h.kind = 11),
        ("the last kind", |h| h.kind = 255),
        ("a payload", |h| h.payload = 1.into()),
        ("a payload over the limit", |h| h.payload = u64::MAX.into()),
    ];
    for encrypt in [false, true] {
        for (what, spoil) in spoilt {
            is_refused(encrypt, what, |victim| {
                let mut header = open(7);
                spoil(&mut header);
                prove(Greeted::new(victim.port(), 1, encrypt), &header)
            });
        }
    }
    is_refused(true, "an opening that is not encrypted", |victim| {
        let mut greeted = Greeted::new(victim.port(), 1, true);
        let message = [&greeted.proof[..], open(7).as_bytes(), &[0; 48]].concat();
        greeted.stream.write_all(&message).unwrap();
        greeted.stream
    });
    is_refused(true, "a changed opening", |victim| {
        let mut greeted = Greeted::new(victim.port(), 1, true);
        let mut message = greeted.message(&open(7));
        message[PROOF + 40] ^= 1;
        greeted.stream.write_all(&message).unwrap();
        greeted.stream
    });
}

#[test]
fn a_handshake_that_is_cut_off_at_any_byte_is_refused() {
    for encrypt in [false, true] {
        let mut beside = Beside::start(encrypt);
        let hello = greeting(encrypt);
        for cut in 0..HELLO {
            let mut stream = beside.victim.connect();
            stream.write_all(&hello[..cut]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(closed(stream), b"", "{cut}");
        }
        let opening = if encrypt {
            FRAME_HEADER + 48
        } else {
            FRAME_HEADER
        };
        let whole = PROOF + opening;
        for cut in 0..whole {
            let mut greeted = Greeted::new(beside.victim.port(), 1, encrypt);
            let message = greeted.message(&open(7));
            assert_eq!(message.len(), whole);
            greeted.stream.write_all(&message[..cut]).unwrap();
            greeted.stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(closed(greeted.stream), b"", "{cut}");
        }
        beside.is_well();
        let stats = beside.victim.fabric.stats();
        assert_eq!((stats.refused, stats.accepted), ((HELLO + whole) as u64, 1));
    }
}

/// A request with a payload, as it is on the wire.
fn request(number: u64, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        payload: (payload.len() as u64).into(),
        ..header(FrameKind::Request, number)
    };
    [header.as_bytes(), payload].concat()
}

#[test]
fn every_wrong_frame_ends_its_link() {
    let spoilt: [Spoilt; 7] = [
        ("no kind", |h| h.kind = 0),
        ("an unknown kind", |h| h.kind = 11),
        ("the last kind", |h| h.kind = 255),
        ("an opening", |h| h.kind = FrameKind::Open as u8),
        ("an acknowledgement with a payload", |h| {
            h.kind = FrameKind::Acknowledge as u8;
            h.payload = 1.into();
        }),
        ("an end with a payload", |h| {
            h.kind = FrameKind::End as u8;
            h.payload = 1.into();
        }),
        ("a payload over the limit", |h| {
            h.payload = (MAX_PAYLOAD + 1).into()
        }),
    ];
    for encrypt in [false, true] {
        let mut beside = Beside::start(encrypt);
        for ((what, spoil), n) in spoilt.into_iter().zip(1..) {
            let (mut raw, answer) = beside.victim.raw(3, open(n));
            assert_eq!(answer.status.get(), 0, "{what}");
            raw.send(&request(n, b"well"));
            let mut header = header(FrameKind::Request, 1000);
            spoil(&mut header);
            raw.send(header.as_bytes());
            raw.closed();
            beside
                .victim
                .wait_for(what, |seen| seen.lost.len() as u64 == n);
            let last = beside.victim.seen().lost.last().cloned().unwrap();
            assert!(last.contains("malformed frame"), "{what}: {last}");
            // It cannot be gone on with.
            let (raw, answer) = beside.victim.raw(3, open_again(n, 0));
            assert_eq!(answer.status.get(), Code::Unreachable.to_i32(), "{what}");
            raw.closed();
        }
        beside.is_well();
        let numbers: Vec<u64> = beside.others().into_iter().map(|(n, _)| n).collect();
        assert_eq!(numbers, (1..=spoilt.len() as u64).collect::<Vec<_>>());
    }
}

#[test]
fn a_frame_that_is_cut_off_at_any_byte_comes_whole_on_the_next_connection() {
    for encrypt in [false, true] {
        let mut beside = Beside::start(encrypt);
        let whole = request(1, b"twenty bytes of text").len() + if encrypt { 18 } else { 0 };
        let (mut raw, _) = beside.victim.raw(3, open(9));
        for cut in 1..whole as u64 {
            let bytes = raw.sealed(&request(cut, b"twenty bytes of text"));
            raw.send_last(&bytes[..usize::try_from(cut).unwrap()]);
            raw.closed();
            let answer;
            (raw, answer) = beside.victim.raw(3, open_again(9, 0));
            // It has all that came before, and nothing of this one.
            assert_eq!(
                (answer.status.get(), answer.arg0.get()),
                (0, cut - 1),
                "{cut}"
            );
            raw.send(&request(cut, b"twenty bytes of text"));
            beside.victim.wait_for("the frame", |seen| {
                seen.frames.iter().any(|(n, _)| *n == cut)
            });
        }
        beside.is_well();
        let got = beside.others();
        let all = (1..whole as u64).map(|n| (n, b"twenty bytes of text".to_vec()));
        assert_eq!(got, all.collect::<Vec<_>>());
        assert_eq!(beside.victim.seen().lost.len(), 0);
    }
}

#[test]
fn a_peer_that_claims_frames_that_were_never_sent_loses_its_link() {
    for encrypt in [false, true] {
        let mut beside = Beside::start(encrypt);
        let (raw, _) = beside.victim.raw(3, open(9));
        let (again, _) = beside.victim.raw(3, open_again(9, 5));
        again.closed();
        raw.closed();
        beside
            .victim
            .wait_for("the end", |seen| seen.lost.len() == 1);
        let lost = beside.victim.seen().lost[0].clone();
        assert!(lost.contains("claims 5 frames"), "{lost}");
        beside.is_well();
    }
}

#[test]
fn every_wrong_record_ends_its_link() {
    let spoilt: [SpoiltRecord; 6] = [
        ("a changed record", |raw| {
            let mut record = raw.sealed(&request(1, b""));
            record[20] ^= 1;
            record
        }),
        ("a changed tag", |raw| {
            let mut record = raw.sealed(&request(1, b""));
            *record.last_mut().unwrap() ^= 0x80;
            record
        }),
        ("a record without a tag", |_| vec![3, 0, 1, 2, 3]),
        ("a record of nothing", |_| vec![0, 0]),
        ("a record that comes twice", |raw| {
            // Half a frame, so that nothing of it is handed on.
            let record = raw.sealed(&request(1, b"")[..40]);
            [record.clone(), record].concat()
        }),
        ("a record that is left out", |raw| {
            drop(raw.sealed(&request(1, b"")));
            raw.sealed(&request(2, b""))
        }),
    ];
    let mut beside = Beside::start(true);
    for ((what, spoil), n) in spoilt.into_iter().zip(1..) {
        let (mut raw, _) = beside.victim.raw(3, open(n));
        let bytes = spoil(&mut raw);
        raw.stream.write_all(&bytes).unwrap();
        raw.closed();
        beside
            .victim
            .wait_for(what, |seen| seen.lost.len() as u64 == n);
        let last = beside.victim.seen().lost.last().cloned().unwrap();
        assert!(last.contains("encryption"), "{what}: {last}");
    }
    beside.is_well();
    assert_eq!(beside.others(), vec![]);
}

/// Reads the reply with that number.
fn reply(raw: &mut Raw, number: u64) -> FrameHeader {
    loop {
        let mut bytes = [0; FRAME_HEADER];
        raw.stream.read_exact(&mut bytes).unwrap();
        let header = FrameHeader::read_from_bytes(&bytes).unwrap();
        let mut payload = vec![0; usize::try_from(header.payload.get()).unwrap()];
        raw.stream.read_exact(&mut payload).unwrap();
        if header.kind == FrameKind::Reply as u8 && header.request.get() == number {
            return header;
        }
    }
}

#[test]
fn an_agent_answers_what_it_cannot_do_and_closes_on_what_may_not_be() {
    // The agents' threads are their own: what they log goes where all else goes.
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).unwrap();
    let nodes = rig::tcp(&[POOL; 2]);
    let port = nodes[0].agent.local_address().unwrap().port();
    let (owner, friend) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&owner, 4);
    let remote = seen_by(&friend, owned.descriptor());
    let id = owned.id();
    let target = |node, index, kind| Target {
        kind,
        ..Target::from(ObjectId {
            node,
            index,
            kind: ObjectKind::Channel,
            generation: id.generation,
        })
    };
    let own = target(id.node, id.index, ObjectKind::Channel as u8);
    // Requests that cannot be: each is answered, and the link goes on.
    let (mut raw, _) = Raw::stand(port, 70, false, open(1));
    let mut number = 0;
    let mut ask = |raw: &mut Raw, op: u8, target: Target| {
        number += 1;
        let request = FrameHeader {
            op,
            target,
            ..header(FrameKind::Request, number)
        };
        raw.send(request.as_bytes());
        Code::from_i32(reply(raw, number).status.get())
    };
    for op in (0..=255).filter(|op| Op::from_u8(*op).is_none()) {
        assert_eq!(ask(&mut raw, op, own), Code::InvalidArgument, "op {op}");
    }
    for op in [Op::Notify, Op::Allocate, Op::Free] {
        assert_eq!(
            ask(&mut raw, op as u8, own),
            Code::InvalidArgument,
            "{op:?}"
        );
    }
    let send = Op::Send as u8;
    for (what, target) in [
        ("another node", target(node(1), id.index, own.kind)),
        (
            "a node that cannot be",
            Target {
                node: u32::MAX.into(),
                ..own
            },
        ),
        ("no kind", target(id.node, id.index, 0)),
        ("an unknown kind", target(id.node, id.index, 255)),
    ] {
        assert_eq!(ask(&mut raw, send, target), Code::InvalidArgument, "{what}");
    }
    for index in [id.index + 1, 65_535, u32::MAX] {
        let code = ask(&mut raw, send, target(id.node, index, own.kind));
        assert_ne!(code, Code::Ok, "object {index}");
    }
    // Frames that may not be: the connection is closed, with one line in the log.
    for (kind, n) in [
        (FrameKind::Reply, 71),
        (FrameKind::Acknowledge, 72),
        (FrameKind::Open, 73),
    ] {
        let (mut raw, _) = Raw::stand(port, n, false, open(1));
        let payload = u64::from(kind == FrameKind::Acknowledge);
        let wrong = FrameHeader {
            payload: payload.into(),
            ..header(kind, 1)
        };
        raw.send(wrong.as_bytes());
        raw.closed();
        let lines = log.about(&format!("node={n} "));
        assert_eq!(lines.len(), 1, "{kind:?}: {lines:?}");
    }
    // And nobody else has noticed.
    assert_eq!(log.about("node=70 "), Vec::<String>::new());
    remote.send(b"well", 0, watched()).unwrap();
    assert_eq!(owned.receive(watched()).unwrap().into_vec(), b"well");
    let stats = nodes[0].stats().fabric;
    assert_eq!((stats.refused, stats.reconnects), (0, 0));
}
