//! A process's membership in a runtime: at most one at a time, whatever languages the process mixes.
//!
//! # Forks
//! A forked child inherits the parent's session but not its slot. Nothing of an inherited session is used except what
//! the child's own memory holds: the child closes its copy of the control socket and attaches anew at its first
//! operation; [`crate::handle`] does the same for single handles.
//!
//! Sessions are never freed: whoever got hold of one may keep it, and a process has one, rarely two. What a session has of
//! the runtime (memory, descriptors, a thread) goes when the process leaves.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dragon_protocol::attach::{Attached, Region, RegionKind};
use dragon_protocol::control::{ClientReply, ClientRequest, Membership};
use dragon_protocol::{NodeIndex, ObjectId, PoolOptions, RuntimeId, SlotId};
use dragon_shmem::region::Backing;
use dragon_shmem::{Control, ForkMark, Hooks, Member, Pool, PoolTag};

use crate::attach::{self, Admission};
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::process_lock::ProcessLock;
use crate::start;
use crate::watcher::Watcher;

/// The session of this process, or the one that a forked child inherited; null when there is none.
static CURRENT: AtomicPtr<Session> = AtomicPtr::new(ptr::null_mut());
/// Held while `CURRENT` is replaced.
static CHANGING: ProcessLock = ProcessLock::new();

/// Marks [`Session::open`] of a session that was left.
const LEFT: usize = 1 << (usize::BITS - 1);

/// A process's membership in a runtime.
pub struct Session {
    connection: Arc<Connection>,
    /// `None` when the process has left. Never locked by a forked child, in which another thread may have held it.
    member: Mutex<Option<Arc<Member>>>,
    fork: ForkMark,
    watcher: Mutex<Option<Watcher>>,
    runtime: RuntimeId,
    node: NodeIndex,
    slot: SlotId,
    /// Handles and messages that use the slot, and [`LEFT`].
    open: AtomicUsize,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("runtime", &self.runtime)
            .field("node", &self.node)
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// The session of this process: attaches to the runtime that DRAGON_RUNTIME names, unless that was done before.
    ///
    /// # Errors
    /// [`Error::NoRuntime`] when the environment names none, otherwise why it cannot be attached to.
    ///
    /// ```no_run
    /// let session = dragon::Session::attach()?;
    /// println!("node {} of runtime {}", session.node(), session.runtime());
    /// # Ok::<(), dragon::Error>(())
    /// ```
    pub fn attach() -> Result<&'static Self> {
        Self::attach_by(false)
    }

    /// As [`Session::attach`]; where there is no runtime, one of a single node is started for this process. It ends with
    /// this process, unless processes forked from it still use it then.
    ///
    /// # Errors
    /// As [`Session::attach`], and why no runtime can be started.
    pub fn attach_or_start() -> Result<&'static Self> {
        Self::attach_by(true)
    }

    /// The session of this process, if it is attached.
    #[must_use]
    pub fn current() -> Option<&'static Self> {
        Self::known().filter(|session| !session.is_forked())
    }

    /// Leaves the runtime; a later [`Session::attach`] joins it again. The end of the process leaves it too.
    ///
    /// # Errors
    /// [`Error::HandlesOpen`] while handles or messages of this process are open: without its slot they would refer to
    /// what others own by then.
    pub fn detach() -> Result<()> {
        let _guard = CHANGING.lock()?;
        let Some(session) = Self::current() else {
            return Ok(());
        };
        // Acquire: all that the closed handles did happened before.
        session
            .open
            .compare_exchange(0, LEFT, Ordering::AcqRel, Ordering::Acquire)
            .map_err(Error::HandlesOpen)?;
        CURRENT.store(ptr::null_mut(), Ordering::Release);
        let noticed = session.connection.leave();
        // Nobody uses the memory any more: no handle is open, and none can be made.
        drop(lock(&session.member).take());
        if let Some(watcher) = lock(&session.watcher).take().filter(|_| noticed) {
            watcher.join();
        }
        Ok(())
    }

    /// The runtime.
    #[must_use]
    pub fn runtime(&self) -> RuntimeId {
        self.runtime
    }

    /// The node that this process runs on.
    #[must_use]
    pub fn node(&self) -> NodeIndex {
        self.node
    }

    /// This process's slot on its node.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// The nodes of the runtime.
    ///
    /// # Errors
    /// When the runtime has ended.
    ///
    /// ```no_run
    /// for node in dragon::Session::attach()?.nodes()?.nodes {
    ///     println!("{}: {} CPUs on {}", node.node, node.cpus, node.host);
    /// }
    /// # Ok::<(), dragon::Error>(())
    /// ```
    pub fn nodes(&self) -> Result<Membership> {
        match self.request(&ClientRequest::Nodes)? {
            ClientReply::Nodes(membership) => Ok(membership),
            other => Err(unexpected("the nodes", &other)),
        }
    }

    /// What this node's daemon has counted, by name.
    ///
    /// # Errors
    /// When the runtime has ended.
    pub fn stats(&self) -> Result<Vec<(String, u64)>> {
        match self.request(&ClientRequest::Stats)? {
            ClientReply::Stats(stats) => Ok(stats),
            other => Err(unexpected("the counters", &other)),
        }
    }

    /// Asks this node's daemon.
    ///
    /// # Errors
    /// The daemon's own refusal, or that the runtime has ended.
    pub fn request(&self, request: &ClientRequest) -> Result<ClientReply> {
        if self.is_forked() {
            // The conversation on the inherited socket is the parent's.
            return Self::attach()?.request(request);
        }
        self.connection.request(request)
    }

    /// As [`Session::request`], for starts that may wait for CPUs and GPUs: a signal ends that wait, and the answer says so.
    pub(crate) fn request_until_signal(&self, request: &ClientRequest) -> Result<ClientReply> {
        if self.is_forked() {
            return Self::attach()?.request_until_signal(request);
        }
        self.connection.request_until_signal(request)
    }

    /// What the layers below know of this process: between [`Session::enter`] and [`Session::leave`].
    pub(crate) fn member(&self) -> Result<Arc<Member>> {
        if self.is_forked() {
            return Err(Error::Channels(dragon_channels::Error::Forked));
        }
        lock(&self.member).clone().ok_or_else(left)
    }

    /// Whether this process is a child that inherited the session.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        self.fork.is_forked()
    }

    /// Counts a handle that needs the slot. Each success is owed one [`Session::leave`].
    pub(crate) fn enter(&self) -> Result<()> {
        if self.open.fetch_add(1, Ordering::Relaxed) & LEFT == 0 {
            return Ok(());
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
        Err(left())
    }

    /// The end of what [`Session::enter`] counted.
    pub(crate) fn leave(&self) {
        // Release pairs with the Acquire in `detach`.
        self.open.fetch_sub(1, Ordering::Release);
    }

    fn known() -> Option<&'static Self> {
        // SAFETY: the pointer is null, or came from a box that is never freed; Acquire pairs with the store in
        // `attach_by`.
        unsafe { CURRENT.load(Ordering::Acquire).as_ref() }
    }

    /// From now on the end of the runtime is no reason to end the process.
    pub(crate) fn expect_end(&self) {
        self.connection.expect_end();
    }

    fn attach_by(start: bool) -> Result<&'static Self> {
        if let Some(session) = Self::current() {
            return Ok(session);
        }
        let _guard = CHANGING.lock()?;
        if let Some(session) = Self::current() {
            return Ok(session);
        }
        if let Some(inherited) = Self::known() {
            // So that the daemon sees the end of the parent when it comes.
            inherited.connection.close();
        }
        let (name, socket) = start::connect(start)?;
        let connection = Connection::new(socket);
        if is_only_thread() {
            Member::prepare();
        }
        // While the daemon is at work.
        let watcher = Watcher::start(Arc::clone(&connection))?;
        let session = match Self::admitted(&connection, &name) {
            Ok(session) => session,
            Err(error) => {
                if connection.leave() {
                    watcher.join();
                }
                return Err(error);
            }
        };
        *lock(&session.watcher) = Some(watcher);
        let session = Box::leak(Box::new(session));
        CURRENT.store(session, Ordering::Release);
        Ok(session)
    }

    fn admitted(connection: &Arc<Connection>, name: &OsStr) -> Result<Self> {
        let gone = || Error::RuntimeGone("its daemon ended while this process attached".to_owned());
        let socket = connection.socket().ok_or_else(gone)?;
        let Admission {
            attached,
            descriptors,
        } = attach::admission(socket, name)?;
        let slot = attached
            .slot
            .ok_or_else(|| Error::BadReply("an attach reply without a slot".to_owned()))?;
        let (control, pool) = map(&attached, descriptors)?;
        let hooks = ClientHooks {
            connection: Arc::clone(connection),
            runtime: attached.runtime,
        };
        // Where this process had other threads already, the watcher's prepares it.
        let member = Member::meanwhile(control, pool, slot, Box::new(hooks))?;
        if !connection.attached() {
            return Err(gone());
        }
        Ok(Self {
            connection: Arc::clone(connection),
            fork: member.fork_mark(),
            member: Mutex::new(Some(member)),
            watcher: Mutex::default(),
            runtime: attached.runtime,
            node: attached.node,
            slot,
            open: AtomicUsize::new(0),
        })
    }
}

/// Whether this process has no thread but the calling one.
fn is_only_thread() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

fn left() -> Error {
    Error::RuntimeGone("this process has detached".to_owned())
}

// A thread that panicked left what is locked here consistent: each change is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the layers below need of a client.
struct ClientHooks {
    connection: Arc<Connection>,
    runtime: RuntimeId,
}

impl ClientHooks {
    fn ask(&self, request: &ClientRequest) -> dragon_shmem::Result<(ClientReply, Vec<OwnedFd>)> {
        let asked = self.connection.request_with_descriptors(request);
        asked.map_err(|error| dragon_shmem::Error::Daemon(error.code(), error.to_string()))
    }

    /// Asks for a pool, and maps it.
    fn ask_for_pool(&self, request: &ClientRequest) -> dragon_shmem::Result<(Pool, ObjectId)> {
        let (reply, descriptors) = self.ask(request)?;
        let ClientReply::Pool(given) = reply else {
            return Err(bad_reply(&unexpected("a pool", &reply)));
        };
        let Ok([meta, data]) = <[OwnedFd; 2]>::try_from(descriptors) else {
            let text =
                "a pool without its two regions; is the limit of open files (ulimit -n) used up?";
            return Err(bad_reply(&Error::BadReply(text.to_owned())));
        };
        let backing = if given.file {
            Backing::File
        } else {
            Backing::Memfd
        };
        let corrupt = || dragon_shmem::Error::Corrupt {
            what: "tag of a pool",
            value: given.tag.into(),
        };
        let tag = PoolTag::from_u16(given.tag).ok_or_else(corrupt)?;
        let (meta, data) = ((meta, given.meta), (data, given.data));
        let pool = Pool::map_backed(self.runtime, tag.number(), meta, data, backing)?;
        if pool.tag() == tag {
            Ok((pool, given.object))
        } else {
            Err(corrupt())
        }
    }
}

fn bad_reply(error: &Error) -> dragon_shmem::Error {
    dragon_shmem::Error::Daemon(error.code(), error.to_string())
}

impl Hooks for ClientHooks {
    fn commit(&self, pool: u32, bytes: u64) -> dragon_shmem::Result<()> {
        self.ask(&ClientRequest::Commit { pool, bytes }).map(drop)
    }

    /// Called when the agent could not be told through its gateway: there is no agent then, and nobody else to tell.
    fn notify(&self, _object: ObjectId) {}

    fn pool(&self, tag: PoolTag) -> dragon_shmem::Result<(Pool, ObjectId)> {
        let tag = tag.to_u16();
        self.ask_for_pool(&ClientRequest::MapPool { tag })
    }

    fn create_pool(
        &self,
        options: &PoolOptions,
        _: SlotId,
    ) -> dragon_shmem::Result<(Pool, ObjectId)> {
        self.ask_for_pool(&ClientRequest::CreatePool(options.clone()))
    }

    fn pool_released(&self, object: ObjectId) {
        // It fails only when the runtime is gone, and the pool with it.
        let _ = self.ask(&ClientRequest::PoolReleased(object));
    }

    fn trim(&self) -> dragon_shmem::Result<u64> {
        match self.ask(&ClientRequest::TrimPools)? {
            (ClientReply::Trimmed(bytes), _) => Ok(bytes),
            (other, _) => Err(bad_reply(&unexpected("a number of bytes", &other))),
        }
    }
}

pub(crate) fn unexpected(asked: &str, got: &ClientReply) -> Error {
    Error::BadReply(format!("asked for {asked}, got {got:?}"))
}

/// Maps the regions that the daemon listed.
fn map(attached: &Attached, descriptors: Vec<OwnedFd>) -> Result<(Control, Pool)> {
    let (mut control, mut meta, mut data) = (None, None, None);
    for (&Region { kind, size }, fd) in attached.regions.iter().zip(descriptors) {
        match kind {
            RegionKind::Control => control = Some((fd, size)),
            RegionKind::PoolMeta { pool: 0 } => meta = Some((fd, size)),
            RegionKind::PoolData { pool: 0 } => data = Some((fd, size)),
            // Pools beyond the default one are for later releases; nothing of ours lies in them.
            _ => {}
        }
    }
    let (Some((control, size)), Some(meta), Some(data)) = (control, meta, data) else {
        return Err(Error::BadReply(format!(
            "an attach reply without control region or default pool: {:?}",
            attached.regions
        )));
    };
    let runtime = attached.runtime;
    Ok((
        Control::map(control, size, runtime)?,
        Pool::map(runtime, 0, meta, data)?,
    ))
}
