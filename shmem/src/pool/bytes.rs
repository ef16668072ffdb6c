//! What an allocated block is, and copies into and out of it.

use super::Pool;
use super::page::{PAGE, Tag};
use super::slab::{self, class_size};
use crate::error::{Error, Result};

impl Pool {
    /// Whether the allocated block at `offset` has been shared.
    ///
    /// # Errors
    /// When there is none.
    pub fn is_shared(&self, offset: u64) -> Result<bool> {
        let index = self.page_of(offset)?;
        let word = self.page(index)?.load();
        match word.tag() {
            Tag::Slab => slab::is_shared(self, index, word, offset),
            Tag::Extent if offset.is_multiple_of(PAGE) => Ok(word.owner().is_none()),
            _ => Err(self.not_allocated(offset)),
        }
    }

    /// Room of the allocated block at `offset`.
    ///
    /// # Errors
    /// When there is none.
    pub fn block_room(&self, offset: u64) -> Result<u64> {
        let index = self.page_of(offset)?;
        let word = self.page(index)?.load();
        match word.tag() {
            Tag::Slab => slab::check(self, index, word, offset).map(|_| class_size(word.class())),
            Tag::Extent if offset.is_multiple_of(PAGE) => Ok(u64::from(word.extra()) * PAGE),
            _ => Err(self.not_allocated(offset)),
        }
    }

    /// Checks that `length` bytes at `offset` lie inside one allocated block.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self, offset: u64, length: u64) -> Result<()> {
        let room = self.block_room(offset)?;
        if length <= room {
            Ok(())
        } else {
            Err(Error::Corrupt {
                what: "length of a block's contents",
                value: length,
            })
        }
    }

    /// Copies bytes into a block.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn write(&self, offset: u64, at: u64, bytes: &[u8]) -> Result<()> {
        let end = at.checked_add(bytes.len() as u64).ok_or(Error::Corrupt {
            what: "offset",
            value: at,
        })?;
        self.check(offset, end)?;
        self.data.copy_in(offset + at, bytes)
    }

    /// Copies bytes out of a block.
    ///
    /// # Errors
    /// When the block is shorter.
    pub fn read(&self, offset: u64, at: u64, bytes: &mut [u8]) -> Result<()> {
        let end = at.checked_add(bytes.len() as u64).ok_or(Error::Corrupt {
            what: "offset",
            value: at,
        })?;
        self.check(offset, end)?;
        self.data.copy_out(offset + at, bytes)
    }
}
