#!/usr/bin/env python3
"""Says hello from every worker of a pool, on all nodes.

    dragon hello_world.py [WORKERS]

WORKERS defaults to the number of CPUs of all nodes together.
"""

import multiprocessing
import os
import sys

import dragon


def prepare(arrived, all_are_here, workers):
    """Runs once in each worker: keeps what the tasks share."""
    global meeting
    meeting = arrived, all_are_here, workers


def greet(number):
    """Waits until as many tasks run as there are workers, so that every worker has one, then does its work."""
    arrived, all_are_here, workers = meeting
    arrived.release()
    if arrived.get_value() == workers:
        all_are_here.set()
    all_are_here.wait()
    node = dragon.node()
    return f"hello from node {node.index} ({node.host}), process {os.getpid()}: {number} squared is {number * number}"


def main():
    multiprocessing.set_start_method("dragon")
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else multiprocessing.cpu_count()
    print(f"{workers} workers on {len(dragon.nodes())} nodes, dragon {dragon.__version__}")
    shared = multiprocessing.Semaphore(0), multiprocessing.Event(), workers
    with multiprocessing.Pool(workers, prepare, shared) as pool:
        for greeting in pool.map(greet, range(workers), chunksize=1):
            print(greeting)


if __name__ == "__main__":
    main()
