//! Channels and messages.

use std::ffi::c_void;
use std::io::IoSlice;
use std::{mem, ptr};

use dragon_channels::{self as channels, ChannelOptions};
use dragon_shmem::Deadline;

use super::function::{Out, functions, object};
use super::{check_size, many, or_default};
use crate::error::Result;
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
        out.put(shown);
        Ok(())
    }

    /// # Safety
    /// Made by [`Self::receive`], or all zeros; at most one copy is released.
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

#[inline]
fn send(channel: &Channel, parts: &[DragonBytes], hint: u64, deadline: Deadline) -> Result<()> {
    if let [only] = parts {
        // SAFETY: the promise of `dragon_channel_send`'s caller.
        return channel.send(unsafe { only.get() }?, hint, deadline);
    }
    let mut few = [IoSlice::new(&[]); FEW];
    let Some(slices) = few.get_mut(..parts.len()) else {
        // SAFETY: as above.
        let read = |part: &DragonBytes| unsafe { part.get() }.map(IoSlice::new);
        let many: Vec<IoSlice<'_>> = parts.iter().map(read).collect::<Result<_>>()?;
        return channel.send_parts(&many, hint, deadline);
    };
    for (slice, part) in slices.iter_mut().zip(parts) {
        // SAFETY: as above.
        *slice = IoSlice::new(unsafe { part.get() }?);
    }
    channel.send_parts(slices, hint, deadline)
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
        send(channel, parts, hint, timeout)
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
        let (messages, room) = channel.attributes()?;
        count.put(messages);
        capacity.put(room);
        Ok(())
    }
}
