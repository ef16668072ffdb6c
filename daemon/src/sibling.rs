//! The other tasks of a step with a head on a node: each tells the daemon its CPUs and waits for the end of the runtime, so that no
//! task of the step ends early.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use dragon_protocol::attach::{self, AttachHello, AttachReply, HELLO_MAGIC, ROLE_SIBLING};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;
use zerocopy::IntoBytes;

use crate::adapter::Job;
use crate::resources;

/// Waits for the end of the runtime; the exit code is 0, since the head's counts.
///
/// # Errors
/// When the node's daemon does not come up.
pub async fn run(job: &Job) -> Result<u8> {
    let mut stream = report(job, ROLE_SIBLING).await?;
    // Nothing follows the reply but the end of the runtime.
    let mut bytes = vec![0; size_of::<AttachReply>()];
    while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {}
    Ok(0)
}

/// Connects to the daemon of this node, and tells it the CPUs of this task.
///
/// # Errors
/// When the daemon does not come up.
pub(crate) async fn report(job: &Job, role: u16) -> Result<UnixStream> {
    let mut stream = connect(job).await?;
    let mask = resources::own_mask();
    let hello = AttachHello {
        magic: HELLO_MAGIC,
        protocol: dragon_protocol::PROTOCOL_VERSION.into(),
        role: role.into(),
        release: attach::release_bytes(),
        reserved: 0.into(),
    };
    let length = u32::try_from(mask.len())?.to_le_bytes();
    stream
        .write_all(&[hello.as_bytes(), &length, &mask].concat())
        .await?;
    Ok(stream)
}

/// The daemon starts at the same moment: its socket may not be there yet, so this tries again, with growing pauses. The
/// daemon waits for its siblings, so it cannot be gone already.
async fn connect(job: &Job) -> Result<UnixStream> {
    let name = job.socket_name();
    let address =
        SocketAddr::from_abstract_name(&name).context("the attach socket's name is too long")?;
    let deadline = Instant::now() + job.bring_up;
    let mut pause = Duration::from_millis(1);
    loop {
        match StdStream::connect_addr(&address) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                return Ok(UnixStream::from_std(stream)?);
            }
            Err(error) if Instant::now() + pause >= deadline => {
                bail!(
                    "the daemon of this node did not come up within {:?}: {error}",
                    job.bring_up
                )
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
