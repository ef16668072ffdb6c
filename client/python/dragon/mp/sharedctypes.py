"""Values and arrays that processes of all nodes share.

The bytes lie in memory of their creator's node. There every process has them mapped, and gets the ctypes object that the
standard library would make. A process of another node gets an object with the same methods, each of which copies what it
needs: an element, a field, a slice. Several of them together are one change only under the lock of a `Value` or an `Array`.
"""

from __future__ import annotations

import ctypes
import os
from multiprocessing import sharedctypes as std

from dragon import _native
from dragon._hook import original

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["Far", "SharedBuffer", "Synchronized", "copy", "new_value", "rebuild", "synchronized"]


class SharedBuffer:
    """The memory of an object, under the interface that `multiprocessing.heap.BufferWrapper` has."""

    def __init__(self, size: int) -> None:
        self.memory = _native.Memory(max(size, 1), int.from_bytes(os.urandom(8)) >> 1)

    def create_memoryview(self) -> memoryview:
        """The bytes; on their own node only."""
        return memoryview(self.memory)

    def __reduce__(self) -> Any:
        return _attach, (self.memory.export(),)


def _attach(descriptor: bytes) -> SharedBuffer:
    buffer = SharedBuffer.__new__(SharedBuffer)
    buffer.memory = _native.Memory.attach(descriptor, True)
    return buffer


def new_value(kind: Any) -> Any:
    """An object of a ctypes type, in memory that processes share."""
    return std.rebuild_ctype(kind, SharedBuffer(ctypes.sizeof(kind)), None)


def rebuild(kind: Any, buffer: SharedBuffer, length: int | None) -> Far:
    """The object in a buffer of another node."""
    return _far(kind if length is None else kind * length, buffer, 0)


def copy(far: Far) -> Any:
    """A copy, on this node."""
    copied = new_value(far._kind)
    copied._wrapper.memory.write(0, far._bytes())
    return copied


class Synchronized(_native.Synchronized, std.Synchronized):
    """A number or a character together with one of our locks."""


def synchronized(obj: Any, lock: Any, ctx: Any) -> Any:
    """An object together with a lock: one of another node, or one of our locks."""
    if isinstance(obj, (FarValue, ctypes._SimpleCData)) and isinstance(lock, _native.Lock):
        return Synchronized(obj, lock, ctx)
    return _far_synchronized(obj, lock, ctx) if isinstance(obj, Far) else original("synchronized")(obj, lock, ctx)


def _far_synchronized(far: Far, lock: Any, ctx: Any) -> Any:
    if isinstance(far, FarArray):
        of_characters = far._kind._type_ is ctypes.c_char
        return (std.SynchronizedString if of_characters else std.SynchronizedArray)(far, lock, ctx)
    if isinstance(far, FarValue):
        return std.Synchronized(far, lock, ctx)
    kind = _synchronized_structures.get(far._kind)
    if kind is None:
        fields = {field[0]: std.make_property(field[0]) for field in far._kind._fields_}
        kind = type("Synchronized" + far._kind.__name__, (std.SynchronizedBase,), fields)
        _synchronized_structures[far._kind] = kind
    return kind(far, lock, ctx)


_synchronized_structures: dict[Any, type] = {}


def _far(kind: Any, buffer: SharedBuffer, at: int) -> Far:
    if issubclass(kind, ctypes._SimpleCData):
        return FarValue(kind, buffer, at)
    return (FarArray if issubclass(kind, ctypes.Array) else FarStructure)(kind, buffer, at)


class Far:
    """A ctypes object whose bytes lie on another node."""

    __slots__ = ("_kind", "_wrapper", "_at")

    def __init__(self, kind: Any, buffer: SharedBuffer, at: int) -> None:
        set_own = object.__setattr__  # Fields of structures have any names.
        set_own(self, "_kind", kind)
        set_own(self, "_wrapper", buffer)
        set_own(self, "_at", at)

    def _bytes(self) -> bytes:
        return self._wrapper.memory.read(self._at, ctypes.sizeof(self._kind))

    def _copy(self) -> Any:
        return self._kind.from_buffer_copy(self._bytes())

    def _get(self, kind: Any, offset: int) -> Any:
        """What is at an offset: the value of a simple object, and for any other an object that refers to it."""
        part = _far(kind, self._wrapper, self._at + offset)
        # Subclasses of the simple types stay objects, as they do in arrays and structures of ctypes.
        return part.value if kind.__base__ is ctypes._SimpleCData else part

    def _write(self, content: Any, offset: int = 0) -> None:
        self._wrapper.memory.write(self._at + offset, bytes(content))

    def __reduce__(self) -> Any:
        std.assert_spawning(self)
        if self._at != 0:
            raise TypeError("a part of a shared object cannot be given to another process: give it the whole")
        if isinstance(self, FarArray):
            return std.rebuild_ctype, (self._kind._type_, self._wrapper, self._kind._length_)
        return std.rebuild_ctype, (self._kind, self._wrapper, None)

    def __repr__(self) -> str:
        return f"<{self._copy()!r} on another node>"


class FarValue(Far):
    """A number or a character."""

    __slots__ = ()

    @property
    def value(self) -> Any:
        """The present value."""
        return self._copy().value

    @value.setter
    def value(self, value: Any) -> None:
        self._write(self._kind(value))


class FarArray(Far):
    """An array."""

    __slots__ = ()

    def __len__(self) -> int:
        return self._kind._length_

    def _offset(self, index: int) -> int:
        length = self._kind._length_
        at = index + length if index < 0 else index
        if not 0 <= at < length:
            raise IndexError("invalid index")
        return at * ctypes.sizeof(self._kind._type_)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._copy()[index]
        return self._get(self._kind._type_, self._offset(index.__index__()))

    def __setitem__(self, index: Any, value: Any) -> None:
        if not isinstance(index, slice):
            self._set(index.__index__(), value)
            return
        # Nothing beside the slice is written: others may change it meanwhile.
        places = range(*index.indices(self._kind._length_))
        if len(places) != len(value):
            raise ValueError("Can only assign sequence of same size")
        if places.step == 1 and places:
            self._write((self._kind._type_ * len(value))(*value), self._offset(places[0]))
            return
        for at, one in zip(places, value, strict=True):
            self._set(at, one)

    def _set(self, index: int, value: Any) -> None:
        element = (self._kind._type_ * 1)()
        element[0] = _near(value)
        self._write(element, self._offset(index))

    def __iter__(self) -> Iterator[Any]:
        if issubclass(self._kind._type_, ctypes._SimpleCData):
            return iter(self._copy())
        return (self[at] for at in range(len(self)))

    @property
    def value(self) -> Any:
        """An array of characters as a string, up to its first zero."""
        return self._copy().value

    @value.setter
    def value(self, value: Any) -> None:
        copied = self._copy()
        copied.value = value
        self._write(copied)

    @property
    def raw(self) -> Any:
        """An array of characters as bytes."""
        return self._copy().raw

    @raw.setter
    def raw(self, value: Any) -> None:
        copied = self._copy()
        copied.raw = value
        self._write(copied)


class FarStructure(Far):
    """A structure or a union."""

    __slots__ = ()

    def _field(self, name: str) -> tuple[Any, Any, bool]:
        for base in self._kind.__mro__:
            for field, kind, *bits in getattr(base, "_fields_", ()):
                if field == name:
                    return getattr(self._kind, name), kind, bool(bits)
        raise AttributeError(f"{self._kind.__name__!r} has no field {name!r}")

    def __getattr__(self, name: str) -> Any:
        field, kind, has_bits = self._field(name)
        return getattr(self._copy(), name) if has_bits else self._get(kind, field.offset)

    def __setattr__(self, name: str, value: Any) -> None:
        field, kind, has_bits = self._field(name)
        copied = self._copy()
        setattr(copied, name, _near(value))
        if has_bits:
            self._write(copied)
        else:
            self._write(bytes(copied)[field.offset : field.offset + ctypes.sizeof(kind)], field.offset)


def _near(value: Any) -> Any:
    return value._copy() if isinstance(value, Far) else value
