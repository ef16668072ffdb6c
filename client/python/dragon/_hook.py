"""Makes `multiprocessing` know the start method "dragon".

`multiprocessing.Queue` and its like are methods of a default context, bound when `multiprocessing` was imported, and they
make the standard library's objects whatever context is set. So that they make ours under this start method, also where
a program imported them by name before it imported `dragon`, the functions behind these methods get another body: it asks
which context is set, and for every context but ours does what it did before. The same goes for those functions of
`multiprocessing.connection` and `multiprocessing.reduction` that managers and others call without a context.
"""

from __future__ import annotations

import contextlib
import contextvars
import types
from multiprocessing import context, process

from dragon._imports import when_imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

METHOD = "dragon"

_originals: dict[str, types.FunctionType] = {}
#: Whether a context of ours, or one of another start method, has a module's function called; None outside of both.
_caller: contextvars.ContextVar[bool | None] = contextvars.ContextVar("dragon_caller", default=None)


def register(concrete: context.BaseContext) -> None:
    """Adds the start method. Doing it again changes nothing."""
    if METHOD in context._concrete_contexts:
        return
    context._concrete_contexts[METHOD] = concrete
    _replace_functions(context.BaseContext, _Bodies)
    _replace_body(context.DefaultContext.get_all_start_methods, _Methods.get_all_start_methods)
    _replace_body(process.BaseProcess.sentinel.fget, _Process.sentinel)
    when_imported("multiprocessing.connection", _change_connection)
    when_imported("multiprocessing.reduction", lambda module: _replace_functions(module, _Reduction))
    when_imported("multiprocessing.pool", _change_pool)
    when_imported("multiprocessing.spawn", lambda module: _replace_functions(module, _Spawn))
    when_imported("multiprocessing.shared_memory", _change_shared_memory)
    when_imported("multiprocessing.sharedctypes", lambda module: _replace_functions(module, _SharedTypes))
    when_imported("concurrent.futures.process", _change_executor)


def call(name: str, caller: Any, *args: Any) -> Any:
    """Makes an object by the context that is set."""
    actual = _chosen(caller)
    if actual is not None:
        return getattr(actual, name)(*args)
    with _called_by(False):
        return original(f"BaseContext.{name}")(caller, *args)


def call_keyword(name: str, caller: Any, *args: Any, lock: Any) -> Any:
    """The same for functions whose argument `lock` is only a keyword."""
    actual = _chosen(caller)
    if actual is not None:
        return getattr(actual, name)(*args, lock=lock)
    with _called_by(False):
        return original(f"BaseContext.{name}")(caller, *args, lock=lock)


def original(name: str) -> types.FunctionType:
    """The function with this qualified name, with the body that it had."""
    return _originals[name]


def is_chosen() -> bool:
    """Whether a module's function that knows no context makes objects of ours: as the context wants it that has it called,
    and otherwise when this start method is set."""
    caller = _caller.get()
    return _chosen(context._default_context) is not None if caller is None else caller


def called_by_ours() -> contextlib.AbstractContextManager[None]:
    """Inside, functions that know no context make objects of ours."""
    return _called_by(True)


@contextlib.contextmanager
def _called_by(ours: bool) -> Iterator[None]:
    token = _caller.set(ours)
    try:
        yield
    finally:
        _caller.reset(token)


#: What the address of a listener of ours begins with.
ADDRESS = "dragon:"


def has_our_form(address: Any) -> bool:
    """Whether an address is one of a listener of ours."""
    return isinstance(address, str) and address.startswith(ADDRESS)


def is_ours(address: Any, family: str | None) -> bool:
    """Whether a listener with this address and family is to be one of ours."""
    return family is None and (has_our_form(address) or not address and is_chosen())


def _chosen(caller: Any) -> Any:
    # Only the default context has a choice. It is looked at without making it: asking would fix the default.
    actual = getattr(caller, "_actual_context", None)
    return actual if actual is not None and actual._name == METHOD else None


def _change_connection(connection: Any) -> None:
    _replace_functions(connection, _Connection)
    _replace_body(connection.Listener.__init__, _Listener.__init__)


def _change_shared_memory(module: Any) -> None:
    # The argument `track` came with Python 3.13.
    tracked = module.SharedMemory.__init__.__kwdefaults__ is not None
    _replace_functions(module.SharedMemory, _SharedMemoryTracked if tracked else _SharedMemoryUntracked)
    _replace_functions(module.SharedMemory, _SharedMemory)
    module.SharedMemory._original_close = original("SharedMemory.close")
    module.SharedMemory._original_unlink = original("SharedMemory.unlink")


def _change_pool(pool: Any) -> None:
    pool.Pool.__new__ = staticmethod(_new_pool)


def _new_pool(cls: Any, *args: Any, context: Any = None, **kwargs: Any) -> Any:
    """`Pool()` of the module: one of ours where the context is ours, or the start method when none is given."""
    from multiprocessing import pool

    if len(args) == 5:
        context = args[4]
    if cls is pool.Pool and (is_chosen() if context is None else context.get_context()._name == METHOD):
        from dragon.mp.pool import Pool

        cls = Pool
    return object.__new__(cls)


def _change_executor(module: Any) -> None:
    module._SafeQueue.__new__ = staticmethod(_new_call_queue)


def _new_call_queue(cls: Any, max_size: int = 0, *, ctx: Any = None, **parts: Any) -> Any:
    """The queue in which an executor has its calls: one of ours where the context is ours."""
    if ctx is None or ctx.get_context()._name != METHOD:  # None: it is being unpickled
        return object.__new__(cls)
    from dragon.mp.queues import CallQueue

    return CallQueue(max_size, parts, cls._on_queue_feeder_error)


def _replace_functions(of: Any, bodies: type) -> None:
    for name, body in vars(bodies).items():
        if isinstance(body, types.FunctionType):
            _replace_body(getattr(of, name), body)


def _replace_body(function: Any, body: types.FunctionType) -> None:
    old, new = function.__code__, body.__code__
    arguments = old.co_argcount, old.co_kwonlyargcount, old.co_flags & 0x0C, old.co_varnames[: old.co_argcount]
    if arguments != (new.co_argcount, new.co_kwonlyargcount, new.co_flags & 0x0C, new.co_varnames[: new.co_argcount]):
        raise ImportError(
            f"multiprocessing.{function.__name__} of this Python has other arguments than this release of dragon knows"
        )
    kept = types.FunctionType(old, function.__globals__, function.__name__, function.__defaults__)
    kept.__kwdefaults__ = function.__kwdefaults__
    _originals[function.__qualname__] = kept
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
        from dragon._hook import METHOD, original
        return [*original("DefaultContext.get_all_start_methods")(self), METHOD]


class _Process:
    def sentinel(self):
        from dragon._hook import original
        sentinel = original("BaseProcess.sentinel")(self)
        return sentinel if type(sentinel) is int else sentinel.number()


class _Listener:
    def __init__(self, address=None, family=None, backlog=1, authkey=None):
        from dragon._hook import is_ours, original
        if is_ours(address, family):
            from dragon.mp.listener import listen
            listen(self, address, authkey)
        else:
            original("Listener.__init__")(self, address, family, backlog, authkey)


class _Connection:
    """Functions of `multiprocessing.connection`."""

    def Client(address, family=None, authkey=None):
        from dragon._hook import has_our_form, original
        if family is None and has_our_form(address):
            from dragon.mp.listener import client
            return client(address, authkey)
        return original("Client")(address, family, authkey)

    def Pipe(duplex=True):
        from dragon._hook import is_chosen, original
        if is_chosen():
            from dragon.mp.connection import Pipe
            return Pipe(duplex)
        return original("Pipe")(duplex)

    def wait(object_list, timeout=None):
        object_list = list(object_list)
        if any(hasattr(one, "_wait_for") for one in object_list):
            from dragon.mp.waiting import wait
            return wait(object_list, timeout)
        from dragon._hook import original
        return original("wait")(object_list, timeout)


class _Reduction:
    """Functions of `multiprocessing.reduction`."""

    def send_handle(conn, handle, destination_pid):
        if hasattr(conn, "_wait_for"):
            from dragon.mp.handles import send_handle
            return send_handle(conn, handle)
        from dragon._hook import original
        return original("send_handle")(conn, handle, destination_pid)

    def recv_handle(conn):
        if hasattr(conn, "_wait_for"):
            from dragon.mp.handles import recv_handle
            return recv_handle(conn)
        from dragon._hook import original
        return original("recv_handle")(conn)


class _Spawn:
    """Functions of `multiprocessing.spawn`."""

    def get_preparation_data(name):
        from dragon._hook import METHOD, original
        data = original("get_preparation_data")(name)
        # A process of another start method learns this name before it imports what makes it known.
        if data.get("start_method") == METHOD:
            del data["start_method"]
        return data


class _SharedTypes:
    """Functions of `multiprocessing.sharedctypes`."""

    def _new_value(type_):
        from dragon._hook import is_chosen, original
        if is_chosen():
            from dragon.mp.sharedctypes import new_value
            return new_value(type_)
        return original("_new_value")(type_)

    def rebuild_ctype(type_, wrapper, length):
        memory = getattr(wrapper, "memory", None)
        if memory is not None and not memory.is_local():
            from dragon.mp.sharedctypes import rebuild
            return rebuild(type_, wrapper, length)
        from dragon._hook import original
        return original("rebuild_ctype")(type_, wrapper, length)

    def synchronized(obj, lock=None, ctx=None):
        if type(obj).__module__ == "dragon.mp.sharedctypes" or type(lock).__module__ == "dragon._native":
            from dragon.mp.sharedctypes import synchronized
            return synchronized(obj, lock, ctx)
        from dragon._hook import original
        return original("synchronized")(obj, lock, ctx)

    def copy(obj):
        if type(obj).__module__ == "dragon.mp.sharedctypes":
            from dragon.mp.sharedctypes import copy
            return copy(obj)
        from dragon._hook import original
        return original("copy")(obj)


class _SharedMemoryUntracked:
    def __init__(self, name=None, create=False, size=0):
        from dragon._hook import is_chosen, original
        if is_chosen():
            from dragon.mp.shared_memory import open_memory
            open_memory(self, name, create, size)
        else:
            original("SharedMemory.__init__")(self, name, create, size)


class _SharedMemoryTracked:
    def __init__(self, name=None, create=False, size=0, *, track=True):
        from dragon._hook import is_chosen, original
        if is_chosen():
            from dragon.mp.shared_memory import open_memory
            open_memory(self, name, create, size)
        else:
            original("SharedMemory.__init__")(self, name, create, size, track=track)


class _SharedMemory:
    # Called when the interpreter ends, too, when nothing can be imported.

    def close(self):
        ours = getattr(self, "_dragon", None)
        if ours is not None:
            ours.close(self)
        else:
            self._original_close()

    def unlink(self):
        ours = getattr(self, "_dragon", None)
        if ours is not None:
            ours.unlink(self)
        else:
            self._original_unlink()
