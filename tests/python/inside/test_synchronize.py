"""Locks and what is built on them, between processes of any nodes."""

import signal
import threading
import time

import pytest


def count_up(lock, counter, times):
    for _ in range(times):
        with lock:
            counter.put(counter.get() + 1)


def hold(lock, held):
    lock.acquire()
    held.set()
    threading.Event().wait()


def release(lock):
    lock.release()


def wait_and_answer(event, queue):
    queue.put("waiting")
    queue.put(event.wait(60))


def take_part(barrier, queue):
    queue.put(barrier.wait())


def wait_for_turn(condition, queue):
    with condition:
        queue.put("waiting")
        condition.wait()
        queue.put("woken")


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore"])
def test_mutual_exclusion(ctx, start, node, kind):
    lock, counter = getattr(ctx, kind)(), ctx.Queue()
    counter.put(0)
    processes = [start(n, count_up, lock, counter, 25) for n in (0, node, 0, node)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert counter.get() == 100


def test_lock(ctx):
    lock = ctx.Lock()
    assert lock.acquire()
    assert not lock.acquire(False)
    assert not lock.acquire(block=True, timeout=0.05)
    assert not lock.acquire(timeout=-1)
    lock.release()
    with pytest.raises(ValueError, match="released too many times"):
        lock.release()
    with lock:
        assert "MainProcess" in repr(lock)
    assert "None" in repr(lock)


def test_lock_is_released_by_another_process(ctx, start, node):
    lock = ctx.Lock()
    lock.acquire()
    start(node, release, lock).join()
    assert lock.acquire(timeout=30)


def test_rlock(ctx):
    lock = ctx.RLock()
    with lock, lock:
        assert lock.acquire(False)
        lock.release()
        refused = []
        thread = threading.Thread(target=lambda: refused.append(lock.acquire(False)))
        thread.start()
        thread.join()
        assert refused == [False]
    with pytest.raises(AssertionError, match="not owned"):
        lock.release()


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_lock_of_a_killed_process_is_handed_on(ctx, start, node, kind, caplog):
    lock, held = getattr(ctx, kind)(), ctx.Event()
    victim = start(node, hold, lock, held)
    held.wait()
    assert not lock.acquire(False)
    waiter = threading.Thread(target=lock.acquire)
    waiter.start()
    victim.kill()
    waiter.join()
    assert any("died" in record.message for record in caplog.records)


def test_semaphore(ctx):
    semaphore = ctx.Semaphore(2)
    assert semaphore.acquire() and semaphore.acquire() and not semaphore.acquire(False)
    assert not semaphore.acquire(timeout=0.05)
    semaphore.release()
    semaphore.release(3)
    assert semaphore.get_value() == 4
    with pytest.raises(ValueError):
        ctx.Semaphore(-1)


def test_a_unit_that_reaches_a_stopped_process_is_not_lost_with_it(ctx, stopped, node):
    semaphore = ctx.Semaphore(0)
    victim = stopped(node, semaphore.acquire)
    semaphore.release()
    while node != 0 and semaphore.get_value() != 0:  # until it is on its way to the one who waits
        time.sleep(0.001)
    victim.kill()
    victim.join()
    assert semaphore.acquire(timeout=60)


def test_bounded_semaphore(ctx):
    semaphore = ctx.BoundedSemaphore(1)
    with pytest.raises(ValueError, match="released too many times"):
        semaphore.release()
    with semaphore:
        assert semaphore.get_value() == 0
    assert semaphore.get_value() == 1


def test_event(ctx, start, node):
    event, queue = ctx.Event(), ctx.Queue()
    assert not event.is_set() and not event.wait(0.05)
    waiters = [start(node, wait_and_answer, event, queue) for _ in range(3)]
    assert [queue.get() for _ in waiters] == ["waiting"] * 3
    event.set()
    assert [queue.get() for _ in waiters] == [True] * 3
    assert event.is_set() and event.wait()
    event.clear()
    assert not event.is_set()


def test_condition(ctx, start, node):
    condition, queue = ctx.Condition(), ctx.Queue()
    for _ in range(2):
        start(node, wait_for_turn, condition, queue)
        assert queue.get() == "waiting"
    with condition:
        assert not condition.wait(0.01)
        condition.notify()
    assert queue.get() == "woken"
    with condition:
        condition.notify_all()
    assert queue.get() == "woken"


def test_barrier(ctx, start, node):
    barrier, queue = ctx.Barrier(3), ctx.Queue()
    for _ in range(2):
        for n in (0, node):
            start(n, take_part, barrier, queue)
        places = [barrier.wait(), queue.get(), queue.get()]
        assert sorted(places) == [0, 1, 2]
    with pytest.raises(ValueError):
        ctx.Barrier(0)


def test_broken_barrier(ctx):
    barrier = ctx.Barrier(2)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(0.05)
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken


class Interrupt(Exception):
    pass


@pytest.fixture
def alarm():
    """Interrupts the main thread in a moment; the handler does what the test says."""

    def set_alarm(handler):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_signal_handler_that_raises_ends_the_wait(ctx, alarm):
    def handler(*_):
        raise Interrupt

    lock, (ours, _theirs) = ctx.Lock(), ctx.Pipe()
    lock.acquire()
    for wait in (lock.acquire, ctx.Event().wait, ctx.Queue().get, ctx.Semaphore(0).acquire, ours.recv):
        alarm(handler)
        with pytest.raises(Interrupt):
            wait()
    lock.release()
    assert lock.acquire(False)


def test_after_a_signal_the_wait_goes_on(ctx, alarm):
    event, seen = ctx.Event(), []

    def handler(*_):
        seen.append(time.monotonic())
        threading.Timer(0.1, event.set).start()

    alarm(handler)
    assert event.wait()
    assert seen
    # The rest of the time still holds.
    event.clear()
    alarm(lambda *_: None)
    began = time.monotonic()
    assert not event.wait(0.3)
    assert time.monotonic() - began >= 0.3
