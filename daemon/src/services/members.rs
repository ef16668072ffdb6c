//! The membership in the event loop: what happens goes to the state machine of `membership.rs`, and what that decides is
//! done here.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::time::Duration;

use dragon_protocol::control::PeerMessage;
use dragon_protocol::membership::{MemberMessage, View};
use dragon_protocol::{Code, NodeIndex};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::{Daemon, End, Event, Other};
use crate::adapter::Manager;
use crate::adapter::declared::Question;
use crate::cli::{RUNTIME_FAILED, TIME_IS_UP};
use crate::config::{keys, value::Value};
use crate::journal;
use crate::link::Link;
use crate::membership::{Cause, Input, Limits, Members, Output, Time, Why};

/// How long who sees no majority waits for the workload manager's word that the others are dead: twice as long as Slurm takes
/// for it where nobody says otherwise.
const MANAGER_LIMIT: Duration = Duration::from_secs(600);

/// The machine, where there is more than one node.
pub(super) struct Membership {
    members: Option<Members>,
    /// Whether the job goes on without a node that is lost.
    goes_on: bool,
    /// The node of the head is lost: the job ends when the last process has.
    head_lost: bool,
    /// By what this node has lost others.
    causes: HashMap<NodeIndex, Cause>,
    /// The job has run for as long as it may: the first of the view ends it.
    time_is_up: Option<Duration>,
    /// Who can be asked whether a node is down.
    question: Option<Question>,
    /// The daemon ends.
    stopped: bool,
}

impl Membership {
    pub(super) fn new(job: &crate::adapter::Job) -> Self {
        let nodes = u32::try_from(job.hosts.len()).unwrap_or(u32::MAX);
        let limits = Limits::of(job.node_limit());
        let goes_on = job.config.text(&keys::ON_NODE_FAILURE) == "continue";
        let question = Question::for_job(job).filter(|_| goes_on);
        let mut members =
            (nodes > 1).then(|| Members::new(job.node, nodes, job.fanout, limits, now()));
        if let (Some(members), Some(_)) = (&mut members, &question) {
            members.ask_manager_for(MANAGER_LIMIT);
        }
        Self {
            members,
            goes_on,
            head_lost: false,
            causes: HashMap::new(),
            time_is_up: None,
            question,
            stopped: false,
        }
    }

    /// Whether a node was lost because it does not answer: it may hang, and never end.
    pub(super) fn is_silent(&self, node: NodeIndex) -> bool {
        let cause = self.causes.get(&node);
        matches!(cause, Some(Cause::Silent | Cause::HostSilent))
    }

    /// Whether this node may answer as global services now.
    pub(super) fn answers(&self) -> bool {
        let leased = |members: &Members| members.answers(now());
        !self.stopped && self.members.as_ref().is_none_or(leased)
    }

    /// The epoch of the view that is in force: 0 before the first change.
    pub(super) fn epoch(&self) -> u64 {
        let view = self.members.as_ref().map(Members::view);
        view.map_or(0, |view| view.epoch)
    }

    /// Whether a node is a member still.
    fn knows(&self, node: NodeIndex) -> bool {
        let view = self.members.as_ref().map(Members::view);
        view.is_none_or(|view| view.contains(node))
    }

    /// The daemon ends: nothing of this matters any more.
    pub(super) fn stop(&mut self) {
        self.members = None;
        self.stopped = true;
    }

    /// When the state machine wants to know the time.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = self.members.as_ref()?.due();
        let left = Duration::from_nanos(due.saturating_sub(now()));
        (due < Time::MAX).then(|| Instant::now() + left)
    }
}

/// Nanoseconds of a clock that goes on while the machine is suspended.
fn now() -> Time {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, rest) = (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

impl Daemon {
    /// A daemon says something about membership.
    pub(super) fn member_says(&mut self, node: NodeIndex, message: MemberMessage) -> Option<End> {
        if message.is_heartbeat() {
            let answers = self.cluster.answers();
            self.names.retry(answers);
        }
        self.member_event(Input::Message(node, message))
    }

    /// Whether what a daemon says counts: one that was left out is only told so.
    pub(super) fn is_member(&self, node: NodeIndex) -> bool {
        self.cluster.knows(node)
    }

    /// Something happened that membership depends on.
    pub(super) fn member_event(&mut self, input: Input) -> Option<End> {
        let processes = u32::try_from(self.processes.count()).unwrap_or(u32::MAX);
        let members = self.cluster.members.as_mut()?;
        members.set_processes(processes);
        members.handle(now(), input);
        let mut end = None;
        for output in members.take() {
            end = self.member_output(output).or(end);
        }
        self.names_act();
        end.or_else(|| self.nobody_left())
    }

    fn member_output(&mut self, output: Output) -> Option<End> {
        match output {
            Output::Send(to, message) => self.tell(to, PeerMessage::Member(message)),
            Output::Lost(node, cause) if !self.cluster.goes_on => {
                return Some(self.without(node, cause));
            }
            Output::Lost(node, cause) => {
                tracing::info!(%node, "is lost to this node: {}", self.because(node, cause));
                self.cluster.causes.insert(node, cause);
            }
            Output::Ask(nodes) => self.ask_manager(nodes),
            Output::Changed { view, lost } => {
                self.view_changed(&view, &lost);
                return self.end_in_time().or_else(|| self.end_with_tasks());
            }
            Output::End(why) => return Some(self.cut_off(why)),
        }
        None
    }

    /// What a cause means, for the user.
    fn because(&self, node: NodeIndex, cause: Cause) -> String {
        let host = self.job.host(node);
        match cause {
            Cause::Silent => format!("the daemon on {host} does not answer"),
            Cause::HostSilent => format!("the host {host} does not answer"),
            Cause::Ended => format!("the daemon on {host} has ended"),
            Cause::Left => format!("whoever started the daemon on {host} is gone"),
            Cause::Declared => format!("the workload manager says that {host} is down"),
        }
    }

    /// Asks the workload manager whether nodes are down: a process that the loop does not wait for.
    fn ask_manager(&self, nodes: Vec<NodeIndex>) {
        let Some(question) = self.cluster.question else {
            return;
        };
        let asked: Vec<_> = nodes
            .into_iter()
            .map(|node| (node, self.job.host(node).to_owned()))
            .collect();
        let events = self.sender.clone();
        tokio::spawn(async move {
            match question.ask(asked).await {
                Ok(down) => drop(events.send(Event::Declared(down)).await),
                Err(error) => tracing::warn!("{error:#}"),
            }
        });
    }

    /// The workload manager has answered.
    pub(super) fn declared(&mut self, down: Vec<NodeIndex>) -> Option<End> {
        tracing::info!(?down, "the workload manager's word");
        self.member_event(Input::Declared(down))
    }

    /// The job has run for as long as it may.
    pub(super) fn time_is_up(&mut self, limit: Duration) -> Option<End> {
        self.cluster.time_is_up = Some(limit);
        self.end_in_time()
    }

    /// Ends a job that has run for long enough, where this node is the first.
    fn end_in_time(&self) -> Option<End> {
        let limit = self.cluster.time_is_up?;
        if self.membership.global_services != self.job.node {
            return None;
        }
        let why = format!("the time limit of {} is over", Value::Time(limit));
        journal::say(&format!("{why}; the job ends"));
        Some(End {
            code: TIME_IS_UP,
            why,
        })
    }

    /// Whoever started this daemon is gone. A job that goes on without nodes goes on without this one.
    pub(super) fn abandoned(&mut self) -> End {
        if let Some(members) = self.cluster.members.as_ref().filter(|_| self.goes_on()) {
            let first = members.view().global_services();
            let mut told: BTreeSet<_> = self.neighbours_but(None).into_iter().collect();
            told.insert(first);
            told.remove(&self.job.node);
            for node in told {
                self.tell(node, PeerMessage::Member(MemberMessage::Leave));
            }
            self.leave_tree();
        }
        End::abandoned()
    }

    /// Ends the connections of the tree behind what is queued: whoever ends this node's part has nothing to say about the job.
    fn leave_tree(&mut self) {
        let above = self.parent.take();
        for link in above.into_iter().chain(self.children.drain(..)) {
            link.close();
        }
        self.up.close();
    }

    /// Whether the job goes on without a node that is lost.
    pub(super) fn goes_on(&self) -> bool {
        self.cluster.goes_on
    }

    /// A node whose connection of the tree ended is lost, and the job ends with it.
    pub(super) fn without_linked(&mut self, node: NodeIndex, silent: bool) -> End {
        let cause = if silent {
            Cause::HostSilent
        } else {
            Cause::Ended
        };
        self.without(node, cause)
    }

    /// A node is lost, and the job ends with it.
    fn without(&mut self, node: NodeIndex, cause: Cause) -> End {
        self.node.node_down(node);
        self.cluster.causes.insert(node, cause);
        self.creators_gone(|creator| creator.node == node);
        let why = format!(
            "{}: node {node} ({}) is lost",
            self.because(node, cause),
            self.job.host(node)
        );
        journal::say(&format!("{why}; the job ends"));
        // It hears nothing, and nobody waits for it. Slurm's last resort does: whoever is not heard is ended with the step.
        if !matches!(self.job.manager, Manager::Slurm { .. }) {
            self.drop_links(node);
        }
        if let Some(parent) = &self.parent {
            parent.post(PeerMessage::Failed(why.clone()));
        }
        End {
            code: RUNTIME_FAILED,
            why,
        }
    }

    /// This node is not part of the job any more. The others are told nothing: they know, or cannot hear it.
    fn cut_off(&mut self, why: Why) -> End {
        self.leave_tree();
        let me = self.job.node;
        let host = self.job.host(me);
        let why = match why {
            Why::Expelled => {
                format!("node {me} ({host}) was silent, and the others went on without it")
            }
            Why::NoMajority => format!("node {me} ({host}) reaches no majority of the nodes"),
        };
        journal::say(&format!("{why}; its processes end"));
        End {
            code: RUNTIME_FAILED,
            why,
        }
    }

    /// A majority has agreed on who is a member.
    fn view_changed(&mut self, view: &View, lost: &[NodeIndex]) {
        let first = view.global_services();
        for node in lost {
            let host = self.job.host(*node).to_owned();
            let cause = self.cluster.causes.remove(node);
            if first == self.job.node {
                let because = cause.map(|cause| self.because(*node, cause));
                let because = because.map_or_else(String::new, |because| because + ": ");
                let left = match view.members.len() {
                    1 => "one node".to_owned(),
                    left => format!("{left} nodes"),
                };
                journal::say(&format!(
                    "{because}node {node} ({host}) is lost; the job goes on with {left}"
                ));
            }
            self.node.node_down(*node);
            self.creators_gone(|creator| creator.node == *node);
            self.drop_links(*node);
            let down = format!("node {node} ({host}) is down");
            self.requests.fail(*node, Code::NodeDown, &down);
            self.follow_without(*node, &down);
            self.made_for.without(*node);
            // Where all tasks are the program, no other one is the program of them.
            self.cluster.head_lost |= *node == NodeIndex::FIRST && self.tasks.is_none();
        }
        self.membership
            .nodes
            .retain(|info| view.contains(info.node));
        self.membership.global_services = first;
        let answers = self.cluster.answers();
        self.names.changed(view.clone(), lost, answers);
        self.arrange_links();
        let actions = self.groups.view_changed(view);
        self.act(actions);
        tracing::info!(view = view.index, nodes = view.members.len(), %first, "who is a member has changed");
    }

    /// Ends the connections with a node behind what is queued.
    fn drop_links(&mut self, node: NodeIndex) {
        let mut dropped: Vec<Link> = self
            .parent
            .take_if(|link| link.node == node)
            .into_iter()
            .collect();
        dropped.extend(self.children.extract_if(.., |link| link.node == node));
        if let Some(Other::Up(links)) = self.others.remove(&node) {
            dropped.extend(links);
        }
        dropped.iter().for_each(Link::close);
        if self.parent.is_none() {
            self.up.wait();
        }
    }

    /// Connections go where the tree of the view has them: to the node above, to those below, or beside it.
    pub(super) fn arrange_links(&mut self) {
        let Some(members) = &self.cluster.members else {
            return;
        };
        let (me, view) = (self.job.node, members.view());
        let above = view.parent(me, self.job.fanout);
        let below = self.below();
        let misplaced: Vec<Link> = self
            .parent
            .take_if(|link| Some(link.node) != above)
            .into_iter()
            .chain(
                self.children
                    .extract_if(.., |link| !below.contains(&link.node)),
            )
            .collect();
        for link in misplaced {
            match self.others.get_mut(&link.node) {
                Some(Other::Up(links)) => links.push(link),
                _ => drop(self.others.insert(link.node, Other::Up(vec![link]))),
            }
        }
        if let Some(above) = above.filter(|_| self.parent.is_none()) {
            self.parent = self.take_other(above);
        }
        for node in below {
            if !self.children.iter().any(|link| link.node == node) {
                let link = self.take_other(node);
                self.children.extend(link);
            }
        }
        match &self.parent {
            Some(parent) => self.up.lead_to(parent),
            None if above.is_none() => self.up.lead_out(&self.sender),
            None => self.up.wait(),
        }
        self.follow_on();
        self.tell_of_tasks();
    }

    /// The nodes below this one in the tree of the view.
    pub(super) fn below(&self) -> Vec<NodeIndex> {
        let view = self.cluster.members.as_ref().map(Members::view);
        view.map_or_else(Vec::new, |view| {
            view.children(self.job.node, self.job.fanout).to_vec()
        })
    }

    /// A connection that stands and has no place in the tree yet.
    pub(super) fn take_other(&mut self, node: NodeIndex) -> Option<Link> {
        let Some(Other::Up(links)) = self.others.get_mut(&node) else {
            return None;
        };
        let link = links.remove(0);
        if links.is_empty() {
            self.others.remove(&node);
        }
        Some(link)
    }

    /// A process has ended. A node that is the last one hears no heartbeats that would tell it so.
    pub(super) fn ends_alone(&mut self) -> Option<End> {
        if !self.cluster.head_lost {
            return None;
        }
        self.member_event(Input::Time)
    }

    /// The head was lost with its node: the job ends when nobody is left who could do anything.
    fn nobody_left(&self) -> Option<End> {
        let members = self.cluster.members.as_ref()?;
        let nobody = members.total_processes() == Some(0) && self.processes.is_empty();
        if !self.cluster.head_lost || !members.answers(now()) || !nobody {
            return None;
        }
        let first = self.job.host(NodeIndex::FIRST);
        let why = format!(
            "node 0 ({first}) was lost with the program, and all other processes have ended"
        );
        journal::say(&why);
        Some(End {
            code: RUNTIME_FAILED,
            why,
        })
    }

    /// A connection has ended: what was sent may be lost. Whoever goes on finds out what that means.
    pub(super) fn link_ended(&mut self, node: NodeIndex, silent: bool) -> Option<End> {
        let answers = self.cluster.answers();
        self.names.link_lost(node, answers);
        let actions = self.groups.link_lost(node);
        self.act(actions);
        self.member_event(Input::LinkLost { node, silent })
    }

    /// A connection could not be made.
    pub(super) fn not_reached(&mut self, node: NodeIndex, gone: bool) -> Option<End> {
        self.names.unreachable(node);
        self.groups.unreachable(node);
        self.member_event(Input::Unreachable { node, gone })
    }
}

/// Whether an attempt to connect shows that no daemon listens there.
pub(super) fn is_refused(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    })
}
