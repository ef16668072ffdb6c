"""Pipes whose ends may be on different nodes.

A pipe is one channel for each direction and, for each end, a count of its holders: connection objects, in whatever
process, and pickles of them on their way. When an end's last holder closes it (or lets go of it, or ends in an orderly
way), the other end reads what is still there and then gets ``EOFError``, and writing to it raises ``BrokenPipeError``.

Not covered: a holder that is killed by a signal, and a pickle that nobody unpickles, stay in the count; the other end
then waits on.
"""

from __future__ import annotations

import io
import os
from multiprocessing import util
from multiprocessing.connection import _ConnectionBase

from dragon import _native
from dragon._errors import DestroyedError, NoSuchObjectError
from dragon._serialize import dump_parts, loads
from dragon.mp.readiness import Readiness

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Connection", "Pipe"]

_CAPACITY = 256


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """Two connected ends. With ``duplex=False`` the first can only receive and the second only send."""
    holders = _native.Semaphore(1), _native.Semaphore(1)
    to_first = _native.Channel(_CAPACITY)
    to_second = _native.Channel(_CAPACITY) if duplex else None
    first = _End(to_first, to_second, *holders)
    second = _End(to_second, to_first, *reversed(holders))
    return Connection(first), Connection(second)


class _End:
    """One end of a pipe in this process."""

    __slots__ = ("read", "write", "holders", "peers")

    def __init__(
        self,
        read: _native.Channel | None,
        write: _native.Channel | None,
        holders: _native.Semaphore,
        peers: _native.Semaphore,
    ) -> None:
        self.read = read
        self.write = write
        self.holders = holders
        self.peers = peers

    def export(self) -> tuple[bytes | None, ...]:
        self.holders.release()
        return tuple(
            part.export() if part is not None else None for part in (self.read, self.write, self.holders, self.peers)
        )

    @classmethod
    def adopt(cls, parts: tuple[bytes | None, ...]) -> _End:
        read, write, holders, peers = parts
        return cls(
            _native.Channel.attach(read, True) if read is not None else None,
            _attach_writer(write) if write is not None else None,
            _native.Semaphore.attach(holders, True),
            _native.Semaphore.attach(peers, True),
        )

    def close(self) -> None:
        try:
            self.holders.acquire(False)
            if self.holders.value() == 0:
                if self.write is not None:
                    self.write.send_end()
                if self.read is not None:
                    self.read.destroy()
        except Exception as error:  # the runtime, the node or the channel may be gone already
            util.debug("closing an end of a pipe: %s", error)
        # Handles that the other end in this process shares stay open.
        self.read = self.write = None


def _attach_writer(descriptor: bytes) -> Any:
    try:
        return _native.Channel.attach(descriptor, True)
    except (DestroyedError, NoSuchObjectError) as error:
        # The other end was closed while this one was on its way: what it sent can still be read.
        return _NoReader(error)


class _NoReader:
    """In place of a channel whose reader has closed it."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def send(self, *_message: Any) -> None:
        raise self._error

    send_parts = send

    def send_end(self) -> None:
        pass

    def export(self) -> None:
        """Whoever gets the end next can only read."""


class Connection(_ConnectionBase):
    """An end of a pipe. It can be given to another process, on any node, at any time."""

    def __init__(self, end: _End) -> None:
        self._handle = end
        self._readable = end.read is not None
        self._writable = end.write is not None
        # Bound methods looked up once: a round trip is a few microseconds.
        self._receive = end.read.receive_object if end.read is not None else None
        self._send = end.write.send if end.write is not None else None
        self._peers_gone = False
        self._until_check = _CAPACITY
        self._readiness: Readiness | None = None
        self._close_end = util.Finalize(self, end.close, exitpriority=-10)

    def __reduce__(self) -> Any:
        self._check_closed()
        return _rebuild, (self._handle.export(),)

    def fileno(self) -> int:
        """A file descriptor that is readable while there is something to receive: for selectors, not for reading."""
        self._check_closed()
        if self._readiness is None:
            self._check_readable()
            self._readiness = Readiness(self._handle.read)
        return self._readiness.fd

    def _wait_for(self) -> bytes | bool:
        self._check_closed()
        self._check_readable()
        return self._peers_gone or self._handle.read.descriptor

    def send(self, obj: Any) -> None:
        """Send an object."""
        if self._send is None:
            self._refuse_to_write()
        message = dump_parts(obj)
        try:
            if type(message) is list:
                self._handle.write.send_parts(message)
            else:
                self._send(message)
        except (DestroyedError, NoSuchObjectError):
            raise BrokenPipeError("the other end of the pipe is closed") from None

    def recv(self) -> Any:
        """Receive an object. Raises ``EOFError`` when the other end is closed and nothing is left."""
        return loads(self._next_message())

    def _next_message(self) -> Any:
        if self._receive is None:
            self._refuse_to_read()
        self._until_check -= 1
        if self._until_check < 0:
            self._check_peers()
        try:
            message = self._receive() if not self._peers_gone else self._receive(0)
        except EOFError:
            self._handle.read.send_end()  # for other readers, and for the next time
            raise
        if message is None:
            raise EOFError
        if self._readiness is not None:
            self._readiness.look_again()
        return message

    def _check_peers(self) -> None:
        # The mark at the end of the stream finds no room in a full channel. Then at least as many messages as the
        # channel holds follow, and among them falls one of these checks.
        self._until_check = _CAPACITY
        if self._handle.peers.value() == 0:
            self._peers_gone = True

    def _poll(self, timeout: float | None) -> bool:
        return self._peers_gone or self._handle.read.poll(timeout) > 0

    def _send_bytes(self, buf: Any) -> None:
        try:
            self._send(buf)
        except (DestroyedError, NoSuchObjectError):
            raise BrokenPipeError("the other end of the pipe is closed") from None

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive the bytes of one message."""
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        message = self._next_message()
        if maxlength is not None and len(message) > maxlength:
            self._bad_message_length()
        return bytes(message)

    def _recv_bytes(self, maxsize: int | None = None) -> io.BytesIO:
        stream = io.BytesIO(self._next_message())
        stream.seek(0, os.SEEK_END)
        return stream

    def _close(self) -> None:
        if self._readiness is not None:
            self._readiness.close()
        self._receive = self._send = None
        self._close_end()

    def _refuse_to_write(self) -> None:
        self._check_closed()
        self._check_writable()

    def _refuse_to_read(self) -> None:
        self._check_closed()
        self._check_readable()


def _rebuild(parts: tuple[bytes | None, ...]) -> Connection:
    return Connection(_End.adopt(parts))
