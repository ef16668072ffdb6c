//! Nanoseconds that one allocation and its free take, by one or several processes at once, beside a bare atomic loop.
//!
//! `alloc-bench [--bytes N]... [--processes N] [--rounds N] [--runs N] [--batch N] [--others N]`
//!
//! Each process is pinned to a core of its own. `--batch` blocks are allocated before they are freed; `--others` blocks of
//! mixed sizes are in the pool beside what is measured. Prints one JSON object for each size.

use std::error::Error;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use dragon_protocol::{NodeIndex, ObjectId, ObjectKind, RuntimeId, SlotId};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{AtomicU64, Ordering};
use dragon_shmem::{Control, Hooks, Member, Pool};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const RUNTIME: RuntimeId = RuntimeId(0x61_6c_6c_6f_63);
const LIMIT: u64 = 1 << 30;
const SIZES: [u64; 8] = [
    64,
    256,
    1 << 10,
    4 << 10,
    32 << 10,
    128 << 10,
    512 << 10,
    1 << 20,
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("alloc-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse()?;
    if let Some(link) = &options.child {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        return child(link);
    }
    let cores = cores()?;
    if cores.len() < options.processes {
        println!(
            r#"{{"name":"alloc-bench","skipped":"{} processes need as many cores, and there are {}"}}"#,
            options.processes,
            cores.len()
        );
        return Ok(());
    }
    for bytes in &options.bytes {
        measure(&options, *bytes, &cores)?;
    }
    Ok(())
}

/// Commits memory without asking anybody: there is no daemon here.
struct Direct(Pool);

impl Hooks for Direct {
    fn commit(&self, _: u32, bytes: u64) -> Result<(), dragon_shmem::Error> {
        self.0.commit(bytes)
    }

    fn notify(&self, _: ObjectId) {}
}

fn member(control: &Control, pool: &Pool, slot: SlotId) -> Result<Arc<Member>> {
    let hooks = Box::new(Direct(pool.clone()));
    Ok(Member::new(control.clone(), pool.clone(), slot, hooks)?)
}

/// What the processes do at the same time, by a word that the parent writes: the number of the run, times two, plus one for
/// the bare loop.
const GO: usize = 0;
/// How many children have finished the run.
const DONE: usize = 1;
/// The children's picoseconds, added up.
const TIME: usize = 2;

fn measure(options: &Options, bytes: u64, cores: &[usize]) -> Result<()> {
    let control = Control::create(RUNTIME, NodeIndex::FIRST, 1)?;
    let pool = Pool::create(RUNTIME, NodeIndex::FIRST, 0, LIMIT)?;
    pool.commit(LIMIT / 4)?;
    let member = member(&control, &pool, control.claim_slot(std::process::id())?)?;
    let words = member.create(ObjectKind::Event, |_, _| Ok(()))?;
    let entry = control.entry(words)?;
    // For each process a block of its own, far from the others'.
    let raw = member.alloc(64 << 10)?;
    member.share(raw.offset)?;
    for n in 0..options.others {
        let small = [64, 256, 1 << 10, 4 << 10][n % 4];
        member.alloc(if n % 50 == 0 { 60 << 10 } else { small })?;
    }
    let mut children = Vec::new();
    for core in cores.iter().take(options.processes).skip(1) {
        children.push(spawn(
            &control, &pool, words, raw.offset, *core, bytes, options,
        )?);
    }
    pin(cores[0])?;
    let mut times = [Vec::new(), Vec::new()];
    for run in 1..=options.runs as u64 {
        for bare in [0, 1] {
            entry.body[DONE].store(0, Ordering::Relaxed);
            entry.body[TIME].store(0, Ordering::Relaxed);
            entry.body[GO].store(run * 2 + bare, Ordering::SeqCst);
            let own = work(&member, raw.offset, 0, bare == 1, bytes, options)?;
            while entry.body[DONE].load(Ordering::Acquire) < children.len() as u64 {
                std::hint::spin_loop();
            }
            let all = own + entry.body[TIME].load(Ordering::Relaxed);
            times[usize::from(bare == 1)].push(all / options.processes as u64);
        }
    }
    entry.body[GO].store(u64::MAX, Ordering::SeqCst);
    for mut child in children {
        child.wait()?;
    }
    let [[best, low, ns, high], [_, _, bare, _]] = times.map(quartiles);
    let stats = pool.stats()?;
    println!(
        r#"{{"name":"alloc-bench","bytes":{bytes},"processes":{},"batch":{},"others":{},"runs":{},"ns":{ns:.1},"lower_quartile":{low:.1},"upper_quartile":{high:.1},"best":{best:.1},"bare_atomic_ns":{bare:.2},"used":{}}}"#,
        options.processes, options.batch, options.others, options.runs, stats.used
    );
    Ok(())
}

/// Picoseconds for one allocation and its free, or for one turn of the bare loop.
fn work(
    member: &Member,
    raw: u64,
    which: u64,
    bare: bool,
    bytes: u64,
    options: &Options,
) -> Result<u64> {
    let rounds = options.rounds;
    let start;
    if bare {
        let word: &AtomicU64 = member.pool().data().view(raw + which * 4096)?;
        start = Instant::now();
        for _ in 0..rounds {
            word.fetch_add(1, Ordering::AcqRel);
        }
    } else if options.batch == 1 {
        member.free(member.alloc(bytes)?.offset)?;
        start = Instant::now();
        for _ in 0..rounds {
            member.free(member.alloc(bytes)?.offset)?;
        }
    } else {
        let mut blocks = Vec::with_capacity(options.batch);
        start = Instant::now();
        for _ in 0..rounds / options.batch {
            for _ in 0..options.batch {
                blocks.push(member.alloc(bytes)?.offset);
            }
            for block in blocks.drain(..) {
                member.free(block)?;
            }
        }
    }
    let all = u64::try_from(start.elapsed().as_nanos())?;
    Ok(all * 1000 / rounds as u64)
}

fn quartiles(mut times: Vec<u64>) -> [f64; 4] {
    times.sort_unstable();
    [0, 1, 2, 3].map(|n| {
        let at = (times.len() - 1) * n / 4;
        // Picoseconds of one operation are far below 2^52.
        #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
        let time = times[at] as f64;
        time / 1000.0
    })
}

fn spawn(
    control: &Control,
    pool: &Pool,
    words: ObjectId,
    raw: u64,
    core: usize,
    bytes: u64,
    options: &Options,
) -> Result<Child> {
    let slot = control.claim_slot(0)?;
    let mut link = format!(
        "{},{},{},{},{raw},{core}",
        slot.index, slot.generation, words.index, words.generation
    );
    for region in [control.region(), pool.meta(), pool.data()] {
        let fd = region.fd()?;
        fcntl_setfd(fd, FdFlags::empty())?;
        link += &format!(",{},{}", fd.as_raw_fd(), region.size());
    }
    link += &format!(",{bytes},{},{}", options.rounds, options.batch);
    Ok(Command::new(std::env::current_exe()?)
        .args(["--child", &link])
        .stdin(Stdio::null())
        .spawn()?)
}

fn child(link: &str) -> Result<()> {
    let words = link
        .split(',')
        .map(str::parse)
        .collect::<Result<Vec<u64>, _>>()?;
    let narrow = |n: usize| u32::try_from(words[n]);
    let fd = |n: usize| -> Result<(OwnedFd, u64)> {
        // SAFETY: the parent left this descriptor to us, and nothing else in this process uses it.
        let fd = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(words[n])?) };
        Ok((fd, words[n + 1]))
    };
    pin(usize::try_from(words[5])?)?;
    let (region, size) = fd(6)?;
    let control = Control::map(region, size, RUNTIME)?;
    let pool = Pool::map(RUNTIME, 0, fd(8)?, fd(10)?)?;
    let slot = SlotId {
        index: narrow(0)?,
        generation: narrow(1)?,
    };
    let options = Options {
        rounds: usize::try_from(words[13])?,
        batch: usize::try_from(words[14])?,
        ..Options::default()
    };
    let member = member(&control, &pool, slot)?;
    let entry: &ObjectEntry = control.object(narrow(2)?)?;
    let mut last = 0;
    loop {
        let now = entry.body[GO].load(Ordering::Acquire);
        if now == u64::MAX {
            return Ok(());
        }
        if now == last {
            std::hint::spin_loop();
            continue;
        }
        last = now;
        let time = work(
            &member,
            words[4],
            slot.index.into(),
            now % 2 == 1,
            words[12],
            &options,
        )?;
        entry.body[TIME].fetch_add(time, Ordering::AcqRel);
        entry.body[DONE].fetch_add(1, Ordering::AcqRel);
    }
}

fn cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

struct Options {
    bytes: Vec<u64>,
    processes: usize,
    rounds: usize,
    runs: usize,
    batch: usize,
    others: usize,
    child: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            processes: 1,
            rounds: 500_000,
            runs: 9,
            batch: 1,
            others: 0,
            child: None,
        }
    }
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words
                .next()
                .ok_or_else(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--bytes" => options.bytes.push(value.parse()?),
                "--processes" => options.processes = value.parse()?,
                "--rounds" => options.rounds = value.parse()?,
                "--runs" => options.runs = value.parse()?,
                "--batch" => options.batch = value.parse()?,
                "--others" => options.others = value.parse()?,
                "--child" => options.child = Some(value),
                other => return Err(format!("unknown option {other}").into()),
            }
        }
        if options.bytes.is_empty() {
            options.bytes = SIZES.to_vec();
        }
        for count in [
            options.processes,
            options.rounds,
            options.runs,
            options.batch,
        ] {
            if count == 0 {
                return Err("a count must be at least 1".into());
            }
        }
        Ok(options)
    }
}
