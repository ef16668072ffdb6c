//! A job as its user sees it, from outside: what it says, in which states its daemons are, and what it leaves behind.
//!
//! Every process that the job starts inherits a mark in its environment. States are read from the daemons' log, which
//! `DRAGON_LOG` switches on: nothing in the product knows of tests.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::local::{WATCHDOG, pause};

const MARK: &str = "DRAGON_TEST_MARK";
/// How long processes that were killed may take to vanish, and the kernel to close what they had.
const SETTLE: Duration = Duration::from_secs(10);

/// A job that was started.
#[derive(Debug)]
pub struct Job {
    child: Child,
    mark: String,
    heard: Arc<Heard>,
    /// The head's input; it ends when this is dropped.
    pub stdin: Option<ChildStdin>,
    start: Instant,
    /// Processes that stand for the nodes' network namespaces, where these are not this one's.
    namespaces: Vec<u32>,
}

/// How a job ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code as a shell has it; `None`: it did not end in time, and was killed.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error without the lines about states.
    pub err: String,
    /// From its start.
    pub took: Duration,
}

/// A daemon as its log shows it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Its pid.
    pub pid: u32,
    /// The states that it entered, in order, each with the messages that it had sent and received by then.
    pub states: Vec<(String, u64, u64)>,
}

/// What a job has said.
#[derive(Debug, Default)]
struct Heard {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    out: String,
    err: String,
    daemons: BTreeMap<u32, Seen>,
    /// Each line of both streams, and when it came.
    lines: Vec<(Instant, String)>,
    /// Streams that have ended.
    ended: u32,
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is there to be taken, the streams have ended or the time is over.
    fn wait_for<T>(&self, limit: Duration, take: impl Fn(&Said) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut said = self.lock();
        loop {
            if let Some(taken) = take(&said) {
                return Some(taken);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            if said.ended == 2 {
                return None;
            }
            said = match self.more.wait_timeout(said, left) {
                Ok((said, _)) => said,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn hear(self: &Arc<Self>, stream: impl Read + Send + 'static, errors: bool) {
        let heard = self.clone();
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).into_owned();
                let now = Instant::now();
                let mut said = heard.lock();
                match (errors, state_line(&text)) {
                    (true, Some((node, pid, state))) => {
                        let seen = said.daemons.entry(node).or_default();
                        seen.pid = pid;
                        seen.states.push(state);
                    }
                    (true, None) => said.err.push_str(&text),
                    (false, _) => said.out.push_str(&text),
                }
                said.lines.push((now, text));
                heard.more.notify_all();
                line.clear();
            }
            heard.lock().ended += 1;
            heard.more.notify_all();
        });
    }
}

/// Reads ` INFO dragon_daemon::state: node 3 is READY pid=… sent=… received=…`.
fn state_line(line: &str) -> Option<(u32, u32, (String, u64, u64))> {
    let mut words = line
        .split_once("dragon_daemon::state: node ")?
        .1
        .split_whitespace();
    let node = words.next()?.parse().ok()?;
    let state = words.nth(1)?.to_owned();
    let mut number = |name: &str| words.next()?.strip_prefix(name)?.parse::<u64>().ok();
    let (pid, sent, received) = (number("pid=")?, number("sent=")?, number("received=")?);
    Some((node, u32::try_from(pid).ok()?, (state, sent, received)))
}

impl Job {
    /// Starts a job.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn start(command: &mut Command) -> std::io::Result<Self> {
        static JOBS: AtomicU32 = AtomicU32::new(0);
        let number = JOBS.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}.{number}", std::process::id());
        let start = Instant::now();
        let mut child = command
            .env(MARK, &mark)
            .env("DRAGON_LOG", "warn,dragon_daemon::state=info")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let heard = Arc::new(Heard::default());
        if let Some(out) = child.stdout.take() {
            heard.hear(out, false);
        }
        if let Some(err) = child.stderr.take() {
            heard.hear(err, true);
        }
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            mark,
            heard,
            start,
            namespaces: Vec::new(),
        })
    }

    /// Nodes of the job are in the network namespaces of these processes: what is left is looked for there too.
    #[must_use]
    pub fn in_namespaces(mut self, processes: Vec<u32>) -> Self {
        self.namespaces = processes;
        self
    }

    /// The process of the command.
    #[must_use]
    pub fn launcher(&self) -> u32 {
        self.child.id()
    }

    /// The time since its start.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.start.elapsed()
    }

    /// Waits until a node has entered a state; its daemon's pid. `None` when it does not within the limit.
    #[must_use]
    pub fn in_state(&self, node: u32, state: &str, limit: Duration) -> Option<u32> {
        self.heard.wait_for(limit, |said| {
            let seen = said.daemons.get(&node)?;
            let there = seen.states.iter().any(|(entered, ..)| entered == state);
            there.then_some(seen.pid)
        })
    }

    /// Waits until the head has printed a text.
    #[must_use]
    pub fn has_printed(&self, text: &str, limit: Duration) -> bool {
        self.heard
            .wait_for(limit, |said| said.out.contains(text).then_some(()))
            .is_some()
    }

    /// Waits until the job has said a text on standard error.
    #[must_use]
    pub fn has_said(&self, text: &str, limit: Duration) -> bool {
        self.heard
            .wait_for(limit, |said| said.err.contains(text).then_some(()))
            .is_some()
    }

    /// Waits for a line with a text, in what the job prints and in the daemons' log: the line, and when it was heard.
    #[must_use]
    pub fn heard(&self, text: &str, limit: Duration) -> Option<(Instant, String)> {
        self.heard.wait_for(limit, |said| {
            let mut lines = said.lines.iter();
            lines.find(|(_, line)| line.contains(text)).cloned()
        })
    }

    /// The daemons, by node, as far as they have shown themselves.
    #[must_use]
    pub fn daemons(&self) -> BTreeMap<u32, Seen> {
        self.heard.lock().daemons.clone()
    }

    /// Writes to the head.
    pub fn tell(&mut self, text: &str) {
        if let Some(stdin) = &mut self.stdin {
            // A head that is gone reads nothing.
            let _ = stdin.write_all(text.as_bytes());
        }
    }

    /// Waits for the end. A job that does not end within the limit is killed with everything that it started.
    pub fn end(&mut self, limit: Duration) -> Ended {
        let finished = self
            .heard
            .wait_for(limit, |said| (said.ended == 2).then_some(()));
        let mut status = None;
        let deadline = Instant::now()
            + if finished.is_some() {
                limit
            } else {
                Duration::ZERO
            };
        while status.is_none() {
            status = self.child.try_wait().ok().flatten();
            if status.is_some() || Instant::now() > deadline {
                break;
            }
            pause(Duration::from_millis(2));
        }
        let took = self.start.elapsed();
        if status.is_none() {
            self.kill_all();
            let _ = self.child.wait();
        }
        let said = self.heard.lock();
        Ended {
            code: status.map(code),
            out: said.out.clone(),
            err: said.err.clone(),
            took,
        }
    }

    /// It ends by itself, and leaves nothing.
    ///
    /// # Panics
    /// When it hangs, or leaves something.
    pub fn ends(&mut self) -> Ended {
        let ended = self.end(WATCHDOG);
        assert!(ended.code.is_some(), "it hangs: {ended:?}");
        let left = self.left();
        assert!(left.is_empty(), "left behind: {left:#?}\n{ended:?}");
        ended
    }

    /// Kills what the job has started.
    pub fn kill_all(&self) {
        let _ = send(self.launcher(), Signal::KILL);
        for process in self.processes() {
            let _ = send(process.pid, Signal::KILL);
        }
    }

    /// All living processes of the job.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let mark = format!("{MARK}={}", self.mark);
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let marked = pids.filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes())
        });
        marked.filter_map(Process::read).collect()
    }

    /// What is left of the job, once it has ended: empty, or one line for each thing. What is on its way out is given time.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let left = self.look();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            pause(Duration::from_millis(10));
        }
    }

    fn look(&self) -> Vec<String> {
        let launcher = self.launcher();
        let mut left: Vec<_> = self.processes().iter().map(ToString::to_string).collect();
        let job = format!("/{launcher}/");
        let tables = self
            .namespaces
            .iter()
            .map(|pid| format!("/proc/{pid}/net/unix"))
            .chain(["/proc/net/unix".to_owned()]);
        for table in tables {
            let sockets = fs::read_to_string(table).unwrap_or_default();
            let ours = |line: &&str| line.contains("@dragon/") && line.contains(&job);
            left.extend(sockets.lines().filter(ours).map(str::to_owned));
        }
        for folder in ["/dev/shm", "/tmp", "/var/tmp", "/run"] {
            let names = fs::read_dir(folder).into_iter().flatten().flatten();
            let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            // A cluster of other tests has the number of those in its name.
            let ours = names.filter(|name| {
                if name.starts_with("dragon-rig-") {
                    return false;
                }
                let rest = name.strip_prefix("dragon").unwrap_or_default();
                rest.split(|c: char| !c.is_ascii_digit())
                    .any(|number| number.parse() == Ok(launcher))
            });
            left.extend(ours.map(|name| Path::new(folder).join(name).display().to_string()));
        }
        left
    }
}

/// A process of a job.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Its words.
    pub words: Vec<String>,
}

impl Process {
    /// `None` for one that has ended.
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        (!matches!(state, 'Z' | 'X')).then(|| Self {
            pid,
            words: line.split('\0').map(str::to_owned).collect(),
        })
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}: {}", self.pid, self.words.join(" "))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.kill_all();
        let _ = self.child.wait();
    }
}

/// How often the threads of a process went to sleep.
#[must_use]
pub fn voluntary_switches(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks
        .filter_map(|task| field(&task.path().join("status"), "voluntary_ctxt_switches:"))
        .sum()
}

/// Resident memory of a process of its own in bytes: shared memory apart.
#[must_use]
pub fn own_memory(pid: u32) -> Option<u64> {
    let status = Path::new("/proc").join(pid.to_string()).join("status");
    Some((field(&status, "RssAnon:")? + field(&status, "RssFile:")?) << 10)
}

fn field(status: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Sends a signal to a process; false when there is none.
#[must_use]
pub fn send(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let signalled = status.signal().map(|signal| 128 + signal);
    status.code().or(signalled).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_from_the_log() {
        let line = " INFO dragon_daemon::state: node 3 is READY pid=77 sent=1 received=2\n";
        assert_eq!(state_line(line), Some((3, 77, ("READY".to_owned(), 1, 2))));
        assert_eq!(state_line("dragon: node 3 is lost"), None);
    }

    #[test]
    fn what_is_left_of_a_job_is_found() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]);
        let mut job = Job::start(&mut command).unwrap();
        let ended = job.end(Duration::from_secs(20));
        assert_eq!(ended.code, Some(0));
        let left = job.look();
        assert!(left.len() == 1 && left[0].contains("sleep"), "{left:?}");
        job.kill_all();
        assert_eq!(job.left(), Vec::<String>::new());
    }
}
