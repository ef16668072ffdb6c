//! Events.

use super::{Out, close, deadline, descriptor, guard, refer};
use crate::objects::Event;

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_event_create(user: u64, event: *mut *mut Event) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(event, "event") }?;
        out.give(Event::create(user)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_event_attach(
    descriptor: *const [u8; 32],
    adopt: i32,
    event: *mut *mut Event,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(event, "event") }?;
        // SAFETY: the caller's promise.
        let descriptor = unsafe { descriptor::read(descriptor) }?;
        out.give(Event::attach(descriptor, adopt != 0)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_event_close(event: *mut Event) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { close(event, "event") }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_event_destroy(event: *const Event) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe { refer(event, "event") }?.destroy())
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_event_descriptor(
    event: *const Event,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let event = unsafe { refer(event, "event") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| Ok(event.descriptor()), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_event_export(
    event: *const Event,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let event = unsafe { refer(event, "event") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| event.export(), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_event_set(event: *const Event) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let event = unsafe { refer(event, "event") }?;
        event.set()
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_event_clear(event: *const Event) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let event = unsafe { refer(event, "event") }?;
        event.clear()
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_event_wait(event: *const Event, timeout: i64) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let event = unsafe { refer(event, "event") }?;
        event.wait(deadline(timeout)?)
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_event_is_set(event: *const Event, set: *mut i32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let event = unsafe { refer(event, "event") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(set, "set") }?;
        out.put(event.is_set()?.into());
        Ok(())
    })
}
