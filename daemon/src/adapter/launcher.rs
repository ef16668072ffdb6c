//! Started by the `dragon` command: it sends one framed [`LaunchSpec`], by a pipe of its own or, through a remote shell,
//! on standard input.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dragon_protocol::key::JobKey;
use dragon_protocol::launch::LaunchSpec;
use dragon_protocol::{NodeIndex, frame};

use super::{Job, Manager};

/// The source that stands for standard input.
pub const STDIN: &str = "-";

/// Reads the launcher's message.
///
/// # Errors
/// When it cannot be read or makes no sense.
pub fn read(source: &OsStr) -> Result<Job> {
    let by_stdin = source == STDIN;
    let spec: LaunchSpec = if by_stdin {
        read_frame(Stdin).context("no launch message on standard input")?
    } else {
        let file =
            File::open(source).with_context(|| format!("cannot open {}", source.display()))?;
        read_frame(file).with_context(|| format!("no launch message in {}", source.display()))?
    };
    ensure!(
        (spec.rank as usize) < spec.hosts.len(),
        "rank {} of {} nodes in the launch message",
        spec.rank,
        spec.hosts.len()
    );
    let node = NodeIndex::new(spec.rank).context("a rank of more than 24 bits")?;
    Ok(Job {
        key: JobKey::new(spec.key),
        name: spec.job,
        node,
        hosts: spec.hosts,
        ports: spec.ports,
        fanout: spec.fanout.max(1),
        bring_up: Duration::from_millis(spec.bring_up_ms),
        program: spec.program.into_iter().map(OsString::from_vec).collect(),
        pool: spec.pool,
        forward_output: spec.forward_output,
        siblings: 0,
        cpus: None,
        network: spec.network,
        // The head's input may end; that of the others is the launcher's and carries nothing more.
        manager: Manager::Launcher {
            lifeline: by_stdin && node != NodeIndex::FIRST,
        },
    })
}

fn read_frame(mut source: impl Read) -> Result<LaunchSpec> {
    let mut head = [0; 4];
    source.read_exact(&mut head)?;
    let mut body = vec![0; frame::body_length(head)?];
    source.read_exact(&mut body)?;
    Ok(frame::decode(&body)?)
}

/// Standard input without a buffer: what follows the message belongs to the head program.
struct Stdin;

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Ok(rustix::io::read(rustix::stdio::stdin(), buffer)?)
    }
}
