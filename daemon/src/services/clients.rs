//! What clients of this node ask.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use dragon_protocol::control::{
    ClientReply, ClientRequest, PeerMessage, Reach, SpawnRequest, SpawnResult,
};
use dragon_protocol::process::{Lives, Stdio};
use dragon_protocol::{Code, NodeIndex, ObjectId, SlotId};
use tokio::sync::oneshot;

use super::peers::result_of;
use super::processes::Creator;
use super::timer::Timer;
use super::{Daemon, Event};

/// Channels of a process that are kept in mind, gone or not.
const CHANNELS: usize = 64;

/// What goes with processes of this node when they end.
#[derive(Debug, Default)]
pub(super) struct MadeFor {
    slots: HashMap<SlotId, Made>,
    /// Processes that are gone, and nodes that have not said yet that they know.
    untold: HashMap<NodeIndex, Vec<SlotId>>,
    /// When nodes that could not be reached are told again.
    pub(super) again: HashMap<NodeIndex, Timer>,
}

/// What goes with one of them.
#[derive(Debug, Default)]
struct Made {
    /// Nodes where processes run, or wait to be started, that are told.
    nodes: BTreeSet<NodeIndex>,
    /// Channels by which processes read and write.
    channels: HashSet<ObjectId>,
    /// At so many channels those that are gone are forgotten.
    prune_at: usize,
}

impl MadeFor {
    /// The processes of which a node must be told that they are gone.
    pub(super) fn untold(&self, node: NodeIndex) -> Vec<SlotId> {
        self.untold.get(&node).cloned().unwrap_or_default()
    }

    /// A node knows that a process is gone.
    pub(super) fn told(&mut self, node: NodeIndex, slot: SlotId) {
        if let Some(slots) = self.untold.get_mut(&node) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.untold.remove(&node);
            }
        }
    }

    /// A node is lost: nothing runs there any more.
    pub(super) fn without(&mut self, node: NodeIndex) {
        self.untold.remove(&node);
        self.again.remove(&node);
    }

    /// Forgets channels that are gone, now and then: a process may start any number of others in its life.
    fn prune(&mut self, slot: SlotId, exists: impl Fn(ObjectId) -> bool) {
        if let Some(made) = self.slots.get_mut(&slot)
            && made.channels.len() >= made.prune_at
        {
            made.channels.retain(|channel| exists(*channel));
            made.prune_at = 2 * made.channels.len().max(CHANNELS);
        }
    }

    /// Notes what a request leads to on its node.
    fn note(
        &mut self,
        slot: SlotId,
        node: NodeIndex,
        spawn: &SpawnRequest,
        me: NodeIndex,
    ) -> Result<NodeIndex, (Code, String)> {
        if spawn.settings.lives == Lives::WithCreator || spawn.reservation.wait_ms.is_some() {
            self.slots.entry(slot).or_default().nodes.insert(node);
        }
        for stdio in &spawn.stdio {
            let Stdio::Channel(channel) = stdio else {
                continue;
            };
            if channel.node != me {
                let text = format!(
                    "channel {channel} for a process's input or output lies on node {}; make it on node {me}, where the process is asked for",
                    channel.node
                );
                return Err((Code::InvalidArgument, text));
            }
            self.slots
                .entry(slot)
                .or_default()
                .channels
                .insert(*channel);
        }
        Ok(node)
    }
}

impl Daemon {
    /// Answers a client, at once or when other nodes have answered.
    pub(super) fn client_asks(
        &mut self,
        slot: Option<SlotId>,
        number: u64,
        request: ClientRequest,
        reply: oneshot::Sender<ClientReply>,
    ) {
        self.node.count_request();
        let answer = match request {
            ClientRequest::Spawn(spawns) => match slot {
                Some(slot) => return self.spawn_all(spawns, slot, number, reply),
                None => ClientReply::Failed(
                    Code::Refused,
                    "only an attached process can start processes".to_owned(),
                ),
            },
            ClientRequest::Signal {
                process,
                signal,
                reach,
            } if process.node == self.job.node => match self.signal_here(process, signal, reach) {
                (Code::Ok, _) => ClientReply::Done,
                (code, text) => ClientReply::Failed(code, text),
            },
            ClientRequest::Signal {
                process,
                signal,
                reach,
            } => return self.signal_there(process, signal, reach, reply),
            ClientRequest::Group(request) => return self.group_asked(slot, number, request, reply),
            ClientRequest::Name(request) => return self.name_request(slot, request, reply),
            ClientRequest::Store(request) => self.store_request(slot, request),
            ClientRequest::Nodes => ClientReply::Nodes(self.membership.clone()),
            ClientRequest::Inspect(question, scope) => {
                return self.inspect(question, scope, reply);
            }
            ClientRequest::Stats => ClientReply::Stats(self.stats()),
            _ => ClientReply::Failed(
                Code::Unsupported,
                "this release does not know the request".to_owned(),
            ),
        };
        // The client may be gone.
        let _ = reply.send(answer);
    }

    /// Starts processes on their nodes, all at once, and answers when the last one is started.
    fn spawn_all(
        &mut self,
        spawns: Vec<SpawnRequest>,
        slot: SlotId,
        asked: u64,
        reply: oneshot::Sender<ClientReply>,
    ) {
        let me = self.job.node;
        self.made_for
            .prune(slot, |channel| self.node.has_channel(channel));
        let all: Vec<&SpawnRequest> = spawns.iter().collect();
        let places = self.turns.place_all(&all, me, &self.membership);
        let creator = Creator { node: me, slot };
        let mut here = Vec::new();
        // Consecutive positions of the answer per node, so that each other node gets one message.
        let mut there: BTreeMap<NodeIndex, (Vec<usize>, Vec<SpawnRequest>)> = BTreeMap::new();
        let mut results: Vec<Option<SpawnResult>> = vec![None; spawns.len()];
        for (position, (spawn, place)) in spawns.into_iter().zip(places).enumerate() {
            match place.and_then(|node| self.made_for.note(slot, node, &spawn, me)) {
                Ok(node) if node == me => {
                    here.push((position, self.spawn_in_turn(spawn, creator, asked)));
                }
                Ok(node) => {
                    let (positions, requests) = there.entry(node).or_default();
                    positions.push(position);
                    requests.push(spawn);
                }
                Err(refused) => results[position] = Some(Err(refused)),
            }
        }
        let events = self.sender.clone();
        let mut answers = Vec::new();
        for (node, (positions, spawns)) in there {
            let request = self.requests.number();
            let (sender, answer) = oneshot::channel();
            self.requests.spawns.insert(request, (node, sender));
            let message = PeerMessage::Spawn {
                request,
                creator: slot,
                asked,
                spawns,
            };
            self.tell(node, message);
            answers.push((node, positions, answer));
        }
        tokio::spawn(async move {
            for (position, answer) in here {
                results[position] = Some(result_of(answer).await);
            }
            for (node, positions, answer) in answers {
                let down = || {
                    let text = format!(
                        "node {node} is down, or the connection with it broke before it said whether the process was started"
                    );
                    Err((Code::NodeDown, text))
                };
                let mut came = answer.await.unwrap_or_default().into_iter();
                for position in positions {
                    results[position] = Some(came.next().unwrap_or_else(down));
                }
            }
            let answer = ClientReply::Spawned(results.into_iter().flatten().collect());
            if let Err(answer) = reply.send(answer) {
                let _ = events.send(Event::Undelivered(answer, false)).await;
            }
        });
    }

    /// A client waits no longer for CPUs and GPUs of the starts that it asked for with a number.
    pub(super) fn client_cancels(&mut self, slot: SlotId, asked: u64) {
        self.group_cancelled(slot, asked);
        let me = self.job.node;
        let made = self.made_for.slots.get(&slot);
        for node in made.map(|made| made.nodes.clone()).unwrap_or_default() {
            if node == me {
                self.cancel_starts(Creator { node: me, slot }, asked);
            } else {
                let creator = slot;
                self.tell(node, PeerMessage::CancelStarts { creator, asked });
            }
        }
    }

    /// A client did not get an answer: the references that were made for it are dropped.
    pub(super) fn undelivered(&mut self, reply: ClientReply, made_group: bool) {
        match reply {
            ClientReply::Spawned(results) => self.unclaimed(results),
            ClientReply::Group(group) if made_group => self.node.drop_transit(group),
            _ => {}
        }
    }

    /// Nobody has got the processes that were started.
    pub(super) fn unclaimed(&mut self, results: Vec<SpawnResult>) {
        let mut elsewhere: BTreeMap<NodeIndex, Vec<ObjectId>> = BTreeMap::new();
        for process in results.into_iter().flatten().map(|spawned| spawned.process) {
            if process.node == self.job.node {
                self.node.drop_transit(process);
            } else {
                elsewhere.entry(process.node).or_default().push(process);
            }
        }
        for (node, processes) in elsewhere {
            self.tell(node, PeerMessage::Unclaimed(processes));
        }
    }

    /// A process of this node has ended or left: what it asked for goes with it, where it is to.
    pub(super) fn creator_left(&mut self, slot: SlotId) {
        let actions = self.groups.creator_left(slot);
        self.act(actions);
        let Some(made) = self.made_for.slots.remove(&slot) else {
            return;
        };
        let me = self.job.node;
        for node in made.nodes {
            if node == me {
                self.creators_gone(|creator| creator == Creator { node: me, slot });
            } else {
                let untold = &mut self.made_for.untold;
                untold.entry(node).or_default().push(slot);
                self.tell(node, PeerMessage::SlotGone(slot));
            }
        }
        for channel in made.channels {
            self.node.destroy_channel(channel);
        }
    }

    fn signal_there(
        &mut self,
        process: dragon_protocol::ObjectId,
        signal: i32,
        reach: Reach,
        reply: oneshot::Sender<ClientReply>,
    ) {
        let request = self.requests.number();
        let (sender, answer) = oneshot::channel();
        self.requests
            .answers
            .insert(request, (process.node, sender));
        self.tell(
            process.node,
            PeerMessage::Signal {
                request,
                process,
                signal,
                reach,
            },
        );
        tokio::spawn(async move {
            let answer = match answer.await {
                Ok((Code::Ok, _)) => ClientReply::Done,
                Ok((code, text)) => ClientReply::Failed(code, text),
                Err(_) => {
                    ClientReply::Failed(Code::RuntimeGone, "the runtime is ending".to_owned())
                }
            };
            let _ = reply.send(answer);
        });
    }

    fn stats(&self) -> Vec<(String, u64)> {
        let mut stats = self.node.stats();
        stats.push(("groups".to_owned(), self.groups.counts().0 as u64));
        stats.push(("processes".to_owned(), self.processes.count() as u64));
        stats.push((
            "starts_waiting".to_owned(),
            self.processes.queued.len() as u64,
        ));
        let counted = self.ledger.counts();
        stats.extend(counted.map(|(name, count)| (name.to_owned(), count)));
        stats
    }
}
