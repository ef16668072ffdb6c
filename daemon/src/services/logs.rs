//! Who follows the logs of daemons, and how lines come to him: they are pushed, a batch at a time, along the tree.
//!
//! A daemon sends its next batch only when the last one was taken, and passes on that of a node behind it before it takes
//! another one from there. So whoever reads slowly costs nobody memory: what he does not take stays in the rings of the
//! nodes, which forget their oldest lines and say how many.

use std::collections::{HashMap, VecDeque};

use dragon_protocol::control::{ClientReply, PeerMessage};
use dragon_protocol::inspect::{LogBatch, LogFilter, Scope};
use dragon_protocol::{Code, NodeIndex};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Daemon, Event};
use crate::journal;

/// What happens to those who follow.
#[derive(Debug)]
pub enum Followed {
    /// A client wants to follow.
    Begin {
        /// Which lines.
        filter: LogFilter,
        /// Of which nodes.
        scope: Scope,
        /// Where batches go: there is always room for one.
        client: mpsc::Sender<ClientReply>,
        /// Gets the number that the other events name.
        number: oneshot::Sender<u64>,
    },
    /// A client has taken a batch.
    Taken(u64),
    /// A client is gone.
    Gone(u64),
    /// This node's log has grown.
    Grown,
}

/// Those who follow.
#[derive(Default)]
pub(super) struct Followers {
    last: u64,
    all: HashMap<u64, Follower>,
    /// Tells the loop when the log has grown, while anybody follows.
    bell: Option<JoinHandle<()>>,
}

struct Follower {
    to: Reader,
    filter: LogFilter,
    /// Whether he wants this node's own lines.
    own: bool,
    /// Where in this node's log he is.
    cursor: u64,
    /// The last batch was not taken yet.
    busy: bool,
    /// The nodes that send theirs to this one for him.
    sources: Vec<NodeIndex>,
    /// Batches of theirs that have not been passed on: one of each at most.
    waiting: VecDeque<(NodeIndex, LogBatch)>,
}

enum Reader {
    Client(mpsc::Sender<ClientReply>),
    Peer(NodeIndex, u64),
}

impl Daemon {
    /// Something happened to those who follow.
    pub(super) fn followed(&mut self, what: Followed) {
        match what {
            Followed::Begin {
                filter,
                scope,
                client,
                number,
            } => {
                let begun = self.client_follows(filter, scope, client);
                // The client may be gone; then its task says so next.
                let _ = number.send(begun);
            }
            Followed::Taken(number) => self.taken(number),
            Followed::Gone(number) => self.unfollow(number),
            Followed::Grown => {
                let numbers: Vec<_> = self.followers.all.keys().copied().collect();
                numbers.into_iter().for_each(|number| self.push(number));
            }
        }
    }

    fn client_follows(
        &mut self,
        filter: LogFilter,
        scope: Scope,
        client: mpsc::Sender<ClientReply>,
    ) -> u64 {
        let me = self.job.node;
        let (own, sources, beyond) = match scope {
            Scope::One(Some(node)) if node != me => {
                if let Err(text) = self.is_node(node) {
                    // The channel of a new client has room.
                    let _ = client.try_send(ClientReply::Failed(Code::InvalidArgument, text));
                    return 0;
                }
                (false, vec![node], false)
            }
            Scope::All => (true, self.neighbours_but(None), true),
            _ => (true, Vec::new(), false),
        };
        self.begin_to_follow(Reader::Client(client), filter, own, sources, beyond)
    }

    /// Another daemon says something about logs.
    pub(super) fn peer_follows(&mut self, from: NodeIndex, message: PeerMessage) {
        match message {
            PeerMessage::FollowLogs {
                request,
                beyond,
                filter,
            } => {
                let sources = if beyond {
                    self.neighbours_but(Some(from))
                } else {
                    Vec::new()
                };
                let reader = Reader::Peer(from, request);
                self.begin_to_follow(reader, filter, true, sources, beyond);
            }
            PeerMessage::Logged { request, batch } => {
                if let Some(follower) = self.followers.all.get_mut(&request)
                    && follower.sources.contains(&from)
                    && !follower.waiting.iter().any(|(node, _)| *node == from)
                {
                    follower.waiting.push_back((from, batch));
                    self.push(request);
                }
            }
            PeerMessage::LogsTaken { request } => {
                if let Some(number) = self.followers.number_of(from, request) {
                    self.taken(number);
                }
            }
            PeerMessage::UnfollowLogs { request } => {
                if let Some(number) = self.followers.number_of(from, request) {
                    self.unfollow(number);
                }
            }
            other => tracing::warn!(%from, "no message about logs: {other:?}"),
        }
    }

    /// A node is lost: it reads nothing more, and sends nothing.
    pub(super) fn follow_without(&mut self, node: NodeIndex) {
        let all = &mut self.followers.all;
        for follower in all.values_mut() {
            follower.sources.retain(|source| *source != node);
        }
        let gone = |follower: &Follower| matches!(follower.to, Reader::Peer(to, _) if to == node);
        let numbers: Vec<_> = all
            .iter()
            .filter(|(_, follower)| gone(follower))
            .map(|(number, _)| *number)
            .collect();
        numbers.into_iter().for_each(|number| self.unfollow(number));
    }

    fn begin_to_follow(
        &mut self,
        to: Reader,
        filter: LogFilter,
        own: bool,
        sources: Vec<NodeIndex>,
        beyond: bool,
    ) -> u64 {
        self.followers.last += 1;
        let number = self.followers.last;
        for node in &sources {
            let ask = PeerMessage::FollowLogs {
                request: number,
                beyond,
                filter,
            };
            self.tell(*node, ask);
        }
        let follower = Follower {
            to,
            filter,
            own,
            cursor: 0,
            busy: false,
            sources,
            waiting: VecDeque::new(),
        };
        self.followers.all.insert(number, follower);
        journal::set_followed(true);
        let events = &self.sender;
        self.followers.bell.get_or_insert_with(|| {
            let events = events.clone();
            tokio::spawn(async move {
                loop {
                    journal::grown().await;
                    if events.send(Event::Followed(Followed::Grown)).await.is_err() {
                        return;
                    }
                }
            })
        });
        self.push(number);
        number
    }

    fn unfollow(&mut self, number: u64) {
        let Some(follower) = self.followers.all.remove(&number) else {
            return;
        };
        for node in follower.sources {
            self.tell(node, PeerMessage::UnfollowLogs { request: number });
        }
        if self.followers.all.is_empty() {
            journal::set_followed(false);
            if let Some(bell) = self.followers.bell.take() {
                bell.abort();
            }
        }
    }

    fn taken(&mut self, number: u64) {
        if let Some(follower) = self.followers.all.get_mut(&number) {
            follower.busy = false;
            self.push(number);
        }
    }

    /// Sends the next batch, when the last one was taken and there is one: those of other nodes first, which wait for it.
    fn push(&mut self, number: u64) {
        let node = self.job.node.get();
        let Some(follower) = self.followers.all.get_mut(&number) else {
            return;
        };
        if follower.busy {
            return;
        }
        let mut source = None;
        let batch = if let Some((from, batch)) = follower.waiting.pop_front() {
            source = Some(from);
            batch
        } else if follower.own {
            journal::since(&mut follower.cursor, &follower.filter, node)
        } else {
            LogBatch::default()
        };
        if let Some(from) = source {
            self.tell(from, PeerMessage::LogsTaken { request: number });
        }
        // What is of no interest was passed over.
        if batch == LogBatch::default() {
            return;
        }
        let Some(follower) = self.followers.all.get_mut(&number) else {
            return;
        };
        follower.busy = true;
        match &follower.to {
            Reader::Client(client) => {
                // There is room: the last batch was taken. It may be gone, then its task says so.
                let _ = client.try_send(ClientReply::Logged(batch));
            }
            Reader::Peer(to, request) => {
                let (to, request) = (*to, *request);
                self.tell(to, PeerMessage::Logged { request, batch });
            }
        }
    }
}

impl Followers {
    /// The follower that another daemon calls by a number of its own.
    fn number_of(&self, from: NodeIndex, request: u64) -> Option<u64> {
        let is_it = |follower: &Follower| matches!(follower.to, Reader::Peer(to, of) if (to, of) == (from, request));
        let mut all = self.all.iter();
        all.find(|(_, follower)| is_it(follower))
            .map(|(number, _)| *number)
    }
}
