"""Queues between processes of any nodes."""

import os
import queue as std
import threading
import time

import pytest


def put_all(queue, items):
    for item in items:
        queue.put(item)


def pass_on(source, target):
    while (item := source.get()) is not None:
        target.put(item)


def hold(queue, taken):
    taken.put(os.getpid())
    queue.get()
    taken.put("more than it should")


def work_off(queue):
    while True:
        queue.get()
        queue.task_done()


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_order_of_one_sender(ctx, start, node, kind):
    queue = getattr(ctx, kind)()
    start(node, put_all, queue, range(1500))
    assert [queue.get() for _ in range(1500)] == list(range(1500))
    assert queue.empty()


def test_put_never_waits_without_maxsize(ctx):
    queue = ctx.Queue()
    for number in range(5000):
        queue.put(number)
    assert [queue.get() for _ in range(5000)] == list(range(5000))
    queue.close()
    queue.join_thread()


def test_maxsize_is_exact(ctx, start, node):
    queue = ctx.Queue(3)
    for number in range(3):
        queue.put(number)
    assert queue.full() and queue.qsize() == 3
    with pytest.raises(std.Full):
        queue.put_nowait(3)
    with pytest.raises(std.Full):
        queue.put(3, timeout=0.05)
    assert queue.get() == 0
    queue.put(3)
    start(node, put_all, queue, [4, 5])
    assert [queue.get() for _ in range(5)] == [1, 2, 3, 4, 5]


def test_large_maxsize(ctx):
    queue = ctx.Queue(2000)
    for number in range(2000):
        queue.put(number)
    assert queue.full()
    with pytest.raises(std.Full):
        queue.put_nowait(0)
    assert [queue.get() for _ in range(2000)] == list(range(2000))
    assert queue.qsize() == 0


def test_empty(ctx):
    queue = ctx.Queue()
    assert queue.empty() and queue.qsize() == 0
    with pytest.raises(std.Empty):
        queue.get_nowait()
    with pytest.raises(std.Empty):
        queue.get(timeout=0.05)
    with pytest.raises(std.Empty):
        queue.get(True, -1)
    queue.put(1)
    assert not queue.empty() and queue.qsize() == 1
    assert queue.get(timeout=5) == 1


@pytest.mark.parametrize("size", [0, 1, 191, 192, 193, 65_535, 65_536, 65_537, 1 << 20, 8 << 20])
def test_sizes(ctx, start, node, size):
    there, back = ctx.Queue(), ctx.Queue()
    start(node, pass_on, there, back)
    for value in (b"x" * size, bytearray(b"y" * size)):
        there.put(value)
        assert back.get() == value
    there.put(None)


def test_arrays(ctx, start, node):
    numpy = pytest.importorskip("numpy")
    there, back = ctx.Queue(), ctx.Queue()
    start(node, pass_on, there, back)
    array = numpy.arange(1_000_000, dtype="f8")
    there.put(array)
    received = back.get()
    assert (received == array).all()
    received += 1
    there.put(None)


def test_queue_in_a_queue(ctx, start, node):
    outer, inner = ctx.Queue(), ctx.Queue()
    start(node, put_through, outer)
    outer.put(inner)
    assert inner.get() == "through"


def put_through(outer):
    outer.get().put("through")


def test_many_senders_and_receivers(ctx, start, node):
    tasks, results = ctx.Queue(), ctx.Queue()
    receivers = [start(n, pass_on, tasks, results) for n in (0, node)]
    senders = [start(n, put_all, tasks, range(first, 400, 2)) for first, n in enumerate((0, node))]
    assert sorted(results.get() for _ in range(400)) == list(range(400))
    for sender in senders:
        sender.join()
    for _ in receivers:
        tasks.put(None)
    for receiver in receivers:
        receiver.join()
        assert receiver.exitcode == 0


def test_a_receiver_killed_while_it_waits_takes_nothing_along(ctx, start, node):
    queue, taken = ctx.Queue(), ctx.Queue()
    for _ in range(10):
        victim = start(node, hold, queue, taken)
        taken.get()
        victim.kill()
        victim.join()
        put_all(queue, range(3))  # at once: whoever has seen the end relies on it that the victim asks for nothing any more
        assert [queue.get() for _ in range(3)] == [0, 1, 2]
    assert taken.empty()


def test_an_item_that_reaches_a_stopped_process_is_not_lost_with_it(ctx, stopped, node):
    queue, taken = ctx.Queue(), ctx.Queue()
    for size in (10, 100_000):
        victim = stopped(node, hold, queue, taken)
        queue.put(b"x" * size)
        while node != 0 and not queue.empty():  # until it is on its way to the one who waits
            time.sleep(0.001)
        victim.kill()
        victim.join()
        assert len(queue.get(timeout=60)) == size


@pytest.mark.parametrize("maxsize", [0, 1, 2000])
def test_item_that_cannot_be_pickled_is_reported_and_left_out(ctx, capsys, maxsize):
    queue = ctx.Queue(maxsize)
    queue.put(lambda: None)
    assert "pickle" in capsys.readouterr().err
    queue.put(1)
    assert queue.get() == 1


def test_item_that_cannot_be_pickled_is_not_counted(ctx, capsys):
    queue = ctx.JoinableQueue()
    queue.put(lambda: None)
    queue.join()
    assert "pickle" in capsys.readouterr().err


def test_item_is_what_it_was_when_it_was_put(ctx):
    queue = ctx.Queue()
    items = [bytearray(100_000)]
    for _ in range(300):  # more than the channel holds
        queue.put(items[0])
    items[0][0] = 1
    assert all(queue.get()[0] == 0 for _ in range(300))


def test_closed(ctx):
    queue = ctx.Queue()
    with pytest.raises(AssertionError):
        queue.join_thread()
    queue.close()
    queue.join_thread()
    with pytest.raises(ValueError, match="is closed"):
        queue.put(1)
    with pytest.raises(ValueError, match="is closed"):
        queue.get()


def test_join(ctx, start, node):
    queue = ctx.JoinableQueue()
    queue.join()
    worker = start(node, work_off, queue)
    for number in range(100):
        queue.put(number)
    queue.join()
    assert queue.empty()
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()
    worker.kill()


def test_join_waits(ctx):
    queue = ctx.JoinableQueue(1)
    queue.put(1)
    with pytest.raises(std.Full):
        queue.put_nowait(2)
    joiner = threading.Thread(target=queue.join)
    joiner.start()
    joiner.join(0.05)
    assert joiner.is_alive()
    queue.get()
    queue.task_done()
    joiner.join()


def test_several_threads_get(ctx):
    queue = ctx.Queue()
    results = []
    threads = [threading.Thread(target=lambda: results.append(queue.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    put_all(queue, range(4))
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(4))
