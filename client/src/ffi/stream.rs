//! Streams: endpoints, both ends of a conversation, and pumps. An end is used by one thread at a time; others wait for it.

use std::ffi::c_void;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dragon_channels::EndpointOptions;
use dragon_shmem::Deadline;

use super::channel::DragonMessage;
use super::function::{Out, Taken, Wanted, functions, object};
use super::{check_size, many, or_default, room};
use crate::error::Result;
use crate::pool::PoolBlock;
use crate::streams::{Endpoint, Pump, StreamReceiver, StreamSender};

/// `dragon_endpoint_options`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonEndpointOptions {
    /// Bytes of this structure, as the caller knows it.
    pub size: usize,
    /// A number of the caller's choice.
    pub user: u64,
    /// Whether a conversation travels as one message.
    pub buffered: i32,
    /// Conversations at once; 0: the default.
    pub streams: u32,
    /// Stream channels that are kept; 0: the default.
    pub kept: u32,
    /// Chunks that a stream channel holds; 0: the default.
    pub capacity: u32,
    /// Bytes of a chunk that travels in the stream channel itself; 0: the default.
    pub block: u32,
    /// 0.
    pub reserved: u32,
}

impl DragonEndpointOptions {
    fn read(&self) -> Result<EndpointOptions> {
        check_size::<Self>("dragon_endpoint_options", self.size)?;
        let default = EndpointOptions::default();
        Ok(EndpointOptions {
            buffered: self.buffered != 0,
            streams: or_default(self.streams, default.streams),
            kept: or_default(self.kept, default.kept),
            capacity: or_default(self.capacity, default.capacity),
            block: or_default(self.block, default.block),
            user: self.user,
        })
    }
}

/// `dragon_stream_sender`.
#[derive(Debug)]
pub struct DragonStreamSender(Mutex<StreamSender>);

/// `dragon_stream_receiver`.
#[derive(Debug)]
pub struct DragonStreamReceiver(Mutex<StreamReceiver>);

// A thread that panicked left the end as a failed operation does.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unwrap<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}

object! {
    Endpoint endpoint {
        attach: dragon_endpoint_attach,
        close: dragon_endpoint_close,
        descriptor: dragon_endpoint_descriptor,
        export: dragon_endpoint_export,
        destroy: dragon_endpoint_destroy,
        set_wait_mode: dragon_endpoint_set_wait_mode,
    }
}

functions! {
    fn dragon_endpoint_create(options: Option<&DragonEndpointOptions>, endpoint: Out<*mut Endpoint>) {
        let options = options.map(DragonEndpointOptions::read).transpose()?;
        endpoint.give(Endpoint::create(&options.unwrap_or_default())?);
        Ok(())
    }

    fn dragon_endpoint_open_send(
        endpoint: &Endpoint,
        timeout: Deadline,
        sender: Out<*mut DragonStreamSender>,
    ) {
        sender.give(DragonStreamSender(Mutex::new(endpoint.open_send(timeout)?)));
        Ok(())
    }

    fn dragon_endpoint_accept(
        endpoint: &Endpoint,
        timeout: Deadline,
        receiver: Out<*mut DragonStreamReceiver>,
    ) {
        receiver.give(DragonStreamReceiver(Mutex::new(endpoint.accept(timeout)?)));
        Ok(())
    }

    fn dragon_stream_send(
        sender: &DragonStreamSender,
        data: *const c_void,
        length: usize,
        argument: u64,
        timeout: Deadline,
    ) {
        // SAFETY: the caller's promise.
        let bytes = unsafe { many(data.cast::<u8>(), length, "data") }?;
        lock(&sender.0).send(bytes, argument, timeout)
    }

    fn dragon_stream_send_block(
        sender: &DragonStreamSender,
        block: Taken<PoolBlock>,
        argument: u64,
        timeout: Deadline,
    ) {
        block.hand_over(|block| lock(&sender.0).send_block(block, argument, timeout))
    }

    fn dragon_stream_sender_finish(sender: &DragonStreamSender, timeout: Deadline) {
        lock(&sender.0).close(timeout)
    }

    fn dragon_stream_sender_close(sender: Box<DragonStreamSender>) {
        drop(sender);
        Ok(())
    }

    fn dragon_stream_sender_abort(sender: Taken<DragonStreamSender>) {
        unwrap(sender.out().0).abort()
    }

    fn dragon_stream_receive(
        receiver: &DragonStreamReceiver,
        timeout: Deadline,
        message: Out<DragonMessage>,
    ) {
        let mut receiver = lock(&receiver.0);
        let (receiver, session) = receiver.below()?;
        DragonMessage::show(receiver.receive(timeout), session, message)
    }

    fn dragon_stream_receive_into(
        receiver: &DragonStreamReceiver,
        buffer: *mut c_void,
        capacity: usize,
        timeout: Deadline,
        length: Out<usize>,
        argument: Wanted<u64>,
        last: Wanted<i32>,
    ) {
        // SAFETY: the caller's promise.
        let buffer = unsafe { room(buffer, capacity) }?;
        let part = lock(&receiver.0).receive_into(buffer, timeout)?;
        length.put(part.length);
        argument.put(part.argument);
        last.put(part.last.into());
        Ok(())
    }

    fn dragon_stream_poll(receiver: &DragonStreamReceiver, timeout: Deadline, chunk: Out<i32>) {
        chunk.put(lock(&receiver.0).poll(timeout)?.into());
        Ok(())
    }

    fn dragon_stream_receiver_close(receiver: Box<DragonStreamReceiver>) {
        drop(receiver);
        Ok(())
    }

    fn dragon_stream_sender_into_fd(
        sender: Taken<DragonStreamSender>,
        fd: Out<i32>,
        pump: Out<*mut Pump>,
    ) {
        give_fd(unwrap(sender.out().0).into_fd()?, fd, pump);
        Ok(())
    }

    fn dragon_stream_receiver_into_fd(
        receiver: Taken<DragonStreamReceiver>,
        fd: Out<i32>,
        pump: Out<*mut Pump>,
    ) {
        give_fd(unwrap(receiver.out().0).into_fd()?, fd, pump);
        Ok(())
    }

    fn dragon_pump_join(pump: Taken<Pump>, bytes: Wanted<u64>) {
        bytes.put(pump.out().join()?);
        Ok(())
    }
}

fn give_fd((ours, carrier): (OwnedFd, Pump), fd: Out<i32>, pump: Out<*mut Pump>) {
    fd.put(ours.into_raw_fd());
    pump.give(carrier);
}
