"""File descriptors for processes of the same node.

The descriptor itself goes from process to process through a socket that both open for it; its name goes through the
connection. What a descriptor stands for exists on one node only, so a process of another one is told so.
"""

from __future__ import annotations

import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dragon.mp.connection import Connection

__all__ = ["recv_handle", "send_handle"]

#: Seconds that a process has to fetch what was sent to it.
_PATIENCE = 60


def send_handle(conn: Connection, handle: int) -> None:
    """Sends a file descriptor; returns when it was fetched."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0dragon-handle-{os.getuid()}-{os.getpid()}-{os.urandom(8).hex()}")
        listener.listen(1)
        listener.settimeout(_PATIENCE)
        conn.send_bytes(listener.getsockname())
        try:
            fetcher, _address = listener.accept()
        except TimeoutError:
            raise TimeoutError(f"nobody fetched file descriptor {handle} within {_PATIENCE} s") from None
        with fetcher:
            socket.send_fds(fetcher, [b"x"], [handle])


def recv_handle(conn: Connection) -> int:
    """Receives a file descriptor."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as fetcher:
        try:
            fetcher.connect(conn.recv_bytes())
        except ConnectionRefusedError:
            raise NotImplementedError(
                "a file descriptor can only be given to a process of the same node; give it a Queue or a Pipe, or open "
                "the file there"
            ) from None
        fetcher.settimeout(_PATIENCE)
        _data, handles, _flags, _address = socket.recv_fds(fetcher, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not handles:
        raise EOFError("the sender of a file descriptor has ended")
    return handles[0]
