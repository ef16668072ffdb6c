//! The end of a daemon: programs stopped, output drained, nothing left. Every step has a deadline.
//!
//! | step | waits for | at most | then |
//! |---|---|---|---|
//! | nodes below told, own processes get SIGTERM | their ends, nodes below to connect again | [`GRACE`] | SIGKILL |
//! | killed processes, and what they left | their ends | [`KILLED`] | given up; the workload manager or launcher kills |
//! | nodes below | "stopped" from each | [`BELOW`], those that are lost [`GRACE`] | given up |
//! | output | end of every pipe, "ended" from the nodes below | [`DRAIN`], with a slow reader [`SLOW`] | the rest is lost: a background process holds the pipe |
//! | a node that was given up, or a first node that does not answer | | | under Slurm the step is cancelled |
//! | agent | its threads | [`AGENT`] | the process ends under it |

use std::collections::BTreeSet;
use std::time::Duration;

use dragon_protocol::control::{ClientReply, PeerMessage};
use dragon_protocol::{Code, NodeIndex};
use rustix::process::{Signal, WaitOptions};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Daemon, End, Event, Signals};
use crate::adapter::{Manager, slurm};
use crate::cli::RUNTIME_FAILED;
use crate::exit::Exit;
use crate::journal;
use crate::link::{self, Link};
use crate::state::{State, enter};
use crate::sweep;

const GRACE: Duration = Duration::from_secs(2);
const KILLED: Duration = Duration::from_secs(2);
const BELOW: Duration = Duration::from_secs(8);
const DRAIN: Duration = Duration::from_secs(2);
/// How long a slow reader of the job's output is waited for.
const SLOW: Duration = Duration::from_secs(60);
/// A queue that empties within this time was empty.
const IDLE: Duration = Duration::from_millis(5);
const AGENT: Duration = Duration::from_millis(500);

impl Daemon {
    /// Ends the daemon; returns how its process is to end.
    pub(super) async fn end(
        mut self,
        end: End,
        events: &mut mpsc::Receiver<Event>,
        signals: &mut Signals,
    ) -> Exit {
        tracing::info!("ending: {}", end.why);
        // What ends from here on is ended.
        let tasks = self.tasks.take();
        if let Some(tasks) = &tasks {
            tasks.stop_asking();
        }
        enter(self.job.node, State::Ending);
        if let Some(keeper) = &self.keeper
            && end.is_asked_for()
        {
            keeper.say_told();
        }
        let in_order = end.code == 0 && self.cluster.epoch() == 0;
        let started = Instant::now();
        self.untold = self.below_without_link();
        self.cluster.stop();
        if self.parent.is_none() {
            self.up.close();
        }
        for link in &self.children {
            link.post(PeerMessage::Shutdown(end.why.clone()));
        }
        self.groups.close();
        self.processes.queued.clear();
        self.processes.signal_all(Signal::TERM);
        self.wait(events, signals, started + GRACE, |daemon| {
            daemon.processes.is_empty() && daemon.untold.is_empty()
        })
        .await;
        self.processes.signal_all(Signal::KILL);
        self.processes.drop_zygotes();
        // Also what user programs left behind; a killed process leaves its own children to this one, hence each time.
        self.wait(events, signals, Instant::now() + KILLED, Self::no_children)
            .await;
        // Who is lost had a limit of its own already, and ends by itself where it can.
        self.wait(events, signals, started + GRACE, |daemon| {
            daemon.running().next().is_none() && daemon.stuck().is_empty()
        })
        .await;
        self.wait(events, signals, started + BELOW, |daemon| {
            let mut running = daemon.running();
            running.all(|link| daemon.cluster.is_silent(link.node))
        })
        .await;
        let stuck = self.stuck();
        self.children
            .retain(|link| self.stopped.contains(&link.node));
        if let Some(parent) = &self.parent {
            parent.post(PeerMessage::Stopped(end.code));
        }
        let last = Instant::now() + SLOW;
        let mut lost = self.drain(last).await;
        self.wait(events, signals, last, |daemon| daemon.children.is_empty())
            .await;
        lost |= timeout_at(last, self.sink.flush()).await.is_err();
        if lost {
            journal::say(&format!(
                "output was lost: its reader took none of it for {SLOW:?}"
            ));
        }
        if let Some(keeper) = &self.keeper {
            if !in_order || !stuck.is_empty() {
                keeper.say_out_of_reach();
            }
        } else {
            // Kills this daemon, too.
            self.cancel_step_of(&stuck).await;
        }
        if let Some(parent) = self.parent.take() {
            parent.post(PeerMessage::Ended);
            // The node above closes the connection when it has read that.
            self.wait_for_close(events, &parent).await;
        }
        self.node.shutdown(AGENT);
        enter(self.job.node, State::Gone);
        let code = if end.code == 0 && self.sink.has_lost() {
            RUNTIME_FAILED
        } else {
            end.code
        };
        tasks.map_or(Exit::Code(code), |tasks| tasks.exit(&end))
    }

    /// Nobody reads the job's output any more, or its errors: programs of all nodes learn it when they write.
    pub(super) fn output_refused(&mut self, is_error: bool) {
        for link in &self.children {
            link.post(PeerMessage::OutputRefused(is_error));
        }
        self.refused[usize::from(is_error)].send_replace(true);
    }

    /// Handles what still comes until `done` or the deadline.
    async fn wait(
        &mut self,
        events: &mut mpsc::Receiver<Event>,
        signals: &mut Signals,
        deadline: Instant,
        done: impl Fn(&Self) -> bool,
    ) {
        while !done(self) {
            let step = async {
                tokio::select! {
                    Some(event) = events.recv() => Some(event),
                    _ = signals.child.recv() => None,
                }
            };
            match timeout_at(deadline, step).await {
                Ok(Some(event)) => self.handle_late(event),
                // A second reason to end changes nothing.
                Ok(None) => drop(self.reap()),
                Err(_) => return,
            }
        }
    }

    fn handle_late(&mut self, event: Event) {
        match event {
            Event::Client { reply, .. } => {
                let _ = reply.send(ClientReply::Failed(
                    Code::RuntimeGone,
                    "the runtime is ending".to_owned(),
                ));
            }
            Event::Attach { reply, .. } => {
                drop(reply.send(Err((Code::RuntimeGone, "the runtime is ending".to_owned()))))
            }
            Event::Detached { pid, slot } => self.detached(pid, slot),
            Event::Accepted(node, stream) | Event::Connected(node, stream) => {
                self.connected(node, stream);
                self.tell_untold(node);
            }
            Event::Peer(
                _,
                PeerMessage::Spawn { .. }
                | PeerMessage::Group(_)
                | PeerMessage::Member(_)
                | PeerMessage::Name(_),
            ) => {}
            Event::Peer(node, PeerMessage::Stopped(_)) => drop(self.stopped.insert(node)),
            Event::Peer(node, PeerMessage::Ended) => self.close_child(node),
            Event::LinkLost(node, ended) => self.link_lost_late(node, &ended),
            other => {
                // Output, answers and ended processes are handled as ever; a second reason to end changes nothing.
                let _ = self.handle(other);
            }
        }
    }

    /// The nodes below whose connection is broken while the job goes on without one: they live perhaps, and make another.
    fn below_without_link(&self) -> BTreeSet<NodeIndex> {
        let below = if self.goes_on() {
            self.below()
        } else {
            Vec::new()
        };
        let linked = |node: &NodeIndex| self.children.iter().any(|link| link.node == *node);
        below.into_iter().filter(|node| !linked(node)).collect()
    }

    /// Tells a node below of the end, which was not connected when the others were told.
    fn tell_untold(&mut self, node: NodeIndex) {
        if self.untold.contains(&node)
            && let Some(link) = self.take_other(node)
        {
            self.untold.remove(&node);
            link.post(PeerMessage::Shutdown("the job ends".to_owned()));
            self.children.push(link);
        }
    }

    /// A connection ended. Whoever found one of the tree broken before this node did may have made another.
    fn link_lost_late(&mut self, node: NodeIndex, ended: &link::Ended) {
        let is_below = self.children.iter().any(|link| link.node == node);
        let of_tree = self.forget_link(node, ended);
        if self.parent.is_none() {
            self.up.close();
        }
        if is_below && of_tree && self.goes_on() && !self.stopped.contains(&node) {
            self.untold.insert(node);
            self.tell_untold(node);
        }
    }

    /// Waits until all output of this node has been read. A reader of the job's output may be slow; a pipe that a background
    /// process holds open says nothing any more: the first is waited for, the second is not. True when output was lost.
    async fn drain(&mut self, last: Instant) -> bool {
        let mut dropped = false;
        for mut reader in std::mem::take(&mut self.processes.readers) {
            while timeout(DRAIN, &mut reader).await.is_err() {
                let begin = Instant::now();
                let written = timeout_at(last, self.sink.flush()).await.is_ok();
                // With nothing to write all the while, it is the pipe that is held open.
                if !written || begin.elapsed() < IDLE {
                    reader.abort();
                    dropped |= !written;
                    break;
                }
            }
        }
        dropped
    }

    /// The nodes below whose processes run still.
    fn running(&self) -> impl Iterator<Item = &Link> {
        let stopped = |link: &&Link| !self.stopped.contains(&link.node);
        self.children.iter().filter(stopped)
    }

    /// Who keeps a step of Slurm from ending, as far as it is for this node to act.
    fn stuck(&self) -> Vec<NodeIndex> {
        match self.job.node.get() {
            0 => self.running().map(|link| link.node).collect(),
            1 if self.cluster.is_silent(NodeIndex::FIRST) => vec![NodeIndex::FIRST],
            _ => Vec::new(),
        }
    }

    /// A node below has nothing more to say.
    pub(super) fn close_child(&mut self, node: NodeIndex) {
        for link in self.children.extract_if(.., |link| link.node == node) {
            link.close();
        }
    }

    async fn wait_for_close(&mut self, events: &mut mpsc::Receiver<Event>, parent: &Link) {
        let closed = async {
            while let Some(event) = events.recv().await {
                if matches!(event, Event::LinkLost(node, ended) if node == parent.node && ended.addresses == parent.addresses)
                {
                    return;
                }
            }
        };
        let _ = timeout(GRACE, closed).await;
    }

    /// The last resort under Slurm: a step of which one daemon hangs would last for ever. The first node sees to it, or the second
    /// where that is the one that hangs.
    async fn cancel_step_of(&self, stuck: &[NodeIndex]) {
        let Manager::Slurm { step, .. } = &self.job.manager else {
            return;
        };
        if stuck.is_empty() {
            return;
        }
        let names: Vec<_> = stuck.iter().map(|node| self.job.host(*node)).collect();
        journal::say(&format!(
            "{} did not end in time; step {step} is cancelled",
            names.join(", ")
        ));
        slurm::cancel(step).await;
    }

    /// Kills and reaps children; true when there are none left.
    fn no_children(&self) -> bool {
        sweep::kill_children();
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        sweep::own_children().is_empty()
    }
}
