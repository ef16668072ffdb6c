//! Processes that run: to wait for and to signal.

use super::{Out, close, deadline, descriptor, guard, put_if_wanted, refer};
use crate::objects::Process;

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_process_attach(
    descriptor: *const [u8; 32],
    adopt: i32,
    process: *mut *mut Process,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(process, "process") }?;
        // SAFETY: the caller's promise.
        let descriptor = unsafe { descriptor::read(descriptor) }?;
        out.give(Process::attach(descriptor, adopt != 0)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_process_close(process: *mut Process) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { close(process, "process") }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_process_descriptor(
    process: *const Process,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let process = unsafe { refer(process, "process") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| Ok(process.descriptor()), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_process_export(
    process: *const Process,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let process = unsafe { refer(process, "process") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| process.export(), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_process_wait(
    process: *const Process,
    timeout: i64,
    status: *mut i32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let process = unsafe { refer(process, "process") }?;
        let ended = process.wait(deadline(timeout)?)?;
        // SAFETY: the caller's promise.
        unsafe { put_if_wanted(status, ended) };
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_process_signal(process: *const Process, signal_number: i32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let process = unsafe { refer(process, "process") }?;
        process.signal(signal_number)
    })
}
