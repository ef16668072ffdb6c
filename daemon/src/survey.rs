//! What there is on this node, read out of shared memory and `/proc`: no process is asked, and nothing is written.
//!
//! A survey of thousands of processes or of a pool of terabytes takes its time, so it is made beside the daemon's loop,
//! from what the loop gave it ([`View`]).

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::Instant;

use dragon_channels::inspect;
use dragon_protocol::inspect::{
    Answer, COMMAND_BYTES, ChannelRow, Inspect, MOST_OWNERS, MOST_ROWS, NodeStatus, PeerStatus,
    PoolOwner, PoolRow, ProcessRow, Rows, Subject, TransportStatus,
};
use dragon_protocol::{ObjectId, ObjectKind, RELEASE};
use dragon_shmem::object::State;
use dragon_shmem::pool::Statistics;
use dragon_shmem::slot::{self, SlotCounters};
use dragon_shmem::sync::Ordering;
use dragon_shmem::{Control, Member, Pool};
use dragon_transport::Agent;

use crate::journal;
use crate::link;
use crate::memory::Memory;

/// Clock ticks a second in `/proc/PID/stat`: 100 on every architecture that this is built for.
const TICKS: u64 = 100;

/// What a survey looks at.
#[derive(Clone, Debug)]
pub struct View {
    /// The daemon's own membership.
    pub member: Arc<Member>,
    /// The node's pools.
    pub memory: Memory,
    /// The node's agent.
    pub agent: Arc<Agent>,
    /// What the daemon knows by itself.
    pub known: Arc<Known>,
}

/// What a daemon knows of its node and runtime.
#[derive(Clone, Debug)]
pub struct Known {
    /// When it began.
    pub begin: Instant,
    /// Name of the job.
    pub job: String,
    /// This node's host.
    pub host: String,
    /// Memory granted, in bytes.
    pub memory: u64,
    /// Nodes that are up.
    pub nodes_up: u32,
    /// Nodes that are lost.
    pub nodes_down: Vec<u32>,
    /// The epoch of the view that says so.
    pub epoch: u64,
    /// The node that runs global services.
    pub global_services: u32,
    /// Where numbers are told to a monitoring system.
    pub metrics: String,
    /// The live processes that the runtime started.
    pub processes: Vec<Managed>,
}

/// A live process that the runtime started.
#[derive(Clone, Debug)]
pub struct Managed {
    /// Its pid.
    pub pid: u32,
    /// Its object; tasks that their daemon has not started have none.
    pub object: Option<ObjectId>,
    /// What it is to the runtime.
    pub role: ManagedRole,
    /// The group that it belongs to; empty: none.
    pub group: String,
    /// Its rank there, or in the step.
    pub rank: Option<u64>,
}

/// What a process is to the runtime that started it. In this order they are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManagedRole {
    /// The head program.
    Head,
    /// A task of a step whose tasks are the program.
    Task,
    /// One that somebody asked for.
    Managed,
}

impl ManagedRole {
    fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Task => "task",
            Self::Managed => "managed",
        }
    }
}

/// Answers a question about this node.
#[must_use]
pub fn answer(view: &View, question: &Inspect) -> Answer {
    let limit = question.limit.min(MOST_ROWS) as usize;
    match &question.subject {
        Subject::Processes => Answer::Processes(view.processes(limit)),
        Subject::Channels => Answer::Channels(view.channels(limit)),
        Subject::Pools => Answer::Pools(view.pools()),
        Subject::Logs(filter) => {
            let (mut cursor, mut lines) = (0, Vec::new());
            while journal::is_behind(cursor) {
                lines.extend(journal::since(&mut cursor, filter, view.node()).lines);
            }
            let total = lines.len() as u64;
            let mut answer = Answer::Logs(Rows { rows: lines, total });
            answer.truncate(limit);
            answer
        }
        _ => Answer::Status(Box::new(view.status())),
    }
}

impl View {
    fn control(&self) -> &Control {
        self.member.control()
    }

    fn node(&self) -> u32 {
        self.control().node().get()
    }

    /// The node as a whole.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let (control, known) = (self.control(), &*self.known);
        let pools: Vec<_> = self.memory.pools().all();
        let filled: Vec<_> = pools.iter().map(statistics).collect();
        let sum = |of: fn(&Statistics) -> u64| filled.iter().map(of).fold(0, u64::saturating_add);
        let is = |state| move |(_, slot): &(_, &slot::Slot)| slot.state() == state;
        let counters = &control.words().counters;
        let totals = control.totals();
        let load = |counter: &dragon_shmem::sync::AtomicU64| counter.load(Ordering::Relaxed);
        let machine = Machine::read();
        let (control_sent, control_received) = link::counted();
        NodeStatus {
            node: self.node(),
            host: known.host.clone(),
            runtime: control.runtime().to_string(),
            job: known.job.clone(),
            release: RELEASE.to_owned(),
            pid: std::process::id(),
            uptime_s: known.begin.elapsed().as_secs(),
            nodes_up: known.nodes_up,
            nodes_down: known.nodes_down.clone(),
            epoch: known.epoch,
            global_services: known.global_services,
            cpus: control.words().cpus.load(Ordering::Relaxed),
            memory_bytes: known.memory,
            daemon_rss_bytes: own_memory(),
            machine_memory_bytes: machine.memory,
            machine_available_bytes: machine.available,
            machine_busy_ms: machine.busy_ms,
            machine_cpu_ms: machine.cpu_ms,
            processes: count(known.processes.iter()),
            // The daemon has a slot too.
            attached: count(control.slots().filter(is(slot::PROCESS)).skip(1)),
            proxies: count(control.slots().filter(is(slot::PROXY))),
            objects: self.objects(),
            pools: count(pools.iter()),
            pool_limit_bytes: sum(|pool| pool.limit),
            pool_committed_bytes: sum(|pool| pool.committed),
            pool_used_bytes: sum(|pool| pool.used),
            local_sent: load(&totals.sends),
            local_received: load(&totals.receives),
            remote_requests: load(&totals.remote),
            recoveries: load(&counters.recoveries),
            control_requests: load(&counters.control_requests),
            control_sent,
            control_received,
            metrics: known.metrics.clone(),
            transport: self.transport(),
            peers: self.peers(),
        }
    }

    fn transport(&self) -> TransportStatus {
        let agent = self.agent.stats();
        TransportStatus {
            requests_sent: agent.requests_sent,
            requests_received: agent.requests_received,
            messages_sent: agent.messages_sent,
            messages_received: agent.messages_received,
            messages_returned: agent.returned,
            messages_lost: agent.messages_lost,
            requests_pending: agent.pending,
            requests_parked: agent.parked,
        }
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let report = |peer: dragon_transport::PeerReport| PeerStatus {
            peer: peer.fabric.node.get(),
            links: peer.fabric.links,
            frames_sent: peer.fabric.frames_sent,
            frames_received: peer.fabric.frames_received,
            bytes_sent: peer.fabric.bytes_sent,
            bytes_received: peer.fabric.bytes_received,
            retries: peer.fabric.retries,
            reconnects: peer.fabric.reconnects,
            queued_bytes: peer.fabric.queued,
            unacknowledged: peer.fabric.unacknowledged,
            latency_50_ns: peer.latency.percentile(50),
            latency_99_ns: peer.latency.percentile(99),
        };
        self.agent.peers().into_iter().map(report).collect()
    }

    /// Objects of each kind that there are.
    fn objects(&self) -> Vec<(String, u32)> {
        let mut numbers: Vec<(ObjectKind, u32)> = Vec::new();
        for (id, _) in self.control().objects() {
            match numbers.iter_mut().find(|(kind, _)| *kind == id.kind) {
                Some((_, number)) => *number += 1,
                None => numbers.push((id.kind, 1)),
            }
        }
        numbers.sort_by_key(|(kind, _)| *kind as u8);
        let name = |kind| format!("{kind:?}").to_ascii_lowercase();
        let named = numbers.into_iter().map(|(kind, n)| (name(kind), n));
        named.collect()
    }

    fn processes(&self, limit: usize) -> Rows<ProcessRow> {
        let mut rows: Vec<_> = self.known.processes.iter().map(managed).collect();
        let mut places: HashMap<u32, usize> = HashMap::new();
        places.extend(rows.iter().enumerate().map(|(at, row)| (row.pid, at)));
        for (id, slot) in self.control().slots() {
            if slot.state() != slot::PROCESS || id == slot::DAEMON {
                continue;
            }
            let at = *places.entry(slot.pid()).or_insert_with(|| {
                rows.push(ProcessRow {
                    pid: slot.pid(),
                    role: "attached".to_owned(),
                    ..ProcessRow::default()
                });
                rows.len() - 1
            });
            rows[at].slot.get_or_insert(id.index);
            add_counters(&mut rows[at], &slot.counters);
        }
        let total = rows.len() as u64;
        let programs = [ManagedRole::Head, ManagedRole::Task].map(ManagedRole::name);
        rows.sort_by_key(|row| match programs.contains(&row.role.as_str()) {
            true => (0, row.rank, row.pid),
            false => (1, None, row.pid),
        });
        rows.truncate(limit);
        let uptime_ms = uptime_ms();
        for row in &mut rows {
            row.node = self.node();
            look_at(row, uptime_ms);
        }
        Rows { rows, total }
    }

    fn channels(&self, limit: usize) -> Rows<ChannelRow> {
        let mut all = Rows {
            rows: Vec::new(),
            total: 0,
        };
        let channels = self.control().objects();
        for (id, entry) in channels.filter(|(id, _)| id.kind == ObjectKind::Channel) {
            all.total += 1;
            if all.rows.len() == limit {
                continue;
            }
            let (state, _, _, creator) = entry.read();
            let mut row = ChannelRow {
                node: self.node(),
                object: id.to_string(),
                user: entry.user.load(Ordering::Relaxed),
                state: match state {
                    State::Destroyed => "destroyed".to_owned(),
                    _ => "alive".to_owned(),
                },
                references: entry.references(),
                owner_slot: creator,
                owner_pid: self.pid_of(creator),
                ..ChannelRow::default()
            };
            // One that ends at this moment has no more to tell.
            if let Ok(channel) = inspect::channel(&self.member, id) {
                let attributes = channel.attributes;
                row = ChannelRow {
                    capacity: attributes.capacity,
                    unbounded: attributes.unbounded,
                    messages: attributes.messages,
                    sent: channel.sent,
                    received: channel.received,
                    senders_waiting: attributes.senders_waiting,
                    receivers_waiting: attributes.receivers_waiting,
                    watchers: attributes.watchers,
                    bytes: attributes.bytes,
                    ..row
                };
            }
            all.rows.push(row);
        }
        all
    }

    /// The pools: a node has 64 at most.
    #[must_use]
    pub fn pools(&self) -> Rows<PoolRow> {
        let pools = self.memory.pools().all();
        let rows: Vec<_> = pools.iter().map(|pool| self.pool(pool)).collect();
        Rows {
            total: rows.len() as u64,
            rows,
        }
    }

    fn pool(&self, pool: &Pool) -> PoolRow {
        let (label, all) = (pool.label(), statistics(pool));
        let owner = |(slot, (bytes, blocks)): (Option<u32>, (u64, u64))| PoolOwner {
            slot,
            pid: slot.map_or(0, |slot| self.pid_of(slot)),
            bytes,
            blocks,
        };
        let mut owners: Vec<_> = all.by_owner.into_iter().map(owner).collect();
        owners.sort_by_key(|owner| std::cmp::Reverse(owner.bytes));
        owners.truncate(MOST_OWNERS);
        PoolRow {
            node: self.node(),
            pool: label.number,
            name: label.name.into(),
            limit_bytes: all.limit,
            committed_bytes: all.committed,
            used_bytes: all.used,
            blocks: all.blocks,
            kept_bytes: all.kept,
            peak_bytes: all.peak,
            largest_free_bytes: all.largest_free,
            owners,
        }
    }

    /// The process that has a slot now; 0 for none, and for a process of another node.
    fn pid_of(&self, slot: u32) -> u32 {
        let slot = self.control().slot(slot).ok();
        slot.filter(|slot| slot.state() == slot::PROCESS)
            .map_or(0, slot::Slot::pid)
    }
}

/// How full a pool is. What a scribbler has spoiled counts as nothing.
fn statistics(pool: &Pool) -> Statistics {
    pool.statistics().unwrap_or_default()
}

fn managed(process: &Managed) -> ProcessRow {
    ProcessRow {
        pid: process.pid,
        object: process
            .object
            .map(|object| object.to_string())
            .unwrap_or_default(),
        role: process.role.name().to_owned(),
        group: process.group.clone(),
        rank: process.rank,
        ..ProcessRow::default()
    }
}

fn add_counters(row: &mut ProcessRow, counters: &SlotCounters) {
    let load = |counter: &dragon_shmem::sync::AtomicU64| counter.load(Ordering::Relaxed);
    row.local_sent = row.local_sent.saturating_add(load(&counters.sends));
    row.local_received = row.local_received.saturating_add(load(&counters.receives));
    row.remote_requests = row.remote_requests.saturating_add(load(&counters.remote));
}

/// What the system says of a process. One that has ended has an empty state.
fn look_at(row: &mut ProcessRow, uptime_ms: u64) {
    let read = |name| fs::read(format!("/proc/{}/{name}", row.pid)).unwrap_or_default();
    let stat = read("stat");
    if let Some(stat) = Stat::parse(&String::from_utf8_lossy(&stat)) {
        row.state = stat.state;
        row.parent = stat.parent;
        row.user_ms = stat.user_ms;
        row.system_ms = stat.system_ms;
        row.age_s = uptime_ms.saturating_sub(stat.begin_ms) / 1000;
        row.command = stat.name;
    }
    row.rss_anon_bytes = kilobytes(&read("status"), "RssAnon:") << 10;
    let command = read("cmdline");
    let command = &command[..command.len().min(COMMAND_BYTES)];
    if !command.is_empty() {
        let words = String::from_utf8_lossy(command);
        let words = words.trim_end_matches('\0');
        row.command = words.replace(|c: char| c.is_control(), " ");
    }
}

/// A line of `/proc/PID/stat`, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: String,
    parent: u32,
    user_ms: u64,
    system_ms: u64,
    begin_ms: u64,
}

impl Stat {
    fn parse(line: &str) -> Option<Self> {
        // The name is in brackets, and may have some itself.
        let (name, rest) = line.split_once('(')?.1.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_ascii_whitespace().collect();
        let time = |at: usize| -> Option<u64> {
            let ticks: u64 = fields.get(at)?.parse().ok()?;
            Some(ticks.saturating_mul(1000) / TICKS)
        };
        Some(Self {
            name: format!("[{name}]"),
            state: (*fields.first()?).to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            user_ms: time(11)?,
            system_ms: time(12)?,
            begin_ms: time(19)?,
        })
    }
}

/// A line of a file like `/proc/PID/status`: `NAME: NUMBER kB`.
fn kilobytes(text: &[u8], name: &str) -> u64 {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

fn uptime_ms() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split(' ').next().and_then(|word| word.split_once('.'));
    let parsed = seconds.and_then(|(whole, part)| {
        let whole: u64 = whole.parse().ok()?;
        let hundredths: u64 = part.parse().ok()?;
        Some(whole * 1000 + hundredths * 10)
    });
    parsed.unwrap_or(0)
}

/// Memory of this process that is its own.
fn own_memory() -> u64 {
    let status = fs::read("/proc/self/status").unwrap_or_default();
    (kilobytes(&status, "RssAnon:") + kilobytes(&status, "RssFile:")) << 10
}

/// The machine as a whole.
#[derive(Debug, Default)]
struct Machine {
    memory: u64,
    available: u64,
    busy_ms: u64,
    cpu_ms: u64,
}

impl Machine {
    fn read() -> Self {
        let memory = fs::read("/proc/meminfo").unwrap_or_default();
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        // user nice system idle iowait irq softirq steal; what guests use is among the first.
        let times: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|word| word.parse().ok())
            .collect();
        let all: u64 = times.iter().sum();
        let idle: u64 = times.iter().skip(3).take(2).sum();
        Self {
            memory: kilobytes(&memory, "MemTotal:") << 10,
            available: kilobytes(&memory, "MemAvailable:") << 10,
            busy_ms: (all - idle) * 1000 / TICKS,
            cpu_ms: all * 1000 / TICKS,
        }
    }
}

fn count(things: impl Iterator) -> u32 {
    u32::try_from(things.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_called_whatever_it_likes() {
        let rest = " S 17 1 1 0 -1 4194560 1 0 0 0 250 7 0 0 20 0 1 0 12345 1 1";
        for name in ["sh", "a b", ") R 1 (", "((", ""] {
            let stat = Stat::parse(&format!("4711 ({name}){rest}")).unwrap();
            let expected = Stat {
                name: format!("[{name}]"),
                state: "S".to_owned(),
                parent: 17,
                user_ms: 2500,
                system_ms: 70,
                begin_ms: 123_450,
            };
            assert_eq!(stat, expected);
        }
        for bad in ["", "1 (sh", "1 (sh) S", "1 (sh) S 1 2 3"] {
            assert_eq!(Stat::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_process_is_seen_as_the_system_sees_it() {
        let mut row = ProcessRow {
            pid: std::process::id(),
            ..ProcessRow::default()
        };
        look_at(&mut row, uptime_ms());
        assert!(matches!(row.state.as_str(), "R" | "S"), "{row:?}");
        assert!(row.rss_anon_bytes > 100 << 10, "{row:?}");
        assert!(row.command.contains("dragon"), "{row:?}");
        assert_eq!(Some(row.parent), parent(), "{row:?}");
        let machine = Machine::read();
        assert!(machine.memory > machine.available && machine.available > 0);
        assert!(machine.cpu_ms > machine.busy_ms && machine.busy_ms > 0);
    }

    fn parent() -> Option<u32> {
        let parent = rustix::process::getppid()?;
        Some(parent.as_raw_nonzero().get().cast_unsigned())
    }

    #[test]
    fn one_that_has_ended_is_no_error() {
        let mut row = ProcessRow {
            pid: u32::MAX,
            ..ProcessRow::default()
        };
        look_at(&mut row, 0);
        assert_eq!((row.state.as_str(), row.rss_anon_bytes), ("", 0));
    }
}
