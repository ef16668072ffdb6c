"""Locks, semaphores, events, conditions and barriers that processes of all nodes share.

Each is an object of the runtime that lies on its creator's node; operations there are a few atomic instructions while
nobody has to wait. They can be given to another process at any time, also through a queue.
"""

from __future__ import annotations

import threading
import time
from collections import namedtuple
from multiprocessing import process

from dragon import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]

SEM_VALUE_MAX = 2**31 - 1


def _attach(kind: Any, descriptor: bytes, *more: Any) -> Any:
    return kind.attach(descriptor, True, *more)


def Lock(*, ctx: Any = None) -> _native.Lock:
    """A lock that any process may release. When its holder dies the next one gets it, with a warning in the log."""
    return _native.Lock()


def RLock(*, ctx: Any = None) -> _native.Lock:
    """A lock that its holder, one thread of one process, may acquire again."""
    return _native.Lock(True)


def describe(lock: _native.Lock, recursive: bool) -> str:
    """A lock as the standard library shows it: who holds it, as far as this process can tell."""
    if lock._is_mine():
        holder = process.current_process().name
        thread = threading.current_thread().name
        if thread != "MainThread":
            holder = f"{holder}|{thread}"
    elif lock._get_value() == 1:
        holder = "None"
    else:
        holder = "SomeOtherThread" if lock._count() > 0 else "SomeOtherProcess"
    return f"<RLock({holder}, {lock._count()})>" if recursive else f"<Lock(owner={holder})>"


def Semaphore(value: int = 1, *, ctx: Any = None) -> _native.Semaphore:
    """A counter that cannot go below zero."""
    return _native.Semaphore(_within_limits(value))


def BoundedSemaphore(value: int = 1, *, ctx: Any = None) -> _native.Semaphore:
    """A semaphore that cannot be released above the value that it started with."""
    return _native.Semaphore(_within_limits(value), max(value, 1), bounded=True)


def _within_limits(value: int) -> int:
    if not 0 <= value <= SEM_VALUE_MAX:
        raise ValueError(f"a semaphore starts with 0 to {SEM_VALUE_MAX}, not with {value}")
    return value


class Event(_native.Event):
    """A flag to wait for."""

    __slots__ = ("__weakref__",)

    def __new__(cls, *, ctx: Any = None) -> Event:
        return super().__new__(cls)

    def __reduce__(self) -> Any:
        return _attach, (type(self), self.export())

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} at {id(self):#x} {'set' if self.is_set() else 'unset'}>"


class Condition:
    """A condition variable over one of the locks above.

    A notification belongs to the waiter that it was for, from the moment it was made: notifying waits for nobody, and when
    that waiter dies before it has the lock again, or a signal's handler ends its wait, it goes to the next one.
    """

    def __init__(self, lock: Any = None, *, ctx: Any = None) -> None:
        if not isinstance(lock, (_native.Lock, type(None))):
            raise TypeError(f"a condition takes a Lock or RLock of the start method 'dragon', not {type(lock).__name__}")
        self.__setstate__((lock or RLock(), _native.Condition(_waiters())))

    def __getstate__(self) -> tuple[Any, ...]:
        return self._lock, self._waiters.export()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._lock, waiters = state
        self._waiters = _native.Condition.attach(waiters, True) if isinstance(waiters, bytes) else waiters
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *args: Any) -> None:
        return self._lock.__exit__(*args)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self._lock}, {self._waiters.waiting()})>"

    def wait(self, timeout: float | None = None) -> bool:
        """Gives the lock up, waits for a notification, and takes the lock again; false when none came in time."""
        return self._waiters.wait(self._lock, timeout)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Waits until `predicate()`, called with the lock held, is true; its last result."""
        end = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        """Wakes up to `n` of those who wait, the longest first."""
        self._check_lock()
        if n > 0:
            self._waiters.notify(min(n, _MOST_WAITERS))

    def notify_all(self) -> None:
        """Wakes all who wait."""
        self._check_lock()
        self._waiters.notify()

    def _check_lock(self) -> None:
        if not self._lock._is_mine():
            raise AssertionError("lock is not owned")

    # What the standard library's own tests of conditions look at: who sleeps, and that nothing is left over when nobody does.

    @property
    def _sleeping_count(self) -> _Count:
        return _Count(self._waiters.waiting())

    @property
    def _woken_count(self) -> _Count:
        return _Count(0)

    _wait_semaphore = _woken_count


class _Count(namedtuple("_Count", "value")):
    """A number that looks like a semaphore."""

    __slots__ = ()

    def get_value(self) -> int:
        """The number."""
        return self.value


#: More threads cannot wait at a condition at once.
_MOST_WAITERS = 65536


def _waiters() -> int:
    """How many threads can wait at a condition at once: several for each CPU of the job, and what fits into a page of a pool."""
    return min(max(4000, 8 * int(_native.info()["cpus"])), _MOST_WAITERS)


class Barrier:
    """A barrier for a fixed number of parties; they may be on different nodes.

    A party that dies while it waits, or while it does the action for all, breaks the barrier for the others.
    """

    #: Why it is broken: it was reset while parties waited, and will be whole when they have left.
    _BY_RESET = 4

    def __init__(
        self,
        parties: int,
        action: Callable[[], Any] | None = None,
        timeout: float | None = None,
        *,
        ctx: Any = None,
    ) -> None:
        if parties < 1:
            raise ValueError(f"a barrier needs at least one party, not {parties}")
        self.__setstate__((action, timeout, _native.Barrier(parties, action is not None)))

    def __getstate__(self) -> tuple[Any, ...]:
        return self._action, self._timeout, self._barrier.export()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._action, self._timeout, barrier = state
        self._barrier = _native.Barrier.attach(barrier, True) if isinstance(barrier, bytes) else barrier

    def __repr__(self) -> str:
        parties, waiting, broken = self._barrier.state()
        how = "broken" if broken else f"waiters={waiting}/{parties}"
        return f"<{type(self).__module__}.{type(self).__qualname__} at {id(self):#x}: {how}>"

    def wait(self, timeout: float | None = None) -> int:
        """Waits until all parties are there; this party's number, from 0 on."""
        number = self._barrier.wait(self._timeout if timeout is None else timeout, self._action)
        if number is None:
            raise threading.BrokenBarrierError
        return number

    def reset(self) -> None:
        """Makes it whole again; who waits at this moment gets `BrokenBarrierError`."""
        self._barrier.reset()

    def abort(self) -> None:
        """Breaks it: who waits, and who comes, gets `BrokenBarrierError`."""
        self._barrier.abort()

    @property
    def parties(self) -> int:
        """How many it is for."""
        return self._barrier.state()[0]

    @property
    def n_waiting(self) -> int:
        """How many wait."""
        _, waiting, broken = self._barrier.state()
        return 0 if broken else waiting

    @property
    def broken(self) -> bool:
        """Whether it is broken."""
        return self._barrier.state()[2] not in (0, self._BY_RESET)
