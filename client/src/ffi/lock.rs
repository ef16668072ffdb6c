//! Locks.

use dragon_shmem::Deadline;

use super::function::{Out, Wanted, functions, object};
use crate::sync::Lock;

object! {
    Lock lock {
        attach: dragon_lock_attach,
        close: dragon_lock_close,
        descriptor: dragon_lock_descriptor,
        export: dragon_lock_export,
        destroy: dragon_lock_destroy,
        set_wait_mode: dragon_lock_set_wait_mode,
    }
}

functions! {
    fn dragon_lock_create(user: u64, lock: Out<*mut Lock>) {
        lock.give(Lock::create(user)?);
        Ok(())
    }

    fn dragon_lock_create_recursive(user: u64, lock: Out<*mut Lock>) {
        lock.give(Lock::create_recursive(user)?);
        Ok(())
    }

    fn dragon_lock_acquire(lock: &Lock, timeout: Deadline, owner_died: Wanted<i32>) {
        owner_died.put(lock.acquire(timeout)?.owner_died.into());
        Ok(())
    }

    fn dragon_lock_release(lock: &Lock, any: i32) {
        lock.release(any != 0)
    }
}
