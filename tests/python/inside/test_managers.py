"""Managers, listeners and clients, and waiting for several objects."""

import multiprocessing
import os
import threading
from multiprocessing import connection, managers

import pytest


@pytest.fixture(autouse=True)
def chosen():
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("dragon", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def fill(shared, items, lock):
    for n in range(20):
        with lock:
            shared["sum"] += n
        items.append(n)


def call(address, authkey):
    with connection.Client(address, authkey=authkey) as client:
        client.send(os.getpid())
        assert client.recv() == "answer"


def send_numbers(writer, count):
    for n in range(count):
        writer.send(n)
    writer.close()


def wait_for(event):
    event.wait()


def report_parent(writer):
    parent = multiprocessing.parent_process()
    writer.send((parent.pid, parent.is_alive()))
    parent.join(60)
    writer.send(parent.is_alive())


def start_and_wait(writer, grandchild_runs):
    child = multiprocessing.Process(target=report_parent, args=(writer,))
    child.start()
    writer.close()
    grandchild_runs.set()
    multiprocessing.Event().wait()


class Counter:
    def __init__(self):
        self.count = 0

    def add(self, n):
        self.count += n
        return self.count


class CounterManager(managers.BaseManager):
    pass


CounterManager.register("Counter", Counter)


def add_to(counter, n):
    counter.add(n)


def test_objects_of_a_manager(ctx, start, node):
    with ctx.Manager() as manager:
        shared, items, lock = manager.dict(sum=0), manager.list(), manager.Lock()
        processes = [start(node, fill, shared, items, lock) for _ in range(2)]
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert shared["sum"] == 2 * sum(range(20))
        assert sorted(items) == sorted(2 * list(range(20)))


def test_a_manager_of_ones_own(start, node):
    with CounterManager() as manager:
        assert manager.address.startswith("dragon:")
        counter = manager.Counter()
        start(node, add_to, counter, 5).join()
        assert counter.add(1) == 6


@pytest.mark.parametrize("authkey", [None, b"a key"])
def test_listener_and_client(start, node, authkey):
    with connection.Listener(authkey=authkey) as listener:
        process = start(node, call, listener.address, authkey)
        with listener.accept() as accepted:
            assert accepted.recv() == process.pid
            accepted.send("answer")
        process.join()
        assert process.exitcode == 0


def test_wrong_key():
    with connection.Listener(authkey=b"right") as listener:
        refused = []

        def accept():
            try:
                listener.accept()
            except multiprocessing.AuthenticationError as error:
                refused.append(error)

        accepting = threading.Thread(target=accept)
        accepting.start()
        with pytest.raises(multiprocessing.AuthenticationError):
            connection.Client(listener.address, authkey=b"wrong")
        accepting.join()
        assert len(refused) == 1


def test_nobody_listens():
    listener = connection.Listener()
    address = listener.address
    waiting = connection.Client(address)
    listener.close()
    with pytest.raises(EOFError):
        waiting.recv()
    for bad in (address, "dragon:xyz"):
        with pytest.raises(ConnectionRefusedError):
            connection.Client(bad)
    with pytest.raises(OSError, match="closed"):
        listener.accept()


def test_wait_for_connections(ctx, start, node):
    readers = []
    for count in (3, 4, 5):
        reader, writer = ctx.Pipe(duplex=False)
        start(node, send_numbers, writer, count)
        writer.close()
        readers.append(reader)
    received = 0
    while readers:
        for reader in connection.wait(readers, 60):
            try:
                reader.recv()
                received += 1
            except EOFError:
                readers.remove(reader)
    assert received == 12


def test_wait_for_connections_files_and_processes(ctx, start, node):
    reader, writer = ctx.Pipe(duplex=False)
    event = ctx.Event()
    process = start(node, wait_for, event)
    file, other = os.pipe()
    queue = ctx.SimpleQueue()
    everything = [reader, process.sentinel, file, queue._reader]
    assert connection.wait(everything, 0) == []
    assert connection.wait(everything, 0.05) == []
    threading.Timer(0.05, writer.send, (1,)).start()
    assert connection.wait(everything, 60) == [reader]
    os.write(other, b"x")
    assert connection.wait(everything, 60) == [reader, file]
    queue.put(1)
    event.set()
    # Its sentinel is ready a moment after somebody else may know that it has ended.
    assert connection.wait([process.sentinel], 60) == [process.sentinel]
    assert connection.wait(everything, 60) == everything
    os.close(file)
    os.close(other)


def test_a_child_sees_the_end_of_its_parent(ctx, start, node):
    reader, writer = ctx.Pipe(duplex=False)
    runs = ctx.Event()
    child = start(node, start_and_wait, writer, runs)
    runs.wait()
    assert reader.recv() == (child.pid, True)
    child.kill()
    assert reader.recv() is False


def test_pool_of_the_module_is_ours():
    from multiprocessing import pool

    with pool.Pool(2) as workers:
        assert type(workers).__module__ == "dragon.mp.pool"
        assert workers.map(abs, [-1, 2]) == [1, 2]
    with pool.ThreadPool(2) as threads:
        assert threads.map(abs, [-1, 2]) == [1, 2]
