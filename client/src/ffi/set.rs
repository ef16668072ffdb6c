//! Sets.

use dragon_channels::{Interest, SetMember};
use dragon_protocol::Descriptor;
use dragon_shmem::Deadline;

use super::function::{Out, Wanted, functions, object};
use super::{list, null};
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

object! {
    Set set {
        attach: dragon_set_attach,
        close: dragon_set_close,
        descriptor: dragon_set_descriptor,
        export: dragon_set_export,
        destroy: dragon_set_destroy,
        set_wait_mode: dragon_set_set_wait_mode,
    }
}

functions! {
    fn dragon_set_create(capacity: u32, user: u64, set: Out<*mut Set>) {
        set.give(Set::create(capacity, user)?);
        Ok(())
    }

    fn dragon_set_add(set: &Set, object: Descriptor, interest: u32, token: u64, member: Wanted<u64>) {
        let added = set.add(&object, Interest::from_bits(interest), token)?;
        member.put(added.to_u64());
        Ok(())
    }

    fn dragon_set_remove(set: &Set, member: u64) {
        set.remove(SetMember::from_u64(member))
    }

    fn dragon_set_wait(
        set: &Set,
        timeout: Deadline,
        ready: *mut DragonReady,
        capacity: usize,
        count: Out<usize>,
    ) {
        if ready.is_null() || capacity == 0 {
            return Err(null("ready"));
        }
        let mut found = Vec::new();
        set.wait_into(&mut found, capacity, timeout)?;
        let shown = found.iter().map(|member| DragonReady {
            token: member.token,
            member: member.member.to_u64(),
            ready: member.ready.bits(),
            reserved: 0,
        });
        // SAFETY: the caller's promise.
        unsafe { list(shown, ready, capacity, count) }
    }
}
