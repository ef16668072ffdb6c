"""Merge sort over a tree of processes, in seconds: with depth 6 127 of them, of which this program is the root.

Each inner node gives its halves to two processes and gets them back, sorted, through a queue of its own: 63 queues.
"""

import multiprocessing
import random

import common


def sort(numbers, depth):
    if depth == 0:
        return sorted(numbers)
    middle = len(numbers) // 2
    queue = multiprocessing.Queue()
    halves = [numbers[:middle], numbers[middle:]]
    children = [multiprocessing.Process(target=sort_into, args=(queue, half, depth - 1)) for half in halves]
    for child in children:
        child.start()
    merged = merge(queue.get(), queue.get())
    for child in children:
        child.join()
    return merged


def sort_into(queue, numbers, depth):
    queue.put(sort(numbers, depth))


def merge(left, right):
    merged = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]


if __name__ == "__main__":
    args = common.options(runs=1, numbers=1_000_000, depth=6)
    random.seed(1)
    numbers = [random.randrange(1 << 31) for _ in range(args.numbers)]
    expected = sorted(numbers)

    def sort_all():
        if sort(numbers, args.depth) != expected:
            raise SystemExit("the numbers are not in order")

    common.report(common.timed(sort_all, args.runs, per=1, scale=1), "s")
