"""Objects to bytes and back.

A message is a pickle (protocol 5; its first byte is 0x80), or, where the object holds large buffers (arrays, and all else
that pickles its memory as a `PickleBuffer`), a frame of *parts* that the buffers go into as they are::

    0x00 · 7 bytes zero · u64 number of buffers · u64 length of the pickle · u64 length of each buffer
    the pickle, then each buffer, each at the next multiple of 64 bytes

A received frame of parts is not copied: the buffers of the objects made from it are views of the message, which lives
until the last of them is gone. They are writable; nobody else has them.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
from multiprocessing.reduction import ForkingPickler

from dragon import _by_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROTOCOL = 5
#: Smaller buffers are copied into the pickle: it costs less than another part.
LARGE = 64 * 1024

_ALIGN = 64
_HEAD = struct.Struct("<QQQ")
_PICKLE_MARK = 0x80
#: Where PyTorch has the reducers that it registers.
_OF_TORCH = "torch.multiprocessing.reductions"
#: Types whose values need no reducer, exactly these and not their subclasses.
_ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes))


class _Reducers(dict):
    """The reducers of `multiprocessing`, then those of `copyreg`, both looked up when they are needed."""

    def __missing__(self, kind: type) -> Any:
        reducer = ForkingPickler._extra_reducers.get(kind) or copyreg.dispatch_table.get(kind)
        if reducer is None:
            raise KeyError(kind)
        if getattr(reducer, "__module__", None) == _OF_TORCH and hasattr(kind, "requires_grad"):
            from dragon import _torch

            return self.setdefault(kind, _torch.by_value(reducer))
        return reducer


class Pickler(pickle.Pickler):
    """Pickles with every reducer that was registered with `multiprocessing` or `copyreg`."""

    dispatch_table = _Reducers()


def dump(obj: Any, stream: io.BytesIO, keep: Callable[[pickle.PickleBuffer], bool] | None = None) -> list[memoryview]:
    """Appends the pickle of an object to a stream; the buffers that are not `keep`-ed in it."""
    begin = stream.tell()
    buffers: list[memoryview] = []

    def outside(buffer: pickle.PickleBuffer) -> bool:
        if keep(buffer):
            return True
        buffers.append(buffer.raw())
        return False

    callback = outside if keep is not None else None
    try:
        Pickler(stream, PROTOCOL, buffer_callback=callback).dump(obj)
        refused = None
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        refused = error
    if refused is not None or _by_value.is_wanted(stream, begin):
        stream.seek(begin)
        stream.truncate()
        buffers.clear()
        try:
            _by_value.dump(obj, stream, callback, refused)
        finally:
            # Its traceback has this frame, and with it the stream: only the collector would free it, views of it first or not.
            refused = None
    return buffers


def _is_plain(obj: Any, _atoms: frozenset = _ATOMS) -> bool:
    """Whether it is certain, at a glance, that no reducer and no buffer is involved: then the plain pickler, which is
    quicker to set up, does the same."""
    kind = type(obj)
    return kind in _atoms or (kind is tuple or kind is list) and len(obj) < 32 and _atoms.issuperset(map(type, obj))


def dumps(obj: Any) -> Any:
    """The pickle of an object, as bytes or as a view of bytes."""
    if _is_plain(obj):
        return pickle.dumps(obj, 5)
    stream = io.BytesIO()
    dump(obj, stream)
    return stream.getbuffer()


def dump_parts(obj: Any) -> Any:
    """Bytes (or a view), or a list of parts when the object holds large buffers.

    The parts refer to the object's own memory: send them before it can change.
    """
    if _is_plain(obj):
        return pickle.dumps(obj, 5)
    stream = io.BytesIO()
    buffers = dump(obj, stream, _belongs_in_pickle)
    if not buffers:
        return stream.getbuffer()
    body = stream.getbuffer()
    head = _HEAD.pack(0, len(buffers), body.nbytes) + b"".join(
        buffer.nbytes.to_bytes(8, "little") for buffer in buffers
    )
    parts: list[Any] = []
    at = 0
    for part in (head, body, *buffers):
        gap = -at % _ALIGN
        if gap:
            parts.append(bytes(gap))
        parts.append(part)
        at += gap + memoryview(part).nbytes
    return parts


def _belongs_in_pickle(buffer: pickle.PickleBuffer) -> bool:
    try:
        return buffer.raw().nbytes < LARGE
    except BufferError:  # not contiguous
        return True


def loads(message: Any, _loads: Any = pickle.loads) -> Any:
    """The object in a message: bytes, or a leased message."""
    if type(message) is bytes:
        if message[0] == _PICKLE_MARK:
            return _loads(message)
        message = bytearray(message)  # so that views of it are writable
    view = memoryview(message)
    if view[0] == _PICKLE_MARK:
        return _loads(view)
    return _load_parts(view)


def _load_parts(view: memoryview) -> Any:
    mark, count, body_length = _HEAD.unpack_from(view)
    if mark != 0 or _HEAD.size + 8 * count > view.nbytes:
        raise pickle.UnpicklingError(f"a message of {view.nbytes} bytes is neither a pickle nor a frame of parts")
    lengths = struct.unpack_from(f"<{count}Q", view, _HEAD.size)
    pieces = []
    at = _HEAD.size + 8 * count
    for length in (body_length, *lengths):
        at += -at % _ALIGN
        if at + length > view.nbytes:
            raise pickle.UnpicklingError(f"a frame of parts ends at {view.nbytes} bytes, before its part at {at}")
        pieces.append(view[at : at + length])
        at += length
    return pickle.loads(pieces[0], buffers=pieces[1:])
