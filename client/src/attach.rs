//! The first conversation with a daemon: find it, check whose it is, say hello, take the regions.
//!
//! Nothing of the runtime is touched before the peer's user id is known to be our own.

use std::ffi::OsStr;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use dragon_protocol::attach::{
    AttachHello, AttachReply, Attached, HELLO_MAGIC, REPLY_MAGIC, ROLE_CLIENT, mismatch_text,
    release_bytes,
};
use dragon_protocol::{Code, PROTOCOL_VERSION, frame};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};

/// The longest abstract name that a socket address holds.
const NAME_LIMIT: usize = 107;
/// The longest body of a reply that we read: far more than any list of regions or sentence needs.
const BODY_LIMIT: usize = 1 << 20;
/// What is read at once: a reply with the regions of a node, as a rule.
const FIRST_READ: usize = 512;
/// As many descriptors as the kernel passes in one message.
const DESCRIPTOR_LIMIT: usize = 253;

/// What a daemon gave us.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Place and regions.
    pub(crate) attached: Attached,
    /// The regions' descriptors, in the order of `attached.regions`.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Connects to the daemon whose abstract socket is called `name`, and says hello: it gets to work.
pub(crate) fn call(name: &OsStr) -> Result<OwnedFd> {
    let shown = name.to_string_lossy();
    let socket = connect(name, &shown)?;
    check_peer(&socket, &shown)?;
    greet(&socket)?;
    Ok(socket.into())
}

fn connect(name: &OsStr, shown: &str) -> Result<UnixStream> {
    let length = name.as_bytes().len();
    let address = SocketAddr::from_abstract_name(name.as_bytes()).map_err(|_| {
        Error::InvalidArgument(format!(
            "DRAGON_RUNTIME has {length} bytes, the name of an attach socket has at most {NAME_LIMIT}: '{shown}'"
        ))
    })?;
    UnixStream::connect_addr(&address).map_err(|source| match source.kind() {
        io::ErrorKind::Interrupted => Error::Interrupted,
        _ => Error::NobodyListens {
            name: shown.to_owned(),
            source,
        },
    })
}

fn check_peer(socket: &UnixStream, shown: &str) -> Result<()> {
    let (theirs, ours) = (
        peer_user(socket.as_fd())?,
        rustix::process::geteuid().as_raw(),
    );
    if theirs == ours {
        Ok(())
    } else {
        Err(Error::Stranger {
            name: shown.to_owned(),
            theirs,
            ours,
        })
    }
}

/// The user who listens on the other end. By libc, since the listener's pid is 0 when it is in a PID namespace that this
/// process cannot see, and rustix's type for credentials has no such value.
fn peer_user(socket: BorrowedFd<'_>) -> Result<u32> {
    let mut credentials = MaybeUninit::<libc::ucred>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
    // SAFETY: the buffer is as long as `length` says, and both live through the call.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            credentials.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(Error::system(
            "getsockopt(SO_PEERCRED)",
            io::Error::last_os_error(),
        ));
    }
    // SAFETY: it was zeroed, and every bit pattern is a `ucred`.
    Ok(unsafe { credentials.assume_init() }.uid)
}

fn greet(socket: &UnixStream) -> Result<()> {
    let hello = AttachHello {
        magic: HELLO_MAGIC,
        protocol: PROTOCOL_VERSION.into(),
        role: ROLE_CLIENT.into(),
        release: release_bytes(),
        reserved: 0.into(),
    };
    send_all(socket.as_fd(), hello.as_bytes())
}

/// What the daemon called `name` answers to the hello.
pub(crate) fn admission(socket: BorrowedFd<'_>, name: &OsStr) -> Result<Admission> {
    // After a signal the whole attach is tried again by the caller, who may have a signal handler to run first.
    let mut first = [0; FIRST_READ];
    let mut descriptors = Vec::new();
    let least = size_of::<AttachReply>();
    let came = receive(socket, &mut first, least, &mut descriptors)?;
    let (reply, begun) = AttachReply::read_from_prefix(&first[..came])
        .map_err(|_| Error::Defect("the size of an attach reply".to_owned()))?;
    if reply.magic != REPLY_MAGIC {
        return Err(Error::NotARuntime {
            name: name.to_string_lossy().into_owned(),
            first: reply.magic,
        });
    }
    let status = Code::from_i32(reply.status.get().cast_signed());
    if reply.protocol.get() != PROTOCOL_VERSION || status == Code::VersionMismatch {
        let ours = (release_bytes(), PROTOCOL_VERSION.into());
        return Err(Error::VersionMismatch(mismatch_text(
            ours,
            (reply.release, reply.protocol),
        )));
    }
    let length = reply.body.get() as usize;
    if length > BODY_LIMIT {
        return Err(Error::BadReply(format!(
            "an attach reply of {length} bytes, the limit is {BODY_LIMIT}"
        )));
    }
    if begun.len() > length {
        return Err(Error::BadReply(format!(
            "{} bytes behind the head of an attach reply that announces {length}",
            begun.len()
        )));
    }
    let mut body = begun.to_vec();
    body.resize(length, 0);
    let rest = &mut body[begun.len()..];
    let least = rest.len();
    receive(socket, rest, least, &mut descriptors)?;
    if status != Code::Ok {
        return Err(Error::Daemon {
            code: status,
            text: String::from_utf8_lossy(&body).into_owned(),
        });
    }
    let attached: Attached = frame::decode(&body)?;
    let (announced, listed, came) = (
        usize::from(reply.descriptors.get()),
        attached.regions.len(),
        descriptors.len(),
    );
    if announced != came || listed != came {
        return Err(Error::BadReply(format!(
            "{came} descriptors came, {announced} were announced and {listed} regions listed; is the limit of open files (ulimit -n) used up?"
        )));
    }
    Ok(Admission {
        attached,
        descriptors,
    })
}

/// Sends all of it; a closed peer is an error, never a SIGPIPE.
pub(crate) fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ended(error)),
        }
    }
    Ok(())
}

/// Reads at least `least` bytes into `buffer`, more if they are there; returns how many. Descriptors that come along are
/// appended, close-on-exec from the start.
fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    least: usize,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize> {
    let mut filled = 0;
    while filled < least {
        filled += receive_some(socket, &mut buffer[filled..], descriptors)?;
    }
    Ok(filled)
}

/// Waits for bytes, and reads what is there, at least one byte; returns how many. Descriptors as in [`receive`]. After a
/// signal it is [`Error::Interrupted`], and nothing was read.
pub(crate) fn receive_some(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(buffer)];
    let received = match rustix::net::recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    {
        Ok(received) => received,
        Err(rustix::io::Errno::INTR) => return Err(Error::Interrupted),
        Err(error) => return Err(ended(error)),
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    if received.bytes == 0 {
        return Err(Error::RuntimeGone("end of file".to_owned()));
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Error::BadReply(format!(
            "only {} of the regions' descriptors could be taken over; raise the limit of open files (ulimit -n)",
            descriptors.len()
        )));
    }
    Ok(received.bytes)
}

/// The peer of a unix socket is gone in several ways that are all the same to the caller.
fn ended(error: rustix::io::Errno) -> Error {
    use rustix::io::Errno;
    match error {
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::SHUTDOWN => {
            Error::RuntimeGone(io::Error::from(error).to_string())
        }
        _ => Error::system("the control socket", error),
    }
}

#[cfg(test)]
mod tests;
