//! What the raw programs share: options, pinning, a page that two processes map, and the line that they print.
//!
//! Each program measures the least that the machine allows for one way of passing a message. They are peers: they are
//! changed only in commits of their own, so that ratios to them stay comparable.
//!
//! A program prints one JSON object: `{"name", "unit", "values": [one per run], "note"}`, or `{"name", "skipped"}` where
//! the machine does not allow it.

use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

pub mod chain;
pub mod copies;
pub mod least;
pub mod memory;
mod page;
pub mod ring;
pub mod sleep;
pub mod spawn;
pub mod spin;

pub use page::Page;

/// The words of a command line: `[MODE] [--runs N] [--rounds N] [--same-core] [--spin] [--child WHAT]`.
#[derive(Debug, Clone)]
pub struct Options {
    /// Words that are not options.
    pub words: Vec<String>,
    /// How many values to measure.
    pub runs: u32,
    /// How many messages make one value; `None`: what suits the program.
    pub rounds: Option<u32>,
    /// Both processes on one core, in place of two cores.
    pub same_core: bool,
    /// Read in a loop, without sleeping, where the program has that choice.
    pub spin: bool,
    /// Set in the second process: what it needs to find the first.
    pub child: Option<String>,
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// An unknown option, or a value that is not a positive number.
    pub fn parse() -> Result<Self> {
        let mut options = Self {
            words: Vec::new(),
            runs: 15,
            rounds: None,
            same_core: false,
            spin: false,
            child: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--runs" => options.runs = positive(&arg, args.next())?,
                "--rounds" => options.rounds = Some(positive(&arg, args.next())?),
                "--same-core" => options.same_core = true,
                "--cross-core" => options.same_core = false,
                "--spin" => options.spin = true,
                "--child" => options.child = args.next(),
                word if word.starts_with('-') => bail!(
                    "unknown option {word}; there are --runs N, --rounds N, --same-core, --cross-core, --spin"
                ),
                _ => options.words.push(arg),
            }
        }
        Ok(options)
    }
}

static RUNS: OnceLock<u32> = OnceLock::new();

/// The words of a command line of modes: `MODE [WORD…] [--runs N]`.
///
/// # Errors
/// A value of `--runs` that is not a positive number.
pub fn mode() -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--runs" {
            let runs = positive(&arg, args.next())?;
            RUNS.get_or_init(|| runs);
        } else {
            words.push(arg);
        }
    }
    Ok(words)
}

/// How many values a mode measures: what [`mode`] read, 10 otherwise.
#[must_use]
pub fn runs() -> usize {
    *RUNS.get().unwrap_or(&10) as usize
}

fn positive(option: &str, value: Option<String>) -> Result<u32> {
    let value = value.with_context(|| format!("{option} needs a number"))?;
    match value.parse() {
        Ok(0) | Err(_) => bail!("{option} {value}: not a number from 1 to {}", u32::MAX),
        Ok(number) => Ok(number),
    }
}

/// The two cores for the two processes: one and the same, or the first two that this process may use.
///
/// # Errors
/// The affinity mask cannot be read, or the program needs two cores and has one.
pub fn cores(same_core: bool) -> Result<(usize, usize)> {
    let mask = sched_getaffinity(None).context("cannot read the affinity mask")?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| mask.is_set(core));
    let first = cores.next().context("the affinity mask is empty")?;
    let second = if same_core { Some(first) } else { cores.next() };
    Ok((
        first,
        second.context("needs two cores, and only one is granted")?,
    ))
}

/// Binds this thread to one core.
///
/// # Errors
/// The kernel refuses.
pub fn pin(core: usize) -> Result<()> {
    let mut mask = CpuSet::new();
    mask.set(core);
    sched_setaffinity(None, &mask).with_context(|| format!("cannot bind to core {core}"))
}

/// This program again, as the second process.
///
/// # Errors
/// The path of the program is unknown.
pub fn second_process(options: &Options, link: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(&options.words).args(["--child", link]);
    if options.same_core {
        command.arg("--same-core");
    }
    if options.spin {
        command.arg("--spin");
    }
    command.stdin(Stdio::null());
    Ok(command)
}

/// Called first in the second process: it ends when the first one does.
///
/// # Errors
/// The kernel refuses.
pub fn end_with_parent() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot ask for a signal at the parent's end")
}

/// Ends this process when the second one ends before [`Watched::done`] was called: it would wait for ever.
#[derive(Debug)]
pub struct Watched {
    done: Arc<AtomicBool>,
    watcher: thread::JoinHandle<()>,
}

impl Watched {
    /// Watches `child` from a thread that sleeps until it ends.
    #[must_use]
    pub fn new(mut child: Child) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let expected = Arc::clone(&done);
        let watcher = thread::spawn(move || {
            let status = child.wait();
            if !expected.load(Ordering::Acquire) {
                eprintln!("the second process ended too early: {status:?}");
                std::process::abort();
            }
        });
        Self { done, watcher }
    }

    /// From here on the second process may end.
    pub fn done(&self) {
        self.done.store(true, Ordering::Release);
    }

    /// Waits for its end.
    pub fn join(self) {
        // The watcher has nothing that panics.
        let _ = self.watcher.join();
    }
}

/// Two words, each on cache lines of its own, that two processes count up in turn.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Turns {
    /// Counted up by the first process.
    pub ping: Line,
    /// Counted up by the second process.
    pub pong: Line,
}

/// A word alone on its cache lines (two: processors fetch them in pairs).
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Line(pub AtomicU32);

/// Prints what was measured.
pub fn report(name: &str, unit: &str, values: &[f64], note: &str) {
    let mut list = String::new();
    for value in values {
        let comma = if list.is_empty() { "" } else { "," };
        // Writing to a String does not fail.
        let _ = write!(list, "{comma}{value:.6}");
    }
    println!(r#"{{"name":"{name}","unit":"{unit}","values":[{list}],"note":"{note}"}}"#);
}

/// Prints what was measured of several things in turn: each value has its neighbours at the same place of the other columns.
pub fn report_beside(name: &str, unit: &str, columns: &[Vec<f64>], note: &str) {
    let list = |values: &Vec<f64>| {
        let words: Vec<String> = values.iter().map(|value| format!("{value:.6}")).collect();
        format!("[{}]", words.join(","))
    };
    let columns: Vec<String> = columns.iter().map(list).collect();
    println!(
        r#"{{"name":"{name}","unit":"{unit}","columns":[{}],"note":"{note}"}}"#,
        columns.join(",")
    );
}

/// Prints that the machine does not allow this measurement.
pub fn report_skipped(name: &str, why: &str) {
    println!(r#"{{"name":"{name}","skipped":"{why}"}}"#);
}
