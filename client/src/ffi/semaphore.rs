//! Semaphores.

use dragon_channels::SemaphoreOptions;
use dragon_shmem::Deadline;

use super::function::{Out, functions, object};
use crate::sync::Semaphore;

object! {
    Semaphore semaphore {
        attach: dragon_semaphore_attach,
        close: dragon_semaphore_close,
        descriptor: dragon_semaphore_descriptor,
        export: dragon_semaphore_export,
        destroy: dragon_semaphore_destroy,
        set_wait_mode: dragon_semaphore_set_wait_mode,
    }
}

functions! {
    fn dragon_semaphore_create(value: u32, max: u32, user: u64, semaphore: Out<*mut Semaphore>) {
        semaphore.give(Semaphore::create(value, max, user)?);
        Ok(())
    }

    fn dragon_semaphore_create_owned(value: u32, max: u32, user: u64, semaphore: Out<*mut Semaphore>) {
        let options = SemaphoreOptions {
            value,
            most: max,
            owned: true,
            user,
        };
        semaphore.give(Semaphore::with_options(&options)?);
        Ok(())
    }

    fn dragon_semaphore_acquire(semaphore: &Semaphore, timeout: Deadline) {
        semaphore.acquire(timeout)
    }

    fn dragon_semaphore_acquire_many(semaphore: &Semaphore, units: u32, timeout: Deadline) {
        semaphore.acquire_many(units, timeout)
    }

    fn dragon_semaphore_wait_zero(semaphore: &Semaphore, timeout: Deadline) {
        semaphore.wait_zero(timeout)
    }

    fn dragon_semaphore_release(semaphore: &Semaphore, count: u32) {
        semaphore.release(count)
    }

    fn dragon_semaphore_value(semaphore: &Semaphore, value: Out<u32>) {
        value.put(semaphore.value()?);
        Ok(())
    }
}
