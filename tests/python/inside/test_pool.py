"""Pools of workers on all nodes."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import weakref

import pytest

import dragon


def square(number):
    return number * number


def add(a, b=0):
    return a + b


def where(_=None):
    return dragon.node().index, os.getpid()


def meet(barrier):
    barrier.wait(60)
    return where()


def fail(number):
    raise KeyError(number)


def fail_on_three(number):
    if number == 3:
        raise ValueError("three")
    return number


def unpicklable_result(_):
    return lambda: None


def remember(value):
    global remembered
    remembered = value


def recall(_):
    return remembered


def block(started):
    started.put(os.getpid())
    threading.Event().wait()


def leave(code):
    sys.exit(code)


def raise_always():
    raise RuntimeError("meant to be seen in the test's output")


def echo(value):
    return value


class TooPicky(Exception):
    """Cannot be unpickled: its constructor wants more than it gives."""

    def __init__(self, one, two):
        super().__init__(one)


def raise_too_picky(_):
    raise TooPicky(1, 2)


@pytest.fixture
def pool(ctx):
    with ctx.Pool(4) as pool:
        yield pool


def test_map(pool):
    assert pool.map(square, range(100)) == [n * n for n in range(100)]
    assert pool.map(square, range(100), chunksize=1) == [n * n for n in range(100)]
    assert pool.map(square, []) == []
    assert pool.map(square, (n for n in range(5))) == [0, 1, 4, 9, 16]


def test_many_small_tasks(pool):
    assert pool.map(square, range(5000), chunksize=1) == [n * n for n in range(5000)]


def test_starmap_and_apply(pool):
    assert pool.starmap(add, [(1, 2), (3, 4)]) == [3, 7]
    assert pool.apply(add, (1,), {"b": 5}) == 6


def test_imap(pool):
    assert list(pool.imap(square, range(1000))) == [n * n for n in range(1000)]
    assert list(pool.imap(square, range(20), chunksize=6)) == [n * n for n in range(20)]
    assert sorted(pool.imap_unordered(square, range(1000))) == [n * n for n in range(1000)]
    results = pool.imap(square, iter([]))
    with pytest.raises(StopIteration):
        next(results)


def test_imap_reads_a_lazy_iterable(pool):
    more = threading.Event()

    def numbers():
        yield 1
        more.wait()
        yield 2

    results = pool.imap(square, numbers())
    assert next(results) == 1
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(timeout=0.05)
    more.set()
    assert next(results) == 4


def test_imap_of_an_iterable_that_raises(pool):
    def numbers():
        yield 1
        raise LookupError("of the iterable")

    results = pool.imap(square, numbers())
    assert next(results) == 1
    with pytest.raises(LookupError, match="of the iterable"):
        next(results)


def test_async(pool):
    done = []
    result = pool.map_async(square, range(10), callback=done.append)
    assert result.get(60) == [n * n for n in range(10)]
    assert result.successful()
    one = pool.apply_async(add, (1, 2), callback=done.append)
    assert one.get(60) == 3
    two = pool.starmap_async(add, [(1, 2)], callback=done.append)
    assert two.get(60) == [3]
    assert done == [[n * n for n in range(10)], 3, [3]]
    errors = []
    failed = pool.apply_async(fail, (1,), error_callback=errors.append)
    with pytest.raises(KeyError):
        failed.get(60)
    assert not failed.successful() and len(errors) == 1


def test_get_with_timeout(ctx, pool):
    started = ctx.Queue()
    result = pool.apply_async(block, (started,))
    started.get()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.05)


def test_errors_come_with_the_remote_traceback(pool):
    with pytest.raises(KeyError) as caught:
        pool.apply(fail, (42,))
    assert caught.value.args == (42,)
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(ValueError, match="three"):
        pool.map(fail_on_three, range(10), chunksize=1)
    results = pool.imap(fail_on_three, range(5))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert next(results) == 4


def test_what_cannot_be_pickled(pool):
    with pytest.raises(multiprocessing.pool.MaybeEncodingError):
        pool.apply(unpicklable_result, (1,))
    with pytest.raises(Exception, match="pickle"):
        pool.apply(lambda: None)
    with pytest.raises(Exception, match="pickle"):
        pool.map(square, [threading.Lock()])
    with pytest.raises(TypeError):
        pool.apply(raise_too_picky, (1,))
    assert pool.apply(square, (3,)) == 9


def test_workers_are_on_all_nodes(ctx):
    nodes = len(dragon.nodes())
    with ctx.Pool(2 * nodes) as pool:
        places = pool.map(meet, [ctx.Barrier(2 * nodes)] * (2 * nodes), chunksize=1)
    assert len(set(places)) == 2 * nodes
    assert sorted(node for node, _ in places) == sorted(list(range(nodes)) * 2)


def test_default_size(ctx):
    with ctx.Pool() as pool:
        assert pool._processes == ctx.cpu_count()


def test_initializer(ctx):
    with ctx.Pool(2, remember, ("this",)) as pool:
        assert pool.map(recall, range(4), chunksize=1) == ["this"] * 4


def test_maxtasksperchild(ctx):
    with ctx.Pool(2, maxtasksperchild=2) as pool:
        places = pool.map(where, range(12), chunksize=1)
        counts = [places.count(place) for place in set(places)]
        assert max(counts) <= 2 and sum(counts) == 12
    for wrong in (0, 1.5):
        with pytest.raises(ValueError):
            ctx.Pool(1, maxtasksperchild=wrong)


def test_bad_arguments(ctx):
    with pytest.raises(ValueError):
        ctx.Pool(0)
    with pytest.raises(TypeError):
        ctx.Pool(1, initializer=3)


def test_large_tasks_and_results(pool):
    data = [bytes([n]) * (1 << 20) for n in range(20)]
    assert pool.map(echo, data, chunksize=1) == data


def test_arrays(pool):
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.full(100_000, n) for n in range(8)]
    for sent, received in zip(arrays, pool.map(echo, arrays, chunksize=1)):
        assert (sent == received).all()


def test_close_and_join(ctx):
    pool = ctx.Pool(3)
    result = pool.map_async(square, range(2000), chunksize=1)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    pool.join()
    assert result.get(0) == [n * n for n in range(2000)]
    with pytest.raises(ValueError, match="not running"):
        pool.map(square, [1])
    pool.terminate()


def test_close_without_tasks(ctx):
    pool = ctx.Pool(2)
    pool.close()
    pool.join()


def test_terminate(ctx):
    started = ctx.Queue()
    pool = ctx.Pool(2)
    result = pool.map_async(block, [started] * 10, chunksize=1)
    pids = [started.get() for _ in range(2)]
    workers = list(pool._pool)
    assert sorted(pids) == sorted(worker.pid for worker in workers)
    pool.terminate()
    pool.join()
    assert {worker.exitcode for worker in workers} == {-signal.SIGTERM}
    with pytest.raises(RuntimeError, match="terminated"):
        result.get(60)


def test_pool_goes_when_nobody_has_it(ctx):
    pool = ctx.Pool(2)
    assert pool.map(square, [1, 2]) == [1, 4]
    gone = weakref.ref(pool)
    workers = list(pool._pool)
    with pytest.warns(ResourceWarning):
        del pool
        gc.collect()
    assert gone() is None
    for worker in workers:
        worker.join()


def test_worker_killed_while_it_waits(ctx, pool):
    assert pool.map(square, range(8)) == [n * n for n in range(8)]
    before = {worker.pid for worker in pool._pool}
    for worker in list(pool._pool)[:3]:
        worker.kill()
        worker.join()
    assert pool.map(square, range(200), chunksize=1) == [n * n for n in range(200)]
    # As many as before, and new ones among them.
    barrier = ctx.Barrier(4)
    after = {pid for _, pid in pool.map(meet, [barrier] * 4, chunksize=1)}
    assert len(after) == 4 and len(after & before) == 1


def test_worker_killed_while_it_works(ctx, pool):
    started = ctx.Queue()
    result = pool.apply_async(block, (started,))
    pid = started.get()
    (victim,) = [worker for worker in pool._pool if worker.pid == pid]
    others = pool.map_async(square, range(500), chunksize=1)
    victim.kill()
    with pytest.raises(dragon.WorkerLostError, match=f"process {pid} .* signal 9"):
        result.get(60)
    assert others.get(60) == [n * n for n in range(500)]


def test_worker_that_leaves(pool):
    with pytest.raises(dragon.WorkerLostError, match="exit code 5"):
        pool.apply(leave, (5,))
    assert pool.apply(square, (3,)) == 9


def test_workers_that_cannot_start_end_the_pool(ctx):
    pool = ctx.Pool(2, initializer=raise_always)
    with pytest.raises(dragon.WorkerLostError, match="the pool gives up"):
        pool.apply(square, (3,))
    pool.terminate()


def test_two_pools(ctx):
    with ctx.Pool(2) as first, ctx.Pool(2) as second:
        a, b = first.map_async(square, range(50)), second.map_async(square, range(50))
        assert a.get(60) == b.get(60)


def test_pool_cannot_be_pickled(pool):
    with pytest.raises(NotImplementedError):
        pool.apply(echo, (pool,))


def test_used_by_several_threads(pool):
    results = {}

    def use(first):
        results[first] = pool.map(square, range(first, first + 300), chunksize=1)

    threads = [threading.Thread(target=use, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {first: [n * n for n in range(first, first + 300)] for first in range(4)}


def test_callbacks_may_start_tasks(pool):
    last = threading.Event()
    results = []

    def again(value):
        results.append(value)
        if len(results) < 20:
            pool.apply_async(add, (value, 1), callback=again)
        else:
            last.set()

    pool.apply_async(add, (0, 1), callback=again)
    assert last.wait(60)
    assert results == list(range(1, 21))
