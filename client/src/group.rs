//! Groups of processes over the nodes of the runtime.

use std::time::Duration;

use dragon_protocol::control::{ClientReply, ClientRequest};
use dragon_protocol::group::{GroupRequest, GroupSpec, MemberInfo, Order, Restart, RestartWhen};
use dragon_protocol::process::{Lives, Reach};
use dragon_protocol::{Descriptor, ObjectId};
use dragon_shmem::Deadline;

use crate::error::{Error, Result};
use crate::objects::Process;
use crate::session::{Session, unexpected};
use crate::spawn::Spawn;

/// How a group is to be made: what its members are, and what is done when they end.
///
/// ```no_run
/// use dragon::{Deadline, Group, Policy, Spawn};
///
/// let member = Spawn::program("simulate").policy(Policy::Block);
/// let group = Group::of(member).restart_failed(3).start(64)?;
/// let status = group.wait(Deadline::Never)?;
/// println!("the first that failed, or 0: {status}");
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GroupOptions {
    spec: Result<GroupSpec, &'static str>,
}

/// A group of processes: so many of one kind, each with a number in DRAGON_RANK (in DRAGON_LOCAL_RANK that among those of its
/// node, in DRAGON_GROUP_SIZE how many there were when it was started). It lives on the node of whoever made it, and all that
/// concerns its members travels along the tree of daemons.
#[derive(Debug)]
pub struct Group {
    /// The object for whose end one waits.
    object: Process,
}

impl Group {
    /// A group whose members are started so.
    #[must_use]
    pub fn of(member: Spawn) -> GroupOptions {
        let spec = member.into_request().map(|member| GroupSpec {
            member,
            per_rank: Vec::new(),
            restart: Restart::default(),
            walltime_ms: None,
            lives: Lives::WithCreator,
        });
        GroupOptions { spec }
    }

    /// A handle on the group that `descriptor` names, in any process of the runtime.
    ///
    /// # Errors
    /// As [`Process::attach`].
    pub fn attach(descriptor: Descriptor, adopt: bool) -> Result<Self> {
        let object = Process::attach(descriptor, adopt)?;
        Ok(Self { object })
    }

    /// Its name, which keeps nothing alive.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor {
        self.object.descriptor()
    }

    /// Waits until all members have ended for good; the status, as `waitpid` gives it, of the first one by rank that did not
    /// end with 0, or 0. A member that never ran counts as one that ended with 127.
    ///
    /// # Errors
    /// As [`Process::wait`].
    pub fn wait(&self, deadline: Deadline) -> Result<i32> {
        self.object.wait(deadline)
    }

    /// Starts more members; their ranks follow those that there are. Those that cannot be started are left out.
    ///
    /// # Errors
    /// When the group has ended, or a member cannot be started. After a signal [`Code::Interrupted`](dragon_protocol::Code::Interrupted): then none of them is left.
    pub fn add(&self, count: u32) -> Result<()> {
        let request = ClientRequest::Group(GroupRequest::Add(self.id(), count));
        match Session::attach()?.request_until_signal(&request)? {
            ClientReply::Group(_) => Ok(()),
            other => Err(unexpected("more members of a group", &other)),
        }
    }

    /// Kills members, with all that they started. They are not started again.
    ///
    /// # Errors
    /// When the runtime has ended, or the group's node is down.
    pub fn remove(&self, ranks: &[u32]) -> Result<()> {
        self.order(Order::Remove(Some(ranks.to_vec()))).map(drop)
    }

    /// Kills all members, with all that they started.
    ///
    /// # Errors
    /// As [`Group::remove`].
    pub fn kill(&self) -> Result<()> {
        self.order(Order::Remove(None)).map(drop)
    }

    /// Sends a signal to all members that run.
    ///
    /// # Errors
    /// When the number is no signal, or as [`Group::remove`].
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.order(Order::Signal(signal, Reach::Process)).map(drop)
    }

    /// Sends a signal to all members that run, and to all that descends from them.
    ///
    /// # Errors
    /// As [`Group::signal`].
    pub fn signal_tree(&self, signal: i32) -> Result<()> {
        self.order(Order::Signal(signal, Reach::Tree)).map(drop)
    }

    /// The members by rank: where they are, what they do, how they have ended.
    ///
    /// # Errors
    /// As [`Group::remove`].
    pub fn members(&self) -> Result<Vec<MemberInfo>> {
        self.order(Order::Look)
    }

    fn id(&self) -> ObjectId {
        self.descriptor().object
    }

    fn order(&self, order: Order) -> Result<Vec<MemberInfo>> {
        match self.ask(GroupRequest::Order(self.id(), order))? {
            ClientReply::Members(members) => Ok(members),
            other => Err(unexpected("the members of a group", &other)),
        }
    }

    fn ask(&self, request: GroupRequest) -> Result<ClientReply> {
        Session::attach()?.request(&ClientRequest::Group(request))
    }
}

impl GroupOptions {
    /// Starts members again that end, after which ends, at most so often each; at once, unless a back-off is set.
    #[must_use]
    pub fn restart(mut self, when: RestartWhen, most: u32) -> Self {
        if let Ok(spec) = &mut self.spec {
            (spec.restart.when, spec.restart.most) = (when, most);
        }
        self
    }

    /// Starts members again that fail, at most so often each.
    #[must_use]
    pub fn restart_failed(self, most: u32) -> Self {
        self.restart(RestartWhen::OnFailure, most)
    }

    /// How long to wait before a member is started again: twice as long each time, up to `most`.
    #[must_use]
    pub fn back_off(mut self, first: Duration, most: Duration) -> Self {
        if let Ok(spec) = &mut self.spec {
            spec.restart.back_off_ms = milliseconds(first);
            spec.restart.back_off_most_ms = milliseconds(most);
        }
        self
    }

    /// Members that run longer than this, from the start of the group on, get SIGTERM, and SIGKILL two seconds later.
    #[must_use]
    pub fn walltime(mut self, limit: Duration) -> Self {
        if let Ok(spec) = &mut self.spec {
            spec.walltime_ms = Some(milliseconds(limit));
        }
        self
    }

    /// When the group ends without being told; with its creator, unless told otherwise.
    #[must_use]
    pub fn lives(mut self, lives: Lives) -> Self {
        if let Ok(spec) = &mut self.spec {
            spec.lives = lives;
        }
        self
    }

    /// Variables of the environment by rank, in addition to those of all members.
    #[must_use]
    pub fn environments(mut self, by_rank: Vec<Vec<(Vec<u8>, Vec<u8>)>>) -> Self {
        if let Ok(spec) = &mut self.spec {
            spec.per_rank = by_rank;
        }
        self
    }

    /// Starts the group with so many members. When one cannot be started, none is left.
    ///
    /// # Errors
    /// When there is no runtime, or a member cannot be started; the text says which and why. After a signal
    /// [`Code::Interrupted`](dragon_protocol::Code::Interrupted): the members wait for CPUs and GPUs no longer.
    pub fn start(self, count: u32) -> Result<Group> {
        let refused = |text: &str| Error::InvalidArgument(text.to_owned());
        let spec = self.spec.map_err(refused)?;
        let session = Session::attach_or_start()?;
        let request = GroupRequest::Start(Box::new(spec), count);
        match session.request_until_signal(&ClientRequest::Group(request))? {
            ClientReply::Group(object) => {
                let descriptor = Descriptor {
                    runtime: session.runtime(),
                    object,
                    user: 0,
                };
                Group::attach(descriptor, true)
            }
            other => Err(unexpected("a group", &other)),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
