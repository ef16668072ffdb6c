"""A warm interpreter that forks workers on a daemon's order.

It runs as ``python -c RUN FD``, where RUN calls :func:`main` and FD is a stream socket. Every number is little-endian. For
each worker the daemon sends one frame, and gets one answer::

    u32 length of what follows
    u32 0 for a worker, 1 for another interpreter that forks workers
    u32 number of variables; for each: u32 length, name, u32 length, value
    u32 length, working directory
    u32 length, payload: what a worker does, what such an interpreter imports first
    u32 length, settings: words as ``umask=23 nice=5 cpus=0,1 limit=7:1024:4096``
    with its first byte, as SCM_RIGHTS: standard input (of such an interpreter: its socket), output and error

    i32 the pid, or a negative error number

The zygote has one thread, imports what every worker needs, what many need as long as nobody waits for it, and ends when the
socket does. Workers that want more imported, as the program's main module is, come from another one that it forks for them.
What is forked is a child of the daemon, a sibling, so that the daemon reads its exit status and its parent-death signal is
the daemon's death.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
from multiprocessing import process, spawn, util

from dragon import _interpreter, _native, _popen
from dragon.mp import worker  # noqa: F401  (so that no worker has to)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

_U32 = struct.Struct("<I")
_HEAD = struct.Struct("<II")
_I32 = struct.Struct("<i")
_FDS = 3
#: What many workers need, first what all do that run a main module. While it is imported the head imports as much itself; a
#: program that is done with that first does not wait for it.
_WANTED = (
    "pkgutil",
    "dragon.mp.queues",
    "dragon.mp.connection",
    "dragon.mp.synchronize",
    "multiprocessing.connection",
    "multiprocessing.pool",
)
#: RUN.
_run: str
#: Whether the collector, which RUN has switched off, is to be switched on in what is forked.
_collects: bool


class Order:
    """A worker to be forked, or another zygote."""

    def __init__(self, frame: bytes, fds: list[int]) -> None:
        fields = _fields(frame)
        is_zygote, count = _HEAD.unpack_from(frame)
        self.is_zygote = bool(is_zygote)
        self.environment = {next(fields): next(fields) for _ in range(count)}
        self.directory = next(fields)
        self.payload = next(fields)
        self.settings = next(fields).decode()
        self.fds = fds


def _fields(frame: bytes) -> Iterator[bytes]:
    at = _HEAD.size
    while at < len(frame):
        (length,) = _U32.unpack_from(frame, at)
        at += _U32.size
        if at + length > len(frame):
            raise ValueError(f"a field of {length} bytes at {at} is longer than its frame of {len(frame)} bytes")
        yield frame[at : at + length]
        at += length


def main(collects: bool) -> None:
    """What RUN calls, with the words that follow it. It has switched the collector off: programs find it as ever."""
    global _run, _collects
    _collects = collects
    _run = sys.orig_argv[-len(sys.argv)]
    if sys.argv[1] == "--worker":
        _fresh_worker(int(sys.argv[2]), int(sys.argv[3]))
    # One more word: what is to be said of this interpreter has been said.
    _begin(int(sys.argv[1]), again=len(sys.argv) > 2)


def _begin(fd: int, again: bool) -> None:
    """Serves orders until the daemon closes the socket."""
    orders = socket.socket(fileno=os.dup(fd))
    os.set_inheritable(orders.fileno(), False)
    os.close(fd)
    if fd == 0:
        os.open(os.devnull, os.O_RDONLY)
    _native.warm_up()
    _import_wanted(orders)
    threads = _interpreter.threads()
    if threads > 1 and not again:
        print(
            f"dragon: the warm interpreter has {threads} threads after its imports (a sitecustomize or .pth file starts "
            "them?), and cannot be forked safely; each worker starts an interpreter of its own, which is slower",
            file=sys.stderr,
        )
    _serve(orders, os.getppid(), fresh=threads > 1)


def _import_wanted(orders: socket.socket) -> None:
    for module in _WANTED:
        if select.select([orders], [], [], 0)[0]:
            return
        __import__(module)


def _serve(orders: socket.socket, daemon: int, fresh: bool) -> None:
    # Later collections leave what is there now alone, whose pages so stay shared.
    gc.freeze()
    while (order := _receive(orders)) is not None:
        _fork(order, orders, daemon, fresh)
        for passed in order.fds:
            os.close(passed)


def _receive(orders: socket.socket) -> Order | None:
    head, fds, _flags, _address = socket.recv_fds(orders, _U32.size, _FDS, socket.MSG_CMSG_CLOEXEC)
    if not head:
        return None
    head += _read(orders, _U32.size - len(head))
    if len(fds) != _FDS:
        raise ValueError(f"an order came with {len(fds)} file descriptors instead of {_FDS}")
    return Order(_read(orders, *_U32.unpack(head)), fds)


def _read(orders: socket.socket, length: int) -> bytes:
    frame = bytearray(length)
    view = memoryview(frame)
    while view:
        count = orders.recv_into(view)
        if count == 0:
            raise EOFError("the daemon closed the socket in the middle of an order")
        view = view[count:]
    return bytes(frame)


def _fork(order: Order, orders: socket.socket, daemon: int, fresh: bool) -> None:
    try:
        answer = _native.fork_sibling()
    except OSError as error:
        answer = -error.errno
    if answer == 0:
        code = 1
        try:
            orders.close()
            _collect_as_ever()
            os.setpgid(0, 0)
            die_with(daemon)
            if order.is_zygote:
                _become_zygote(order, daemon, fresh)
            code = _become_worker(order, daemon, fresh)
        except BaseException:
            _print_exception()
        finally:
            _leave(code)
    orders.sendall(_I32.pack(answer))


def _become_zygote(order: Order, daemon: int, fresh: bool) -> NoReturn:
    requests, *outputs = order.fds
    for number, fd in enumerate(outputs, 1):
        os.dup2(fd, number)
        os.close(fd)
    _enter(order)
    on_request = order.payload == _interpreter.FRESH
    if fresh or not on_request and not _interpreter.preload(order.payload):
        # What was half imported is best forgotten whole.
        os.set_inheritable(requests, True)
        os.execv(sys.executable, _command(str(requests), "again"))
    # What the imports have printed is out; nobody waits for the rest of this stream.
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    # What the main module has left behind would be kept by every worker.
    gc.collect()
    _serve(socket.socket(fileno=requests), daemon, fresh=on_request)
    os._exit(0)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", _run, *arguments]


def _become_worker(order: Order, daemon: int, fresh: bool) -> int:
    for number, fd in enumerate(order.fds):
        os.dup2(fd, number)
        os.close(fd)
    if order.settings:
        _settle(order.settings)
    if fresh:
        _replace_interpreter(order, daemon)
    _enter(order)
    _interpreter.unlike_others()
    return run(order.payload)


def _enter(order: Order) -> None:
    """Takes over environment and directory, and prints as that environment says."""
    _set_environment(order.environment)
    if order.directory:
        os.chdir(order.directory)
    # The daemon passes output on by whole lines; what a worker prints must not wait for the worker's end.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=b"PYTHONUNBUFFERED" in order.environment)


def _settle(settings: str) -> None:
    """Applies what a worker was given beside its environment. A limit's number is the kernel's."""
    for word in settings.split():
        name, _, value = word.partition("=")
        if name == "umask":
            os.umask(int(value))
        elif name == "cpus":
            os.sched_setaffinity(0, map(int, value.split(",")))
        elif name == "nice":
            os.nice(int(value))
        elif name == "limit":
            import resource  # Rarely needed: not worth its import in every zygote.

            number, soft, hard = map(int, value.split(":"))
            resource.setrlimit(number, (soft, hard))


def _set_environment(environment: dict[bytes, bytes]) -> None:
    # Mostly the same as the zygote's, and each change is a call or two into the C library.
    for name in [name for name in os.environb if name not in environment]:
        del os.environb[name]
    for name, value in environment.items():
        if os.environb.get(name) != value:
            os.environb[name] = value


def die_with(daemon: int) -> None:
    """From here on the daemon's death is this process's."""
    _native.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != daemon:
        os.kill(os.getpid(), signal.SIGKILL)


def run(payload: bytes) -> int:
    """Does what a payload says; the exit code."""
    stream = io.BytesIO(payload)
    first = pickle.load(stream)
    if isinstance(first, bytes):
        # The payload was too large for a request: this is the channel that holds it.
        stream = io.BytesIO(_native.Channel.attach(first, True).receive())
        first = pickle.load(stream)
    process.current_process()._inheriting = True
    _interpreter.fresh = first["dragon_fresh"]
    try:
        spawn.prepare(first)
        child = pickle.load(stream)
    finally:
        del process.current_process()._inheriting
    return child._bootstrap(parent_sentinel=_popen.ParentSentinel(first["dragon_parent"]))


def _leave(code: int) -> NoReturn:
    """Ends the process as an interpreter that has run a program does, but for the interpreter's own memory."""
    try:
        atexit._run_exitfuncs()
        # The program may have closed them, or have put None in their place.
        util._flush_std_streams()
    except BaseException:
        _print_exception()
    finally:
        os._exit(code)


def _print_exception() -> None:
    sys.__excepthook__(*sys.exc_info())


def _collect_as_ever() -> None:
    """Once: what the program says of it afterwards holds for what is forked later."""
    global _collects
    if _collects:
        gc.enable()
    _collects = False


def _replace_interpreter(order: Order, daemon: int) -> NoReturn:
    payload = os.memfd_create("dragon-payload", 0)
    with open(payload, "wb", closefd=False) as stream:
        stream.write(order.payload)
    if order.directory:
        os.chdir(order.directory)
    os.execve(sys.executable, _command("--worker", str(payload), str(daemon)), order.environment)


def _fresh_worker(payload: int, daemon: int) -> NoReturn:
    code = 1
    _collect_as_ever()
    try:
        die_with(daemon)
        with open(payload, "rb") as stream:
            stream.seek(0)
            content = stream.read()
        code = run(content)
    except BaseException:
        _print_exception()
    finally:
        _leave(code)
