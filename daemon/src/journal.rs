//! What this daemon has logged lately: a bounded ring in memory, for `dragon logs`.
//!
//! The ring is written by a layer of `tracing`, from any thread. It keeps what is worth reading afterwards, also lines that
//! the filter of standard error drops, and forgets the oldest ones.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use dragon_protocol::inspect::{LogBatch, LogFilter, LogLevel, LogLine};
use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Bytes of text that are kept.
const KEPT: usize = 256 << 10;
/// The longest line; what is longer is cut off.
const LONGEST: usize = 2 << 10;
/// What a line costs beside its text.
const COST: usize = 64;
/// Bytes of text in one batch.
const BATCH: usize = 64 << 10;

static RING: Mutex<Ring> = Mutex::new(Ring {
    lines: VecDeque::new(),
    first: 0,
    bytes: 0,
});
/// Somebody follows.
static FOLLOWED: AtomicBool = AtomicBool::new(false);
/// There is a new line, and somebody follows.
static GROWN: Notify = Notify::const_new();

struct Ring {
    lines: VecDeque<Line>,
    /// Number of the oldest line.
    first: u64,
    bytes: usize,
}

struct Line {
    time_us: u64,
    level: LogLevel,
    target: &'static str,
    text: Box<str>,
}

/// The layer of `tracing` that writes the ring.
#[derive(Debug)]
struct Journal;

/// The layer, with its own filter.
pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    let kept = filter_fn(is_kept).with_max_level_hint(LevelFilter::DEBUG);
    Journal.with_filter(kept)
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut text = Text::default();
        event.record(&mut text);
        add(level_of(*metadata.level()), metadata.target(), text.done());
    }
}

/// Whether the ring keeps what has this description: what the project's own crates say, without what only their authors
/// want to know.
fn is_kept(metadata: &tracing::Metadata<'_>) -> bool {
    metadata.is_event()
        && *metadata.level() <= Level::DEBUG
        && metadata.target().starts_with("dragon")
}

/// Says something on standard error, whatever the filter says, and keeps it: how a daemon tells its user what went wrong.
pub fn say(text: &str) {
    // In one piece: other processes write to the same terminal or pipe. Nobody may be there to read it.
    let _ = Aloud.write_all(format!("dragon: {text}\n").as_bytes());
    add(LogLevel::Error, "dragon", text.to_owned());
}

/// Lines that may wait for whoever reads standard error; more are dropped.
const ALOUD: usize = 4096;

static WAITING: Mutex<Waiting> = Mutex::new(Waiting {
    lines: VecDeque::new(),
    threaded: false,
    writing: false,
    dropped: 0,
});
/// There are lines to be written, or all have been.
static WRITTEN: Condvar = Condvar::new();

/// What waits to be written to standard error.
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    /// A thread writes it.
    threaded: bool,
    /// It is at it.
    writing: bool,
    dropped: u64,
}

/// Standard error, for whoever must not wait: a terminal or a pipe takes what is written when its reader does.
#[derive(Clone, Copy, Debug)]
pub struct Aloud;

impl Write for Aloud {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = waiting();
        if !waiting.threaded {
            drop(waiting);
            return io::stderr().write_all(line).map(|()| line.len());
        }
        if waiting.lines.len() < ALOUD {
            waiting.lines.push_back(line.to_vec());
            WRITTEN.notify_all();
        } else {
            waiting.dropped += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From now on a thread writes to standard error what is said, so that nobody else waits for its reader.
///
/// # Errors
/// When there can be no thread.
pub fn write_by_thread() -> io::Result<()> {
    thread::Builder::new()
        .name("journal".to_owned())
        .stack_size(64 << 10)
        .spawn(|| {
            loop {
                let line = next_aloud();
                // Without a reader there is nobody to tell.
                let _ = io::stderr().write_all(&line);
            }
        })?;
    waiting().threaded = true;
    Ok(())
}

/// The next line for standard error; says that the one before is written.
fn next_aloud() -> Vec<u8> {
    let mut waiting = waiting();
    waiting.writing = false;
    WRITTEN.notify_all();
    loop {
        let dropped = std::mem::take(&mut waiting.dropped);
        if dropped > 0 {
            let line = format!("dragon: {dropped} lines were dropped, since nobody read them\n");
            waiting.lines.push_back(line.into_bytes());
        }
        if let Some(line) = waiting.lines.pop_front() {
            waiting.writing = true;
            return line;
        }
        waiting = match WRITTEN.wait(waiting) {
            Ok(waiting) => waiting,
            Err(poisoned) => poisoned.into_inner(),
        };
    }
}

/// Waits until everything that was said is written, but no longer than `limit`.
pub fn flush(limit: Duration) {
    let waiting = waiting();
    // Poisoned or late: there is nothing to be done about it.
    drop(WRITTEN.wait_timeout_while(waiting, limit, |waiting| {
        waiting.threaded && (waiting.writing || !waiting.lines.is_empty())
    }));
}

fn waiting() -> MutexGuard<'static, Waiting> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines from `cursor` on that pass the filter, as many as fit into a batch; moves the cursor.
#[must_use]
pub fn since(cursor: &mut u64, filter: &LogFilter, node: u32) -> LogBatch {
    let ring = ring();
    let lost = ring.first.saturating_sub(*cursor);
    let mut batch = LogBatch {
        lines: Vec::new(),
        // Whoever has not seen anything yet has not lost it either.
        lost: if *cursor == 0 { 0 } else { lost },
    };
    *cursor = (*cursor).max(ring.first);
    let mut bytes = 0;
    let from = usize::try_from(*cursor - ring.first).unwrap_or(usize::MAX);
    for line in ring.lines.iter().skip(from) {
        if bytes > BATCH {
            break;
        }
        *cursor += 1;
        if line.level <= filter.level {
            bytes += line.text.len() + COST;
            batch.lines.push(LogLine {
                node,
                time_us: line.time_us,
                level: line.level,
                target: line.target.to_owned(),
                text: line.text.to_string(),
            });
        }
    }
    batch
}

/// Whether there are lines from `cursor` on.
#[must_use]
pub fn is_behind(cursor: u64) -> bool {
    let ring = ring();
    cursor < ring.first + ring.lines.len() as u64
}

/// Where the log ends: what comes from now on begins there.
#[must_use]
pub fn end() -> u64 {
    let ring = ring();
    ring.first + ring.lines.len() as u64
}

/// Whether anybody follows: only then [`grown`] ends.
pub fn set_followed(followed: bool) {
    FOLLOWED.store(followed, Ordering::Relaxed);
}

/// Waits until there may be new lines.
pub async fn grown() {
    GROWN.notified().await;
}

fn ring() -> MutexGuard<'static, Ring> {
    RING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(level: LogLevel, target: &'static str, text: String) {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let time_us = time.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(0));
    let mut ring = ring();
    ring.bytes += text.len() + COST;
    ring.lines.push_back(Line {
        time_us,
        level,
        target,
        text: text.into_boxed_str(),
    });
    while ring.bytes > KEPT {
        let Some(oldest) = ring.lines.pop_front() else {
            break;
        };
        ring.bytes -= oldest.text.len() + COST;
        ring.first += 1;
    }
    drop(ring);
    if FOLLOWED.load(Ordering::Relaxed) {
        GROWN.notify_one();
    }
}

fn level_of(level: Level) -> LogLevel {
    match level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        _ => LogLevel::Debug,
    }
}

/// The message of an event, then its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn done(self) -> String {
        let mut text = self.message + &self.fields;
        if text.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or(0));
            text.push('…');
        }
        text
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a string never fails.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// One test for all, since the ring is one for the process.
    #[test]
    fn lines_are_kept_in_order_and_the_oldest_are_forgotten() {
        let all = LogFilter {
            level: LogLevel::Debug,
        };
        let mut cursor = 0;
        let _ = since(&mut cursor, &all, 0);
        let subscriber = tracing_subscriber::registry().with(layer());
        let _guard = tracing::subscriber::set_default(subscriber);
        tracing::warn!(target: "dragon_test", node = 3, "lost {}", "it");
        tracing::debug!(target: "dragon_test", "in detail");
        tracing::trace!(target: "dragon_test", "too much");
        tracing::warn!(target: "tokio", "not ours");
        say("said aloud");
        let errors = LogFilter {
            level: LogLevel::Error,
        };
        let (mut own, mut severe) = (cursor, cursor);
        let texts = |batch: &LogBatch| {
            let lines = batch.lines.iter().map(|line| line.text.clone());
            lines.collect::<Vec<_>>()
        };
        let batch = since(&mut own, &all, 7);
        assert_eq!(texts(&batch), ["lost it node=3", "in detail", "said aloud"]);
        assert_eq!((batch.lost, batch.lines[0].node), (0, 7));
        assert!(!is_behind(own) && is_behind(cursor));
        assert_eq!(texts(&since(&mut severe, &errors, 7)), ["said aloud"]);
        assert_eq!(severe, own, "what was passed over is not looked at again");

        let long = "x".repeat(3 * LONGEST);
        for n in 0..200 {
            tracing::warn!(target: "dragon_test", "{n} {long}");
        }
        let batch = since(&mut own, &all, 7);
        assert!(batch.lost > 50, "{}", batch.lost);
        let bytes: usize = batch.lines.iter().map(|line| line.text.len()).sum();
        assert!(bytes <= BATCH + LONGEST + 16, "{bytes}");
        let first: u64 = batch.lines[0]
            .text
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(first, batch.lost, "all before it were lost");
        let mut lines = batch.lines.len() as u64;
        while is_behind(own) {
            let batch = since(&mut own, &all, 7);
            assert_eq!(batch.lost, 0);
            lines += batch.lines.len() as u64;
        }
        assert_eq!(first + lines, 200);
        assert!(ring().bytes <= KEPT);
    }
}
