//! Conditions.

use std::ffi::c_void;

use dragon_channels::ConditionOptions;
use dragon_shmem::Deadline;

use super::function::{OnSignal, Out, Wanted, functions, object};
use super::or_default;
use crate::sync::{Condition, Lock};

object! {
    Condition condition {
        attach: dragon_condition_attach,
        close: dragon_condition_close,
        descriptor: dragon_condition_descriptor,
        export: dragon_condition_export,
        destroy: dragon_condition_destroy,
        set_wait_mode: dragon_condition_set_wait_mode,
    }
}

functions! {
    fn dragon_condition_create(waiters: u32, user: u64, condition: Out<*mut Condition>) {
        let waiters = or_default(waiters, ConditionOptions::default().waiters);
        condition.give(Condition::create(&ConditionOptions { waiters, user })?);
        Ok(())
    }

    fn dragon_condition_wait(condition: &Condition, lock: &Lock, timeout: Deadline, owner_died: Wanted<i32>) {
        owner_died.put(condition.wait(lock, timeout)?.owner_died.into());
        Ok(())
    }

    fn dragon_condition_wait_through_signals(
        condition: &Condition,
        lock: &Lock,
        timeout: Deadline,
        on_signal: OnSignal,
        context: *mut c_void,
        owner_died: Wanted<i32>,
    ) {
        let go_on = || on_signal.call(context);
        let mut taken = None;
        let woken = condition.wait_through_signals(lock, timeout, go_on, &mut taken);
        if let Some(taken) = taken {
            owner_died.put(taken.owner_died.into());
        }
        woken?;
        Ok(())
    }

    fn dragon_condition_notify(condition: &Condition, count: u32, woken: Wanted<u32>) {
        woken.put(condition.notify(count)?);
        Ok(())
    }

    fn dragon_condition_waiting(condition: &Condition, waiting: Out<u32>) {
        waiting.put(condition.waiting()?);
        Ok(())
    }
}
