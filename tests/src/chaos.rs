//! Jobs to which something happens in a named state, chosen by a seed: each must end within the limit, with the right exit code,
//! and leave nothing behind.
//!
//! States are seen in the daemons' log, faults are signals and links that are taken down: nothing in the product knows of them.

mod plan;

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::job::{Ended, Job, send};
use crate::local::{dragon, pause};
use crate::netns::{Netns, address};

pub use self::plan::Plan;
use self::plan::{Fault, Head, Moment};

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
    fn command(&self, place: &Place) -> Command {
        let heads = place.heads.display().to_string();
        let python = place.python.as_ref();
        let python = python.map(|(interpreter, program)| {
            [
                interpreter.display().to_string(),
                program.display().to_string(),
            ]
        });
        let policy = if self.goes_on { "continue" } else { "abort" };
        let words: Vec<&str> = match (self.head, &python) {
            (Head::Shell, _) => vec!["sh", "-c", "echo up; read line; exit 7"],
            (Head::Deaf, _) => vec![
                "sh",
                "-c",
                "trap '' TERM INT; setsid sleep 100000 >/dev/null 2>&1 & sleep 100000 & echo up; read line; exit 7",
            ],
            (Head::Python, Some(words)) => words.iter().map(String::as_str).collect(),
            (Head::Messages, _) => vec![&heads, "head", "messages", policy],
            _ => vec![&heads, "head", "spawns", policy],
        };
        let mut options = vec!["--pool", "64M", "--on-node-failure", policy];
        if self.fault.is_silent() {
            // Who does not come up in time is as silent as who is lost.
            options.extend(["--node-limit", "2", "--bring-up-limit", "10"]);
        }
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
        if let Some(netns) = &place.netns {
            let _ = match self.fault {
                Fault::Cut(node) => netns.join(node),
                Fault::CutOneWay(from, to) => netns.join_way(from, to),
                _ => Ok(()),
            };
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
        let to_daemon = |node, signal| daemon(node).is_some_and(|pid| send(pid, signal));
        let second = || {
            let _ = self.second.map(|node| to_daemon(node, Signal::KILL));
        };
        let netns = place.netns.as_ref();
        let struck = match self.fault {
            Fault::None => false,
            Fault::KillDaemon(node) => to_daemon(node, Signal::KILL),
            Fault::TerminateDaemon(node) => to_daemon(node, Signal::TERM),
            Fault::PauseDaemon(node) => daemon(node).is_some_and(|pid| {
                let stopped = send(pid, Signal::STOP);
                pause(Duration::from_millis(200));
                stopped && send(pid, Signal::CONT)
            }),
            Fault::StopDaemon(node) => daemon(node).is_some_and(|pid| {
                let stopped = send(pid, Signal::STOP);
                second();
                // Not so where the second was the one that the others needed: then it goes on all the same.
                let _ = job.heard(&self.sentence(node), REACH);
                let _ = send(pid, Signal::CONT);
                stopped
            }),
            Fault::KillSupervisor(node) => {
                let supervisor = daemon(node).and_then(parent_of);
                supervisor.is_some_and(|pid| send(pid, Signal::KILL))
            }
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
            Fault::Cut(node) => netns.is_some_and(|netns| netns.cut(node).is_ok()),
            Fault::CutOneWay(from, to) => {
                netns.is_some_and(|netns| netns.cut_way(from, to).is_ok())
            }
        };
        if !matches!(self.fault, Fault::StopDaemon(_)) {
            second();
        }
        struck
    }

    fn end(&self, job: &mut Job, struck: bool) -> Ended {
        // Whatever does not end the job leaves it to the head to end it, once it is at work.
        let over = matches!(self.moment, Moment::AtTheEnd(..));
        let lost = self.lost().filter(|_| struck && self.goes_on && !over);
        if let Some(node) = lost {
            // That nobody is left who could go on is known to the daemons alone.
            let _ = job.heard(&self.sentence(node), REACH);
        }
        let goes_on = !struck || lost.is_some() || matches!(self.fault, Fault::PauseDaemon(_));
        if goes_on && job.has_printed("up", REACH) {
            job.tell("end\n");
            job.stdin = None;
        }
        job.end(LIMIT)
    }

    /// What is said when a node is lost.
    fn sentence(&self, node: u32) -> String {
        let host = if self.apart {
            address(node)
        } else {
            "127.0.0.1".to_owned()
        };
        let rest = if self.goes_on { "goes on" } else { "ends" };
        format!("node {node} ({host}) is lost; the job {rest}")
    }

    /// What is wrong with the way in which it ended.
    fn wrong(&self, ended: &Ended, reached: bool, struck: bool) -> Option<String> {
        let code = ended.code?;
        if !reached && !matches!(self.moment, Moment::AtTheEnd(..)) {
            return Some(format!("it did not come into the state; exit code {code}"));
        }
        let allowed = if struck {
            self.expected()
        } else {
            vec![i32::from(HEAD)]
        };
        (!allowed.contains(&code))
            .then(|| format!("exit code {code} where {allowed:?} was expected"))
    }
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
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
