//! Processes that run: to wait for and to signal.

use dragon_shmem::Deadline;

use super::function::{Out, Wanted, functions, object};
use super::{many, refer};
use crate::error::Result;
use crate::objects::Process;
use crate::spawn::wait_any;

object! {
    Process process {
        attach: dragon_process_attach,
        close: dragon_process_close,
        descriptor: dragon_process_descriptor,
        export: dragon_process_export,
        set_wait_mode: dragon_process_set_wait_mode,
    }
}

functions! {
    fn dragon_process_wait(process: &Process, timeout: Deadline, status: Wanted<i32>) {
        status.put(process.wait(timeout)?);
        Ok(())
    }

    fn dragon_process_wait_any(
        processes: *const *const Process,
        count: usize,
        timeout: Deadline,
        place: Out<usize>,
        status: Wanted<i32>,
    ) {
        // SAFETY: the caller's promise.
        let all = unsafe { many(processes, count, "processes") }?;
        let all = all
            .iter()
            // SAFETY: the caller's promise.
            .map(|process| unsafe { refer(*process, "a process of the list") });
        let all = all.collect::<Result<Vec<_>>>()?;
        let (first, ended) = wait_any(&all, timeout)?;
        place.put(first);
        status.put(ended);
        Ok(())
    }

    fn dragon_process_signal_tree(process: &Process, signal_number: i32) {
        process.signal_tree(signal_number)
    }

    fn dragon_process_signal(process: &Process, signal_number: i32) {
        process.signal(signal_number)
    }
}
