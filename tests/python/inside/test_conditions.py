"""Conditions and barriers whose waiters and notifiers are killed, stopped and signalled, on any nodes."""

import functools
import os
import random
import signal
import threading
import time

import pytest

FOR_EVER = 3600


class Interrupt(Exception):
    pass


def interrupt(*_):
    raise Interrupt


def set_alarm(handler, seconds=0.1):
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)


@pytest.fixture
def waiter(ctx, start):
    """Starts a process that waits for a condition, and answers to a queue; it waits when this returns."""

    def start_waiter(node, condition, answers):
        process = start(node, wait_once, condition, answers)
        assert answers.get() == "waiting"
        with condition:  # it gave the lock up, so it can be notified
            return process

    return start_waiter


def wait_once(condition, answers):
    with condition:
        answers.put("waiting")
        answers.put(condition.wait())


def test_a_notification_of_a_killed_waiter_goes_to_the_next(ctx, waiter, node):
    condition, answers = ctx.Condition(), ctx.Queue()
    first = waiter(node, condition, answers)
    waiter(node, condition, answers)
    os.kill(first.pid, signal.SIGSTOP)
    with condition:
        condition.notify()  # waits for nobody, and is the stopped one's
        first.kill()
        first.join()
    assert answers.get() is True


def test_a_waiter_killed_on_its_way_to_the_lock_passes_its_notification_on(ctx, waiter, node):
    condition, answers = ctx.Condition(), ctx.Queue()
    first = waiter(node, condition, answers)
    with condition:
        condition.notify()
        time.sleep(0.05)  # it wakes up, and wants the lock
        first.kill()
        first.join()
    waiter(0, condition, answers)  # nobody waited who could have had the notification, and nobody gets it later
    waiter(node, condition, answers)
    with condition:
        condition.notify(2)
    assert [answers.get() for _ in range(2)] == [True] * 2


def notify_and_stay(condition, told):
    with condition:
        condition.notify()
        told.set()
        time.sleep(FOR_EVER)


def test_a_notifier_killed_with_the_lock_has_notified(ctx, start, waiter, node):
    condition, answers, told = ctx.Condition(), ctx.Queue(), ctx.Event()
    waiter(node, condition, answers)
    notifier = start(node, notify_and_stay, condition, told)
    told.wait()
    notifier.kill()
    assert answers.get() is True


def keep_up(condition, turn, acknowledged):
    """Tells of each turn that it is notified of."""
    seen = 0
    while True:
        with condition:
            condition.wait_for(lambda: turn.value > seen)
            seen = turn.value
        acknowledged.put(seen)


def wait_and_notify(condition, started):
    started.set()
    while True:
        with condition:
            condition.notify()
            condition.wait(0.002)


def test_processes_killed_at_any_moment_hold_nobody_up(ctx, start, node):
    """Each turn is notified of under the lock, to two of three: one who keeps up gets it whoever dies meanwhile."""
    condition, turn, acknowledged = ctx.Condition(), ctx.RawValue("q", 0), ctx.Queue()
    start(node, keep_up, condition, turn, acknowledged)
    chance = random.Random(7)
    for number in range(1, 31):
        started = ctx.Event()
        victim = start(node if number % 2 else 0, wait_and_notify, condition, started)
        started.wait()
        killer = threading.Timer(chance.uniform(0, 0.01), victim.kill)
        killer.start()
        time.sleep(chance.uniform(0, 0.01))
        with condition:
            turn.value = number
            condition.notify(2)
        assert acknowledged.get() == number
        killer.join()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL


def answer_signals(condition, answers):
    def notify(*_):
        with condition:  # the wait has given it up
            condition.notify()

    with condition, condition:
        set_alarm(notify)
        answers.put(condition.wait(60))
        set_alarm(lambda *_: None)
        began = time.monotonic()
        answers.put(condition.wait(0.3) is False and time.monotonic() - began >= 0.3)
        set_alarm(interrupt)
        try:
            condition.wait()
        except Interrupt:
            condition.notify()  # refused without the lock
            answers.put(True)
    answers.put("1)" not in repr(condition) and "None" in repr(condition))


def test_signals_in_the_middle_of_a_wait(ctx, start, node):
    condition, answers = ctx.Condition(), ctx.Queue()
    start(node, answer_signals, condition, answers)
    assert [answers.get() for _ in range(4)] == [True] * 4
    assert condition.acquire(timeout=60)


def interrupted_with_the_lock_taken(condition, answers):
    with condition:
        set_alarm(interrupt)
        answers.put("waiting")
        try:
            condition.wait()
        except Interrupt:
            answers.put(condition._lock._is_mine())


def test_an_interrupted_wait_ends_when_it_has_the_lock(ctx, start, node):
    condition, answers = ctx.Condition(ctx.Lock()), ctx.Queue()
    start(node, interrupted_with_the_lock_taken, condition, answers)
    assert answers.get() == "waiting"
    with condition:
        time.sleep(0.3)  # the signal comes while somebody else has the lock
        assert answers.empty()
    assert answers.get() is True


def test_the_lock_must_be_held(ctx):
    condition = ctx.Condition()
    for call in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(AssertionError):
            call()
    with pytest.raises(TypeError, match="Semaphore"):
        ctx.Condition(ctx.Semaphore())


def test_wait_for(ctx):
    condition, results = ctx.Condition(), iter([0, "it"])
    with condition:
        assert condition.wait_for(lambda: 0, 0.05) == 0
        threading.Timer(0.05, lambda: [condition.acquire(), condition.notify_all(), condition.release()]).start()
        assert condition.wait_for(lambda: next(results), 60) == "it"


def take_part(barrier, answers, timeout=None):
    try:
        answers.put(barrier.wait(timeout))
    except threading.BrokenBarrierError:
        answers.put("broken")


def act_for_ever(acts):
    acts.set()
    time.sleep(FOR_EVER)


def act_a_while():
    time.sleep(0.5)


def fail():
    raise Interrupt


def until_waiting(barrier, count):
    while barrier.n_waiting < count:
        time.sleep(0.001)


def test_a_party_killed_at_a_barrier_breaks_it(ctx, start, node):
    barrier, answers = ctx.Barrier(3), ctx.Queue()
    victim = start(node, take_part, barrier, answers)
    start(node, take_part, barrier, answers)
    until_waiting(barrier, 2)
    victim.kill()
    assert answers.get() == "broken"
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken and barrier.n_waiting == 0


def test_a_party_killed_while_it_acts_breaks_the_barrier(ctx, start, node):
    acts, answers = ctx.Event(), ctx.Queue()
    barrier = ctx.Barrier(2, functools.partial(act_for_ever, acts))
    start(0, take_part, barrier, answers)
    until_waiting(barrier, 1)
    actor = start(node, take_part, barrier, answers)
    acts.wait()
    actor.kill()
    assert answers.get() == "broken"


def test_an_action_is_no_part_of_the_time(ctx, start, node):
    barrier, answers = ctx.Barrier(2, act_a_while), ctx.Queue()
    start(node, take_part, barrier, answers, 0.2)
    until_waiting(barrier, 1)
    assert sorted([barrier.wait(), answers.get()]) == [0, 1]
    assert not barrier.broken


def test_an_action_that_fails_breaks_the_barrier(ctx, start, node):
    barrier, answers = ctx.Barrier(2, fail), ctx.Queue()
    start(node, take_part, barrier, answers)
    until_waiting(barrier, 1)
    with pytest.raises(Interrupt):
        barrier.wait()
    assert answers.get() == "broken"


def test_a_barrier_aborted_while_one_acts(ctx, start, node):
    acts, answers = ctx.Event(), ctx.Queue()
    barrier = ctx.Barrier(2, functools.partial(act_for_ever, acts))
    start(node, take_part, barrier, answers)
    until_waiting(barrier, 1)
    start(node, take_part, barrier, answers)
    acts.wait()
    barrier.abort()
    assert answers.get() == "broken", "the one who waits does not wait for the action"


def signalled_at_barrier(barrier, answers):
    set_alarm(lambda *_: None)
    try:
        barrier.wait(0.3)
    except threading.BrokenBarrierError:
        answers.put("time was up")
    barrier.reset()
    set_alarm(interrupt)
    try:
        barrier.wait()
    except Interrupt:
        answers.put((barrier.broken, barrier.n_waiting))


def test_signals_at_a_barrier(ctx, start, node):
    barrier, answers = ctx.Barrier(2), ctx.Queue()
    start(node, signalled_at_barrier, barrier, answers)
    assert answers.get() == "time was up"
    assert answers.get() == (False, 0)


def wait_or_hear(barrier, turns, answers):
    while turns.get():
        take_part(barrier, answers)


def test_a_signal_at_any_moment_of_the_last_party(ctx, start, node):
    barrier, turns, answers = ctx.Barrier(2, int), ctx.Queue(), ctx.Queue()
    start(node, wait_or_hear, barrier, turns, answers)
    for number in range(60):
        turns.put(True)
        until_waiting(barrier, 1)
        try:
            set_alarm(interrupt, (number % 30 + 1) * 5e-6)
            barrier.wait()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupt:
            # Before it had come: the other one waits for it still.
            if barrier.n_waiting == 1:
                barrier.abort()
        assert answers.get() in (0, 1, "broken")
        barrier.reset()
    turns.put(False)


def signalled_while_another_acts(barrier, answers, after):
    set_alarm(lambda *_: answers.put("heard"), after)
    take_part(barrier, answers)


def test_a_signal_while_another_acts(ctx, start, node):
    barrier, answers = ctx.Barrier(2, act_a_while), ctx.Queue()
    start(node, signalled_while_another_acts, barrier, answers, 0.2)
    until_waiting(barrier, 1)
    number = barrier.wait()
    assert answers.get() == "heard"
    assert sorted([number, answers.get()]) == [0, 1]
    assert barrier.n_waiting == 0
