//! Addresses of blocks within a node: which pool, and where in it.

use core::fmt;

use crate::slot::MAX_POOLS;

const SHIFT: u32 = 48;
const OFFSET: u64 = (1 << SHIFT) - 1;

/// Names a pool of the node: its number (8 bits) and how often the number has been given out (8 bits). The default pool's
/// is 0.
///
/// The *address* of a block is one word: the pool's tag in the upper 16 bits, the offset in the pool in the lower 48. So an
/// address in the default pool is the offset itself.
///
/// ```
/// use dragon_shmem::PoolTag;
///
/// let tag = PoolTag::new(3, 7).unwrap();
/// let address = tag.address(4096);
/// assert_eq!((PoolTag::of(address), PoolTag::offset(address)), (tag, 4096));
/// assert_eq!(PoolTag::DEFAULT.address(4096), 4096);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolTag(u16);

impl PoolTag {
    /// The tag of the default pool.
    pub const DEFAULT: Self = Self(0);

    /// The tag of the pool with a number under a generation; `None` when the number is beyond what a node can have.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the number is below MAX_POOLS, which is below 256"
    )]
    pub const fn new(number: u32, generation: u8) -> Option<Self> {
        if number < MAX_POOLS as u32 {
            Some(Self((number as u16) << 8 | generation as u16))
        } else {
            None
        }
    }

    /// The pool in which an address lies.
    #[inline]
    #[must_use]
    pub const fn of(address: u64) -> Self {
        Self((address >> SHIFT) as u16)
    }

    /// Where in its pool an address lies.
    #[inline]
    #[must_use]
    pub const fn offset(address: u64) -> u64 {
        address & OFFSET
    }

    /// The address of an offset in this pool.
    #[inline]
    #[must_use]
    pub const fn address(self, offset: u64) -> u64 {
        (self.0 as u64) << SHIFT | offset & OFFSET
    }

    /// The pool's number, by which slots and intents know it.
    #[inline]
    #[must_use]
    pub const fn number(self) -> u32 {
        (self.0 >> 8) as u32
    }

    /// How often the number had been given out before.
    #[inline]
    #[must_use]
    pub const fn generation(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// The tag as a number.
    #[must_use]
    pub const fn to_u16(self) -> u16 {
        self.0
    }

    /// The tag with this number; `None` when it names no pool that a node can have.
    #[must_use]
    pub const fn from_u16(tag: u16) -> Option<Self> {
        let [generation, number] = tag.to_le_bytes();
        Self::new(number as u32, generation)
    }
}

impl fmt::Display for PoolTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation() {
            0 => write!(f, "{}", self.number()),
            generation => write!(f, "{}.{generation}", self.number()),
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_pool_and_offset() {
        for tag in 0..=u16::MAX {
            let Some(tag) = PoolTag::from_u16(tag) else {
                assert!(usize::from(tag >> 8) >= MAX_POOLS);
                continue;
            };
            assert_eq!(PoolTag::from_u16(tag.to_u16()), Some(tag));
            for offset in [0, 64, OFFSET] {
                let address = tag.address(offset);
                assert_eq!(
                    (PoolTag::of(address), PoolTag::offset(address)),
                    (tag, offset)
                );
            }
        }
        assert_eq!(PoolTag::new(64, 0), None);
        assert_eq!(PoolTag::new(3, 0).unwrap().to_string(), "3");
        assert_eq!(PoolTag::new(3, 9).unwrap().to_string(), "3.9");
    }
}
