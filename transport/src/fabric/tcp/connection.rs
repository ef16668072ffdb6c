//! One TCP connection, as the I/O thread has it: the handshake, and what arrives.
//!
//! Before the handshake is complete not a byte more than it needs is read.

use core::ptr::NonNull;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use dragon_protocol::NodeIndex;
use dragon_protocol::handshake::{ANSWER, Acceptor, Connector, HELLO, PROOF, Peer, Role};
use dragon_protocol::key::JobKey;
use dragon_protocol::wire::{FRAME_HEADER, FrameHeader, FrameKind};
use zerocopy::IntoBytes;

use super::raw;
use super::seal::{self, Keys, Opener, Sealer, Shake};
use super::session::Session;
use crate::body::Body;
use crate::clock;
use crate::fabric::stream::{Assembly, CARRY, Inbound, Piece, Sink, read_header};
use crate::fabric::{Handler, Incoming, Link, LinkError, SMALL};

/// Bytes read by one call into memory that all connections share.
const SCRATCH: usize = 64 * 1024;
/// The most of a record that is carried over.
const SEALED_CARRY: usize = seal::RECORD + 2;
/// How much of a large payload makes the I/O thread wake up, if its rest is not less.
const PART: usize = 256 << 10;
/// Bytes of payloads that the other side may keep a copy of before it is told that it need not, when nothing else does.
const UNTOLD: u64 = 2 * SMALL;
/// How much of one connection is read before others get their turn.
const TURN: usize = 4 << 20;

/// Memory of the I/O thread for what arrives.
#[derive(Debug)]
pub(super) struct Scratch {
    plain: Vec<u8>,
    /// Records of encrypted connections, before they are opened.
    sealed: Vec<u8>,
}

impl Scratch {
    pub(super) fn new(encrypt: bool) -> Self {
        let sealed = if encrypt { SCRATCH + SEALED_CARRY } else { 0 };
        Self {
            plain: vec![0; SCRATCH + CARRY],
            sealed: vec![0; sealed],
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) token: u64,
    pub(super) socket: Arc<OwnedFd>,
    stage: Stage,
    /// The beginning of a handshake message whose rest has not arrived.
    carry: Vec<u8>,
    inbound: Inbound,
    /// How many bytes must have arrived before the I/O thread wakes up.
    wakes_at: usize,
    /// Whether that may become more.
    wakes_for_parts: bool,
    encryption: Encryption,
    /// The link that it belongs to: from the beginning where this side opened it.
    pub(super) session: Option<Arc<Session>>,
    /// Where it is not the first lane of a connection.
    pub(super) lane: Option<Lane>,
    /// Bytes of payloads that came since the other side was told to forget what it has sent.
    untold: u64,
}

/// What a further lane belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    /// What the opener calls the connection.
    pub(super) connection: u64,
    /// Which of the lanes that the opener wants it is; 0 at the acceptor.
    pub(super) index: usize,
    /// When the opener gives it up unless it stands; `u64::MAX`: it stands.
    pub(super) due: u64,
}

#[derive(Debug)]
enum Stage {
    /// The connection comes up.
    Connecting,
    /// Accepted: the hello comes.
    Hello,
    /// Accepted: the proof and the opening of the link come.
    Proof(Box<Acceptor>),
    /// Opened: the answer comes.
    Answer(Box<Connector>),
    /// Opened: the answer to the opening comes.
    Opened(Peer),
    /// Frames.
    Frames,
    /// Between two stages.
    None,
}

/// How far the encryption of a connection has come.
#[derive(Debug)]
enum Encryption {
    None,
    Shake(Shake),
    Keys(Keys),
    Records(Opener),
}

/// Who this side is.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) node: NodeIndex,
    pub(super) key: JobKey,
    pub(super) encrypt: bool,
}

impl Identity {
    /// Bytes of the message that opens a link, or answers that.
    fn opening(&self) -> usize {
        if self.encrypt {
            seal::MESSAGE
        } else {
            FRAME_HEADER
        }
    }
}

/// What reading led to.
pub(super) enum Progress {
    /// Everything that has arrived is read, or the turn is over.
    Waiting,
    /// The other side proves the key, and opens a link or goes on with one.
    Asks(Peer, FrameHeader),
    /// The other side agrees to the link.
    Agrees(Peer, FrameHeader),
}

impl Connection {
    pub(super) fn accepted(token: u64, socket: OwnedFd) -> Self {
        Self::new(token, socket, Stage::Hello, None)
    }

    pub(super) fn opening(token: u64, socket: OwnedFd, session: Arc<Session>) -> Self {
        let stage = Stage::Connecting;
        Self::new(token, socket, stage, Some(session))
    }

    fn new(token: u64, socket: OwnedFd, stage: Stage, session: Option<Arc<Session>>) -> Self {
        Self {
            token,
            socket: Arc::new(socket),
            stage,
            carry: Vec::new(),
            inbound: Inbound::default(),
            wakes_at: 1,
            wakes_for_parts: true,
            encryption: Encryption::None,
            session,
            lane: None,
            untold: 0,
        }
    }

    /// Makes it a further lane of a connection of its link.
    pub(super) fn becomes(&mut self, lane: Lane) {
        self.lane = Some(lane);
        self.inbound = Inbound::of_a_lane();
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.stage, Stage::Connecting)
    }

    pub(super) fn stands(&self) -> bool {
        matches!(self.stage, Stage::Frames)
    }

    /// The connection came up: says hello.
    pub(super) fn connected(
        &mut self,
        identity: &Identity,
        to: NodeIndex,
    ) -> Result<(), LinkError> {
        let challenge = challenge().map_err(LinkError::Network)?;
        let me = identity.node;
        let connector = Connector::new(&identity.key, Role::Data, me, to, clock::now(), challenge)
            .encrypted(identity.encrypt);
        self.say(&connector.hello())?;
        self.stage = Stage::Answer(Box::new(connector));
        Ok(())
    }

    /// Reads the handshake as far as it has arrived.
    pub(super) fn shake(&mut self, identity: &Identity) -> Result<Progress, LinkError> {
        loop {
            let needed = match &self.stage {
                Stage::Hello => HELLO,
                Stage::Proof(_) => PROOF + identity.opening(),
                Stage::Answer(_) => ANSWER,
                _ => identity.opening(),
            };
            match self.fill(needed) {
                Ok(true) => {}
                Ok(false) => return Ok(Progress::Waiting),
                Err(LinkError::Closed) => return Err(self.refused()),
                Err(error) => return Err(error),
            }
            let message = core::mem::take(&mut self.carry);
            let now = clock::now();
            match core::mem::replace(&mut self.stage, Stage::None) {
                Stage::Hello => {
                    let challenge = challenge().map_err(LinkError::Network)?;
                    let me = identity.node;
                    let hello = exactly(&message)?;
                    let (key, encrypt) = (&identity.key, identity.encrypt);
                    let (role, accepts) = (Role::Data, Acceptor::with_encryption);
                    let (acceptor, answer) =
                        match accepts(key, role, me, hello, now, challenge, encrypt) {
                            Ok(accepted) => accepted,
                            Err(error) => {
                                let hello = Acceptor::refusal(role, me, hello, now, encrypt);
                                hello.map_or(Ok(()), |hello| self.say(&hello))?;
                                return Err(error.into());
                            }
                        };
                    self.say(&answer)?;
                    self.stage = Stage::Proof(Box::new(acceptor));
                }
                Stage::Proof(acceptor) => {
                    let (proof, open) = message.split_at(PROOF);
                    let peer = acceptor.finish(exactly(proof)?)?;
                    if !identity.encrypt {
                        return Ok(Progress::Asks(peer, opening(open)?));
                    }
                    let mut shake = Shake::new(&identity.key, false)?;
                    let open = opening(&shake.hear(open)?)?;
                    self.encryption = Encryption::Shake(shake);
                    return Ok(Progress::Asks(peer, open));
                }
                Stage::Answer(connector) => {
                    let (proof, peer) = connector.answer(exactly(&message)?, now)?;
                    let session = self.session.as_ref().ok_or(LinkError::ClosedHere)?;
                    let open = open(session, self.token, self.lane);
                    let mut message = open.as_bytes().to_vec();
                    if identity.encrypt {
                        let mut shake = Shake::new(&identity.key, true)?;
                        message = shake.say(&message)?;
                        self.encryption = Encryption::Shake(shake);
                    }
                    self.say(&[&proof[..], &message].concat())?;
                    self.stage = Stage::Opened(peer);
                }
                Stage::Opened(peer) => {
                    let open = match core::mem::replace(&mut self.encryption, Encryption::None) {
                        Encryption::Shake(mut shake) => {
                            let open = opening(&shake.hear(&message)?)?;
                            self.encryption = Encryption::Keys(shake.finish()?);
                            open
                        }
                        _ => opening(&message)?,
                    };
                    self.stage = Stage::Frames;
                    return Ok(Progress::Agrees(peer, open));
                }
                _ => return Err(LinkError::Malformed("bytes before a hello".to_owned())),
            }
        }
    }

    /// Why the other side closed in the middle of the handshake.
    fn refused(&self) -> LinkError {
        match (&self.stage, exactly(&self.carry)) {
            (Stage::Answer(connector), Ok(hello)) => connector.refused(hello).into(),
            _ => LinkError::Closed,
        }
    }

    /// Answers the opening of a link.
    pub(super) fn agree(&mut self, answer: &FrameHeader) -> Result<(), LinkError> {
        match core::mem::replace(&mut self.encryption, Encryption::None) {
            Encryption::Shake(mut shake) => {
                self.say(&shake.say(answer.as_bytes())?)?;
                self.encryption = Encryption::Keys(shake.finish()?);
            }
            _ => self.say(answer.as_bytes())?,
        }
        self.stage = Stage::Frames;
        Ok(())
    }

    /// What seals the outgoing records of an encrypted connection whose handshake is complete.
    pub(super) fn sealer(&mut self) -> Option<Sealer> {
        let Encryption::Keys(keys) = &self.encryption else {
            return None;
        };
        let keys = keys.clone();
        self.encryption = Encryption::Records(Opener::new(keys.clone()));
        Some(Sealer::new(keys))
    }

    /// Reads frames and hands them to the handler. Returns when nothing more has arrived or the turn is over.
    pub(super) fn frames(
        &mut self,
        scratch: &mut Scratch,
        handler: &mut dyn Handler,
    ) -> Result<(), LinkError> {
        let Some(session) = self.session.clone() else {
            return Err(LinkError::ClosedHere);
        };
        let link = Arc::clone(&session) as Arc<dyn Link>;
        let mut sink = Receiving {
            session: &session,
            link: &link,
            handler,
            acknowledged: None,
            more_lanes: false,
            bytes: self.untold,
            ended: false,
        };
        let mut assembly = session.assembly();
        let (socket, mut inbound) = (&self.socket, (&mut self.inbound, &mut *assembly));
        let result = match &mut self.encryption {
            Encryption::Records(opener) => {
                read_sealed(opener, &mut inbound, socket, scratch, &mut sink)
            }
            _ => read(&mut inbound, socket, &mut scratch.plain, &mut sink),
        };
        sink.handler.pause();
        let (acknowledged, bytes) = (sink.acknowledged, sink.bytes);
        let ended = sink.ended;
        if ended && self.lane.is_none() {
            return Err(LinkError::Ended);
        }
        let more_lanes = sink.more_lanes;
        result?;
        self.wake_at(&mut assembly).map_err(LinkError::Network)?;
        drop(assembly);
        if ended {
            session.lane_ends(self.token);
        } else if self.lane.is_some() {
            session.uses_lanes();
        }
        if more_lanes {
            session.asked_for_lanes();
        }
        if let Some(count) = acknowledged {
            session.acknowledged(count).map_err(LinkError::Network)?;
        }
        // An idle link keeps little of what it has sent.
        let much = bytes > UNTOLD;
        self.untold = if much { 0 } else { bytes };
        let told = session.acknowledge(much);
        if self.lane.is_some() {
            session.of_a_lane(told);
            return Ok(());
        }
        told.map_err(LinkError::Network)
    }

    /// While a large payload is on its way into its place, the thread wakes up for large parts of it only; for each part where
    /// the system refuses that.
    fn wake_at(&mut self, assembly: &mut Assembly) -> io::Result<()> {
        let left = self.inbound.landing(assembly);
        let left = left.map_or(0, |piece| piece.len);
        // Of a record's beginning only the rest comes yet, and nothing may follow it.
        let here = match &self.encryption {
            Encryption::Records(opener) => opener.carry.len(),
            _ => 0,
        };
        let wakes_at = left.saturating_sub(here).clamp(1, PART);
        let more = wakes_at > self.wakes_at;
        if wakes_at == self.wakes_at || more && !self.wakes_for_parts {
            return Ok(());
        }
        match raw::wake_at(self.fd(), wakes_at) {
            Ok(()) => self.wakes_at = wakes_at,
            Err(error) if more => {
                self.wakes_for_parts = false;
                tracing::debug!(%error, "SO_RCVLOWAT is refused: large payloads wake the thread more often");
            }
            // The rest of a payload would wake nobody.
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Sends a message of the handshake. Such a message fits into the socket: nothing else is on its way.
    fn say(&self, bytes: &[u8]) -> Result<(), LinkError> {
        // SAFETY: the bytes outlive the call.
        let piece = unsafe { Piece::new(NonNull::from(bytes).cast(), bytes.len()) };
        // SAFETY: the piece is initialised memory of this process.
        let sent = unsafe { raw::send(self.fd(), &[piece]) }.map_err(LinkError::Network)?;
        if sent < bytes.len() {
            return Err(LinkError::Network(io::ErrorKind::WriteZero.into()));
        }
        Ok(())
    }

    /// Reads until the carry has `needed` bytes; false when they have not all arrived.
    fn fill(&mut self, needed: usize) -> Result<bool, LinkError> {
        let mut buffer = [0_u8; PROOF + seal::MESSAGE];
        while self.carry.len() < needed {
            let missing = needed - self.carry.len();
            match rustix::io::read(&self.socket, &mut buffer[..missing]) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => self.carry.extend_from_slice(&buffer[..n]),
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(LinkError::Network(e.into())),
            }
        }
        Ok(true)
    }
}

/// `arg1` of the opening of a further lane.
pub(super) const LANE: u64 = 2;

const _: () = assert!(PROOF + seal::MESSAGE >= ANSWER && PROOF + seal::MESSAGE >= HELLO);

/// What asks for a link: a new one when it never stood; or for a further lane of a connection.
fn open(session: &Session, token: u64, lane: Option<Lane>) -> FrameHeader {
    let new = u64::from(!session.is_up());
    FrameHeader {
        kind: FrameKind::Open as u8,
        request: session.number.into(),
        deadline: lane.map_or(token, |lane| lane.connection).into(),
        arg0: session.received().into(),
        arg1: lane.map_or(new, |_| LANE).into(),
        ..zerocopy::FromZeros::new_zeroed()
    }
}

fn opening(bytes: &[u8]) -> Result<FrameHeader, LinkError> {
    match read_header(bytes)? {
        (header, FrameKind::Open) if header.payload.get() == 0 => Ok(header),
        (_, kind) => Err(LinkError::Malformed(format!("{kind:?} before a link"))),
    }
}

/// How far a stream was read, and what of its link came ahead of its turn.
type Reading<'a> = (&'a mut Inbound, &'a mut Assembly);

fn read(
    (inbound, assembly): &mut Reading<'_>,
    socket: &OwnedFd,
    scratch: &mut [u8],
    sink: &mut Receiving<'_>,
) -> Result<(), LinkError> {
    let mut turn = TURN;
    loop {
        let beyond = inbound.beyond(assembly).unwrap_or(SCRATCH).min(SCRATCH);
        let carried = inbound.take_carry(scratch);
        let start = NonNull::from(&mut scratch[carried..carried + SCRATCH]).cast();
        // SAFETY: at most SCRATCH bytes of the scratch memory, which nothing else uses during the call.
        let rest = unsafe { Piece::new(start, beyond) };
        let landing = inbound.landing(assembly);
        let direct = landing.map_or(0, |piece| piece.len);
        let received = match landing {
            // SAFETY: both pieces are writable: see above, and the body is this reader's until it is handed on.
            Some(piece) => unsafe { raw::receive(socket.as_fd(), &[piece, rest]) },
            // SAFETY: the piece is writable, see above.
            None => unsafe { raw::receive(socket.as_fd(), &[rest]) },
        };
        let received = match received {
            Ok(0) => return Err(LinkError::Closed),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                inbound.keep(&scratch[..carried]);
                return Ok(());
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                inbound.keep(&scratch[..carried]);
                continue;
            }
            Err(e) => return Err(LinkError::Network(e)),
        };
        sink.session.peer.bytes_received(received as u64);
        let landed = direct.min(received);
        inbound.landed(landed as u64, assembly, sink)?;
        inbound.parse(&scratch[..carried + received - landed], assembly, sink)?;
        sink.handler.pause();
        turn = turn.saturating_sub(received);
        if sink.ended || received < beyond + direct || turn == 0 {
            return Ok(());
        }
    }
}

/// The same from an encrypted connection.
fn read_sealed(
    opener: &mut Opener,
    (inbound, assembly): &mut Reading<'_>,
    socket: &OwnedFd,
    scratch: &mut Scratch,
    sink: &mut Receiving<'_>,
) -> Result<(), LinkError> {
    let Scratch { plain, sealed } = scratch;
    let mut turn = TURN;
    loop {
        let carried = opener.carry.len();
        let room = sealed.len() - carried;
        let start = NonNull::from(&mut sealed[carried..]).cast();
        // SAFETY: the rest of the scratch memory, which nothing else uses during the call.
        let piece = unsafe { Piece::new(start, room) };
        // SAFETY: the piece is writable, see above.
        let received = match unsafe { raw::receive(socket.as_fd(), &[piece]) } {
            Ok(0) => return Err(LinkError::Closed),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(LinkError::Network(e)),
        };
        sink.session.peer.bytes_received(received as u64);
        sealed[..carried].copy_from_slice(&opener.carry);
        let mut bytes = &sealed[..carried + received];
        loop {
            let carried = inbound.take_carry(plain);
            let Some((took, gave)) = opener.open(bytes, &mut plain[carried..])? else {
                inbound.keep(&plain[..carried]);
                break;
            };
            bytes = &bytes[took..];
            inbound.parse(&plain[..carried + gave], assembly, sink)?;
            if sink.ended {
                return Ok(());
            }
        }
        // An idle connection holds no memory.
        opener.carry = bytes.to_vec();
        turn = turn.saturating_sub(received);
        if received < room || turn == 0 {
            return Ok(());
        }
    }
}

/// Hands what arrives to the handler.
struct Receiving<'a> {
    session: &'a Arc<Session>,
    link: &'a Arc<dyn Link>,
    handler: &'a mut dyn Handler,
    acknowledged: Option<u16>,
    /// The other side could use more lanes.
    more_lanes: bool,
    /// Of payloads that the other side keeps until it is told that they have come.
    bytes: u64,
    ended: bool,
}

impl Sink for Receiving<'_> {
    fn land(&mut self, header: &FrameHeader) -> Option<Body> {
        self.handler.land(self.link, header)
    }

    fn frame(&mut self, header: &FrameHeader, payload: Incoming<'_>) {
        self.session.count_received();
        self.session.peer.frame_received();
        // A large one is a block of the other side's pool.
        self.bytes += match header.payload.get() {
            0..=SMALL => header.payload.get(),
            _ => UNTOLD + 1,
        };
        self.handler.frame(self.link, header, payload);
    }

    fn received(&self) -> u64 {
        self.session.received()
    }

    fn acknowledged(&mut self, count: u16) {
        self.acknowledged = Some(count);
    }

    fn more_lanes(&mut self) {
        self.more_lanes = true;
    }

    fn end(&mut self) {
        self.ended = true;
    }
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], LinkError> {
    bytes
        .try_into()
        .map_err(|_| LinkError::Malformed("a handshake message of another length".to_owned()))
}

fn challenge() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(bytes)
}
