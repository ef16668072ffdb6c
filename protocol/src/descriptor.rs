//! Descriptors: an object's name that travels, as 32 bytes or as text.
//!
//! Bytes (little-endian): version u8, kind u8, reserved u16, node u32, index u32, generation u32, runtime u64, user u64.
//! Text: `dragon1:KIND:RUNTIME:NODE.INDEX.GENERATION[:USER]`, for environment variables and command lines, for example
//! `dragon1:c:00c0ffee00c0ffee:2.17.1`.

use core::fmt;
use core::str::FromStr;

use crate::ids::{NodeIndex, ObjectId, ObjectKind, RuntimeId};

/// An object of some runtime, and the number that its user gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// The runtime that the object belongs to.
    pub runtime: RuntimeId,
    /// The object in that runtime.
    pub object: ObjectId,
    /// A number of the user's choice; an attribute that nothing depends on. 0 when none was chosen.
    pub user: u64,
}

/// Why bytes or text are not a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// Wrong length.
    #[error("a descriptor has {len} bytes, this has {0}", len = Descriptor::LEN)]
    Length(usize),
    /// A version that this release does not know.
    #[error("descriptor version {0} is unknown, this release ({release}) knows version {known}", release = crate::RELEASE, known = Descriptor::VERSION)]
    Version(u8),
    /// A kind that this release does not know.
    #[error("object kind {0} is unknown to this release ({release})", release = crate::RELEASE)]
    Kind(u8),
    /// A node index that needs more than 24 bits.
    #[error("node index {0} needs more than 24 bits")]
    Node(u32),
    /// Not of the printable form.
    #[error("'{0}' is not a descriptor: expected dragon1:KIND:RUNTIME:NODE.INDEX.GENERATION")]
    Text(String),
}

impl Descriptor {
    /// Bytes of the binary form.
    pub const LEN: usize = 32;
    /// The version that this release writes and reads.
    pub const VERSION: u8 = 1;

    /// The binary form.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[0] = Self::VERSION;
        b[1] = self.object.kind as u8;
        b[4..8].copy_from_slice(&self.object.node.get().to_le_bytes());
        b[8..12].copy_from_slice(&self.object.index.to_le_bytes());
        b[12..16].copy_from_slice(&self.object.generation.to_le_bytes());
        b[16..24].copy_from_slice(&self.runtime.0.to_le_bytes());
        b[24..32].copy_from_slice(&self.user.to_le_bytes());
        b
    }

    /// Reads the binary form.
    ///
    /// # Errors
    /// When length, version, kind or node index are not ones that this release writes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DescriptorError> {
        let b: &[u8; Self::LEN] = bytes
            .try_into()
            .map_err(|_| DescriptorError::Length(bytes.len()))?;
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if b[0] != Self::VERSION {
            return Err(DescriptorError::Version(b[0]));
        }
        Ok(Self {
            runtime: RuntimeId(long(16)),
            object: ObjectId {
                node: NodeIndex::new(word(4)).ok_or(DescriptorError::Node(word(4)))?,
                kind: ObjectKind::from_u8(b[1]).ok_or(DescriptorError::Kind(b[1]))?,
                index: word(8),
                generation: word(12),
            },
            user: long(24),
        })
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ObjectId {
            node,
            kind,
            index,
            generation,
        } = self.object;
        write!(
            f,
            "dragon{}:{}:{}:{node}.{index}.{generation}",
            Self::VERSION,
            kind.letter(),
            self.runtime
        )?;
        if self.user != 0 {
            write!(f, ":{}", self.user)?;
        }
        Ok(())
    }
}

impl FromStr for Descriptor {
    type Err = DescriptorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| DescriptorError::Text(text.chars().take(80).collect()))
    }
}

fn parse(text: &str) -> Option<Descriptor> {
    // The standard parsers take a sign, which this form does not have.
    if text.contains('+') {
        return None;
    }
    let mut parts = text.strip_prefix("dragon1:")?.split(':');
    let mut letters = parts.next()?.chars();
    let kind = ObjectKind::from_letter(letters.next()?)?;
    let runtime = parts.next()?;
    let mut place = parts.next()?.split('.');
    let mut number = || place.next()?.parse::<u32>().ok();
    let (node, index, generation) = (NodeIndex::new(number()?)?, number()?, number()?);
    let user = parts.next().map_or(Some(0), |u| u.parse().ok())?;
    let whole = letters.next().is_none()
        && place.next().is_none()
        && parts.next().is_none()
        && runtime.len() == 16;
    let runtime = RuntimeId(u64::from_str_radix(runtime, 16).ok()?);
    whole.then_some(Descriptor {
        runtime,
        object: ObjectId {
            node,
            kind,
            index,
            generation,
        },
        user,
    })
}
