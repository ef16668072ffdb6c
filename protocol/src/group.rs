//! Groups of processes over all nodes: what clients ask, and what daemons tell each other along their tree.
//!
//! A group lives on the node of whoever made it: its name is an object there for whose end one waits as for that of a
//! process. What concerns members travels along the tree of daemons, one message over each edge that leads to a member, and
//! the answers are gathered on the way back. Nothing passes the first node because it is the first.

use serde::{Deserialize, Serialize};

use crate::control::SpawnRequest;
use crate::error::Code;
use crate::ids::{NodeIndex, ObjectId, SlotId};
use crate::process::{Lives, Reach};

/// What the members of a group are, and what is done when they end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSpec {
    /// How each member is started; its rank is added. Its place says how members are spread, its standard streams are no
    /// channels.
    pub member: SpawnRequest,
    /// Variables for members, by rank; a member without an entry gets none.
    pub per_rank: Vec<Vec<(Vec<u8>, Vec<u8>)>>,
    /// What is done when a member ends.
    pub restart: Restart,
    /// Members that run longer than this, in milliseconds from the start of the group, get SIGTERM, and SIGKILL two seconds
    /// later; they are not started again.
    pub walltime_ms: Option<u64>,
    /// When the group ends without being told.
    pub lives: Lives,
}

/// When a member that has ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// After which ends.
    pub when: RestartWhen,
    /// How often a member is started again; the group is done with it when it has ended once more.
    pub most: u32,
    /// How long to wait before the first time, in milliseconds: twice as long before each further one.
    pub back_off_ms: u64,
    /// The longest wait.
    pub back_off_most_ms: u64,
}

/// After which ends a member is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RestartWhen {
    /// After none.
    #[default]
    Never,
    /// When its exit code was not 0, or a signal ended it.
    OnFailure,
    /// After all.
    Always,
}

/// What a client asks about groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GroupRequest {
    /// Make a group with so many members. When one cannot be started, none is left.
    Start(Box<GroupSpec>, u32),
    /// Start so many more members.
    Add(ObjectId, u32),
    /// Do something with members that run.
    Order(ObjectId, Order),
}

impl GroupRequest {
    /// The group that it is about, if there is one already.
    #[must_use]
    pub fn group(&self) -> Option<ObjectId> {
        match self {
            Self::Start(..) => None,
            Self::Add(group, _) | Self::Order(group, _) => Some(*group),
        }
    }
}

/// What is done with the members of a group. The answer is what they are then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Order {
    /// Nothing.
    Look,
    /// Those that run get a signal.
    Signal(i32, Reach),
    /// They are killed, each with all that it started, and not started again; `None`: all of them.
    Remove(Option<Vec<u32>>),
}

impl Order {
    /// Whether it is about the member with this rank.
    #[must_use]
    pub fn is_about(&self, rank: u32) -> bool {
        match self {
            Self::Remove(Some(ranks)) => ranks.contains(&rank),
            _ => true,
        }
    }
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its number.
    pub rank: u32,
    /// Its node.
    pub node: NodeIndex,
    /// What it does.
    pub state: MemberState,
    /// How often it was started again.
    pub restarts: u32,
}

/// What a member of a group does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MemberState {
    /// It is being started, or waits for CPUs or GPUs.
    Starting,
    /// It runs.
    Running {
        /// The object to wait for.
        process: ObjectId,
        /// Its pid on its node.
        pid: u32,
    },
    /// It has ended with this status and is started again after a while.
    BackingOff(i32),
    /// It has ended with this status, as `waitpid` gives it.
    Ended(i32),
    /// It could not be started (again).
    NotStarted(Code, String),
    /// Its node is lost.
    Lost,
}

/// A message about groups to a neighbour in the tree. What is sent to a neighbour arrives once and in order as long as both
/// are members, whatever happens to the connections between them: what was not confirmed is sent again over the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLetter {
    /// Its number among those of the sender to the receiver, from 1 on.
    pub number: u64,
    /// The sender has got all of the receiver's up to this one.
    pub taken: u64,
    /// The index of the view whose tree it travels along. Whoever has an earlier view keeps it until it has this one; whoever
    /// has a later one forgets it: the group's node begins anew when its own view changes.
    pub view: u64,
    /// What it says; nothing but what was taken, without a number, when it is `None`.
    pub message: Option<GroupMessage>,
}

/// What daemons tell each other about a group, along the tree of their view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GroupMessage {
    /// Away from the group's node: start members, or be their way once more. Whoever has them already starts nobody.
    Start {
        /// The group.
        group: ObjectId,
        /// Who made it, on the group's node.
        creator: SlotId,
        /// Which of its starts: members that were asked for together are answered for together.
        batch: u32,
        /// What they are.
        spec: Box<GroupSpec>,
        /// Members of the group.
        size: u32,
        /// The ranks and local ranks of each node that this way leads to.
        parts: Vec<(NodeIndex, Vec<(u32, u32)>)>,
        /// Ranks that were removed since: they are not started any more.
        removed: Vec<u32>,
    },
    /// Back: all of them were started; those that were not, and why.
    Started {
        /// The group.
        group: ObjectId,
        /// Which start.
        batch: u32,
        /// Rank, and why.
        failed: Vec<(u32, Code, String)>,
    },
    /// Back: all of them have ended for good. They are kept until the group's node has them all.
    Done {
        /// The group.
        group: ObjectId,
        /// Which start.
        batch: u32,
        /// All of them.
        members: Vec<MemberInfo>,
    },
    /// Away: do something with the members on these nodes. Whoever has done it already only answers.
    Order {
        /// The group.
        group: ObjectId,
        /// Number of the order.
        number: u64,
        /// The lowest number that the group's node has no answer to: no lower one is sent again.
        oldest: u64,
        /// What.
        task: GroupTask,
        /// Nodes that this way leads to.
        nodes: Vec<NodeIndex>,
    },
    /// Back: it was done.
    Ordered {
        /// The group.
        group: ObjectId,
        /// Number of the order.
        number: u64,
        /// The members that were meant.
        members: Vec<MemberInfo>,
    },
}

/// What a group's node orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GroupTask {
    /// What a client asked for, or what follows from the group's end: for members with a rank below the number, those that
    /// there were.
    Order(Order, u32),
    /// The group's node knows how all members of this start have ended: nobody else needs to.
    Forget(u32),
}
