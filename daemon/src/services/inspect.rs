//! What people ask about the runtime: each daemon answers for its own node, and gathers the answers of those behind it
//! in the tree. No node is asked twice, none is in the middle of all, and a node that does not answer is named.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dragon_protocol::control::{ClientReply, PeerMessage};
use dragon_protocol::inspect::{Answer, Inspect, MOST_ROWS, NodeAnswer, PATIENCE_MS, Scope};
use dragon_protocol::{Code, NodeIndex};
use tokio::sync::oneshot;

use super::timer::Timer;
use super::{Daemon, Event};
use crate::survey::{self, Known, View};

/// Less patience than this is not shared any more: a tree is not that deep.
const LEAST_PATIENCE_MS: u32 = 50;

/// What happens to questions under way.
#[derive(Debug)]
pub enum Inspected {
    /// This node's own answer.
    Own(u64, NodeAnswer),
    /// The patience of a question is at its end.
    TimeUp(u64),
}

/// Questions under way.
pub(super) struct Inspections {
    begin: Instant,
    last: u64,
    open: HashMap<u64, Gathering>,
}

/// A question whose answers are being gathered.
struct Gathering {
    to: Asker,
    scope: Scope,
    limit: usize,
    patience_ms: u32,
    /// The nodes that were asked and have not answered; this one may be among them.
    waiting: Vec<NodeIndex>,
    answers: Vec<NodeAnswer>,
    /// Ends the patience.
    timer: Option<Timer>,
}

/// Who gets the answers.
enum Asker {
    Client(oneshot::Sender<ClientReply>),
    /// Another daemon, by its own number.
    Peer(NodeIndex, u64),
}

impl Default for Inspections {
    fn default() -> Self {
        Self {
            begin: Instant::now(),
            last: 0,
            open: HashMap::new(),
        }
    }
}

impl Daemon {
    /// A client asks.
    pub(super) fn inspect(
        &mut self,
        question: Inspect,
        scope: Scope,
        reply: oneshot::Sender<ClientReply>,
    ) {
        if let Scope::One(Some(node)) = scope
            && let Err(text) = self.is_node(node)
        {
            let _ = reply.send(ClientReply::Failed(Code::InvalidArgument, text));
            return;
        }
        self.gather(question, scope, None, Asker::Client(reply));
    }

    /// Whether there is such a node, or a sentence that says which there are.
    pub(super) fn is_node(&self, node: NodeIndex) -> Result<(), String> {
        let nodes = &self.membership.nodes;
        if nodes.iter().any(|info| info.node == node) {
            return Ok(());
        }
        let hosts = self.job.hosts.len();
        Err(match self.job.hosts.get(node.get() as usize) {
            Some(host) => format!(
                "node {node} ({host}) is lost; {} nodes are left",
                nodes.len()
            ),
            None => format!(
                "there is no node {node} in this runtime; its nodes are 0 to {}",
                hosts.saturating_sub(1)
            ),
        })
    }

    /// The nodes that were members once, and are no more.
    fn nodes_down(&self) -> Vec<u32> {
        let nodes = &self.membership.nodes;
        let is_up = |node: &u32| nodes.iter().any(|info| info.node.get() == *node);
        let all = 0..u32::try_from(self.job.hosts.len()).unwrap_or(u32::MAX);
        all.filter(|node| !is_up(node)).collect()
    }

    /// Another daemon asks, for itself or for those on its side of the tree.
    pub(super) fn peer_inspects(
        &mut self,
        from: NodeIndex,
        request: u64,
        beyond: bool,
        question: Inspect,
    ) {
        let scope = if beyond { Scope::All } else { Scope::One(None) };
        self.gather(question, scope, Some(from), Asker::Peer(from, request));
    }

    /// Another daemon answers.
    pub(super) fn peer_inspected(
        &mut self,
        from: NodeIndex,
        request: u64,
        answers: Vec<NodeAnswer>,
    ) {
        self.came(request, from, answers);
    }

    /// A node is lost, or cannot be reached: nobody waits for its answers any more.
    pub(super) fn inspect_without(&mut self, node: NodeIndex, why: &str) {
        let waiting = |gathering: &Gathering| gathering.waiting.contains(&node);
        let open = self.inspections.open.iter();
        let numbers: Vec<_> = open
            .filter(|(_, gathering)| waiting(gathering))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            let answer = NodeAnswer {
                node,
                answer: Err(why.to_owned()),
            };
            self.came(number, node, vec![answer]);
        }
    }

    /// Something happened to a question.
    pub(super) fn inspected(&mut self, what: Inspected) {
        match what {
            Inspected::Own(number, answer) => self.came(number, self.job.node, vec![answer]),
            Inspected::TimeUp(number) => {
                if let Some(gathering) = self.inspections.open.remove(&number) {
                    self.answer(gathering);
                }
            }
        }
    }

    /// The neighbours in the tree, but for one.
    pub(super) fn neighbours_but(&self, but: Option<NodeIndex>) -> Vec<NodeIndex> {
        let links = self.parent.iter().chain(&self.children);
        let nodes = links.map(|link| link.node);
        nodes.filter(|node| Some(*node) != but).collect()
    }

    fn gather(&mut self, mut question: Inspect, scope: Scope, from: Option<NodeIndex>, to: Asker) {
        question.limit = question.limit.min(MOST_ROWS);
        question.patience_ms = question.patience_ms.min(12 * PATIENCE_MS);
        let own = !matches!(scope, Scope::One(Some(node)) if node != self.job.node);
        let (others, beyond) = match scope {
            Scope::One(Some(node)) if !own => (vec![node], false),
            Scope::All if question.patience_ms >= LEAST_PATIENCE_MS => {
                (self.neighbours_but(from), true)
            }
            _ => (Vec::new(), false),
        };
        self.inspections.last += 1;
        let number = self.inspections.last;
        let mut gathering = Gathering {
            to,
            scope,
            limit: question.limit as usize,
            patience_ms: question.patience_ms,
            waiting: others.clone(),
            answers: Vec::new(),
            timer: None,
        };
        if own {
            gathering.waiting.push(self.job.node);
            self.look(number, question.clone());
        }
        if !others.is_empty() {
            let patience = Duration::from_millis(question.patience_ms.into());
            let event = Event::Inspected(Inspected::TimeUp(number));
            gathering.timer = Some(Timer::new(&self.sender, patience, event));
        }
        self.inspections.open.insert(number, gathering);
        // Who is behind them answers sooner than this node loses its patience.
        question.patience_ms = question.patience_ms / 4 * 3;
        for node in others {
            let question = question.clone();
            let ask = PeerMessage::Inspect {
                request: number,
                beyond,
                question,
            };
            self.tell(node, ask);
        }
    }

    /// Looks at this node, beside the loop: it may take a while.
    fn look(&self, number: u64, question: Inspect) {
        let (view, node, events) = (self.view(), self.job.node, self.sender.clone());
        tokio::spawn(async move {
            let looked = tokio::task::spawn_blocking(move || survey::answer(&view, &question));
            let answer = looked.await.map_err(|error| {
                format!("the daemon failed to look at its node: {error}; please report it")
            });
            let event = Event::Inspected(Inspected::Own(number, NodeAnswer { node, answer }));
            let _ = events.send(event).await;
        });
    }

    /// What a survey of this node looks at.
    pub(super) fn view(&self) -> View {
        let me = self.job.node;
        let nodes = &self.membership.nodes;
        let info = nodes.iter().find(|info| info.node == me);
        let known = Known {
            begin: self.inspections.begin,
            job: self.job.name.clone(),
            host: self.job.host(me).to_owned(),
            memory: info.map_or(0, |info| info.memory),
            nodes_up: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
            nodes_down: self.nodes_down(),
            epoch: self.cluster.epoch(),
            global_services: self.membership.global_services.get(),
            metrics: self
                .metrics
                .as_ref()
                .map(|metrics| metrics.place.clone())
                .unwrap_or_default(),
            processes: self.listed(),
        };
        self.node.view(Arc::new(known))
    }

    /// Answers came from a node that was asked.
    fn came(&mut self, number: u64, from: NodeIndex, answers: Vec<NodeAnswer>) {
        let Some(gathering) = self.inspections.open.get_mut(&number) else {
            // Its time was up.
            return;
        };
        if !gathering.waiting.contains(&from) {
            return tracing::warn!(%from, "answers to a question that was not asked");
        }
        gathering.waiting.retain(|node| *node != from);
        gathering.add(answers);
        if gathering.waiting.is_empty()
            && let Some(gathering) = self.inspections.open.remove(&number)
        {
            self.answer(gathering);
        }
    }

    fn answer(&mut self, gathering: Gathering) {
        match gathering.to {
            Asker::Peer(node, request) => {
                let answers = gathering.answers;
                self.tell(node, PeerMessage::Inspected { request, answers });
            }
            Asker::Client(reply) => {
                let mut answers = gathering.answers;
                let came: HashSet<_> = answers.iter().map(|answer| answer.node).collect();
                let mut silent = gathering.waiting;
                if gathering.scope == Scope::All {
                    // The one that was asked for them may not have answered either.
                    silent = self.membership.nodes.iter().map(|info| info.node).collect();
                }
                let silent = silent.into_iter().filter(|node| !came.contains(node));
                let why = format!("no answer within {} ms", gathering.patience_ms);
                answers.extend(silent.map(|node| NodeAnswer {
                    node,
                    answer: Err(why.clone()),
                }));
                answers.sort_by_key(|answer| answer.node);
                // The client may be gone.
                let _ = reply.send(ClientReply::Inspected(answers));
            }
        }
    }
}

impl Gathering {
    /// Adds answers, each node's once; of their rows only as many as are wanted.
    fn add(&mut self, answers: Vec<NodeAnswer>) {
        let rows = |answer: &Answer| match answer {
            Answer::Status(_) => 0,
            other => other.rows(),
        };
        let had: usize = self
            .answers
            .iter()
            .filter_map(|a| a.answer.as_ref().ok())
            .map(rows)
            .sum();
        let mut room = self.limit.saturating_sub(had);
        for mut came in answers {
            if self.answers.iter().any(|answer| answer.node == came.node) {
                continue;
            }
            if let Ok(answer) = &mut came.answer {
                answer.truncate(room);
                room -= rows(answer);
            }
            self.answers.push(came);
        }
    }
}
