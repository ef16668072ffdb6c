//! Barriers.

use std::ffi::c_void;

use dragon_channels::{Breakage, Turn};
use dragon_shmem::Deadline;

use super::function::{OnSignal, Out, Wanted, functions, object};
use crate::sync::Barrier;

object! {
    Barrier barrier {
        attach: dragon_barrier_attach,
        close: dragon_barrier_close,
        descriptor: dragon_barrier_descriptor,
        export: dragon_barrier_export,
        destroy: dragon_barrier_destroy,
        set_wait_mode: dragon_barrier_set_wait_mode,
    }
}

functions! {
    fn dragon_barrier_create(parties: u32, user: u64, barrier: Out<*mut Barrier>) {
        barrier.give(Barrier::create(parties, user)?);
        Ok(())
    }

    fn dragon_barrier_wait(barrier: &Barrier, timeout: Deadline, number: Wanted<u32>) {
        number.put(barrier.wait(timeout)?);
        Ok(())
    }

    fn dragon_barrier_create_with_action(parties: u32, user: u64, barrier: Out<*mut Barrier>) {
        barrier.give(Barrier::create_with_action(parties, user)?);
        Ok(())
    }

    fn dragon_barrier_wait_through_signals(
        barrier: &Barrier,
        timeout: Deadline,
        on_signal: OnSignal,
        context: *mut c_void,
        number: Wanted<u32>,
        turn: Out<u64>,
    ) {
        let go_on = || on_signal.call(context);
        let passed = barrier.wait_through_signals(timeout, go_on)?;
        number.put(passed.number);
        turn.put(passed.turn.map_or(0, Turn::number));
        Ok(())
    }

    fn dragon_barrier_acted(barrier: &Barrier, turn: u64, done: i32) {
        barrier.acted(Turn::from_number(turn), done != 0)
    }

    fn dragon_barrier_abort(barrier: &Barrier) {
        barrier.abort()
    }

    fn dragon_barrier_reset(barrier: &Barrier) {
        barrier.reset()
    }

    fn dragon_barrier_state(barrier: &Barrier, parties: Wanted<u32>, waiting: Wanted<u32>, broken: Wanted<i32>) {
        let state = barrier.state()?;
        parties.put(state.parties);
        waiting.put(state.waiting);
        broken.put(state.broken.map_or(0, number));
        Ok(())
    }
}

/// A `dragon_breakage`.
fn number(why: Breakage) -> i32 {
    match why {
        Breakage::Timeout => 1,
        Breakage::Aborted => 2,
        Breakage::Died => 3,
        Breakage::Reset => 4,
        _ => 5,
    }
}
