//! Streams: endpoints, both ends of a conversation, and pumps. An end is used by one thread at a time; others wait for it.

use std::ffi::c_void;
use std::os::fd::IntoRawFd as _;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dragon_channels::EndpointOptions;

use super::channel::DragonMessage;
use super::{
    Out, check_size, close, deadline, descriptor, guard, many, null, or_default, put_if_wanted,
    refer,
};
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

/// Takes a handle back from the caller, whose place becomes NULL.
///
/// # Safety
/// Null, or valid for a read and a write; what is there is NULL or came from [`Out::give`] and was not given back.
unsafe fn take<T>(place: *mut *mut T, what: &str) -> Result<Box<T>> {
    // SAFETY: the caller's promise.
    let place = unsafe { place.as_mut() }.ok_or_else(|| null(what))?;
    let handle = std::mem::replace(place, ptr::null_mut());
    if handle.is_null() {
        return Err(null(what));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { Box::from_raw(handle) })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_endpoint_create(
    options: *const DragonEndpointOptions,
    endpoint: *mut *mut Endpoint,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(endpoint, "endpoint") }?;
        // SAFETY: the caller's promise.
        let options = match unsafe { options.as_ref() } {
            Some(options) => options.read()?,
            None => EndpointOptions::default(),
        };
        out.give(Endpoint::create(&options)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_endpoint_attach(
    descriptor: *const [u8; 32],
    adopt: i32,
    endpoint: *mut *mut Endpoint,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(endpoint, "endpoint") }?;
        // SAFETY: the caller's promise.
        let descriptor = unsafe { descriptor::read(descriptor) }?;
        out.give(Endpoint::attach(descriptor, adopt != 0)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_endpoint_close(endpoint: *mut Endpoint) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { close(endpoint, "endpoint") }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_endpoint_destroy(endpoint: *const Endpoint) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe { refer(endpoint, "endpoint") }?.destroy())
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_endpoint_descriptor(
    endpoint: *const Endpoint,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let endpoint = unsafe { refer(endpoint, "endpoint") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| Ok(endpoint.descriptor()), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_endpoint_export(
    endpoint: *const Endpoint,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let endpoint = unsafe { refer(endpoint, "endpoint") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| endpoint.export(), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_endpoint_open_send(
    endpoint: *const Endpoint,
    timeout: i64,
    sender: *mut *mut DragonStreamSender,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let endpoint = unsafe { refer(endpoint, "endpoint") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(sender, "sender") }?;
        let opened = endpoint.open_send(deadline(timeout)?)?;
        out.give(DragonStreamSender(Mutex::new(opened)));
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_endpoint_accept(
    endpoint: *const Endpoint,
    timeout: i64,
    receiver: *mut *mut DragonStreamReceiver,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let endpoint = unsafe { refer(endpoint, "endpoint") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(receiver, "receiver") }?;
        let accepted = endpoint.accept(deadline(timeout)?)?;
        out.give(DragonStreamReceiver(Mutex::new(accepted)));
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_send(
    sender: *const DragonStreamSender,
    data: *const c_void,
    length: usize,
    argument: u64,
    timeout: i64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let sender = unsafe { refer(sender, "sender") }?;
        // SAFETY: the caller's promise.
        let bytes = unsafe { many(data.cast::<u8>(), length, "data") }?;
        lock(&sender.0).send(bytes, argument, deadline(timeout)?)
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_send_block(
    sender: *const DragonStreamSender,
    block: *mut *mut PoolBlock,
    argument: u64,
    timeout: i64,
) -> i32 {
    guard(|| {
        let deadline = deadline(timeout)?;
        // SAFETY: the caller's promise.
        let sender = unsafe { refer(sender, "sender") }?;
        // SAFETY: the caller's promise.
        let taken = unsafe { take(block, "block") }?;
        let sent = lock(&sender.0).send_block(*taken, argument, deadline);
        sent.map_err(|(error, back)| {
            // SAFETY: not null: `take` found a block there.
            unsafe { block.write(Box::into_raw(Box::new(back))) };
            error
        })
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_sender_finish(
    sender: *const DragonStreamSender,
    timeout: i64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let sender = unsafe { refer(sender, "sender") }?;
        lock(&sender.0).close(deadline(timeout)?)
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_sender_close(sender: *mut DragonStreamSender) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { close(sender, "sender") }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_sender_abort(sender: *mut *mut DragonStreamSender) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let sender = unsafe { take(sender, "sender") }?;
        unwrap(sender.0).abort()
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_receive(
    receiver: *const DragonStreamReceiver,
    timeout: i64,
    message: *mut DragonMessage,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let receiver = unsafe { refer(receiver, "receiver") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(message, "message") }?;
        let mut receiver = lock(&receiver.0);
        let (receiver, session) = receiver.below()?;
        DragonMessage::show(receiver.receive(deadline(timeout)?), session, out)
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_receive_into(
    receiver: *const DragonStreamReceiver,
    buffer: *mut c_void,
    capacity: usize,
    timeout: i64,
    length: *mut usize,
    argument: *mut u64,
    last: *mut i32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let receiver = unsafe { refer(receiver, "receiver") }?;
        // SAFETY: the caller's promise.
        let length = unsafe { Out::new(length, "length") }?;
        if buffer.is_null() && capacity != 0 {
            return Err(null("buffer"));
        }
        let mut nothing = [];
        let buffer = if capacity == 0 {
            &mut nothing[..]
        } else {
            // SAFETY: not null, and the caller vouches for so many bytes, which nobody else uses meanwhile.
            unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), capacity) }
        };
        let part = lock(&receiver.0).receive_into(buffer, deadline(timeout)?)?;
        length.put(part.length);
        // SAFETY: the caller's promise.
        unsafe { put_if_wanted(argument, part.argument) };
        // SAFETY: the caller's promise.
        unsafe { put_if_wanted(last, part.last.into()) };
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_poll(
    receiver: *const DragonStreamReceiver,
    timeout: i64,
    chunk: *mut i32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let receiver = unsafe { refer(receiver, "receiver") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(chunk, "chunk") }?;
        out.put(lock(&receiver.0).poll(deadline(timeout)?)?.into());
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_receiver_close(receiver: *mut DragonStreamReceiver) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { close(receiver, "receiver") }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_sender_into_fd(
    sender: *mut *mut DragonStreamSender,
    fd: *mut i32,
    pump: *mut *mut Pump,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let fd = unsafe { Out::new(fd, "fd") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(pump, "pump") }?;
        // SAFETY: the caller's promise.
        let sender = unsafe { take(sender, "sender") }?;
        let (ours, pump) = unwrap(sender.0).into_fd()?;
        fd.put(ours.into_raw_fd());
        out.give(pump);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_stream_receiver_into_fd(
    receiver: *mut *mut DragonStreamReceiver,
    fd: *mut i32,
    pump: *mut *mut Pump,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let fd = unsafe { Out::new(fd, "fd") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(pump, "pump") }?;
        // SAFETY: the caller's promise.
        let receiver = unsafe { take(receiver, "receiver") }?;
        let (ours, pump) = unwrap(receiver.0).into_fd()?;
        fd.put(ours.into_raw_fd());
        out.give(pump);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pump_join(pump: *mut *mut Pump, bytes: *mut u64) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let pump = unsafe { take(pump, "pump") }?;
        let carried = pump.join()?;
        // SAFETY: the caller's promise.
        unsafe { put_if_wanted(bytes, carried) };
        Ok(())
    })
}
