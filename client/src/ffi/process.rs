//! Processes that run: to wait for and to signal.

use dragon_shmem::Deadline;

use super::function::{Wanted, functions, object};
use crate::objects::Process;

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

    fn dragon_process_signal(process: &Process, signal_number: i32) {
        process.signal(signal_number)
    }
}
