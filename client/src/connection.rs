//! The control socket of an attached process: one request at a time, and a thread that notices its end.
//!
//! A forked child inherits the descriptor but not the conversation. It never takes the lock below (another thread of its
//! parent may have held it at the fork); it only closes its copy.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dragon_protocol::control::{ClientReply, ClientRequest};
use dragon_protocol::frame;
use rustix::net::Shutdown;

use crate::attach::{receive_exact, send_all};
use crate::error::{Error, Result};

/// The daemon has not answered yet; the end of the connection is its refusal.
const JOINING: u32 = 0;
/// The process is attached; the end of the connection is that of the runtime.
const MEMBER: u32 = 1;
/// The process has left: the end of the connection is expected.
const LEFT: u32 = 2;
/// The connection ended before the process was attached.
const REFUSED: u32 = 3;

/// What the end of a connection means for the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was not attached yet. Whoever attaches learns it, and reads what the daemon said.
    Refused,
    /// It has left.
    Left,
    /// The runtime is gone.
    Unexpectedly,
}

/// The control socket.
#[derive(Debug)]
pub(crate) struct Connection {
    /// -1 once this process has closed it: a forked child, the watcher at its end, or the drop.
    socket: AtomicI32,
    /// Device and inode of the socket: a program that closes all its descriptors may have another file under the number.
    identity: Option<(u64, u64)>,
    /// [`JOINING`], [`MEMBER`], [`LEFT`] or [`REFUSED`].
    state: AtomicU32,
    /// Whoever holds it may talk; `Some`: why nobody can any more.
    turn: Mutex<Option<String>>,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            identity: identity(socket.as_fd()),
            socket: AtomicI32::new(socket.into_raw_fd()),
            state: AtomicU32::new(JOINING),
            turn: Mutex::new(None),
        })
    }

    /// Asks the daemon, and waits for its answer. Signals do not end the wait: the answer may carry a reference that
    /// would be lost.
    pub(crate) fn request(&self, request: &ClientRequest) -> Result<ClientReply> {
        self.request_with_descriptors(request)
            .map(|(reply, _)| reply)
    }

    /// As [`Connection::request`], with the descriptors that come with the answer.
    pub(crate) fn request_with_descriptors(
        &self,
        request: &ClientRequest,
    ) -> Result<(ClientReply, Vec<OwnedFd>)> {
        let mut bytes = Vec::new();
        frame::encode(request, &mut bytes)?;
        let mut broken = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = broken.as_ref() {
            return Err(Error::RuntimeGone(why.clone()));
        }
        let reply = self.converse(&bytes);
        if let Err(error) = &reply {
            // Half a conversation cannot be continued.
            *broken = Some(error.to_string());
        }
        match reply? {
            (ClientReply::Failed(code, text), _) => Err(Error::Daemon { code, text }),
            reply => Ok(reply),
        }
    }

    fn converse(&self, request: &[u8]) -> Result<(ClientReply, Vec<OwnedFd>)> {
        let socket = self
            .socket()
            .ok_or_else(|| Error::RuntimeGone("this process has detached".to_owned()))?;
        if !self.is_ours(socket) {
            return Err(Error::RuntimeGone(format!(
                "this process has closed descriptor {}, its connection to the daemon, which is needed to start processes and to get more memory; leave it open (closefrom, os.closerange)",
                socket.as_raw_fd()
            )));
        }
        send_all(socket, request)?;
        let mut head = [0; 4];
        let mut descriptors = Vec::new();
        receive_exact(socket, &mut head, &mut descriptors)?;
        let mut body = vec![0; frame::body_length(head)?];
        receive_exact(socket, &mut body, &mut descriptors)?;
        Ok((frame::decode(&body)?, descriptors))
    }

    /// The socket, unless this process has closed it.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.socket.load(Ordering::Acquire);
        // SAFETY: the descriptor is open until `close`, which only the watcher calls when `leaving` is set, a forked
        // child on its own copy, which it never uses otherwise, and the drop.
        (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Whether the descriptor still is the one that this connection was made with.
    pub(crate) fn is_ours(&self, socket: BorrowedFd<'_>) -> bool {
        identity(socket) == self.identity
    }

    /// The daemon has answered, and the process is about to be attached. False when the connection has ended meanwhile.
    pub(crate) fn attached(&self) -> bool {
        self.pass(JOINING, MEMBER).is_ok()
    }

    /// The connection has ended: what that means.
    pub(crate) fn ended(&self) -> Ended {
        match self.pass(JOINING, REFUSED) {
            Ok(_) | Err(REFUSED) => Ended::Refused,
            Err(LEFT) => Ended::Left,
            Err(_) => Ended::Unexpectedly,
        }
    }

    /// The process is at its end: that of the connection means nothing any more.
    pub(crate) fn expect_end(&self) {
        let _ = self.pass(MEMBER, LEFT);
    }

    fn pass(&self, from: u32, to: u32) -> std::result::Result<u32, u32> {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Ends the connection in good order; the watcher closes it. Later requests fail. False when the program has closed the
    /// descriptor: then the watcher learns nothing.
    pub(crate) fn leave(&self) -> bool {
        let mut broken = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        *broken = Some("this process has detached".to_owned());
        self.state.store(LEFT, Ordering::Release);
        let Some(socket) = self.socket().filter(|socket| self.is_ours(*socket)) else {
            return false;
        };
        // When one of them fails the peer is gone, which is what we want.
        let mut bytes = Vec::new();
        let _ = frame::encode(&ClientRequest::Leave, &mut bytes)
            .map_err(Error::from)
            .and_then(|()| send_all(socket, &bytes));
        let _ = rustix::net::shutdown(socket, Shutdown::Both);
        true
    }

    /// Closes this process's copy of the socket, once.
    pub(crate) fn close(&self) {
        let ours = self.socket().is_some_and(|socket| self.is_ours(socket));
        let fd = self.socket.swap(-1, Ordering::AcqRel);
        if fd >= 0 && ours {
            // SAFETY: the swap made this the only place that still knows the descriptor.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

/// Device and inode of an open file.
fn identity(fd: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let stat = rustix::fs::fstat(fd).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use dragon_protocol::Code;
    use std::io::{Read, Write};

    fn pair() -> (Arc<Connection>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let connection = Connection::new(ours.into());
        assert!(connection.attached());
        (connection, theirs)
    }

    #[test]
    fn what_the_end_means_depends_on_how_far_it_came() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let refused = Connection::new(ours.into());
        assert_eq!(refused.ended(), Ended::Refused);
        assert!(!refused.attached(), "the watcher has gone");
        assert_eq!(refused.ended(), Ended::Refused);
        let (connection, _theirs) = pair();
        assert_eq!(connection.ended(), Ended::Unexpectedly);
        connection.leave();
        assert_eq!(connection.ended(), Ended::Left);
    }

    fn read_request(peer: &mut UnixStream) -> ClientRequest {
        let mut head = [0; 4];
        peer.read_exact(&mut head).unwrap();
        let mut body = vec![0; frame::body_length(head).unwrap()];
        peer.read_exact(&mut body).unwrap();
        frame::decode(&body).unwrap()
    }

    #[test]
    fn a_refused_request_keeps_the_daemons_sentence() {
        let (connection, mut peer) = pair();
        let daemon = thread::spawn(move || {
            let asked = read_request(&mut peer);
            let mut bytes = Vec::new();
            let answer = ClientReply::Failed(Code::OutOfMemory, "pool 0: 1 GiB asked".to_owned());
            frame::encode(&answer, &mut bytes).unwrap();
            peer.write_all(&bytes).unwrap();
            asked
        });
        let error = connection
            .request(&ClientRequest::Commit {
                pool: 0,
                bytes: 1 << 30,
            })
            .unwrap_err();
        assert_eq!(error.code(), Code::OutOfMemory);
        assert_eq!(error.to_string(), "pool 0: 1 GiB asked");
        assert!(matches!(
            daemon.join().unwrap(),
            ClientRequest::Commit { pool: 0, .. }
        ));
    }

    #[test]
    fn after_the_end_of_the_daemon_every_request_fails_at_once() {
        let (connection, peer) = pair();
        drop(peer);
        for _ in 0..2 {
            let error = connection.request(&ClientRequest::Nodes).unwrap_err();
            assert_eq!(error.code(), Code::RuntimeGone);
        }
    }

    #[test]
    fn a_descriptor_that_the_program_closed_is_never_used_again() {
        let (connection, _peer) = pair();
        let fd = connection.socket().unwrap().as_raw_fd();
        let (other, mut heard) = UnixStream::pair().unwrap();
        // SAFETY: plain numbers; the descriptor is the connection's, which must notice that it is another file's now.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), fd) }, fd);
        drop(other);
        let error = connection.request(&ClientRequest::Nodes).unwrap_err();
        assert_eq!(error.code(), Code::RuntimeGone);
        assert!(error.to_string().contains("closed descriptor"), "{error}");
        assert!(!connection.leave());
        drop(connection);
        // Nothing was said, and the other file is still open.
        heard.set_nonblocking(true).unwrap();
        let silent = heard.read(&mut [0; 1]).unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
        // SAFETY: the descriptor is this test's since `dup2`.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    #[test]
    fn after_leaving_the_peer_sees_the_end() {
        let (connection, mut peer) = pair();
        assert!(connection.leave());
        assert_eq!(read_request(&mut peer), ClientRequest::Leave);
        assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
        let error = connection.request(&ClientRequest::Nodes).unwrap_err();
        assert_eq!(error.code(), Code::RuntimeGone);
        connection.close();
        connection.close();
        assert!(connection.socket().is_none());
    }
}
