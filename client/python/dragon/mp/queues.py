"""Queues that processes of all nodes share.

A queue is one channel on its creator's node. Objects are pickled by :meth:`put` itself, so that an object that cannot be
pickled raises there, and one that changes afterwards does not change in the queue.

Without `maxsize` a `put` never waits for a reader: what the channel has no room for waits in the process, in order, and a
thread that lives only as long as something waits passes it on. With `maxsize` a `put` waits for room, exactly as many
items as that fit, whoever put them.
"""

from __future__ import annotations

import collections
import threading
import types
import weakref
from multiprocessing import util
from queue import Empty, Full

from dragon import _native
from dragon._serialize import dump_parts, join, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

#: Messages that the channel of an unbounded queue holds before the rest waits in the process.
_CAPACITY = 256
#: Up to here a bounded queue is a channel of that capacity; above, a semaphore counts.
_LARGEST_CHANNEL = 1024


class _Outbox:
    """The sending half of an unbounded queue in this process."""

    def __init__(self, channel: _native.Channel) -> None:
        self._channel = channel
        self._try_send = channel.try_send
        self._lock = threading.Lock()
        # What waits, in order. The first item stays until it is sent, so that nothing overtakes it.
        self._waiting: collections.deque[Any] = collections.deque()
        self._feeder: threading.Thread | None = None
        self._joined_at_exit = True
        self._join_at_exit: util.Finalize | None = None

    def put(self, message: Any) -> None:
        if not self._waiting:
            if type(message) is list:
                if self._channel.send_parts(message, 0, 0):
                    return
            elif self._try_send(message):
                return
        with self._lock:
            self._waiting.append(bytes(join(message)))
            if self._feeder is None:
                self._feeder = threading.Thread(target=self._feed, name="QueueFeederThread", daemon=True)
                self._feeder.start()
                if self._joined_at_exit and self._join_at_exit is None:
                    self._join_at_exit = util.Finalize(None, _join, [weakref.ref(self)], exitpriority=-5)

    def waiting(self) -> int:
        return len(self._waiting)

    def join(self) -> None:
        feeder = self._feeder
        if feeder is not None:
            feeder.join()

    def cancel_join(self) -> None:
        self._joined_at_exit = False
        if self._join_at_exit is not None:
            self._join_at_exit.cancel()

    def _feed(self) -> None:
        waiting = self._waiting
        try:
            while True:
                self._channel.send(waiting[0])
                with self._lock:
                    waiting.popleft()
                    if not waiting:
                        self._feeder = None
                        return
        except Exception as error:
            with self._lock:
                lost = len(waiting)
                waiting.clear()
                self._feeder = None
            if not util.is_exiting():
                util.get_logger().error("%d items of a queue are lost: %s", lost, error)


def _join(outbox: weakref.ref[_Outbox]) -> None:
    alive = outbox()
    if alive is not None:
        alive.join()


class Queue:
    """A first-in-first-out queue."""

    def __init__(self, maxsize: int = 0, *, ctx: Any = None) -> None:
        self._room = None
        if 0 < maxsize <= _LARGEST_CHANNEL:
            channel = _native.Channel(maxsize)
        else:
            channel = _native.Channel(_CAPACITY)
            if maxsize > 0:
                self._room = _native.Semaphore(maxsize)
        self._setup(max(maxsize, 0), channel)

    def _setup(self, maxsize: int, channel: _native.Channel) -> None:
        self._maxsize = maxsize
        self._channel = channel
        self._receive = channel.receive_object
        self._outbox = _Outbox(channel) if maxsize == 0 or self._room is not None else None
        self._closed = False

    def __getstate__(self) -> tuple[Any, ...]:
        room = self._room.export() if self._room is not None else None
        return self._maxsize, self._channel.export(), room

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        maxsize, channel, room = state
        self._room = _native.Semaphore.attach(room, True) if room is not None else None
        self._setup(maxsize, _native.Channel.attach(channel, True))

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue; raises `queue.Full` when there is no room in time."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        message = dump_parts(obj)
        outbox = self._outbox
        if outbox is None:
            if not self._send(message, timeout if block else 0):
                raise Full
            return
        if self._room is not None and not self._room.acquire(block, timeout):
            raise Full
        outbox.put(message)

    def _send(self, message: Any, timeout: float | None) -> bool:
        if type(message) is list:
            return self._channel.send_parts(message, 0, timeout)
        return self._channel.send(message, 0, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the next object; raises `queue.Empty` when none comes in time."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        message = self._receive(timeout if block else 0)
        if message is None:
            raise Empty
        if self._room is not None:
            self._room.release()
        return loads(message)

    def qsize(self) -> int:
        """How many objects are in the queue. What waits in other processes for room in the channel is not counted."""
        if self._room is not None:
            return self._maxsize - self._room.value()
        return self._channel.poll(0) + (self._outbox.waiting() if self._outbox is not None else 0)

    def empty(self) -> bool:
        """Whether nothing is in the queue."""
        return self._channel.poll(0) == 0 and (self._outbox is None or self._outbox.waiting() == 0)

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
        """Waits until everything that this process has put lies in the queue."""
        if not self._closed:
            raise AssertionError(f"Queue {self!r} not closed")
        if self._outbox is not None:
            self._outbox.join()

    def cancel_join_thread(self) -> None:
        """Do not wait at exit for what could not be put yet: it is lost then."""
        if self._outbox is not None:
            self._outbox.cancel_join()

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

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue and count it as unfinished."""
        # Counted first: its reader may be done with it before this returns.
        with self._counting:
            self._unfinished.release()
            self._idle.clear()
        try:
            super().put(obj, block, timeout)
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


class SimpleQueue:
    """A queue with nothing but `put`, `get`, `empty` and `close`."""

    def __init__(self, *, ctx: Any = None) -> None:
        self._setup(_native.Channel(_CAPACITY))

    def _setup(self, channel: _native.Channel) -> None:
        self._channel = channel
        self._receive = channel.receive_object
        self._outbox = _Outbox(channel)

    def __getstate__(self) -> bytes:
        return self._channel.export()

    def __setstate__(self, channel: bytes) -> None:
        self._setup(_native.Channel.attach(channel, True))

    def put(self, obj: Any) -> None:
        """Put an object into the queue."""
        self._outbox.put(dump_parts(obj))

    def get(self) -> Any:
        """Take the next object, waiting for it if need be."""
        return loads(self._receive())

    def empty(self) -> bool:
        """Whether nothing is in the queue."""
        return self._channel.poll(0) == 0 and self._outbox.waiting() == 0

    def close(self) -> None:
        """Let go of the queue; what was put still arrives."""
        self._outbox.join()
        self._channel.close()

    __class_getitem__ = classmethod(types.GenericAlias)
