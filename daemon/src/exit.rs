//! How this process ends: with a code of its own, or as the program that it stood for.

use std::process::ExitCode;

use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior};

use crate::exec::set_default;

/// How this process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(u8),
    /// As a process with this status, as `waitpid` gives it: killed by the same signal, where one killed that.
    Like(i32),
}

impl Exit {
    /// Ends this process by the signal that is to end it; else the code that it is to end with.
    #[must_use]
    pub fn carry_out(self) -> ExitCode {
        let status = match self {
            Self::Code(code) => return ExitCode::from(code),
            Self::Like(status) => status,
        };
        if let Some(signal) = Signal::from_named_raw(status & 0x7f) {
            // It is the program whose memory somebody wants to see, and it has left its own already.
            let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
            set_default(signal.as_raw());
            let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
        }
        ExitCode::from(code_of(status))
    }
}

/// The exit code of a status, as shells have it: 128 + n for signal n.
#[must_use]
pub fn code_of(status: i32) -> u8 {
    let (signal, code) = (status & 0x7f, status >> 8 & 0xff);
    u8::try_from(if signal == 0 { code } else { 128 + signal }).unwrap_or(u8::MAX)
}

/// The status of a process that ended with a code.
#[must_use]
pub fn status_of(code: u8) -> i32 {
    i32::from(code) << 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_shells() {
        assert_eq!(code_of(status_of(0)), 0);
        assert_eq!(code_of(status_of(255)), 255);
        assert_eq!(code_of(9), 128 + 9);
        assert_eq!(code_of(11 | 0x80), 128 + 11);
    }
}
