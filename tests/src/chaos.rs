//! Jobs to which something happens in a named state, chosen by a seed: each must end within the limit, with the right exit code,
//! and leave nothing behind.
//!
//! States are seen in the daemons' log, faults are signals and links that are taken down: nothing in the product knows of them.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::job::{Ended, Job, send};
use crate::local::{dragon, pause};
use crate::netns::Netns;

/// A job that takes longer than this from the fault to its end hangs.
const LIMIT: Duration = Duration::from_secs(40);
/// How long a state is waited for: it may be over before it was looked for.
const REACH: Duration = Duration::from_secs(20);
/// The exit code of every head program that ends by itself.
pub const HEAD: u8 = 7;
/// Nodes that a job has at most.
pub const NODES: u32 = 5;

/// Where jobs run, and what they run.
#[derive(Debug)]
pub struct Place {
    /// Namespaces for the nodes, where they can be made.
    pub netns: Option<Netns>,
    /// The program that has the heads of [`crate::chaos`] as its arguments.
    pub heads: PathBuf,
    /// A Python interpreter with the package, and a program for it.
    pub python: Option<(PathBuf, PathBuf)>,
}

/// One job and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    nodes: u32,
    /// Nodes in namespaces, not on this machine's loopback.
    apart: bool,
    head: Head,
    moment: Moment,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// A shell that waits.
    Shell,
    /// One that ignores signals, with children in sessions of their own.
    Deaf,
    /// Starts processes on all nodes, one after the other.
    Spawns,
    /// Sends messages to processes of all nodes and back.
    Messages,
    /// A Python program with a pool of workers.
    Python,
}

/// When it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// When a node has entered this state.
    State(u32, &'static str),
    /// When the head says that it is at work.
    Working,
    /// When the head was told to end, and this node has entered this state.
    AtTheEnd(u32, &'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    KillDaemon(u32),
    TerminateDaemon(u32),
    /// Stopped for a moment: stopped is not dead.
    PauseDaemon(u32),
    KillLauncher,
    TerminateLauncher,
    /// Ctrl-C, twice.
    Interrupt,
    KillHead,
    Cut(u32),
}

/// What came of one job.
#[derive(Debug, Default)]
pub struct Outcome {
    /// It did not end.
    pub hangs: bool,
    /// What it left.
    pub left: Vec<String>,
    /// What else was wrong.
    pub wrong: Option<String>,
    /// All that it said.
    pub said: String,
}

/// What came of all jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Jobs.
    pub runs: u32,
    /// Those that did not end.
    pub hangs: u32,
    /// Those that left something.
    pub leaks: u32,
    /// Those that ended in another way than they should.
    pub wrong: u32,
}

impl Totals {
    /// Whether all was well.
    #[must_use]
    pub fn good(self) -> bool {
        self.hangs + self.leaks + self.wrong == 0
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            runs,
            hangs,
            leaks,
            wrong,
        } = self;
        write!(f, "runs {runs}, hangs {hangs}, leaks {leaks}")?;
        if *wrong > 0 {
            write!(f, ", wrong {wrong}")?;
        }
        Ok(())
    }
}

/// Runs so many jobs; says of each that failed what happened, and how to run it again.
pub fn run(place: &Place, seed: u64, first: u32, runs: u32, all: bool) -> Totals {
    let mut totals = Totals::default();
    for number in first..first + runs {
        let plan = Plan::new(seed, number, place);
        let outcome = plan.run(place);
        totals.runs += 1;
        totals.hangs += u32::from(outcome.hangs);
        totals.leaks += u32::from(!outcome.left.is_empty());
        totals.wrong += u32::from(outcome.wrong.is_some());
        let failed = outcome.hangs || !outcome.left.is_empty() || outcome.wrong.is_some();
        if failed || all {
            println!("run {number}: {plan}: {outcome}");
        }
        if failed {
            println!("    again: cargo xtask chaos --seed {seed} --first {number} --runs 1");
            println!("    it said:\n{}", indented(&outcome.said));
        }
    }
    totals
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("        {line}\n"))
        .collect()
}

impl Plan {
    /// The plan with this number of the sequence that the seed begins.
    #[must_use]
    pub fn new(seed: u64, number: u32, place: &Place) -> Self {
        let mut dice = Dice::new(seed, number);
        let nodes = 3 + dice.below(NODES - 2);
        let apart = place.netns.is_some() && dice.below(2) == 0;
        let heads = [
            Head::Shell,
            Head::Deaf,
            Head::Spawns,
            Head::Messages,
            Head::Python,
        ];
        let heads = &heads[..if place.python.is_some() { 5 } else { 4 }];
        let head = dice.of(heads);
        let node = dice.below(nodes);
        let below = 1 + dice.below(nodes - 1);
        let moment = dice.of(&[
            Moment::State(node, "ALONE"),
            Moment::State(below, "CONNECTING"),
            Moment::State(node, "GATHERING"),
            Moment::State(below, "READY"),
            Moment::State(node, "RUNNING"),
            Moment::Working,
            Moment::Working,
            Moment::Working,
            Moment::AtTheEnd(node, "ENDING"),
            Moment::AtTheEnd(below, "GONE"),
        ]);
        let victim = dice.below(nodes);
        let fault = dice.of(&[
            Fault::None,
            Fault::KillDaemon(victim),
            Fault::KillDaemon(victim),
            Fault::TerminateDaemon(victim),
            Fault::PauseDaemon(victim),
            Fault::KillLauncher,
            Fault::TerminateLauncher,
            Fault::Interrupt,
            Fault::KillHead,
            if apart {
                Fault::Cut(victim)
            } else {
                Fault::KillDaemon(victim)
            },
        ]);
        Self {
            nodes,
            apart,
            head,
            moment,
            fault,
        }
    }

    fn command(&self, place: &Place) -> Command {
        let heads = place.heads.display().to_string();
        let python = place.python.as_ref();
        let python = python.map(|(interpreter, program)| {
            [
                interpreter.display().to_string(),
                program.display().to_string(),
            ]
        });
        let words: Vec<&str> = match (self.head, &python) {
            (Head::Shell, _) => vec!["sh", "-c", "echo up; read line; exit 7"],
            (Head::Deaf, _) => vec![
                "sh",
                "-c",
                "trap '' TERM INT; setsid sleep 100000 >/dev/null 2>&1 & sleep 100000 & echo up; read line; exit 7",
            ],
            (Head::Python, Some(words)) => words.iter().map(String::as_str).collect(),
            (Head::Messages, _) => vec![&heads, "head", "messages"],
            _ => vec![&heads, "head", "spawns"],
        };
        let mut options = vec!["--pool", "64M"];
        let nodes = self.nodes.to_string();
        let mut command = match &place.netns {
            Some(netns) if self.apart => {
                options.extend(words);
                netns.dragon(self.nodes, &options)
            }
            _ => {
                options.extend(["-N", &nodes, "--local-nodes"]);
                dragon(options.iter().chain(&words))
            }
        };
        // A process group of its own stands for the terminal's foreground group.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }

    /// Runs the job.
    #[must_use]
    pub fn run(&self, place: &Place) -> Outcome {
        let mut job = match Job::start(&mut self.command(place)) {
            Ok(job) => job,
            Err(error) => {
                return Outcome {
                    wrong: Some(format!("not started: {error}")),
                    ..Outcome::default()
                };
            }
        };
        if let Some(netns) = &place.netns
            && self.apart
        {
            job = job.in_namespaces(netns.holders());
        }
        let reached = self.wait_for_moment(&mut job);
        let struck = reached && self.strike(&job, place);
        let ended = self.end(&mut job, struck);
        if let (Fault::Cut(node), Some(netns)) = (self.fault, &place.netns) {
            let _ = netns.join(node);
        }
        let left = job.left();
        job.kill_all();
        Outcome {
            hangs: ended.code.is_none(),
            wrong: self.wrong(&ended, reached, struck),
            left,
            said: format!("{}{}", ended.out, ended.err),
        }
    }

    fn wait_for_moment(&self, job: &mut Job) -> bool {
        match self.moment {
            Moment::State(node, state) => job.in_state(node, state, REACH).is_some(),
            Moment::Working => job.has_printed("up", REACH),
            Moment::AtTheEnd(node, state) => {
                let worked = job.has_printed("up", REACH);
                job.tell("end\n");
                worked && job.in_state(node, state, REACH).is_some()
            }
        }
    }

    /// False when there was nobody any more to whom it could happen.
    fn strike(&self, job: &Job, place: &Place) -> bool {
        let daemon = |node| {
            // It may not have shown itself yet.
            job.in_state(node, "ALONE", REACH)
        };
        match self.fault {
            Fault::None => false,
            Fault::KillDaemon(node) => daemon(node).is_some_and(|pid| send(pid, Signal::KILL)),
            Fault::TerminateDaemon(node) => daemon(node).is_some_and(|pid| send(pid, Signal::TERM)),
            Fault::PauseDaemon(node) => daemon(node).is_some_and(|pid| {
                let stopped = send(pid, Signal::STOP);
                pause(Duration::from_millis(200));
                stopped && send(pid, Signal::CONT)
            }),
            Fault::KillLauncher => send(job.launcher(), Signal::KILL),
            Fault::TerminateLauncher => send(job.launcher(), Signal::TERM),
            Fault::Interrupt => {
                let group = Pid::from_raw(job.launcher().cast_signed());
                let interrupt = || {
                    group.is_some_and(|group| {
                        rustix::process::kill_process_group(group, Signal::INT).is_ok()
                    })
                };
                let first = interrupt();
                pause(Duration::from_millis(100));
                interrupt();
                first
            }
            Fault::KillHead => head_of(job).is_some_and(|pid| send(pid, Signal::KILL)),
            Fault::Cut(node) => place
                .netns
                .as_ref()
                .is_some_and(|netns| netns.cut(node).is_ok()),
        }
    }

    fn end(&self, job: &mut Job, struck: bool) -> Ended {
        // Whatever does not end the job leaves it to the head to end it, once it is at work.
        let goes_on = !struck || matches!(self.fault, Fault::PauseDaemon(_));
        if goes_on && job.has_printed("up", REACH) {
            job.tell("end\n");
            job.stdin = None;
        }
        job.end(LIMIT)
    }

    /// What is wrong with the way in which it ended.
    fn wrong(&self, ended: &Ended, reached: bool, struck: bool) -> Option<String> {
        let code = ended.code?;
        // The job may have been over before it was struck, or for another reason at the same time.
        let over = matches!(self.moment, Moment::AtTheEnd(..));
        let mut allowed = match self.fault {
            _ if !struck => vec![i32::from(HEAD)],
            Fault::None | Fault::PauseDaemon(_) => vec![i32::from(HEAD)],
            Fault::KillDaemon(0) => vec![137],
            Fault::KillDaemon(_) => vec![125],
            Fault::TerminateDaemon(0) | Fault::TerminateLauncher => vec![143],
            Fault::TerminateDaemon(_) => vec![143, 125],
            Fault::KillLauncher => vec![137],
            Fault::Interrupt => vec![130],
            Fault::KillHead => vec![137],
            Fault::Cut(_) => vec![125],
        };
        if over && !matches!(self.fault, Fault::KillLauncher) {
            allowed.push(i32::from(HEAD));
        }
        if matches!(
            self.fault,
            Fault::TerminateDaemon(0) | Fault::TerminateLauncher | Fault::Interrupt
        ) && !matches!(self.moment, Moment::State(..))
        {
            // The head may die of it before its daemon notes that it got it too.
            allowed.extend([143, 130]);
        }
        if !reached && !over {
            return Some(format!("it did not come into the state; exit code {code}"));
        }
        (!allowed.contains(&code))
            .then(|| format!("exit code {code} where {allowed:?} was expected"))
    }
}

/// The head program: the child of the first daemon that is none of the daemon's own.
fn head_of(job: &Job) -> Option<u32> {
    let first = job.in_state(0, "RUNNING", REACH)?;
    // The daemon reports the state before it starts the head.
    job.has_printed("up", REACH).then_some(())?;
    let children = std::fs::read_dir(format!("/proc/{first}/task")).ok()?;
    let children = children
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .collect::<String>();
    let mut pids = children
        .split_whitespace()
        .filter_map(|pid| pid.parse::<u32>().ok());
    pids.find(|pid| {
        // Workers lead groups of their own.
        let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
        let group = pid.and_then(|pid| rustix::process::getpgid(Some(pid)).ok());
        group.is_some() && group != pid
    })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            nodes,
            apart,
            head,
            moment,
            fault,
        } = self;
        let place = if *apart {
            "in namespaces"
        } else {
            "on this machine"
        };
        write!(
            f,
            "{nodes} nodes {place}, {head:?}, {fault:?} at {moment:?}"
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hangs {
            write!(f, "HANG ")?;
        }
        if !self.left.is_empty() {
            write!(f, "LEAK ({}) ", self.left.join("; "))?;
        }
        match &self.wrong {
            Some(wrong) => write!(f, "WRONG ({wrong})"),
            None => write!(f, "done"),
        }
    }
}

/// Numbers that follow from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn new(seed: u64, number: u32) -> Self {
        let mut dice = Self(seed ^ u64::from(number).wrapping_mul(0x2545_f491_4f6c_dd1d));
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u32) -> u32 {
        // Below a u32: it fits.
        u32::try_from(self.next() % u64::from(limit.max(1))).unwrap_or(0)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(u32::try_from(all.len()).unwrap_or(1)) as usize]
    }
}
