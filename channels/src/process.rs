//! Managed processes, as far as others wait for their end.

use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{Descriptor, ObjectId, ObjectKind};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::sync::{Ordering, fence, low};
use dragon_shmem::{Deadline, Member};

use crate::error::{Error, Result};
use crate::object::{Handle, alive, notify_watcher, wait_word, word};

/// A handle on a process of this or another node.
///
/// ```
/// use dragon_channels::{Deadline, Error, ProcessObject};
///
/// let process = ProcessObject::create(&dragon_channels::local::member()?, 4711, 0)?;
/// assert_eq!(process.wait(Deadline::Now), Err(Error::Empty));
/// process.finish(0)?;
/// assert_eq!(process.wait(Deadline::Never)?, 0);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct ProcessObject {
    handle: Handle,
}

/// Body word that holds the status.
const STATUS: usize = 2;
/// Body word that holds the pid.
const PID: usize = 3;

impl ProcessObject {
    /// Creates the object of a process that runs. For the daemon of its node.
    ///
    /// # Errors
    /// When a table is full.
    pub fn create(member: &Arc<Member>, pid: u32, user: u64) -> Result<Self> {
        let id = crate::object::create(member, ObjectKind::Process, user, |entry| {
            entry.body[PID].store(pid.into(), Ordering::Relaxed);
        })?;
        let handle = Handle::created(member, id, user);
        Ok(Self { handle })
    }

    /// Attaches to the process that a descriptor names; see [`crate::Channel::attach`].
    ///
    /// # Errors
    /// As [`crate::Channel::attach`].
    pub fn attach(member: &Arc<Member>, descriptor: &Descriptor, adopt: bool) -> Result<Self> {
        let handle = Handle::attach(member, descriptor, ObjectKind::Process, adopt)?;
        Ok(Self { handle })
    }

    /// Announces the end of the process, with its status as `waitpid` gives it. For the daemon of its node.
    ///
    /// # Errors
    /// When the object is not of this node, or gone.
    pub fn finish(&self, status: i32) -> Result<()> {
        let id = self.handle.id();
        let entry = self
            .handle
            .local()?
            .ok_or(dragon_shmem::Error::NoSuchObject(id))?;
        entry.body[STATUS].store(status.cast_unsigned().into(), Ordering::Relaxed);
        // Release pairs with the Acquire of `status`.
        word(entry).store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        wait_word(entry).wake_sleepers(u32::MAX);
        notify_watcher(self.handle.member(), entry, id);
        Ok(())
    }

    /// Names the pid once the process has been started.
    ///
    /// # Errors
    /// As [`ProcessObject::finish`].
    pub fn set_pid(&self, pid: u32) -> Result<()> {
        let id = self.handle.id();
        let entry = self
            .handle
            .local()?
            .ok_or(dragon_shmem::Error::NoSuchObject(id))?;
        entry.body[PID].store(pid.into(), Ordering::Release);
        Ok(())
    }

    /// The process's pid; `None` for a process of another node.
    ///
    /// # Errors
    /// When this process was forked.
    pub fn pid(&self) -> Result<Option<u32>> {
        let entry = self.handle.local()?;
        Ok(entry.map(|entry| low(entry.body[PID].load(Ordering::Acquire))))
    }

    /// Waits until the process has ended; returns its status as `waitpid` gives it.
    ///
    /// # Errors
    /// [`Error::Empty`] (try form: it runs), [`Error::Timeout`], [`Error::Interrupted`], or what another node answers.
    pub fn wait(&self, deadline: Deadline) -> Result<i32> {
        let Some(entry) = self.handle.local()? else {
            let [status, _] = self.handle.call(Op::ProcessWait, [0, 0], deadline)?;
            return Ok(low(status).cast_signed());
        };
        let id = self.handle.id();
        self.handle.wait(
            entry,
            Op::ProcessWait,
            deadline,
            || status(entry, id),
            || false,
        )
    }

    crate::object::common_methods!();
}

/// The status, when the process has ended; also after the object was destroyed.
pub(crate) fn status(entry: &ObjectEntry, id: ObjectId) -> Result<Option<i32>> {
    if word(entry).load(Ordering::Acquire) == 0 {
        return alive(entry, id).map(|()| None);
    }
    match alive(entry, id) {
        Ok(()) | Err(Error::Destroyed(_)) => {}
        Err(error) => return Err(error),
    }
    Ok(Some(
        low(entry.body[STATUS].load(Ordering::Relaxed)).cast_signed(),
    ))
}
