//! The handshake of every connection between two nodes, without I/O.
//!
//! ```text
//! connector → acceptor   Hello { magic, version, role, from, to, clock, challenge }
//! acceptor  → connector  Hello + proof over both hellos         (direction "accept")
//! connector → acceptor   proof over both hellos                 (direction "connect")
//! ```
//! Nothing else is parsed before the proof is checked. The challenges are fresh, so a recorded exchange proves nothing.
//! Whoever does not know the key learns 72 bytes that say nothing and is closed. So is a peer of another release or with
//! another setting of encryption: it gets the acceptor's hello without a proof, so that both sides can say why.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::NodeIndex;
use crate::key::JobKey;

/// The first eight bytes in each direction.
pub const MAGIC: [u8; 8] = *b"DRGNNOD1";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Role {
    /// Control messages between two daemons.
    Control = 1,
    /// Frames between two transport agents.
    Data = 2,
    /// What the starter of a job says to a daemon that a workload manager has started for it.
    Join = 3,
}

/// What each side says first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`crate::PROTOCOL_VERSION`].
    pub protocol: U16,
    /// A [`Role`].
    pub role: U16,
    /// The speaker's node.
    pub from: U32,
    /// The node that the speaker means to talk to.
    pub to: U32,
    /// Release as major, minor, patch.
    pub release: [u8; 4],
    /// The speaker's CLOCK_MONOTONIC in nanoseconds.
    pub clock: U64,
    /// 32 fresh random bytes.
    pub challenge: [u8; 32],
    /// 1: what follows the handshake is encrypted.
    pub encrypt: U64,
}

/// Bytes of a [`Hello`].
pub const HELLO: usize = size_of::<Hello>();
/// Bytes of a proof.
pub const PROOF: usize = 32;
/// Bytes of the acceptor's answer: hello and proof.
pub const ANSWER: usize = HELLO + PROOF;

const _: () = assert!(HELLO == 72);

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Not our protocol at all.
    #[error("the peer does not speak this protocol")]
    Stranger,
    /// Another release.
    #[error("the peer runs release {theirs} (protocol {protocol}), this node runs {ours} (protocol {own}); use one release on all nodes", own = crate::PROTOCOL_VERSION)]
    Version {
        /// The peer's release.
        theirs: String,
        /// The peer's protocol version.
        protocol: u16,
        /// This release.
        ours: &'static str,
    },
    /// The peer is for another purpose, or thinks it talks to another node.
    #[error("the peer is not the one expected: node {from} speaks to node {to} in role {role}")]
    WrongPeer {
        /// Who the peer says it is.
        from: u32,
        /// Whom it means.
        to: u32,
        /// In which role.
        role: u16,
    },
    /// One side encrypts and the other does not.
    #[error("node {from} {} and this node does the opposite; give all nodes the same setting of encrypt", if *theirs { "encrypts" } else { "does not encrypt" })]
    Encryption {
        /// Who the peer says it is.
        from: u32,
        /// Whether it encrypts.
        theirs: bool,
    },
    /// The peer does not know the key.
    #[error("the peer does not prove the job key")]
    NoProof,
    /// The peer said hello and closed.
    #[error("the peer refuses this node and does not say why; its log does")]
    Refused,
}

/// A handshake that completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The other node.
    pub node: NodeIndex,
    /// What to add to a time of the peer's monotonic clock to get one of ours, in nanoseconds; off by at most the time
    /// that the hello took to arrive.
    pub clock_offset: i64,
}

/// The connecting side.
#[derive(Debug)]
pub struct Connector {
    key: JobKey,
    hello: Hello,
}

/// The accepting side, after the first hello.
#[derive(Debug)]
pub struct Acceptor {
    key: JobKey,
    transcript: Vec<u8>,
    peer: Peer,
}

impl Connector {
    /// Starts a handshake from node `from` to node `to`. `challenge` must be fresh random bytes, `now` this node's
    /// monotonic clock.
    #[must_use]
    pub fn new(
        key: &JobKey,
        role: Role,
        from: NodeIndex,
        to: NodeIndex,
        now: u64,
        challenge: [u8; 32],
    ) -> Self {
        Self {
            key: key.clone(),
            hello: hello(role, from, to, now, challenge, false),
        }
    }

    /// Asks for encryption of what follows the handshake; the other side must do the same.
    #[must_use]
    pub fn encrypted(mut self, encrypt: bool) -> Self {
        self.hello.encrypt = u64::from(encrypt).into();
        self
    }

    /// The bytes to send first.
    #[must_use]
    pub fn hello(&self) -> [u8; HELLO] {
        zerocopy::transmute!(self.hello)
    }

    /// Checks the answer; returns the proof to send, after which the connection stands.
    ///
    /// # Errors
    /// When the peer is a stranger, of another version, another node, or does not prove the key.
    pub fn answer(
        self,
        answer: &[u8; ANSWER],
        now: u64,
    ) -> Result<([u8; PROOF], Peer), HandshakeError> {
        let (theirs, proof) = answer.split_at(HELLO);
        let their = read_hello(theirs, self.hello.role.get())?;
        check_encryption(&their, self.hello.encrypt.get() == 1)?;
        if their.from != self.hello.to || their.to != self.hello.from {
            return Err(wrong_peer(&their));
        }
        let transcript = [self.hello.as_bytes(), theirs].concat();
        let proof: &[u8; PROOF] = proof.try_into().map_err(|_| HandshakeError::Stranger)?;
        if !self.key.proves("accept", &transcript, proof) {
            return Err(HandshakeError::NoProof);
        }
        Ok((self.key.proof("connect", &transcript), peer(&their, now)?))
    }
}

impl Connector {
    /// What a hello without a proof says, after which the peer has closed: why it refuses this node.
    #[must_use]
    pub fn refused(&self, hello: &[u8; HELLO]) -> HandshakeError {
        let check = || {
            let their = read_hello(hello, self.hello.role.get())?;
            check_encryption(&their, self.hello.encrypt.get() == 1)?;
            if their.from != self.hello.to {
                return Err(wrong_peer(&their));
            }
            Ok(())
        };
        check().err().unwrap_or(HandshakeError::Refused)
    }
}

impl Acceptor {
    /// What node `me` says to a peer that it refuses for its first hello; nothing to whoever does not speak this protocol.
    #[must_use]
    pub fn refusal(
        role: Role,
        me: NodeIndex,
        first: &[u8; HELLO],
        now: u64,
        encrypt: bool,
    ) -> Option<[u8; HELLO]> {
        let theirs = Hello::read_from_bytes(first).ok()?;
        if theirs.magic != MAGIC {
            return None;
        }
        let to = NodeIndex::new(theirs.from.get())?;
        let ours = hello(role, me, to, now, [0; 32], encrypt);
        Some(zerocopy::transmute!(ours))
    }

    /// Checks a first hello that arrived at node `me`, and returns the answer to send.
    ///
    /// # Errors
    /// When the peer is a stranger, of another version, in another role, or means another node.
    pub fn new(
        key: &JobKey,
        role: Role,
        me: NodeIndex,
        first: &[u8; HELLO],
        now: u64,
        challenge: [u8; 32],
    ) -> Result<(Self, [u8; ANSWER]), HandshakeError> {
        Self::with_encryption(key, role, me, first, now, challenge, false)
    }

    /// The same; with `encrypt` what follows the handshake is encrypted.
    ///
    /// # Errors
    /// As [`Acceptor::new`], and when the other side wants it otherwise.
    pub fn with_encryption(
        key: &JobKey,
        role: Role,
        me: NodeIndex,
        first: &[u8; HELLO],
        now: u64,
        challenge: [u8; 32],
        encrypt: bool,
    ) -> Result<(Self, [u8; ANSWER]), HandshakeError> {
        let their = read_hello(first, role as u16)?;
        check_encryption(&their, encrypt)?;
        if their.to.get() != me.get() {
            return Err(wrong_peer(&their));
        }
        let peer = peer(&their, now)?;
        let ours = hello(role, me, peer.node, now, challenge, encrypt);
        let transcript = [&first[..], ours.as_bytes()].concat();
        let mut answer = [0; ANSWER];
        answer[..HELLO].copy_from_slice(ours.as_bytes());
        answer[HELLO..].copy_from_slice(&key.proof("accept", &transcript));
        Ok((
            Self {
                key: key.clone(),
                transcript,
                peer,
            },
            answer,
        ))
    }

    /// Checks the peer's proof; the connection stands when it is right.
    ///
    /// # Errors
    /// When the peer does not prove the key.
    pub fn finish(self, proof: &[u8; PROOF]) -> Result<Peer, HandshakeError> {
        if self.key.proves("connect", &self.transcript, proof) {
            Ok(self.peer)
        } else {
            Err(HandshakeError::NoProof)
        }
    }
}

fn hello(
    role: Role,
    from: NodeIndex,
    to: NodeIndex,
    now: u64,
    challenge: [u8; 32],
    encrypt: bool,
) -> Hello {
    Hello {
        magic: MAGIC,
        protocol: crate::PROTOCOL_VERSION.into(),
        role: U16::new(role as u16),
        from: from.get().into(),
        to: to.get().into(),
        release: crate::attach::release_bytes(),
        clock: now.into(),
        challenge,
        encrypt: u64::from(encrypt).into(),
    }
}

fn read_hello(bytes: &[u8], role: u16) -> Result<Hello, HandshakeError> {
    let hello = Hello::read_from_bytes(bytes).map_err(|_| HandshakeError::Stranger)?;
    if hello.magic != MAGIC {
        return Err(HandshakeError::Stranger);
    }
    if hello.protocol.get() != crate::PROTOCOL_VERSION {
        let theirs = crate::attach::release_text(hello.release);
        return Err(HandshakeError::Version {
            theirs,
            protocol: hello.protocol.get(),
            ours: crate::RELEASE,
        });
    }
    if hello.role.get() != role {
        return Err(wrong_peer(&hello));
    }
    Ok(hello)
}

fn check_encryption(hello: &Hello, ours: bool) -> Result<(), HandshakeError> {
    let theirs = match hello.encrypt.get() {
        0 => false,
        1 => true,
        _ => return Err(HandshakeError::Stranger),
    };
    let from = hello.from.get();
    if theirs == ours {
        Ok(())
    } else {
        Err(HandshakeError::Encryption { from, theirs })
    }
}

fn peer(hello: &Hello, now: u64) -> Result<Peer, HandshakeError> {
    let node = NodeIndex::new(hello.from.get()).ok_or_else(|| wrong_peer(hello))?;
    Ok(Peer {
        node,
        clock_offset: now.wrapping_sub(hello.clock.get()).cast_signed(),
    })
}

fn wrong_peer(hello: &Hello) -> HandshakeError {
    HandshakeError::WrongPeer {
        from: hello.from.get(),
        to: hello.to.get(),
        role: hello.role.get(),
    }
}
