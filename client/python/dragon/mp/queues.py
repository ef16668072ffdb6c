"""Queues that processes of all nodes share.

A queue is one channel on its creator's node. Objects are pickled by :meth:`put` itself, so that one that changes afterwards
does not change in the queue. When `put` returns, the object has left the process: nothing is lost when the process is killed
afterwards, and no thread has to be waited for at its end. An object that cannot be pickled is reported, with a traceback, and
left out, as programs that were written for the standard library's queues expect.

Without `maxsize` a `put` does not wait for a reader: the channel grows from its node's pool. With `maxsize` a `put` waits
for room, exactly as many items as that fit, whoever put them.
"""

from __future__ import annotations

import traceback
import types
from queue import Empty, Full

from dragon import _native
from dragon._serialize import dump_parts, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

#: Messages that a queue has room for at first, unless its size is smaller.
_AT_FIRST = 64
#: Most messages of a channel.
_MOST = 1 << 24


def _channel(maxsize: int) -> _native.Channel:
    most = maxsize if 0 < maxsize < _MOST else _MOST
    if most <= _AT_FIRST:
        return _native.Channel(most)
    return _native.Channel(_AT_FIRST, limit=most)


def _send(channel: _native.Channel, message: Any, timeout: float | None) -> bool:
    if type(message) is list:
        return channel.send_parts(message, 0, timeout)
    return channel.send(message, 0, timeout)


class Queue:
    """A first-in-first-out queue."""

    def __init__(self, maxsize: int = 0, *, ctx: Any = None) -> None:
        self._setup(max(maxsize, 0), _channel(maxsize))

    def _setup(self, maxsize: int, channel: _native.Channel) -> None:
        self._maxsize = maxsize
        self._channel = channel
        self._receive = channel.receive_object
        self._reader = _Reader(channel)
        self._closed = False
        self._has_put = False

    def __getstate__(self) -> tuple[Any, ...]:
        return self._maxsize, self._channel.export()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        maxsize, channel = state
        self._setup(maxsize, _native.Channel.attach(channel, True))

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue; raises `queue.Full` when there is no room in time."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        try:
            message = dump_parts(obj)
        except Exception as error:
            self._on_queue_feeder_error(error, obj)
            return
        self._has_put = True
        self._put(message, timeout if block else 0)

    def _put(self, message: Any, timeout: float | None) -> None:
        if not _send(self._channel, message, timeout):
            raise Full

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        """What becomes of an object that cannot be pickled; `e` says why. Subclasses may do more than print it."""
        traceback.print_exception(e)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the next object; raises `queue.Empty` when none comes in time."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        message = self._receive(timeout if block else 0)
        if message is None:
            raise Empty
        return loads(message)

    def qsize(self) -> int:
        """How many objects are in the queue."""
        return self._channel.poll(0)

    def empty(self) -> bool:
        """Whether nothing is in the queue."""
        # As in the standard library, where `close` does nothing to a queue into which its process has put nothing.
        if self._closed and self._has_put:
            raise OSError(f"Queue {self!r} is closed")
        return self._channel.poll(0) == 0

    def full(self) -> bool:
        """Whether a `put` would have to wait."""
        return 0 < self._maxsize <= self.qsize()

    def put_nowait(self, obj: Any) -> None:
        """`put` without waiting."""
        self.put(obj, False)

    def get_nowait(self) -> Any:
        """`get` without waiting."""
        return self.get(False)

    def close(self) -> None:
        """Nothing more is put or taken by this process. What it has put already still arrives."""
        self._closed = True

    def join_thread(self) -> None:
        """Returns at once: what this process has put lies in the queue."""
        if not self._closed:
            raise AssertionError(f"Queue {self!r} not closed")

    def cancel_join_thread(self) -> None:
        """Does nothing: the end of a process waits for no queue, and loses nothing that it has put."""

    __class_getitem__ = classmethod(types.GenericAlias)


class JoinableQueue(Queue):
    """A queue whose items are counted until each was reported done."""

    def __init__(self, maxsize: int = 0, *, ctx: Any = None) -> None:
        super().__init__(maxsize)
        self._counting = _native.Lock()
        self._unfinished = _native.Semaphore(0)
        self._idle = _native.Event()
        self._idle.set()

    def __getstate__(self) -> tuple[Any, ...]:
        return super().__getstate__(), self._counting.export(), self._unfinished.export(), self._idle.export()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        base, counting, unfinished, idle = state
        super().__setstate__(base)
        self._counting = _native.Lock.attach(counting, True)
        self._unfinished = _native.Semaphore.attach(unfinished, True)
        self._idle = _native.Event.attach(idle, True)

    def _put(self, message: Any, timeout: float | None) -> None:
        # Counted first: its reader may be done with it before this returns.
        with self._counting:
            self._unfinished.release()
            self._idle.clear()
        try:
            super()._put(message, timeout)
        except BaseException:
            self.task_done()
            raise

    def task_done(self) -> None:
        """Report one item, taken with `get`, as done."""
        with self._counting:
            if not self._unfinished.acquire(False):
                raise ValueError("task_done() called too many times")
            if self._unfinished.value() == 0:
                self._idle.set()

    def join(self) -> None:
        """Waits until every item that was put was reported done."""
        self._idle.wait()


class CallQueue(Queue):
    """The calls of a `concurrent.futures.ProcessPoolExecutor`: one that cannot be pickled fails its future."""

    def __init__(self, maxsize: int, parts: dict[str, Any], on_error: Callable[[Any, Exception, Any], None]) -> None:
        super().__init__(maxsize)
        # What the handler of errors of the standard library's such queue uses: other things in each release.
        self.__dict__.update(parts)
        self._on_error = on_error

    def _on_queue_feeder_error(self, e: Exception, obj: Any) -> None:
        self._on_error(self, e, obj)

    def _terminate_broken(self) -> None:
        self.close()


class _Reader:
    """The end of a queue that is read, under the name by which `concurrent.futures` and others wait for it and read it."""

    def __init__(self, channel: _native.Channel) -> None:
        self._channel = channel
        self.closed = False

    def _wait_for(self) -> tuple[bytes, ...]:
        return (self._channel.descriptor,)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is something to get."""
        return self._channel.poll(timeout) > 0

    def recv(self) -> Any:
        """The next object."""
        return loads(self._channel.receive_object())

    def close(self) -> None:
        """Nothing more is read by this process."""
        self.closed = True

    def fileno(self) -> int:
        raise NotImplementedError(
            "a queue of the start method 'dragon' has no file descriptor; wait for it with multiprocessing.connection.wait"
        )


class _Closed:
    """The channel of a closed :class:`SimpleQueue`."""

    def receive_object(self, *_: Any) -> Any:
        raise OSError("this SimpleQueue is closed")

    poll = send = send_parts = export = receive_object

    def close(self) -> None:
        """It is."""


class SimpleQueue:
    """A queue with nothing but `put`, `get`, `empty` and `close`."""

    def __init__(self, *, ctx: Any = None) -> None:
        self._setup(_channel(0))

    def _setup(self, channel: _native.Channel) -> None:
        self._channel = channel
        self._receive = channel.receive_object
        self._reader = _Reader(channel)

    def __getstate__(self) -> bytes:
        return self._channel.export()

    def __setstate__(self, channel: bytes) -> None:
        self._setup(_native.Channel.attach(channel, True))

    def put(self, obj: Any) -> None:
        """Put an object into the queue."""
        _send(self._channel, dump_parts(obj), None)

    def get(self) -> Any:
        """Take the next object, waiting for it if need be."""
        return loads(self._receive())

    def empty(self) -> bool:
        """Whether nothing is in the queue."""
        return self._channel.poll(0) == 0

    def close(self) -> None:
        """Let go of the queue; what was put still arrives."""
        self._reader.closed = True
        self._channel.close()
        self._channel = _Closed()
        self._receive = self._channel.receive_object

    @property
    def _writer(self) -> _Reader:
        return self._reader

    __class_getitem__ = classmethod(types.GenericAlias)
