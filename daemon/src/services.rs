//! The services of a node: one loop that owns all state and handles one event after the other.
//!
//! No lock, no shared mutable state: connections, pipes and threads send [`Event`]s. The loop itself never waits for a
//! peer, a client or a process. Global services are what only the first node of the view does: who is a member, the names, and
//! the end of the job.

mod clients;
mod ending;
mod groups;
mod inspect;
mod logs;
mod members;
mod names;
mod peers;
mod pipes;
mod placement;
mod processes;
mod signals;
mod starting;
mod tasks;
mod timer;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use dragon_protocol::control::{ClientReply, ClientRequest, Membership, PeerMessage, SpawnResult};
use dragon_protocol::launch::NodeInfo;
use dragon_protocol::{Code, NodeIndex, SlotId, env, membership};
use rustix::process::Pid;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::adapter::launcher::NOT_UP;
use crate::adapter::{Job, Manager, allocation, client, remote, slurm};
use crate::attach;
use crate::bringup;
use crate::cli::RUNTIME_FAILED;
use crate::config::keys;
use crate::exit::Exit;
use crate::forker::Forker;
use crate::groups::{Due, Groups};
use crate::journal;
use crate::link::{self, Link};
use crate::listener::Listener;
use crate::membership::Input;
use crate::metrics::{self, Metrics};
use crate::names::Names;
use crate::node::Node;
use crate::output::{Sink, Upward};
use crate::program;
use crate::readable::end_of;
use crate::reservations::{Cpu, Ledger};
use crate::resources::{self, Granted};
use crate::state::{State, enter};
use crate::supervisor;
use crate::survey::View;
use clients::MadeFor;
pub use logs::Followed;
use placement::Turns;
use processes::Processes;
use signals::{Signalled, Signals};
use tasks::Tasks;

/// Events that may wait; senders wait when there are more.
const QUEUE: usize = 1024;
/// How long nodes may take to end that were told that the bring-up has failed.
const OTHERS_END: Duration = Duration::from_secs(1);

/// What the loop handles.
#[derive(Debug)]
pub enum Event {
    /// A daemon proved itself on our listener.
    Accepted(NodeIndex, TcpStream),
    /// A daemon says something.
    Peer(NodeIndex, PeerMessage),
    /// Whoever read the output of the job has gone; with `true` its errors.
    OutputRefused(bool),
    /// A connection to a daemon ended.
    LinkLost(NodeIndex, link::Ended),
    /// A connection to a daemon that we asked for could not be made: why, and whether that shows that the daemon has ended.
    Unreachable(NodeIndex, String, bool),
    /// A connection to a daemon that we asked for stands.
    Connected(NodeIndex, TcpStream),
    /// A process wants a slot.
    Attach {
        /// Its pid.
        pid: u32,
        /// The slot, or why there is none.
        reply: oneshot::Sender<Result<SlotId, (Code, String)>>,
    },
    /// The process of a slot is gone, or gave it up.
    Detached {
        /// Its process.
        pid: u32,
        /// The slot.
        slot: SlotId,
    },
    /// A client asks something.
    Client {
        /// Its slot; `None` for a tool that only inspects.
        slot: Option<SlotId>,
        /// Its number for the request.
        number: u64,
        /// What it asks.
        request: ClientRequest,
        /// Where the answer goes.
        reply: oneshot::Sender<ClientReply>,
    },
    /// The starts that the process of the slot asked for with this number wait no longer.
    Cancelled(SlotId, u64),
    /// A client did not get this answer. `true`: a new group's.
    Undelivered(ClientReply, bool),
    /// Another task of the step on this node reports its CPU mask.
    Sibling(Vec<u8>),
    /// The program of another task of the step on this node runs: its pid, and the number of the task.
    TaskRuns(u32, u32),
    /// Another task of the step on this node, which was the program, has ended; the pid of that, if it ever ran.
    TaskEnded(Option<u32>),
    /// The task of a node ended with a code that is to end the step.
    BadExit(NodeIndex, u8),
    /// The process with this number was started; its pid, or why not.
    Started(u64, Result<u32, String>),
    /// The head runs, and an interrupt of the terminal from before its start has been seen.
    HeadHears,
    /// The start with this number has waited for CPUs or GPUs as long as it may.
    WaitedLongEnough(u64),
    /// A time that a group waits for has come.
    GroupDue(Due),
    /// A message to another daemon, from a task that the loop started.
    Tell(NodeIndex, PeerMessage),
    /// A daemon could not be told which processes are gone, and is to be told again.
    TellSlotsGone(NodeIndex),
    /// Something happened to a question about the runtime.
    Inspected(inspect::Inspected),
    /// Something happened to those who follow logs.
    Followed(logs::Followed),
    /// The program that started this daemon for itself is at its end.
    OwnerLeft,
    /// The workload manager has answered: these nodes are down.
    Declared(Vec<NodeIndex>),
    /// Somebody wants to look at this node.
    View(oneshot::Sender<View>),
}

/// All state of a daemon.
struct Daemon {
    job: Job,
    node: Node,
    membership: Membership,
    cluster: members::Membership,
    names: Names,
    name_clients: names::NameClients,
    parent: Option<Link>,
    children: Vec<Link>,
    /// Those of them whose processes have ended, and of all below them.
    stopped: HashSet<NodeIndex>,
    /// Nodes below that could not be told of the end yet.
    untold: BTreeSet<NodeIndex>,
    /// Connections to daemons that are neither parent nor child, made on demand.
    others: HashMap<NodeIndex, Other>,
    processes: Processes,
    forker: Forker,
    sink: Sink,
    up: Upward,
    /// Of output and of errors: nobody reads them any more.
    refused: [watch::Sender<bool>; 2],
    sender: mpsc::Sender<Event>,
    requests: Requests,
    /// What the head is to read, where that is not the daemon's own input.
    head_input: Option<OwnedFd>,
    /// Of an allocation: what hears of the end, on its first node.
    keeper: Option<allocation::Followed>,
    inspections: inspect::Inspections,
    followers: logs::Followers,
    /// Where the next processes without a place of their own go.
    turns: Turns,
    /// Who has which CPUs and GPUs.
    ledger: Ledger,
    /// The tasks of the step, where they are the program.
    tasks: Option<Tasks>,
    groups: Groups,
    group_timers: HashMap<Due, timer::Timer>,
    /// Variables that tell a process which GPUs are its own.
    gpu_variables: Vec<&'static str>,
    /// What goes with the processes of this node that asked for it.
    made_for: MadeFor,
    metrics: Option<Metrics>,
    socket: String,
    /// The program that started this daemon for itself is at its end.
    owner_left: bool,
}

/// A connection made on demand.
enum Other {
    /// On its way; what is to be sent when it stands.
    Connecting(Vec<PeerMessage>),
    /// It stands; twice, when both sides asked at the same moment. Messages go by the first.
    Up(Vec<Link>),
}

/// Requests that other daemons have not answered yet.
#[derive(Default)]
struct Requests {
    last: u64,
    spawns: HashMap<u64, (NodeIndex, oneshot::Sender<Vec<SpawnResult>>)>,
    answers: HashMap<u64, (NodeIndex, oneshot::Sender<(Code, String)>)>,
    /// About groups of other nodes.
    groups: HashMap<u64, groups::AskedElsewhere>,
    /// About groups of this node.
    own_groups: HashMap<u64, groups::GroupAsked>,
}

/// Why a daemon ends, and its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    code: u8,
    why: String,
}

impl End {
    /// The exit code of what SIGTERM ends.
    const TERMINATED: u8 = 128 + 15;

    fn interrupted() -> Self {
        Self {
            code: 128 + 2,
            why: "SIGINT".to_owned(),
        }
    }

    /// Whether SIGTERM has told this or another daemon to end: whoever sent it means the job.
    fn is_asked_for(&self) -> bool {
        self.code == Self::TERMINATED
    }

    fn abandoned() -> Self {
        Self {
            code: RUNTIME_FAILED,
            why: "whoever started this daemon is gone".to_owned(),
        }
    }
}

/// Runs a daemon until its job ends; returns how its process is to end.
///
/// # Errors
/// When the runtime does not come up.
pub async fn run(job: Job) -> Result<Exit> {
    let (sender, mut events) = mpsc::channel(QUEUE);
    let mut signals = Signals::new(&job.manager)?;
    rustix::process::set_child_subreaper(Pid::from_raw(1))?;
    let mut head_input = None;
    let mut keeper = None;
    match &job.manager {
        // Nobody's child.
        Manager::Client { owner } => client::follow(*owner, &sender)?,
        Manager::RemoteLauncher => {
            watch_parent(&signals.parent_gone);
            if !supervisor::has_joined() {
                watch_shell(&signals.parent_gone);
            }
            head_input = remote::follow(job.node, &signals.parent_gone)?;
        }
        Manager::Launcher { pid } => {
            watch(*pid, &signals.parent_gone);
            if supervisor::is_there() {
                watch_parent(&signals.parent_gone);
            }
        }
        Manager::Slurm { .. } => watch_parent(&signals.parent_gone),
    }
    if let Manager::Slurm {
        keeper: Some(at), ..
    } = &job.manager
        && job.node == NodeIndex::FIRST
    {
        keeper = Some(allocation::connect(at)?);
    }
    let socket = job.socket_name();
    let (share, shared) = watch::channel(None);
    tokio::spawn(attach::serve(
        attach::listen(&socket)?,
        shared,
        sender.clone(),
    ));
    enter(job.node, State::Alone);
    let begun = tokio::select! {
        begun = begin(&job, &sender, &mut events) => begun,
        end = signals.ending() => return Ok(ended_early(&job, &end)),
    };
    let (node, me, granted_cpus) = match begun {
        Ok(begun) => begun,
        Err(why) => {
            enter(job.node, State::Failed);
            tokio::select! {
                told = bringup::give_up(&job, &why) => return did_not_come_up(&job, why, told),
                _ = signals.ending() => return Err(why),
            }
        }
    };
    let gpus = resources::gpus(|name| std::env::var(name).ok());
    let metrics = metrics::listen(job.config.text(&keys::METRICS), &job, &sender)?;
    let begun = Instant::now();
    let tree = tokio::select! {
        tree = bringup::run(&job, me, &mut events) => tree,
        end = signals.ending() => return Ok(ended_early(&job, &end)),
    };
    let tree = match tree {
        Ok(tree) => tree,
        Err(failure) => {
            enter(job.node, State::Failed);
            let silent_above = failure.silent_above;
            let exit = did_not_come_up(&job, failure.why, failure.told);
            if begun.elapsed() >= job.bring_up / 2 {
                return cancel_step_that_hangs(&job, silent_above, exit).await;
            }
            return exit;
        }
    };
    enter(job.node, State::Running);
    signals.head_runs = true;
    signals.are_the_programs = job.shape.task().is_some();
    let cpus: u32 = tree.membership.nodes.iter().map(|node| node.cpus).sum();
    tracing::info!(node = %job.node, nodes = tree.membership.nodes.len(), cpus, "the runtime is up");
    tracing::debug!(settings = ?job.config.pairs(), "in force where not the default");
    node.set_peers(&tree.membership);

    let parent = tree
        .parent
        .map(|(node, stream)| link::run(node, stream, None, job.host_limit(), &sender));
    let (up, sink) = match &parent {
        Some(parent) if job.forward_output => Upward::by(parent),
        _ => (Upward::none(), Sink::own(&sender)?),
    };
    let below = tree.children.into_iter();
    let patience = job.host_limit();
    let children = below
        .map(|(node, stream)| link::run(node, stream, Some(sink.clone()), patience, &sender))
        .collect();
    let mut daemon = Daemon {
        turns: Turns::beginning_at(job.node.get() as usize),
        ledger: Ledger::new(granted_cpus, gpus.names),
        tasks: Tasks::of(&job),
        groups: Groups::new(
            job.node,
            job.fanout,
            membership::View::first(u32::try_from(job.hosts.len())?),
        ),
        group_timers: HashMap::new(),
        gpu_variables: gpus.variables,
        made_for: MadeFor::default(),
        processes: Processes::default(),
        forker: Forker::start(sender.clone())?,
        cluster: members::Membership::new(&job),
        names: Names::new(
            job.node,
            membership::View::first(u32::try_from(job.hosts.len())?),
        ),
        name_clients: names::NameClients::default(),
        membership: tree.membership,
        parent,
        children,
        stopped: HashSet::new(),
        untold: BTreeSet::new(),
        others: HashMap::new(),
        requests: Requests::default(),
        head_input,
        keeper: None,
        inspections: inspect::Inspections::default(),
        followers: logs::Followers::default(),
        metrics,
        node,
        sink,
        up,
        refused: [false; 2].map(watch::Sender::new),
        sender,
        socket,
        owner_left: false,
        job,
    };
    share.send_replace(Some(Arc::new(daemon.node.shared()?)));
    if let Manager::Client { .. } = daemon.job.manager {
        client::is_up(&daemon.socket);
    }
    if let Some(keeper) = keeper {
        daemon.keeper = Some(keeper.follow(&daemon.socket, &daemon.sender)?);
    }
    signals.limit_time(daemon.job.config.time(&keys::TIME_LIMIT));
    let end = match daemon.start_programs() {
        Ok(()) => daemon.serve(&mut events, &mut signals).await,
        Err(end) => end,
    };
    // Tasks that are the program learn from it that they are to end; what waits for the end of a head, that all is over.
    let until_the_end = daemon.tasks.is_none().then_some(share);
    let exit = daemon.end(end, &mut events, &mut signals).await;
    drop(until_the_end);
    Ok(exit)
}

/// Makes the node, and what of it must be there before others can be met.
async fn begin(
    job: &Job,
    sender: &mpsc::Sender<Event>,
    events: &mut mpsc::Receiver<Event>,
) -> Result<(Node, NodeInfo, Vec<Cpu>)> {
    let (granted, mask) = with_siblings(job, events).await?;
    let node = Node::create(job, granted)?;
    let granted_cpus = resources::cpus(&mask, granted.cpus);
    let (data_port, data) = node.announces();
    // By the interfaces that were asked for, where there are any; else the first connection tells.
    let chosen = data.first().filter(|_| data_port == 0 && !job.all_here());
    let mut me = NodeInfo {
        node: job.node,
        host: job.host(job.node).to_owned(),
        address: chosen.map(|at| at.ip().to_string()).unwrap_or_default(),
        control_port: 0,
        data_port,
        data,
        cpus: granted.cpus,
        memory: granted.memory,
        pid: std::process::id(),
    };
    if job.hosts.len() > 1 {
        let listener = bringup::listen(job).await?;
        me.control_port = listener.local_addr()?.port();
        let (key, events) = (job.key.clone(), sender.clone());
        let listener = Listener::turning_away(listener.into_std()?.into(), "control port")?;
        tokio::spawn(bringup::accept(key, job.node, listener, events));
    }
    Ok((node, me, granted_cpus))
}

/// One node says why the bring-up failed: who was not heard by another one, or the first.
fn did_not_come_up(job: &Job, why: anyhow::Error, told: bool) -> Result<Exit> {
    if !told {
        return Err(why);
    }
    tracing::info!("the bring-up failed: {why:#}");
    Ok(Exit::Code(not_up(job, RUNTIME_FAILED)))
}

/// A node that has not come up when the time was over may never end, and a step of Slurm lasts as long as it: the first node, or
/// where that is the silent one the second, has Slurm kill the step.
async fn cancel_step_that_hangs(job: &Job, silent_above: bool, exit: Result<Exit>) -> Result<Exit> {
    let Manager::Slurm { step, keeper: None } = &job.manager else {
        // The srun of an allocation sees to it.
        return exit;
    };
    let second = silent_above && job.node.get() == 1;
    if job.node != NodeIndex::FIRST && !second {
        return exit;
    }
    // Said before this process is killed, and before those end that were told just now.
    if let Err(why) = &exit {
        journal::say(&format!("{why:#}"));
    }
    tokio::time::sleep(OTHERS_END).await;
    journal::say(&format!(
        "step {step} is cancelled, since what hangs there would never end"
    ));
    slurm::cancel(step).await;
    Ok(Exit::Code(not_up(job, RUNTIME_FAILED)))
}

/// The exit code of a daemon that was told to end while the nodes came up.
fn ended_early(job: &Job, end: &End) -> Exit {
    tracing::info!("the bring-up ends: {}", end.why);
    enter(job.node, State::Failed);
    Exit::Code(not_up(job, end.code))
}

/// The exit code of a daemon that did not come up: what the first one's is the job's.
fn not_up(job: &Job, code: u8) -> u8 {
    match job.manager {
        Manager::Slurm { .. } => code,
        _ if job.node == NodeIndex::FIRST => code,
        _ => NOT_UP,
    }
}

impl Daemon {
    /// Starts this node's own task where all are the program; else the head on the first node, and warms an interpreter on every node when the head is a Python program.
    fn start_programs(&mut self) -> Result<(), End> {
        // Whoever started this daemon runs the programs.
        if self.job.program.is_empty() {
            return Ok(());
        }
        if self.tasks.is_some() {
            return self.start_task().map_or(Ok(()), Err);
        }
        let first = self.job.node == NodeIndex::FIRST;
        let program = match program::resolve(&self.job.program) {
            Ok(program) => program,
            Err(no) if first => {
                journal::say(&no.text);
                return Err(End {
                    code: no.code,
                    why: no.text,
                });
            }
            Err(_) => return Ok(()),
        };
        if let Some(python) = &program.python {
            self.warm_up(python);
        }
        if first {
            self.start_head(program)
        } else {
            Ok(())
        }
    }

    /// Handles events until the job is to end.
    async fn serve(&mut self, events: &mut mpsc::Receiver<Event>, signals: &mut Signals) -> End {
        let mut end = self.member_event(Input::Time);
        loop {
            if let Some(end) = end {
                return end;
            }
            let due = self.cluster.due();
            let time = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            end = tokio::select! {
                // Signals first: [`Event::HeadHears`] is told after them.
                biased;
                signalled = signals.next() => match signalled {
                    Signalled::Child => self.reap().or_else(|| self.ends_alone()),
                    Signalled::End(end) => Some(end),
                    Signalled::TimeIsUp(limit) => self.time_is_up(limit),
                    Signalled::Abandoned => Some(self.abandoned()),
                    Signalled::ForHead(signal) => { self.pass_to_head(signal); None }
                },
                () = time => self.member_event(Input::Time),
                Some(event) = events.recv() => self.handle(event),
            };
        }
    }

    fn handle(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Accepted(node, stream) | Event::Connected(node, stream) => {
                self.connected(node, stream)
            }
            Event::Peer(node, message) => return self.peer_says(node, message),
            Event::OutputRefused(is_error) => self.output_refused(is_error),
            Event::LinkLost(node, ended) => return self.link_lost(node, ended),
            Event::Unreachable(node, why, gone) => return self.unreachable(node, &why, gone),
            Event::Attach { pid, reply } => {
                let slot = self.node.claim_slot(pid);
                if let Ok(slot) = slot {
                    self.processes.attached(pid, slot);
                }
                drop(reply.send(slot));
            }
            Event::Detached { pid, slot } => {
                self.node.recover(slot);
                self.names_without(slot);
                self.detached(pid, slot);
                return self.end_without_clients();
            }
            Event::Client {
                slot,
                number,
                request,
                reply,
            } => self.client_asks(slot, number, request, reply),
            Event::Cancelled(slot, asked) => self.client_cancels(slot, asked),
            Event::Undelivered(reply, made_group) => self.undelivered(reply, made_group),
            Event::Started(number, result) => return self.started(number, result),
            Event::HeadHears => self.processes.head_hears = true,
            Event::WaitedLongEnough(number) => self.give_up(&[number], Code::Timeout),
            Event::GroupDue(due) => {
                self.group_timers.remove(&due);
                let actions = self.groups.due(due);
                self.act(actions);
            }
            Event::Tell(node, message) => self.tell(node, message),
            Event::TellSlotsGone(node) => self.tell_slots_gone(node),
            Event::Sibling(_) => {}
            Event::TaskRuns(pid, rank) => self.task_runs(pid, rank),
            Event::TaskEnded(pid) => return self.other_task_ended(pid),
            Event::BadExit(node, code) => return Some(self.bad_exit(node, code)),
            Event::Inspected(what) => self.inspected(what),
            Event::Followed(what) => self.followed(what),
            Event::OwnerLeft => {
                self.owner_left = true;
                return self.end_without_clients();
            }
            Event::Declared(down) => return self.declared(down),
            Event::View(reply) => drop(reply.send(self.view())),
        }
        None
    }

    /// A daemon that a program started for itself ends with it, unless processes use the runtime that it has not started.
    /// That of an allocation ends with the script or shell.
    fn end_without_clients(&self) -> Option<End> {
        if self.owner_left && matches!(self.job.manager, Manager::Slurm { .. }) {
            return Some(End {
                code: 0,
                why: "the script or shell of the allocation has ended".to_owned(),
            });
        }
        let Manager::Client { owner } = self.job.manager else {
            return None;
        };
        if !self.owner_left {
            return None;
        }
        let mut others = self.processes.attached_processes();
        if others.any(|pid| pid != owner && !client::is_descendant(pid)) {
            client::stays();
            return None;
        }
        Some(End {
            code: 0,
            why: "the program that needed the runtime is at its end".to_owned(),
        })
    }

    /// The environment of the head, and of interpreters that are warmed up.
    fn environment_for_head(&self) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
        let mut all = self.job.environment_for_programs();
        all.insert(env::RUNTIME.into(), (&self.socket).into());
        all.into_iter().collect()
    }
}

/// Under a workload manager that binds each task to its own CPUs, what was granted is the union of all local tasks'.
async fn with_siblings(
    job: &Job,
    events: &mut mpsc::Receiver<Event>,
) -> Result<(Granted, Vec<u8>)> {
    let mut granted = resources::granted();
    let mut mask = resources::own_mask();
    let deadline = Instant::now() + job.bring_up;
    for seen in 0..job.siblings {
        let event = timeout_at(deadline, events.recv()).await.ok().flatten();
        let event = event.with_context(|| {
            format!(
                "only {seen} of {} other local tasks reported within {:?}",
                job.siblings, job.bring_up
            )
        })?;
        match event {
            Event::Sibling(other) => resources::union(&mut mask, &other),
            // Nothing else can come yet: the listeners for it are not open.
            other => tracing::warn!("unexpected before the bring-up: {other:?}"),
        }
    }
    if job.siblings > 0 {
        resources::run_on(&mask);
    }
    granted.cpus = resources::count(&mask).max(1);
    // With a mask of the whole node, Slurm's own word says how much of it belongs to the job.
    granted.cpus = job
        .cpus
        .map_or(granted.cpus, |cpus| granted.cpus.min(cpus.max(1)));
    Ok((granted, mask))
}

/// Reports the end of the process that started this one, which may be gone already.
fn watch_parent(gone: &Arc<Notify>) {
    match rustix::process::getppid() {
        Some(Pid::INIT) => gone.notify_one(),
        Some(parent) => watch(parent.as_raw_nonzero().get().cast_unsigned(), gone),
        // It is none of this PID namespace.
        None => {}
    }
}

/// Reports the end of the remote shell: it started the supervisor, which started this process. Mostly standard input ends
/// with it, but nothing is read from there while the head leaves much of its input unread.
fn watch_shell(gone: &Arc<Notify>) {
    let supervisor = rustix::process::getppid();
    let supervisor = supervisor.map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    // Where it is gone already, standard input says so.
    if let Some(shell) = supervisor
        .and_then(client::parent_of)
        .filter(|pid| *pid > 1)
    {
        watch(shell, gone);
    }
}

fn watch(process: u32, gone: &Arc<Notify>) {
    match end_of(process) {
        Ok(pidfd) => {
            let gone = gone.clone();
            tokio::spawn(async move {
                if pidfd.readable().await.is_ok() {
                    gone.notify_one();
                }
            });
        }
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => gone.notify_one(),
        Err(error) => {
            tracing::warn!("cannot watch process {process}, which started this one: {error}")
        }
    }
}
