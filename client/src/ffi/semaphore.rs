//! Semaphores.

use super::{Out, close, deadline, descriptor, guard, refer};
use crate::objects::Semaphore;

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_semaphore_create(
    value: u32,
    max: u32,
    user: u64,
    semaphore: *mut *mut Semaphore,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(semaphore, "semaphore") }?;
        out.give(Semaphore::create(value, max, user)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_semaphore_attach(
    descriptor: *const [u8; 32],
    adopt: i32,
    semaphore: *mut *mut Semaphore,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(semaphore, "semaphore") }?;
        // SAFETY: the caller's promise.
        let descriptor = unsafe { descriptor::read(descriptor) }?;
        out.give(Semaphore::attach(descriptor, adopt != 0)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_semaphore_close(semaphore: *mut Semaphore) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { close(semaphore, "semaphore") }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_semaphore_destroy(semaphore: *const Semaphore) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe { refer(semaphore, "semaphore") }?.destroy())
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_semaphore_descriptor(
    semaphore: *const Semaphore,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let semaphore = unsafe { refer(semaphore, "semaphore") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| Ok(semaphore.descriptor()), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_semaphore_export(
    semaphore: *const Semaphore,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let semaphore = unsafe { refer(semaphore, "semaphore") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| semaphore.export(), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_semaphore_acquire(
    semaphore: *const Semaphore,
    timeout: i64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let semaphore = unsafe { refer(semaphore, "semaphore") }?;
        semaphore.acquire(deadline(timeout)?)
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_semaphore_release(semaphore: *const Semaphore, count: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let semaphore = unsafe { refer(semaphore, "semaphore") }?;
        semaphore.release(count)
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_semaphore_value(
    semaphore: *const Semaphore,
    value: *mut u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let semaphore = unsafe { refer(semaphore, "semaphore") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(value, "value") }?;
        out.put(semaphore.value()?);
        Ok(())
    })
}
