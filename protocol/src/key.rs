//! The job key, and everything that is derived from it.
//!
//! Each derivation is a keyed BLAKE3 hash over a context word and its arguments, so that no derived value tells anything
//! about another one or about the key.

use core::fmt;

use crate::ids::{NodeIndex, RuntimeId};

/// 256 random bits that the nodes of one job share, and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct JobKey([u8; 32]);

impl fmt::Debug for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobKey(…)")
    }
}

impl JobKey {
    /// A key from 32 random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be sent to a node of the job over a private way.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads 64 hexadecimal digits; `None` for anything else.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digits = hex.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The runtime's number.
    #[must_use]
    pub fn runtime_id(&self) -> RuntimeId {
        RuntimeId(self.derive("runtime", &[]))
    }

    /// The part of a node's attach socket name that a stranger cannot guess.
    #[must_use]
    pub fn socket_part(&self, node: NodeIndex) -> u64 {
        self.derive("socket", &node.get().to_le_bytes())
    }

    /// The port on which a node listens for the bring-up at its `attempt`-th try, in `first..=last`.
    #[must_use]
    pub fn port(&self, node: NodeIndex, attempt: u32, first: u16, last: u16) -> u16 {
        let span = u64::from(last.saturating_sub(first)) + 1;
        let mut first_try = [0; 8];
        first_try[..4].copy_from_slice(&node.get().to_le_bytes());
        // Steps of a width that shares no factor with the span visit each of its ports once before any of them again.
        let width = 1 + self.derive("width", &first_try) % span;
        let width = (width..)
            .find(|width| common(*width, span) == 1)
            .unwrap_or(1);
        let begin = self.derive("port", &first_try) % span;
        let offset = (begin + u64::from(attempt) * width) % span;
        // The offset is below the span, which is at most last - first + 1: the sum fits.
        first.saturating_add(u16::try_from(offset).unwrap_or(0))
    }

    /// The proof that one end of a connection knows the key: over both challenges and what both ends said.
    #[must_use]
    pub fn proof(&self, direction: &str, transcript: &[u8]) -> [u8; 32] {
        let mut hash = blake3::Hasher::new_keyed(&self.0);
        hash.update(b"dragon proof ")
            .update(direction.as_bytes())
            .update(&[0])
            .update(transcript);
        *hash.finalize().as_bytes()
    }

    /// Whether `given` is the proof, in constant time.
    #[must_use]
    pub fn proves(&self, direction: &str, transcript: &[u8], given: &[u8; 32]) -> bool {
        // blake3::Hash compares in constant time.
        blake3::Hash::from_bytes(self.proof(direction, transcript))
            == blake3::Hash::from_bytes(*given)
    }

    fn derive(&self, context: &str, arguments: &[u8]) -> u64 {
        let mut hash = blake3::Hasher::new_keyed(&self.0);
        hash.update(b"dragon ")
            .update(context.as_bytes())
            .update(&[0])
            .update(arguments);
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// The greatest common divisor.
fn common(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common(b, a % b) }
}

/// How many ports of the sequence a daemon tries before it gives up.
pub const PORT_TRIES: u32 = 8;
/// First port of the range that is used when none is configured.
pub const PORT_FIRST: u16 = 20000;
/// Last port of that range. Below the usual ephemeral ports, so that no outgoing connection sits on one.
pub const PORT_LAST: u16 = 32000;
