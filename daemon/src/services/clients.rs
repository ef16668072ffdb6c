//! What clients of this node ask.

use dragon_protocol::control::{
    ClientReply, ClientRequest, PeerMessage, SpawnRequest, SpawnResult,
};
use dragon_protocol::{Code, NodeIndex, SlotId, env};
use tokio::sync::oneshot;

use super::Daemon;
use super::peers::result_of;

impl Daemon {
    /// Answers a client, at once or when other nodes have answered.
    pub(super) fn client_asks(
        &mut self,
        slot: Option<SlotId>,
        request: ClientRequest,
        reply: oneshot::Sender<ClientReply>,
    ) {
        self.node.count_request();
        let answer = match request {
            ClientRequest::Spawn(_) if slot.is_none() => ClientReply::Failed(
                Code::Refused,
                "only an attached process can start processes".to_owned(),
            ),
            ClientRequest::Spawn(spawns) => return self.spawn_all(spawns, reply),
            ClientRequest::Signal { process, signal } if process.node == self.job.node => {
                match self.signal_here(process, signal) {
                    (Code::Ok, _) => ClientReply::Done,
                    (code, text) => ClientReply::Failed(code, text),
                }
            }
            ClientRequest::Signal { process, signal } => {
                return self.signal_there(process, signal, reply);
            }
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
    fn spawn_all(&mut self, spawns: Vec<SpawnRequest>, reply: oneshot::Sender<ClientReply>) {
        let me = self.job.node;
        let mut here = Vec::new();
        // Consecutive positions of the answer per node, so that each other node gets one message.
        let mut there: Vec<(NodeIndex, Vec<usize>, Vec<SpawnRequest>)> = Vec::new();
        let total = spawns.len();
        for (position, spawn) in spawns.into_iter().enumerate() {
            let node = spawn.node.unwrap_or_else(|| self.place(&spawn));
            if node == me {
                here.push((position, self.spawn_in_turn(spawn)));
            } else if let Some((_, positions, requests)) =
                there.iter_mut().find(|(to, ..)| *to == node)
            {
                positions.push(position);
                requests.push(spawn);
            } else {
                there.push((node, vec![position], vec![spawn]));
            }
        }
        let mut answers = Vec::new();
        for (node, positions, spawns) in there {
            let request = self.requests.number();
            let (sender, answer) = oneshot::channel();
            self.requests.spawns.insert(request, (node, sender));
            self.tell(node, PeerMessage::Spawn { request, spawns });
            answers.push((node, positions, answer));
        }
        tokio::spawn(async move {
            let mut results: Vec<Option<SpawnResult>> = vec![None; total];
            for (position, answer) in here {
                results[position] = Some(result_of(answer).await);
            }
            for (node, positions, answer) in answers {
                let down = || {
                    Err((
                        Code::NodeDown,
                        format!("node {node} is down or cannot be reached"),
                    ))
                };
                let mut came = answer.await.unwrap_or_default().into_iter();
                for position in positions {
                    results[position] = Some(came.next().unwrap_or_else(down));
                }
            }
            let _ = reply.send(ClientReply::Spawned(
                results.into_iter().flatten().collect(),
            ));
        });
    }

    /// Where a process goes whose creator does not say.
    fn place(&mut self, spawn: &SpawnRequest) -> NodeIndex {
        let policy = spawn
            .environment
            .iter()
            .find(|(name, _)| name == env::PLACEMENT.as_bytes());
        let nodes = self.membership.nodes.len().max(1);
        let me = self.job.node.get();
        let mut next = || {
            let node = self
                .membership
                .nodes
                .get(self.next_place as usize % nodes)
                .map_or(self.job.node, |info| info.node);
            self.next_place = self.next_place.wrapping_add(1);
            node
        };
        match policy.map(|(_, value)| value.as_slice()) {
            Some(b"local") => self.job.node,
            Some(b"remote") if nodes > 1 => std::iter::repeat_with(next)
                .find(|node| node.get() != me)
                .unwrap_or(self.job.node),
            _ => next(),
        }
    }

    fn signal_there(
        &mut self,
        process: dragon_protocol::ObjectId,
        signal: i32,
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
        stats.push(("processes".to_owned(), self.processes.count() as u64));
        stats
    }
}
