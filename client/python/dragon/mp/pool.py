"""A pool of workers on all nodes.

The public methods, the results and the iterators are the standard library's. What lies under them is our own::

    map, apply, … ──► jobs ──pump──► channel of tasks ──► workers, on any node
                       ▲                                    │
                  result thread ◄── channel of results ◄────┘   also: "worker ended", from its daemon

Both channels lie on the creator's node. A task is sent by the thread that asks for it while fewer than a *window* are on
their way, and by the result thread afterwards, so that a task costs at most one wake-up on either side and none while
both are busy. Only the iterables of `imap`, which may block, are read by a thread of their own.

Each worker tells, together with a result, which task it took next; when it took one after waiting, it says so at once.
So the pool knows what a worker had when it was killed: that task fails with :class:`WorkerLostError`, the others go on,
and a new worker takes the place. (Killed in the microseconds between taking a task and saying so, it takes the task
along unnoticed.)
"""

from __future__ import annotations

import collections
import itertools
import queue
import struct
import threading
import traceback
import types
from multiprocessing import pool as std
from multiprocessing import util

from dragon import _native
from dragon._by_value import holds_values
from dragon._errors import DragonError, NodeDownError, WorkerLostError
from dragon._placement import Node, worker_nodes
from dragon._interpreter import interpreter
from dragon._popen import make_payload, parse_notice
from dragon._serialize import dump_parts, dumps, loads
from dragon.mp import worker
from dragon.mp.worker import ERROR, KIND_SHIFT, NONE, RESULT, TICKET_BITS, TICKET_MASK, TOOK, WAKE, WORKER_MASK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Callable

__all__ = ["Pool"]

#: Tasks on their way at most.
_WINDOW = 512
#: And their bytes, as long as there are as many tasks as workers.
_WINDOW_BYTES = 64 * 1024 * 1024
#: Room for what is not a result: "took a task", "ended".
_SLACK = 512


class Pool(std.Pool):
    """Workers on all nodes of the runtime, by default as many as there are CPUs."""

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Any = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        self._pool: list[Any] = []
        self._state = std.INIT
        if context is None:
            from dragon.mp import context_instance as context
        self._ctx = context
        if processes is None:
            processes = context.cpu_count()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        engine = _Engine(context, processes, (initializer, initargs, maxtasksperchild))
        self._engine = engine
        self._cache = engine.cache
        self._taskqueue = engine
        self._pool = engine.workers
        engine.start()
        self._terminate = util.Finalize(self, engine.terminate, exitpriority=15)
        self._state = std.RUN

    def _repopulate_pool(self) -> None:
        """Does nothing: whoever ends is replaced at once, without being asked."""

    def close(self) -> None:
        """No more tasks; the workers end when all are done."""
        if self._state == std.RUN:
            self._state = std.CLOSE
            self._engine.close()

    def join(self) -> None:
        """Waits for the workers to end, after `close` or `terminate`."""
        if self._state == std.RUN:
            raise ValueError("Pool is still running")
        if self._state not in (std.CLOSE, std.TERMINATE):
            raise ValueError("In unknown state")
        self._engine.join()


class _Cache(dict):
    """The results that somebody waits for, by job."""

    def __init__(self, engine: _Engine) -> None:
        super().__init__()
        self._engine = engine

    def __delitem__(self, job: int) -> None:
        super().__delitem__(job)
        if not self and self._engine.state != std.RUN:
            self._engine.wake()


class _Engine:
    """The workers, the two channels, and the thread that reads results."""

    def __init__(self, ctx: Any, processes: int, setup: tuple[Any, ...]) -> None:
        self.state = std.RUN
        self.cache = _Cache(self)
        self.workers: list[Any] = []
        self._ctx = ctx
        self._processes = processes
        self._setup = setup
        self._window = max(_WINDOW, 2 * processes)
        self._tasks = _native.Channel(self._window + processes + _SLACK)
        self._results = _native.Channel(self._window + processes + _SLACK)
        members = worker_nodes()
        self._nodes = len(members)
        self._places = _places(members)
        self._lost_nodes: set[int] = set()

        self._jobs: collections.deque[Any] = collections.deque()
        self._send_lock = threading.RLock()
        self._encoder = _Encoder()
        self._tickets: dict[int, tuple[int, int, int]] = {}
        self._next_ticket = NONE + 1
        self._bytes = 0
        self._set_lock = threading.RLock()

        self._workers: dict[int, tuple[Any, int]] = {}
        self._by_identity: dict[bytes, int] = {}
        self._held: dict[int, int] = {}
        self._worker_numbers = itertools.count(1)
        self._futile_starts = 0

        self._thread = threading.Thread(target=self._serve, name="PoolResults", daemon=True)
        self._imaps: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._imap_thread: threading.Thread | None = None
        self._room = threading.Condition(threading.Lock())
        self._waiting_for_room = False
        self._stopping = False

    # What the public methods and the pool's owner call.

    def start(self) -> None:
        try:
            self._start_workers([next(self._places) for _ in range(self._processes)])
        except BaseException:
            self._end_workers()
            raise
        self._thread.start()

    def put(self, job: tuple[Any, Callable[[int], None] | None]) -> None:
        """Takes a job: an iterable of tasks, and what to tell their number to when it is known only at the end."""
        tasks, set_length = job
        if set_length is not None:
            if self._imap_thread is None:
                self._imap_thread = threading.Thread(target=self._serve_imaps, name="PoolImap", daemon=True)
                self._imap_thread.start()
            self._imaps.put(job)
            return
        self._jobs.append(iter(tasks))
        self._pump()

    def close(self) -> None:
        self.state = std.CLOSE
        self.wake()

    def join(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def terminate(self) -> None:
        self.state = std.TERMINATE
        self.wake()
        self._notify_room()
        self._imaps.put(None)
        self.join()
        self._end_workers()
        self._abandon_results(RuntimeError("the pool was terminated before this result was there"))
        for channel in (self._tasks, self._results):
            try:
                channel.destroy()
            except DragonError as error:
                util.debug("destroying a channel of a pool: %s", error)

    def wake(self) -> None:
        """Makes the result thread look at the state. Where the channel is full it is awake anyway."""
        try:
            self._results.send(b"", WAKE << KIND_SHIFT, 0)
        except DragonError as error:
            util.debug("waking the result thread of a pool: %s", error)

    # Sending tasks.

    def _pump(self) -> None:
        jobs = self._jobs
        with self._send_lock:
            while jobs and self._has_room():
                task = next(jobs[0], None)
                if task is None:
                    jobs.popleft()
                else:
                    self._send(task)

    def _has_room(self) -> bool:
        on_their_way = len(self._tickets)
        return on_their_way < self._window and (self._bytes < _WINDOW_BYTES or on_their_way < self._processes)

    def _send(self, task: tuple[int, int, Any, Any, Any]) -> None:
        job, i = task[:2]
        try:
            message, size = self._encoder.encode(job, *task[2:])
            ticket = self._next_ticket
            self._next_ticket = ticket + 1
            self._tickets[ticket] = job, i, size
            self._bytes += size
            self._tasks.send_parts(message, ticket)
        except Exception as error:
            self._set(job, i, (False, error))

    def _serve_imaps(self) -> None:
        while (job := self._imaps.get()) is not None:
            tasks, set_length = job
            count = 0
            # The iterable raises nothing: an error of the user's is a task that raises it.
            for task in tasks:
                self._wait_for_room()
                if self.state == std.TERMINATE:
                    return
                with self._send_lock:
                    self._send(task)
                count = task[1] + 1
            with self._set_lock:
                set_length(count)
            tasks = task = job = None

    def _wait_for_room(self) -> None:
        with self._room:
            while not self._has_room() and self.state != std.TERMINATE:
                self._waiting_for_room = True
                self._room.wait()

    def _notify_room(self) -> None:
        with self._room:
            self._waiting_for_room = False
            self._room.notify_all()

    # The result thread.

    def _serve(self) -> None:
        receive = self._results.receive_tagged
        low = self._window // 2
        error: Exception = RuntimeError("the pool has ended")
        try:
            while not self._is_done():
                hint, message = receive()
                kind = hint >> KIND_SHIFT
                if kind <= ERROR and kind:
                    self._take_result(kind, hint, message)
                elif kind == TOOK:
                    self._held[(hint >> TICKET_BITS) & WORKER_MASK] = hint & TICKET_MASK
                    self._futile_starts = 0
                elif kind != WAKE:
                    self._worker_ended(*parse_notice(bytes(message)))
                message = None
                if len(self._tickets) <= low:
                    if self._jobs:
                        self._pump()
                    if self._waiting_for_room:
                        self._notify_room()
        except Exception as failure:  # the runtime is gone, or the pool has no workers any more
            error = failure
            if self.state != std.TERMINATE and not isinstance(failure, DragonError):
                traceback.print_exc()
        finally:
            self.state = self.state if self.state == std.TERMINATE else std.CLOSE
            for process, _place in self._workers.values():
                process._popen.watched = False
            if self.state != std.TERMINATE:
                self._imaps.put(None)
                self._abandon_results(error)

    def _is_done(self) -> bool:
        if self.state == std.RUN:
            return False
        if self.state == std.TERMINATE:
            return True
        if not self._stopping and not self.cache and not self._jobs:
            self._stopping = True
            for _ in self._workers:
                self._tasks.send(b"", NONE)
        return self._stopping and not self._workers

    def _take_result(self, kind: int, hint: int, message: Any) -> None:
        held = int.from_bytes(message[-8:] if type(message) is bytes else memoryview(message)[-8:], "little")
        self._held[(hint >> TICKET_BITS) & WORKER_MASK] = held
        entry = self._tickets.pop(hint & TICKET_MASK, None)
        if entry is None:
            return
        job, i, size = entry
        self._bytes -= size
        try:
            result = kind == RESULT, loads(message)
        except Exception as error:
            result = False, error
        self._set(job, i, result)

    def _set(self, job: int, i: int, result: tuple[bool, Any]) -> None:
        try:
            with self._set_lock:
                entry = self.cache.get(job)
                if entry is not None:
                    entry._set(i, result)
        except Exception:  # of a callback
            traceback.print_exc()

    def _abandon_results(self, error: Exception) -> None:
        with self._set_lock:
            for entry in list(self.cache.values()):
                if isinstance(entry, std.IMapIterator):
                    with entry._cond:
                        entry._items.append((False, error))
                        entry._length = entry._index
                        entry._cond.notify_all()
                else:
                    entry._success, entry._value = False, error
                    entry._event.set()
            self.cache.clear()

    # The workers.

    def _start_workers(self, places: list[int]) -> None:
        """Starts a worker on each of these nodes, all with one request."""
        processes = []
        for _ in places:
            number = next(self._worker_numbers)
            process = self._ctx.Process(target=worker.work, args=(self._tasks, self._results, number, *self._setup))
            process.name = process.name.replace("Process", "PoolWorker")
            process.daemon = True
            processes.append((number, process))
        payloads = [make_payload(process) for _, process in processes]
        results = _native.spawn_python_many(
            interpreter(), [payload for payload, _ in payloads], places, self._results, with_creator=True
        )
        failures = []
        for (number, process), (_, channel), place, result in zip(processes, payloads, places, results, strict=True):
            if isinstance(result, Exception):
                failures.append((place, result))
                continue
            process._dragon_started = (*result, channel)
            process.start()
            self._workers[number] = process, place
            self._by_identity[process._popen.identity] = number
            self.workers.append(process)
        self._retry(failures)

    def _retry(self, failures: list[tuple[int, Exception]]) -> None:
        """Starts the workers of lost nodes elsewhere; any other failure is raised."""
        for _, failure in failures:
            if not isinstance(failure, NodeDownError):
                raise failure
        self._lost_nodes.update(place for place, _ in failures)
        for _, failure in failures:
            if len(self._lost_nodes) == self._nodes:
                raise failure
            self._start_workers([self._next_place()])

    def _next_place(self) -> int:
        return next(place for place in self._places if place not in self._lost_nodes)

    def _worker_ended(self, identity: bytes, code: int) -> None:
        number = self._by_identity.pop(identity, None)
        if number is None:
            return
        process, place = self._workers.pop(number)
        process._popen.ended(code)
        process.join()
        self.workers.remove(process)
        entry = self._tickets.pop(self._held.pop(number, NONE), None)
        if entry is not None:
            job, i, size = entry
            self._bytes -= size
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            text = f"the worker of this task (process {process.pid} on node {place}) ended with {how} before the task did"
            self._set(job, i, (False, WorkerLostError(text)))
        if self.state == std.TERMINATE or self._stopping:
            return
        self._replace(place, code)

    def _replace(self, place: int, code: int) -> None:
        if code != 0:
            self._futile_starts += 1
            if self._futile_starts > 8 + 2 * self._processes:
                self._end_workers()
                raise WorkerLostError(
                    f"the pool gives up: {self._futile_starts} workers in a row ended before they took a task, the last "
                    f"one with exit code {code}; what they printed says why (an initializer that raises, a main module "
                    "that cannot be imported)"
                )
        if place in self._lost_nodes:
            place = self._next_place()
        self._start_workers([place])

    def _end_workers(self) -> None:
        for process in self.workers:
            process._popen.watched = False
        for process in self.workers:
            if process.exitcode is None:
                process.terminate()
        for process in self.workers:
            process.join()


class _Encoder:
    """Tasks to messages: the arguments, then the functions, then the length of the functions' part.

    ``u32`` at the end; what comes before is two pickles. The functions of a job are pickled once and not for each task; those
    that travel by value anew for each job, since what they refer to may have changed.
    """

    _LENGTH = struct.Struct("<I")
    _MOST = 64

    def __init__(self) -> None:
        self._known: dict[Any, bytes] = {}
        #: Job and functions by value of the last such task, and their pickle.
        self._of_job: tuple[Any, bytes] | None = None

    def encode(self, job: int, func: Any, args: Any, kwds: Any) -> tuple[list[Any], int]:
        if func is std.mapstar or func is std.starmapstar:
            func = worker.mapstar if func is std.mapstar else worker.starmapstar
            ((inner, arguments),) = args
        else:
            inner, arguments = None, (args, kwds) if kwds else args
        functions = func, inner, bool(kwds)
        # Only functions are told apart by what they are; other callables may have a state that changes.
        lasting = type(func) is types.FunctionType and (inner is None or type(inner) is types.FunctionType)
        tail = self._known.get(functions) if lasting else None
        if tail is None and lasting and self._of_job is not None and self._of_job[0] == (job, functions):
            tail = self._of_job[1]
        if tail is None:
            pickled = bytes(dumps(functions))
            tail = pickled + self._LENGTH.pack(len(pickled))
            if lasting and holds_values(pickled):
                self._of_job = (job, functions), tail
            elif lasting:
                if len(self._known) >= self._MOST:
                    self._known.clear()
                self._known[functions] = tail
        message = dump_parts(arguments)
        if type(message) is list:
            message.append(tail)
            return message, sum(memoryview(part).nbytes for part in message)
        return [message, tail], len(message) + len(tail)


def _places(members: list[Node]) -> Iterator[int]:
    """The nodes in the order in which they get workers: in turn, each as often as it has CPUs."""
    turns = range(max(node.cpus for node in members) or 1)
    return itertools.cycle([node.index for turn in turns for node in members if turn < max(node.cpus, 1)])
