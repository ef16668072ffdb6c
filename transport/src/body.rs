//! Payloads and the memory that they lie in.

use core::ptr::NonNull;

/// The payload of a frame.
#[derive(Debug)]
pub enum Body {
    /// Bytes of this process.
    Bytes(Vec<u8>),
}

impl Body {
    /// No bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self::Bytes(Vec::new())
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it begins. Valid while the body lives; a pool's memory may be written by others at any time.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        match self {
            Self::Bytes(bytes) => NonNull::from(bytes.as_slice()).cast(),
        }
    }

    /// The same, to write to.
    #[must_use]
    pub fn start_mut(&mut self) -> NonNull<u8> {
        match self {
            Self::Bytes(bytes) => NonNull::from(bytes.as_mut_slice()).cast(),
        }
    }

    /// Copies bytes out, starting at `at`; returns how many there were.
    pub fn read_at(&self, at: u64, into: &mut [u8]) -> usize {
        match self {
            Self::Bytes(bytes) => {
                let from = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                let count = into.len().min(bytes.len() - from);
                into[..count].copy_from_slice(&bytes[from..from + count]);
                count
            }
        }
    }

    /// Copies bytes in, starting at `at`; what does not fit is left out.
    pub fn write_at(&mut self, at: u64, from: &[u8]) {
        match self {
            Self::Bytes(bytes) => {
                let to = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                let count = from.len().min(bytes.len() - to);
                bytes[to..to + count].copy_from_slice(&from[..count]);
            }
        }
    }

    /// A copy of all bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(self.len()).unwrap_or(0)];
        self.read_at(0, &mut all);
        all
    }
}
