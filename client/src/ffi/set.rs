//! Sets.

use dragon_channels::{Interest, SetMember};

use super::{Out, close, deadline, descriptor, guard, null, refer};
use crate::error::Result;
use crate::set::Set;

/// `dragon_ready`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonReady {
    /// The number that the add was given.
    pub token: u64,
    /// The place in the set.
    pub member: u64,
    /// What it is ready for.
    pub ready: u32,
    /// 0.
    pub reserved: u32,
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_set_create(capacity: u32, user: u64, set: *mut *mut Set) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(set, "set") }?;
        out.give(Set::create(capacity, user)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_set_attach(
    descriptor: *const [u8; 32],
    adopt: i32,
    set: *mut *mut Set,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(set, "set") }?;
        // SAFETY: the caller's promise.
        let descriptor = unsafe { descriptor::read(descriptor) }?;
        out.give(Set::attach(descriptor, adopt != 0)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_set_close(set: *mut Set) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { close(set, "set") }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_set_destroy(set: *const Set) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe { refer(set, "set") }?.destroy())
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_set_descriptor(set: *const Set, descriptor: *mut [u8; 32]) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let set = unsafe { refer(set, "set") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| Ok(set.descriptor()), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_set_export(set: *const Set, descriptor: *mut [u8; 32]) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let set = unsafe { refer(set, "set") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| set.export(), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_set_add(
    set: *const Set,
    object: *const [u8; 32],
    interest: u32,
    token: u64,
    member: *mut u64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let set = unsafe { refer(set, "set") }?;
        // SAFETY: the caller's promise.
        let object = unsafe { descriptor::read(object) }?;
        let added = set.add(&object, Interest::from_bits(interest), token)?;
        // SAFETY: the caller's promise.
        unsafe { super::put_if_wanted(member, added.to_u64()) };
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_set_remove(set: *const Set, member: u64) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let set = unsafe { refer(set, "set") }?;
        set.remove(SetMember::from_u64(member))
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_set_wait(
    set: *const Set,
    timeout: i64,
    ready: *mut DragonReady,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let set = unsafe { refer(set, "set") }?;
        if ready.is_null() || capacity == 0 {
            return Err(null("ready"));
        }
        // SAFETY: the caller's promise.
        let count = unsafe { Out::new(count, "count") }?;
        count.put(wait(set, timeout, ready, capacity)?);
        Ok(())
    })
}

/// `ready` is valid for writes of `capacity` values, as the caller of `dragon_set_wait` promises.
fn wait(set: &Set, timeout: i64, ready: *mut DragonReady, capacity: usize) -> Result<usize> {
    let mut found = Vec::new();
    let length = set.wait_into(&mut found, capacity, deadline(timeout)?)?;
    for (n, member) in found.iter().enumerate().take(capacity) {
        let shown = DragonReady {
            token: member.token,
            member: member.member.to_u64(),
            ready: member.ready.bits(),
            reserved: 0,
        };
        // SAFETY: below the capacity, for which the caller vouches.
        let place = unsafe { ready.add(n) };
        // SAFETY: as above.
        unsafe { place.write(shown) };
    }
    Ok(length)
}
