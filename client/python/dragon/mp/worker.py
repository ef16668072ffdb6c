"""What a worker of a pool does, and the messages between it and the pool.

Apart from the pool itself, so that a worker does without the standard library's pool, and all that it imports, until a task
fails.
"""

from __future__ import annotations

import itertools
import types
from multiprocessing import util

from dragon import _native
from dragon._errors import DragonError
from dragon._serialize import dump_parts, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# A message is named by its hint: 4 bits kind, 20 bits worker, 40 bits ticket (the number of a task in this pool). Tasks
# have a ticket only. Notices of a worker's end, from its daemon, have no kind.
RESULT, ERROR, TOOK, WAKE = 1, 2, 3, 4
TICKET_BITS = 40
TICKET_MASK = (1 << TICKET_BITS) - 1
WORKER_MASK = (1 << 20) - 1
KIND_SHIFT = 60
#: The ticket that tells a worker to end, and in the last 8 bytes of a result: took no other task.
NONE = 0
_NO_TICKET = bytes(8)


def mapstar(args: Any) -> list[Any]:
    """What stands for a chunk of `map` in a task."""
    return list(map(*args))


def starmapstar(args: Any) -> list[Any]:
    """The same for `starmap`."""
    return list(itertools.starmap(args[0], args[1]))


def _with_traceback(func: Any, error: Exception) -> Exception:
    try:
        from multiprocessing import pool as std
    except Exception:
        # What the task has used up, the import needs too.
        return error
    if func is std._helper_reraises_exception:
        return error
    return std.ExceptionWithTraceback(error, error.__traceback__)


def _unsendable(error: Exception, result: Any) -> Exception:
    try:
        from multiprocessing import pool as std
    except Exception:
        return RuntimeError(f"Error sending result: {result!r}. Reason: {error!r}")
    return std.MaybeEncodingError(error, result)


class _Decoder:
    """Messages to tasks, in a worker. Functions are looked up once; other callables are made anew for each task."""

    _MOST = 64

    def __init__(self) -> None:
        self._known: dict[bytes, Any] = {}

    def run(self, message: Any) -> tuple[bool, Any]:
        func = None
        try:
            view = message if type(message) is bytes else memoryview(message)
            end = len(view) - 4
            start = end - int.from_bytes(view[end:], "little")
            key = bytes(view[start:end])
            functions = self._known.get(key)
            if functions is None:
                functions = loads(key)
                if all(kind is types.FunctionType or kind is type(None) for kind in map(type, functions[:2])):
                    if len(self._known) >= self._MOST:
                        self._known.clear()  # Those that travel by value are others with each job.
                    self._known[key] = functions
            func, inner, has_kwds = functions
            arguments = loads(message)
            if inner is not None:
                return True, func((inner, arguments))
            if has_kwds:
                args, kwds = arguments
                return True, func(*args, **kwds)
            return True, func(*arguments)
        except Exception as error:
            return False, _with_traceback(func, error)


def work(
    tasks: _native.Channel,
    results: _native.Channel,
    number: int,
    initializer: Callable[..., Any] | None,
    initargs: Any,
    maxtasks: int | None,
) -> None:
    """The main function of a worker."""
    if initializer is not None:
        initializer(*initargs)
    try:
        _work_off(tasks, results, number, maxtasks)
    except DragonError as error:
        util.debug("worker %d: the pool is gone: %s", number, error)


def _work_off(tasks: Any, results: Any, number: int, maxtasks: int | None) -> None:
    receive = tasks.receive_tagged
    run = _Decoder().run
    took = TOOK << KIND_SHIFT | number << TICKET_BITS
    item = None
    for count in itertools.count(1) if maxtasks is None else range(1, maxtasks + 1):
        if item is None:
            item = receive()
            if item[0] != NONE:
                results.send(b"", took | item[0])
        ticket, message = item
        if ticket == NONE:
            return
        good, result = run(message)
        # Taken before the result is sent, to say both with one message.
        item = receive(0) if count != maxtasks else None
        held = item[0].to_bytes(8, "little") if item is not None else _NO_TICKET
        _send_result(results, number << TICKET_BITS | ticket, good, result, held)
        message = result = None


def _send_result(results: Any, hint: int, good: bool, result: Any, held: bytes) -> None:
    try:
        message = dump_parts(result)
    except Exception as error:
        good, message = False, dump_parts(_unsendable(error, result))
    hint |= (RESULT if good else ERROR) << KIND_SHIFT
    # A pickle and a frame of parts end where they say; what follows is ours.
    if type(message) is list:
        message.append(held)
        results.send_parts(message, hint)
    else:
        results.send_parts((message, held), hint)
