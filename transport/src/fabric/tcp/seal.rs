//! Encryption of a connection: Noise NNpsk0 with the job key, after the proof of the key.
//!
//! The two messages of the Noise handshake carry the opening of the link and its answer. Everything after them is records:
//! a length (u16, little-endian), then so many bytes of AES-256-GCM, the tag last. Each connection has fresh keys, and each
//! record a number that is never used again; a record that was changed, left out or repeated ends the connection.

use std::sync::Arc;

use dragon_protocol::key::JobKey;
use dragon_protocol::wire::FRAME_HEADER;
use snow::{Builder, HandshakeState, StatelessTransportState};

use crate::fabric::LinkError;
use crate::fabric::stream::Piece;

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
const TAG: usize = 16;
const LENGTH: usize = 2;
const EPHEMERAL: usize = 32;
/// Bytes of a handshake message that carries nothing: an ephemeral key and a tag.
pub const EMPTY: usize = EPHEMERAL + TAG;
/// Bytes of each handshake message: that, and a header.
pub(super) const MESSAGE: usize = EMPTY + FRAME_HEADER;
/// The longest record, without its length.
pub const RECORD: usize = u16::MAX as usize;
/// What a record holds at most.
const MOST: usize = 48 * 1024;

/// A handshake under way.
#[derive(Debug)]
pub struct Shake(Box<HandshakeState>);

/// What both directions of a connection share.
#[derive(Clone, Debug)]
pub struct Keys(Arc<StatelessTransportState>);

/// The outgoing records of a connection.
#[derive(Debug)]
pub struct Sealer {
    keys: Keys,
    number: u64,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    gone: usize,
}

/// The incoming records of a connection.
#[derive(Debug)]
pub struct Opener {
    keys: Keys,
    number: u64,
    /// The beginning of a record whose rest has not arrived.
    pub(super) carry: Vec<u8>,
}

impl Shake {
    /// Begins a handshake; `first`: on the side that says the first message.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new(key: &JobKey, first: bool) -> Result<Self, LinkError> {
        let shared = key.proof("encrypt", &[]);
        let pattern = PATTERN.parse().map_err(|e| failed(&e))?;
        let builder = Builder::new(pattern);
        let builder = builder.psk(0, &shared).map_err(|e| failed(&e))?;
        let state = if first {
            builder.build_initiator()
        } else {
            builder.build_responder()
        };
        Ok(Self(Box::new(state.map_err(|e| failed(&e))?)))
    }

    /// The next message, with a header in it, or nothing.
    ///
    /// # Errors
    /// When it is not this side's turn.
    pub fn say(&mut self, header: &[u8]) -> Result<Vec<u8>, LinkError> {
        let mut message = vec![0; EPHEMERAL + header.len() + TAG];
        let said = self.0.write_message(header, &mut message);
        message.truncate(said.map_err(|e| failed(&e))?);
        Ok(message)
    }

    /// The header in the other side's message.
    ///
    /// # Errors
    /// When it was made without the key, or it is not that side's turn.
    pub fn hear(&mut self, message: &[u8]) -> Result<Vec<u8>, LinkError> {
        let mut header = vec![0; message.len()];
        let heard = self.0.read_message(message, &mut header);
        header.truncate(heard.map_err(|e| failed(&e))?);
        Ok(header)
    }

    /// The keys, when both messages have passed.
    ///
    /// # Errors
    /// When they have not.
    pub fn finish(self) -> Result<Keys, LinkError> {
        let state = self.0.into_stateless_transport_mode();
        Ok(Keys(Arc::new(state.map_err(|e| failed(&e))?)))
    }
}

impl Sealer {
    /// Nothing is sealed yet.
    #[must_use]
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            number: 0,
            plain: Vec::new(),
            sealed: Vec::new(),
            gone: 0,
        }
    }

    /// Bytes of the record that is being sent.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.sealed[self.gone..]
    }

    /// So many bytes of it were sent.
    pub fn sent(&mut self, count: usize) {
        self.gone += count;
        if self.gone == self.sealed.len() {
            self.gone = 0;
            // An idle connection holds no memory.
            self.sealed = Vec::new();
        }
    }

    /// Adds bytes to the next record; returns how many it took.
    pub fn add(&mut self, bytes: &[u8]) -> usize {
        let room = MOST.saturating_sub(self.plain.len()).min(bytes.len());
        self.plain.extend_from_slice(&bytes[..room]);
        room
    }

    /// Adds memory to the next record; returns how many bytes it took.
    ///
    /// # Safety
    /// The pieces must be readable.
    pub(super) unsafe fn take(&mut self, pieces: &[Piece]) -> usize {
        let before = self.plain.len();
        for piece in pieces {
            let room = MOST.saturating_sub(self.plain.len()).min(piece.len);
            self.plain.reserve(room);
            let end = self.plain.spare_capacity_mut().as_mut_ptr();
            // SAFETY: the piece is that long, as the caller promises, and the spare memory is apart from it.
            unsafe { core::ptr::copy_nonoverlapping(piece.start.as_ptr(), end.cast(), room) };
            // SAFETY: so many bytes have just been written.
            unsafe { self.plain.set_len(self.plain.len() + room) };
        }
        self.plain.len() - before
    }

    /// Seals what was added; false when that is nothing.
    ///
    /// # Errors
    /// When the connection has had more records than it may.
    pub fn seal(&mut self) -> std::io::Result<bool> {
        if self.plain.is_empty() {
            return Ok(false);
        }
        let length = self.plain.len() + TAG;
        self.sealed = vec![0; LENGTH + length];
        let (head, record) = self.sealed.split_at_mut(LENGTH);
        // MOST and the tag are below the largest number of 16 bits.
        head.copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
        let sealed = self.keys.0.write_message(self.number, &self.plain, record);
        sealed.map_err(|e| std::io::Error::other(e.to_string()))?;
        self.number += 1;
        self.plain = Vec::new();
        Ok(true)
    }
}

impl Opener {
    /// Nothing was opened yet.
    #[must_use]
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            number: 0,
            carry: Vec::new(),
        }
    }

    /// Opens the first record of `bytes` into `plain`: the number of bytes that it took, and that it gave. `None`: its rest
    /// has not arrived.
    ///
    /// # Errors
    /// When it was changed, repeated or is out of turn, or `plain` is shorter than it.
    pub fn open(
        &mut self,
        bytes: &[u8],
        plain: &mut [u8],
    ) -> Result<Option<(usize, usize)>, LinkError> {
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_le_bytes(*length));
        let Some(record) = rest.get(..length) else {
            return Ok(None);
        };
        let opened = self.keys.0.read_message(self.number, record, plain);
        let opened = opened.map_err(|e| failed(&e))?;
        self.number += 1;
        Ok(Some((LENGTH + length, opened)))
    }
}

fn failed(error: &snow::Error) -> LinkError {
    LinkError::Malformed(format!("encryption: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Keys, Keys) {
        let key = JobKey::new([7; 32]);
        let mut near = Shake::new(&key, true).unwrap();
        let mut far = Shake::new(&key, false).unwrap();
        let first = near.say(&[1; FRAME_HEADER]).unwrap();
        assert_eq!(first.len(), MESSAGE);
        assert_eq!(far.hear(&first).unwrap(), [1; FRAME_HEADER]);
        let second = far.say(&[2; FRAME_HEADER]).unwrap();
        assert_eq!(near.hear(&second).unwrap(), [2; FRAME_HEADER]);
        (near.finish().unwrap(), far.finish().unwrap())
    }

    fn record(sealer: &mut Sealer, bytes: &[u8]) -> Vec<u8> {
        // SAFETY: the bytes live as long as the piece.
        let piece = unsafe { Piece::new(core::ptr::NonNull::from(bytes).cast(), bytes.len()) };
        // SAFETY: likewise.
        assert_eq!(unsafe { sealer.take(&[piece]) }, bytes.len());
        assert!(sealer.seal().unwrap());
        let record = sealer.rest().to_vec();
        sealer.sent(record.len());
        record
    }

    #[test]
    fn records_open_in_their_order_and_no_other() {
        let (near, far) = pair();
        let (mut sealer, mut opener) = (Sealer::new(near), Opener::new(far));
        let mut plain = vec![0; RECORD];
        let first = record(&mut sealer, b"first");
        assert_eq!(opener.open(&first[..10], &mut plain).unwrap(), None);
        assert_eq!(
            opener.open(&first, &mut plain).unwrap(),
            Some((first.len(), 5))
        );
        assert_eq!(&plain[..5], b"first");
        // Once more, changed, or out of turn.
        assert!(opener.open(&first, &mut plain).is_err());
        let (second, third) = (
            record(&mut sealer, b"second"),
            record(&mut sealer, b"third"),
        );
        assert!(opener.open(&third, &mut plain).is_err());
        let mut changed = second.clone();
        changed[9] ^= 1;
        assert!(opener.open(&changed, &mut plain).is_err());
        assert!(opener.open(&second, &mut plain).unwrap().is_some());
    }

    #[test]
    fn another_key_opens_nothing() {
        let mut near = Shake::new(&JobKey::new([7; 32]), true).unwrap();
        let mut far = Shake::new(&JobKey::new([8; 32]), false).unwrap();
        let first = near.say(&[1; FRAME_HEADER]).unwrap();
        assert!(far.hear(&first).is_err());
    }
}
