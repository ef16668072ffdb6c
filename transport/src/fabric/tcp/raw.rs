//! Vectored socket calls over raw memory.
//!
//! A payload lies in shared memory, which other processes may write at any time, so no slice of it may exist: the
//! addresses go to the kernel as they are.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::fabric::stream::{PIECES, Piece};

/// Sends what the socket takes without waiting. Returns the number of bytes.
///
/// # Safety
/// Each piece must be readable, see [`Piece::new`].
pub(super) unsafe fn send(socket: BorrowedFd<'_>, pieces: &[Piece]) -> io::Result<usize> {
    let (vectors, count) = vectors(pieces);
    // SAFETY: all zeros is a valid msghdr: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = count as _;
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: `message` points to `count` vectors, each of readable memory as the caller promises.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives what has arrived without waiting. Returns the number of bytes; 0 at the end of the stream.
///
/// # Safety
/// Each piece must be writable, see [`Piece::new`].
pub(super) unsafe fn receive(socket: BorrowedFd<'_>, pieces: &[Piece]) -> io::Result<usize> {
    let (vectors, count) = vectors(pieces);
    // SAFETY: all zeros is a valid msghdr: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = count as _;
    // SAFETY: `message` points to `count` vectors, each of writable memory as the caller promises.
    let received =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Has the socket count as readable when so many bytes have arrived, or it has no room for more, or the stream has ended.
pub(super) fn wake_at(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option's value is an int, and so many bytes long.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            4,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn vectors(pieces: &[Piece]) -> ([libc::iovec; PIECES], usize) {
    let empty = libc::iovec {
        iov_base: core::ptr::null_mut(),
        iov_len: 0,
    };
    let mut vectors = [empty; PIECES];
    let count = pieces.len().min(PIECES);
    for (vector, piece) in vectors.iter_mut().zip(pieces) {
        vector.iov_base = piece.start.as_ptr().cast();
        vector.iov_len = piece.len;
    }
    (vectors, count)
}
