"""Pipes whose ends may be on different nodes.

A pipe is one channel for each direction and, for each end, a *life*: an object of the runtime to which its holders refer,
connection objects in whatever process, and pickles of them on their way. When the last holder closes it, lets go of it,
ends or is killed, the life is gone with it. The other end then reads what is still there and gets ``EOFError``, and
writing to it raises ``BrokenPipeError`` (after a kill at the latest when the channel is full).

Who closes the last one leaves a mark in the channel, so that a reader need not look at anything else. What comes from a
kill, or found no room in the channel, is seen by the life: a reader that has waited for `_PATIENCE` waits for both.

Not covered: a pickle that nobody unpickles keeps the life; the other end then waits on.
"""

from __future__ import annotations

import io
import os
from multiprocessing import util
from multiprocessing.connection import _ConnectionBase

from dragon import _native
from dragon._errors import DestroyedError, DragonError, NoSuchObjectError
from dragon._serialize import dump_parts, loads
from dragon.mp.readiness import Readiness

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Connection", "Pipe"]

_CAPACITY = 256
#: Seconds that one waits for a channel alone: nothing in a conversation, and long for an idle pipe.
_PATIENCE = 0.01


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """Two connected ends. With ``duplex=False`` the first can only receive and the second only send."""
    lives = _native.Event(), _native.Event()
    to_first = _native.Channel(_CAPACITY)
    to_second = _native.Channel(_CAPACITY) if duplex else None
    first = _End(to_first, to_second, lives[0], lives[1].descriptor)
    second = _End(to_second, to_first, lives[1], lives[0].descriptor)
    return Connection(first), Connection(second)


class _End:
    """One end of a pipe in this process."""

    __slots__ = ("read", "write", "life", "peers")

    def __init__(
        self,
        read: _native.Channel | None,
        write: _native.Channel | None,
        life: _native.Event,
        peers: bytes,
    ) -> None:
        self.read = read
        self.write = write
        self.life = life
        #: The life of the other end, by a name that does not keep it.
        self.peers = peers

    def export(self) -> tuple[bytes | None, ...]:
        channels = (part.export() if part is not None else None for part in (self.read, self.write))
        return *channels, self.life.export(), self.peers

    @classmethod
    def adopt(cls, parts: tuple[bytes | None, ...]) -> _End:
        read, write, life, peers = parts
        return cls(
            _native.Channel.attach(read, True) if read is not None else None,
            _attach_writer(write) if write is not None else None,
            _native.Event.attach(life, True),
            peers,
        )

    def close(self) -> None:
        try:
            name = self.life.descriptor
            self.life.close()
            if _is_gone(name):
                if self.write is not None:
                    self.write.send_end()
                if self.read is not None:
                    self.read.destroy()
        except Exception as error:  # the runtime, the node or the channel may be gone already
            util.debug("closing an end of a pipe: %s", error)
        # Handles that the other end in this process shares stay open.
        self.read = self.write = None


def _is_gone(life: bytes) -> bool:
    """Whether an end has no holders any more; found out without becoming one."""
    members = _native.Set(1)
    try:
        members.add(life, 0)
        return bool(members.wait(0))
    except DragonError:
        return True
    finally:
        members.close()


class _Watch:
    """Waits for a channel, for messages or for room, and for the end of all who hold the other end."""

    _READY, _GONE = range(2)

    def __init__(self, channel: _native.Channel, peers: bytes, *, for_room: bool) -> None:
        self._members = _native.Set(2)
        self._members.add(channel.descriptor, self._READY, for_room)
        self._gone = False
        try:
            self._members.add(peers, self._GONE)
        except DragonError:
            self._gone = True

    def wait(self, timeout: float | None = None) -> tuple[bool, bool]:
        """Whether the channel is ready, and whether the holders of the other end are gone; neither when the time is over."""
        ready = self._members.wait(0 if self._gone else timeout)
        self._gone = self._gone or self._GONE in ready
        return self._READY in ready, self._gone


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
        self._arrivals: _Watch | None = None
        self._room: _Watch | None = None
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
            self._readiness = Readiness(self._handle.read, self._handle.peers)
        return self._readiness.fd

    def _wait_for(self) -> tuple[bytes, ...] | bool:
        self._check_closed()
        self._check_readable()
        return self._peers_gone or (self._handle.read.descriptor, self._handle.peers)

    def send(self, obj: Any) -> None:
        """Send an object."""
        if self._send is None:
            self._refuse_to_write()
        message = dump_parts(obj)
        send = self._handle.write.send_parts if type(message) is list else self._send
        try:
            if not send(message, 0, _PATIENCE):
                self._send_late(send, message)
        except (DestroyedError, NoSuchObjectError):
            raise BrokenPipeError("the other end of the pipe is closed") from None

    def recv(self) -> Any:
        """Receive an object. Raises ``EOFError`` when the other end is closed and nothing is left."""
        return loads(self._next_message())

    def _next_message(self) -> Any:
        if self._receive is None:
            self._refuse_to_read()
        try:
            message = self._receive(0 if self._peers_gone else _PATIENCE)
            if message is None:
                message = self._receive_late()
        except EOFError:
            self._handle.read.send_end()  # for other readers, and for the next time
            raise
        if self._readiness is not None:
            self._readiness.look_again()
        return message

    def _receive_late(self) -> Any:
        while True:
            _ready, gone = self._watch_arrivals().wait()
            # Whatever they sent came before they were gone.
            message = self._receive(0)
            if message is not None:
                return message
            if gone:
                self._peers_gone = True
                raise EOFError

    def _send_late(self, send: Any, message: Any) -> None:
        if self._room is None:
            self._room = _Watch(self._handle.write, self._handle.peers, for_room=True)
        while True:
            _ready, gone = self._room.wait()
            if gone:
                raise BrokenPipeError("nobody has the other end of the pipe any more")
            if send(message, 0, 0):
                return

    def _watch_arrivals(self) -> _Watch:
        if self._arrivals is None:
            self._arrivals = _Watch(self._handle.read, self._handle.peers, for_room=False)
        return self._arrivals

    def _poll(self, timeout: float | None) -> bool:
        if self._peers_gone or self._handle.read.poll(0) > 0:
            return True
        ready, self._peers_gone = self._watch_arrivals().wait(timeout)
        return ready or self._peers_gone

    def _send_bytes(self, buf: Any) -> None:
        try:
            if not self._send(buf, 0, _PATIENCE):
                self._send_late(self._send, buf)
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
        self._receive = self._send = self._arrivals = self._room = None
        self._close_end()

    def _refuse_to_write(self) -> None:
        self._check_closed()
        self._check_writable()

    def _refuse_to_read(self) -> None:
        self._check_closed()
        self._check_readable()


def _rebuild(parts: tuple[bytes | None, ...]) -> Connection:
    return Connection(_End.adopt(parts))
