//! Structures of a region that are checked once and used often.

use std::ops::Deref;
use std::ptr::NonNull;

use super::{Region, Shared};
use crate::error::Result;

/// A structure of a region, or several in a row. The region stays mapped as long as this lives.
#[derive(Debug)]
pub struct Pinned<T: ?Sized> {
    at: NonNull<T>,
    _region: Region,
}

// SAFETY: what it refers to consists of atomics (`Shared`), and the region may be used by every thread.
unsafe impl<T: ?Sized> Send for Pinned<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized> Sync for Pinned<T> {}

impl Region {
    /// The structure at `offset`.
    ///
    /// # Errors
    /// When it does not lie inside the region, or is not aligned.
    pub fn pin<T: Shared>(&self, offset: u64) -> Result<Pinned<T>> {
        Ok(Pinned {
            at: NonNull::from(self.view::<T>(offset)?),
            _region: self.clone(),
        })
    }

    /// `count` structures at `offset`.
    ///
    /// # Errors
    /// As [`Region::pin`].
    pub fn pin_slice<T: Shared>(&self, offset: u64, count: usize) -> Result<Pinned<[T]>> {
        Ok(Pinned {
            at: NonNull::from(self.slice::<T>(offset, count)?),
            _region: self.clone(),
        })
    }
}

impl<T: ?Sized> Deref for Pinned<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `view` and `slice` checked bounds and alignment; T is Shared, for `pin` asks for it; the mapping lives as
        // long as self.
        unsafe { self.at.as_ref() }
    }
}
