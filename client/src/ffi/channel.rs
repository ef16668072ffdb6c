//! Channels and messages.

use std::ffi::c_void;
use std::io::IoSlice;
use std::{mem, ptr};

use dragon_channels::{self as channels, Attributes, ChannelOptions, Poll, Returns, SendOptions};
use dragon_shmem::Deadline;

use super::function::{Argument, Out, Wanted, functions, object};
use super::{check_size, list, many, null, or_default, room};
use crate::error::{Error, Result};
use crate::objects::Channel;
use crate::session::Session;

/// `dragon_channel_options`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonChannelOptions {
    /// Bytes of this structure, as the caller knows it.
    pub size: usize,
    /// A number of the caller's choice.
    pub user: u64,
    /// Messages that it holds; 0: the default.
    pub capacity: u32,
    /// Bytes of a message that travels in the channel itself; 0: the default.
    pub block: u32,
    /// Messages that it may grow to; 0: it does not grow.
    pub limit: u32,
    /// 0.
    pub reserved: u32,
}

impl DragonChannelOptions {
    fn read(&self) -> Result<ChannelOptions> {
        check_size::<Self>("dragon_channel_options", self.size)?;
        let default = ChannelOptions::default();
        Ok(ChannelOptions {
            capacity: or_default(self.capacity, default.capacity),
            block: or_default(self.block, default.block),
            user: self.user,
            unbounded: (self.limit != 0).then_some(self.limit),
        })
    }
}

/// `dragon_send_options`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonSendOptions {
    /// Bytes of this structure, as the caller knows it.
    pub size: usize,
    /// A number for the receiver.
    pub hint: u64,
    /// A trace id of 16 bytes, or null.
    pub trace: *const u8,
    /// When to return.
    pub returns: i32,
    /// 0.
    pub reserved: u32,
}

impl DragonSendOptions {
    /// # Safety
    /// The pointers are what the header says.
    unsafe fn read(&self, deadline: Deadline) -> Result<SendOptions> {
        check_size::<Self>("dragon_send_options", self.size)?;
        let returns = match self.returns {
            0 => Returns::Deposited,
            1 => Returns::Immediately,
            2 => Returns::Buffered,
            3 => Returns::Received,
            other => {
                return Err(Error::InvalidArgument(format!(
                    "dragon_send_options.returns is {other}; it must be from DRAGON_RETURN_DEPOSITED (0) to DRAGON_RETURN_RECEIVED (3)"
                )));
            }
        };
        Ok(SendOptions {
            hint: self.hint,
            deadline,
            returns,
            // SAFETY: the caller's promise.
            trace: unsafe { self.trace.cast::<[u8; 16]>().as_ref() }.copied(),
        })
    }
}

/// `dragon_channel_info`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonChannelInfo {
    /// Bytes of this structure, as the caller knows it.
    pub size: usize,
    /// Messages in it.
    pub messages: u64,
    /// Messages that it can hold.
    pub capacity: u64,
    /// Bytes of a message that travels in the channel itself.
    pub block: u64,
    /// Bytes of its own memory.
    pub bytes: u64,
    /// Senders that sleep.
    pub senders_waiting: u32,
    /// Receivers that sleep.
    pub receivers_waiting: u32,
    /// Others that sleep.
    pub watchers: u32,
    /// Pieces that it consists of.
    pub segments: u32,
    /// Whether it grows.
    pub grows: i32,
    /// 0.
    pub reserved: u32,
}

impl DragonChannelInfo {
    fn of(found: &Attributes) -> Self {
        Self {
            size: size_of::<Self>(),
            messages: found.messages,
            capacity: found.capacity,
            block: found.block,
            bytes: found.bytes,
            senders_waiting: found.senders_waiting,
            receivers_waiting: found.receivers_waiting,
            watchers: found.watchers,
            segments: found.segments,
            grows: found.unbounded.into(),
            reserved: 0,
        }
    }
}

/// `dragon_received`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonReceived {
    /// Bytes of the message.
    pub length: usize,
    /// The sender's number.
    pub hint: u64,
    /// The sender's trace id.
    pub trace: [u8; 16],
    /// Whether it gave one.
    pub traced: i32,
    /// 0.
    pub reserved: u32,
}

/// A `dragon_poll`.
impl Argument for Poll {
    type Raw = i32;

    unsafe fn take(raw: i32, _: &str) -> Result<Self> {
        match raw {
            0 => Ok(Self::Readable),
            1 => Ok(Self::Writable),
            2 => Ok(Self::Empty),
            3 => Ok(Self::Full),
            4 => Ok(Self::Closed),
            _ => Err(Error::InvalidArgument(format!(
                "the state to wait for is {raw}; it must be from DRAGON_POLL_READABLE (0) to DRAGON_POLL_CLOSED (4)"
            ))),
        }
    }
}

/// `dragon_bytes`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonBytes {
    /// Where.
    pub data: *const c_void,
    /// How many.
    pub length: usize,
}

impl DragonBytes {
    /// # Safety
    /// `data` is valid for reads of `length` bytes for as long as the result is used; it may be null when there are none.
    #[inline]
    pub(super) unsafe fn get<'a>(&self) -> Result<&'a [u8]> {
        // SAFETY: the caller's promise.
        unsafe { many(self.data.cast(), self.length, "data") }
    }
}

/// `dragon_message`.
#[derive(Debug)]
#[repr(C)]
pub struct DragonMessage {
    /// The bytes.
    pub data: *const c_void,
    /// How many.
    pub length: usize,
    /// The sender's number.
    pub hint: u64,
    /// The first one owns the message, the second counts it in its session, the others are kept for later releases.
    pub private_words: [*mut c_void; 8],
}

/// What a [`DragonMessage`] owns. A result, so that it is moved only once on its way into the box: a small message lies in
/// it as a whole.
type Received = channels::Result<channels::Message>;

impl DragonMessage {
    #[inline]
    fn receive(channel: &Channel, deadline: Deadline, out: Out<Self>) -> Result<()> {
        let (channel, session) = channel.below()?;
        Self::show(channel.receive(deadline), session, out)
    }

    /// Gives what was received to the caller.
    #[inline]
    pub(super) fn show(
        received: Received,
        session: &'static Session,
        out: Out<Self>,
    ) -> Result<()> {
        if let Err(error) = received {
            return Err(error.into());
        }
        out.put(Self::shown(received, session));
        Ok(())
    }

    /// A message to be given to the caller.
    fn of(message: channels::Message, session: &'static Session) -> Self {
        Self::shown(Ok(message), session)
    }

    #[inline]
    fn shown(received: Received, session: &'static Session) -> Self {
        // A box, since the bytes of a small message lie inside it, and the caller may move this structure.
        let received: Box<Received> = Box::new(received);
        let mut shown = Self {
            data: ptr::null(),
            length: 0,
            hint: 0,
            private_words: [ptr::null_mut(); 8],
        };
        if let Ok(message) = &*received {
            shown.data = message.bytes_ptr().cast();
            shown.length = message.len();
            shown.hint = message.hint();
            // A message in the pool needs the slot. It came through a handle, so the session cannot have been left.
            if message.block().is_some() && session.enter().is_ok() {
                shown.private_words[1] = ptr::from_ref(session).cast_mut().cast();
            }
        }
        shown.private_words[0] = Box::into_raw(received).cast();
        shown
    }

    /// The message that it owns, unless it was released.
    ///
    /// # Safety
    /// Made by [`Self::shown`], or all zeros; no copy of it was released.
    unsafe fn received(&self) -> Option<&channels::Message> {
        // SAFETY: the caller's promise.
        let received = unsafe { self.private_words[0].cast::<Received>().as_ref() };
        received.and_then(|received| received.as_ref().ok())
    }

    /// # Safety
    /// Made by [`Self::shown`], or all zeros; at most one copy is released.
    #[inline]
    unsafe fn release(&mut self) {
        let received = mem::replace(&mut self.private_words[0], ptr::null_mut());
        if received.is_null() {
            return;
        }
        // SAFETY: it came from `Box::into_raw`, and the replacement above makes this the only release.
        drop(unsafe { Box::from_raw(received.cast::<Received>()) });
        let session = mem::replace(&mut self.private_words[1], ptr::null_mut());
        // SAFETY: null, or a session, and those are never freed.
        if let Some(session) = unsafe { session.cast::<Session>().as_ref() } {
            session.leave();
        }
        self.data = ptr::null();
        self.length = 0;
    }
}

/// As many parts as find room on the stack.
const FEW: usize = 8;

/// Sends through a function that takes slices.
///
/// The parts are what the caller of the C function promised.
#[inline]
pub(super) fn with_slices(
    parts: &[DragonBytes],
    send: impl FnOnce(&[IoSlice<'_>]) -> Result<()>,
) -> Result<()> {
    let mut few = [IoSlice::new(&[]); FEW];
    let Some(slices) = few.get_mut(..parts.len()) else {
        // SAFETY: the promise of the C function's caller.
        let read = |part: &DragonBytes| unsafe { part.get() }.map(IoSlice::new);
        let many: Vec<IoSlice<'_>> = parts.iter().map(read).collect::<Result<_>>()?;
        return send(&many);
    };
    for (slice, part) in slices.iter_mut().zip(parts) {
        // SAFETY: as above.
        *slice = IoSlice::new(unsafe { part.get() }?);
    }
    send(slices)
}

object! {
    Channel channel {
        attach: dragon_channel_attach,
        close: dragon_channel_close,
        descriptor: dragon_channel_descriptor,
        export: dragon_channel_export,
        destroy: dragon_channel_destroy,
        set_wait_mode: dragon_channel_set_wait_mode,
    }
}

functions! {
    fn dragon_channel_create(options: Option<&DragonChannelOptions>, channel: Out<*mut Channel>) {
        let options = options.map(DragonChannelOptions::read).transpose()?;
        channel.give(Channel::create(&options.unwrap_or_default())?);
        Ok(())
    }

    fn dragon_channel_send(
        channel: &Channel,
        parts: *const DragonBytes,
        count: usize,
        hint: u64,
        timeout: Deadline,
    ) {
        // SAFETY: the caller's promise.
        let parts = unsafe { many(parts, count, "parts") }?;
        if let [only] = parts {
            // SAFETY: the caller's promise.
            return channel.send(unsafe { only.get() }?, hint, timeout);
        }
        with_slices(parts, |slices| channel.send_parts(slices, hint, timeout))
    }

    fn dragon_channel_receive(channel: &Channel, timeout: Deadline, message: Out<DragonMessage>) {
        DragonMessage::receive(channel, timeout, message)
    }

    fn dragon_message_release(message: &mut DragonMessage) {
        // SAFETY: the message came from a function that receives, or is all zeros.
        unsafe { message.release() };
        Ok(())
    }

    fn dragon_channel_poll(channel: &Channel, timeout: Deadline, count: Out<u64>) {
        count.put(channel.poll(timeout)?);
        Ok(())
    }

    fn dragon_channel_attributes(channel: &Channel, count: Out<u64>, capacity: Out<u64>) {
        let found = channel.attributes()?;
        count.put(found.messages);
        capacity.put(found.capacity);
        Ok(())
    }

    fn dragon_channel_get_info(channel: &Channel, info: &mut DragonChannelInfo) {
        check_size::<DragonChannelInfo>("dragon_channel_info", info.size)?;
        *info = DragonChannelInfo::of(&channel.attributes()?);
        Ok(())
    }

    fn dragon_channel_poll_for(channel: &Channel, state: Poll, timeout: Deadline, count: Wanted<u64>) {
        count.put(channel.poll_for(state, timeout)?);
        Ok(())
    }

    fn dragon_channel_send_with(
        channel: &Channel,
        parts: *const DragonBytes,
        count: usize,
        options: &DragonSendOptions,
        timeout: Deadline,
    ) {
        // SAFETY: the caller's promise.
        let parts = unsafe { many(parts, count, "parts") }?;
        // SAFETY: the caller's promise.
        let options = unsafe { options.read(timeout) }?;
        with_slices(parts, |slices| channel.send_with(slices, &options))
    }

    fn dragon_channel_send_many(
        channel: &Channel,
        messages: *const DragonBytes,
        hints: *const u64,
        count: usize,
        timeout: Deadline,
        sent: Out<usize>,
    ) {
        // SAFETY: the caller's promise.
        let messages = unsafe { many(messages, count, "messages") }?;
        let mut outgoing = Vec::with_capacity(count);
        for message in messages {
            // SAFETY: the caller's promise.
            outgoing.push((unsafe { message.get() }?, 0));
        }
        if !hints.is_null() {
            // SAFETY: the caller's promise, and not null.
            let hints = unsafe { many(hints, count, "hints") }?;
            for ((_, place), hint) in outgoing.iter_mut().zip(hints) {
                *place = *hint;
            }
        }
        sent.put(channel.send_many(&outgoing, timeout)?);
        Ok(())
    }

    fn dragon_channel_receive_into(
        channel: &Channel,
        buffer: *mut c_void,
        capacity: usize,
        timeout: Deadline,
        received: Out<DragonReceived>,
    ) {
        // SAFETY: the caller's promise.
        let buffer = unsafe { room(buffer, capacity) }?;
        let found = channel.receive_into(buffer, timeout)?;
        received.put(DragonReceived {
            length: found.length,
            hint: found.hint,
            trace: found.trace.unwrap_or_default(),
            traced: found.trace.is_some().into(),
            reserved: 0,
        });
        Ok(())
    }

    fn dragon_channel_receive_many(
        channel: &Channel,
        timeout: Deadline,
        messages: *mut DragonMessage,
        capacity: usize,
        count: Out<usize>,
    ) {
        if messages.is_null() || capacity == 0 {
            return Err(null("messages"));
        }
        let (channel, session) = channel.below()?;
        let received = channel.receive_many(capacity, timeout)?;
        let shown = received.into_iter().map(|message| DragonMessage::of(message, session));
        // SAFETY: the caller's promise.
        unsafe { list(shown, messages, capacity, count) }
    }

    fn dragon_channel_peek(channel: &Channel, timeout: Deadline, message: Out<DragonMessage>) {
        let (channel, session) = channel.below()?;
        DragonMessage::show(channel.peek(timeout), session, message)
    }

    fn dragon_message_trace(message: &DragonMessage, trace: Out<[u8; 16]>, traced: Out<i32>) {
        // SAFETY: the message came from a function that receives, or is all zeros.
        let found = unsafe { message.received() }.and_then(channels::Message::trace);
        traced.put(found.is_some().into());
        trace.put(found.unwrap_or_default());
        Ok(())
    }
}
