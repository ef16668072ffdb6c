#!/usr/bin/env python3
"""A ring of processes over all nodes passes a counter round.

    dragon ring.py [PROCESSES [ROUNDS]]

Each process adds one to what it gets from its left neighbour and sends it to its right one. PROCESSES defaults to two for
each node, ROUNDS to 10. The exit code is 0 when the counter is right at the end.
"""

import multiprocessing
import os
import sys

import dragon


def pass_on(left, right, rounds, places):
    """A process of the ring."""
    places.put((dragon.node().index, os.getpid()))
    for _ in range(rounds):
        right.put(left.get() + 1)


def main():
    multiprocessing.set_start_method("dragon")
    nodes = dragon.nodes()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2 * len(nodes)
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 10

    places = multiprocessing.Queue()
    # links[i] leads to process i, and the last one back here.
    links = [multiprocessing.Queue() for _ in range(count + 1)]
    ring = []
    for i in range(count):
        process = multiprocessing.Process(target=pass_on, args=(links[i], links[i + 1], rounds, places))
        with dragon.on_node(i % len(nodes)):
            process.start()
        ring.append(process)

    counter = 0
    for _ in range(rounds):
        links[0].put(counter)
        counter = links[-1].get()
    for process in ring:
        process.join()
    used = sorted(places.get() for _ in ring)
    for node, pid in used:
        print(f"node {node} ({nodes[node].host}): process {pid}")
    print(f"{counter} steps in {rounds} rounds through {count} processes on {len({node for node, _ in used})} nodes")
    failed = [process.exitcode for process in ring if process.exitcode != 0]
    if counter != count * rounds or failed:
        sys.exit(f"wrong: {count * rounds} steps expected, exit codes {failed}")


if __name__ == "__main__":
    main()
