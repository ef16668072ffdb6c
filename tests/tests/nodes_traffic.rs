//! Messages of several processes are under way between nodes with real daemons, small and large, in both directions, while a
//! daemon or a process is killed or stopped.
//!
//! This program is also the head of the runtime and each of its processes. They keep journals of what they have sent and
//! received, which outlive them.

#![allow(clippy::unwrap_used)]

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use dragon::{
    Channel, ChannelOptions, Deadline, Descriptor, NodeIndex, Returns, SendOptions, Spawn,
};
use dragon_tests::cluster::Cluster;
use dragon_tests::local::{Finished, WATCHDOG, finish, pause, repository, run};
use dragon_tests::suite;

/// The first argument of this program where it is the head: FOLDER WAY….
const HEAD: &str = "head";
/// Where it is another process: FOLDER NUMBER WAY SIDE DESCRIPTOR.
const END: &str = "end";

/// Room of each channel.
const CAPACITY: u32 = 4;
/// The file that lets senders end.
const STOP: &str = "stop";
/// The hint of a message that says that none follows.
const LAST: u64 = u64::MAX;
const SMALL: usize = 64;
const LARGE: usize = 1 << 20;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [HEAD, folder, ref ways @ ..] => head(folder, ways),
        [END, folder, number, way, side, descriptor] => {
            let way = way.parse().unwrap();
            end(folder, number, way, side, descriptor.parse().unwrap());
        }
        _ => return tests(),
    }
    ExitCode::SUCCESS
}

fn tests() -> ExitCode {
    suite::run(
        || Cluster::plain(3),
        &[
            (
                "a_killed_daemon_ends_what_waits_for_its_node",
                a_killed_daemon_ends_what_waits_for_its_node,
            ),
            (
                "a_stopped_receiver_costs_bounded_memory_and_nothing_else",
                a_stopped_receiver_costs_bounded_memory_and_nothing_else,
            ),
            (
                "a_stopped_daemon_costs_bounded_memory_and_nothing_else",
                a_stopped_daemon_costs_bounded_memory_and_nothing_else,
            ),
        ],
    )
}

/// Numbered messages from a process to another one: FROM-TO-SIZE-KIND.
#[derive(Clone, Copy, Debug)]
struct Way {
    from: u32,
    to: u32,
    size: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Into a channel of the receiver's node; a send ends when the message is there.
    Push,
    /// The same, and a send ends at once.
    Post,
    /// Out of a channel of the sender's node.
    Pull,
}

/// The two ends of a way, by the names of their journals.
const SENT: &str = "sent";
const RECEIVED: &str = "received";

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            to,
            size,
            kind,
        } = self;
        write!(f, "{from}-{to}-{size}-{kind:?}")
    }
}

impl FromStr for Way {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let [from, to, size, kind] = text.split('-').collect::<Vec<_>>()[..] else {
            return Err(());
        };
        let kinds = [Kind::Push, Kind::Post, Kind::Pull];
        let kind = kinds.into_iter().find(|k| format!("{k:?}") == kind);
        Ok(Self {
            from: from.parse().map_err(drop)?,
            to: to.parse().map_err(drop)?,
            size: size.parse().map_err(drop)?,
            kind: kind.ok_or(())?,
        })
    }
}

impl Way {
    fn node(&self, side: &str) -> u32 {
        if side == SENT { self.from } else { self.to }
    }

    /// Who has the channel.
    fn owner(&self) -> &'static str {
        if self.kind == Kind::Pull {
            SENT
        } else {
            RECEIVED
        }
    }

    /// Who uses it from another node.
    fn guest(&self) -> &'static str {
        if self.kind == Kind::Pull {
            RECEIVED
        } else {
            SENT
        }
    }

    fn message(&self, n: u64) -> Vec<u8> {
        vec![u8::try_from(n % 251).unwrap(); self.size]
    }
}

/// Starts both ends of each way, the second ones when it is told to, and waits for all of them.
fn head(folder: &str, ways: &[&str]) {
    let ways: Vec<Way> = ways.iter().map(|way| way.parse().unwrap()).collect();
    let place = Channel::create(&ChannelOptions::default()).unwrap();
    let start = |number: usize, side: &str, descriptor: &str| {
        let way: &Way = &ways[number];
        // They outlive the job's first word to end, so that what happens to their operations can be seen.
        let program = std::env::current_exe().unwrap();
        let shell = [
            "-c",
            "trap '' TERM; exec \"$@\"",
            "sh",
            program.to_str().unwrap(),
        ];
        let number = number.to_string();
        let words = [END, folder, &number, &way.to_string(), side, descriptor];
        let spawn = Spawn::program("sh").node(NodeIndex::new(way.node(side)).unwrap());
        let spawn = shell.iter().chain(&words).fold(spawn, Spawn::arg);
        spawn.start().unwrap().process
    };
    let mut ends = Vec::new();
    let mut channels = vec![String::new(); ways.len()];
    for (number, way) in ways.iter().enumerate() {
        ends.push(start(number, way.owner(), &place.descriptor().to_string()));
    }
    for _ in &ways {
        let message = place.receive(Deadline::Never).unwrap();
        let number = usize::try_from(message.hint()).unwrap();
        channels[number] = String::from_utf8(message.to_vec()).unwrap();
    }
    println!("ready");
    std::io::stdin().lines().next().unwrap().unwrap();
    for (number, way) in ways.iter().enumerate() {
        ends.push(start(number, way.guest(), &channels[number]));
    }
    for end in ends {
        match end.wait(Deadline::Never) {
            Ok(status) => assert_eq!(status, 0),
            // A node is lost: the job is ended by its daemons, and not by this program, which may hear of it first.
            Err(error) => {
                eprintln!("{error}");
                pause(WATCHDOG);
                panic!("nobody ended the job");
            }
        }
    }
}

/// One end of a way. Its journal has a line for each message, and the name of the error that ended it.
fn end(folder: &str, number: &str, way: Way, side: &str, descriptor: Descriptor) {
    let file = |name: &str| format!("{folder}/{number}.{name}");
    fs::write(file(&format!("{side}.pid")), std::process::id().to_string()).unwrap();
    let mut journal = File::options()
        .append(true)
        .create(true)
        .open(file(side))
        .unwrap();
    let mut note = move |line: String| {
        let written = journal.write_all(format!("{line}\n").as_bytes());
        written.unwrap();
    };
    let given = Channel::attach(descriptor, false).unwrap();
    let channel = if side == way.owner() {
        let options = ChannelOptions {
            capacity: CAPACITY,
            ..ChannelOptions::default()
        };
        let own = Channel::create(&options).unwrap();
        let name = own.descriptor().to_string();
        given
            .send(name.as_bytes(), number.parse().unwrap(), Deadline::Never)
            .unwrap();
        own
    } else {
        given
    };
    let done = if side == SENT {
        send(&channel, way, &format!("{folder}/{STOP}"), &mut note)
    } else {
        receive(&channel, way, &mut note)
    };
    if let Err(error) = done {
        note(format!("{:?}", error.code()));
    }
}

/// Until there is a file of that name; the message after that is the last one.
fn send(
    channel: &Channel,
    way: Way,
    stop: &str,
    note: &mut impl FnMut(String),
) -> dragon::Result<()> {
    for n in 0.. {
        let last = Path::new(stop).exists();
        let mut options = SendOptions {
            hint: if last { LAST } else { n },
            ..SendOptions::default()
        };
        // With the last one all of them have arrived.
        if way.kind == Kind::Post && !last {
            options.returns = Returns::Immediately;
        }
        channel.send_with(&[IoSlice::new(&way.message(n))], &options)?;
        if last {
            break;
        }
        note(n.to_string());
    }
    Ok(())
}

fn receive(channel: &Channel, way: Way, note: &mut impl FnMut(String)) -> dragon::Result<()> {
    for n in 0.. {
        let message = channel.receive(Deadline::Never)?;
        if message.hint() == LAST {
            break;
        }
        if message.hint() != n {
            note(format!("{} came for {n}", message.hint()));
        } else if message.to_vec() != way.message(n) {
            note(format!("{n} has other bytes"));
        } else {
            note(n.to_string());
        }
    }
    if channel.poll(Deadline::Now)? > 0 {
        note("more than all".to_owned());
    }
    Ok(())
}

/// A job whose processes send and receive, as the test sees it.
struct Traffic<'a> {
    cluster: &'a Cluster,
    folder: PathBuf,
    ways: Vec<Way>,
    /// Until its end.
    child: Option<Child>,
}

impl<'a> Traffic<'a> {
    /// Comes up, and sends nothing before [`Traffic::go`].
    fn new(cluster: &'a Cluster, nodes: u32, options: &[&str], ways: Vec<Way>) -> Self {
        let folder = cluster.site().root().join("traffic");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let program = cluster.site().root().join("program");
        if !program.exists() {
            fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        }
        let rsh = format!("{} exec", repository().join("tests/rig/cluster").display());
        let mut command = cluster.rig_environment(cluster.site().root().join("bin/dragon"));
        let hosts = format!("n[1-{nodes}]");
        command
            .args(["--hostlist", &hosts, "--rsh", &rsh])
            .args(options)
            .arg(program)
            .arg(HEAD)
            .arg(&folder)
            .args(ways.iter().map(ToString::to_string))
            .stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        if line != "ready\n" {
            panic!("{:?}", finish(child));
        }
        Self {
            cluster,
            folder,
            ways,
            child: Some(child),
        }
    }

    /// Lets them send; returns when messages have come on each way.
    fn go(&mut self) {
        let input = self.child.as_mut().unwrap().stdin.as_mut();
        input.unwrap().write_all(b"go\n").unwrap();
        self.until("messages come on all ways", |traffic| {
            (0..traffic.ways.len()).all(|n| traffic.journal(n, RECEIVED).0 >= 10)
        });
    }

    fn until(&self, what: &str, mut there: impl FnMut(&Self) -> bool) {
        let begin = Instant::now();
        while !there(self) {
            assert!(begin.elapsed() < WATCHDOG, "never: {what}");
            pause(Duration::from_millis(20));
        }
    }

    /// How many messages of a way a side has noted, each once and in its order, and the error that ended it.
    fn journal(&self, number: usize, side: &str) -> (u64, Option<String>) {
        let text = fs::read_to_string(self.folder.join(format!("{number}.{side}")));
        let text = text.unwrap_or_default();
        let mut count = 0;
        let mut lines = text.lines();
        for line in lines.by_ref() {
            if line != count.to_string() {
                assert!(!line.contains(' '), "{:?}: {line}", self.ways[number]);
                assert_eq!(lines.next(), None, "{:?} after {line}", self.ways[number]);
                return (count, Some(line.to_owned()));
            }
            count += 1;
        }
        (count, None)
    }

    /// The daemon of a node, by its number there.
    fn daemon(&self, node: u32) -> String {
        let name = format!("n{}", node + 1);
        // Not the supervisor in front of it, which is the older one.
        let pgrep = ["pgrep", "-o", "-f", "--", "--supervised"];
        let found = run(&mut self.cluster.on(&name, pgrep));
        assert_eq!(found.code, Some(0), "{found:?}");
        found.out.trim().to_owned()
    }

    /// The processes of a node that receive.
    fn receivers(&self, node: u32) -> Vec<String> {
        let here = (0..self.ways.len()).filter(|n| self.ways[*n].to == node);
        here.map(|n| fs::read_to_string(self.folder.join(format!("{n}.{RECEIVED}.pid"))).unwrap())
            .collect()
    }

    fn signal(&self, node: u32, name: &str, pids: &[String]) {
        let at = format!("n{}", node + 1);
        let words = ["kill", name].into_iter();
        let done = run(&mut self
            .cluster
            .on(&at, words.chain(pids.iter().map(String::as_str))));
        assert_eq!(done.code, Some(0), "{done:?}");
    }

    /// KiB of memory of its own that a node's daemon has.
    fn memory(&self, node: u32, pid: &str) -> u64 {
        let status = format!("/proc/{pid}/status");
        let at = format!("n{}", node + 1);
        let line = run(&mut self.cluster.on(&at, ["grep", "RssAnon", &status])).out;
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Waits for the end of the job.
    fn finish(&mut self) -> Finished {
        finish(self.child.take().unwrap())
    }
}

impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        // The job of a test that failed ends with its launcher.
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn a_killed_daemon_ends_what_waits_for_its_node(cluster: &Cluster) {
    // Between each two nodes both sizes and both kinds of way, in each direction another one.
    let pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)];
    let ways = pairs.iter().flat_map(|(from, to)| {
        let (first, second) = if from < to {
            ((SMALL, Kind::Push), (LARGE, Kind::Pull))
        } else {
            ((LARGE, Kind::Push), (SMALL, Kind::Pull))
        };
        [first, second].map(|(size, kind)| Way {
            from: *from,
            to: *to,
            size,
            kind,
        })
    });
    let ways: Vec<Way> = ways.collect();
    for (lost, options) in [(2, &[][..]), (1, &["--encrypt"][..])] {
        let mut traffic = Traffic::new(cluster, 3, options, ways.clone());
        traffic.go();
        traffic.signal(lost, "-KILL", &[traffic.daemon(lost)]);
        let done = traffic.finish();
        assert_eq!(done.code, Some(125), "{done:?}");
        let named = format!("node {lost} (n{}) is lost", lost + 1);
        assert!(done.err.contains(&named), "{}", done.err);
        cluster.assert_nothing_left();
        for (number, way) in ways.iter().enumerate() {
            let (sent, sender) = traffic.journal(number, SENT);
            let (received, receiver) = traffic.journal(number, RECEIVED);
            println!("node {lost} is killed, {way}: {sent} {sender:?}, {received} {receiver:?}");
            // One may have been sent without its sender's knowing it; those in the channel, and one on its way out of it,
            // have not been received.
            let room = u64::from(CAPACITY) + 1;
            assert!(received <= sent + 1 && sent <= received + room);
            for (side, end) in [(SENT, sender), (RECEIVED, receiver)] {
                let needs_it = side == way.guest() && way.node(way.owner()) == lost;
                let killed = way.node(side) == lost;
                match end.as_deref() {
                    // Whoever waits for a process that says nothing any more ends with the job.
                    None => assert!(killed || !needs_it, "{side}: no error"),
                    Some("Unreachable" | "NodeDown") => {}
                    Some("RuntimeGone") => assert!(!needs_it, "{side}"),
                    Some(other) => panic!("{side}: {other}"),
                }
            }
        }
    }
}

fn a_stopped_receiver_costs_bounded_memory_and_nothing_else(cluster: &Cluster) {
    stopped(cluster, |traffic| traffic.receivers(1));
}

fn a_stopped_daemon_costs_bounded_memory_and_nothing_else(cluster: &Cluster) {
    stopped(cluster, |traffic| vec![traffic.daemon(1)]);
}

/// Handles through which small messages are sent without waiting, and what is under way through each at most:
/// `docs/wire.md`. Large ones lie in the pool.
const POSTERS: usize = 2;
const CREDIT_KIB: u64 = 4 << 10;
/// What it says that an agent needs besides, with some room for what a daemon notes of each process.
const OTHERWISE_KIB: u64 = 2 << 10;

/// Processes of the second node are stopped while those of the first one send to it.
fn stopped(cluster: &Cluster, whom: impl Fn(&Traffic<'_>) -> Vec<String>) {
    let way = |size, kind| Way {
        from: 0,
        to: 1,
        size,
        kind,
    };
    let mut ways = vec![way(SMALL, Kind::Post); POSTERS];
    ways.extend([
        way(LARGE, Kind::Post),
        way(SMALL, Kind::Push),
        way(LARGE, Kind::Push),
    ]);
    // A connection that takes nothing for long is given up and made again.
    let mut traffic = Traffic::new(cluster, 2, &["--reconnect", "60"], ways.clone());
    let daemons = [0, 1].map(|node| traffic.daemon(node));
    let memory = |traffic: &Traffic<'_>| [0, 1].map(|n| traffic.memory(n, &daemons[n as usize]));
    let before = memory(&traffic);
    traffic.go();
    let stopped = whom(&traffic);
    traffic.signal(1, "-STOP", &stopped);
    let sent = |traffic: &Traffic<'_>| -> Vec<u64> {
        let all = 0..traffic.ways.len();
        all.map(|number| traffic.journal(number, SENT).0).collect()
    };
    // All of them wait when nothing more was sent for a while.
    traffic.until("nobody sends any more", |traffic| {
        let then = sent(traffic);
        pause(Duration::from_secs(1));
        let now = memory(traffic);
        println!("stopped: {then:?} sent, {now:?} KiB after {before:?}");
        for (node, now) in now.iter().enumerate() {
            let needs = now.saturating_sub(before[node]);
            let bound = POSTERS as u64 * CREDIT_KIB + OTHERWISE_KIB;
            assert!(needs <= bound, "node {node}: {needs} KiB of {bound}");
        }
        then == sent(traffic)
    });
    traffic.signal(1, "-CONT", &stopped);
    fs::write(traffic.folder.join(STOP), "").unwrap();
    let done = traffic.finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    for (number, way) in ways.iter().enumerate() {
        let sent = traffic.journal(number, SENT);
        assert_eq!(traffic.journal(number, RECEIVED), sent, "{way}");
        assert_eq!(sent.1, None, "{way}");
    }
    cluster.assert_nothing_left();
}
