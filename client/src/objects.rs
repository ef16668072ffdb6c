//! The objects of a runtime, as programs use them: on this node or on another, in this process or after a fork.

use std::fmt;
use std::io::IoSlice;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use dragon_channels as channels;
use dragon_channels::{Attributes, ChannelOptions, Poll, Received, SendOptions};
use dragon_protocol::Descriptor;
use dragon_shmem::{Deadline, Member};

use crate::error::Result;
use crate::handle::{Handle, Object};
use crate::session::Session;

/// What all kinds of object have in common: names.
macro_rules! names {
    ($name:ident, $what:literal) => {
        impl $name {
            #[doc = concat!("A handle on the ", $what, " that `descriptor` names.")]
            /// `adopt`: take over the reference that an export counted, so that the object lives on when the exporter
            /// has gone; each export is adopted at most once.
            ///
            /// # Errors
            /// When there is no such object (any more), or its node is down.
            pub fn attach(descriptor: Descriptor, adopt: bool) -> Result<Self> {
                Ok(Self(Handle::attach(descriptor, adopt)?))
            }

            /// Its name, which keeps nothing alive.
            #[must_use]
            pub fn descriptor(&self) -> Descriptor {
                self.0.descriptor()
            }

            /// Its name together with one reference in transit, for whoever attaches with `adopt`.
            ///
            /// # Errors
            /// When the object was destroyed, or its node is down.
            pub fn export(&self) -> Result<Descriptor> {
                Ok(self.0.get()?.export()?)
            }
        }
    };
}

/// What all kinds of object have in common that one can wait for.
macro_rules! common {
    ($name:ident, $lower:ty, $what:literal) => {
        impl Object for $lower {
            fn attach(member: &Arc<Member>, descriptor: Descriptor, adopt: bool) -> Result<Self> {
                Ok(Self::attach(member, &descriptor, adopt)?)
            }

            fn descriptor(&self) -> Descriptor {
                self.descriptor()
            }

            fn wait_as(&self, parent: &Self) {
                self.set_wait_mode(parent.wait_mode());
            }
        }

        crate::objects::names!($name, $what);

        impl $name {
            /// How this handle waits: adaptively, unless it was set.
            ///
            /// # Errors
            /// In a forked child that cannot attach.
            pub fn wait_mode(&self) -> Result<dragon_channels::WaitMode> {
                Ok(self.0.get()?.wait_mode())
            }

            /// Sets how this handle waits for an object of this node, from the next wait on. Children forked later inherit
            /// it. A wait for another node sleeps.
            ///
            /// # Errors
            /// In a forked child that cannot attach.
            pub fn set_wait_mode(&self, mode: dragon_channels::WaitMode) -> Result<()> {
                self.0.get()?.set_wait_mode(mode);
                Ok(())
            }
        }
    };
}

/// What all kinds but processes have in common.
macro_rules! destroy {
    ($($name:ident),+) => {$(
        impl $name {
            /// Fails every operation of everybody on it with [`Code::Destroyed`](crate::Code::Destroyed), from now on.
            ///
            /// # Errors
            /// When it is gone, or its node is down.
            pub fn destroy(&self) -> Result<()> {
                Ok(self.0.get()?.destroy()?)
            }
        }
    )+};
}

pub(crate) use {common, destroy, names};

destroy!(Channel);
common!(Channel, channels::Channel, "channel");
common!(Process, channels::ProcessObject, "process");

/// A FIFO of messages, bounded or growing up to a limit: any number of senders and receivers, on any node.
///
/// ```no_run
/// use dragon::{Channel, ChannelOptions, Deadline};
///
/// let options = ChannelOptions { capacity: 16, ..ChannelOptions::default() };
/// let channel = Channel::create(&options)?;
/// channel.send(b"first", 1, Deadline::Never)?;
/// let message = channel.receive(Deadline::after(1_000_000_000))?;
/// assert_eq!((message.len(), message.hint()), (5, 1));
/// # Ok::<(), dragon::Error>(())
/// ```
#[derive(Debug)]
pub struct Channel(Handle<channels::Channel>);

impl Channel {
    /// Makes a channel on this node.
    ///
    /// # Errors
    /// When an option is out of range, or the pool or a table is full.
    pub fn create(options: &ChannelOptions) -> Result<Self> {
        Handle::create(|member| Ok(channels::create_channel(member, options)?)).map(Self)
    }

    /// Sends a message with a number that the receiver gets beside it. Returns when the message is in the channel.
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Full`](crate::Code::Full) when the
    /// channel had no room in time; [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    #[inline]
    pub fn send(&self, message: &[u8], hint: u64, deadline: Deadline) -> Result<()> {
        Ok(self.0.get()?.send(message, hint, deadline)?)
    }

    /// Sends the parts as one message.
    ///
    /// # Errors
    /// As [`Channel::send`].
    #[inline]
    pub fn send_parts(&self, parts: &[IoSlice<'_>], hint: u64, deadline: Deadline) -> Result<()> {
        Ok(self.0.get()?.send_parts(parts, hint, deadline)?)
    }

    /// Sends the parts as one message, as the options say: with a hint and a trace id, by a deadline, and returning when the
    /// message is in the channel or when somebody has received it.
    ///
    /// ```no_run
    /// use dragon::{Channel, ChannelOptions, Returns, SendOptions};
    ///
    /// let channel = Channel::create(&ChannelOptions::default())?;
    /// let options = SendOptions { hint: 7, returns: Returns::Received, ..SendOptions::default() };
    /// channel.send_with(&[std::io::IoSlice::new(b"please confirm")], &options)?;
    /// # Ok::<(), dragon::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Channel::send`]. When the time for a receipt is up, the message stays in the channel.
    pub fn send_with(&self, parts: &[IoSlice<'_>], options: &SendOptions) -> Result<()> {
        Ok(self.0.get()?.send_with(parts, options)?)
    }

    /// Sends several messages in their order, each with its hint; waits for room until the deadline. How many were sent:
    /// fewer than all when time was up, or something failed after the first.
    ///
    /// # Errors
    /// As [`Channel::send`], when not a single message was sent.
    pub fn send_many(&self, messages: &[(&[u8], u64)], deadline: Deadline) -> Result<usize> {
        Ok(self.0.get()?.send_many(messages, deadline)?)
    }

    /// Takes the oldest message.
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Empty`](crate::Code::Empty) when none
    /// came in time; [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    #[inline]
    pub fn receive(&self, deadline: Deadline) -> Result<Message> {
        let (channel, session) = self.0.get_with_session()?;
        Ok(Message::new(channel.receive(deadline)?, session))
    }

    /// Takes the oldest message into the caller's memory.
    ///
    /// # Errors
    /// As [`Channel::receive`]; [`Code::TooLarge`](crate::Code::TooLarge) when the message is longer than the buffer: it
    /// stays in the channel.
    #[inline]
    pub fn receive_into(&self, buffer: &mut [u8], deadline: Deadline) -> Result<Received> {
        Ok(self.0.get()?.receive_into(buffer, deadline)?)
    }

    /// Takes up to `most` messages: waits for the first until the deadline, and takes what else is there.
    ///
    /// # Errors
    /// As [`Channel::receive`], for the first message.
    pub fn receive_many(&self, most: usize, deadline: Deadline) -> Result<Vec<Message>> {
        let (channel, session) = self.below()?;
        let received = channel.receive_many(most, deadline)?;
        let own = |message| Message::new(message, session);
        Ok(received.into_iter().map(own).collect())
    }

    /// A copy of the oldest message, which stays in the channel.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn peek(&self, deadline: Deadline) -> Result<Message> {
        let (channel, session) = self.below()?;
        Ok(Message::new(channel.peek(deadline)?, session))
    }

    /// The channel of the layer below, and the session that it belongs to.
    #[inline]
    pub(crate) fn below(&self) -> Result<(&channels::Channel, &'static Session)> {
        self.0.get_with_session()
    }

    /// Waits until there is something to receive; how many messages. [`Deadline::Now`] always succeeds, perhaps with 0.
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) when nothing came in time.
    pub fn poll(&self, deadline: Deadline) -> Result<u64> {
        match self.0.get()?.poll(deadline) {
            Err(channels::Error::Empty) => Ok(0),
            polled => Ok(polled?),
        }
    }

    /// Waits until the channel is in a state; how many messages it has then. Others may change it at once.
    ///
    /// ```no_run
    /// use dragon::{Channel, ChannelOptions, Deadline, Poll};
    ///
    /// let channel = Channel::create(&ChannelOptions::default())?;
    /// channel.send(b"the last one", 0, Deadline::Never)?;
    /// // Until somebody has received everything.
    /// channel.poll_for(Poll::Empty, Deadline::Never)?;
    /// # Ok::<(), dragon::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Empty`](crate::Code::Empty) when it was not
    /// in that state in time; [`Code::Interrupted`](crate::Code::Interrupted) after a signal.
    pub fn poll_for(&self, state: Poll, deadline: Deadline) -> Result<u64> {
        Ok(self.0.get()?.poll_for(state, deadline)?)
    }

    /// What the channel is and how full: messages, capacity, memory, who waits.
    ///
    /// # Errors
    /// When the channel was destroyed, or its node is down.
    pub fn attributes(&self) -> Result<Attributes> {
        Ok(self.0.get()?.attributes()?)
    }
}

/// A received message. One that was too large for its channel's own memory lies in the pool until it is dropped.
pub struct Message {
    message: ManuallyDrop<channels::Message>,
    /// Set when the message lies in the pool.
    session: Option<&'static Session>,
}

impl Message {
    #[inline]
    pub(crate) fn new(message: channels::Message, session: &'static Session) -> Self {
        // It came through a handle, so the session cannot have been left: the count can only succeed.
        let counted = message.block().is_some() && session.enter().is_ok();
        Self {
            message: ManuallyDrop::new(message),
            session: counted.then_some(session),
        }
    }

    /// The number that the sender gave.
    #[inline]
    #[must_use]
    pub fn hint(&self) -> u64 {
        self.message.hint()
    }

    /// The trace id that the sender gave.
    #[must_use]
    pub fn trace(&self) -> Option<[u8; 16]> {
        self.message.trace()
    }

    /// Bytes of the message.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.message.len()
    }

    /// Whether it has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.message.is_empty()
    }

    /// Copies bytes from `at` on into `to`; returns how many.
    pub fn copy_to(&self, at: usize, to: &mut [u8]) -> usize {
        self.message.copy_to(at, to)
    }

    /// The bytes in memory of the caller.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(0, &mut bytes);
        bytes
    }

    /// Where the bytes lie, as long as the message lives and is not moved. A program that misbehaves can change bytes in
    /// the pool: copy them, or treat them as something that may change.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.message.bytes_ptr()
    }
}

impl Drop for Message {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: dropped here once, and not used afterwards. Before the session's count, which keeps the slot ours.
        unsafe { ManuallyDrop::drop(&mut self.message) };
        if let Some(session) = self.session {
            session.leave();
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.message, f)
    }
}

/// A managed process: to wait for and to signal. [`Spawn`](crate::Spawn) starts one.
#[derive(Debug)]
pub struct Process(Handle<channels::ProcessObject>);

impl Process {
    /// Waits until it has ended; its status as `waitpid` gives it. Any number of processes may wait, any number of times.
    ///
    /// # Errors
    /// [`Code::Timeout`](crate::Code::Timeout) or, for [`Deadline::Now`], [`Code::Empty`](crate::Code::Empty) when it goes on
    /// running; [`Code::Interrupted`](crate::Code::Interrupted) after a signal;
    /// [`Code::NodeDown`](crate::Code::NodeDown) when the process's node is lost.
    pub fn wait(&self, deadline: Deadline) -> Result<i32> {
        Ok(self.0.get()?.wait(deadline)?)
    }
}
