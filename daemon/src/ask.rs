//! What another program has to say.

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// For how long a program may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a program that reads nothing prints, or why it does not. It is killed when it takes too long.
///
/// # Errors
/// When it cannot be run, does not end in time, or fails: its exit code, and the last line that it said.
pub fn said(command: &mut Command) -> Result<String, String> {
    answer(command.stdin(Stdio::null()))
}

/// As [`said`], for a program that takes the end of its input for the end of this process.
///
/// # Errors
/// As [`said`].
pub fn said_beside(command: &mut Command) -> Result<String, String> {
    answer(command.stdin(Stdio::piped()))
}

fn answer(command: &mut Command) -> Result<String, String> {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let _open = child.stdin.take();
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(ended) = ended.recv_timeout(PATIENCE) else {
        // It is this process's own child, which nobody has waited for: the pid is still its own.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        return Err(format!("no answer within {} s", PATIENCE.as_secs()));
    };
    let output = ended.map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let errors = text(&output.stderr);
    let last = errors.lines().last().unwrap_or_default();
    Err(format!("{} {last}", output.status).trim().to_owned())
}
