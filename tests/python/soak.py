"""Many processes, under `dragon`: ``soak.py STARTED ALIVE KILLED``.

So many are started and joined, so many are alive at once, and so many of those are killed at random: nothing is lost but
their own work, and nothing grows. ``dragon python tests/python/soak.py 10000 1000 100`` takes a minute.
"""

import multiprocessing
import os
import random
import signal
import sys
import time

import dragon

AT_ONCE = 100
#: Bytes by which a process may grow that keeps nothing: what allocators keep differs from run to run.
GROWS = 8 << 20


def work(queue, number):
    queue.put(number)


def wait_and_work(event, queue, number):
    event.wait()
    queue.put(number)


def resident(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory():
    """Of this process, of its daemon, and what is allocated of the node's pool."""
    stats = dragon._native.stats()
    return resident(os.getpid()), resident(os.getppid()), stats["pool_used"], stats["pool_blocks"]


def start(target, *args, numbers):
    processes = [multiprocessing.Process(target=target, args=(*args, number)) for number in numbers]
    for process in processes:
        process.start()
    return processes


def one_after_the_other(count):
    queue = multiprocessing.Queue()
    before = None
    for first in range(0, count, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, count))
        processes = start(work, queue, numbers=numbers)
        for process in processes:
            process.join()
        assert all(process.exitcode == 0 for process in processes)
        assert sorted(queue.get() for _ in numbers) == list(numbers)
        before = before or memory()
    return before, memory()


def all_at_once(count, kills):
    queue, event = multiprocessing.Queue(), multiprocessing.Event()
    processes = start(wait_and_work, event, queue, numbers=range(count))
    assert all(process.is_alive() for process in processes)
    killed = set(random.sample(range(count), kills))
    for number in killed:
        os.kill(processes[number].pid, signal.SIGKILL)
    for number in killed:
        processes[number].join()
    event.set()
    for number, process in enumerate(processes):
        process.join()
        assert process.exitcode == (-signal.SIGKILL if number in killed else 0), (number, process)
    assert {queue.get() for _ in range(count - kills)} == set(range(count)) - killed


def main():
    started, alive, killed = map(int, sys.argv[1:])
    multiprocessing.set_start_method("dragon")
    began = time.monotonic()
    before, after = one_after_the_other(started)
    print(f"{started} started and joined: {time.monotonic() - began:.1f} s")
    print(f"memory of head, daemon, pool (bytes), pool (blocks): {before}, at the end {after}")
    assert after[2:] == before[2:] and all(end - start < GROWS for start, end in zip(before, after)), "it grows"
    began = time.monotonic()
    all_at_once(alive, killed)
    print(f"{alive} alive at once, {killed} of them killed: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
