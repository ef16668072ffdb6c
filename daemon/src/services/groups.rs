//! Groups of processes, as clients and other nodes ask for them. What is known of them is in [`crate::groups`].

use dragon_protocol::control::{ClientReply, PeerMessage};
use dragon_protocol::frame::MAX_FRAME;
use dragon_protocol::group::{GroupRequest, GroupSpec, Order};
use dragon_protocol::process::Stdio;
use dragon_protocol::{Code, NodeIndex, ObjectId, SlotId};
use tokio::sync::oneshot;

use super::processes::Creator;
use super::starting::StartedFor;
use super::timer::Timer;
use super::{Daemon, Event};
use crate::groups::Action;

/// Most members that are asked for at once.
const MOST: u32 = 1 << 20;

/// Most bytes of variables, of all members together: what a daemon says to another has a limit, and their ranks go along.
const LARGEST: usize = MAX_FRAME / 2;

type Refused = (Code, String);

/// A request about a group of this node that has no answer yet.
pub(super) struct GroupAsked {
    by: Asker,
    /// It is for a new group.
    is_new: bool,
    /// Whoever asked waits no longer.
    cancelled: bool,
    reply: oneshot::Sender<ClientReply>,
}

/// A request about a group of another node: that node, the process of this one with its number for the request, and where the
/// answer goes.
pub(super) type AskedElsewhere = (NodeIndex, (SlotId, u64), oneshot::Sender<ClientReply>);

/// Who asks about a group, with the asker's own number for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Client(SlotId, u64),
    Peer(NodeIndex, u64),
}

impl Daemon {
    /// A client of this node asks about groups.
    pub(super) fn group_asked(
        &mut self,
        slot: Option<SlotId>,
        asked: u64,
        request: GroupRequest,
        reply: oneshot::Sender<ClientReply>,
    ) {
        let Some(slot) = slot else {
            let text = "only an attached process can make and order groups".to_owned();
            drop(reply.send(ClientReply::Failed(Code::Refused, text)));
            return;
        };
        match request.group().map(|group| group.node) {
            Some(node) if node != self.job.node => {
                let number = self.requests.number();
                let asked = (slot, asked);
                self.requests.groups.insert(number, (node, asked, reply));
                let request = PeerMessage::GroupAsked(number, Box::new(request));
                self.tell(node, request);
            }
            _ => self.group_request(Asker::Client(slot, asked), request, reply),
        }
    }

    /// A process of this node waits no longer for members of a group that it asked for.
    pub(super) fn group_cancelled(&mut self, slot: SlotId, asked: u64) {
        let elsewhere = self.requests.groups.iter();
        let elsewhere = elsewhere.filter(|(_, (_, by, _))| *by == (slot, asked));
        let elsewhere: Vec<_> = elsewhere
            .map(|(number, (node, ..))| (*number, *node))
            .collect();
        for (number, node) in elsewhere {
            self.tell(node, PeerMessage::GroupCancelled(number));
        }
        self.group_called_off(Asker::Client(slot, asked));
    }

    /// Whoever asked for members of a group of this node waits no longer.
    pub(super) fn group_called_off(&mut self, by: Asker) {
        let mut open = self.requests.own_groups.iter_mut();
        if let Some((number, asked)) = open.find(|(_, asked)| asked.by == by) {
            asked.cancelled = true;
            let actions = self.groups.call_off(*number);
            self.act(actions);
        }
    }

    /// A client of another node asks about a group of this one.
    pub(super) fn group_asked_by(&mut self, node: NodeIndex, number: u64, request: GroupRequest) {
        let (reply, answer) = oneshot::channel();
        if request.group().is_none() {
            return tracing::warn!(%node, "asks for a group that would not be its own");
        }
        self.group_request(Asker::Peer(node, number), request, reply);
        let events = self.sender.clone();
        tokio::spawn(async move {
            let ending =
                |_| ClientReply::Failed(Code::RuntimeGone, "the runtime is ending".to_owned());
            let answer = Box::new(answer.await.unwrap_or_else(ending));
            let message = PeerMessage::GroupAnswered(number, answer);
            let _ = events.send(Event::Tell(node, message)).await;
        });
    }

    fn group_request(
        &mut self,
        by: Asker,
        request: GroupRequest,
        reply: oneshot::Sender<ClientReply>,
    ) {
        let number = self.requests.number();
        let is_new = request.group().is_none();
        let actions = match self.group_actions(by, request, number) {
            Ok(actions) => actions,
            Err((code, text)) => {
                drop(reply.send(ClientReply::Failed(code, text)));
                return;
            }
        };
        let asked = GroupAsked {
            by,
            is_new,
            cancelled: false,
            reply,
        };
        self.requests.own_groups.insert(number, asked);
        self.act(actions);
    }

    fn group_actions(
        &mut self,
        by: Asker,
        request: GroupRequest,
        number: u64,
    ) -> Result<Vec<Action>, Refused> {
        let no_such = |group: ObjectId| {
            let text = format!("{group} is no group of node {}", group.node);
            (Code::NoSuchObject, text)
        };
        match request {
            GroupRequest::Start(spec, count) => {
                let Asker::Client(slot, _) = by else {
                    return Err((Code::Refused, "a group of nobody".to_owned()));
                };
                check(&spec, count)?;
                let places = self.group_places(&spec, count)?;
                self.groups.prune(|group| self.node.has_process(group));
                let group = self.node.create_process()?;
                Ok(self.groups.start(group, slot, spec, &places, number))
            }
            GroupRequest::Add(group, count) => {
                if !self.groups.knows(group) {
                    return Err(no_such(group));
                }
                let ended = || {
                    let text = format!("group {group} has ended: make a new one");
                    (Code::NoSuchObject, text)
                };
                let spec = Box::new(self.groups.spec(group).ok_or_else(ended)?.clone());
                check(&spec, count)?;
                let places = self.group_places(&spec, count)?;
                Ok(self.groups.start_more(group, &places, number))
            }
            GroupRequest::Order(group, order) => {
                if !self.groups.knows(group) {
                    return Err(no_such(group));
                }
                let known = |signal| rustix::process::Signal::from_named_raw(signal).is_some();
                if let Order::Signal(signal, _) = order
                    && !known(signal)
                {
                    let text = format!("{signal} is not a signal's number");
                    return Err((Code::InvalidArgument, text));
                }
                Ok(self.groups.order(group, order, Some(number)))
            }
            _ => Err((
                Code::Unsupported,
                "this release does not know the request".to_owned(),
            )),
        }
    }

    /// The nodes of new members.
    fn group_places(&mut self, spec: &GroupSpec, count: u32) -> Result<Vec<NodeIndex>, Refused> {
        let members: Vec<_> = std::iter::repeat_n(&spec.member, count as usize).collect();
        let me = self.job.node;
        let places = self.turns.place_all(&members, me, &self.membership);
        let places = places.into_iter().collect::<Result<Vec<_>, _>>()?;
        let known = |node: &&NodeIndex| {
            let mut nodes = self.membership.nodes.iter();
            nodes.all(|info| info.node != **node)
        };
        match places.iter().find(known) {
            Some(node) => Err((Code::Unreachable, format!("there is no node {node}"))),
            None => Ok(places),
        }
    }

    /// Does what is to be done for groups.
    pub(super) fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Tell(node, letter) => {
                    self.tell(node, PeerMessage::Group(Box::new(letter)));
                }
                Action::Spawn(key, request, slot) => {
                    let node = key.batch.node();
                    let creator = Creator { node, slot };
                    self.spawn_here(*request, creator, StartedFor::Member(key));
                }
                Action::Signal(process, signal, reach) => {
                    // It may have ended in between.
                    let _ = self.signal_here(process, signal, reach);
                }
                Action::Cancel(members) => self.call_off(&members),
                Action::Later(time, due) => {
                    let timer = Timer::new(&self.sender, time, Event::GroupDue(due));
                    self.group_timers.insert(due, timer);
                }
                Action::NoLonger(due) => drop(self.group_timers.remove(&due)),
                Action::Finished(group, status) => self.node.process_ended(group, status),
                Action::Started(number, group, failed) => {
                    self.group_started(number, group, failed);
                }
                Action::Members(number, members) => {
                    if let Some(asked) = self.requests.own_groups.remove(&number) {
                        let _ = asked.reply.send(ClientReply::Members(members));
                    }
                }
            }
        }
    }

    fn group_started(
        &mut self,
        number: u64,
        group: ObjectId,
        mut failed: Vec<(u32, Code, String)>,
    ) {
        let Some(asked) = self.requests.own_groups.remove(&number) else {
            return;
        };
        failed.sort_by_key(|(rank, ..)| *rank);
        let answer = match failed.first() {
            _ if asked.cancelled => {
                let text =
                    "a signal ended the wait for the members of a group; none of those is left";
                ClientReply::Failed(Code::Interrupted, text.to_owned())
            }
            None => ClientReply::Group(group),
            Some((rank, code, text)) => {
                let others = failed.len() - 1;
                let others = match others {
                    0 => String::new(),
                    n => format!(" ({n} others were not started either)"),
                };
                let text = format!("member {rank} of the group: {text}{others}");
                ClientReply::Failed(*code, text)
            }
        };
        let refused = matches!(answer, ClientReply::Failed(..));
        let unheard = asked.reply.send(answer).is_err();
        if asked.is_new && (refused || unheard) {
            // Nobody adopts the reference that was made for the answer.
            self.node.drop_transit(group);
        }
    }
}

fn check(spec: &GroupSpec, count: u32) -> Result<(), Refused> {
    let variables = spec.per_rank.iter().flatten();
    let variables = variables.chain(&spec.member.environment);
    let bytes: usize = variables
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > LARGEST {
        let text = format!(
            "the variables of all members together take {bytes} bytes, of at most {LARGEST}: pass what is large by a file or a channel"
        );
        return Err((Code::TooLarge, text));
    }
    let refuse = |text: String| Err((Code::InvalidArgument, text));
    if count == 0 || count > MOST {
        return refuse(format!(
            "a group of {count} members: 1 to {MOST} can be asked for"
        ));
    }
    if spec
        .member
        .stdio
        .iter()
        .any(|stdio| matches!(stdio, Stdio::Channel(_)))
    {
        return refuse(
            "the members of a group share no channel for input or output: forward it, or name a file"
                .to_owned(),
        );
    }
    Ok(())
}
