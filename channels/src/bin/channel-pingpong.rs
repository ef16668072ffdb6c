//! Ping-pong of two processes over two channels: one message of 8 bytes each way; microseconds one way.
//!
//! `channel-pingpong [--spin | --sleep] [--same-core | --cores A B] [--bytes N] [--runs N] [--rounds N]`
//!
//! Without `--spin` nobody spins: each message wakes a sleeper. Prints one JSON object.

use std::error::Error;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use dragon_channels::{Channel, ChannelOptions, Deadline, create_channel};
use dragon_protocol::{Descriptor, NodeIndex, ObjectId, RuntimeId, SlotId};
use dragon_shmem::{Control, Hooks, Member, Pool};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const RUNTIME: RuntimeId = RuntimeId(0x70_69_6e_67);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("channel-pingpong: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse()?;
    let [first, second] = match options.cores() {
        Ok(cores) => cores,
        Err(error) => {
            println!(r#"{{"name":"channel-pingpong","skipped":"{error}"}}"#);
            return Ok(());
        }
    };
    if let Some(link) = &options.child {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        pin(second)?;
        return echo(&Link::parse(link)?);
    }
    pin(first)?;
    measure(&options, [first, second])
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

fn measure(options: &Options, [first, second]: [usize; 2]) -> Result<()> {
    let cpus = if options.spin { 2 } else { 1 };
    let control = Control::create(RUNTIME, NodeIndex::FIRST, cpus)?;
    let pool = Pool::create(RUNTIME, NodeIndex::FIRST, 0, 64 << 20)?;
    let member = member(&control, &pool, control.claim_slot(std::process::id())?)?;
    let ping = create_channel(&member, &ChannelOptions::default())?;
    let pong = create_channel(&member, &ChannelOptions::default())?;

    let slot = control.claim_slot(0)?;
    let mut fds = Vec::new();
    for region in [control.region(), pool.meta(), pool.data()] {
        fcntl_setfd(region.fd()?, FdFlags::empty())?;
        fds.push((region.fd()?.as_raw_fd(), region.size()));
    }
    let link = Link {
        fds,
        slot,
        ping: ping.descriptor(),
        pong: pong.descriptor(),
    };
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--cores", &first.to_string(), &second.to_string()])
        .args(["--child", &link.text()])
        .spawn()?;

    let payload = vec![7_u8; options.bytes];
    let mut values = Vec::new();
    // The first run warms up and is dropped.
    for run in 0..=options.runs {
        let start = Instant::now();
        for round in 0..options.rounds {
            ping.send(&payload, u64::from(round), Deadline::Never)?;
            let answer = pong.receive(Deadline::Never)?;
            if answer.hint() != u64::from(round) || answer.len() != options.bytes {
                return Err("an answer does not belong to its message".into());
            }
        }
        if run > 0 {
            values.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(options.rounds) / 2.0);
        }
    }
    ping.destroy()?;
    if !child.wait()?.success() {
        return Err("the second process failed".into());
    }
    report(&values, options, [first, second]);
    Ok(())
}

fn echo(link: &Link) -> Result<()> {
    let fd = |n: usize| -> Result<(OwnedFd, u64)> {
        let (fd, size) = *link.fds.get(n).ok_or("a descriptor is missing")?;
        // SAFETY: the first process left this descriptor to us, and nothing else in this process uses it.
        Ok((unsafe { OwnedFd::from_raw_fd(fd) }, size))
    };
    let (region, size) = fd(0)?;
    let control = Control::map(region, size, RUNTIME)?;
    let pool = Pool::map(RUNTIME, 0, fd(1)?, fd(2)?)?;
    let member = member(&control, &pool, link.slot)?;
    let ping = Channel::attach(&member, &link.ping, false)?;
    let pong = Channel::attach(&member, &link.pong, false)?;
    let mut bytes = Vec::new();
    loop {
        let message = match ping.receive(Deadline::Never) {
            Ok(message) => message,
            Err(dragon_channels::Error::Destroyed(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        bytes.resize(message.len(), 0);
        message.copy_to(0, &mut bytes);
        pong.send(&bytes, message.hint(), Deadline::Never)?;
    }
}

fn report(values: &[f64], options: &Options, [first, second]: [usize; 2]) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quartile = |n: usize| sorted[(sorted.len() - 1) * n / 4] * 1e3;
    let list: Vec<String> = values.iter().map(|value| format!("{value:.6}")).collect();
    let mode = if options.spin { "spinning" } else { "sleeping" };
    println!(
        r#"{{"name":"channel-pingpong","unit":"us","values":[{}],"one_way_ns":{{"median":{:.1},"q1":{:.1},"q3":{:.1}}},"runs":{},"rate_per_s":{:.0},"note":"one way, {mode}, {} bytes, pinned to cores {first} and {second}"}}"#,
        list.join(","),
        quartile(2),
        quartile(1),
        quartile(3),
        values.len(),
        1e9 / quartile(2),
        options.bytes,
    );
}

struct Options {
    spin: bool,
    same_core: bool,
    cores: Option<[usize; 2]>,
    runs: u32,
    rounds: u32,
    bytes: usize,
    child: Option<String>,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self {
            spin: false,
            same_core: false,
            cores: None,
            runs: 15,
            rounds: 0,
            bytes: 8,
            child: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || -> Result<u32> {
                let value = words
                    .next()
                    .ok_or_else(|| format!("{word} needs a number"))?;
                value
                    .parse()
                    .map_err(|_| format!("{word} {value}: not a number").into())
            };
            match word.as_str() {
                "--spin" => options.spin = true,
                "--sleep" => options.spin = false,
                "--same-core" => options.same_core = true,
                "--cores" => options.cores = Some([number()? as usize, number()? as usize]),
                "--runs" => options.runs = number()?.max(1),
                "--rounds" => options.rounds = number()?.max(1),
                "--bytes" => options.bytes = number()? as usize,
                "--child" => options.child = words.next(),
                _ => {
                    return Err(format!(
                        "unknown option {word}; there are --spin, --sleep, --same-core, --cores A B, --bytes N, --runs N, --rounds N"
                    )
                    .into());
                }
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.spin { 200_000 } else { 5_000 };
        }
        Ok(options)
    }

    fn cores(&self) -> Result<[usize; 2], String> {
        if let Some(cores) = self.cores {
            return Ok(cores);
        }
        let mask = sched_getaffinity(None).map_err(|error| error.to_string())?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| mask.is_set(core));
        let first = cores.next().ok_or("the affinity mask is empty")?;
        let second = if self.same_core {
            Some(first)
        } else {
            cores.next()
        };
        let second = second.ok_or("needs two cores, and only one is granted")?;
        Ok([first, second])
    }
}

fn pin(core: usize) -> Result<()> {
    let mut mask = CpuSet::new();
    mask.set(core);
    sched_setaffinity(None, &mask)
        .map_err(|error| format!("cannot bind to core {core}: {error}"))?;
    Ok(())
}

/// What the second process needs to find the first: `FD,SIZE,FD,SIZE,FD,SIZE,SLOT,GENERATION,PING,PONG`.
struct Link {
    fds: Vec<(RawFd, u64)>,
    slot: SlotId,
    ping: Descriptor,
    pong: Descriptor,
}

impl Link {
    fn text(&self) -> String {
        let mut text = String::new();
        for (fd, size) in &self.fds {
            text += &format!("{fd},{size},");
        }
        let SlotId { index, generation } = self.slot;
        text + &format!("{index},{generation},{},{}", self.ping, self.pong)
    }

    fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split(',').collect();
        let [a, b, c, d, e, f, index, generation, ping, pong] = words[..] else {
            return Err("--child is for this program's own use".into());
        };
        let mut fds = Vec::new();
        for (fd, size) in [(a, b), (c, d), (e, f)] {
            let fd: RawFd = fd.parse()?;
            // SAFETY: only its flags are looked at, and a number that is no descriptor gives an error.
            rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) })?;
            fds.push((fd, size.parse()?));
        }
        let slot = SlotId {
            index: index.parse()?,
            generation: generation.parse()?,
        };
        Ok(Self {
            fds,
            slot,
            ping: ping.parse()?,
            pong: pong.parse()?,
        })
    }
}
