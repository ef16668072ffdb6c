//! `dragon status`, `ps`, `channels`, `pools` and `logs`: what the daemons answer, as tables or JSON.

use std::io;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use dragon_protocol::control::{ClientReply, ClientRequest};
use dragon_protocol::inspect::{
    Answer, ChannelRow, LogFilter, LogLevel, LogLine, NodeAnswer, NodeStatus, PoolRow, ProcessRow,
    Rows, Subject,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::enter::enter_job;
use super::runtime::{Conversation, ask, find};
use super::table::{Table, bytes, duration, print};
use super::tools::{Ask, Logs};

/// Exit code when not all nodes answered.
const INCOMPLETE: u8 = 1;

/// `dragon status`.
///
/// # Errors
/// When there is no runtime, or it does not answer.
pub fn status(arguments: &Ask) -> Result<u8> {
    let answers = ask(arguments, Subject::Status)?;
    let (nodes, missing) = Missing::part(answers, |answer| match answer {
        Answer::Status(status) => Some(*status),
        _ => None,
    });
    if arguments.json {
        print_json(&json!({ "nodes": nodes, "missing": missing.json() }))?;
    } else {
        print(&status_text(&nodes))?;
        missing.say();
    }
    Ok(missing.code())
}

/// `dragon ps`.
///
/// # Errors
/// As [`status`].
pub fn processes(arguments: &Ask) -> Result<u8> {
    let of = |answer| match answer {
        Answer::Processes(rows) => Some(rows),
        _ => None,
    };
    list(
        arguments,
        Subject::Processes,
        "processes",
        of,
        process_table,
    )
}

/// `dragon channels`.
///
/// # Errors
/// As [`status`].
pub fn channels(arguments: &Ask) -> Result<u8> {
    let of = |answer| match answer {
        Answer::Channels(rows) => Some(rows),
        _ => None,
    };
    list(arguments, Subject::Channels, "channels", of, channel_table)
}

/// `dragon pools`.
///
/// # Errors
/// As [`status`].
pub fn pools(arguments: &Ask) -> Result<u8> {
    let of = |answer| match answer {
        Answer::Pools(rows) => Some(rows),
        _ => None,
    };
    list(arguments, Subject::Pools, "pools", of, pool_table)
}

/// `dragon logs`.
///
/// # Errors
/// As [`status`].
pub fn logs(arguments: &Logs) -> Result<u8> {
    let filter = LogFilter {
        level: arguments.level,
    };
    if arguments.follow {
        return follow(arguments, filter);
    }
    let answers = ask(&arguments.ask, Subject::Logs(filter))?;
    let (parts, missing) = Missing::part(answers, |answer| match answer {
        Answer::Logs(rows) => Some(rows),
        _ => None,
    });
    let total: u64 = parts.iter().map(|rows| rows.total).sum();
    let mut lines: Vec<_> = parts.into_iter().flat_map(|rows| rows.rows).collect();
    // Clocks of nodes differ a little, the order within a node is kept.
    lines.sort_by_key(|line| line.time_us);
    if arguments.ask.json {
        print_json(&json!({ "lines": lines, "total": total, "missing": missing.json() }))?;
    } else {
        lines.iter().try_for_each(print_line)?;
        left_out(lines.len(), total, "older lines");
        missing.say();
    }
    Ok(missing.code())
}

fn follow(arguments: &Logs, filter: LogFilter) -> Result<u8> {
    enter_job(&arguments.ask.which)?;
    let mut conversation = Conversation::with(&find(&arguments.ask.which, None)?)?;
    conversation.begin(&ClientRequest::FollowLogs(filter, arguments.ask.scope()))?;
    // Between lines much time may pass: whoever reads them may be gone before the next one comes.
    while conversation.comes_while_read(&io::stdout())? {
        let ClientReply::Logged(batch) = conversation.hear()? else {
            continue;
        };
        if batch.lost > 0 {
            eprintln!("dragon: {} lines came too fast and are lost", batch.lost);
        }
        for line in &batch.lines {
            if arguments.ask.json {
                // One object a line: there is no end to wait for.
                print(&format!("{}\n", serde_json::to_string(line)?))?;
            } else {
                print_line(line)?;
            }
        }
    }
    Ok(0)
}

/// Prints the rows of all nodes.
fn list<T: Serialize>(
    arguments: &Ask,
    subject: Subject,
    name: &str,
    of: impl Fn(Answer) -> Option<Rows<T>>,
    table: impl Fn(&[T]) -> Table,
) -> Result<u8> {
    let (parts, missing) = Missing::part(ask(arguments, subject)?, of);
    let total: u64 = parts.iter().map(|rows| rows.total).sum();
    let rows: Vec<T> = parts.into_iter().flat_map(|rows| rows.rows).collect();
    if arguments.json {
        print_json(&json!({ name: rows, "total": total, "missing": missing.json() }))?;
    } else {
        print(&table(&rows).text())?;
        left_out(rows.len(), total, name);
        missing.say();
    }
    Ok(missing.code())
}

/// The nodes that did not answer, and why.
#[derive(Clone, Debug, Default)]
pub(super) struct Missing(Vec<(u32, String)>);

impl Missing {
    /// Parts answers into what came and who is missing.
    pub(super) fn part<T>(
        answers: Vec<NodeAnswer>,
        of: impl Fn(Answer) -> Option<T>,
    ) -> (Vec<T>, Self) {
        let (mut came, mut missing) = (Vec::new(), Vec::new());
        for answer in answers {
            let node = answer.node.get();
            match answer.answer.map(&of) {
                Ok(Some(part)) => came.push(part),
                Ok(None) => missing.push((node, "it answered something else".to_owned())),
                Err(why) => missing.push((node, why)),
            }
        }
        (came, Self(missing))
    }

    /// Those of another question too.
    pub(super) fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self.0.sort_by_key(|(node, _)| *node);
        self.0.dedup_by_key(|(node, _)| *node);
        self
    }

    /// One line; empty when nobody is missing.
    pub(super) fn text(&self) -> String {
        let one = |(node, why): &(u32, String)| format!("node {node}: {why}");
        self.0.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    pub(super) fn json(&self) -> Value {
        let one = |(node, why): &(u32, String)| json!({ "node": node, "why": why });
        self.0.iter().map(one).collect()
    }

    fn say(&self) {
        for (node, why) in &self.0 {
            eprintln!("dragon: node {node}: {why}");
        }
    }

    pub(super) fn code(&self) -> u8 {
        if self.0.is_empty() { 0 } else { INCOMPLETE }
    }
}

fn left_out(rows: usize, total: u64, what: &str) {
    let left = total.saturating_sub(rows as u64);
    if left > 0 {
        eprintln!("dragon: {left} more {what} are not shown (--limit)");
    }
}

pub(super) fn print_json(value: &Value) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

fn status_text(nodes: &[NodeStatus]) -> String {
    let Some(first) = nodes.first() else {
        return String::new();
    };
    let mut text = format!(
        "runtime {} of job {}, release {}, up {}\n{} node{} up",
        first.runtime,
        first.job,
        first.release,
        duration(first.uptime_s),
        first.nodes_up,
        if first.nodes_up == 1 { "" } else { "s" },
    );
    if !first.nodes_down.is_empty() {
        let down: Vec<_> = first.nodes_down.iter().map(u32::to_string).collect();
        text += &format!(", down: {}", down.join(", "));
    }
    text += &format!("; global services on node {}", first.global_services);
    if first.epoch > 0 {
        text += &format!(", epoch {}", first.epoch);
    }
    text += "\n\n";
    text += &node_table(nodes).text();
    let mut peers = Table::new(&[
        "NODE",
        "PEER",
        "LINKS",
        "SENT",
        "RECEIVED",
        "FRAMES OUT",
        "FRAMES IN",
        "QUEUED",
        "AGAIN",
        "RECONNECTS",
        "LATENCY 50%",
        "99%",
    ]);
    for status in nodes {
        for peer in &status.peers {
            peers.row(vec![
                status.node.to_string(),
                peer.peer.to_string(),
                peer.links.to_string(),
                bytes(peer.bytes_sent),
                bytes(peer.bytes_received),
                peer.frames_sent.to_string(),
                peer.frames_received.to_string(),
                bytes(peer.queued_bytes),
                peer.retries.to_string(),
                peer.reconnects.to_string(),
                latency(peer.latency_50_ns),
                latency(peer.latency_99_ns),
            ]);
        }
    }
    let peers = peers.text();
    if !peers.is_empty() {
        text = text + "\n" + &peers;
    }
    text
}

/// A row for each node.
#[must_use]
pub fn node_table(nodes: &[NodeStatus]) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "<HOST",
        "CPUS",
        "MEMORY",
        "DAEMON",
        "PROCESSES",
        "ATTACHED",
        "POOLS",
        "USED",
        "COMMITTED",
        "LIMIT",
        "SENT",
        "RECEIVED",
        "REMOTE",
    ]);
    for node in nodes {
        table.row(vec![
            node.node.to_string(),
            node.host.clone(),
            node.cpus.to_string(),
            bytes(node.memory_bytes),
            bytes(node.daemon_rss_bytes),
            node.processes.to_string(),
            node.attached.to_string(),
            node.pools.to_string(),
            bytes(node.pool_used_bytes),
            bytes(node.pool_committed_bytes),
            bytes(node.pool_limit_bytes),
            node.local_sent.to_string(),
            node.local_received.to_string(),
            node.remote_requests.to_string(),
        ]);
    }
    table
}

fn process_table(rows: &[ProcessRow]) -> Table {
    let mut table = Table::new(&[
        "NODE", "PID", "PARENT", "<ROLE", "<OBJECT", "SLOT", "<S", "USER", "SYSTEM", "MEMORY",
        "AGE", "SENT", "RECEIVED", "REMOTE", "<GROUP", "RANK", "<COMMAND",
    ]);
    let or_dash = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
    let text = |text: &str| or_dash((!text.is_empty()).then(|| text.to_owned()));
    for row in rows {
        table.row(vec![
            row.node.to_string(),
            row.pid.to_string(),
            row.parent.to_string(),
            row.role.clone(),
            text(&row.object),
            or_dash(row.slot.map(|slot| slot.to_string())),
            text(&row.state),
            seconds(row.user_ms),
            seconds(row.system_ms),
            bytes(row.rss_anon_bytes),
            duration(row.age_s),
            row.local_sent.to_string(),
            row.local_received.to_string(),
            row.remote_requests.to_string(),
            text(&row.group),
            or_dash(row.rank.map(|rank| rank.to_string())),
            row.command.clone(),
        ]);
    }
    table
}

fn channel_table(rows: &[ChannelRow]) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "<CHANNEL",
        "<STATE",
        "MESSAGES",
        "CAPACITY",
        "SENT",
        "RECEIVED",
        "SENDERS",
        "RECEIVERS",
        "WATCHERS",
        "BYTES",
        "REFERENCES",
        "SLOT",
        "OWNER",
        "USER",
    ]);
    for row in rows {
        let grows = if row.unbounded { "+" } else { "" };
        table.row(vec![
            row.node.to_string(),
            row.object.clone(),
            row.state.clone(),
            row.messages.to_string(),
            format!("{}{grows}", row.capacity),
            row.sent.to_string(),
            row.received.to_string(),
            row.senders_waiting.to_string(),
            row.receivers_waiting.to_string(),
            row.watchers.to_string(),
            bytes(row.bytes),
            row.references.to_string(),
            row.owner_slot.to_string(),
            row.owner_pid.to_string(),
            row.user.to_string(),
        ]);
    }
    table
}

fn pool_table(rows: &[PoolRow]) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "POOL",
        "<NAME",
        "LIMIT",
        "COMMITTED",
        "USED",
        "PEAK",
        "KEPT",
        "LARGEST FREE",
        "BLOCKS",
        "<OWNERS (PID: BYTES)",
    ]);
    for row in rows {
        let owner = |owner: &dragon_protocol::inspect::PoolOwner| match owner.slot {
            Some(_) => format!("{}: {}", owner.pid, bytes(owner.bytes)),
            None => format!("shared: {}", bytes(owner.bytes)),
        };
        let owners: Vec<_> = row.owners.iter().take(4).map(owner).collect();
        let name = if row.name.is_empty() { "-" } else { &row.name };
        table.row(vec![
            row.node.to_string(),
            row.pool.to_string(),
            name.to_owned(),
            bytes(row.limit_bytes),
            bytes(row.committed_bytes),
            bytes(row.used_bytes),
            bytes(row.peak_bytes),
            bytes(row.kept_bytes),
            bytes(row.largest_free_bytes),
            row.blocks.to_string(),
            owners.join(", "),
        ]);
    }
    table
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02}", ms / 1000, ms % 1000 / 10)
}

fn latency(ns: u64) -> String {
    match ns {
        0 => "-".to_owned(),
        1..10_000 => format!("{ns}ns"),
        10_000..10_000_000 => format!("{}us", ns / 1000),
        _ => format!("{}ms", ns / 1_000_000),
    }
}

fn print_line(line: &LogLine) -> Result<()> {
    let level = match line.level {
        LogLevel::Error => "ERROR",
        LogLevel::Warn => "WARN ",
        LogLevel::Info => "INFO ",
        LogLevel::Debug => "DEBUG",
    };
    let (time, node) = (time_of_day(line.time_us), line.node);
    // A line of a log is one line, whatever is in it.
    let text = line
        .text
        .replace('\n', "\\n")
        .replace(char::is_control, "?");
    print(&format!(
        "{time} node {node} {level} {}: {text}\n",
        line.target
    ))
}

/// Date and time in UTC: 2026-01-31T23:59:59.123Z.
fn time_of_day(us: u64) -> String {
    let since = SystemTime::UNIX_EPOCH + Duration::from_micros(us);
    let seconds = since
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        us / 1000 % 1000
    )
}

/// The date so many days after the first of January 1970.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in months {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(time_of_day(seconds * 1_000_000), text);
        }
    }
}
