//! Names of the runtime, which every node sees, and the key-value store of a node.
//!
//! ```text
//! client ── NameRequest ──▶ its daemon ── Ask ──▶ global services ── Change ──▶ the next one or two ranks
//!        ◀── ClientReply ──            ◀── Answer ──              ◀── Copied ──
//! ```
//! What a request leads to is answered when the copies have it: it survives the loss of global services.

use serde::{Deserialize, Serialize};

use crate::error::Code;
use crate::ids::{NodeIndex, ObjectId, SlotId};

/// The longest name and the longest key, in bytes.
pub const NAME_LIMIT: usize = 255;
/// The longest value that is bytes.
pub const VALUE_LIMIT: usize = 64 << 10;
/// How many names a runtime has, and how many keys a node has, at most.
pub const COUNT_LIMIT: usize = 1 << 20;
/// How many bytes the names of a runtime and what they stand for take together, as [`Entry::cost`] counts: the longest
/// message has them twice ([`NameMessage::Told`]), and fits into a frame.
pub const NAMES_LIMIT: usize = 30 << 20;
/// What a name takes beside its own bytes and those that it stands for.
pub const ENTRY_COST: usize = 64;

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Value {
    /// An object of any node, and the number that its user chose.
    Object(ObjectId, u64),
    /// Bytes of the user.
    Bytes(Vec<u8>),
}

/// How long a name lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Lasts {
    /// Until somebody takes it back.
    #[default]
    UntilUnpublished,
    /// At most as long as the process that published it.
    WithPublisher,
}

/// What a client asks about names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NameRequest {
    /// Let a name stand for something.
    Publish {
        /// The name.
        name: String,
        /// For what.
        value: Value,
        /// How long.
        lasts: Lasts,
    },
    /// What a name stands for.
    LookUp {
        /// The name.
        name: String,
        /// Where it stands for nothing: a channel of this node that gets a message when it does.
        wake: Option<ObjectId>,
    },
    /// The channel need not be woken any more.
    Forget(ObjectId),
    /// Take a name back. The answer is what it stood for.
    Unpublish(String),
    /// The names that begin so, in order.
    List(String),
}

/// What a client asks about the key-value store of its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StoreRequest {
    /// Put a value in.
    Put(Vec<u8>, Vec<u8>),
    /// The value of a key.
    Get {
        /// The key.
        key: Vec<u8>,
        /// Where it has none: a channel of this node that gets a message when it has.
        wake: Option<ObjectId>,
    },
    /// The channel need not be woken any more.
    Forget(ObjectId),
    /// Take a key out. The answer is the value that it had.
    Delete(Vec<u8>),
    /// The keys that begin so, in order.
    List(Vec<u8>),
    /// Put a value in, or take the key out, if the present value is the expected one.
    CompareAndSet {
        /// The key.
        key: Vec<u8>,
        /// The present value; `None`: it has none.
        expected: Option<Vec<u8>>,
        /// The new value; `None`: none.
        value: Option<Vec<u8>>,
    },
}

/// What a daemon asks global services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameOp {
    /// As [`NameRequest::Publish`]; with the publisher's slot where the name lasts with it.
    Publish(String, Value, Option<SlotId>),
    /// As [`NameRequest::LookUp`]; `true`: the asker wants [`NameMessage::Appeared`].
    LookUp(String, bool),
    /// As [`NameRequest::Unpublish`]; only what was published by that request, if one is given.
    Unpublish(String, Option<Origin>),
    /// As [`NameRequest::List`].
    List(String),
}

/// The request that a name was published with: the node, and the node's number for it.
pub type Origin = (NodeIndex, u64);

/// What global services know about a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it stands for.
    pub value: Value,
    /// Who published it.
    pub origin: Origin,
    /// The slot on that node with whose process the name ends.
    pub publisher: Option<SlotId>,
}

impl Entry {
    /// What it takes of [`NAMES_LIMIT`] with its name: at least what it takes of a message.
    #[must_use]
    pub fn cost(&self, name: &str) -> usize {
        let value = match &self.value {
            Value::Object(..) => 0,
            Value::Bytes(bytes) => bytes.len(),
        };
        ENTRY_COST + name.len() + value
    }
}

/// How a request to global services ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done, with what the name stands for or stood for.
    Done(Option<Value>),
    /// The names.
    Names(Vec<String>),
    /// Not done.
    Failed(Code, String),
}

/// A version of the table of names: the index of the view, and the number of changes.
pub type Version = (u64, u64);

/// Names with what is known about them.
pub type Entries = Vec<(String, Entry)>;

/// What daemons tell each other about names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NameMessage {
    /// To global services: a request.
    Ask {
        /// The asker's number for it.
        request: u64,
        /// It was sent before, perhaps in vain.
        again: bool,
        /// What is asked.
        op: NameOp,
    },
    /// The answer.
    Answer {
        /// Number of the request.
        request: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// To who asked for it: the name stands for something now.
    Appeared(String),
    /// To the publisher's node: the name is no more.
    Gone(String, Origin),
    /// To the next ranks: the whole table.
    Copy(Version, Entries),
    /// To the next ranks: one change. `None`: the name is no more.
    Change(Version, String, Option<Entry>),
    /// From the next ranks: they have it.
    Copied(Version),
    /// From the next ranks: a change is missing, and the whole table is needed.
    Behind,
    /// To all, where no copy has survived: what do you know? With the index of the view.
    Tell(u64),
    /// The answer: the index, the copy if there is one, and what the node's own processes published.
    Told(u64, Option<(Version, Entries)>, Entries),
}

/// Checks a name.
///
/// # Errors
/// A sentence that names it, its length and the limit.
pub fn check_name(name: &str) -> Result<(), String> {
    match name.len() {
        0 => Err("a name has at least 1 byte".to_owned()),
        1..=NAME_LIMIT => Ok(()),
        length => {
            let begin: String = name.chars().take(24).collect();
            Err(format!(
                "the name '{begin}…' has {length} bytes, the limit is {NAME_LIMIT}"
            ))
        }
    }
}

/// Checks a key of a node's store.
///
/// # Errors
/// A sentence that names its length and the limit.
pub fn check_key(key: &[u8]) -> Result<(), String> {
    match key.len() {
        0 => Err("a key has at least 1 byte".to_owned()),
        1..=NAME_LIMIT => Ok(()),
        length => Err(format!(
            "a key of {length} bytes, the limit is {NAME_LIMIT}"
        )),
    }
}

/// Checks the length of a value of bytes.
///
/// # Errors
/// A sentence that names it, the limit and the way out.
pub fn check_value(bytes: &[u8]) -> Result<(), String> {
    let length = bytes.len();
    if length <= VALUE_LIMIT {
        return Ok(());
    }
    Err(format!(
        "a value of {length} bytes exceeds the limit of {VALUE_LIMIT}; put it into a block of a pool or a channel, and publish that"
    ))
}
