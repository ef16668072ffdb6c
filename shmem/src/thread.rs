//! Thread records: what a thread is doing (its *intent*), and where the reply to its remote request arrives.

use dragon_protocol::op::Op;
use dragon_protocol::wire::{trace_of, words_of};
use dragon_protocol::{NodeIndex, ObjectId, ObjectKind};

use crate::error::{Error, Result};
#[cfg(not(loom))]
use crate::futex;
use crate::futex::{Deadline, WaitResult};
use crate::region::Shared;
use crate::sync::{AtomicU32, AtomicU64, Ordering, low};

/// Bytes of payload that fit into a reply cell.
#[cfg(not(loom))]
pub const REPLY_INLINE: usize = 384;
/// A model needs one word only.
#[cfg(loom)]
pub const REPLY_INLINE: usize = 8;

/// A thread inside an operation. 512 bytes.
#[derive(Debug)]
#[repr(C, align(512))]
pub struct ThreadRecord {
    /// 1 while a thread uses the record.
    pub(crate) busy: AtomicU32,
    /// 1 once a thread has used the record. Records are taken in order, so the used ones are the first ones: recovery stops
    /// at the first that is not, since reading a page of a sparse region would allocate it.
    pub(crate) touched: AtomicU32,
    /// What the thread is doing.
    pub intent: Intent,
    /// Where a reply arrives.
    pub reply: ReplyCell,
}

impl ThreadRecord {
    /// Whether a thread has used the record since its slot was given out.
    #[inline]
    #[must_use]
    pub fn is_touched(&self) -> bool {
        self.touched.load(Ordering::Acquire) != 0
    }

    /// Makes the record of a dead thread free again. A record into which the daemon's agent is writing at this moment stays
    /// taken until the slot's next recovery, so that a late reply never meets another process's request.
    pub(crate) fn clear(&self) {
        self.intent.end();
        self.reply.reset();
        if self.reply.is_idle() {
            self.touched.store(0, Ordering::Relaxed);
            self.busy.store(0, Ordering::Release);
        }
    }
}

/// What a thread is about to do: written before the step that it describes, so that recovery can finish or undo it.
#[derive(Debug)]
#[repr(C)]
pub struct Intent {
    /// An [`Op`], 0 for none.
    op: AtomicU32,
    /// How far it has come; the meaning is the operation's.
    step: AtomicU32,
    /// The object: index.
    index: AtomicU32,
    /// The object: generation.
    generation: AtomicU32,
    /// Arguments of the operation.
    arguments: [AtomicU64; 4],
}

/// A snapshot of an intent, as recovery reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intended {
    /// The operation.
    pub op: Op,
    /// How far it had come.
    pub step: u32,
    /// Index of the object.
    pub index: u32,
    /// Generation of the object.
    pub generation: u32,
    /// Arguments.
    pub arguments: [u64; 4],
}

impl Intent {
    /// Announces an operation on an object of this node.
    #[inline]
    pub fn begin(&self, op: Op, index: u32, generation: u32, arguments: [u64; 2]) {
        // An operation inside another writes over its intent: never are the arguments of one seen with the name of the other.
        self.op.store(0, Ordering::Relaxed);
        self.step.store(0, Ordering::Release);
        self.index.store(index, Ordering::Release);
        self.generation.store(generation, Ordering::Release);
        self.arguments[0].store(arguments[0], Ordering::Release);
        self.arguments[1].store(arguments[1], Ordering::Release);
        // Release: whoever reads the operation after this process died reads its arguments too. A process's stores reach
        // the others in program order on x86; the Release says so on every machine.
        self.op.store(op as u32, Ordering::Release);
    }

    /// Announces the next step.
    #[inline]
    pub fn step(&self, step: u32) {
        self.step.store(step, Ordering::Release);
    }

    /// Changes an argument.
    #[inline]
    pub fn set(&self, which: usize, value: u64) {
        self.arguments[which & 3].store(value, Ordering::Release);
    }

    /// The operation is over.
    #[inline]
    pub fn end(&self) {
        self.op.store(0, Ordering::Release);
    }

    /// What the thread was doing.
    #[must_use]
    pub fn read(&self) -> Option<Intended> {
        let op = u8::try_from(self.op.load(Ordering::Acquire))
            .ok()
            .and_then(Op::from_u8)?;
        Some(Intended {
            op,
            step: self.step.load(Ordering::Acquire),
            index: self.index.load(Ordering::Relaxed),
            generation: self.generation.load(Ordering::Relaxed),
            arguments: std::array::from_fn(|n| self.arguments[n].load(Ordering::Acquire)),
        })
    }
}

/// Where the agent puts the reply to a thread's request. The state word decides who may write:
///
/// ```text
/// IDLE ─begin→ WAITING ─agent: CAS→ FILLING ─agent: CAS→ READY ─take→ IDLE
///                 └──────thread: CAS (abandon)→ IDLE
///                             FILLING ─recovery: CAS→ ORPHAN ─agent: CAS→ IDLE
/// ```
///
/// It is `low bits of the ticket 29 | state 3`: the agent's compare-and-swap out of WAITING is at once the check that the
/// thread still waits for this reply and not for a later one.
#[derive(Debug)]
#[repr(C)]
pub struct ReplyCell {
    state: AtomicU32,
    status: AtomicU32,
    ticket: AtomicU64,
    /// What the reply is for: `node 32 | index 32`, `generation 32 | kind 8 | operation 8`.
    asked: [AtomicU64; 2],
    arg0: AtomicU64,
    /// The second result, or the first half of a trace id.
    arg1: AtomicU64,
    /// Of the payload; [`TRACED`] beside it.
    length: AtomicU64,
    block: AtomicU64,
    inline: [AtomicU64; REPLY_INLINE / 8],
    /// The second half of a trace id.
    trace: AtomicU64,
}

/// In the word of the length: a trace id came with the message.
const TRACED: u64 = 1 << 63;

const IDLE: u32 = 0;
const WAITING: u32 = 1;
const FILLING: u32 = 2;
const READY: u32 = 3;
/// The thread died while the agent was filling the cell.
const ORPHAN: u32 = 4;
const STATE: u32 = 7;

#[inline]
fn word(ticket: u64, state: u32) -> u32 {
    low(ticket) << 3 | state
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// A [`dragon_protocol::Code`] as number.
    pub status: i32,
    /// First result.
    pub arg0: u64,
    /// Second result.
    pub arg1: u64,
    /// What came with it.
    pub payload: ReplyPayload,
    /// The trace id of a message that came with it; then there is no second result.
    pub trace: Option<[u8; 16]>,
}

/// Payload of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyPayload {
    /// In the cell itself.
    Inline(Vec<u8>),
    /// In a block of the default pool, which the receiver frees.
    Block {
        /// Its offset.
        offset: u64,
        /// Bytes used.
        length: u64,
    },
}

/// A reply that its thread did not live to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untaken {
    /// What was asked for, and of which object; none when that was scribbled over.
    pub asked: Option<(Op, ObjectId)>,
    /// The reply. A block that came with it is whoever's has this value.
    pub reply: Reply,
}

impl ReplyCell {
    /// Opens the cell for the reply to a request, with a new ticket, which this returns.
    #[inline]
    pub fn begin(&self, op: Op, object: ObjectId) -> u64 {
        let ticket = self.ticket.load(Ordering::Relaxed).wrapping_add(1);
        self.ticket.store(ticket, Ordering::Relaxed);
        let [place, what] = &self.asked;
        let node = u64::from(object.node.get());
        place.store(node << 32 | u64::from(object.index), Ordering::Relaxed);
        let kind = u64::from(object.kind as u8);
        what.store(
            u64::from(object.generation) << 32 | kind << 8 | u64::from(op as u8),
            Ordering::Relaxed,
        );
        self.state.store(word(ticket, WAITING), Ordering::Release);
        ticket
    }

    /// Waits for the reply. `record` is told of a block that comes with it before the cell is given back: it puts it into the
    /// held table, so that at every moment recovery finds the block in one of the two (or in both, and it is one block).
    ///
    /// # Errors
    /// [`WaitResult::TimedOut`] or [`WaitResult::Interrupted`]: the cell stays open.
    #[inline]
    pub fn wait(
        &self,
        deadline: Deadline,
        spins: u32,
        record: impl FnOnce(u64),
    ) -> Result<Reply, WaitResult> {
        for _ in 0..spins {
            if self.state.load(Ordering::Acquire) & STATE == READY {
                break;
            }
            crate::sync::spin_loop();
        }
        loop {
            match self.state.load(Ordering::Acquire) {
                state if state & STATE == READY => return Ok(self.take(record)),
                state => match sleep(&self.state, state, deadline) {
                    WaitResult::Woken | WaitResult::Changed => {}
                    other => return Err(other),
                },
            }
        }
    }

    /// Gives up waiting; false when the reply has won: then it must be taken.
    #[must_use]
    pub fn abandon(&self) -> bool {
        let ticket = self.ticket.load(Ordering::Relaxed);
        self.change(ticket, WAITING, IDLE)
    }

    fn change(&self, ticket: u64, from: u32, to: u32) -> bool {
        self.state
            .compare_exchange(
                word(ticket, from),
                word(ticket, to),
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_ok()
    }

    fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) & STATE == IDLE
    }

    fn asked(&self) -> Option<(Op, ObjectId)> {
        let place = self.asked[0].load(Ordering::Relaxed);
        let what = self.asked[1].load(Ordering::Relaxed);
        let [op, kind, ..] = what.to_le_bytes();
        let object = ObjectId {
            node: NodeIndex::new(low(place >> 32))?,
            kind: ObjectKind::from_u8(kind)?,
            index: low(place),
            generation: low(what >> 32),
        };
        Some((Op::from_u8(op)?, object))
    }

    fn take(&self, record: impl FnOnce(u64)) -> Reply {
        let reply = self.read();
        if let ReplyPayload::Block { offset, .. } = reply.payload {
            record(offset);
        }
        let ticket = self.ticket.load(Ordering::Relaxed);
        self.state.store(word(ticket, IDLE), Ordering::Release);
        reply
    }

    fn read(&self) -> Reply {
        let word = self.length.load(Ordering::Relaxed);
        let (length, is_traced) = (word & !TRACED, word & TRACED != 0);
        let block = self.block.load(Ordering::Relaxed);
        let payload = if block == 0 {
            // A length beyond the cell can only come from a scribbler: the cell's size is the limit.
            let length = usize::try_from(length)
                .unwrap_or(usize::MAX)
                .min(REPLY_INLINE);
            let words = self.inline.iter().take(length.div_ceil(8));
            let mut bytes: Vec<u8> = words
                .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
                .collect();
            bytes.truncate(length);
            ReplyPayload::Inline(bytes)
        } else {
            ReplyPayload::Block {
                offset: block,
                length,
            }
        };
        let words = [&self.arg1, &self.trace].map(|word| word.load(Ordering::Relaxed));
        Reply {
            status: self.status.load(Ordering::Relaxed).cast_signed(),
            arg0: self.arg0.load(Ordering::Relaxed),
            arg1: if is_traced { 0 } else { words[0] },
            payload,
            trace: is_traced.then(|| trace_of(words)),
        }
    }

    /// Delivers a reply, and wakes the thread. False: nobody waits with that ticket (any more).
    ///
    /// # Errors
    /// When an inline payload is larger than the cell.
    pub fn complete(&self, ticket: u64, reply: &Reply) -> Result<bool> {
        if let ReplyPayload::Inline(bytes) = &reply.payload
            && bytes.len() > REPLY_INLINE
        {
            return Err(Error::Corrupt {
                what: "length of an inline reply",
                value: bytes.len() as u64,
            });
        }
        // The word has the low bits of the ticket; the whole one rules out a reply that is 2^29 requests late.
        if self.ticket.load(Ordering::Acquire) != ticket || !self.change(ticket, WAITING, FILLING) {
            return Ok(false);
        }
        self.status
            .store(reply.status.cast_unsigned(), Ordering::Relaxed);
        self.arg0.store(reply.arg0, Ordering::Relaxed);
        let words = reply.trace.map_or([reply.arg1, 0], words_of);
        self.arg1.store(words[0], Ordering::Relaxed);
        self.trace.store(words[1], Ordering::Relaxed);
        let is_traced = if reply.trace.is_some() { TRACED } else { 0 };
        match &reply.payload {
            ReplyPayload::Inline(bytes) => {
                self.block.store(0, Ordering::Relaxed);
                self.length
                    .store(bytes.len() as u64 | is_traced, Ordering::Relaxed);
                for (word, chunk) in self.inline.iter().zip(bytes.chunks(8)) {
                    let mut padded = [0; 8];
                    padded[..chunk.len()].copy_from_slice(chunk);
                    word.store(u64::from_ne_bytes(padded), Ordering::Relaxed);
                }
            }
            ReplyPayload::Block { offset, length } => {
                self.block.store(*offset, Ordering::Relaxed);
                self.length.store(*length | is_traced, Ordering::Relaxed);
            }
        }
        let done = self.change(ticket, FILLING, READY);
        if !done {
            // The thread is dead: nobody waits, and what came with the reply stays the caller's.
            let _ = self.change(ticket, ORPHAN, IDLE);
        }
        notify(&self.state);
        Ok(done)
    }

    /// Empties the cell of a dead thread; returns a reply that it did not take. A cell that is being filled at this moment
    /// becomes an orphan: the agent will find that nobody waits.
    pub(crate) fn reset(&self) -> Option<Untaken> {
        loop {
            let before = self.state.load(Ordering::Acquire);
            let to = match before & STATE {
                FILLING => ORPHAN,
                ORPHAN => return None,
                _ => IDLE,
            };
            let changed = self.state.compare_exchange(
                before,
                before & !STATE | to,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if changed.is_ok() {
                return (before & STATE == READY).then(|| Untaken {
                    asked: self.asked(),
                    reply: self.read(),
                });
            }
        }
    }
}

#[cfg(not(loom))]
fn sleep(word: &AtomicU32, expected: u32, deadline: Deadline) -> WaitResult {
    futex::wait(word, expected, deadline)
}

#[cfg(not(loom))]
fn notify(word: &AtomicU32) {
    futex::wake(word, 1);
}

#[cfg(loom)]
fn sleep(_: &AtomicU32, _: u32, deadline: Deadline) -> WaitResult {
    loom::thread::yield_now();
    if deadline == Deadline::Now {
        WaitResult::TimedOut
    } else {
        WaitResult::Woken
    }
}

#[cfg(loom)]
fn notify(_: &AtomicU32) {}

// SAFETY: repr(C), only atomics.
unsafe impl Shared for ThreadRecord {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<ThreadRecord>() == 512);

#[cfg(test)]
#[path = "thread_tests.rs"]
mod tests;
