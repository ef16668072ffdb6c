"""`multiprocessing.shared_memory.SharedMemory` over memory of the runtime, found by its name from any node.

Where the memory lies, `buf` is the memory. On other nodes it is a copy that is made when the object is made; `close`, or the
end of the process, writes back which bytes were changed, and no others. As in the standard library, the memory lasts until somebody unlinks it, at most
as long as the runtime.
"""

from __future__ import annotations

import errno
import itertools
import os
from multiprocessing import shared_memory as std
from multiprocessing import util

from dragon import _native
from dragon._errors import NameTakenError, NoSuchNameError, NoSuchObjectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["open_memory"]

#: What its names begin with among the names of the runtime.
_PREFIX = "multiprocessing.shared_memory"


def open_memory(self: Any, name: str | None, create: bool, size: int) -> None:
    """Makes a `SharedMemory` one that we keep."""
    if size < 0:
        raise ValueError("'size' must be a positive integer")
    if create:
        self._flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        if size == 0:
            raise ValueError("'size' must be a positive number different from zero")
    if name is None and not self._flags & os.O_EXCL:
        raise ValueError("'name' can only be None if create=True")
    if name is not None:
        self._name = "/" + name if self._prepend_leading_slash else name
        memory = _find_or_make(self._name, self._flags, size)
    else:
        memory = None
        while memory is None:
            self._name = std._make_filename()
            memory = _make(self._name, size)
    self._size = len(memory)
    self._dragon = Opened(memory)
    self._buf = self._dragon.buffer()


def _find_or_make(name: str, flags: int, size: int) -> _native.Memory:
    if not flags & os.O_EXCL:
        memory = _find(name)
        if memory is None and not flags & os.O_CREAT:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        if memory is not None:
            return memory
    memory = _make(name, size)
    if memory is None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    return memory


def _find(name: str) -> _native.Memory | None:
    try:
        return _native.Memory.attach(_native.lookup(_PREFIX + name))
    except (NoSuchNameError, NoSuchObjectError):
        return None


def _make(name: str, size: int) -> _native.Memory | None:
    """New memory with this name, or None when the name is taken."""
    memory = _native.Memory(size, int.from_bytes(os.urandom(8)) >> 1)
    # The reference that is counted here is the name's; who unlinks it gives it back.
    descriptor = memory.export()
    try:
        _native.publish(_PREFIX + name, descriptor)
    except NameTakenError:
        _native.Memory.attach(descriptor, True)
        return None
    return memory


class _Copy:
    """What memory of another node holds, and what it held when that was last the same."""

    def __init__(self, memory: _native.Memory) -> None:
        self._memory = memory
        self._before = memory.read(0, len(memory))
        self.content = bytearray(self._before)

    def write_back(self) -> None:
        """Writes the bytes that have changed."""
        now = bytes(self.content)
        for start, end in _changes(self._before, now):
            self._memory.write(start, now[start:end])
        self._before = now


def _changes(before: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Where runs of bytes that differ begin and end."""
    piece = 4096
    for at in range(0, len(before), piece):
        old, new = before[at : at + piece], after[at : at + piece]
        if old == new:
            continue
        differ = itertools.groupby(range(len(old)), key=lambda place: old[place] != new[place])
        for is_different, places in differ:
            if is_different:
                run = list(places)
                yield at + run[0], at + run[-1] + 1


class Opened:
    """The memory of a `SharedMemory`, until it is closed.

    Its methods import nothing: they are called when the interpreter ends, too.
    """

    def __init__(self, memory: _native.Memory) -> None:
        self._memory: _native.Memory | None = memory
        self._copy: _Copy | None = None
        if not memory.is_local():
            self._copy = _Copy(memory)
            # Last of all at the end of the process: what ends before may still change it.
            self._write_back = util.Finalize(self, self._copy.write_back, exitpriority=-100)

    def buffer(self) -> memoryview:
        """The memory, or a copy of it where it lies on another node."""
        return memoryview(self._memory if self._copy is None else self._copy.content)

    def close(self, shared: Any) -> None:
        """What `SharedMemory.close` does."""
        if self._memory is None:
            return
        if shared._buf is not None:
            if self._copy is not None:
                self._copy.write_back()
            shared._buf.release()
            shared._buf = None
        if self._copy is not None:
            self._write_back.cancel()
        self._memory.close()  # Refused while somebody has a view of it: then it can be called again.
        self._memory = None

    def unlink(self, shared: Any) -> None:
        """What `SharedMemory.unlink` does."""
        name = _PREFIX + shared._name
        try:
            descriptor = _native.lookup(name)
            _native.unpublish(name)
        except NoSuchNameError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), shared._name) from None
        try:
            _native.Memory.attach(descriptor, True)
        except NoSuchObjectError:
            pass  # Its node has gone, and the memory with it.
