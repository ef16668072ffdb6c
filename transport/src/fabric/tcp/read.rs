//! The half of a connection that belongs to the I/O thread: the handshake, and frames out of the stream.
//!
//! Frames with small payloads are parsed where they were received; nothing is copied unless a frame is cut by the end of
//! what has arrived. A larger payload goes straight into the memory that the handler names: one call reads the rest of it
//! and whatever follows. Before the handshake is complete not a byte more than it needs is read.

use core::ptr::NonNull;
use std::io;
use std::sync::Arc;

use dragon_protocol::NodeIndex;
use dragon_protocol::handshake::{ANSWER, Acceptor, Connector, HELLO, PROOF, Peer, Role};
use dragon_protocol::key::JobKey;
use dragon_protocol::wire::{FRAME_HEADER, FrameHeader, FrameKind, MAX_PAYLOAD};
use zerocopy::FromBytes;

use super::conn::Conn;
use super::raw::{self, Piece};
use crate::body::Body;
use crate::clock;
use crate::fabric::{Handler, Incoming, Link, LinkError, SMALL};

/// Bytes read by one call into memory that all connections share.
const SCRATCH: usize = 64 * 1024;
/// [`SMALL`] as a length in memory.
const SMALL_BYTES: usize = 4096;
const _: () = assert!(SMALL_BYTES as u64 == SMALL);
/// How much of one connection is read before others get their turn.
const TURN: usize = 4 << 20;

/// Memory of the I/O thread for what arrives.
#[derive(Debug)]
pub(super) struct Scratch(Vec<u8>);

impl Scratch {
    pub(super) fn new() -> Self {
        Self(vec![0; SCRATCH + FRAME_HEADER + SMALL_BYTES])
    }
}

/// Where the stream stands.
#[derive(Debug)]
pub(super) struct Reader {
    stage: Stage,
    /// The beginning of a frame or of a handshake message whose rest has not arrived.
    carry: Vec<u8>,
}

#[derive(Debug)]
enum Stage {
    /// Accepted: the hello comes.
    Hello,
    /// Accepted: the proof comes.
    Proof(Box<Acceptor>),
    /// Opened: the connection or the answer comes. `None` only while it is being checked.
    Answer(Option<Box<Connector>>),
    /// Headers.
    Header,
    /// A payload on its way into its place.
    Landing {
        header: FrameHeader,
        body: Body,
        filled: u64,
    },
    /// A payload without a place.
    Skipping { header: FrameHeader, left: u64 },
}

/// Who this side is.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) node: NodeIndex,
    pub(super) key: JobKey,
}

/// What reading led to.
pub(super) enum Progress {
    /// Everything that has arrived is read, or the turn is over.
    Waiting,
    /// The handshake is complete.
    Stands(Peer),
}

impl Reader {
    pub(super) fn accepted() -> Self {
        Self {
            stage: Stage::Hello,
            carry: Vec::new(),
        }
    }

    pub(super) fn opening() -> Self {
        Self {
            stage: Stage::Answer(None),
            carry: Vec::new(),
        }
    }

    /// The connection came up: says hello.
    pub(super) fn connected(&mut self, conn: &Conn, identity: &Identity) -> Result<(), LinkError> {
        let (me, to) = (identity.node, conn.node());
        let challenge = challenge().map_err(LinkError::Network)?;
        let connector = Connector::new(&identity.key, Role::Data, me, to, clock::now(), challenge);
        conn.greet(&connector.hello()).map_err(LinkError::Network)?;
        self.stage = Stage::Answer(Some(Box::new(connector)));
        Ok(())
    }

    /// Reads the handshake as far as it has arrived.
    pub(super) fn shake(
        &mut self,
        conn: &Conn,
        identity: &Identity,
    ) -> Result<Progress, LinkError> {
        loop {
            let needed = match &self.stage {
                Stage::Hello => HELLO,
                Stage::Proof(_) => PROOF,
                _ => ANSWER,
            };
            if !self.fill(conn, needed)? {
                return Ok(Progress::Waiting);
            }
            let message = core::mem::take(&mut self.carry);
            let now = clock::now();
            match core::mem::replace(&mut self.stage, Stage::Header) {
                Stage::Hello => {
                    let challenge = challenge().map_err(LinkError::Network)?;
                    let (acceptor, answer) = Acceptor::new(
                        &identity.key,
                        Role::Data,
                        identity.node,
                        exactly(&message)?,
                        now,
                        challenge,
                    )?;
                    conn.greet(&answer).map_err(LinkError::Network)?;
                    self.stage = Stage::Proof(Box::new(acceptor));
                }
                Stage::Proof(acceptor) => {
                    return Ok(Progress::Stands(acceptor.finish(exactly(&message)?)?));
                }
                Stage::Answer(Some(connector)) => {
                    let (proof, peer) = connector.answer(exactly(&message)?, now)?;
                    conn.greet(&proof).map_err(LinkError::Network)?;
                    return Ok(Progress::Stands(peer));
                }
                _ => return Err(LinkError::Malformed("bytes before a hello".to_owned())),
            }
        }
    }

    /// Reads frames and hands them to the handler. Returns when nothing more has arrived or the turn is over.
    pub(super) fn frames(
        &mut self,
        conn: &Arc<Conn>,
        scratch: &mut Scratch,
        shared: &super::shared::Counters,
        handler: &mut dyn Handler,
    ) -> Result<(), LinkError> {
        let link: Arc<dyn Link> = Arc::clone(conn) as Arc<dyn Link>;
        let mut turn = TURN;
        loop {
            let carried = self.carry.len();
            scratch.0[..carried].copy_from_slice(&self.carry);
            self.carry.clear();
            let start = NonNull::from(&mut scratch.0[carried..carried + SCRATCH]).cast();
            // SAFETY: SCRATCH bytes of the scratch memory, which nothing else uses during the call.
            let rest = unsafe { Piece::new(start, SCRATCH) };
            let direct = self.landing_piece();
            let wanted = SCRATCH + direct.map_or(0, |(_, len)| len);
            let received = match direct {
                // SAFETY: both pieces are writable: see above, and the body is this reader's until it is handed on.
                Some((piece, _)) => unsafe { raw::receive(conn.socket(), &[piece, rest]) },
                // SAFETY: the piece is writable, see above.
                None => unsafe { raw::receive(conn.socket(), &[rest]) },
            };
            let received = match received {
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return self.keep(&scratch.0[..carried]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                    self.keep(&scratch.0[..carried])?;
                    continue;
                }
                Err(e) => return Err(LinkError::Network(e)),
            };
            shared.bytes_received(received as u64);
            let landed = direct.map_or(0, |(_, len)| len.min(received));
            self.landed(landed as u64, &link, shared, handler);
            self.parse(
                &scratch.0[..carried + received - landed],
                &link,
                shared,
                handler,
            )?;
            turn = turn.saturating_sub(received);
            if received < wanted || turn == 0 {
                return Ok(());
            }
        }
    }

    fn keep(&mut self, carried: &[u8]) -> Result<(), LinkError> {
        self.carry.extend_from_slice(carried);
        Ok(())
    }

    /// The memory that the payload under way still needs.
    fn landing_piece(&mut self) -> Option<(Piece, usize)> {
        let Stage::Landing { body, filled, .. } = &mut self.stage else {
            return None;
        };
        let len = usize::try_from(body.len() - *filled).ok()?;
        let filled = usize::try_from(*filled).ok()?;
        // SAFETY: less than the body's length is filled, so the place is within the body.
        let start = unsafe { body.start_mut().add(filled) };
        // SAFETY: the rest of a body that this reader alone holds.
        Some((unsafe { Piece::new(start, len) }, len))
    }

    fn landed(
        &mut self,
        count: u64,
        link: &Arc<dyn Link>,
        shared: &super::shared::Counters,
        handler: &mut dyn Handler,
    ) {
        let Stage::Landing { body, filled, .. } = &mut self.stage else {
            return;
        };
        *filled += count;
        if *filled == body.len()
            && let Stage::Landing { header, body, .. } =
                core::mem::replace(&mut self.stage, Stage::Header)
        {
            shared.frame_received();
            handler.frame(link, &header, Incoming::Landed(body));
        }
    }

    fn parse(
        &mut self,
        mut bytes: &[u8],
        link: &Arc<dyn Link>,
        shared: &super::shared::Counters,
        handler: &mut dyn Handler,
    ) -> Result<(), LinkError> {
        loop {
            if let Stage::Skipping { header, left } = &mut self.stage {
                let skipped = (bytes.len() as u64).min(*left);
                *left -= skipped;
                bytes = &bytes[usize::try_from(skipped).unwrap_or(bytes.len())..];
                if *left > 0 {
                    return Ok(());
                }
                let header = *header;
                self.stage = Stage::Header;
                shared.frame_received();
                handler.frame(link, &header, Incoming::Skipped(header.payload.get()));
            }
            let Some((head, rest)) = bytes.split_at_checked(FRAME_HEADER) else {
                return self.keep(bytes);
            };
            let header = read_header(head)?;
            let payload = header.payload.get();
            if payload <= SMALL {
                let payload = usize::try_from(payload).unwrap_or(SMALL_BYTES);
                let Some((payload, after)) = rest.split_at_checked(payload) else {
                    return self.keep(bytes);
                };
                shared.frame_received();
                handler.frame(link, &header, Incoming::Small(payload));
                bytes = after;
                continue;
            }
            let Some(mut body) = handler.land(link, &header).filter(|b| b.len() == payload) else {
                self.stage = Stage::Skipping {
                    header,
                    left: payload,
                };
                bytes = rest;
                continue;
            };
            let there = usize::try_from(payload)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            body.write_at(0, &rest[..there]);
            self.stage = Stage::Landing {
                header,
                body,
                filled: 0,
            };
            bytes = &rest[there..];
            self.landed(there as u64, link, shared, handler);
            if matches!(self.stage, Stage::Landing { .. }) {
                return Ok(());
            }
        }
    }

    /// Reads until the carry has `needed` bytes; false when they have not all arrived.
    fn fill(&mut self, conn: &Conn, needed: usize) -> Result<bool, LinkError> {
        let mut buffer = [0_u8; ANSWER];
        while self.carry.len() < needed {
            let missing = needed - self.carry.len();
            match rustix::io::read(conn.socket(), &mut buffer[..missing]) {
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

fn read_header(bytes: &[u8]) -> Result<FrameHeader, LinkError> {
    let header = FrameHeader::read_from_bytes(bytes)
        .map_err(|_| LinkError::Malformed("a short header".to_owned()))?;
    if FrameKind::from_u8(header.kind).is_none() {
        let text = format!("kind {} is unknown", header.kind);
        return Err(LinkError::Malformed(text));
    }
    if header.payload.get() > MAX_PAYLOAD {
        let text = format!(
            "a payload of {} bytes, the limit is {MAX_PAYLOAD}",
            header.payload.get()
        );
        return Err(LinkError::Malformed(text));
    }
    Ok(header)
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
