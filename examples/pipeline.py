#!/usr/bin/env python3
"""Producers, workers and a consumer, connected by queues, spread over all nodes.

    dragon pipeline.py [ITEMS]

Two producers make ITEMS numbers (1000 by default), a worker on every node squares them, and the consumer, this program,
checks that each arrives exactly once and right. The exit code is 0 when they do.
"""

import multiprocessing
import sys

import dragon


def produce(numbers, tasks):
    """Puts its numbers into the queue, and waits until they have been worked off."""
    for number in numbers:
        tasks.put(number)
    tasks.join()


def square(tasks, results):
    """Works until it is told that there is nothing more."""
    node = dragon.node().index
    while (number := tasks.get()) is not None:
        results.put((number, number * number, node))
        tasks.task_done()
    tasks.task_done()


def main():
    multiprocessing.set_start_method("dragon")
    items = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    nodes = dragon.nodes()

    # Few places: producers wait for workers instead of filling memory.
    tasks = multiprocessing.JoinableQueue(32)
    results = multiprocessing.Queue()
    producers = [
        multiprocessing.Process(target=produce, args=(range(first, items, 2), tasks)) for first in range(2)
    ]
    workers = []
    for node in nodes:
        worker = multiprocessing.Process(target=square, args=(tasks, results))
        with dragon.on_node(node.index):
            worker.start()
        workers.append(worker)
    for producer in producers:
        producer.start()

    received = [results.get() for _ in range(items)]
    for producer in producers:
        producer.join()
    for _ in workers:
        tasks.put(None)
    for process in workers:
        process.join()

    by_node = {node.index: 0 for node in nodes}
    for _, _, node in received:
        by_node[node] += 1
    for node in nodes:
        print(f"node {node.index} ({node.host}): {by_node[node.index]} items")
    wrong = sorted((number, result) for number, result, _ in received) != [(n, n * n) for n in range(items)]
    codes = [process.exitcode for process in producers + workers]
    if wrong or any(codes):
        sys.exit(f"wrong: not every item arrived once and right, or a process failed: exit codes {codes}")
    print(f"{items} items, all right")


if __name__ == "__main__":
    main()
