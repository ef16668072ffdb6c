"""What can go wrong, as exceptions. Each carries the number that the C interface gives, as ``code``."""

from __future__ import annotations

import builtins


class DragonError(Exception):
    """Something that the runtime refused or could not do. The text says what, and what to do."""

    #: The error's number; the same in the C interface and on the wire.
    code = 0


class TimeoutError(DragonError, builtins.TimeoutError):
    """The time given for an operation passed before it could be done."""

    code = 1


class EmptyError(DragonError):
    """There is nothing to receive."""

    code = 2


class FullError(DragonError):
    """There is no room to send."""

    code = 3


class DestroyedError(DragonError):
    """The object was destroyed."""

    code = 4


class NoSuchObjectError(DragonError, LookupError):
    """There is no such object, or no longer."""

    code = 5


class WrongKindError(DragonError, TypeError):
    """The object is of another kind than the operation needs."""

    code = 6


class OutOfMemoryError(DragonError, MemoryError):
    """A pool is used up. The text names the pool, what was asked, what is free, and the limit."""

    code = 7


class OutOfCgroupMemoryError(OutOfMemoryError):
    """The memory limit of the job leaves no room for the pool to grow."""

    code = 8


class TableFullError(DragonError):
    """A table of fixed size is full: too many processes or objects on a node."""

    code = 9


class InvalidArgumentError(DragonError, ValueError):
    """A value is out of its range."""

    code = 10


class OwnerDiedError(DragonError):
    """The last owner of a lock died while it held it."""

    code = 11


class NotOwnerError(DragonError):
    """The lock is not held by the caller."""

    code = 12


class NodeDownError(DragonError, ConnectionError):
    """The node that owns the object is down."""

    code = 13


class UnreachableError(DragonError, ConnectionError):
    """The node that owns the object exists, but cannot be reached."""

    code = 14


class RuntimeGoneError(DragonError):
    """The runtime has ended, or is ending."""

    code = 15


class NoRuntimeError(DragonError):
    """There is no runtime to attach to."""

    code = 16


class VersionMismatchError(DragonError):
    """The daemon is of another version than this package. The text names both."""

    code = 17


class RefusedError(DragonError, PermissionError):
    """The daemon refused: another user's runtime, or no proof of its key."""

    code = 18


class SpawnError(DragonError):
    """A process could not be started. The text says why."""

    code = 19


class CorruptError(DragonError):
    """Shared memory holds what no correct process writes."""

    code = 20


class TooLargeError(DragonError, ValueError):
    """A message is larger than its limit."""

    code = 21


class SystemCallError(DragonError, OSError):
    """The operating system refused a call. The text names it."""

    code = 22


class CancelledError(DragonError):
    """The operation was cancelled."""

    code = 23


class UnsupportedError(DragonError, NotImplementedError):
    """This release does not do that yet."""

    code = 24


class InterruptedWaitError(DragonError):
    """A signal interrupted a wait; nothing happened."""

    code = 25


class BrokenError(DragonError):
    """A barrier is broken: a party gave up, died, or broke it."""

    code = 26


class EndOfStreamError(DragonError, EOFError):
    """A stream has ended: its sender closed it."""

    code = 27


class PeerDiedError(DragonError, ConnectionError):
    """The process at the other end died."""

    code = 28


class InternalError(DragonError, RuntimeError):
    """A defect of this library: please report it."""

    code = 29


class PeerClosedError(DragonError, BrokenPipeError):
    """The other end of a stream was closed."""

    code = 30


class NameTakenError(DragonError, FileExistsError):
    """The name stands for something already."""

    code = 31


class NoSuchNameError(DragonError, LookupError):
    """The name stands for nothing, or the key has no value."""

    code = 32


class ChangedError(DragonError, ValueError):
    """The value is not the expected one."""

    code = 33


class WorkerLostError(DragonError, RuntimeError):
    """The worker of a pool that ran a task ended before the task did."""


_BY_CODE = {
    kind.code: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, DragonError) and kind.code
}

__all__ = sorted(kind.__name__ for kind in _BY_CODE.values()) + ["DragonError", "WorkerLostError"]


def exception(code: int, text: str) -> DragonError:
    """The exception for an error number. ``_native`` calls it for every error that it raises."""
    kind = _BY_CODE.get(code, DragonError)
    if kind is NoRuntimeError:
        text = f"{text}\nStart the program with the runtime: type 'dragon prog.py' (or 'srun --dragon prog.py' under Slurm)."
    error = kind(text or kind.__doc__)
    error.code = code
    return error


def owner_died() -> None:
    """Says that a lock came from a process that died while it held it. ``_native`` calls it."""
    import logging

    logging.getLogger("dragon").warning(
        "a lock was handed on: the process that held it has died, what it guards may be half-way through a change"
    )
