"""Pool(2).map with chunksize 1: microseconds for each task."""

import multiprocessing

import common

TASKS = 1000


def nothing(number):
    return number


if __name__ == "__main__":
    args = common.options(runs=10)
    with multiprocessing.Pool(2) as pool:
        values = common.timed(lambda: pool.map(nothing, range(TASKS), chunksize=1), args.runs, per=TASKS, scale=1e6)
    common.report(values, "us")
