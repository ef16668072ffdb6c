"""What workers run in: an interpreter, its options, and what it imports once on each node before it forks them.

As with the standard library's fork server, that is the program's main module unless
:func:`multiprocessing.set_forkserver_preload` says something else. A main module that cannot be imported ahead (it fails, it
makes objects of the runtime, or it leaves threads behind) is imported by every worker itself.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
from multiprocessing import process, spawn, util

from dragon import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Path, options and what to import, as `_native` wants them.
Interpreter = tuple[bytes, list[bytes], bytes]

#: The part of what a worker is prepared with that is the same for all workers of a program.
_COMMON = ["sys_path", "sys_argv", "orig_dir", "start_method", "init_main_from_name", "init_main_from_path"]
_MAIN = "__main__"
#: In the place of what to import: nothing, and each worker starts an interpreter of its own.
FRESH = b"fresh"

#: Whether each worker starts an interpreter of its own.
fresh = False
#: What the interpreter that this process was forked from has imported: modules, and how it was told.
_inherited: tuple[list[str], bytes] | None = None
#: The last answer, and what it depends on.
_last: tuple[Any, Interpreter] | None = None


def interpreter() -> Interpreter:
    """The interpreter that workers of this process run in."""
    global _last
    path = spawn.get_executable() or sys.executable
    wanted = path, _modules(), fresh
    if _last is None or _last[0] != wanted:
        options = [os.fsencode(option) for option in util._args_from_interpreter_flags()]
        _last = wanted, (os.fsencode(path), options, _preload(wanted[1]))
    return _last[1]


def preparation(name: str) -> dict[str, Any]:
    """What a worker is prepared with, as `multiprocessing.spawn` defines it."""
    data = spawn.get_preparation_data(name)
    data["start_method"] = "dragon"
    # A program that was read from standard input is in no file, one of IPython's is no Python: there is nothing to run again
    # in a worker.
    if not _is_program(data.get("init_main_from_path", os.curdir)):
        del data["init_main_from_path"]
    return data


def has_main() -> bool:
    """Whether the main module is one that workers can import: it is not where somebody types, or of `python -c`."""
    main = sys.modules[_MAIN]
    file = getattr(main, "__file__", None)
    return getattr(main.__spec__, "name", None) is not None or file is not None and _is_program(file)


def _is_program(path: str) -> bool:
    return not path.endswith((".ipy", ".ipynb")) and os.path.exists(path)


def _modules() -> list[str]:
    server = sys.modules.get("multiprocessing.forkserver")
    chosen = list(server._forkserver._preload_modules) if server is not None else [_MAIN]
    if chosen == [_MAIN] and _inherited is not None:
        return _inherited[0]
    return chosen


def _preload(modules: list[str]) -> bytes:
    if fresh:
        return FRESH
    if _inherited is not None and _inherited[0] == modules:
        return _inherited[1]
    data = preparation("")
    common = {name: data[name] for name in _COMMON if name in data}
    if not has_main() and all(module == _MAIN for module in modules):
        return b""
    return pickle.dumps((modules, common, _program(), _objects()), 5)


@functools.cache
def _program() -> bytes:
    """Tells this program from others of the runtime: a later one may find other modules under the same names."""
    return os.urandom(8)


@functools.cache
def _objects() -> list[str]:
    """What this program made objects of before it started its first worker: its workers are given some of them, as a rule."""
    return [name for name in sys.modules if name.startswith("dragon.mp.") and name != "dragon.mp.pool"]


def preload(wanted: bytes) -> bool:
    """Imports what workers want, in the interpreter that is to fork them; whether it can still do so."""
    global _inherited
    modules, common, _program, objects = pickle.loads(wanted)
    process.current_process()._inheriting = True
    try:
        for module in objects:
            __import__(module)
        spawn.prepare(common if _MAIN in modules else {name: common[name] for name in common.keys() - _COMMON[-2:]})
        for module in modules:
            if module != _MAIN:
                _import(module)
    except BaseException:
        return False  # Each worker meets the same, and says so.
    finally:
        del process.current_process()._inheriting
    _inherited = modules, wanted
    return not _native.is_attached() and _is_alone()


def _import(module: str) -> None:
    try:
        __import__(module)
    except ImportError:
        pass  # As the fork server does.


def threads() -> int:
    """How many threads this process has."""
    return len(os.listdir("/proc/self/task"))


def _is_alone() -> bool:
    if threads() > 1:
        # Libraries that keep threads for their sums (OpenBLAS is one) end them before a fork; the next sum starts others.
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    return threads() == 1


def unlike_others() -> None:
    """Called in a new worker: random numbers that were begun before the fork go on differently in each."""
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()
