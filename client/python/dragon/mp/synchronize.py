"""Locks, semaphores, events, conditions and barriers that processes of all nodes share.

Each is an object of the runtime that lies on its creator's node; operations there are a few atomic instructions while
nobody has to wait. They can be given to another process at any time, also through a queue.
"""

from __future__ import annotations

import threading
from multiprocessing import process
from multiprocessing.synchronize import Condition as _StdCondition

from dragon import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]

SEM_VALUE_MAX = 2**31 - 1


def _attach(kind: Any, descriptor: bytes, *more: Any) -> Any:
    return kind.attach(descriptor, True, *more)


def _holder(lock: Any) -> str:
    """Who holds a lock, as far as this process can tell."""
    if lock._is_mine():
        name = process.current_process().name
        thread = threading.current_thread().name
        return name if thread == "MainThread" else f"{name}|{thread}"
    if lock._get_value() == 1:
        return "None"
    return "SomeOtherThread" if lock._count() > 0 else "SomeOtherProcess"


class Lock(_native.Lock):
    """A lock that any process may release. When its holder dies the next one gets it, with a warning in the log."""

    __slots__ = ("__weakref__",)

    def __new__(cls, *, ctx: Any = None) -> Lock:
        return super().__new__(cls, False)

    @property
    def _semlock(self) -> Lock:
        return self

    def __reduce__(self) -> Any:
        return _attach, (type(self), self.export(), False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(owner={_holder(self)})>"


class RLock(_native.Lock):
    """A lock that its holder, one thread of one process, may acquire again."""

    __slots__ = ("__weakref__",)

    def __new__(cls, *, ctx: Any = None) -> RLock:
        return super().__new__(cls, True)

    @property
    def _semlock(self) -> RLock:
        return self

    def __reduce__(self) -> Any:
        return _attach, (type(self), self.export(), True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({_holder(self)}, {self._count()})>"


class Semaphore(_native.Semaphore):
    """A counter that cannot go below zero."""

    __slots__ = ("__weakref__",)

    def __new__(cls, value: int = 1, *, ctx: Any = None) -> Semaphore:
        if not 0 <= value <= SEM_VALUE_MAX:
            raise ValueError(f"a semaphore starts with 0 to {SEM_VALUE_MAX}, not with {value}")
        return super().__new__(cls, value, cls._limit(value))

    @staticmethod
    def _limit(value: int) -> int:
        return SEM_VALUE_MAX

    def get_value(self) -> int:
        """The counter's present value."""
        return self.value()

    @property
    def _semlock(self) -> Semaphore:
        return self

    def _get_value(self) -> int:
        return self.value()

    def _is_zero(self) -> bool:
        return self.value() == 0

    def __reduce__(self) -> Any:
        return _attach, (type(self), self.export())

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self.value()})>"


class BoundedSemaphore(Semaphore):
    """A semaphore that cannot be released above the value that it started with."""

    __slots__ = ()

    @staticmethod
    def _limit(value: int) -> int:
        return max(value, 1)


class Event(_native.Event):
    """A flag to wait for."""

    __slots__ = ("__weakref__",)

    def __new__(cls, *, ctx: Any = None) -> Event:
        return super().__new__(cls)

    def __reduce__(self) -> Any:
        return _attach, (type(self), self.export())

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} at {id(self):#x} {'set' if self.is_set() else 'unset'}>"


class Condition(_StdCondition):
    """A condition variable over one of the locks above.

    Not the runtime's own: a wait there ends at a signal and gives up its place, and a notification that comes while the
    handler runs is missed. Here the handler runs in the middle of the wait, as with the standard library.
    """

    def __getstate__(self) -> tuple[Any, ...]:
        return self._lock, self._sleeping_count, self._woken_count, self._wait_semaphore


class Barrier(threading.Barrier):
    """A barrier for a fixed number of parties; they may be on different nodes.

    Not the runtime's own, which has no action that runs before the parties go on, and breaks where that one fails.
    """

    def __init__(
        self,
        parties: int,
        action: Callable[[], Any] | None = None,
        timeout: float | None = None,
        *,
        ctx: Any,
    ) -> None:
        if parties < 1:
            raise ValueError(f"a barrier needs at least one party, not {parties}")
        cond = ctx.Condition()
        self.__setstate__((parties, action, timeout, cond, _Number(ctx), _Number(ctx)))
        self._state = 0
        self._count = 0

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        (self._parties, self._action, self._timeout, self._cond, self._state_number, self._count_number) = state

    def __getstate__(self) -> tuple[Any, ...]:
        return (self._parties, self._action, self._timeout, self._cond, self._state_number, self._count_number)

    # The base class keeps its state in these two; all its accesses are made under the condition's lock.
    @property
    def _state(self) -> int:
        return self._state_number.get()

    @_state.setter
    def _state(self, value: int) -> None:
        self._state_number.set(value)

    @property
    def _count(self) -> int:
        return self._count_number.get()

    @_count.setter
    def _count(self, value: int) -> None:
        self._count_number.set(value)


class _Number:
    """A small number, at least -2, that processes share: the value of a semaphore. Set it under a lock only."""

    _OFFSET = 2

    def __init__(self, ctx: Any) -> None:
        self._semaphore = ctx.Semaphore(self._OFFSET)

    def get(self) -> int:
        return self._semaphore.value() - self._OFFSET

    def set(self, value: int) -> None:
        step = value - self.get()
        if step > 0:
            self._semaphore.release(step)
        for _ in range(-step):
            self._semaphore.acquire(False)
