"""Pool: creation in milliseconds; with `--result 1` until the first result is there as well."""

import multiprocessing
import time

import common


def nothing(number):
    return number


def create(workers, result):
    start = time.perf_counter()
    pool = multiprocessing.Pool(workers)
    if result:
        pool.apply(nothing, (1,))
    took = time.perf_counter() - start
    # Its end is not measured, and must not be in the way of the next one.
    pool.close()
    pool.join()
    return took * 1e3


if __name__ == "__main__":
    args = common.options(runs=10, workers=8, result=0)
    # The first one waits for a warm interpreter, or a fork server.
    create(1, args.result)
    common.report([create(args.workers, args.result) for _ in range(args.runs)], "ms")
