//! What other daemons say, and connections to them.

use std::net::SocketAddr;

use dragon_protocol::control::{ClientReply, PeerMessage, SpawnRequest, SpawnResult};
use dragon_protocol::{Code, NodeIndex};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::members::is_refused;
use super::processes::Creator;
use super::starting::StartedFor;
use super::{Daemon, End, Event, Other};
use crate::cli::RUNTIME_FAILED;
use crate::journal;
use crate::link::{self, Link};

impl Daemon {
    /// Sends a message to another daemon, over a connection that is made when there is none yet.
    pub(super) fn tell(&mut self, node: NodeIndex, message: PeerMessage) {
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
        let link = link::run(node, stream, sink, &self.sender);
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
    }

    /// A connection that was asked for cannot be made: what waits for it fails.
    pub(super) fn unreachable(&mut self, node: NodeIndex, why: &str, gone: bool) -> Option<End> {
        if !matches!(self.others.get(&node), Some(Other::Connecting(_))) {
            // The other side's connection came first, or the node is forgotten.
            return None;
        }
        self.others.remove(&node);
        self.inspect_without(node, &format!("cannot be reached: {why}"));
        self.follow_without(node);
        self.requests.fail(
            node,
            Code::Unreachable,
            &format!(
                "node {node} ({}) cannot be reached: {why}",
                self.job.host(node)
            ),
        );
        self.not_reached(node, gone)
    }

    /// A connection ended. When it is one of the tree, its node is lost, unless it can be reached again.
    pub(super) fn link_lost(
        &mut self,
        node: NodeIndex,
        addresses: (SocketAddr, SocketAddr),
    ) -> Option<End> {
        let is_it = |link: &Link| link.node == node && link.addresses == addresses;
        let host = self.job.host(node).to_owned();
        let of_tree = self.parent.as_ref().is_some_and(is_it) || self.children.iter().any(is_it);
        if of_tree {
            self.parent = self.parent.take().filter(|link| !is_it(link));
            self.children.retain(|link| !is_it(link));
            if self.parent.is_none() {
                self.up.wait();
            }
        } else if let Some(Other::Up(links)) = self.others.get_mut(&node) {
            links.retain(|link| !is_it(link));
            if !links.is_empty() {
                return self.link_ended(node);
            }
            self.others.remove(&node);
        }
        self.inspect_without(node, "lost");
        self.follow_without(node);
        self.requests.fail(
            node,
            Code::NodeDown,
            &format!("node {node} ({host}) is down"),
        );
        if of_tree {
            self.tree_link_lost(node)
        } else {
            self.link_ended(node)
        }
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
                spawns,
            } => self.spawn_for(Creator { node, slot }, request, spawns),
            PeerMessage::Group(message) => {
                let actions = self.groups.hear(Some(node), *message);
                self.act(actions);
            }
            PeerMessage::GroupAsked(number, request) => {
                self.group_asked_by(node, number, *request);
            }
            PeerMessage::GroupAnswered(number, answer) => {
                if let Some((_, reply)) = self.requests.groups.remove(&number) {
                    let _ = reply.send(*answer);
                }
            }
            PeerMessage::SlotGone(slot) => {
                self.creators_gone(|creator| creator == Creator { node, slot });
            }
            PeerMessage::Spawned { request, results } => {
                if let Some((_, reply)) = self.requests.spawns.remove(&request) {
                    let _ = reply.send(results);
                }
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
            PeerMessage::Shutdown(why) => return Some(End { code: 0, why }),
            said @ (PeerMessage::Stopped | PeerMessage::Ended) => {
                self.stopped.insert(node);
                if said == PeerMessage::Ended {
                    self.close_child(node);
                }
                // It ends by itself only when a signal told it to, which is on its way to this node too.
                let why = format!("node {node} ({}) was told to end", self.job.host(node));
                return Some(End {
                    code: 128 + 15,
                    why,
                });
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

    fn spawn_for(&mut self, creator: Creator, request: u64, spawns: Vec<SpawnRequest>) {
        let node = creator.node;
        let answers: Vec<_> = spawns
            .into_iter()
            .map(|spawn| self.spawn_in_turn(spawn, creator))
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

    /// Starts a process here; the answer comes later.
    pub(super) fn spawn_in_turn(
        &mut self,
        spawn: SpawnRequest,
        creator: Creator,
    ) -> oneshot::Receiver<SpawnResult> {
        let (reply, answer) = oneshot::channel();
        self.spawn_here(spawn, creator, StartedFor::Requester(reply));
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
        for (_, (_, reply)) in self.groups.extract_if(|_, (to, _)| *to == node) {
            let _ = reply.send(ClientReply::Failed(code, text.to_owned()));
        }
        // The receiver sees the dropped sender and says that the node is down.
        self.spawns.retain(|_, (to, _)| *to != node);
    }
}
