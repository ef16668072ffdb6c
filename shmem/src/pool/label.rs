//! What people are told about a pool: its name, and why its limit is what it is.

use std::fmt;

use dragon_protocol::PoolOptions;

use super::{Pool, WORDS};
use crate::error::{Error, Result};
use crate::region::Shared;
use crate::sync::{AtomicU64, Ordering};

const NAME: usize = PoolOptions::MAX_NAME / 8;
const NOTE: usize = 40;

/// Where the label lies in the metadata: apart from the words that change all the time.
const LABEL: u64 = WORDS + 1024;

/// Written by the owner, before others map the pool.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct LabelWords {
    /// The smallest block.
    pub(super) minimum: AtomicU64,
    /// 1: huge pages were asked for.
    pub(super) huge: AtomicU64,
    /// Bytes below the watermark that were released.
    pub(super) released: AtomicU64,
    reserved: [AtomicU64; 5],
    name: [AtomicU64; NAME],
    note: [AtomicU64; NOTE],
}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for LabelWords {}

/// Number and name of a pool, for errors: `3 'images'`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its number on its node.
    pub number: u32,
    /// The name that the user gave it.
    pub name: Box<str>,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)?;
        if !self.name.is_empty() {
            write!(f, " '{}'", self.name)?;
        }
        Ok(())
    }
}

impl LabelWords {
    /// The name and the smallest block, as the daemon wrote them.
    pub(super) fn read(&self) -> Result<(Box<str>, u64)> {
        let minimum = self.minimum.load(Ordering::Relaxed);
        let fits = u32::try_from(minimum).is_ok_and(|minimum_block| {
            let options = PoolOptions {
                minimum_block,
                ..PoolOptions::default()
            };
            options.check().is_ok()
        });
        if !fits {
            return Err(Error::Corrupt {
                what: "minimum block of a pool",
                value: minimum,
            });
        }
        Ok((text(&self.name), minimum))
    }

    pub(super) fn set_name(&self, name: &str) {
        put(&self.name, name);
    }

    pub(super) fn set_note(&self, note: &str) {
        put(&self.note, note);
    }

    fn note(&self) -> Box<str> {
        text(&self.note)
    }
}

impl Pool {
    /// Its number and name.
    #[must_use]
    pub fn label(&self) -> Label {
        Label {
            number: self.number(),
            name: Box::from(&*self.name),
        }
    }

    /// Says why the limit is what it is: put behind the limit in errors. For the daemon only.
    pub fn set_note(&self, note: &str) {
        if let Ok(words) = self.label_words() {
            words.set_note(note);
        }
    }

    pub(super) fn note(&self) -> Box<str> {
        self.label_words()
            .map_or_else(|_| Box::default(), LabelWords::note)
    }

    pub(super) fn label_words(&self) -> Result<&LabelWords> {
        self.meta.view(LABEL)
    }

    pub(super) fn label_of(meta: &crate::region::Region) -> Result<&LabelWords> {
        meta.view(LABEL)
    }
}

fn put(words: &[AtomicU64], value: &str) {
    let mut bytes = value.bytes();
    for word in words {
        let next: [u8; 8] = std::array::from_fn(|_| bytes.next().unwrap_or(0));
        word.store(u64::from_le_bytes(next), Ordering::Relaxed);
    }
}

/// Text up to the first zero. Whatever a scribbler left there is made printable.
fn text(words: &[AtomicU64]) -> Box<str> {
    let bytes: Vec<u8> = words
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes)
        .replace(char::is_control, "?")
        .into()
}
