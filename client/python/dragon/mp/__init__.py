"""The start method "dragon": what `multiprocessing.get_context("dragon")` gives."""

from __future__ import annotations

from multiprocessing import context, process

from dragon import _interpreter, _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

__all__ = ["DragonContext", "DragonProcess", "context_instance"]


class DragonProcess(process.BaseProcess):
    """A process on one of the runtime's nodes."""

    _start_method = "dragon"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Any:
        from dragon._popen import Popen

        return Popen(process_obj)

    @staticmethod
    def _after_fork() -> None:
        """Nothing is inherited from the parent that would have to be undone."""


class DragonContext(context.BaseContext):
    """`multiprocessing` over all nodes of the runtime."""

    _name = "dragon"
    Process = DragonProcess

    def cpu_count(self) -> int:
        """The CPUs that the runtime has on all its nodes."""
        return int(_native.info()["cpus"])

    def set_fresh_interpreters(self, fresh: bool = True) -> None:
        """Start an interpreter for each worker from now on, which imports everything itself, instead of forking a warm one.

        For modules that do not survive a fork. A worker then takes as long to start as an interpreter does.
        """
        _interpreter.fresh = fresh

    def Pipe(self, duplex: bool = True) -> Any:
        """Two connected ends."""
        from dragon.mp.connection import Pipe

        return Pipe(duplex)

    def Lock(self) -> Any:
        """A lock that any process may release."""
        from dragon.mp.synchronize import Lock

        return Lock()

    def RLock(self) -> Any:
        """A lock that its holder may acquire again."""
        from dragon.mp.synchronize import RLock

        return RLock()

    def Condition(self, lock: Any = None) -> Any:
        """A condition variable."""
        from dragon.mp.synchronize import Condition

        return Condition(lock, ctx=self)

    def Semaphore(self, value: int = 1) -> Any:
        """A counter that cannot go below zero."""
        from dragon.mp.synchronize import Semaphore

        return Semaphore(value)

    def BoundedSemaphore(self, value: int = 1) -> Any:
        """A semaphore that cannot be released above the value that it started with."""
        from dragon.mp.synchronize import BoundedSemaphore

        return BoundedSemaphore(value)

    def Event(self) -> Any:
        """A flag to wait for."""
        from dragon.mp.synchronize import Event

        return Event()

    def Barrier(self, parties: int, action: Callable[[], Any] | None = None, timeout: float | None = None) -> Any:
        """A barrier for a fixed number of parties."""
        from dragon.mp.synchronize import Barrier

        return Barrier(parties, action, timeout, ctx=self)

    def Queue(self, maxsize: int = 0) -> Any:
        """A queue."""
        from dragon.mp.queues import Queue

        return Queue(maxsize)

    def JoinableQueue(self, maxsize: int = 0) -> Any:
        """A queue whose items are counted until each was reported done."""
        from dragon.mp.queues import JoinableQueue

        return JoinableQueue(maxsize)

    def SimpleQueue(self) -> Any:
        """A queue with nothing but `put`, `get`, `empty` and `close`."""
        from dragon.mp.queues import SimpleQueue

        return SimpleQueue()

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Any = (),
        maxtasksperchild: int | None = None,
    ) -> Any:
        """Workers on all nodes; as many as there are CPUs when `processes` is not given."""
        from dragon.mp.pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, context=self)

    def Manager(self) -> Any:
        """A process that keeps objects for others, which use them through proxies, from any node."""
        from multiprocessing.managers import SyncManager

        from dragon._hook import ADDRESS, called_by_ours

        manager = SyncManager(ADDRESS, ctx=self.get_context())
        with called_by_ours():
            manager.start()
        return manager

    def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
        """A ctypes object in shared memory, with a lock unless `lock` is False."""
        return _shared("Value", typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True) -> Any:
        """A ctypes array in shared memory, with a lock unless `lock` is False."""
        return _shared("Array", typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def RawValue(self, typecode_or_type: Any, *args: Any) -> Any:
        """A ctypes object in shared memory."""
        return _shared("RawValue", typecode_or_type, *args)

    def RawArray(self, typecode_or_type: Any, size_or_initializer: Any) -> Any:
        """A ctypes array in shared memory."""
        return _shared("RawArray", typecode_or_type, size_or_initializer)


def _shared(name: str, *args: Any, **kwargs: Any) -> Any:
    from multiprocessing import sharedctypes

    from dragon._hook import called_by_ours

    with called_by_ours():
        return getattr(sharedctypes, name)(*args, **kwargs)


context_instance = DragonContext()
