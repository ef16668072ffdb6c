//! Locks.

use super::{Out, close, deadline, descriptor, guard, put_if_wanted, refer};
use crate::objects::Lock;

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_lock_create(user: u64, lock: *mut *mut Lock) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(lock, "lock") }?;
        out.give(Lock::create(user)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_lock_attach(
    descriptor: *const [u8; 32],
    adopt: i32,
    lock: *mut *mut Lock,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(lock, "lock") }?;
        // SAFETY: the caller's promise.
        let descriptor = unsafe { descriptor::read(descriptor) }?;
        out.give(Lock::attach(descriptor, adopt != 0)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_lock_close(lock: *mut Lock) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { close(lock, "lock") }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_lock_destroy(lock: *const Lock) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe { refer(lock, "lock") }?.destroy())
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_lock_descriptor(
    lock: *const Lock,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let lock = unsafe { refer(lock, "lock") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| Ok(lock.descriptor()), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_lock_export(lock: *const Lock, descriptor: *mut [u8; 32]) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let lock = unsafe { refer(lock, "lock") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| lock.export(), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_lock_acquire(
    lock: *const Lock,
    timeout: i64,
    owner_died: *mut i32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let lock = unsafe { refer(lock, "lock") }?;
        let acquired = lock.acquire(deadline(timeout)?)?;
        // SAFETY: the caller's promise.
        unsafe { put_if_wanted(owner_died, acquired.owner_died.into()) };
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_lock_release(lock: *const Lock, any: i32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let lock = unsafe { refer(lock, "lock") }?;
        lock.release(any != 0)
    })
}
