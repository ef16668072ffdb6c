"""Functions and classes that no other process can import travel by value, as `cloudpickle` writes them, where it is installed."""

from __future__ import annotations

import collections
import functools
import io
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pickle
    from collections.abc import Callable
    from typing import Any

_MAIN = b"__main__"
#: In every pickle of a function by value.
_BY_VALUE = b"cloudpickle"
_NOTE = (
    "other processes cannot import it: define functions and classes in a module, not within functions, or install the package "
    "cloudpickle, which sends them by value"
)


def dump(obj: Any, stream: io.BytesIO, kept: Callable[[pickle.PickleBuffer], Any] | None, refused: Exception) -> None:
    """Pickles what the standard pickler refuses; raises what that one raised if it cannot be done."""
    pickler = _pickler()
    if pickler is None:
        if not isinstance(refused, TypeError):  # that is about a value, not a name
            refused.add_note(f"dragon: {_NOTE}")
        raise refused
    pickler(stream, 5, buffer_callback=kept).dump(obj)


def is_wanted(stream: io.BytesIO, begin: int) -> bool:
    """Whether the pickle that begins there refers to a main module that only this process has, and can be written otherwise."""
    return not _main_is_a_file() and _MAIN in stream.getvalue()[begin:] and _pickler() is not None


def holds_values(pickled: bytes) -> bool:
    """Whether a pickle may hold functions or classes as they were when it was made, and not only their names."""
    return _BY_VALUE in pickled


def _main_is_a_file() -> bool:
    # IPython's main module changes its file, and is another one, while it runs a file.
    main = sys.modules["__main__"]
    return _is_a_file(main, getattr(main, "__file__", None))


@functools.lru_cache(maxsize=4)
def _is_a_file(_main: Any, _file: Any) -> bool:
    from dragon._interpreter import has_main

    return has_main()


@functools.cache
def _pickler() -> Any:
    try:
        import cloudpickle
    except ImportError:
        return None
    from dragon._serialize import Pickler

    class ByValue(cloudpickle.Pickler):
        dispatch_table = collections.ChainMap(cloudpickle.Pickler.dispatch_table, Pickler.dispatch_table)

    return ByValue
