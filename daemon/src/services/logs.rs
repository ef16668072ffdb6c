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
    /// Whether he wants those of all nodes behind this one.
    beyond: bool,
    /// Where in this node's log he is.
    cursor: u64,
    /// The last batch was not taken yet.
    busy: bool,
    /// The nodes that send theirs to this one for him.
    sources: Vec<NodeIndex>,
    /// Batches of theirs that have not been passed on: one of each at most.
    waiting: VecDeque<(NodeIndex, LogBatch)>,
    /// Why nothing more can come.
    failed: Option<String>,
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
            Followed::Gone(number) => drop(self.unfollow(number)),
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
        let to = Reader::Client(client);
        self.begin_to_follow(to, filter, (own, beyond), sources, 0)
    }

    /// Another daemon says something about logs.
    pub(super) fn peer_follows(&mut self, from: NodeIndex, message: PeerMessage) {
        match message {
            PeerMessage::FollowLogs {
                request,
                beyond,
                filter,
                later,
            } => {
                // Asked again, since a connection broke, he goes on where he was.
                let before = self.followers.number_of(from, request);
                let cursor = before.map(|number| self.unfollow(number));
                let cursor = cursor.unwrap_or(if later { journal::end() } else { 0 });
                let sources = if beyond {
                    self.neighbours_but(Some(from))
                } else {
                    Vec::new()
                };
                let reader = Reader::Peer(from, request);
                self.begin_to_follow(reader, filter, (true, beyond), sources, cursor);
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

    /// A node is lost, or cannot be reached: it reads nothing more, and sends nothing. Whoever wants its lines alone is told.
    pub(super) fn follow_without(&mut self, node: NodeIndex, why: &str) {
        let mut failed = Vec::new();
        for (number, follower) in &mut self.followers.all {
            let before = follower.sources.len();
            follower.sources.retain(|source| *source != node);
            if before > follower.sources.len() && !follower.own {
                follower.failed = Some(why.to_owned());
                failed.push(*number);
            }
        }
        failed.into_iter().for_each(|number| self.push(number));
        for number in self.followers.of(node) {
            self.unfollow(number);
        }
    }

    /// A connection to a node has ended, and with it what was on its way. The node may be reached again: it is asked again, or
    /// asks again itself.
    pub(super) fn follow_over_another_link(&mut self, node: NodeIndex) {
        if !self.is_member(node) {
            return;
        }
        let mut again = Vec::new();
        for (number, follower) in &mut self.followers.all {
            if !follower.sources.contains(&node) {
                continue;
            }
            if follower.beyond {
                // It is asked as soon as it is a neighbour again.
                follower.sources.retain(|source| *source != node);
            } else {
                again.push((*number, follower.filter));
            }
        }
        for (request, filter) in again {
            self.ask_for_lines(node, request, filter, (false, true));
        }
        let stands = matches!(self.others.get(&node), Some(super::Other::Up(_)));
        for number in self.followers.of(node) {
            if stands || self.neighbours_but(None).contains(&node) {
                self.taken(number);
            } else {
                self.unfollow(number);
            }
        }
        self.follow_on();
    }

    /// The tree has changed, or a connection of it stands again: whoever wants the lines of all nodes gets those of new
    /// neighbours too, from now on.
    pub(super) fn follow_on(&mut self) {
        let neighbours = self.neighbours_but(None);
        let (mut asked, mut left) = (Vec::new(), Vec::new());
        for (number, follower) in &mut self.followers.all {
            let from = match follower.to {
                Reader::Peer(node, _) => Some(node),
                Reader::Client(_) => None,
            };
            // One that is no neighbour any more asks no more.
            if !follower.beyond || from.is_some_and(|from| !neighbours.contains(&from)) {
                continue;
            }
            let sources = &mut follower.sources;
            let moved = sources.extract_if(.., |node| !neighbours.contains(node));
            left.extend(moved.map(|node| (node, *number)));
            for node in &neighbours {
                if Some(*node) != from && !sources.contains(node) {
                    sources.push(*node);
                    asked.push((*node, *number, follower.filter));
                }
            }
        }
        for (node, request) in left {
            self.tell(node, PeerMessage::UnfollowLogs { request });
        }
        for (node, request, filter) in asked {
            self.ask_for_lines(node, request, filter, (true, true));
        }
    }

    /// Asks a node for its lines: with those of the nodes behind it or without, and only later ones or all.
    fn ask_for_lines(
        &mut self,
        node: NodeIndex,
        request: u64,
        filter: LogFilter,
        (beyond, later): (bool, bool),
    ) {
        let ask = PeerMessage::FollowLogs {
            request,
            beyond,
            filter,
            later,
        };
        self.tell(node, ask);
    }

    fn begin_to_follow(
        &mut self,
        to: Reader,
        filter: LogFilter,
        (own, beyond): (bool, bool),
        sources: Vec<NodeIndex>,
        cursor: u64,
    ) -> u64 {
        self.followers.last += 1;
        let number = self.followers.last;
        for node in &sources {
            self.ask_for_lines(*node, number, filter, (beyond, cursor > 0));
        }
        let follower = Follower {
            to,
            filter,
            own,
            beyond,
            cursor,
            busy: false,
            sources,
            waiting: VecDeque::new(),
            failed: None,
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

    /// Ends that somebody follows; returns where in this node's log he was.
    fn unfollow(&mut self, number: u64) -> u64 {
        let Some(follower) = self.followers.all.remove(&number) else {
            return 0;
        };
        for node in &follower.sources {
            self.tell(*node, PeerMessage::UnfollowLogs { request: number });
        }
        if self.followers.all.is_empty() {
            journal::set_followed(false);
            if let Some(bell) = self.followers.bell.take() {
                bell.abort();
            }
        }
        follower.cursor
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
        let Some(follower) = self.followers.all.get_mut(&number) else {
            return;
        };
        // What is of no interest was passed over.
        if batch == LogBatch::default() {
            if let (Some(why), Reader::Client(client)) = (follower.failed.take(), &follower.to) {
                // Its task ends with that.
                let _ = client.try_send(ClientReply::Failed(Code::NodeDown, why));
            }
            return;
        }
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
    /// Those to whom another daemon passes lines on.
    fn of(&self, node: NodeIndex) -> Vec<u64> {
        let is_it = |follower: &Follower| matches!(follower.to, Reader::Peer(to, _) if to == node);
        let all = self.all.iter().filter(|(_, follower)| is_it(follower));
        all.map(|(number, _)| *number).collect()
    }

    /// The follower that another daemon calls by a number of its own.
    fn number_of(&self, from: NodeIndex, request: u64) -> Option<u64> {
        let is_it = |follower: &Follower| matches!(follower.to, Reader::Peer(to, of) if (to, of) == (from, request));
        let mut all = self.all.iter();
        all.find(|(_, follower)| is_it(follower))
            .map(|(number, _)| *number)
    }
}
