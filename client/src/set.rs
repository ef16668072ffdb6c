//! Sets, as programs use them.

use std::sync::Arc;

use dragon_channels as channels;
use dragon_channels::{Interest, Ready, SetMember};
use dragon_protocol::Descriptor;
use dragon_shmem::{Deadline, Member};

use crate::error::Result;
use crate::handle::{Handle, Object};
use crate::objects::{common, destroy};

destroy!(Set);
common!(Set, channels::Set, "set");

/// Objects that are waited for together, of this node and of others: thousands, at a cost that depends on how many are ready.
///
/// ```no_run
/// use dragon::{Channel, ChannelOptions, Deadline, Event, Interest, Set};
///
/// let work = Channel::create(&ChannelOptions::default())?;
/// let stop = Event::create(0)?;
/// let set = Set::create(16, 0)?;
/// set.add(&work.descriptor(), Interest::READABLE, 1)?;
/// set.add(&stop.descriptor(), Interest::READABLE, 2)?;
/// for ready in set.wait(Deadline::Never)? {
///     match ready.token {
///         1 => drop(work.receive(Deadline::Now)?),
///         _ => break,
///     }
/// }
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Set(Handle<channels::Set>);

impl Set {
    /// Makes an empty set on this node that can have `capacity` members.
    ///
    /// # Errors
    /// When the capacity is out of range, or the pool or a table is full.
    pub fn create(capacity: u32, user: u64) -> Result<Self> {
        Handle::create(|member| Ok(channels::Set::create(member, capacity, user)?)).map(Self)
    }

    /// Adds an object of any node. `token` comes back when it is ready. The set does not keep it alive. When its node goes, or
    /// cannot be reached, it is reported as [`Interest::LOST`]; an operation on the object says which.
    ///
    /// # Errors
    /// [`Code::Unsupported`](crate::Code::Unsupported) for an object of a kind that cannot be waited for;
    /// [`Code::TableFull`](crate::Code::TableFull) when the set is full.
    pub fn add(&self, object: &Descriptor, interest: Interest, token: u64) -> Result<SetMember> {
        Ok(self.0.get()?.add(object.object, interest, token)?)
    }

    /// Takes a member out.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument) when it is not in the set (any more).
    pub fn remove(&self, membership: SetMember) -> Result<()> {
        Ok(self.0.get()?.remove(membership)?)
    }

    /// Waits until members are ready; at most 256 at once, in turn. [`Deadline::Now`] asks the owner of each member of
    /// another node; a wait hears of them without asking again.
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Empty`](crate::Code::Empty) when none was
    /// in time; [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    pub fn wait(&self, deadline: Deadline) -> Result<Vec<Ready>> {
        Ok(self.0.get()?.wait(deadline)?)
    }

    /// As [`Set::wait`], into a vector of the caller's, at most `most`; how many.
    ///
    /// # Errors
    /// As [`Set::wait`].
    pub fn wait_into(
        &self,
        ready: &mut Vec<Ready>,
        most: usize,
        deadline: Deadline,
    ) -> Result<usize> {
        Ok(self.0.get()?.wait_into(ready, most, deadline)?)
    }
}
