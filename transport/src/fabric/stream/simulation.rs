//! The protocol of a link against an oracle, over pipes that break anywhere, with a seed that repeats a run exactly.
//!
//! The oracle is the list of what each side submitted: what the other side got is a prefix of it at any time, all of it in
//! the end, and when the link is given up instead, no frame that is returned as unsent was handed on. With several lanes
//! each is a pipe of its own, which moves and breaks on its own.

use dragon_protocol::wire::{FRAME_HEADER, FrameHeader, FrameKind};
use zerocopy::{FromZeros, IntoBytes};

use super::pieces::Outlet;
use super::{Assembly, CARRY, Inbound, PIECE, SPLIT, Sink, Window};
use crate::body::Body;
use crate::fabric::{Frame, Incoming};

/// A generator of numbers that is the same everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The most lanes of a connection.
const LANES: usize = 3;

/// One lane as one end has it. The first is the connection itself.
struct Lane {
    inbound: Inbound,
    outlet: Outlet,
    /// Bytes on their way to this end.
    pipe: Vec<u8>,
    up: bool,
    /// Nothing reaches this end any more.
    deaf: bool,
    /// This end is to say the last on it.
    says_end: bool,
    /// The other end has said the last on it.
    ended: bool,
}

impl Lane {
    fn new(at: usize, up: bool) -> Self {
        Self {
            inbound: if at == 0 {
                Inbound::default()
            } else {
                Inbound::of_a_lane()
            },
            outlet: Outlet::new(at == 0),
            pipe: Vec::new(),
            up,
            deaf: false,
            says_end: false,
            ended: false,
        }
    }
}

/// One end of the link.
struct End {
    window: Window,
    /// The connection's own state; gone with it.
    lanes: [Lane; LANES],
    assembly: Assembly,
    aside: bool,
    received: u64,
    told: u64,
    /// Number and length of what was submitted here.
    submitted: Vec<u64>,
    got: Vec<u64>,
    again: u64,
    /// Bytes that went on the lanes but the first.
    aside_bytes: u64,
}

impl Default for End {
    fn default() -> Self {
        Self {
            window: Window::default(),
            lanes: core::array::from_fn(|at| Lane::new(at, false)),
            assembly: Assembly::default(),
            aside: false,
            received: 0,
            told: 0,
            submitted: Vec::new(),
            got: Vec::new(),
            again: 0,
            aside_bytes: 0,
        }
    }
}

struct Taking<'a> {
    window: &'a mut Window,
    received: &'a mut u64,
    got: &'a mut Vec<u64>,
    ended: bool,
    stingy: bool,
}

fn size(number: u64) -> usize {
    let split = usize::try_from(SPLIT).unwrap();
    let sizes = [0, 79, 300, 4096, 9000, split, 40_000, 5 * split + 1];
    sizes[usize::try_from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61).unwrap()]
}

fn payload(number: u64) -> Vec<u8> {
    let length = size(number);
    let mut all = number.to_le_bytes().repeat(length / 8 + 1);
    all.truncate(length);
    // No piece is like another one.
    for (n, byte) in (0..=u8::MAX).cycle().zip(all.iter_mut().step_by(1024)) {
        *byte ^= n;
    }
    all
}

impl Sink for Taking<'_> {
    fn land(&mut self, header: &FrameHeader) -> Option<Body> {
        let length = usize::try_from(header.payload.get()).unwrap();
        (!self.stingy).then(|| Body::Bytes(vec![0; length]))
    }

    fn frame(&mut self, header: &FrameHeader, incoming: Incoming<'_>) {
        let number = header.request.get();
        match incoming {
            Incoming::Small(bytes) => assert_eq!(bytes, payload(number)),
            Incoming::Landed(body) => assert_eq!(body.to_vec(), payload(number)),
            Incoming::Skipped(length) => assert_eq!(length, size(number) as u64),
        }
        *self.received += 1;
        self.got.push(number);
    }

    fn received(&self) -> u64 {
        *self.received
    }

    fn acknowledged(&mut self, count: u16) {
        self.window.acknowledged(count);
    }

    fn end(&mut self) {
        self.ended = true;
    }
}

impl End {
    fn submit(&mut self, number: u64) {
        let header = FrameHeader {
            kind: FrameKind::Request as u8,
            request: number.into(),
            payload: (size(number) as u64).into(),
            acknowledged: low(self.received).into(),
            ..FrameHeader::new_zeroed()
        };
        self.told = self.received;
        let body = Body::Bytes(payload(number));
        self.submitted.push(number);
        self.window.submit(Frame { header, body });
    }

    fn is_attached(&self) -> bool {
        self.lanes[0].up
    }

    /// Whether any of the further lanes is there.
    fn divides(&self) -> bool {
        let mut lanes = self.lanes[1..].iter();
        lanes.any(|lane| lane.up && !lane.outlet.is_closing())
    }

    /// One of the further lanes is gone; whether the connection goes with it.
    fn without_lane(&mut self, at: usize) -> bool {
        let lane = core::mem::replace(&mut self.lanes[at], Lane::new(at, false));
        let closing = lane.outlet.is_closing();
        lane.outlet.is_at_stake(&self.window) || !closing && !self.assembly.is_idle()
    }

    /// Writes some bytes into the pipe to the other end.
    fn write_to(&mut self, other: &mut Self, at: usize, random: &mut Random) {
        let to = &mut other.lanes[at];
        self.write(at, &mut to.pipe, random);
        if to.deaf || !to.up && at > 0 {
            to.pipe.clear();
        }
    }

    fn write(&mut self, at: usize, to: &mut Vec<u8>, random: &mut Random) {
        let divide = self.divides();
        let lane = &mut self.lanes[at];
        if !lane.up || to.len() > 100_000 {
            return;
        }
        if at == 0 && self.aside && !lane.outlet.is_within(&self.window) {
            let header = FrameHeader {
                kind: FrameKind::Acknowledge as u8,
                acknowledged: low(self.received).into(),
                ..FrameHeader::new_zeroed()
            };
            to.extend_from_slice(header.as_bytes());
            self.told = self.received;
            self.aside = false;
            return;
        }
        if lane.says_end && !lane.outlet.is_within(&self.window) {
            let header = FrameHeader {
                kind: FrameKind::End as u8,
                ..FrameHeader::new_zeroed()
            };
            to.extend_from_slice(header.as_bytes());
            lane.says_end = false;
            return;
        }
        // SAFETY: neither the window nor the outlet is changed before the pieces were copied.
        let (pieces, count) = unsafe { lane.outlet.pieces(&mut self.window, self.aside, divide) };
        // Now and then the socket is full.
        if count == 0 || random.one_in(4) {
            return;
        }
        let total: usize = pieces[..count].iter().map(|piece| piece.len).sum();
        let most = if random.one_in(2) {
            total as u64
        } else {
            random.below(total as u64) + 1
        };
        let mut left = usize::try_from(most).unwrap();
        for piece in &pieces[..count] {
            let take = piece.len.min(left);
            // SAFETY: a piece of a frame in the window, or a head in the outlet, which is memory of this process.
            to.extend_from_slice(unsafe {
                core::slice::from_raw_parts(piece.start.as_ptr(), take)
            });
            left -= take;
        }
        self.again += lane.outlet.wrote(&mut self.window, most).again;
        self.aside_bytes += if at > 0 { most } else { 0 };
    }

    /// Reads some bytes of the pipe to this end.
    fn read(&mut self, at: usize, random: &mut Random) {
        let lane = &mut self.lanes[at];
        if lane.pipe.is_empty() {
            return;
        }
        let most = usize::try_from(random.below(lane.pipe.len() as u64) + 1).unwrap();
        let rest = lane.pipe.split_off(most);
        let bytes = core::mem::replace(&mut lane.pipe, rest);
        let mut buffer = vec![0; CARRY];
        let carried = lane.inbound.take_carry(&mut buffer);
        buffer.truncate(carried);
        let mut bytes = &bytes[..];
        let mut sink = Taking {
            window: &mut self.window,
            received: &mut self.received,
            got: &mut self.got,
            ended: false,
            stingy: random.one_in(5),
        };
        let assembly = &mut self.assembly;
        let place = lane.inbound.landing(assembly);
        if let Some(piece) = place.filter(|_| carried == 0 && random.one_in(2)) {
            let direct = piece.len.min(bytes.len());
            // SAFETY: the piece is that long, and the body's memory is apart from the bytes.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), piece.start.as_ptr(), direct) };
            let landed = lane.inbound.landed(direct as u64, assembly, &mut sink);
            landed.unwrap();
            bytes = &bytes[direct..];
        }
        buffer.extend_from_slice(bytes);
        lane.inbound.parse(&buffer, assembly, &mut sink).unwrap();
        if sink.ended {
            assert!(at > 0, "nobody ends the link");
            lane.ended = true;
            lane.outlet.close();
        }
        // A large one is told of at once.
        let large = |number: &u64| size(*number) > 4096;
        let told = usize::try_from(self.told).unwrap();
        self.aside |= self.received - self.told >= 8 || self.got[told..].iter().any(large);
    }

    /// The connection breaks for this end: of what is on its way to it some arrives yet, and nothing after that.
    fn broken(&mut self, random: &mut Random) {
        for lane in &mut self.lanes {
            let arrives = random.below(lane.pipe.len() as u64 + 1);
            lane.pipe.truncate(usize::try_from(arrives).unwrap());
        }
        self.detach();
    }

    /// The old connection is dropped with what it has brought.
    fn drop_connection(&mut self) {
        let deaf = self.lanes[0].deaf;
        self.lanes = core::array::from_fn(|at| Lane::new(at, at == 0 && self.is_attached()));
        self.lanes[0].deaf = deaf;
        self.assembly = Assembly::default();
        self.aside = false;
        self.detach();
    }

    fn detach(&mut self) {
        let attached = self.is_attached();
        for lane in &mut self.lanes {
            lane.up = false;
        }
        if attached {
            self.window.broke();
        }
    }

    fn attach(&mut self, received: u64) {
        self.window.resume(received).unwrap();
        self.lanes[0].up = true;
        self.told = self.received;
    }
}

fn low(count: u64) -> u16 {
    u16::try_from(count & 0xffff).unwrap()
}

/// What passes in the handshake of a new connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shake {
    /// None is under way.
    None,
    /// The opener has said how many frames it has.
    Asked(u64),
    /// The acceptor has answered with the number of its frames.
    Answered(u64),
}

struct Link {
    random: Random,
    /// Lanes that may be used.
    lanes: u64,
    opener: End,
    acceptor: End,
    shake: Shake,
    breaks: u64,
    /// Lanes that were opened, and that broke alone.
    opened: u64,
    lost: u64,
    /// Lanes that were closed with care, and of these those that the acceptor was using just then.
    closed: u64,
    used: u64,
    /// How much of what both ends got has been checked.
    checked: [usize; 2],
}

impl Link {
    fn new(seed: u64, lanes: u64) -> Self {
        let mut link = Self {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            lanes,
            opener: End::default(),
            acceptor: End::default(),
            shake: Shake::None,
            breaks: 0,
            opened: 0,
            lost: 0,
            closed: 0,
            used: 0,
            checked: [0; 2],
        };
        link.opener.attach(0);
        link.acceptor.attach(0);
        link
    }

    fn step(&mut self, faults: bool) {
        let at = usize::try_from(self.random.below(self.lanes)).unwrap();
        let Self {
            random,
            opener,
            acceptor,
            ..
        } = self;
        match random.below(9) {
            0 | 1 => opener.write_to(acceptor, at, random),
            2 | 3 => acceptor.write_to(opener, at, random),
            // Between the opening and its answer nothing else is read.
            4 if self.shake == Shake::None => opener.read(at, random),
            5 => acceptor.read(at, random),
            6 => self.shake(),
            7 if at > 0 => self.lane(at, faults),
            _ if faults && self.random.one_in(12) => self.cut(),
            _ => {}
        }
        self.check();
    }

    /// A lane comes up, breaks, or is seen to be broken.
    fn lane(&mut self, at: usize, faults: bool) {
        let ends = [&mut self.opener, &mut self.acceptor];
        let stand = ends.iter().all(|end| end.is_attached());
        if !stand || self.shake != Shake::None || ends.iter().any(|end| end.lanes[0].deaf) {
            return;
        }
        if ends.iter().all(|end| !end.lanes[at].up) {
            for end in ends {
                end.lanes[at] = Lane::new(at, true);
            }
            self.opened += 1;
            return;
        }
        let broken = ends.iter().any(|end| end.lanes[at].deaf);
        let [opener, acceptor] = ends;
        if !broken && acceptor.lanes[at].ended {
            // Of what was sent on it all has arrived: so it goes, and nothing else does.
            let outlet = &acceptor.lanes[at].outlet;
            if !outlet.is_at_stake(&acceptor.window) {
                self.closed += 1;
                assert!(opener.lanes[at].pipe.is_empty() && acceptor.lanes[at].pipe.is_empty());
                assert!(!acceptor.without_lane(at) && !opener.without_lane(at));
            }
            return;
        }
        let idle = !opener.lanes[at].outlet.is_at_stake(&opener.window);
        if !broken && idle && !opener.lanes[at].outlet.is_closing() && self.random.one_in(4) {
            let outlet = &acceptor.lanes[at].outlet;
            self.used += u64::from(outlet.is_at_stake(&acceptor.window));
            opener.lanes[at].outlet.close();
            opener.lanes[at].says_end = true;
            return;
        }
        let ends = [opener, acceptor];
        if !broken && faults && self.random.one_in(8) {
            self.lost += 1;
            for end in ends {
                let lane = &mut end.lanes[at];
                let arrives = self.random.below(lane.pipe.len() as u64 + 1);
                lane.pipe.truncate(usize::try_from(arrives).unwrap());
                lane.deaf = true;
            }
            return;
        }
        let mut breaks = false;
        for end in ends {
            let lane = &mut end.lanes[at];
            if lane.up && lane.deaf && lane.pipe.is_empty() {
                breaks |= end.without_lane(at);
                end.lanes[at].deaf = true;
            }
        }
        if breaks {
            self.cut();
        }
    }

    /// Both ends lose the connection, or the opener alone notices: what the other writes goes nowhere.
    fn cut(&mut self) {
        self.breaks += 1;
        let who = self.random.below(2);
        if self.shake != Shake::None {
            self.opener.lanes[0].pipe.clear();
            self.shake = Shake::None;
        }
        // The opener notices in the end: nothing more comes.
        self.opener.broken(&mut self.random);
        for lane in &mut self.opener.lanes {
            lane.deaf = true;
        }
        if who != 0 {
            self.acceptor.broken(&mut self.random);
        }
    }

    fn shake(&mut self) {
        self.shake = match self.shake {
            Shake::None if !self.opener.is_attached() => {
                self.opener.drop_connection();
                Shake::Asked(self.opener.received)
            }
            Shake::Asked(received) => {
                self.acceptor.drop_connection();
                self.acceptor.attach(received);
                self.opener.lanes[0].deaf = false;
                Shake::Answered(self.acceptor.received)
            }
            Shake::Answered(received) => {
                self.opener.attach(received);
                Shake::None
            }
            Shake::None => Shake::None,
        };
    }

    fn check(&mut self) {
        let both = [
            (&self.opener, &self.acceptor),
            (&self.acceptor, &self.opener),
        ];
        for ((from, to), checked) in both.into_iter().zip(&mut self.checked) {
            let got = &to.got[*checked..];
            assert!(from.submitted[*checked..].starts_with(got), "{got:?}");
            *checked = to.got.len();
        }
    }
}

/// Submits at random, with faults.
fn disturbed(seed: u64, lanes: u64) -> Link {
    let mut link = Link::new(seed, lanes);
    let steps = link.random.below(2500 * lanes);
    let mut number = seed << 20;
    for _ in 0..steps {
        if link.random.one_in(6 * lanes) {
            number += 1;
            if link.random.one_in(2) {
                link.opener.submit(number);
            } else {
                link.acceptor.submit(number);
            }
        }
        link.step(true);
    }
    link
}

const SEEDS: u64 = if cfg!(miri) { 3 } else { 60 };

fn everything_arrives(lanes: u64) {
    let (mut breaks, mut again, mut opened, mut lost, mut aside) = (0, 0, 0, 0, 0);
    let (mut closed, mut used) = (0, 0);
    for seed in 0..SEEDS {
        let mut link = disturbed(seed, lanes);
        let over = |link: &Link| {
            link.acceptor.got.len() == link.opener.submitted.len()
                && link.opener.got.len() == link.acceptor.submitted.len()
        };
        let mut left = 400_000_u64;
        while !over(&link) {
            link.step(false);
            left = left
                .checked_sub(1)
                .unwrap_or_else(|| panic!("seed {seed} makes no progress"));
        }
        breaks += link.breaks;
        (opened, lost) = (opened + link.opened, lost + link.lost);
        (closed, used) = (closed + link.closed, used + link.used);
        again += link.opener.again + link.acceptor.again;
        aside += link.opener.aside_bytes + link.acceptor.aside_bytes;
        // What was acknowledged is kept no longer.
        for _ in 0..600 {
            link.opener.aside |= link.opener.is_attached();
            link.acceptor.aside |= link.acceptor.is_attached();
            link.step(false);
        }
        assert_eq!(
            (link.opener.window.len(), link.acceptor.window.len()),
            (0, 0),
            "seed {seed}"
        );
        assert!(link.opener.assembly.is_idle() && link.acceptor.assembly.is_idle());
    }
    assert!(
        breaks > SEEDS && again > SEEDS / 4,
        "{breaks} breaks, {again} frames again"
    );
    if lanes > 1 {
        assert!(
            opened > SEEDS && lost > SEEDS / 4 && aside > SEEDS * 4 * PIECE,
            "{opened} lanes opened, {lost} lost, {aside} bytes on them"
        );
        assert!(
            closed > SEEDS / 4 && used > SEEDS / 4,
            "{closed} lanes closed, {used} in use"
        );
    }
}

#[test]
fn everything_arrives_once_and_in_order_whatever_breaks() {
    everything_arrives(1);
}

#[test]
fn everything_arrives_once_and_in_order_whichever_lane_breaks() {
    everything_arrives(2);
    everything_arrives(LANES as u64);
}

/// Until the other end has said that it has the frame, whether its header has gone or not.
#[test]
fn a_lane_is_at_stake_from_its_first_piece_on() {
    let mut end = End::default();
    end.attach(0);
    end.lanes[1].up = true;
    // Of two pieces.
    let large = (0..).find(|n| size(*n) as u64 == SPLIT).unwrap();
    end.submit(large);
    let (mut first, mut lane) = (Outlet::new(true), Outlet::new(false));
    // SAFETY: what they lead to is not used.
    let header = unsafe { first.pieces(&mut end.window, false, true) };
    // The first lane takes nothing of it.
    assert_eq!((header.1, header.0[0].len), (1, FRAME_HEADER));
    assert!(!lane.is_at_stake(&end.window));
    for _ in 0..2 {
        // SAFETY: as above.
        let (pieces, count) = unsafe { lane.pieces(&mut end.window, false, true) };
        assert!(lane.is_at_stake(&end.window));
        let all: usize = pieces[..count].iter().map(|piece| piece.len).sum();
        lane.wrote(&mut end.window, all as u64);
    }
    assert!(lane.is_at_stake(&end.window));
    assert!(!first.is_at_stake(&end.window));
    first.wrote(&mut end.window, FRAME_HEADER as u64);
    assert!(lane.is_at_stake(&end.window));
    end.window.acknowledged(1);
    assert!(!lane.is_at_stake(&end.window));
    // A lane that is being closed takes nothing more.
    lane.close();
    end.submit(large);
    // SAFETY: as above.
    let count = |outlet: &mut Outlet, end: &mut End| unsafe {
        outlet.pieces(&mut end.window, false, true).1
    };
    assert_eq!(count(&mut first, &mut end), 1);
    assert_eq!(count(&mut lane, &mut end), 0);
    assert!(!lane.is_at_stake(&end.window));
}

/// A piece without a place is read as a whole; one with a place ends exactly where the next one's head begins.
#[test]
fn what_is_read_beyond_a_piece_is_a_head_unless_its_bytes_go_nowhere() {
    for stingy in [false, true] {
        let mut end = End::default();
        let of = FrameHeader {
            kind: FrameKind::Request as u8 | dragon_protocol::wire::APART,
            payload: SPLIT.into(),
            ..FrameHeader::new_zeroed()
        };
        let piece = FrameHeader {
            kind: FrameKind::Piece as u8,
            payload: PIECE.into(),
            ..FrameHeader::new_zeroed()
        };
        let head = [piece.as_bytes(), of.as_bytes()].concat();
        let mut sink = Taking {
            window: &mut end.window,
            received: &mut end.received,
            got: &mut end.got,
            ended: false,
            stingy,
        };
        let (mut inbound, assembly) = (Inbound::of_a_lane(), &mut end.assembly);
        assert_eq!(inbound.beyond(assembly), Some(head.len()));
        inbound.parse(&head, assembly, &mut sink).unwrap();
        let placed = inbound.landing(assembly).map_or(0, |place| place.len);
        let beyond = inbound.beyond(assembly).unwrap();
        assert_eq!(
            placed,
            if stingy {
                0
            } else {
                usize::try_from(PIECE).unwrap()
            }
        );
        assert_eq!(
            placed + beyond,
            usize::try_from(PIECE).unwrap() + head.len()
        );
    }
}

#[test]
fn what_is_returned_as_unsent_was_not_handed_on() {
    let mut returned = 0;
    for (seed, lanes) in (0..SEEDS).flat_map(|seed| [(seed, 1), (seed, LANES as u64)]) {
        let mut link = disturbed(seed, lanes);
        let (opener, acceptor) = (&mut link.opener, &mut link.acceptor);
        let (there, here) = (acceptor.got.clone(), opener.got.clone());
        for (from, got) in [(opener, there), (acceptor, here)] {
            let unsent = from.window.end();
            returned += unsent.len();
            for frame in &unsent {
                assert!(!got.contains(&frame.header.request.get()), "seed {seed}");
            }
            // And they are the last ones, in their order.
            let numbers: Vec<u64> = unsent.iter().map(|f| f.header.request.get()).collect();
            assert!(from.submitted.ends_with(&numbers), "seed {seed}");
        }
    }
    assert!(returned > 0);
}

#[test]
fn a_peer_that_claims_what_was_never_sent_is_refused() {
    let mut end = End::default();
    end.attach(0);
    end.submit(1);
    end.submit(2);
    assert!(end.window.resume(1).is_err(), "nothing was sent");
    let mut to = Vec::new();
    let mut random = Random(1);
    while end.window.queued() > 0 {
        end.write(0, &mut to, &mut random);
    }
    assert!(end.window.resume(3).is_err());
    end.window.resume(1).unwrap();
    assert!(end.window.resume(0).is_err(), "it had acknowledged one");
    // An acknowledgement of more than was sent on this connection changes nothing.
    end.window.acknowledged(2);
    assert_eq!(end.window.len(), 1);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut end = End::default();
    end.attach(0);
    for _ in 0..20_000 {
        let header = FrameHeader {
            kind: FrameKind::Request as u8,
            ..FrameHeader::new_zeroed()
        };
        let body = Body::empty();
        end.window.submit(Frame { header, body });
    }
    let mut to = Vec::new();
    let mut random = Random(1);
    while end.window.is_ready() {
        to.clear();
        end.write(0, &mut to, &mut random);
    }
    // The rest waits until the other side says that it has some of them.
    assert_eq!(end.window.queued(), (20_000 - 8192) * FRAME_HEADER as u64);
    end.window.acknowledged(8192);
    assert!(end.window.is_ready());
    while end.window.len() > 3 {
        to.clear();
        end.write(0, &mut to, &mut random);
        let rest = end.window.queued() / FRAME_HEADER as u64;
        end.window.acknowledged(low(20_000 - rest.max(3)));
    }
    // Room that was in use stays for a while; an idle link keeps no more than for a few.
    end.window.tidy();
    assert!(end.window.is_roomy());
    end.window.tidy();
    assert!(!end.window.is_roomy());
}
