//! What other daemons say, and connections to them.

use std::time::Duration;

use dragon_protocol::control::{ClientReply, PeerMessage, SpawnRequest, SpawnResult};
use dragon_protocol::{Code, NodeIndex};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::groups::Asker;
use super::members::is_refused;
use super::processes::Creator;
use super::starting::StartedFor;
use super::timer::Timer;
use super::{Daemon, End, Event, Other};
use crate::cli::RUNTIME_FAILED;
use crate::journal;
use crate::link::{self, Link};

/// When a node that could not be reached is told again what it must know.
const AGAIN: Duration = Duration::from_secs(1);

impl Daemon {
    /// Sends a message to another daemon, over a connection that is made when there is none yet.
    pub(super) fn tell(&mut self, node: NodeIndex, message: PeerMessage) {
        // What members say about each other goes by the newest one: the other side makes another when it finds that of the tree
        // broken, and this side may not have found that yet.
        if let (PeerMessage::Member(_), Some(Other::Up(links))) = (&message, self.others.get(&node))
            && let Some(newest) = links.last()
        {
            return newest.post(message);
        }
        let mut tree = self.parent.iter().chain(&self.children);
        if let Some(link) = tree.find(|link| link.node == node) {
            return link.post(message);
        }
        match self.others.get_mut(&node) {
            Some(Other::Up(links)) => links[0].post(message),
            Some(Other::Connecting(queue)) => queue.push(message),
            None => {
                self.others.insert(node, Other::Connecting(vec![message]));
                self.connect(node);
            }
        }
    }

    fn connect(&self, node: NodeIndex) {
        let (events, key, me) = (self.sender.clone(), self.job.key.clone(), self.job.node);
        let info = self.membership.nodes.iter().find(|info| info.node == node);
        let address = info.map(|info| (info.address.clone(), info.control_port));
        tokio::spawn(async move {
            let event = match address {
                None => Event::Unreachable(node, "there is no such node".to_owned(), false),
                Some((host, port)) => match link::connect(&key, me, node, &host, port).await {
                    Ok(stream) => Event::Connected(node, stream),
                    Err(error) => {
                        Event::Unreachable(node, format!("{error:#}"), is_refused(&error))
                    }
                },
            };
            let _ = events.send(event).await;
        });
    }

    /// A connection stands, whoever asked for it. When both sides asked at once, each sends on its own.
    pub(super) fn connected(&mut self, node: NodeIndex, stream: TcpStream) {
        // Only those with higher ranks may come to be below this one, and send output.
        let sink = (node > self.job.node).then(|| self.sink.clone());
        let patience = self.job.host_limit();
        let link = link::run(node, stream, sink, patience, &self.sender);
        match self.others.get_mut(&node) {
            // A connection that stands is never dropped: answers may be on their way over it.
            Some(Other::Up(links)) => links.push(link),
            _ => {
                if let Some(Other::Connecting(queue)) =
                    self.others.insert(node, Other::Up(vec![link.clone()]))
                {
                    queue.into_iter().for_each(|message| link.post(message));
                }
            }
        }
        self.arrange_links();
        let actions = self.groups.connected(node);
        self.act(actions);
    }

    /// A connection that was asked for cannot be made: what waits for it fails.
    pub(super) fn unreachable(&mut self, node: NodeIndex, why: &str, gone: bool) -> Option<End> {
        if !matches!(self.others.get(&node), Some(Other::Connecting(_))) {
            // The other side's connection came first, or the node is forgotten.
            return None;
        }
        self.others.remove(&node);
        self.inspect_without(node, &format!("cannot be reached: {why}"));
        let why = format!(
            "node {node} ({}) cannot be reached: {why}",
            self.job.host(node)
        );
        self.follow_without(node, &why);
        self.requests.fail(node, Code::Unreachable, &why);
        self.tell_slots_gone_later(node);
        self.not_reached(node, gone)
    }

    /// A connection ended. When it is one of the tree, its node is lost, unless it can be reached again. What was sent over it
    /// may be lost, and so may answers: which of two connections they would have taken nobody knows.
    pub(super) fn link_lost(&mut self, node: NodeIndex, ended: link::Ended) -> Option<End> {
        let of_tree = self.forget_link(node, &ended);
        if of_tree {
            // Another connection with the same node may stand already: it asked for one when it found this one broken.
            self.arrange_links();
        }
        self.inspect_without(node, "lost");
        let lost = format!(
            "the connection with node {node} ({}) broke; what it was asked to do may have been done",
            self.job.host(node)
        );
        self.requests.fail(node, Code::NodeDown, &lost);
        if of_tree && !self.goes_on() {
            return Some(self.without_linked(node, ended.silent));
        }
        self.follow_over_another_link(node);
        self.tell_slots_gone(node);
        self.link_ended(node, ended.silent)
    }

    /// A connection that has ended is no one to send over any more. Whether it was one of the tree.
    pub(super) fn forget_link(&mut self, node: NodeIndex, ended: &link::Ended) -> bool {
        let is_it = |link: &Link| link.node == node && link.addresses == ended.addresses;
        let of_tree = self.parent.as_ref().is_some_and(is_it) || self.children.iter().any(is_it);
        self.parent = self.parent.take().filter(|link| !is_it(link));
        self.children.retain(|link| !is_it(link));
        if let Some(Other::Up(links)) = self.others.get_mut(&node) {
            links.retain(|link| !is_it(link));
            if links.is_empty() {
                self.others.remove(&node);
            }
        }
        of_tree
    }

    /// Tells a node again which processes are gone that had something started there. It may know already.
    pub(super) fn tell_slots_gone(&mut self, node: NodeIndex) {
        for slot in self.made_for.untold(node) {
            self.tell(node, PeerMessage::SlotGone(slot));
        }
    }

    /// The same a moment later: the node cannot be reached now.
    fn tell_slots_gone_later(&mut self, node: NodeIndex) {
        if self.made_for.untold(node).is_empty() {
            return;
        }
        let timer = Timer::new(&self.sender, AGAIN, Event::TellSlotsGone(node));
        self.made_for.again.insert(node, timer);
    }

    /// Another daemon says something.
    pub(super) fn peer_says(&mut self, node: NodeIndex, message: PeerMessage) -> Option<End> {
        match message {
            PeerMessage::Member(message) => return self.member_says(node, message),
            _ if !self.is_member(node) => {
                tracing::debug!(%node, "is no member any more: {message:?}");
            }
            PeerMessage::Name(message) => self.name_says(node, message),
            PeerMessage::Spawn {
                request,
                creator: slot,
                asked,
                spawns,
            } => self.spawn_for(Creator { node, slot }, (request, asked), spawns),
            PeerMessage::CancelStarts {
                creator: slot,
                asked,
            } => self.cancel_starts(Creator { node, slot }, asked),
            PeerMessage::Unclaimed(processes) => {
                let mine = processes
                    .iter()
                    .filter(|process| process.node == self.job.node);
                mine.for_each(|process| self.node.drop_transit(*process));
            }
            PeerMessage::Group(letter) => {
                let actions = self.groups.hear(node, *letter);
                self.act(actions);
            }
            PeerMessage::GroupAsked(number, request) => {
                self.group_asked_by(node, number, *request);
            }
            PeerMessage::GroupCancelled(number) => {
                self.group_called_off(Asker::Peer(node, number));
            }
            PeerMessage::GroupAnswered(number, answer) => {
                if let Some((_, _, reply)) = self.requests.groups.remove(&number) {
                    let _ = reply.send(*answer);
                }
            }
            PeerMessage::SlotGone(slot) => {
                self.creators_gone(|creator| creator == Creator { node, slot });
                self.tell(node, PeerMessage::SlotForgotten(slot));
            }
            PeerMessage::SlotForgotten(slot) => self.made_for.told(node, slot),
            PeerMessage::Spawned { request, results } => {
                // Whoever asked was told meanwhile that the node is down, or is gone.
                let unclaimed = match self.requests.spawns.remove(&request) {
                    Some((_, reply)) => reply.send(results).err(),
                    None => Some(results),
                };
                self.unclaimed(unclaimed.unwrap_or_default());
            }
            PeerMessage::Signal {
                request,
                process,
                signal,
                reach,
            } => {
                let (code, text) = self.signal_here(process, signal, reach);
                self.tell(
                    node,
                    PeerMessage::Answer {
                        request,
                        code,
                        text,
                    },
                );
            }
            PeerMessage::Answer {
                request,
                code,
                text,
            } => {
                if let Some((_, reply)) = self.requests.answers.remove(&request) {
                    let _ = reply.send((code, text));
                }
            }
            PeerMessage::Inspect {
                request,
                beyond,
                question,
            } => self.peer_inspects(node, request, beyond, question),
            PeerMessage::Inspected { request, answers } => {
                self.peer_inspected(node, request, answers);
            }
            message @ (PeerMessage::FollowLogs { .. }
            | PeerMessage::Logged { .. }
            | PeerMessage::LogsTaken { .. }
            | PeerMessage::UnfollowLogs { .. }) => self.peer_follows(node, message),
            PeerMessage::OutputRefused(is_error) => self.output_refused(is_error),
            PeerMessage::TasksEnded(nodes) => return self.tasks_ended_below(nodes),
            PeerMessage::TaskFailed(failed, code) => self.task_failed(failed, code),
            PeerMessage::Shutdown(why) => return Some(End { code: 0, why }),
            said @ (PeerMessage::Stopped(_) | PeerMessage::Ended) => {
                self.stopped.insert(node);
                if said == PeerMessage::Ended {
                    self.close_child(node);
                }
                // It ends by itself only when a signal told it to, which is on its way to this node too.
                let code = match said {
                    PeerMessage::Stopped(code) if code > 128 => code,
                    _ => End::TERMINATED,
                };
                let why = format!("node {node} ({}) was told to end", self.job.host(node));
                return Some(End { code, why });
            }
            PeerMessage::Failed(why) => {
                journal::say(&format!("node {node} ({}): {why}", self.job.host(node)));
                return Some(End {
                    code: RUNTIME_FAILED,
                    why,
                });
            }
            other => tracing::warn!(%node, "unexpected now: {other:?}"),
        }
        None
    }

    fn spawn_for(
        &mut self,
        creator: Creator,
        (request, asked): (u64, u64),
        spawns: Vec<SpawnRequest>,
    ) {
        let node = creator.node;
        let answers: Vec<_> = spawns
            .into_iter()
            .map(|spawn| self.spawn_in_turn(spawn, creator, asked))
            .collect();
        // The answer travels over a connection that the loop owns: it comes back as an event.
        let events = self.sender.clone();
        tokio::spawn(async move {
            let mut results = Vec::with_capacity(answers.len());
            for answer in answers {
                results.push(result_of(answer).await);
            }
            let _ = events
                .send(Event::Tell(node, PeerMessage::Spawned { request, results }))
                .await;
        });
    }

    /// Starts a process here, for what its creator asked with this number; the answer comes later.
    pub(super) fn spawn_in_turn(
        &mut self,
        spawn: SpawnRequest,
        creator: Creator,
        asked: u64,
    ) -> oneshot::Receiver<SpawnResult> {
        let (reply, answer) = oneshot::channel();
        self.spawn_here(spawn, creator, StartedFor::Requester(asked, reply));
        answer
    }
}

/// The result of a start, when it comes.
pub(super) async fn result_of(answer: oneshot::Receiver<SpawnResult>) -> SpawnResult {
    answer
        .await
        .unwrap_or_else(|_| Err((Code::RuntimeGone, "the runtime is ending".to_owned())))
}

impl super::Requests {
    /// A new number for a request to another daemon.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Ends all requests to a node.
    pub(super) fn fail(&mut self, node: NodeIndex, code: Code, text: &str) {
        for (_, (_, reply)) in self.answers.extract_if(|_, (to, _)| *to == node) {
            let _ = reply.send((code, text.to_owned()));
        }
        for (_, (_, _, reply)) in self.groups.extract_if(|_, (to, ..)| *to == node) {
            let _ = reply.send(ClientReply::Failed(code, text.to_owned()));
        }
        // The receiver sees the dropped sender and says that the node is down.
        self.spawns.retain(|_, (to, _)| *to != node);
    }
}
