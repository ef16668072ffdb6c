//! A node in one process: regions and a membership without a daemon, for examples, tests and measurements.
//!
//! Nothing of it is visible outside the process, and nothing outlives it.

use std::sync::Arc;

use dragon_shmem::Member;
use dragon_shmem::local::Node;

use crate::error::Result;

/// A node of a runtime that consists of nothing else.
///
/// ```
/// use dragon_channels::local::LocalNode;
/// use dragon_channels::{Channel, ChannelOptions, Deadline, create_channel};
///
/// let node = LocalNode::new()?;
/// let (sender, receiver) = (node.member()?, node.member()?);
/// let channel = create_channel(&sender, &ChannelOptions::default())?;
/// let theirs = Channel::attach(&receiver, &channel.export()?, true)?;
/// channel.send(b"hello", 1, Deadline::Never)?;
/// assert_eq!(theirs.receive(Deadline::Never)?.into_vec(), b"hello");
/// # Ok::<(), dragon_channels::Error>(())
/// ```
#[derive(Debug)]
pub struct LocalNode(Node);

impl LocalNode {
    /// Makes the regions of a node.
    ///
    /// # Errors
    /// When the kernel refuses memory.
    pub fn new() -> Result<Self> {
        Ok(Self(Node::new()?))
    }

    /// One more member, as a process of the node would be.
    ///
    /// # Errors
    /// When all slots are taken.
    pub fn member(&self) -> Result<Arc<Member>> {
        Ok(self.0.member()?)
    }

    /// The membership of the node's daemon, which recovers the others.
    #[must_use]
    pub fn daemon(&self) -> &Arc<Member> {
        &self.0.daemon
    }
}

/// A member of a node of its own.
///
/// ```
/// let member = dragon_channels::local::member()?;
/// let event = dragon_channels::Event::create(&member, 0)?;
/// assert!(!event.is_set()?);
/// # Ok::<(), dragon_channels::Error>(())
/// ```
///
/// # Errors
/// When the kernel refuses memory.
pub fn member() -> Result<Arc<Member>> {
    LocalNode::new()?.member()
}
