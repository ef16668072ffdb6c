//! The attach socket: how a process of this node and user becomes part of the runtime.
//!
//! An abstract socket, so nothing lies in the file system; its name holds a part derived from the key, so nobody can take
//! it first. Who connects is known by the kernel (`SO_PEERCRED`): other users are closed at once and counted.

mod conversation;

use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dragon_protocol::attach::{
    self, AttachHello, AttachReply, Attached, HELLO_MAGIC, REPLY_MAGIC, ROLE_CLIENT, ROLE_INSPECT,
    ROLE_SIBLING, ROLE_TASK, Region, RegionKind,
};
use dragon_protocol::{Code, NodeIndex, PROTOCOL_VERSION, RuntimeId, SlotId, frame};
use dragon_transport::descriptors::Frees;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use zerocopy::{FromBytes, IntoBytes};

use crate::listener::Listener;
use crate::memory::Memory;
use crate::readable::end_of;
use crate::services::Event;
use crate::task::program_from;

/// How long a process may take to say what it wants.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Largest CPU mask of a sibling: 8192 CPUs.
const MASK_LIMIT: usize = 1024;

/// What an attaching process gets: the node's regions.
#[derive(Debug)]
pub struct Shared {
    /// The runtime.
    pub runtime: RuntimeId,
    /// This node.
    pub node: NodeIndex,
    /// The regions, and their descriptors in the same order.
    pub regions: Vec<(Region, OwnedFd)>,
    /// The node's memory, for requests that are about nothing else.
    pub memory: Memory,
}

/// Listens on the abstract socket `name`.
///
/// # Errors
/// When the name is taken: another daemon of this job runs on the node.
pub fn listen(name: &str) -> Result<Listener> {
    let address =
        SocketAddr::from_abstract_name(name).context("the attach socket's name is too long")?;
    let listener = StdListener::bind_addr(&address)
        .with_context(|| format!("cannot take the attach socket @{name}"))?;
    Ok(Listener::patient(listener.into(), "attach socket")?)
}

/// Serves the attach socket for as long as the daemon lives. Clients wait until `shared` is there.
pub async fn serve(
    mut listener: Listener,
    shared: watch::Receiver<Option<Arc<Shared>>>,
    events: mpsc::Sender<Event>,
) {
    let own = rustix::process::getuid().as_raw();
    let mut refused = 0_u64;
    loop {
        let accepted = listener.accept().await;
        let stream = match accepted.and_then(|(stream, _)| UnixStream::from_std(stream.into())) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("an attach connection was not accepted: {error}");
                continue;
            }
        };
        let peer = match stream.peer_cred() {
            Ok(peer) if peer.uid() == own => peer,
            Ok(peer) => {
                refused += 1;
                // Every power of two, so that a flood cannot fill the log.
                if refused.is_power_of_two() {
                    tracing::warn!(
                        "refused user {} at the attach socket ({refused} refusals so far)",
                        peer.uid()
                    );
                }
                continue;
            }
            Err(_) => continue,
        };
        let (shared, events) = (shared.clone(), events.clone());
        let pid = peer
            .pid()
            .and_then(|pid| u32::try_from(pid).ok())
            .unwrap_or(0);
        tokio::spawn(async move {
            let _frees = Frees;
            if let Err(error) = converse(stream, pid, shared, events).await {
                tracing::debug!(pid, "attach connection ended: {error:#}");
            }
        });
    }
}

async fn converse(
    mut stream: UnixStream,
    pid: u32,
    shared: watch::Receiver<Option<Arc<Shared>>>,
    events: mpsc::Sender<Event>,
) -> Result<()> {
    let hello = match read_hello(&mut stream).await? {
        Ok(hello) => hello,
        Err(what) => {
            let text = format!(
                "{what}: this is the attach socket of a dragon runtime, and programs connect to it by libdragon or `import dragon`"
            );
            return refuse(&mut stream, Code::InvalidArgument, &text).await;
        }
    };
    if hello.protocol.get() != PROTOCOL_VERSION {
        let ours = (attach::release_bytes(), PROTOCOL_VERSION.into());
        let text = attach::mismatch_text((hello.release, hello.protocol), ours);
        return refuse(&mut stream, Code::VersionMismatch, &text).await;
    }
    match hello.role.get() {
        ROLE_SIBLING => sibling(stream, shared, events).await,
        ROLE_TASK => task(stream, shared, events).await,
        ROLE_CLIENT | ROLE_INSPECT => {
            client(stream, pid, hello.role.get() == ROLE_CLIENT, shared, events).await
        }
        other => {
            refuse(
                &mut stream,
                Code::Unsupported,
                &format!("unknown role {other}"),
            )
            .await
        }
    }
}

/// What a client says first, or what is wrong with it.
async fn read_hello(stream: &mut UnixStream) -> Result<std::result::Result<AttachHello, String>> {
    const LENGTH: usize = size_of::<AttachHello>();
    let mut bytes = [0; LENGTH];
    let mut came = 0;
    let read = async {
        while came < LENGTH {
            match stream.read(&mut bytes[came..]).await? {
                0 => break,
                more => came += more,
            }
            // A stranger may say less than a client, and wait for an answer.
            let magic = came.min(HELLO_MAGIC.len());
            if bytes[..magic] != HELLO_MAGIC[..magic] {
                break;
            }
        }
        Ok::<_, io::Error>(())
    };
    let in_time = tokio::time::timeout(HELLO_LIMIT, read).await;
    let late = in_time.is_err();
    in_time.unwrap_or(Ok(()))?;
    if came == 0 {
        bail!("said nothing");
    }
    let first = &bytes[..came.min(HELLO_MAGIC.len())];
    if !HELLO_MAGIC.starts_with(first) {
        return Ok(Err(format!(
            "the first bytes are \"{}\", those of a client are \"{}\"",
            first.escape_ascii(),
            HELLO_MAGIC.escape_ascii()
        )));
    }
    if came < LENGTH {
        let how = match late {
            true => format!("came in {} s", HELLO_LIMIT.as_secs()),
            false => "came before the end".to_owned(),
        };
        return Ok(Err(format!("{came} bytes {how}, a client says {LENGTH}")));
    }
    Ok(AttachHello::read_from_bytes(&bytes).map_err(|_| "not a client".to_owned()))
}

async fn refuse(stream: &mut UnixStream, code: Code, text: &str) -> Result<()> {
    stream.write_all(&reply_head(code, 0, text.len())?).await?;
    stream.write_all(text.as_bytes()).await?;
    bail!("refused: {text}")
}

fn reply_head(code: Code, descriptors: usize, body: usize) -> Result<Vec<u8>> {
    let reply = AttachReply {
        magic: REPLY_MAGIC,
        protocol: PROTOCOL_VERSION.into(),
        descriptors: u16::try_from(descriptors)?.into(),
        release: attach::release_bytes(),
        status: code.to_i32().cast_unsigned().into(),
        body: u32::try_from(body)?.into(),
    };
    Ok(reply.as_bytes().to_vec())
}

async fn sibling(
    mut stream: UnixStream,
    mut shared: watch::Receiver<Option<Arc<Shared>>>,
    events: mpsc::Sender<Event>,
) -> Result<()> {
    stream.write_all(&reply_head(Code::Ok, 0, 0)?).await?;
    let mask = read_mask(&mut stream).await?;
    events.send(Event::Sibling(mask)).await?;
    // The connection stays open until the runtime ends: that end is what the sibling waits for.
    while shared.changed().await.is_ok() {}
    Ok(())
}

/// A task that is the program: it starts when the runtime is up, and its end is told by that of its connection.
async fn task(
    mut stream: UnixStream,
    mut shared: watch::Receiver<Option<Arc<Shared>>>,
    events: mpsc::Sender<Event>,
) -> Result<()> {
    let mask = read_mask(&mut stream).await?;
    events.send(Event::Sibling(mask)).await?;
    shared.wait_for(Option::is_some).await?;
    let head = reply_head(Code::Ok, 0, 0)?;
    let until_it_ends = async {
        // It may be gone already.
        let _ = stream.write_all(&head).await;
        let mut program = [0; 8];
        let pid = match stream.read_exact(&mut program).await {
            Ok(_) => {
                let (pid, rank) = program_from(program);
                events.send(Event::TaskRuns(pid, rank)).await?;
                Some(pid)
            }
            Err(_) => None,
        };
        // It says nothing more.
        while matches!(stream.read(&mut [0]).await, Ok(1..)) {}
        anyhow::Ok(pid)
    };
    tokio::select! {
        pid = until_it_ends => events.send(Event::TaskEnded(pid?)).await?,
        // The runtime ends: the end of the connection tells the task so.
        Err(_) = shared.changed() => {}
    }
    Ok(())
}

async fn read_mask(stream: &mut UnixStream) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MASK_LIMIT {
        bail!("a CPU mask of {length} bytes exceeds {MASK_LIMIT}");
    }
    let mut mask = vec![0; length];
    stream.read_exact(&mut mask).await?;
    Ok(mask)
}

async fn client(
    mut stream: UnixStream,
    pid: u32,
    wants_slot: bool,
    mut shared: watch::Receiver<Option<Arc<Shared>>>,
    events: mpsc::Sender<Event>,
) -> Result<()> {
    if pid == 0 {
        let text = "this process is in a PID namespace that the runtime cannot see; start it inside the job's own namespace";
        return refuse(&mut stream, Code::Refused, text).await;
    }
    let shared = shared
        .wait_for(Option::is_some)
        .await?
        .clone()
        .context("no regions")?;
    let slot = if wants_slot {
        let (reply, answer) = oneshot::channel();
        events.send(Event::Attach { pid, reply }).await?;
        match answer
            .await
            .unwrap_or_else(|_| Err((Code::RuntimeGone, "the runtime is ending".to_owned())))
        {
            Ok(slot) => Some(slot),
            Err((code, text)) => return refuse(&mut stream, code, &text).await,
        }
    } else {
        None
    };
    let served = serve_while_it_lives(stream, pid, slot, &shared, &events).await;
    if let Some(slot) = slot {
        let _ = events.send(Event::Detached { pid, slot }).await;
    }
    served
}

/// Returns when the process is gone, has left, or has become another program.
async fn serve_while_it_lives(
    mut stream: UnixStream,
    pid: u32,
    slot: Option<SlotId>,
    shared: &Shared,
    events: &mpsc::Sender<Event>,
) -> Result<()> {
    // A killed process is noticed by the pidfd, even while a child of it holds the socket; one that execs another program
    // by the end of file, since it keeps its pid.
    let death = end_of(pid)?;
    let given = match slot {
        Some(_) => &shared.regions[..],
        None => &[],
    };
    let served = async {
        send_regions(&mut stream, slot, shared, given).await?;
        conversation::serve(&mut stream, &death, slot, &shared.memory, events).await
    };
    let served = served.await;
    let Err(error) = &served else {
        return served;
    };
    // The connection has ended, which does not say that the process has: it may have closed all its descriptors, and works
    // in the shared memory as before. (At the end of the runtime nothing is recovered any more.)
    if slot.is_some() && !events.is_closed() {
        match control_in(pid, shared) {
            Mapped::No => return served,
            Mapped::Yes => tracing::warn!(
                "process {pid} runs on without its connection to the runtime ({error:#}): what it holds stays with it until it ends, but it gets no more memory and starts no processes; leave its descriptors open (closefrom, os.closerange)"
            ),
            // It is on its way out, as a rule.
            Mapped::Unknown => {}
        }
        drop(stream);
        death.readable().await?.retain_ready();
    }
    served
}

/// Whether a process still has the control region mapped.
enum Mapped {
    Yes,
    No,
    /// Its memory cannot be looked at, or it has none: it ends, or only its first thread has ended.
    Unknown,
}

/// Looks for the control region in the memory of a process.
fn control_in(pid: u32, shared: &Shared) -> Mapped {
    let control = shared
        .regions
        .iter()
        .find(|(region, _)| region.kind == RegionKind::Control);
    let (Some((_, control)), Ok(maps)) = (control, fs::read(format!("/proc/{pid}/maps"))) else {
        return Mapped::Unknown;
    };
    match rustix::fs::fstat(control) {
        Ok(stat) if !maps.is_empty() => {
            let (major, minor) = (
                rustix::fs::major(stat.st_dev),
                rustix::fs::minor(stat.st_dev),
            );
            mapped(
                &String::from_utf8_lossy(&maps),
                &format!("{major:02x}:{minor:02x}"),
                &stat.st_ino.to_string(),
            )
        }
        _ => Mapped::Unknown,
    }
}

/// Looks for a file in the lines of `/proc/PID/maps`: addresses, rights, offset, device, inode.
fn mapped(maps: &str, device: &str, inode: &str) -> Mapped {
    let is_it = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(3);
        words.next() == Some(device) && words.next() == Some(inode)
    };
    if maps.lines().any(is_it) {
        Mapped::Yes
    } else {
        Mapped::No
    }
}

async fn send_regions(
    stream: &mut UnixStream,
    slot: Option<SlotId>,
    shared: &Shared,
    given: &[(Region, OwnedFd)],
) -> Result<()> {
    let regions = given.iter().map(|(region, _)| *region).collect();
    let attached = Attached {
        runtime: shared.runtime,
        node: shared.node,
        slot,
        regions,
    };
    let mut body = Vec::new();
    frame::encode(&attached, &mut body)?;
    // The body of the attach reply carries its own length: the frame's is not wanted.
    let body = &body[4..];
    let bytes = [&reply_head(Code::Ok, given.len(), body.len())?[..], body].concat();
    let fds: Vec<BorrowedFd<'_>> = given.iter().map(|(_, fd)| fd.as_fd()).collect();
    let sent = send_with_fds(stream, &bytes, &fds).await?;
    stream.write_all(&bytes[sent..]).await?;
    Ok(())
}

/// Sends bytes and descriptors in one message; returns how many bytes went out.
///
/// # Errors
/// When the socket is gone.
pub async fn send_with_fds(
    stream: &UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let send = || -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        Ok(rustix::net::sendmsg(
            stream,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?)
    };
    // There is room, as a rule; the event loop would first have to go round to know it, and the client waits.
    let mut attempt = send();
    while let Err(error) = &attempt {
        if error.kind() != io::ErrorKind::WouldBlock {
            break;
        }
        stream.ready(Interest::WRITABLE).await?;
        attempt = stream.try_io(Interest::WRITABLE, send);
    }
    attempt
}
