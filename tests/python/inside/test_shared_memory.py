"""Shared memory by name, from any node."""

import multiprocessing
from multiprocessing import managers, shared_memory

import pytest


@pytest.fixture(autouse=True)
def chosen():
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("dragon", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.fixture
def memory():
    memory = shared_memory.SharedMemory(create=True, size=10_000)
    yield memory
    memory.close()
    memory.unlink()


def write(name, at, data):
    memory = shared_memory.SharedMemory(name)
    memory.buf[at : at + len(data)] = data
    memory.close()


def set_item(shared, at, value):
    shared[at] = value
    shared.shm.close()


def wait_and_close(name, at, value, attached, go):
    memory = shared_memory.SharedMemory(name)
    attached.set()
    go.wait()
    memory.buf[at] = value
    memory.close()


def hold(name, attached):
    memory = shared_memory.SharedMemory(name)
    attached.set()
    multiprocessing.Event().wait()
    memory.close()


def test_another_process_writes(memory, start, node):
    start(node, write, memory.name, 4090, b"over an edge").join()
    assert bytes(memory.buf[4088:4104]) == b"\0\0over an edge\0\0"
    assert memory.size == 10_000


def test_only_what_was_changed_is_written_back(memory, ctx, start, node):
    events = [(ctx.Event(), ctx.Event()) for _ in range(2)]
    processes = [start(node, wait_and_close, memory.name, at, at + 1, *events[at]) for at in range(2)]
    for attached, _go in events:
        attached.wait()
    memory.buf[2] = 3
    for _attached, go in events:
        go.set()
    for process in processes:
        process.join()
    assert bytes(memory.buf[:4]) == b"\1\2\3\0"


def test_names_are_taken_and_free():
    memory = shared_memory.SharedMemory("a-name", create=True, size=3)
    with pytest.raises(FileExistsError):
        shared_memory.SharedMemory("a-name", create=True, size=3)
    memory.unlink()
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory("a-name")
    with pytest.raises(FileNotFoundError):
        memory.unlink()
    memory.buf[0] = 1  # there as long as somebody uses it
    memory.close()


def test_views_keep_it_open(memory):
    view = memory.buf[:3]
    with pytest.raises(BufferError):
        memory.close()
    view.release()


def test_a_killed_user_does_no_harm(memory, ctx, start, node):
    attached = ctx.Event()
    process = start(node, hold, memory.name, attached)
    attached.wait()
    process.kill()
    process.join()
    start(node, write, memory.name, 0, b"later").join()
    assert bytes(memory.buf[:5]) == b"later"


def test_shareable_list(start, node):
    shared = shared_memory.ShareableList([1, "two", 3.0, None])
    process = start(node, set_item, shared, 1, "zwei")
    process.join()
    assert (process.exitcode, list(shared)) == (0, [1, "zwei", 3.0, None])
    shared.shm.close()
    shared.shm.unlink()


def test_a_manager_unlinks_what_it_gave():
    with managers.SharedMemoryManager() as manager:
        name = manager.SharedMemory(100).name
        shared_memory.SharedMemory(name).close()
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(name)
