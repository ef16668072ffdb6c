//! The tasks of a step that are the program: who of them has ended, and the end of the job with the last one.
//!
//! Task 0 of each node is a child of the node's daemon, the others tell by their connections. A node whose tasks have ended says so up
//! the tree when those below it have; the first node ends the job when all nodes of the view have. Nodes that come to be elsewhere
//! in the tree say it again, so that nothing is lost with a node that is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dragon_protocol::NodeIndex;
use dragon_protocol::control::PeerMessage;
use tokio::task::AbortHandle;

use super::{Daemon, End, Event};
use crate::adapter::Job;
use crate::adapter::declared::kills_on_bad_exit;
use crate::cli::RUNTIME_FAILED;
use crate::exit::{Exit, code_of, status_of};
use crate::journal;
use crate::program;
use crate::survey::{Managed, ManagedRole};
use crate::task::fork_of;

/// The tasks, as a node knows of them.
#[derive(Debug)]
pub(super) struct Tasks {
    /// Those of this node that run.
    running: u32,
    /// The programs of those that are not this daemon's own: their pids, and the numbers of their tasks.
    others: BTreeMap<u32, u32>,
    /// How the one has ended that is this daemon's own.
    own: Option<i32>,
    /// The nodes, of this one and those below it, whose tasks have all ended.
    ended: BTreeSet<NodeIndex>,
    /// Over which connection this node has said so, and of how many nodes.
    told: Option<((SocketAddr, SocketAddr), usize)>,
    /// The first of this node, or of those below it, whose own task has ended badly, and with which code.
    failed: Option<(NodeIndex, u8)>,
    /// Over which connection this node has said that.
    failure_told: Option<(SocketAddr, SocketAddr)>,
    /// Slurm has been asked what a bad exit means.
    asked: Option<AbortHandle>,
}

impl Tasks {
    /// Those of a job; `None` where the program is a head.
    pub(super) fn of(job: &Job) -> Option<Self> {
        job.shape.task().map(|_| Self {
            running: job.siblings + 1,
            others: BTreeMap::new(),
            own: None,
            ended: BTreeSet::new(),
            told: None,
            failed: None,
            failure_told: None,
            asked: None,
        })
    }

    /// Whether the one that is this daemon's own has ended.
    pub(super) fn own_has_ended(&self) -> bool {
        self.own.is_some()
    }

    /// The runtime ends: an answer that does not come any more is missed by nobody.
    pub(super) fn stop_asking(&self) {
        if let Some(asks) = &self.asked {
            asks.abort();
        }
    }

    /// How this process ends, with which the runtime ends so.
    pub(super) fn exit(&self, end: &End) -> Exit {
        match self.own {
            Some(status) if status != 0 || end.code == 0 => Exit::Like(status),
            // It was cut short.
            None if end.code == 0 => Exit::Code(RUNTIME_FAILED),
            _ => Exit::Code(end.code),
        }
    }
}

impl Daemon {
    /// Starts the program of this node's own task.
    pub(super) fn start_task(&mut self) -> Option<End> {
        let program = match program::resolve(&self.job.program) {
            Ok(program) => program,
            Err(no) => {
                journal::say(&no.text);
                return self.own_task_ended(status_of(no.code));
            }
        };
        // Its descriptors close with the order: this daemon holds nobody's line open.
        let task = self.job.shape.take_task()?;
        let fork = fork_of(&self.job, &task, program);
        self.start_program(fork, None).err()
    }

    /// The program that this daemon started when the runtime was up has ended: the head, or that of a task.
    pub(super) fn program_ended(&mut self, status: i32) -> Option<End> {
        if self.tasks.is_some() {
            return self.own_task_ended(status);
        }
        let code = code_of(status);
        Some(End {
            code,
            why: format!("the head program ended with {code}"),
        })
    }

    fn own_task_ended(&mut self, status: i32) -> Option<End> {
        self.tasks.as_mut()?.own = Some(status);
        if status != 0 {
            self.task_failed(self.job.node, code_of(status));
        }
        self.task_ended()
    }

    /// A task that is its daemon's own has ended badly: Slurm hears of it when that daemon has ended, and may be meant to kill the
    /// step at the first bad exit. One daemon asks Slurm, for all.
    pub(super) fn task_failed(&mut self, node: NodeIndex, code: u8) {
        if let Some(tasks) = &mut self.tasks {
            tasks.failed.get_or_insert((node, code));
        }
        self.tell_of_failed_task();
    }

    /// Tells the node above of the first bad exit, where there is one; on a connection that is another one it says so again. The
    /// first node of the view asks Slurm.
    fn tell_of_failed_task(&mut self) {
        let Some(tasks) = &mut self.tasks else {
            return;
        };
        let Some((node, code)) = tasks.failed else {
            return;
        };
        if self.membership.global_services != self.job.node {
            // Without a node above it is on its way to one.
            if let Some(parent) = &self.parent
                && tasks.failure_told.replace(parent.addresses) != Some(parent.addresses)
            {
                parent.post(PeerMessage::TaskFailed(node, code));
            }
            return;
        }
        if tasks.asked.is_some() {
            return;
        }
        let events = self.sender.clone();
        let asks = tokio::spawn(async move {
            if kills_on_bad_exit().await {
                let _ = events.send(Event::BadExit(node, code)).await;
            }
        });
        tasks.asked = Some(asks.abort_handle());
    }

    /// The bad exit of a task is to end the step.
    pub(super) fn bad_exit(&self, node: NodeIndex, code: u8) -> End {
        let host = self.job.host(node);
        let why = format!(
            "a task on node {node} ({host}) ended with {code}, and Slurm's KillOnBadExit is set"
        );
        End { code, why }
    }

    /// The program of another task of this node runs.
    pub(super) fn task_runs(&mut self, pid: u32, rank: u32) {
        if let Some(tasks) = &mut self.tasks {
            tasks.others.insert(pid, rank);
        }
    }

    /// Another task of this node, whose program had this pid, has ended.
    pub(super) fn other_task_ended(&mut self, pid: Option<u32>) -> Option<End> {
        if let (Some(tasks), Some(pid)) = (&mut self.tasks, pid) {
            tasks.others.remove(&pid);
        }
        self.task_ended()
    }

    /// The live processes of this node, for those who ask what there is. What the daemon of a task starts first is the task.
    pub(super) fn listed(&self) -> Vec<Managed> {
        let mut listed = self.processes.listed();
        let (Some(tasks), Some(own)) = (&self.tasks, self.job.shape.task()) else {
            return listed;
        };
        for process in &mut listed {
            if process.role == ManagedRole::Head {
                process.role = ManagedRole::Task;
                process.rank = Some(own.rank.into());
            }
        }
        listed.extend(tasks.others.iter().map(|(pid, rank)| Managed {
            pid: *pid,
            object: None,
            role: ManagedRole::Task,
            group: String::new(),
            rank: Some((*rank).into()),
        }));
        listed
    }

    /// A task of this node has ended.
    fn task_ended(&mut self) -> Option<End> {
        let me = self.job.node;
        let tasks = self.tasks.as_mut()?;
        tasks.running = tasks.running.saturating_sub(1);
        if tasks.running == 0 {
            tasks.ended.insert(me);
        }
        self.end_with_tasks()
    }

    /// The tasks of nodes below have ended.
    pub(super) fn tasks_ended_below(&mut self, nodes: Vec<NodeIndex>) -> Option<End> {
        self.tasks.as_mut()?.ended.extend(nodes);
        self.end_with_tasks()
    }

    /// Tells the node above when the tasks from here on have ended; ends the job when all have.
    pub(super) fn end_with_tasks(&mut self) -> Option<End> {
        self.tell_of_tasks();
        let tasks = self.tasks.as_ref()?;
        let mut members = self.membership.nodes.iter();
        let all = members.all(|member| tasks.ended.contains(&member.node));
        (all && self.membership.global_services == self.job.node).then(|| End {
            code: 0,
            why: "all tasks have ended".to_owned(),
        })
    }

    /// Tells the node above of tasks what it does not know: a connection, or this node's place in the tree, is another one.
    pub(super) fn tell_of_tasks(&mut self) {
        self.tell_of_failed_task();
        self.tell_of_ended_tasks();
    }

    /// Tells the node above that the tasks of this node and of those below it have ended, when they have. On a connection that is
    /// another one it says so again.
    fn tell_of_ended_tasks(&mut self) {
        let (Some(tasks), Some(parent)) = (&mut self.tasks, &self.parent) else {
            return;
        };
        let below = self.children.iter().map(|link| link.node);
        let mut from_here_on = below.chain([self.job.node]);
        let news = Some((parent.addresses, tasks.ended.len()));
        if tasks.told == news || !from_here_on.all(|node| tasks.ended.contains(&node)) {
            return;
        }
        tasks.told = news;
        let ended = tasks.ended.iter().copied().collect();
        parent.post(PeerMessage::TasksEnded(ended));
    }
}
