"""Processes on any node."""

import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing import connection, reduction

import pytest

import dragon


def leave(code):
    sys.exit(code)


def send_over(sock):
    with sock:
        sock.sendall(b"from the child")


def fail():
    raise RuntimeError("meant to be seen in the test's output")


def die(number):
    os.kill(os.getpid(), number)


def report(queue, *what):
    queue.put((dragon.node().index, os.getpid(), os.getcwd(), os.environ.get("A_VARIABLE"), *what))


def wait_for(event):
    event.wait()


def say_and_wait(event):
    event.set()
    threading.Event().wait()


def start_grandchild(queue):
    process = multiprocessing.get_context("dragon").Process(target=report, args=(queue,))
    process.start()
    process.join()
    queue.put(process.exitcode)


def wait_for_ever():
    threading.Event().wait()


def start_all_kinds(queue):
    """Starts the workers of a pool, a daemon and another process, and is busy."""
    ctx = multiprocessing.get_context("dragon")
    pool = ctx.Pool(2)
    others = [ctx.Process(target=wait_for_ever, daemon=daemon) for daemon in (True, False)]
    for process in others:
        process.start()
    workers = [process.pid for process in multiprocessing.active_children() if process not in others]
    queue.put([*workers, *(process.pid for process in others)])
    pool.apply(wait_for_ever)


def length(queue, data):
    queue.put(len(data))


class Squarer(multiprocessing.get_context("dragon").Process):
    def __init__(self, queue, number):
        super().__init__(name="a squarer")
        self.queue = queue
        self.number = number

    def run(self):
        self.queue.put((self.name, self.number**2))


@pytest.mark.parametrize(
    ("target", "args", "code"),
    [(leave, (0,), 0), (leave, (3,), 3), (leave, ("text",), 1), (fail, (), 1), (die, (signal.SIGKILL,), -9), (die, (signal.SIGTERM,), -15)],
)
def test_exit_code(start, node, target, args, code):
    process = start(node, target, *args)
    process.join()
    assert process.exitcode == code
    assert not process.is_alive()


def test_where_and_with_what_it_runs(ctx, start, node, monkeypatch, tmp_path):
    monkeypatch.setenv("A_VARIABLE", "a value, ä")
    monkeypatch.chdir(tmp_path)
    queue = ctx.Queue()
    process = start(node, report, queue, 1, "two")
    where, pid, cwd, variable, *rest = queue.get()
    assert (where, pid, cwd, variable) == (node, process.pid, str(tmp_path), "a value, ä")
    assert rest == [1, "two"]


def test_environment_that_is_not_utf8(ctx, start, node, monkeypatch):
    monkeypatch.setitem(os.environb, b"A_VARIABLE", b"\xff\xfe")
    queue = ctx.Queue()
    start(node, report, queue)
    assert os.fsencode(queue.get()[3]) == b"\xff\xfe"


def test_join_with_timeout(ctx, start, node):
    event = ctx.Event()
    process = start(node, wait_for, event)
    process.join(0.05)
    assert process.is_alive() and process.exitcode is None
    event.set()
    process.join()
    assert process.exitcode == 0


def test_terminate_and_kill(ctx, start, node):
    event = ctx.Event()
    for end, code in [("terminate", -15), ("kill", -9)]:
        process = start(node, wait_for, event)
        getattr(process, end)()
        process.join()
        assert process.exitcode == code
        getattr(process, end)()  # once more is no error


def test_signals_until_the_end_is_told_are_no_error(ctx, start, node):
    for _ in range(5):
        attached = ctx.Event()
        process = start(node, say_and_wait, attached)
        attached.wait()
        while not process.exitcode:
            process.kill()
        assert process.exitcode == -9


def test_is_alive_becomes_false_without_join(start, node):
    process = start(node, leave, 0)
    connection.wait([process.sentinel])
    assert not process.is_alive()


def test_sentinel(ctx, start, node):
    event = ctx.Event()
    processes = [start(node, wait_for, event) for _ in range(2)]
    sentinels = [process.sentinel for process in processes]
    assert connection.wait(sentinels, timeout=0.05) == []
    processes[1].kill()
    assert connection.wait(sentinels) == [sentinels[1]]
    assert processes[1].exitcode == -9
    event.set()
    assert connection.wait(sentinels[:1]) == sentinels[:1]
    # Asked for when it is over already.
    ended = start(node, leave, 0)
    ended.join()
    assert connection.wait([ended.sentinel]) == [ended.sentinel]


def test_subclass(ctx, node):
    queue = ctx.Queue()
    process = Squarer(queue, 7)
    with dragon.on_node(node):
        process.start()
    assert queue.get() == ("a squarer", 49)
    process.join()
    assert process.exitcode == 0


def test_grandchild(ctx, start, node):
    queue = ctx.Queue()
    start(node, start_grandchild, queue)
    assert isinstance(queue.get()[1], int)
    assert queue.get() == 0


def test_large_arguments(ctx, start, node):
    queue = ctx.Queue()
    start(node, length, queue, b"x" * 5_000_000)
    assert queue.get() == 5_000_000


def test_many_at_once(ctx):
    queue = ctx.Queue()
    processes = [ctx.Process(target=report, args=(queue, i)) for i in range(12)]
    for process in processes:
        process.start()
    seen = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    assert sorted(item[-1] for item in seen) == list(range(12))
    assert {process.exitcode for process in processes} == {0}
    assert not set(processes) & set(multiprocessing.active_children())


def test_joined_by_several_threads(ctx, start, node):
    event = ctx.Event()
    process = start(node, wait_for, event)
    threads = [threading.Thread(target=process.join) for _ in range(3)]
    for thread in threads:
        thread.start()
    event.set()
    for thread in threads:
        thread.join()
    assert process.exitcode == 0


def test_close(ctx, node):
    process = ctx.Process(target=leave, args=(0,))
    with dragon.on_node(node):
        process.start()
    process.join()
    process.close()
    with pytest.raises(ValueError):
        process.is_alive()
    with pytest.raises(ValueError):
        process.join()


def test_file_descriptors_go_to_processes_of_this_node(start):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = start(0, send_over, theirs)
        assert ours.recv(100) == b"from the child"
        process.join()
        assert process.exitcode == 0


def test_file_descriptors_of_another_node_are_refused(ctx):
    ours, theirs = ctx.Pipe()
    theirs.send_bytes(b"\0dragon-handle-of-a-process-elsewhere")
    with pytest.raises(NotImplementedError, match="process of the same node"):
        reduction.recv_handle(ours)


def test_target_that_cannot_be_pickled(ctx):
    with pytest.raises(Exception, match="pickle"):
        ctx.Process(target=lambda: None).start()


def test_child_can_use_subprocess(start, node):
    process = start(node, run_true)
    process.join()
    assert process.exitcode == 0


def run_true():
    sys.exit(subprocess.run(["true"], check=False).returncode)


def test_workers_and_daemons_end_with_a_parent_that_is_killed(ctx, start, node):
    queue = ctx.Queue()
    parent = start(node, start_all_kinds, queue)
    *bound, free = [(pid, os.pidfd_open(pid)) for pid in queue.get()]
    assert len(bound) == 3
    parent.kill()
    for _, end in bound:
        assert select.select([end], [], [], 60)[0]
    assert not select.select([free[1]], [], [], 0)[0], "one that is no daemon goes on"
    os.kill(free[0], signal.SIGKILL)
    for _, end in (*bound, free):
        os.close(end)
