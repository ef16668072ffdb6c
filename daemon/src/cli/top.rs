//! `dragon top`: nodes and processes on one screen, looked at again and again.
//!
//! Each look is one question to the daemon of this node, which gathers the answers of the others; nobody else is asked.
//! Rates are what changed between two looks; at the first one, averages since the start.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dragon_protocol::inspect::{
    Answer, NodeAnswer, NodeStatus, PATIENCE_MS, ProcessRow, Scope, Subject,
};
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Row, Table};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::enter::enter_job;
use super::objects::{Missing, print_json};
use super::runtime::{Conversation, find};
use super::table::{bytes, duration, print};
use super::tools::Top;

/// Processes that are looked at.
const MOST_PROCESSES: u32 = 1000;
/// The screen of `--once`.
const ONCE: (u16, u16) = (140, 40);

/// What the processes are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// Messages.
    Messages,
    /// Pid.
    Pid,
}

/// Runs the command.
///
/// # Errors
/// When there is no runtime or no terminal.
pub fn run(arguments: &Top) -> Result<u8> {
    enter_job(&arguments.which)?;
    let mut conversation = Conversation::with(&find(&arguments.which, None)?)?;
    let first = Look::take(&mut conversation)?;
    if arguments.once {
        let screen = first.screen(None);
        if arguments.json {
            print_json(&as_json(&screen, arguments.sort))?;
        } else {
            print(&as_text(&screen, arguments.sort)?)?;
        }
        return Ok(screen.missing.code());
    }
    if !std::io::stdout().is_terminal() {
        bail!("standard output is no terminal; dragon top --once prints one screen as text");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Puts the terminal back when this panics, too.
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let ended = runtime.block_on(show(arguments, conversation, first, &mut terminal));
    ratatui::restore();
    // A thread may still wait for a key: the process does not wait for it.
    runtime.shutdown_background();
    ended
}

/// Shows looks until a key or a signal ends it; returns the exit code.
async fn show(
    arguments: &Top,
    conversation: Conversation,
    first: Look,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<u8> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut keys = keys()?;
    let (look, mut looks) = looker(conversation)?;
    let delay = Duration::from_secs_f64(arguments.delay);
    let mut sort = arguments.sort;
    let mut screen = first.screen(None);
    let mut before = first;
    let mut next = tokio::time::Instant::now() + delay;
    let mut looking = false;
    loop {
        terminal.draw(|frame| draw(frame, &screen, sort))?;
        tokio::select! {
            _ = terminate.recv() => return Ok(128 + 15),
            _ = hang_up.recv() => return Ok(128 + 1),
            _ = interrupt.recv() => return Ok(0),
            key = keys.recv() => match key {
                None | Some(Key::Quit) => return Ok(0),
                Some(Key::Sort(by)) => sort = by,
                Some(Key::Other) => {}
            },
            () = tokio::time::sleep_until(next), if !looking => {
                looking = look.send(()).await.is_ok();
                next += delay;
            }
            came = looks.recv() => {
                let now = came.context("the runtime has ended")??;
                looking = false;
                screen = now.screen(Some(&before));
                before = now;
            }
        }
    }
}

/// What a key means.
enum Key {
    Quit,
    Sort(Sort),
    Other,
}

/// Keys, and changes of the size, as they come: read by a thread of their own.
fn keys() -> Result<mpsc::Receiver<Key>> {
    let (sender, keys) = mpsc::channel(16);
    thread::Builder::new()
        .name("keys".to_owned())
        .spawn(move || {
            while let Ok(event) = event::read() {
                if sender.blocking_send(meaning(&event)).is_err() {
                    return;
                }
            }
        })?;
    Ok(keys)
}

fn meaning(event: &Event) -> Key {
    let Event::Key(key) = event else {
        return Key::Other;
    };
    if key.kind != KeyEventKind::Press {
        return Key::Other;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('c') => Key::Sort(Sort::Cpu),
        KeyCode::Char('m') => Key::Sort(Sort::Memory),
        KeyCode::Char('e') => Key::Sort(Sort::Messages),
        KeyCode::Char('p') => Key::Sort(Sort::Pid),
        _ => Key::Other,
    }
}

/// Looks when it is told to, in a thread of its own: the screen goes on while answers are awaited.
fn looker(
    mut conversation: Conversation,
) -> Result<(mpsc::Sender<()>, mpsc::Receiver<Result<Look>>)> {
    let (look, mut wanted) = mpsc::channel(1);
    let (sender, looks) = mpsc::channel(1);
    thread::Builder::new()
        .name("looker".to_owned())
        .spawn(move || {
            while wanted.blocking_recv().is_some() {
                if sender.blocking_send(Look::take(&mut conversation)).is_err() {
                    return;
                }
            }
        })?;
    Ok((look, looks))
}

/// What there was at a moment.
struct Look {
    at: Instant,
    nodes: Vec<NodeStatus>,
    processes: Vec<ProcessRow>,
    missing: Missing,
}

impl Look {
    fn take(conversation: &mut Conversation) -> Result<Self> {
        let mut ask = |subject| -> Result<Vec<NodeAnswer>> {
            conversation.inspect(subject, Scope::All, MOST_PROCESSES, PATIENCE_MS)
        };
        let at = Instant::now();
        let (nodes, missing) = Missing::part(ask(Subject::Status)?, |answer| match answer {
            Answer::Status(status) => Some(*status),
            _ => None,
        });
        let (processes, more) = Missing::part(ask(Subject::Processes)?, |answer| match answer {
            Answer::Processes(rows) => Some(rows.rows),
            _ => None,
        });
        Ok(Self {
            at,
            nodes,
            processes: processes.into_iter().flatten().collect(),
            missing: missing.and(more),
        })
    }

    /// What is shown, with rates since an earlier look.
    fn screen(&self, before: Option<&Self>) -> Screen {
        let passed_ms = before.map(|before| {
            let passed = self.at.duration_since(before.at).as_millis();
            u64::try_from(passed).unwrap_or(u64::MAX)
        });
        let earlier: HashMap<_, _> = before
            .iter()
            .flat_map(|before| &before.nodes)
            .map(|node| (node.node, node))
            .collect();
        let nodes = self.nodes.iter().map(|node| {
            let of = |now: u64, value: fn(&NodeStatus) -> u64, since_ms: u64| {
                let then = earlier.get(&node.node).map_or(0, |then| value(then));
                let passed = passed_ms.filter(|_| earlier.contains_key(&node.node));
                per_second(now.saturating_sub(then), passed.unwrap_or(since_ms))
            };
            let up = (node.uptime_s * 1000).max(1);
            let busy = earlier
                .get(&node.node)
                .map_or((0, 0), |then| (then.machine_busy_ms, then.machine_cpu_ms));
            NodeLine {
                busy_percent: percent(
                    node.machine_busy_ms.saturating_sub(busy.0),
                    node.machine_cpu_ms.saturating_sub(busy.1),
                ),
                sent: of(node.local_sent, |node| node.local_sent, up),
                received: of(node.local_received, |node| node.local_received, up),
                remote: of(node.remote_requests, |node| node.remote_requests, up),
                status: node.clone(),
            }
        });
        let earlier: HashMap<_, _> = before
            .iter()
            .flat_map(|before| &before.processes)
            .map(|row| ((row.node, row.pid), row))
            .collect();
        let processes = self.processes.iter().map(|row| {
            let then = earlier.get(&(row.node, row.pid));
            let cpu = |row: &ProcessRow| row.user_ms + row.system_ms;
            let messages =
                |row: &ProcessRow| row.local_sent + row.local_received + row.remote_requests;
            let passed = passed_ms.filter(|_| then.is_some());
            let passed = passed.unwrap_or((row.age_s * 1000).max(1000));
            let more = |value: &dyn Fn(&ProcessRow) -> u64| {
                value(row).saturating_sub(then.map_or(0, |then| value(then)))
            };
            ProcessLine {
                cpu_percent: percent(more(&cpu), passed),
                messages: per_second(more(&messages), passed),
                row: row.clone(),
            }
        });
        Screen {
            nodes: nodes.collect(),
            processes: processes.collect(),
            missing: self.missing.clone(),
        }
    }
}

/// What is shown.
struct Screen {
    nodes: Vec<NodeLine>,
    processes: Vec<ProcessLine>,
    missing: Missing,
}

impl Screen {
    /// The processes in the order in which they are shown.
    fn sorted(&self, sort: Sort) -> Vec<&ProcessLine> {
        let mut sorted: Vec<_> = self.processes.iter().collect();
        sorted.sort_by_key(|line| (line.row.node, line.row.pid));
        match sort {
            Sort::Cpu => sorted.sort_by_key(|line| std::cmp::Reverse(line.cpu_percent)),
            Sort::Memory => sorted.sort_by_key(|line| std::cmp::Reverse(line.row.rss_anon_bytes)),
            Sort::Messages => sorted.sort_by_key(|line| std::cmp::Reverse(line.messages)),
            Sort::Pid => {}
        }
        sorted
    }
}

struct NodeLine {
    status: NodeStatus,
    busy_percent: u64,
    sent: u64,
    received: u64,
    remote: u64,
}

struct ProcessLine {
    row: ProcessRow,
    cpu_percent: u64,
    messages: u64,
}

fn per_second(n: u64, ms: u64) -> u64 {
    u64::try_from(u128::from(n) * 1000 / u128::from(ms.max(1))).unwrap_or(u64::MAX)
}

fn percent(part: u64, of: u64) -> u64 {
    (part * 100).checked_div(of).unwrap_or(0)
}

/// Draws the screen.
fn draw(frame: &mut Frame<'_>, screen: &Screen, sort: Sort) {
    let rows = u16::try_from(screen.nodes.len()).unwrap_or(u16::MAX);
    let nodes = rows.saturating_add(2).min(frame.area().height / 2);
    let missing_text = screen.missing.text();
    let [title, missing, above, below, help] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(!missing_text.is_empty())),
        Constraint::Length(nodes),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    if let Some(first) = screen.nodes.first() {
        let status = &first.status;
        let text = format!(
            "job {}, up {}, {} nodes, {} processes, {} attached",
            status.job,
            duration(status.uptime_s),
            status.nodes_up,
            screen.nodes.iter().map(|n| n.status.processes).sum::<u32>(),
            screen.nodes.iter().map(|n| n.status.attached).sum::<u32>(),
        );
        frame.render_widget(Line::from(text), title);
    }
    frame.render_widget(Line::from(missing_text), missing);
    draw_nodes(frame, &screen.nodes, above);
    draw_processes(frame, &screen.sorted(sort), below);
    let keys = "q quit   sort by: c cpu   m memory   e messages   p pid";
    frame.render_widget(Line::from(keys), help);
}

fn header(names: &[&'static str]) -> Row<'static> {
    let style = Style::default().add_modifier(Modifier::REVERSED);
    Row::new(names.to_vec()).style(style)
}

fn draw_nodes(frame: &mut Frame<'_>, nodes: &[NodeLine], area: Rect) {
    let row = |line: &NodeLine| {
        let status = &line.status;
        let kind = |name: &str| {
            let mut kinds = status.objects.iter();
            kinds.find(|(kind, _)| kind == name).map_or(0, |(_, n)| *n)
        };
        let used = status
            .machine_memory_bytes
            .saturating_sub(status.machine_available_bytes);
        Row::new([
            status.node.to_string(),
            status.host.clone(),
            format!("{}%", line.busy_percent),
            format!("{}/{}", bytes(used), bytes(status.machine_memory_bytes)),
            format!("{}+{}", status.processes, status.attached),
            format!(
                "{}/{}",
                bytes(status.pool_used_bytes),
                bytes(status.pool_limit_bytes)
            ),
            kind("channel").to_string(),
            line.sent.to_string(),
            line.received.to_string(),
            line.remote.to_string(),
        ])
    };
    let names = [
        "NODE",
        "HOST",
        "CPU",
        "MEMORY",
        "PROCESSES",
        "POOLS",
        "CHANNELS",
        "SENT/s",
        "RECEIVED/s",
        "REMOTE/s",
    ];
    let widths = [5, 20, 5, 12, 10, 12, 9, 11, 11, 11].map(Constraint::Length);
    let table = Table::new(nodes.iter().map(row), widths).header(header(&names));
    frame.render_widget(table, area);
}

fn draw_processes(frame: &mut Frame<'_>, sorted: &[&ProcessLine], area: Rect) {
    let row = |line: &&ProcessLine| {
        let row = &line.row;
        Row::new([
            row.node.to_string(),
            row.pid.to_string(),
            row.role.clone(),
            row.state.clone(),
            format!("{}%", line.cpu_percent),
            bytes(row.rss_anon_bytes),
            line.messages.to_string(),
            duration(row.age_s),
            row.command.clone(),
        ])
    };
    let names = [
        "NODE",
        "PID",
        "ROLE",
        "S",
        "CPU",
        "MEMORY",
        "MESSAGES/s",
        "AGE",
        "COMMAND",
    ];
    let fixed = [5, 8, 9, 2, 6, 7, 11, 8].map(Constraint::Length);
    let widths = fixed.into_iter().chain([Constraint::Min(10)]);
    let table = Table::new(sorted.iter().map(row), widths).header(header(&names));
    frame.render_widget(table, area);
}

/// What is on the screen, by the names that `dragon status` and `dragon ps` have for it.
fn as_json(screen: &Screen, sort: Sort) -> Value {
    let with = |row: Value, more: Value| match (row, more) {
        (Value::Object(mut row), Value::Object(more)) => {
            row.extend(more);
            Value::Object(row)
        }
        (row, _) => row,
    };
    let node = |line: &NodeLine| {
        let rates = json!({
            "cpu_percent": line.busy_percent,
            "sent_per_s": line.sent,
            "received_per_s": line.received,
            "remote_per_s": line.remote,
        });
        with(json!(line.status), rates)
    };
    let process = |line: &ProcessLine| {
        let rates = json!({ "cpu_percent": line.cpu_percent, "messages_per_s": line.messages });
        with(json!(line.row), rates)
    };
    json!({
        "nodes": screen.nodes.iter().map(node).collect::<Vec<_>>(),
        "processes": screen.sorted(sort).into_iter().map(process).collect::<Vec<_>>(),
        "missing": screen.missing.json(),
    })
}

/// One screen as text.
fn as_text(screen: &Screen, sort: Sort) -> Result<String> {
    let (width, height) = ONCE;
    let mut terminal = Terminal::new(TestBackend::new(width, height))?;
    terminal.draw(|frame| draw(frame, screen, sort))?;
    let cells = terminal.backend().buffer().content();
    let line = |row: &[ratatui::buffer::Cell]| {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned() + "\n"
    };
    // The last line names keys, which mean nothing here.
    let lines = cells.chunks(width.into()).take(usize::from(height) - 1);
    let text: String = lines.map(line).collect();
    Ok(text.trim_end().to_owned() + "\n")
}

#[cfg(test)]
mod tests {
    use dragon_protocol::NodeIndex;

    use super::*;

    fn look(at: Instant, sent: u64, user_ms: u64) -> Look {
        let process = |pid, user_ms, rss_anon_bytes| ProcessRow {
            pid,
            user_ms,
            rss_anon_bytes,
            role: "attached".to_owned(),
            age_s: 10,
            command: format!("program-{pid}"),
            ..ProcessRow::default()
        };
        let lost = NodeAnswer {
            node: NodeIndex::new(1).unwrap(),
            answer: Err("lost".to_owned()),
        };
        Look {
            at,
            nodes: vec![NodeStatus {
                host: "n1".to_owned(),
                job: "4711".to_owned(),
                uptime_s: 10,
                local_sent: sent,
                machine_busy_ms: 500,
                machine_cpu_ms: 1000,
                ..NodeStatus::default()
            }],
            processes: vec![process(7, 0, 2 << 20), process(8, user_ms, 1 << 20)],
            missing: Missing::part(vec![lost], |_| Some(())).1,
        }
    }

    #[test]
    fn rates_are_what_changed_between_two_looks() {
        let begin = Instant::now();
        let first = look(begin, 100, 1000);
        let screen = first.screen(None);
        assert_eq!(screen.nodes[0].sent, 10, "an average since the start");
        assert_eq!(
            (
                screen.nodes[0].busy_percent,
                screen.processes[1].cpu_percent
            ),
            (50, 10)
        );
        let second = look(begin + Duration::from_secs(2), 500, 2500);
        let screen = second.screen(Some(&first));
        assert_eq!(
            (screen.nodes[0].sent, screen.nodes[0].busy_percent),
            (200, 0)
        );
        assert_eq!(screen.processes[1].cpu_percent, 75);
    }

    #[test]
    fn the_screen_is_sorted_as_asked() {
        let screen = look(Instant::now(), 0, 1000).screen(None);
        let place = |sort, what: &str| {
            let text = as_text(&screen, sort).unwrap();
            text.lines().position(|line| line.contains(what)).unwrap()
        };
        assert!(place(Sort::Cpu, "program-8") < place(Sort::Cpu, "program-7"));
        assert!(place(Sort::Memory, "program-7") < place(Sort::Memory, "program-8"));
        assert!(place(Sort::Pid, "program-7") < place(Sort::Pid, "program-8"));
        assert_eq!(place(Sort::Pid, "job 4711"), 0);
        assert_eq!(place(Sort::Pid, "node 1: lost"), 1);
        let order = |sort| {
            let all = as_json(&screen, sort);
            let rows = all["processes"].as_array().unwrap().clone();
            rows.iter()
                .map(|row| row["pid"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(order(Sort::Cpu), [8, 7]);
        assert_eq!(order(Sort::Memory), [7, 8]);
    }

    #[test]
    fn what_is_on_the_screen_is_told_as_json() {
        let begin = Instant::now();
        let second = look(begin + Duration::from_secs(2), 500, 2500);
        let all = as_json(&second.screen(Some(&look(begin, 100, 1000))), Sort::Cpu);
        let node = &all["nodes"][0];
        assert_eq!(
            (&node["host"], &node["sent_per_s"]),
            (&json!("n1"), &json!(200))
        );
        let process = &all["processes"][0];
        assert_eq!(
            (&process["pid"], &process["cpu_percent"]),
            (&json!(8), &json!(75))
        );
        assert_eq!(all["missing"], json!([{ "node": 1, "why": "lost" }]));
    }
}
