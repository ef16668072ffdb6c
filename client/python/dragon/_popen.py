"""Starts processes under the start method "dragon" and follows them to their end.

The child is a worker of the warm interpreter on its node; what it is to run travels as a pickle in the request. The end
of every child is reported to a channel of this process, so that asking whether it runs costs no message to another node.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import struct
import threading
import weakref
from multiprocessing import util
from multiprocessing.context import set_spawning_popen

from dragon import _interpreter, _native
from dragon._errors import DragonError, NodeDownError
from dragon._placement import default_node
from dragon._serialize import dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Larger payloads reach the worker through a channel of its own instead of through the daemons.
_LARGE_PAYLOAD = 256 * 1024
#: `ExitNotice` of the protocol: node, index, generation; kind; status as waitpid gives it.
_NOTICE = struct.Struct("<12sB3xi4x")


def parse_notice(notice: bytes) -> tuple[bytes, int]:
    """The identity of a process, and its exit code, from the message that reports its end."""
    identity, _kind, status = _NOTICE.unpack(notice)
    return identity, os.waitstatus_to_exitcode(status)


def identity(descriptor: bytes) -> bytes:
    """Node, index and generation out of a descriptor."""
    return descriptor[4:16]


#: A started process: its object, its pid, and the channel that holds its payload where that is large. A pool, which
#: starts many at once and has their exit notices sent to itself, hands it over as `_dragon_started` of the process.
Started = tuple[_native.Process, int, _native.Channel | None]


def make_payload(process_obj: Any) -> tuple[bytes, _native.Channel | None]:
    """What a worker unpickles to become this process, and the channel that holds it where it is large."""
    stream = io.BytesIO()
    set_spawning_popen(_Spawning)
    try:
        preparation = _interpreter.preparation(process_obj._name)
        preparation["dragon_parent"] = _sign_of_life().descriptor
        preparation["dragon_fresh"] = _interpreter.fresh
        dump(preparation, stream)
        dump(process_obj, stream)
    finally:
        set_spawning_popen(None)
    if stream.tell() < _LARGE_PAYLOAD:
        return stream.getvalue(), None
    channel = _native.Channel(1)
    channel.send(stream.getbuffer())
    return pickle.dumps(channel.export(), 5), channel


class _Spawning:
    """Stands for the process being started, towards objects that ask whether one is."""

    @staticmethod
    def duplicate_for_child(fd: int) -> int:
        return fd

    @staticmethod
    def DupFd(fd: int) -> Any:
        """What stands for a file descriptor: the child fetches it from this process, if it runs on the same node."""
        from multiprocessing.resource_sharer import DupFd

        return DupFd(fd)


class _ExitBoard:
    """Receives the exit notices of this process's children."""

    def __init__(self) -> None:
        self.channel = _native.Channel(256, 64)
        self._children: weakref.WeakValueDictionary[bytes, Popen] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        # A process may end before its creator knows its name.
        self._starting = 0
        self._early: dict[bytes, int] = {}

    def starting(self) -> None:
        with self._lock:
            self._starting += 1

    def started(self, child: Popen | None) -> None:
        with self._lock:
            self._starting -= 1
            if child is not None:
                self._children[child.identity] = child
                if child.identity in self._early:
                    child.ended(self._early.pop(child.identity))
            if self._starting == 0:
                self._early.clear()

    def read(self) -> None:
        receive = self.channel.receive
        while (notice := receive(0)) is not None:
            name, code = parse_notice(notice)
            with self._lock:
                child = self._children.pop(name, None)
                if child is not None:
                    child.ended(code)
                elif self._starting:
                    self._early[name] = code


_board: _ExitBoard | None = None


def _exit_board() -> _ExitBoard:
    global _board
    if _board is None:
        _board = _ExitBoard()
    return _board


_life: _native.Event | None = None


def _sign_of_life() -> _native.Event:
    """An object that is there as long as this process: its children see by it when their parent is gone."""
    global _life
    if _life is None:
        _life = _native.Event()
    return _life


class ParentSentinel:
    """What is ready when the parent of this process has ended: to be waited for as the sentinel of a child."""

    def __init__(self, sign_of_life: bytes) -> None:
        self._sign = sign_of_life

    def _wait_for(self) -> tuple[bytes, ...]:
        return (self._sign,)


def _forget_after_fork() -> None:
    global _board, _life
    _board = _life = None


os.register_at_fork(after_in_child=_forget_after_fork)


class Popen:
    """A started process, as `multiprocessing.process.BaseProcess` wants it."""

    method = "dragon"

    def __init__(self, process_obj: Any) -> None:
        util._flush_std_streams()
        self.returncode: int | None = None
        #: Whether somebody else calls `ended`, so that `poll` need not ask.
        self.watched = False
        self._board: _ExitBoard | None = None
        started = process_obj.__dict__.pop("_dragon_started", None)
        if started is not None:
            self.watched = True
            self._adopt(started)
            return
        self._board = _exit_board()
        self._board.starting()
        child = None
        try:
            payload, channel = make_payload(process_obj)
            # A daemon's parent ends it; one that is killed cannot.
            process, pid = _native.spawn_python(
                _interpreter.interpreter(),
                payload,
                default_node(),
                self._board.channel,
                with_creator=process_obj.daemon,
            )
            self._adopt((process, pid, channel))
            child = self
        finally:
            self._board.started(child)

    def _adopt(self, started: Started) -> None:
        self._process, self.pid, self._payload_channel = started
        self.identity = identity(self._process.descriptor)
        self.sentinel = Sentinel(self)

    def ended(self, code: int) -> None:
        """The process has ended with this exit code."""
        if self.returncode is None:
            self.returncode = code
            self._drop_payload()

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code, or None while the process runs."""
        if self.returncode is not None or self.watched:
            return self.returncode
        if self._board is None:
            return self.wait(0)
        self._board.read()
        if self.returncode is None and self._process.is_local():
            return self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for the end of the process; its exit code, or None when it still runs after `timeout` seconds."""
        if self.returncode is None:
            try:
                status = self._process.wait(timeout)
            except NodeDownError:
                # What ran there was ended with its node.
                util.sub_warning("the node of process %s is down", self.pid)
                self.ended(-signal.SIGKILL)
                return self.returncode
            if status is not None:
                self.ended(os.waitstatus_to_exitcode(status))
        return self.returncode

    def _send_signal(self, number: int) -> None:
        if self.returncode is None:
            try:
                self._process.signal(number)
            except DragonError:
                # It has ended in the meantime, or its node has; anything else is worth telling.
                if self.wait(0) is None:
                    raise

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Lets go of the process object in the runtime."""
        self._drop_payload()
        self._process.close()

    def _drop_payload(self) -> None:
        channel, self._payload_channel = self._payload_channel, None
        if channel is not None:
            try:
                channel.destroy()
            except DragonError as error:
                util.debug("dropping the payload of process %s: %s", self.pid, error)


class Sentinel:
    """What is ready when a process has ended: to be waited for with `multiprocessing.connection.wait`.

    Who asks the process for its sentinel gets a number instead, a file descriptor for any selector. It is made when it is
    first asked for, together with a thread that waits for the process.
    """

    def __init__(self, popen: Popen) -> None:
        self._popen = weakref.ref(popen)
        self._fd: int | None = None

    def number(self) -> int:
        """The file descriptor."""
        if self._fd is None:
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            popen = self._popen()
            if popen is None or popen.poll() is not None:
                os.eventfd_write(self._fd, 1)
            else:
                threading.Thread(target=_announce_end, args=(popen, self), daemon=True).start()
        return self._fd

    fileno = __index__ = number

    def __del__(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


def _announce_end(popen: Popen, sentinel: Sentinel) -> None:
    try:
        popen.wait()
    except DragonError as error:
        util.sub_warning("waiting for process %s: %s", popen.pid, error)
    os.eventfd_write(sentinel.number(), 1)
