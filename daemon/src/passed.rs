//! Signals that are for the program that this process stands in front of. Slurm sends them to the first process of a task, or of
//! a script: that one passes them on, and neither ends nor stops by them itself.

use std::io;
use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Heard, SignalKind, signal};

/// What users and workload managers send to programs that may have asked for it (`scancel -s`, `--signal=XCPU@60`). Those that
/// cannot be taken are not among them, nor those by which the kernel speaks to one process alone.
pub const FOR_PROGRAMS: [Signal; 10] = [
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::ABORT,
    Signal::URG,
    Signal::XCPU,
    Signal::XFSZ,
    Signal::VTALARM,
    Signal::PROF,
    Signal::POWER,
];

/// What ends a program that does not mind it otherwise.
pub const ENDING: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

/// What Slurm says to the tasks of a job before it freezes them, and when it goes on (`scontrol suspend`, `resume`).
pub const STOPPING: [Signal; 2] = [Signal::TSTP, Signal::CONT];

/// Signals that are taken instead of what they do by default.
#[derive(Debug)]
pub struct Passed(Vec<(Signal, Heard)>);

impl Passed {
    /// Takes these from now on.
    ///
    /// # Errors
    /// When the kernel refuses one of them.
    pub fn take(signals: &[&[Signal]]) -> io::Result<Self> {
        let all = signals.iter().copied().flatten();
        let heard = all.map(|name| Ok((*name, signal(SignalKind::from_raw(name.as_raw()))?)));
        heard.collect::<io::Result<_>>().map(Self)
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (name, heard) in &mut self.0 {
                if heard.poll_recv(context).is_ready() {
                    return Poll::Ready(*name);
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// None of them ends this process.
    #[tokio::test]
    async fn each_is_heard() {
        let mut passed = Passed::take(&[&FOR_PROGRAMS, &ENDING, &STOPPING]).unwrap();
        for name in [&FOR_PROGRAMS[..], &ENDING, &STOPPING].concat() {
            rustix::process::kill_process(rustix::process::getpid(), name).unwrap();
            assert_eq!(passed.next().await, name);
        }
    }
}
