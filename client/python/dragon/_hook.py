"""Makes `multiprocessing` know the start method "dragon".

`multiprocessing.Queue` and its like are methods of a default context, bound when `multiprocessing` was imported, and they
make the standard library's objects whatever context is set. So that they make ours under this start method, also where
a program imported them by name before it imported `dragon`, the functions behind these methods get another body: it asks
which context is set, and for every context but ours does what it did before.
"""

from __future__ import annotations

import types
from multiprocessing import context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

METHOD = "dragon"

_originals: dict[str, types.FunctionType] = {}


def register(concrete: context.BaseContext) -> None:
    """Adds the start method. Doing it again changes nothing."""
    if METHOD in context._concrete_contexts:
        return
    context._concrete_contexts[METHOD] = concrete
    for name, body in vars(_Bodies).items():
        if isinstance(body, types.FunctionType):
            _replace_body(getattr(context.BaseContext, name), body)
    _replace_body(context.DefaultContext.get_all_start_methods, _Methods.get_all_start_methods)


def call(name: str, caller: Any, *args: Any) -> Any:
    """Makes an object by the context that is set."""
    actual = _chosen(caller)
    if actual is not None:
        return getattr(actual, name)(*args)
    return _originals[name](caller, *args)


def call_keyword(name: str, caller: Any, *args: Any, lock: Any) -> Any:
    """The same for functions whose argument `lock` is only a keyword."""
    actual = _chosen(caller)
    if actual is not None:
        return getattr(actual, name)(*args, lock=lock)
    return _originals[name](caller, *args, lock=lock)


def _chosen(caller: Any) -> Any:
    # Only the default context has a choice. It is looked at without making it: asking would fix the default.
    actual = getattr(caller, "_actual_context", None)
    return actual if actual is not None and actual._name == METHOD else None


def _replace_body(function: Any, body: types.FunctionType) -> None:
    old, new = function.__code__, body.__code__
    arguments = old.co_argcount, old.co_kwonlyargcount, old.co_flags & 0x0C, old.co_varnames[: old.co_argcount]
    if arguments != (new.co_argcount, new.co_kwonlyargcount, new.co_flags & 0x0C, new.co_varnames[: new.co_argcount]):
        raise ImportError(
            f"multiprocessing.{function.__name__} of this Python has other arguments than this release of dragon knows"
        )
    original = types.FunctionType(old, function.__globals__, function.__name__, function.__defaults__)
    original.__kwdefaults__ = function.__kwdefaults__
    _originals[function.__name__] = original
    function.__code__ = new


class _Bodies:
    """The new bodies. They run with the globals of `multiprocessing.context`, hence the imports."""

    def cpu_count(self):
        from dragon._hook import call
        return call("cpu_count", self)

    def Manager(self):
        from dragon._hook import call
        return call("Manager", self)

    def Pipe(self, duplex=True):
        from dragon._hook import call
        return call("Pipe", self, duplex)

    def Lock(self):
        from dragon._hook import call
        return call("Lock", self)

    def RLock(self):
        from dragon._hook import call
        return call("RLock", self)

    def Condition(self, lock=None):
        from dragon._hook import call
        return call("Condition", self, lock)

    def Semaphore(self, value=1):
        from dragon._hook import call
        return call("Semaphore", self, value)

    def BoundedSemaphore(self, value=1):
        from dragon._hook import call
        return call("BoundedSemaphore", self, value)

    def Event(self):
        from dragon._hook import call
        return call("Event", self)

    def Barrier(self, parties, action=None, timeout=None):
        from dragon._hook import call
        return call("Barrier", self, parties, action, timeout)

    def Queue(self, maxsize=0):
        from dragon._hook import call
        return call("Queue", self, maxsize)

    def JoinableQueue(self, maxsize=0):
        from dragon._hook import call
        return call("JoinableQueue", self, maxsize)

    def SimpleQueue(self):
        from dragon._hook import call
        return call("SimpleQueue", self)

    def Pool(self, processes=None, initializer=None, initargs=(), maxtasksperchild=None):
        from dragon._hook import call
        return call("Pool", self, processes, initializer, initargs, maxtasksperchild)

    def RawValue(self, typecode_or_type, *args):
        from dragon._hook import call
        return call("RawValue", self, typecode_or_type, *args)

    def RawArray(self, typecode_or_type, size_or_initializer):
        from dragon._hook import call
        return call("RawArray", self, typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type, *args, lock=True):
        from dragon._hook import call_keyword
        return call_keyword("Value", self, typecode_or_type, *args, lock=lock)

    def Array(self, typecode_or_type, size_or_initializer, *, lock=True):
        from dragon._hook import call_keyword
        return call_keyword("Array", self, typecode_or_type, size_or_initializer, lock=lock)


class _Methods:
    def get_all_start_methods(self):
        from dragon._hook import METHOD, _originals
        return [*_originals["get_all_start_methods"](self), METHOD]
